"""`lrpjax.linearise` against Jacobians of the frozen program written out with `stop_gradient`, `lrpjax.relevance`, and
loops over what it does in one go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import composites, rules, select
from lrpjax.errors import PathError, RuleError, TargetError

T, D, H, LAYERS, V = 4, 6, 8, 3, 5
EXACT = composites.epsilon(0.0)
CP = composites.cp_lrp(epsilon=0.0)
held = lax.stop_gradient


def parameters(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]))
    return {
        "embed": normal(11, D),
        "layers": {
            "qk": normal(LAYERS, D, D),
            "v": normal(LAYERS, D, D),
            "up": normal(LAYERS, D, H),
            "down": normal(LAYERS, H, D),
        },
        "out": normal(D, V),
    }


@pytest.fixture
def params(rng):
    return parameters(rng)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def attention(x, p):
    return jax.nn.softmax(x @ p["qk"] @ x.T / float(np.sqrt(D)))


def layer(x, p, name):
    x = x + lrpjax.tag(attention(x, p) @ (x @ p["v"]), name("attention"))
    return lrpjax.tag(x + lrpjax.tag(jax.nn.silu(x @ p["up"]) @ p["down"], name("mlp")), name("residual"))


def unrolled(params, x):
    for i in range(LAYERS):
        p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        x = layer(x, p, lambda what, i=i: f"{what}{i}")
    return x @ params["out"]


def scanned(params, x):
    x, _ = lax.scan(lambda x, p: (layer(x, p, lambda what: what), None), x, params["layers"])
    return x @ params["out"]


def frozen(params, x):
    """The program that CP-LRP freezes, and its values by name: a function of changes added to them."""

    def run(changes, x0):
        values = {}

        def add(name, h):
            values[name] = h
            return h + changes.get(name, 0.0)

        real, h = x, x0
        for i in range(LAYERS):
            p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
            h = h + add(f"attention{i}", held(attention(real, p)) @ (h @ p["v"]))
            real = real + attention(real, p) @ (real @ p["v"])
            share = jax.nn.sigmoid(real @ p["up"])
            h = add(f"residual{i}", h + add(f"mlp{i}", (h @ p["up"] * held(share)) @ p["down"]))
            real = real + (real @ p["up"] * share) @ p["down"]
        return h @ params["out"], values

    return run


NAMES = [f"{what}{i}" for i in range(LAYERS) for what in ("attention", "mlp", "residual")]


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(T, D)))


@pytest.fixture
def lin(params, x):
    return lrpjax.linearise(functools.partial(unrolled, params), CP, x, at=NAMES)


def test_values_and_output_are_those_of_the_function(params, x, lin):
    y, values = frozen(params, x)({}, x)
    close(lin.output, unrolled(params, x))
    close(lin.output, y)
    for name in NAMES:
        close(lin.values[name], values[name])


def test_pull_is_relevance_at_the_input_and_at_every_value(params, x, lin):
    f = functools.partial(unrolled, params)
    reading = lin.pull(2)
    close(reading.input, lrpjax.relevance(f, CP, target=2)(x))
    there = lrpjax.relevance(f, CP, target=2, at=NAMES)(x)
    for name in NAMES:
        close(reading[name], there[name])


def test_coefficients_are_the_gradients_of_the_frozen_program(params, x, lin):
    run = frozen(params, x)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(T, V)))
    zeros = {name: jnp.zeros((T, D)) for name in NAMES}
    slopes, at_input = jax.grad(lambda c, x0: (run(c, x0)[0] * weight).sum(), argnums=(0, 1))(zeros, x)
    reading = lin.coefficients(unit=weight)
    close(reading.input, at_input)
    for name in NAMES:
        close(reading[name], slopes[name])
    close(lin.coefficients(weight * lin.output).input, at_input)


def test_push_is_the_jacobian_of_the_frozen_program(params, x, lin):
    run = frozen(params, x)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))
    for name in ("attention0", "residual1", "mlp2"):
        (dy, dvalues) = jax.jvp(lambda a, name=name: run({name: a}, x), (jnp.zeros((T, D)),), (u,))[1]
        reading = lin.push(name, u)
        close(reading.output, dy)
        for other in NAMES:
            close(reading[other], u if other == name else dvalues[other])
    close(lin.push(None, u).output, jax.jvp(lambda a: run({}, a)[0], (x,), (u,))[1])


def test_push_is_the_transpose_of_coefficients_to_rounding(lin):
    rng = np.random.default_rng(2)
    for name in [*NAMES, None]:
        u, c = jnp.asarray(rng.normal(size=(T, D))), jnp.asarray(rng.normal(size=(T, V)))
        reading = lin.coefficients(unit=c)
        there = reading.input if name is None else reading[name]
        close((lin.push(name, u).output * c).sum(), (u * there).sum(), 1e-12)


def test_tokens_split_all_logits_in_as_many_pushes(x, lin):
    masks = jnp.eye(T)[:, :, None]
    shares = jax.vmap(lambda m: lin.push(None, x * m).output)(masks)
    close(shares.sum(0), lin.output)
    for k in range(V):
        weights = jnp.zeros((T, V)).at[:, k].set(1.0)
        for t in range(T):
            close(shares[t, :, k].sum(), lin.coefficients(unit=weights).input[t] @ x[t])


def test_a_seed_may_stand_at_any_value(params, x, lin):
    """Σ R of a start is that of its seed, in a model without biases, and equals the relevance of the part before it."""

    def upper(x):
        for i in range(2):
            p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
            x = layer(x, p, lambda what, i=i: f"{what}{i}")
        return x

    seed = lin.values["residual1"] * jnp.arange(float(T))[:, None]
    reading = lin.pull(seed, start="residual1")
    close(reading.input, lrpjax.relevance(upper, CP, target=seed)(x))
    close(reading["residual1"], seed)
    assert not reading["mlp2"].any() and not reading["attention2"].any()
    close(lin.pull(start="residual1").input, lrpjax.relevance(upper, CP)(x))
    close(lin.pull(3, start="residual1").input, lrpjax.relevance(upper, CP, target=3)(x))


def test_relevance_goes_no_further_than_a_stop(lin):
    whole, stopped = lin.pull(0), lin.pull(0, stop="residual0")
    close(stopped["residual0"], whole["residual0"])
    close(stopped["mlp1"], whole["mlp1"])
    assert not stopped["mlp0"].any() and not stopped.input.any()
    some = lin.pull(0, stop=["mlp1", "attention1"])
    assert not jnp.allclose(some["residual0"], whole["residual0"])
    around = lin.coefficients(0, stop=["mlp1", "attention1"])["residual0"]
    close(around, lin.coefficients(0)["residual1"])
    close(some["residual0"], around * lin.values["residual0"])


def test_direct_parts_add_up_to_the_whole(x, lin):
    """What comes to a value is what its direct ways bring."""
    whole, edges = lin.pull(1), lin.edges(1, reduce=lambda R: R)
    for source in [*NAMES, "input"]:
        arriving = sum(R for (a, _), R in edges.items() if a == source)
        close(arriving, whole.input if source == "input" else whole[source])


def test_edges_are_blocks_of_the_frozen_program(params, x, lin):
    run, values = frozen(params, x), lin.values
    u = jnp.asarray(np.random.default_rng(5).normal(size=(T, D)))
    # The MLP reads what attention adds; around the MLP nothing goes from attention1 to mlp2 directly, residual1 is between.
    assert not lin.push("attention1", u, direct=True)["mlp2"].any()
    p = jax.tree.map(lambda a: a[1], params["layers"])
    before = values["residual0"] + values["attention1"]
    mlp = lambda h: (h @ p["up"] * jax.nn.sigmoid(before @ p["up"])) @ p["down"]
    close(lin.push("attention1", u, direct=True)["mlp1"], mlp(u))
    slopes = jax.vjp(mlp, u)[1](lin.coefficients(1)["mlp1"])[0]
    close(lin.edge("attention1", "mlp1", 1), slopes * values["attention1"])
    close(lin.edge("residual2", "output", 1), lin.pull(1)["residual2"])
    close(
        lin.edge("input", "attention0", 1) + lin.edge("input", "mlp0", 1) + lin.edge("input", "residual0", 1),
        lin.pull(1).input,
    )
    del run


def test_edges_one_by_one_and_together(lin):
    together = lin.edges(1, batch=4)
    assert ("mlp2", "mlp1") not in together and ("input", "residual0") in together
    for (source, target), share in together.items():
        close(share, lin.edge(source, target, 1).sum())
    some = lin.edges(1, sources=["mlp0"], targets=["residual0", "mlp1"])
    assert set(some) == {("mlp0", "residual0"), ("mlp0", "mlp1")}
    close(some["mlp0", "residual0"], together["mlp0", "residual0"])


@pytest.fixture
def loop(params, x):
    return lrpjax.linearise(functools.partial(scanned, params), CP, x, at=["attention", "mlp", "residual"])


def test_scanned_layers_are_the_unrolled_ones(lin, loop):
    close(loop.pull(2).input, lin.pull(2).input)
    seed = 2.0 * lin.values["mlp1"]
    for of_loop, of_list in [
        (loop.pull(2), lin.pull(2)),
        (loop.coefficients(2), lin.coefficients(2)),
        (loop.pull(seed, start="mlp[1]"), lin.pull(seed, start="mlp1")),
        (loop.pull(2, stop="residual[1]"), lin.pull(2, stop="residual1")),
        (loop.pull(2, start="residual[-1]", direct=True), lin.pull(2, start="residual2", direct=True)),
        (loop.push("residual[0]", seed), lin.push("residual0", seed)),
        (loop.push("residual[0]", seed, direct=True), lin.push("residual0", seed, direct=True)),
    ]:
        for what in ("attention", "mlp", "residual"):
            for i in range(LAYERS):
                close(of_loop[f"{what}[{i}]"], of_list[f"{what}{i}"])


def test_edges_of_scanned_layers(lin, loop):
    found, wanted = loop.edges(1), lin.edges(1)
    plain = lambda name: name.replace("[", "").replace("]", "")
    for (source, target), share in found.items():
        pair = plain(source), plain(target)
        close(share, wanted[pair]) if pair in wanted else close(share, 0.0, 1e-12)
    assert {(plain(a), plain(b)) for a, b in found} >= set(wanted)
    close(loop.edge("mlp[0]", "residual[1]", 1), 0.0 * lin.values["mlp0"])
    close(loop.edge("residual[0]", "residual[1]", 1), lin.edge("residual0", "residual1", 1))


@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit])
def test_remat_and_jitted_parts(params, x, lin, wrap):
    def f(x):
        for i in range(LAYERS):
            p = jax.tree.map(lambda a, i=i: a[i], params["layers"])
            x = wrap(functools.partial(layer, name=lambda what, i=i: f"{what}{i}"))(x, p)
        return x @ params["out"]

    other = lrpjax.linearise(f, CP, x, at=NAMES)
    close(other.pull(1, stop="mlp1").input, lin.pull(1, stop="mlp1").input)
    close(other.edges(1)["mlp0", "residual0"], lin.edges(1)["mlp0", "residual0"])
    close(other.push("mlp0", x).output, lin.push("mlp0", x).output)


def test_values_in_branches(x):
    def f(x, first):
        branch = lambda scale: lambda x: lrpjax.tag(x * scale, f"by {scale}") + x
        return lax.cond(first, branch(2.0), branch(3.0), x).sum()

    for first, on, off in [(True, "by 2.0", "by 3.0"), (False, "by 3.0", "by 2.0")]:
        lin = lrpjax.linearise(f, EXACT, x, first, at=["by 2.0", "by 3.0"])
        scale = float(on.split()[1])
        close(lin.pull()[on], scale * x)
        assert not lin.pull()[off].any()
        close(lin.pull(stop=on).input, x)
        close(lin.pull(start=on).input, scale * x)
        close(lin.push(on, x).output, x.sum())


def test_under_jit_and_vmap(params, x, lin):
    make = lambda x: lrpjax.linearise(functools.partial(unrolled, params), CP, x, at=NAMES)
    from_jit = jax.jit(make)(x)
    close(from_jit.pull(1).input, lin.pull(1).input)
    close(jax.jit(lambda lin: lin.pull(1, start="mlp1").input)(from_jit), lin.pull(1, start="mlp1").input)
    batch = jnp.stack([x, 2.0 * x, -x])
    many = jax.vmap(make)(batch)
    readings = jax.vmap(lambda lin, k: lin.pull(k)["mlp1"])(many, jnp.arange(3))
    for k in range(3):
        close(readings[k], make(batch[k]).pull(k)["mlp1"])
    seeds = jnp.eye(V)[:, None, :] * lin.output
    close(jax.vmap(lambda s: lin.pull(s).input)(seeds).sum(0), lin.pull().input)
    total = jax.jit(lambda x: make(x).edges(1))(x)
    close(total["mlp0", "residual0"], lin.edges(1)["mlp0", "residual0"])


def test_it_can_be_differentiated(params, x):
    def share(x, freeze):
        lin = lrpjax.linearise(functools.partial(unrolled, params), CP, x, at=NAMES)
        return lin.pull(1)["mlp1"][0].sum()

    slope = jax.grad(share)(x, True)
    step = 1e-5 * jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    close((share(x + step, True) - share(x - step, True)) / 2, (slope * step).sum(), 1e-12)


def test_gradients_and_gradients_times_input(params, x):
    f = functools.partial(unrolled, params)
    weight = jnp.zeros((T, V)).at[-1, 2].set(1.0)
    slope = jax.grad(lambda x: (f(x) * weight).sum())(x)
    lin = lrpjax.linearise(f, composites.gradient(), x, at=["residual1"])
    close(lin.pull(weight).input, slope)
    close(lin.coefficients(weight).input, slope)
    close(lin.push(None, x).output, jax.jvp(f, (x,), (x,))[1])
    rest = lambda h: layer(h, jax.tree.map(lambda a: a[2], params["layers"]), str) @ params["out"]
    u = jnp.ones((T, D))
    close(lin.push("residual1", u).output, jax.jvp(rest, (lin.values["residual1"],), (u,))[1])
    times = lrpjax.linearise(f, composites.input_x_gradient(), x, at=["residual1"])
    close(times.pull(weight).input, slope * x)
    close(times.coefficients(weight).input, slope)
    close(times.push("residual1", u).output, lin.push("residual1", u).output)


def test_rules_that_give_relevance_to_zeros(rng):
    """Behind a flat rule cotangents are relevance: coefficients are relevance per value, and 0 where the value is 0."""
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    f = lambda x: lrpjax.tag(jax.nn.relu(x @ w), "hidden") @ v
    composite = lrpjax.Composite(
        [(select.last("dense"), rules.Flat()), (select.kind("dense"), rules.Epsilon(0.0))]
    )
    x = jnp.asarray(rng.normal(size=4))
    lin = lrpjax.linearise(f, composite, x, at="hidden")
    hidden = lin.values["hidden"]
    assert (hidden == 0).any()
    close(lin.pull(1)["hidden"], jnp.full(6, lin.output[1] / 6), 1e-6)
    close(lin.pull(1).input, lrpjax.relevance(f, composite, target=1)(x))
    c = lin.coefficients(1)["hidden"]
    close(c, jnp.where(hidden == 0, 0.0, lin.output[1] / 6 / jnp.where(hidden == 0, 1.0, hidden)), 1e-6)
    u = jnp.asarray(rng.normal(size=6))
    close(
        (lin.push("hidden", u).output * jnp.eye(3)[1]).sum(),
        (lin.coefficients(unit=jnp.eye(3)[1])["hidden"] * u).sum(),
    )


def test_coefficients_of_silent_neurons(rng):
    """A neuron that is 0 has no relevance, but a coefficient: what it would have brought."""
    w, v = jnp.asarray(rng.normal(size=(4, 6))), jnp.asarray(rng.normal(size=(6, 3)))
    f = lambda x: lrpjax.tag(jax.nn.relu(x @ w), "hidden") @ v
    lin = lrpjax.linearise(f, EXACT, jnp.asarray(rng.normal(size=4)), at="hidden")
    assert (lin.values["hidden"] == 0).any()
    close(lin.coefficients(2)["hidden"], v[:, 2])
    close(lin.push("hidden", jnp.eye(6)[3]).output, v[3])


def test_tokens_and_several_arguments(params):
    ids = jnp.array([3, 1, 4, 1])
    f = lambda ids, scale: unrolled(params, lrpjax.tag(params["embed"][ids], "embedding") * scale)
    lin = lrpjax.linearise(f, CP, ids, 2.0, at=["embedding", "mlp0"])
    assert lin.pull(1).input is None
    close(lin.pull(1)["embedding"], lrpjax.relevance(f, CP, target=1, at="embedding")(ids, 2.0))
    both = lrpjax.linearise(
        lambda a, b: lrpjax.tag(a * 3.0, "a") + b, EXACT, jnp.ones(2), jnp.ones(2), argnums=(0, 1), at="a"
    )
    first, second = both.pull().input
    close(first, jnp.full(2, 3.0)), close(second, jnp.ones(2))
    close(both.push(None, (jnp.ones(2), jnp.zeros(2))).output, jnp.full(2, 3.0))


def test_globs_name_units(params, x):
    lin = lrpjax.linearise(
        lambda x: jax.nn.relu(x @ params["layers"]["up"][0]) @ params["layers"]["down"][0], EXACT, x, at="*"
    )
    assert len(lin.values) == 3
    close(lin.pull().input.sum(), lin.output.sum())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.2)])
def test_half_precision_and_float32(params, x, dtype, tolerance):
    less = jax.tree.map(lambda a: a.astype(dtype), params)
    lin = lrpjax.linearise(functools.partial(unrolled, less), CP, x.astype(dtype), at=NAMES)
    reading = lin.pull(1)
    assert reading.input.dtype == dtype and lin.push("mlp0", reading["mlp0"]).output.dtype == dtype
    whole = lrpjax.relevance(functools.partial(unrolled, less), CP, target=1)(x.astype(dtype))
    scale = jnp.abs(whole.astype(float)).max()
    assert jnp.abs((reading.input - whole).astype(float)).max() < tolerance * scale


def test_it_costs_one_forward_pass_and_each_reading_a_backward_pass(rng):
    """A transposed matrix product takes as many operations as the product itself."""
    kernels = [jnp.asarray(rng.normal(size=(64, 64))) for _ in range(4)]

    def f(x):
        for i, w in enumerate(kernels):
            x = lrpjax.tag(jax.nn.relu(x @ w), f"h{i}")
        return x

    x, names = jnp.asarray(rng.normal(size=(64, 64))), [f"h{i}" for i in range(4)]
    make = lambda x: lrpjax.linearise(f, composites.epsilon(), x, at=names)
    lin = jax.jit(make)(x)
    flops = lambda g, *args: jax.jit(g).lower(*args).compile().cost_analysis()["flops"]
    forward = flops(f, x)
    assert flops(make, x) < 1.05 * forward
    assert flops(lambda lin: lin.pull(1), lin) < 1.15 * forward
    assert flops(lambda lin: lin.push(None, x), lin) < 1.15 * forward
    assert flops(lambda lin: lin.push("h1", x), lin) < 0.65 * forward


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_is_not_named(lin, loop):
    for path in ("mlp7", "mlp", "mlp0[1]"):
        with pytest.raises(PathError, match=r"named|stands in no loop"):
            lin.pull(start=path)
    with pytest.raises(PathError, match="loops of 3 steps"):
        loop.pull(stop="mlp[3]")
    with pytest.raises(PathError, match="no value is named 'nothing'"):
        lin.pull()["nothing"]
    with pytest.raises(PathError, match="cannot be called 'input'"):
        lrpjax.linearise(lambda x: lrpjax.tag(2.0 * x, "input").sum(), EXACT, jnp.ones(2), at="input")


def test_a_start_that_does_not_lead_to_the_output(x):
    def f(x):
        aside = lrpjax.tag(2.0 * x, "aside")
        return lrpjax.tag(3.0 * x, "on the way").sum() + held(aside).sum()

    lin = lrpjax.linearise(f, EXACT, x, at=["aside", "on the way"])
    close(lin.pull(start="on the way").input, 3.0 * x)
    with pytest.raises(PathError, match="'aside' does not lead to the output"):
        lin.pull(start="aside")
    with pytest.raises(PathError, match="no way leads from 'aside'"):
        lin.edge("aside", "output")


def test_edges_without_a_way(lin):
    for source, target in [("mlp1", "mlp0"), ("residual2", "residual0"), ("mlp0", "mlp0")]:
        with pytest.raises(PathError, match="no way leads from"):
            lin.edge(source, target)


def test_relevance_that_is_given_to_zeros(rng):
    w = jnp.asarray(rng.normal(size=(4, 6)))
    x = jnp.asarray(rng.normal(size=4))
    lin = lrpjax.linearise(lambda x: lrpjax.tag(jax.nn.relu(x @ w), "hidden").sum(), EXACT, x, at="hidden")
    with pytest.raises(TargetError, match="exactly 0"):
        lin.pull(jnp.ones(6), start="hidden")
    assert jnp.isnan(jax.jit(lambda s: lin.pull(s, start="hidden").input)(jnp.ones(6))).all()


def test_push_wants_a_linear_program_and_a_direction_that_fits(x, params, lin):
    f = lambda x: lrpjax.tag(jax.nn.relu(x @ params["layers"]["up"][0]), "hidden").sum()
    guided = lrpjax.linearise(f, composites.guided_backprop(), x, at="hidden")
    close(guided.pull().input, lrpjax.relevance(f, composites.guided_backprop())(x))
    with pytest.raises(RuleError, match="has to be linear"):
        guided.push("hidden", jnp.ones((T, H)))
    with pytest.raises(TargetError, match="the direction has shape"):
        lin.push("mlp0", jnp.ones(3))
    with pytest.raises(TargetError, match="the direction has"):
        lin.push(None, (x, x))


def test_seeds_and_units_that_do_not_fit(lin):
    with pytest.raises(TargetError, match="the unit has shape"):
        lin.coefficients(unit=jnp.ones(3))
    with pytest.raises(TargetError, match="a seed or a unit"):
        lin.coefficients(1, unit=lin.output)
    with pytest.raises(TargetError, match="out of range"):
        lin.pull(17, start="mlp0")
    with pytest.raises(TargetError, match="target has shape"):
        lin.pull(jnp.ones((2, 2)))
