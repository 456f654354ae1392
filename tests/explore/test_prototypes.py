"""Prototypes against scikit-learn's own scores, planted strategies, and bad input."""

import numpy as np
import pytest
from helpers import close

from lrpjax import explore
from lrpjax.explore import ExploreError


@pytest.fixture
def planted():
    rng = np.random.default_rng(2)
    centres = np.array([[4.0, 1, 1, 1], [1, 1, 4, 1], [-1, 5, 1, 1]])
    which = np.r_[np.zeros(60, int), np.ones(30, int), np.full(40, 2)]
    R = centres[which] + rng.normal(0, 0.2, (130, 4))
    return R * rng.uniform(0.5, 20, (130, 1)), np.r_[np.zeros(90, int), np.full(40, 7)], which


def test_planted_strategies_are_found_and_covered(planted):
    R, groups, which = planted
    found = explore.fit_prototypes(R, groups)
    assert set(found.classes) == {0, 7}
    assert len(found.classes[0].weights) == 2 and len(found.classes[7].weights) == 1
    close(found.classes[0].coverage, [2 / 3, 1 / 3])
    assert list(which[found.classes[0].rows]) == [0, 1] and which[found.classes[7].rows[0]] == 2
    assert (found.assign(R[:90], groups[:90]) == which[:90]).all()
    v = R / np.abs(R).sum(1, keepdims=True)
    close(found.classes[7].means[0], v[which == 2].mean(0), 1e-6)
    row = found.classes[0].rows[0]
    near = ((v[which == 0] - found.classes[0].means[0]) ** 2).sum(1)
    assert row == near.argmin()


def test_scores_are_the_log_likelihood_of_a_gaussian(planted):
    from scipy.stats import multivariate_normal

    R, groups, which = planted
    found = explore.fit_prototypes(R, groups, n=1).classes[7]
    v = R / np.abs(R).sum(1, keepdims=True)
    expected = multivariate_normal(found.means[0], found.covariances[0]).logpdf(v[which == 2])
    close(explore.fit_prototypes(R, groups, n=1).score(R[which == 2], 7), expected, 1e-6)
    close(found.scores, np.sort(expected), 1e-6)


def test_a_sample_is_compared_with_its_prototype(planted):
    R, groups, _ = planted
    found = explore.fit_prototypes(R, groups)
    new = np.array([4.0, 1, 1, 4])
    deviation = found.deviation(new, 0)
    close(deviation.delta[0], new / 10 - found.classes[0].means[deviation.prototype[0]])
    assert deviation.delta[0].argmax() == 3 and deviation.z[0, 3] > 5
    assert found.outliers([new, R[0]], 0).tolist() == [True, False]
    assert found.outliers(R[:90], groups[:90], 0.1).sum() == 9
    assert found.score(3.0 * R, groups) == pytest.approx(found.score(R, groups))


def test_the_same_again_and_from_disk(planted, tmp_path):
    R, groups, _ = planted
    one, two = (explore.fit_prototypes(R, groups, n=2, seed=4) for _ in range(2))
    read = explore.load_prototypes(one.save(tmp_path / "p.npz"))
    for other in (two, read):
        assert (other.score(R, groups) == one.score(R, groups)).all()
        assert other.settings == one.settings == {"n": 2, "at_most": 8, "seed": 4}
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:-300])
    with pytest.raises(ExploreError, match="damaged"):
        explore.load_prototypes(tmp_path / "p.npz")
    with pytest.raises(ExploreError, match="no prototypes in"):
        explore.load_prototypes(tmp_path / "q.npz")
    with pytest.raises(ExploreError, match=r"in a \.npz file"):
        one.save(tmp_path / "p.json")
    with pytest.raises(ExploreError, match="cannot be written"):
        one.save(tmp_path / "nowhere" / "p.npz")


def test_what_does_not_fit(planted):
    R, groups, _ = planted
    bad = R.copy()
    bad[[3, 8], 1] = np.nan
    with pytest.raises(ExploreError, match="rows 3, 8 are not finite"):
        explore.fit_prototypes(bad, groups)
    with pytest.raises(ExploreError, match="rows 5 are all 0"):
        explore.fit_prototypes(np.where(np.arange(130)[:, None] == 5, 0.0, R), groups)
    with pytest.raises(ExploreError, match=r"class 9 has one sample \(row 0\)"):
        explore.fit_prototypes(R, np.r_[9, groups[1:]])
    with pytest.raises(ExploreError, match="class 7 has 40 samples, fewer than the 50"):
        explore.fit_prototypes(R, groups, n=50)
    with pytest.raises(ExploreError, match="no samples"):
        explore.fit_prototypes(R[:0], groups[:0])
    with pytest.raises(ExploreError, match="one class for each"):
        explore.fit_prototypes(R, groups[:5])
    with pytest.raises(ExploreError, match=r"are \[samples, concepts\]"):
        explore.fit_prototypes(R[0], 0)
    for n in (0, "many", 1.5):
        with pytest.raises(ExploreError, match="n is a number"):
            explore.fit_prototypes(R, groups, n)
    found = explore.fit_prototypes(R, groups, n=1)
    with pytest.raises(ExploreError, match="no prototypes were fitted for class 3"):
        found.score(R[:1], 3)
    with pytest.raises(ExploreError, match="of 4 concepts, but the samples have 3"):
        found.score(R[:1, :3], 0)
    with pytest.raises(ExploreError, match="a quantile"):
        found.outliers(R, groups, 2.0)


def test_a_mixture_that_has_not_settled_is_said(planted, monkeypatch):
    """scikit-learn's own warning is let go, for mixtures that are tried and not taken."""
    from sklearn import mixture

    R, groups, _ = planted
    of = mixture.GaussianMixture
    monkeypatch.setattr(
        mixture, "GaussianMixture", lambda n, max_iter, **others: of(n, max_iter=1, tol=0.0, **others)
    )
    with pytest.warns(UserWarning, match="2 components of class 0 has not settled after 1 steps"):
        explore.fit_prototypes(R[:90], groups[:90], n=2)
