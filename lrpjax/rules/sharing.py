"""The rules of products and of sums: which part of the relevance each factor, or term, takes.

Sources: Arras et al. 2017 (gates), Achtibat et al. 2024 (AttnLRP), Ali et al. 2022 (CP-LRP), Jafari et al. 2024
(MambaLRP).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrpjax.errors import RuleError
from lrpjax.rules.arithmetic import divide
from lrpjax.rules.base import Factor, Rule, rule


@rule("share")
class Product(Rule):
    """How a product y = a·b·… of values that all carry relevance shares it (matrix products and attention included).

    share: "gate" (the default): a sigmoid gate receives nothing and the signal takes all (Arras et al. 2017);
    without a gate, uniform. "activated": a factor that comes straight from an activation receives nothing (the
    gate of SwiGLU in CP-LRP); without one, uniform. "selective": state-space models; the state, or else the
    input of the recurrence, takes all (Jafari et al. 2024; see `lrpjax.core.recognise.recurrence`). "uniform":
    each of N factors gets R/N (AttnLRP, Achtibat et al. 2024, propositions 3.2 and 3.3). "magnitude": in
    proportion to |a|, |b|, … (elementwise products only). "each": every factor takes all, R/a per unit of a, as a
    derivative has it; nothing is conserved. An int: that factor, in the order of writing, takes all.
    Along an axis (`jnp.prod`, `jnp.cumprod`) all share alike.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x[0] * x[1], lrpjax.Composite([('*', Product('magnitude'))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([6.0, 2.0])).round(1))
    [9. 3.]
    """

    share: str | int = "gate"
    kinds: ClassVar = ("product",)

    def __post_init__(self):
        shares = ("gate", "activated", "selective", "uniform", "magnitude", "each")
        if isinstance(self.share, bool) or not (isinstance(self.share, int) or self.share in shares):
            raise RuleError(
                f"Product: share must be {', '.join(map(repr, shares))} or the number of a factor, "
                f"but is {self.share!r}"
            )

    def takes(self, factors: Sequence[Factor]) -> Sequence[bool]:
        if isinstance(self.share, int):
            if not -len(factors) <= self.share < len(factors):
                raise RuleError(f"share={self.share}, but the product has {len(factors)} factors")
            return [i == self.share % len(factors) for i in range(len(factors))]
        if self.share == "selective":
            return [f.signal for f in factors]
        if self.share in ("gate", "activated"):
            kept = _unless(lambda f: f.gate, [True] * len(factors), factors)
            return _unless(lambda f: f.activated, kept, factors) if self.share == "activated" else kept
        return [True] * len(factors)

    def weights(self, values: Sequence[jax.Array]) -> Sequence[Any]:
        if self.share == "magnitude" and len(values) > 1:
            return magnitudes(values)
        return [1.0 if self.share == "each" else 1.0 / len(values)] * len(values)


def _unless(
    held: Callable[[Factor], bool], kept: Sequence[bool], factors: Sequence[Factor]
) -> Sequence[bool]:
    """Those of the factors kept that are not held fixed; all of them, if that would be none."""
    left = [k and not held(f) for k, f in zip(kept, factors, strict=True)]
    return left if any(left) else kept


def magnitudes(values: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """|a| / Σ |a| for each of the values, which are broadcast against each other."""
    sizes = [jnp.abs(v) for v in values]
    total = functools.reduce(jnp.add, sizes)
    return [divide(jnp.broadcast_to(size, total.shape), total) for size in sizes]


@rule("share")
class Sum(Rule):
    """How a sum y = a + b of two values that carry relevance (a residual connection) shares it.

    share: "native": in proportion to a and b, conserved exactly and divided by nothing (the default).
    "magnitude": in proportion to |a|, |b|. "uniform": half to each. An int: that operand takes all (0 is the
    first written).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x + 2 * x[::-1], lrpjax.Composite([('*', Sum('uniform'))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 3.0])).round(1))
    [6. 6.]
    """

    share: str | int = "native"
    kinds: ClassVar = ("sum",)

    def __post_init__(self):
        if isinstance(self.share, bool) or self.share not in ("native", "uniform", "magnitude", 0, 1):
            raise RuleError(
                "Sum: share must be 'native', 'magnitude', 'uniform' or the number of an operand, "
                f"but is {self.share!r}"
            )

    def weights(self, values: Sequence[jax.Array]) -> Sequence[Any] | None:
        if self.share == "native":
            return None
        if self.share == "magnitude":
            return magnitudes(values)
        return [0.5, 0.5] if self.share == "uniform" else [float(i == self.share) for i in range(2)]
