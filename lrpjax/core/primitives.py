"""What lrpjax knows of each JAX primitive: one family for each name. A new primitive is one entry here.

In ratio form (the relevance of a value is the value times its cotangent) most families are right as JAX differentiates them; the family
says which are, and what the others need. `FAMILIES` is an ordinary read-only mapping; `Composite(..., primitives={"name": "family"})` lays
entries of your own over it.
"""

import types

import numpy as np


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Every output element is one input element (or a constant), perhaps scaled by nothing: relevance moves along in either form.
_STRUCTURAL = _names(
    """
    reshape transpose squeeze expand_dims broadcast_in_dim slice dynamic_slice dynamic_update_slice
    gather concatenate pad rev split stack unstack tile copy copy_p convert_element_type reduce_precision
    optimization_barrier device_put sharding_constraint real_to_complex name scatter select_n
    select_and_gather_add real imag complex conj all_gather ppermute all_to_all pvary pbroadcast maybe_set
    mesh_cast reshard select_if_vmap sort top_k approx_top_k cummax cummin reduce_max reduce_min
    reduce_window_max reduce_window_min argsort select_and_scatter_add scatter_max scatter_min
    scatter-max scatter-min pmax pmin unreduced_cast vary_unreduced_cast
    """
)

# Linear in all operands that carry relevance together: relevance is shared in proportion to the terms.
_SUM = _names(
    """
    reduce_sum reduce_window_sum cumsum add sub add_any scatter-add scatter_add psum psum_invariant fft
    irfft reduce_scatter triangular_solve psum2 scatter-sub scatter_sub linear_solve custom_linear_solve
    """
)

# Linear in each operand: a weighted layer with one that carries relevance, a product with two.
_BILINEAR = _names(
    """
    mul dot_general conv_general_dilated ragged_dot ragged_dot_general
    """
)

# Elementwise and not linear: relevance passes through unchanged.
_ELEMENTWISE = _names(
    """
    exp exp2 log log1p expm1 tanh tan sin cos asin acos atan sinh cosh asinh acosh atanh logistic erf
    erfc erf_inv sqrt rsqrt cbrt integer_pow square abs floor ceil round sign clamp max min pow rem atan2
    nextafter lgamma digamma bessel_i0e bessel_i1e polygamma igamma igammac random_gamma_grad
    regularized_incomplete_beta zeta
    """
)

# Elementwise bookkeeping that an activation may contain (predicates and the like); carries no relevance itself.
_PREDICATE = _names(
    """
    lt le gt ge eq ne eq_to le_to lt_to and or not xor is_finite shift_left shift_right_logical
    shift_right_arithmetic population_count clz bitcast_convert_type
    """
)

FAMILIES = types.MappingProxyType(
    dict.fromkeys(_STRUCTURAL, "structural")
    | dict.fromkeys(_SUM, "sum")
    | dict.fromkeys(_BILINEAR, "bilinear")
    | dict.fromkeys(_ELEMENTWISE, "elementwise")
    | dict.fromkeys(_PREDICATE, "predicate")
    | {
        "div": "quotient",
        "neg": "negation",
        "reduce_prod": "reduce_product",
        "cumprod": "reduce_product",
        "custom_relevance_call": "custom",
    }
    | {"cumlogsumexp": "sum", "logsumexp": "sum", "stop_gradient": "stop"}
    | {
        "scan": "scan",
        "cond": "cond",
        "while": "while",
        "remat2": "remat",
        "remat": "remat",
        "checkpoint": "remat",
    }
    | {"shard_map": "shard_map"}
)
"""Primitive name -> family: structural, sum, bilinear, elementwise, predicate, quotient, negation, reduce_product,
custom, stop, or one of the structured scan, cond, while, remat, shard_map."""

CHOICES = ("structural", "sum", "elementwise", "stop")
"""The families that a user may give to a primitive of their own."""

# Calls that are replaced by their bodies, and the parameter that holds the body.
CALLS = types.MappingProxyType(
    {
        "jit": "jaxpr",
        "pjit": "jaxpr",
        "closed_call": "call_jaxpr",
        "core_call": "call_jaxpr",
        "eval_jaxpr": "jaxpr",
    }
    | {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
    | {"custom_lin": "call_jaxpr", "run_state": "jaxpr", "named_call": "call_jaxpr"}
)

# Results that are never negative, whatever the operands.
NONNEGATIVE = frozenset(["exp", "exp2", "logistic", "square", "abs", "sqrt", "rsqrt", "cosh", "erfc", "iota"])

# Results that are not negative when no operand that enters them is.
SIGN_KEEPING = frozenset(_STRUCTURAL).difference(["real", "imag", "complex", "conj"]) | frozenset(
    [
        "reduce_sum",
        "reduce_window_sum",
        "cumsum",
        "add",
        "add_any",
        "scatter-add",
        "psum",
        "mul",
        "div",
        "dot_general",
        "conv_general_dilated",
        "reduce_prod",
        "cumprod",
        "max",
        "min",
        "floor",
        "ceil",
        "round",
        "log1p",
        "expm1",
        "tanh",
        "asinh",
        "atan",
        "sinh",
        "clamp",
        "cbrt",
        "integer_pow",
        "pow",
        "sign",
        "stop_gradient",
        "erf",
    ]
)

# Max-like: one operand that is not negative is enough.
ANY_SIGN = frozenset(["max"])

IN_NUMPY = types.MappingProxyType(
    {
        "add": lambda x, y, **_: x + y,
        "sub": lambda x, y, **_: x - y,
        "mul": lambda x, y, **_: x * y,
        "neg": lambda x, **_: -x,
        "sqrt": lambda x, **_: np.sqrt(x),
        "rsqrt": lambda x, **_: (1 / np.sqrt(x)).astype(x.dtype),
        "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
        "squeeze": lambda x, dimensions, **_: x.squeeze(tuple(dimensions)),
        "transpose": lambda x, permutation, **_: x.transpose(permutation),
        "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
        "stop_gradient": lambda x, **_: x,
        "copy": lambda x, **_: x,
    }
)
"""The primitives that normalisations compute constants with, in NumPy: they are evaluated while tracing, where JAX would compile each one."""
