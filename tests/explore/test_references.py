"""Reference samples kept in a file: read without computing, and never for another call."""

import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, concepts, explore
from lrpjax.explore import ExploreError

EXACT = composites.epsilon(0.0)


@pytest.fixture
def data():
    rng = np.random.default_rng(2)
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    x = rng.normal(size=(10, 5, 4))
    return network(w, v), [x[:4], x[4:8], x[8:]], (w, v)


def network(w, v):
    return lambda x: jnp.tanh(lrpjax.tag(x @ w, "h")).sum(1) @ v


def forbid(monkeypatch):
    def computed(*args, **kwargs):
        raise AssertionError("it computes")

    monkeypatch.setattr(concepts, "maximising_samples", computed)


@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_the_same_call_reads_what_was_kept(data, tmp_path, monkeypatch, by):
    f, batches, params = data
    file = tmp_path / "h.npz"
    wanted = concepts.maximising_samples(f, EXACT, batches, at="h", by=by, k=3)
    first = explore.reference_samples(f, EXACT, iter(batches), at="h", cache=file, by=by, k=3)
    forbid(monkeypatch)
    again = explore.reference_samples(network(*params), EXACT, iter(batches), at="h", cache=file, by=by, k=3)
    for a, b, c in zip(wanted, first, again, strict=True):
        assert a.dtype == b.dtype == c.dtype and (a == b).all() and (b == c).all()
    assert [p.name for p in tmp_path.iterdir()] == ["h.npz"]


def test_targets_of_batches_count(data, tmp_path, monkeypatch):
    f, batches, _ = data
    pairs = [(x, np.arange(len(x)) % 3) for x in batches]
    wanted = concepts.maximising_samples(f, EXACT, pairs, at="h")
    explore.reference_samples(f, EXACT, pairs, at="h", cache=tmp_path / "h.npz")
    forbid(monkeypatch)
    found = explore.reference_samples(f, EXACT, pairs, at="h", cache=tmp_path / "h.npz")
    assert (found.index == wanted.index).all()
    with pytest.raises(ExploreError, match="the data is other"):
        explore.reference_samples(
            f, EXACT, [(x, (t + 1) % 3) for x, t in pairs], at="h", cache=tmp_path / "h.npz"
        )


def test_another_call_is_told_what_differs(data, tmp_path, monkeypatch):
    f, batches, (w, v) = data
    file = tmp_path / "h.npz"
    explore.reference_samples(f, EXACT, batches, at="h", cache=file)
    before = file.read_bytes()
    forbid(monkeypatch)

    def refused(match, f=f, composite=EXACT, batches=batches, **kw):
        with pytest.raises(ExploreError, match=match):
            explore.reference_samples(f, composite, batches, **({"at": "h", "cache": file} | kw))

    refused("of another call: the model is another", f=network(w, v + 1e-9))
    refused("of another call: the model is another", f=lambda x: jnp.sin(lrpjax.tag(x @ w, "h")).sum(1) @ v)
    refused("of another call: the composite is another", composite=composites.epsilon(0.1))
    refused("by was relevance and is activation", by="activation")
    refused("target was max and is 1", target=1)
    refused("target was max and is ", target=lambda y: y**2)
    refused("pool was sum and is max", pool="max")
    refused("normalise was False and is True", normalise=True)
    refused("the data is other", batches=[batches[0], batches[1], batches[2] + 1e-9])
    refused("the data is other", batches=batches[:2])
    refused(
        r"first batch was float64\[4, 5, 4\] and is float64\[8, 5, 4\]", batches=[np.concatenate(batches[:2])]
    )
    with monkeypatch.context() as later:
        later.setattr("jax.__version__", "99.0")
        refused("jax was .* and is 99.0")
    assert file.read_bytes() == before


def test_files_are_whole_or_not_there(data, tmp_path, monkeypatch):
    f, batches, _ = data
    file = tmp_path / "h.npz"

    def breaking():
        yield batches[0]
        raise RuntimeError("the data ends")

    with pytest.raises(RuntimeError, match="the data ends"):
        explore.reference_samples(f, EXACT, breaking(), at="h", cache=file)
    assert not list(tmp_path.iterdir())
    explore.reference_samples(f, EXACT, batches, at="h", cache=file)
    with pytest.raises(RuntimeError, match="the data ends"):  # and not that the file is damaged
        explore.reference_samples(f, EXACT, breaking(), at="h", cache=file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ExploreError, match="holds no reference samples, or is damaged"):
        explore.reference_samples(f, EXACT, batches, at="h", cache=file)
    forbid(monkeypatch)
    for place in (tmp_path / "h.npy", tmp_path / "nowhere" / "h.npz"):
        with pytest.raises(ExploreError, match="in a folder that exists"):
            explore.reference_samples(f, EXACT, batches, at="h", cache=place)
    with pytest.raises(ExploreError, match="no batches"):
        explore.reference_samples(f, EXACT, [], at="h", cache=tmp_path / "none.npz")
