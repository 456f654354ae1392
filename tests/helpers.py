"""What many test files need: numbers compared, flax run as it needs it, and where the stored reference values are."""

import pathlib

import jax
import numpy as np

import lrpjax
from lrpjax import rules, select

REFERENCES = pathlib.Path(__file__).parent / "references"


NORMS = lrpjax.Composite(
    [
        (select.kind("sum", "pool") & ~select.kind("max_pool"), rules.Norm(1e-2)),
        (select.kind("dense"), rules.Epsilon(0.0)),
    ]
)
"""What reaches inside a softmax shows: its stabiliser is large."""


def close(found, wanted, tolerance=1e-9, *, relative=None, of_largest=False):
    """Fails unless |found − wanted| ≤ atol + rtol |wanted| for every element of the arrays of two pytrees.

    Args:
        found, wanted: arrays, or pytrees of them.
        tolerance: atol and rtol.
        relative: rtol, where it is another one.
        of_largest: whether atol is `tolerance` of the largest |wanted| of each array instead.
    """

    def compare(found, wanted):
        found, wanted = np.asarray(found), np.asarray(wanted)
        atol = tolerance * np.abs(wanted).max() if of_largest else tolerance
        np.testing.assert_allclose(found, wanted, rtol=tolerance if relative is None else relative, atol=atol)

    jax.tree.map(compare, found, wanted)


def lenient(f):
    """f, traced under JAX's usual promotion of dtypes: some of flax itself needs it."""

    def call(*args):
        with jax.numpy_dtype_promotion("standard"):
            return f(*args)

    return call
