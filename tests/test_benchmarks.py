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


def run(path, *more):
    bench.main(["--networks", "tiny_vgg", "--quick", "--no-growth", "--json", str(path), *more])
    return json.loads(path.read_text())


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path, capsys):
    report = run(tmp_path / "figures.json", "--dtypes", "float32", "bfloat16")
    printed = capsys.readouterr().out
    rows = {(row["dtype"], row["composite"]): row for row in report["cost"]}
    few = ["epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"]
    assert list(rows) == [(dtype, name) for dtype in ("float32", "bfloat16") for name in few]
    for row in rows.values():
        assert row["finite"] and row["clock"] > 0 and row["trace"] > 0 and row["compile"] > 0
        assert row["clock/flops"] == pytest.approx(row["clock"] / row["flops"])
        assert row["composite"] in printed
    # One more product with the weights for z⁺ and two more for αβ, in all but the first layer at the least: never fewer flops than ε.
    flops = [rows["float32", name]["flops"] for name in few[:3]]
    assert 1 <= flops[0] < flops[1] < flops[2]
    # bfloat16 has 8 bits: relevance that is right is near float32's, and not equal to it.
    assert all(0 < rows["bfloat16", name]["error"] < 0.3 for name in few)
    assert report["versions"]["jax"] == jax.__version__ and not report["growth"] and not report["peers"]


def test_figures_are_added_to_a_file_of_the_same_settings_only(tmp_path):
    path = tmp_path / "figures.json"
    first = run(path, "--dtypes", "--size", "16")
    assert run(path, "--dtypes", "--size", "16") == first
    path.write_text(json.dumps(first | {"cost": [{"network": "other"}]}))
    assert run(path, "--dtypes", "--size", "16")["cost"] == [{"network": "other"}]
    with pytest.raises(SystemExit, match="of another size, 16"):
        run(path, "--dtypes", "--size", "8")
