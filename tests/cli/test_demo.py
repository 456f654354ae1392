"""The command line and the demo, end to end."""

import builtins
import re
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

import lrpjax
from lrpjax import cli, composites, demo, errors, pretrained, viz
from lrpjax.cli.demos import digits as handwritten


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


def test_the_demo_trains_explains_prints_and_writes_a_picture(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 3)
    out = tmp_path / "picture.png"
    assert cli.main(["demo", "--epochs", "12", "--images", "2", "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    assert float(re.search(r"test accuracy: ([\d.]+)%", printed)[1]) >= 97
    rows = {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in _rows(printed)}
    assert list(rows) == list(demo.METHODS)
    assert rows["Deep Taylor"][:2] == [1.0, 1.0], "z⁺ and z^B without biases conserve relevance"
    for name in ("LRP-z⁺ / flat", "LRP-γ / box"):
        np.testing.assert_allclose(rows[name][:2], 1.0, atol=0.1)
    assert rows["sensitivity"][0] > 2, "the gradient is no decomposition"
    assert all(row[2] > 0 for row in rows.values())
    assert f"picture: {out}" in printed
    assert list(tmp_path.iterdir()) == [out]

    picture = matplotlib.image.imread(out)[..., :3]
    height, width = picture.shape[:2]
    assert width > height > 500, "two digits in four rows, eight columns"
    redness = picture[..., 0] - picture[..., 2]
    assert (redness > 0.3).mean() > 0.1, "relevance for the classes"
    weak = viz.heatmap(np.array([[-0.15, 1.0]]))[0, 0] / 255
    assert (redness < weak[0] - weak[2]).mean() > 0.005, (
        "relevance against the classes, of 0.15 of the limit or more"
    )
    assert (picture.max(-1) < 0.1).mean() > 0.02, "the background of the digits"


def test_the_demo_explains_a_photograph(tmp_path, capfd, monkeypatch):
    from lrpjax.cli.demos import photo

    two = {"z": composites.epsilon_plus(), "shared": composites.gamma_shared()}
    monkeypatch.setattr(photo, "methods", lambda low, high: two)
    out = tmp_path / "photo.png"
    with jax.enable_x64(False):  # as users run it
        assert cli.main(["demo", "--photo", "--images", "1", "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    assert re.search(r"cat +│ tiger cat +│ +3[0-9]\.", printed) and "Egyptian cat" in printed
    rows = {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in _rows(printed)[2:]}
    assert list(rows) == list(two)
    kept, biases, stabilisers, size, alike, _ = zip(*rows.values(), strict=True)
    assert kept[0] < 1e-3 and biases[0] > 0.99, "under z⁺ the biases take nearly all"
    assert kept[1] == pytest.approx(1, abs=0.02) and abs(biases[1]) < 1e-3 and abs(stabilisers[1]) < 0.02
    assert size[0] == pytest.approx(1) and min(alike) > 0.9
    assert list(tmp_path.iterdir()) == [out]
    picture = matplotlib.image.imread(out)[..., :3]
    redness = picture[..., 0] - picture[..., 2]
    assert (redness > 0.3).mean() > 0.01


def test_a_number_of_photographs_out_of_range(tmp_path, capfd):
    from lrpjax.cli.demos import photo

    assert set(photo.PHOTOS) == set(pretrained.photographs())
    assert cli.main(["demo", "--photo", "--images", "7", "--out", str(tmp_path / "photo.png")]) == 2
    assert "images must be from 1 to 6; it is 7" in capfd.readouterr().err


def _rows(printed):
    return [line.strip("│ \n").split("│") for line in printed.splitlines() if line.startswith("│")]


def test_the_split_is_fixed_stratified_and_in_range(digits):
    again = demo.load_digits()
    for one, other in zip(digits, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert digits.train_images.dtype == np.float32
    assert digits.train_labels.dtype == np.int32
    assert (digits.train_images.min(), digits.train_images.max()) == (demo.LOW, demo.HIGH)
    counts = np.bincount(digits.test_labels)
    assert counts.min() >= 43
    assert counts.sum() == 450
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


def test_training_is_reproducible_and_depends_on_the_seed(digits):
    few = digits._replace(train_images=digits.train_images[:128], train_labels=digits.train_labels[:128])
    losses = {0: [], 1: []}
    first = demo.train(few, 2, 0, losses[0].append)(digits.test_images[:2])
    other = demo.train(few, 2, 1, losses[1].append)(digits.test_images[:2])
    np.testing.assert_array_equal(first, demo.train(few, 2, 0)(digits.test_images[:2]))
    assert not np.allclose(first, other)
    assert [len(values) for values in losses.values()] == [2, 2]


def test_batches_hold_every_image_once_shifted_by_at_most_one_pixel(digits):
    images = np.zeros((128, 16, 16, 1), np.float32)
    images[np.arange(128), 8, 8] = 1 + np.arange(128)[:, None]
    numbered = digits._replace(train_images=images, train_labels=np.arange(128, dtype=np.int32))
    batches = list(handwritten._batches(numbered, 2, np.random.default_rng(0)))
    labels = np.concatenate([labels for _, labels in batches])
    shifted = np.concatenate([images for images, _ in batches])
    np.testing.assert_array_equal(np.sort(labels), np.arange(128))
    np.testing.assert_array_equal(shifted.max((1, 2, 3)), labels + 1, err_msg="images keep their labels")
    _, rows, columns, _ = np.nonzero(shifted)
    assert set(rows - 8) == set(columns - 8) == {-1, 0, 1}


def test_choose_prefers_correct_images_whose_runner_up_is_the_rival():
    logits = np.zeros((5, 10))
    labels = np.array([3, 3, 3, 3, 4], np.int32)
    logits[0, [3, 9]] = 5, 9  # mistaken for the rival
    logits[1, [3, 8, 9]] = 9, 8, 7  # another runner-up
    logits[2, [3, 9]] = 9, 2
    logits[3, [3, 9]] = 8, 4  # 8 · 4 > 9 · 2
    logits[4, [3, 9]] = 9, 8  # not a 3
    index, rivals = demo.choose(logits, labels, 1)
    assert (index.tolist(), rivals.tolist()) == ([3], [9])
    assert demo.choose(logits[:2], labels[:2], 1)[0].tolist() == [1]
    assert demo.choose(logits[:1], labels[:1], 1)[0].tolist() == [0]
    assert len(demo.choose(logits, labels, 10)[0]) == 10


def test_explainers_agree_with_the_gradient_and_shapes(digits):
    weights = jax.random.normal(jax.random.key(0), (256, 10), "float32")

    def logits(x):
        return x.reshape(len(x), -1) @ weights

    x, classes = digits.test_images[:3], np.array([1, 2, 3], np.int32)
    functions = demo.explainers(logits)
    expected = np.asarray(weights).T[classes].reshape(3, 16, 16, 1)
    np.testing.assert_allclose(functions["sensitivity"](x, classes), np.abs(expected), rtol=1e-6)
    np.testing.assert_allclose(functions["gradient × input"](x, classes), x * expected, rtol=1e-6)
    # Without biases, z^B distributes the logit of a single layer and nothing else.
    logit = np.asarray(logits(x))[np.arange(3), classes]
    np.testing.assert_allclose(functions["Deep Taylor"](x, classes).sum((1, 2, 3)), logit, rtol=1e-4)


def test_run_times_are_the_least_of_all_rounds(monkeypatch):
    clock = iter(np.cumsum([0, 3, 0, 9] + [0, 2, 0, 8] * (demo.ROUNDS - 1)).tolist())
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert demo.run_times({"a": lambda: 1.0, "b": lambda: 2.0}) == {"a": 2, "b": 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "missing/picture.png"], "there is no folder missing"),
        (["--out", "picture.txt"], "its ending must be a picture's"),
        (["--out", "."], "it is a folder"),
        (["--images", "0"], "images must be from 1 to 10; it is 0"),
        (["--images", "11"], "images must be from 1 to 10; it is 11"),
        (["--epochs", "0"], "epochs must be at least 1; it is 0"),
        (["--seed", "-1"], "seed must not be negative; it is -1"),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_exit_code_2(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *arguments]) == 2
    printed = capfd.readouterr().err
    assert printed.startswith("lrpjax demo: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="images must be from 1 to 10"):
        cli.main(["demo", "--debug", "--images", "0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["demo", "--images", "x"], "--images"),
    ],
)
def test_arguments_that_do_not_parse_exit_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(errors.TargetError("no"), 2), (ImportError("no"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error, code, monkeypatch, capsys):
    def fail(*args):
        raise error

    monkeypatch.setattr(demo, "demo", fail)
    assert cli.main(["demo"]) == code
    assert capsys.readouterr().err.startswith("lrpjax demo: ")


def test_errors_of_the_program_are_not_hidden(monkeypatch):
    monkeypatch.setattr(demo, "demo", lambda *args: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        cli.main(["demo"])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *args):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert cli.main(["demo"]) == 2
    assert 'pip install "lrpjax[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], [f"lrpjax {lrpjax.__version__}"]),
        (["--help"], ["lrpjax demo", "3 and not 9", "--version"]),
        (
            ["demo", "--help"],
            ["--out", "--epochs", "--seed", "--images", "--debug", "default: 30", "for a rival"],
        ),
    ],
)
def test_help_and_version(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in printed


def test_a_process_of_its_own_fails_without_traceback():
    command = [sys.executable, "-m", "lrpjax.cli", "demo", "--images", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lrpjax demo: images must be from 1 to 10; it is 0 (--debug shows the traceback)\n"
