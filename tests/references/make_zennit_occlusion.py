"""Regenerates zennit_occlusion.npz: zennit's occlusion maps of a small network, for tests/analysis/test_gradients.py.

    python -m venv venv && venv/bin/pip install torch==2.13.0 numpy
    venv/bin/pip install --no-deps zennit==0.5.1
    venv/bin/python tests/references/make_zennit_occlusion.py

Made with zennit 0.5.1, torch 2.13.0 (CPU), in float64. zennit imports torchvision for its canonizers of that
library's models, which play no part here; an empty module stands in for it.
"""

import pathlib
import sys
import unittest.mock

import numpy as np
import torch

sys.modules.setdefault("torchvision", unittest.mock.MagicMock())
for name in ("models", "models.resnet", "models.vgg"):
    sys.modules.setdefault(f"torchvision.{name}", unittest.mock.MagicMock())

from zennit.attribution import Occlusion, occlude_independent  # noqa: E402


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(432, 4)
    )
    x = torch.randn(3, 2, 12, 12)
    target = torch.tensor([2, 0, 3])
    logit = lambda y: y * torch.nn.functional.one_hot(target, 4)
    probability = lambda y: torch.softmax(y, 1) * torch.nn.functional.one_hot(target, 4)
    mean = lambda x: x.mean((2, 3), keepdim=True).expand_as(x)
    hide = lambda x, mask: occlude_independent(x, mask, fill_fn=mean, invert=True)
    cases = {
        "keep": Occlusion(model, attr_output=logit, window=(4, 4), stride=(4, 4)),
        "keep_gaps": Occlusion(model, attr_output=logit, window=(3, 2), stride=(4, 4)),
        "keep_probability": Occlusion(model, attr_output=probability, window=(6, 3), stride=(6, 3)),
        "hide": Occlusion(model, attr_output=logit, window=(4, 4), stride=(4, 4), occlusion_fn=hide),
    }
    out = {name: attributor(x)[1].numpy() for name, attributor in cases.items()}
    names = ("conv_weight", "conv_bias", "dense_weight", "dense_bias")
    out |= {n: p.detach().numpy() for n, p in zip(names, model.parameters(), strict=True)}
    out |= {"x": x.numpy(), "target": target.numpy(), "logits": model(x).detach().numpy()}
    np.savez_compressed(pathlib.Path(__file__).with_name("zennit_occlusion.npz"), **out)


if __name__ == "__main__":
    main()
