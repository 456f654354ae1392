"""The sentence transformer against the original in torch, whose tokens and vectors are stored."""

import pathlib

import flax.traverse_util
import jax
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, pretrained
from lrpjax.pretrained import bert

STORED = np.load(pathlib.Path(__file__).parent.parent / "references" / "pretrained.npz")
SENTENCES = STORED["minilm_sentences"].tolist()


@pytest.fixture(scope="module")
def network():
    try:
        return pretrained.minilm(np.float64)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def apply(network):
    return jax.jit(network.apply)


def test_tokens_are_the_original_s(network):
    tokens = network.tokens(SENTENCES)
    np.testing.assert_array_equal(tokens.ids, STORED["minilm_ids"])
    assert tokens.pieces[1] == ("[CLS]", "a", "kitten", "nap", "##s", ".", "[SEP]")
    assert [len(pieces) for pieces in tokens.pieces] == tokens.mask.sum(1).tolist()


def test_vectors_are_the_original_s(network, apply):
    tokens = network.tokens(SENTENCES)
    vectors = np.asarray(apply(network.params, network.embed(tokens.ids), tokens.mask))
    np.testing.assert_allclose(vectors, STORED["minilm_vectors"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_padding_changes_nothing(network, apply):
    tokens = network.tokens(SENTENCES)
    padded = apply(network.params, network.embed(tokens.ids), tokens.mask)[1]
    np.testing.assert_allclose(network(network.sentence(SENTENCES[1]))[0], padded, rtol=0, atol=1e-12)


def test_like_meanings_are_alike(network):
    cat, kitten = (network(network.sentence(text))[0] for text in ("A cat.", "A kitten."))
    assert round(float(cat @ kitten), 2) == 0.79  # as the docstring says


def test_every_weight_has_its_place_and_its_type(network):
    x = jax.ShapeDtypeStruct((1, 8, 384), np.float32)
    wanted = flax.traverse_util.flatten_dict(jax.eval_shape(bert.MiniLM().init, jax.random.key(0), x))
    given = flax.traverse_util.flatten_dict(network.params)
    assert {key: leaf.shape for key, leaf in given.items()} == {
        key: leaf.shape for key, leaf in wanted.items()
    }
    assert {leaf.dtype for leaf in given.values()} == {network.table.dtype} == {np.dtype(np.float64)}


def test_long_sentences(network):
    assert network.tokens("word " * 500).ids.shape == (1, 256)
    with pytest.raises(ValueError, match="at most 512 tokens; this one has 513"):
        network(np.zeros((1, 513, 384)))


def test_relevance_names_the_layers(network):
    x = network.sentence("A cat.")
    text = str(lrpjax.plan(network, composites.attnlrp(), x))
    assert all(f"layer{n}/attention/query" in text for n in range(6))
