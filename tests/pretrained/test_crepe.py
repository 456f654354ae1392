"""CREPE against the original in torch, whose outputs are stored."""

import pathlib

import flax.traverse_util
import jax
import numpy as np
import pytest

from lrpjax import pretrained
from lrpjax.pretrained import pitch

STORED = np.load(pathlib.Path(__file__).parent.parent / "references" / "pretrained.npz")


# The large one takes half a minute in float64.
DTYPES = {"tiny": np.float64, "full": np.float32}


@pytest.fixture(scope="module", params=pitch.WIDTHS)
def network(request):
    try:
        return request.param, pretrained.crepe(request.param, DTYPES[request.param])
    except ImportError as error:
        pytest.skip(str(error))


def test_outputs_are_the_original_s(network):
    name, network = network
    x = pretrained.frames(STORED["crepe_audio"], 341, DTYPES[name])
    outputs = jax.nn.sigmoid(jax.jit(network.apply)(network.params, x))
    np.testing.assert_allclose(outputs, STORED[f"crepe_{name}"], rtol=0, atol=1e-5)
    heard = pretrained.pitches()[np.asarray(outputs).argmax(1)]
    np.testing.assert_allclose(
        heard, [251, 284, 317, 349], rtol=0.08
    )  # the glide, in the middle of each frame


def test_every_weight_has_its_place_and_its_type(network):
    name, network = network
    x = jax.ShapeDtypeStruct((1, 1024), np.float32)
    module = pitch.Crepe(pitch.WIDTHS[name])
    wanted = flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x))
    given = flax.traverse_util.flatten_dict(network.params)
    assert {key: leaf.shape for key, leaf in given.items()} == {
        key: leaf.shape for key, leaf in wanted.items()
    }
    assert {leaf.dtype for leaf in given.values()} == {np.dtype(DTYPES[name])}
    assert network.labels[228] == "441.5 Hz" and len(network.labels) == 360


def test_frames_are_cut_and_normalised():
    audio = np.sin(np.arange(4096) / 7.0) * 3 + 1
    cut = pretrained.frames(audio, hop=1000, dtype=np.float64)
    assert cut.shape == (4, 1024)
    np.testing.assert_allclose(cut.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(cut.std(1, ddof=1), 1)
    np.testing.assert_allclose(np.corrcoef(cut[2], audio[2000:3024])[0, 1], 1)
    assert not pretrained.frames(np.zeros(1024)).any()


@pytest.mark.parametrize("shape", [(1023,), (2, 4096)])
def test_what_is_no_sound_is_an_error(shape):
    with pytest.raises(ValueError, match="one row of at least 1024 samples"):
        pretrained.frames(np.zeros(shape))
