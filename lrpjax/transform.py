"""The public transforms: trace, plan, rewrite, seed the output, run backward, read the relevance off the input."""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrpjax._chosen import chosen, leading
from lrpjax._hints import hinted
from lrpjax._types import P, T, Target
from lrpjax.composites import Composite
from lrpjax.core.accounts import bound_of, run, watch
from lrpjax.core.compiled import NotCompiled, explained
from lrpjax.core.given import checked_function
from lrpjax.core.plan import Plan, describe
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance, shapes_of
from lrpjax.errors import TargetError


@hinted
def relevance(
    f: Callable[P, T],
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] | None = None,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    inspect: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    has_aux: bool = False,
    check: bool | float = False,
) -> Callable[P, Any]:
    """Transforms `f` into the function that gives the relevance of an argument for `f`'s output, in the manner
    of `jax.grad`.

    As in `jax.grad`, the first argument is explained. Of a model that takes its parameters first, `model.apply` of flax
    linen, that is the parameters: say `relevance(lambda x: model.apply(params, x))(x)`, or
    `relevance(model.apply, argnums=1)(params, x)`.

    Σ R = f(x), up to what biases and stabilisers absorb (Bach et al. 2015, eq. 2).

    Args:
        f: a function of arrays (or pytrees of arrays) with one array as output. Flax models, closures, jitted
            functions, anything.
        composite: which rule for which unit, see `lrpjax.composites`. None: each kind's default (ε = 1e-6 in weighted
            layers).
        argnums: the argument, or arguments, to be explained; as in `jax.grad`. None: the first, or that which f names
            itself (`f.argnums`), as a function of `lrpjax.torch` does: its first argument are the params.
        target: the relevance of the output. None: all of f(x), of a dict all its arrays together (of a tuple or list of
            several arrays it is an error: one of them may be meant). "max": the largest entry along the last axis. An
            int or an int array (one for each example): that class. An array of the output's shape: the output relevance
            itself. A callable: f(x) -> output relevance. With the gradient family of composites it is the cotangent of
            the output in place of its relevance (1 in place of f(x)).
        at: a module path, or several: explain with respect to the value that leaves that scope last, in place
            of the argument. Several paths,
            or a glob such as "encoder/*" or "*", give a dict.
        inspect: functions (to, back): explain the coordinates z = to(x) in place of the argument x = back(z), such as
            frequencies (`jnp.fft.rfft`), time and frequency (`jax.scipy.signal.stft`), principal components or
            wavelets. `back` undoes `to` and is linear, with or without a constant added. It shares relevance in
            proportion, R_z = z ⊙ Jᵀ(R_x / x) with J its Jacobian, under every composite (virtual inspection layers,
            Vielhaben et al. 2024); Σ R_z = Σ R_x, but for the share of a constant. A rule of the first layer that gives
            relevance to values near 0 (flat, w², z^B) makes R_x / x large there, and relevances of z that cancel; what
            it gives to an x of exactly 0 is lost.
        has_aux: whether f returns (output, auxiliary data).
        check: whether to warn (`lrpjax.ConservationWarning`, which names the unit) where Σ|R| at a unit, or at the
            argument, exceeds 1000 times (or a factor given here) that of the output; where relevance is not finite;
            and where less than 1 % of ΣR arrives (not with `at`, nor in the gradient family). Works under `jax.jit`
            and `jax.vmap` (one check for each example), through a callback: `jax.effects_barrier()` waits for it.
            In a loop the mean over its steps counts. Without it nothing is computed.

    Returns:
        A function of the same arguments as f, which returns relevances: the structure, shapes and dtypes of the
            argument explained (a tuple for several argnums; (relevance, aux) with has_aux). With `inspect` those of
            z = to(x), which may be a pytree; the relevance of a complex number is real, and the sum of that of its real
            and imaginary parts.

    Raises:
        InputError: the argument is not floating-point; or `inspect` comes with `at` or several argnums, back(to(x))
            differs from x in structure, shape or dtype, or (checked only outside of `jax.jit` and other transforms)
            in value by more than √ε of the largest, ε being the dtype's rounding, or `back` is not linear; or `to`
            gives complex numbers and the composite gradients. UnsupportedError: something on the way has no rule (all
            places are listed at once). TargetError: the target does not fit. PathError: `at` names nothing.

    >>> import jax.numpy as jnp, lrpjax
    >>> w = jnp.array([[1.0, 2.0], [-1.0, 1.0]])
    >>> f = lambda x: jnp.maximum(x @ w, 0.0) @ jnp.array([1.0, 1.0])
    >>> R = lrpjax.relevance(f)(jnp.array([2.0, 1.0]))
    >>> print(R.round(2), R.sum().round(2))
    [6. 0.] 6.0

    A network that hears a tone of one period in 4 samples, and the frequency that it hears it at:

    >>> tone = jnp.array([1.0, 0.0, -1.0, 0.0])
    >>> hears = lambda x: jnp.maximum(x @ tone, 0.0)
    >>> dft = (jnp.fft.rfft, lambda z: jnp.fft.irfft(z, 4))
    >>> print(lrpjax.relevance(hears, inspect=dft)(tone + 5.0).round(2))
    [0. 2. 0.]
    """
    both = value_and_relevance(
        checked_function(f, "relevance"),
        chosen(composite, "relevance"),
        argnums=argnums,
        target=target,
        at=at,
        inspect=inspect,
        has_aux=has_aux,
        check=check,
    )

    @functools.wraps(f)
    def explain(*args: P.args, **kwargs: P.kwargs) -> Any:
        y, R = both(*args, **kwargs)
        return (R, y[1]) if has_aux else R

    return explain


@hinted
def value_and_relevance(
    f: Callable[P, T],
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] | None = None,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    inspect: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    has_aux: bool = False,
    check: bool | float = False,
) -> Callable[P, tuple[T, Any]]:
    """As `relevance`, returning (f's output, relevance), in the manner of `jax.value_and_grad`.

    Σ R / f(x) is the share of the output that the relevance accounts for: of a class, `R.sum() / y[class]`, for each
    example. Biases and stabilisers take the rest, which may be nearly all in a deep network; `lrpjax.audit` says where.

    >>> import jax.numpy as jnp, lrpjax
    >>> y, R = lrpjax.value_and_relevance(lambda x: x @ jnp.array([1.0, -1.0]))(jnp.array([3.0, 1.0]))
    >>> print(y, R.round(2))
    2.0 [ 3. -1.]
    """
    rules, bound = chosen(composite, "value_and_relevance"), bound_of(check)

    @functools.wraps(checked_function(f, "value_and_relevance"))
    def explain(*args: P.args, **kwargs: P.kwargs) -> Any:
        if bound is None and inspect is None:
            with contextlib.suppress(NotCompiled):
                y, aux, R = explained(f, rules, args, kwargs, argnums, target, at, has_aux)
                return ((y, aux), R) if has_aux else (y, R)
        program = Program(f, rules, args, kwargs, argnums, at, has_aux, inspect=inspect)
        if bound is not None:
            accounts = run(program, target)
            watch(accounts, bound, conserves=at is None and program.composite.method == "relevance")
            return ((accounts.y, accounts.aux), accounts.R) if has_aux else (accounts.y, accounts.R)
        y, aux, pull = program.linearise()
        return (y, aux) if has_aux else y, pull(output_relevance(y, target, program.composite.method))

    return explain


def vjp(
    f: Callable[..., T], composite: Any = None, *primals: Any
) -> tuple[T, Callable[[Any], tuple[Any, ...]]]:
    """`(f(*primals), pull)`, in the manner of `jax.vjp`: `pull(seed)` takes the relevance of the output and
    gives that of every primal.

    One forward pass serves any number of seeds: `jax.vmap(pull)(seeds)` explains all classes. Without a composite,
    `vjp(f, *primals)` or `vjp(f, None, *primals)`, every kind of unit has its default rule, as in `relevance`.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> y, pull = lrpjax.vjp(lambda x: x @ jnp.array([[1.0, 2.0], [3.0, 4.0]]), None, jnp.array([1.0, 1.0]))
    >>> print(jax.vmap(pull)(jnp.diag(y))[0].round(2))
    [[1. 3.]
     [2. 4.]]
    """
    rules, primals = leading(composite, primals, "vjp")
    program = Program(f, rules, primals, {}, tuple(range(len(primals))), None, False)
    y, _, pull = program.linearise()

    def pull_checked(seed: Any) -> Any:
        if jax.tree.structure(seed) != jax.tree.structure(y) or jax.tree.map(jnp.shape, seed) != jax.tree.map(
            jnp.shape, y
        ):
            raise TargetError(f"the seed has {shapes_of(seed)}, but the output has {shapes_of(y)}")
        return pull(seed)

    return y, pull_checked


def plan(
    f: Callable[..., Any],
    composite: Any = None,
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    at: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Plan:
    """What `relevance(f, composite)` would do with these arguments: one entry for each unit, and as `str` a
    table. Computes nothing. Without a composite, `plan(f, *args)` or `plan(f, None, *args)`, every kind of unit has its
    default rule, as in `relevance`.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: jnp.tanh(x @ jnp.ones((3, 2)) + 1.0)
    >>> p = lrpjax.plan(f, lrpjax.composites.epsilon_plus(), jnp.ones((1, 3)))
    >>> [(u.kind, u.rule, u.shape) for u in p.units]
    [('dense', 'Epsilon(epsilon=1e-06)', (1, 2)), ('activation', 'Pass()', (1, 2))]
    """
    rules, args = leading(composite, args, "plan")
    program = Program(f, rules, args, kwargs, argnums, at, False)
    cuts = [f"cut: {place}" for place in program.cuts]
    ended = [f"nothing arrives: {rule}" for rule in program.ended]
    notes = [*program.notes, *cuts, *ended, *(f"native: {place}" for place in program.natives)]
    return describe(program.level, program.assignment, program.routes, notes)
