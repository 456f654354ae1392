"""Files of other tools: projects for ViRelAy."""

from lrpjax.exchange.virelay import ExchangeError as ExchangeError
from lrpjax.exchange.virelay import to_virelay as to_virelay
