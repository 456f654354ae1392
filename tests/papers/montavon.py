"""Montavon, Samek & Müller 2018 (Digital Signal Processing 73; arXiv 1706.07979, section 7): are explanations
continuous and selective? Over trainings, steps, fills and sizes of regions; on digits, with ReLU and with tanh.

    python tests/papers/montavon.py    # about 3 minutes on one core; needs lrpjax[demo]

Continuity is the largest ‖R(x) − R(x')‖₁ / ‖x − x'‖₂ over the x' that are tried, selectivity the area under the curve of
the logit as the most relevant regions are removed: of both, less is better.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from common import against, digits_networks, networks, write
from jax.tree_util import Partial

import lrpjax
from lrpjax import Composite, composites, demo, metrics, rules, select

SEEDS, IMAGES, STEPS, EPOCHS, DRAWS = range(5), 64, 16, 10, 4


# In all layers, with z^B in the first one, as the paper has it for pixels.
ALPHA2_BETA1 = Composite(
    [
        (select.first("conv"), rules.ZBox(demo.LOW, demo.HIGH)),
        (select.kind("conv", "dense"), rules.AlphaBeta(2.0, 1.0)),
        (select.kind("sum", "pool"), rules.Norm()),
    ]
)


def explainer(composite, read=lambda relevance: relevance):
    """(f, classes, x) -> relevance of given classes, so that a moved image is explained for the class it had."""
    return jax.jit(lambda f, classes, x: read(lrpjax.relevance(f, composite, target=classes)(x)))


METHODS = {
    "sensitivity": explainer(composites.gradient(), jnp.square),
    "gradient × input": explainer(composites.input_x_gradient()),
    "LRP-ε": explainer(composites.epsilon()),
    "deep Taylor (α1β0)": explainer(composites.deep_taylor(demo.LOW, demo.HIGH)),
    "LRP-α2β1": explainer(ALPHA2_BETA1),
    "LRP-α2β1, ε in dense": explainer(composites.epsilon_alpha2_beta1()),
    "LRP-γ, box first": explainer(composites.epsilon_gamma_box(demo.LOW, demo.HIGH)),
}
SHIFTS, RADII = (1, 2, 4), (0.03, 0.3)
# All of the shape of x, so that one compiled curve serves them.
FILLS = {
    "black": lambda x, key: jnp.zeros_like(x),
    "mean": lambda x, key: jnp.broadcast_to(metrics.channel_mean(x), x.shape),
    "noise": lambda x, key: metrics.uniform_noise(key, x),
}
SIZES = 1, 2, 4


class TanhCNN(nn.Module):
    """The network of `lrpjax.demo` with tanh in place of ReLU."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(16, (3, 3))(x))
        x = nn.tanh(nn.Conv(32, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.tanh(nn.Conv(32, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.tanh(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def flat(maps):
    return np.asarray(maps).reshape(len(maps), -1)


def largest_jumps(explain, x, steps):
    """For steps {name: copies of x}: (the mean over images of max_k ‖R(x_k) − R(x)‖₁ / ‖x_k − x‖₂, and the same of maps
    scaled to Σ|R| = 1). That is metrics.continuity, but every map is made once, by one compiled function."""
    to_one = lambda maps: maps / np.abs(maps).sum(1, keepdims=True)
    plain, alike, relevance = {}, {}, flat(explain(x))
    for step, copies in steps.items():
        maps, distances = [flat(explain(near)) for near in copies], [norms(near - x) for near in copies]
        jumps = lambda scale, maps=maps, distances=distances: np.max(
            [np.abs(scale(r) - scale(relevance)).sum(1) / d for r, d in zip(maps, distances, strict=True)], 0
        )
        plain[step], alike[step] = float(jumps(lambda r: r).mean()), float(jumps(to_one).mean())
    return plain, alike


def norms(difference):
    return np.linalg.norm(flat(difference), axis=1)


def steps_from(x, key):
    """{step: copies of x}: moved sideways, and with noise."""
    moved = {f"moved {n} px": [metrics.translate(x, s, axis=2) for s in (-n, n)] for n in SHIFTS}
    noise = {
        f"noise ± {radius}": list(
            x + jax.random.uniform(key, (DRAWS, *x.shape), minval=-radius, maxval=radius)
        )
        for radius in RADII
    }
    return moved | noise


def areas(f, x, relevance, fills, key):
    """{fill and size: the mean over images of the area under the curve}."""
    found = {}
    for fill, values in fills.items():
        for size in SIZES:
            curve = metrics.flipping(f, x, relevance, regions=size, fill=values, steps=STEPS, key=key)
            found[f"{fill}, {size} px"] = float(metrics.selectivity(curve.scores).mean())
    return found


def main():
    tables, accuracies = {}, {}

    def add(heading, name, values):
        row = tables.setdefault(heading, {}).setdefault(name, {})
        for column, value in values.items():
            row.setdefault(column, []).append(value)

    for kind, trained in (
        ("ReLU", digits_networks(SEEDS, epochs=EPOCHS, images=IMAGES)),
        ("tanh", networks(TanhCNN(), SEEDS, epochs=EPOCHS, images=IMAGES)),
    ):
        for seed, (f, x, accuracy) in zip(SEEDS, trained, strict=True):
            accuracies.setdefault(kind, []).append(accuracy)
            classes, key = f(x).argmax(1), jax.random.key(seed)
            steps, fills = steps_from(x, key), {fill: make(x, key) for fill, make in FILLS.items()}
            for name, method in METHODS.items():
                explain = Partial(method, f, classes)
                plain, alike = largest_jumps(explain, x, steps)
                add(f"Continuity, {kind}", name, plain)
                add(f"Continuity of maps scaled to Σ abs(R) = 1, {kind}", name, alike)
                add(f"Selectivity, {kind}", name, areas(f, x, explain(x), fills, key))
            chance = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
            add(f"Selectivity, {kind}", "random", areas(f, x, chance, fills, key))
    lrp = list(METHODS)[2:]
    findings = []
    for heading, rows in tables.items():
        # With ReLU LRP-ε is gradient × input but for ε; any difference is that of rounding.
        other = lrp if "tanh" in heading else [name for name in lrp if name != "LRP-ε"]
        findings += [f"{heading}. {against(rows, lrp, 'sensitivity')}"]
        findings += [f"{heading}. {against(rows, other, 'gradient × input')}"]
        if "random" in rows:
            findings += [f"{heading}. {against(rows, METHODS, 'random')}"]
    reached = "; ".join(f"{kind} {min(a):.1%} to {max(a):.1%}" for kind, a in accuracies.items())
    write(
        "montavon",
        "Montavon et al. 2018: continuity and selectivity on digits",
        f"Mean ± 95 % t interval over {len(SEEDS)} trainings (seeds {list(SEEDS)}), {IMAGES} unseen digits each, "
        f"test accuracy: {reached}. Less is better everywhere. Continuity: images moved to the left and to the right, and "
        f"{DRAWS} draws of uniform noise, explained for the class of the unperturbed image. Selectivity: the mean logit, "
        f"{STEPS} steps from no region to all. Sensitivity is the gradient squared. With ReLU LRP-ε is gradient × input, "
        "but for ε.",
        tables,
        findings,
    )


if __name__ == "__main__":
    main()
