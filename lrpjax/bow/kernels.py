"""Kernels of two histograms: sums over words, which decompose exactly, or differentiable functions.

Notation of Bach et al. 2015 (doi 10.1371/journal.pone.0130140): a = x_i is a support vector, c = x the
histogram explained, k_u the kernels and beta_u their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lrpjax.bow import _check


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """One kernel k_u with its weight beta_u and the words that it sees.

    Build one with `linear`, `intersection`, `chi2`, `rbf`, `chi2_rbf`, or, for a function of your own,
    `sum_decomposable` or `differentiable`.

    Attributes:
        function: `function(a, c, *parameters)`. Of a sum-decomposable kernel the summand k_(d)(a_d, c_d),
            elementwise on arrays that broadcast; otherwise k(a, c) of two vectors (D,), a scalar,
            differentiable in c.
        decomposable: whether k(a, c) = sum_d k_(d)(a_d, c_d).
        nonnegative: whether the kernel is defined for histograms >= 0 only.
        words: (start, stop) of the entries of the histogram that the kernel sees; None: all. So every kernel
            can have words of its own, x^(u).
        weight: beta_u.
        parameters: numbers or arrays given to `function`.

    Example:
        >>> kernel = intersection(weight=2.0)
        >>> kernel.decomposable, kernel.values(jnp.array([[1.0, 3.0]]), jnp.array([[2.0, 1.0]])).tolist()
        (True, [[4.0]])
    """

    function: Callable[..., Array] = field(metadata={"static": True})
    decomposable: bool = field(metadata={"static": True})
    nonnegative: bool = field(default=False, metadata={"static": True})
    words: tuple[int, int] | None = field(default=None, metadata={"static": True})
    weight: float | Array = 1.0
    parameters: tuple[float | Array, ...] = ()

    def see(self, histograms: Array) -> Array:
        """The entries of `histograms` (..., D) that this kernel sees."""
        return histograms if self.words is None else histograms[..., slice(*self.words)]

    def values(self, a: Array, c: Array) -> Array:
        """beta_u k_u(a_j, c_i) for all pairs of rows of `a` (m, D) and `c` (n, D): an array (n, m)."""
        a, c = self.see(a), self.see(c)
        if self.decomposable:
            return self.weight * jnp.sum(self.function(a[None], c[:, None], *self.parameters), -1)
        one = lambda row_a, row_c: self.function(row_a, row_c, *self.parameters)
        return self.weight * jax.vmap(jax.vmap(one, (0, None)), (None, 0))(a, c)


def _linear(a, c):
    return a * c


def _chi2(a, c):
    total = a + c
    return jnp.where(total > 0, 2 * a * c / jnp.where(total > 0, total, 1), 0)


def _rbf(a, c, gamma):
    return jnp.exp(-gamma * jnp.sum((a - c) ** 2))


def _chi2_rbf(a, c, gamma):
    # Where both are 0 the distance is 0 and its derivative from the right, the only side there is, is 1.
    total = a + c
    distance = jnp.where(total > 0, (a - c) ** 2 / jnp.where(total > 0, total, 1), total)
    return jnp.exp(-gamma * jnp.sum(distance))


def linear(*, weight=1.0, words=None) -> Kernel:
    """Linear kernel k(a, c) = sum_d a_d c_d. `weight` and `words`: see `Kernel`.

    Example:
        >>> gram(linear(), jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
        [[11.0]]
    """
    return Kernel(_linear, True, False, words, weight)


def intersection(*, weight=1.0, words=None) -> Kernel:
    """Histogram intersection k(a, c) = sum_d min(a_d, c_d), for histograms >= 0.

    Example:
        >>> gram(intersection(), jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]])).tolist()
        [[1.0]]
    """
    return Kernel(jnp.minimum, True, True, words, weight)


def chi2(*, weight=1.0, words=None) -> Kernel:
    """Chi-squared kernel k(a, c) = sum_d 2 a_d c_d / (a_d + c_d), 0/0 = 0, for histograms >= 0.

    This positive definite form is half of sum_d (a_d + c_d) - (a_d - c_d)^2 / (a_d + c_d), whose second term
    is `sklearn.metrics.pairwise.additive_chi2_kernel`.

    Example:
        >>> gram(chi2(), jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0]])).tolist()
        [[1.5]]
    """
    return Kernel(_chi2, True, True, words, weight)


def rbf(gamma, *, weight=1.0, words=None) -> Kernel:
    """Gaussian kernel k(a, c) = exp(-gamma sum_d (a_d - c_d)^2), gamma > 0.

    Example:
        >>> gram(rbf(0.5), jnp.zeros((1, 2)), jnp.zeros((1, 2))).tolist()
        [[1.0]]
    """
    return Kernel(_rbf, False, False, words, weight, (_check.positive_number("gamma", gamma),))


def chi2_rbf(gamma, *, weight=1.0, words=None) -> Kernel:
    """Chi-squared Gaussian k(a, c) = exp(-gamma sum_d (a_d - c_d)^2 / (a_d + c_d)), 0/0 = 0, gamma > 0.

    For histograms >= 0. This is `sklearn.metrics.pairwise.chi2_kernel`.

    Example:
        >>> round(float(gram(chi2_rbf(1.0), jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]]))[0, 0]), 4)
        0.3679
    """
    return Kernel(_chi2_rbf, False, True, words, weight, (_check.positive_number("gamma", gamma),))


def sum_decomposable(function, *parameters, nonnegative=False, weight=1.0, words=None) -> Kernel:
    """A kernel of your own that is a sum over words: k(a, c) = sum_d function(a_d, c_d, *parameters).

    Args:
        function: elementwise and broadcasting, written with jax.numpy.
        parameters: numbers or arrays handed on to it.
        nonnegative, weight, words: see `Kernel`.

    Example:
        >>> hellinger = sum_decomposable(lambda a, c: jnp.sqrt(a * c), nonnegative=True)
        >>> gram(hellinger, jnp.array([[4.0]]), jnp.array([[9.0]])).tolist()
        [[6.0]]
    """
    return Kernel(function, True, nonnegative, words, weight, parameters)


def differentiable(function, *parameters, nonnegative=False, weight=1.0, words=None) -> Kernel:
    """A kernel of your own that is a differentiable function k(a, c) = function(a, c, *parameters).

    Args:
        function: from two vectors (D,) to a scalar, written with jax.numpy.
        parameters: numbers or arrays handed on to it.
        nonnegative, weight, words: see `Kernel`.

    Example:
        >>> cubic = differentiable(lambda a, c: jnp.dot(a, c) ** 3)
        >>> gram(cubic, jnp.array([[2.0]]), jnp.array([[1.0]])).tolist()
        [[8.0]]
    """
    return Kernel(function, False, nonnegative, words, weight, parameters)


def as_kernels(kernels: Kernel | Sequence[Kernel]) -> tuple[Kernel, ...]:
    """One or several kernels as a tuple; TypeError for anything else.

    Example:
        >>> len(as_kernels([linear(), chi2()]))
        2
    """
    several = (kernels,) if isinstance(kernels, Kernel) else tuple(kernels)
    if not several or not all(isinstance(kernel, Kernel) for kernel in several):
        raise TypeError(f"kernels must be a Kernel or a non-empty sequence of them, got {kernels!r}")
    return several


def check_histograms(
    name: str, histograms: Array, kernels: Sequence[Kernel], words: int | None = None
) -> None:
    """Raise ValueError unless `histograms` is a finite (N, D) array that `kernels` are defined for.

    Args:
        name: what the message calls them.
        histograms: the array.
        kernels: those that will see it.
        words: the D expected; None: any.

    Example:
        >>> check_histograms("x", jnp.array([[-1.0]]), [chi2()])
        Traceback (most recent call last):
        ...
        ValueError: x has negative values; the kernel is defined for histograms >= 0 only
    """
    _check.dims(name, histograms, "(N, D)")
    if words is not None and histograms.shape[1] != words:
        raise ValueError(f"{name} has {histograms.shape[1]} words, {words} are needed")
    _check.finite(name, histograms)
    for kernel in kernels:
        start, stop = kernel.words or (0, histograms.shape[1])
        if not 0 <= start < stop <= histograms.shape[1]:
            raise ValueError(f"a kernel sees the words {start}:{stop}, but {name} has {histograms.shape[1]}")
        if kernel.nonnegative:
            _check.non_negative(
                name, kernel.see(histograms), "the kernel is defined for histograms >= 0 only"
            )


def in_chunks(function, chunk: int, rows):
    """`function(rows)` computed for `chunk` rows at a time, one chunk after the other, to bound the memory.

    Args:
        function: from a pytree of arrays with a common leading axis to another such.
        chunk: rows at once, at least 1.
        rows: pytree of arrays (N, ...). The last chunk is filled up with copies of the last row.

    Returns:
        The same as `function(rows)`.

    Example:
        >>> in_chunks(lambda rows: rows * 2, 2, jnp.arange(3)).tolist()
        [0, 2, 4]
    """
    if chunk < 1:
        raise ValueError(f"chunk sizes must be at least 1, got {chunk}")
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= chunk:
        return function(rows)
    blocks = -(-count // chunk)

    def split(array):
        fill = [(0, blocks * chunk - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, fill, mode="edge").reshape(blocks, chunk, *array.shape[1:])

    joined = lax.map(function, jax.tree.map(split, rows))
    return jax.tree.map(lambda array: array.reshape(blocks * chunk, *array.shape[2:])[:count], joined)


def gram(kernels: Kernel | Sequence[Kernel], a: Array, c: Array, *, chunk: int = 256) -> Array:
    """The sum of kernels sum_u beta_u k_u(a_j, c_i) for all pairs: an array (n, m).

    Args:
        kernels: one or several.
        a: (m, D) histograms, e.g. the support vectors.
        c: (n, D) histograms of the same dtype.
        chunk: rows of either computed at once.

    Raises:
        ValueError: see `check_histograms`.

    Example:
        >>> gram([linear(), intersection(weight=2.0)], jnp.ones((3, 4)), jnp.ones((1, 4))).tolist()
        [[12.0, 12.0, 12.0]]
    """
    kernels = as_kernels(kernels)
    check_histograms("a", a, kernels)
    check_histograms("c", c, kernels, a.shape[1])
    return _gram(kernels, a, c, chunk)


@partial(jax.jit, static_argnums=3)
def _gram(kernels: tuple[Kernel, ...], a: Array, c: Array, chunk: int) -> Array:
    column_block = lambda c_rows: in_chunks(lambda a_rows: kernel_sum(kernels, c_rows, a_rows), chunk, a)
    return in_chunks(lambda c_rows: column_block(c_rows).T, chunk, c)


def kernel_sum(kernels: Sequence[Kernel], a: Array, c: Array) -> Array:
    """sum_u beta_u k_u(a_j, c_i) in one piece, without checks: (n, m).

    Example:
        >>> kernel_sum([linear()], jnp.ones((2, 3)), jnp.ones((1, 3))).tolist()
        [[3.0, 3.0]]
    """
    total = kernels[0].values(a, c)
    for kernel in kernels[1:]:
        total = total + kernel.values(a, c)
    return total


@dataclass(frozen=True)
class Gram:
    """Kernels as a callable for `sklearn.svm.SVC(kernel=Gram(...))`; `from_svc` then knows them.

    Attributes:
        kernels: one or several.

    Example:
        >>> Gram(linear())(np.ones((2, 3)), np.ones((1, 3))).tolist()
        [[3.0], [3.0]]
    """

    kernels: Kernel | tuple[Kernel, ...]

    def __call__(self, x, y) -> np.ndarray:
        """Kernel values of the rows of `x` (n, D) with those of `y` (m, D): (n, m) float64."""
        dtype = jnp.result_type(float)
        matrix = gram(self.kernels, jnp.asarray(y, dtype), jnp.asarray(x, dtype))
        return np.asarray(matrix, np.float64)
