"""What torch, zennit and LXT say of the networks of `torch_zoo.py`.

LXT changes classes of torch and of transformers for good, so each of its methods has a process of its own:
`python tests/world/torch_peers.py MODEL HOME METHOD` prints relevance as JSON, with HOME the module of its classes.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import subprocess
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch_zoo


def gradient(network: torch_zoo.Network) -> tuple[np.ndarray, np.ndarray]:
    """Output, and input × gradient of its entry of largest size, by torch's autograd."""
    # torch's derivative of this function is the number 1/6 as float32, in float64 too.
    exact = lambda x, inplace=False: torch.nn.functional.relu6(x + 3) / 6
    with _leaf(network) as run, unittest.mock.patch("torch.nn.functional.hardsigmoid", exact):
        y, leaf = run(network.module)
        (slope,) = torch.autograd.grad(largest(y).sum(), leaf)
    return y.detach().numpy(), (slope * leaf).detach().numpy()


def moved(network: torch_zoo.Network) -> tuple[float, float]:
    """By how much the output and input × gradient change, in torch alone, where each input changes in its last digit: more
    than that no two computations of a deep random network can agree. Of their largest values."""
    inputs = {
        k: v * (1 + torch.finfo(v.dtype).eps * torch.randn_like(v)) if v.is_floating_point() else v
        for k, v in network.inputs.items()
    }
    before, after = gradient(network), gradient(dataclasses.replace(network, inputs=inputs))
    y, R = (float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(before, after, strict=True))
    return y, R


def slopes(network: torch_zoo.Network, R: np.ndarray) -> tuple[float, float]:
    """How far relevance by input × gradient, and torch's own, are from difference quotients of torch's outputs along some
    directions in the input, of the largest quotient."""
    name, x = next(iter(network.inputs.items()))
    y, theirs = gradient(network)
    hot = np.abs(y).argmax()
    found = []
    for _ in range(8):
        step = 1e-6 * torch.randn_like(x)
        with torch.no_grad():
            ends = [
                chosen(network.module(**{**network.inputs, name: at}, **network.fixed), network.output)
                for at in (x + step, x - step)
            ]
        quotient = float((ends[0] - ends[1]).reshape(-1)[hot]) / 2e-6
        found.append([quotient, *(float((a / x.numpy() * step.numpy()).sum() / 1e-6) for a in (R, theirs))])
    quotients, ours, others = np.array(found).T
    size = np.abs(quotients).max()
    return float(np.abs(ours - quotients).max() / size), float(np.abs(others - quotients).max() / size)


@contextlib.contextmanager
def _leaf(network: torch_zoo.Network) -> Iterator[Callable]:
    """A function of the module that gives its output, and the tensor that is explained: a leaf of the graph.

    At a module that is called several times it is the value of the last call, as `at=` takes it.
    """
    made = []

    def cut(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        made.append(output.detach().requires_grad_())
        return made[-1]

    def run(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        made.clear()
        inputs = dict(network.inputs)
        if network.at is None:
            name, value = next(iter(inputs.items()))
            made.append(value.clone().requires_grad_())
            inputs[name] = made[-1]
        return chosen(module(**inputs, **network.fixed), network.output), made[-1]

    with contextlib.ExitStack() as stack:
        if network.at is not None:
            stack.callback(network.module.get_submodule(network.at).register_forward_hook(cut).remove)
        yield run


def chosen(made: Any, output: str | None) -> torch.Tensor:
    """The output that is explained, as `lrpjax.torch.function` would choose it."""
    from lrpjax.torch import outputs

    return outputs.choose(made, output)


def largest(y: torch.Tensor) -> torch.Tensor:
    """The entry of largest size alone."""
    flat = y.reshape(-1)
    hot = torch.arange(flat.numel()) == flat.detach().abs().argmax()
    return torch.where(hot, flat, 0.0).reshape(y.shape)


def of(name: str, network: torch_zoo.Network) -> Iterator[tuple[str, str, float, Callable, Any]]:
    """(peer, method, largest difference that passes, function that gives its relevance, the same composite here)."""
    from lrpjax import composites

    low, high = -3.0, 3.0
    for method in network.peers.get("zennit", ()):
        ours = {
            "EpsilonPlus": composites.epsilon_plus,
            "EpsilonPlusFlat": composites.epsilon_plus_flat,
            "EpsilonAlpha2Beta1": composites.epsilon_alpha2_beta1,
            "EpsilonGammaBox": lambda: composites.epsilon_gamma_box(low, high),
        }[method]()
        yield "zennit", method, 1e-10, lambda method=method: _zennit(network, method, low, high), ours
    for method in network.peers.get("lxt", ())[1:]:
        # LXT adds 10⁻¹⁰ to the input of every activation, which is what the bound is for.
        ours = {"attnlrp": composites.attnlrp, "cp_lrp": composites.cp_lrp}[method](0.0)
        yield "LXT", method, 1e-7, lambda method=method: _lxt(name, network.peers["lxt"][0], method), ours


# ------------------------------------------------------------------------------------------------------------ zennit


def _zennit(network: torch_zoo.Network, method: str, low: float, high: float) -> np.ndarray:
    zennit, vision, canonizers = (
        importlib.import_module(f"zennit.{part}") for part in ("composites", "torchvision", "canonizers")
    )
    kind = type(network.module).__name__
    canonizer = {"VGG": vision.VGGCanonizer, "ResNet": vision.ResNetCanonizer}.get(
        kind, canonizers.SequentialMergeBatchNorm
    )
    x = next(iter(network.inputs.values()))
    bounds = {"low": torch.full_like(x, low), "high": torch.full_like(x, high)} if "Box" in method else {}
    composite = getattr(zennit, method)(canonizers=[canonizer()], **bounds)
    # zennit 0.5.1 applies the ε of a BatchNorm a second time after merging it; the network is the same with none.
    norms = [m for m in network.module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    epsilons = [norm.eps for norm in norms]
    for norm in norms:
        norm.running_var += norm.eps
        norm.eps = 0.0
    try:
        with _leaf(network) as run, composite.context(network.module) as module:
            y, leaf = run(module)
            (R,) = torch.autograd.grad(y, leaf, largest(y).detach())
    finally:
        for norm, epsilon in zip(norms, epsilons, strict=True):
            norm.running_var -= epsilon
            norm.eps = epsilon
    return R.numpy()


# --------------------------------------------------------------------------------------------------------------- LXT


def _lxt(name: str, home: str, method: str) -> np.ndarray:
    if name.startswith("transformers/") and importlib.metadata.version("transformers") >= "5":
        raise ImportError("LXT 2.1 does not import beside transformers 5")
    run = subprocess.run([sys.executable, __file__, name, home, method], capture_output=True, text=True)
    if run.returncode == 3:
        raise ImportError(run.stderr.strip().splitlines()[-1])
    if run.returncode:
        raise RuntimeError(f"LXT: {run.stderr.strip().splitlines()[-1]}")
    return np.array(json.loads(run.stdout.splitlines()[-1]))


def _patch(home: str, method: str) -> None:
    """Applies LXT's patches for the models of one module of transformers or torchvision."""
    importlib.import_module(home)
    if home.startswith("torchvision"):  # the rest of LXT is about transformers, and needs a version of it
        for name in ("llama", "qwen2", "qwen3", "gemma3", "bert", "gpt2"):
            sys.modules[f"lxt.efficient.models.{name}"] = unittest.mock.MagicMock()
    else:  # and this is about torchvision
        for end in ("", ".models", ".models.vision_transformer"):
            sys.modules.setdefault(f"torchvision{end}", unittest.mock.MagicMock())
    from lxt import efficient

    short = home.rpartition("modeling_")[2] if "modeling_" in home else "vit_torch"
    maps = importlib.import_module(f"lxt.efficient.models.{short}")
    patches = maps.cp_LRP if method == "cp_lrp" else maps.attnLRP
    efficient.monkey_patch(importlib.import_module(home), patches)


def main() -> int:
    name, home, method = sys.argv[1:]
    try:
        _patch(home, method)
    except ImportError as error:
        print(f"LXT does not import: {error}", file=sys.stderr)
        return 3
    # LXT exchanges whole classes of some models, so that they are made afterwards, as in its examples.
    _, R = gradient(torch_zoo.build(name))
    print(json.dumps(R.tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
