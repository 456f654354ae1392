"""How good the estimators of the signal are: the toy of Kindermans et al. 2018, and their order on digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrpjax
from lrpjax import composites, estimators, patterns
from lrpjax.errors import PatternError


def batches_of(x, size=16):
    return [x[i : i + size] for i in range(0, len(x), size)]


def test_the_toy_of_kindermans():
    """x = a_s y + a_d ε with w = (1, −1): the pattern is a_s = (1, 0); gradient, LRP and the filter see the distractor."""
    y = np.linspace(-1, 1, 64)
    noise = np.random.default_rng(0).normal(size=64)
    noise -= noise.mean() + y * (noise @ y) / (
        y @ y
    )  # uncorrelated with y in the sample too, so that the result is exact
    x = np.outer(y, [1.0, 0.0]) + np.outer(noise, [1.0, 1.0])
    w = np.linalg.lstsq(x, y, rcond=None)[0]  # the trained model
    np.testing.assert_allclose(w, [1, -1], atol=1e-12)
    f = lambda x: x @ w[:, None]
    fitted = patterns.fit(f, batches_of(x), "linear")
    np.testing.assert_allclose(fitted["dense"].ravel(), [1, 0], atol=1e-12)
    signal = lrpjax.relevance(f, composites.pattern_net(fitted))(x)
    np.testing.assert_allclose(signal, np.outer(y, [1, 0]), atol=1e-12)
    np.testing.assert_allclose(
        lrpjax.relevance(f, composites.pattern_attribution(fitted))(x), signal, atol=1e-12
    )
    for composite in (composites.gradient(), composites.epsilon(0.0), composites.guided_backprop()):
        assert np.abs(lrpjax.relevance(f, composite)(x)[:, 1]).max() > 0.9  # the distractor's dimension
    rho = estimators.quality(
        f, {"linear": fitted, "filter": estimators.filters(f, x)}, [x], [x], key=jax.random.key(0)
    )
    assert rho["linear"]["dense"][0] == pytest.approx(1, abs=1e-6)
    assert rho["filter"]["dense"][0] < 0.9


def two_regimes(rng, n, share):
    """Signal and distractor lie elsewhere for y > 0 than for y < 0; `share` of the samples have y > 0."""
    y = np.abs(rng.normal(size=n)) * np.where(rng.random(n) < share, 1, -1)
    signal = np.where(y[:, None] > 0, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]) * y[:, None]
    return signal + np.outer(rng.normal(size=n), [1.0, 1.0, -2.0])


def test_the_two_component_estimator_finds_both_regimes():
    """w·a₊ = w·a₋ = 1, w·d = 0. The linear estimator mixes them, which shows as soon as there are more samples of one than of the other."""
    f = lambda x: x @ np.array([[1.0], [1.0], [1.0]])
    rng = np.random.default_rng(3)
    fitting, train, test = (
        two_regimes(rng, 20000, 0.5),
        two_regimes(rng, 4000, 0.9),
        two_regimes(rng, 4000, 0.9),
    )
    linear, above, below = patterns.fit(f, batches_of(fitting, 4000), ("linear", "relu", "relu.negative"))
    np.testing.assert_allclose(above["dense"].ravel(), [1, 0, 0], atol=0.05)
    np.testing.assert_allclose(below["dense"].ravel(), [0, 1, 0], atol=0.05)
    compared = {"linear": linear, "two": (above, below), "identity": None}
    rho = estimators.quality(f, compared, [train], [test], key=jax.random.key(0))
    assert rho["two"]["dense"][0] > 0.95
    assert rho["linear"]["dense"][0] < 0.75
    assert rho["identity"]["dense"][0] == 1


class Digits(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 12):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2, param_dtype=x.dtype)(x))
        x = nn.relu(nn.Dense(24, param_dtype=x.dtype)(x.reshape(len(x), -1)))
        return nn.Dense(10, param_dtype=x.dtype)(x)


@pytest.fixture(scope="module")
def digits():
    """A CNN trained on 8×8 digits to 95 %, and the digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = jnp.asarray(x[order].reshape(-1, 8, 8, 1) / 16), jnp.asarray(labels[order])
    model, optimizer = Digits(), optax.adam(8e-3)
    variables = model.init(jax.random.key(0), x[:1])

    def loss(variables, batch):
        logits = model.apply(variables, x[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def step(carry, batch):
        variables, state = carry
        update, state = optimizer.update(jax.grad(loss)(variables, batch), state)
        return (optax.apply_updates(variables, update), state), None

    order = np.concatenate([np.random.default_rng(e).permutation(1344).reshape(21, 64) for e in range(6)])
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        variables = jax.jit(lambda c: jax.lax.scan(step, c, order)[0])(
            (variables, optimizer.init(variables))
        )[0]
    f = lambda x: model.apply(variables, x)
    assert (f(x[1344:]).argmax(-1) == labels[1344:]).mean() > 0.9
    return f, x


def test_estimators_rank_as_kindermans_reports(digits):
    """Fitted on one part of the digits, v fitted on another, measured on a third, in every layer: random < filter < linear, two-component.

    Eq. 2 makes the correlation of the linear and of the two-component estimator zero alike; what is left of it is sampling error, equal for both.
    """
    f, x = digits
    fitting, train, test = (batches_of(part, 64) for part in (x[:640], x[640:1344], x[1344:]))
    linear, above, below = patterns.fit(f, fitting, ("linear", "relu", "relu.negative"))
    compared = {
        "random": estimators.random(f, x, jax.random.key(1)),
        "filter": estimators.filters(f, x),
        "linear": linear,
        "two": (above, below),
    }
    rho = estimators.quality(f, compared, train, test, key=jax.random.key(2), positions=2, neurons=8)
    chance, filters, linear, two = (
        np.array([float(jnp.nanmean(layer)) for layer in of.values()]) for of in rho.values()
    )
    assert chance.mean() < filters.mean() < 0.5 * linear.mean()
    assert np.all(chance <= filters + 1e-9) and np.all(filters < linear) and np.all(filters < two)
    assert two.mean() > linear.mean() - 0.02


def test_quality_needs_enough_samples_and_the_right_patterns(digits):
    f, x = digits
    others = patterns.fit(lambda x: x.reshape(len(x), -1) @ np.ones((64, 2)), [x[:9]])
    filters = estimators.filters(f, x)
    few = [x[:40]]
    with pytest.raises(PatternError, match="has 72 inputs, but there are 80 samples"):
        estimators.quality(f, {"S": filters}, few, few, key=jax.random.key(0), positions=2)
    with pytest.raises(PatternError, match="different models"):
        estimators.quality(f, {"S": others}, few, few, key=jax.random.key(0))
    with pytest.raises(PatternError, match="no batches to measure"):
        estimators.quality(f, {"S": filters}, [], few, key=jax.random.key(0))
