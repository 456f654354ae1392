"""Other people's models, as they are, with random weights: `python tests/world/run.py [NAMES OR GLOBS] [--list] [--json FILE] [...]`.

For each model: `plan`, `relevance` under three composites (finite, bounded, conserved where no bias is), the value left
alone, jit against no jit, input × gradient equal to `jax.grad`'s, audits that close, no warning that the model does not
expect, and the cost against the gradient's. Not part of the default tests: the collections want an environment of their
own:

    pip install . "jax==0.10.2" dm-haiku equinox flaim equimo keras jraph memax penzai flowjax diffrax e3nn-jax \\
        esm2quinox recurrentgemma flaxmodels qwix aqtp

Files whose collections are missing are left out, and named: so are Hugging Face's Flax classes, which ended with
transformers 4, where that is not installed (its PyTorch classes are in torch_models.py). For the NNX zoo, give a checkout of github.com/jax-ml/bonsai in PYTHONPATH (beside tqdm, safetensors, etils). Nothing is downloaded. Columns:
equations of the program (loops counted once), units of the plan, units that no rule of the literature is about, and for
the ε composite against the gradient: CPU time of tracing and compiling, and the smallest of five run times taken in
turns. Below them, how many units of each kind there are, and what was warned of.
"""

import argparse
import fnmatch
import importlib
import json
import os
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")  # for models that are sharded
warnings.filterwarnings("ignore")  # of the collections, which JAX has moved on from

FILES = (
    "shims",
    "haiku_models",
    "hf_models",
    "vision_models",
    "sequence_models",
    "linen_models",
    "nnx_models",
    "modern_models",
    "quantised_models",
    "solver_models",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], help="names or globs of models; all without")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of every failure")
    parser.add_argument("--no-eager", action="store_true", help="leave the runs without jit out")
    parser.add_argument("--no-times", action="store_true", help="leave the measurements of cost out")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file as well")
    options = parser.parse_args()
    import check

    for file in FILES:
        try:
            importlib.import_module(file)
        except ModuleNotFoundError as error:  # its collection has an environment of its own
            print(f"{file} is left out: {error}", flush=True)
    names = list(dict.fromkeys(n for g in options.names for n in check.MODELS if fnmatch.fnmatch(n, g)))
    if options.list:
        print("\n".join(names))
        return 0
    print(f"{'model':32} equations units  trace compile   run  unrecognised", flush=True)
    rows = []
    for name in names:
        row = check.check(
            name, eager=not options.no_eager, times=not options.no_times, verbose=options.verbose
        )
        rows.append(row)
        costs = " ".join(f"{cost:6.2f}" for cost in (row.trace, row.compile, row.run))
        strange = ", ".join(f"{n} {kind}" for kind, n in row.unrecognised.items()) or "-"
        print(f"{name:32} {row.equations:9d} {row.units:5d} {costs}  {strange}", flush=True)
        print("   ", ", ".join(f"{n} {kind}" for kind, n in row.kinds.most_common()), flush=True)
        for text, n in row.said.items():
            print(f"    says {n}×: {text}", flush=True)
        for failure in row.failures:
            print(f"    FAILED {failure}", flush=True)
    passed = sum(not row.failures for row in rows)
    print(f"{passed} of {len(rows)} models pass")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([vars(row) for row in rows], file, indent=1)
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
