"""EfficientNet-Lite0 against the original in torch, whose logits are stored, and its way from a photograph."""

import pathlib

import flax.traverse_util
import jax
import numpy as np
import pytest

from lrpjax import pretrained
from lrpjax.pretrained import efficientnet, photos

STORED = np.load(pathlib.Path(__file__).parent.parent / "references" / "pretrained.npz")


@pytest.fixture(scope="module")
def network():
    return pretrained.lite0(np.float64)


def test_logits_are_the_original_s(network):
    pictures = pretrained.photographs()
    x = np.stack([pretrained.photograph(pictures[name], dtype=np.float64) for name in STORED["lite0_names"]])
    logits = np.asarray(jax.jit(network.apply)(network.params, x))
    np.testing.assert_allclose(logits, STORED["lite0_logits"], rtol=0, atol=1e-5)
    top = [network.labels[n] for n in logits.argmax(1)]
    assert top == ["tiger cat", "espresso", "palace"]


def test_every_weight_has_its_place_and_its_type(network):
    zeros = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    wanted = flax.traverse_util.flatten_dict(
        jax.eval_shape(efficientnet.Lite0().init, jax.random.key(0), zeros)
    )
    given = flax.traverse_util.flatten_dict(network.params)
    assert {key: leaf.shape for key, leaf in given.items()} == {
        key: leaf.shape for key, leaf in wanted.items()
    }
    assert {leaf.dtype for leaf in given.values()} == {np.dtype(np.float64)}
    assert {leaf.dtype for leaf in jax.tree.leaves(pretrained.lite0().params)} == {np.dtype(np.float32)}
    parts = {"stem", "head", "classifier", *(f"block{n}" for n in range(16))}
    assert set(network.params["params"]) == parts


def test_float64_needs_x64():
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        pretrained.lite0(np.float64)


def test_labels_are_a_thousand_and_ours_to_index(network):
    assert len(network.labels) == len(set(network.labels)) == 1000
    assert network.labels[0] == "tench" and network.labels[999] == "toilet tissue"


def test_a_photograph_is_cropped_resized_and_normalised():
    # A white square of 64 pixels in the middle of a black picture of 128 × 160: 112 pixels are kept, two for each one.
    picture = np.zeros((128, 160, 3), np.uint8)
    picture[32:96, 48:112] = 255
    small = photos.crop(picture, size=56)
    assert small.shape == (56, 56, 3) and small[28, 28].tolist() == [255] * 3 and not small[:10].any()
    assert abs(small[:, 28, 0].astype(float).sum() / 255 - 32) < 0.5
    x = pretrained.photograph(picture, size=56)
    np.testing.assert_allclose(x, (small.astype(np.float32) - 127) / 128)
    grey = pretrained.photograph(picture[..., 0], size=56)
    np.testing.assert_array_equal(grey, x)


def test_a_photograph_is_bytes(tmp_path):
    with pytest.raises(TypeError, match="uint8, bytes from 0 to 255; this one is float64"):
        pretrained.photograph(np.zeros((8, 8, 3)))


def test_a_photograph_can_be_a_file(tmp_path):
    from PIL import Image

    picture = pretrained.photographs()["cat"]
    Image.fromarray(picture).save(tmp_path / "cat.png")
    np.testing.assert_array_equal(pretrained.photograph(tmp_path / "cat.png"), pretrained.photograph(picture))


def test_photographs_are_in_colour_and_bytes():
    pictures = pretrained.photographs()
    assert {"astronaut", "cat", "coffee", "rocket", "china", "flower"} <= set(pictures)
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 and p.std() > 20 for p in pictures.values())
