"""Further networks for images, in flax linen with random weights: EfficientNet, ConvNeXt, U-Net and DenseNet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# He's weights, and biases that are not zero: XLA drops what it knows to be zero.
KERNEL, BIAS = nn.initializers.he_normal(), nn.initializers.normal(0.1)


def normed(x: jax.Array, width: int, kernel: int, stride: int = 1, groups: int = 1) -> jax.Array:
    """A convolution without biases, and a BatchNorm in inference; to be called within a module's own `__call__`."""
    x = nn.Conv(width, (kernel, kernel), stride, feature_group_count=groups, use_bias=False)(x)
    return nn.BatchNorm(use_running_average=True)(x)


class Inverted(nn.Module):
    """The MBConv of EfficientNet: expand, depthwise convolution, squeeze and excitation, project."""

    width: int
    kernel: int
    stride: int
    expand: int

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        wide = channels * self.expand
        y = nn.swish(normed(x, wide, 1)) if self.expand > 1 else x
        y = nn.swish(normed(y, wide, self.kernel, self.stride, groups=wide))
        s = nn.swish(nn.Dense(max(1, channels // 4), bias_init=BIAS)(y.mean((1, 2))))
        y = y * nn.sigmoid(nn.Dense(wide, bias_init=BIAS)(s))[:, None, None]
        y = normed(y, self.width, 1)
        return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
    """The defaults are EfficientNet-B0: for each stage (expansion, width, depth, kernel, stride)."""

    stages: tuple[tuple[int, ...], ...] = (
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )
    stem: int = 32
    head: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.swish(normed(x, self.stem, 3, 2))
        for expand, width, depth, kernel, stride in self.stages:
            for i in range(depth):
                x = Inverted(width, kernel, 1 if i else stride, expand)(x)
        x = nn.swish(normed(x, self.head, 1))
        return nn.Dense(self.classes, bias_init=BIAS)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """The defaults are ConvNeXt-T. The scale of each branch is 0.2, where training starts from 1e-6."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        conv = lambda width, kernel, stride, groups=1: nn.Conv(
            width, (kernel, kernel), stride, feature_group_count=groups, bias_init=BIAS
        )
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            x = conv(width, 2, 2)(nn.LayerNorm()(x)) if i else nn.LayerNorm()(conv(width, 4, 4)(x))
            for j in range(depth):
                y = nn.LayerNorm()(conv(width, 7, 1, width)(x))
                y = nn.gelu(nn.Dense(4 * width, bias_init=BIAS)(y))
                y = nn.Dense(width, bias_init=BIAS)(y)
                x = x + y * self.param(f"scale_{i}_{j}", nn.initializers.constant(0.2), (width,))
        return nn.Dense(self.classes, bias_init=BIAS)(nn.LayerNorm()(x.mean((1, 2))))


class UNet(nn.Module):
    """A U-Net with transposed convolutions; the score of a class is the mean of its map."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    classes: int = 21

    @nn.compact
    def __call__(self, x):
        pair = lambda x, width: nn.relu(normed(nn.relu(normed(x, width, 3)), width, 3))
        skips = []
        for width in self.widths[:-1]:
            skips.append(pair(x, width))
            x = nn.max_pool(skips[-1], (2, 2), (2, 2))
        x = pair(x, self.widths[-1])
        for width, skip in zip(self.widths[-2::-1], reversed(skips), strict=True):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), kernel_init=KERNEL, bias_init=BIAS)(x)
            x = pair(jnp.concatenate([skip, x], -1), width)
        return nn.Conv(self.classes, (1, 1), bias_init=BIAS)(x).mean((1, 2))


class DenseNet(nn.Module):
    """The defaults are DenseNet-121."""

    depths: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        norm = lambda x: nn.relu(nn.BatchNorm(use_running_average=True)(x))
        conv = lambda width, kernel: nn.Conv(width, (kernel, kernel), use_bias=False)
        x = nn.max_pool(nn.relu(normed(x, self.stem, 7, 2)), (3, 3), (2, 2), padding="SAME")
        for i, depth in enumerate(self.depths):
            if i:
                x = nn.avg_pool(conv(x.shape[-1] // 2, 1)(norm(x)), (2, 2), (2, 2))
            for _ in range(depth):
                y = conv(self.growth, 3)(norm(conv(4 * self.growth, 1)(norm(x))))
                x = jnp.concatenate([x, y], -1)
        return nn.Dense(self.classes, bias_init=BIAS)(norm(x).mean((1, 2)))


NETWORKS = {
    "efficientnet": EfficientNet(),
    "convnext": ConvNeXt(),
    "unet": UNet(),
    "densenet": DenseNet(),
    "tiny_efficientnet": EfficientNet(((1, 4, 1, 3, 1), (2, 6, 2, 5, 2)), 4, 16, 10),
    "tiny_convnext": ConvNeXt((1, 1), (4, 8), 10),
    "tiny_unet": UNet((4, 8), 5),
    "tiny_densenet": DenseNet((2, 2), 4, 8, 10),
}
NORMED = EfficientNet, UNet, DenseNet
"""Those with BatchNorm, whose statistics have to be varied."""
