"""The rules: how the relevance R_j of a unit's output is shared among its inputs i.

Every rule is a frozen dataclass and a pytree whose hyper-parameters are leaves, so `jax.vmap` over an ε or a γ
works. Nothing here knows of jaxprs. `Rule` says how to write one of your own; notebooks/writing_rules.md does
it for a layer, an activation and a product.
"""

from lrpjax import _hints as _hints
from lrpjax.rules.activations import RECTIFIERS as RECTIFIERS
from lrpjax.rules.activations import BetaSmooth as BetaSmooth
from lrpjax.rules.activations import Deconvnet as Deconvnet
from lrpjax.rules.activations import Gradient as Gradient
from lrpjax.rules.activations import GuidedBackprop as GuidedBackprop
from lrpjax.rules.activations import Pass as Pass
from lrpjax.rules.activations import Stop as Stop
from lrpjax.rules.arithmetic import Layer as Layer
from lrpjax.rules.arithmetic import divide as divide
from lrpjax.rules.arithmetic import halves as halves
from lrpjax.rules.arithmetic import is_coarse as is_coarse
from lrpjax.rules.arithmetic import is_zero as is_zero
from lrpjax.rules.arithmetic import negative as negative
from lrpjax.rules.arithmetic import positive as positive
from lrpjax.rules.arithmetic import quotient as quotient
from lrpjax.rules.arithmetic import stabilize as stabilize
from lrpjax.rules.base import LAYERS as LAYERS
from lrpjax.rules.base import LINEAR as LINEAR
from lrpjax.rules.base import PLAIN as PLAIN
from lrpjax.rules.base import RATIO as RATIO
from lrpjax.rules.base import Factor as Factor
from lrpjax.rules.base import Rule as Rule
from lrpjax.rules.base import check as check
from lrpjax.rules.base import rule as rule
from lrpjax.rules.layers import AlphaBeta as AlphaBeta
from lrpjax.rules.layers import Epsilon as Epsilon
from lrpjax.rules.layers import Flat as Flat
from lrpjax.rules.layers import Gamma as Gamma
from lrpjax.rules.layers import Norm as Norm
from lrpjax.rules.layers import Pattern as Pattern
from lrpjax.rules.layers import WSquare as WSquare
from lrpjax.rules.layers import ZBox as ZBox
from lrpjax.rules.layers import ZPlus as ZPlus
from lrpjax.rules.layers import box as box
from lrpjax.rules.layers import is_epsilon as is_epsilon
from lrpjax.rules.layers import mark_of as mark_of
from lrpjax.rules.layers import same_mark as same_mark
from lrpjax.rules.sharing import Product as Product
from lrpjax.rules.sharing import Sum as Sum

__all__ = [
    "LAYERS",
    "LINEAR",
    "PLAIN",
    "RATIO",
    "RECTIFIERS",
    "AlphaBeta",
    "BetaSmooth",
    "Deconvnet",
    "Epsilon",
    "Factor",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "Layer",
    "Norm",
    "Pass",
    "Pattern",
    "Product",
    "Rule",
    "Stop",
    "Sum",
    "WSquare",
    "ZBox",
    "ZPlus",
    "box",
    "check",
    "divide",
    "halves",
    "negative",
    "positive",
    "rule",
    "stabilize",
]

__getattr__ = _hints.missing("lrpjax.rules")
