"""The public transforms: signatures, targets, `at`, and what JAX's own transforms do with them."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

RNG = np.random.default_rng(11)
W1, B1, W2, B2 = RNG.normal(size=(4, 6)), RNG.normal(size=6), RNG.normal(size=(6, 3)), RNG.normal(size=3)
X = jnp.asarray(RNG.normal(size=(2, 4)))


def mlp(x):
    with jax.named_scope("hidden"):
        h = jax.nn.relu(x @ W1 + B1)
    with jax.named_scope("head"):
        return h @ W2 + B2


# ------------------------------------------------------------------------------------------------------------------- calling conventions


def test_signature_is_that_of_the_function():
    relevance = lrpjax.relevance(mlp)
    assert relevance.__name__ == "mlp"
    assert relevance.__wrapped__ is mlp


@pytest.mark.parametrize(
    "composite",
    [None, composites.epsilon_plus(), composites.epsilon_gamma_box(-3.0, 3.0), composites.gradient()],
)
def test_value_and_relevance_agrees_with_both(composite):
    y, R = lrpjax.value_and_relevance(mlp, composite, target=1)(X)
    close(y, mlp(X), 1e-15)
    close(R, lrpjax.relevance(mlp, composite, target=1)(X), 1e-15)


@pytest.mark.parametrize("argnums", [1, (1,), (0, 2), (2, 0), -1])
def test_argnums(argnums):
    f = lambda a, b, c: (a @ W1) * jnp.tanh(b) + c
    arguments = (X, jnp.ones(6), jnp.asarray(RNG.normal(size=(2, 6))))
    found = lrpjax.relevance(f, argnums=argnums)(*arguments)
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    assert isinstance(found, tuple) == isinstance(argnums, tuple)
    found = found if isinstance(found, tuple) else (found,)
    assert [r.shape for r in found] == [arguments[n].shape for n in numbers]
    alone = [
        lrpjax.relevance(lambda v, n=n: f(*arguments[:n], v, *arguments[n:][1:]))(arguments[n])
        for n in (0, 1, 2)
    ]
    if len(numbers) == 1:
        close(found[0], alone[numbers[0]])
    else:
        assert all(abs(r).sum() > 0 for r in found)


def test_pytrees_keyword_arguments_and_closures():
    shift = jnp.asarray(B1)

    def f(tree, *, scale):
        return (tree["a"] @ W1 + tree["b"][0] + 0.0 * shift) * scale

    tree = {"a": X, "b": (jnp.ones(6), None)}
    R = lrpjax.relevance(f)(tree, scale=2.0)
    assert jax.tree.structure(R) == jax.tree.structure(tree)
    assert jax.tree.map(jnp.shape, R) == jax.tree.map(jnp.shape, tree)
    close(R["a"].sum() + R["b"][0].sum(), f(tree, scale=2.0).sum(), 1e-5)


def test_has_aux():
    f = lambda x: (mlp(x), {"hidden": x @ W1})
    R, aux = lrpjax.relevance(f, has_aux=True)(X)
    (y, aux2), R2 = lrpjax.value_and_relevance(f, has_aux=True)(X)
    close((R, aux, y), (lrpjax.relevance(mlp)(X), {"hidden": X @ W1}, mlp(X)))
    close((R2, aux2), (R, aux))


def test_several_outputs_are_explained_together():
    f = lambda x: {"logits": mlp(x), "norm": x.sum(-1)}
    R = lrpjax.relevance(f, target=lambda y: {"logits": y["logits"], "norm": 0 * y["norm"]})(X)
    close(R, lrpjax.relevance(mlp)(X))
    assert lrpjax.relevance(f)(X).shape == X.shape


def test_input_that_no_output_depends_on_has_no_relevance():
    R = lrpjax.relevance(lambda x, y: x * 2.0, argnums=(0, 1))(X, X)
    assert not R[1].any()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_structure_shape_and_dtype_are_those_of_the_argument(dtype):
    x = {"x": X.astype(dtype)}
    parameters = jax.tree.map(lambda a: jnp.asarray(a, dtype), (W1, B1, W2))
    f = lambda x, p: jax.nn.gelu(x["x"] @ p[0] + p[1]) @ p[2]
    for composite in (
        None,
        composites.epsilon_plus_flat(),
        composites.epsilon_alpha2_beta1(),
        composites.deep_taylor(),
    ):
        R = lrpjax.relevance(f, composite, target="max")(x, parameters)
        assert R["x"].dtype == dtype
        assert R["x"].shape == X.shape
        assert jnp.isfinite(R["x"]).all()


def test_python_numbers_and_numpy_arrays_are_arguments():
    assert lrpjax.relevance(lambda x: 3.0 * x)(2.0) == 6.0
    close(lrpjax.relevance(mlp)(np.asarray(X)), lrpjax.relevance(mlp)(X), 1e-15)


# -------------------------------------------------------------------------------------------------------------------------------- targets


def hot(y, classes):
    return jnp.asarray(np.eye(3)[np.asarray(classes)]) * y


@pytest.mark.parametrize(
    ("target", "seed"),
    [
        (None, lambda y: y),
        ("max", lambda y: hot(y, y.argmax(-1))),
        (2, lambda y: hot(y, [2, 2])),
        (-1, lambda y: hot(y, [2, 2])),
        (np.array([0, 2]), lambda y: hot(y, [0, 2])),
        ([1, 0], lambda y: hot(y, [1, 0])),
        (np.ones((2, 3)), lambda y: jnp.ones((2, 3))),
        (np.ones((2, 3), np.float32), lambda y: jnp.ones((2, 3))),
        (lambda y: y - y.mean(-1, keepdims=True), lambda y: y - y.mean(-1, keepdims=True)),
    ],
    ids=["None", "max", "int", "negative int", "array", "list", "seed", "float32 seed", "callable"],
)
def test_targets(target, seed):
    y, pull = lrpjax.vjp(mlp, None, X)
    close(lrpjax.relevance(mlp, target=target)(X), pull(seed(y))[0])
    close(jax.jit(lrpjax.relevance(mlp, target=target))(X), pull(seed(y))[0])


def test_traced_class():
    explain = jax.jit(lambda x, c: lrpjax.relevance(mlp, target=c)(x))
    for c in range(3):
        close(explain(X, c), lrpjax.relevance(mlp, target=c)(X))
    close(explain(X, jnp.array([2, 0])), lrpjax.relevance(mlp, target=jnp.array([2, 0]))(X))


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_classes_that_a_jitted_explanation_closes_over(array):
    classes = array([2, 0])
    close(jax.jit(lrpjax.relevance(mlp, target=classes))(X), lrpjax.relevance(mlp, target=classes)(X))
    with pytest.raises(lrpjax.TargetError, match="out of range"):
        jax.jit(lrpjax.relevance(mlp, target=array([2, 3])))(X)


def test_contrastive_target_explains_the_difference_of_two_classes():
    def rival(y):
        return jnp.zeros_like(y).at[:, 0].set(y[:, 0]).at[:, 1].set(-y[:, 1])

    R = lrpjax.relevance(mlp, target=rival)(X)
    close(R, lrpjax.relevance(mlp, target=0)(X) - lrpjax.relevance(mlp, target=1)(X))


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        (composites.gradient, lambda g: g),
        (composites.input_x_gradient, lambda g: X * g),
    ],
)
def test_gradient_family_differentiates_the_target(preset, wanted):
    g = jax.grad(lambda x: mlp(x)[:, 1].sum())(X)
    close(lrpjax.relevance(mlp, preset(), target=1)(X), wanted(g))


# ------------------------------------------------------------------------------------------------------------------------------------- at


def test_a_function_that_names_its_inputs_takes_them_by_name_too():
    def f(scale, x):
        return mlp(scale * x)

    f.argnums = 1
    expected = lrpjax.relevance(f)(2.0, X)
    close(expected, lrpjax.relevance(lambda x: f(2.0, x))(X))
    close(lrpjax.relevance(f)(x=X, scale=2.0), expected)
    close(jax.jit(lrpjax.relevance(f))(2.0, x=X), expected)
    with pytest.raises(
        lrpjax.InputError, match=r"do not fit f\(scale, x\): missing a required argument: 'x'"
    ):
        lrpjax.relevance(f)(2.0)


def test_at_one_path_gives_that_value_and_several_a_dictionary():
    alone = lrpjax.relevance(mlp, at="hidden")(X)
    assert alone.shape == (2, 6)
    found = lrpjax.relevance(mlp, at=["hidden", "head"])(X)
    assert list(found) == ["hidden", "head"]
    close(found["hidden"], alone)
    close(found["head"], mlp(X))
    h = jax.nn.relu(X @ W1 + B1)
    close(alone, lrpjax.relevance(lambda h: h @ W2 + B2)(h))


def test_at_is_conserved_to_the_input():
    """Σ over a layer that all relevance passes: what reaches the input is what left the hidden layer, less what the bias took."""
    f = lambda x: jax.nn.relu(mlp_scope(x)) @ W2
    found = lrpjax.relevance(f, composites.epsilon(0.0), at="hidden")(X)
    close(found.sum(), f(X).sum())


def mlp_scope(x):
    with jax.named_scope("hidden"):
        return x @ W1


def test_at_globs_finds_units():
    found = lrpjax.relevance(mlp, at="*")(X)
    assert {"hidden", "head"} <= {name.split("#")[0] for name in found}
    assert all(jnp.isfinite(r).all() for r in found.values())


def test_at_an_embedding_explains_tokens():
    table = jnp.asarray(RNG.normal(size=(7, 4)))

    def f(tokens):
        with jax.named_scope("embed"):
            e = table[tokens]
        return jax.nn.gelu(e @ W1) @ W2

    tokens = jnp.array([3, 1, 5])
    rest = lambda e: jax.nn.gelu(e @ W1) @ W2
    for composite in (composites.epsilon(), composites.epsilon_plus_flat()):
        found = lrpjax.relevance(f, composite, target=1, at="embed")(tokens)
        close(found, lrpjax.relevance(rest, composite, target=1)(table[tokens]))


SCOPE = functools.partial(jax.named_scope, "here")
TABLE = jnp.asarray(RNG.normal(size=(7, 4)))
POSITIONS = jnp.asarray(RNG.normal(size=(3, 4)))
behind = lambda h: jax.nn.gelu(h @ W1) @ W2
STOPS = {
    "scaled, and shifted behind": (lambda e: 2 * e, lambda h: behind(h + POSITIONS)),
    "in front of a BatchNorm": (lambda e: e @ W1, lambda h: jax.nn.gelu(h * W1[0] + B1) @ W2),
    "in front of an average's division": (lambda e: e.sum(0), lambda h: jax.nn.gelu(h / 3 @ W1) @ W2),
    "padded": (
        lambda e: jnp.pad(e, ((0, 0), (0, 2))),
        lambda h: jax.nn.gelu(h @ W1[:, :3].repeat(2, 0)[:6]) @ W2[:3],
    ),
}


@pytest.mark.parametrize("argument", ["tokens", "an array"])
@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize(
    "composite",
    [
        composites.epsilon(),
        lrpjax.Composite([(select.kind("dense"), rules.ZPlus())]),
        composites.input_x_gradient(),
        composites.gradient(),
    ],
    ids=["epsilon", "z_plus", "input_x_gradient", "gradient"],
)
def test_at_what_a_unit_would_take_in(name, argument, composite):
    """A named value has the relevance that it has as the argument of what follows; of a layer whose BatchNorm is folded
    into it, that is the relevance of both."""
    front, rest = STOPS[name]
    tokens = jnp.array([3, 1, 5])

    def f(x):
        e = TABLE[x] if argument == "tokens" else jnp.sin(x)
        with SCOPE():
            h = front(e)
        return rest(h)

    x = tokens if argument == "tokens" else jnp.arcsin(TABLE[tokens] / 4)
    e = TABLE[tokens] if argument == "tokens" else jnp.sin(x)
    found = lrpjax.relevance(f, composite, target=1, at="here")(x)
    if name == "in front of a BatchNorm" and composite.method == "relevance":
        expected = lrpjax.relevance(lambda z: jax.nn.gelu(z) @ W2, composite, target=1)(front(e) * W1[0] + B1)
    else:
        expected = lrpjax.relevance(rest, composite, target=1)(front(e))
    assert np.any(expected)
    close(found, expected)


def test_at_one_of_the_slices_that_a_weighted_sum_is_made_of():
    """Relevance would pass by a copy of the slice, where the sum is one layer."""

    def f(x):
        e = jnp.sin(x)
        with SCOPE():
            h = e[:, 1:]
        return (0.5 * h + 0.3 * e[:, :-1]).sum()

    e = jnp.sin(X)
    close(lrpjax.relevance(f, composites.epsilon(0.0), at="here")(X), 0.5 * e[:, 1:])
    close(lrpjax.relevance(f, composites.gradient(), at="here")(X), jnp.full((2, 3), 0.5))


# ------------------------------------------------------------------------------------------------------------------- the transforms of JAX

EVERY = {
    "default": None,
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "gamma_stages": composites.gamma_stages(-3.0, 3.0, start=0.0),
    "gamma_shared": composites.gamma_shared(),
    "excitation_backprop": composites.excitation_backprop(),
    "deep_taylor": composites.deep_taylor(),
    "deep_taylor, box": composites.deep_taylor(-3.0, 3.0),
    "gradient": composites.gradient(),
    "input_x_gradient": composites.input_x_gradient(),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(),
}
every_composite = pytest.mark.parametrize("name", EVERY)
K1 = RNG.normal(size=(3, 2, 3))


def network(x, parameters=(K1, W2)):
    """Convolution, ReLU, max pooling, a residual sum, normalisation, attention, a dense head: one of each."""
    kernel, head = parameters
    h = jax.nn.relu(lax.conv(x.reshape(1, 2, -1), jnp.asarray(kernel), (1,), "SAME") + 0.1)
    h = h + jnp.tanh(h)
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "SAME")
    h = h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-3)
    h = jax.nn.softmax(h @ h.swapaxes(1, 2), axis=-1) @ h
    return h.reshape(-1, 3)[:2].reshape(1, 6) @ jnp.asarray(head)


NX = jnp.asarray(RNG.normal(size=(3, 12)))


@every_composite
def test_jit_changes_nothing(name):
    explain = lrpjax.relevance(network, EVERY[name], target=0)
    close(jax.jit(explain)(NX[0]), explain(NX[0]))


@every_composite
def test_vmap_over_inputs_is_a_loop(name):
    explain = lrpjax.relevance(network, EVERY[name], target="max")
    close(jax.vmap(explain)(NX), jnp.stack([explain(x) for x in NX]))


@every_composite
def test_vmap_over_seeds_explains_all_classes(name):
    y, pull = lrpjax.vjp(network, EVERY[name], NX[0])
    seeds = jnp.eye(3)[:, None] * y
    (found,) = jax.vmap(pull)(seeds)
    close(found, jnp.stack([pull(seed)[0] for seed in seeds]))
    assert lrpjax.vjp(network, EVERY[name], NX[0])[0].shape == (1, 3)


@every_composite
def test_batch_in_a_pmapped_or_scanned_loop_is_the_same(name):
    explain = lrpjax.relevance(network, EVERY[name], target=1)
    close(jax.lax.map(explain, NX), jax.vmap(explain)(NX))


def numeric(f, x, direction, step=1e-6):
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


SMOOTH = {
    "relu": lambda x, p: jax.nn.relu(x @ p[0] + p[1]) @ p[2],
    "softplus": lambda x, p: jax.nn.softplus(x @ p[0] + p[1]) @ p[2],
    "layer norm": lambda x, p: jax.nn.standardize(x @ p[0] + p[1]) @ p[2],
    "softmax": lambda x, p: jax.nn.softmax(x @ p[0] + p[1]) @ p[2],
    "product": lambda x, p: (jax.nn.sigmoid(x @ p[0]) * (x @ p[0] + p[1])) @ p[2],
    "two layers": lambda x, p: jax.nn.relu(jax.nn.relu(x @ p[0] + p[1]) @ p[2] + 0.3) @ W2.T[:, :2],
}
RULES = [
    rules.Epsilon(0.1),
    rules.Gamma(0.3, epsilon=0.1),
    rules.AlphaBeta(epsilon=0.1),
    rules.ZBox(-3.0, 3.0, epsilon=0.1),
    rules.WSquare(epsilon=0.1),
    rules.Flat(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("net", SMOOTH)
def test_gradient_of_the_relevance_agrees_with_finite_differences(net, rule):
    """With respect to the input and to every parameter: the relevance is an ordinary differentiable function of both."""
    rng = np.random.default_rng(0)
    weigh = jnp.asarray(rng.normal(size=4))
    composite = lrpjax.Composite([(select.first("dense"), rule), (select.kind("dense"), rules.Epsilon(0.1))])

    @jax.jit
    def loss(x, p):
        return (weigh * lrpjax.relevance(functools.partial(SMOOTH[net], p=p), composite, target=1)(x)).sum()

    arguments = (jnp.asarray(rng.normal(size=4)), tuple(jnp.asarray(v) for v in (W1, B1, W2)))
    leaves, treedef = jax.tree.flatten(arguments)
    gradients = jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(*arguments))
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        direction = jnp.asarray(rng.normal(size=leaf.shape))
        along = lambda t, i=i, d=direction: loss(
            *treedef.unflatten([*leaves[:i], leaves[i] + t * d, *leaves[i + 1 :]])
        )
        assert float(jnp.vdot(gradient, direction)) == pytest.approx(
            float(numeric(along, 0.0, 1.0)), rel=1e-5, abs=1e-7
        )


def test_hessian_of_the_relevance_exists():
    loss = lambda x: lrpjax.relevance(SMOOTH["softplus"], target=0)(x, (W1, B1, W2)).sum()
    x = X[0]
    H = jax.jacrev(jax.grad(loss))(x)
    assert jnp.isfinite(H).all()
    close(H, H.T, 1e-6)
    close(H[0], jax.vmap(lambda e: numeric(jax.grad(loss), x, e)[0])(jnp.eye(4)), 1e-4)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda v: rules.Epsilon(v), [1e-6, 0.1, 2.0]),
        (lambda v: rules.Gamma(v), [0.0, 0.25, 3.0]),
        (lambda v: rules.AlphaBeta(v, v - 1.0), [1.0, 2.0, 3.5]),
        (lambda v: rules.ZBox(-v, v), [3.0, 4.0]),
        (lambda v: rules.WSquare(epsilon=v), [1e-6, 1.0]),
    ],
    ids=["epsilon", "gamma", "alpha", "box", "stabiliser"],
)
def test_vmap_over_hyper_parameters(make, values):
    def explain(v):
        return lrpjax.relevance(mlp, lrpjax.Composite([(select.kind("dense"), make(v))]), target=0)(X)

    found = jax.jit(jax.vmap(explain))(jnp.asarray(values))
    close(found, jnp.stack([explain(v) for v in values]))


def test_hyper_parameters_can_be_differentiated():
    def total(gamma):
        composite = lrpjax.Composite([(select.kind("dense"), rules.Gamma(gamma))])
        return abs(lrpjax.relevance(mlp, composite, target=0)(X)).sum()

    assert float(jax.grad(total)(0.3)) == pytest.approx(float(numeric(total, 0.3, 1.0)), rel=1e-5)


def test_composite_is_an_argument_of_jit():
    explain = jax.jit(lambda composite, x: lrpjax.relevance(mlp, composite, target=0)(x))
    for composite in (
        composites.epsilon(0.1),
        composites.epsilon(0.2),
        composites.epsilon_gamma_box(-3.0, 3.0),
    ):
        close(explain(composite, X), lrpjax.relevance(mlp, composite, target=0)(X))


# ------------------------------------------------------------------------------------------------------------- structured control and calls

CELL = RNG.normal(size=(4, 4)) * 0.7


def step(h, x):
    h = jnp.tanh(h @ CELL + x)
    return h, h * 2.0


def scanned(xs, unroll=1, reverse=False):
    h, ys = lax.scan(step, xs[2], xs, unroll=unroll, reverse=reverse)
    return h @ W1 + ys.sum(0) @ W1


def unrolled(xs, reverse=False):
    h, ys = xs[2], []
    for x in xs[::-1] if reverse else xs:
        h, y = step(h, x)
        ys.append(y)
    return h @ W1 + jnp.stack(ys[::-1] if reverse else ys).sum(0) @ W1


XS = jnp.asarray(RNG.normal(size=(5, 4)))
LRP = {
    n: EVERY[n]
    for n in (
        "epsilon",
        "epsilon_plus",
        "epsilon_plus_flat",
        "deep_taylor",
        "gradient",
        "excitation_backprop",
        "gamma_shared",
    )
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", [n for n in LRP if n not in ("epsilon_plus_flat", "deep_taylor")])
def test_scan_is_the_unrolled_loop(name, reverse):
    explain = lambda f: lrpjax.relevance(functools.partial(f, reverse=reverse), LRP[name], target=1)(XS)
    close(explain(scanned), explain(unrolled))
    close(
        jax.jit(lambda x: lrpjax.relevance(functools.partial(scanned, unroll=2), LRP[name], target=1)(x))(XS),
        explain_forward(name),
    )


def explain_forward(name):
    return lrpjax.relevance(unrolled, LRP[name], target=1)(XS)


def every_layer(rule):
    return lrpjax.Composite([(select.kind("dense"), rule)])


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_rules_inside_a_scan(rule):
    explain = lambda f: lrpjax.relevance(f, every_layer(rule), target=1)(XS)
    close(explain(scanned), explain(unrolled))


def test_fori_loop_with_known_bounds_is_a_scan():
    loop = lambda x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ CELL) + h, x)
    plain = lambda x: functools.reduce(lambda h, _: jnp.tanh(h @ CELL) + h, range(3), x)
    close(lrpjax.relevance(loop)(XS), lrpjax.relevance(plain)(XS))


@pytest.mark.parametrize("name", LRP)
def test_remat_changes_nothing(name):
    block = lambda x: jax.nn.relu(x @ CELL + 0.2)
    plain = lambda x: block(block(x)) @ W1
    rematted = lambda x: jax.checkpoint(block)(jax.checkpoint(block)(x)) @ W1
    explain = lambda f: lrpjax.relevance(f, LRP[name], target=2)(XS)
    close(explain(rematted), explain(plain))


@pytest.mark.parametrize("name", LRP)
@pytest.mark.parametrize("index", [0, 1])
def test_cond_explains_the_branch_taken(name, index):
    """The first layer, for composites that name it, is before the branches: in them, order of execution is not known."""
    stem = lambda x: jax.nn.relu(x @ CELL + 0.1)
    branches = [lambda h: jax.nn.relu(h @ CELL) @ W1, lambda h: jnp.tanh(h) @ W1]
    f = lambda x, i: lax.switch(i, branches, stem(x))
    explain = jax.jit(lambda x, i: lrpjax.relevance(f, LRP[name], target=2)(x, i))
    close(explain(XS, index), lrpjax.relevance(lambda x: branches[index](stem(x)), LRP[name], target=2)(XS))


def test_cond_with_an_uneven_use_of_operands():
    f = lambda x, y, p: lax.cond(p, lambda x, y: x @ W1, lambda x, y: jnp.tanh(y) @ W1, x, y)
    explain = lrpjax.relevance(f, argnums=(0, 1))
    a, b = explain(XS, 2 * XS, True)
    close(a, lrpjax.relevance(lambda x: x @ W1)(XS))
    assert not b.any()


@pytest.mark.parametrize("name", LRP)
@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        lambda f: jax.jit(jax.jit(f)),
        jax.named_call,
        lambda f: jax.vmap(f, in_axes=0),
        lambda f: jax.custom_jvp(f),
    ],
    ids=["jit", "nested jit", "named_call", "vmap", "custom_jvp"],
)
def test_calls_are_looked_into(name, wrap):
    inner = lambda x: jax.nn.relu(x @ CELL + 0.2)
    explain = lambda g: lrpjax.relevance(lambda x: g(x) @ W1, LRP[name], target=0)(XS)
    wrapped = wrap(inner)
    if hasattr(wrapped, "defjvp"):
        # its own derivative is what counts in the gradient family
        jvp = lambda primals, tangents: (inner(*primals), tangents[0])
        wrapped.defjvp((lambda p, t: jax.jvp(inner, p, t)) if name == "gradient" else jvp)
    close(explain(wrapped), explain(inner))


def test_custom_vjp_is_explained_by_what_it_computes():
    @jax.custom_vjp
    def clipped(x):
        return jax.nn.relu(x)

    clipped.defvjp(lambda x: (jax.nn.relu(x), None), lambda _, c: (100.0 * c,))
    close(
        lrpjax.relevance(lambda x: clipped(x @ W1) @ W2)(X),
        lrpjax.relevance(lambda x: jax.nn.relu(x @ W1) @ W2)(X),
    )


def test_at_inside_a_scan_is_stacked_over_its_steps():
    def cell(h, x):
        with jax.named_scope("cell"):
            h = jnp.tanh(h @ CELL + x)
        return h, h

    f = lambda xs: lax.scan(cell, jnp.zeros(4), xs)[1].sum(0) @ W1
    found = lrpjax.relevance(f, at="cell")(XS)
    assert found.shape == (5, 4)
    assert jnp.isfinite(found).all()


# -------------------------------------------------------------------------------------------------------------------------- compilation cost


def test_traces_once_for_each_shape():
    chex.clear_trace_counter()
    f = chex.assert_max_traces(mlp, n=1)
    explain = jax.jit(lrpjax.relevance(f, composites.epsilon_plus(), target=0))
    for _ in range(3):
        explain(X)
    chex.clear_trace_counter()


def test_rewriting_traces_the_function_once():
    calls = []

    def f(x):
        calls.append(1)
        return mlp(x)

    lrpjax.relevance(f, composites.epsilon_alpha2_beta1(), at=["hidden"])(X)
    assert len(calls) == 1


def vgg(x, parameters):
    """A small network of VGG's kind: its convolutions dominate, as there."""
    *kernels, head = parameters
    for i, kernel in enumerate(kernels):
        x = jax.nn.relu(
            lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        if i % 2:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2)) @ head


WIDTHS = (3, 32, 64, 64, 64)
PARAMETERS = [jnp.asarray(RNG.normal(size=(3, 3, i, o)), jnp.float32) for i, o in itertools.pairwise(WIDTHS)]
PARAMETERS.append(jnp.asarray(RNG.normal(size=(64, 10)), jnp.float32))
IMAGE = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)


def flops(f):
    return jax.jit(f).lower(IMAGE).compile().cost_analysis()["flops"]


@functools.cache
def gradient_flops():
    return flops(jax.grad(lambda x: vgg(x, PARAMETERS).max(-1).sum()))


@pytest.mark.parametrize(
    ("composite", "limit"),
    [
        (composites.epsilon(), 1.05),
        (composites.epsilon_plus(), 1.55),
        (composites.epsilon_plus_flat(), 1.55),
        (composites.epsilon_alpha2_beta1(), 2.1),
        (composites.epsilon_gamma_box(-3.0, 3.0), 1.85),
    ],
    ids=lambda c: getattr(c, "preset", None),
)
def test_flops_against_the_input_gradient(composite, limit):
    """The issue's bounds, for VGG-16. Here the first layer, where the box works, weighs more than there."""
    explained = flops(lrpjax.relevance(lambda x: vgg(x, PARAMETERS), composite, target="max"))
    assert explained / gradient_flops() <= limit


def test_all_classes_cost_one_forward_and_one_backward_pass_each():
    def all_classes(x):
        y, pull = lrpjax.vjp(lambda x: vgg(x, PARAMETERS), composites.epsilon(), x)
        return jax.vmap(lambda c: pull(y * (jnp.arange(10) == c).astype(y.dtype)))(jnp.arange(10))

    forward = flops(lambda x: vgg(x, PARAMETERS))
    backward = gradient_flops() - forward
    assert flops(all_classes) <= 1.05 * (forward + 10 * backward)
