"""The networks that the benchmarks run, in flax linen with random weights. Strides pad as in torch, so that peers can run the same networks."""

import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks_images
import networks_sequences
from networks_images import BIAS, KERNEL

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """Convolutions of the given widths (0 stands for a pool), then three dense layers; the defaults are VGG-16."""

    widths: tuple[int, ...] = VGG16
    hidden: int = 4096
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        conv = lambda width: nn.Conv(width, (3, 3), kernel_init=KERNEL, bias_init=BIAS)
        dense = lambda width: nn.Dense(width, kernel_init=KERNEL, bias_init=BIAS)
        for width in self.widths:
            x = nn.relu(conv(width)(x)) if width else nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(dense(self.hidden)(x))
        return dense(self.classes)(x)


def conv(width, kernel, stride=1, same=False):
    """A convolution of a ResNet, padded as in torch, or "SAME"."""
    padding = "SAME" if same else kernel // 2
    return nn.Conv(width, (kernel, kernel), stride, padding=padding, use_bias=False)


class Basic(nn.Module):
    """The residual block of ResNet-18 and -34."""

    width: int
    stride: int
    train: bool
    same: bool

    @nn.compact
    def __call__(self, x):
        norm = lambda y: nn.BatchNorm(use_running_average=not self.train)(y)
        y = nn.relu(norm(conv(self.width, 3, self.stride, self.same)(x)))
        y = norm(conv(self.width, 3)(y))
        if x.shape != y.shape:
            x = norm(conv(self.width, 1, self.stride)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """The residual block of ResNet-50 and deeper ones."""

    width: int
    stride: int
    train: bool
    same: bool

    @nn.compact
    def __call__(self, x):
        norm = lambda y: nn.BatchNorm(use_running_average=not self.train)(y)
        y = nn.relu(norm(conv(self.width, 1)(x)))
        y = nn.relu(norm(conv(self.width, 3, self.stride, self.same)(y)))
        y = norm(conv(4 * self.width, 1)(y))
        if x.shape != y.shape:
            x = norm(conv(4 * self.width, 1, self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet; the defaults are ResNet-50. `same` pads as JAX does by default, where torch pads otherwise."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    classes: int = 1000
    block: type[nn.Module] = Bottleneck
    same: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(64, 7, 2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME" if self.same else ((1, 1), (1, 1)))
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                x = self.block(64 * 2**i, 2 if i and not j else 1, train, self.same)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


RESNETS = {
    "resnet18": lambda classes: ResNet((2, 2, 2, 2), classes, Basic, True),
    "resnet50": lambda classes: ResNet((3, 4, 6, 3), classes, same=True),
    "resnet101": lambda classes: ResNet((3, 4, 23, 3), classes, same=True),
}


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x):
        dense = lambda width: nn.Dense(width, bias_init=BIAS)
        h = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        x = x + nn.MultiHeadDotProductAttention(self.heads, bias_init=BIAS)(h, h, mask=mask)
        h = nn.LayerNorm()(x)
        return x + dense(x.shape[-1])(nn.gelu(dense(4 * x.shape[-1])(h)))


class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), self.patch, bias_init=BIAS)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.depth):
            x = Block(self.heads)(x)
        return nn.Dense(self.classes, bias_init=BIAS)(nn.LayerNorm()(x)[:, 0])


class Decoder(nn.Module):
    """A causal language model behind its embedding: embedded tokens to the logits of the next token."""

    width: int = 512
    depth: int = 6
    heads: int = 8
    words: int = 8192

    @nn.compact
    def __call__(self, x):
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.depth):
            x = Block(self.heads, causal=True)(x)
        return nn.Dense(self.words, use_bias=False)(nn.LayerNorm()(x)[:, -1])


NETWORKS = {
    "vgg16": VGG(),
    "resnet50": ResNet(),
    "vit": ViT(),
    "decoder": Decoder(),
    "tiny_vgg": VGG((4, 0, 8, 0), 16, 10),
    "tiny_decoder": Decoder(16, 1, 2, 32),
    **networks_images.NETWORKS,
    **networks_sequences.NETWORKS,
}
SEQUENCES = Decoder, networks_sequences.LSTM, networks_sequences.Mamba, networks_sequences.Llama
NORMED = ResNet, *networks_images.NORMED
"""Networks of embedded tokens, and networks with BatchNorm."""
TOKENS, BOUND = 128, 3.0
"""The length of a decoder's input, and the bounds of all inputs, ±3."""


def inputs(model: nn.Module, size: int, batch: int) -> jax.Array:
    """A batch of images, or of embedded tokens."""
    shape = (TOKENS, model.width) if isinstance(model, SEQUENCES) else (size, size, 3)
    return jnp.clip(jax.random.normal(jax.random.key(1), (batch, *shape), jnp.float32), -BOUND, BOUND)


@functools.lru_cache(maxsize=1)
def weights(model: nn.Module, size: int) -> dict:
    """Random variables of a network; with BatchNorm it gets He's weights, and biases and statistics that are not 0 and 1."""
    variables = jax.jit(model.init)(jax.random.key(0), inputs(model, size, 1))
    if not isinstance(model, NORMED):
        return variables
    spread = {"mean": (-0.2, 0.2), "var": (0.5, 1.5), "scale": (0.5, 1.0), "bias": (-0.2, 0.2)}

    def varied(path, leaf):
        name = jax.tree_util.keystr(path)
        if path[-1].key not in spread:
            return leaf * jnp.sqrt(2.0).astype(leaf.dtype) if "Conv" in name else leaf
        low, high = spread[path[-1].key]
        key = jax.random.fold_in(jax.random.key(2), zlib.crc32(name.encode()))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, low, high)

    return jax.tree_util.tree_map_with_path(varied, variables)


def make(name: str, size: int, batch: int):
    """(f, x): a network as a function of its input, and an input."""
    model = NETWORKS[name]
    variables = weights(model, size)
    return (lambda x: model.apply(variables, x)), inputs(model, size, batch)
