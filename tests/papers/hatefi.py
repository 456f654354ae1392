"""Vakilzadeh Hatefi et al. 2025, "Attribution-guided Pruning for Compression, Circuit Discovery, and Targeted Correction in
LLMs" (SparC3): weights whose relevance over reference samples is small become 0, against those of small magnitude and against
random ones; on digits and on two-layer decoders trained on induction and on indirect objects, over trainings.

    python tests/papers/hatefi.py    # about 15 minutes on one core; needs lrpjax[demo]
"""

import functools

import common  # before jax: it says that JAX runs on the CPU
import flax.linen as nn
import jax
import jax.numpy as jnp
import language
import numpy as np
import optax

from lrpjax import composites, demo, parameters

SEEDS = {"digits": range(5), "induction": range(3), "indirect objects": range(3)}
SAMPLES, BATCH = 128, 32
SPARSITIES = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.97, 0.99)
SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
WITHIN = {"array": "in each kernel", "column": "in each column"}
ENOUGH = 0.95
GRADIENTS = {"gradient × w of the logit": False, "gradient × w of the loss": True}


class Digits:
    """The demo's CNN."""

    composite = composites.epsilon()
    text = "the CNN of the demo"

    def __init__(self):
        self.data = demo.load_digits()

    def trained(self, seed):
        return demo.train(self.data, 10, seed).args[0]

    def reference(self, seed):
        chosen = np.random.default_rng(seed + 3000).permutation(len(self.data.train_images))[:SAMPLES]
        return self.data.train_images[chosen], self.data.train_labels[chosen]

    def unseen(self, seed):
        return self.data.test_images, self.data.test_labels

    def one(self, params, image):
        return common.APPLY(params, image[None])[0]

    def all(self, params, images):
        return common.APPLY(params, images)

    def kernels(self, params):
        return {name: layer["kernel"] for name, layer in params["params"].items()}

    def joined(self, params, kernels):
        return {
            "params": {name: layer | {"kernel": kernels[name]} for name, layer in params["params"].items()}
        }

    def squares(self, params, images):
        """Of every kernel's inputs the mean square, over images and places, in the kernel's shape but for its outputs."""
        found = {}

        def watch(run, args, kwargs, context):
            if isinstance(context.module, (nn.Conv, nn.Dense)):
                kernel = params["params"][context.module.name]["kernel"]
                square = jnp.square(args[0]).mean(range(args[0].ndim - 1))
                found[context.module.name] = jnp.broadcast_to(square, kernel.shape[:-1])
            return run(*args, **kwargs)

        with nn.intercept_methods(watch):
            common.APPLY(params, images)
        return found


class Watched:
    """A kernel, or a stack of them, that keeps what it is multiplied with."""

    def __init__(self, array, found, name):
        self.array, self.found, self.name = array, found, name

    def __getitem__(self, i):
        return Watched(self.array[i], self.found, f"{self.name}{i}")

    def __rmatmul__(self, h):
        self.found[self.name] = h
        return h @ self.array


class Decoder:
    """A decoder trained on one task; what counts is the word after the last one."""

    composite = composites.attnlrp()

    def __init__(self, task):
        self.task = task

    def trained(self, seed):
        return language.trained(self.task, seed, steps=3000)[0]

    def _texts(self, seed, count):
        clean, _, answers, _ = self.task.pairs(np.random.default_rng(seed), count)
        return clean.astype(np.int32), answers.astype(np.int32)

    def reference(self, seed):
        return self._texts(seed + 3000, SAMPLES)

    def unseen(self, seed):
        return self._texts(seed + 1000, 512)

    def one(self, params, ids):
        return language.logits(params, ids)[-1]

    def all(self, params, texts):
        return jax.vmap(functools.partial(self.one, params))(texts)

    def kernels(self, params):
        found = {
            f"{name}{i}": layer["kernel"][i]
            for name, layer in params["layers"].items()
            if "kernel" in layer
            for i in range(language.LAYERS)
        }
        return found | {"unembed": params["unembed"]}

    def joined(self, params, kernels):
        layers = {
            name: layer | {"kernel": jnp.stack([kernels[f"{name}{i}"] for i in range(language.LAYERS)])}
            if "kernel" in layer
            else layer
            for name, layer in params["layers"].items()
        }
        return params | {"layers": layers, "unembed": kernels["unembed"]}

    def squares(self, params, texts):
        def inputs(ids):
            found = {}
            layers = {
                name: layer | {"kernel": Watched(layer["kernel"], found, name)}
                if "kernel" in layer
                else layer
                for name, layer in params["layers"].items()
            }
            unembed = Watched(params["unembed"], found, "unembed")
            language.logits(params | {"layers": layers, "unembed": unembed}, ids)
            return found

        return {name: jnp.square(h).mean((0, 1)) for name, h in jax.vmap(inputs)(texts).items()}


def scorer(network):
    """The function that scores every weight of every kernel, {method: {kernel: scores}}."""

    def contributions(params, x, label):
        """Of one sample, for each method."""
        logit = lambda y: jnp.where(jnp.arange(y.shape[-1]) == label, y, 0.0)
        explain = parameters.relevance(network.one, network.composite, target=logit)
        found = {"relevance": network.kernels(explain(params, x))}

        def value(params, of_loss):
            y = network.one(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(y, label) if of_loss else y[label]

        for name, of_loss in GRADIENTS.items():
            slopes = jax.grad(value)(params, of_loss)
            found[name] = jax.tree.map(jnp.multiply, network.kernels(params), network.kernels(slopes))
        return found

    @jax.jit
    def sums(params, x, labels):
        """Over samples, of contributions and of their sizes."""
        each = jax.vmap(functools.partial(contributions, params))(x, labels)
        return jax.tree.map(lambda c: (c.sum(0), jnp.abs(c).sum(0)), each)

    squares = jax.jit(network.squares)

    def scores(params, x, labels, key):
        batches = [sums(params, x[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(x), BATCH)]
        total = functools.reduce(functools.partial(jax.tree.map, jnp.add), batches)
        kernels, by = network.kernels(params), {}
        for name, found in total.items():
            by[f"{name}, abs(Σ)"] = {k: pair[0] for k, pair in found.items()}
            by[f"{name}, Σ abs"] = {k: pair[1] for k, pair in found.items()}
        inputs = squares(params, x)
        by["Wanda"] = {k: jnp.abs(w) * jnp.sqrt(inputs[k])[..., None] for k, w in kernels.items()}
        by["magnitude"] = kernels
        keys = dict(zip(kernels, jax.random.split(key, len(kernels)), strict=True))
        by["random"] = {k: jax.random.uniform(keys[k], w.shape) for k, w in kernels.items()}
        return by

    return scores


def curves(network, seeds):
    """The accuracy of the whole network, [trainings], and of the pruned ones, {where: {method: [trainings, sparsities]}}."""
    scores = scorer(network)

    @functools.partial(jax.jit, static_argnames="within")
    def pruned(kernels, scores, within):
        return [parameters.prune(kernels, scores, s, within=within) for s in SPARSITIES]

    @jax.jit
    def accuracy(params, kernels, x, labels):
        return (network.all(network.joined(params, kernels), x).argmax(-1) == labels).mean()

    whole, found = [], {within: {} for within in WITHIN}
    for seed in seeds:
        params = network.trained(seed)
        kernels, (x, labels) = network.kernels(params), network.unseen(seed)
        whole.append(float(accuracy(params, kernels, x, labels)))
        by = scores(params, *network.reference(seed), jax.random.key(seed))
        for within, rows in found.items():
            for method, of in by.items():
                curve = [float(accuracy(params, left, x, labels)) for left in pruned(kernels, of, within)]
                rows.setdefault(method, []).append(curve)
        print(seed, whole[-1], {m: np.round(rows[-1], 2)[[9, 15, 18]] for m, rows in found["array"].items()}, flush=True)  # fmt: skip
    return whole, found


def area(whole, curve):
    """The mean accuracy over sparsities from 0 to 0.95, which are evenly spaced."""
    ends = np.array([whole, *curve[: SPARSITIES.index(0.95) + 1]])
    return float((ends[1:] + ends[:-1]).mean() / 2)


def sparsest(curve):
    """The largest sparsity up to which the accuracy is enough."""
    enough = 0.0
    for sparsity, accuracy in zip(SPARSITIES, curve, strict=True):
        if accuracy < ENOUGH:
            break
        enough = sparsity
    return enough


def main():
    networks = {"digits": Digits()} | {name: Decoder(task) for name, task in language.TASKS.items()}
    areas, circuits, accuracies, rates = {}, {}, {}, []
    for name, network in networks.items():
        whole, found = curves(network, SEEDS[name])
        rates.append(f"{name} {min(whole):.1%} to {max(whole):.1%}")
        for within, rows in found.items():
            where = f"{name.split()[-1]}, {WITHIN[within]}"
            table = accuracies[f"{name}, {WITHIN[within]}"] = {}
            for method, runs in rows.items():
                table[method] = {str(s): [run[SPARSITIES.index(s)] for run in runs] for s in SHOWN}
                values = [area(w, run) for w, run in zip(whole, runs, strict=True)]
                areas.setdefault(method, {})[where] = values
                circuits.setdefault(method, {})[where] = [sparsest(run) for run in runs]
    ours = [m for m in areas if m.startswith("relevance")]
    plain = ["magnitude", "Wanda", "random"]
    gradients = [m for m in areas if m.startswith("gradient")]
    of = lambda what, rows, methods, others: [
        f"{what}. {common.against(rows, methods, other)}" for other in others
    ]
    findings = [
        *of("Mean accuracy", areas, ours, [*plain, *gradients]),
        *of("Mean accuracy", areas, ours[1:], ours[:1]),
        *of("Largest sparsity", circuits, ours, plain),
    ]
    for where in next(iter(circuits.values())):
        means = {method: np.mean(row[where]) for method, row in circuits.items()}
        largest = max(means.values())
        best = " and by ".join(method for method, mean in means.items() if np.isclose(mean, largest))
        told = "; ".join(f"{method} {means[method]:.0%}" for method in (*ours, *plain))
        findings.append(
            f"How sparse the network can be with an accuracy of at least {ENOUGH:.0%}, {where}, as the mean over trainings: {told}. "
            f"The largest of all methods is {largest:.0%}, by {best}."
        )
    for where, table in accuracies.items():
        findings += of(f"Accuracy, {where}", table, ours, plain)
    common.write(
        "hatefi",
        "Vakilzadeh Hatefi et al. 2025: pruning by the relevance of weights",
        f"Mean ± 95 % t interval over {len(SEEDS['digits'])} trainings of a CNN on digits and {len(SEEDS['induction'])} of a decoder with "
        f"{language.LAYERS} layers on each of two tasks, induction and indirect objects (“objects” below). Accuracy on unseen samples without "
        f"pruning: {'; '.join(rates)}. The part of the weights of all kernels (biases, norms and embeddings stay, the unembedding is a kernel) that the sparsity says becomes 0, "
        "of each kernel or of each of its columns, the weights of one output; nothing is trained afterwards. Sparsities are tried "
        "in steps of 0.05 up to 0.95, then 0.97 and 0.99. "
        f"Scores are taken from {SAMPLES} training images, or from as many texts of the same kind as the unseen ones. Relevance is that of the logit "
        "of the true class, or of the word that follows, by LRP-ε in the CNN and by AttnLRP in the decoders. abs(Σ): contributions are summed over samples with their signs, and the "
        "size of the sum counts; Σ abs: their sizes are summed. In the CNN, which has ReLU and average pooling, relevance is gradient × w of the logit, but "
        "for ε. Wanda is abs(w) times the root mean square of the input. Random is one draw for each training.",
        {
            "Mean accuracy over sparsities from 0 to 0.95": areas,
            f"The largest sparsity up to which the accuracy is at least {ENOUGH:.0%}": circuits,
            **{f"Accuracy by sparsity: {where}": table for where, table in accuracies.items()},
        },
        findings,
    )


if __name__ == "__main__":
    main()
