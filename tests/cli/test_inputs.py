"""What the command line is given: folders, pictures of all kinds, models in files; and its first examples."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from explain_in_process import command
from PIL import Image

import lrpjax
from lrpjax import cli, loading, open_store

ROOT = Path(lrpjax.__file__).parent.parent


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def grey(value=0, shape=(4, 5)):
    return Image.fromarray(np.full(shape, value, np.uint8))


def test_a_folder_is_all_inputs_in_it_sorted(capsys):
    for name in (
        "b/2.png",
        "b/10.PNG",
        "a/z.jpg",
        "c.npy",
        ".hidden/x.png",
        "a/.x.png",
        "notes.txt",
        "out/png/0.png",
    ):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("npy"):
            np.save("photos/c.npy", np.zeros((2, 4, 5, 1), np.float32))
        elif name.endswith("txt"):
            Path("photos", name).write_text("x")
        else:
            grey().save(Path("photos", name))
    Path("photos/out/zarr.json").write_text("{}")
    Path("photos/a/loop").symlink_to(Path("photos").absolute(), target_is_directory=True)
    inputs = loading.Inputs(["photos"])
    assert [str(p.relative_to("photos")) for p in inputs.paths] == ["a/z.jpg", "b/10.PNG", "b/2.png", "c.npy"]
    assert inputs.rows == 5 and inputs.passed_over == [Path("photos/notes.txt")]
    Path("empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"--inputs empty: the folder has no \.npy, \.npz, \.png or \.jpg file$"
    ):
        loading.Inputs(["empty"])
    Path("empty/x.gif").write_text("x")
    with pytest.raises(FileNotFoundError, match="file; it has 1 files of other kinds"):
        loading.Inputs(["empty"])


def test_shapes_that_differ_are_told_from_the_headers():
    grey().save("a.png")
    grey(shape=(6, 5)).save("b.png")
    grey().convert("RGB").save("c.png")
    grey().convert("RGB").save("d.png")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="different shapes") as raised:
        patch.setattr("lrpjax.data.pictures.pixels", lambda *_: pytest.fail("pixels were read"))
        loading.Inputs(["?.png"])
    said = str(raised.value)
    assert (
        "(4, 5, 3) in 2 (such as c.png); (4, 5, 1) in 1 (such as a.png); (6, 5, 1) in 1 (such as b.png)"
        in said
    )
    assert "--size HxW makes the pictures alike" in said and "--channels 3 gives all" in said
    with pytest.raises(ValueError, match=r"different shapes.*--channels 1 makes them grey") as raised:
        loading.Inputs(["?.png"], size="4x4")
    assert "--size" not in str(raised.value)
    for channels in ("1", "3"):
        assert loading.Inputs(["?.png"], size="4x4", channels=channels)[0:4].shape == (4, 4, 4, int(channels))
    with pytest.raises(ValueError, match="--channels must be 1 or 3, not '2'"):
        loading.Inputs(["?.png"], channels="2")
    np.save("x.npy", np.zeros((2, 3)))
    np.save("y.npy", np.zeros((2, 4)))
    with pytest.raises(
        ValueError, match=r"different shapes: \(3,\) in 1 \(such as x.npy\); \(4,\) in 1 \(such as y.npy\)$"
    ):
        loading.Inputs(["x.npy", "y.npy"])


def read(path, **options):
    return loading.Inputs([path], **options)[0:1][0]


def test_pictures_of_all_kinds_have_their_values():
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(deep).save("deep.png")
    np.testing.assert_allclose(read("deep.png")[..., 0], deep / 65535, rtol=1e-6)
    np.testing.assert_allclose(
        read("deep.png", channels="3"), np.repeat(deep[..., None] / 65535, 3, -1), rtol=1e-6
    )
    # Transparent pixels lie on white: 200 of 255 opaque black is 55.
    alpha = np.array([[[10, 20, 30, 255], [9, 9, 9, 0], [0, 0, 0, 200]]], np.uint8)
    Image.fromarray(alpha).save("alpha.png")
    np.testing.assert_allclose(255 * read("alpha.png"), [[[10, 20, 30], [255] * 3, [55] * 3]], atol=1e-3)
    Image.merge("LA", [Image.fromarray(alpha[..., c].copy()) for c in (2, 3)]).save("la.png")
    with Image.open("la.png") as picture:
        assert picture.mode == "LA"
    np.testing.assert_allclose(255 * read("la.png"), [[[30], [255], [55]]], atol=1e-3)
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 200, 100, 50])
    palette.putdata([1, 0])
    palette.save("palette.png")
    np.testing.assert_allclose(255 * read("palette.png"), [[[200, 100, 50], [1, 2, 3]]], rtol=1e-6)
    palette.save("clear.png", transparency=0)
    np.testing.assert_allclose(255 * read("clear.png"), [[[200, 100, 50], [255] * 3]], rtol=1e-6)
    Image.fromarray(np.array([[True, False]])).save("bit.png")
    np.testing.assert_array_equal(read("bit.png"), [[[1], [0]]])
    # CMYK without black: red is without cyan.
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save("cmyk.jpg", quality=100)
    np.testing.assert_allclose(255 * read("cmyk.jpg"), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png"):
        grey(90, (4, 6)).save(name, exif=exif)
        assert loading.Inputs([name])._row_shape == read(name).shape == (6, 4, 1)


def cut_off(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) * 2 // 3])


def damage(path):
    """Changes pixels in the middle of a PNG, so that only its decoding finds out."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 0xFF
    Path(path).write_bytes(content)


def noise(seed, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_picture_that_was_cut_off_is_found_before_the_work(ending):
    for name in "ab":
        noise(0).save(f"{name}.{ending}")
    cut_off(f"b.{ending}")
    with pytest.raises(
        ValueError, match=rf"1 of 2 files cannot be read: b.{ending} .*[Tt]runcated.*--skip-unreadable"
    ):
        loading.Inputs([f"?.{ending}"])
    inputs = loading.Inputs([f"?.{ending}"], skip_unreadable=True)
    rows = inputs[0:2]
    assert np.isnan(rows[1]).all() and not np.isnan(rows[0]).any()
    assert list(inputs.unreadable) == [Path(f"b.{ending}")]
    Path(f"a.{ending}").unlink()
    with pytest.raises(ValueError, match="none of the 1 files can be read"):
        loading.Inputs([f"?.{ending}"], skip_unreadable=True)


def test_bytes_behind_a_whole_picture_are_no_damage():
    noise(0).save("a.png")
    with open("a.png", "ab") as file:
        file.write(b"more")
    assert read("a.png").shape == (16, 16, 3)


def test_a_picture_that_is_damaged_inside_stops_the_run_which_goes_on_afterwards(capsys):
    Path("model.py").write_text(MODEL)
    for number in range(6):
        noise(number).save(f"{number}.png")
    damage("4.png")
    arguments = ["explain", "--model", "./model.py:build", "--inputs", ".", "--out", "out", "--batch", "2"]
    with pytest.raises(ValueError, match=r"4.png .*What was explained before it is kept: mend the file"):
        command(*arguments)
    assert open_store("out").rows == 4
    assert command(*arguments, "--skip-unreadable") == 1
    assert "skipped: " in capsys.readouterr().err
    R = np.asarray(open_store("out")["relevance"])
    assert np.isnan(R).all((1, 2, 3)).tolist() == [False] * 4 + [True, False]


MODEL = """
import os, pathlib, time
import jax, numpy as np
from sibling import scale

def build():
    if pathlib.Path("hold").exists():
        from lrpjax.data import pictures
        read = pictures.pixels
        def waits(path, *options):
            while path.name == "150.png":  # until somebody interrupts
                time.sleep(0.01)
            return read(path, *options)
        pictures.pixels = waits
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(768, 8)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")
    return (lambda p, x: jax.nn.relu(x.reshape(len(x), -1) @ p[0]) @ p[1]), (scale * first, last)
"""


@pytest.fixture(autouse=True)
def sibling(directory):
    (directory / "sibling.py").write_text("scale = 0.1\n")


# A process that a shell started in the background hands it on that SIGINT is ignored.
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from lrpjax.cli import main
raise SystemExit(main())
"""


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_300_pictures_of_mixed_quality_are_interrupted_and_go_on():
    Path("model.py").write_text(MODEL)
    Path("photos").mkdir()
    for number in range(300):
        noise(number).save(f"photos/{number:03d}.png")
    noise(7).quantize(16).save("photos/010.png")
    Image.fromarray(np.random.default_rng(8).integers(0, 65536, (16, 16), np.uint16)).save("photos/200.png")
    Path("photos/030.png").unlink()
    noise(9, "CMYK").save("photos/030.jpg")
    cut_off("photos/250.png")
    arguments = ["explain", "--model", "model.py:build", "--inputs", "photos", "--out", "out", "--batch", "4"]
    with pytest.raises(ValueError, match=r"1 of 300 files cannot be read: .*250.png"):
        command(*arguments, "--channels", "3")
    arguments += ["--channels", "3", "--skip-unreadable"]
    Path("hold").touch()
    with start(*arguments) as running:
        until = time.monotonic() + 240
        while not list(Path("out/tail").glob("0*")):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=240)[1]
    assert running.returncode == 130, said
    assert said.rstrip().endswith("lrpjax explain: interrupted")
    assert 0 < open_store("out").rows < 152
    Path("hold").unlink()
    with start(*arguments) as running:
        said = running.communicate(timeout=240)[1]
    assert running.returncode == 1, said
    assert "skipped: " in said and "250.png" in said
    results = open_store("out")
    assert results.complete and results.rows == 300
    f, params = loading.load_model("model.py:build")
    x = loading.Inputs(["photos"], channels="3", skip_unreadable=True)[0:300]
    y, R = lrpjax.value_and_relevance(f, lrpjax.composites.epsilon_plus(), argnums=1, target="max")(params, x)
    for name, expected in (("output", y), ("relevance", R)):
        found, expected = np.asarray(results[name]), np.array(expected)
        expected[250] = np.nan
        scale = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
        assert np.isfinite(np.delete(found, 250, 0)).all()


# ---------------------------------------------------------------------------------------------------------------------- models in files


def test_models_in_files(directory):
    Path("sub").mkdir()
    Path("sub/net.py").write_text("import beside\ndef build():\n    return (lambda p, x: p * x), beside.p\n")
    Path("sub/beside.py").write_text("import numpy as np\np = np.float32(2)\n")
    for spec in ("sub/net.py:build", "./sub/net.py:build", f"{directory}/sub/net.py:build"):
        f, params = loading.load_model(spec)
        assert f(params, 3) == 6
    assert sys.modules["net"].build is loading._named_object("sub/net.py:build", "--model")
    Path("other").mkdir()
    Path("other/net.py").write_text("def build():\n    return (lambda p, x: x), ()\n")
    assert loading.load_model("other/net.py:build")[0]((), 3) == 3, "not the module of the same name"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("no/net.py:build", FileNotFoundError, "--model no/net.py:build: there is no file no/net.py"),
        ("net.py:nothing", ValueError, "--model net.py:nothing: net.py has no 'nothing'"),
        (
            "net.py",
            ValueError,
            "must be MODULE:NAME, such as package.module:build, or FILE.py:NAME, not 'net.py'",
        ),
        ("C:\\nets\\net.py", ValueError, "must be MODULE:NAME"),
        ("C:\\nets\\net.py:build", FileNotFoundError, r"there is no file C:\\nets\\net.py"),
        (
            "bad.py:build",
            ImportError,
            "importing bad.py failed with ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("ends.py:build", ImportError, "importing ends.py failed with SystemExit: 3"),
        ("torch:no.py:build", FileNotFoundError, "there is no file no.py"),
    ],
)
def test_models_that_are_not_there(spec, error, message):
    Path("net.py").write_text("")
    Path("bad.py").write_text("import nowhere")
    Path("ends.py").write_text("raise SystemExit(3)")
    for _ in range(2):  # what failed is not kept
        with pytest.raises(error, match=message):
            loading.load_model(spec)


# ---------------------------------------------------------------------------------------------------------------------- first examples


def blocks(text):
    """The indented blocks of a help text."""
    found = re.findall(r"(?m)(?:^    .*\n|^\n)+", text)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found if block.strip()]


def helped(capsys, *arguments):
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--help"])
    return capsys.readouterr().out


def test_the_first_example_of_explain_runs_as_it_stands(capsys, directory):
    text = helped(capsys, "explain")
    text = text[text.index("a first example.") :]
    model, commands = blocks(text)[:2]
    empty = directory / "empty"
    empty.mkdir()
    (empty / "model.py").write_text(model)
    (directory / "lrpjax").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lrpjax.cli "$@"\n')
    (directory / "lrpjax").chmod(0o755)
    path = os.pathsep.join([str(directory), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": path}
    done = subprocess.run(
        ["sh", "-e"], input=commands, cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "200 inputs in" in done.stdout and (empty / "out/sheet.png").exists()


def test_the_examples_of_the_help_are_commands(capsys):
    text = helped(capsys)
    lines = [
        re.split(r"  +", line)[0].split() for line in blocks(text[text.index("examples:") :])[0].splitlines()
    ]
    assert lines[0] == ["lrpjax", "demo"]
    for line in lines:
        assert line[0] == "lrpjax"
        if "--help" not in line:
            cli.build_parser().parse_args(line[1:])
    assert cli.main(lines[1][1:]) == 0
    capsys.readouterr()
