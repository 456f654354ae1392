"""ONNX files through the converters of others: `python tests/world/onnx_models.py FILES [--markdown FILE]`.

For each file and each converter: does it load, with its opset raised to 13 where it is lower, its shapes fixed and its
constants folded by onnxslim, or else as it is; what the forward value differs from onnxruntime's, of its largest value;
does it trace under `jax.jit`; and does lrpjax explain its first input that holds floating-point numbers, with relevance
that is finite and not zero everywhere. A perceptron and a convolutional network that this script writes itself are looked
at before the files. Each file and converter runs in a process of its own. Wants an environment of its own:

    pip install jax==0.10.2 torch==2.14.1 torchax==0.0.13 onnx==1.23.2 onnxruntime==1.32.0 onnxslim==0.1.98 .
    pip install jaxonnxruntime==0.3.0 absl-py onnx2torch==1.5.15 onnx2pytorch==0.6.0 onnx2fx==0.0.1

The files of the table are from wheels; `pip download --no-deps` gets them, and `unzip` takes the files out:

    rapidocr==3.10.0 rapidocr-onnxruntime==1.4.4 magika==1.0.3 silero-vad==6.2.3 faster-whisper==1.2.1
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")  # the ends of slices may be the largest int64
# Small programs, run once: compiling is what takes the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
warnings.filterwarnings("ignore")  # of the converters, which torch has moved on from

# ruff: noqa: E402
import numpy as np
import onnx
import onnx.version_converter

CONVERTERS = ("jaxonnxruntime", "onnx2torch", "onnx2pytorch", "onnx2fx")

OPSET = 13
"""jaxonnxruntime lacks earlier versions of some operations."""

SHAPES = {
    "cls": [(1, 3, 48, 192)],
    "rec": [(1, 3, 48, 160)],
    "det": [(1, 3, 64, 64)],
    "magika": [(1, 2048)],
    "silero": [(1, 576)],
    "vad": [(1, 576)],
}
"""Shapes for inputs that have none in the file, by a part of the file's path."""


def networks(folder: str) -> list[str]:
    """A perceptron and a convolutional network, as torch writes them."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    cnn = (conv, nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    made = {
        "mlp": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (1, 6)),
        "cnn": (cnn, (1, 3, 8, 8)),
    }
    paths = []
    for name, (module, shape) in made.items():
        module = (module if name == "mlp" else nn.Sequential(*module)).eval()
        paths.append(f"{folder}/{name}.onnx")
        torch.onnx.export(module, (torch.randn(shape),), paths[-1], dynamo=False, opset_version=17)
    return paths


def examples(model, path: str) -> dict[str, np.ndarray]:
    """An example for each input of a model: noise, zeros for states, and 16000 for a sampling rate."""
    given = {v.name for v in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in given]
    known = next((shapes for part, shapes in SHAPES.items() if part in path), [])
    rng, made = np.random.default_rng(0), {}
    for i, value in enumerate(inputs):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if i < len(known):
            dims = known[i]
        elif any(d <= 0 for d in dims):
            dims = [d if d > 0 else 1 for d in dims]
        if value.name == "sr":
            made[value.name] = np.asarray(16000, dtype)
        elif np.issubdtype(dtype, np.integer):
            made[value.name] = rng.integers(1, 200, dims).astype(dtype)
        else:
            made[value.name] = np.asarray(rng.normal(size=dims) if i == 0 else np.zeros(dims), dtype)
    return made


def convert(converter: str, model, inputs: dict):
    """A function of the arrays of `inputs`, in their order, and its parameters: f(params, *arrays) gives the first output."""
    if converter == "jaxonnxruntime":
        from jaxonnxruntime import call_onnx
        from jaxonnxruntime import config_class as settings

        # Its own setting for shapes that come from nodes and are fixed nevertheless.
        settings.config.update("jaxort_only_allow_initializers_as_static_args", False)
        run, params = call_onnx.call_onnx_model(model, list(inputs.values()))
        return lambda params, *arrays: run(params, list(arrays))[0], params
    import torch

    import lrpjax.torch

    if converter == "onnx2torch":
        import onnx2torch

        module = onnx2torch.convert(model)
    elif converter == "onnx2pytorch":
        import onnx2pytorch

        module = onnx2pytorch.ConvertModel(model)
    else:
        import onnx2fx

        module = onnx2fx.convert(model)
    tensors = [torch.from_numpy(a) for a in inputs.values()]
    first = lambda out: (
        out if isinstance(out, torch.Tensor) else next(iter(out.values() if isinstance(out, dict) else out))
    )
    return lrpjax.torch.function(module.eval(), *tensors, output=first)


def examine(path: str, converter: str, simplify: bool) -> dict:
    """What holds of a file and a converter: how far it came, and the error that ended it."""
    import jax
    import onnxruntime

    import lrpjax
    from lrpjax import composites

    model = onnx.load(path)
    inputs = examples(model, path)
    expected = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    found: dict = {"loads": False}
    try:
        if simplify:
            import onnxslim

            if max(o.version for o in model.opset_import if not o.domain) < OPSET:
                model = onnx.version_converter.convert_version(model, OPSET)
            shapes = [f"{name}:{','.join(map(str, a.shape))}" for name, a in inputs.items() if a.ndim]
            model = onnxslim.slim(model, input_shapes=shapes)
            kept = {v.name for v in model.graph.input}
            inputs = {name: a for name, a in inputs.items() if name in kept}
        f = functools.partial(
            *convert(converter, model, inputs)
        )  # shapes may be among the params: they stay numbers
        arrays = list(inputs.values())
        y = np.asarray(f(*arrays))
        found["loads"] = True
        found["difference"] = float(np.abs(y - expected).max() / np.abs(expected).max())
        floats = [i for i, a in enumerate(arrays) if a.dtype == np.float32]
        traced = floats or list(range(len(arrays)))  # a sampling rate is fixed: what is run may depend on it

        def g(*given):
            return f(*(given[traced.index(i)] if i in traced else a for i, a in enumerate(arrays)))

        given = [arrays[i] for i in traced]
        y = np.asarray(jax.jit(g)(*given))
        found["jit"] = float(np.abs(y - expected).max() / np.abs(expected).max())
        if not floats:
            found["error"] = "its inputs are whole numbers: relevance can only stop at an inner value"
            return found
        explain = lrpjax.relevance(g, composites.epsilon_plus(), target="max")
        R = np.asarray(jax.jit(explain)(*given))
        found["explained"] = bool(np.isfinite(R).all() and R.any())
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        found["error"] = f"{type(error).__name__}: {lines[0]}"[:160]
    return found


def cell(found: dict) -> str:
    """What a table says of it."""
    if found.get("explained"):
        said = f"explained, {found['difference']:.0e}"
    elif "jit" in found:
        said = f"traced, {found['difference']:.0e}; {found.get('error', 'relevance is zero or not finite')}"
    elif found["loads"]:
        said = f"runs, {found['difference']:.0e}, no `jit`: {found['error']}"
    else:
        said = found["error"]
    return (said + ("" if found["simplified"] or not found["loads"] else " (as it is)")).replace("|", "/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="ONNX files")
    parser.add_argument("--converters", nargs="*", default=CONVERTERS)
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file as well")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a converter, and whether to simplify
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.files[0], options.one[0], options.one[1] == "True")))
        return 0
    lines = [f"| file | {' | '.join(options.converters)} |", f"| --- |{' --- |' * len(options.converters)}"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in [*networks(folder), *options.files]:
            cells = []
            for converter in options.converters:
                found = alone(path, converter, True)
                if not found.get("explained"):  # as it is, it may come further
                    found = max(found, alone(path, converter, False), key=came)
                cells.append(cell(found))
            name = (
                "/".join(pathlib.Path(path).parts[-2:])
                if path in options.files
                else f"{pathlib.Path(path).stem} (own)"
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.markdown:
        packages = (
            "lrpjax",
            "jax",
            "torch",
            "torchax",
            "onnx",
            "onnxruntime",
            "onnxslim",
            *options.converters,
        )
        about = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        pathlib.Path(options.markdown).write_text(
            f"{datetime.date.today()}, {about}, CPU.\n\n" + "\n".join(lines) + "\n"
        )
    return 0


def came(found: dict) -> int:
    """How far a file came: not at all, it runs, it is traced, it is explained."""
    return found["loads"] + ("jit" in found) + found.get("explained", False)


def alone(path: str, converter: str, simplify: bool) -> dict:
    """`examine` in a process of its own: some converters change torch, or end the process."""
    command = [sys.executable, __file__, path, "--one", converter, str(simplify)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"loads": False, "error": "takes longer than three minutes"}
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        found = {"loads": False, "error": f"ends the process ({last[:100]})"}
    return {**found, "simplified": simplify}


if __name__ == "__main__":
    sys.exit(main())
