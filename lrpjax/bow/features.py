"""From images to histograms of visual words: local features, mapping to words, pooling.

Each local feature knows its support, the pixels that it was computed from. Notation of Bach et al. 2015
(doi 10.1371/journal.pone.0130140): l a local feature, M their number, d a visual word, m_(d)(l) >= 0 the
mapping of l to d, x_(d) an entry of the histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lrpjax.bow import _check

# Patches with gradients below this (for pixel values in [0, 1]) count as flat.
_FLAT = 1e-2


@dataclass(frozen=True)
class Patches:
    """Dense square patches on a regular grid, described by their pixels or by a histogram of gradients.

    A patch is computed from its own pixels only (gradients are one-sided at its border), so its support is
    exact. Patches of several sizes with the same `cells` have descriptors of the same length and can share a
    vocabulary.

    Attributes:
        size: side of the patch in pixels.
        stride: step of the grid in pixels.
        kind: "raw": the mean of each cell's pixels, per colour; "gradient": per cell, a histogram of gradient
            orientations over [0, 2 pi) weighted by magnitude, of the colours' mean, with linear interpolation
            between neighbouring bins; the whole h is divided by sqrt(|h|^2 + 0.01^2).
        cells: cells per side, a divisor of `size`; None: as many as pixels for "raw", 2 for "gradient".
        bins: orientations of a gradient histogram.

    Raises:
        ValueError: for a size, stride, cells or bins that is out of range, or an unknown kind.

    Example:
        >>> Patches(size=4, stride=2).supports((8, 8)).shape  # 3 x 3 patches of 16 pixels each
        (9, 16)
    """

    size: int
    stride: int = 1
    kind: Literal["raw", "gradient"] = "raw"
    cells: int | None = None
    bins: int = 8

    def __post_init__(self):
        if self.kind not in ("raw", "gradient"):
            raise ValueError(f'kind must be "raw" or "gradient", got {self.kind!r}')
        smallest = 1 if self.kind == "raw" else 2
        if self.size < smallest or self.stride < 1 or self.bins < 1:
            raise ValueError(f"size must be at least {smallest}, stride and bins at least 1, got {self}")
        if self._cells < 1 or self.size % self._cells:
            raise ValueError(f"cells={self._cells} does not divide size={self.size}")

    @property
    def _cells(self) -> int:
        default = self.size if self.kind == "raw" else 2
        return default if self.cells is None else self.cells

    def supports(self, shape: tuple[int, ...]) -> np.ndarray:
        """Pixels of each patch, as positions in the flattened image of `shape` (H, W): (L, size**2) int32.

        Raises:
            ValueError: if a patch does not fit into the image.
        """
        height, width = shape
        if self.size > min(height, width):
            raise ValueError(
                f"patches of size {self.size} do not fit into images of {height} x {width} pixels"
            )
        offset = np.arange(self.size)
        rows = np.arange(0, height - self.size + 1, self.stride)[:, None, None, None] + offset[:, None]
        columns = np.arange(0, width - self.size + 1, self.stride)[None, :, None, None] + offset
        return (rows * width + columns).reshape(-1, self.size**2).astype(np.int32)

    def describe(self, images: Array) -> Array:
        """Descriptors of every patch of `images` (N, H, W, colours): an array of shape (N, L, F)."""
        pixels = self.supports(images.shape[1:3])
        patches = images.reshape(len(images), -1, images.shape[3])[:, pixels]
        patches = patches.reshape(*patches.shape[:2], self.size, self.size, -1)
        return self._gradients(patches.mean(-1)) if self.kind == "gradient" else self._cell_means(patches)

    def _cell_means(self, patches: Array) -> Array:
        """(N, L, size, size, K) to (N, L, cells * cells * K)."""
        n, patch_count, channels = patches.shape[0], patches.shape[1], patches.shape[4]
        pixels = self.size // self._cells
        cells = patches.reshape(n, patch_count, self._cells, pixels, self._cells, pixels, channels)
        return cells.mean((3, 5)).reshape(n, patch_count, -1)

    def _gradients(self, patches: Array) -> Array:
        """(N, L, size, size) to (N, L, cells * cells * bins)."""
        dy, dx = jnp.gradient(patches, axis=(2, 3))
        squared = dx**2 + dy**2
        present = squared > 0
        # A flat pixel has no orientation; the inner `where` keeps its derivative finite.
        magnitude = jnp.where(present, jnp.sqrt(jnp.where(present, squared, 1)), 0)
        angle = jnp.where(present, jnp.arctan2(dy, jnp.where(present, dx, 1)), 0)
        position = (angle / (2 * np.pi)) % 1 * self.bins
        distance = jnp.abs(position[..., None] - jnp.arange(self.bins, dtype=patches.dtype))
        nearness = jnp.maximum(1 - jnp.minimum(distance, self.bins - distance), 0)
        histogram = self._cell_means(magnitude[..., None] * nearness)
        return histogram / jnp.sqrt(jnp.sum(histogram**2, -1, keepdims=True) + _FLAT**2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LocalFeatures:
    """Descriptors of local features and the pixels that each was computed from.

    Build it with `local_features` from images, or bring descriptors of your own, from any extractor.

    Attributes:
        descriptors: (N, L, F) real numbers.
        supports: (L, A) or, if they differ from image to image, (N, L, A) int32: positions in the flattened
            image; -1 fills up the rows of smaller supports. See `supports_from_boxes`, `supports_from_masks`.
        shape: (H, W) of the images.
        valid: (N, L) bool or None: False marks fill-up rows where images have fewer than L features.

    Example:
        >>> features = LocalFeatures(jnp.ones((5, 3, 2)), supports_from_boxes([[0, 0, 2, 2]] * 3, (4, 4)), (4, 4))
        >>> features.descriptors.shape, features.supports.shape
        ((5, 3, 2), (3, 4))
    """

    descriptors: Array
    supports: Any
    shape: tuple[int, int] = field(metadata={"static": True})
    valid: Array | None = None


def check_local_features(features: LocalFeatures) -> None:
    """Raise ValueError unless descriptors, supports and `valid` of `features` fit together.

    Example:
        >>> check_local_features(LocalFeatures(jnp.ones((2, 3, 4)), np.zeros((5, 1), np.int32), (8, 8)))
        Traceback (most recent call last):
        ...
        ValueError: supports of shape (5, 1) do not match descriptors of shape (2, 3, 4): ...
    """
    descriptors, supports, valid = features.descriptors, features.supports, features.valid
    _check.dims("descriptors", descriptors, "(N, L, F)")
    _check.finite("descriptors", descriptors)
    n, count, _ = descriptors.shape
    if supports.shape[:-1] not in ((count,), (n, count)):
        raise ValueError(
            f"supports of shape {supports.shape} do not match descriptors of shape {descriptors.shape}: "
            f"({count}, A) or ({n}, {count}, A) is needed"
        )
    if valid is not None and valid.shape != (n, count):
        raise ValueError(
            f"valid of shape {valid.shape} does not match descriptors of shape {descriptors.shape}"
        )
    if valid is not None and _check.concrete(valid) and not np.asarray(valid).any(1).all():
        raise ValueError("an image has no valid local feature")
    check_supports(supports, features.shape, True if valid is None else valid)


def check_supports(supports, shape: tuple[int, int], needed: Array | bool = True) -> None:
    """Raise ValueError unless supports point into images of `shape` (H, W) and none is empty.

    Args:
        supports: (L, A) or (N, L, A), filled up with -1.
        shape: (H, W).
        needed: (N, L) bool or True; where False, a support may be empty.

    Example:
        >>> check_supports(np.array([[0, 1], [-1, -1]]), (1, 2))
        Traceback (most recent call last):
        ...
        ValueError: a local feature has an empty support: its relevance would reach no pixel
    """
    if not jnp.issubdtype(supports.dtype, jnp.integer):
        raise ValueError(f"supports must be integers, got {supports.dtype}")
    if not (_check.concrete(supports) and _check.concrete(needed)):
        return
    positions = np.asarray(supports)
    if (positions >= shape[0] * shape[1]).any() or (positions < -1).any():
        raise ValueError(f"supports point outside of images of shape {tuple(shape)}")
    if ((positions < 0).all(-1) & np.asarray(needed)).any():
        raise ValueError("a local feature has an empty support: its relevance would reach no pixel")


def local_features(extractors: Patches | Sequence[Patches], images: Array) -> LocalFeatures:
    """Local features of a batch of images, those of several extractors one after the other.

    Args:
        extractors: one or several `Patches`, e.g. of several sizes, with descriptors of equal length.
        images: (N, H, W) or (N, H, W, colours), floating.

    Returns:
        LocalFeatures with descriptors of the images' dtype.

    Raises:
        ValueError: if images are empty, not of one of these shapes, not floating or not finite, if a patch
            does not fit, or if descriptors of several extractors differ in length.

    Example:
        >>> images = jnp.ones((5, 8, 8))
        >>> several = local_features([Patches(4, cells=2), Patches(8, cells=2)], images)
        >>> several.descriptors.shape, several.supports.shape
        ((5, 26, 4), (26, 64))
    """
    extractors = (extractors,) if isinstance(extractors, Patches) else tuple(extractors)
    if images.ndim == 3:
        images = images[..., None]
    _check.dims("images", images, "(N, H, W, colours)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating, got {images.dtype}")
    _check.finite("images", images)
    described = [_describe(extractor, images) for extractor in extractors]
    lengths = {descriptors.shape[2] for descriptors in described}
    if len(lengths) > 1:
        raise ValueError(f"descriptors of one vocabulary must be equally long, got lengths {sorted(lengths)}")
    shape = (int(images.shape[1]), int(images.shape[2]))
    supports = stack_supports([row for extractor in extractors for row in extractor.supports(shape)])
    return LocalFeatures(jnp.concatenate(described, 1), supports, shape)


@partial(jax.jit, static_argnums=0)
def _describe(extractor: Patches, images: Array) -> Array:
    return extractor.describe(images)


def stack_supports(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of pixel positions of unequal length as one int32 array (L, A), filled up with -1.

    Example:
        >>> stack_supports([np.array([3, 4]), np.array([5])]).tolist()
        [[3, 4], [5, -1]]
    """
    stacked = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, np.int32)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


def supports_from_boxes(boxes, shape: tuple[int, int]) -> np.ndarray:
    """Supports of rectangular features, e.g. of key points with a scale; cut off at the image's border.

    Args:
        boxes: (..., L, 4) integers: top, left, height, width in pixels.
        shape: (H, W) of the images.

    Returns:
        (..., L, A) int32, filled up with -1.

    Example:
        >>> supports_from_boxes([[0, 0, 1, 2], [1, 2, 9, 9]], (2, 3)).tolist()
        [[0, 1], [5, -1]]
    """
    boxes = np.asarray(boxes)
    if boxes.ndim < 2 or boxes.shape[-1] != 4 or not np.issubdtype(boxes.dtype, np.integer):
        raise ValueError(f"boxes must be integers of shape (..., L, 4), got {boxes.dtype} {boxes.shape}")
    pixels = np.arange(shape[0] * shape[1]).reshape(shape)
    rows = [
        pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)].ravel()
        for top, left, height, width in boxes.reshape(-1, 4)
    ]
    return stack_supports(rows).reshape(*boxes.shape[:-1], -1)


def supports_from_masks(masks) -> np.ndarray:
    """Supports of features of any form, from boolean masks (..., L, H, W): an int32 array (..., L, A).

    Example:
        >>> supports_from_masks(np.array([[[True, False], [True, True]]])).tolist()
        [[0, 2, 3]]
    """
    masks = np.asarray(masks)
    if masks.ndim < 3 or masks.dtype != bool:
        raise ValueError(f"masks must be boolean of shape (..., L, H, W), got {masks.dtype} {masks.shape}")
    flat = masks.reshape(-1, masks.shape[-2] * masks.shape[-1])
    return stack_supports([np.flatnonzero(mask) for mask in flat]).reshape(*masks.shape[:-2], -1)


class Mapping(Protocol):
    """A mapping of local features to words: any pytree with these two members, e.g. one of your own.

    (`jax.tree_util.register_static` makes a pytree of a class without arrays.)

    Example:
        >>> class Every:
        ...     nearest = None
        ...     def weights(self, squared_distances):
        ...         return jnp.ones_like(squared_distances)
        ...
        >>> map_to_words(jnp.zeros((1, 1, 2)), jnp.eye(2), jax.tree_util.register_static(Every)()).tolist()
        [[[1.0, 1.0]]]
    """

    @property
    def nearest(self) -> int | None:
        """How many of the nearest words get a weight; None: all."""
        ...

    def weights(self, squared_distances: Array) -> Array:
        """Weights >= 0 from squared distances (..., words): in ascending order if `nearest` is not None."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hard:
    """Hard mapping: m_(d)(l) = 1 for the nearest word d, 0 for every other; a tie goes to the first.

    Example:
        >>> map_to_words(jnp.array([[[0.4]]]), jnp.array([[0.0], [1.0]]), Hard()).tolist()
        [[[1.0, 0.0]]]
    """

    nearest = 1

    def weights(self, squared_distances: Array) -> Array:
        """1 for the only word looked at."""
        return jnp.ones_like(squared_distances)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Soft:
    """Soft, distance-based mapping: m_(d)(l) = exp(-beta |l - d|^2) / sum_d' exp(-beta |l - d'|^2).

    Attributes:
        beta: inverse squared width, above 0; in units of 1 / descriptor^2.
        nearest: None for all words, or how many of the nearest ones share the feature (the sum then runs
            over these).

    Example:
        >>> import numpy as np
        >>> print(np.asarray(map_to_words(jnp.array([[[0.4]]]), jnp.array([[0.0], [1.0]]), Soft(beta=5.0))).round(2))
        [[[0.73 0.27]]]
    """

    beta: float | Array
    nearest: int | None = field(default=None, metadata={"static": True})

    def weights(self, squared_distances: Array) -> Array:
        """Softmax of -beta times the squared distances."""
        _check.positive_number("beta", self.beta)
        return jax.nn.softmax(-self.beta * squared_distances, axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rank:
    """Rank-limited mapping: m_(d)(l) = base^(-r) for the r-th nearest word d of l, r = 1 .. nearest, else 0.

    Only the order of the distances counts, so the mapping needs no width.

    Attributes:
        nearest: how many words get a weight.
        base: above 1; how fast the weights fall.

    Example:
        >>> import numpy as np
        >>> print(np.asarray(map_to_words(jnp.array([[[0.4]]]), jnp.array([[0.0], [1.0]]), Rank(nearest=2))).round(2))
        [[[0.42 0.17]]]
    """

    nearest: int = field(default=8, metadata={"static": True})
    base: float | Array = 2.4

    def weights(self, squared_distances: Array) -> Array:
        """base^-1, base^-2, ... in the order of the words' nearness."""
        if _check.concrete(self.base) and not self.base > 1:
            raise ValueError(f"base must be above 1, got {self.base}")
        ranks = jnp.arange(1, squared_distances.shape[-1] + 1, dtype=squared_distances.dtype)
        return jnp.broadcast_to(self.base**-ranks, squared_distances.shape)


def map_to_words(descriptors: Array, vocabulary: Array, mapping: Mapping) -> Array:
    """Weights m_(d)(l) with which local features belong to visual words.

    Args:
        descriptors: (..., L, F), floating.
        vocabulary: (D, F), the words' centres, of the same dtype.
        mapping: `Hard()`, `Soft(beta)`, `Rank()` or an object with the members of `Mapping`.

    Returns:
        (..., L, D), non-negative.

    Raises:
        ValueError: if descriptors and words differ in length, or `nearest` is not in 1 .. D.

    Example:
        >>> words = jnp.array([[0.0], [1.0], [3.0]])
        >>> map_to_words(jnp.array([[0.9]]), words, Hard()).tolist()
        [[0.0, 1.0, 0.0]]
        >>> map_to_words(jnp.array([[0.9]]), words, Rank(nearest=2, base=2.0)).tolist()
        [[0.25, 0.5, 0.0]]
    """
    _check.dims("vocabulary", vocabulary, "(D, F)")
    if descriptors.shape[-1] != vocabulary.shape[1]:
        raise ValueError(
            f"descriptors of length {descriptors.shape[-1]} do not match "
            f"words of length {vocabulary.shape[1]}"
        )
    if mapping.nearest is not None and not 1 <= mapping.nearest <= len(vocabulary):
        raise ValueError(f"nearest={mapping.nearest} must be in 1 .. {len(vocabulary)}, the number of words")
    products = jnp.einsum("...lf,df->...ld", descriptors, vocabulary, precision=lax.Precision.HIGHEST)
    lengths = jnp.sum(descriptors**2, -1)[..., None] + jnp.sum(vocabulary**2, -1)
    squared_distances = jnp.maximum(lengths - 2 * products, 0)
    if mapping.nearest is None:
        return mapping.weights(squared_distances)
    negative, words = lax.top_k(-squared_distances, mapping.nearest)
    return jnp.put_along_axis(
        jnp.zeros_like(squared_distances), words, mapping.weights(-negative), axis=-1, inplace=False
    )


def check_p(p: float) -> None:
    """Raise ValueError unless the exponent of the pooling is a number >= 1 (infinity included).

    Example:
        >>> check_p(0.5)
        Traceback (most recent call last):
        ...
        ValueError: p must be a number >= 1 (1: mean, inf: maximum), got 0.5
    """
    if not p >= 1:
        raise ValueError(f"p must be a number >= 1 (1: mean, inf: maximum), got {p}")


def pool(mapped: Array, p: float = 1.0, valid: Array | None = None) -> Array:
    """Histogram of words by p-means pooling: x_(d) = (1/M sum_l m_(d)(l)^p)^(1/p) (Bach et al. 2015).

    p = 1, called sum pooling in the paper, is thus the mean: the sum divided by M; p = inf is the maximum.

    Args:
        mapped: (N, L, D), the weights m_(d)(l) >= 0.
        p: exponent >= 1.
        valid: (N, L) bool or None; features marked False are left out, and M counts the others.

    Returns:
        (N, D).

    Raises:
        ValueError: for p < 1, or a negative or non-finite weight.

    Example:
        >>> weights = jnp.array([[[3.0, 0.0], [4.0, 0.0]]])
        >>> [round(float(pool(weights, p)[0, 0]), 4) for p in (1.0, 2.0, float("inf"))]
        [3.5, 3.5355, 4.0]
    """
    check_p(p)
    _check.dims("mapped", mapped, "(N, L, D)")
    _check.finite("mapped", mapped)
    _check.non_negative("mapped", mapped, "a local feature belongs to a word with a weight >= 0")
    mapped, count = _valid_only(mapped, valid)
    top = mapped.max(1)
    if p == np.inf:
        return top
    # Divided by the largest weight, the powers neither overflow nor vanish together, whatever p.
    present = top > 0
    relative = mapped / jnp.where(present, top, 1)[:, None]
    mean = jnp.sum(relative**p, 1) / count
    return top * jnp.where(present, mean, 1) ** (1 / p)


def _valid_only(mapped: Array, valid: Array | None) -> tuple[Array, Array | float]:
    """`mapped` with the weights of invalid features set to 0, and M, the number of valid ones."""
    if valid is None:
        return mapped, float(mapped.shape[1])
    count = jnp.sum(valid, 1, dtype=mapped.dtype)[:, None]
    return jnp.where(valid[..., None], mapped, 0), jnp.maximum(count, 1)


def pooling_shares(mapped: Array, p: float, valid: Array | None = None) -> Array:
    """The share of each local feature in each word's relevance; the shares of a word sum to 1.

    m_(d)(l)^p / sum_l' m_(d)(l')^p; for max pooling the features with the maximal weight, in equal parts; for
    the words Z(x) = {d: m_(d)(l) = 0 for all l} that no feature supports, 1/M (Bach et al. 2015, sum and
    p-means pooling).

    Args:
        mapped, p, valid: as for `pool`.

    Returns:
        (N, L, D).

    Raises:
        ValueError: for p < 1.

    Example:
        >>> weights = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])
        >>> pooling_shares(weights, 1.0).tolist()
        [[[0.25, 0.5], [0.75, 0.5]]]
    """
    check_p(p)
    mapped, count = _valid_only(mapped, valid)
    top = mapped.max(1, keepdims=True)
    present = top > 0
    if p == np.inf:
        power = (mapped == top).astype(mapped.dtype)
    else:
        power = (mapped / jnp.where(present, top, 1)) ** p
    total = jnp.where(present, power.sum(1, keepdims=True), 1)
    fill = jnp.ones(mapped.shape[:2], mapped.dtype) if valid is None else valid.astype(mapped.dtype)
    equal = fill / count
    return jnp.where(present, power / total, equal[..., None])


def vocabulary(descriptors, words: int, *, seed: int = 0, at_most: int = 50_000) -> Array:
    """Visual words: the k-means centres (scikit-learn) of a sample of descriptors.

    Args:
        descriptors: (..., F); all leading axes are taken as one list.
        words: D, how many words.
        seed: of the sample and of k-means.
        at_most: how many descriptors, drawn without replacement, k-means sees.

    Returns:
        (D, F), of the descriptors' dtype.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if there are fewer different descriptors than words, or non-finite ones.

    Example:
        >>> centres = vocabulary(np.array([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> [round(float(centre), 3) for centre in sorted(centres[:, 0])]
        [0.05, 5.05]
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError('lrpjax.bow.vocabulary needs scikit-learn: pip install "lrpjax[bow]"') from error
    descriptors = np.asarray(descriptors)
    _check.finite("descriptors", descriptors)
    rows = descriptors.reshape(-1, descriptors.shape[-1])
    if len(rows) > at_most:
        rows = rows[np.random.default_rng(seed).choice(len(rows), at_most, replace=False)]
    distinct = len(np.unique(rows, axis=0))
    if not 1 <= words <= distinct:
        raise ValueError(f"words={words} must be in 1 .. {distinct}, the number of different descriptors")
    centres = KMeans(words, n_init="auto", random_state=seed).fit(rows).cluster_centers_
    return jnp.asarray(centres.astype(rows.dtype))
