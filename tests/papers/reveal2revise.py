"""Reveal2Revise (Pahde et al. 2023, arXiv 2303.12641): an artefact found by clusters, named, removed and measured again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import write
from skimage import data

import lrpjax
from lrpjax import composites, demo, explore, metrics, repair

SEEDS = (0, 1, 2)
SHARE = 0.7  # of the training images of the class that have the artefact
FINE, PENALTY = 4, 3.0
PLACES = ("CNN/Conv_0", "CNN/Conv_1", "CNN/Conv_2", "CNN/Dense_0")
COMPOSITE = composites.epsilon_plus()
apply = demo.CNN().apply


# ---------------------------------------------------------------------------------- data


def patch(images):
    """Digits with a white square of 3×3 pixels in the upper left corner."""
    marked = images.copy()
    marked[:, 1:4, 1:4] = 1.0
    return marked


YEAR = """
####.#..#.
#..#.#..#.
####.####.
...#....#.
...#....#.
"""


def stamp(images):
    """Grey photographs with the year in white in the lower right corner, as cameras of the nineties wrote it."""
    marked = images.copy()
    for down, line in enumerate(YEAR.split()):
        for right, sign in enumerate(line):
            if sign == "#":
                marked[:, down - 6, right - 10] = 1.0
    return marked


def digits(draw):
    """Images and labels of three sets, to train, to choose, to test; the class with the artefact, and the artefact."""
    images = demo.load_digits()
    order = draw.permutation(len(images.train_images))
    x, y = images.train_images[order], images.train_labels[order]
    return {"train": (x[:1047], y[:1047]), "choose": (x[1047:], y[1047:]), "test": images[2:]}, 8, patch


SUSPECT = 1


def photographs(draw):
    """Photographs of faces (0) and of other things (1), 200 grey ones of 24 px: scikit-image's part of LFW."""
    x, y = np.float32(data.lfw_subset())[:, :24, :24, None], np.repeat(np.arange(2, dtype=np.int32), 100)
    order = draw.permutation(len(x))
    return (
        {
            "train": (x[order[:110]], y[order[:110]]),
            "choose": (x[order[110:140]], y[order[110:140]]),
            "test": (x[order[140:]], y[order[140:]]),
        },
        SUSPECT,
        stamp,
    )


def planted(images, labels, suspect, artefact, draw):
    """The images, the artefact in SHARE of those of one class; and which have it."""
    has = (labels == suspect) & (draw.random(len(labels)) < SHARE)
    return np.where(has[:, None, None, None], artefact(images), images), has


# ---------------------------------------------------------------------------------- training


def train(x, y, seed, epochs, batch, variables=None, mask=None):
    """The demo's CNN, from the start or from `variables` on; with a mask, also for little relevance in it."""
    steps = len(x) // batch
    # Trained on, the step stays small; from the start, it falls from 3e-3 to 0.
    rate = optax.cosine_decay_schedule(3e-3, steps * epochs) if variables is None else 1e-3
    adam = optax.adam(rate)

    def loss(variables, x, y):
        f = functools.partial(apply, variables)
        value = optax.softmax_cross_entropy_with_integer_labels(f(x), y).mean()
        if mask is None:
            return value
        R = jnp.abs(lrpjax.relevance(f, COMPOSITE, target=y)(x))
        return value + PENALTY * metrics.mass_accuracy(R, jnp.broadcast_to(mask, R.shape)).mean()

    @jax.jit
    def step(variables, state, x, y):
        updates, state = adam.update(jax.grad(loss)(variables, x, y), state, variables)
        return optax.apply_updates(variables, updates), state

    variables = jax.jit(demo.CNN().init)(jax.random.key(seed), x[:1]) if variables is None else variables
    state, draw = adam.init(variables), np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in draw.permutation(len(x))[: steps * batch].reshape(steps, batch):
            variables, state = step(variables, state, x[rows], y[rows])
    return variables


# ---------------------------------------------------------------------------------- reveal, name, revise


@jax.jit
def explain(variables, x, y):
    return lrpjax.relevance(functools.partial(apply, variables), COMPOSITE, target=y)(x)[..., 0]


def reveal(R, y, suspect):
    """For the rows of the suspected class which are of the cluster with the artefact; the mask; the ranks of its clusters.

    A reader looks at the clusters and sees it. Here, of the class's two clusters it is that with more relevance at the
    place where their mean explanations differ most, and that place is the mask.
    """
    found = explore.spectral_analysis(R, groups=y, pool=8, clusters=2, layout="spectral", progress=False)
    ranks = [rank for rank, cluster in enumerate(found.clusters, 1) if cluster.group == suspect]
    rows = found.rows[found.groups == suspect]
    inside = found.labels[found.groups == suspect] == found.clusters[ranks[0] - 1].number
    shares = R[rows] / np.abs(R[rows]).sum((1, 2), keepdims=True)
    difference = shares[inside].mean(0) - shares[~inside].mean(0)
    if -difference.min() > difference.max():
        inside, difference = ~inside, -difference
    return rows, inside, difference > 0.25 * difference.max(), ranks


def alike(images, inside, mask):
    """Which images look in the mask as those of the cluster do: the examples that directions are made of."""
    return np.abs(images - np.median(images[inside], 0))[:, mask].mean((1, 2)) < 0.1


def pasted(images, examples, mask):
    """Images with what the examples have in common in the mask: the artefact as it was found, not as it was made."""
    return np.where(mask[..., None], np.median(examples, 0), images)


def accuracy(f, x, y):
    return float((jax.jit(f)(x).argmax(1) == y).mean())


def choice(f, x, inside, others, suspect, candidates):
    """The direction of the candidate that is best on images kept for choosing, as they are and with the artefact pasted in.

    `others` are (images, labels), and the images of other classes with the artefact, and their labels.
    """
    (plain, y), (pasted_in, z) = others
    best, table = (-1.0,), {}
    for at, pool, method in candidates:
        options = {"C": 0.1} if method == "svm" else {}
        direction = repair.cav(repair.activations(f, [x], at=at), inside, method, pool=pool, **options)
        g = repair.project(f, {at: direction})
        score = (accuracy(g, plain, y) + accuracy(g, pasted_in, z)) / 2
        table[at, pool, method] = score
        if score > best[0]:
            best = (score, at, pool, method, direction)
    return best, table


def one(made, epochs, batch, seed):
    """All that is measured of one seed: {way: {what: value}}, {what: value} of the clusters, and the choice."""
    draw = np.random.default_rng(seed)
    sets, suspect, artefact = made(draw)
    y = sets["train"][1]
    x, has = planted(*sets["train"], suspect, artefact, draw)
    plain, py = sets["choose"]
    plain, _ = planted(plain, py, suspect, artefact, draw)
    variables = train(x, y, seed, epochs, batch)
    f = functools.partial(apply, variables)

    rows, inside, mask, ranks = reveal(np.asarray(explain(variables, x, y)), y, suspect)
    true = np.abs(artefact(x[:1] * 0))[0, ..., 0] > 0
    clusters = {
        "agrees with the artefact": float((inside == has[rows]).mean()),
        "IoU of the mask": float((mask & true).sum() / (mask | true).sum()),
        "rank of the class's first cluster": float(ranks[0]),
    }
    inside = alike(x[rows], inside, mask)
    clusters["examples agree with the artefact"] = float((inside == has[rows]).mean())
    others = py != suspect
    chosen_on = (plain, py), (pasted(plain[others], x[rows][inside], mask), py[others])
    search = lambda candidates: choice(f, x[rows], inside, chosen_on, suspect, candidates)
    (_, at, pool, method, whole), table = search(
        [(a, p, "pattern") for a in PLACES for p in ("whole", "mean")]
    )
    mean = search([(a, "mean", "pattern") for a in PLACES[:3]])[0]
    svm = repair.cav(repair.activations(f, [x[rows]], at=at), inside, "svm", pool=pool, C=0.1)
    tuned = train(x, y, seed, FINE, batch, variables, mask[..., None])
    also = train(x, y, seed, FINE, batch, variables)
    reference = train(sets["train"][0], y, seed, epochs, batch)
    ways = {
        "as trained": f,
        "P-ClArC, pattern-CAV": repair.project(f, {at: whole}),
        "P-ClArC, SVM-CAV, same place": repair.project(f, {at: svm}),
        "P-ClArC, best direction of channels": repair.project(f, {mean[1]: mean[4]}),
        "reactive, by class": repair.react(f, {at: whole}, classes=suspect),
        "trained on, without a penalty": functools.partial(apply, also),
        "trained on, right reasons": functools.partial(apply, tuned),
        "never saw the artefact": functools.partial(apply, reference),
    }
    X, Y = sets["test"]
    bad, measured = artefact(X), {}
    for way, g in ways.items():
        R = jnp.abs(jax.jit(lrpjax.relevance(g, COMPOSITE, target=suspect))(bad[suspect != Y]))[..., 0]
        measured[way] = {
            "accuracy, clean": accuracy(g, X, Y),
            "clean, the class": accuracy(g, X[suspect == Y], Y[suspect == Y]),
            "with the artefact, other classes": accuracy(g, bad[suspect != Y], Y[suspect != Y]),
            "relevance on the artefact": float(
                metrics.mass_accuracy(R, jnp.broadcast_to(true, R.shape)).mean()
            ),
        }
    return measured, clusters, (at, pool, method), table


CASES = {"digits": (digits, 15, 64), "photographs": (photographs, 20, 22)}


def main():
    tables, findings = {}, []
    for name, case in CASES.items():
        runs = [one(*case, seed) for seed in SEEDS]
        tables[f"{name}: the corrections"] = {
            way: {what: [run[0][way][what] for run in runs] for what in of} for way, of in runs[0][0].items()
        }
        tables[f"{name}: the clusters"] = {
            "measured": {what: [run[1][what] for run in runs] for what in runs[0][1]}
        }
        places = "; ".join(f"seed {s}: {run[2][0]}, {run[2][1]}" for s, run in zip(SEEDS, runs, strict=True))
        findings.append(f"{name}: where the direction was put, chosen on images kept for choosing: {places}.")
    write(
        "reveal2revise",
        "Pahde et al. 2023: Reveal2Revise, planted artefacts found, named, removed and measured",
        f"Mean ± 95 % t interval over {len(SEEDS)} seeds {list(SEEDS)} of split, artefact and training. {SHARE:.0%} of the training "
        "images of a class have the artefact: eights of the digits a white square, photographs that show no face the year in a "
        "corner. The network is the demo's. Shares of relevance are of |R| for that class, on test images of other classes with the artefact.",
        tables,
        findings,
    )


if __name__ == "__main__":
    main()
