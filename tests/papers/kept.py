"""Where the relevance of a real network goes: the share of EfficientNet-Lite0's logits that is left after each block.

    python tests/papers/kept.py    # about 4 minutes on two cores; needs lrpjax[photo]

Writes notebooks/images/kept.png (medians over the photographs, bands between the quartiles) and
tests/papers/results/kept.md.
"""

import datetime
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import lrpjax
from lrpjax import composites, pretrained, viz

HERE = pathlib.Path(__file__).parent
PICTURE = HERE.parent.parent / "notebooks" / "images" / "kept.png"


def stages() -> dict[str, tuple]:
    network = pretrained.lite0()
    x = jnp.stack([jnp.asarray(pretrained.photograph(image)) for image in pretrained.photographs().values()])
    box = network.low, network.high
    chosen = (
        composites.epsilon_plus(),
        composites.epsilon_gamma_box(*box),
        composites.gamma_stages(*box),
        composites.gamma_shared(*box),
        composites.deep_taylor(*box),
    )
    audit = lambda composite: jax.vmap(lambda x: lrpjax.audit(network, composite, target="max")(x[None]))
    return {composite.preset: jax.jit(audit(composite))(x).stages() for composite in chosen}


def table(found: dict[str, tuple]) -> str:
    lines = [
        "# What is left of EfficientNet-Lite0's logits",
        "",
        "The share of the top class's logit that is left after each block, from the output down: median over the "
        f"photographs of `lrpjax.pretrained`; float32, jax {jax.__version__} on {jax.default_backend()}, "
        f"{datetime.date.today()}.",
        "",
        f"| after | {' | '.join(found)} |",
        f"| --- | {' | '.join('---' for _ in found)} |",
    ]
    for row in zip(*found.values(), strict=True):
        shares = (np.median(np.asarray(stage.kept)) for stage in row)
        lines.append(f"| {row[0].path.split('/')[-1]} | {' | '.join(f'{share:.3g}' for share in shares)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = stages()
    viz.kept(found, title="What is left of EfficientNet-Lite0's logits", path=PICTURE)
    text = table(found)
    (HERE / "results" / "kept.md").write_text(text)
    print(text)
