"""PyTorch modules as JAX functions that can be explained (`pip install "lrpjax[torch]"`)."""

from lrpjax.torch.running import function as function
