"""Layer-wise relevance propagation as a JAX function transform."""

import importlib as _importlib
import typing as _typing

from lrpjax import _aliases, _hints
from lrpjax import circuits as circuits
from lrpjax import composites as composites
from lrpjax import metrics as metrics
from lrpjax import neuralised as neuralised
from lrpjax import patterns as patterns
from lrpjax import rules as rules
from lrpjax import select as select
from lrpjax import targets as targets
from lrpjax._version import __version__ as __version__
from lrpjax.analysis import bilrp as _bilrp
from lrpjax.analysis import concepts as concepts
from lrpjax.analysis import gradients as gradients
from lrpjax.analysis import language as language
from lrpjax.analysis import parameters as parameters
from lrpjax.analysis import positions as positions
from lrpjax.analysis import taylor as taylor
from lrpjax.analysis import tuning as tuning
from lrpjax.analysis import uncertainty as uncertainty
from lrpjax.analysis import walks as walks
from lrpjax.analysis.audit import Audit as Audit
from lrpjax.analysis.audit import audit as audit
from lrpjax.analysis.audit import messages as messages
from lrpjax.analysis.tuning import tune as tune
from lrpjax.composites import Composite as Composite
from lrpjax.core.compiled import clear_cache as clear_cache
from lrpjax.custom import custom_relevance as custom_relevance
from lrpjax.custom import tag as tag
from lrpjax.data import batches as batches
from lrpjax.data import store as store
from lrpjax.data.batches import explain_batches as explain_batches
from lrpjax.data.store import open_store as open_store
from lrpjax.errors import ConservationWarning as ConservationWarning
from lrpjax.errors import CutWarning as CutWarning
from lrpjax.errors import InputError as InputError
from lrpjax.errors import LrpjaxError as LrpjaxError
from lrpjax.errors import NativeWarning as NativeWarning
from lrpjax.errors import PathError as PathError
from lrpjax.errors import ProbabilityWarning as ProbabilityWarning
from lrpjax.errors import RuleError as RuleError
from lrpjax.errors import TargetError as TargetError
from lrpjax.errors import UnmatchedWarning as UnmatchedWarning
from lrpjax.errors import UnsupportedError as UnsupportedError
from lrpjax.linearised import Linearised as Linearised
from lrpjax.linearised import linearise as linearise
from lrpjax.transform import plan as plan
from lrpjax.transform import relevance as relevance
from lrpjax.transform import value_and_relevance as value_and_relevance
from lrpjax.transform import vjp as vjp

similarity = _bilrp

_LAZY = (
    "bow",
    "commands",
    "data",
    "demo",
    "dossier",
    "estimators",
    "exchange",
    "explore",
    "keras",
    "loading",
    "onnx",
    "pretrained",
    "repair",
    "report",
    "torch",
    "viz",
)
"""Modules that are imported when they are asked for: several need packages that `lrpjax` itself does not."""

_missing = _hints.missing("lrpjax")


def __getattr__(name: str) -> _typing.Any:
    return _importlib.import_module(f"lrpjax.{name}") if name in _LAZY else _missing(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"commands", "keras", "loading", "onnx", "torch"})


if _typing.TYPE_CHECKING:  # what else the table below lets users import from here
    from lrpjax import bow as bow
    from lrpjax import dossier as dossier
    from lrpjax import exchange as exchange
    from lrpjax import explore as explore
    from lrpjax import pretrained as pretrained
    from lrpjax import repair as repair
    from lrpjax import report as report
    from lrpjax import viz as viz
    from lrpjax.cli import commands as commands
    from lrpjax.cli.demos import network as _network
    from lrpjax.data import loading as loading
    from lrpjax.patterns import estimators as estimators

    demo = _network

# The names under which users import modules that stand in a folder. Each gives the same module object as its place
# does, and is imported when asked for: several need packages that `lrpjax` itself does not.
_aliases.install(
    {
        "lrpjax.batches": "lrpjax.data.batches",
        "lrpjax.bow.demo": "lrpjax.cli.demos.bag_of_words",
        "lrpjax.commands": "lrpjax.cli.commands",
        "lrpjax.concepts": "lrpjax.analysis.concepts",
        "lrpjax.demo": "lrpjax.cli.demos.network",
        "lrpjax.estimators": "lrpjax.patterns.estimators",
        "lrpjax.gradients": "lrpjax.analysis.gradients",
        "lrpjax.language": "lrpjax.analysis.language",
        "lrpjax.layers": "lrpjax.patterns.network",
        "lrpjax.ledger": "lrpjax.analysis.audit",
        "lrpjax.loading": "lrpjax.data.loading",
        "lrpjax.parameters": "lrpjax.analysis.parameters",
        "lrpjax.positions": "lrpjax.analysis.positions",
        "lrpjax.metrics.similarity": "lrpjax.metrics.agreement",
        "lrpjax.similarity": "lrpjax.analysis.bilrp",
        "lrpjax.store": "lrpjax.data.store",
        "lrpjax.taylor": "lrpjax.analysis.taylor",
        "lrpjax.tuning": "lrpjax.analysis.tuning",
        "lrpjax.uncertainty": "lrpjax.analysis.uncertainty",
        "lrpjax.walks": "lrpjax.analysis.walks",
    }
)
