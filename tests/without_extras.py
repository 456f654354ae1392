"""What an installation without extras does. `.ci/run package` runs it with the wheel in an environment of its own:

    python -W error tests/without_extras.py

Whatever needs more says which extra brings it, before it does any work; all else works. This is a script and not a test of
pytest's, because pytest is not in that environment, and what it brings along must not be either.
"""

import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lrpjax
from lrpjax import bow, circuits, composites, demo, explore, loading, neuralised, pretrained, report, viz
from lrpjax.report import pages

EXTRAS = set(metadata.metadata("lrpjax").get_all("Provides-Extra"))
# From extras alone: jax, flax, optax, chex and rich do not bring them.
FOREIGN = (
    "matplotlib",
    "PIL",
    "sklearn",
    "skimage",
    "networkx",
    "torch",
    "keras",
    "onnx",
    "safetensors",
    "tokenizers",
    "h5py",
)
R = jnp.ones((2, 4, 4))
W = jnp.array([[1.0, -1.0], [2.0, 1.0], [0.0, 1.0]])
MODEL = """
import jax.numpy as jnp

def build():
    return lambda w, x: jnp.maximum(x.reshape(len(x), -1), 0.0) @ w, jnp.ones((12, 2))
"""


def f(x):
    return jnp.maximum(x @ W, 0.0)


def to_networkx():
    x = jnp.ones(3)
    g = lambda x: lrpjax.tag(f(x), "hidden").sum()
    return circuits.graph(lrpjax.linearise(g, composites.epsilon(), x, at=["hidden"])).to_networkx()


def store():
    explain = jax.jit(lrpjax.relevance(f))
    for _ in lrpjax.explain_batches(explain, [np.ones((2, 3), np.float32)], store="store", progress=False):
        pass
    return lrpjax.open_store("store")


# {what is called: (the extra that its error names, the call)}
NEED_MORE = {
    "viz.heatmap": ("viz", lambda: viz.heatmap(R)),
    "viz.overlay": ("viz", lambda: viz.overlay(R, np.ones((2, 4, 4, 3)))),
    "viz.sheet": ("viz", lambda: viz.sheet([np.ones((2, 4, 4, 3))], path="never.png")),
    "viz.curves": ("viz", lambda: viz.curves(np.arange(3), {"a": np.ones(3)}, path="never.png")),
    "viz.tokens": ("viz", lambda: viz.tokens(["a", "b"], np.ones(2))),
    "viz.tree": ("viz", lambda: viz.tree({"w": W})),  # flax brings treescope along
    "a picture": ("viz", lambda: loading.Inputs(["a.png"])),
    "bow.vocabulary": ("bow", lambda: bow.vocabulary(jnp.ones((8, 2)), 2)),
    "bow.from_svc": ("bow", lambda: bow.from_svc(object(), W)),
    "demo.load_digits": ("demo", demo.load_digits),
    "Graph.to_networkx": ("circuits", to_networkx),
    "lrpjax.onnx": ("onnx", lambda: lrpjax.onnx),
    "lrpjax.torch": ("torch", lambda: lrpjax.torch),
    "keras.function": ("keras", lambda: lrpjax.keras.function(object())),
    "pretrained.lite0": ("photo", pretrained.lite0),
    "pretrained.photographs": ("photo", pretrained.photographs),
    "pretrained.photograph": ("photo", lambda: pretrained.photograph("cat.png")),
    "pretrained.minilm": ("text", pretrained.minilm),
    "explore.spectral_analysis": ("explore", lambda: explore.spectral_analysis(np.ones((9, 3)), groups=None)),
    "report.write": ("report", lambda: report.write(store(), "never.html")),
    "Store.save, h5": ("exchange", lambda: store().save("never.h5")),
    "Store.save, safetensors": ("text", lambda: store().save("never.safetensors")),
}


def check_errors() -> None:
    Path("a.png").write_bytes(b"")
    for name, (extra, call) in NEED_MORE.items():
        try:
            call()
        except ImportError as error:
            named = re.findall(r'pip install "lrpjax\[(\w+)\]"', str(error))
            assert named == [extra] and extra in EXTRAS, f"{name}: {error}"
        else:
            raise AssertionError(f"{name} needs nothing from the extra {extra}")


def check_modules() -> None:
    """Every module can be imported, but for those that are bridges to another framework."""
    refused = {}
    for module in pkgutil.walk_packages(lrpjax.__path__, "lrpjax."):
        if module.name.split(".")[-1] == "__main__":
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            refused[module.name] = str(error)
    assert set(refused) == {"lrpjax.onnx", "lrpjax.torch"}, refused


def lrpjax_command(*arguments: str, code: int = 0) -> str:
    """What `lrpjax` prints, in both streams."""
    executable = str(Path(sys.executable).with_name("lrpjax"))
    done = subprocess.run([executable, *arguments], capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"lrpjax {' '.join(arguments)} gave {done.returncode}: {said}"
    assert "Traceback" not in said, said
    return said


def check_command_line() -> None:
    commands = re.findall(r"(?m)^    (\w+) ", lrpjax_command("--help").split("options:")[0])
    assert {"demo", "explain", "plan", "show", "save", "explore", "report", "dossier", "doctor"} <= set(
        commands
    ), commands
    for command in commands:
        assert "usage" in lrpjax_command(command, "--help")
    assert lrpjax_command("--version").split()[-1] == metadata.version("lrpjax") == lrpjax.__version__

    assert lrpjax_command("doctor").count("PASS") == 4
    assert 'pip install "lrpjax[demo]"' in lrpjax_command("demo", code=2)
    assert 'pip install "lrpjax[photo]"' in lrpjax_command("demo", "--photo", code=2)

    # A data set of arrays needs nothing more; pictures of it do, and that is said before the work.
    Path("model.py").write_text(MODEL)
    np.save("inputs.npy", np.ones((5, 4, 3, 1), np.float32))
    explain = ["explain", "--model", "model.py:build", "--inputs", "inputs.npy", "--batch", "2"]
    lrpjax_command(*explain, "--out", "results")
    shown = lrpjax_command("show", "results", code=2)  # the description, but not the picture
    assert "kept: " in shown and 'pip install "lrpjax[viz]"' in shown
    lrpjax_command("save", "results", "results.npz")
    with np.load("results.npz") as saved:
        assert saved["relevance"].shape == (5, 4, 3, 1)
    assert 'pip install "lrpjax[viz]"' in lrpjax_command(*explain, "--out", "pictures", "--png", code=2)
    assert not Path("pictures").exists()


def check_what_works() -> None:
    parts = resources.files("lrpjax.report")
    assert all(parts.joinpath(name).is_file() for name in ("page.html", "page.css", *pages.SCRIPTS))
    lrpjax.audit(f)(jnp.ones(3))
    plan = lrpjax.plan(f, jnp.ones(3))
    assert "dense" in str(plan) and "<table" in plan._repr_html_()
    assert callable(neuralised.kmeans)
    assert store()["relevance"].shape == (2, 3)


def main() -> None:
    assert "site-packages" in lrpjax.__file__, f"this is not the wheel: {lrpjax.__file__}"
    there = [name for name in FOREIGN if importlib.util.find_spec(name)]
    assert not there, f"the environment has {there}, which extras bring"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for check in (check_modules, check_errors, check_what_works, check_command_line):
            check()
            print("ok:", check.__name__)
        os.chdir("/")


if __name__ == "__main__":
    main()
