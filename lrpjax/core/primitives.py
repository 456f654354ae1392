"""What lrpjax knows of each JAX primitive: one family for each.

To add a primitive, put the name that JAX publishes it under into its family's row of `PUBLISHED`; one that
JAX does not publish, or that only some version or another library has, goes into `ELSEWHERE`.
`Composite(..., primitives={"name": "family"})` lays entries of your own over these.

In ratio form (the relevance of a value is the value times its cotangent) most families are right as JAX
differentiates them; the family says which are, and what the others need.
"""

import math
import types

import numpy as np
from jax import lax
from jax.extend.core import primitives as published

from lrpjax.core import compat


def _names(text: str) -> tuple[str, ...]:
    """The names, in jaxprs, of the primitives that JAX publishes as `add_p`, … (written "add …").

    A misspelt one, or one that the installed JAX does not publish, is an AttributeError.
    """
    attributes = [f"{word}_p" for word in text.split()]
    return tuple(getattr(published if hasattr(published, a) else lax, a).name for a in attributes)


PUBLISHED = types.MappingProxyType(
    {
        # Every output element is one input element (or a constant), perhaps scaled by nothing: relevance
        # moves along in either form.
        "structural": """
            reshape transpose squeeze broadcast_in_dim slice dynamic_slice dynamic_update_slice gather
            concatenate pad rev split stack unstack tile copy convert_element_type reduce_precision
            optimization_barrier device_put sharding_constraint name scatter select_n select_and_gather_add
            select_and_scatter_add real imag complex conj all_gather ppermute all_to_all sort top_k
            approx_top_k cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min scatter_max
            scatter_min pmax pmin
            """,
        # Linear in all operands that carry relevance together: relevance is shared in proportion to them.
        "sum": """
            reduce_sum reduce_window_sum cumsum add sub add_jaxvals scatter_add scatter_sub psum fft
            triangular_solve linear_solve
            """,
        # Linear in each operand: a weighted layer with one that carries relevance, a product with two.
        "bilinear": "mul dot_general conv_general_dilated",
        # Elementwise and not linear: relevance passes through unchanged.
        "elementwise": """
            exp exp2 log log1p expm1 tanh tan sin cos asin acos atan sinh cosh asinh acosh atanh logistic erf
            erfc erf_inv sqrt rsqrt cbrt integer_pow square abs floor ceil round sign clamp max min pow rem
            atan2 nextafter lgamma digamma bessel_i0e bessel_i1e polygamma igamma igammac
            regularized_incomplete_beta zeta
            """,
        # Elementwise bookkeeping that an activation may contain (predicates and the like): without relevance.
        "predicate": """
            lt le gt ge eq ne eq_to le_to lt_to and or not xor is_finite shift_left shift_right_logical
            shift_right_arithmetic population_count clz bitcast_convert_type
            """,
        # Logarithms of sums of exponentials, of one operand: its Taylor expansion, as JAX differentiates it.
        "logsumexp": "cumlogsumexp",
        "quotient": "div",
        "negation": "neg",
        "reduce_product": "reduce_prod cumprod",
        "stop": "stop_gradient",
        # Structured control flow: the bodies are explained by themselves.
        "scan": "scan",
        "cond": "cond",
        "while": "while",
        "remat": "remat",
    }
)
"""Family -> the primitives that JAX publishes in every supported version, by the names that it publishes them
under, without `_p`."""

ELSEWHERE = types.MappingProxyType(
    {
        "jax": {
            "structural": "pvary pbroadcast reshard",
            "sum": "psum_invariant reduce_scatter",
            "bilinear": "ragged_dot_general",
            "shard_map": "shard_map",
        },
        "jax<0.12": {"structural": "vary_unreduced_cast_p"},
        "jax>=0.11.2": {"elementwise": "log2 one_minus_square"},
        "jax>=0.12": {"structural": "vary_unreduced_cast", "elementwise": "polynomial"},
        "equinox": {"structural": "maybe_set select_if_vmap nondifferentiable_backward"},
        "lineax": {"sum": "linear_solve"},
    }
)
"""Where from -> family -> primitives, by their names in jaxprs. Those of "jax" are in every supported
version, but not published; "jax>=…" and "jax<…" are the versions that have them; the others are libraries."""

FAMILIES = types.MappingProxyType(
    {name: family for family, text in PUBLISHED.items() for name in _names(text)}
    | {name: family for rows in ELSEWHERE.values() for family, text in rows.items() for name in text.split()}
    | {compat.custom_call.name: "custom"}
)
"""Primitive name -> family: structural, sum, bilinear, elementwise, predicate, logsumexp, quotient, negation,
reduce_product, custom, stop, or one of the structured scan, cond, while, remat, shard_map."""

CHOICES = ("structural", "sum", "elementwise", "stop")
"""The families that a user may give to a primitive of their own."""

CALLS = types.MappingProxyType(
    dict.fromkeys(_names("jit"), "jaxpr")
    | dict.fromkeys(_names("call closed_call custom_jvp_call custom_vjp_call"), "call_jaxpr")
)
"""Calls that are replaced by their bodies, and the parameter that holds the body."""

FACTORISATIONS = frozenset(
    (
        *_names("cholesky eig eigh hessenberg householder_product lu qr svd schur tridiagonal"),
        "cholesky_update",
        "geqrf",
        "geqp3",
    )
)
"""Factorisations of matrices, of which no rule is known."""

DERIVED = frozenset(_names("custom_jvp_call custom_vjp_call"))
"""Calls of functions with a derivative of their own."""

NONNEGATIVE = frozenset(_names("exp exp2 logistic square abs sqrt rsqrt cosh erfc iota"))
"""Results that are never negative, whatever the operands."""

_MOVING = {name for name, family in FAMILIES.items() if family == "structural"}
SIGN_KEEPING = frozenset(_MOVING).difference(_names("real imag complex conj")) | frozenset(
    _names("""
        reduce_sum reduce_window_sum cumsum add add_jaxvals scatter_add psum mul div dot_general
        conv_general_dilated reduce_prod cumprod max min floor ceil round log1p expm1 tanh asinh atan sinh
        clamp cbrt integer_pow pow sign stop_gradient erf
        """)
)
"""Results that are not negative when no operand that enters them is."""

ANY_SIGN = frozenset(_names("max"))
"""Max-like: one operand that is not negative is enough."""

IN_NUMPY = types.MappingProxyType(
    {
        lax.add_p.name: lambda x, y, **_: x + y,
        lax.sub_p.name: lambda x, y, **_: x - y,
        lax.mul_p.name: lambda x, y, **_: x * y,
        lax.neg_p.name: lambda x, **_: -x,
        lax.sqrt_p.name: lambda x, **_: np.sqrt(x),
        lax.rsqrt_p.name: lambda x, **_: (1 / np.sqrt(x)).astype(x.dtype),
        lax.reshape_p.name: lambda x, new_sizes, **_: x.reshape(new_sizes),
        lax.squeeze_p.name: lambda x, dimensions, **_: x.squeeze(tuple(dimensions)),
        lax.transpose_p.name: lambda x, permutation, **_: x.transpose(permutation),
        lax.convert_element_type_p.name: lambda x, new_dtype, **_: x.astype(new_dtype),
        lax.copy_p.name: lambda x, **_: x,
        published.stop_gradient_p.name: lambda x, **_: x,
    }
)
"""The primitives that normalisations compute constants with, in NumPy: they are evaluated while tracing,
where JAX would compile each one."""

BETWEEN_DEVICES = frozenset(
    (*_names("psum pmax pmin all_gather all_to_all ppermute"), "pvary", "pbroadcast", "psum_invariant")
)
"""The primitives that have a meaning on several devices only: they cannot be evaluated while tracing."""

_erf, _erfc = (np.vectorize(f, otypes=[float]) for f in (math.erf, math.erfc))


def _round(x, rounding_method=None, **_):
    nearest_even = lax.RoundingMethod.TO_NEAREST_EVEN
    return np.rint(x) if rounding_method == nearest_even else np.copysign(np.floor(np.abs(x) + 0.5), x)


def _select(which, *cases, **_):
    # an integer of the program, of which only its number is known here
    which = np.nan_to_num(which).astype(int)
    return np.choose(np.clip(which, 0, len(cases) - 1), cases)


def _convert(x, new_dtype, **_):
    kind = np.dtype(new_dtype).kind
    return (
        x.astype(bool)
        if kind == "b"
        else np.trunc(x)
        if kind in "iu" and x.dtype != bool
        else x.astype(float)
    )


POINTWISE = types.MappingProxyType(
    {
        name: (lambda f: lambda *operands, **_: f(*operands))(function)
        for names, function in {
            "add add_jaxvals": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": np.divide,
            "rem": np.fmod,
            "max": np.maximum,
            "min": np.minimum,
            "pow": lambda x, y: np.power(np.asarray(x, float), y),
            "neg": np.negative,
            "abs": np.abs,
            "sign": np.sign,
            "floor": np.floor,
            "ceil": np.ceil,
            "exp": np.exp,
            "exp2": np.exp2,
            "expm1": np.expm1,
            "log": np.log,
            "log1p": np.log1p,
            "sin": np.sin,
            "cos": np.cos,
            "tan": np.tan,
            "asin": np.arcsin,
            "acos": np.arccos,
            "atan": np.arctan,
            "atan2": np.arctan2,
            "sinh": np.sinh,
            "cosh": np.cosh,
            "tanh": np.tanh,
            "asinh": np.arcsinh,
            "acosh": np.arccosh,
            "atanh": np.arctanh,
            "logistic": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))),
            "erf": _erf,
            "erfc": _erfc,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "cbrt": np.cbrt,
            "square": np.square,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "eq": np.equal,
            "ne": np.not_equal,
            "and": np.logical_and,
            "or": np.logical_or,
            "xor": np.logical_xor,
            "not": np.logical_not,
            "is_finite": np.isfinite,
            "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
            "copy stop_gradient reduce_precision": lambda x: x,
        }.items()
        for name in _names(names)
    }
    | {
        lax.integer_pow_p.name: lambda x, y, **_: np.power(np.asarray(x, float), y),
        lax.round_p.name: _round,
        lax.select_n_p.name: _select,
        lax.convert_element_type_p.name: _convert,
        "log2": lambda x, **_: np.log2(x),
        "one_minus_square": lambda x, **_: 1 - x * x,
    }
)
"""Elementwise primitives in NumPy, of numbers and float64 arrays: what an activation is, is found by evaluating it."""
