"""Achtibat et al. 2024, "AttnLRP: Attention-aware layer-wise relevance propagation for transformers": the faithfulness of
AttnLRP against other methods, by the area between the curves of least and of most relevant first; on a small vision
transformer that reads digits, over trainings, and on MiniLM, over sentences.

    python tests/papers/achtibat.py    # about 11 minutes on one core; needs lrpjax[demo,text]
"""

import functools
import itertools

import common  # before jax: it says that JAX runs on the CPU
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from tuning import PAIRS

import lrpjax
from lrpjax import composites, demo, gradients, metrics, pretrained

IMAGES, STEPS, EPOCHS, BATCH = 48, 8, 30, 32
PATCH, WIDTH, HEADS, LAYERS = 2, 48, 4, 2
TOKENS = (demo.SIZE // PATCH) ** 2
SIZES = 2, 4  # of the squares that are flipped, in pixels: one patch, and four
COMPOSITES = {
    "AttnLRP": composites.attnlrp(),
    "AttnLRP, γ = 0.05": composites.attnlrp(gamma=0.05),
    "AttnLRP, γ = 0.25": composites.attnlrp(gamma=0.25),
    "CP-LRP": composites.cp_lrp(),
    "CP-LRP, γ = 0.05": composites.cp_lrp(gamma=0.05),
    "CP-LRP, γ = 0.25": composites.cp_lrp(gamma=0.25),
    "gradient × input": composites.input_x_gradient(),
}
MEAN, DEVIATION = 0.31, 0.35  # of the digits' pixels
SCALES = {
    "digits": (-MEAN / DEVIATION, (1.0 - MEAN) / DEVIATION, range(5)),
    "digits in 0…1": (0.0, 1.0, range(3)),
}
"""What black and white are to the network, and the seeds. What is multiplied by the input gives nothing to a value of 0:
that is the mean if digits are normalised, as photographs mostly are, and their background if they are not."""
FILLS = {
    "black": lambda x, key, black, white: black,
    "mean": lambda x, key, black, white: black + MEAN * (white - black),
    "noise": lambda x, key, black, white: metrics.uniform_noise(key, x, low=black, high=white),
}


class Attention(nn.Module):
    """Softmax attention, with the names of MiniLM's: `attention_of` finds query, key, value and output by them."""

    @nn.compact
    def __call__(self, x):
        split = lambda name: nn.Dense(WIDTH, name=name)(x).reshape(*x.shape[:-1], HEADS, -1)
        query, key, value = split("query"), split("key"), split("value")
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.float32(np.sqrt(WIDTH // HEADS)))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.Dense(WIDTH, name="output")(mixed.reshape(x.shape))


class Layer(nn.Module):
    """A block of a vision transformer: LayerNorm stands before attention and perceptron."""

    @nn.compact
    def __call__(self, x):
        x = x + Attention(name="attention")(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(y)


class ViT(nn.Module):
    """Digits to logits, read off a class token. The embedding of patches has no bias."""

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(0.02, x.dtype)
        side = demo.SIZE // PATCH
        x = x.reshape(len(x), side, PATCH, side, PATCH).swapaxes(2, 3).reshape(len(x), TOKENS, PATCH**2)
        x = nn.Dense(WIDTH, use_bias=False, name="patches")(x)
        first = self.param("class", normal, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, WIDTH)), x], 1)
        x = x + self.param("positions", normal, x.shape[1:])
        for n in range(LAYERS):
            x = Layer(name=f"layer{n}")(x)
        return nn.Dense(10)(nn.LayerNorm()(x)[:, 0])


APPLY = ViT().apply


@functools.partial(jax.jit, static_argnames=("black", "white"))
def train(data, seed, black, white):
    """The variables after EPOCHS passes over the digits, each shifted by up to a pixel at random."""
    images = black + jnp.asarray(data.train_images) * (white - black)
    labels = jnp.asarray(data.train_labels)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=black)
    init, *keys = jax.random.split(jax.random.key(seed), EPOCHS + 1)
    variables = ViT().init(init, images[:1])
    steps = len(images) // BATCH
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps, steps * EPOCHS)
    optimizer = optax.adamw(schedule, weight_decay=0.05)

    def step(carry, batch):
        variables, state = carry
        chosen, corner = batch
        cut = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (demo.SIZE, demo.SIZE, 1))
        x = jax.vmap(cut)(padded[chosen], corner)
        loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(APPLY(v, x), labels[chosen]).mean()
        updates, state = optimizer.update(jax.grad(loss)(variables), state, variables)
        return (optax.apply_updates(variables, updates), state), None

    def epoch(carry, key):
        order, shift = jax.random.split(key)
        chosen = jax.random.permutation(order, len(images))[: steps * BATCH].reshape(steps, BATCH)
        return jax.lax.scan(step, carry, (chosen, jax.random.randint(shift, (steps, BATCH, 2), 0, 3)))

    (variables, _), _ = jax.lax.scan(epoch, (variables, optimizer.init(variables)), jnp.stack(keys))
    return variables


def attention_of(f, x, classes, heads):
    """Of every layer, the attention weights and the gradient of the class's score by them, [B, heads, T, T] each.

    Networks do not give them away: flax shows the queries, keys and values on their way, lrpjax the gradient of what
    leaves each attention.
    """
    seen = {}

    def watch(call, args, kwargs, context):
        y = call(*args, **kwargs)
        *path, name = context.module.path or ("",)
        if path[-1:] == ["attention"]:
            kernel = context.module.variables["params"]["kernel"]
            seen.setdefault("/".join(path), {})[name] = kernel if name == "output" else y
        return y

    with nn.intercept_methods(watch):
        f(x)
    leaving = lrpjax.relevance(f, composites.gradient(), target=classes, at=list(seen))(x)
    split = lambda y: y.reshape(*y.shape[:-1], heads, -1)
    pairs = []
    for path, inner in seen.items():
        query, key, value = (split(inner[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.float32(np.sqrt(query.shape[-1]))
        mixed = split(leaving[path] @ inner["output"].T)
        pairs.append((nn.softmax(scores), jnp.einsum("bqhd,bkhd->bhqk", mixed, value)))
    return pairs


def rollout(maps, read):
    """What reaches each token, [B, T], when `read` [T] goes back through all layers, by A and by the skip connection
    around it: read · Π (1 + A), with maps A [B, T, T] from the first layer to the last.

    Attention rollout (Abnar & Zuidema 2020) has the mean weights of the heads for A, and halves 1 + A, which changes no
    order. Chefer et al. 2021 take the positive part of attention × gradient.
    """
    relevance = jnp.broadcast_to(read, maps[0].shape[:2])
    for attention in reversed(maps):
        relevance = relevance + jnp.einsum("bq,bqk->bk", relevance, attention)
    return relevance


def methods(heads, read, to_input):
    """Of every method, (f, x, classes) -> relevance, compiled once for all networks of one structure.

    Rollouts give a number to each token, [B, T], which `to_input` spreads over the input.
    """

    def layerwise(composite):
        return lambda f, x, classes: lrpjax.relevance(f, composite, target=classes)(x)

    def rolled(share):
        def explain(f, x, classes):
            maps = [share(*pair).mean(1) for pair in attention_of(f, x, classes, heads)]
            return to_input(rollout(maps, read))

        return explain

    noise = {"samples": 20, "key": jax.random.key(0)}
    explainers = {name: layerwise(composite) for name, composite in COMPOSITES.items()} | {
        "integrated gradients": lambda f, x, classes: gradients.integrated_gradients(f, target=classes)(x),
        "SmoothGrad × input": lambda f, x, classes: x * gradients.smoothgrad(f, target=classes, **noise)(x),
        "attention rollout": rolled(lambda weights, gradient: weights),
        "gradient × attention rollout": rolled(lambda weights, gradient: jnp.maximum(weights * gradient, 0)),
    }
    return {name: jax.jit(explain) for name, explain in explainers.items()}


def area(f, x, relevance, classes, **options):
    """Between the curves of the class's score, of every input. A key decides between parts of equal relevance, such as
    black patches, which else would go in the order of reading."""
    key = jax.random.key(0)
    curve = lambda order: metrics.flipping(f, x, relevance, target=classes, order=order, key=key, **options)
    return metrics.abpc(curve("morf").scores, curve("lerf").scores)


def digits():
    """Of every scale, method and setting, the mean area of each training; and the test accuracies."""
    data = demo.load_digits()
    side = demo.SIZE // PATCH
    to_input = lambda r: jnp.kron(r[:, 1:].reshape(-1, side, side), jnp.ones((PATCH, PATCH)))[..., None]
    explainers = methods(HEADS, jnp.zeros(TOKENS + 1).at[0].set(1.0), to_input)
    found, accuracies = {}, []
    for scale, (black, white, seeds) in SCALES.items():
        test = black + jnp.asarray(data.test_images) * (white - black)
        x = test[:IMAGES]
        for seed in seeds:
            f = Partial(APPLY, train(data, seed, black, white))
            accuracies.append(float((f(test).argmax(1) == data.test_labels).mean()))
            (chance, key), classes = jax.random.split(jax.random.key(seed)), f(x).argmax(1)
            maps = {name: explain(f, x, classes) for name, explain in explainers.items()}
            maps["random"] = to_input(jax.random.normal(chance, (len(x), TOKENS + 1)))
            for (name, relevance), fill, size in itertools.product(maps.items(), FILLS, SIZES):
                value = FILLS[fill](x, key, black, white)
                areas = area(f, x, relevance, classes, regions=size, fill=value, steps=STEPS)
                row = found.setdefault(scale, {}).setdefault(name, {})
                row.setdefault(f"{fill}, {size} px", []).append(float(areas.mean()))
    return found, accuracies


def sentences():
    """Of every method and fill, the area of each sentence; what is explained is how like its partner it is."""
    network = pretrained.minilm()
    x = jnp.concatenate([network.sentence(own) for own, _ in PAIRS])
    others = jnp.stack([network(network.sentence(other))[0] for _, other in PAIRS])
    similarities = lambda params, others, x: network.apply(params, x) @ others.T
    f, classes = Partial(similarities, network.params, others), jnp.arange(len(x))
    tokens = x.shape[1]
    to_input = lambda r: jnp.broadcast_to(r[..., None] / x.shape[2], x.shape)
    explainers = methods(pretrained.bert.HEADS, jnp.full(tokens, 1 / tokens), to_input)
    maps = {name: explain(f, x, classes) for name, explain in explainers.items()}
    maps["random"] = to_input(jax.random.normal(jax.random.key(0), x.shape[:2]))
    token = lambda text: network.embed(network.tokens(text).ids)[0, 1]
    fills = {"[MASK]": token("[MASK]"), "[PAD]": token("[PAD]"), "zero": 0.0}
    places = np.arange(tokens)[:, None]
    return {
        name: {
            fill: (100 * area(f, x, relevance, classes, regions=places, fill=value)).tolist()
            for fill, value in fills.items()
        }
        for name, relevance in maps.items()
    }


def main():
    found, accuracies = digits()
    found["sentences"] = sentences()
    ours = [name for name in found["sentences"] if "LRP" in name]
    findings = [
        f"{what}. {common.against(rows, methods, other)}"
        for what, rows in found.items()
        for methods, other in (
            (["AttnLRP"], "CP-LRP"),
            (["AttnLRP, γ = 0.05"], "CP-LRP, γ = 0.05"),
            (["AttnLRP, γ = 0.25"], "CP-LRP, γ = 0.25"),
            *((["AttnLRP", "CP-LRP"], name) for name in rows if name not in (*ours, "random")),
            (["AttnLRP", "CP-LRP", "attention rollout"], "random"),
        )
    ]
    low, high = min(accuracies), max(accuracies)
    trainings = " and ".join(f"{len(seeds)} ({scale})" for scale, (_, _, seeds) in SCALES.items())
    common.write(
        "achtibat",
        "Achtibat et al. 2024: the area between the curves of least and of most relevant first",
        "Mean ± 95 % t interval; a random order has 0 on average. "
        f"Digits: of the logit of the class found, over {trainings} trainings of a vision transformer "
        f"({LAYERS} layers, {TOKENS} patches of {PATCH} px and a class token), {IMAGES} unseen digits each, {STEPS} steps, "
        f"test accuracy {low:.1%} to {high:.1%}; 2 px are one patch, 4 px four, of 16. The digits are normalised, mean 0 and "
        "deviation 1, or left between 0 and 1, where their background is 0. "
        f"Sentences: of 100 times the cosine similarity to a sentence of the same meaning, MiniLM, over {len(PAIRS)} sentences, "
        "token by token. ε where no γ is said; the baseline of integrated gradients is 0, which is the fill mean of normalised "
        "digits, black of the others, and zero of sentences; γ = 0.05 was chosen on these very sentences "
        "(tuning_sentences.md). The intervals are not widened for the number of comparisons.",
        {f"Area between the curves, more is better: {what}": rows for what, rows in found.items()},
        findings,
    )


if __name__ == "__main__":
    main()
