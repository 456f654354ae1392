"""What every rule is: a frozen dataclass, a pytree, the kinds of unit that it is for, and the methods that
carry its formula."""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

import contextlib
import contextvars
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrpjax._hints import hinted
from lrpjax.errors import RuleError
from lrpjax.rules.arithmetic import negative, positive

OfRule = TypeVar("OfRule", bound="Rule")

RATIO, PLAIN = "ratio", "plain"
"""The two forms of a cotangent c of a value x. RATIO: the relevance of x is x·c. PLAIN: c is the relevance itself."""

LAYERS = ("dense", "conv")
LINEAR = (*LAYERS, "sum", "pool", "linear", "affine", "custom")
EVERY = "*"

WITH_BACK = (*LAYERS, "pool", "linear", "affine", EVERY)

KINDS_OF = {"back": LAYERS, "through": ("activation",), "weights": ("product",)}
"""The kinds that a rule is for where it does not say so, by the method that it defines."""


@dataclass_transform(frozen_default=True)
class Rule:
    """Base class of rules. To write one, derive from it and define the method that holds the formula:

    `back(layer, x, z, R)`, for weighted layers ("dense", "conv") and for other linear maps of one value
    ("pool", "linear", "affine"), which count as layers whose kernel is their scale. x is the layer's input, z its
    output with the bias, R the relevance of z, arrays of at least float32 in the shapes that the model has;
    `layer` is a `Layer`. It returns an array of x's shape, and the class says in `emits` what that is: PLAIN,
    the relevance of x; or RATIO, the relevance divided by x (which neither divides by x nor loses anything); a
    property, where that depends on a field. A
    class with a `back` but no `emits` is a RuleError. `kernels(w)`, which goes with it, makes of the kernel all
    that the formula takes from it, as a tuple that `layer.kernels` holds; it is run once and for all, in NumPy,
    where the kernel is known when tracing. Without it they are (w⁺, w⁻).

    `through(x, y, R, derivative)`, for activations: x the input, y = φ(x), R the relevance of y, derivative
    φ'(x), all of one shape. It returns the relevance of x.

    `weights(values)`, for products and for sums of two ("product", "sum"): `values` are the factors, or terms,
    that take part. It returns for each the part of the relevance that it takes: a number, or, where the product
    is elementwise, an array that broadcasts to the product. They sum to 1 where relevance is conserved. With it
    goes `takes(factors)`, one bool for each `Factor`: which of them take part; all of them without it.

    Subclasses are made frozen dataclasses, and pytrees whose fields are leaves, so `jax.vmap` over an ε or a γ
    works. Fields that are no numbers or arrays (switches, names) are named in the decorator `rule`, which is
    needed for nothing else.

    kinds: the kinds of unit (or names of functions, as a plan shows them) that the rule is for; "*" is all of
    them. A composite passes the rule over for other kinds; a unit of such a kind that cannot carry the rule out
    is a RuleError. named: more of them, for which the rule is where a selector names the units and does not take
    whatever there is. linear: whether the relevance that comes out is linear in that which goes in.
    looks: whether `kernels` checks the numbers of weights, and needs them to be known.
    of_argument: the fields whose arrays broadcast against the function's argument. `back` finds them as the argument
    is in x: moved as it is where only movements of elements lead from it to x, and as they were given elsewhere.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import rules
    >>> class Halves(rules.Rule):  # every input of a neuron that is not zero gets its share by |w|
    ...     epsilon: float = 1e-6
    ...     emits = rules.PLAIN
    ...     def kernels(self, w):
    ...         return (abs(w),)
    ...     def back(self, layer, x, z, R):
    ...         (w,) = layer.kernels
    ...         on = (x != 0).astype(x.dtype)
    ...         return on * layer.transpose(layer.share(R, layer.apply(on, w), self.epsilon), w)
    >>> f = lambda x: x @ jnp.array([3.0, -1.0, 1.0])
    >>> print(lrpjax.relevance(f, lrpjax.Composite([("*", Halves())]))(jnp.array([2.0, 2.0, 0.0])).round(2))
    [3. 1. 0.]
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    named: ClassVar[tuple[str, ...]] = ()
    emits: ClassVar[str | None] = None
    linear: ClassVar[bool] = True
    looks: ClassVar[bool] = False
    of_argument: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[frozenset[str]] = frozenset()
    registered: ClassVar[bool]

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True)(cls)
        if dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
            cls.__init__ = hinted(cls.__init__)
        del (
            cls.__setattr__,
            cls.__delattr__,
        )  # which a dataclass decorator of the user's own would stumble over
        known = isinstance(cls.emits, property) or cls.emits in (RATIO, PLAIN)
        if "back" in vars(cls) and not known:
            raise RuleError(
                f"{cls.__name__} defines back, but not what it returns: say in the class emits = "
                "rules.PLAIN (the relevance of x) or "
                f"emits = rules.RATIO (that divided by x); it is {cls.emits!r}"
            )
        if "kinds" in vars(cls):
            kinds: Any = cls.kinds
            if isinstance(kinds, str) or not all(isinstance(k, str) for k in kinds):
                raise RuleError(f"{cls.__name__}: kinds is a tuple of kinds of unit, but is {cls.kinds!r}")
        elif (
            "back" in vars(cls) and cls.kinds
        ):  # the formula is for these, whatever that which it replaces was for
            cls.kinds = tuple(k for k in cls.kinds if k in WITH_BACK)
        elif not cls.kinds:
            cls.kinds = tuple(k for method, kinds in KINDS_OF.items() if hasattr(cls, method) for k in kinds)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if "registered" not in vars(cls):
            cls.registered = True
            with contextlib.suppress(ValueError):  # the user's own decorator has registered it
                jax.tree_util.register_pytree_with_keys(cls, _flatten, functools.partial(_unflatten, cls))
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __post_init__(self):
        epsilon = getattr(self, "epsilon", 0.0)
        check(
            _is_not_negative,
            epsilon,
            message=f"{type(self).__name__}: epsilon must not be negative, but is {epsilon}",
        )

    def kernels(self, w: jax.Array) -> tuple[jax.Array, ...]:
        """What `back` needs of a kernel; a NumPy array gives NumPy arrays."""
        return positive(w), negative(w)

    def __str__(self) -> str:
        shown: list[str] = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name == "bias" and value is True:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            shown.append(f"{field.name}={f'{value:g}' if number else _brief(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _flatten(rule: Rule) -> tuple[list[Any], tuple[Any, ...]]:
    fields = [f.name for f in dataclasses.fields(rule)]  # type: ignore[arg-type]
    leaves = [(jax.tree_util.GetAttrKey(n), getattr(rule, n)) for n in fields if n not in rule.static]
    return leaves, tuple((n, getattr(rule, n)) for n in fields if n in rule.static)


def _unflatten(cls: type[Rule], aux: tuple[Any, ...], leaves: Iterable[Any]) -> Rule:
    """A rule from its leaves, which transformations also fill with placeholders: nothing is checked."""
    rule: Rule = object.__new__(cls)
    fixed, rest = dict(aux), iter(leaves)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        object.__setattr__(rule, field.name, fixed[field.name] if field.name in fixed else next(rest))
    return rule


def rule(*static: str) -> Callable[[type[OfRule]], type[OfRule]]:
    """Decorates a subclass of `Rule` whose fields of these names are static: fixed when compiling, like
    `static_argnames` of `jax.jit`.

    >>> from lrpjax import rules
    >>> @rules.rule("mode")
    ... class Mine(rules.Rule):
    ...     epsilon: float = 1e-6
    ...     mode: str = "quick"
    >>> import jax
    >>> jax.tree.leaves(Mine())
    [1e-06]
    """

    def declare(cls: type[OfRule]) -> type[OfRule]:
        unknown = set(static) - {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown:
            raise RuleError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
        cls.static = cls.static | frozenset(static)  # type: ignore[attr-defined]
        return cls

    return declare


@dataclasses.dataclass(frozen=True)
class Factor:
    """What is known of a factor of a product before anything is computed.

    shape: its shape. gate: it is a sigmoid, or one minus a sigmoid. activated: it comes straight from an
    activation. signal: in the recurrence of a state-space model it is the state, or else the input
    (`lrpjax.composites.mambalrp`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import rules
    >>> class Ungated(rules.Rule):  # a sigmoid receives nothing
    ...     def takes(self, factors):
    ...         return [not f.gate for f in factors]
    ...     def weights(self, values):
    ...         return [1.0 / len(values)] * len(values)
    >>> f = lambda x: jax.nn.sigmoid(x[0]) * x[1]
    >>> print(lrpjax.relevance(f, lrpjax.Composite([("*", Ungated())]))(jnp.array([0.0, 2.0])).round(1))
    [0. 1.]
    """

    shape: tuple[int, ...]
    gate: bool
    activated: bool
    find_signal: Callable[[], bool] = dataclasses.field(default=lambda: True, repr=False)

    @property
    def signal(self) -> bool:
        return self.find_signal()


def _is_not_negative(epsilon: Any) -> Any:
    return epsilon >= 0


def _brief(value: Any) -> str:
    return f"array{tuple(value.shape)}" if hasattr(value, "shape") else repr(value)


_noted: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar("noted", default=None)
"""Where `check` notes the conditions on traced hyper-parameters, while `doubts` asks for them."""


def check(holds: Callable[..., Any], *values: Any, message: str) -> None:
    """Raises RuleError when a condition on hyper-parameters fails: to be called in `__post_init__`. Where one of them
    is traced, the relevance becomes NaN when it fails (`doubts`); the placeholders of tree transformations pass.

    Args:
        holds: a function of the values, of arithmetic and comparisons, that gives bools.
        values: hyper-parameters.
        message: what the error says.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import rules
    >>> class Scaled(rules.Epsilon):
    ...     factor: float = 1.0
    ...     def __post_init__(self):
    ...         super().__post_init__()
    ...         rules.check(lambda f: f > 0, self.factor, message="Scaled: factor must be positive")
    >>> composite = lambda factor: lrpjax.Composite([("*", Scaled(factor=factor))])
    >>> explain = lambda factor: lrpjax.relevance(jnp.sum, composite(factor))(jnp.ones(2))
    >>> print(jax.jit(explain)(-1.0))
    [nan nan]
    >>> explain(-1.0)
    Traceback (most recent call last):
    lrpjax.errors.RuleError: Scaled: factor must be positive
    """
    numbers = (int, float, np.ndarray, np.generic, jax.Array)
    if not all(isinstance(v, numbers) for v in values):
        return
    if any(isinstance(v, Tracer) for v in values):
        noted = _noted.get()
        if noted is not None:
            with jax.numpy_dtype_promotion("standard"):
                noted.append(jnp.all(holds(*values)))
    elif not np.all(holds(*(np.asarray(v) for v in values))):
        raise RuleError(message)


def doubts(rule: Rule) -> jax.Array | None:
    """Whether the checks of a rule hold whose hyper-parameters are traced: a traced bool; None where all are known,
    and hold.

    Raises:
        RuleError: they are known, and one does not hold. (A rule may come out of a tree transformation unchecked.)
    """
    if vars(rule).get("_sound") is True:
        return None
    noted: list[jax.Array] = []
    token = _noted.set(noted)
    try:
        # A check of the user's own that branches on a number cannot be made of a traced one; those by `check` can.
        with contextlib.suppress(jax.errors.ConcretizationTypeError):
            copy.copy(rule).__post_init__()  # of a copy, which a `__post_init__` of the user's own may change
    finally:
        _noted.reset(token)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(rule)):
        object.__setattr__(rule, "_sound", True)
    return functools.reduce(jnp.logical_and, noted) if noted else None
