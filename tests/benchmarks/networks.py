"""The networks that the benchmarks run, in flax linen with random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """Convolutions of the given widths (0 stands for a pool), then two dense layers."""

    widths: tuple[int, ...] = VGG16
    hidden: int = 512
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Conv(width, (3, 3))(x)) if width else nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.mean((1, 2))))
        return nn.Dense(self.classes)(x)


class Basic(nn.Module):
    """The residual block of ResNet-18 and -34."""

    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x):
        norm = lambda y: nn.BatchNorm(use_running_average=not self.train)(y)
        y = nn.relu(norm(nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(x)))
        y = norm(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """The residual block of ResNet-50 and deeper ones."""

    width: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x):
        norm = lambda y: nn.BatchNorm(use_running_average=not self.train)(y)
        y = nn.relu(norm(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm(nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(y)))
        y = norm(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm(nn.Conv(4 * self.width, (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet; the defaults are ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    classes: int = 1000
    block: type[nn.Module] = Bottleneck

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                x = self.block(64 * 2**i, 2 if i and not j else 1, train)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


RESNETS = {
    "resnet18": lambda classes: ResNet((2, 2, 2, 2), classes, Basic),
    "resnet50": lambda classes: ResNet((3, 4, 6, 3), classes),
    "resnet101": lambda classes: ResNet((3, 4, 23, 3), classes),
}


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h, mask=mask)
        h = nn.LayerNorm()(x)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(h)))


class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), self.patch)(x).reshape(x.shape[0], -1, self.width)
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.depth):
            x = Block(self.heads)(x)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


NETWORKS = {"vgg16": VGG, "resnet50": ResNet, "vit": ViT}


def make(name: str, size: int, batch: int, dtype=jnp.float32):
    """(f, x): a network as a function of its input, and an input."""
    model = NETWORKS[name]()
    x = jax.random.normal(jax.random.key(1), (batch, size, size, 3), dtype)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])
    return (lambda x: model.apply(variables, x)), x
