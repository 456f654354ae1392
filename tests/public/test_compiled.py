"""Explanations outside of jit: compiled once, never stale."""

import enum
import functools
import gc
import sys
import threading
import types
import warnings
import weakref

import flax.linen as nn
import flax.nnx as nnx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, rules, select
from lrpjax.core import compiled
from lrpjax.core.program import Program
from lrpjax.core.reached import Unknown, reached
from lrpjax.errors import PatternError

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 4)))
normal = lambda *shape: jnp.asarray(RNG.normal(size=shape))
close = helpers.close


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The programs that are traced and planned in a test, which begins with none kept."""
    lrpjax.clear_cache()
    programs, original = [], Program.__init__

    def init(self, *args, **kwargs):
        if not jax.config.jax_disable_jit:
            programs.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Program, "__init__", init)
    yield programs
    lrpjax.clear_cache()


def fresh(f, *args, **options):
    """What one operation at a time gives."""
    with jax.disable_jit():
        return lrpjax.relevance(f, **options)(*args)


def mlp(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]


def parameters():
    return {"w": normal(4, 5), "b": normal(5), "v": normal(5, 6)}


# ------------------------------------------------------------------------------------------------------------------------ made once


def test_a_second_call_traces_and_plans_nothing(made):
    params = parameters()
    f = lambda x: mlp(params, x)
    explain = lrpjax.relevance(f, composites.epsilon_plus(), target="max")
    first = explain(X)
    assert len(made) == 1
    close(explain(X), first)
    close(
        lrpjax.relevance(lambda x: mlp(params, x), composites.epsilon_plus(), target="max")(2 * X)[0, 0],
        explain(2 * X)[0, 0],
    )
    assert len(made) == 2  # another function of other code
    explain(X + 1)
    assert len(made) == 2
    close(first, fresh(f, X, composite=composites.epsilon_plus(), target="max"))


def test_functions_that_are_made_anew_are_known_again(made):
    params = parameters()

    def explained(scale):
        return lrpjax.relevance(lambda x: scale * mlp(params, x), target=0)(X)

    close([explained(2.0), explained(2.0)], [explained(2.0)] * 2)
    assert len(made) == 1
    close(explained(4.0), 2 * explained(2.0), 1e-5)
    assert len(made) == 2


@pytest.mark.parametrize("target", [1, np.array([0, 5, 2]), [1, 1, 0], jnp.array([2, 2, 2])])
def test_classes_are_arguments(target, made):
    params = parameters()
    f = lambda x: mlp(params, x)
    explain = lambda target: lrpjax.relevance(f, target=target)(X)
    explain(0), explain([0, 1, 2])
    assert len(made) == 1
    close(explain(target), fresh(f, X, target=target))
    assert len(made) == 1


def test_kinds_of_targets_have_programs_of_their_own(made):
    params = parameters()
    f = lambda x: mlp(params, x)
    seeds = normal(3, 6)
    for target in (None, "max", 0, seeds, lambda y: y**3, lambda y: y * seeds):
        close(lrpjax.relevance(f, target=target)(X), fresh(f, X, target=target))
    assert len(made) == 5  # a class and seeds are arguments of one program


def test_shapes_types_composites_and_named_values_are_told_apart():
    params = parameters()

    def f(x):
        with jax.named_scope("hidden"):
            h = jax.nn.relu(x @ params["w"].astype(x.dtype))
        return h @ params["v"].astype(x.dtype), {"hidden": h}

    for x in (X, X[:1], X.astype(jnp.float32), np.asarray(X)):
        for composite in (None, composites.epsilon(0.1), composites.epsilon(0.2), composites.gradient()):
            for at in (None, "hidden", ["hidden"]):
                R, aux = lrpjax.relevance(f, composite, at=at, has_aux=True)(x)
                wanted, wanted_aux = fresh(f, x, composite=composite, at=at, has_aux=True)
                tolerance = 1e-12 if x.dtype == np.float64 else 1e-5
                helpers.close((R, aux), (wanted, wanted_aux), tolerance)


def test_several_arguments_and_names_for_them(made):
    f = lambda x, params, *, scale: scale * mlp(params, x)
    params = parameters()
    both = lambda: lrpjax.value_and_relevance(f, argnums=(0,))(X, params, scale=2.0)
    y, (R,) = both()
    close(y, f(X, params, scale=2.0))
    params["v"] = 2 * params["v"]
    y, (R2,) = both()
    close((y, R2), (f(X, params, scale=2.0), 2 * R), 1e-5)
    assert len(made) == 1


# --------------------------------------------------------------------------------------------------------------------- never stale

GLOBAL = jnp.asarray(RNG.normal(size=(4, 2)))
FACTOR = 1.0


def reads_globals(x):
    return FACTOR * inner(x)


def inner(x):
    return x @ GLOBAL


def assert_follows(f, change, made, programs=1):
    """The relevance of f changes as f does, and by no more programs than these."""
    before = lrpjax.relevance(f)(X)
    change()
    after = lrpjax.relevance(f)(X)
    traced = len(made)
    close(after, fresh(f, X))
    assert float(abs(after - before).max()) > 1e-3
    assert traced == programs


def test_weights_in_a_closure_that_are_exchanged(made):
    params = parameters()

    def train():
        params.update(jax.tree.map(lambda a: a + 1.0, params))

    assert_follows(lambda x: mlp(params, x), train, made)


def test_a_name_of_a_closure_that_is_bound_again(made):
    w = normal(4, 2)

    def f(x):
        return x @ w

    def change():
        nonlocal w
        w = 2 * w

    assert_follows(f, change, made)


def test_numpy_arrays_that_are_written_to(made):
    w = np.array(RNG.normal(size=(4, 2)))

    def change():
        w[0] = 7.0

    assert_follows(lambda x: x @ w, change, made)


def test_an_array_that_tracing_reads(made):
    """What is computed of it is a constant of the program: another one is made."""
    w = np.array(RNG.normal(size=(4, 2)))

    def change():
        w[0] = 7.0

    assert_follows(lambda x: x @ jnp.asarray(w.T.copy().T + 1.0), change, made, programs=2)


def test_numbers(made):
    settings = types.SimpleNamespace(scale=1.0, steps=[1, 2])
    w = normal(4, 2)
    f = lambda x: settings.scale * len(settings.steps) * (x @ w)
    assert_follows(f, lambda: setattr(settings, "scale", 3.0), made, programs=2)
    assert_follows(f, lambda: settings.steps.append(3), made, programs=3)


def test_a_scalar_that_is_an_array(made):
    """Its number is looked at while planning, as that of a written one."""
    temperature = {"t": jnp.asarray(1.0)}
    w = normal(4, 2)
    f = lambda x: x @ w / temperature["t"]
    assert_follows(f, lambda: temperature.update(t=jnp.asarray(2.0)), made, programs=2)
    temperature["t"] = jnp.asarray(1.0)
    lrpjax.relevance(f)(X)
    assert len(made) == 2


def test_globals(monkeypatch, made):
    assert_follows(reads_globals, lambda: monkeypatch.setitem(globals(), "GLOBAL", 2 * GLOBAL), made)
    assert_follows(reads_globals, lambda: monkeypatch.setitem(globals(), "FACTOR", 3.0), made, programs=2)


def test_globals_of_code_without_a_module(made):
    """What `exec` made, with a name that is no module's."""
    space = {"__name__": "nobody", "jnp": jnp, "W": normal(4, 2), "SCALE": 1.0}
    exec("def f(x):\n    return SCALE * (x @ W)", space)
    assert_follows(space["f"], lambda: space.update(W=2 * space["W"]), made)
    assert_follows(space["f"], lambda: space.update(SCALE=3.0), made, programs=2)


def test_attributes_of_classes_functions_and_modules(made, monkeypatch):
    class Model:
        scale = 1.0
        w = normal(4, 2)

        def __call__(self, x):
            return self.scale * (x @ self.w)

    assert_follows(Model(), lambda: setattr(Model, "scale", 2.0), made, programs=2)
    assert_follows(Model(), lambda: setattr(Model, "w", 3 * Model.w), made, programs=2)

    def f(x):
        return f.scale * x

    f.scale = 1.0
    assert_follows(f, lambda: setattr(f, "scale", 2.0), made, programs=4)
    settings = {"scale": 1.0}
    get = settings.get
    assert_follows(lambda x: get("scale") * x, lambda: settings.update(scale=5.0), made, programs=6)
    outer, inner = types.ModuleType("outer_settings"), types.ModuleType("outer_settings.inner")
    outer.inner, inner.scale = inner, 1.0
    monkeypatch.setitem(globals(), "outer", outer)
    reads = lambda x: outer.inner.scale * x
    assert_follows(reads, lambda: setattr(inner, "scale", 2.0), made, programs=8)
    monkeypatch.setitem(sys.modules, "outer_settings", inner)

    def imports(x):
        import outer_settings

        return outer_settings.scale * x

    assert_follows(imports, lambda: setattr(inner, "scale", 4.0), made, programs=10)


def test_an_nnx_module_that_is_trained_in_place(made):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.last = nnx.Linear(5, 2, rngs=rngs)
            self.sharp = False

        def __call__(self, x):
            y = self.last(jax.nn.relu(self.first(x)))
            return 3.0 * y if self.sharp else y

    model = Network(nnx.Rngs(0))

    def train():
        model.first.kernel[...] = model.first.kernel[...] + 1.0

    f = helpers.lenient(model)
    assert_follows(f, train, made)
    assert_follows(f, lambda: setattr(model, "sharp", True), made, programs=2)


def test_linen_modules_and_their_methods(made):
    class Network(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(self.width)(x)))

    variables = {}

    def start(width):
        variables["own"] = Network(width)
        variables["params"] = helpers.lenient(variables["own"].init)(jax.random.key(width), X)

    start(5)
    f = helpers.lenient(lambda x: variables["own"].apply(variables["params"], x))
    assert_follows(f, lambda: start(6), made, programs=2)
    bound = lambda: Network(6).bind(variables["params"])
    close(lrpjax.relevance(helpers.lenient(bound()))(X), lrpjax.relevance(f)(X))
    partial = functools.partial(Network(6).apply, variables["params"])
    close(lrpjax.relevance(helpers.lenient(partial))(X), lrpjax.relevance(f)(X))


def test_functions_compiled_by_the_user(made):
    weights = {"w": normal(4, 2)}
    f = jax.jit(lambda x: jnp.tanh(x @ weights["w"]))
    explain = lrpjax.relevance(f)
    close([explain(X), explain(X)], [fresh(f, X)] * 2)
    assert len(made) == 1


def test_weights_are_not_kept():
    params = {"w": normal(40, 50)}
    x = normal(2, 40)
    explain = lrpjax.relevance(lambda x: jnp.tanh(x @ params["w"]))
    explain(x)
    old = weakref.ref(params["w"])
    params["w"] = normal(40, 50)
    gc.collect()
    assert old() is None
    close(explain(x), fresh(lambda x: jnp.tanh(x @ params["w"]), x))


def test_what_changes_at_every_call_is_not_compiled_again_and_again(made):
    state = {"w": normal(4, 2), "seen": np.zeros(100)}

    def f(x):
        return x @ (state["w"] * float(state["seen"].sum() + 1))

    for i in range(6):
        state["seen"][i] = i
        close(lrpjax.relevance(f)(X), X * (state["w"] * (state["seen"].sum() + 1)).sum(1), 1e-5)
    entry = next(iter(compiled._entries.values()))
    assert len(entry.programs) == compiled.TRIES


# ------------------------------------------------------------------------------------------------------------ what is not compiled


def test_what_cannot_be_walked_through_is_traced_each_time(made):
    count = iter(range(100))
    f = lambda x: x * (1.0 + 0 * len(str(count)))
    with pytest.raises(Unknown, match="range_iterator"):
        reached(f)
    close([lrpjax.relevance(f)(X), lrpjax.relevance(f)(X)], [X, X])
    assert len(made) == 2 and not compiled._entries


def test_what_reaches_too_much_is_not_walked_through_again(made, monkeypatch):
    monkeypatch.setattr(lrpjax.core.reached, "LIMIT", 100)
    words = {str(i): i for i in range(1000)}
    f = lambda x: x * len(words)
    close([lrpjax.relevance(f)(X), lrpjax.relevance(f)(X)], [1000 * X] * 2)
    assert len(made) == 2 and compiled._too_much == {f.__code__}
    lrpjax.clear_cache()
    assert not compiled._too_much


def test_keys_slices_and_enumerations_are_walked_through(made):
    class Mode(enum.Enum):
        SUM = 1
        MEAN = 2

    state = {
        "key": jax.random.key(0),
        "part": slice(0, 2),
        "mode": Mode.SUM,
        "range": range(3),
        "nan": float("nan"),
    }

    def f(x):
        noise = jax.random.normal(state["key"], (4,), x.dtype)
        x = (x * noise)[:, state["part"]]
        return x.sum(-1) if state["mode"] is Mode.SUM else x.mean(-1)

    explain = lrpjax.relevance(f)
    explain(X), explain(X)
    assert len(made) == 1
    for change in ({"key": jax.random.key(1)}, {"part": slice(1, 3)}, {"mode": Mode.MEAN}):
        state.update(change)
        close(explain(X), fresh(f, X), 1e-9)
    assert len(made) == 4


def test_rules_and_targets_that_look_at_numbers(made):
    class Looks(rules.Rule):
        emits = rules.PLAIN

        def back(self, layer, x, z, R):
            assert np.isfinite(np.asarray(R)).all()
            return layer.transpose(R, layer.kernels[0] * 0 + 1)

    w = normal(4, 2)
    f = lambda x: x @ w
    composite = lrpjax.Composite([("*", Looks())])
    for _ in range(2):
        close(lrpjax.relevance(f, composite)(X), jnp.broadcast_to((X @ w).sum(1, keepdims=True), X.shape))
        top = lambda y: y * jnp.asarray(np.arange(2) == int(y[0].argmax()), y.dtype)
        close(lrpjax.relevance(f, target=top)(X), X * w[:, int((X @ w)[0].argmax())], 1e-5)


def test_patterns_of_other_weights_are_refused_every_time():
    params = {"w": np.asarray(normal(4, 3))}
    f = lambda x: x @ params["w"]
    pattern = rules.Pattern(jnp.ones((4, 3)), path="dense", mark=rules.mark_of(params["w"]))
    explain = lrpjax.relevance(f, lrpjax.Composite([("*", pattern)]))
    explain(X)
    params["w"] = params["w"] + 1.0
    for _ in range(2):
        with pytest.raises(PatternError, match="fitted to other weights"):
            explain(X)


def test_inside_of_transformations_nothing_is_kept():
    w = normal(4, 2)
    explain = lrpjax.relevance(lambda x: jnp.tanh(x @ w))
    wanted = explain(X)
    lrpjax.clear_cache()
    close(jax.jit(explain)(X), wanted)
    close(jax.vmap(explain)(X), wanted)
    jax.grad(lambda x: explain(x).sum())(X)
    jax.jit(lambda: explain(X))()
    assert not compiled._entries


# ---------------------------------------------------------------------------------------------------------- errors and warnings again


def test_errors_are_raised_each_time():
    w = normal(4, 3)
    f = lambda x: x @ w
    lrpjax.relevance(f, target=0)(X)
    for _ in range(2):
        with pytest.raises(lrpjax.TargetError, match="target 3 is out of range"):
            lrpjax.relevance(f, target=3)(X)
        with pytest.raises(lrpjax.TargetError, match=r"shape \(2,\)"):
            lrpjax.relevance(f, target=[0, 1])(X)
        with pytest.raises(lrpjax.InputError, match="int"):
            lrpjax.relevance(f)(jnp.ones((3, 4), int))
        with pytest.raises(lrpjax.TargetError, match="by name"):
            lrpjax.relevance(f, target="best")(X)


def test_warnings_are_given_each_time_and_name_the_users_line():
    w = normal(4, 3)
    f = lambda x: jax.nn.softmax(x @ w + (x > 0).astype(x.dtype)[:, :1])
    for _ in range(2):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            lrpjax.relevance(f)(X)
        kinds = {w.category for w in found}
        assert kinds == {lrpjax.ProbabilityWarning, lrpjax.CutWarning}
        assert all(w.filename == __file__ for w in found)


# ------------------------------------------------------------------------------------------------------------------------- the cache


def test_the_oldest_programs_are_dropped(monkeypatch):
    monkeypatch.setattr(compiled, "KEPT", 3)
    w = normal(4, 2)
    for scale in range(1, 6):
        lrpjax.relevance(lambda x, scale=scale: scale * (x @ w))(X)
    assert len(compiled._entries) == 3
    lrpjax.clear_cache()
    assert not compiled._entries


def test_threads():
    params = parameters()
    explain = lrpjax.relevance(lambda x: mlp(params, x), target=0)
    wanted = fresh(lambda x: mlp(params, x), X, target=0)
    found = [None] * 8

    def run(i):
        found[i] = explain(X)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    close(found, [wanted] * 8)


def test_settings_of_jax_are_told_apart():
    w = normal(4, 2)
    f = lambda x: jnp.tanh(x @ w)
    lrpjax.relevance(f)(X)
    with jax.default_matmul_precision("highest"):
        lrpjax.relevance(f)(X)
    assert len(compiled._entries) == 2


def test_ties_between_objects_count():
    """The same array twice is not two equal ones: one may change without the other."""
    a = np.ones((4, 2))
    pair = [a, a]
    f = lambda x: x @ pair[0] + x @ (2 * pair[1])
    close(lrpjax.relevance(f)(X), fresh(f, X))
    pair[1] = a.copy()
    pair[1][0] = 5.0
    close(lrpjax.relevance(f)(X), fresh(f, X))


def test_views_of_one_memory_are_not_taken_for_each_other():
    a = np.asarray(RNG.normal(size=(4, 2)))
    pair = {"a": a[:], "b": a[:]}
    f = lambda x: x @ pair["a"] + jnp.tanh(x @ pair["b"])
    close(lrpjax.relevance(f)(X), fresh(f, X))
    for name in pair:
        pair[name] = np.asarray(RNG.normal(size=(4, 2)))
        close(lrpjax.relevance(f)(X), fresh(f, X))


def test_select_and_calls_of_composites_are_part_of_the_key(made):
    w = normal(4, 2)
    f = lambda x: jax.nn.relu(x @ w)
    for rule in (
        rules.Epsilon(0.5),
        rules.Gamma(1.0),
        rules.ZBox(-np.ones(4) * 3, 3.0),
        rules.ZBox(-np.ones(4) * 4, 4.0),
    ):
        composite = lrpjax.Composite([(select.kind("dense"), rule)])
        close(lrpjax.relevance(f, composite)(X), fresh(f, X, composite=composite))
