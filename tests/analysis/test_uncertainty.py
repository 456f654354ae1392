"""Relevance over ensembles: moments and quantiles are NumPy's over a loop, and covariances sum to the variance of the logit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, uncertainty
from lrpjax.analysis.bilrp import RegionError
from lrpjax.errors import PathError

RNG = np.random.default_rng(0)
MEMBERS = 7
X = RNG.normal(size=(3, 6))
PARAMS = {
    "inner": RNG.normal(size=(MEMBERS, 6, 8)) / 2,
    "head": [RNG.normal(size=(MEMBERS, 8, 4)) / 2],
}
EXACT = composites.epsilon(0.0)
LABELS = np.array([0, 0, 1, 2, 2, 1])
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


def net(params, x):
    hidden = lrpjax.tag(jax.nn.relu(x @ params["inner"]), "hidden")
    return hidden @ params["head"][0]


def member(m, params=PARAMS):
    return jax.tree.map(lambda v: v[m], params)


@functools.cache
def loop(composite=None, target=2):
    """R [M, B, D] of each member by itself, and its logits [M, B]."""
    explain = [
        lrpjax.relevance(functools.partial(net, member(m)), composite, target=target) for m in range(MEMBERS)
    ]
    return np.stack([e(X) for e in explain]), np.stack([net(member(m), X)[:, target] for m in range(MEMBERS)])


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_moments_are_those_of_a_loop(batch):
    u = uncertainty.ensemble(net, None, PARAMS, target=2, batch=batch)(X)
    R, logits = loop()
    close(u.mean, R.mean(0))
    close(u.std, R.std(0))
    close(u.positive, (R > 0).mean(0))
    close(u.score_mean, logits.mean(0))
    close(u.score_variance, logits.var(0))
    for n in range(len(X)):
        for i in range(6):
            close(u.marginal[n, i], np.cov(R[:, n, i], R[:, n].sum(-1), ddof=0)[0, 1])
    assert u.quantiles is None and u.covariance is None and u.relevances is None


@pytest.mark.parametrize("batch", [2, 8])
def test_the_covariance_is_numpys_and_its_forms_follow_from_it(batch):
    u = uncertainty.ensemble(net, None, PARAMS, target=2, covariance=True, batch=batch)(X)
    R, _ = loop()
    for n in range(len(X)):
        close(u.covariance[n], np.cov(R[:, n].T, ddof=0))
    close(jnp.diagonal(u.covariance, axis1=1, axis2=2), u.std**2)
    close(u.covariance.sum(-1), u.marginal)


def test_covariances_sum_to_the_variance_of_the_logit():
    """Without biases and stabilisers Σ R = f(x) for each member, and so Σ Cov = Var f(x)."""
    u = uncertainty.ensemble(net, EXACT, PARAMS, target=2, covariance=True, batch=3)(X)
    variance = loop(EXACT)[1].var(0)
    close(u.covariance.sum((-2, -1)), variance)
    close(u.marginal.sum(-1), variance)
    close(u.score_variance, variance)
    close(u.mean.sum(-1), u.score_mean)


def test_two_members_by_hand():
    members = np.array([[1.0, 0.0, 2.0], [3.0, -2.0, 2.0]])  # R = w at x = 1
    u = uncertainty.ensemble(lambda w, x: x @ w, EXACT, members, covariance=True)(np.ones((1, 3)))
    close(u.mean, [[2.0, -1.0, 2.0]])
    close(u.std, [[1.0, 1.0, 0.0]])
    close(u.covariance, [[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    close(u.marginal, [[0.0, 0.0, 0.0]])  # both predict 3: what the features differ in cancels
    close(u.positive, [[1.0, 0.0, 1.0]])
    close(u.score_variance, [0.0])


def test_regions_are_summed_before_the_covariance():
    R, _ = loop()
    pooled = np.stack([R[..., p == LABELS].sum(-1) for p in range(3)], -1)
    for labels in (LABELS, lambda shape: np.arange(shape[0]) // 2):
        u = uncertainty.ensemble(net, None, PARAMS, target=2, regions=labels)(X)
        assert u.covariance.shape == (3, 3, 3)
        close(u.covariance.sum((1, 2)), u.marginal.sum(-1))
    u = uncertainty.ensemble(net, None, PARAMS, target=2, regions=LABELS)(X)
    for n in range(len(X)):
        close(u.covariance[n], np.cov(pooled[:, n].T, ddof=0))


def test_quantiles_are_numpys():
    levels = (0.05, 0.5, 0.95)
    u = uncertainty.ensemble(net, None, PARAMS, target=2, quantiles=levels, keep=True, batch=3)(X)
    R, _ = loop()
    close(u.relevances, R)
    close(u.quantiles, np.quantile(R, levels, axis=0))
    assert uncertainty.ensemble(net, None, PARAMS, target=2, quantiles=[0.5])(X).relevances is None


def test_a_quantile_is_positive_where_enough_members_agree():
    """The n-th smallest of M is positive if and only if at most n − 1 members find the feature not so."""
    levels = np.arange(MEMBERS) / (MEMBERS - 1)  # those at which quantiles are members' own values
    u = uncertainty.ensemble(net, None, PARAMS, target=2, quantiles=levels)(X)
    for n, heatmap in enumerate(u.quantiles):
        np.testing.assert_array_equal(heatmap > 0, np.asarray(u.positive) * MEMBERS > MEMBERS - n - 0.5)


def test_a_single_example_has_one_covariance():
    options = {"target": 2, "covariance": True}
    many = uncertainty.ensemble(net, None, PARAMS, **options)(X)
    one = uncertainty.ensemble(net, None, PARAMS, batched=False, **options)(X[1])
    assert one.covariance.shape == (6, 6) and one.score_mean.shape == ()
    for key in ("mean", "std", "marginal", "positive", "score_mean", "score_variance", "covariance"):
        close(getattr(one, key), getattr(many, key)[1])


def test_jit_and_vmap_agree():
    options = {"target": 2, "covariance": True, "quantiles": (0.1, 0.9), "batch": 3}
    explain = uncertainty.ensemble(net, None, PARAMS, **options)
    single = uncertainty.ensemble(net, None, PARAMS, batched=False, **options)
    plain = explain(X)
    jax.tree.map(close, jax.jit(explain)(X), plain)
    mapped = jax.vmap(single, out_axes=uncertainty.Ensemble(0, 0, 0, 0, 0, 0, 1, 0, None))(X)
    jax.tree.map(close, mapped, plain)
    # the params may be traced, too
    traced = jax.jit(lambda params, x: uncertainty.ensemble(net, None, params, **options)(x))(PARAMS, X)
    jax.tree.map(close, traced, plain)


def test_one_member_has_no_uncertainty():
    alone = jax.tree.map(lambda v: v[:1], PARAMS)
    u = uncertainty.ensemble(net, None, alone, target=2, covariance=True, quantiles=(0.0, 1.0))(X)
    R = loop()[0][0]
    close(u.mean, R)
    close(u.quantiles, [R, R])
    for nothing in (u.std, u.marginal, u.covariance, u.score_variance):
        close(nothing, np.zeros_like(nothing))


def test_max_is_the_class_of_the_mean_output():
    mean = np.mean([net(member(m), X) for m in range(MEMBERS)], 0)
    own = uncertainty.ensemble(net, None, PARAMS, target=mean.argmax(-1))(X)
    jax.tree.map(close, uncertainty.ensemble(net, None, PARAMS, target="max", batch=2)(X), own)
    each = np.mean(
        [lrpjax.relevance(functools.partial(net, member(m)), target="max")(X) for m in range(MEMBERS)], 0
    )
    assert np.abs(each - own.mean).max() > 0.1


def test_values_inside_and_several_of_them():
    at = uncertainty.ensemble(net, None, PARAMS, target=2, at="hidden", covariance=True)(X)
    assert at.mean.shape == (3, 8) and at.covariance.shape == (3, 8, 8)
    f = lambda params, x: net(params, lrpjax.tag(jax.nn.relu(x), "first"))
    rectified = np.maximum(X, 0)
    u = uncertainty.ensemble(f, None, PARAMS, target=2, at=("first", "hidden"), quantiles=(0.5,))(X)
    close(u.mean["hidden"], uncertainty.ensemble(net, None, PARAMS, target=2, at="hidden")(rectified).mean)
    assert u.quantiles["first"].shape == (1, 3, 6)
    with pytest.raises(uncertainty.EnsembleError, match="a covariance is that of one array"):
        uncertainty.ensemble(f, None, PARAMS, target=2, at=("first", "hidden"), covariance=True)(X)
    with pytest.raises(PathError):
        uncertainty.ensemble(net, None, PARAMS, target=2, at="nowhere")(X)


def test_another_argument_and_further_arguments():
    f = lambda params, scale, x, power=1: net(params, x * scale) ** power
    u = uncertainty.ensemble(f, None, PARAMS, target=2, argnums=2)(1.0, X, power=1)
    close(u.mean, loop()[0].mean(0))


def test_random_keys_are_members():
    """Monte Carlo dropout: the keys are what differs."""
    keys = jax.random.split(jax.random.key(0), 5)
    weights = RNG.normal(size=6)
    f = lambda key, x: jnp.where(jax.random.bernoulli(key, 0.5, (6,)), x, 0.0) @ weights
    u = uncertainty.ensemble(f, EXACT, keys)(X)
    masks = np.stack([jax.random.bernoulli(key, 0.5, (6,)) for key in keys])
    close(u.mean, (masks[:, None] * X * weights).mean(0))
    close(u.score_variance, (masks[:, None] * X * weights).sum(-1).var(0))


def test_float32_in_float32_out():
    narrow = jax.tree.map(lambda v: v.astype(np.float32), PARAMS)
    u = uncertainty.ensemble(net, None, narrow, target=2, covariance=True, quantiles=(0.5,))(
        X.astype(np.float32)
    )
    wide = uncertainty.ensemble(net, None, PARAMS, target=2, covariance=True, quantiles=(0.5,))(X)
    assert {leaf.dtype for leaf in jax.tree.leaves(u)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), u, wide)


def test_moments_do_not_cancel():
    """Relevances that are large beside their deviations: two sums of squares would have no digits left in float32."""
    members = (1000.0 + RNG.normal(size=(50, 2))).astype(np.float32)
    u = uncertainty.ensemble(lambda w, x: x @ w, EXACT, members, covariance=True, batch=4)(
        np.ones((1, 2), np.float32)
    )
    np.testing.assert_allclose(u.std[0], members.astype(float).std(0), rtol=1e-3)
    np.testing.assert_allclose(u.covariance[0], np.cov(members.astype(float).T, ddof=0), atol=2e-3)


def test_memory_does_not_grow_with_the_number_of_members():
    """Nothing in the program has an axis as long as the ensemble, but the params themselves and the members' numbers."""

    def largest(count, **options):
        params = jnp.ones((count, 4))
        explain = uncertainty.ensemble(lambda w, x: x * w, None, params, batch=2, covariance=True, **options)
        jaxpr = jax.make_jaxpr(explain)(jnp.ones((5, 4)))
        return max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)

    assert largest(1000) <= max(largest(10), 1000) < largest(1000, keep=True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "hold no arrays"),
        ({"w": np.ones((3, 2)), "b": np.ones(2)}, r"\['b'\] has 2, \['w'\] has 3"),
        ({"w": np.ones((3, 2)), "b": 1.0}, r"first axis, but \['b'\] is a number"),
        (1.0, "but the params is a number"),
        (np.ones((0, 2)), "there are no members"),
    ],
)
def test_params_without_members_are_errors(params, message):
    with pytest.raises(uncertainty.EnsembleError, match=message):
        uncertainty.ensemble(net, None, params)


def test_bad_options_are_errors():
    for levels in ((), (0.5, 1.5), (-0.1,), 0.5, (np.nan,)):
        with pytest.raises(uncertainty.EnsembleError, match="between 0 and 1"):
            uncertainty.ensemble(net, None, PARAMS, quantiles=levels)
    with pytest.raises(uncertainty.EnsembleError, match="argnums is 0"):
        uncertainty.ensemble(net, None, PARAMS, argnums=0)
    with pytest.raises(RegionError, match="does not broadcast"):
        uncertainty.ensemble(net, None, PARAMS, target=2, regions=np.arange(5))(X)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        uncertainty.ensemble(net, None, PARAMS, target=2, batch=0)(X)
