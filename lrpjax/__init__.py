"""Layer-wise relevance propagation as a JAX function transform."""

from lrpjax import composites as composites
from lrpjax import concepts as concepts
from lrpjax import gradients as gradients
from lrpjax import metrics as metrics
from lrpjax import patterns as patterns
from lrpjax import rules as rules
from lrpjax import select as select
from lrpjax import similarity as similarity
from lrpjax import targets as targets
from lrpjax import taylor as taylor
from lrpjax.batches import explain_batches as explain_batches
from lrpjax.composites import Composite as Composite
from lrpjax.custom import custom_relevance as custom_relevance
from lrpjax.custom import tag as tag
from lrpjax.errors import InputError as InputError
from lrpjax.errors import LrpjaxError as LrpjaxError
from lrpjax.errors import PathError as PathError
from lrpjax.errors import ProbabilityWarning as ProbabilityWarning
from lrpjax.errors import RuleError as RuleError
from lrpjax.errors import TargetError as TargetError
from lrpjax.errors import UnmatchedWarning as UnmatchedWarning
from lrpjax.errors import UnsupportedError as UnsupportedError
from lrpjax.ledger import Audit as Audit
from lrpjax.ledger import audit as audit
from lrpjax.ledger import messages as messages
from lrpjax.store import open_store as open_store
from lrpjax.transform import plan as plan
from lrpjax.transform import relevance as relevance
from lrpjax.transform import value_and_relevance as value_and_relevance
from lrpjax.transform import vjp as vjp

__version__ = "0.1.0"
