"""Further peers, in turns in one process on the same weights: `python tests/benchmarks/peers_more.py [llama concepts metric layers] [--markdown FILE]`.

LXT on a Llama of transformers (AttnLRP), zennit-crp's relevance under conditions, a metric of Quantus, and zennit and captum (peers.py) on networks
with convolutions, each next to the gradients of both frameworks where there are any. LXT changes classes of transformers for good: it gets a module of
its own, a second copy of transformers' file. To install, in an environment of its own:

    pip install torch==2.13.0 transformers==4.57.6 captum==0.9.0 zennit==0.5.1 .
    pip install --no-deps lxt==2.1 zennit-crp==0.6.0 quantus==0.6.0
    pip install pandas tqdm matplotlib scikit-learn scikit-image opencv-python-headless cachetools

Nothing is downloaded: all weights are random.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import unittest.mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import bench
import jax
import jax.numpy as jnp
import networks
import networks_sequences
import numpy as np
import torch

from lrpjax import composites, concepts, metrics

LLAMA = "transformers.models.llama.modeling_llama"


def far(a, b):
    """The largest difference, relative to the largest value."""
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


def without_torchvision():
    """Parts of peers that are not needed import torchvision, whose operations have to fit the build of torch.

    transformers, which looks for it, comes first.
    """
    importlib.import_module(LLAMA)
    for end in (
        "",
        ".transforms",
        ".transforms.functional",
        ".models",
        ".models.vision_transformer",
        ".models.resnet",
        ".models.vgg",
        ".utils",
    ):
        sys.modules.setdefault(f"torchvision{end}", unittest.mock.MagicMock())


# ---------------------------------------------------------------------------------------------------------- Llama


def plain_llama():
    """transformers' module once more, which LXT does not know of."""
    spec = importlib.util.find_spec(LLAMA)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(f"{LLAMA}_plain", spec.origin)
    )
    sys.modules[module.__name__] = module
    module.__spec__.loader.exec_module(module)
    return module


def patched_llama(method):
    """transformers' module, changed by LXT for good."""
    without_torchvision()
    module = importlib.import_module(LLAMA)
    patches = importlib.import_module("lxt.efficient.models.llama")
    importlib.import_module("lxt.efficient").monkey_patch(
        module, patches.cp_LRP if method == "cp_lrp" else patches.attnLRP
    )
    return module


def as_torch(module, model, variables):
    """transformers' Llama with the weights of the flax one."""
    config = importlib.import_module("transformers").LlamaConfig(
        vocab_size=model.words,
        hidden_size=model.width,
        intermediate_size=model.hidden,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        num_key_value_heads=model.groups,
        rms_norm_eps=1e-6,
    )
    net, p = module.LlamaForCausalLM(config).eval().requires_grad_(False), variables["params"]

    def fill(target, leaf):
        target.weight.data = torch.tensor(np.asarray(leaf.get("kernel", leaf.get("scale"))).T.copy())

    for i, layer in enumerate(net.model.layers):
        block = p[f"LlamaBlock_{i}"]
        attention, mlp = layer.self_attn, layer.mlp
        dense = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        for j, target in enumerate([*dense, mlp.down_proj, mlp.gate_proj, mlp.up_proj]):
            fill(target, block[f"Dense_{j}"])
        fill(layer.input_layernorm, block["RMSNorm_0"])
        fill(layer.post_attention_layernorm, block["RMSNorm_1"])
    fill(net.model.norm, p["RMSNorm_0"])
    fill(net.lm_head, p["Dense_0"])
    return net


def llama(depth, batch, tokens, method, repeats, modules=[]):  # noqa: B006
    """One row: lrpjax, `jax.grad`, torch's gradient and LXT in turns. ε is 0, as LXT has none; modules are made once."""
    model = networks_sequences.Llama(depth=depth)
    with unittest.mock.patch.object(networks, "TOKENS", tokens):
        variables = networks.weights.__wrapped__(model, 0)
        x = networks.inputs(model, 0, batch) * 0.02  # as large as embeddings are
    given = model, variables, x
    classes = bench.classes_of(*given)
    made = getattr(composites, method)(0.0)
    program = bench.Program(bench.relevance_of(made, classes), *given)
    gradient = bench.Program(bench.gradient_of(classes), *given)
    if not modules:
        modules += [plain_llama(), patched_llama(method)]
    plain, changed = (as_torch(module, model, variables) for module in modules)
    input_, rows = torch.tensor(np.asarray(x)), torch.arange(batch)

    def slope(net, times):
        x = input_.clone().requires_grad_()
        logits = net(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, 0]
        found = torch.autograd.grad(logits[rows, torch.tensor(classes).long()].sum(), x)[0]
        return found * input_ if times else found

    runs = [program.run, gradient.run, lambda: slope(changed, True), lambda: slope(plain, False)]
    ours, own, theirs, torchs = bench.in_turns(runs, repeats)
    return {
        "layers": depth,
        "batch": batch,
        "tokens": tokens,
        "method": method,
        "seconds": ours,
        "LXT over lrpjax": theirs / ours,
        "torch's gradient over jax.grad": torchs / own,
        "lrpjax over jax.grad": ours / own,
        "LXT over torch's gradient": theirs / torchs,
        "dots over jax.grad": program.dots / gradient.dots,
        "memory over jax.grad": program.memory / gradient.memory,
        "difference": far(program.run(), slope(changed, True).numpy()),
        "difference of gradients": far(gradient.run(), slope(plain, False).numpy()),
    }


# ------------------------------------------------------------------------------------------------ images


def concept(size, number, repeats):
    """Heatmaps of single channels of VGG-16's seventh convolution, all at once, by zennit-crp and by `lrpjax.concepts`."""
    without_torchvision()
    import peers
    from crp.attribution import CondAttribution
    from zennit import composites as zennit_composites

    pair = peers.Pair("vgg16", size, 1)
    layers = [i for i, m in enumerate(pair.net.features) if isinstance(m, torch.nn.Conv2d)]
    channels = range(number)
    conditions = [{f"features.{layers[6]}": [c], "y": [int(pair.classes[0])]} for c in channels]
    attribute, theirs = CondAttribution(pair.net), zennit_composites.EpsilonPlus()

    def crp():
        return attribute(pair.input.clone().requires_grad_(), conditions, theirs).heatmap

    made = bench.COMPOSITES["epsilon_plus"]

    def ours(f):
        one = lambda channel: (
            lambda x: concepts.relevance(f, made, {"Conv_6": channel}, target=pair.classes)(x)
        )
        return lambda x: jax.vmap(lambda channel: one(channel)(x))(jnp.asarray(channels)).sum((1, -1))

    program = bench.Program(ours, *pair.given)
    whole = pair.relevance(made)
    own, peer, one = bench.in_turns([program.run, crp, whole.run], repeats)
    return {
        "channels": number,
        "size": size,
        "seconds": own,
        "zennit-crp over lrpjax": peer / own,
        "over one relevance": own / one,
        "dots over one relevance": program.dots / whole.dots,
        "difference": far(program.run(), crp().numpy()),
    }


def metric(size, batch, subsets, repeats):
    """Faithfulness correlation of the same relevance for the same sets of pixels, by Quantus and by `lrpjax.metrics`."""
    without_torchvision()
    import peers
    import quantus

    pair = peers.Pair("vgg16", size, batch)
    x = pair.given[2]
    R = np.asarray(pair.relevance(bench.COMPOSITES["epsilon_plus"]).run())
    first = lambda a: np.asarray(a).transpose(0, 3, 1, 2).copy()
    count = min(224, x[0].size // 4)
    score = quantus.FaithfulnessCorrelation(
        nr_runs=subsets,
        subset_size=count,
        perturb_baseline=0.0,
        return_aggregate=False,
        disable_warnings=True,
    )

    def theirs():
        np.random.seed(0)
        return score(
            pair.net, first(x), pair.classes, first(R), channel_first=True, device="cpu", batch_size=batch
        )

    np.random.seed(0)
    draw = lambda: np.stack([np.random.choice(x[0].size, count, replace=False) for _ in range(batch)])
    places = np.unravel_index(np.stack([draw() for _ in range(subsets)]), first(x).shape[1:])
    chosen = np.ravel_multi_index((places[1], places[2], places[0]), x.shape[1:])
    f = functools.partial(pair.given[0].apply, pair.given[1])
    given = {"target": pair.classes, "fill": 0.0, "batch": 4}
    ours = lambda: metrics.faithfulness_correlation(f, x, R, chosen, **given)
    own, peer = bench.in_turns([ours, theirs], repeats)
    return {
        "metric": "faithfulness correlation",
        "size": size,
        "batch": batch,
        "sets": subsets,
        "seconds": own,
        "Quantus over lrpjax": peer / own,
        "difference": float(np.abs(np.asarray(ours()) - np.asarray(theirs())).max()),
    }


def layers(quick, repeats):
    """Rows of peers.py: zennit and captum."""
    without_torchvision()
    import peers

    names, size = (["tiny_vgg"], 32) if quick else (["vgg16", "resnet50"], 224)
    for row in peers.compare(names, size, [1], 1, repeats):
        yield {column: row[column] for column in peers.COLUMNS}


# ------------------------------------------------------------------------------------------------------------ page


def llamas(args):
    cases = [(4, 1, 128), (4, 4, 128), (4, 1, 512), (4, 4, 512)]
    for depth, batch, tokens in [(1, 1, 16)] if args.quick else cases:
        yield llama(depth, batch, tokens, args.method, args.repeats)


def concepts_of(args):
    for number in (2,) if args.quick else (1, 8, 32):
        yield concept(32 if args.quick else 64, number, args.repeats)


def metrics_of(args):
    for batch, subsets in ((1, 2),) if args.quick else ((1, 20), (8, 20)):
        yield metric(32 if args.quick else 64, batch, subsets, args.repeats)


PARTS = {
    "llama": ("LXT: Llama, 512 wide, explained from its embedded tokens", llamas),
    "concepts": ("zennit-crp: heatmaps of channels of VGG-16", concepts_of),
    "metric": ("Quantus: a metric on VGG-16", metrics_of),
    "layers": ("zennit and captum", lambda args: layers(args.quick, args.repeats)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--method", default="attnlrp", choices=["attnlrp", "cp_lrp"], help="of LXT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the page to this file")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before JAX starts its threads
    torch.set_num_threads(args.threads)
    packages = ("torch", "transformers", "lxt", "zennit", "captum", "zennit-crp", "Quantus")
    page = [
        f"Peers, as `tests/benchmarks/peers_more.py` measures them: {bench.settings(*packages)}.\n"
        "Random weights, float32, each row in turns in one process on the same weights and inputs. Above 1 `over lrpjax` says that the peer takes longer. "
        "Differences are\nrelative to the largest value. Seconds hold for this machine at this time; read the ratios."
    ]
    print(page[0], flush=True)
    for part in args.parts:
        title, rows = PARTS[part]
        found = []
        for row in rows(args):
            found.append(row)
            print(row, flush=True)
        page.append(f"## {title}\n\n{bench.table(list(found[0]), found)}")
        if args.markdown:
            args.markdown.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
