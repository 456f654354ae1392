"""PyTorch modules as JAX functions that can be explained (`pip install "lrpjax[torch]"`)."""

from lrpjax.torch import lowerings as _lowerings

_lowerings.import_torchax()  # before all else, so that one line says what is missing

from lrpjax.torch.explaining import explain as explain  # noqa: E402
from lrpjax.torch.explaining import explainer as explainer  # noqa: E402
from lrpjax.torch.running import function as function  # noqa: E402
