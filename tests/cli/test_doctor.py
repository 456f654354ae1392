"""`lrpjax doctor`: it tells what is there, notices what does not work, and tells nothing of its user."""

import getpass
import json
import os
import platform

import jax
import numpy as np

import lrpjax
from lrpjax import cli
from lrpjax.cli import doctor


def test_a_report_for_people(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for text in (
        f"lrpjax {lrpjax.__version__}",
        f"jax {jax.__version__}",
        f"numpy {np.__version__}",
        "device: ",
    ):
        assert text in shown
    assert shown.count("PASS") == 4 and "FAIL" not in shown
    assert "extra viz: matplotlib " in shown and "extra test" not in shown and "extra docs" not in shown


def test_a_report_for_programs_names_no_place_and_no_person(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tmp_path}")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown)
    assert found["passed"] and found["packages"]["jax"] == jax.__version__
    assert found["environment"]["XLA_FLAGS"].endswith("--xla_dump_to=<path>")
    assert found["environment"]["JAX_COMPILATION_CACHE_DIR"] == "(set)"
    secrets = {str(tmp_path), os.getcwd(), os.path.expanduser("~"), platform.node()}
    assert not [s for s in secrets if len(s) > 3 and s in shown]
    assert f"/{getpass.getuser()}" not in shown


def test_checks_notice_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_LAST", np.array([1, 2.1, 4], np.float32))
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL relevance sums to the output: found [7.09" in shown
    assert "PASS ε = 0 is gradient × input" in shown


def test_checks_that_fail_do_not_hide_the_report(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler in /opt/secret/bin")

    monkeypatch.setattr(doctor.transform, "relevance", broken)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL float32 stays float32: found RuntimeError: no compiler in <path>" in shown
    assert "device: " in shown
