"""Regenerates crp.npz: what zennit-crp says of a small random network, for tests/analysis/test_concepts.py.

    python -m venv venv && venv/bin/pip install torch==2.15.0 zennit==0.4.6 zennit-crp==0.6.0
    venv/bin/python tests/references/make_crp.py

Made in float64 with zennit-crp 0.6.0, zennit 0.4.6, torch 2.15.0 (CPU), numpy 2.4.6. Stabilisers are 1e-6, as zennit's and lrpjax's are.
"""

import pathlib

import numpy as np
import torch
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from zennit.composites import EpsilonGammaBox, EpsilonPlus

torch.set_default_dtype(torch.float64)

CONDITIONS = {
    "one": {"y": [1], "second": [2]},
    "several": {"y": [1], "second": [0, 3, 4]},
    "first": {"y": [3], "first": [1, 2]},
    "both": {"y": [1], "second": [2, 3], "first": [0, 3]},
    "three": {"y": [0], "dense": [1, 4, 5], "second": [1, 2, 3], "first": [0, 1]},
}


class Network(torch.nn.Module):
    """Convolution, ReLU, convolution, ReLU, max pool, dense, ReLU, dense: 2×8×8 -> 4 logits."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.relu1 = torch.nn.ReLU()
        self.second = torch.nn.Conv2d(4, 5, 3)
        self.relu2 = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool2d(2)
        self.flatten = torch.nn.Flatten()
        self.dense = torch.nn.Linear(45, 6)
        self.relu3 = torch.nn.ReLU()
        self.last = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = self.pool(self.relu2(self.second(self.relu1(self.first(x)))))
        return self.last(self.relu3(self.dense(self.flatten(x))))


class Residual(torch.nn.Module):
    """Two residual convolutions and a dense layer: 2×8×8 -> 4 logits."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.two = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.last = torch.nn.Linear(128, 4)

    def forward(self, x):
        x = x + torch.tanh(self.one(x))
        x = x + torch.tanh(self.two(x))
        return self.last(x.flatten(1))


def residual(x, out):
    model = Residual().eval()
    out |= {f"residual/{k.replace('.', '/')}": p.detach().numpy() for k, p in model.named_parameters()}
    mapping = {"y": [1], "two": [0], "one": [1]}
    for exclude in (True, False):
        data = x.clone().requires_grad_()
        CondAttribution(model)(data, [mapping] * len(x), None, exclude_parallel=exclude)
        out[f"residual/{exclude}"] = data.grad.numpy().copy()


def main():
    torch.manual_seed(3)
    model = Network().eval()
    x = torch.randn(6, 2, 8, 8)
    out = {"x": x.numpy(), "logits": model(x).detach().numpy()}
    out |= {f"params/{k.replace('.', '/')}": p.detach().numpy() for k, p in model.named_parameters()}
    composites = {"plus": EpsilonPlus(), "box": EpsilonGammaBox(low=-4.0, high=4.0), "gradient": None}
    attribution, concept = CondAttribution(model), ChannelConcept()
    for name, composite in composites.items():
        for condition, mapping in CONDITIONS.items():
            heat = []
            for i in range(2):
                data = x[i : i + 1].clone().requires_grad_()
                attribution(data, [mapping], composite)
                heat.append(data.grad[0].numpy().copy())
                if (
                    name == "plus"
                ):  # exclude_parallel=True doubles what it records at a layer that is conditioned itself
                    result = attribution(
                        data, [mapping], composite, record_layer=["first"], exclude_parallel=False
                    )
                    out.setdefault(f"latent/{condition}", []).append(
                        result.relevances["first"][0].detach().numpy()
                    )
            out[f"{name}/{condition}"] = np.stack(heat)

    data = x.clone().requires_grad_()
    result = attribution(data, [{"y": [2]}] * len(x), composites["plus"], record_layer=["second"])
    relevance, activation = result.relevances["second"].detach(), result.activations["second"].detach()
    out["channels"] = concept.attribute(relevance, abs_norm=False).numpy()
    for by, values in {"relevance": relevance, "activation": activation}.items():
        for pool in ("sum", "max"):
            for norm in (False, True):
                ranked = concept.reference_sampling(values, max_target=pool, abs_norm=norm)
                for field, array in zip(("index", "score", "position"), ranked, strict=True):
                    out[f"best/{by}/{pool}/{norm}/{field}"] = array.detach().numpy()
    residual(x[:2], out)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("crp.npz"), **{k: np.asarray(v) for k, v in out.items()}
    )


if __name__ == "__main__":
    main()
