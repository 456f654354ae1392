"""Prototypes: the few ways in which the concepts of a class are usually relevant, and what is unlike all of them."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.explore import threads
from lrpjax.explore.findings import ExploreError, read_npz, write_npz

__all__ = ["ClassPrototypes", "Deviation", "Prototypes", "fit_prototypes", "load_prototypes"]

FORMAT = 1
PARTS = ("weights", "means", "covariances", "spread", "rows", "coverage", "scores")


@dataclasses.dataclass(frozen=True)
class ClassPrototypes:
    """The Gaussian mixture of one class, with P prototypes over C concepts, the one with most samples first.

    Attributes:
        weights: float [P], of the mixture.
        means: float [P, C], of normalised concept relevances: what each prototype stands for.
        covariances: float [P, C, C].
        spread: float [P, C], the standard deviation of each concept around each prototype.
        rows: int [P], the sample nearest to each mean: the prototype to look at; a row of what was given.
        coverage: float [P], the share of the class's samples that belong to each.
        scores: float [N], the log-likelihoods of the class's own samples, ascending.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
    >>> explore.fit_prototypes(R, np.zeros(50), n=1).classes[0].means.round(2)
    array([[0.75, 0.25]])
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    covariances: NDArray[np.float64]
    spread: NDArray[np.float64]
    rows: NDArray[np.int64]
    coverage: NDArray[np.float64]
    scores: NDArray[np.float64]

    def log_densities(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """log (weight × density) of normalised vectors [N, C] under each component, [N, P]."""
        found = np.empty((len(v), len(self.weights)))
        for p, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            factor = np.linalg.cholesky(covariance)
            white = np.linalg.solve(factor, (v - mean).T)
            log_size = 2 * np.log(np.diag(factor)).sum() + v.shape[1] * np.log(2 * np.pi)
            found[:, p] = np.log(self.weights[p]) - 0.5 * ((white**2).sum(0) + log_size)
        return found


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How samples differ from their prototypes, concept by concept: `Prototypes.deviation`.

    Attributes:
        prototype: int [N], the prototype that each was compared with.
        delta: float [N, C], Δ = ν − μ: concepts that are used more (positive) or less than usual.
        z: float [N, C], Δ divided by the standard deviation of the concept around the prototype.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> explore.Deviation(np.array([0]), np.array([[0.2]]), np.array([[2.0]])).z
    array([[2.]])
    """

    prototype: NDArray[np.int64]
    delta: NDArray[np.float64]
    z: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Prototypes of every class: `explore.fit_prototypes` makes them, `save` keeps them.

    Attributes:
        classes: {class: ClassPrototypes}.
        settings: the arguments of the fit.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
    >>> found = explore.fit_prototypes(R, np.zeros(50), n=1)
    >>> found.outliers([[3.0, 1.0], [1.0, 3.0]], [0, 0])
    array([False,  True])
    """

    classes: Mapping[int, ClassPrototypes]
    settings: Mapping[str, Any]

    def score(self, relevances: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
        """The log-likelihood of each sample under the mixture of its class: low for what the class is not used to.

        Args:
            relevances: floating [N, C] (or [C]), not normalised.
            groups: int [N], or one for all.

        Returns:
            float [N].

        Raises:
            ExploreError: a class that was not fitted, another number of concepts, rows that are not finite.

        >>> import numpy as np
        >>> from lrpjax import explore
        >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
        >>> found = explore.fit_prototypes(R, np.zeros(50), n=1)
        >>> bool(found.score([3.0, 1.0], 0)[0] > found.score([1.0, 3.0], 0)[0])
        True
        """
        v, groups = self._checked(relevances, groups)
        total = np.empty(len(v))
        for group in np.unique(groups):
            mine = groups == group
            each = self.classes[int(group)].log_densities(v[mine])
            top = each.max(1)
            total[mine] = top + np.log(np.exp(each - top[:, None]).sum(1))
        return total

    def assign(self, relevances: ArrayLike, groups: ArrayLike) -> NDArray[np.int64]:
        """The prototype, of those of its class, that each sample most likely belongs to.

        Args, Raises: as `score`.

        Returns:
            int [N].

        >>> import numpy as np
        >>> from lrpjax import explore
        >>> rng = np.random.default_rng(0)
        >>> R = np.r_[rng.normal([3, 1], 0.1, (60, 2)), rng.normal([1, 3], 0.1, (40, 2))]
        >>> explore.fit_prototypes(R, np.zeros(100), n=2).assign([[3.0, 1.0], [1.0, 3.0]], 0)
        array([0, 1])
        """
        v, groups = self._checked(relevances, groups)
        found = np.empty(len(v), np.int64)
        for group in np.unique(groups):
            mine = groups == group
            found[mine] = self.classes[int(group)].log_densities(v[mine]).argmax(1)
        return found

    def deviation(self, relevances: ArrayLike, groups: ArrayLike) -> Deviation:
        """How each sample differs from its prototype, concept by concept: Δ = ν − μ (Dreyer et al. 2023).

        Args, Raises: as `score`.

        >>> import numpy as np
        >>> from lrpjax import explore
        >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
        >>> explore.fit_prototypes(R, np.zeros(50), n=1).deviation([1.0, 1.0], 0).delta.round(2)
        array([[-0.25,  0.25]])
        """
        v, groups = self._checked(relevances, groups)
        prototype = self.assign(relevances, groups)
        pairs = [(self.classes[int(g)], p) for g, p in zip(groups, prototype, strict=True)]
        delta = v - np.array([c.means[p] for c, p in pairs])
        return Deviation(prototype, delta, delta / np.array([c.spread[p] for c, p in pairs]))

    def outliers(self, relevances: ArrayLike, groups: ArrayLike, quantile: float = 0.01) -> NDArray[np.bool_]:
        """Which samples are less likely than the given share of those that their class was fitted to.

        Args:
            relevances, groups: as for `score`.
            quantile: the share, between 0 and 1.

        Returns:
            bool [N].

        Raises:
            ExploreError: the quantile is none; else as `score`.

        >>> import numpy as np
        >>> from lrpjax import explore
        >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
        >>> int(explore.fit_prototypes(R, np.zeros(50), n=1).outliers(R, np.zeros(50), 0.1).sum())
        5
        """
        if not 0 <= quantile <= 1:
            raise ExploreError(f"a quantile is a share between 0 and 1, not {quantile}")
        scores = self.score(relevances, groups)
        _, groups = self._checked(relevances, groups)
        limits = {g: np.quantile(c.scores, quantile) for g, c in self.classes.items()}
        return scores < np.array([limits[int(g)] for g in groups])

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes everything into one .npz file, whole or not at all; `explore.load_prototypes` reads it.

        Raises:
            ExploreError: another ending than .npz, or the file cannot be written.

        >>> import tempfile
        >>> import numpy as np
        >>> from lrpjax import explore
        >>> R = np.random.default_rng(0).normal([3.0, 1.0], 0.1, (50, 2))
        >>> path = explore.fit_prototypes(R, np.zeros(50), n=1).save(tempfile.mkdtemp() + "/prototypes.npz")
        >>> list(explore.load_prototypes(path).classes)
        [0]
        """
        arrays = {f"{g}/{part}": getattr(c, part) for g, c in self.classes.items() for part in PARTS}
        about = {"prototypes": FORMAT, "classes": list(self.classes), "settings": dict(self.settings)}
        return write_npz(file, "prototypes", arrays, about)

    def _checked(self, relevances: ArrayLike, groups: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        v, groups = _normalised(np.atleast_2d(np.asarray(relevances, np.float64)), groups)
        strange = sorted(set(groups.tolist()) - set(self.classes))
        if strange:
            raise ExploreError(
                f"no prototypes were fitted for class {strange[0]}; there are: {sorted(self.classes)}"
            )
        count = next(iter(self.classes.values())).means.shape[1]
        if v.shape[1] != count:
            raise ExploreError(f"the prototypes are of {count} concepts, but the samples have {v.shape[1]}")
        return v, groups


def fit_prototypes(
    relevances: ArrayLike, groups: ArrayLike, n: int | str = "auto", *, at_most: int = 8, seed: int = 0
) -> Prototypes:
    """Prototypes of every class, by Gaussian mixtures over concept relevances (PCX).

    Dreyer et al. 2023 ("Understanding the (Extra-)Ordinary: Validating Deep Model Decisions with Prototypical
    Concept-based Explanations", arXiv 2311.16681): the concept relevances ν of all samples of a class are described by
    a mixture p(ν) = Σ_p λ_p N(ν; μ_p, Σ_p); each component is a prediction strategy, and the sample nearest to its mean
    its prototype. Here each ν is first divided by Σ_c |ν_c|, so that it says shares and not how large the output was.
    Covariances are full, and 10⁻⁶ times the mean variance of the class's concepts is added to their diagonals.

    Args:
        relevances: floating [N, C], such as `concepts.channel_relevance` gives, or the array "relevance" of a store of
            such.
        groups: int [N], the class that each was explained for.
        n: prototypes for each class; "auto" takes the number, up to `at_most`, of the lowest Bayesian information
            criterion.
        at_most: the most that "auto" tries (no more than half of the class's samples).
        seed: of the initial means; with it the result is the same again.

    Returns:
        `Prototypes`.

    Raises:
        ExploreError: rows that are not finite, or all 0 (named); a class with one sample, or with fewer samples than
        prototypes; shapes that do not fit. ImportError: scikit-learn is not installed.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> rng = np.random.default_rng(0)
    >>> R = np.r_[rng.normal([3, 1], 0.1, (60, 2)), rng.normal([1, 3], 0.1, (40, 2))]
    >>> found = explore.fit_prototypes(R, np.zeros(100))
    >>> found.classes[0].coverage
    array([0.6, 0.4])
    """
    if n != "auto" and (not isinstance(n, (int, np.integer)) or n < 1):
        raise ExploreError(f'n is a number of prototypes, 1 or more, or "auto", not {n!r}')
    if at_most < 1:
        raise ExploreError(f"at_most must be at least 1, not {at_most}")
    v, groups = _normalised(np.asarray(relevances, np.float64), groups)
    if not len(v):
        raise ExploreError("there are no samples to fit prototypes to")
    for group in np.unique(groups):
        count = int((groups == group).sum())
        if count == 1:
            raise ExploreError(
                f"class {group} has one sample (row {np.flatnonzero(groups == group)[0]}), which no distribution can "
                "be fitted to: leave it out"
            )
        if n != "auto" and count < n:
            raise ExploreError(
                f"class {group} has {count} samples, fewer than the {n} prototypes that it should have"
            )
    classes = {}
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        numbers = range(1, min(at_most, max(1, len(rows) // 2)) + 1) if n == "auto" else [int(n)]
        with threads.enough_for(len(rows)):
            fitted = [_fitted(v[rows], number, seed) for number in numbers]
        best = min(fitted, key=lambda one: one[0])[1]
        if not best.converged_:
            warnings.warn(
                f"the mixture of {best.n_components} components of class {group} has not settled after "
                f"{best.max_iter} steps: fewer components, or more samples, may fit better",
                stacklevel=2,
            )
        classes[int(group)] = _described(best, v[rows], rows)
    return Prototypes(
        classes, {"n": n if n == "auto" else int(n), "at_most": int(at_most), "seed": int(seed)}
    )


def load_prototypes(file: str | os.PathLike[str]) -> Prototypes:
    """Reads what `Prototypes.save` wrote.

    Raises:
        ExploreError: there is no such file, or it is damaged or something else.

    >>> from lrpjax import explore
    >>> explore.load_prototypes("nowhere.npz")
    Traceback (most recent call last):
    ...
    lrpjax.explore.findings.ExploreError: there are no prototypes in ...nowhere.npz
    """

    def made(about: dict[str, Any], found: Mapping[str, Any]) -> Prototypes:
        if about["prototypes"] != FORMAT:
            raise ExploreError(f"{file} is of another version of lrpjax, in format {about['prototypes']}")
        classes = {
            group: ClassPrototypes(*(found[f"{group}/{part}"] for part in PARTS))
            for group in about["classes"]
        }
        return Prototypes(classes, about["settings"])

    return read_npz(file, "prototypes", made)


def _normalised(relevances: NDArray[Any], groups: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """ν / Σ |ν|, and the class of each row."""
    groups = np.asarray(groups)
    if relevances.ndim != 2:
        raise ExploreError(
            f"relevances of concepts are [samples, concepts], but these have shape {relevances.shape}"
        )
    if groups.shape not in ((), (len(relevances),)) or not np.array_equal(groups, np.floor(groups)):
        raise ExploreError(
            f"groups are one class for each of {len(relevances)} rows, but have shape {groups.shape}"
        )
    total = np.abs(relevances).sum(1)
    for what, bad in (
        ("not finite", ~np.isfinite(total)),
        ("all 0, so that no shares can be told", total == 0),
    ):
        if bad.any():
            rows = np.flatnonzero(bad)
            more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
            raise ExploreError(f"the relevances of rows {', '.join(map(str, rows[:10]))}{more} are {what}")
    return relevances / total[:, None], np.broadcast_to(groups, len(relevances)).astype(np.int64)


def _fitted(v: NDArray[Any], number: int, seed: int) -> tuple[float, Any]:
    """(the information criterion, the mixture) of a class."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError('prototypes need scikit-learn: pip install "lrpjax[explore]"') from error
    ridge = max(float(v.var(0).mean()) * 1e-6, 1e-14)
    mixture = GaussianMixture(number, reg_covar=ridge, random_state=seed, n_init=3, max_iter=500)
    with warnings.catch_warnings():
        # Of those that are tried and not taken it says nothing; who is taken is asked whether it has settled.
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            mixture.fit(v)
        except ValueError as error:
            raise ExploreError(
                f"no mixture of {number} components can be fitted to {len(v)} samples: {error}"
            ) from error
    return float(mixture.bic(v)), mixture


def _described(mixture: Any, v: NDArray[Any], rows: NDArray[np.int64]) -> ClassPrototypes:
    belongs = mixture.predict(v)
    coverage = np.bincount(belongs, minlength=mixture.n_components) / len(v)
    order = np.argsort(-coverage, kind="stable")
    means = mixture.means_[order]
    nearest = np.array([rows[((v - mean) ** 2).sum(1).argmin()] for mean in means])
    covariances = mixture.covariances_[order]
    spread = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    scores = np.sort(mixture.score_samples(v))
    return ClassPrototypes(
        mixture.weights_[order], means, covariances, spread, nearest, coverage[order], scores
    )
