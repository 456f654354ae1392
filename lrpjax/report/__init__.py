"""A whole data set on one page: every stored explanation as a thumbnail, to be filtered, sorted and looked into.

`write` makes it from a store; `lrpjax report STORE` does so on the command line. The page is one file of HTML that asks
for nothing from anywhere: it can be mailed, archived, and opened without a network or a server.
"""

from lrpjax.report.making import write as write
from lrpjax.report.sources import ReportError as ReportError

__all__ = ["ReportError", "write"]
