"""Files of other tools: of ViRelAy, CoRelAy and semanticlens, and stores of relevances that others made."""

from lrpjax.exchange.corelay import from_corelay as from_corelay
from lrpjax.exchange.corelay import to_corelay as to_corelay
from lrpjax.exchange.importing import import_store as import_store
from lrpjax.exchange.semanticlens import to_semanticlens as to_semanticlens
from lrpjax.exchange.shared import ExchangeError as ExchangeError
from lrpjax.exchange.virelay import to_virelay as to_virelay
