"""Samek et al. 2017: the order of methods under region perturbation, over seeds, fills and patch sizes; on digits.

    python tests/papers/samek.py    # about a minute on one core; needs lrpjax[demo]

Bach et al. 2015's flipping of pixels is the column of single pixels that are inverted, x -> 1 − x.
"""

import jax
from common import always_above, digits_networks, explainer, interval, write

from lrpjax import composites, metrics

SEEDS, IMAGES, STEPS = range(3), 64, 16
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
    columns = [f"{fill}, {size} px" for fill in FILLS for size in SIZES]
    names = [*METHODS, "random"]
    found = {name: {column: [] for column in columns} for name in names}
    accuracies = []
    for seed, (f, x, accuracy) in zip(SEEDS, digits_networks(SEEDS, images=IMAGES), strict=True):
        accuracies.append(accuracy)
        maps = {name: explain(f, x) for name, explain in METHODS.items()} | {"random": x}
        key = jax.random.key(seed)
        for fill, make in FILLS.items():
            for size in SIZES:
                for name in names:
                    order = "random" if name == "random" else "morf"
                    curve = metrics.flipping(
                        f, x, maps[name], order=order, regions=size, fill=make(x, key), steps=STEPS, key=key
                    )
                    found[name][f"{fill}, {size} px"].append(float(metrics.aopc(curve.scores).mean()))
    findings = []
    for above, below in (
        ("LRP-ε", "deconvnet"), ("LRP-ε", "sensitivity"), ("LRP-γ, box first", "sensitivity"),
        ("deconvnet", "sensitivity"), ("sensitivity", "random"),
    ):  # fmt: skip
        held = always_above(found[above], found[below])
        where = [c for c, yes in zip(columns, held, strict=True) if yes]
        place = (
            "in all settings"
            if all(held)
            else f"in {len(where)} of {len(held)}: {'; '.join(where) or 'none'}"
        )
        findings.append(f"{above} above {below}, beyond the 95 % interval of paired differences: {place}.")
    low, high = min(accuracies), max(accuracies)
    write(
        "samek",
        "Samek et al. 2017: AOPC, most relevant first, of digits",
        f"Mean ± 95 % t interval over {len(SEEDS)} trainings (seeds {list(SEEDS)}), {IMAGES} unseen digits each, {STEPS} steps, "
        f"test accuracy {low:.1%} to {high:.1%}.",
        columns,
        found,
        findings,
    )
    return {name: {c: interval(v) for c, v in values.items()} for name, values in found.items()}


if __name__ == "__main__":
    main()
