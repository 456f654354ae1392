"""The exceptions of lrpjax. Every one derives from `LrpjaxError` and from the built-in that fits, so either can
be caught."""


class LrpjaxError(Exception):
    """Base class of all errors raised by lrpjax.

    >>> import lrpjax
    >>> try:
    ...     lrpjax.rules.Epsilon(-1.0)
    ... except lrpjax.LrpjaxError as error:
    ...     print(type(error).__name__, isinstance(error, ValueError))
    ...
    RuleError True
    """


class UnsupportedError(LrpjaxError, NotImplementedError):
    """The function does something, on the way from the explained input to the output, that no rule explains.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> lrpjax.relevance(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: 2 * x, x))(1.0)
    Traceback (most recent call last):
    ...
    lrpjax.errors.UnsupportedError: relevance cannot be propagated through...
    """


class InputError(LrpjaxError, TypeError):
    """What a transform was given is not what it takes: an argument that cannot carry relevance (an integer, a
    picture of PIL, an empty pytree), something else in place of a function or a composite, a model in training mode.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.relevance(lambda x: 2.0 * x)(jnp.arange(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.InputError: the argument to be explained has dtype int...: only floating-point...
    """


class TargetError(LrpjaxError, ValueError):
    """The target does not fit the function's output.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.relevance(lambda x: x, target=5)(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.TargetError: target 5 is out of range: the output has 3 classes
    """


class PathError(LrpjaxError, LookupError):
    """A path names no value of the function.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.relevance(lambda x: 2.0 * x, at='nowhere')(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.PathError: no value leaves the scope 'nowhere'. Scopes of this function: (none)
    """


class RuleError(LrpjaxError, ValueError):
    """A rule, or a composite, was given parameters that its formula does not admit.

    >>> import lrpjax
    >>> lrpjax.rules.AlphaBeta(3.0, 1.0)
    Traceback (most recent call last):
    ...
    lrpjax.errors.RuleError: AlphaBeta: alpha - beta must be 1 (relevance is conserved only then), but 3.0 - 1.0 is not
    """


class PatternError(LrpjaxError, ValueError):
    """Patterns cannot be fitted from this stream of batches, or belong to another model.

    >>> import lrpjax
    >>> lrpjax.patterns.fit(lambda x: x, [])
    Traceback (most recent call last):
    ...
    lrpjax.errors.PatternError: there are no batches to fit patterns to
    """


class RootError(LrpjaxError, ValueError):
    """A Taylor decomposition has no root point to expand at, or its root search was given arguments that do not fit.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.taylor.decompose(lambda x: x @ x + 1.0, lrpjax.taylor.line())(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.RootError: no root point was found: f(x) is 4, the least |f(x₀)| that the search came to is 1...
    """


class UnmatchedWarning(UserWarning):
    """A pair of a composite matched no unit of the function.

    >>> import warnings, jax.numpy as jnp, lrpjax
    >>> composite = lrpjax.Composite([("conv*", lrpjax.rules.Flat())])
    >>> with warnings.catch_warnings(action="error"):
    ...     lrpjax.relevance(lambda x: x @ jnp.ones(3), composite)(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.UnmatchedWarning: pairs of the composite that match no unit: ('conv*', Flat(epsilon=1e-06))...
    """


class ProbabilityWarning(UserWarning):
    """The function ends in a softmax or log-softmax; explaining the logits is usually what is meant.

    >>> import warnings, jax, jax.numpy as jnp, lrpjax
    >>> with warnings.catch_warnings(action="error"):
    ...     lrpjax.relevance(lambda x: jax.nn.softmax(x @ jnp.eye(3)))(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.errors.ProbabilityWarning: the function ends in a softmax or log-softmax...
    """


class CutWarning(UserWarning):
    """A part of what the output depends on receives no relevance: its way to the explained input leads along
    integers, comparisons or indices that carry none, and back to floating-point numbers. The message, and the notes
    of `lrpjax.plan`, name the places. What chooses among values that carry relevance is no cut; where *all* ways are
    cut, that is an `UnsupportedError`.

    >>> import warnings, jax.numpy as jnp, lrpjax
    >>> f = lambda x: x.sum() + (x > 1.0).astype(x.dtype).sum()
    >>> with warnings.catch_warnings(action="error"):
    ...     lrpjax.relevance(f)(jnp.array([1.0, 2.0]))
    Traceback (most recent call last):
    ...
    lrpjax.errors.CutWarning: a part of what the output depends on receives no relevance...
    >>> print(lrpjax.plan(f, None, jnp.array([1.0, 2.0])).notes)  # doctest: +ELLIPSIS
    ["cut: gt in '(no module path)' at ..."]
    """


class ConservationWarning(UserWarning):
    """With `check=True`: relevance grew beyond a bound, is not finite, or was lost nearly completely. The message names
    the unit that does most to it, its module path and the user's line.

    >>> import warnings, jax.numpy as jnp, lrpjax
    >>> f = lambda x: x @ jnp.array([1.0, -1.0])
    >>> exact = lrpjax.composites.epsilon(0.0)
    >>> with warnings.catch_warnings(action="error"):
    ...     lrpjax.relevance(f, exact, check=True)(jnp.array([10000.0, 9999.0]))
    Traceback (most recent call last):
    ...
    lrpjax.errors.ConservationWarning: relevance grows to 2e+04 times that of the output...
    """


class NativeWarning(UserWarning):
    """A rule that looks at the weights of layers (z⁺, γ, αβ, …) is asked for, but a sum with constant weights is none
    of the layers that are recognised, and is explained in proportion to its terms. The message, and the notes of
    `lrpjax.plan`, name the places. What is written as a dot, a convolution, or a sum of products with arrays is a
    layer; a Fourier transform, say, holds its weights in no array.

    >>> import warnings, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.array([1 + 0j, 2.0, 0.5]))
    >>> composite = lrpjax.Composite([(lrpjax.select.kind("dense", "conv"), lrpjax.rules.ZPlus())], preset="mine")
    >>> with warnings.catch_warnings(action="error"):
    ...     lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0, 0.0, 1.0]))
    Traceback (most recent call last):
    ...
    lrpjax.errors.NativeWarning: a rule of weighted layers is asked for, but these weighted sums are explained...
    >>> len(lrpjax.plan(f, composite, jnp.array([1.0, 2.0, 0.0, 1.0])).notes)
    2
    """
