"""Local features of `lrpjax.bow` and their supports, against loops, to 1e-10 in float64."""

import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrpjax import bow

close = functools.partial(helpers.close, tolerance=1e-10)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size,stride,cells", [(3, 2, None), (4, 1, 2), (2, 3, 1), (5, 1, None)])
@pytest.mark.parametrize("colours", [None, 3])
def test_raw_patches(size, stride, cells, colours):
    shape = (2, 7, 6) if colours is None else (2, 7, 6, colours)
    images = rng().random(shape)
    found = bow.local_features(bow.Patches(size, stride, cells=cells), jnp.asarray(images))
    images = images.reshape(2, 7, 6, -1)
    cells = cells or size
    width = size // cells
    index = 0
    for top in range(0, 7 - size + 1, stride):
        for left in range(0, 6 - size + 1, stride):
            pixels = [(top + i) * 6 + left + j for i in range(size) for j in range(size)]
            assert found.supports[index].tolist() == pixels
            for n in range(2):
                expected = []
                for i in range(cells):
                    for j in range(cells):
                        for colour in range(images.shape[3]):
                            cell = [
                                images[n, top + i * width + di, left + j * width + dj, colour]
                                for di in range(width)
                                for dj in range(width)
                            ]
                            expected.append(sum(cell) / len(cell))
                close(found.descriptors[n, index], expected)
            index += 1
    assert found.descriptors.shape[1] == index == len(found.supports)


def loop_gradient_histogram(patch, cells, bins):
    size = len(patch)

    def difference(line, i):
        if i == 0:
            return line[1] - line[0]
        if i == size - 1:
            return line[-1] - line[-2]
        return (line[i + 1] - line[i - 1]) / 2

    width = size // cells
    histogram = np.zeros((cells, cells, bins))
    for i in range(size):
        for j in range(size):
            dy, dx = difference(patch[:, j], i), difference(patch[i], j)
            position = math.atan2(dy, dx) / (2 * math.pi) % 1 * bins
            low = math.floor(position)
            magnitude = math.hypot(dx, dy) / width**2
            histogram[i // width, j // width, low % bins] += magnitude * (1 - (position - low))
            histogram[i // width, j // width, (low + 1) % bins] += magnitude * (position - low)
    return histogram.ravel() / math.sqrt((histogram**2).sum() + 0.01**2)


@pytest.mark.parametrize("size,cells,bins", [(4, 2, 8), (6, 3, 5), (2, 1, 3), (3, 1, 1)])
def test_gradient_histograms(size, cells, bins):
    images = rng().random((2, 8, 8))
    images[1, :4] = 0.5  # flat pixels, without an orientation
    patches = bow.Patches(size, 2, kind="gradient", cells=cells, bins=bins)
    found = bow.local_features(patches, jnp.asarray(images))
    for n in range(2):
        for pixels, descriptor in zip(found.supports, found.descriptors[n], strict=True):
            patch = images[n].ravel()[pixels].reshape(size, size)
            expected = loop_gradient_histogram(patch, cells, bins)
            if bins == 1:  # with one bin both neighbours are the same bin, at distances f and 1 - f
                assert np.isfinite(np.asarray(descriptor)).all()
            else:
                close(descriptor, expected)


@pytest.mark.parametrize("kind", ["raw", "gradient"])
def test_a_descriptor_depends_on_its_support_and_on_nothing_else(kind):
    image = jnp.asarray(rng().random((1, 6, 7)))
    patches = bow.Patches(4, 2, kind=kind)
    describe = lambda pixels: bow.local_features(patches, pixels.reshape(1, 6, 7)).descriptors[0]
    influence = np.abs(np.asarray(jax.jacobian(describe)(image.ravel()))).sum(1) > 0
    for pixels, row in zip(patches.supports((6, 7)), influence, strict=True):
        assert set(np.flatnonzero(row)) == set(pixels)


def test_gradient_histograms_of_flat_images_have_finite_derivatives():
    describe = lambda image: bow.local_features(bow.Patches(2, kind="gradient"), image).descriptors.sum()
    assert np.isfinite(np.asarray(jax.grad(describe)(jnp.ones((1, 3, 3))))).all()


def test_several_scales_side_by_side():
    images = jnp.asarray(rng().random((2, 6, 6)))
    small, large = bow.Patches(2, 2, cells=2), bow.Patches(4, 1, cells=2)
    both, first, second = (bow.local_features(e, images) for e in ([small, large], small, large))
    close(both.descriptors, np.concatenate([first.descriptors, second.descriptors], 1))
    assert both.supports.shape == (9 + 9, 16)
    assert (both.supports[:9, 4:] == -1).all() and (both.supports[9:] == second.supports).all()


def test_supports_of_boxes_and_masks_agree():
    boxes = np.array([[0, 1, 2, 2], [-1, 3, 3, 9], [2, 0, 1, 1]])
    masks = np.zeros((3, 4, 5), bool)
    masks[0, 0:2, 1:3] = masks[1, 0:2, 3:5] = masks[2, 2, 0] = True
    assert (bow.supports_from_boxes(boxes, (4, 5)) == bow.supports_from_masks(masks)).all()
    per_image = bow.supports_from_boxes(np.stack([boxes, boxes[::-1]]), (4, 5))
    assert per_image.shape == (2, 3, 4) and (per_image[0] == per_image[1, ::-1]).all()
