"""The benchmark's command, on a tiny network."""

import json
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmarks"))

import bench


@pytest.fixture(autouse=True)
def keep_caches(monkeypatch):
    """The command empties JAX's caches before it times tracing; other tests would have to fill them again."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    names = ["epsilon_plus_flat"]
    bench.main(
        ["--networks", "tiny_vgg", "--composites", *names, "--quick", "--no-growth", "--json", str(path)]
    )
    report, printed = json.loads(path.read_text()), capsys.readouterr().out
    rows = {(row["dtype"], row["composite"]): row for row in report["cost"]}
    assert list(rows) == [(dtype, name) for dtype in ("float32", "bfloat16") for name in names]
    for row in rows.values():
        assert row["finite"] and row["clock"] > 0 and row["trace"] > 0 and row["compile"] > 0
        assert row["clock/flops"] == pytest.approx(row["clock"] / row["flops"])
        assert row["composite"] in printed
    # z⁺ takes one more product with the weights of the second convolution
    assert rows["float32", "epsilon_plus_flat"]["flops"] > 1.1
    # bfloat16 has 8 bits: relevance that is right is near float32's, and not equal to it.
    assert all(0 < rows["bfloat16", name]["error"] < 0.3 for name in names)
    assert report["versions"]["jax"] == jax.__version__ and not report["growth"] and not report["peers"]


def test_figures_are_added_to_a_file_of_the_same_settings_only(tmp_path):
    path = tmp_path / "figures.json"
    settings = {
        "device": "a chip",
        "size": 16,
        "weights": "arguments",
        "threads": 1,
        "versions": {"jax": "1"},
    }
    report = settings | {"cost": [], "growth": [], "peers": []}
    assert bench.added(report, None) == bench.added(report, path) == report
    path.write_text(json.dumps(report | {"cost": [{"network": "vgg16"}], "versions": {"torch": "2"}}))
    both = bench.added(report, path)
    assert both["cost"] == [{"network": "vgg16"}] and both["versions"] == {"jax": "1", "torch": "2"}
    with pytest.raises(SystemExit, match="of another size, 16"):
        bench.added(report | {"size": 8}, path)
