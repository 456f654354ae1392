"""Each family of primitives × which operand carries the data × dtype × eager, jit and vmap, against shares worked out in NumPy."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax

A = np.array([[0.9, -1.7, 0.4], [2.2, 0.6, -0.8]])
B = np.array([[-1.1, 0.5, 1.6], [0.3, -2.1, 1.2]])
MASK = np.array([[True, False, True], [False, False, True]])
ROWS = np.array([1, 0])
LRP0 = lrpjax.composites.epsilon(0.0)
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.08}


@dataclasses.dataclass(frozen=True)
class Family:
    """f(a, b), and what a and b receive of R if both carry the data, if a alone does, and if b alone does (None: it cannot)."""

    f: Callable
    both: Callable | None = None
    left: Callable | None = None
    right: Callable | None = None

    def expected(self, carries, a, b, R):
        if carries == (0, 1):
            return self.both(a, b, R)
        return ((self.left if carries == (0,) else self.right)(a, b, R),)

    def combinations(self):
        shares = {(0, 1): self.both, (0,): self.left, (1,): self.right}
        return [carries for carries, share in shares.items() if share is not None]


def linear(f, first, second):
    """Linear in both operands together: each has the same part whether or not the other carries the data."""
    return Family(f, lambda a, b, R: (first(a, b, R), second(a, b, R)), first, second)


def product(f, first, second):
    """Linear in each operand: half to each, all of it to one alone."""
    half = lambda a, b, R: (first(a, b, R) / 2, second(a, b, R) / 2)
    return Family(f, half, first, second)


def unary(f, share):
    return Family(lambda a, b: f(a), left=lambda a, b, R: share(a, R))


def through(f, cotangent):
    """x ⊙ the cotangent of R / y, for a linear f of one operand."""
    return unary(f, lambda a, R: a * cotangent(R / np.asarray(f(jnp.asarray(a)))))


def everything(a, b, R):
    return R


def nothing(a, b, R):
    return 0 * R


def windows(R):
    """What the sum over windows of two columns gives back."""
    return np.concatenate([R[:, :1], R[:, :1] + R[:, 1:], R[:, 1:]], 1)


def correlate(a, b):
    """(1, 2, 3) with a kernel (1, 2, 2), no padding."""
    return lax.conv(a[None], b[None, :, :2], (1,), "VALID")


def correlate_shares(a, b, R):
    y = np.array([(a[:, i : i + 2] * b[:, :2]).sum() for i in range(2)])
    to_a, to_b = np.zeros((2, 3)), np.zeros((2, 3))
    for i in range(2):
        part = a[:, i : i + 2] * b[:, :2] * R[0, 0, i] / y[i]
        to_a[:, i : i + 2] += part
        to_b[:, :2] += part
    return to_a, to_b


def softmax_shares(x, R):
    s = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return x * (R - s * R.sum(-1, keepdims=True))


def steps(a, b):
    """Carry, constant and slices of a loop: a[0] + 3 a[1] + Σ b."""
    return lax.scan(lambda c, x: (c + a[1] + x, None), a[0], jnp.concatenate([b, b[:1]]))[0]


def steps_total(a, b):
    return a[0] + 3 * a[1] + 2 * b[0] + b[1]


FAMILIES = {
    "structural: concatenate": linear(
        lambda a, b: jnp.concatenate([a, b]), lambda a, b, R: R[:2], lambda a, b, R: R[2:]
    ),
    "structural: select": linear(
        lambda a, b: jnp.where(MASK, a, b), lambda a, b, R: R * MASK, lambda a, b, R: R * ~MASK
    ),
    "structural: update": linear(
        lambda a, b: lax.dynamic_update_slice(a, b[:1], (1, 0)),
        lambda a, b, R: R * [[1], [0]],
        lambda a, b, R: R[::-1] * [[1], [0]],
    ),
    "structural: gather": unary(lambda a: a[ROWS][:, ROWS], lambda a, R: np.pad(R[::-1, ::-1], ((0, 0), (0, 1)))),
    "structural: reshape, transpose, rev": unary(
        lambda a: a.T.reshape(2, 3)[::-1], lambda a, R: R[::-1].reshape(3, 2).T
    ),
    "structural: sort": unary(
        lambda a: jnp.sort(a, axis=-1), lambda a, R: np.take_along_axis(R, a.argsort(-1).argsort(-1), -1)
    ),
    "structural: max": unary(lambda a: a.max(-1), lambda a, R: R[:, None] * (a == a.max(-1, keepdims=True))),
    "structural: max pool": unary(
        lambda a: lax.reduce_window(a, -jnp.inf, lax.max, (1, 3), (1, 3), "VALID"),
        lambda a, R: R * (a == a.max(-1, keepdims=True)),
    ),
    "sum: add": linear(
        lambda a, b: a + b, lambda a, b, R: a / (a + b) * R, lambda a, b, R: b / (a + b) * R
    ),
    "sum: sub": linear(
        lambda a, b: a - b, lambda a, b, R: a / (a - b) * R, lambda a, b, R: -b / (a - b) * R
    ),
    "sum: scatter-add": linear(
        lambda a, b: a.at[ROWS].add(b),
        lambda a, b, R: a / (a + b[::-1]) * R,
        lambda a, b, R: b / (a[::-1] + b) * R[::-1],
    ),
    "sum: reduce": through(lambda a: a.sum(0), lambda c: c[None]),
    "sum: cumulative": through(lambda a: jnp.cumsum(a, 1), lambda c: c[:, ::-1].cumsum(1)[:, ::-1]),
    "sum: average pool": through(
        lambda a: lax.reduce_window(a, 0.0, lax.add, (1, 2), (1, 1), "VALID") / 2.0,
        lambda c: windows(c) / 2,
    ),
    "bilinear: mul": product(lambda a, b: a * b, everything, everything),
    "bilinear: dot": product(
        lambda a, b: a @ b.T,
        lambda a, b, R: a * ((R / (a @ b.T)) @ b),
        lambda a, b, R: b * ((R / (a @ b.T)).T @ a),
    ),
    "bilinear: batched dot": product(
        lambda a, b: jnp.einsum("ij,ij->i", a, b),
        lambda a, b, R: a * b * (R / (a * b).sum(1))[:, None],
        lambda a, b, R: a * b * (R / (a * b).sum(1))[:, None],
    ),
    "bilinear: convolution": product(
        correlate,
        lambda a, b, R: correlate_shares(a, b, R)[0],
        lambda a, b, R: correlate_shares(a, b, R)[1],
    ),
    "quotient": Family(lambda a, b: a / b, lambda a, b, R: (R, 0 * R), everything, everything),
    "normalisation": Family(
        lambda a, b: a * lax.rsqrt(b * b + 1.0), lambda a, b, R: (R, 0 * R), everything, everything
    ),
    "gate": Family(lambda a, b: jax.nn.sigmoid(a) * b, lambda a, b, R: (0 * R, R), everything, everything),
    "elementwise: maximum": Family(
        jnp.maximum, lambda a, b, R: (R * (a > b), R * (b > a)), everything, everything
    ),
    "elementwise: tanh": unary(jnp.tanh, lambda a, R: R),
    "elementwise: gelu": unary(jax.nn.gelu, lambda a, R: R),
    "elementwise: power": Family(lambda a, b: (abs(a) + 1.0) ** b, left=everything, right=everything),
    "elementwise: atan2": Family(jnp.arctan2, left=everything, right=everything),
    "reduce_product": unary(lambda a: a.prod(-1), lambda a, R: np.repeat(R[:, None] / 3, 3, 1)),
    "reduce_product: cumulative": unary(
        lambda a: jnp.cumprod(a, 1),
        lambda a, R: np.stack([R[:, j:] @ (1 / np.arange(j + 1, 4)) for j in range(3)], 1),
    ),
    "reduce_product: cumulative, reverse": unary(
        lambda a: lax.cumprod(a, 0, reverse=True),
        lambda a, R: np.stack([R[: i + 1].T @ (1 / np.arange(2, 1 - i, -1)) for i in range(2)]),
    ),
    "softmax": unary(lambda a: 2.0 * jax.nn.softmax(a), softmax_shares),
    "stop": Family(lambda a, b: lax.stop_gradient(a) + b, left=nothing, right=lambda a, b, R: b / (a + b) * R),
    "scan": linear(
        steps,
        lambda a, b, R: a * [[1], [3]] / steps_total(a, b) * R,
        lambda a, b, R: b * [[2], [1]] / steps_total(a, b) * R,
    ),
    "cond": linear(
        lambda a, b: lax.cond(a[0, 0] > 0, lambda a, b: a + b, lambda a, b: a, a, b),
        lambda a, b, R: a / (a + b) * R,
        lambda a, b, R: b / (a + b) * R,
    ),
    "remat": product(jax.checkpoint(lambda a, b: a * b), everything, everything),
    "call": product(jax.jit(lambda a, b: a * b), everything, everything),
}  # fmt: skip
COMBINATIONS = [(name, carries) for name, family in FAMILIES.items() for carries in family.combinations()]


def identifier(combination):
    name, carries = combination
    return f"{name}-{'ab' if len(carries) == 2 else 'ab'[carries[0]]}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=identifier)
def test_family(combination, dtype):
    name, carries = combination
    family = FAMILIES[name]
    rng = np.random.default_rng(1)

    def explain(a, b, R):
        f = lambda a, b: family.f(a, b)
        found = lrpjax.relevance(f, LRP0, argnums=carries, target=R)(a, b)
        assert [r.dtype for r in found] == [a.dtype] * len(carries)
        return found

    shape = jax.eval_shape(family.f, jnp.asarray(A), jnp.asarray(B)).shape
    batch = [jnp.asarray(v, dtype) for v in (np.stack([A, 1.5 * A]), np.stack([B, 1.25 * B]))]
    batch.append(jnp.asarray(rng.normal(size=(2, *shape)), dtype))
    exact = [np.asarray(v, np.float64) for v in batch]
    wanted = [family.expected(carries, *(v[i] for v in exact)) for i in range(2)]
    first = [v[0] for v in batch]

    def check(found, wanted):
        for r, w in zip(found, wanted, strict=True):
            w = np.broadcast_to(w, r.shape)
            size = np.abs(w).max()
            np.testing.assert_allclose(
                np.asarray(r, np.float64), w, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * size
            )

    check(explain(*first), wanted[0])
    check(jax.jit(explain)(*first), wanted[0])
    check(jax.vmap(explain)(*batch), [np.stack(w) for w in zip(*wanted, strict=True)])


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("pow", lambda a, b: (abs(a) + 1.0) ** b),
        ("atan2", lambda a, b: jnp.arctan2(a, b)),
        ("rem", lambda a, b: lax.rem(a, b)),
    ],
)
def test_elementwise_functions_of_two_values_that_carry_the_data_are_refused(name, f):
    """There is no telling how they should share."""
    with pytest.raises(lrpjax.UnsupportedError, match=rf"{name} in .*test_families.py"):
        lrpjax.relevance(f, argnums=(0, 1))(jnp.asarray(A), jnp.asarray(B))


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("name", ["bilinear: dot", "sum: add", "bilinear: convolution", "scan"])
def test_vmap_over_one_operand_only(name, axis):
    """What is not batched stays so, whichever operand it is and whichever carries the data."""
    family = FAMILIES[name]
    many = lambda v: np.stack([v, 1.5 * v, 0.5 * v])
    a, b = (many(A), B) if axis == 0 else (A, many(B)) if axis == 1 else (A, B)
    axes = {0: (0, None), 1: (None, 0), None: (None, None)}[axis]
    explain = lrpjax.relevance(family.f, LRP0, argnums=(0, 1))
    found = jax.vmap(explain, in_axes=axes, axis_size=3)(jnp.asarray(a), jnp.asarray(b))
    for i in range(3):
        alone = explain(*(jnp.asarray(v[i] if x == 0 else v) for v, x in zip((a, b), axes, strict=True)))
        for r, w in zip(found, alone, strict=True):
            np.testing.assert_allclose(r[i], w, rtol=1e-9)
