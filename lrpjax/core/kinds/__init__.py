"""The kinds of unit, by name. A new kind is a file here (or a class in one of the files) and an entry in KINDS."""

from collections.abc import Mapping
from types import MappingProxyType

from lrpjax.core.kinds.activation import Activation
from lrpjax.core.kinds.base import Kind
from lrpjax.core.kinds.control import Cond, Remat, Scan, ShardMap, While
from lrpjax.core.kinds.division import Norm, Quotient
from lrpjax.core.kinds.layer import Conv, Dense
from lrpjax.core.kinds.linear import Affine, Linear, Pool
from lrpjax.core.kinds.other import Custom, Softmax, Structural, Unknown
from lrpjax.core.kinds.sharing import ProductKind, SumKind

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Conv(),
            Dense(),
            Activation(),
            SumKind(),
            Pool(),
            ProductKind(),
            Quotient(),
            Norm(),
            Softmax(),
            Affine(),
            Linear(),
            Custom(),
            Unknown(),
            Structural(),
            Scan(),
            Cond(),
            While(),
            Remat(),
            ShardMap(),
        )
    }
)
"""A unit whose kind is not here is a KeyError."""
