"""Names of types that several modules give their arguments."""

from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

from jax.typing import ArrayLike

P = ParamSpec("P")
"""The parameters of a function of the user's, which what is made of it keeps."""

T = TypeVar("T")
"""What a function of the user's returns."""

Target = Literal["max"] | ArrayLike | list[Any] | Callable[[Any], Any] | None
"""What is explained of an output: see `target` of `lrpjax.relevance`. A list holds numbers, traced ones too."""
