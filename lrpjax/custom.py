"""Functions with a relevance of their own, in the manner of `jax.custom_vjp`, and names for values."""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Callable
from typing import Any, Generic

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name  # pyright: ignore[reportUnknownVariableType]
from jax.core import eval_jaxpr  # pyright: ignore[reportUnknownVariableType]

from lrpjax._types import P, T
from lrpjax.core import compat
from lrpjax.errors import RuleError
from lrpjax.rules import Epsilon, Gradient, Norm, Pass, Rule, Stop


def tag(x: jax.Array, name: str) -> jax.Array:
    """x itself, under a name that `at=` can refer to: `relevance(f, at=name)` explains with respect to this value.

    Args:
        x: an array of any shape and dtype.
        name: any text; where several values of a function have the same name, the last one counts.

    >>> import jax.numpy as jnp, lrpjax
    >>> def f(tokens):
    ...     rows = lrpjax.tag(jnp.eye(3)[tokens], "rows")
    ...     return rows.sum(0) @ jnp.array([1.0, 2.0, 3.0])
    >>> print(lrpjax.relevance(f, at="rows")(jnp.array([2, 0])).sum(-1).round(2))
    [3. 1.]
    """
    return checkpoint_name(x, name)


class custom_relevance(Generic[P, T]):
    """Gives a function a relevance rule of its own. Until lrpjax transforms it, it is the function itself, also
    to JAX's transforms.

    In one line, with a rule for the function as a whole: `Epsilon` (or `Norm`): x · Jᵀ(R / (y + ε sign y));
    `Gradient`: Jᵀ R; `Pass`: R, for functions of one array that keep its shape; `Stop`.

    >>> import jax.numpy as jnp, lrpjax
    >>> swap = lrpjax.custom_relevance(lambda x: x[::-1] ** 3, rule=lrpjax.rules.Pass())
    >>> print(lrpjax.relevance(swap)(jnp.array([1.0, 2.0])))
    [8. 1.]

    In full, by `defrelevance(fwd, bwd)`: `fwd(*args) -> (output, residuals)` and `bwd(residuals, R) ->
    relevances`, one for each argument (a tuple) and of its structure and shapes; R has those of the output.
    Neither may close over traced values.

    >>> @lrpjax.custom_relevance
    ... def spread(x):
    ...     return x.max()
    >>> spread.defrelevance(lambda x: (x.max(), x), lambda x, R: (jnp.full_like(x, R / x.size),))
    >>> print(lrpjax.relevance(spread)(jnp.array([1.0, 4.0])))
    [2. 2.]

    Raises:
        RuleError: a rule that cannot explain a function as a whole.
        UnsupportedError: when transformed, with neither a rule nor `defrelevance`.
    """

    def __init__(self, f: Callable[P, T], rule: Rule | None = None):
        if rule is not None and not isinstance(rule, (Epsilon, Norm, Gradient, Pass, Stop)):
            raise RuleError(
                f"custom_relevance takes Epsilon, Norm, Gradient, Pass or Stop as rule, but was given {rule!r}"
            )
        functools.update_wrapper(self, f)
        self.f, self.rule = f, rule
        self.fwd: Callable[..., tuple[T, Any]] | None = None
        self.bwd: Callable[[Any, T], tuple[Any, ...]] | None = None

    def defrelevance(
        self, fwd: Callable[..., tuple[T, Any]], bwd: Callable[[Any, T], tuple[Any, ...]]
    ) -> None:
        """Sets the forward and backward functions, see the class."""
        self.fwd, self.bwd = fwd, bwd

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if kwargs:
            raise TypeError(
                f"{self!r} takes its arguments by position, but was given {', '.join(kwargs)} by name"
            )
        in_tree: Any
        leaves, in_tree = jax.tree.flatten(args)  # pyright: ignore[reportUnknownVariableType]
        f: Callable[..., Any] = self.f

        def flat(*leaves: Any) -> Any:
            return f(*jax.tree.unflatten(in_tree, leaves))

        jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        holder, consts = compat.open_jaxpr(jaxpr)

        def body(*values: Any) -> list[Any]:
            return eval_jaxpr(holder, values[: len(consts)], *values[len(consts) :])

        call = Call(self, body, len(consts), in_tree, jax.tree.structure(shapes))
        arrays = [jnp.asarray(leaf) for leaf in leaves]
        out = compat.custom_call.bind(*consts, *arrays, call=call)
        return jax.tree.unflatten(call.out_tree, out)


class Call:
    """One call of a `custom_relevance` function on flat values (captured constants first): what the primitive carries.

    `batched` is the same call on values with one more leading axis each.
    """

    def __init__(
        self,
        function: custom_relevance[..., Any],
        body: Callable[..., Any],
        consts: int,
        in_tree: Any,
        out_tree: Any,
        batches: int = 0,
    ):
        self.function, self.body, self.consts = function, body, consts
        self.in_tree, self.out_tree, self.batches = in_tree, out_tree, batches

    def __repr__(self) -> str:
        return f"custom_relevance({getattr(self.function, '__name__', self.function.f)})"

    def batched(self) -> "Call":
        return Call(self.function, self.body, self.consts, self.in_tree, self.out_tree, self.batches + 1)

    def _mapped(self, run: Callable[..., Any]) -> Callable[..., Any]:
        for _ in range(self.batches):
            run = jax.vmap(run)
        return run

    def __call__(self, *values: Any) -> list[Any]:
        return self._mapped(self.body)(*values)

    def forward(self, *values: Any) -> tuple[list[Any], Any]:
        """(flat outputs, residuals) by the function's own `fwd`."""

        def run(*values: Any) -> Any:
            out, residuals = self.function.fwd(*jax.tree.unflatten(self.in_tree, values[self.consts :]))  # type: ignore[misc]
            return jax.tree.leaves(out), residuals

        return self._mapped(run)(*values)

    def backward(self, residuals: Any, R: list[Any]) -> list[Any]:
        """The flat relevances of the arguments by the function's own `bwd`."""

        def run(residuals: Any, R: Any) -> Any:
            relevances = self.function.bwd(residuals, jax.tree.unflatten(self.out_tree, R))  # type: ignore[misc]
            if jax.tree.structure(relevances) != self.in_tree:
                raise RuleError(
                    f"{self}: bwd returned {jax.tree.structure(relevances)}, but the arguments are {self.in_tree}"
                )
            return jax.tree.leaves(relevances)

        return self._mapped(run)(residuals, R)
