"""Samek et al. 2017: the order of methods under region perturbation, over seeds, fills and patch sizes; on digits.

    python tests/papers/samek.py    # about three minutes on one core; needs lrpjax[demo]

The same on photographs is `photographs.py`, and the flipping of single pixels of Bach et al. 2015 `bach.py`.
"""

import jax
from common import against, areas, digits_networks, explainer, over_trainings, write

from lrpjax import composites, metrics

SEEDS, IMAGES, STEPS = range(5), 64, 16
METHODS = {
    "LRP-ε": explainer(composites.epsilon()),
    "LRP-z⁺, ε in dense": explainer(composites.epsilon_plus()),
    "LRP-γ, box first": explainer(composites.epsilon_gamma_box(0.0, 1.0)),
    "deconvnet": explainer(composites.deconvnet(), magnitude=True),
    "sensitivity": explainer(composites.gradient(), magnitude=True),
}
FILLS = {
    "black": lambda x, key: 0.0,
    "mean": lambda x, key: metrics.channel_mean(x),
    "noise": lambda x, key: metrics.uniform_noise(key, x),
    "blur": lambda x, key: metrics.blur(x, 2.0),
    "inverted": lambda x, key: 1.0 - x,
}
SIZES = 1, 2


def main():
    found, accuracies = [], []
    for seed, (f, x, accuracy) in zip(SEEDS, digits_networks(SEEDS, images=IMAGES), strict=True):
        accuracies.append(accuracy)
        maps = {name: explain(f, x) for name, explain in METHODS.items()}
        found.append(areas(f, x, maps, FILLS, SIZES, jax.random.key(seed), steps=STEPS))
    table = over_trainings(found)
    write(
        "samek",
        "Samek et al. 2017: AOPC, most relevant first, of digits",
        f"Mean ± 95 % t interval over {len(SEEDS)} trainings (seeds {list(SEEDS)}), {IMAGES} unseen digits each, {STEPS} steps, "
        f"test accuracy {min(accuracies):.1%} to {max(accuracies):.1%}.",
        {"AOPC, more is better": table},
        [
            against(table, ["LRP-ε", "LRP-γ, box first"], "deconvnet"),
            against(table, [name for name in METHODS if name != "sensitivity"], "sensitivity"),
            against(table, METHODS, "random"),
        ],
    )


if __name__ == "__main__":
    main()
