"""PRCA and DRSA against planted relevance, random subspaces and conservation; contexts against `linearise` by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import composites, concepts, explore
from lrpjax.explore import ExploreError


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_the_planted_subspace_is_found(rng):
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    shared = rng.normal(size=(4000, 2)) * [3.0, 2.0]
    a = shared @ basis[:, :2].T + rng.normal(size=(4000, 6)) @ basis[:, 2:].T
    c = shared @ basis[:, :2].T + rng.normal(size=(4000, 6)) @ basis[:, 2:].T
    U = explore.prca(a, c, 2)
    close(U.T @ U, np.eye(2))
    assert np.linalg.svd(U.T @ basis[:, :2])[1].min() > 0.99
    kept = lambda U: ((a @ U) * (c @ U)).sum(1).mean()
    others = [kept(np.linalg.qr(rng.normal(size=(8, 2)))[0]) for _ in range(50)]
    assert kept(U) > max(others)


def test_all_directions_conserve(rng):
    a, c = rng.normal(size=(2, 30, 5))
    U = explore.prca(a, c, 5)
    close(((a @ U) * (c @ U)).sum(1), (a * c).sum(1))


def test_what_does_not_fit(rng):
    a = rng.normal(size=(6, 3))
    with pytest.raises(ExploreError, match=r"both \[N, D\]"):
        explore.prca(a, a[:2], 1)
    with pytest.raises(ExploreError, match="k is a number of directions"):
        explore.prca(a, a, 4)
    a[2, 1] = np.inf
    with pytest.raises(ExploreError, match="rows 2 are not finite"):
        explore.prca(a, a, 1)


def layered(rng):
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    return lambda x: jnp.tanh(lrpjax.tag(jnp.maximum(x @ w, 0), "h")).sum((1, 2)) @ v


@pytest.mark.parametrize("per_sample", [None, 4])
def test_contexts_are_those_of_linearise(rng, per_sample):
    f, x, exact = layered(rng), jnp.asarray(rng.normal(size=(11, 3, 5, 4))), composites.epsilon(0.0)
    target = jnp.asarray(rng.integers(0, 3, 11))
    batches = [(x[i : i + 4], target[i : i + 4]) for i in range(0, 11, 4)]
    found = explore.contexts(f, exact, batches, at="h", per_sample=per_sample, seed=3)
    lin = lrpjax.linearise(f, exact, x, at="h")
    a, c = lin.values["h"].reshape(11, 15, 6), lin.coefficients(target)["h"].reshape(11, 15, 6)
    each = per_sample or 15
    assert found.sample.tolist() == np.repeat(np.arange(11), each).tolist()
    places = found.position.reshape(11, each)
    assert all(len(set(p)) == each and set(p) <= set(range(15)) for p in places.tolist())
    assert per_sample is None or len({tuple(p) for p in places.tolist()}) > 5
    close(found.activations, a[found.sample, found.position])
    close(found.contexts, c[found.sample, found.position])
    close((a * c).reshape(11, 3, 5, 6), lin.pull(target)["h"])
    other = explore.contexts(f, exact, [(x, target)], at="h", per_sample=per_sample, seed=3)
    assert (other.position == found.position).all()
    close(other.contexts, found.contexts)
    if per_sample:
        seeded = explore.contexts(f, exact, batches, at="h", per_sample=per_sample, seed=4)
        assert (seeded.position != found.position).any()


def test_contexts_are_compiled_once(rng):
    traced = []

    def f(x):
        traced.append(x.shape)
        return lrpjax.tag(x * 2.0, "h").sum(2)

    batches = [rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 2, 3)), rng.normal(size=(1, 2, 3))]
    explore.contexts(f, None, batches[:1], at="h")
    once = len(traced)
    explore.contexts(f, None, batches, at="h")
    assert len(traced) == 2 * once


def test_contexts_that_do_not_fit(rng):
    f, x = layered(rng), rng.normal(size=(2, 3, 5, 4))
    run = lambda batches, **kw: explore.contexts(f, None, batches, at="h", **kw)
    with pytest.raises(ExploreError, match="15 positions, fewer than per_sample=16"):
        run([x], per_sample=16)
    with pytest.raises(ExploreError, match="axis 0 cannot count its channels"):
        run([x], channel_axis=0)
    with pytest.raises(ExploreError, match="no batches"):
        run([])
    x[1] = np.nan
    with pytest.raises(ExploreError, match="not finite for samples 3"):
        run([x[:1], x[:1], x])


def planted(rng, D=8, N=1500, noise=0.1):
    """Samples that are in the one or in the other of two subspaces of two directions, with values from the sphere."""
    U = np.linalg.qr(rng.normal(size=(D, 4)))[0].reshape(D, 2, 2).transpose(1, 0, 2)
    angle, mine = rng.uniform(0, 2 * np.pi, N), np.arange(N) % 2
    a = np.einsum("ndk,nk->nd", U[mine], 3 * np.c_[np.cos(angle), np.sin(angle)])
    return U, a + noise * rng.normal(size=(N, D)), a + noise * rng.normal(size=(N, D))


def objective(a, c, U):
    R = np.maximum(np.einsum("nd,kdj,ne,kej->nk", a, U, c, U, optimize=True), 0)
    return np.sqrt(np.sqrt((R**2).mean(0))).mean() ** 2


def split(V, dims):
    return V.reshape(len(V), -1, dims).transpose(1, 0, 2)


def test_planted_subspaces_are_told_apart(rng):
    wanted, a, c = planted(rng)
    found = explore.drsa(a, c, subspaces=2, dims=2)
    flat = found.transpose(1, 0, 2).reshape(8, 4)
    close(flat.T @ flat, np.eye(4))
    cosines = lambda V, W: np.linalg.svd(V.T @ W)[1]
    pairs = [[cosines(U, V).min() for U in wanted] for V in found]
    assert (np.sort(pairs, 1)[:, 1] > 0.999).all() and np.argmax(pairs, 1).tolist() in ([0, 1], [1, 0])
    mixed = split(explore.prca(a, c, 4), 2)
    assert objective(a, c, found) > 1.05 * objective(a, c, mixed)
    close(objective(a, c, found), objective(a, c, wanted), 0.01)
    again = explore.drsa(a, c, subspaces=2, dims=2)
    assert (again == found).all()


@pytest.mark.parametrize("seed", range(4))
def test_never_below_the_split_of_prca(seed):
    a, c = np.random.default_rng(seed).normal(size=(2, 40, 6))
    c += a * [2, 1, 1, 0, 0, -1]
    least = objective(a, c, split(explore.prca(a, c, 6), 2))
    for steps, lr in ((1, 5.0), (60, 0.02)):
        found = explore.drsa(a, c, subspaces=3, dims=2, steps=steps, lr=lr, starts=2, seed=seed)
        assert objective(a, c, found) >= least * (1 - 1e-9)
        R = np.einsum("nd,kdj,ne,kej->nk", a, found, c, found, optimize=True)
        close(R.sum(1), (a * c).sum(1))  # all channels are in a subspace
        assert (np.diff(R.sum(0)) <= 1e-9).all()


def test_subspaces_go_back_into_the_model(rng):
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    f = lambda x: jnp.tanh(lrpjax.tag(x @ w, "h")).sum((1, 2)) @ v  # without zeros
    x, exact = jnp.asarray(rng.normal(size=(30, 3, 5, 4))), composites.epsilon(0.0)
    found = explore.contexts(f, exact, [x], at="h", target=1, per_sample=5)
    U = explore.drsa(found.activations, found.contexts, subspaces=3, dims=2, steps=50)
    g = explore.with_concepts(f, {"h": explore.Subspaces(U)})
    R = concepts.channel_relevance(g, exact, at="h/concepts", target=1)(x)
    whole = explore.contexts(f, exact, [x], at="h", target=1)
    a, c = whole.activations, whole.contexts
    by_hand = np.einsum("nd,kdj,ne,kej->nk", a, U, c, U, optimize=True).reshape(30, 15, 3).sum(1)
    close(R, by_hand)


def test_drsa_that_does_not_fit(rng):
    a = rng.normal(size=(9, 4))
    with pytest.raises(ExploreError, match="3 subspaces of 2 directions do not fit into 4 channels"):
        explore.drsa(a, a, subspaces=3, dims=2)
    with pytest.raises(ExploreError, match="starts is a whole number"):
        explore.drsa(a, a, subspaces=1, dims=2, starts=0)
    with pytest.raises(ExploreError, match="no subspace has positive relevance"):
        explore.drsa(a, -a, subspaces=2, dims=2)
    with pytest.raises(ExploreError, match="lr is a positive"):
        explore.drsa(a, a, subspaces=2, dims=2, lr=0.0)
