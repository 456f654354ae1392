"""Bach et al. 2015: pixels of digits inverted in the order of their relevance, in networks of ReLU and of tanh.

    python tests/papers/bach.py    # about three minutes on one core; needs lrpjax[demo]

The paper inverts pixels whose relevance is most positive, nearest to zero and most negative: the first should bring the
score of the class down, and the last should not. Its network is of tanh, on pixels from −1 to 1, where the background
has a value, and so relevance, of its own; with pixels from 0 to 1 it has none. The second table compares methods by the
first order.
"""

import functools

import jax
import jax.numpy as jnp
from common import against, areas, digits_networks, explainer, networks, over_trainings, write
from flax import linen as nn

from lrpjax import Composite, composites, metrics, rules, select

SEEDS, IMAGES, STEPS = range(5), 64, tuple(range(0, 129, 8))

everywhere = lambda rule: Composite([(select.kind("conv", "dense"), rule)])
LRP = {
    "LRP-ε": explainer(composites.epsilon()),
    "LRP-z⁺": explainer(everywhere(rules.ZPlus())),
    "LRP-α2β1": explainer(everywhere(rules.AlphaBeta(2.0, 1.0))),
}
SENSITIVITY = explainer(composites.gradient(), magnitude=True)
FILLS = {
    "inverted": lambda x, key: x.min() + x.max() - x,
    "black": lambda x, key: x.min(),
    "mean": lambda x, key: metrics.channel_mean(x),
}
ORDERS = {
    "most positive": lambda R: R,
    "nearest to zero": lambda R: -jnp.abs(R),
    "most negative": lambda R: -R,
}


class Tanh(nn.Module):
    """Images (N, 16, 16, 1) to logits (N, 10)."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in (128, 64):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(10)(x)


NETWORKS = {
    "ReLU": functools.partial(digits_networks, images=IMAGES),
    "tanh": functools.partial(networks, Tanh(), images=IMAGES),
    "tanh, −1 to 1": functools.partial(networks, Tanh(), images=IMAGES, low=-1.0),
}


def main():
    ordered, compared, accuracies = {}, {}, {}
    for network, make in NETWORKS.items():
        found, accuracies[network] = {"ordered": [], "compared": []}, []
        for seed, (f, x, accuracy) in zip(SEEDS, make(SEEDS), strict=True):
            accuracies[network].append(accuracy)
            area = functools.partial(
                areas, f, x, fills=FILLS, sizes=(1,), key=jax.random.key(seed), steps=STEPS
            )
            maps = {name: explain(f, x) for name, explain in LRP.items()}
            by_order = {f"{m}, {o} first": of(R) for m, R in maps.items() for o, of in ORDERS.items()}
            found["ordered"].append(area(by_order))
            found["compared"].append(area(maps | {"sensitivity": SENSITIVITY(f, x)}))
        for table, part in ((ordered, "ordered"), (compared, "compared")):
            for name, row in over_trainings(found[part]).items():
                own = {f"{network}, {setting}": values for setting, values in row.items()}
                table.setdefault(name, {}).update(own)
    ranges = "; ".join(f"{n}: {min(a):.1%} to {max(a):.1%}" for n, a in accuracies.items())
    first, middle, last = (f", {o} first" for o in ORDERS)
    write(
        "bach",
        "Bach et al. 2015: the order of relevance, by flipping single pixels of digits",
        f"AOPC of the logit over the first {STEPS[-1]} of 256 pixels, mean ± 95 % t interval over {len(SEEDS)} trainings (seeds "
        f"{list(SEEDS)}), {IMAGES} unseen digits each. Test accuracy: {ranges}.",
        {"AOPC by the order of pixels": ordered, "AOPC, most relevant first: more is better": compared},
        [
            *(against(ordered, [m + first, m + last], m + middle) for m in LRP),
            against(ordered, [m + end for m in LRP for end in (first, last)], "random"),
            against(compared, LRP, "sensitivity"),
        ],
    )


if __name__ == "__main__":
    main()
