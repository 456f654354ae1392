"""Files of other tools: projects for ViRelAy, and CoRelAy's files."""

from lrpjax.exchange.corelay import from_corelay as from_corelay
from lrpjax.exchange.corelay import to_corelay as to_corelay
from lrpjax.exchange.shared import ExchangeError as ExchangeError
from lrpjax.exchange.virelay import to_virelay as to_virelay
from lrpjax.exchange.semanticlens import to_semanticlens as to_semanticlens
