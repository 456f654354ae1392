"""Statistics of concepts against NumPy over all samples at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import composites, concepts, explore
from lrpjax.explore import ExploreError

EXACT = composites.epsilon(0.0)


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    f = lambda x: jnp.tanh(lrpjax.tag(x @ w, "h")).sum(1) @ v
    return f, rng.normal(size=(23, 5, 4)), rng.integers(0, 2, 23)


@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_means_variances_and_best_samples(data, by):
    f, x, labels = data
    batches = [(x[i : i + 8], labels[i : i + 8]) for i in range(0, 23, 8)]
    found = explore.concept_statistics(f, EXACT, batches, at="h", classes=3, by=by, k=3)
    if by == "relevance":
        s = concepts.channel_relevance(f, EXACT, at="h", target=jnp.asarray(labels))(jnp.asarray(x))
    else:
        s = lrpjax.linearise(f, EXACT, jnp.asarray(x), at="h").values["h"].sum(1)
    s = np.asarray(s)
    assert found.count.tolist() == [(labels == g).sum() for g in range(3)]
    assert np.isnan(found.mean[2]).all() and (np.asarray(found.samples.index[12:]) == -1).all()
    for g in range(2):
        mine = np.flatnonzero(labels == g)
        close(found.mean[g], s[mine].mean(0))
        close(found.variance[g], s[mine].var(0))
        close(found.share[g], s[mine].mean(0) / np.abs(s[mine].mean(0)).sum())
        order = mine[np.argsort(-s[mine], 0)[:3]].T
        assert (np.asarray(found.samples.index[g * 6 : (g + 1) * 6]) == order).all()


def test_what_does_not_fit(data):
    f, x, labels = data
    run = lambda batches, **kw: explore.concept_statistics(f, EXACT, batches, at="h", **({"classes": 3} | kw))
    with pytest.raises(ExploreError, match="by must be"):
        run([(x, labels)], by="size")
    with pytest.raises(ExploreError, match="no batches"):
        run([])
    with pytest.raises(ExploreError, match=r"classes that are not 0 … 0"):
        run([(x, labels)], classes=1)
    with pytest.raises(ExploreError, match="its classes are"):
        run([(x, labels[:3])])
    with pytest.raises(ExploreError, match="not finite"):
        run([(np.full_like(x, np.nan), labels)])
