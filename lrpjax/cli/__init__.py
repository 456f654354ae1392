"""The command line: `lrpjax demo`, `explain`, `plan`, `show`, `save` and `doctor`."""

from lrpjax.cli.main import COMMANDS as COMMANDS
from lrpjax.cli.main import build_parser as build_parser
from lrpjax.cli.main import main as main
