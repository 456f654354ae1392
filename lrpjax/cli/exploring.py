"""The sub-command `explore` of the command line: clusters of a store's explanations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lrpjax import explore
from lrpjax.data import loading

FOUND = "findings.npz"
"""Where the findings of a store lie, in its directory."""


def add_explore_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax explore` to the command line; its `run` clusters stored explanations."""
    parser = subparsers.add_parser(
        "explore",
        help="find out which strategies a model has: clusters of stored explanations",
        description="Clusters the explanations of each class (spectral relevance analysis), names prototypes and "
        "outliers, and prints the clusters, the one most unlike its class first.",
    )
    parser.add_argument(
        "store", metavar="STORE", nargs="+", help="directory that explain wrote; several count on"
    )
    parser.add_argument("--name", default="relevance", help="array that is explored (default: relevance)")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help=".npy file with a class number for each row (default: the classes that were predicted); none: all rows "
        "together",
    )
    parser.add_argument("--rows", metavar="START:STOP", help="rows that are explored (default: all)")
    parser.add_argument(
        "--pool",
        type=int,
        default=16,
        metavar="N",
        help="cells along height and width that relevances are summed over (default 16)",
    )
    parser.add_argument(
        "--normalise",
        default="l1",
        choices=["l1", "l2", "max", "none"],
        help="what each explanation is divided by (default l1, the sum of its absolute relevances)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=10,
        metavar="N",
        help="neighbours of each row in the graph (default 10)",
    )
    parser.add_argument(
        "--clusters", default="auto", metavar="N", help="clusters in each class (default: by the eigengap)"
    )
    parser.add_argument(
        "--most", type=int, default=8, metavar="N", help="the most that are looked for (default 8)"
    )
    parser.add_argument(
        "--layout",
        default="tsne",
        choices=["tsne", "umap", "spectral"],
        help="how rows are placed in the plane (default tsne)",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="classes at a time, in as many processes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default 0)")
    parser.add_argument("--partial", action="store_true", help="also explore a store that is not complete")
    parser.add_argument("--out", metavar="FILE", help=f"where the findings go (default: STORE/{FOUND})")
    parser.set_defaults(run=run_explore)
    return parser


def run_explore(args: argparse.Namespace) -> int:
    """Explores a store as the command line says.

    Args:
      args: what `add_explore_parser` parses.

    Returns:
      The exit code, 0.

    Raises:
      ValueError, OSError, ImportError, LrpjaxError: whatever was wrong in what the user gave; the message
      says it.
    """
    if len(args.store) > 1 and not args.out:
        raise ValueError("the findings of several stores lie in none of them: give --out FILE.npz")
    out = Path(args.out or Path(args.store[0]) / FOUND)
    if out.suffix != ".npz":
        raise ValueError(f"--out {args.out}: findings are kept in a .npz file")
    groups: Any = "prediction"
    if args.classes == "none":
        groups = None
    elif args.classes:
        with loading.readable(Path(args.classes)):
            groups = np.load(args.classes)
    clusters = args.clusters
    if clusters != "auto":
        if not clusters.isdecimal():
            raise ValueError(f"--clusters must be auto or a number, not {clusters!r}")
        clusters = int(clusters)
    found = explore.spectral_analysis(
        args.store,
        name=args.name,
        groups=groups,
        rows=_rows(args.rows),
        pool=args.pool,
        normalise=None if args.normalise == "none" else args.normalise,
        neighbours=args.neighbours,
        clusters=clusters,
        most=args.most,
        layout=args.layout,
        jobs=args.jobs,
        partial=args.partial,
        seed=args.seed,
    )
    print(found)
    print(f"written: {found.save(out)}")
    return 0


def _rows(text: str | None) -> slice | None:
    if text is None:
        return None
    begin, colon, end = text.partition(":")
    try:
        return slice(int(begin or 0), int(end) if end else None) if colon else slice(int(text), int(text) + 1)
    except ValueError:
        raise ValueError(f"--rows must be START:STOP, such as 0:1000, not {text!r}") from None
