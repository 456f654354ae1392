"""The relevance of tokens for generated tokens: against one call of `relevance` for each, numbers by hand, and the same in other writings."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import lrpjax
from lrpjax import composites, language
from lrpjax.errors import InputError, PathError, TargetError

DIM, HEADS, LAYERS, VOCABULARY, TOKENS, START = 8, 2, 2, 13, 7, 3
IDS = jnp.array([3, 1, 4, 12, 5, 9, 2])
EXACT = composites.attnlrp(0.0)


def parameters(seed=0, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]))
    layers = {
        "qkv": normal(LAYERS, DIM, 3 * DIM),
        "o": normal(LAYERS, DIM, DIM),
        "up": normal(LAYERS, DIM, 2 * DIM),
        "down": normal(LAYERS, 2 * DIM, DIM),
    }
    return {"embedding": 3 * normal(vocabulary, DIM), "layers": layers, "unembed": normal(DIM, vocabulary)}


def norm(x):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def block(x, p):
    q, k, v = (u.reshape(len(x), HEADS, -1) for u in jnp.split(norm(x) @ p["qkv"], 3, -1))
    scores = jnp.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -jnp.inf)
    x = x + jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(x.shape) @ p["o"]
    return x + jax.nn.relu(norm(x) @ p["up"]) @ p["down"]


def hidden(params, ids, *, scanned=False, remat=False):
    layer = lambda x, p: lrpjax.tag(block(x, p), "residual")
    layer = jax.checkpoint(layer) if remat else layer
    x = lrpjax.tag(params["embedding"][ids], "embedded")
    if scanned:
        x, _ = lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
    else:
        for i in range(LAYERS):
            x = layer(x, jax.tree.map(lambda a: a[i], params["layers"]))  # noqa: B023
            x = lrpjax.tag(x, f"layer {i}")
    return norm(x)


def logits(params, ids, **writing):
    return hidden(params, ids, **writing) @ params["unembed"]


P = parameters()
F = functools.partial(logits, P)
H = functools.partial(hidden, P)
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


def one_by_one(f, composite, target_of, ids=IDS, start=START, at="embedded"):
    """A call of `relevance` for each generated token; `target_of` makes the output relevance of a position's logits."""

    @jax.jit
    def one(t):
        seed = lambda y: jnp.zeros_like(y).at[t - 1].set(target_of(y[t - 1], t))
        return lrpjax.relevance(f, composite, at=at, target=seed)(ids)

    rows = [one(jnp.asarray(t)) for t in range(start, len(ids))]
    return jax.tree.map(lambda *rows: jnp.stack(rows).sum(-1), *rows)


def chosen(y, t):
    return jnp.zeros_like(y).at[IDS[t]].set(y[IDS[t]])


COMPOSITES = {
    "attnlrp": composites.attnlrp(),
    "gamma": composites.attnlrp(gamma=0.25),
    "epsilon_plus": composites.epsilon_plus(),
}


@pytest.fixture(scope="module")
def naive():
    return one_by_one(F, COMPOSITES["attnlrp"], chosen)


@pytest.mark.parametrize("name", COMPOSITES)
def test_all_tokens_at_once_and_one_call_for_each(name, naive):
    wanted = naive if name == "attnlrp" else one_by_one(F, COMPOSITES[name], chosen)
    assert wanted.shape == (TOKENS - START, TOKENS) and np.abs(wanted).max() > 0.1
    found = language.token_relevance(F, COMPOSITES[name], IDS, at="embedded", start=START)
    close(found, wanted)
    without = language.token_relevance(
        H, COMPOSITES[name], IDS, at="embedded", start=START, unembed=P["unembed"]
    )
    close(without, wanted)


@pytest.mark.parametrize("form", ["logits", "unembed"])
@pytest.mark.parametrize("seeds", [1, 3, 100])
def test_the_number_explained_at_once_changes_nothing(seeds, form, naive):
    f, given = (F, {}) if form == "logits" else (H, {"unembed": P["unembed"]})
    explain = functools.partial(
        language.token_relevance, f, composites.attnlrp(), at="embedded", start=START, seeds=seeds, **given
    )
    close(jax.jit(explain)(IDS), naive)


def test_by_hand():
    """The values of the module's docstring: what a token says is its row times the column of the token that came."""
    table = jnp.array([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]])
    unembed = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    ids = [0, 1, 2, 1]
    h = lambda ids: jnp.cumsum(lrpjax.tag(table[ids], "embedded"), 0)
    explain = functools.partial(
        language.value_and_token_relevance, composite=composites.epsilon(0.0), ids=ids, at="embedded"
    )
    # Token 1 after 0: column (0, 1) of (1, 0). Token 2 after 0, 1: (1, 1) of (1, 0), (2, 2). Token 1: (0, 1) of all.
    wanted = np.array([[0, 0, 0, 0], [1, 4, 0, 0], [0, 2, 1, 0]])
    z, R = explain(h, unembed=unembed)
    np.testing.assert_allclose(R, wanted, atol=1e-12)
    np.testing.assert_allclose(z, [0, 5, 3], atol=1e-12)
    z, R = explain(lambda ids: h(ids) @ unembed)
    np.testing.assert_allclose(R, wanted, atol=1e-12)
    # Against token 0, whose column is (1, 0).
    wanted = wanted - np.array([[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 0, 0]])
    z, R = explain(h, unembed=unembed, against=0)
    np.testing.assert_allclose(R, wanted, atol=1e-12)
    np.testing.assert_allclose(z, [-1, 2, 0], atol=1e-12)
    # A bias is part of the logit and takes its share: 5 of 5 + 5.
    z, R = explain(h, unembed=unembed, bias=jnp.array([0.0, 0.0, 5.0]), start=2)
    np.testing.assert_allclose(R, [[1, 4, 0, 0], [0, 2, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(z, [10, 3], atol=1e-12)


def test_a_bias_of_the_unembedding_is_that_of_the_layer():
    bias = jnp.asarray(np.random.default_rng(3).normal(size=VOCABULARY))
    f = lambda ids: H(ids) @ P["unembed"] + bias
    for composite in (composites.attnlrp(0.1), composites.epsilon_plus()):
        wanted = one_by_one(f, composite, chosen)
        found = language.token_relevance(
            H, composite, IDS, at="embedded", start=START, unembed=P["unembed"], bias=bias
        )
        close(found, wanted)


def test_later_tokens_have_none_and_sums_are_the_logits():
    exact = composites.epsilon(0.0)  # rules that keep all relevance, but for the softmax of the attention
    first = lambda ids: jnp.cumsum(lrpjax.tag(P["embedding"][ids], "embedded"), 0)
    model = lambda ids: jax.nn.relu(first(ids) @ P["layers"]["up"][0]) @ P["layers"]["down"][0]
    z, R = language.value_and_token_relevance(
        model, exact, IDS, at="embedded", start=START, unembed=P["unembed"]
    )
    close(R.sum(-1), z)
    close(z, [(model(IDS) @ P["unembed"])[t - 1, IDS[t]] for t in range(START, TOKENS)])
    for each in (R, language.token_relevance(F, EXACT, IDS, at="embedded", start=START)):
        for n, row in enumerate(each):
            assert (row[START + n :] == 0).all() and (row[: START + n] != 0).all()


OTHER = jnp.array([0, 7, 7, 11])


@pytest.mark.parametrize("form", ["logits", "unembed"])
@pytest.mark.parametrize("against", ["mean", 7, OTHER], ids=["mean", "one", "each"])
def test_against_other_tokens(against, form):
    def target_of(y, t):
        if isinstance(against, str):
            return chosen(y, t) - y / VOCABULARY
        other = jnp.broadcast_to(jnp.asarray(against), 4)[t - START]
        return chosen(y, t).at[other].add(-y[other])

    wanted = one_by_one(F, EXACT, target_of)
    f, given = (F, {}) if form == "logits" else (H, {"unembed": P["unembed"]})
    z, found = language.value_and_token_relevance(
        f, EXACT, IDS, at="embedded", start=START, against=against, **given
    )
    close(found, wanted)
    y = F(IDS)[START - 1 : -1]
    other = y.mean(-1) if isinstance(against, str) else y[jnp.arange(4), jnp.broadcast_to(against, 4)]
    close(z, y[jnp.arange(4), IDS[START:]] - other)


def test_the_gradient_family_gives_derivatives():
    score = lambda e, t: hidden_of(e)[t - 1] @ P["unembed"][:, IDS[t]]
    one = jax.jit(jax.grad(score))
    wanted = np.stack([one(P["embedding"][IDS], jnp.asarray(t)).sum(-1) for t in range(START, TOKENS)])
    for f, given in ((F, {}), (H, {"unembed": P["unembed"]})):
        found = language.token_relevance(f, composites.gradient(), IDS, at="embedded", start=START, **given)
        close(found, wanted)


def hidden_of(embedded):
    for i in range(LAYERS):
        embedded = block(embedded, jax.tree.map(lambda a: a[i], P["layers"]))  # noqa: B023
    return norm(embedded)


# ------------------------------------------------------------------------------------------------------------------------- other writings


@pytest.mark.parametrize("scanned", [False, True])
def test_rematerialised_layers(scanned, naive):
    explain = lambda ids: language.token_relevance(
        functools.partial(H, remat=True, scanned=scanned),
        composites.attnlrp(),
        ids,
        at="embedded",
        start=START,
        unembed=P["unembed"],
    )
    close(explain(IDS), naive)
    assert "remat" in str(jax.make_jaxpr(explain)(IDS)) or "checkpoint" in str(jax.make_jaxpr(explain)(IDS))


def test_layers_by_name_by_glob_and_scanned(naive):
    explain = functools.partial(
        language.token_relevance, composite=composites.attnlrp(), ids=IDS, start=START, unembed=P["unembed"]
    )
    named = ["embedded", "layer 0", "layer 1"]
    found = explain(H, at=named)
    assert list(found) == named
    wanted = one_by_one(F, composites.attnlrp(), chosen, at=named)
    for name in named:
        close(found[name], wanted[name])
    close(found["embedded"], naive)
    stacked = explain(functools.partial(H, scanned=True), at="residual")
    assert stacked.shape == (TOKENS - START, LAYERS, TOKENS)
    close(stacked[:, 0], wanted["layer 0"])
    close(stacked[:, 1], wanted["layer 1"])
    # After the last layer all relevance is where the token is said.
    assert ((stacked[:, 1] != 0) == np.eye(TOKENS, dtype=bool)[START - 1 : -1]).all()


def test_a_batch_of_one_text_within_the_model_and_texts_mapped(naive):
    def batched(ids):
        x = lrpjax.tag(P["embedding"][ids], "embedded")
        return jax.vmap(hidden_of)(x) @ P["unembed"]

    explain = functools.partial(
        language.token_relevance, composite=composites.attnlrp(), at="embedded", start=START
    )
    close(jax.jit(lambda ids: explain(lambda ids: batched(ids[None])[0], ids=ids))(IDS), naive)
    texts = jnp.stack([IDS, IDS[::-1]])
    both = jax.jit(jax.vmap(lambda ids: explain(H, ids=ids, unembed=P["unembed"])))(texts)
    close(both[0], naive)
    close(both[1], explain(F, ids=texts[1]))


def test_a_flax_model_by_the_path_of_its_embedding():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids, head=True):
            x = jnp.cumsum(nn.Embed(VOCABULARY, DIM, param_dtype=float, name="embed")(ids), 1)
            return nn.Dense(VOCABULARY, param_dtype=float, name="head")(x) if head else x

    variables = Model().init(jax.random.key(0), IDS[None])
    run = lambda ids, **options: Model().apply(variables, ids[None], **options)[0]
    explain = functools.partial(
        language.token_relevance, composite=composites.epsilon(0.0), ids=IDS, at="embed", start=START
    )
    head = variables["params"]["head"]
    table = variables["params"]["embed"]["embedding"]
    # Each token's row times the column of the token that came.
    wanted = (
        jnp.tril(jnp.ones((TOKENS, TOKENS)))[START - 1 : -1] * (table[IDS] @ head["kernel"][:, IDS[START:]]).T
    )
    close(explain(run), wanted)
    found = explain(functools.partial(run, head=False), unembed=head["kernel"], bias=head["bias"])
    close(found, wanted)


def test_a_scan_over_one_layer_keeps_its_axis():
    params = P | {"layers": jax.tree.map(lambda a: a[:1], P["layers"])}
    R = language.token_relevance(
        functools.partial(logits, params, scanned=True), None, IDS, at="residual", start=START
    )
    assert R.shape == (TOKENS - START, 1, TOKENS)


def test_on_eight_devices():
    """In a process of its own, whose CPU is eight devices: parameters split over a mesh, and the same on one."""
    here = pathlib.Path(__file__).parent
    env = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(lrpjax.__file__).parent.parent), str(here)]),
    }
    code = "import test_language; test_language.compare_on_eight_devices()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "8"]


def compare_on_eight_devices():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
    params = parameters(vocabulary=16)  # which divides over the devices
    split = {
        "embedding": put(params["embedding"], "model", "data"),
        "unembed": put(params["unembed"], "data", "model"),
        "layers": {
            name: put(a, *((None, "data", "model") if name in ("qkv", "up") else (None, "model", "data")))
            for name, a in params["layers"].items()
        },
    }

    def explain(params, ids, form):
        if form == "unembed":
            f, given = (
                functools.partial(hidden, params, scanned=True, remat=True),
                {"unembed": params["unembed"]},
            )
        else:
            f, given = functools.partial(logits, params, scanned=True, remat=True), {}
        at = ["embedded", "residual"]
        R = language.token_relevance(f, composites.attnlrp(), ids, at=at, start=START, seeds=2, **given)
        said = language.next_tokens(
            hidden(params, ids)[START - 1 : -1], params["unembed"], ids=ids[START:], block=5
        )
        return R, said

    for form in ("logits", "unembed"):
        run = jax.jit(functools.partial(explain, form=form))
        wanted, found = run(params, IDS), run(split, put(IDS))
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-11)
        print(len(jax.tree.leaves(found)[0].sharding.device_set))


# --------------------------------------------------------------------------------------------------------------------------- memory


def largest(jaxpr):
    """The number of elements of the largest value in a jaxpr, and those in it."""
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    return max(
        [*sizes, *(largest(j) for e in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(e.params))]
    )


def test_no_logits_of_the_whole_text_with_the_unembedding():
    size = 5000
    unembed = jnp.tile(P["unembed"], 400)[:, :size]

    def explain(ids, unembed, plain=False):
        f, given = ((lambda ids: H(ids) @ unembed), {}) if plain else (H, {"unembed": unembed})
        R = language.token_relevance(
            f, composites.attnlrp(), ids, at="embedded", start=START, seeds=2, **given
        )
        h = H(ids)[START - 1 : -1]
        return R, None if plain else language.next_tokens(h, unembed, ids=ids[START:], block=100)

    assert (
        largest(jax.make_jaxpr(functools.partial(explain, plain=True))(IDS, unembed).jaxpr) >= TOKENS * size
    )
    # Nothing but the unembedding itself, D × V, knows of the vocabulary.
    assert largest(jax.make_jaxpr(explain)(IDS, unembed).jaxpr) < TOKENS * size


# ----------------------------------------------------------------------------------------------------------------------- next tokens


@pytest.mark.parametrize("block", [1, 4, 13, 100])
@pytest.mark.parametrize("bias", [None, jnp.linspace(-2.0, 2.0, VOCABULARY)], ids=["plain", "bias"])
def test_next_tokens_of_all_the_vocabulary_at_once(block, bias):
    h = H(IDS)[START - 1 : -1]
    z = h @ P["unembed"] + (0.0 if bias is None else bias)
    said = language.next_tokens(h, P["unembed"], bias, ids=IDS[START:], k=3, block=block)
    logp = jax.nn.log_softmax(z)
    order = jnp.argsort(-z, -1)
    own = lambda v: jnp.take_along_axis(v, IDS[START:, None], 1)[:, 0]
    np.testing.assert_array_equal(said.tokens, order[:, :3])
    close(said.logits, jnp.take_along_axis(z, order[:, :3], 1))
    close(said.probabilities, jnp.exp(jnp.take_along_axis(logp, order[:, :3], 1)))
    close(said.logsumexp, jax.nn.logsumexp(z, -1))
    close(said.mean, z.mean(-1))
    close(said.logit, own(z))
    close(said.log_probability, own(logp))
    np.testing.assert_array_equal(said.rank, (z > own(z)[:, None]).sum(-1))
    alone = language.next_tokens(h, P["unembed"], bias, k=3, block=block)
    assert alone.logit is None and alone.log_probability is None and alone.rank is None
    close(alone.probabilities, said.probabilities)


def test_large_logits_do_not_overflow_and_equal_ones_keep_their_order():
    said = language.next_tokens(
        jnp.array([[1000.0], [-1000.0]]), jnp.array([[1.0, 0.5, 1.0]]), ids=[2, 2], k=3, block=2
    )
    np.testing.assert_array_equal(said.tokens, [[0, 2, 1], [1, 0, 2]])
    np.testing.assert_allclose(said.probabilities, [[0.5, 0.5, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(said.logsumexp, [1000 + np.log(2), -500])
    np.testing.assert_array_equal(said.rank, [0, 1])


def test_bfloat16_is_summed_up_in_float32():
    h = jnp.ones((1, 4), jnp.bfloat16)
    said = language.next_tokens(h, jnp.ones((4, 1000), jnp.bfloat16), ids=[5], k=2, block=7)
    assert said.logsumexp.dtype == jnp.float32
    np.testing.assert_allclose(said.logsumexp, 4 + np.log(1000), rtol=1e-6)
    R = language.token_relevance(
        lambda ids: jnp.cumsum(lrpjax.tag(P["embedding"].astype(jnp.bfloat16)[ids], "embedded"), 0),
        None,
        IDS,
        at="embedded",
        unembed=P["unembed"],
    )
    assert R.dtype == jnp.bfloat16 and np.isfinite(R.astype(np.float32)).all()


# --------------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"ids": IDS[None]},
            InputError,
            r"integers of shape \[T\], one text, but are int64\[1, 7\]: map over texts",
        ),
        ({"ids": IDS.astype(float)}, InputError, r"but are float64\[7\]"),
        ({"ids": "text"}, InputError, "no array can be made"),
        ({"ids": [3]}, InputError, "a text of 1 tokens has none that comes after another"),
        ({"ids": [3, 13, 1, 2]}, TargetError, r"ids must lie in 0 … 12, not 1 … 13"),
        ({"ids": [3, -1, 1, 2]}, TargetError, r"ids must lie in 0 … 12, not -1 … 3"),
        ({"start": 0}, TargetError, "start must be an integer from 1 to 6, but is 0"),
        ({"start": TOKENS}, TargetError, "start must be an integer from 1 to 6, but is 7"),
        ({"start": 1.0}, TargetError, "start must be an integer from 1 to 6"),
        ({"seeds": 0}, TargetError, "seeds must be an integer and at least 1, but is 0"),
        ({"seeds": True}, TargetError, "seeds must be an integer"),
        (
            {"against": "other"},
            TargetError,
            "against must be 'mean', a token .int. or 4 tokens.*but is 'other'",
        ),
        ({"against": [1, 2]}, TargetError, "against must be 'mean'"),
        ({"against": 1.5}, TargetError, "against must be 'mean'"),
        ({"against": 13}, TargetError, "against must lie in 0 … 12"),
        ({"at": "nowhere"}, PathError, "no value leaves the scope 'nowhere'"),
        ({"at": []}, PathError, "`at` names nothing"),
        (
            {"at": "turned"},
            PathError,
            r"the value at 'turned' has shape \[8, 7\]: it must have an axis for the 7 tok",
        ),
        (
            {"f": lambda ids: F(ids)[1:]},
            TargetError,
            r"logits of shape \[7, V\] for 7 ids, but gives shape \(6, 13\)",
        ),
        ({"f": lambda ids: F(ids)[None]}, TargetError, r"take \[0\] of a batch"),
        ({"f": lambda ids: (F(ids),) * 2}, TargetError, "must give logits"),
        (
            {"unembed": P["unembed"]},
            TargetError,
            r"hidden values of shape \[7, 8\] for 7 ids, but gives shape \(7, 13\)",
        ),
        (
            {"unembed": P["unembed"][0]},
            TargetError,
            r"unembed must be floating-point numbers of shape \[D, V\]",
        ),
        ({"unembed": P["unembed"], "bias": jnp.ones(2)}, TargetError, r"bias has shape \[2\].* takes \[13\]"),
        ({"bias": jnp.ones(VOCABULARY)}, TargetError, "bias is that of the unembedding"),
    ],
)
def test_refuses(given, error, message):
    def f(ids):
        x = lrpjax.tag(P["embedding"][ids].T, "turned")
        return x.T @ P["unembed"]

    f = f if given.get("at") == "turned" else F
    options = {"f": f, "composite": None, "ids": IDS, "at": "embedded", "start": START, **given}
    if "ids" in given:
        options["start"] = 1
    with pytest.raises(error, match=message):
        language.token_relevance(**options)


@pytest.mark.parametrize("form", ["logits", "unembed"])
def test_tokens_outside_the_vocabulary_are_nan_where_nothing_can_be_raised(form):
    f, given = (F, {}) if form == "logits" else (H, {"unembed": P["unembed"]})
    explain = jax.jit(lambda ids: language.token_relevance(f, None, ids, at="embedded", start=START, **given))
    R = explain(IDS.at[-1].set(VOCABULARY))
    assert np.isnan(R[-1]).any() and np.isfinite(R[:-1]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": jnp.ones((3, 9))}, r"hidden values of shape \[N, 8\].*float64\[3, 9\]"),
        ({"ids": [1, 2]}, r"ids are 3 integers, but these are int64\[2\]"),
        ({"ids": [1, 2, 13]}, "ids must lie in 0 … 12"),
        ({"k": 14}, "k must be an integer from 1 to 13, but is 14"),
        ({"block": 0}, "block must be an integer and at least 1"),
    ],
)
def test_next_tokens_refuses(given, message):
    with pytest.raises(TargetError, match=message):
        language.next_tokens(**{"hidden": jnp.ones((3, DIM)), "unembed": P["unembed"], **given})
