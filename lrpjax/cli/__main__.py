"""`python -m lrpjax.cli` is the command `lrpjax`."""

import sys

from lrpjax.cli import main

sys.exit(main())
