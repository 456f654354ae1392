"""Contrastive output relevance and BiLRP: hand-computed, conserved, and against loops."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, metrics, rules, similarity, targets
from lrpjax.analysis.bilrp import RegionError

close = functools.partial(helpers.close, tolerance=1e-12)

RNG = np.random.default_rng(0)
W1, W2 = jnp.asarray(RNG.normal(size=(6, 8))), jnp.asarray(RNG.normal(size=(8, 4)))
X, OTHER = jnp.asarray(RNG.normal(size=(3, 6))), jnp.asarray(RNG.normal(size=(3, 6)))
ZERO = lrpjax.Composite([("*", rules.Epsilon(0.0))])
Y = jnp.array([[1.0, 4.0, 2.0], [3.0, -1.0, 0.5]])


def mlp(x):
    return jax.nn.relu(x @ W1) @ W2


# ---------------------------------------------------------------------------------------------------------------------------- contrastive


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (targets.difference(0, 1), [[1, -4, 0], [3, 1, 0]]),
        (targets.difference(0), [[1, -4, 0], [3, 0, -0.5]]),
        (targets.difference([1, 2], [0, 0]), [[-1, 4, 0], [-3, 0, 0.5]]),
        (targets.difference(-1), [[0, -4, 2], [-3, 0, 0.5]]),
        (targets.difference(2, 2), [[0, 0, 0], [0, 0, 0]]),
        (targets.clrp(1), [[-2, 4, -2], [0.5, -1, 0.5]]),
        (targets.clrp(np.array([0, 2])), [[1, -0.5, -0.5], [-0.25, -0.25, 0.5]]),
    ],
)
def test_output_relevance_by_hand(target, expected):
    close(target(Y), expected)
    close(jax.jit(target)(Y), expected)


def test_sglrp_by_hand():
    y = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    close(targets.sglrp(0)(y), [[0.25, -0.15, -0.1], [0.09, -0.01, -0.08]])
    close(targets.sglrp([1, 2])(y), [[-0.15, 0.21, -0.06], [-0.08, -0.08, 0.16]])


def test_sglrp_is_the_gradient_of_the_softmax():
    close(targets.sglrp(1)(Y), jax.grad(lambda y: jax.nn.softmax(y)[:, 1].sum())(Y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("make", [targets.difference, targets.clrp, targets.sglrp])
def test_output_relevance_keeps_the_dtype(make, dtype):
    assert make(1)(Y.astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("target", "total"),
    [
        (targets.difference(1, 3), lambda y: y[:, 1] - y[:, 3]),
        (targets.difference(2), lambda y: y[:, 2] - jnp.delete(y, 2, axis=1).max(1)),
        (targets.clrp(0), lambda y: jnp.zeros(3)),
        (targets.sglrp(0), lambda y: jnp.zeros(3)),
        (targets.similarity(mlp(OTHER)), lambda y: (y * mlp(OTHER)).sum(1)),
    ],
    ids=["difference", "strongest rival", "clrp", "sglrp", "similarity"],
)
def test_conservation(target, total):
    explain = jax.jit(lrpjax.relevance(mlp, ZERO, target=target))
    close(explain(X).sum(1), total(mlp(X)))


def test_clrp_is_relevance_less_that_of_the_rest():
    """R − R_dual of Gu et al.: the dual has the target's score in equal parts at the other classes."""
    composite, y = composites.epsilon_plus(), mlp(X)
    explain = lambda seed: lrpjax.relevance(mlp, composite, target=seed)(X)
    dual = jnp.tile(y[:, 2:3] / 3, 4).at[:, 2].set(0.0)
    close(explain(targets.clrp(2)), explain(2) - explain(dual))


def test_a_difference_is_the_difference_of_two_explanations():
    explain = lambda target: lrpjax.relevance(mlp, ZERO, target=target)(X)
    close(explain(targets.difference(0, 3)), explain(0) - explain(3))


def test_classes_can_be_vmapped():
    one = lambda label: lrpjax.relevance(mlp, ZERO, target=targets.clrp(label))(X)
    close(jax.vmap(one)(jnp.arange(4))[2], one(2))


@pytest.mark.parametrize("make", [targets.difference, targets.clrp, targets.sglrp])
def test_bad_classes(make):
    with pytest.raises(lrpjax.TargetError, match="target 3 is out of range: the output has 3 classes"):
        make(3)(Y)
    with pytest.raises(lrpjax.TargetError, match="class targets have shape"):
        make([0, 1, 2])(Y)
    with pytest.raises(lrpjax.TargetError, match="a class is an int"):
        make(1.5)(Y)
    with pytest.raises(lrpjax.TargetError, match="a class is an int"):
        make("max")(Y)
    with pytest.raises(lrpjax.TargetError, match="needs classes along its last axis"):
        make(0)(Y[:, :1])
    with pytest.raises(lrpjax.TargetError, match="needs classes along its last axis"):
        make(0)(jnp.float32(1))


def test_an_embedding_of_another_shape():
    with pytest.raises(lrpjax.TargetError, match=r"the embedding has shape \(3,\), but the output \(2, 3\)"):
        targets.similarity(Y[0])(Y)


# ---------------------------------------------------------------------------------------------------------------------------------- BiLRP


def test_bilrp_of_a_linear_embedding_by_hand():
    """R_ii' = Σ_m W_im x_i W_i'm x'_i'."""
    x, other = X[0], OTHER[0]
    expected = np.einsum("im,i,jm,j->ij", W1, x, W1, other)
    close(similarity.bilrp(lambda x: x @ W1, ZERO)(x, other), expected)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_bilrp_against_a_loop_over_dimensions(batch):
    composite = composites.epsilon_plus()
    expected = np.zeros((6, 6))
    for m in range(4):
        a, b = (lrpjax.relevance(mlp, composite, target=m)(x) for x in (X[1], OTHER[1]))
        expected += np.outer(a, b)
    close(jax.jit(similarity.bilrp(mlp, composite, batch=batch))(X[1], OTHER[1]), expected)


KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 1, 5)))


def images(x):
    """A bias-free embedding of one image [8, 8, 1]."""
    x = lax.conv_general_dilated(x[None], KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x).reshape(4, 2, 4, 2, 5).sum((0, 1, 2, 3))


def test_bilrp_sums_to_the_dot_product_and_regions_pool_it():
    x, other = (jnp.asarray(RNG.normal(size=(8, 8, 1))) for _ in range(2))
    full = similarity.bilrp(images, ZERO)(x, other)
    close(full.sum(), images(x) @ images(other), tolerance=1e-10)
    labels = metrics.patches((1, 8, 8, 1), 4)
    pooled = similarity.bilrp(images, ZERO, regions=labels)(x, other)
    blocks = np.asarray(full).reshape(2, 4, 2, 4, 2, 4, 2, 4).sum((1, 3, 5, 7)).reshape(4, 4)
    close(pooled, blocks, tolerance=1e-10)


def test_bilrp_is_symmetric_and_sums_to_the_similarity_target():
    R = similarity.bilrp(mlp, ZERO)(X[0], OTHER[0])
    close(R, similarity.bilrp(mlp, ZERO)(OTHER[0], X[0]).T)
    close(R.sum(1), lrpjax.relevance(mlp, ZERO, target=targets.similarity(mlp(OTHER[0])))(X[0]))


def test_bilrp_needs_no_more_memory_than_its_regions():
    """Not even the relevance of one image for all 32 dimensions is held at once."""
    x = jnp.zeros((64, 64, 1))
    f = lambda x: jax.image.resize(x, (8, 8, 1), "linear").reshape(-1) @ jnp.ones((64, 32))
    run = similarity.bilrp(f, ZERO, regions=metrics.patches((1, 64, 64, 1), 16), batch=4)
    memory = jax.jit(run).lower(x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32 * 64**2 * 8


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        (np.zeros(5, int), r"regions have shape \(5,\), which does not broadcast to \(6,\)"),
        (np.zeros(6), "regions are integer labels 0, 1, …, but these have dtype float64"),
        (np.full(6, -1), "regions are integer labels 0, 1, …, but these begin at -1"),
        (np.zeros(0, int), "regions are integer labels 0, 1, …, but these are none"),
    ],
)
def test_bad_regions(regions, match):
    with pytest.raises(RegionError, match=match):
        similarity.bilrp(mlp, regions=regions)(X[0], OTHER[0])


def test_bilrp_of_several_outputs():
    with pytest.raises(lrpjax.TargetError, match="the embedding must be one array"):
        similarity.bilrp(lambda x: (x, x))(X[0], X[0])


# Two sentences: embeddings [T, D] of different lengths, a block of attention without biases, the mean over tokens.
SHORT, LONG = jnp.asarray(RNG.normal(size=(3, 4))), jnp.asarray(RNG.normal(size=(5, 4)))
PROJECTIONS = jnp.asarray(RNG.normal(size=(5, 4, 4)))


def sentence(x):
    q, k, v = (x @ w for w in PROJECTIONS[:3])
    x = x + jax.nn.softmax(q @ k.T / 2.0, axis=-1) @ v
    return (x + jax.nn.relu(x @ PROJECTIONS[3]) @ PROJECTIONS[4]).mean(0)


def of_tokens(shape):
    return np.arange(shape[0])[:, None]


@pytest.mark.parametrize(
    "regions", [of_tokens, (np.arange(3)[:, None], np.arange(5)[:, None]), (of_tokens, np.arange(5)[:, None])]
)
def test_bilrp_token_by_token_of_inputs_of_different_lengths(regions):
    composite = composites.cp_lrp(epsilon=0.0)
    R = similarity.bilrp(sentence, composite, regions=regions)(SHORT, LONG)
    expected = np.zeros((3, 5))
    for m in range(4):
        a, b = (lrpjax.relevance(sentence, composite, target=m)(x).sum(1) for x in (SHORT, LONG))
        expected += np.outer(a, b)
    close(R, expected)
    close(R.sum(), sentence(SHORT) @ sentence(LONG), tolerance=1e-10)


def test_bilrp_of_different_lengths_with_regions_for_one_input_only():
    R = similarity.bilrp(sentence, ZERO, regions=(None, of_tokens))(SHORT, LONG)
    assert R.shape == (12, 5)
    close(R.reshape(3, 4, 5).sum(1), similarity.bilrp(sentence, ZERO, regions=of_tokens)(SHORT, LONG))


def test_regions_that_do_not_fit_two_lengths():
    with pytest.raises(
        RegionError, match=r"regions have shape \(3, 1\), which does not broadcast to \(5, 4\)"
    ):
        similarity.bilrp(sentence, ZERO, regions=np.arange(3)[:, None])(SHORT, LONG)
    with pytest.raises(RegionError, match="one entry for each of the two inputs, but this has 3"):
        similarity.bilrp(sentence, ZERO, regions=(of_tokens,) * 3)
    with pytest.raises(
        lrpjax.TargetError, match=r"embeddings of the two inputs differ in shape: \(12,\) and \(20,\)"
    ):
        similarity.bilrp(lambda x: x.reshape(-1))(SHORT, LONG)


# -------------------------------------------------------------------------------------------------------------- types of class targets

WIDE = jnp.asarray(RNG.normal(size=(6, 300)))


def wide_net(x):
    return x @ WIDE


def of_classes(classes):
    hot = jnp.asarray(np.eye(300)[np.asarray(classes, int)])
    return lrpjax.relevance(wide_net, ZERO, target=lambda y: y * hot)(X)


INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_classes_of_every_integer_type(dtype):
    classes = np.array([7, 100, 0], dtype)
    explain = lambda target: lrpjax.relevance(wide_net, ZERO, target=target)(X)
    for target in (classes, jnp.asarray(classes), list(classes), classes.tolist()):
        close(explain(target), of_classes(classes))
    close(jax.jit(explain)(classes), of_classes(classes))
    close(explain(classes[1]), of_classes([100, 100, 100]))
    one = jax.vmap(lambda x, c: lrpjax.relevance(lambda x: x @ WIDE, ZERO, target=c)(x))
    close(one(X, jnp.asarray(classes)), of_classes(classes))


@pytest.mark.parametrize("dtype", [d for d in INTEGERS if d.startswith("i")])
def test_classes_counted_from_the_end(dtype):
    classes = np.array([-1, -100, 5], dtype)
    explain = lambda target: lrpjax.relevance(wide_net, ZERO, target=target)(X)
    close(explain(classes), of_classes([299, 200, 5]))
    close(jax.jit(explain)(classes), of_classes([299, 200, 5]))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_classes_that_do_not_exist(dtype):
    classes = np.array([300, 2, 0], dtype)
    explain = lambda target: lrpjax.relevance(wide_net, ZERO, target=target)(X)
    with pytest.raises(lrpjax.errors.TargetError, match="out of range"):
        explain(classes)
    found = np.isnan(jax.jit(explain)(classes))
    assert found[0].all() and not found[1:].any()


@pytest.mark.parametrize("target", [2**31, 2**63, -(2**63) - 1, 2**70])
def test_a_class_beyond_every_type(target):
    with pytest.raises(lrpjax.errors.TargetError, match=r"out of range: the output has 300 classes"):
        lrpjax.relevance(wide_net, target=target)(X)


@pytest.mark.parametrize(
    "target", [True, np.array([True, False, True]), [1, [2]], {"a": 1}, 1j, np.array(["a"])]
)
def test_what_is_no_class(target):
    with pytest.raises(lrpjax.errors.TargetError):
        lrpjax.relevance(wide_net, target=target)(X)


def test_lists_with_traced_classes():
    explain = jax.jit(lambda a: lrpjax.relevance(wide_net, ZERO, target=[a, 3, a + 1])(X))
    close(explain(1), of_classes([1, 3, 2]))


@pytest.mark.parametrize("target", [0, np.uint8(0), "max", targets.difference(0, 1)])
def test_classes_that_are_masked_do_not_disturb_the_others(target):
    masked = lambda x: jnp.where(jnp.arange(4) < 3, jax.nn.relu(x @ W1) @ W2, -jnp.inf)
    free = lambda x: (jax.nn.relu(x @ W1) @ W2)[:, :3]
    close(lrpjax.relevance(masked, ZERO, target=target)(X), lrpjax.relevance(free, ZERO, target=target)(X))


@pytest.mark.parametrize(
    "target",
    [lambda y: y > 0, lambda y: y.astype(int), lambda y: y.astype(complex), lambda y: (y > 0) & (y < 1)],
)
def test_a_callable_gives_numbers_of_the_outputs_sort(target):
    with pytest.raises(lrpjax.errors.TargetError, match="the target function returned"):
        lrpjax.relevance(mlp, target=target)(X)
    close(
        lrpjax.relevance(mlp, ZERO, target=lambda y: y.astype(jnp.float32))(X),
        lrpjax.relevance(mlp, ZERO)(X),
        tolerance=1e-6,
    )
