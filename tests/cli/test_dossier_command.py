"""The sub-command dossier, on models and files as users have them."""

import argparse
import json
import shlex
import sys

import numpy as np
import pytest
from explain_in_process import command as explaining

from lrpjax import dossier, loading
from lrpjax.cli import dossiers

MODEL = """
import numpy as np
import jax


def network(params, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ params["first"]) @ params["last"]


def build():
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)
    return network, {"first": draw(36, 8), "last": draw(8, 3)}


def other():
    f, params = build()
    return f, {**params, "last": 2 * params["last"]}


def broken():
    return (lambda params, x: x @ params), np.ones((5, 5), np.float32)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    (tmp_path / "audited.py").write_text(MODEL)
    random = np.random.default_rng(1)
    np.save(tmp_path / "my inputs.npy", random.random((30, 6, 6, 1), np.float32))
    np.save(tmp_path / "true.npy", random.integers(0, 3, 30))
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("audited", None)


def run(*arguments, model="audited:build", out="out"):
    parser = argparse.ArgumentParser("lrpjax")
    dossiers.add_dossier_parser(parser.add_subparsers(dest="command"))
    given = ("--model", model, "--inputs", "my inputs.npy", "--out", out)
    args = parser.parse_args(["dossier", *map(str, [*given, *arguments])])
    return args.run(args)


def test_a_dossier_its_command_and_its_check(directory, capsys):
    options = ("--classes", "true.npy", "--labels", "labels.txt", "--samples", 12, "--composite", "epsilon")
    options = (*options, "--composite-arg", "epsilon=0.1", "--mean", "0.5")
    assert run(*options) == 0
    shown = capsys.readouterr().out
    assert "written: " in shown and "Does a second run give the same? passed" in shown
    data = json.loads((directory / "out" / "dossier.json").read_text())
    assert data["data"]["examined"] == 12 and data["data"]["given"] == 30
    assert data["composite"]["name"] == "epsilon(epsilon=0.1)" and data["model"]["names"] == [
        "cat",
        "dog",
        "owl",
    ]
    x, rows = np.load("my inputs.npy") - np.float32(0.5), data["data"]["rows"]
    build = loading._named_object("audited:build", "--model")
    f, params = build()
    right = np.asarray(f(params, x[rows])).argmax(1) == np.load("true.npy")[rows]
    assert data["data"]["accuracy"]["mean"] == pytest.approx(right.mean())

    # The command that the dossier names, split as a shell does, makes the same one.
    words = shlex.split(data["made"]["command"])
    words = words[words.index("lrpjax") :]
    assert words[:2] == ["lrpjax", "dossier"] and "my inputs.npy" in words and "--batch" not in words
    parser = argparse.ArgumentParser("lrpjax")
    dossiers.add_dossier_parser(parser.add_subparsers())
    args = parser.parse_args([*words[1:], "--check", "out/dossier.json"])
    args.out = "again"
    assert args.run(args) == 0
    assert "equal in every bit: brief, clusters, composite" in capsys.readouterr().out
    assert dossier.compare("out", "again").equal

    assert run(*options, "--check", "out/dossier.json", model="audited:other", out="third") == 1
    shown = capsys.readouterr().out
    assert "explanations: 2 values differ" in shown and "environment" in shown.split("equal in every bit")[1]


def test_a_store_of_the_same_model_and_of_others(capsys):
    given = ("--model", "audited:build", "--inputs", "my inputs.npy", "--out", "store")
    assert explaining("explain", *given) == 0
    assert run("--store", "store", "--samples", 10) == 0
    data = dossier.load("out").data
    assert data["store"]["rows"] == 30 and data["store"]["kept"]["n"] == 30
    assert data["store"]["outputs_compared"]["samples"] == 10
    assert "the store has none" in data["clusters"]["because"]
    with pytest.raises(
        dossier.DossierError, match="was made with model 'audited:build', and this command examines"
    ):
        run("--store", "store", model="audited:other")
    with pytest.raises(dossier.DossierError, match="was made with composite"):
        run("--store", "store", "--composite", "epsilon")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "labels.txt"), "must be a .npy file"),
        (("--classes", "my inputs.npy"), "not one class number for each of 30 inputs"),
        (("--seed", "-1"), "--seed must be 0 or more"),
        (("--target", "bird", "--labels", "labels.txt"), "there is no such name in --labels"),
        (("--check", "nowhere.json"), "there is no dossier in"),
        (("--patch", "7"), "patch"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(options, message, directory):
    with pytest.raises(ValueError, match=message):
        run(*options)
    assert not (directory / "out").exists()


def test_a_model_that_fails(directory):
    with pytest.raises(ValueError, match=r"--model audited:broken: f\(params, x\) failed for x of float32"):
        run(model="audited:broken")
    assert not (directory / "out").exists()
