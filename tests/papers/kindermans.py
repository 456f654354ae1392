"""Kindermans et al. 2018 (arXiv 1705.05598): what estimators of the signal leave in the distractor (ρ, section 4.1),
signal and distractor in a linear toy, and the degradation of images in the order of attributions; over trainings and
draws, on digits.

    python tests/papers/kindermans.py    # about 4 minutes on one core; needs lrpjax[demo]
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import against, digits_networks, explainer, write

import lrpjax
from lrpjax import composites, demo, estimators, metrics, patterns

SEEDS, IMAGES, STEPS = range(5), 64, 16
DRAWS = range(10)
TOYS = (2, 1, 1000), (10, 1, 1000), (10, 3, 1000), (10, 3, 100_000)  # inputs, σ of the distractors, samples
FILLS = {
    "mean": lambda x, mean: jnp.broadcast_to(metrics.channel_mean(x), x.shape),
    "digit": lambda x, mean: jnp.broadcast_to(mean, x.shape),
    "black": lambda x, mean: jnp.zeros_like(x),
}
SIZES = 1, 2, 4
NEURONS, POSITIONS = 4, 2

TOY = "Linear toy: mean angle in degrees, less is better"
RHO = "ρ by layer, more is better"
CURVES = "Degradation: AOPC, more is better"
ENDS = "to the signal", "to w ⊙ signal"


# ---------------------------------------------------------------------------------- the toy


def toy(rng, size, deviation, samples):
    """(x, w, s): x = a_s y + A_d ε with random directions, size − 1 of them of distractors; the weights that give y from
    x, which are unique then; the signal a_s y."""
    directions = rng.normal(size=(size, size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    y = rng.uniform(-1, 1, samples)
    signal = np.outer(y, directions[0])
    x = signal + deviation * rng.normal(size=(samples, size - 1)) @ directions[1:]
    return x, np.linalg.lstsq(x, y, rcond=None)[0], signal


def angle(first, second):
    """The mean angle of samples of two kinds, in degrees, whatever their signs. A sample that is 0, as w·x is now and then
    in float32, has no angle."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(1)[lengths > 0] / lengths[lengths > 0]
    return float(np.degrees(np.arccos(np.clip(np.abs(cosines), 0, 1))).mean())


def angles(x, w, signal):
    """{explanation: its mean angle to the signal or, of an attribution, to w ⊙ signal}."""
    x, w = np.float32(x), np.float32(w)
    f = lambda x: x @ w[:, None]
    fitted, filters = patterns.fit(f, [x], "linear"), estimators.filters(f, x)
    explain = lambda composite: np.asarray(lrpjax.relevance(f, composite)(x))
    return {
        "gradient, to the signal": angle(explain(composites.gradient()), signal),
        "the input itself, to the signal": angle(x, signal),
        "PatternNet, to the signal": angle(explain(composites.pattern_net(fitted)), signal),
        "gradient × input, to w ⊙ signal": angle(explain(composites.input_x_gradient()), w * signal),
        "S_w, to w ⊙ signal": angle(explain(composites.pattern_attribution(filters)), w * signal),
        "PatternAttribution, to w ⊙ signal": angle(
            explain(composites.pattern_attribution(fitted)), w * signal
        ),
    }


# ---------------------------------------------------------------------------------- digits


def shifted(images):
    """The images and four neighbours of each, moved by a pixel as in training, in batches: enough samples for the layer
    of 512 inputs."""
    moved = [np.roll(images, step, axis) for step, axis in ((0, 1), (-1, 1), (1, 1), (-1, 2), (1, 2))]
    return [block for part in moved for block in np.split(part[: len(part) // 48 * 48], len(part) // 48)]


def fit_estimators(f, images, key):
    """The estimators of the paper by its names; S_a± has a pattern for each side of the activation."""
    linear, above, below = patterns.fit(f, shifted(images), ("linear", "relu", "relu.negative"))
    return {
        "random": estimators.random(f, images[:1], key),
        "S_w": estimators.filters(f, images[:1]),
        "S_a": linear,
        "S_a±": (above, below),
    }


attribution = jax.jit(
    lambda f, fitted, x: lrpjax.relevance(f, composites.pattern_attribution(fitted), target="max")(x)
)
signal = jax.jit(
    lambda f, fitted, x: jnp.abs(lrpjax.relevance(f, composites.pattern_net(fitted), target="max")(x))
)
PLAIN = {
    "S_x: LRP-z": explainer(composites.epsilon(0.0)),  # with ReLU the same as gradient × input
    "sensitivity": explainer(composites.gradient(), magnitude=True),
    "guided backprop": explainer(composites.guided_backprop(), magnitude=True),
    "deconvnet": explainer(composites.deconvnet(), magnitude=True),
}


def maps_of(f, found, x):
    """{method: map of x}, those of the attributions by the signal estimators first."""
    return {
        "S_w": attribution(f, found["S_w"], x),
        "S_a": attribution(f, found["S_a"], x),
        "S_a+: PatternAttribution": attribution(f, found["S_a±"][0], x),
        "abs(PatternNet)": signal(f, found["S_a±"][0], x),
        **{name: explain(f, x) for name, explain in PLAIN.items()},
    }


def degradation(f, maps, x, mean, key):
    """{method: {fill and size: AOPC}}; `mean` is the mean digit."""
    scores = {}
    for fill, make in FILLS.items():
        for size in SIZES:
            for name, relevance in maps.items():
                curve = metrics.flipping(
                    f, x, relevance, regions=size, fill=make(x, mean), steps=STEPS, key=key
                )
                scores.setdefault(name, {})[f"{fill}, {size} px"] = float(metrics.aopc(curve.scores).mean())
    return scores


def main():
    tables, accuracies = {}, []

    def add(heading, column_values):
        for name, values in column_values.items():
            row = tables.setdefault(heading, {}).setdefault(name, {})
            for column, value in values.items():
                row.setdefault(column, []).append(value)

    for draw in DRAWS:
        for size, deviation, samples in TOYS:
            found = angles(*toy(np.random.default_rng(draw), size, deviation, samples))
            column = f"inputs {size}, σ {deviation}, samples {samples}"
            add(TOY, {name: {column: value} for name, value in found.items()})
    images = demo.load_digits()
    fitting, finding = np.array_split(images.train_images, 2)
    for seed, (f, x, accuracy) in zip(SEEDS, digits_networks(SEEDS, images=IMAGES), strict=True):
        accuracies.append(accuracy)
        key, x = jax.random.key(seed), jnp.asarray(x)
        found = fit_estimators(f, fitting, key)
        rho = estimators.quality(
            f,
            found,
            shifted(finding),
            np.split(images.test_images, 9),
            key=key,
            positions=POSITIONS,
            neurons=NEURONS,
        )
        layers = {
            name: {f"{n}: {path}": float(jnp.nanmean(r)) for n, (path, r) in enumerate(of.items(), 1)}
            for name, of in rho.items()
        }
        add(RHO, layers)
        chance = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
        add(
            CURVES,
            degradation(f, {**maps_of(f, found, x), "random": chance}, x, images.train_images.mean(0), key),
        )
    findings = [
        f"ρ. {against(tables[RHO], methods, other)}"
        for methods, other in ((["S_w"], "random"), (["S_a", "S_a±"], "S_w"), (["S_a±"], "S_a"))
    ]
    for end in ENDS:
        *others, ours = (row for row in tables[TOY] if row.endswith(end))
        findings.append(f"Toy. {against(tables[TOY], others, ours)}")
    ours, lrp = "S_a+: PatternAttribution", "S_x: LRP-z"
    for methods, other in (
        (tables[CURVES], "random"), ([ours], lrp), ([ours, lrp], "S_w"), ([ours, "S_w"], "S_a"),
        ([ours, lrp, "abs(PatternNet)"], "sensitivity"), ([ours, lrp], "guided backprop"), ([ours, lrp], "deconvnet"),
    ):  # fmt: skip
        findings.append(f"Degradation. {against(tables[CURVES], [m for m in methods if m != other], other)}")
    write(
        "kindermans",
        "Kindermans et al. 2018: estimators of the signal, and attributions by them",
        f"Mean ± 95 % t interval over {len(SEEDS)} trainings (seeds {list(SEEDS)}), test accuracy {min(accuracies):.1%} to "
        f"{max(accuracies):.1%}; of the toy over {len(DRAWS)} draws, with one distractor less than inputs. Patterns are "
        "fitted to one half of the training images, v to the other, ρ is that of the test images, the mean over up to "
        f"{NEURONS} neurons of a layer (S_x = x has ρ = 1 by definition and is left out). Degradation: {IMAGES} unseen "
        f"digits, {STEPS} steps from no region to all, the logit, put to the mean of their own pixels as in the paper, to the mean "
        "training digit, or to black; with ReLU LRP-z is gradient × input. "
        "S_w, S_a and S_a+ are attributions with the kernel times the pattern of that estimator.",
        tables,
        findings,
    )


if __name__ == "__main__":
    main()
