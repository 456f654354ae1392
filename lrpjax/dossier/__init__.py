"""A dossier on an explanation: what a reviewer or a regulator asks for, measured, as a page and as JSON."""

from lrpjax.dossier.document import Comparison as Comparison
from lrpjax.dossier.document import Dossier as Dossier
from lrpjax.dossier.document import compare as compare
from lrpjax.dossier.document import load as load
from lrpjax.dossier.errors import DossierError as DossierError
from lrpjax.dossier.making import make as make

__all__ = ["Comparison", "Dossier", "DossierError", "compare", "load", "make"]
