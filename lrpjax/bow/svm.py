"""Kernel support vector machines as JAX arrays, and their conversion from scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from lrpjax.bow import _check
from lrpjax.bow.kernels import (
    Gram,
    Kernel,
    as_kernels,
    check_histograms,
    gram,
    in_chunks,
    kernel_sum,
    linear,
    rbf,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SVM:
    """f_c(x) = b_c + sum_i (alpha_i y_i)_c sum_u beta_u k_u(x_i, x), for one or several outputs c.

    Build it with `make_svm` or `from_svc`, which check the parts.

    Attributes:
        support: (S, D) the support vectors x_i.
        coefficients: (C, S) the products alpha_i y_i.
        bias: (C,) b.
        kernels: the k_u, each with its weight beta_u.
        labels: what each output stands for: a class, or a pair of classes (first against second).

    Example:
        >>> svm = make_svm(linear(), [[1.0, 0.0]], [2.0], 0.5)
        >>> svm.support.shape, svm.coefficients.tolist(), svm.bias.tolist()
        ((1, 2), [[2.0]], [0.5])
    """

    support: Array
    coefficients: Array
    bias: Array
    kernels: tuple[Kernel, ...]
    labels: tuple[Any, ...] = field(metadata={"static": True})


def make_svm(kernels: Kernel | Sequence[Kernel], support, coefficients, bias, *, labels=None) -> SVM:
    """An SVM from its parts, e.g. of another library.

    Args:
        kernels: one or several.
        support: (S, D) support vectors.
        coefficients: (S,) for one output, or (C, S): alpha_i y_i.
        bias: a number, or (C,).
        labels: C hashable values; None: 0 .. C-1.

    Returns:
        SVM of JAX's default floating dtype.

    Raises:
        ValueError: for parts that do not fit together, non-finite numbers, and negative support vectors of a
            kernel that is defined for histograms only.

    Example:
        >>> svm = make_svm(linear(), [[1.0, 0.0], [0.0, 1.0]], [2.0, -1.0], 0.5)
        >>> decision(svm, jnp.array([[3.0, 4.0]])).tolist()
        [[2.5]]
    """
    kernels = as_kernels(kernels)
    dtype = jnp.result_type(float)
    support = jnp.asarray(support, dtype)
    coefficients = jnp.atleast_2d(jnp.asarray(coefficients, dtype))
    bias = jnp.atleast_1d(jnp.asarray(bias, dtype))
    check_histograms("support", support, kernels)
    if coefficients.shape != (len(bias), len(support)) or bias.ndim != 1:
        raise ValueError(
            f"coefficients of shape {coefficients.shape} match neither {len(support)} support vectors "
            f"nor bias of shape {bias.shape}: (C, {len(support)}) and (C,) are needed"
        )
    _check.finite("coefficients", coefficients)
    _check.finite("bias", bias)
    labels = tuple(range(len(bias))) if labels is None else tuple(labels)
    if len(labels) != len(bias):
        raise ValueError(f"{len(labels)} labels were given for {len(bias)} outputs")
    return SVM(support, coefficients, bias, kernels, labels)


def sum_over_support(body, support: Array, coefficients: Array, chunk: int) -> Array:
    """Sum of `body(support[i], coefficients[:, i])` over chunks i of support vectors, one chunk at a time.

    Args:
        body: from (chunk, D) and (R, chunk) to an array; has to be linear in the coefficients.
        support: (S, D).
        coefficients: (R, S).
        chunk: support vectors at once. The last chunk is filled up with coefficients 0.

    Example:
        >>> sum_over_support(lambda a, w: w @ a, jnp.eye(3), jnp.array([[1.0, 2.0, 3.0]]), 2).tolist()
        [[1.0, 2.0, 3.0]]
    """
    if chunk < 1:
        raise ValueError(f"chunk sizes must be at least 1, got {chunk}")
    count, rows = len(support), len(coefficients)
    if count <= chunk:
        return body(support, coefficients)
    fill = -count % chunk
    blocks = jnp.pad(support, ((0, fill), (0, 0)), mode="edge").reshape(-1, chunk, support.shape[1])
    weights = jnp.pad(coefficients, ((0, 0), (0, fill))).reshape(rows, -1, chunk).swapaxes(0, 1)
    result = jax.eval_shape(body, blocks[0], weights[0])
    # Recomputed in a backward pass through the score, which would keep every chunk otherwise.
    step = jax.checkpoint(lambda total, block: (total + body(*block), None))
    return lax.scan(step, jnp.zeros(result.shape, result.dtype), (blocks, weights))[0]


def outputs(svm: SVM, x: Array, support_chunk: int) -> Array:
    """Scores (n, C) of all outputs for `x` (n, D) in one piece, without checks. See `decision`.

    Example:
        >>> svm = make_svm(linear(), [[1.0]], [2.0], 0.0)
        >>> outputs(svm, jnp.array([[3.0]]), 1).tolist()
        [[6.0]]
    """
    product = lambda a, weights: jnp.matmul(
        kernel_sum(svm.kernels, a, x), weights.T, precision=lax.Precision.HIGHEST
    )
    return sum_over_support(product, svm.support, svm.coefficients, support_chunk) + svm.bias


def decision(svm: SVM, x: ArrayLike, *, chunk: int = 64, support_chunk: int = 64) -> Array:
    """Scores f_c(x) of all outputs: b_c + sum_i (alpha_i y_i)_c sum_u beta_u k_u(x_i, x).

    Args:
        svm: the machine.
        x: (N, D) histograms, taken to the machine's dtype.
        chunk, support_chunk: histograms and support vectors at once; the memory is bounded by
            chunk * support_chunk * D numbers.

    Returns:
        (N, C).

    Raises:
        ValueError: for a wrong number of words, non-finite or (where the kernel forbids them) negative
            values.

    Example:
        >>> from lrpjax.bow import intersection
        >>> svm = make_svm(intersection(), [[1.0, 0.0]], [2.0], -1.0)
        >>> decision(svm, jnp.array([[0.75, 0.25]])).tolist()
        [[0.5]]
    """
    x = jnp.asarray(x, svm.support.dtype)
    check_histograms("x", x, svm.kernels, svm.support.shape[1])
    return _decision(svm, x, chunk, support_chunk)


@partial(jax.jit, static_argnums=(2, 3))
def _decision(svm, x, chunk, support_chunk):
    return in_chunks(lambda rows: outputs(svm, rows, support_chunk), chunk, x)


def from_svc(
    svc,
    kernels: Kernel | Sequence[Kernel] | None = None,
    histograms=None,
    *,
    of: Literal["classes", "pairs"] = "classes",
) -> SVM:
    """Convert a fitted `sklearn.svm.SVC` (or `NuSVC`).

    Two classes give one output, scikit-learn's decision function: positive for `classes_[1]`. With more
    classes scikit-learn trains one machine for each pair. `of="pairs"` keeps them: output (i, j) is positive
    for class i. `of="classes"` takes for class i the mean of its pairs, f_i = 1/(K-1) sum_{j != i} f_(i,j)
    with f_(j,i) = -f_(i,j): linear in the machines, so that it decomposes as exactly as they do. Its largest
    output is not always the class that the votes of `SVC.predict` elect. (The aggregation is ours, not the
    paper's.)

    Args:
        svc: the fitted machine, with kernel "linear", "rbf", "precomputed" or a callable.
        kernels: what it was trained with; not needed for "linear", "rbf" and `Gram`.
        histograms: (n, D), the training histograms in the order of `fit`; needed for callable and precomputed
            kernels, whose SVC keeps no support vectors, and for "rbf" with gamma="scale".
        of: outputs for classes or for pairs; the same for two classes.

    Returns:
        SVM, with labels from `svc.classes_`.

    Raises:
        sklearn.exceptions.NotFittedError: if the machine is not fitted.
        TypeError: for an object that is no SVC.
        ValueError: for histograms that are missing or not those of `fit`, an unknown kernel, or kernels that
            give other values than the callable that the machine was trained with.

    Example:
        >>> from sklearn.svm import SVC
        >>> from lrpjax.bow import intersection
        >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [0.9, 0.2]])
        >>> svc = SVC(kernel=Gram(intersection())).fit(x, ["b", "a", "a"])
        >>> svm = from_svc(svc, histograms=x)
        >>> svm.labels, bool(np.allclose(decision(svm, jnp.asarray(x))[:, 0], svc.decision_function(x)))
        (('b',), True)
    """
    try:
        from sklearn.svm import SVC, NuSVC
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise ImportError('lrpjax.bow.from_svc needs scikit-learn: pip install "lrpjax[bow]"') from error
    if not isinstance(svc, SVC | NuSVC):
        raise TypeError(f"an sklearn.svm.SVC or NuSVC is needed, got {type(svc).__name__}")
    if of not in ("classes", "pairs"):
        raise ValueError(f'of must be "classes" or "pairs", got {of!r}')
    check_is_fitted(svc, ["dual_coef_", "support_", "intercept_"])
    if histograms is not None:
        histograms = np.asarray(histograms)
        if histograms.ndim != 2 or len(histograms) != svc.shape_fit_[0]:
            raise ValueError(
                f"histograms of shape {histograms.shape} are not those of fit: "
                f"({svc.shape_fit_[0]}, D) is needed"
            )
    terms = _kernels_of(svc, kernels, histograms)
    if svc.kernel == "precomputed" or callable(svc.kernel):
        if histograms is None:
            raise ValueError(
                "an SVC with a callable or precomputed kernel keeps no support vectors: give histograms"
            )
        support = histograms[svc.support_]
    else:
        support = _dense(svc.support_vectors_)
    if callable(svc.kernel) and not isinstance(svc.kernel, Gram):
        _check_same_kernel(svc.kernel, terms, support[:8])
    coefficients, bias, labels = _outputs_of(svc, of)
    return make_svm(terms, support, coefficients, bias, labels=labels)


def _dense(matrix) -> np.ndarray:
    """A scikit-learn array that is sparse if the SVC was trained on sparse histograms."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)


def _kernels_of(svc, kernels, histograms) -> tuple[Kernel, ...]:
    """The kernels given, or those that the SVC itself tells."""
    if kernels is not None:
        return as_kernels(kernels)
    if isinstance(svc.kernel, Gram):
        return as_kernels(svc.kernel.kernels)
    if svc.kernel == "linear":
        return (linear(),)
    if svc.kernel != "rbf":
        raise ValueError(f"the kernel {svc.kernel!r} of the SVC does not say what it computes: give kernels")
    if svc.gamma == "auto":
        return (rbf(1 / svc.n_features_in_),)
    if svc.gamma == "scale":
        if histograms is None:
            raise ValueError('gamma="scale" depends on the training histograms: give histograms')
        variance = histograms.var()
        return (rbf(1 / (svc.n_features_in_ * variance) if variance else 1.0),)
    return (rbf(float(svc.gamma)),)


def _check_same_kernel(function, kernels: tuple[Kernel, ...], rows: np.ndarray) -> None:
    """Raise ValueError if the callable of an SVC and the kernels given differ on a few support vectors."""
    expected = np.asarray(function(rows, rows))
    ours = np.asarray(gram(kernels, jnp.asarray(rows), jnp.asarray(rows)))
    if not np.allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
        raise ValueError(
            "the kernels given are not the one that the SVC was trained with: their values differ"
        )


def _outputs_of(svc, of: str) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Coefficients (C, S), bias (C,) and labels from scikit-learn's one-versus-one layout.

    In `dual_coef_` (K-1, S) the columns are grouped by class; a support vector of class i has its coefficient
    in the machine (i, j) in row j-1 for j > i and in row j for j < i.
    """
    classes = tuple(label.item() if hasattr(label, "item") else label for label in svc.classes_)
    dual, bias = _dense(svc.dual_coef_), np.asarray(svc.intercept_)
    if len(classes) == 2:
        return dual, bias, ((classes[1], classes[0]) if of == "pairs" else classes[1],)
    stop = np.cumsum(svc.n_support_)
    group = [slice(end - size, end) for end, size in zip(stop, svc.n_support_, strict=True)]
    pairs = list(combinations(range(len(classes)), 2))
    coefficients = np.zeros((len(pairs), dual.shape[1]))
    for row, (i, j) in zip(coefficients, pairs, strict=True):
        row[group[i]] = dual[j - 1, group[i]]
        row[group[j]] = dual[i, group[j]]
    if of == "pairs":
        return coefficients, bias, tuple((classes[i], classes[j]) for i, j in pairs)
    mean = np.zeros((len(classes), len(pairs)))
    for column, (i, j) in enumerate(pairs):
        mean[i, column], mean[j, column] = 1 / (len(classes) - 1), -1 / (len(classes) - 1)
    return mean @ coefficients, mean @ bias, classes
