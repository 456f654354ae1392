"""What several sub-commands share: the options that name a model, a composite and inputs, and the reading of them."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrpjax.data import loading

MODEL = """\
the model (--model package.module:build, or --model path/to/file.py:build):
  build() returns (f, params): f(params, x) gives the outputs, such as logits, for a batch x, and params is a
  pytree of arrays or, together with --params, of their shapes. The working directory is searched for the
  package; a file finds the modules beside it. For Flax:

    def build():                                       # linen
        model = CNN()
        return model.apply, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))

    def build():                                       # nnx
        graph, state = nnx.split(nnx.eval_shape(lambda: CNN(rngs=nnx.Rngs(0))))
        return (lambda state, x: nnx.merge(graph, state)(x)), state

  For PyTorch (--model torch:package.module:build, or torch:file.py:build) build() returns the module in evaluation
  mode, which takes one input, or (module, dict) with what lrpjax.torch.function takes by name. Pictures come to it with
  their channels first:

    def build():
        return torchvision.models.resnet18(weights="DEFAULT").eval()

  Relevance is that of x, as f gets it: after --size, --crop, --mean and --std. What else belongs between a picture's
  pixels and the network is part of f.
"""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that name a model and a composite."""
    parser.add_argument(
        "--model", required=True, metavar="MODULE:BUILD", help="your model, or FILE.py:BUILD; see below"
    )
    parser.add_argument("--params", metavar="DIR", help="orbax checkpoint with the model's params")
    parser.add_argument(
        "--composite",
        default="epsilon_plus",
        metavar="NAME",
        help=f"one of {', '.join(loading.presets())}, or MODULE:NAME of your own (default epsilon_plus)",
    )
    parser.add_argument(
        "--composite-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the composite, such as low=0; may be given again",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The options that say how inputs are read."""
    parser.add_argument("--key", help="array that is read from .npz files (default: the only one)")
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="resize the pictures to this height and width, or N: their shorter side to N",
    )
    parser.add_argument("--crop", metavar="HxW", help="then cut out their middle")
    parser.add_argument(
        "--mean", metavar="N,...", help="take this from the inputs, one for each channel or for all"
    )
    parser.add_argument("--std", metavar="N,...", help="then divide them by this, such as 0.229,0.224,0.225")
    parser.add_argument(
        "--channels", metavar="N", help="3: pictures all get red, green and blue; 1: all become grey"
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="go on without pictures that cannot be read; their results are NaN",
    )


def read_inputs(args: argparse.Namespace) -> loading.Inputs:
    """The inputs that `--inputs` and the options of `add_reading` name; says what was passed over."""
    inputs = loading.Inputs(
        args.inputs,
        args.key,
        args.size,
        args.crop,
        args.mean,
        args.std,
        args.channels,
        args.skip_unreadable,
    )
    if inputs.passed_over:
        names = ", ".join(map(str, inputs.passed_over[:5])) + (", ..." if len(inputs.passed_over) > 5 else "")
        print(
            f"lrpjax: passed over {len(inputs.passed_over)} files of other kinds: {names}",
            file=sys.stderr,
        )
    return inputs


def read_target(target: str, rows: int, names: Sequence[str]) -> tuple[Any, np.ndarray | None]:
    """The target for all inputs, and that of each input if it is in a file. names: those of the classes."""
    if target == "max":
        return "max", None
    if target == "all":
        return None, None
    if re.fullmatch(r"-?\d+", target):
        return int(target), None
    if target in names:
        return names.index(target), None
    if not target.endswith(".npy"):
        raise ValueError(
            f"--target must be max, all, a class number or a .npy file, not {target!r}"
            + ("; there is no such name in --labels" if names else "")
        )
    with loading.readable(Path(target)):
        labels = np.load(target)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        found = f"{labels.dtype}{list(labels.shape)}"
        raise ValueError(f"--target {target} has {found}, not one class number for each of {rows} inputs")
    return None, labels


def check_model(f: Callable[..., Any], params: Any, x: Any, spec: str) -> Any:
    """Runs the model on shapes, so that what its author has to mend is told from what lrpjax finds; the output's."""
    try:
        return jax.eval_shape(
            f, params, jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        )
    except Exception as error:
        reason = f"for x of {x.dtype}{list(x.shape)} with {type(error).__name__}: {error}"
        raise ValueError(f"--model {spec}: f(params, x) failed {reason}") from error


@contextlib.contextmanager
def warnings_in_a_line(command: str) -> Iterator[None]:
    """Warnings of users' models are a line each on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: print(
            f"lrpjax {command}: warning: {message}", file=sys.stderr
        )
        yield
