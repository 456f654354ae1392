"""The peers of lrpjax on the same networks, weights and inputs: zennit and captum, in torch, on the CPU, or on a GPU that both frameworks see.

`compare` times lrpjax, `jax.grad`, the peer and the gradient of torch in turns, and compares the relevances: in float32 at the size measured, and
in float64 at 64×64, where rounding cannot hide a difference of the rules, nor look like one. `peer_flops` is what the peer computes over what
lrpjax does: where both run at the same speed, it is the ratio of their throughputs.
"""

import functools
import importlib.metadata
import os
from collections.abc import Callable

import bench
import jax
import jax.numpy as jnp
import networks
import numpy as np
import torch
from captum.attr import LRP
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from zennit import attribution, canonizers, layer
from zennit import composites as zennit_composites

import lrpjax
from lrpjax import rules, select

ZENNIT = {
    "epsilon_plus_flat": zennit_composites.EpsilonPlusFlat,
    "epsilon_plus": zennit_composites.EpsilonPlus,
    "epsilon_alpha2_beta1": zennit_composites.EpsilonAlpha2Beta1,
    "epsilon_gamma_box": lambda **more: zennit_composites.EpsilonGammaBox(*bench.BOUNDS, **more),
}
CAPTUM = lrpjax.Composite(
    [(select.kind("conv", "dense"), rules.Epsilon(1e-9)), (select.kind("pool"), rules.Norm(1e-9))]
)
"""captum's default: its ε-rule also holds for max pools."""

COLUMNS = (
    "network",
    "batch",
    "peer",
    "composite",
    "difference",
    "difference64",
    "seconds",
    "peer_seconds",
    "throughput",
    "gradients",
    "overhead",
    "peer_overhead",
    "peer_flops",
)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "zennit", "captum")}


class VGG(nn.Module):
    """Flattens without a module, for which captum has no rule."""

    def __init__(self, model: networks.VGG, size: int):
        super().__init__()
        layers, channels = [], 3
        for width in model.widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels, size = width or channels, size if width else size // 2
        self.features = nn.Sequential(*layers)
        hidden, rows = model.hidden, channels * size**2
        self.classifier = nn.Sequential(
            nn.Linear(rows, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classifier.append(nn.Linear(hidden, model.classes))

    def __iter__(self):
        return iter([*self.features, *self.classifier])

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = 4 * width
        parts = ((channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1))
        branch, skip = [], []
        for i, (m, n, kernel, step) in enumerate(parts):
            branch += [nn.Conv2d(m, n, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(n)]
            branch += [nn.ReLU()] if i < 2 else []
        if channels != out or stride != 1:
            skip += [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
        self.branch, self.skip, self.relu = nn.Sequential(*branch), nn.Sequential(*skip), nn.ReLU()

    def forward(self, x):
        return self.relu(self.skip(x) + self.branch(x))


def summed(self, x):
    """`Bottleneck.forward`, with a module for the sum, to which zennit can attach a rule."""
    return self.relu(self.add(torch.stack([self.skip(x), self.branch(x)], -1)))


def resnet(model: networks.ResNet, size: int) -> nn.Module:
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for i, depth in enumerate(model.depths):
        for j in range(depth):
            layers.append(Bottleneck(channels, 64 * 2**i, 2 if i and not j else 1))
            channels = 4 * 64 * 2**i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, model.classes))


class Merge(canonizers.SequentialMergeBatchNorm):
    """Folds BatchNorm into the layer before. zennit 0.5.1 leaves the ε of the emptied BatchNorm in place, which changes the network a little."""

    def register(self, linears, batch_norm):
        super().register(linears, batch_norm)
        self.eps, batch_norm.eps = batch_norm.eps, 0.0

    def remove(self):
        super().remove()
        self.batch_norm.eps = self.eps


class AddSums(canonizers.AttributeCanonizer):
    """Gives every Bottleneck a module for its sum."""

    def __init__(self):
        super().__init__(
            lambda name, module: (
                {"forward": summed.__get__(module), "add": layer.Sum()}
                if isinstance(module, Bottleneck)
                else None
            )
        )

    def copy(self):
        return canonizers.AttributeCanonizer(self.attribute_map)


TORCH = {networks.VGG: VGG, networks.ResNet: resnet}


def copied(model: nn.Module, variables: dict, device: str) -> nn.Module:
    """The torch network with the weights of the flax one: both number the layers of a kind in the order in which they run."""
    tensor = lambda a, *axes: torch.tensor(np.transpose(np.asarray(a), axes) if axes else np.asarray(a))

    def fill(modules, params, stats):
        counts = {"Conv": 0, "BatchNorm": 0, "Dense": 0, "Bottleneck": 0}

        def following(kind):
            name = f"{kind}_{counts[kind]}"
            counts[kind] += 1
            return params[name], stats.get(name)

        rows = None
        for module in modules:
            if isinstance(module, nn.Conv2d):
                p, _ = following("Conv")
                module.weight.data = tensor(p["kernel"], 3, 2, 0, 1)
                if module.bias is not None:
                    module.bias.data = tensor(p["bias"])
                rows = module.out_channels
            elif isinstance(module, nn.BatchNorm2d):
                p, s = following("BatchNorm")
                module.weight.data, module.bias.data = tensor(p["scale"]), tensor(p["bias"])
                module.running_mean.data, module.running_var.data = tensor(s["mean"]), tensor(s["var"])
            elif isinstance(module, nn.Linear):
                p, _ = following("Dense")
                kernel = np.asarray(p["kernel"])
                if rows:  # behind Flatten: rows in the order height, width, channel, which in torch is channel, height, width
                    kernel = kernel.reshape(-1, rows, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)
                module.weight.data, module.bias.data, rows = tensor(kernel, 1, 0), tensor(p["bias"]), None
            elif isinstance(module, Bottleneck):
                fill([*module.branch, *module.skip], *following("Bottleneck"))
                rows = 1

    fill(model, variables["params"], variables.get("batch_stats", {}))
    return model.eval().requires_grad_(False).to(device)


def devices() -> tuple[jax.Device, str]:
    """One device for JAX and for torch: a GPU where both see one, else the CPU."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    both = torch.cuda.is_available() and jax.default_backend() == "gpu"
    return (jax.devices()[0], "cuda") if both else (jax.devices("cpu")[0], "cpu")


class Pair:
    """One network in both frameworks, with a batch, its classes, and what there is to run."""

    def __init__(self, name: str, size: int, batch: int, dtype=jnp.float32):
        self.device, self.torch_device = devices()
        model = networks.NETWORKS[name]
        cast = lambda a: jax.device_put(a.astype(dtype), self.device)
        variables = jax.tree.map(cast, networks.weights(model, size))
        x = cast(networks.inputs(model, size, batch))
        self.given = model, variables, x
        self.classes = bench.classes_of(*self.given)
        self.net = copied(TORCH[type(model)](model, size), variables, self.torch_device)
        self.input = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)).to(self.torch_device)
        self.target = torch.tensor(self.classes).long().to(self.torch_device)
        with torch.no_grad():
            logits = self.net(self.input).cpu().numpy()
        self.forward = self.different(jax.jit(model.apply)(variables, x), logits)
        if self.forward > 1e-2:
            raise RuntimeError(f"{name}: the networks of the two frameworks differ by {self.forward:.2g}")

    @staticmethod
    def different(ours, theirs) -> float:
        """The largest difference, relative to the largest value."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    def relevance(self, composite) -> bench.Program:
        return bench.Program(bench.relevance_of(composite, self.classes), *self.given)

    @functools.cached_property
    def gradient(self) -> bench.Program:
        return bench.Program(bench.gradient_of(self.classes), *self.given)

    def settled(self, run: Callable) -> Callable:
        """A function of torch that is over when it returns."""

        def whole():
            R = run()
            if self.torch_device == "cuda":
                torch.cuda.synchronize()
            return R

        return whole

    def torch_gradient(self):
        x = self.input.clone().requires_grad_()
        logit = self.net(x).gather(1, self.target[:, None]).sum()
        return torch.autograd.grad(logit, x)[0]

    def zennit(self, composite: str) -> tuple[Callable, Callable]:
        """(run, leave): the hooks of the composite stay on the network until `leave()`."""
        made = ZENNIT[composite](canonizers=[Merge(), AddSums()])
        seed = lambda y: y * nn.functional.one_hot(self.target, y.shape[1])
        explain = attribution.Gradient(self.net, made, attr_output=seed)
        explain.__enter__()
        return (lambda: explain(self.input)[1]), (lambda: explain.__exit__(None, None, None))

    def captum(self, composite: str) -> tuple[Callable, Callable]:
        explain = LRP(self.net)
        return (lambda: explain.attribute(self.input.clone().requires_grad_(), target=self.target)), (
            lambda: None
        )


class Flops(TorchDispatchMode):
    """The flops of the matrix products and convolutions that torch runs within; torch's own counter refuses some backward passes."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def seen(R: torch.Tensor) -> np.ndarray:
    return R.detach().cpu().numpy().transpose(0, 2, 3, 1)


def measure(pair: Pair, peer: str, composite: str, repeats: int) -> dict:
    """Without repeats only the largest difference of the relevances."""
    program = pair.relevance(CAPTUM if peer == "captum" else bench.COMPOSITES[composite])
    run, leave = getattr(pair, peer)(composite)
    try:
        with Flops() as flops:
            theirs = seen(run())
        row = {"difference": pair.different(program.run(), theirs), "peer_flops": flops.total / program.flops}
        if repeats:
            ours, theirs = bench.in_turns([program.run, pair.settled(run)], repeats)
    finally:
        leave()
    if repeats:
        gradients = bench.in_turns([pair.gradient.run, pair.settled(pair.torch_gradient)], repeats)
        row |= {"seconds": ours, "peer_seconds": theirs, "throughput": theirs / ours}
        row |= {"gradients": gradients[1] / gradients[0]}
        row |= {"overhead": ours / gradients[0], "peer_overhead": theirs / gradients[1]}
    return row


def compare(names, size, batches, largest, repeats):
    """One row for each network, batch that is run, peer and composite; batches after the first with the first composite alone."""
    for name in names:
        kind = type(networks.NETWORKS[name])
        if kind not in TORCH:
            continue
        cases = [("zennit", c) for c in ZENNIT] + ([("captum", "epsilon")] if kind is networks.VGG else [])
        with jax.enable_x64(True), jax.default_device(devices()[0]):
            pair = Pair(name, min(size, 64), 2, jnp.float64)
            exact = {case: measure(pair, *case, 0)["difference"] for case in cases}
        with jax.default_device(devices()[0]):
            for batch in [b for b in batches if b <= largest]:
                pair = Pair(name, size, batch)
                for case in cases if batch == batches[0] else cases[:1]:
                    row = {"network": name, "batch": batch, "peer": case[0], "composite": case[1]}
                    row |= measure(pair, *case, repeats) | {"difference64": exact[case]}
                    yield row | {"forward_difference": pair.forward}
