"""The exceptions of lrpjax. Every one derives from `LrpjaxError` and from the built-in that fits, so either can be caught."""


class LrpjaxError(Exception):
    """Base class of all errors raised by lrpjax."""


class UnsupportedError(LrpjaxError, NotImplementedError):
    """The function does something, on the way from the explained input to the output, that no rule explains."""


class InputError(LrpjaxError, TypeError):
    """An argument to be explained cannot carry relevance (an integer, a string, an empty pytree)."""


class TargetError(LrpjaxError, ValueError):
    """The target does not fit the function's output."""


class PathError(LrpjaxError, LookupError):
    """A path names no value of the function."""


class RuleError(LrpjaxError, ValueError):
    """A rule, or a composite, was given parameters that its formula does not admit."""


class PatternError(LrpjaxError, ValueError):
    """Patterns cannot be fitted from this stream of batches, or belong to another model."""


class RootError(LrpjaxError, ValueError):
    """A Taylor decomposition has no root point to expand at, or its root search was given arguments that do not fit."""


class UnmatchedWarning(UserWarning):
    """A pair of a composite matched no unit of the function."""


class ProbabilityWarning(UserWarning):
    """The function ends in a softmax or log-softmax; explaining the logits is usually what is meant."""
