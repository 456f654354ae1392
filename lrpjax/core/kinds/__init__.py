"""The kinds of unit, by name. A new kind is a file here (or a class in one of the files) and an entry in KINDS."""

from collections.abc import Mapping

from lrpjax.core.kinds.activation import Activation
from lrpjax.core.kinds.base import Kind
from lrpjax.core.kinds.call import CallKind
from lrpjax.core.kinds.control import Cond, Remat, Scan, ShardMap, While
from lrpjax.core.kinds.division import Norm, Quotient
from lrpjax.core.kinds.linear import Affine, Linear, Pool
from lrpjax.core.kinds.other import Custom, Softmax, Structural, Unknown
from lrpjax.core.kinds.quantised import Conv, Dense
from lrpjax.core.kinds.sharing import ProductKind, SumKind


class Kinds(dict[str, Kind]):
    """Kinds by name; a name that no kind has is an error that says what to do."""

    def __missing__(self, name: str) -> Kind:
        raise KeyError(
            f"no kind of unit is called {name!r}: define it in lrpjax/core/kinds and enter it in KINDS"
        )


KINDS: Mapping[str, Kind] = Kinds(
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
            CallKind(),
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
"""The one place that knows what units there are."""
