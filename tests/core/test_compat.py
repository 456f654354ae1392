"""What holds for the source rather than for a result: JAX's internals, documentation, and the differences
between versions of JAX and between the environments that it lies in."""

import ast
import doctest
import importlib
import inspect
import os
import pathlib
import pkgutil
import subprocess
import sys
import textwrap
import types
import venv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax.core import compat

PACKAGE = pathlib.Path(lrpjax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Attribute):
            yield node.attr


@pytest.mark.parametrize("file", [f for f in FILES if f.name != "compat.py"], ids=lambda f: f.stem)
def test_internals_of_jax_are_reached_for_in_one_module_only(file):
    assert not [name for name in imports(file) if name.startswith("jax._src") or name == "_src"]


# -------------------------------------------------------------------------------------------- documentation

EXPORTED = {name: thing for name, thing in vars(lrpjax).items() if not name.startswith("_")}
FUNCTIONS = {name: thing for name, thing in EXPORTED.items() if not isinstance(thing, types.ModuleType)}
MODULES = [
    m.name for m in pkgutil.walk_packages([str(PACKAGE)], "lrpjax.") if not m.name.endswith("__main__")
]


def public(module):
    """What a module itself defines under a public name."""
    return {
        f"{module.__name__}.{name}": thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", "") == module.__name__
        and (inspect.isroutine(thing) or inspect.isclass(thing))
    }


API = FUNCTIONS | public(lrpjax.rules) | public(lrpjax.composites) | public(lrpjax.select)


def test_public_names_are_those_of_the_issue():
    assert {"relevance", "value_and_relevance", "vjp", "plan", "Composite"} <= set(FUNCTIONS)
    named = "Epsilon Gamma AlphaBeta ZPlus ZBox WSquare Flat Norm Pass Gradient Stop"
    assert all(hasattr(lrpjax.rules, name) for name in named.split())
    presets = "epsilon epsilon_plus epsilon_plus_flat epsilon_alpha2_beta1 epsilon_alpha2_beta1_flat epsilon_gamma_box"
    others = "excitation_backprop deep_taylor gradient input_x_gradient deconvnet guided_backprop"
    assert all(hasattr(lrpjax.composites, name) for name in f"{presets} {others}".split())
    assert all(hasattr(lrpjax.select, name) for name in ("path", "kind", "first", "last"))


@pytest.mark.parametrize("name", API)
def test_public_names_are_documented(name):
    """A dataclass without a docstring has its signature for one."""
    text = inspect.getdoc(API[name])
    assert text and not text.startswith(f"{name.split('.')[-1]}(")


@pytest.mark.parametrize("name", [n for n, thing in FUNCTIONS.items() if inspect.isfunction(thing)])
def test_exported_functions_have_an_example_that_runs(name):
    tests = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name)
    assert sum(len(t.examples) for t in tests) > 0


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are_for(name):
    if name.startswith(("lrpjax.onnx", "lrpjax.torch")):
        pytest.importorskip(name, exc_type=ImportError)
    assert (importlib.import_module(name).__doc__ or "").strip()


# ---------------------------------------------------------------------------- what differs between versions


class Bound:
    """A primitive of a JAX whose `get_bind_params` answers in the way given."""

    multiple_results = False

    def __init__(self, answer):
        self.answer = answer

    def get_bind_params(self, params):
        return self.answer(params)

    def bind(self, *args, **params):
        return args, params


@pytest.mark.parametrize(
    ("answer", "args"),
    [(lambda p: (["f"], {"n": 1}), ("f", 2)), (lambda p: {"n": 1}, (2,))],
    ids=["a pair, until 0.9.1", "a dict, since 0.9.2"],
)
def test_bind_parameters_of_either_form(answer, args):
    assert compat.bind(Bound(answer), {}, 2) == [(args, {"n": 1})]


class FlatTree:
    def unpack(self):
        return [1, 2], [3], [4, 5, 6]


@pytest.mark.parametrize(
    "params",
    [{"num_consts": 2, "num_carry": 1}, {"ft_in": FlatTree()}],
    ids=["numbers, until 0.10", "trees, since 0.11"],
)
def test_scan_layout_of_either_form(params):
    assert compat.scan_layout(params) == (2, 1)


def test_scan_layout_of_the_installed_version():
    w = np.ones((3, 3))
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, x: (c @ w + x, c), x[0], x))(jnp.ones((4, 3)))
    (scan,) = [e for e in compat.open_jaxpr(jaxpr)[0].eqns if e.primitive.name == "scan"]
    assert compat.scan_layout(scan.params)[1] == 1


def test_open_jaxpr_of_either_type():
    class Open:
        eqns = ()

    class Closed:
        jaxpr, consts = Open(), [1]

    assert compat.open_jaxpr(Closed) == (Closed.jaxpr, [1])
    assert compat.open_jaxpr(Closed.jaxpr) == (Closed.jaxpr, [])


def test_late_arrays_are_the_arrays_themselves():
    """Under jit, vmap of either operand, and differentiation."""
    a, after = jnp.arange(3.0), jnp.ones((2, 2))
    assert (jax.jit(compat.late)(a, after) == a).all()
    assert (jax.vmap(compat.late, in_axes=(None, 0))(a, jnp.ones((5, 2, 2))) == a).all()
    assert jax.vmap(compat.late, in_axes=(0, None))(jnp.stack([a, 2 * a]), after).shape == (2, 3)
    assert jax.grad(lambda a: compat.late(a * a, after).sum())(a).tolist() == [0.0, 2.0, 4.0]
    assert compat.late(a, jnp.array([jnp.nan])).tolist() == a.tolist()
    assert jax.jit(compat.late)(a, jnp.zeros((0, 2))).tolist() == a.tolist()
    assert jax.jit(compat.late)(a, jnp.array([1j])).tolist() == a.tolist()


# ------------------------------------------------------------------------------------------- the user's lines


def folder(package):
    return os.path.dirname(os.path.abspath(package.__file__))


OWN, OTHER, MACHINERY = 0, 2, 4
FILES_OF = {
    "a project": ("/projects/ann/project/model.py", OWN),
    "a project in a folder called lib": ("/projects/ann/lib/python3.12/model.py", OWN),
    "a project in the interpreter's prefix": (os.path.join(sys.prefix, "project", "model.py"), OWN),
    "a project beside the packages": (os.path.join(sys.prefix, "lib", "model.py"), OWN),
    "a project named like JAX": ("/projects/ann/jax/flax/model.py", OWN),
    "a relative path": ("model.py", OWN),
    "a prompt": ("<stdin>", 1),
    "frozen modules": ("<frozen importlib._bootstrap>", MACHINERY),
    "the standard library": (os.path.join(folder(os), "contextlib.py"), OTHER),
    "a package in this environment": (pytest.__file__, OTHER),
    "a package in another environment": (
        "/opt/other/lib/python3.12/site-packages/haiku/_src/basic.py",
        OTHER,
    ),
    "a package of the user": ("/projects/ann/.local/lib/python3.12/site-packages/equinox/nn.py", OTHER),
    "a package of Debian": ("/usr/lib/python3/dist-packages/haiku/basic.py", OTHER),
    "a venv in a project": ("/projects/ann/project/.venv/lib/python3.12/site-packages/haiku/basic.py", OTHER),
    "JAX": (os.path.join(folder(jax), "_src", "lax", "lax.py"), MACHINERY),
    "flax": (os.path.join(folder(importlib.import_module("flax")), "linen", "linear.py"), MACHINERY),
    "lrpjax": (str(PACKAGE / "transform.py"), MACHINERY),
    "the rest of its command line": (str(PACKAGE / "cli" / "main.py"), MACHINERY),
    "its demo": (str(PACKAGE / "demo.py"), OWN),
    "its demos": (str(PACKAGE / "cli" / "demos" / "digits.py"), OWN),
    "its bag of words": (str(PACKAGE / "bow" / "features.py"), OWN),
}


@pytest.mark.parametrize("name", FILES_OF)
def test_files_are_told_apart_by_where_they_lie(name):
    file, rank = FILES_OF[name]
    assert compat._rank(file) == rank


def test_packages_named_after_jax_are_no_machinery():
    assert compat._rank(os.path.join(f"{folder(jax)}_models", "model.py")) != MACHINERY


class Frames:
    """An equation that was made by a stack of (file, line, function), innermost first."""

    def __init__(self, *frames):
        names = ("file_name", "line_num", "function_name")
        stack = [types.SimpleNamespace(**dict(zip(names, f, strict=True))) for f in frames]
        self.source_info = types.SimpleNamespace(traceback=types.SimpleNamespace(frames=stack))


def test_the_innermost_line_of_the_user_is_named():
    inside = (FILES_OF["JAX"][0], 1, "add")
    package, prompt = ("/x/site-packages/haiku/basic.py", 2, "call"), ("<stdin>", 3, "f")
    model, script = ("/projects/ann/model.py", 4, "model"), ("/projects/ann/main.py", 5, "main")
    assert (
        compat.source_of(Frames(inside, package, prompt, model, script)) == "/projects/ann/model.py:4 (model)"
    )
    assert compat.source_of(Frames(inside, package, prompt)) == "<stdin>:3 (f)"
    assert compat.source_of(Frames(inside, package)) == "/x/site-packages/haiku/basic.py:2 (call)"
    assert (
        compat.source_of(Frames(inside, package), Frames(inside, script)) == "/projects/ann/main.py:5 (main)"
    )


SCRIPT = """
    import jax, jax.numpy as jnp, lrpjax

    try:
        f = lambda x: jax.lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c * 2.0, x)
        lrpjax.relevance(f)(jnp.ones(2))
    except lrpjax.UnsupportedError as error:
        print(error)

    def model(x):
        x = jax.nn.relu(x)  # in a function of JAX's that is traced once
        return x @ jnp.ones((2, 3))

    for unit in lrpjax.plan(model, None, jnp.ones(2)).units:
        print(unit.source)
    print(jax.__file__)
"""


def interpreter(place, **options):
    """The interpreter of a new environment, and the folder of its packages."""
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt", **options)
    builder.create(place / "environment")
    (packages,) = (place / "environment").rglob("site-packages")
    return builder.ensure_directories(place / "environment").env_exe, packages


def link(packages):
    packages.mkdir(parents=True)
    for name in ("jax", "jaxlib", "flax", "lrpjax"):
        source = folder(importlib.import_module(name))
        (packages / name).symlink_to(source, target_is_directory=True)


def layer(packages):
    """Lays the environment of these tests under another one."""
    paths = [str(PACKAGE.parent), *(p for p in sys.path if os.path.isdir(p))]
    (packages / "layer.pth").write_text("\n".join(paths))


def layered(place):
    """JAX lies in another environment than the interpreter's, as in one that is laid over a second one."""
    python, packages = interpreter(place)
    layer(packages)
    return python, {}


def user(place):
    """JAX lies in the user's own packages (`pip install --user`), below an environment that sees those."""
    python, _ = interpreter(place, system_site_packages=True)
    variables = {"PYTHONUSERBASE": str(place / "user"), "PYTHONNOUSERSITE": ""}
    ask = [python, "-c", "import site; print(site.getusersitepackages())"]
    packages = subprocess.run(
        ask, env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout
    link(pathlib.Path(packages.strip()))
    layer(pathlib.Path(packages.strip()))
    return python, variables


def linked(place):
    """JAX lies in a folder that is not named like one for packages."""
    link(place / "packages")
    return sys.executable, {"PYTHONPATH": str(place / "packages")}


@pytest.mark.parametrize("environment", [layered, user, linked], ids=lambda f: f.__name__)
def test_the_users_lines_are_named_in_every_kind_of_environment(environment, tmp_path):
    """The script lies in a project that holds the environment, in a folder named like one for packages."""
    python, variables = environment(tmp_path)
    file = tmp_path / "lib" / "script.py"
    file.parent.mkdir()
    file.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run([python, file], env=os.environ | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *_, loop, relu, dense, where = run.stdout.splitlines()
    assert f"while in '(no module path)' at {file}:5 (<lambda>): " in loop
    assert (relu, dense) == (f"{file}:11 (model)", f"{file}:12 (model)")
    assert environment is layered or where.startswith(str(tmp_path))
