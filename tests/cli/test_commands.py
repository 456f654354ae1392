"""The sub-commands explain, plan and show, on models and files as users have them."""

import functools
import sys
from pathlib import Path

import helpers
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from explain_in_process import command, free_address, in_processes
from flax import nnx
from PIL import Image

import lrpjax
from lrpjax import loading
from lrpjax.data import layout
from lrpjax.data.shares import Share
from lrpjax.data.store import StoreError, cut, open_store
from lrpjax.pretrained import read_safetensors

close = functools.partial(helpers.close, tolerance=1e-5, relative=1e-7, of_largest=True)

MODEL = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from lrpjax import composites


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Graph(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(nnx.relu(self.conv(x))).mean((1, 2)))


def linen():
    return CNN().apply, jax.eval_shape(CNN().init, jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.float32))


def filled():
    return CNN().apply, CNN().init(jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.float32))


def graph():
    graph, state = nnx.split(nnx.eval_shape(lambda: Graph(rngs=nnx.Rngs(0))))
    return (lambda state, x: nnx.merge(graph, state)(x)), state


def linear():
    return (lambda params, x: x.reshape(len(x), -1) @ params), np.ones((4, 3), np.float32)


def mean():
    return (lambda params, x: x.mean((1, 2)) * params), np.float32(1)


def normed():
    return (lambda params, x: params * x / x.sum(1, keepdims=True)), np.float32(1)


def broken():
    raise KeyError("weights")


def alone():
    return CNN()


number = 3
own = composites.Composite(composites.epsilon(0.5).pairs)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """A working directory with the user's module `digits` and an array of inputs."""
    (tmp_path / "digits.py").write_text(MODEL)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 6, 6, 1), np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("digits", None)


def digits():
    return loading._named_object("digits:filled", "--model").__globals__


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree)


def stored(name="relevance", path="out"):
    return np.asarray(open_store(path)[name])


def explain(*arguments, model="digits:filled", inputs="x.npy", out="out"):
    return command("explain", "--model", model, "--inputs", inputs, "--out", out, *arguments)


def expected(composite, target, at=None):
    f, params = digits()["filled"]()
    y, R = lrpjax.value_and_relevance(f, composite, argnums=1, target=target, at=at)(params, np.load("x.npy"))
    return np.asarray(y), np.asarray(R)


@pytest.mark.parametrize(
    ("composite", "arguments"),
    [
        (lrpjax.composites.epsilon_plus(), []),
        (lrpjax.composites.epsilon(0.1), ["--composite", "epsilon", "--composite-arg", "epsilon=0.1"]),
        (
            lrpjax.composites.epsilon_gamma_box(0, 1),
            ["--composite", "epsilon_gamma_box", "--composite-arg", "low=0", "--composite-arg", "high=1"],
        ),
        (lrpjax.composites.epsilon(0.5), ["--composite", "digits:own"]),
    ],
)
def test_explain_stores_what_relevance_gives(composite, arguments, capsys):
    save("weights", digits()["filled"]()[1])
    assert explain(*arguments, "--params", "weights", "--batch", 8, model="digits:linen") == 0
    y, R = expected(composite, "max")
    close(stored(), R)
    close(stored("output"), y)
    assert open_store("out").batches[:, 0].tolist() == [8, 8, 4]
    shown = capsys.readouterr()
    assert "20 inputs in" in shown.out
    assert "20/20" in shown.err
    share = R.reshape(20, -1).sum(1) / y.max(1)
    line = f"kept: Σ R / f(x) is {np.median(share):.3g} in the median, from {share.min():.3g} to {share.max():.3g}"
    assert line in shown.out
    assert command("show", "out", "--name", "output") == 0
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "target"), [("all", None), ("2", 2), ("max", "max"), ("labels.npy", "labels")]
)
def test_targets(text, target):
    labels = np.random.default_rng(1).integers(0, 3, 20)
    np.save("labels.npy", labels)
    assert explain("--target", text, "--batch", 8) == 0
    close(stored(), expected(lrpjax.composites.epsilon_plus(), labels if target == "labels" else target)[1])


def test_at_a_named_value():
    assert explain("--at", "CNN/Conv_0") == 0
    close(stored(), expected(lrpjax.composites.epsilon_plus(), "max", "CNN/Conv_0")[1])
    assert stored().shape == (20, 6, 6, 4)


def test_a_checkpoint_of_nnx_with_random_keys():
    model = digits()["Graph"](nnx.Rngs(7))
    save("weights", nnx.split(model)[1])
    assert explain("--params", "weights", model="digits:graph") == 0
    y = model(jnp.asarray(np.load("x.npy")))
    close(stored("output"), np.asarray(y))


def test_a_checkpoint_manager_with_one_step_and_with_several():
    params = digits()["filled"]()[1]
    with ocp.CheckpointManager(Path("manager").absolute()) as manager:
        manager.save(3, args=ocp.args.StandardSave(params))
        manager.wait_until_finished()
        assert explain("--params", "manager", model="digits:linen") == 0
        close(stored("output"), expected(None, "max")[0])
        manager.save(5, args=ocp.args.StandardSave(params))
        manager.wait_until_finished()
    with pytest.raises(
        FileNotFoundError, match="several checkpoints; give one of manager/3/default, manager/5/default"
    ):
        explain("--params", "manager", model="digits:linen")


def test_pictures():
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7
    Image.fromarray(grey).save("b.png")
    Image.fromarray(np.uint16(grey) * 257).save("c.png")
    Image.fromarray(grey).convert("1").save("a.png")
    inputs = loading.Inputs(["?.png"])
    assert [path.name for path in inputs.paths] == ["a.png", "b.png", "c.png"]
    assert inputs.rows == 3
    rows = inputs[0:3]
    assert (rows.dtype, rows.shape) == (np.float32, (3, 6, 6, 1))
    assert set(rows[0].ravel()) == {0, 1}
    np.testing.assert_allclose(rows[1, ..., 0], grey / 255, rtol=1e-6)
    np.testing.assert_allclose(rows[2], rows[1], rtol=1e-6)
    assert explain(inputs="?.png", model="digits:mean") == 0
    close(stored("output"), rows.mean((1, 2)))


def test_coloured_pictures_and_sizes():
    colours = np.random.default_rng(0).integers(0, 256, (8, 4, 3), np.uint8)
    Image.fromarray(colours).save("rgb.png")
    Image.fromarray(colours).convert("RGBA").save("rgba.png")
    Image.fromarray(colours).convert("P").save("palette.png")
    Image.fromarray(np.full((8, 4, 3), 90, np.uint8)).save("flat.jpg")
    np.testing.assert_allclose(loading.Inputs(["rgb.png"])[0:1], colours[None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(loading.Inputs(["rgb.png"])[0:1], loading.Inputs(["rgba.png"])[0:1])
    assert loading.Inputs(["palette.png"])[0:1].shape == (1, 8, 4, 3)
    np.testing.assert_allclose(loading.Inputs(["flat.jpg"])[0:1], 90 / 255, atol=0.01)
    resized = loading.Inputs(["rgb.png", "flat.jpg"], size="16x2")[0:2]
    assert resized.shape == (2, 16, 2, 3)
    turned = Image.fromarray(colours)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save("turned.png", exif=exif)
    np.testing.assert_allclose(
        loading.Inputs(["turned.png"])[0:1], np.rot90(colours, -1)[None] / 255, rtol=1e-6
    )


def test_photographs_are_resized_along_their_shorter_side_cropped_and_normalised():
    colours = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(colours).save("wide.png")
    Image.fromarray(np.moveaxis(colours, 0, 1)).save("high.png")
    pixels = lambda path, **options: loading.Inputs([path], **options)[0:1]
    assert pixels("wide.png", size="6").shape == (1, 6, 8, 3)  # 6 * 13 / 9 is 8.67
    assert pixels("high.png", size="6").shape == (1, 8, 6, 3)
    np.testing.assert_array_equal(pixels("wide.png", size="6"), pixels("wide.png", size="6x8"))
    middle = pixels("wide.png", crop="5x3")
    np.testing.assert_allclose(middle, colours[None, 2:7, 5:8] / 255, rtol=1e-6)
    both = loading.Inputs(["wide.png", "high.png"], size="6", crop="6x6", mean="0.5,0.4,0.3", std="0.25")
    whole = pixels("wide.png", size="6x8")[:, :, 1:7]
    for c, mean in enumerate((0.5, 0.4, 0.3)):
        np.testing.assert_allclose(both[0:2][:1, ..., c], (whole[..., c] - mean) / 0.25, atol=1e-6)
    assert both[0:2].shape == (2, 6, 6, 3) and both[0:2].dtype == np.float32
    np.save("bytes.npy", np.uint8([[0, 255]]))
    np.testing.assert_allclose(pixels("bytes.npy", mean="0.5", std="0.5"), [[-1, 1]])
    np.testing.assert_allclose(pixels("bytes.npy", std="1,2"), [[0, 0.5]])
    with pytest.raises(ValueError, match=r"--crop 6x9: .*wide.png is 6x8 there; --size makes it larger"):
        pixels("wide.png", size="6", crop="6x9")
    with pytest.raises(ValueError, match=r"--mean has 2 numbers, but wide.png has 3 channels"):
        pixels("wide.png", mean="1,2")
    np.save("tokens.npy", np.int32([[0, 255]]))
    with pytest.raises(ValueError, match=r"--std: tokens.npy has int32, and only floats and bytes are"):
        pixels("tokens.npy", std="2")


def test_relevance_is_that_of_the_normalised_input():
    assert explain("--mean", "0.25", "--std", "0.5") == 0
    f, params = digits()["filled"]()
    R = lrpjax.relevance(f, lrpjax.composites.epsilon_plus(), argnums=1, target="max")
    close(stored(), np.asarray(R(params, (np.load("x.npy") - np.float32(0.25)) / np.float32(0.5))))
    assert open_store("out").settings["mean"] == "0.25"
    with pytest.raises(StoreError, match=r"other settings .*std: '0.5' there, '1' now"):
        explain("--mean", "0.25", "--std", "1")


def test_classes_have_names(capsys):
    Path("names.txt").write_text("tabby cat\nrocket\nvase\n")
    assert explain("--labels", "names.txt", "--target", "rocket") == 0
    close(stored(), expected(lrpjax.composites.epsilon_plus(), 1)[1])
    assert open_store("out").settings["labels"] == ["tabby cat", "rocket", "vase"]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrpjax.viz.sheet", lambda *_, captions, **__: drawn.extend(captions))
        assert command("show", "out", "--rows", "0:8") == 0
    top = [["tabby cat", "rocket", "vase"][c] for c in stored("output").argmax(1)]
    assert drawn == [[f"{row}: {name}" for row, name in enumerate(top[:8])]]
    Path("names.txt").write_text("cat\n\nvase\n")
    with pytest.raises(
        ValueError, match=r"--labels names.txt must name a class in every line, but 1 of 3 is"
    ):
        explain("--labels", "names.txt", out="other")
    Path("names.txt").write_text("cat\nvase\n")
    with pytest.raises(ValueError, match=r"--labels names.txt has 2 names, but the outputs are .*3"):
        explain("--labels", "names.txt", out="other")
    with pytest.raises(ValueError, match=r"--target must be max, .*; there is no such name in --labels"):
        explain("--labels", "names.txt", "--target", "dog", out="other")
    capsys.readouterr()


def test_rows_of_several_files_are_put_one_after_the_other():
    numbers = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    np.save("1.npy", numbers[:5])
    np.savez("2.npz", numbers[5:6])
    np.savez_compressed("3.npz", x=numbers[6:], other=np.zeros(3))
    with pytest.raises(ValueError, match=r"3\.npz has the arrays x, other; choose one with --key"):
        loading.Inputs(["[123].np*"])
    inputs = loading.Inputs(["1.npy", "2.npz"])
    np.testing.assert_array_equal(inputs[3:6], numbers[3:6])
    np.savez("2.npz", x=numbers[5:6])
    inputs = loading.Inputs(["[123].np*"], key="x")
    assert inputs.rows == 12
    for start in range(12):
        for stop in range(start + 1, 13):
            np.testing.assert_array_equal(inputs[start:stop], numbers[start:stop])
    np.save("bytes.npy", np.uint8([[0, 255]]))
    np.testing.assert_array_equal(loading.Inputs(["bytes.npy"])[0:1], np.float32([[0, 1]]))


def test_heatmaps_and_going_on(capsys, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 2)
    assert explain("--png", "--batch", 8) == 0
    pictures = sorted(Path("out/png").iterdir())
    assert [path.name for path in pictures] == [f"{number:08d}.png" for number in range(20)]
    with Image.open(pictures[7]) as picture:
        from lrpjax import viz

        np.testing.assert_array_equal(np.asarray(picture), viz.heatmap(stored()[7]))
    pictures[3].unlink()
    cut("out", 2)
    before = stored()
    assert len(before) == 16
    assert explain("--png", "--batch", 8) == 0
    assert pictures[3].exists()
    assert len(stored()) == 20
    with pytest.raises(StoreError, match=r"other settings .*target: 'max' there, '1' now"):
        explain("--target", "1", "--batch", 8)
    capsys.readouterr()


def test_results_that_are_not_finite_give_an_exit_code_and_a_line(capsys):
    values = np.ones((6, 2), np.float32)
    values[[1, 4]] = [1, -1]
    np.save("x.npy", values)
    assert explain("--batch", 2, model="digits:normed") == 1
    shown = capsys.readouterr().err
    assert "warning: batch 0: the results of 1 of its 2 rows have a NaN or an infinity" in shown
    assert "the results of 2 inputs, in batches 0, 2, have a NaN or an infinity" in shown
    assert command("show", "out") == 0
    assert "not finite: 2 rows, in batches 0, 2" in capsys.readouterr().out


def test_plan(capsys):
    assert command("plan", "--model", "digits:linen", "--shape", "2,6,6,1") == 0
    by_shape = capsys.readouterr().out
    assert command("plan", "--model", "digits:filled", "--inputs", "x.npy", "--composite", "epsilon") == 0
    by_inputs = capsys.readouterr().out
    for path in ("CNN/Conv_0", "CNN/Dense_0"):
        assert path in by_shape
        assert path in by_inputs
    assert "ZPlus" in by_shape
    assert "ZPlus" not in by_inputs


def test_show(capsys):
    explain("--batch", 8)
    capsys.readouterr()
    assert command("show", "out", "--rows", "2:7", "--columns", "3", "--out", "sheet.png") == 0
    shown = capsys.readouterr().out
    for text in (
        "20 rows, complete",
        "relevance: float32[20, 6, 6, 1]",
        "composite = epsilon_plus()",
        "sheet.png",
    ):
        assert text in shown
    with Image.open("sheet.png") as picture:
        assert picture.width > picture.height / 2
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert command("show", "out") == 0
    assert Path("out/sheet.png").exists()


def test_results_are_read_whole_when_asked_for(capsys):
    explain("--batch", 8)
    assert command("show", "out", "--verify") == 0
    assert "read whole: nothing is damaged" in capsys.readouterr().out
    (file,) = Path("out/output").glob("c.0*")
    file.write_bytes(file.read_bytes()[:-1])
    assert command("show", "out", "--name", "explained") == 0
    with pytest.raises(StoreError, match=r"output/c.0.0 \(batches 0 to 2, rows 0 to 19\) has .* bytes, not"):
        command("show", "out", "--verify")


def test_a_run_that_goes_on_reads_results_for_pictures_only(monkeypatch, capsys):
    explain("--batch", 8)
    capsys.readouterr()
    results, read = Share.results, []
    monkeypatch.setattr(Share, "results", lambda self, index: read.append(index) or results(self, index))
    assert explain("--batch", 8) == 0
    assert "20/20" in capsys.readouterr().err
    assert read == []
    explain("--batch", 8, "--png")
    assert read == [0, 1, 2]
    assert len(list(Path("out/png").iterdir())) == 20


def test_show_results_that_are_no_pictures(capsys):
    explain("--batch", 8)
    assert command("show", "out", "--name", "output") == 0
    assert not Path("out/sheet.png").exists()
    with pytest.raises(ValueError, match=r"output has rows of shape \(3,\), which are no pictures"):
        command("show", "out", "--name", "output", "--out", "sheet.png")
    with pytest.raises(ValueError, match="out has the arrays arrived, explained, output, relevance, not 'R'"):
        command("show", "out", "--name", "R")
    with pytest.raises(ValueError, match="--rows 30:40 has none of the 20 rows"):
        command("show", "out", "--rows", "30:40")
    with pytest.raises(ValueError, match="--rows must be START:STOP, such as 0:32, not 'x'"):
        command("show", "out", "--rows", "x")
    with pytest.raises(ValueError, match="--columns must be 1 or more"):
        command("show", "out", "--columns", "0")
    with pytest.raises(StoreError, match="there is no store in"):
        command("show", "nowhere")


MISTAKES = [
    (
        ["--model", "digits"],
        ValueError,
        "--model must be MODULE:NAME, such as package.module:build, or FILE.py:NAME, not 'digits'",
    ),
    (
        ["--model", "nothing:build"],
        ImportError,
        "importing nothing failed with ModuleNotFoundError: No module named",
    ),
    (["--model", "digits:build"], ValueError, "--model digits:build: digits has no 'build'"),
    (["--model", "digits:number"], ValueError, "--model digits:number: it is no function but int"),
    (["--model", "digits:broken"], ValueError, "calling it failed with KeyError: 'weights'"),
    (["--model", "digits:alone"], ValueError, r"must return a tuple \(f, params\) .*, not CNN"),
    (
        ["--model", "digits:linen"],
        ValueError,
        "shapes of its params only; give a checkpoint with --params DIR",
    ),
    (
        ["--model", "digits:linear"],
        ValueError,
        r"f\(params, x\) failed for x of float32\[1, 6, 6, 1\] with TypeError",
    ),
    (["--params", "weights"], FileNotFoundError, "--params weights: there is no orbax checkpoint"),
    (["--composite", "epsilonplus"], ValueError, "there is no such composite; there are .*epsilon_gamma_box"),
    (["--composite", "digits:number"], ValueError, "--composite digits:number: it is no composite but int"),
    (
        ["--composite", "epsilon_gamma_box"],
        ValueError,
        "missing a required argument: 'low'; give arguments with",
    ),
    (["--composite-arg", "gamma=1"], ValueError, "got an unexpected keyword argument 'gamma'"),
    (["--composite-arg", "epsilon"], ValueError, "--composite-arg must be NAME=VALUE"),
    (["--composite-arg", "epsilon=big"], ValueError, "--composite-arg must be NAME=VALUE with a number"),
    (["--inputs", "y.npy"], FileNotFoundError, "--inputs y.npy: there is no such file"),
    (["--inputs", "digits.py"], ValueError, "inputs are .npy, .npz, .png and .jpg files"),
    (["--inputs", "text.npy"], ValueError, "text.npy cannot be read"),
    (["--inputs", "text.npz"], ValueError, "text.npz cannot be read"),
    (
        ["--inputs", "text.png"],
        ValueError,
        "1 of 1 files cannot be read: cannot identify image file .*text.png",
    ),
    (["--inputs", "empty.npy"], ValueError, r"empty.npy has no inputs: its array has the shape \(0, 3\)"),
    (
        ["--inputs", "x.npy", "small.npy"],
        ValueError,
        r"different shapes: \(6, 6, 1\) in 1 \(such as x.npy\); \(5, 6, 1\) in 1 \(such as small.npy\)$",
    ),
    (["--inputs", "ab.npz", "--key", "c"], ValueError, "ab.npz has the arrays a, b, not 'c'"),
    (
        ["--size", "1x2x3"],
        ValueError,
        "--size must be HxW, such as 224x224, or the shorter side, not '1x2x3'",
    ),
    (["--crop", "16"], ValueError, "--crop must be HxW, such as 224x224, not '16'"),
    (["--mean", "0,x"], ValueError, "--mean must be numbers with commas between them, such as .*, not '0,x'"),
    (["--std", "1,0"], ValueError, "--std must be above 0, not '1,0'"),
    (["--labels", "nowhere.txt"], OSError, "nowhere.txt"),
    (["--size", "16xa"], ValueError, "--size must be whole numbers with 'x' between them, not '16xa'"),
    (
        ["--target", "first"],
        ValueError,
        "--target must be max, all, a class number or a .npy file, not 'first'",
    ),
    (
        ["--target", "x.npy"],
        ValueError,
        r"--target x.npy has float32\[20, 6, 6, 1\], not one class number for each of 20",
    ),
    (["--target", "nowhere.npy"], OSError, "nowhere.npy"),
    (["--target", "3"], lrpjax.TargetError, "3"),
    (["--at", "CNN/Conv_7"], lrpjax.PathError, "Conv_7"),
    (["--batch", "0"], ValueError, "--batch must be 1 or more, not 0"),
    (["--mesh", "1000"], ValueError, "--mesh must be all, or a number of devices; there are .*; not '1000'"),
    (["--mesh", "data"], ValueError, "--mesh must be all, or a number of devices"),
    (["--distributed", "here"], ValueError, "--distributed must be auto or HOST:PORT,COUNT,INDEX"),
    (["--distributed", "127.0.0.1:1,2,2"], ValueError, "INDEX < COUNT, not '127.0.0.1:1,2,2'"),
    (["--out", "digits.py"], StoreError, "digits.py cannot be"),
    (
        ["--out", "R.npz"],
        ValueError,
        "--out R.npz must be a directory, .*; give --out DIR, and then lrpjax save DIR R.npz",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_of_the_user_are_errors_that_say_what_is_wrong(arguments, error, message, capsys):
    for name in ("text.npy", "text.npz", "text.png"):
        Path(name).write_text("no array")
    np.save("empty.npy", np.zeros((0, 3)))
    np.save("small.npy", np.zeros((3, 5, 6, 1), np.float32))
    np.savez("ab.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(error, match=message):
        explain(*arguments)
    assert not Path("out/relevance/c.0.0.0.0").exists()
    capsys.readouterr()


def test_heatmaps_of_what_is_no_picture_are_refused(capsys):
    np.save("x.npy", np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"--png: relevance has rows of shape \(2,\), which are no pictures"):
        explain("--png", model="digits:normed")
    capsys.readouterr()


def test_a_checkpoint_of_another_model_is_refused_by_name():
    params = digits()["filled"]()[1]
    params["params"]["Dense_0"]["kernel"] = jnp.zeros((4, 5), jnp.float32)
    params["params"]["Dense_1"] = {"bias": jnp.zeros(2, jnp.float32)}
    save("weights", params)
    message = (
        r"--params weights is of another model \(params/Dense_0/kernel: float32\[4, 5\] there, float32\[4, 3\] in "
        r"the model; params/Dense_1/bias: float32\[2\] there, missing in the model\)"
    )
    with pytest.raises(ValueError, match=message):
        explain("--params", "weights", model="digits:linen")


def test_save(capsys):
    explain("--batch", 8)
    capsys.readouterr()
    for file in ("R.npz", "R.safetensors"):
        assert command("save", "out", file) == 0
        assert (
            f"20 rows of arrived, explained, output, relevance: {Path(file).absolute()}"
            in capsys.readouterr().out
        )
    with np.load("R.npz") as arrays:
        saved = dict(arrays)
    for found in (saved, read_safetensors("R.safetensors")):
        assert sorted(found) == ["arrived", "explained", "output", "relevance"]
        for name, array in found.items():
            np.testing.assert_array_equal(array, stored(name))
    command("save", "out", "R.npy", "--name", "relevance")
    np.testing.assert_array_equal(np.load("R.npy"), stored())
    with pytest.raises(StoreError, match=r"R.npy is there already; delete it, or choose another name"):
        command("save", "out", "R.npy", "--name", "relevance")
    with pytest.raises(StoreError, match="there is no store in"):
        command("save", "nowhere", "S.npz")


@pytest.mark.parametrize("name", ["explain", "plan", "show", "save"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command(name, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: lrpjax " + name in shown
    if name in ("explain", "plan"):
        assert "build() returns (f, params)" in shown
    if name == "explain":
        assert "exit codes" in shown


def test_two_processes_explain_their_shares_from_the_command_line():
    words = [
        "explain",
        "--model",
        "digits:filled",
        "--inputs",
        "x.npy",
        "--out",
        "out",
        "--batch",
        "8",
        "--png",
    ]
    address = free_address()
    in_processes(*[("command", *words, "--distributed", f"{address},2,{index}") for index in range(2)])
    close(stored(), expected(lrpjax.composites.epsilon_plus(), "max")[1])
    assert len(list(Path("out/png").iterdir())) == 20
