"""Small language models for the scripts of this folder: decoders as GPT-2 is one, trained on two tasks of which it is known
what circuits solve them, with pairs of a clean and a corrupted text.

Induction (Olsson et al. 2022): a text that repeats itself goes on as it went on before; in the corrupted text it went on
otherwise. Indirect objects (Wang et al. 2023): "When Ada and Ben went to the shop, Ben gave a book to" goes on with the name
that stands there once; in the corrupted text the other name is given twice.
"""

import functools

import common  # noqa: F401  # before jax: it says that JAX runs on the CPU
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrpjax

WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 256
SIZE = WIDTH // HEADS


class Induction:
    """Texts of random words that begin again after a random number of them."""

    vocabulary, length = 24, 20

    def texts(self, random, count):
        """Texts, and which of their words can be known from what stands before."""
        period = random.integers(6, self.length - 3, count)[:, None]
        words = np.stack([random.permutation(self.vocabulary) for _ in range(count)])
        place = np.arange(self.length)
        return np.take_along_axis(words, place % period, 1), (place >= period)[:, 1:]

    def pairs(self, random, count):
        """(clean, corrupted, the word that follows in each): one word of the first turn differs, that which is due."""
        words = np.stack([random.permutation(self.vocabulary) for _ in range(count)])
        period = random.integers(self.length // 2 + 1, self.length - 4, count)[:, None]
        place = np.arange(self.length)
        clean = np.take_along_axis(words, place % period, 1)
        due = self.length - period
        other = np.take_along_axis(words, period + 3, 1)
        corrupted = np.where(place == due, other, clean)
        return clean, corrupted, np.take_along_axis(clean, due, 1)[:, 0], other[:, 0]


class IndirectObjects:
    """Sentences with two names, of which one is given again."""

    names, places, things = 16, 6, 6
    words = ("<start>", "when", "and", "went", "to", "the", ",", "gave", "a")
    vocabulary, length = len(words) + names + places + things, 15

    def texts(self, random, count):
        word = {w: i for i, w in enumerate(self.words)}
        first = len(self.words)
        names = first + np.stack([random.permutation(self.names)[:2] for _ in range(count)])
        place = first + self.names + random.integers(0, self.places, count)
        thing = first + self.names + self.places + random.integers(0, self.things, count)
        given = random.integers(0, 2, count)
        rows = np.arange(count)
        columns = ["<start>", "when", names[:, 0], "and", names[:, 1], "went", "to", "the", place, ",", names[rows, given],
                   "gave", "a", thing, "to", names[rows, 1 - given]]  # fmt: skip
        text = np.stack([np.broadcast_to(word[c] if isinstance(c, str) else c, count) for c in columns], 1)
        return text, np.broadcast_to(np.arange(self.length) == self.length - 1, (count, self.length))

    def pairs(self, random, count):
        text, _ = self.texts(random, count)
        clean, answer = text[:, :-1], text[:, -1]
        again = clean[:, 10]
        return clean, np.where(np.arange(self.length) == 10, answer[:, None], clean), answer, again


TASKS = {"induction": Induction(), "indirect objects": IndirectObjects()}


def initial(task, seed):
    random = np.random.default_rng(seed)
    normal = lambda *shape, scale=0.02: jnp.asarray(random.normal(size=shape) * scale, jnp.float32)
    norm = lambda *shape: {"scale": jnp.ones((*shape, WIDTH)), "bias": jnp.zeros((*shape, WIDTH))}
    linear = lambda inputs, outputs: {
        "kernel": normal(LAYERS, inputs, outputs, scale=inputs**-0.5),
        "bias": jnp.zeros((LAYERS, outputs)),
    }
    layers = {name: linear(WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
    layers |= {
        "up": linear(WIDTH, HIDDEN),
        "down": linear(HIDDEN, WIDTH),
        "before": norm(LAYERS),
        "between": norm(LAYERS),
    }
    return {
        "words": normal(task.vocabulary, WIDTH, scale=0.1),
        "places": normal(task.length + 1, WIDTH, scale=0.1),
        "layers": layers,
        "last": norm(),
        "unembed": normal(WIDTH, task.vocabulary, scale=WIDTH**-0.5),
    }


def normalised(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def logits(params, ids):
    """The logits after every word of one text. Values are named "residual0", "attention0", "mlp0", … and "weights0"."""
    length = len(ids)
    x = params["words"][ids] + params["places"][:length]
    for i in range(LAYERS):
        p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        linear = lambda name, h, p=p: h @ p[name]["kernel"] + p[name]["bias"]
        x = lrpjax.tag(x, f"residual{i}")
        h = normalised(x, p["before"])
        heads = lambda name, h=h, linear=linear: (
            linear(name, h).reshape(length, HEADS, SIZE).transpose(1, 0, 2)
        )
        query, key = lrpjax.tag(heads("query"), f"query{i}"), lrpjax.tag(heads("key"), f"key{i}")
        scores = jnp.where(
            jnp.tril(jnp.ones((length, length), bool)), query @ key.transpose(0, 2, 1) / SIZE**0.5, -jnp.inf
        )
        weights = lrpjax.tag(jax.nn.softmax(scores), f"weights{i}")
        mixed = (weights @ heads("value")).transpose(1, 0, 2).reshape(length, WIDTH)
        x = x + lrpjax.tag(linear("output", mixed), f"attention{i}")
        x = x + lrpjax.tag(linear("down", jax.nn.gelu(linear("up", normalised(x, p["between"])))), f"mlp{i}")
    return normalised(x, params["last"]) @ params["unembed"]


@functools.partial(jax.jit, static_argnames=("count",))
def _steps(state, texts, known, count):
    adam = _adam(count)

    def loss(params, text, known):
        found = jax.vmap(functools.partial(logits, params))(text[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(found, text[:, 1:])
        return (losses * known).sum() / known.sum()

    def step(state, batch):
        params, inner = state
        value, slopes = jax.value_and_grad(loss)(params, *batch)
        updates, inner = adam.update(slopes, inner, params)
        return (optax.apply_updates(params, updates), inner), value

    return jax.lax.scan(step, state, (texts, known))


def _adam(count):
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, count), weight_decay=0.01)


def trained(task, seed, *, steps=2000, batch=64):
    """Parameters, and the part of unseen clean texts that the model continues rightly."""
    random = np.random.default_rng(seed)
    params = initial(task, seed)
    state = params, _adam(steps).init(params)
    for _ in range(steps // 100):
        texts, known = task.texts(random, 100 * batch)
        shape = lambda a: jnp.asarray(a).reshape(100, batch, -1)
        state, _ = _steps(state, shape(texts.astype(np.int32)), shape(known.astype(np.float32)), steps)
    clean, _, answer, _ = task.pairs(np.random.default_rng(seed + 1000), 512)
    return state[0], accuracy(state[0], clean, answer)


@jax.jit
def _last(params, texts):
    return jax.vmap(lambda ids: logits(params, ids)[-1])(texts)


def accuracy(params, texts, answers):
    return float((_last(params, jnp.asarray(texts, jnp.int32)).argmax(-1) == jnp.asarray(answers)).mean())
