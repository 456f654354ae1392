"""The relevance of parameters against loops over connections, against derivatives of the frozen program written out, and
against the theorem that each layer's weights and biases have the relevance that reaches it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import close, lenient
from jax import lax

import lrpjax
from lrpjax import composites, parameters, rules, select
from lrpjax.analysis.parameters import PruneError
from lrpjax.errors import InputError, RuleError, TargetError

EXACT = composites.epsilon(0.0)
held = lax.stop_gradient


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def network(params, x):
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    return jax.nn.relu(h @ params["w2"]) @ params["w3"] + params["b3"]


@pytest.fixture
def params(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return {"w1": normal(4, 6), "b1": normal(6), "w2": normal(6, 5), "w3": normal(5, 3), "b3": normal(3)}


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_loop_over_connections(params, rng, epsilon):
    x = rng.normal(size=(7, 4))
    w1, b1, w2, w3, b3 = (np.asarray(params[k]) for k in ("w1", "b1", "w2", "w3", "b3"))
    wanted = {name: np.zeros_like(w) for name, w in params.items()}
    stabilised = lambda z: z + epsilon * np.where(z < 0, -1.0, 1.0)
    for one in x:
        z1 = one @ w1 + b1
        a1 = np.maximum(z1, 0)
        z2 = a1 @ w2
        a2 = np.maximum(z2, 0)
        z3 = a2 @ w3 + b3
        R = np.where(np.arange(3) == 2, z3, 0.0)
        for a, w, b, z, name, bias in [
            (a2, w3, b3, z3, "w3", "b3"),
            (a1, w2, 0 * z2, z2, "w2", None),
            (one, w1, b1, z1, "w1", "b1"),
        ]:
            below = np.zeros_like(a)
            for i in range(len(a)):
                for j in range(len(z)):
                    share = a[i] * w[i, j] * R[j] / stabilised(z)[j]
                    wanted[name][i, j] += share
                    below[i] += share
            if bias:
                wanted[bias] = wanted[bias] + b * R / stabilised(z)
            R = below
    found = parameters.relevance(network, composites.epsilon(epsilon), target=2)(params, jnp.asarray(x))
    for name in params:
        close(found[name], wanted[name])


def test_every_layer_has_the_relevance_that_reaches_it(params, rng):
    x = jnp.asarray(rng.normal(size=(3, 4)))
    R = parameters.relevance(network, EXACT)(params, x)
    y = network(params, x)
    close(R["w3"].sum() + R["b3"].sum(), y.sum())
    close(R["w2"].sum(), R["w3"].sum())
    close(R["w1"].sum() + R["b1"].sum(), R["w2"].sum())
    close(lrpjax.relevance(functools.partial(network, params), EXACT)(x).sum(), R["w1"].sum())


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), use_bias=False, param_dtype=float)(x)
        x = nn.BatchNorm(use_running_average=True, param_dtype=float)(x)
        x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(2, param_dtype=float)(x.reshape(len(x), -1))


def test_convolutions_and_batch_norm(rng):
    """ReLU networks: R_w = w ⊙ ∂f_t/∂w, for LRP-0."""
    model, x = Convolutional(), jnp.asarray(rng.normal(size=(2, 4, 4, 2)))
    variables = lenient(model.init)(jax.random.key(0), x)
    variables = jax.tree.map(
        lambda a: a.astype(float) + 0.1 * jnp.asarray(rng.uniform(size=a.shape)), variables
    )
    f = lambda params, x: lenient(model.apply)({**variables, "params": params}, x)
    found = parameters.relevance(f, EXACT, target=1)(variables["params"], x)
    slopes = jax.grad(lambda p: f(p, x)[:, 1].sum())(variables["params"])
    jax.tree.map(lambda r, w, g: close(r, w * g), found, variables["params"], slopes)
    assert parameters.summed(found, axis=-1)["Conv_0"]["kernel"].shape == (3,)


def attention(params, x, keep=lambda a: a):
    scores = keep(jax.nn.softmax(x @ params["q"] @ (x @ params["k"]).T))
    h = x + scores @ (x @ params["v"])
    h = h * keep(lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)) * params["scale"] + params["shift"]
    u = h @ params["up"]
    return (u * keep(jax.nn.sigmoid(u))) @ params["out"]


@pytest.fixture
def transformer(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return {k: normal(4, 4) for k in "qkv"} | {
        "scale": normal(4),
        "shift": normal(4),
        "up": normal(4, 6),
        "out": normal(6, 3),
    }


def test_attention_norms_and_activations(transformer, rng):
    """CP-LRP: R_w = w ⊙ ∂/∂w of the program whose attention, norms and activations are frozen; queries and keys have none."""
    x = jnp.asarray(rng.normal(size=(5, 4)))
    found = parameters.relevance(attention, composites.cp_lrp(0.0), target=0)(transformer, x)
    slopes = jax.grad(lambda p: attention(p, x, held)[:, 0].sum())(transformer)
    for name in transformer:
        close(found[name], transformer[name] * (slopes[name] if name not in "qk" else 0.0))


def test_attention_among_tokens(transformer, rng):
    """Of looked-up tokens, which are integers, the relevance is that of their vectors, and the table's that of its rows."""
    table, ids = jnp.asarray(rng.normal(size=(6, 4))), jnp.array([1, 4, 4, 0])
    f = lambda params, ids: attention(params, params["table"][ids])
    found = parameters.relevance(f, composites.cp_lrp(0.0), target=0)({**transformer, "table": table}, ids)
    of_vectors = parameters.relevance(attention, composites.cp_lrp(0.0), target=0)(transformer, table[ids])
    slopes = jax.grad(lambda t: attention(transformer, t[ids], held)[:, 0].sum())(table)
    jax.tree.map(close, {name: found[name] for name in transformer}, of_vectors)
    close(found["table"], table * slopes)


def test_scanned_layers_and_tied_tokens(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    params = {"embed": normal(6, 4), "layers": {"w": normal(3, 4, 4), "b": normal(3, 4)}}

    def scanned(params, ids):
        step = lambda h, p: (h + jnp.tanh(h @ p["w"] + p["b"]), None)
        h, _ = lax.scan(step, params["embed"][ids], params["layers"])
        return h @ params["embed"].T

    def unrolled(params, ids):
        h = params["embed"][ids]
        for i in range(3):
            h = h + jnp.tanh(h @ params["layers"]["w"][i] + params["layers"]["b"][i])
        return h @ params["embed"].T

    def frozen(params, ids):
        h = params["embed"][ids]
        for i in range(3):
            z = h @ params["layers"]["w"][i] + params["layers"]["b"][i]
            h = h + z * held(jnp.tanh(z) / z)
        return h @ params["embed"].T

    ids = jnp.array([1, 4, 4, 0])
    slopes = jax.grad(lambda p: frozen(p, ids)[-1, 2])(params)
    weight = jnp.zeros((4, 6)).at[-1, 2].set(1.0)
    for f in (scanned, unrolled):
        found = parameters.relevance(f, EXACT, target=lambda y: y * weight)(params, ids)
        jax.tree.map(lambda r, w, g: close(r, w * g), found, params, slopes)
        inside = jax.jit(lambda p, i, f=f: parameters.relevance(f, EXACT, target=lambda y: y * weight)(p, i))(
            params, ids
        )
        jax.tree.map(close, inside, found)


def test_gradients(params, rng):
    x = jnp.asarray(rng.normal(size=(3, 4)))
    slopes = jax.grad(lambda p: network(p, x)[:, 1].sum())(params)
    found = parameters.relevance(network, composites.gradient(), target=1)(params, x)
    times = parameters.relevance(network, composites.input_x_gradient(), target=1)(params, x)
    for name in params:
        close(found[name], slopes[name]), close(times[name], slopes[name] * params[name])


def test_other_arguments_and_integers(params, rng):
    x = jnp.asarray(rng.normal(size=(3, 4)))
    more = {**params, "count": jnp.arange(3)}
    found = parameters.relevance(lambda x, p: network(p, x), EXACT, argnums=1)(x, more)
    close(found["w2"], parameters.relevance(network, EXACT)(params, x)["w2"])
    assert found["count"].dtype == more["count"].dtype and not found["count"].any()


# ------------------------------------------------------------------------------------------------------------- bad input


def test_rules_that_do_not_say_what_a_weight_contributes(params, rng):
    x = jnp.asarray(rng.normal(size=(3, 4)))
    composite = lrpjax.Composite(
        [(select.first("dense"), rules.ZPlus()), (select.last("dense"), rules.Gamma(0.1))]
    )
    with pytest.raises(RuleError, match=r"(?s)ZPlus.*Gamma|Gamma.*ZPlus") as error:
        parameters.relevance(network, composite)(params, x)
    assert "composites.epsilon" in str(error.value) and str(error.value).count("dense in") == 2


def test_relevance_that_is_given_to_outputs_that_are_zero(params, rng):
    silent = {**params, "w3": params["w3"].at[:, 1].set(0.0), "b3": params["b3"].at[1].set(0.0)}
    x = jnp.asarray(rng.normal(size=(3, 4)))
    explain = parameters.relevance(network, EXACT, target=jnp.ones((3, 3)))
    with pytest.raises(TargetError, match="exactly 0"):
        explain(silent, x)
    assert jnp.isnan(jax.jit(explain)(silent, x)["w1"]).any()


def test_inputs_are_arguments(params):
    with pytest.raises(InputError, match="give them as arguments"):
        parameters.relevance(lambda p: network(p, jnp.ones((1, 4))))(params)
    with pytest.raises(InputError, match="names no argument"):
        parameters.relevance(network, argnums=2)(params, jnp.ones((1, 4)))


def test_weights_explained_as_factors_of_products_are_refused(params, transformer, rng):
    """`relevance(f, argnums=params)` would halve a layer's relevance at every product W·h, and say nothing."""
    x = jnp.asarray(rng.normal(size=(3, 4)))
    with pytest.raises(InputError, match=r"(?s)w2.*lrpjax\.parameters\.relevance"):
        lrpjax.relevance(network, EXACT)(params, x)
    with pytest.raises(InputError, match=r"lrpjax\.parameters\.relevance"):
        lrpjax.relevance(attention, composites.cp_lrp())(transformer, x)
    # Of one layer there is one way to see it; so are products of inputs, and arrays that are arguments of their own.
    close(
        lrpjax.relevance(lambda w, x: x @ w, EXACT)(params["w1"], x),
        parameters.relevance(lambda w, x: x @ w, EXACT)(params["w1"], x),
    )
    pair = {"a": x, "b": 2.0 * x}
    both = lrpjax.relevance(lambda p: p["a"] @ p["b"].T, EXACT)(pair)
    close(both["a"].sum(), both["b"].sum())
    lrpjax.relevance(lambda a, b: jnp.tanh(x @ a) @ b, EXACT, argnums=(0, 1))(params["w1"], params["w2"])


# --------------------------------------------------------------------------------------------------------------- pruning


def test_pruning_by_hand():
    params = {
        "w": jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        "v": jnp.array([[5.0], [6.0]]),
        "b": jnp.array([7.0, 8.0]),
    }
    scores = {"w": jnp.array([[0.1, -9.0], [0.2, 0.3]]), "v": jnp.array([[-5.0], [4.0]]), "b": jnp.zeros(2)}
    by_array = parameters.prune(params, scores, 0.5)
    close(by_array["w"], jnp.array([[0.0, 2.0], [0.0, 4.0]])), close(by_array["v"], jnp.array([[5.0], [0.0]]))
    close(by_array["b"], params["b"])
    by_column = parameters.prune(params, scores, 0.5, within="column")
    close(by_column["w"], jnp.array([[0.0, 2.0], [3.0, 0.0]]))
    together = parameters.prune(params, scores, 0.5, within="all")
    close(together["w"], jnp.array([[0.0, 2.0], [0.0, 0.0]])), close(together["v"], params["v"])
    some = parameters.prune(params, scores, 1.0, select=lambda path, w: path == "b")
    close(some["w"], params["w"]), close(some["b"], jnp.zeros(2))
    close(parameters.prune(params, scores, 0.0)["w"], params["w"])


def test_a_trained_network_keeps_its_accuracy_by_relevance_and_not_by_chance(rng):
    """Whether two of ten inputs have one sign, with seven weights in ten removed, on samples that are not in training."""
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    x = normal(2, 512, 10)
    labels = (x[..., 0] * x[..., 1] > 0).astype(int)
    params = {"w1": 0.3 * normal(10, 32), "b1": jnp.zeros(32), "w2": 0.3 * normal(32, 2), "b2": jnp.zeros(2)}
    network = lambda params, x: jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    adam = optax.adam(0.02)
    loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(network(p, x[0]), labels[0]).mean()

    def step(state, _):
        updates, inner = adam.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), inner), None

    (params, _), _ = lenient(jax.jit(lambda p: lax.scan(step, (p, adam.init(p)), length=300)))(params)
    explain = parameters.relevance(network, composites.epsilon(), target=labels[0])

    @jax.jit
    def accuracy(scores):
        return (network(parameters.prune(params, scores, 0.7), x[1]).argmax(-1) == labels[1]).mean()

    chance = [{k: rng.uniform(size=w.shape) for k, w in params.items()} for _ in range(5)]
    by_chance = np.mean([accuracy(scores) for scores in chance])
    assert accuracy(jax.jit(explain)(params, x[0])) > 0.78 and by_chance < 0.65


def test_pruning_that_does_not_fit():
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(PruneError, match="another structure"):
        parameters.prune(params, {"w": jnp.ones(3)}, 0.5)
    with pytest.raises(PruneError, match="compete within"):
        parameters.prune(params, params, 0.5, within="row")
    with pytest.raises(PruneError, match="equal groups"):
        parameters.summed(params, axis=-1, groups=3)


def test_sums_by_layer_neuron_and_head():
    R = {"kernel": jnp.arange(12.0).reshape(3, 4), "scale": jnp.array(2.0)}
    close(parameters.summed(R)["kernel"], 66.0)
    close(parameters.summed(R, -1, groups=2)["kernel"], jnp.array([27.0, 39.0]))
    (
        close(parameters.summed(R, -2)["kernel"], jnp.array([6.0, 22.0, 38.0])),
        close(parameters.summed(R, -2)["scale"], 2.0),
    )


def test_it_costs_no_more_than_a_gradient(params, rng):
    """One transposed map for each layer beside that of the relevance of the inputs, as a gradient of the parameters has."""
    wide = {"w1": (64, 256), "b1": (256,), "w2": (256, 256), "w3": (256, 128), "b3": (128,)}
    wide = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in wide.items()}
    x = jnp.asarray(rng.normal(size=(256, 64)))
    flops = lambda f: jax.jit(f).lower(wide, x).compile().cost_analysis()["flops"]
    ours = flops(parameters.relevance(network, composites.epsilon(1e-6), target=2))
    assert ours < 1.2 * flops(jax.grad(lambda p, x: network(p, x)[:, 2].sum()))
