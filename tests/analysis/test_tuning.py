"""A search over composites: every measure is what one computes by hand, sweeps are what single runs are, and the front is Pareto's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import composites, metrics, rules, select, tuning
from lrpjax.errors import TargetError
from lrpjax.tuning import Explained, Measure, TuningError

RNG = np.random.default_rng(3)
K, W, V = RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=4)
X = jnp.asarray(RNG.uniform(size=(5, 6, 6, 2)))


def f(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, jnp.asarray(K), (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(x + V).mean((1, 2)) @ W + 0.3


def gamma(gamma, epsilon=1e-6, bias=True):
    return lrpjax.Composite(
        [
            (select.kind("conv"), rules.Gamma(gamma, epsilon, bias=bias)),
            ("*", rules.Epsilon(epsilon, bias=bias)),
        ]
    )


GRID = {"gamma": [0.25, 1.0, 4.0], "epsilon": [1e-6, 0.1], "bias": [True, "share"]}


@pytest.fixture(scope="module")
def result():
    candidates = {
        "gamma": (gamma, GRID),
        "z": composites.epsilon(0.0),
        "input × gradient": composites.input_x_gradient(),
    }
    measures = {**tuning.MEASURES, "abpc": Measure(tuning.flipping(2, steps=3), "max")}
    return lrpjax.tune(f, X, candidates, measures, batch=2, together=4)


def test_every_combination_is_a_row(result):
    assert len(result.rows) == 3 * 2 * 2 + 2
    settings = [tuple(row.settings[k] for k in GRID) for row in result.rows if row.name == "gamma"]
    assert sorted(settings, key=str) == sorted(
        [(g, e, b) for g in GRID["gamma"] for e in GRID["epsilon"] for b in GRID["bias"]], key=str
    )


def test_measures_are_those_of_single_explanations(result):
    y = f(X)
    top = y.argmax(1)
    rival = jnp.argsort(y, axis=1)[:, -2]
    for row in (result.rows[1], result.rows[7], result.rows[-1]):
        R, Q = (lrpjax.relevance(f, row.composite, target=t)(X) for t in (top, rival))
        total = R.sum((1, 2, 3))
        close(row.values["kept"], total / y.max(1), 1e-6)
        close(row.values["size"], jnp.abs(R).sum((1, 2, 3)) / jnp.abs(total), 1e-6)
        maps = [np.asarray(m.sum(-1)).reshape(5, -1) for m in (R, Q)]
        close(row.values["alike"], [np.corrcoef(a, b)[0, 1] for a, b in zip(*maps, strict=True)], 1e-6)
        curves = [
            metrics.flipping(f, X, R, target=top, order=order, regions=2, steps=3).scores
            for order in ("morf", "lerf")
        ]
        close(row.values["abpc"], (curves[1] - curves[0]).mean(1) / np.abs(y.max(1)), 1e-6)


def test_a_row_rebuilds_its_composite(result):
    row = next(r for r in result.rows if r.settings == {"gamma": 4.0, "epsilon": 0.1, "bias": "share"})
    assert str(row.composite.pairs[0][1]) == "Gamma(gamma=4, epsilon=0.1, bias='share')"
    assert row.text == "gamma(bias=share, gamma=4, epsilon=0.1)"


def test_the_front_is_what_nothing_beats(result):
    costs = np.array([[row.costs[m] for m in result.measures] for row in result.rows])
    beaten = [any((c <= d).all() and (c < d).any() for c in costs) for d in costs]
    assert [row not in result.front for row in result.rows] == beaten
    assert 0 < len(result.front) < len(result.rows)


def test_costs_are_distances_from_the_goal(result):
    row = result.rows[0]
    assert row.costs["kept"] == pytest.approx(abs(np.median(row.values["kept"]) - 1))
    assert row.costs["size"] == np.median(row.values["size"])
    assert row.costs["abpc"] == -np.median(row.values["abpc"])
    assert Measure(tuning.kept, "max").cost(np.array([1.0, np.nan])).tolist() == [-1.0, np.inf]


def test_best_under_a_condition(result):
    keeps = lambda row: row.costs["kept"] < 0.01
    best = result.best("size", keeps)
    assert keeps(best) and best.costs["size"] == min(r.costs["size"] for r in result.rows if keeps(r))
    with pytest.raises(TuningError, match="there is no measure 'beauty', only kept, size"):
        result.best("beauty")
    with pytest.raises(TuningError, match="the condition holds of no candidate"):
        result.best("kept", lambda row: False)


def test_scores_of_one_class():
    g = lambda x: f(x)[:, 0]
    result = lrpjax.tune(g, X, {"z": composites.epsilon(0.0)}, target=None)
    assert list(result.measures) == ["kept", "size"]
    R = lrpjax.relevance(g, composites.epsilon(0.0))(X)
    close(result.rows[0].values["kept"], R.sum((1, 2, 3)) / g(X), 1e-9)
    with pytest.raises(TargetError, match="alike needs a rival class"):
        tuning.alike(Explained(g, X, R, None, g(X), None))


def test_settings_share_a_compilation():
    """Floats are vmapped: as many traces for six settings as for two (the switch is what has to be traced again)."""
    traces = []

    def counted(x):
        traces.append(None)
        return f(x)

    lrpjax.tune(counted, X, {"gamma": (gamma, {"gamma": [0.1, 0.2]})}, together=2)
    few = len(traces)
    traces.clear()
    other = lambda x: counted(x)
    lrpjax.tune(other, X, {"gamma": (gamma, {"gamma": [0.1, 0.2, 0.3], "epsilon": [0.1, 0.2]})}, together=2)
    assert len(traces) == few


def test_floats_that_no_formula_computes_with_are_not_traced():
    def staged(cut, gamma):
        return lrpjax.Composite(
            [(select.between(0, cut, "conv", "dense"), rules.Gamma(gamma)), ("*", rules.Epsilon())]
        )

    result = lrpjax.tune(f, X, {"staged": (staged, {"cut": [0.5, 1.0], "gamma": [0.1, 1.0]})})
    assert [row.settings for row in result.rows] == [
        {"cut": c, "gamma": g} for c in (0.5, 1.0) for g in (0.1, 1.0)
    ]
    kept = [row.median("kept") for row in result.rows]
    assert len(set(kept)) == 4


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "give at least one candidate"),
        ({"g": (gamma, {"gamma": 0.5})}, "g: the values of gamma to try are a list, but are 0.5"),
        ({"g": (gamma, {"gamma": []})}, "g: the values of gamma to try are a list"),
        ({"g": gamma}, "g: a candidate is a composite, or a pair"),
        ({"g": (gamma, {"gama": [0.1]})}, "g: .*gama"),
    ],
)
def test_candidates_that_are_none(candidates, message):
    with pytest.raises(TuningError, match=message):
        lrpjax.tune(f, X, candidates)


def test_a_goal_is_one():
    with pytest.raises(TuningError, match='a goal is "max", "min" or a number, but is'):
        Measure(tuning.kept, "big")
