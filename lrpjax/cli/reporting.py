"""The sub-command `report` of the command line: a page of a whole data set."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrpjax import report, transform
from lrpjax.data import loading
from lrpjax.data.store import Store, open_store
from lrpjax.report import ReportError
from lrpjax.report.sources import Explained

ABOUT = """\
The page is one file without a network or a server. Inputs are read as the store's settings say (--size, --crop,
--mean, --std, --channels of `lrpjax explain`) and compared with what was explained. --plan runs your model's build()
to say which rule explains which part.
"""


def add_report_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax report` to the command line; its `run` writes a page of a store."""
    parser = subparsers.add_parser(
        "report",
        help="write a page on which a whole store can be filtered, sorted and looked into",
        description="Writes one page of HTML with every stored explanation.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", help="directory that explain wrote")
    parser.add_argument(
        "--out", default="report.html", metavar="FILE", help="the page (default: report.html)"
    )
    parser.add_argument(
        "--inputs", nargs="+", metavar="FILE", help="what was explained: files, folders or globs"
    )
    parser.add_argument("--key", help="array that is read from .npz files (default: the only one)")
    parser.add_argument("--target", metavar="FILE.npy", help="where the file of explained classes lies now")
    parser.add_argument("--name", default="relevance", help="array that is shown (default: relevance)")
    parser.add_argument("--classes", metavar="FILE.npy", help="the true class number of each row, −1 unknown")
    parser.add_argument(
        "--names", metavar="FILE", help="names of classes, one in a line (default: the store's)"
    )
    parser.add_argument("--tokens", metavar="FILE", help=".json or .jsonl: a list of strings for each row")
    parser.add_argument("--findings", metavar="FILE", help="clusters (default: STORE/findings.npz, if there)")
    parser.add_argument(
        "--plan", action="store_true", help="show the plan of the store's model and composite"
    )
    parser.add_argument(
        "--model", metavar="MODULE:BUILD", help="the model of the plan (default: the store's)"
    )
    parser.add_argument(
        "--composite", metavar="NAME", help="the composite of the plan (default: the store's)"
    )
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument(
        "--budget", type=float, default=64.0, metavar="MB", help="size of a page (default 64)"
    )
    parser.add_argument("--rows", metavar="START:STOP", help="rows that are shown (default: all)")
    parser.add_argument("--force", action="store_true", help="replace a page that is there")
    parser.set_defaults(run=run_report)
    return parser


def run_report(args: argparse.Namespace) -> int:
    """Writes a report as the command line says.

    Args:
      args: what `add_report_parser` parses.

    Returns:
      The exit code, 0.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    store = open_store(args.store)
    inputs = _inputs(args, store) if args.inputs else None
    found = Path(args.findings) if args.findings else store.path / "findings.npz"
    path = report.write(
        store,
        args.out,
        inputs=inputs,
        classes=_array(args.classes, "--classes") if args.classes else None,
        names=loading.class_names(args.names) if args.names else None,
        tokens=read_tokens(Path(args.tokens)) if args.tokens else None,
        findings=found if args.findings or found.exists() else None,
        plan=_plan(args, store, inputs) if args.plan or args.model or args.composite else None,
        name=args.name,
        title=args.title,
        budget_mb=args.budget,
        rows=_rows(args.rows),
        overwrite=args.force,
    )
    largest = max(
        file.stat().st_size for file in (path.parent.glob("*.html") if path.name == "index.html" else [path])
    )
    print(f"{path}: {largest / 1e6:.1f} MB of {args.budget:g} MB")
    return 0


def _inputs(args: argparse.Namespace, store: Store) -> Explained:
    options = [store.settings.get(key) for key in ("size", "crop", "mean", "std", "channels")]
    # Pictures that cannot be read were explained as NaN, if at all; their fingerprints tell.
    inputs = loading.Inputs(args.inputs, args.key, *options, skip_unreadable=True)
    target = str(args.target or store.settings.get("target") or "")
    return Explained(inputs, store, _array(target, "--target") if target.endswith(".npy") else None)


def _array(file: str, option: str) -> np.ndarray:
    with loading.readable(Path(file)):
        try:
            return np.load(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{option}: there is no file {file}") from error


def read_tokens(file: Path) -> list[list[str]]:
    """The tokens in a .json file (a list of lists) or .jsonl file (a list in each line).

    Raises:
      ReportError: the file holds something else.
    """
    with loading.readable(file):
        text = file.read_text(encoding="utf-8")
        found = (
            [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
        )
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise ReportError(f"--tokens {file} must hold a list of strings for each row")
    return found


def _rows(text: str | None) -> slice | None:
    if text is None:
        return None
    begin, colon, end = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(begin or 0), int(end) if end else None)
    except ValueError:
        raise ReportError(f"--rows must be START:STOP, such as 0:1000, not {text!r}") from None


def _plan(args: argparse.Namespace, store: Store, inputs: Explained | None) -> Any:
    model = args.model or store.settings.get("model")
    written = args.composite or store.settings.get("composite")
    if not model or not written:
        raise ReportError("the store's settings name no model and composite: give --model and --composite")
    if inputs is None and (store.settings.get("at") or "relevance" not in store):
        raise ReportError(
            "the plan needs the shape of an input, which this store does not tell: give --inputs"
        )
    shape = (inputs if inputs is not None else store["relevance"]).shape
    name, _, arguments = written.partition("(")
    given = []
    if arguments:
        call = ast.parse(written, mode="eval").body
        given = (
            [f"{k.arg}={ast.unparse(k.value)}" for k in call.keywords] if isinstance(call, ast.Call) else []
        )
    f, params = loading.load_model(model, shapes=True, pictures=len(shape) == 4)
    composite, _ = loading.load_composite(name, given)
    plans = []
    note = lambda params, x: plans.append(
        transform.plan(f, composite, params, x, argnums=1, at=store.settings.get("at"))
    )
    jax.eval_shape(note, params, jax.ShapeDtypeStruct((1, *shape[1:]), np.float32))
    return plans[0]
