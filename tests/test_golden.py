"""Relevances that zennit, captum, iNNvestigate and LXT computed, at the input and at every inner node that a file records.

What is not reproduced is listed, with the reason, in NOT_REPRODUCED; a test sees to it that nothing else is left out.
"""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, rules, select

FILES = ("mlp", "cnn", "cnn_bn", "activations", "innvestigate_cnn", "transformer")
TOLERANCE = 1e-7

NOT_REPRODUCED = {
    r"captum_(gamma|alpha1_beta0|mixed)": "captum changes the kernel but not the bias, and does not split inputs by sign",
    r"zennitcanon_": "zennit keeps bn.eps after its merge, so the network explained is another",
    r"nocanon_": "BatchNorm is always folded here; this is the analysis of the network with BatchNorm left apart",
    r"inn\d_lrp\.(alpha_._beta_.$|sequential_preset_)": "iNNvestigate puts the whole bias in both denominators of αβ",
    r"inn\d_lrp\.z_plus_fast": "clips the kernel but does not split inputs by sign",
    r"inn\d_pattern": "PatternNet and PatternAttribution need patterns",
    r"(attnlrp|cplrp)_explicit$": "LXT's stabiliser, here at its default size, has no sign",
}
ACTIVATIONS = {*golden.ACTIVATIONS}
RULES = {
    "epsilon": rules.Epsilon,
    "zplus": rules.ZPlus,
    "alpha_beta": rules.AlphaBeta,
    "gamma": rules.Gamma,
    "wsquare": rules.WSquare,
    "flat": rules.Flat,
    "zbox": rules.ZBox,
    "norm": rules.Norm,
    "pass": rules.Pass,
}
FIRST, LAYERS = select.first("dense", "conv"), select.kind("dense", "conv")
ALPHA1 = rules.AlphaBeta(1.0, 0.0, bias=False, epsilon=0.0)
INNVESTIGATE = {
    "lrp.z": [(LAYERS, rules.Epsilon(0.0))],
    "lrp.epsilon": [(LAYERS, rules.Epsilon(1e-7))],
    "lrp.epsilon_epsilon0.25": [(LAYERS, rules.Epsilon(0.25))],
    "lrp.w_square": [(LAYERS, rules.WSquare(bias=False, epsilon=0.0))],
    "lrp.flat": [(LAYERS, rules.Flat(epsilon=0.0))],
    "lrp.alpha_2_beta_1_IB": [(LAYERS, rules.AlphaBeta(2.0, 1.0, bias=False, epsilon=0.0))],
    "lrp.alpha_1_beta_0_IB": [(LAYERS, ALPHA1)],
    "lrp.z_plus": [(LAYERS, rules.ZPlus(bias=False, epsilon=0.0))],
    "lrp.epsilon_bounded_first": [(FIRST, rules.ZBox(-1.0, 1.0, epsilon=0.0)), (LAYERS, rules.Epsilon(1e-3))],
    "deep_taylor": [(LAYERS, ALPHA1)],
    "deep_taylor.bounded": [(FIRST, rules.ZBox(-1.0, 1.0, epsilon=0.0)), (LAYERS, ALPHA1)],
}
GRADIENTS = {
    "gradient": composites.gradient,
    "integrated_gradients": composites.gradient,
    "smooth_grad": composites.gradient,
    "input_x_gradient": composites.input_x_gradient,
    "input_t_gradient": composites.input_x_gradient,
    "deconvnet": composites.deconvnet,
    "guided_backprop": composites.guided_backprop,
    "beta_smooth": lambda: lrpjax.Composite(
        [(select.kind("relu"), rules.BetaSmooth())], default=rules.Gradient(), method="gradient"
    ),
}


@functools.cache
def load(file):
    case = golden.load(f"{file}.npz")
    rebuilt = case.f

    def network(x):
        with jax.numpy_dtype_promotion("standard"):  # golden.py divides by NumPy's integers
            return rebuilt(x)

    case.f = network
    return case


def reason_to_skip(analysis):
    return next((why for pattern, why in NOT_REPRODUCED.items() if re.match(pattern, analysis["id"])), None)


def rule_from(entry, case):
    """The rule that zennit's resolved composite names for one node."""
    entry = dict(entry)
    kind, stabilizer = entry.pop("rule"), entry.pop("stabilizer", None)
    bias = {"bias": False} if "bias" in (entry.pop("zero_params", None) or ()) else {}
    options = {k: jnp.asarray(case[v]) if isinstance(v, str) else v for k, v in entry.items()}
    if stabilizer is not None:
        options["epsilon"] = stabilizer
    return RULES[kind](**options, **bias)


def under(node):
    return select.path(node) | select.path(f"{node}/*")


def zennit_composite(analysis, case):
    """Rule by rule as zennit resolved it. BatchNorms are in their layers; what has no rule there has the plain gradient."""
    pairs = []
    for node in case.meta["graph"]:
        if node["op"] == "batch_norm":
            continue
        entry = analysis["rules"].get(node["name"])
        if entry is not None:
            pairs.append((under(node["name"]), rule_from(entry, case)))
        elif node["op"] in ACTIVATIONS:
            pairs.append((under(node["name"]), rules.Gradient()))
    return lrpjax.Composite(pairs)


def captum_composite(analysis, case):
    ops = {node["name"]: node["op"] for node in case.meta["graph"]}
    kind = lambda node: rules.Norm if ops[node] == "avg_pool" else rules.Epsilon
    return lrpjax.Composite(
        [
            (under(node), kind(node)(entry["epsilon"]))
            for node, entry in analysis["rules"].items()
            if entry["rule"] == "captum_epsilon" and ops[node] != "max_pool"
        ]
    )


def composite_for(analysis, case):
    preset = (analysis.get("composite") or {}).get("name") or analysis["method"]
    if preset in GRADIENTS:
        return GRADIENTS[preset]()
    if analysis["peer"] == "innvestigate":
        return lrpjax.Composite(INNVESTIGATE[analysis["method"]])
    if analysis["peer"] == "lxt":
        build = composites.attnlrp if analysis["method"].startswith("attnlrp") else composites.cp_lrp
        return build(epsilon=0.0)
    return {"zennit": zennit_composite, "captum": captum_composite}[analysis["peer"]](analysis, case)


def preset_for(analysis, case):
    options = dict(analysis["composite"])
    name = options.pop("name")
    return getattr(composites, name)(
        **{k: jnp.asarray(case[v]) if isinstance(v, str) else v for k, v in options.items()}
    )


def seed_for(analysis, case):
    # iNNvestigate's deconvnet and guided_backprop arrays were seeded with the logit, although the files say with one
    backprop = analysis["peer"] == "innvestigate" and analysis["method"] in ("deconvnet", "guided_backprop")
    return jnp.asarray(case["seed/onehot_logit" if backprop else analysis["seed"]])


def explain(analysis, case):
    relevance = lrpjax.relevance(case.f, composite_for(analysis, case), target=seed_for(analysis, case))
    x = case.x
    if analysis["method"] == "integrated_gradients":  # a Riemann sum of gradients along the line from 0 to x
        if analysis["peer"] == "zennit":
            steps = jnp.asarray(case[analysis["alphas"]], x.dtype)
        else:  # left end points
            steps = jnp.arange(0, 1, 1 / analysis["kwargs"]["steps"])
        return x * jax.vmap(lambda a: relevance(a * x))(steps).mean(0)
    if analysis["method"] == "smooth_grad":
        axes = tuple(range(1, x.ndim))
        std = analysis["noise_level"] * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
        return jax.vmap(lambda noise: relevance(x + noise * std))(jnp.asarray(case[analysis["noise"]])).mean(
            0
        )
    return relevance(x)


def assert_agree(got, want, what=""):
    assert got.shape == want.shape
    deviation = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
    assert deviation <= TOLERANCE, f"{what} deviates by {deviation:.1e} of the largest value"


def select_analyses(keep):
    return [
        pytest.param(file, i, id=f"{file}-{analysis['id']}")
        for file in FILES
        for i, analysis in enumerate(load(file).analyses)
        if reason_to_skip(analysis) is None and keep(analysis)
    ]


@pytest.mark.parametrize(("file", "index"), select_analyses(lambda a: True))
def test_relevance_of_the_input_agrees_with_the_peer(file, index):
    case = load(file)
    analysis = case.analyses[index]
    assert_agree(explain(analysis, case), case[analysis["relevance"]])


@pytest.mark.parametrize(("file", "index"), select_analyses(lambda a: a.get("intermediate")))
def test_relevance_of_inner_nodes_agrees_with_the_peer(file, index):
    case = load(file)
    analysis = case.analyses[index]
    nodes = analysis["intermediate"]
    composite, seed = composite_for(analysis, case), seed_for(analysis, case)
    found = lrpjax.relevance(case.f, composite, target=seed, at=list(nodes))(case.x)
    assert list(found) == list(nodes)
    for node, key in nodes.items():
        assert_agree(found[node], case[key], node)


@pytest.mark.parametrize(
    ("file", "index"),
    select_analyses(
        lambda a: a["peer"] == "zennit" and a.get("composite") and hasattr(composites, a["composite"]["name"])
    ),
)
def test_preset_agrees_with_the_composite_of_that_name_in_zennit(file, index):
    case = load(file)
    analysis = case.analyses[index]
    relevance = lrpjax.relevance(case.f, preset_for(analysis, case), target=seed_for(analysis, case))
    assert_agree(relevance(case.x), case[analysis["relevance"]])


@pytest.mark.parametrize("file", FILES)
def test_rebuilt_network_is_the_one_that_the_peers_explained(file):
    case = load(file)
    np.testing.assert_allclose(case.f(case.x), case["y"], rtol=1e-12, atol=1e-12)


def test_every_reason_for_leaving_an_analysis_out_is_needed():
    ids = [analysis["id"] for file in FILES for analysis in load(file).analyses]
    assert all(any(re.match(pattern, i) for i in ids) for pattern in NOT_REPRODUCED)
