"""What a transformer's positions contribute: relevance that goes into position embeddings and rotations, beside that of
the tokens.

A network sees pairs of a token and its place. Where relevance is read at the tokens' embeddings only, that of the
places is missing, and with it a part of the output (PA-LRP, Bakish et al. 2025, "Revisiting LRP: Positional Attribution
as the Missing Ingredient for Transformer Explainability", arXiv 2506.02138).
"""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrpjax import transform
from lrpjax._types import P, Target
from lrpjax.composites import Composite, attnlrp
from lrpjax.errors import LrpjaxError

__all__ = ["PositionError", "Positions", "relevance"]


class PositionError(LrpjaxError, ValueError):
    """A value has no axis of positions, or another number of them than the tokens have.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: (lrpjax.tag(x, "tokens") + lrpjax.tag(jnp.ones((3, 2)), "places")[:2]).sum()
    >>> lrpjax.positions.relevance(f, tokens="tokens", positions="places")(jnp.ones((2, 2)))
    Traceback (most recent call last):
    ...
    lrpjax.analysis.positions.PositionError: 'places' has shape (3, 2): axis 0 has 3 positions, but the tokens have 2
    """


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("tokens", "positions", "values"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Positions:
    """Relevance of tokens and of their places, [tokens] each. values: that of each named value, in its own shape.

    >>> import jax.numpy as jnp
    >>> print(Positions(jnp.array([2.0, 1.0]), jnp.array([0.5, 3.0]), {}).together)
    [2.5 4. ]
    """

    tokens: jax.Array
    positions: jax.Array
    values: dict[str, jax.Array]

    @property
    def together(self) -> jax.Array:
        """That of each token with its place, [tokens]: what the network saw there."""
        return self.tokens + self.positions


def relevance(
    f: Callable[P, Any],
    composite: Composite | None = None,
    *,
    tokens: str,
    positions: str | Sequence[str],
    axis: int | Mapping[str, int] = 0,
    target: Target = None,
) -> Callable[P, Positions]:
    """The relevance of tokens, and of positions as an output of its own.

    What is added to the embeddings, learned or sinusoidal, takes its share of the sum, R_p = p R / (e + p). What
    rotates queries and keys, q cos + q' sin, takes half of each product, as any factor does
    (`rules.Product("uniform")`; Bakish et al. 2025 the same), in every layer. Without the name of the rotation it
    counts as a linear map, and the queries take all.

    Args:
        f: a function of tokens or embeddings, for one text.
        composite: None for `composites.attnlrp()`. (Under `cp_lrp` no relevance comes to queries and keys, and none to
            rotations.)
        tokens: the path or tag of the tokens' embeddings.
        positions: those of the positions' values: what is added to the embeddings, or the cosines and sines of
            rotations, [positions, …]. They need names: `lrpjax.tag(cos, "cos")`.
        axis: which axis of all these counts positions; a mapping says it for each name. A value in a loop has the steps
            first.
        target: as for `lrpjax.relevance`.

    Returns:
        A function of the same arguments as f, which returns `Positions`.

    Raises:
        PositionError: a value has no such axis, or as many positions as the tokens. Else as `lrpjax.relevance`.

    >>> import jax.numpy as jnp, lrpjax
    >>> table, places = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [3.0, 0.0]])
    >>> def f(ids):
    ...     return (lrpjax.tag(table[ids], "tokens") + lrpjax.tag(places, "places")).sum()
    >>> R = lrpjax.positions.relevance(f, tokens="tokens", positions="places")(jnp.array([1, 0]))
    >>> print(jnp.rint(R.tokens), jnp.rint(R.positions), jnp.rint(R.together.sum()))
    [2. 1.] [2. 3.] 8.0
    """
    names = [positions] if isinstance(positions, str) else list(positions)

    @functools.wraps(f)
    def explain(*args: P.args, **kwargs: P.kwargs) -> Positions:
        at = list(dict.fromkeys([tokens, *names]))
        R = transform.relevance(f, composite or attnlrp(), at=at, target=target)(*args, **kwargs)
        of = {name: _by_position(name, R[name], axis) for name in at}
        count = of[tokens].size
        for name in names:
            if of[name].size != count:
                raise PositionError(
                    f"{name!r} has shape {R[name].shape}: axis {_axis(name, axis)} has {of[name].size} positions, but "
                    f"the tokens have {count}"
                )
        return Positions(of[tokens], sum((of[name] for name in names), jnp.zeros_like(of[tokens])), R)

    return explain


def _axis(name: str, axis: int | Mapping[str, int]) -> int:
    return axis.get(name, 0) if isinstance(axis, Mapping) else axis


def _by_position(name: str, R: jax.Array, axis: int | Mapping[str, int]) -> jax.Array:
    number = _axis(name, axis)
    if not -R.ndim <= number < R.ndim:
        raise PositionError(f"{name!r} has shape {R.shape}: it has no axis {number} of positions")
    return R.sum(tuple(a for a in range(R.ndim) if a != number % R.ndim))
