"""R^(3): the score of a kernel SVM, decomposed into visual words.

The formulas are those of Bach et al. 2015 (doi 10.1371/journal.pone.0130140), section on bag-of-words
features; where one is our own the docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from lrpjax.bow import _check
from lrpjax.bow.kernels import Kernel, check_histograms, in_chunks
from lrpjax.bow.svm import SVM, outputs, sum_over_support

# Evaluations of the score in one search; about ten are enough, the rest is for ill-behaved kernels.
_ROOT_STEPS = 60


class WordRelevance(NamedTuple):
    """What `word_relevance` returns for N histograms.

    Attributes:
        words: (N, D) R^(3).
        score: (N,) f(x), the output (or combination of outputs) explained.
        remainder: (N,) f(x) - sum_d R^(3)_d: rounding errors for sum-decomposable kernels, what the Taylor
            expansion leaves out otherwise.
        target: (N, C) weights of the outputs in what was explained: 1 and 0 if it was a single output.
        root: (N, D) the points expanded at, or None where no expansion was needed.
        root_score: (N,) f at these points, or None; far from 0 it says that no root was found.

    Example:
        >>> from lrpjax.bow import linear, make_svm
        >>> found = word_relevance(make_svm(linear(), [[1.0, 0.0]], [2.0], 1.0), jnp.array([[3.0, 5.0]]))
        >>> found.words.tolist(), found.score.tolist(), found.remainder.tolist()
        ([[6.5, 0.5]], [7.0], [0.0])
    """

    words: Array
    score: Array
    remainder: Array
    target: Array
    root: Array | None
    root_score: Array | None


def word_relevance(
    svm: SVM,
    x: ArrayLike,
    target: ArrayLike | str = "max",
    *,
    root: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
    chunk: int = 64,
    support_chunk: int = 64,
) -> WordRelevance:
    """Relevance of visual words for one output of the SVM, or one combination of outputs, per histogram.

    Sum-decomposable kernels only, exact: R_d = b/D + sum_i alpha_i y_i sum_u beta_u k_u(d)(x_i(d), x_(d)),
    with b/D the bias in equal parts. Differentiable kernels: R_d = (x - x0)_(d) sum_i alpha_i y_i sum_u
    beta_u dk_u(x_i, .)/dx_(d) (x0), the first-order Taylor expansion at a root point f(x0) = 0. Both are Bach
    et al. 2015's. A sum of both kinds (our own): the differentiable kernels expanded at the root point x0 of
    the whole f, the others by their exact difference k_u(d)(x_i(d), x_(d)) - k_u(d)(x_i(d), x0_(d)).

    Args:
        svm: the machine.
        x: (N, D) histograms, taken to its dtype.
        target: "max": the largest output of each histogram; an integer or (N,) integers: that output;
            floating weights (C,) or (N, C): that combination of outputs, e.g. 1 and -1 for one class against
            another.
        root: (N, D) points to expand at, instead of a search. With sum-decomposable kernels only, words are
            then explained by the exact difference to these points, which need not be roots.
        candidates: (K, D) histograms in whose directions roots are searched; None: the support vectors. See
            `find_roots`.
        chunk, support_chunk: histograms and support vectors at once; the memory is bounded by
            chunk * support_chunk * D numbers, and chunk * K for the search.

    Returns:
        WordRelevance, with the remainder f(x) - sum_d R_d.

    Raises:
        ValueError: for a wrong number of words, non-finite or (where the kernel forbids them) negative
            values, a target that is no output, or roots of another shape than x.

    Example:
        >>> from lrpjax.bow import chi2_rbf, intersection, make_svm
        >>> svm = make_svm(intersection(), [[1.0, 0.0], [0.0, 1.0]], [1.0, -1.0], 0.5)
        >>> word_relevance(svm, jnp.array([[0.75, 0.25]])).words.tolist()
        [[1.0, 0.0]]
        >>> svm = make_svm(chi2_rbf(1.0), [[1.0, 0.0], [0.0, 1.0]], [1.0, -1.0], 0.0)
        >>> found = word_relevance(svm, jnp.array([[0.75, 0.25]]))
        >>> bool(jnp.allclose(found.root, 0.5)), round(float(found.score[0] - found.remainder[0]), 3)
        (True, 0.456)
    """
    x = jnp.asarray(x, svm.support.dtype)
    check_histograms("x", x, svm.kernels, svm.support.shape[1])
    weights = target_weights(svm, target, len(x))
    root, candidates = expansion_points(svm, len(x), root, candidates)
    return _word_relevance(svm, (x, weights, root), candidates, chunk, support_chunk)


def target_weights(svm: SVM, target: ArrayLike | str, n: int) -> Array | None:
    """Weights (n, C) of the outputs to explain; None for the largest. ValueError if there is no such output.

    Example:
        >>> from lrpjax.bow import linear, make_svm
        >>> svm = make_svm(linear(), [[1.0]], [[1.0], [2.0]], [0.0, 0.0])
        >>> target_weights(svm, 1, 2).tolist(), target_weights(svm, [1.0, -1.0], 1).tolist()
        ([[0.0, 1.0], [0.0, 1.0]], [[1.0, -1.0]])
    """
    if isinstance(target, str):
        if target != "max":
            raise ValueError(f'target must be "max", integers or weights, got {target!r}')
        return None
    given, count, dtype = jnp.asarray(target), len(svm.bias), svm.support.dtype
    if jnp.issubdtype(given.dtype, jnp.floating) and given.shape in ((count,), (n, count)):
        _check.finite("target", given)
        return jnp.broadcast_to(given.astype(dtype), (n, count))
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.shape not in ((), (n,)):
        raise ValueError(
            f"target must be an integer, {n} integers, or weights of shape ({count},) or ({n}, {count}), "
            f"got {given.dtype} of shape {given.shape}"
        )
    if _check.concrete(given) and ((np.asarray(given) < 0) | (np.asarray(given) >= count)).any():
        raise ValueError(f"target {np.asarray(given)} is not in 0 .. {count - 1}, the SVM's outputs")
    return jnp.broadcast_to(jax.nn.one_hot(given, count, dtype=dtype), (n, count))


def expansion_points(svm: SVM, n: int, root, candidates) -> tuple[Array | None, Array]:
    """Check the points to expand at and the candidates of the search; the support vectors are the default.

    Example:
        >>> from lrpjax.bow import linear, make_svm
        >>> expansion_points(make_svm(linear(), [[1.0]], [1.0], 0.0), 3, None, None)[1].tolist()
        [[1.0]]
    """
    words = svm.support.shape[1]
    if root is not None:
        root = jnp.asarray(root, svm.support.dtype)
        check_histograms("root", root, svm.kernels, words)
        if len(root) != n:
            raise ValueError(f"{len(root)} root points were given for {n} histograms")
    if candidates is None:
        return root, svm.support
    candidates = jnp.asarray(candidates, svm.support.dtype)
    check_histograms("candidates", candidates, svm.kernels, words)
    return root, candidates


class Candidates(NamedTuple):
    """Directions of a root search: histograms (K, D) and their scores (K, C)."""

    points: Array
    scores: Array


def search_candidates(svm, root, points, chunk: int, support_chunk: int) -> Candidates | None:
    """The candidates with their scores; None if no search is needed: `root` given, or no Taylor expansion.

    Example:
        >>> from lrpjax.bow import linear, make_svm, rbf
        >>> points = jnp.zeros((1, 1))
        >>> search_candidates(make_svm(linear(), points, [1.0], 0.0), None, points, 1, 1) is None
        True
        >>> search_candidates(make_svm(rbf(1.0), points, [1.0], 0.0), None, points, 1, 1).scores.tolist()
        [[1.0]]
    """
    if root is not None or all(kernel.decomposable for kernel in svm.kernels):
        return None
    return Candidates(points, in_chunks(lambda rows: outputs(svm, rows, support_chunk), chunk, points))


@partial(jax.jit, static_argnums=(3, 4))
def _word_relevance(svm, rows, points, chunk, support_chunk):
    candidates = search_candidates(svm, rows[2], points, chunk, support_chunk)
    explain = lambda block: explain_words(svm, block[0], block[1], block[2], candidates, support_chunk)
    return in_chunks(explain, chunk, rows)


def explain_words(svm: SVM, x: Array, target, root, candidates, support_chunk: int) -> WordRelevance:
    """`word_relevance` in one piece and without checks: what `decompose` runs on each chunk of images.

    Args:
        svm, x: as there.
        target: (n, C) weights of the outputs, or None for the largest output.
        root: (n, D) or None.
        candidates: what `search_candidates` returned.
        support_chunk: support vectors at once.

    Example:
        >>> from lrpjax.bow import linear, make_svm
        >>> svm = make_svm(linear(), [[1.0, 0.0]], [2.0], 1.0)
        >>> explain_words(svm, jnp.array([[3.0, 5.0]]), None, None, None, 1).words.tolist()
        [[6.5, 0.5]]
    """
    machine, target, score = _combined(svm, x, target, support_chunk)
    summed = [kernel for kernel in svm.kernels if kernel.decomposable]
    smooth = [kernel for kernel in svm.kernels if not kernel.decomposable]
    root_score = None
    if root is not None:
        root_score = machine.score(root)
    elif smooth:
        root, root_score = _roots(machine, x, target, score, candidates)
    words = machine.by_word(summed, x)
    if root is None:
        words = words + machine.bias[:, None] / x.shape[1]
    else:
        words = words - machine.by_word(summed, root) + (x - root) * machine.gradient(smooth, root)
    return WordRelevance(words, score, score - words.sum(1), target, root, root_score)


class _Machine(NamedTuple):
    """A combination of outputs for each histogram: coefficients (n, S) and bias (n,), row by row."""

    svm: SVM
    coefficients: Array
    bias: Array
    support_chunk: int

    def _sum(self, body) -> Array:
        return sum_over_support(body, self.svm.support, self.coefficients, self.support_chunk)

    def score(self, x: Array) -> Array:
        """f(x) (n,)."""
        return self._sum(lambda a, weights: _weighted(self.svm.kernels, a, weights, x)) + self.bias

    def by_word(self, kernels: list[Kernel], x: Array) -> Array:
        """Summands (n, D) of sum-decomposable kernels."""

        def body(a, weights):
            total = jnp.zeros_like(x)
            for kernel in kernels:
                summand = kernel.function(kernel.see(a)[None], kernel.see(x)[:, None], *kernel.parameters)
                part = kernel.weight * jnp.sum(weights[:, :, None] * summand, 1)
                total = total.at[:, slice(*(kernel.words or (0, x.shape[1])))].add(part)
            return total

        return self._sum(body) if kernels else jnp.zeros_like(x)

    def gradient(self, kernels: list[Kernel], x: Array) -> Array:
        """Gradient (n, D) of the kernels' part of f, one chunk of support vectors at a time."""
        body = lambda a, weights: jax.grad(lambda at: jnp.sum(_weighted(kernels, a, weights, at)))(x)
        return self._sum(body) if kernels else jnp.zeros_like(x)


def _combined(svm: SVM, x: Array, target, support_chunk: int) -> tuple[_Machine, Array, Array]:
    """For each row of `x` the machine of its combination of outputs, the weights in it, and its score."""
    scores = outputs(svm, x, support_chunk)
    if target is None:
        target = jax.nn.one_hot(jnp.argmax(scores, 1), scores.shape[1], dtype=x.dtype)
    product = partial(jnp.matmul, target, precision=lax.Precision.HIGHEST)
    machine = _Machine(svm, product(svm.coefficients), product(svm.bias), support_chunk)
    return machine, target, jnp.sum(target * scores, 1)


def _weighted(kernels: Sequence[Kernel], a: Array, weights: Array, x: Array) -> Array:
    """sum_j weights[n, j] sum_u beta_u k_u(a_j, x_n): (n,)."""
    total = jnp.zeros_like(x[:, 0])
    for kernel in kernels:
        total = total + jnp.sum(weights * kernel.values(a, x), 1)
    return total


def find_roots(
    svm: SVM,
    x: ArrayLike,
    target: ArrayLike | str = "max",
    *,
    candidates: ArrayLike | None = None,
    chunk: int = 64,
    support_chunk: int = 64,
) -> tuple[Array, Array]:
    """Root points f(x0) = 0 near histograms, each on the line to the nearest candidate with the other sign.

    The line is cut by the Illinois variant of the false position. Points between two histograms are
    histograms again, so the root is one that the kernel is defined for. If no candidate lies on the other
    side, the one with the smallest |f| is returned as it is, and its score says that it is no root. (Bach et
    al. 2015 leave the search open; this one is ours.)

    Args:
        svm, x, target, chunk, support_chunk: as for `word_relevance`.
        candidates: (K, D); None: the support vectors.

    Returns:
        The points (N, D) and their scores (N,).

    Raises:
        ValueError: as `word_relevance`.

    Example:
        >>> from lrpjax.bow import linear, make_svm
        >>> svm = make_svm(linear(), [[1.0, 0.0]], [1.0], -0.5)  # f(x) = x_0 - 1/2
        >>> points, scores = find_roots(svm, jnp.array([[1.0, 0.0]]), candidates=jnp.array([[0.0, 1.0]]))
        >>> points.tolist(), scores.tolist()
        ([[0.5, 0.5]], [0.0])
    """
    x = jnp.asarray(x, svm.support.dtype)
    check_histograms("x", x, svm.kernels, svm.support.shape[1])
    weights = target_weights(svm, target, len(x))
    _, points = expansion_points(svm, len(x), None, candidates)
    return _find_roots(svm, (x, weights), points, chunk, support_chunk)


@partial(jax.jit, static_argnums=(3, 4))
def _find_roots(svm, rows, points, chunk, support_chunk):
    scores = in_chunks(lambda block: outputs(svm, block, support_chunk), chunk, points)

    def search(block):
        x, target = block
        machine, target, score = _combined(svm, x, target, support_chunk)
        return _roots(machine, x, target, score, Candidates(points, scores))

    return in_chunks(search, chunk, rows)


def _roots(machine: _Machine, x, target, own_score, ends: Candidates) -> tuple[Array, Array]:
    """Points and scores of `find_roots` in one piece."""
    candidates = ends.points  # (K, D)
    candidate_scores = jnp.matmul(target, ends.scores.T, precision=lax.Precision.HIGHEST)  # (n, K)
    products = jnp.matmul(x, candidates.T, precision=lax.Precision.HIGHEST)
    distances = jnp.sum(candidates**2, 1) - 2 * products  # without |x|^2, the same for all candidates
    opposite = jnp.sign(candidate_scores) == -jnp.sign(own_score)[:, None]
    nearest = jnp.argmin(jnp.where(opposite, distances, np.inf), 1)
    chosen = jnp.where(opposite.any(1), nearest, jnp.argmin(jnp.abs(candidate_scores), 1))
    end = candidates[chosen]
    end_score = jnp.take_along_axis(candidate_scores, chosen[:, None], 1)[:, 0]
    # Rounding errors of f grow with its coefficients; below this the search has nothing left to find.
    scale = jnp.sum(jnp.abs(machine.coefficients), 1) + jnp.abs(machine.bias) + jnp.abs(own_score)
    tolerance = jnp.finfo(x.dtype).eps * scale

    def point(t):
        return x + t[:, None] * (end - x)

    def open_brackets(state):
        return opposite.any(1) & (jnp.abs(state[1]) > tolerance)

    def step(state):
        t, score, near, near_score, far, far_score, last, count = state
        active = open_brackets(state)
        middle = (near * far_score - far * near_score) / jnp.where(active, far_score - near_score, 1)
        t = jnp.where(active, middle, t)
        score = jnp.where(active, machine.score(point(t)), score)
        here = jnp.sign(score) == jnp.sign(near_score)
        # Illinois: an end that stays twice in a row has its value halved, which keeps the bracket shrinking.
        far_score = jnp.where(here, jnp.where(last == 1, far_score / 2, far_score), score)
        near_score = jnp.where(here, score, jnp.where(last == -1, near_score / 2, near_score))
        near, far = jnp.where(here, t, near), jnp.where(here, far, t)
        last = jnp.where(here, 1, -1).astype(jnp.int32)
        return t, score, near, near_score, far, far_score, last, count + 1

    zero, one = jnp.zeros_like(own_score), jnp.ones_like(own_score)
    on_root = own_score == 0
    start = jnp.where(on_root, zero, one)
    start_score = jnp.where(on_root, own_score, end_score)
    side = jnp.zeros(own_score.shape, jnp.int32)
    state = (start, start_score, zero, own_score, one, end_score, side, jnp.zeros((), jnp.int32))
    state = lax.while_loop(lambda s: open_brackets(s).any() & (s[-1] < _ROOT_STEPS), step, state)
    return point(state[0]), state[1]
