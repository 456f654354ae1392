"""What RelP's code and TransformerLens say of the values inside small random transformers, beside `lrpjax.circuits`:
`python tests/world/circuit_peers.py [--relp FOLDER]`.

RelP's code is a fork of TransformerLens 2 (github.com/FarnoushRJ/RelP): FOLDER is the one in a checkout of it that holds
its `transformer_lens`. Both packages have one name, so each peer has a process of its own. Nothing is downloaded, and all
is computed in float64. It wants an environment with

    pip install "torch==2.13.0" transformer-lens better_abc . "jax==0.10.2"

where transformers may be newer than RelP's code knows: the one name that it misses is given back below.

The models have weights and biases of every layer drawn at random, and are written a second time here in JAX. Each number
is the largest difference of a method's results over all layers and positions, over their largest value. The last line
of each peer's process holds its rows as JSON.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
import numpy as np
import torch

import lrpjax
from lrpjax import circuits, composites, rules, select

LAYERS, WIDTH, HEADS, SIZE, HIDDEN, WORDS, CONTEXT = 3, 32, 4, 8, 64, 40, 12
CLEAN, CORRUPTED = [[3, 17, 8, 25, 8, 31, 12]], [[3, 17, 8, 9, 8, 31, 30]]
RIGHT, WRONG = 5, 11  # the words whose logits' difference at the last position is the metric
SITES = ("resid_pre", "attn_out", "mlp_out")
PARTS = dict.fromkeys(SITES, 0) | dict.fromkeys("qkvz", (0, 1))  # the last are [tokens, heads, features]
AT = [f"{site}{i}" for site in PARTS for i in range(LAYERS)]
PATCHED = [f"{site}{i}" for site in (*SITES, "z") for i in range(LAYERS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", nargs="?", choices=list(PEERS), help="this peer alone, in this process")
    parser.add_argument(
        "--relp", metavar="FOLDER", help="the folder of RelP's checkout that holds transformer_lens"
    )
    options = parser.parse_args()
    if options.peer:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)  # of the tables that they put results of patching into
        print(json.dumps([dataclasses.asdict(row) for row in PEERS[options.peer]()]))
        return 0
    rows = []
    for peer in PEERS:
        if peer == "relp" and not options.relp:
            print("RelP is left out: --relp names the folder of its checkout", file=sys.stderr)
            continue
        path = [options.relp] if peer == "relp" else []
        env = os.environ | {"PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])}
        made = subprocess.run(
            [sys.executable, __file__, peer], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        rows += [Row(**row) for row in json.loads(made.stdout.splitlines()[-1])]
    print(table(rows))
    return int(not all(row.passes for row in rows))


@dataclasses.dataclass
class Row:
    """How far a peer's method and ours are apart, by values; `bound`: the most that it may be, None where the two are
    known to differ."""

    peer: str
    model: str
    theirs: str
    ours: str
    differences: dict[str, float]
    bound: float | None

    @classmethod
    def of(
        cls, peer: str, model: str, theirs: str, ours: str, a: dict, b: dict, bound: float | None
    ) -> "Row":
        return cls(peer, model, theirs, ours, apart(a, b), bound)

    @property
    def passes(self) -> bool:
        return self.bound is None or max(self.differences.values()) <= self.bound


def table(rows: list[Row]) -> str:
    names = ("lrpjax", "jax", "torch", "transformers", "transformer-lens")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    passed = sum(row.passes for row in rows if row.bound is not None)
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {versions}, Python {platform.python_version()}, CPU, float64. "
        f"{passed} of {sum(row.bound is not None for row in rows)} comparisons are within their bounds.",
        "",
        "| peer | model | its method | ours | differences, of the largest value | bound |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = ", ".join(f"{site} {gap:.0e}" for site, gap in row.differences.items())
        bound = "they differ" if row.bound is None else f"{row.bound:.0e}"
        lines.append(f"| {row.peer} | {row.model} | {row.theirs} | {row.ours} | {found} | {bound} |")
    return "\n".join(lines)


def apart(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> dict[str, float]:
    """For each kind of value the largest difference of any layer, over the largest value of any."""
    gaps = {}
    for site in dict.fromkeys(path.rstrip("0123456789") for path in theirs):
        paths = [path for path in theirs if path.rstrip("0123456789") == site]
        a, b = (np.stack([np.asarray(of[path]) for path in paths]) for of in (theirs, ours))
        if a.shape != b.shape:
            raise ValueError(f"{site} has shape {a.shape} there, but {b.shape} here")
        gaps[site] = float(np.abs(a - b).max() / (np.abs(a).max() or 1.0))  # under the AH-rule queries have 0
    return gaps


# ------------------------------------------------------------------------------------------------------ the model in JAX


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a transformer is made of: LayerNorm, an MLP and learned positions; or RMSNorm, a gated MLP and rotary
    positions with fewer keys than queries."""

    gated: bool
    act: Callable
    epsilon: float
    base: float = 10000.0


def transformer(kind: Kind, params: dict[str, Any], ids: jax.Array) -> jax.Array:
    tokens = len(ids)
    x = params["embed"][ids]
    if not kind.gated:
        x = x + params["positions"][:tokens]
    x = lrpjax.tag(x, "embed")
    earlier = jnp.tril(jnp.ones((tokens, tokens), bool))
    for i, p in enumerate(params["layers"]):
        x = lrpjax.tag(x, f"resid_pre{i}")
        h = norm(kind, lrpjax.tag(x, f"attn_in{i}"), p["norm1"])
        project = lambda name, p=p, h=h: jnp.einsum("td,hdk->thk", h, p[name]) + p["b" + name]
        q, k, v = (lrpjax.tag(project(name), f"{name}{i}") for name in "qkv")
        if kind.gated:
            q, k = rotated(kind, q), rotated(kind, k)
        k, v = (jnp.repeat(a, HEADS // a.shape[1], axis=1) for a in (k, v))
        scores = jnp.where(earlier, jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE), -jnp.inf)
        mixed = lrpjax.tag(jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v), f"z{i}")
        x = x + lrpjax.tag(jnp.einsum("qhd,hde->qe", mixed, p["o"]) + p["bo"], f"attn_out{i}")
        h = norm(kind, lrpjax.tag(x, f"mlp_in{i}"), p["norm2"])
        if kind.gated:
            h = kind.act(h @ p["gate"]) * (h @ p["up"]) + p["bup"]
        else:
            h = kind.act(h @ p["up"] + p["bup"])
        x = x + lrpjax.tag(h @ p["down"] + p["bdown"], f"mlp_out{i}")
    return norm(kind, x, params["norm"]) @ params["out"] + params["bout"]


def norm(kind: Kind, x: jax.Array, weights: tuple) -> jax.Array:
    if not kind.gated:
        x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + kind.epsilon) * weights[0]
    return x if kind.gated else x + weights[1]


def rotated(kind: Kind, x: jax.Array) -> jax.Array:
    """Each half of a head turned with the other, by an angle that grows with the position."""
    half = SIZE // 2
    angles = jnp.arange(len(x))[:, None, None] / kind.base ** (jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def metric(logits: Any) -> Any:
    """Of logits [tokens, words], or [1, tokens, words]."""
    return logits[..., -1, RIGHT].sum() - logits[..., -1, WRONG].sum()


def drawn(module: torch.nn.Module) -> None:
    """Every parameter drawn anew, so that no bias is zero and no scale of a norm is one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            scale = "ln" in name or "norm" in name
            parameter.copy_(1 + 0.3 * noise if scale and name.endswith(("w", "weight")) else 0.25 * noise)


# --------------------------------------------------------------------------------------------------------- what we say


def ours(f: Callable, composite: Any, at: Iterable[str] = AT) -> dict[str, np.ndarray]:
    """What patching (without a composite) or attribution gives each position, and each head where there are some."""
    runs = jnp.array(CLEAN[0]), jnp.array(CORRUPTED[0])
    at = list(at)
    linear = functools.partial(circuits.attribute, f, composite)
    method = functools.partial(circuits.patch, f) if composite is None else linear
    each = {path: PARTS.get(path.rstrip("0123456789"), 0) for path in at}
    return {path: np.asarray(score) for path, score in method(*runs, at=at, metric=metric, each=each).items()}


def relp_held() -> composites.Composite:
    """RelP with its AH-rule: no relevance through attention weights."""
    return lrpjax.Composite([(select.kind("softmax"), rules.Stop()), *composites.relp().pairs])


class Derivative(rules.Rule):
    """The coefficient of an activation is its derivative."""

    def through(self, x: jax.Array, y: jax.Array, R: jax.Array, derivative: jax.Array) -> jax.Array:
        return x * derivative * R / y


def relp_without_identity() -> composites.Composite:
    """RelP without its Identity-rule."""
    return lrpjax.Composite([(select.kind("activation"), Derivative()), *composites.relp().pairs])


# ------------------------------------------------------------------------------------------------------------- RelP's code


def relp() -> Iterator[Row]:
    transformers = importlib.import_module("transformers")
    transformers.__dict__.setdefault("TRANSFORMERS_CACHE", "")  # a name of transformers 4
    activations = importlib.import_module("transformer_lens.utilities.activation_functions")
    for gated in (False, True):
        module = _hooked(gated)
        f = _of_hooked(module, gated)
        row = functools.partial(Row.of, "RelP", "gated" if gated else "gelu")
        yield row("output", "output", _output(module), {"logits": f(jnp.array(CLEAN[0]))}, 1e-12)
        yield row("use_lrp=False", "gradient()", _attributed(module), ours(f, composites.gradient()), 1e-10)
        yield row("get_act_patch_…", "patch", _patched(module), ours(f, None, PATCHED), 1e-10)
        three = ["LN-rule", "Identity-rule", "Half-rule"]
        for chosen, composite, label in (
            (three, composites.relp(), "relp()"),
            ([*three, "AH-rule"], relp_held(), "relp() with softmax stopped"),
            ([*three, "AH-rule"], composites.cp_lrp(0.0), "cp_lrp(0.0)"),
        ):
            what = "the three rules" if chosen == three else "the three and the AH-rule"
            found = ours(f, composite)
            yield row(
                what,
                label,
                _attributed(_hooked(gated, chosen)),
                found,
                None if _known(gated, label) else 1e-3,
            )
            # Their Identity-rule divides by x + 10⁻⁶ sign x, and multiplies with it again: the slope is not φ(x) / x.
            with unittest.mock.patch.object(activations, "stabilize", lambda z: z):
                theirs = _attributed(_hooked(gated, chosen))
            yield row(f"{what}, no stabiliser", label, theirs, found, None if _known(gated, label) else 1e-10)
        # As in their notebook, which switches the rules on after the model is made.
        module.cfg.use_lrp, module.cfg.LRP_rules = True, three
        theirs = _attributed(module)
        yield row("the three rules, set afterwards", "relp()", theirs, ours(f, composites.relp()), None)
        label = "relp() with derivatives of activations"
        yield row("the three rules, set afterwards", label, theirs, ours(f, relp_without_identity()), 1e-10)


def _known(gated: bool, label: str) -> bool:
    """CP-LRP gives the activated factor of a gated MLP nothing, the Half-rule half."""
    return gated and label == "cp_lrp(0.0)"


def _hooked(gated: bool, chosen: list[str] | None = None) -> Any:
    lens = importlib.import_module("transformer_lens")
    sizes = {"n_layers": LAYERS, "d_model": WIDTH, "n_heads": HEADS, "d_head": SIZE, "d_mlp": HIDDEN}
    kind = (
        {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "final_rms": True}
        | {"positional_embedding_type": "rotary", "rotary_dim": SIZE, "n_key_value_heads": HEADS // 2}
        if gated
        else {"act_fn": "gelu_new", "normalization_type": "LN"}
    )
    cfg = lens.HookedTransformerConfig(
        **sizes, **kind, d_vocab=WORDS, n_ctx=CONTEXT, dtype=torch.float64, device="cpu", seed=0
    )
    if chosen is not None:
        cfg.use_lrp, cfg.LRP_rules = True, chosen
    module = lens.HookedTransformer(cfg)
    drawn(module)
    return module.eval()


def _of_hooked(module: Any, gated: bool) -> Callable:
    a = lambda tensor: jnp.asarray(tensor.detach().numpy())
    scale = lambda ln: (a(ln.w),) if gated else (a(ln.w), a(ln.b))
    layers = []
    for block in module.blocks:
        attn, mlp = block.attn, block.mlp
        shared = "_" if gated else ""  # keys and values of several queries have names of their own
        layer = {
            "q": a(attn.W_Q),
            "k": a(getattr(attn, shared + "W_K")),
            "v": a(getattr(attn, shared + "W_V")),
        }
        layer |= {
            "bq": a(attn.b_Q),
            "bk": a(getattr(attn, shared + "b_K")),
            "bv": a(getattr(attn, shared + "b_V")),
        }
        layer |= {
            "o": a(attn.W_O),
            "bo": a(attn.b_O),
            "up": a(mlp.W_in),
            "bup": a(mlp.b_in),
            "down": a(mlp.W_out),
        }
        layer |= {"bdown": a(mlp.b_out), "norm1": scale(block.ln1), "norm2": scale(block.ln2)}
        layers.append(layer | ({"gate": a(mlp.W_gate)} if gated else {}))
    params = {"embed": a(module.embed.W_E), "layers": layers, "norm": scale(module.ln_final)}
    params |= {"out": a(module.unembed.W_U), "bout": a(module.unembed.b_U)}
    if not gated:
        params["positions"] = a(module.pos_embed.W_pos)
    act = jax.nn.silu if gated else jax.nn.gelu
    kind = Kind(gated, act, module.cfg.eps)
    return lambda ids: transformer(kind, params, ids)


def _hook(path: str) -> str:
    site = path.rstrip("0123456789")
    block = f"blocks.{path.removeprefix(site)}"
    if site == "embed":
        return "hook_embed"
    return f"{block}.attn.hook_{site}" if site in PARTS and site not in SITES else f"{block}.hook_{site}"


def _output(module: Any) -> dict[str, np.ndarray]:
    return {"logits": module(torch.tensor(CLEAN)).detach().numpy()[0]}


def _attributed(module: Any) -> dict[str, np.ndarray]:
    """(clean − corrupted) ⊙ gradient in the corrupted run, by hooks of both passes as in its notebook."""
    values, slopes = ({}, {}), {}
    for tokens, seen in zip((CLEAN, CORRUPTED), values, strict=True):
        module.reset_hooks()
        for path in AT:
            module.add_hook(
                _hook(path), lambda act, hook, seen=seen: seen.update({hook.name: act.detach()}), "fwd"
            )
            module.add_hook(
                _hook(path), lambda slope, hook: slopes.update({hook.name: slope.detach()}), "bwd"
            )
        metric(module(torch.tensor(tokens))).backward()
    module.reset_hooks()
    clean, corrupted = values
    score = lambda name: ((clean[name] - corrupted[name]) * slopes.get(name, 0.0)).sum(-1)[0].numpy()
    return {path: score(_hook(path)) for path in AT}


def _patched(module: Any) -> dict[str, np.ndarray]:
    patching = importlib.import_module("transformer_lens.patching")
    with torch.no_grad():
        _, cache = module.run_with_cache(torch.tensor(CLEAN))
        base = metric(module(torch.tensor(CORRUPTED)))
        run = module, torch.tensor(CORRUPTED), cache, metric
        blocks = patching.get_act_patch_block_every(*run) - base
        heads = patching.get_act_patch_attn_head_out_by_pos(*run) - base
    found = {f"{site}{i}": blocks[s, i].numpy() for s, site in enumerate(SITES) for i in range(LAYERS)}
    return found | {f"z{i}": heads[i].numpy() for i in range(LAYERS)}


# --------------------------------------------------------------------------------------------------- TransformerLens's code


def lens() -> Iterator[Row]:
    analysis = importlib.import_module("transformer_lens.tools.analysis.attribution_patching")
    runs = [torch.tensor(tokens) for tokens in (CLEAN, CORRUPTED)]
    for gated in (False, True):
        module, f = _bridged(gated)
        # transformers computes RMSNorm, and the angles of rotary positions, in float32.
        bound = 1e-5 if gated else 1e-10
        row = functools.partial(Row.of, "TransformerLens", "gated" if gated else "gelu")
        yield row("output", "output", _output(module), {"logits": f(jnp.array(CLEAN[0]))}, bound)
        hooks = [_hook(path) for path in AT]
        clean, corrupted = (
            analysis.cache_activation_and_gradient(module, run, metric, hooks) for run in runs
        )
        change = lambda name, a=clean, b=corrupted: a.activations[name] - b.activations[name]
        score = lambda name, b=corrupted, change=change: (change(name) * b.gradients[name]).sum(-1)[0].numpy()
        theirs = {path: score(_hook(path)) for path in AT}
        yield row(
            "cache_activation_and_gradient", "gradient()", theirs, ours(f, composites.gradient()), bound
        )
        theirs = _of_nodes(analysis.attribution_patch(module, *runs, metric).node_scores)
        yield row(
            "attribution_patch",
            "gradient()",
            theirs,
            ours(f, composites.gradient(), theirs),
            bound,
        )
        yield row("get_act_patch_…", "patch", _patched(module), ours(f, None, PATCHED), bound)
        if not gated:  # edges want as many keys as queries there
            config = analysis.EdgeAttributionConfig(granularity="edge")
            theirs = _of_edges(analysis.attribution_patch(module, *runs, metric, config).edge_scores)
            nodes = [
                "embed",
                *(
                    f"{site}{i}"
                    for site in ("attn_out", "mlp_out", "attn_in", "mlp_in")
                    for i in range(LAYERS)
                ),
            ]
            ids = [jnp.array(tokens[0]) for tokens in (CLEAN, CORRUPTED)]
            found = circuits.attribute_edges(f, composites.gradient(), *ids, at=nodes, metric=metric)
            both = [{"edges": np.array([of[edge] for edge in theirs])} for of in (theirs, found)]
            yield row(f"attribution_patch, {len(theirs)} edges", "attribute_edges", *both, bound)


def _of_nodes(scores: dict) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    tokens = len(CLEAN[0])
    for node, score in scores.items():
        site = {"attn_head_out": "z"}.get(node.kind, node.kind)
        path = site if node.layer is None else f"{site}{node.layer}"
        where = (node.position,) if node.head is None else (node.position, node.head)
        found.setdefault(path, np.zeros((tokens,) if node.head is None else (tokens, HEADS)))[where] = score
    return found


def _of_edges(scores: dict) -> dict[tuple[str, str], float]:
    """Summed over positions and heads, and over queries, keys and values."""
    sites = {"attn_head_out": "attn_out", "q_input": "attn_in", "k_input": "attn_in", "v_input": "attn_in"}
    total: dict[tuple[str, str], float] = {}
    for edge, score in scores.items():
        named = [
            sites.get(node.kind, node.kind) + ("" if node.layer is None else str(node.layer)) for node in edge
        ]
        pair = (named[0], "output" if named[1].startswith("logits") else named[1])
        total[pair] = total.get(pair, 0.0) + score
    return total


def _bridged(gated: bool) -> tuple[Any, Callable]:
    transformers = importlib.import_module("transformers")
    bridge = importlib.import_module("transformer_lens.model_bridge")
    sources = importlib.import_module("transformer_lens.model_bridge.sources")
    factory = importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    sizes = {"vocab_size": WORDS, "attn_implementation": "eager", "bos_token_id": 0, "eos_token_id": 0}
    if gated:
        name = "LlamaForCausalLM"
        cfg = transformers.LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            max_position_embeddings=CONTEXT,
            **sizes,
        )
    else:
        name = "GPT2LMHeadModel"
        cfg = transformers.GPT2Config(
            n_embd=WIDTH, n_inner=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **sizes
        )
    module = getattr(transformers, name)(cfg).double().eval()
    drawn(module)
    f = _of_llama(module) if gated else _of_gpt2(module)
    config = sources.build_bridge_config_from_hf(module.config, name, "tiny", torch.float64)
    adapter = factory.ArchitectureAdapterFactory.select_architecture_adapter(config)
    return bridge.TransformerBridge(module, adapter, None).eval(), f


def _array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy().copy())


def _of_gpt2(module: Any) -> Callable:
    a, heads = _array, lambda w: w.reshape(*w.shape[:-1], HEADS, SIZE)
    layers = []
    for block in module.transformer.h:
        attn, mlp = block.attn, block.mlp
        weights, biases = (jnp.split(a(p), 3, -1) for p in (attn.c_attn.weight, attn.c_attn.bias))
        layer = {name: heads(w).transpose(1, 0, 2) for name, w in zip("qkv", weights, strict=True)}
        layer |= {"b" + name: heads(b) for name, b in zip("qkv", biases, strict=True)}
        layer |= {"o": a(attn.c_proj.weight).reshape(HEADS, SIZE, WIDTH), "bo": a(attn.c_proj.bias)}
        layer |= {"up": a(mlp.c_fc.weight), "bup": a(mlp.c_fc.bias)}
        layer |= {"down": a(mlp.c_proj.weight), "bdown": a(mlp.c_proj.bias)}
        layer |= {f"norm{i}": (a(ln.weight), a(ln.bias)) for i, ln in ((1, block.ln_1), (2, block.ln_2))}
        layers.append(layer)
    whole = module.transformer
    params = {"embed": a(whole.wte.weight), "positions": a(whole.wpe.weight), "layers": layers}
    params |= {
        "norm": (a(whole.ln_f.weight), a(whole.ln_f.bias)),
        "out": a(module.lm_head.weight).T,
        "bout": 0.0,
    }
    kind = Kind(False, jax.nn.gelu, module.config.layer_norm_epsilon)
    return lambda ids: transformer(kind, params, ids)


def _of_llama(module: Any) -> Callable:
    a, heads = lambda tensor: _array(tensor).T, lambda w: w.reshape(WIDTH, -1, SIZE).transpose(1, 0, 2)
    layers = []
    for block in module.model.layers:
        attn, mlp = block.self_attn, block.mlp
        layer = {name: heads(a(getattr(attn, f"{name}_proj").weight)) for name in "qkv"}
        layer |= {"b" + name: jnp.zeros((len(layer[name]), SIZE)) for name in "qkv"}
        layer |= {"o": a(attn.o_proj.weight).reshape(HEADS, SIZE, WIDTH), "bo": 0.0, "bup": 0.0, "bdown": 0.0}
        layer |= {name: a(getattr(mlp, f"{name}_proj").weight) for name in ("gate", "up", "down")}
        layer |= {
            "norm1": (a(block.input_layernorm.weight),),
            "norm2": (a(block.post_attention_layernorm.weight),),
        }
        layers.append(layer)
    params = {"embed": _array(module.model.embed_tokens.weight), "layers": layers}
    params |= {"norm": (a(module.model.norm.weight),), "out": a(module.lm_head.weight), "bout": 0.0}
    kind = Kind(True, jax.nn.silu, module.config.rms_norm_eps)
    return lambda ids: transformer(kind, params, ids)


PEERS = {"relp": relp, "lens": lens}

if __name__ == "__main__":
    raise SystemExit(main())
