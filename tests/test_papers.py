"""The common parts of tests/papers: an interval by hand, and a finding that holds only where differences are beyond it; rollout."""

import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

FOLDER = pathlib.Path(__file__).parent / "papers"


def load(name):
    spec = importlib.util.spec_from_file_location(f"papers_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def common():
    return load("common")


@pytest.fixture(scope="module")
def achtibat():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # its neighbours are imported by their names
        return load("achtibat")


def test_an_interval_is_that_of_student(common):
    mean, half = common.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / np.sqrt(3)], rtol=1e-6)


def test_above_means_beyond_the_interval_of_paired_differences(common):
    first = {"clear": [2.0, 3.0, 4.0], "unclear": [2.0, 3.0, 9.0], "below": [0.0, 1.0, 2.0]}
    second = {"clear": [1.0, 2.0, 3.1], "unclear": [1.0, 3.5, 1.0], "below": [1.0, 2.0, 3.1]}
    assert common.always_above(first, second) == [True, False, False]


def test_a_page_has_its_settings_intervals_and_findings(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.write("page", "Title", "Two seeds.", ["a"], {"LRP": {"a": [1.0, 1.0]}}, ["It holds."])
    text = (tmp_path / "page.md").read_text()
    assert "| LRP | 1.00 ± 0.00 |" in text and "Two seeds." in text and text.endswith("- It holds.\n")


def test_rollout_is_the_product_of_attention_and_skip_connections(achtibat):
    first, second = np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    whole = (np.eye(2) + second) @ (np.eye(2) + first)
    for read in np.eye(2):
        rolled = achtibat.rollout([jnp.asarray(first[None]), jnp.asarray(second[None])], jnp.asarray(read))
        np.testing.assert_allclose(rolled[0], read @ whole)


def test_attention_is_that_of_the_network_and_so_is_its_gradient(achtibat, monkeypatch):
    """Against the derivative by what is added to the weights inside the network, of one layer after the other."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + achtibat.Attention(name="attention")(x)

    network, x = (
        nn.Sequential([Layer(), Layer()]),
        jnp.asarray(np.arange(288.0).reshape(2, 3, -1) % 7 / 7, "f4"),
    )
    f, classes = Partial(network.apply, jax.jit(network.init)(jax.random.key(1), x)), jnp.array([3, 7])
    softmax, seen = jax.nn.softmax, []

    def score(shifts):
        left = list(shifts)
        monkeypatch.setattr(nn, "softmax", lambda s: seen.append(softmax(s)) or seen[-1] + left.pop(0))
        y = f(x).sum(1)
        monkeypatch.undo()
        return y[jnp.arange(2), classes].sum(), seen

    shifts = [jnp.zeros((2, achtibat.HEADS, 3, 3), "f4")] * 2
    expected, weights = jax.jit(jax.grad(score, has_aux=True))(shifts)
    found = jax.jit(lambda x: achtibat.attention_of(lambda x: f(x).sum(1), x, classes, achtibat.HEADS))(x)
    for (own, gradient), true, by in zip(found, weights, expected, strict=True):
        np.testing.assert_allclose(own, true, atol=1e-5)
        np.testing.assert_allclose(gradient, by, atol=1e-5 * float(abs(by).max()))
