"""The tables of primitives against the JAX that runs: every name in them is that of a primitive, in the versions
and libraries that they say."""

import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive, primitives
from packaging.requirements import Requirement

import lrpjax
from lrpjax.core import compat
from lrpjax.core import primitives as tables

X = jnp.array([1.0, 2.0, 4.0])


def primitives_of(library):
    """The names of all primitives that the imported modules of a library hold."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == library]
    return {p.name for m in modules for p in vars(m).values() if isinstance(p, Primitive)}


JAX = primitives_of("jax")
PUBLISHED = [(family, word) for family, text in tables.PUBLISHED.items() for word in text.split()]
ELSEWHERE = [
    (where, family, name)
    for where, rows in tables.ELSEWHERE.items()
    for family, text in rows.items()
    for name in text.split()
]
OF_JAX = [row for row in ELSEWHERE if Requirement(row[0]).name == "jax"]
OF_LIBRARIES = [row for row in ELSEWHERE if row not in OF_JAX]


def public(word):
    return getattr(primitives, f"{word}_p", None) or getattr(lax, f"{word}_p", None)


def as_marked(where, name):
    """Whether the running JAX has a primitive, or lacks it, as its mark says."""
    return (name in JAX) == Requirement(where).specifier.contains(jax.__version__)


@pytest.mark.parametrize(("family", "word"), PUBLISHED)
def test_published_primitives_exist_under_their_name(family, word):
    assert isinstance(public(word), Primitive)
    assert public(word).name in JAX
    assert tables.FAMILIES[public(word).name] == family


@pytest.mark.parametrize(("where", "family", "name"), OF_JAX)
def test_primitives_of_some_versions_are_in_those_versions_only(where, family, name):
    assert as_marked(where, name)
    assert tables.FAMILIES[name] == family


@pytest.mark.parametrize("name", [name for where, _, name in OF_JAX if where == "jax"])
def test_unpublished_primitives_are_not_published(name):
    """Else they belong into the other table, as objects."""
    assert name not in {
        p.name for m in (primitives, lax) for p in vars(m).values() if isinstance(p, Primitive)
    }


@pytest.mark.parametrize(("library", "family", "name"), OF_LIBRARIES)
def test_primitives_of_libraries_are_not_of_jax(library, family, name):
    assert name not in JAX
    assert tables.FAMILIES[name] == family


@pytest.mark.parametrize(("library", "family", "name"), OF_LIBRARIES)
def test_primitives_of_libraries_exist_in_them(library, family, name):
    """Where the library is installed, which lrpjax does not ask for."""
    pytest.importorskip({"equinox": "equinox.internal"}.get(library, library))
    assert name in primitives_of(library)


def test_no_primitive_stands_in_two_families():
    names = [public(word).name for _, word in PUBLISHED] + [name for *_, name in ELSEWHERE]
    assert sorted(names) == sorted({*names})
    assert {*names, "custom_relevance_call"} == set(tables.FAMILIES)
    assert not {*names} & set(tables.CALLS)


def test_other_tables_name_primitives_that_exist():
    for table in (tables.CALLS, tables.NONNEGATIVE, tables.ANY_SIGN, tables.IN_NUMPY):
        assert {*table} <= JAX
    assert {*tables.SIGN_KEEPING} <= {*tables.FAMILIES}
    assert {*tables.NONNEGATIVE, *tables.ANY_SIGN, *tables.IN_NUMPY} <= {*tables.FAMILIES, "iota"}


# In each table, one name and its misspelling.
MISSPELT = {
    "PUBLISHED": ("dynamic_update_slice gather", "dynamic_update_slice gahter"),
    "CALLS": ('_names("jit")', '_names("jti")'),
    "NONNEGATIVE": ("erfc iota", "erfc itoa"),
    "SIGN_KEEPING": ("stop_gradient erf\n", "stop_gradient ref\n"),
    "ANY_SIGN": ('_names("max")', '_names("mxa")'),
    "IN_NUMPY": ("lax.squeeze_p", "lax.sqeueze_p"),
}


@pytest.mark.parametrize("table", MISSPELT)
def test_misspelt_primitives_are_an_error_at_import(table):
    right, wrong = MISSPELT[table]
    source = inspect.getsource(tables)
    assert source.count(right) == 1
    exec(source, {})
    with pytest.raises(AttributeError, match=wrong.strip('_names(")\n').split()[-1].split(".")[-1]):
        exec(source.replace(right, wrong), {})


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("jax", "psum_invariantt"),
        ("jax>=0.10", "poly_nomial"),
        ("jax<0.10", "pvary"),
        ("jax>=99", "pvary"),
    ],
)
def test_misspelt_names_and_wrong_marks_do_not_pass(where, name):
    assert not as_marked(where, name)


@pytest.mark.parametrize("table", [tables.FAMILIES, tables.PUBLISHED, tables.CALLS, tables.IN_NUMPY])
def test_tables_are_read_only(table):
    with pytest.raises(TypeError):
        table["sin"] = "structural"


# ---------------------------------------------------------------------------------------------------- calls


@jax.custom_jvp
def custom_jvp(x):
    return x * 2.0


custom_jvp.defjvp(lambda x, t: (custom_jvp(*x), t[0] * 2.0))


@jax.custom_vjp
def custom_vjp(x):
    return x * 2.0


custom_vjp.defvjp(lambda x: (x * 2.0, None), lambda _, c: (c * 2.0,))


def closed_call(x):
    return compat.bind(primitives.closed_call_p, {"call_jaxpr": jax.make_jaxpr(lambda x: x * 2.0)(x)}, x)[0]


FUNCTIONS = {
    "jit": jax.jit(lambda x: x * 2.0),
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    primitives.closed_call_p.name: closed_call,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bodies_of_calls_stand_in_the_parameter_that_the_table_names(name):
    (eqn,) = jax.make_jaxpr(FUNCTIONS[name])(X).eqns
    assert eqn.primitive.name == name
    (inner,) = compat.open_jaxpr(eqn.params[tables.CALLS[name]])[0].eqns
    assert inner.primitive.name == "mul"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relevance_passes_through_calls(name):
    weights = jnp.array([1.0, -1.0, 3.0])
    relevance = lrpjax.relevance(lambda x: (FUNCTIONS[name](x) * weights).sum())(X)
    np.testing.assert_allclose(relevance, X * 2.0 * weights, rtol=1e-5)


# -------------------------------------------------------------------------------------- versions of functions


def test_logarithms_to_base_two_pass_relevance_on_in_every_version():
    """log2 is a primitive of its own since JAX 0.11.2."""
    np.testing.assert_allclose(lrpjax.relevance(lambda x: jnp.log2(x).sum())(X), jnp.log2(X), rtol=1e-5)


@pytest.mark.skipif(not hasattr(lax, "polynomial"), reason="a primitive since JAX 0.12")
def test_polynomials_with_constant_coefficients_pass_relevance_on():
    coefficients = (1.0, 2.0, 3.0)
    wanted = np.polyval(coefficients[::-1], X)
    np.testing.assert_allclose(
        lrpjax.relevance(lambda x: lax.polynomial(x, coefficients).sum())(X), wanted, rtol=1e-5
    )


def test_cumulative_logsumexp_is_not_linear():
    assert tables.FAMILIES[lax.cumlogsumexp_p.name] == "logsumexp"
    assert lax.cumlogsumexp_p.name not in tables.SIGN_KEEPING
