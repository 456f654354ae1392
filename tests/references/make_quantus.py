"""Regenerates quantus.npz: what Quantus says of fixed arrays, for tests/metrics/test_metrics.py.

    python -m venv venv && venv/bin/pip install torch==2.13.0 quantus==0.6.0
    venv/bin/python tests/references/make_quantus.py

Made in float64 with quantus 0.6.0, torch 2.13.0 (CPU), scikit-image 0.26.0, scipy 1.17.1, numpy 2.4.6. The
draws of Quantus (subsets, noise, fresh parameters) are recorded, so that lrpjax can be given the same.
"""

import pathlib
import warnings

import numpy as np
import quantus
import skimage.metrics
import torch
from quantus.helpers.model.pytorch_model import PyTorchModel

torch.set_default_dtype(torch.float64)  # Quantus converts inputs to the default dtype
warnings.simplefilter("ignore")
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
