"""`lrpjax demo --photo`: why a network that was trained on ImageNet sees what it sees in photographs.

Every method explains the class with the largest logit and the runner-up. The table says how much of the logit arrives
at the pixels, where the rest went, and how far the maps of the two classes differ.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lrpjax import composites, pretrained, viz
from lrpjax._progress import bar
from lrpjax.analysis.audit import audit
from lrpjax.composites import Composite

PHOTOS = ("cat", "coffee", "china", "flower", "rocket", "astronaut")
"""The photographs in the order in which they are shown."""

QUANTILE = 0.995
"""The part of the pixels whose relevance lies within a map's range of colours: one pixel must not decide it."""


def methods(low: float, high: float) -> dict[str, Composite]:
    """The composites that are compared, for inputs in a box.

    Example:
        >>> list(methods(0.0, 1.0))[0]
        'gradient × input'
    """
    return {
        "gradient × input": composites.input_x_gradient(),
        "LRP-ε": composites.epsilon(),
        "LRP-z⁺": composites.epsilon_plus(),
        "LRP-γ / box": composites.epsilon_gamma_box(low, high),
        "γ by stage": composites.gamma_stages(low, high),
        "γ, bias shared": composites.gamma_shared(low, high),
        "Deep Taylor": composites.deep_taylor(low, high),
    }


class Shown(NamedTuple):
    """What one method gave. R: the relevance of every photograph for its top class and its rival, [photos, 2, H, W].
    kept: Σ R / f(x), [photos, 2]. bias, stabiliser: the parts of the logits' sum that they took, or NaN for a gradient,
    which shares nothing out. seconds: to compile and run."""

    R: NDArray
    kept: NDArray
    bias: float
    stabiliser: float
    seconds: float

    @property
    def size(self) -> NDArray:
        """Σ|R| / |Σ R| of each photograph's top class, over the channels' sums."""
        own = self.R[:, 0]
        return np.abs(own).sum((1, 2)) / np.abs(own.sum((1, 2)))

    @property
    def correlation(self) -> NDArray:
        """Of the maps of the two classes, for each photograph."""
        flat = self.R.reshape(len(self.R), 2, -1)
        return np.array([np.corrcoef(pair)[0, 1] for pair in flat])


def photo_demo(out: Path, images: int = 4) -> None:
    """Explains photographs, prints the tables and writes the picture: what `lrpjax demo --photo` does.

    Args:
        out: the picture's path; its ending names the format. images: how many photographs.

    Raises:
        ValueError: a number out of range, or a format that matplotlib does not write.
        OSError: `out` cannot be written; found before anything is computed.
        ImportError: what `pip install "lrpjax[photo]"` installs is not there.
    """
    from rich.console import Console

    if not 1 <= images <= len(PHOTOS):
        raise ValueError(f"images must be from 1 to {len(PHOTOS)}; it is {images}")
    viz.check_path(out)
    console = Console()
    network, pictures = pretrained.lite0(), pretrained.photographs()
    names = PHOTOS[:images]
    x = np.stack([pretrained.photograph(pictures[name]) for name in names])
    logits = np.asarray(jax.jit(network.apply)(network.params, x))
    classes = np.argsort(-logits, axis=1)[:, :2]

    shown: dict[str, Shown] = {}
    with bar("explaining", len(methods(0.0, 1.0))) as progress:
        for name, composite in methods(network.low, network.high).items():
            progress.advance(0, text=f"explaining: {name}")
            shown[name] = _explain(network, composite, x, classes, logits)
            progress.advance()
        progress.advance(0, text="explained")

    console.print(_classes(names, classes, logits, network.labels))
    console.print(_methods(shown))
    console.print(
        "kept: how much of the top class's logit the pixels have in the end, Σ R / logit. Little is no error: the "
        "columns beside it say where the rest went, the parts of the logits that biases and stabilisers took; –: a "
        "gradient shares nothing out.\n"
        "size: Σ|R| / |Σ R|; 1: nothing speaks against the class; large: what speaks for and against it cancels.\n"
        "alike: the correlation of a photograph's two maps; 1: the method does not tell the classes apart.\n"
        "Medians over the photographs. s: seconds to compile and run.",
        soft_wrap=True,
    )
    _picture([pretrained.crop(pictures[name]) for name in names], classes, logits, network.labels, shown, out)
    console.print(f"picture: {out}", soft_wrap=True)


def _explain(
    network: pretrained.Network, composite: Composite, x: NDArray, classes: NDArray, logits: NDArray
) -> Shown:
    """One method for both classes of every photograph."""

    @jax.jit
    def explain(params, x, classes):
        return audit(lambda x: network.apply(params, x), composite, target=classes, with_relevance=True)(x)

    start = time.perf_counter()
    R, account = jax.block_until_ready(explain(network.params, np.repeat(x, 2, axis=0), classes.reshape(-1)))
    seconds = time.perf_counter() - start
    R = np.asarray(R).sum(-1).reshape(len(x), 2, *x.shape[1:3])
    kept = R.sum((2, 3)) / np.take_along_axis(logits, classes, axis=1)
    if composite.method != "relevance":
        return Shown(R, kept, np.nan, np.nan, seconds)
    part = lambda column: float(sum(getattr(u, column) for u in account.units) / account.seed)
    return Shown(R, kept, part("bias"), part("epsilon"), seconds)


def _classes(names: Sequence[str], classes: NDArray, logits: NDArray, labels: Sequence[str]):
    from rich.table import Table

    table = Table("photograph", "class")
    for heading in ("probability", "logit"):
        table.add_column(heading, justify="right")
    for name, own, y in zip(names, classes, logits, strict=True):
        for i, (c, p) in enumerate(zip(own, _probabilities(y)[own], strict=True)):
            table.add_row("" if i else name, labels[c], f"{p:.1%}", f"{y[c]:.2f}")
    return table


def _probabilities(y: NDArray) -> NDArray:
    exponentials = np.exp(y - y.max())
    return exponentials / exponentials.sum()


def _methods(shown: Mapping[str, Shown]):
    from rich.table import Table

    table = Table("method")
    for heading in ("kept", "biases", "stabi-\nlisers", "size", "alike", "s"):
        table.add_column(heading, justify="right")
    part = lambda v: "–" if np.isnan(v) else f"{v:.2g}"
    for name, each in shown.items():
        table.add_row(
            name,
            part(np.median(each.kept[:, 0])),
            part(each.bias),
            part(each.stabiliser),
            f"{np.median(each.size):.3g}",
            f"{np.median(each.correlation):.3f}",
            f"{each.seconds:.1f}",
        )
    return table


def _picture(
    pictures: Sequence[NDArray],
    classes: NDArray,
    logits: NDArray,
    labels: Sequence[str],
    shown: Mapping[str, Shown],
    out: Path,
) -> None:
    """Two rows for each photograph, top class and rival, which share each method's range of colours."""
    rows, captions, row_labels = [], [], []
    for i, picture in enumerate(pictures):
        probabilities = _probabilities(logits[i])
        for k, c in enumerate(classes[i]):
            maps = [
                viz.heatmap(each.R[i, k], limit=viz.shared_limit(*each.R[i], quantile=QUANTILE))
                for each in shown.values()
            ]
            rows.append([None if k else picture, *maps])
            captions.append(["", *(f"Σ R = {each.kept[i, k]:.2%}" for each in shown.values())])
            row_labels.append(f"why {labels[c]}?\n{probabilities[c]:.0%}, logit {logits[i, c]:.1f}")
    viz.sheet(
        rows,
        row_labels,
        ["photograph", *shown],
        captions=captions,
        group=2,
        title="What a network that knows ImageNet sees, and how much of it each method accounts for",
        footer="EfficientNet-Lite0. Under each map: the part of the logit that arrives at the pixels; the rest went to "
        "biases and stabilisers.",
        colorbar="relevance",
        note="the two maps of a photograph by one method share their range: "
        f"its end is the |R| that {100 * QUANTILE:g} % of their pixels stay below",
        cell=1.35,
        path=out,
    )
