"""The sub-command `dossier`: examine an explanation, and write the page and the numbers."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lrpjax import dossier
from lrpjax.cli import options
from lrpjax.data import loading, store

ABOUT = """\
what is written:
  DIR/dossier.html   one page that needs no network and no scripts: findings in brief, limits in plain words, the data,
                     conservation and where relevance went, sanity checks, faithfulness with 95 % intervals, clusters
                     and outliers, hashes of weights and programs, versions, and how to make it again
  DIR/dossier.json   all numbers of the page

  Both are written, or none. What each number is, and where it comes from, says help(lrpjax.dossier.make).

again:
  The same command on the same machine gives the same dossier.json but for the entry "made" (date, duration, command),
  where XLA gives the same bits. With --check OLD/dossier.json the command says, after it has made the new one, which
  parts are equal in every bit, which are not, and by how much.

exit codes:
  0 written; 1 written, but --check found differences; 2 not written: an error in what was given
"""


def add_dossier_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax dossier` to the command line; its `run` writes a dossier."""
    parser = subparsers.add_parser(
        "dossier",
        help="write what a reviewer or regulator asks of your model's explanations",
        description="Examines the explanations of some inputs and writes a page and a file of numbers.",
        epilog=options.MODEL + "\n" + ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument(
        "--inputs", required=True, nargs="+", metavar="FILE", help="files, folders, or globs in quotes"
    )
    options.add_reading(parser)
    parser.add_argument(
        "--target",
        default="max",
        help="what is explained: max, the largest output (default); all of them, for a regression; a class number, or "
        "its name in --labels; a .npy file with a class number for each input",
    )
    parser.add_argument("--classes", metavar="FILE", help=".npy file with the true class of each input")
    parser.add_argument(
        "--labels", metavar="FILE", help="text with the names of classes 0, 1, ..., one in a line"
    )
    parser.add_argument(
        "--store", metavar="STORE", help="directory that explain wrote, of the same model and inputs"
    )
    parser.add_argument(
        "--baseline",
        type=float,
        metavar="NUMBER",
        help="what parts of the input are replaced by (default: 0, and besides the mean of each channel)",
    )
    parser.add_argument(
        "--patch", type=int, metavar="N", help="replace squares of N×N pixels (default: about 64 of them)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=64,
        metavar="N",
        help="how many inputs are examined, drawn at random (default 64)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default 0)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="inputs in a batch (default 32)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where dossier.html and dossier.json go")
    parser.add_argument("--check", metavar="OLD", help="a dossier.json to compare with, bit by bit")
    parser.set_defaults(run=run_dossier)
    return parser


def run_dossier(args: argparse.Namespace) -> int:
    """Writes a dossier as the command line says.

    Args:
      args: what `add_dossier_parser` parses.

    Returns:
      The exit code: 0, or 1 if `--check` found differences.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message says it.
    """
    old = dossier.load(args.check) if args.check else None
    if args.seed < 0:
        raise ValueError(f"--seed must be 0 or more, not {args.seed}")
    stored = store.open_store(args.store) if args.store else None
    inputs = options.read_inputs(args)
    names = loading.class_names(args.labels) if args.labels else None
    classes = _true_classes(args.classes, inputs.rows) if args.classes else None
    composite, name = loading.load_composite(args.composite, args.composite_arg)
    if stored is not None:
        _check_store(stored, {"model": args.model, "composite": name, "target": args.target})
    f, params = loading.load_model(args.model, args.params, pictures=inputs.all_pictures)
    target, given = options.read_target(args.target, inputs.rows, names or [])
    options.check_model(f, params, inputs[0:1], args.model)
    made = dossier.make(
        f,
        params,
        inputs,
        composite,
        target=target if given is None else given,
        classes=classes,
        names=names,
        baseline=args.baseline,
        regions=args.patch,
        store=stored,
        seed=args.seed,
        samples=args.samples,
        batch=args.batch,
        model=args.model,
        composite_name=name,
        command=command_line(args),
    )
    folder = made.save(args.out)
    print(f"{made}\nwritten: {folder / 'dossier.html'}, {folder / 'dossier.json'}")
    for reason in inputs.unreadable.values():
        print(f"lrpjax dossier: skipped: {reason}", file=sys.stderr)
    if old is None:
        return 0
    found = dossier.compare(old, made)
    print(f"compared with {args.check}:\n{found}")
    return int(not found.equal)


def command_line(args: argparse.Namespace) -> str:
    """The command that `args` came from, quoted for a shell: what differs from the defaults, without `--check`."""
    parser = argparse.ArgumentParser()
    defaults = vars(
        add_dossier_parser(parser.add_subparsers()).parse_args(["--model", "", "--inputs", "", "--out", ""])
    )
    words = ["lrpjax", "dossier"]
    for key, value in vars(args).items():
        if key in ("run", "command", "debug", "check") or (
            value == defaults.get(key, value) and key in defaults
        ):
            continue
        option = f"--{key.replace('_', '-')}"
        if key == "composite_arg":
            words += [word for item in value for word in (option, item)]
        elif value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words += [option, str(value)]
    settings = [
        f"{name}={os.environ[name]}" for name in ("JAX_ENABLE_X64", "XLA_FLAGS") if os.environ.get(name)
    ]
    return " ".join(
        [*(f"{k}={shlex.quote(v)}" for k, v in (s.split("=", 1) for s in settings)), shlex.join(words)]
    )


def _true_classes(path: str, rows: int) -> np.ndarray:
    if not path.endswith(".npy"):
        raise ValueError(f"--classes must be a .npy file, not {path!r}")
    with loading.readable(Path(path)):
        classes = np.load(path)
    if classes.shape != (rows,) or classes.dtype.kind not in "iu":
        found = f"{classes.dtype}{list(classes.shape)}"
        raise ValueError(f"--classes {path} has {found}, not one class number for each of {rows} inputs")
    return classes


def _check_store(stored: store.Store, asked: dict[str, str]) -> None:
    """A store of another model, composite or target is not of what is examined."""
    for key, value in asked.items():
        there = stored.settings.get(key)
        if there is not None and there != value:
            raise dossier.DossierError(
                f"the store {stored.path} was made with {key} {there!r}, and this command examines {value!r}"
            )
