"""PRCA against planted relevance, random subspaces, and conservation."""

import numpy as np
import pytest
from helpers import close

from lrpjax import explore
from lrpjax.explore import ExploreError


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_the_planted_subspace_is_found(rng):
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    shared = rng.normal(size=(4000, 2)) * [3.0, 2.0]
    a = shared @ basis[:, :2].T + rng.normal(size=(4000, 6)) @ basis[:, 2:].T
    c = shared @ basis[:, :2].T + rng.normal(size=(4000, 6)) @ basis[:, 2:].T
    U = explore.prca(a, c, 2)
    close(U.T @ U, np.eye(2))
    assert np.linalg.svd(U.T @ basis[:, :2])[1].min() > 0.99
    kept = lambda U: ((a @ U) * (c @ U)).sum(1).mean()
    others = [kept(np.linalg.qr(rng.normal(size=(8, 2)))[0]) for _ in range(50)]
    assert kept(U) > max(others)


def test_all_directions_conserve(rng):
    a, c = rng.normal(size=(2, 30, 5))
    U = explore.prca(a, c, 5)
    close(((a @ U) * (c @ U)).sum(1), (a * c).sum(1))


def test_what_does_not_fit(rng):
    a = rng.normal(size=(6, 3))
    with pytest.raises(ExploreError, match=r"both \[N, D\]"):
        explore.prca(a, a[:2], 1)
    with pytest.raises(ExploreError, match="k is a number of directions"):
        explore.prca(a, a, 4)
    a[2, 1] = np.inf
    with pytest.raises(ExploreError, match="rows 2 are not finite"):
        explore.prca(a, a, 1)
