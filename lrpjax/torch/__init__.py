"""PyTorch modules as JAX functions that can be explained (`pip install "lrpjax[torch]"`)."""

from lrpjax.torch.explaining import explain as explain
from lrpjax.torch.explaining import explainer as explainer
from lrpjax.torch.running import function as function
