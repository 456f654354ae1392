"""The sub-commands `explain`, `plan`, `show` and `save` of the command line."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lrpjax import transform
from lrpjax.cli import options
from lrpjax.core.seeds import output_relevance
from lrpjax.data import batches as batching
from lrpjax.data import compact as compacting
from lrpjax.data import files, loading, store

EXAMPLE = """\
a first example. In an empty folder, write these lines to model.py (pip install "lrpjax[demo]" has what they need):

    import jax
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    np.save("digits.npy", x[:200].reshape(-1, 8, 8, 1))

    def build():
        first = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
        last = np.linalg.lstsq(np.maximum(x @ first, 0), np.eye(10, dtype=np.float32)[digits.target])[0]
        return (lambda params, x: jax.nn.relu(x.reshape(len(x), -1) @ params[0]) @ params[1]), (first, last)

then give these commands; the second draws out/sheet.png:

    python model.py
    lrpjax explain --model model.py:build --inputs digits.npy --out out
    lrpjax show out

"""
EXPLAIN = """\
inputs:
  .npy, .npz     arrays with the inputs along their first axis; 8-bit ones are divided by 255
  .png, .jpg     one input each, (height, width, 1) if grey and (height, width, 3) if not, floats in [0, 1]; --channels
                 makes all alike. 16-bit grey keeps its 16 bits; palettes and CMYK become RGB; transparent pixels lie on
                 white; pictures are turned upright as their EXIF says
  a folder       all of these in it and in its subfolders, sorted by path. Hidden files and stores of results are passed
                 over; files of other kinds too, which is said

  Before the work starts every file's header is read: pictures that are cut off or cannot be opened, and inputs of
  different shapes, are errors that name the files. A picture that turns out damaged later stops the run; what was
  explained is kept, and the same command goes on when the file is mended (or removed, if nothing after it is stored).
  With --skip-unreadable such pictures are no errors: their results are NaN, they are named, and the exit code is 1.

results:
  DIR is a Zarr group with the arrays "relevance" and "output", and for each input the sums of the relevance that the
  output began with, "explained", and that arrived, "arrived" (lrpjax.open_store, or any Zarr 3 reader). A
  command that was ended in any way goes on where it was when it is given again. lrpjax save DIR FILE writes them
  into a .npz, .npy, .safetensors or .h5 file.

exit codes:
  0 explained; 1 explained, but some results are NaN or infinite; 2 not explained: an error in what was given
"""


def add_explain_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax explain` to the command line; its `run` explains a data set."""
    parser = subparsers.add_parser(
        "explain",
        help="explain a data set with your model; store the relevances",
        description="Explains every input and stores the relevances, batch by batch.",
        epilog=EXAMPLE + options.MODEL + "\n" + EXPLAIN,
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
        help="what is explained: max, the largest output (default); all of them; a class number, or its name in "
        "--labels; a .npy file with a class number for each input",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="text with the names of classes 0, 1, ..., one in a line; kept for show",
    )
    parser.add_argument(
        "--at", metavar="PATH", help="relevance of this named value instead of the input's; see plan"
    )
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="inputs in a batch (default 32)")
    parser.add_argument("--mesh", metavar="N", help="divide each batch over N devices, or over all")
    parser.add_argument(
        "--distributed",
        metavar="HOST:PORT,COUNT,INDEX",
        help="be process INDEX of COUNT, each with its share of the inputs; auto: as the cluster says (see "
        "jax.distributed.initialize)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--sum-channels",
        action="store_true",
        help="keep the sum of the relevance over the last axis, a picture's channels",
    )
    parser.add_argument(
        "--store-as",
        choices=list(compacting.DTYPES),
        help="keep relevances in 16 or 8 bits and a scale for each input; what is lost is measured, stored and printed",
    )
    parser.add_argument("--png", action="store_true", help="also write a heatmap of each input to DIR/png")
    parser.set_defaults(run=run_explain)
    return parser


def add_plan_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax plan` to the command line; its `run` prints which rule explains which part of a model."""
    parser = subparsers.add_parser(
        "plan",
        help="print which rule explains which part of your model",
        description="Prints each unit of the model with its path, kind, rule, shape and source line.",
        epilog=options.MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_model(parser)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--shape", metavar="N,N,...", help="shape of a batch of inputs, such as 1,28,28,1")
    inputs.add_argument("--inputs", nargs="+", metavar="FILE", help="files, folders, or globs in quotes")
    options.add_reading(parser)
    parser.set_defaults(run=run_plan)
    return parser


def add_show_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax show` to the command line; its `run` describes stored results and draws them."""
    parser = subparsers.add_parser(
        "show",
        help="describe stored results and draw a contact sheet of them",
        description="Prints what a store holds, and draws heatmaps of its relevances on one sheet.",
    )
    parser.add_argument("store", metavar="STORE", help="directory that explain wrote")
    parser.add_argument("--name", default="relevance", help="array that is drawn (default: relevance)")
    parser.add_argument(
        "--rows", default="0:32", metavar="START:STOP", help="inputs that are drawn (default 0:32)"
    )
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="pictures in a line (default 8)")
    parser.add_argument("--out", metavar="FILE", help="the picture (default: STORE/sheet.png)")
    parser.add_argument(
        "--verify", action="store_true", help="first read everything and name what is damaged"
    )
    parser.set_defaults(run=run_show)
    return parser


def add_save_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax save` to the command line; its `run` writes stored results into one file."""
    parser = subparsers.add_parser(
        "save",
        help="write stored results into a .npz, .npy, .safetensors or .h5 file",
        description="Writes the arrays of a store into one file, for programs that read no Zarr. The store stays.",
    )
    parser.add_argument("store", metavar="STORE", help="directory that explain wrote")
    parser.add_argument(
        "file", metavar="FILE", help=f"the file; its ending, {', '.join(files.WRITERS)}, says the format"
    )
    parser.add_argument(
        "--name", action="append", help="array that is written; may be given again (default: all)"
    )
    parser.add_argument(
        "--widen",
        action="store_true",
        help="write types that NumPy lacks, such as bfloat16, to .npz and .npy as float32",
    )
    parser.add_argument("--partial", action="store_true", help="also write a store that is not complete")
    parser.set_defaults(run=run_save)
    return parser


def run_explain(args: argparse.Namespace) -> int:
    """Explains a data set as the command line says.

    Args:
      args: what `add_explain_parser` parses.

    Returns:
      The exit code: 0, or 1 if some results are not finite.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    if Path(args.out).suffix in files.WRITERS:
        raise ValueError(
            f"--out {args.out} must be a directory, from which an interrupted run resumes; give --out DIR, and then "
            f"lrpjax save DIR {args.out}"
        )
    if args.batch < 1:
        raise ValueError(f"--batch must be 1 or more, not {args.batch}")
    if args.png:
        from lrpjax.viz.colours import load_matplotlib

        load_matplotlib()  # what is missing is said before the work, and not after the first batch
    _join(args.distributed)
    inputs = options.read_inputs(args)
    names = loading.class_names(args.labels) if args.labels else None
    mesh = _mesh(args.mesh)
    f, params = loading.load_model(args.model, args.params, mesh, pictures=inputs.all_pictures)
    composite, name = loading.load_composite(args.composite, args.composite_arg)
    target, labels = options.read_target(args.target, inputs.rows, names or [])
    y = options.check_model(f, params, inputs[0:1], args.model)
    if names and getattr(y, "shape", ())[-1:] != (len(names),):
        raise ValueError(f"--labels {args.labels} has {len(names)} names, but the outputs are {y}")

    # With or without --skip-unreadable, so that a run that stopped at a picture can go on with it.
    blank = any(path.suffix.lower() in loading.pictures.SUFFIXES for path in inputs.paths)

    def explain(params, batch):
        x, classes = batch if labels is not None else (batch, target)
        y, R = transform.value_and_relevance(f, composite, argnums=1, target=classes, at=args.at)(params, x)
        if blank:  # a picture that could not be read: no function may make numbers of it
            lost = jax.numpy.isnan(x).reshape(len(x), -1).any(1)
            hide = lambda leaf: jax.numpy.where(lost.reshape(-1, *[1] * (leaf.ndim - 1)), jax.numpy.nan, leaf)
            y, R = jax.tree.map(hide, (y, R))
        found = {"output": y, "relevance": _sum_channels(R) if args.sum_channels else R}
        if composite.method != "relevance" or isinstance(R, dict):
            return found
        rows = lambda tree: sum(leaf.reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(tree))
        return found | {"explained": rows(output_relevance(y, classes)), "arrived": rows(R)}

    if args.store_as:
        explain = compacting.compact(explain, args.store_as)
    index, count = jax.process_index(), jax.process_count()
    start, stop = inputs.rows * index // count, inputs.rows * (index + 1) // count
    slices = (slice(i, min(i + args.batch, stop)) for i in range(start, stop, args.batch))
    data = (inputs[rows] if labels is None else (inputs[rows], labels[rows]) for rows in slices)
    settings = {"model": args.model, "composite": name, "target": args.target, "at": args.at, "labels": names}
    settings |= {option: getattr(args, option) for option in ("size", "crop", "mean", "std", "channels")}
    # Only where they are given, so that stores of before go on.
    settings |= {
        option: getattr(args, option) for option in ("sum_channels", "store_as") if getattr(args, option)
    }
    began, done = time.monotonic(), start
    with options.warnings_in_a_line("explain"):
        for result in batching.explain_batches(
            jax.jit(explain),
            data,
            params=params,
            mesh=mesh,
            batch_size=args.batch,
            store=args.out,
            skip_stored=not args.png,
            settings=settings,
            total=stop - start,
        ):
            if args.png:
                R = result["relevance"]
                R = np.asarray(R) if isinstance(R, compacting.Compact) else R
                _write_pictures(Path(args.out) / "png", done, R)
            done += len(jax.tree.leaves(result)[0])
    seconds = time.monotonic() - began
    stored = store.open_store(Path(args.out) / f"process-{index:05d}" if count > 1 else args.out)
    bad = stored.batches[:, 1]
    for reason in inputs.unreadable.values():
        print(f"lrpjax explain: skipped: {reason}", file=sys.stderr)
    print(f"{stored.rows} inputs in {seconds:.1f} s ({stored.rows / seconds:.3g} a second): {stored.path}")
    for said in (describe_kept(stored), describe_rounding(stored)):
        if said:
            print(said)
    if bad.any():
        where = f"{bad.sum()} inputs, in batches {_listed(np.flatnonzero(bad))}"
        print(f"lrpjax explain: the results of {where}, have a NaN or an infinity", file=sys.stderr)
    return int(bad.any())


def run_plan(args: argparse.Namespace) -> int:
    """Prints the plan as the command line says.

    Args:
      args: what `add_plan_parser` parses.

    Returns:
      The exit code, 0.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    pictures = False
    if args.inputs:
        inputs = options.read_inputs(args)
        x, pictures = inputs[0:1], inputs.all_pictures
    else:
        x = jax.ShapeDtypeStruct(loading.numbers(args.shape, ",", "--shape"), np.float32)
    f, params = loading.load_model(args.model, args.params, shapes=True, pictures=pictures)
    composite, name = loading.load_composite(args.composite, args.composite_arg)
    options.check_model(f, params, x, args.model)
    plans = []

    def note(params, x):  # traced, for there may be only the shapes of the params
        plans.append(transform.plan(f, composite, params, x, argnums=1))

    with options.warnings_in_a_line("plan"):
        jax.eval_shape(note, params, x)
    print(f"{args.model}, {name}\n{plans[0]}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Describes a store and draws its contact sheet as the command line says.

    Args:
      args: what `add_show_parser` parses.

    Returns:
      The exit code, 0.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    results = store.open_store(args.store)
    if args.columns < 1:
        raise ValueError(f"--columns must be 1 or more, not {args.columns}")
    print(describe(results))
    if args.verify:
        results.verify()
        print("read whole: nothing is damaged")
    if args.name not in results:
        raise ValueError(f"{args.store} has the arrays {', '.join(results)}, not {args.name!r}")
    array = results[args.name]
    begin, _, end = args.rows.partition(":")
    try:
        first, last = int(begin or 0), int(end or array.shape[0])
    except ValueError:
        raise ValueError(f"--rows must be START:STOP, such as 0:32, not {args.rows!r}") from None
    rows = range(array.shape[0])[first:last]
    if not rows:
        raise ValueError(f"--rows {args.rows} has none of the {array.shape[0]} rows of {args.store}")
    if array.ndim not in (3, 4):
        if args.out:
            raise ValueError(f"{args.name} has rows of shape {tuple(array.shape[1:])}, which are no pictures")
        return 0

    from lrpjax import viz

    pictures: list[Any] = list(viz.heatmap(_with_channels(np.asarray(array[rows.start : rows.stop]))))
    captions = [str(row) for row in rows]
    if "output" in results and results["output"].ndim == 2:
        classes = np.asarray(results["output"][rows.start : rows.stop]).argmax(1)
        names = results.settings.get("labels") or [f"class {c}" for c in range(results["output"].shape[1])]
        captions = [f"{row}: {names[c]}" for row, c in zip(rows, classes, strict=True)]
    columns = min(args.columns, len(pictures))
    empty = -len(pictures) % columns
    pictures, captions = pictures + [None] * empty, captions + [""] * empty
    out = Path(args.out or Path(args.store) / "sheet.png")
    viz.sheet(
        [pictures[i : i + columns] for i in range(0, len(pictures), columns)],
        captions=[captions[i : i + columns] for i in range(0, len(captions), columns)],
        title=", ".join(
            str(results.settings[key]) for key in ("model", "composite") if key in results.settings
        ),
        colorbar="relevance",
        limit="own",
        path=out,
    )
    print(f"drawn: {out}")
    return 0


def run_save(args: argparse.Namespace) -> int:
    """Writes a store's arrays into one file as the command line says.

    Args:
      args: what `add_save_parser` parses.

    Returns:
      The exit code, 0.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    results = store.open_store(args.store)
    path = results.save(args.file, args.name, widen=args.widen, partial=args.partial)
    print(f"{results.rows} rows of {', '.join(args.name or results)}: {path}")
    return 0


def describe(results: store.Store) -> str:
    """What a store holds, in lines for a person to read.

    Args:
      results: stored results.

    Returns:
      Text without a newline at its end.
    """
    lines = [f"{results.path}: {results.rows} rows, {'complete' if results.complete else 'not complete'}"]
    lines += [f"  {name}: {array.dtype.name}{list(array.shape)}" for name, array in results.items()]
    about = {**results.settings, **results.versions}
    lines += [
        f"  {key} = {textwrap.shorten(str(value), 100)}" for key, value in about.items() if value is not None
    ]
    lines += [f"  {said}" for said in (describe_kept(results), describe_rounding(results)) if said]
    bad = results.batches[:, 1]
    if bad.any():
        lines.append(f"  not finite: {bad.sum()} rows, in batches {_listed(np.flatnonzero(bad))}")
    return "\n".join(lines)


def describe_kept(results: store.Store) -> str:
    """How much of what was explained arrived, Σ R / f(x), over all stored rows; empty where a store does not tell: of
    gradients, of several named values, or where all outputs are 0."""
    if "explained" not in results:
        return ""
    explained, arrived = (
        np.asarray(results[name][:]).astype(np.float64) for name in ("explained", "arrived")
    )
    rows = np.isfinite(explained) & np.isfinite(arrived) & (explained != 0)
    if not rows.any():
        return ""
    share = arrived[rows] / explained[rows]
    return f"kept: Σ R / f(x) is {np.median(share):.3g} in the median, from {share.min():.3g} to {share.max():.3g}"


def describe_rounding(results: store.Store) -> str:
    """What was lost where arrays are kept in fewer bits, over all stored rows; empty where none are."""
    lines = []
    for name in sorted(results):
        if f"{name}.error" not in results:
            continue
        error, kind = np.asarray(results[f"{name}.error"]), results[f"{name}.values"].dtype.name
        error = error[np.isfinite(error)]
        if len(error):
            lines.append(
                f"{name} is kept as {kind}: Σ|error| / Σ|R| is {np.median(error):.2g} in the median, "
                f"{error.max():.2g} at most"
            )
    return "\n".join(lines)


def _sum_channels(R: Any) -> Any:
    if isinstance(R, dict) or R.ndim < 3:
        shapes = jax.tree.map(lambda leaf: tuple(leaf.shape[1:]), R)
        raise ValueError(f"--sum-channels: relevance has rows of shape {shapes}, which have no channels")
    return R.sum(-1, keepdims=True)


def _join(distributed: str | None) -> None:
    if distributed is None:
        return
    if distributed == "auto":
        jax.distributed.initialize()
        return
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", distributed)
    if match is None or int(match[3]) >= int(match[2]):
        raise ValueError(
            f"--distributed must be auto or HOST:PORT,COUNT,INDEX, INDEX < COUNT, not {distributed!r}"
        )
    jax.distributed.initialize(match[1], num_processes=int(match[2]), process_id=int(match[3]))


def _mesh(devices: str | None) -> Mesh | None:
    if devices is None:
        return None
    there = jax.devices()
    if devices == "all":
        devices = str(len(there))
    if not devices.isdecimal() or not 1 <= int(devices) <= len(there):
        raise ValueError(
            f"--mesh must be all, or a number of devices; there are {len(there)}; not {devices!r}"
        )
    return Mesh(np.array(there[: int(devices)]), ("data",))


def _write_pictures(folder: Path, first: int, relevance: Any) -> None:
    """A heatmap for each row; those that are there already are of an earlier run on the same store."""
    if not isinstance(relevance, np.ndarray) or relevance.ndim not in (3, 4):
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], relevance)
        raise ValueError(f"--png: relevance has rows of shape {shapes}, which are no pictures")
    from PIL import Image

    from lrpjax import viz

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(viz.heatmap(_with_channels(relevance)), first):
        path = folder / f"{number:08d}.png"
        if not path.exists():
            Image.fromarray(picture).save(path.with_suffix(".part"), format="png")
            path.with_suffix(".part").replace(path)


def _with_channels(relevance: np.ndarray) -> np.ndarray:
    return relevance if relevance.ndim == 4 else relevance[..., None]


def _listed(numbers: Sequence[int] | np.ndarray) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
