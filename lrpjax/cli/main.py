"""The `lrpjax` command: one sub-command for each entry of `COMMANDS`."""

import argparse
import sys
from collections.abc import Sequence

from lrpjax._version import __version__
from lrpjax.cli import commands, doctor, dossiers, exploring, reporting
from lrpjax.cli.demos import network
from lrpjax.errors import LrpjaxError

# Each adds its parser to the sub-parsers and returns it; the parser's default `run` is a function of its arguments.
COMMANDS = (
    network.add_parser,
    commands.add_explain_parser,
    commands.add_plan_parser,
    commands.add_show_parser,
    commands.add_save_parser,
    exploring.add_explore_parser,
    reporting.add_report_parser,
    dossiers.add_dossier_parser,
    doctor.add_parser,
)


FIRST = """\
examples:

    lrpjax demo              trains a small network and shows why it says 3 and not 9 (pip install "lrpjax[demo]")
    lrpjax doctor            says what is installed here, and whether it works
    lrpjax explain --help    begins with a model of your own, as a whole example
    lrpjax explore STORE     finds clusters among what explain has stored; report STORE shows them on a page
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        "lrpjax",
        description="Layer-wise relevance propagation as a JAX function transform.",
        epilog=FIRST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lrpjax {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command in COMMANDS:
        added = command(subparsers)
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0 or what the command says, 2 for an error of the user (its message goes to stderr), 130 if
        interrupted.

    Raises:
        SystemExit: from argparse, for --help, --version and arguments that do not parse.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
            ...
        SystemExit: 0
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (LrpjaxError, ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"lrpjax {args.command}: {error} (--debug shows the traceback)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lrpjax {args.command}: interrupted", file=sys.stderr)
        return 130
