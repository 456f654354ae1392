"""`lrpjax explore STORE`: clusters of a store's explanations, as a person asks for them."""

import numpy as np
import pytest
from helpers import planted_strategies, store_of

from lrpjax import explore
from lrpjax.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    R, classes, strategies = planted_strategies(40)
    folder = tmp_path_factory.mktemp("explored")
    np.save(folder / "classes.npy", classes)
    np.save(folder / "strategies.npy", strategies)
    return store_of(folder / "store", R.astype(np.float32), np.eye(2, dtype=np.float32)[classes]).path


def test_a_store_is_explored_and_the_findings_lie_in_it(store, capsys):
    assert main(["explore", str(store), "--layout", "spectral"]) == 0
    said = capsys.readouterr().out
    assert "102 explanations in 2 groups: 3 clusters" in said and "unlike its class" in said
    assert str(store / "findings.npz") in said
    strategies = np.load(store.parent / "strategies.npy")
    odd = explore.load(store / "findings.npz").clusters[0]
    assert set(odd.rows) == set(np.flatnonzero(strategies == 1))


def test_options(store, tmp_path):
    out = tmp_path / "found.npz"
    classes = ["--classes", str(store.parent / "strategies.npy"), "--clusters", "1", "--rows", "0:80"]
    assert main(["explore", str(store), "--out", str(out), "--layout", "spectral", *classes]) == 0
    found = explore.load(out)
    assert set(found.groups) == {0, 1, 10} and len(found.clusters) == 3 and len(found.rows) == 80
    one = [
        "--classes",
        "none",
        "--normalise",
        "none",
        "--neighbours",
        "4",
        "--pool",
        "6",
        "--most",
        "4",
        "--jobs",
        "1",
    ]
    assert main(["explore", str(store), str(store), "--out", str(out), "--layout", "spectral", *one]) == 0
    found = explore.load(out)
    assert len(found.rows) == 204 and found.settings["pool"] == 6 and found.settings["normalise"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clusters", "few"], "--clusters must be auto or a number"),
        (["--clusters", "60"], "class 0 has 52; class 1 has 50"),
        (["--out", "found.json"], "findings are kept in a .npz file"),
        (["--rows", "a:b"], "--rows must be START:STOP"),
        (["--classes", "nowhere.npy"], "nowhere.npy"),
        (["--name", "heat"], "has the arrays output, relevance, not 'heat'"),
    ],
)
def test_what_does_not_fit_is_said(store, capsys, arguments, message):
    assert main(["explore", str(store), "--layout", "spectral", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_several_stores_need_a_place_for_their_findings(store, capsys):
    assert main(["explore", str(store), str(store)]) == 2
    assert "give --out FILE.npz" in capsys.readouterr().err
