"""Where the relevance of real networks goes: the share of the output that is left after each block.

    python tests/papers/kept.py [photographs] [sentences]    # about 5 minutes on one core; needs lrpjax[photo,text]

Of EfficientNet-Lite0's logits, and of the similarities that MiniLM gives to pairs of sentences. Pictures go to
notebooks/images/ (medians over the inputs, bands between the quartiles), tables to tests/papers/results/.
"""

import datetime
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from tuning import PAIRS

import lrpjax
from lrpjax import composites, pretrained, viz

HERE = pathlib.Path(__file__).parent
PICTURES = HERE.parent.parent / "notebooks" / "images"


def photographs() -> tuple[str, dict[str, tuple]]:
    network = pretrained.lite0()
    x = jnp.stack([jnp.asarray(pretrained.photograph(image)) for image in pretrained.photographs().values()])
    box = network.low, network.high
    chosen = {
        "epsilon_plus": composites.epsilon_plus(),
        "epsilon_gamma_box": composites.epsilon_gamma_box(*box),
        "gamma_stages": composites.gamma_stages(*box),
        "gamma_shared": composites.gamma_shared(*box),
        "deep_taylor": composites.deep_taylor(*box),
    }
    audit = lambda composite: jax.vmap(lambda x: lrpjax.audit(network, composite, target="max")(x[None]))
    found = {name: jax.jit(audit(composite))(x).stages() for name, composite in chosen.items()}
    return "EfficientNet-Lite0's logits", found


def sentences() -> tuple[str, dict[str, tuple]]:
    network = pretrained.minilm()
    x = jnp.concatenate([network.sentence(own) for own, _ in PAIRS])
    others = jnp.stack([network(network.sentence(other))[0] for _, other in PAIRS])
    chosen = {
        "attnlrp": composites.attnlrp(),
        "cp_lrp": composites.cp_lrp(),
        "attnlrp, γ = 0.05": composites.attnlrp(gamma=0.05),
        "cp_lrp, γ = 0.05": composites.cp_lrp(gamma=0.05),
    }

    def audit(composite):
        similarity = lambda x, other: network(x[None])[0] @ other
        return jax.vmap(lrpjax.audit(similarity, composite))

    found = {name: jax.jit(audit(composite))(x, others).stages() for name, composite in chosen.items()}
    return "the similarities of sentences, by MiniLM", found


def table(what: str, found: dict[str, tuple]) -> str:
    lines = [
        f"# What is left of {what}",
        "",
        "The share of the output that is left after each block, from the output down: median over the inputs; float32, "
        f"jax {jax.__version__} on {jax.default_backend()}, {datetime.date.today()}.",
        "",
        f"| after | {' | '.join(found)} |",
        f"| --- | {' | '.join('---' for _ in found)} |",
    ]
    for row in zip(*found.values(), strict=True):
        shares = (np.median(np.asarray(stage.kept)) for stage in row)
        lines.append(f"| {row[0].path.split('/')[-1]} | {' | '.join(f'{share:.3g}' for share in shares)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for explained in [globals()[name] for name in sys.argv[1:]] or [photographs, sentences]:
        what, found = explained()
        viz.kept(found, title=f"What is left of {what}", path=PICTURES / f"kept_{explained.__name__}.png")
        text = table(what, found)
        (HERE / "results" / f"kept_{explained.__name__}.md").write_text(text)
        print(text)
