"""What PyTorch modules cost: `python tests/benchmarks/bench_torch.py [resnet50 vgg16 llama bert] [--batches 1 8] [--threads 1] [--parts …] [--markdown FILE]`.

Three tables, each taken in turns in one process for each module: `cost`, what tracing, compiling and running takes, and flops as XLA counts them, next
to the same module through torchax alone and to `jax.grad`; `memory`, where the parameters are, in fresh processes; `peers`, the throughput next to
torch's gradient, zennit and LXT on the same module, weights and inputs. LXT changes classes of transformers for good: the modules that lrpjax and
torch's gradient see are timed and compiled before that, and a second process serves its second method. What can be measured depends on
what is installed, since LXT does not import beside transformers 5:

    pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0 torchax==0.0.13 flax==0.12.8 .
    pip install --no-deps zennit==0.5.1

    pip install torch==2.13.0 transformers==4.57.6 torchax==0.0.13 flax==0.12.8 .
    pip install --no-deps zennit==0.5.1 lxt==2.1

The second is for `llama bert --parts peers`. Nothing is downloaded: all weights are random.
"""

import argparse
import copy
import datetime
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
import types
import unittest.mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import bench
import jax
import numpy as np
import torch

import lrpjax
import lrpjax.torch
from lrpjax import composites

TOKENS = 128
MODELS = ("resnet50", "vgg16", "llama", "bert")
TEXT = ("llama", "bert")
METHODS = {"llama": ("attnlrp", "cp_lrp"), "bert": ("attnlrp",)}
HOMES = {name: f"transformers.models.{name}.modeling_{name}" for name in TEXT}
SIZES = {
    "llama": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "bert": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    },
}

# -------------------------------------------------------------------------------------------------------- modules


class Text(torch.nn.Module):
    """A model of transformers as a function of its embedded tokens: the logits of the last position, or of the classes."""

    def __init__(self, name: str):
        super().__init__()
        home = importlib.import_module(HOMES[name])
        config = {"llama": "LlamaConfig", "bert": "BertConfig"}[name]
        kind = {"llama": "LlamaForCausalLM", "bert": "BertForSequenceClassification"}[name]
        self.model = getattr(home, kind)(
            getattr(importlib.import_module("transformers"), config)(**SIZES[name])
        )
        self.options = {"use_cache": False, "logits_to_keep": 1} if name == "llama" else {}
        # That of transformers 4 looks at the values of the mask, so that it has to be fixed.
        self.mask = torch.ones(1, TOKENS, dtype=torch.long) if name == "bert" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = None if self.mask is None else self.mask.expand(len(x), -1)
        y = self.model(inputs_embeds=x, attention_mask=mask, **self.options).logits
        return y.reshape(len(x), -1)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = (
        Text(name)
        if name in TEXT
        else importlib.import_module("torchvision").models.get_model(name, weights=None)
    )
    return made.eval().requires_grad_(False)


def example(name: str, batch: int) -> torch.Tensor:
    torch.manual_seed(1)
    if name in TEXT:
        return torch.randn(batch, TOKENS, SIZES[name]["hidden_size"]) * 0.02  # as large as embeddings are
    return torch.randn(batch, 3, 224, 224)


def composite_of(name: str, method: str) -> lrpjax.Composite:
    """With an ε of 0 for the models that LXT explains, which has none."""
    return getattr(composites, method)(*((0.0,) if name in TEXT else ()))


class Subject:
    """One module as functions of JAX, with a batch and its classes."""

    def __init__(self, name: str, batch: int):
        self.name, self.module, self.input = name, build(name), example(name, batch)
        f, self.params = lrpjax.torch.function(self.module, self.input)
        self.model, self.x = types.SimpleNamespace(apply=f), jax.numpy.asarray(self.input.numpy())
        self.classes = bench.classes_of(self.model, self.params, self.x)
        self.target = torch.tensor(np.asarray(self.classes)).long()

    def program(self, make) -> bench.Program:
        return bench.Program(make, self.model, self.params, self.x)

    def relevance(self, method: str) -> bench.Program:
        return self.program(bench.relevance_of(composite_of(self.name, method), self.classes))

    def gradient(self) -> bench.Program:
        return self.program(bench.gradient_of(self.classes))

    def torch_gradient(self, module: torch.nn.Module) -> torch.Tensor:
        x = self.input.clone().requires_grad_()
        return torch.autograd.grad(module(x).gather(1, self.target[:, None]).sum(), x)[0]

    def torch_relevance(self, module: torch.nn.Module) -> torch.Tensor:
        """By a module whose backward pass a peer has exchanged: zennit wants the output's relevance, not its cotangent."""
        x = self.input.clone().requires_grad_()
        y = module(x)
        return torch.autograd.grad(y, x, y.detach() * torch.nn.functional.one_hot(self.target, y.shape[1]))[0]


# ----------------------------------------------------------------------------------------------------------- cost


def torchax_alone(module: torch.nn.Module) -> tuple[types.SimpleNamespace, dict]:
    """The module as torchax makes a function of it, and its parameters."""
    import torchax

    states, f = torchax.extract_jax(module)
    return types.SimpleNamespace(apply=lambda states, x: f(states, (x,))), states


def again(make, model: types.SimpleNamespace, params: dict, x: jax.Array) -> float:
    """CPU time of tracing once more what was traced before, as for an input of another shape; the smallest of three."""
    best = float("inf")
    for _ in range(3):
        gc.collect()
        start = time.process_time()
        jax.jit(lambda params, x: make(functools.partial(model.apply, params))(x)).lower(params, x)
        best = min(best, time.process_time() - start)
    return best


def cost(name: str, batch: int, repeats: int):
    """Rows of ratios. The programs are made in turns, each from empty caches, and the first turn is not counted.

    `trace` is with empty caches, as in a fresh process, and `again` with full ones.
    """
    subject = Subject(name, batch)
    alone, states = torchax_alone(subject.module)
    methods = METHODS[name] if name in TEXT else ("epsilon", "epsilon_plus")
    ours, theirs = (subject.model, subject.params, subject.x), (alone, states, subject.x)
    same, gradient = (lambda f: f), bench.gradient_of(subject.classes)
    makes = {
        "torchax forward": (same, *theirs),
        "lrpjax forward": (same, *ours),
        "torchax gradient": (gradient, *theirs),
        "lrpjax gradient": (gradient, *ours),
    }
    for method in methods:
        makes[method] = bench.relevance_of(composite_of(name, method), subject.classes), *ours
    best: dict[str, dict] = {}
    for turn in range(3):
        for key, given in makes.items():
            program = bench.Program(*given)
            row = {kind: getattr(program, kind) for kind in bench.KINDS} | {"again": again(*given)}
            if turn == 1:
                best[key] = row | {"run": program.run}
            elif turn > 1:
                best[key] |= {kind: min(best[key][kind], row[kind]) for kind in ("trace", "compile", "again")}
    clocks = bench.in_turns([row["run"] for row in best.values()], repeats)
    best = {key: row | {"clock": clock} for (key, row), clock in zip(best.items(), clocks, strict=True)}
    pairs = [("lrpjax forward", "torchax forward"), ("lrpjax gradient", "torchax gradient")]
    pairs += [(method, other) for method in methods for other in ("lrpjax gradient", "torchax forward")]
    for one, other in pairs:
        a, b = best[one], best[other]
        yield (
            {"module": name, "batch": batch, "what": one, "over": other}
            | {kind: a[kind] / b[kind] for kind in ("trace", "again", "compile", "flops", "memory", "clock")}
            | {"trace seconds": a["trace"], "compile seconds": a["compile"], "run seconds": a["clock"]}
        )


# --------------------------------------------------------------------------------------------------------- memory


def resident() -> float:
    """MB that this process holds."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(name: str) -> dict:
    """One row; to be called in a fresh process."""
    # What is loaded once only, is loaded now.
    small = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    f, params = lrpjax.torch.function(small, torch.ones(1, 2))
    jax.block_until_ready(jax.jit(lrpjax.relevance(f))(params, jax.numpy.ones((1, 2))))
    module, x = build(name), example(name, 1)
    before = resident()
    f, params = lrpjax.torch.function(module, x)
    after = resident()
    tensors = module.state_dict(keep_vars=True) | dict(module.named_buffers())
    floating = [key for key in params if tensors[key].is_floating_point()]
    shared = sum(params[key].unsafe_buffer_pointer() == tensors[key].data_ptr() for key in floating)
    method = METHODS[name][0] if name in TEXT else "epsilon_plus"
    given = params, jax.numpy.asarray(x.numpy())
    lowered = jax.jit(lrpjax.relevance(f, composite_of(name, method), target=0)).lower(*given)
    written = len(lowered.as_text())
    compiled = lowered.compile()
    held = compiled.memory_analysis()
    del lowered
    built = resident()
    for _ in range(3):
        jax.block_until_ready(compiled(*given))
    size = sum(a.nbytes for a in params.values())
    return {
        "module": name,
        "composite": method,
        "params MB": size / 1e6,
        "shared": f"{shared} of {len(floating)}",
        "arguments MB": held.argument_size_in_bytes / 1e6,
        "params and input MB": (size + given[1].nbytes) / 1e6,
        "program as text MB": written / 1e6,
        "temporary MB": held.temp_size_in_bytes / 1e6,
        "function MB": after - before,
        "compiled MB": built - after,
        "called MB": resident() - built,
    }


# ---------------------------------------------------------------------------------------------------------- peers


def zennit(module: torch.nn.Module, kind: str):
    """A copy of the module with zennit's EpsilonPlus on it, for good."""
    made, canonizers = (importlib.import_module(f"zennit.{part}") for part in ("composites", "torchvision"))
    module = copy.deepcopy(module)
    for norm in module.modules():
        # zennit 0.5.1 applies the ε of a BatchNorm a second time after merging it; the network is the same with none.
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.running_var += norm.eps
            norm.eps = 0.0
    canonizer = {"vgg16": canonizers.VGGCanonizer, "resnet50": canonizers.ResNetCanonizer}[kind]
    made.EpsilonPlus(canonizers=[canonizer()]).register(module)
    return module


def lxt(module: torch.nn.Module, name: str, method: str):
    """The same module once more, built after LXT has changed its classes, which is for good."""
    for end in (
        "",
        ".models",
        ".models.vision_transformer",
    ):  # a part of LXT that is not needed is about torchvision
        sys.modules.setdefault(f"torchvision{end}", unittest.mock.MagicMock())
    efficient = importlib.import_module("lxt.efficient")
    patches = importlib.import_module(f"lxt.efficient.models.{name}")
    maps = patches.cp_LRP if method == "cp_lrp" else patches.attnLRP
    efficient.monkey_patch(importlib.import_module(HOMES[name]), maps)
    twin = build(name)
    twin.load_state_dict(module.state_dict())
    return twin


def peer(name: str, batch: int, method: str, repeats: int) -> dict:
    """One row. That torch's gradient comes first lets LXT change torch's classes afterwards."""
    subject = Subject(name, batch)
    program, gradient = subject.relevance(method), subject.gradient()
    plain = lambda: subject.torch_gradient(subject.module)
    slope = np.asarray(plain())
    gradients = bench.in_turns([gradient.run, plain, program.run], repeats)
    if name in TEXT:
        module = lxt(subject.module, name, method)
        run = lambda: subject.torch_gradient(module)
        theirs = (run() * subject.input).numpy()  # LXT's backward pass gives R / x
    else:
        module = zennit(subject.module, name)
        run = lambda: subject.torch_relevance(module)
        theirs = run().numpy()
    ours, peers = bench.in_turns([program.run, run], repeats)
    far = lambda a, b: float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())
    return {
        "module": name,
        "batch": batch,
        "peer": f"{'LXT' if name in TEXT else 'zennit'} {method}",
        "lrpjax seconds": ours,
        "peer seconds": peers,
        "throughput": peers / ours,
        "gradient throughput": gradients[1] / gradients[0],
        "over torch gradient": gradients[2] / gradients[1],
        "over own gradient": gradients[2] / gradients[0],
        "peer over torch gradient": peers / gradients[1],
        "difference": far(program.run(), theirs),
        "gradient difference": far(gradient.run(), slope),
    }


# ----------------------------------------------------------------------------------------------------------- main

PARTS = {
    "cost": "What tracing, compiling and running takes, as ratios of `what` to `over`",
    "memory": "Where the parameters are, in fresh processes",
    "peers": "Throughput next to the peers, in turns in one process",
}


def cases(part: str, args: argparse.Namespace):
    """(module, batch, method) of the processes of one part."""
    for name in args.modules:
        if part != "peers":
            yield name, args.batches[0], ""
            continue
        for batch in args.batches:
            for method in METHODS.get(name, ("epsilon_plus",)):
                yield name, batch, method


def rows(part: str, name: str, batch: int, method: str, repeats: int) -> list[dict]:
    if part == "cost":
        return list(cost(name, batch, repeats))
    return [memory(name) if part == "memory" else peer(name, batch, method, repeats)]


def table(found: list[dict]) -> str:
    lines = [
        list(found[0]),
        ["---"] * len(found[0]),
        *([bench.text(v) for v in row.values()] for row in found),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings(threads: int) -> str:
    versions = ("jax", "torch", "torchax", "transformers", "torchvision", "zennit", "lxt")
    found = []
    for name in versions:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    clock = "CPU time" if threads == 1 else "wall-clock time"
    return f"{datetime.date.today()}, {bench.processor()}, {threads} threads, {clock}, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--double", action="store_true", help="float64, for differences that rounding does not hide"
    )
    parser.add_argument("--markdown", type=pathlib.Path, help="append the tables to this file as well")
    parser.add_argument("--case", help="only this one, printed as JSON: part, module, batch and method")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before JAX starts its threads
    torch.set_num_threads(args.threads)
    if args.double:
        jax.config.update("jax_enable_x64", True)
        torch.set_default_dtype(torch.float64)
    if args.case:
        part, name, batch, method = args.case.split(",")
        print(json.dumps(rows(part, name, int(batch), method, args.repeats)))
        return
    said = [settings(args.threads)]
    print(said[0], flush=True)
    for part in args.parts:
        found = []
        for case in cases(part, args):
            command = [sys.executable, __file__, "--case", ",".join(map(str, (part, *case)))]
            command += ["--threads", str(args.threads), "--repeats", str(args.repeats)]
            command += ["--double"] * args.double
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                print(f"{part} {case}: {run.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found += json.loads(run.stdout.splitlines()[-1])
            print(found[-1], flush=True)
        if found:
            said.append(f"{PARTS[part]}:\n\n{table(found)}")
            print(f"\n{said[-1]}\n", flush=True)
    if args.markdown:
        with args.markdown.open("a") as file:
            file.write("\n\n".join(said) + "\n\n")


if __name__ == "__main__":
    main()
