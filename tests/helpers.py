"""What many test files need: numbers compared, flax run as it needs it, and where the stored reference values are."""

import pathlib

import jax
import numpy as np

import lrpjax
from lrpjax import rules, select
from lrpjax.store import StoreWriter, fingerprint, open_store

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


def planted_strategies(seed=0, sizes=((40, 12), (50,)), noise=0.05):
    """Explanations [n, 12, 12, 3] with the class of each and its strategy: of each class the first looks at a place of its
    own, the second at a corner."""
    rng = np.random.default_rng(seed)
    R, classes, strategies = [], [], []
    for group, counts in enumerate(sizes):
        for strategy, count in enumerate(counts):
            maps = noise * rng.normal(size=(count, 12, 12, 3)) / 12
            y = (2 + 4 * group, 0)[strategy]
            maps[:, y : y + 4, y : y + 4] += rng.uniform(0.5, 1.5, (count, 4, 4, 3))
            R.append(maps)
            classes += [group] * count
            strategies += [10 * group + strategy] * count
    order = rng.permutation(len(classes))
    return np.concatenate(R)[order], np.array(classes)[order], np.array(strategies)[order]


def store_of(path, R, output=None, settings=None, finish=True, batch=16):
    """A store with these relevances, and these outputs, written batch by batch."""
    results = {"relevance": R} if output is None else {"output": output, "relevance": R}
    forms = {name: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for name, a in results.items()}
    writer = StoreWriter(path, settings or {"model": "m"}, forms)
    for index, first in enumerate(range(0, len(R), batch)):
        part = {name: a[first : first + batch] for name, a in results.items()}
        writer.write(index, part, fingerprint(part))
    if finish:
        writer.finish(-(-len(R) // batch))
    return open_store(path)
