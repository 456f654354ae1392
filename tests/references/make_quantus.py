"""Regenerates quantus.npz: what Quantus says of fixed arrays, for tests/metrics/test_quantus.py.

    python -m venv venv && venv/bin/pip install torch==2.13.0 quantus==0.6.0
    venv/bin/python tests/references/make_quantus.py

Made in float64 with quantus 0.6.0, torch 2.13.0 (CPU), scikit-image 0.26.0, scipy 1.17.1, numpy 2.4.6. The
draws of Quantus (subsets, noise, fresh parameters) are recorded, so that lrpjax can be given the same.
"""

import itertools
import pathlib
import warnings

import numpy as np
import quantus
import skimage.metrics
import torch
from quantus.helpers.model.pytorch_model import PyTorchModel

torch.set_default_dtype(torch.float64)  # Quantus converts inputs to the default dtype
warnings.simplefilter("ignore")
np.trapz, np.NaN = np.trapezoid, np.nan  # Quantus calls names that numpy has dropped
COMMON = {"normalise": False, "abs": False, "disable_warnings": True}


def network():
    """Convolution, tanh, convolution, softplus, dense: 2×6×7 -> 5 logits; seeded."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.Conv2d(4, 3, 3),
        torch.nn.Softplus(),
        torch.nn.Flatten(),
        torch.nn.Linear(60, 5),
    ).eval()


def parameters(model):
    return {name.replace(".", "/"): p.detach().numpy().copy() for name, p in model.named_parameters()}


def gradient(model, inputs, targets, **_):
    """d logit of the target / d input."""
    x = torch.tensor(np.asarray(inputs), requires_grad=True)
    picked = model(x)[torch.arange(len(x)), torch.as_tensor(targets)].sum()
    return torch.autograd.grad(picked, x)[0].numpy()


def gradient_times_input(model, inputs, targets, **_):
    return gradient(model, inputs, targets) * np.asarray(inputs)


class Recorder:
    """Stands in for a function of numpy.random and keeps what it returned."""

    def __init__(self, name):
        self.original, self.name, self.drawn = getattr(np.random, name), name, []

    def __call__(self, *args, **kwargs):
        self.drawn.append(self.original(*args, **kwargs))
        return self.drawn[-1]

    def __enter__(self):
        setattr(np.random, self.name, self)
        return self

    def __exit__(self, *_):
        setattr(np.random, self.name, self.original)


class Watched:
    """An explanation that keeps the inputs and targets that it was asked for."""

    def __init__(self, explain):
        self.explain, self.inputs, self.targets = explain, [], []

    def __call__(self, model, inputs, targets, **kwargs):
        self.inputs.append(np.array(inputs))
        self.targets.append(np.array(targets))
        return self.explain(model, inputs, targets, **kwargs)


def more_faithfulness(model, x, y, a, run):
    """Infidelity, both monotonicities, selectivity. Patches are of size 1: others are not those of lrpjax."""
    out = {}
    perturbed, predict = [], PyTorchModel.predict

    def watch(self, inputs, **kwargs):
        perturbed.append(np.array(inputs))
        return predict(self, inputs, **kwargs)

    PyTorchModel.predict = watch
    options = {"perturb_patch_sizes": [1], "n_perturb_samples": 1, "perturb_baseline": 0.25, **COMMON}
    out["Infidelity"] = run(quantus.Infidelity(**options), a)
    PyTorchModel.predict = predict
    out["Infidelity_noise"] = x - np.asarray(perturbed[1:])

    np.random.seed(4)
    options = {"nr_samples": 2, "features_in_step": 1, "perturb_baseline": "uniform", **COMMON, "abs": True}
    with Recorder("uniform") as uniform:
        out["MonotonicityCorrelation"] = run(quantus.MonotonicityCorrelation(**options), a)
    drawn = np.asarray(uniform.drawn).reshape(84, 2, 7, -1)
    order = np.argsort(np.abs(a).reshape(7, -1), axis=1)
    fills = np.empty((2, 7, 84))
    for step in range(84):
        fills[:, np.arange(7), order[:, step]] = drawn[step][..., 0]
    out["MonotonicityCorrelation_fills"] = fills.reshape(2, *x.shape)
    options = {"features_in_step": 1, "perturb_baseline": 0.0, **COMMON}
    out["Monotonicity"] = run(quantus.Monotonicity(**options), a)

    metric = quantus.Selectivity(patch_size=1, perturb_baseline=0.25, **COMMON)
    out["Selectivity"] = run(metric, a)
    out["Selectivity_area"] = np.asarray(metric.get_auc_score)

    return out


def more_robustness(model, x, y, explained, run):
    """Lipschitz estimate, continuity, and the three relative stabilities."""
    out = {}
    np.random.seed(6)
    still = {"return_nan_when_prediction_changes": False, **COMMON}
    for name, options in {
        "LocalLipschitzEstimate": {"nr_samples": 4, "perturb_std": 0.2},
        "RelativeInputStability": {"nr_samples": 4},
        "RelativeOutputStability": {"nr_samples": 4},
        "RelativeRepresentationStability": {"nr_samples": 4, "layer_names": ["0"]},
        "Continuity": {"nr_steps": 4, "perturb_baseline": "black"},
    }.items():
        watched = Watched(gradient)
        out[name] = run(getattr(quantus, name)(**options, **still), explained, explain_func=watched)
        seen = [inputs for inputs in watched.inputs if not np.array_equal(inputs, x)]
        out[f"{name}_inputs"] = np.asarray(seen)
    return out


def more_sanity(model, x, y, explained):
    """Random logit, efficient and smooth MPRT; the fresh parameters are those of MPRT."""
    call = {"model": model, "x_batch": x, "y_batch": y, "a_batch": explained, "device": "cpu"}
    watched = Watched(gradient)
    out = {"RandomLogit": quantus.RandomLogit(num_classes=5, seed=7, **COMMON)(**call, explain_func=watched)}
    out["RandomLogit_classes"] = watched.targets[-1]

    metric = quantus.EfficientMPRT(
        layer_order="bottom_up", seed=5, complexity_func_kwargs={"n_bins": 20}, skip_layers=True, **COMMON
    )
    out["EfficientMPRT"] = metric(**call, explain_func=gradient)

    noise = np.random.default_rng(8).normal(size=(2, *x.shape))
    draws = itertools.cycle(noise)
    original, np.random.randn = np.random.randn, lambda *_: next(draws)
    quantus.explain = gradient  # SmoothMPRT asks it, whatever explain_func is
    metric = quantus.SmoothMPRT(layer_order="bottom_up", seed=5, nr_samples=3, noise_magnitude=0.1, **COMMON)
    scores = metric(**call | {"a_batch": None}, explain_func=gradient)
    np.random.randn = original
    layers = [name for name in scores if name != "original"]
    out["SmoothMPRT"] = np.asarray([scores[name] for name in layers])
    out["SmoothMPRT_layers"] = np.asarray(layers)
    span = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)
    out["SmoothMPRT_noise"] = np.concatenate([0.1 * span * noise, np.zeros((1, *x.shape))])
    return {name: np.asarray(value) for name, value in out.items()}


def more_maps(a, maps, masks, run):
    """What is asked of maps alone: localisation, effective complexity."""
    out = {"signed_maps": a[:, :1]}
    options = {"positive_attributions": True, **COMMON}
    out["AttributionLocalisation"] = run(quantus.AttributionLocalisation(**options), a[:, :1], s_batch=masks)
    for name, options in {"AUC": {}, "TopKIntersection": {"k": 9}}.items():
        out[name] = run(getattr(quantus, name)(**options, **COMMON), maps, s_batch=masks)
    out["EffectiveComplexity"] = run(quantus.EffectiveComplexity(eps=0.8, **COMMON | {"abs": True}), a)
    return out


def images_of_one_channel():
    """ROAD, IROF, input invariance: Quantus can do them, or has them right, for one channel and a first layer without padding."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(60, 5)
    ).eval()
    with torch.no_grad():
        model[0].weight[:, :, 0, 0] = 0.0  # what the first pixel is worth: Quantus shifts all but that one
    rng = np.random.default_rng(9)
    x, a = rng.normal(size=(2, 7, 1, 6, 7))
    y = model(torch.tensor(x)).argmax(1).numpy()
    call = {"model": model, "x_batch": x.copy(), "y_batch": y, "a_batch": a.copy(), "device": "cpu"}
    percentages = [0, 10, 30, 50, 80]
    metric = quantus.ROAD(percentages=percentages, noise=0.0, **COMMON)
    out = {"ROAD": np.asarray([metric(**call)[p] for p in percentages])}
    out["ROAD_counts"] = np.asarray([int(42 * p / 100) for p in percentages])
    indices = np.argsort(-a[0].ravel())[:30]
    out["imputed"] = quantus.functions.perturb_func.noisy_linear_imputation(x[0], indices, noise=0.0)
    out["imputed_indices"] = indices

    segments = np.arange(42).reshape(6, 7) // 5
    quantus.helpers.utils.get_superpixel_segments = lambda **_: segments
    options = {"perturb_baseline": 0.25, "return_aggregate": False, **COMMON}
    out["IROF"] = quantus.IROF(**options)(**call, softmax=True)
    out["IROF_segments"] = segments

    out["one_classes"] = y
    out["Sufficiency"] = quantus.Sufficiency(threshold=0.85, **COMMON)(**call)
    few = np.where(np.arange(7)[:, None, None, None] < 4, -np.abs(a), a)
    few[3:, 0, 0, :5] = 1.0
    out["Consistency"] = quantus.Consistency(**COMMON)(**call | {"a_batch": few})
    out["Consistency_maps"] = few

    for name, explain in {"gradient": gradient, "gradient_times_input": gradient_times_input}.items():
        metric = quantus.InputInvariance(input_shift=-1, **COMMON)
        explained = explain(model, x, y)
        found = metric(**call | {"a_batch": explained}, explain_func=explain)
        out[f"InputInvariance_{name}"] = np.asarray(found, float)
    out |= {f"one_params/{k}": v for k, v in parameters(model).items()}
    return out | {"one_x": x, "one_a": a}


def main():
    rng = np.random.default_rng(1)
    model = network()
    x = rng.normal(size=(7, 2, 6, 7))
    y = np.array([0, 1, 2, 3, 4, 0, 2])
    a = rng.normal(size=x.shape)
    maps = np.abs(rng.normal(size=(7, 1, 6, 7)))
    masks = rng.random((7, 1, 6, 7)) < 0.3
    out = {"x": x, "y": y, "a": a, "maps": maps, "masks": masks}
    out |= {f"params/{k}": v for k, v in parameters(model).items()}

    def run(metric, attribution, **kwargs):
        call = {"model": model, "x_batch": x.copy(), "y_batch": y, "a_batch": attribution.copy()}
        return np.asarray(metric(**(call | {"softmax": False, "device": "cpu"} | kwargs)))

    out["logits"] = model(torch.tensor(x)).detach().numpy()
    flip = {"features_in_step": 7, **COMMON}
    out["pixel_flipping"] = run(quantus.PixelFlipping(perturb_baseline=0.25, **flip), a)
    out["pixel_flipping_black"] = run(quantus.PixelFlipping(perturb_baseline="black", **flip), a)
    for patch in (1, 3):
        for order in ("morf", "lerf"):
            options = {"patch_size": patch, "order": order, "perturb_baseline": 0.25, **COMMON}
            out[f"region_{patch}_{order}"] = run(quantus.RegionPerturbation(**options), a)

    options = {"features_in_step": 1, "n_max_percentage": 1.0, "perturb_baseline": 0.0, **COMMON}
    out["sensitivity_n"] = run(quantus.SensitivityN(return_aggregate=False, **options), a)
    np.random.seed(2)
    options = {"nr_runs": 20, "subset_size": 9, "perturb_baseline": 0.0, "return_aggregate": False, **COMMON}
    with Recorder("choice") as choice:
        out["faithfulness_correlation"] = run(quantus.FaithfulnessCorrelation(**options), a)
    out["faithfulness_subsets"] = np.asarray(choice.drawn).reshape(20, 7, 9).astype(np.int32)

    for name in ("RelevanceMassAccuracy", "RelevanceRankAccuracy", "PointingGame"):
        out[name] = run(getattr(quantus, name)(**COMMON), maps, s_batch=masks).astype(float)
    out["Sparseness"] = run(quantus.Sparseness(**COMMON), maps)
    out["Complexity"] = run(quantus.Complexity(**COMMON), maps)

    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(84, 5, bias=False)).eval()
    weight = rng.integers(-3, 4, (5, 84)).astype(float)
    linear[1].weight.data = torch.tensor(weight)
    whole = rng.integers(-3, 4, x.shape).astype(float)
    complete = whole * weight[y].reshape(x.shape)
    complete[::2, 0, 0, 0] += 1.0
    options = {"perturb_baseline": 0.0, **COMMON}
    out |= {"linear_weight": weight, "linear_x": whole, "linear_a": complete}
    out["Completeness"] = run(quantus.Completeness(**options), complete, model=linear, x_batch=whole)

    np.random.seed(3)
    explained = gradient(model, x, y)
    for name in ("MaxSensitivity", "AvgSensitivity"):
        options = {"nr_samples": 4, "lower_bound": 0.3, "return_nan_when_prediction_changes": False, **COMMON}
        with Recorder("uniform") as uniform:
            out[name] = run(getattr(quantus, name)(**options), explained, explain_func=gradient)
        out[f"{name}_noise"] = np.asarray(uniform.drawn).reshape(4, *x.shape)

    for order in ("top_down", "independent"):
        scores = quantus.MPRT(layer_order=order, seed=5, **COMMON)(
            model=model, x_batch=x, y_batch=y, a_batch=explained, explain_func=gradient, device="cpu"
        )
        layers = [name for name in scores if name != "original"]
        out[f"mprt_{order}"] = np.asarray([scores[name] for name in layers])
        out[f"mprt_{order}_layers"] = np.asarray(layers)
    for name, randomised in PyTorchModel(model).get_random_layer_generator(order="independent", seed=5):
        fresh = parameters(randomised)
        out |= {f"fresh/{k}": v for k, v in fresh.items() if k.startswith(f"{name}/")}

    out |= more_faithfulness(model, x, y, a, run)
    out |= more_robustness(model, x, y, explained, run)
    out |= more_sanity(model, x, y, explained)
    out |= more_maps(a, maps, masks, run)
    out |= images_of_one_channel()

    images = rng.normal(size=(2, 3, 12, 11))
    images[1] += images[0]
    out["ssim_images"] = images
    pairs = list(zip(*images, strict=True))
    span = [max(p.max(), q.max()) - min(p.min(), q.min()) for p, q in pairs]
    ssim = skimage.metrics.structural_similarity
    out["ssim"] = np.asarray([ssim(p, q, data_range=s) for (p, q), s in zip(pairs, span, strict=True)])

    np.savez_compressed(pathlib.Path(__file__).with_name("quantus.npz"), **out)


if __name__ == "__main__":
    main()
