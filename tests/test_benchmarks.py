"""The benchmark's command, on a tiny network, and what it counts."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmarks"))

import bench
import bench_7b
import bench_growth
import counting
import networks


@pytest.fixture(autouse=True)
def keep_caches(monkeypatch):
    """The command empties JAX's caches before it times tracing; other tests would have to fill them again."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture(autouse=True)
def as_the_command_runs():
    """The suite has float64 and strict promotion; the benchmarks run as users do."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


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


def dots(f, *given):
    return counting.products(jax.jit(f).trace(*given).jaxpr)


def test_products_count_as_often_as_they_run_and_equal_ones_once():
    x, w, ws = jnp.ones((4, 5)), jnp.ones((5, 5)), jnp.ones((6, 5, 5))
    one = 2 * 4 * 5 * 5
    assert dots(lambda x: x @ w, x).kinds == {"dot_general": [one, 1]}
    assert dots(lambda x: x @ w + jax.jit(lambda x: x @ w)(x), x).flops == one
    assert dots(lambda x: (x @ w, 2.0 * (x @ w))[0] + 0.0 * (x @ w.T), x).flops == 2 * one
    assert dots(lambda x: (x @ w, x)[1], x).flops == 0
    step = lambda x, w: (jnp.tanh(x @ w), None)
    loop = lambda step: lambda x: lax.scan(step, x, ws)[0].sum()
    assert dots(loop(step), x).kinds == {"dot_general": [6 * one, 6]}
    assert dots(jax.grad(loop(step)), x).flops == 12 * one
    assert dots(jax.grad(loop(jax.checkpoint(step))), x).flops == 18 * one
    either = lambda x: lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
    assert dots(either, x).flops == 2 * one


def test_convolutions_count_products_with_values_that_exist():
    x, w = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 7))
    conv = lambda x: lax.conv_general_dilated(
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # Four outputs of three taps along each side, of which the last tap of the last output is padding: 11.
    assert dots(conv, x).flops == 2 * 11 * 11 * 2 * 7
    assert dots(jax.grad(lambda x: jnp.square(conv(x)).sum()), x).flops == 2 * 2 * 11 * 11 * 2 * 7
    deep = lambda x: lax.conv_general_dilated(
        x,
        jnp.ones((1, 1, 1, 2)),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    assert dots(deep, x).flops == 2 * 64 * 2


@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name.startswith("tiny")])
def test_networks_are_explained_at_no_more_products_than_the_gradient(name):
    model = networks.NETWORKS[name]
    given = jax.eval_shape(lambda: (networks.weights.__wrapped__(model, 32), networks.inputs(model, 32, 2)))
    classes = jnp.zeros(2, int)
    counts = [
        dots(lambda variables, x, make=make: make(lambda x: model.apply(variables, x))(x), *given)
        for make in (bench.relevance_of(bench.COMPOSITES["all epsilon"], classes), bench.gradient_of(classes))
    ]
    assert 0 < counts[0].flops < 1.02 * counts[1].flops


def test_loops_say_what_they_stack_up():
    ws = jnp.ones((6, 5, 5))
    step = lambda x, w: (jnp.sin(x @ w), None)
    for body in (step, jax.checkpoint(step)):  # six cosines, or what six steps start from
        slope = jax.grad(lambda x, body=body: lax.scan(body, x, ws)[0].sum())
        assert counting.stacked(jax.jit(slope).trace(jnp.ones((4, 5))).jaxpr) == 6 * 4 * 5 * 4


PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %sum = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %x), to_apply=%add
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %x)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %loop = (s32[], /*index=1*/f32[4]{0}) while(%t.1), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused
}
"""


def test_operations_of_a_compiled_program_count_as_often_as_they_run():
    found = counting.operations(PROGRAM)
    assert found["all-reduce"] == [3, 3 * (16 + 12)]
    assert found["fusion"] == [1, 16] and found["while"] == [1, 20]


def test_programs_without_weights_are_counted():
    size = bench_7b.Size(2, 16, 2, 24, 32, 8)
    rows = {}
    for remat in (False, True):
        for method in bench_7b.METHODS:
            made = jax.jit(bench_7b.of(size, method, remat)).trace(size.shapes(), size.texts(1))
            rows[method, remat] = counting.products(made.jaxpr).flops, counting.stacked(made.jaxpr)
    assert rows["gradient", False][0] <= rows["attnlrp", False][0] < 1.01 * rows["gradient", False][0]
    assert all(rows[method, True][1] < rows[method, False][1] for method in bench_7b.METHODS)


def test_tracing_of_unrolled_blocks_is_timed():
    found = bench_growth.tracing(1, remat=True, turns=1)
    assert set(found) == {"attnlrp", "epsilon_plus", "gradient"} and min(found.values()) > 0
