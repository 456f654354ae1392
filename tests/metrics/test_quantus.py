"""lrpjax.metrics against Quantus, on the arrays and draws that references/make_quantus.py has stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import REFERENCES
from jax.tree_util import Partial

from lrpjax import metrics


@pytest.fixture(scope="module")
def quantus():
    with np.load(REFERENCES / "quantus.npz") as file:
        return dict(file)


def torch_net(params, x):
    """The network of make_quantus.py, channels first."""
    conv = lambda x, w, pad: jax.lax.conv_general_dilated(
        x, w, (1, 1), pad, dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    bias = lambda name: params[name]["bias"][:, None, None]
    h = jnp.tanh(conv(x, params["0"]["weight"], "SAME") + bias("0"))
    h = jax.nn.softplus(conv(h, params["2"]["weight"], "VALID") + bias("2"))
    return h.reshape(len(x), -1) @ params["5"]["weight"].T + params["5"]["bias"]


def tree(arrays, prefix):
    layers = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            _, layer, leaf = name.split("/")
            layers.setdefault(layer, {})[leaf] = jnp.asarray(value)
    return layers


@pytest.fixture(scope="module")
def model(quantus):
    params = tree(quantus, "params/")
    return Partial(torch_net, params), params


def gradient(y, params, x):
    return jax.grad(lambda x: jnp.take_along_axis(torch_net(params, x), y[:, None], 1).sum())(x)


def test_quantus_network_is_rebuilt(quantus, model):
    np.testing.assert_allclose(model[0](jnp.asarray(quantus["x"])), quantus["logits"], rtol=1e-10)


def test_quantus_pixel_flipping(quantus, model):
    """Quantus leaves out the unperturbed score; its 'black' is the smallest value of the sample."""
    x, y, a = (quantus[k] for k in "xya")
    steps = list(range(7, 85, 7))
    got = metrics.flipping(model[0], x, a, target=y, steps=steps, fill=0.25).scores
    np.testing.assert_allclose(got, quantus["pixel_flipping"], rtol=1e-10, atol=1e-12)
    black = x.min((1, 2, 3), keepdims=True)
    got = metrics.flipping(model[0], x, a, target=y, steps=steps, fill=black).scores
    np.testing.assert_allclose(got, quantus["pixel_flipping_black"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("patch", [1, 3])
def test_quantus_region_perturbation(quantus, model, patch, order):
    """Quantus returns drops f(x⁽⁰⁾) − f(x⁽ᵏ⁾), k ≥ 1, of the first 100 regions; it centres the patches."""
    x, y, a = (quantus[k] for k in "xya")
    column = np.arange(7) if patch == 1 else np.array([0, 0, 1, 1, 1, 2, 2])
    labels = (np.arange(6) // patch)[:, None] * (column[-1] + 1) + column
    scores = metrics.flipping(model[0], x, a, target=y, order=order, regions=labels[None], fill=0.25).scores
    np.testing.assert_allclose(
        scores[:, :1] - scores[:, 1:], quantus[f"region_{patch}_{order}"], rtol=1e-9, atol=1e-12
    )
    if patch == 1:
        np.testing.assert_array_equal(metrics.patches(x.shape, 1, channel_axis=1), labels[None])


def test_quantus_faithfulness_correlation(quantus, model):
    x, y, a = (quantus[k] for k in "xya")
    got = metrics.faithfulness_correlation(model[0], x, a, quantus["faithfulness_subsets"], target=y)
    np.testing.assert_allclose(got, quantus["faithfulness_correlation"], rtol=1e-9)


def test_quantus_sensitivity_n_is_the_quantity_that_the_docstring_says(quantus, model):
    """Over samples, step by step: correlation of the relevance removed in it and of the score lost so far.

    Quantus drops the steps beyond its count of features, which leaves out the channels: 6 · 7 = 42 of 84.
    """
    x, y, a = (quantus[k] for k in "xya")
    scores = metrics.flipping(model[0], x, a, target=y).scores
    lost = scores[:, :1] - scores[:, 1:]
    removed = -np.sort(-a.reshape(len(a), -1))
    got = metrics.pearson(removed.T, lost.T)
    np.testing.assert_allclose(got[:42], quantus["sensitivity_n"], rtol=1e-9)


def test_quantus_completeness_is_a_gap_of_zero(quantus):
    x, y, w = quantus["linear_x"], quantus["y"], jnp.asarray(quantus["linear_weight"])
    gap = metrics.completeness_gap(
        lambda x: x.reshape(len(x), -1) @ w.T, x, quantus["linear_a"], target=y, baseline=0.0
    )
    np.testing.assert_array_equal(gap == 0, quantus["Completeness"])
    np.testing.assert_array_equal(gap, [1, 0, 1, 0, 1, 0, 1])


def test_quantus_localisation(quantus):
    maps, masks = quantus["maps"], quantus["masks"]
    np.testing.assert_allclose(
        metrics.mass_accuracy(maps, masks), quantus["RelevanceMassAccuracy"], rtol=1e-12
    )
    np.testing.assert_allclose(
        metrics.rank_accuracy(maps, masks), quantus["RelevanceRankAccuracy"], rtol=1e-12
    )
    hits = quantus["PointingGame"]
    assert set(hits) == {0.0, 1.0}
    np.testing.assert_array_equal(metrics.pointing_game(maps, masks), hits)


def test_quantus_complexity(quantus):
    """Quantus adds 1e-7 to |R| (sparseness) and 1e-12 inside of the logarithm (complexity)."""
    maps = quantus["maps"]
    np.testing.assert_allclose(metrics.sparseness(np.abs(maps) + 1e-7), quantus["Sparseness"], rtol=1e-12)
    np.testing.assert_allclose(metrics.sparseness(maps), quantus["Sparseness"], rtol=1e-6)
    np.testing.assert_allclose(metrics.complexity(maps), quantus["Complexity"], rtol=1e-9)


def test_quantus_robustness(quantus, model):
    x, y = quantus["x"], jnp.asarray(quantus["y"])
    explain = Partial(Partial(gradient, y), model[1])
    worst = metrics.robustness(explain, x, noise=quantus["MaxSensitivity_noise"]).maximum
    np.testing.assert_allclose(worst, quantus["MaxSensitivity"], rtol=1e-8)
    mean = metrics.robustness(explain, x, noise=quantus["AvgSensitivity_noise"]).mean
    np.testing.assert_allclose(mean, quantus["AvgSensitivity"], rtol=1e-8)


@pytest.mark.parametrize("order", ["top_down", "independent"])
def test_quantus_randomisation(quantus, model, order):
    x, y, params = quantus["x"], jnp.asarray(quantus["y"]), model[1]
    layers = quantus[f"mprt_{order}_layers"].tolist()
    got = metrics.randomisation(
        Partial(gradient, y), params, tree(quantus, "fresh/"), x, layers=layers, cascade=order == "top_down"
    )
    np.testing.assert_allclose(got, quantus[f"mprt_{order}"], rtol=1e-9)


def test_ssim_equals_scikit_image(quantus):
    np.testing.assert_allclose(metrics.ssim(*quantus["ssim_images"]), quantus["ssim"], rtol=1e-10)


# ---- faithfulness


def test_quantus_infidelity(quantus, model):
    """Quantus' perturbations pile up, and are taken as they are; a second call of the network is the first of them."""
    x, y, a = (quantus[k] for k in "xya")
    noise = quantus["Infidelity_noise"]
    assert (np.diff((noise[:, 0] != 0).sum((1, 2, 3))) == 2).all()  # one more pixel of two channels each time
    got = metrics.infidelity(model[0], x, a, noise=noise, target=y)
    np.testing.assert_allclose(got, quantus["Infidelity"], rtol=1e-9)


def test_quantus_monotonicity_correlation(quantus, model):
    x, y, a = (quantus[k] for k in "xya")
    fills = quantus["MonotonicityCorrelation_fills"]
    got = metrics.monotonicity_correlation(model[0], x, a, fills=fills, target=y, batch=24)
    np.testing.assert_allclose(got, quantus["MonotonicityCorrelation"], rtol=1e-8)


def test_quantus_monotonicity_is_always_true(quantus, model):
    """It fills its baseline with itself. Where the score does rise all the way, the two agree."""
    x, y, a = (quantus[k] for k in "xya")
    assert quantus["Monotonicity"].all()
    assert not metrics.monotonicity(model[0], x, a, target=y).any()
    rising = lambda x: jnp.abs(x).sum((1, 2, 3))
    np.testing.assert_array_equal(metrics.monotonicity(rising, x, a, target=None), quantus["Monotonicity"])


def test_quantus_selectivity(quantus, model):
    x, y, a = (quantus[k] for k in "xya")
    labels = metrics.patches(x.shape, 1, channel_axis=1)
    scores = metrics.flipping(model[0], x, a, target=y, regions=labels, fill=0.25).scores
    np.testing.assert_allclose(scores[:, 1:], quantus["Selectivity"], rtol=1e-9, atol=1e-12)
    area = 41 * metrics.selectivity(scores[:, 1:]).mean()
    np.testing.assert_allclose(area, quantus["Selectivity_area"], rtol=1e-9)


@pytest.fixture(scope="module")
def one(quantus):
    """The network of images of one channel, its parameters, images, classes and maps."""
    params = tree(quantus, "one_params/")
    return params, *(quantus[f"one_{k}"] for k in ("x", "classes", "a"))


def one_net(params, x):
    h = jax.lax.conv_general_dilated(
        x, params["0"]["weight"], (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    h = jnp.tanh(h + params["0"]["bias"][:, None, None])
    return h.reshape(len(x), -1) @ params["3"]["weight"].T + params["3"]["bias"]


def test_quantus_irof(quantus, one):
    """Quantus leaves out the unperturbed image and counts segments; see the docstring of `irof`."""
    params, x, y, a = one
    probability = lambda x: jax.nn.softmax(one_net(params, x))
    segments = quantus["IROF_segments"][None]
    count = int(segments.max()) + 1
    got = metrics.irof(probability, x, a, regions=segments, target=y, fill=0.25)
    size = np.bincount(segments.ravel())
    mean = a / size[segments]
    scores = metrics.flipping(probability, x, mean, regions=segments, target=y, fill=0.25).scores
    expected = quantus["IROF"] - (1 + scores[:, 1] / scores[:, 0]) / 2
    np.testing.assert_allclose(count * got, expected, rtol=1e-9)


def test_quantus_road(quantus, one):
    params, x, y, a = one
    curve = metrics.road(
        Partial(one_net, params), x, a, target=y, steps=quantus["ROAD_counts"], noise=0.0, channel_axis=1
    )
    np.testing.assert_array_equal(curve.counts, quantus["ROAD_counts"])
    np.testing.assert_allclose(curve.scores.mean(0), quantus["ROAD"], rtol=1e-12)


def test_quantus_linear_imputation(quantus, one):
    x = one[1][:1]
    removed = np.isin(np.arange(42), quantus["imputed_indices"]).reshape(1, 1, 6, 7)
    got = metrics.LinearImputation(noise=0.0, channel_axis=1)(jnp.where(removed, 99.0, x), removed)
    np.testing.assert_allclose(got[0], quantus["imputed"], rtol=1e-9)


def test_quantus_sufficiency(quantus, one):
    """Quantus has 0 where no other sample is explained alike."""
    _, _, y, a = one
    got = metrics.sufficiency(a, y, threshold=0.85)
    np.testing.assert_allclose(np.nan_to_num(got), quantus["Sufficiency"], rtol=1e-12)


def test_quantus_consistency(quantus, one):
    """Quantus compares the signs of the first five elements."""
    signs = np.sign(quantus["Consistency_maps"]).reshape(7, -1)[:, :5]
    got = metrics.consistency(signs, one[2])
    np.testing.assert_allclose(got, quantus["Consistency"], rtol=1e-8)


# ---- robustness


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (metrics.local_lipschitz, "LocalLipschitzEstimate"),
        (metrics.relative_input_stability, "RelativeInputStability"),
        (metrics.relative_output_stability, "RelativeOutputStability"),
        (metrics.relative_representation_stability, "RelativeRepresentationStability"),
    ],
)
def test_quantus_stability(quantus, model, metric, name):
    x, explain = quantus["x"], Partial(Partial(gradient, jnp.asarray(quantus["y"])), model[1])
    inner = {
        "RelativeOutputStability": [model[0]],
        "RelativeRepresentationStability": [Partial(first_layer, model[1])],
    }
    noise = quantus[f"{name}_inputs"] - x
    got = metric(explain, *inner.get(name, []), x, noise=noise)
    np.testing.assert_allclose(got, quantus[name], rtol=1e-6)


def first_layer(params, x):
    layer = params["0"]
    h = jax.lax.conv_general_dilated(
        x, layer["weight"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return h + layer["bias"][:, None, None]


def test_quantus_continuity(quantus, model):
    """Quantus moves by (2 · 7 + 1) // 4 = 3 pixels at a time from 7 to the left on; black is the smallest value."""
    x, y = quantus["x"], jnp.asarray(quantus["y"])
    shifts = [-4, -1, 2, 5]
    fill = quantus["Continuity_inputs"][3, :, :, :, :1]
    for k, shift in enumerate(shifts):
        moved = metrics.translate(x, shift, axis=3, fill=fill)
        np.testing.assert_array_equal(moved, quantus["Continuity_inputs"][k])
    explain = Partial(Partial(gradient, y), model[1])
    got = metrics.continuity(explain, x, shifts=shifts, axis=3, fill=fill)
    np.testing.assert_allclose(got, quantus["Continuity"], rtol=1e-8)


# ---- sanity, axioms


def test_quantus_random_logit(quantus, model):
    """Quantus' SSIM is that of flattened maps."""
    x, y, rivals = quantus["x"], quantus["y"], quantus["RandomLogit_classes"]
    assert (rivals != y).all()
    flat = lambda v: v.reshape(len(v), -1)
    similarity = lambda a, b: metrics.ssim(flat(a), flat(b))
    explain = lambda x, classes: gradient(classes, model[1], x)
    got = similarity(explain(x, y), explain(x, rivals))
    np.testing.assert_allclose(got, quantus["RandomLogit"], rtol=1e-8)


def test_quantus_efficient_mprt(quantus, model):
    explain = Partial(gradient, jnp.asarray(quantus["y"]))
    fresh = tree(quantus, "fresh/")
    got = metrics.efficient_mprt(explain, model[1], fresh, quantus["x"], bins=20)
    np.testing.assert_allclose(got, quantus["EfficientMPRT"], rtol=1e-8)


def test_quantus_smooth_mprt(quantus, model):
    explain, fresh = Partial(gradient, jnp.asarray(quantus["y"])), tree(quantus, "fresh/")
    layers, noise = quantus["SmoothMPRT_layers"].tolist(), quantus["SmoothMPRT_noise"]
    got = metrics.smooth_mprt(explain, model[1], fresh, quantus["x"], layers=layers, noise=noise)
    np.testing.assert_allclose(got, quantus["SmoothMPRT"], rtol=1e-8)


def test_quantus_input_invariance(one, quantus):
    params, x, y, _ = one
    y, shift = jnp.asarray(y), -1.0
    first = params["0"]
    bias = first["bias"] - shift * first["weight"].sum((1, 2, 3))
    moved = params | {"0": first | {"bias": bias}}
    slope = lambda p, x: jax.grad(lambda x: jnp.take_along_axis(one_net(p, x), y[:, None], 1).sum())(x)
    explain = {"gradient": slope, "gradient_times_input": lambda p, x: x * slope(p, x)}
    for name, method in explain.items():
        gap = metrics.input_invariance(Partial(method, params), Partial(method, moved), x, shift)
        np.testing.assert_array_equal(gap < 1e-4, quantus[f"InputInvariance_{name}"])


# ---- maps


def test_quantus_more_localisation(quantus):
    maps, masks = quantus["maps"], quantus["masks"]
    np.testing.assert_allclose(metrics.roc_auc(maps, masks), quantus["AUC"], rtol=1e-12)
    np.testing.assert_allclose(
        metrics.top_k_intersection(maps, masks, k=9), quantus["TopKIntersection"], rtol=1e-12
    )
    got = metrics.attribution_localisation(quantus["signed_maps"], masks)
    np.testing.assert_allclose(got, quantus["AttributionLocalisation"], rtol=1e-8)


def test_quantus_effective_complexity(quantus):
    got = metrics.effective_complexity(quantus["a"], threshold=0.8)
    np.testing.assert_array_equal(got, quantus["EffectiveComplexity"])
