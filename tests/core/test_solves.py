"""Linear systems whose matrix depends on what is explained, against x_i ∂z_j/∂x_i of the right-hand side alone in
NumPy; factorisations, which are refused with advice that gives JAX's own VJP."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select

RNG = np.random.default_rng(0)
M, B = RNG.normal(size=(3, 9)), RNG.normal(size=(3, 3))
X = jnp.asarray(RNG.normal(size=3))
ONES = jnp.ones(3)


def matrix(x):
    return (x @ M).reshape(3, 3) + 4.0 * jnp.eye(3)


def definite(x):
    return matrix(x) @ matrix(x).T


def by_callbacks(x):
    held = lax.stop_gradient(matrix(x))
    return lax.custom_linear_solve(
        lambda v: matrix(x) @ v,
        x @ B,
        lambda _, v: jnp.linalg.solve(held, v),
        lambda _, v: jnp.linalg.solve(held.T, v),
    )


SOLVES = {
    "solve": (matrix, lambda x: jnp.linalg.solve(matrix(x), x @ B)),
    "jitted": (matrix, jax.jit(lambda x: jnp.linalg.solve(matrix(x), x @ B))),
    "two columns": (matrix, lambda x: jnp.linalg.solve(matrix(x), jnp.stack([x @ B, x @ B], 1)).mean(1)),
    "triangular": (
        lambda x: jnp.tril(matrix(x)),
        lambda x: jax.scipy.linalg.solve_triangular(matrix(x), x @ B, lower=True),
    ),
    "positive definite": (
        definite,
        lambda x: jax.scipy.linalg.solve(definite(x), x @ B, assume_a="pos"),
    ),
    "cho_solve": (
        definite,
        lambda x: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(definite(x)), x @ B),
    ),
    "lu_solve": (
        matrix,
        lambda x: jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(matrix(x)), x @ B),
    ),
    "cg": (definite, lambda x: jax.scipy.sparse.linalg.cg(definite(x), x @ B, tol=1e-13)[0]),
    "custom_linear_solve": (matrix, by_callbacks),
    "scan": (
        matrix,
        lambda x: lax.scan(lambda c, _: (c, jnp.linalg.solve(matrix(x), x @ B)), 0, None, 2)[1].mean(0),
    ),
}


@pytest.mark.parametrize("name", SOLVES)
def test_relevance_goes_to_the_right_hand_side(name):
    matrix_of, f = SOLVES[name]
    inverse = np.linalg.inv(np.asarray(matrix_of(X)))
    contributions = np.asarray(X)[:, None] * (B @ inverse.T)  # x_i ∂z_j/∂x_i, the matrix held
    R = lrpjax.relevance(f, composites.epsilon(0.0))(X)
    np.testing.assert_allclose(R, contributions.sum(1), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(R.sum(), f(X).sum(), rtol=1e-9)
    target = jnp.array([0.0, 2.0, 0.0])
    with_target = lrpjax.relevance(f, composites.epsilon(0.0), target=target)(X)
    np.testing.assert_allclose(with_target, 2.0 * contributions[:, 1] / f(X)[1], rtol=1e-8, atol=1e-12)


def test_epsilon_stabilises_a_solution_and_a_pass_does_not_fit():
    matrix_of, f = SOLVES["solve"]
    pairs = [(select.kind("quotient"), rules.Epsilon(0.1)), (select.kind("dense"), rules.Epsilon(0.0))]
    z = f(X)
    contributions = np.asarray(X)[:, None] * (B @ np.linalg.inv(np.asarray(matrix_of(X))).T)
    R = lrpjax.relevance(f, Composite(pairs))(X)
    np.testing.assert_allclose(R, (contributions * (z / (z + 0.1 * np.sign(z)))).sum(1), rtol=1e-9)
    with pytest.raises(lrpjax.RuleError, match="solution of a linear system"):
        lrpjax.relevance(f, Composite([(select.kind("quotient"), rules.Pass())]))(X)


def test_a_constant_matrix_makes_a_linear_map():
    f = lambda x: jnp.linalg.solve(jnp.asarray(B) + 3.0 * jnp.eye(3), x)
    R = lrpjax.relevance(f)(X)
    np.testing.assert_allclose(R, X * jnp.linalg.inv(B + 3.0 * np.eye(3)).sum(0), rtol=1e-9)


REFUSED = {
    "inv": lambda a: jnp.linalg.inv(a),
    "solve": lambda a: jnp.linalg.solve(a, ONES),
    "triangular": lambda a: jax.scipy.linalg.solve_triangular(a, ONES),
    "cholesky": lambda a: jnp.linalg.cholesky(a),
    "the primitive": lambda a: lax.linalg.cholesky(a),
    "eigh": lambda a: jnp.linalg.eigh(a)[0],
    "svd": lambda a: jnp.linalg.svd(a, compute_uv=False),
    "qr": lambda a: jnp.linalg.qr(a)[1],
    "lu": lambda a: lax.linalg.lu(a)[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_is_known_for_says_how_to_choose_the_gradient(name):
    f = REFUSED[name]
    A = definite(X)
    with pytest.raises(lrpjax.UnsupportedError) as caught:
        lrpjax.relevance(f)(A)
    assert "test_solves.py" in str(caught.value)
    advice = re.findall(r"\(select\.kind\('\w+'\), rules\.Gradient\(\)\)", str(caught.value))
    assert advice
    R = lrpjax.relevance(f, Composite([eval(a) for a in advice]))(A)
    y, back = jax.vjp(f, A)
    np.testing.assert_allclose(R, back(y)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("f", [lambda a: jax.scipy.linalg.schur(a)[0], lambda a: jnp.linalg.eig(a)[1].real])
def test_factorisations_without_a_derivative_are_refused_for_good(f):
    A = definite(X)
    with pytest.raises(lrpjax.UnsupportedError, match="factorisation of a matrix"):
        lrpjax.relevance(f)(A)
    with pytest.raises(lrpjax.UnsupportedError, match="JAX has no derivative of it"):
        lrpjax.relevance(f, Composite([(select.kind("unknown"), rules.Gradient())]))(A)
