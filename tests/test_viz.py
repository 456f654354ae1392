"""Pictures, on arrays small enough to colour by hand."""

import builtins
import html.parser
import json
import re
import shutil
import subprocess
import types
import xml.etree.ElementTree

import jax.numpy as jnp
import matplotlib
import matplotlib.collections
import matplotlib.image
import numpy as np
import PIL.Image
import pytest
import skimage.color

from lrpjax import viz
from lrpjax.viz import charts

WHITE, GREEN = [255, 255, 255], [0, 255, 0]
BLUE, RED = [20, 94, 240], [212, 20, 18]  # the ends of the default map


@pytest.mark.parametrize(
    ("cmap", "expected"),
    [
        # The anchors as matplotlib and zennit define the maps; bytes are truncated.
        (None, [[20, 94, 240], [170, 171, 250], [255, 255, 255], [249, 153, 131], [212, 20, 18]]),
        ("blue-orange", [[0, 117, 232], [165, 183, 245], [255, 255, 255], [232, 172, 131], [188, 93, 0]]),
        ("seismic", [[0, 0, 76], [0, 0, 255], [255, 255, 255], [255, 0, 0], [127, 0, 0]]),
        ("bwr", [[0, 0, 255], [127, 127, 255], [255, 255, 255], [255, 127, 127], [255, 0, 0]]),
        ("coldnhot", [[0, 255, 255], [0, 0, 255], [0, 0, 0], [255, 127, 0], [255, 255, 255]]),
    ],
)
def test_heatmap_has_the_colours_of_the_map(cmap, expected):
    picture = viz.heatmap(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), cmap=cmap)
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 5, 3)
    np.testing.assert_allclose(picture[0].astype(int), expected, atol=1)
    assert picture[0, 2].tolist() == expected[2], "zero is the middle of the map exactly"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int32", "bool"])
def test_heatmap_takes_any_real_dtype(dtype):
    R = jnp.array([[0, 1]], dtype)
    assert viz.heatmap(R).tolist() == [[WHITE, RED]]


def test_one_sided_range_starts_at_zero_and_hides_negatives():
    picture = viz.heatmap(np.array([[-3.0, 0.0, 2.0, 4.0]]), limit=2.0, symmetric=False, cmap="gray")
    assert picture[0].tolist() == [[0, 0, 0], [0, 0, 0], WHITE, WHITE]
    picture = viz.heatmap(np.array([[0.0, 2.0]]), symmetric=False)
    assert picture[0].tolist() == [WHITE, [10, 0, 0]], (
        "the default runs from white; hot_r ends in (0.0416, 0, 0)"
    )


def test_a_limit_saturates_and_makes_pictures_comparable():
    R = np.array([[[1.0], [-1.0]], [[4.0], [0.0]]])  # (2, 2, 1)
    batch = np.stack([R, 10 * R])
    own = viz.heatmap(batch)
    np.testing.assert_array_equal(own[0], own[1])
    common = viz.heatmap(batch, limit=4.0)
    assert (common[0] != common[1]).any()
    np.testing.assert_array_equal(common[0], own[0])
    np.testing.assert_array_equal(viz.heatmap(batch, limit=np.array([4.0, 40.0])), own)
    assert common[1, 0, 0].tolist() == RED, "10 saturates at 4"


def test_a_quantile_keeps_one_pixel_from_deciding_the_range():
    R = np.full((10, 10), 0.5)
    R[3, 4] = 50.0
    R[0, 0] = np.nan
    pale, strong = viz.heatmap(R), viz.heatmap(R, quantile=0.9)
    np.testing.assert_array_equal(strong, viz.heatmap(R, limit=0.5))
    np.testing.assert_array_equal(pale, viz.heatmap(R, limit=50.0))
    np.testing.assert_array_equal(strong[3, 4], strong[5, 5])
    image = np.zeros((10, 10))
    np.testing.assert_array_equal(viz.overlay(image, R, quantile=0.9), viz.overlay(image, R, limit=0.5))
    batch = viz.heatmap(np.stack([R, 2 * R])[..., None], quantile=0.9)
    np.testing.assert_array_equal(batch[0], batch[1])
    sparse = np.zeros((10, 10))
    sparse[2, 2] = 3.0  # the quantile is zero: the largest then
    np.testing.assert_array_equal(viz.heatmap(sparse, quantile=0.5), viz.heatmap(sparse))


def test_a_limit_for_several_maps():
    a, b = np.array([[1.0, -8.0], [np.inf, 2.0]]), np.ones((1, 2, 3))
    assert viz.shared_limit(a, b) == 8.0
    assert viz.shared_limit(a, b, quantile=0.5) == np.median([1, 8, 2, 3, 3])
    assert viz.shared_limit(np.zeros((2, 2))) == 1.0
    with pytest.raises(ValueError, match="give at least one map"):
        viz.shared_limit()
    for quantile in (0.0, 1.5):
        with pytest.raises(ValueError, match="quantile must be above 0 and at most 1"):
            viz.shared_limit(a, quantile=quantile)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 9), (5, 3, 8, 8), (2, 1, 16, 16)])
def test_channels_first_are_refused(shape):
    with pytest.raises(ValueError, match=r"channels first.*jnp.moveaxis\(R, -3, -1\)"):
        viz.heatmap(np.ones(shape))
    assert viz.heatmap(np.moveaxis(np.ones(shape), -3, -1)).shape[-1] == 3


def test_a_single_heatmap_is_written_element_by_element(tmp_path):
    picture = viz.heatmap(np.arange(6.0).reshape(2, 3) - 2)
    viz.save(picture, tmp_path / "map.png", magnify=3)
    written = matplotlib.image.imread(tmp_path / "map.png")[..., :3]
    np.testing.assert_array_equal(np.rint(255 * written), picture.repeat(3, axis=0).repeat(3, axis=1))
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]
    for magnify in (0, 2.5):
        with pytest.raises(
            ValueError, match=f"magnify must be a whole number of at least 1; it is {magnify}"
        ):
            viz.save(picture, tmp_path / "map.png", magnify=magnify)
    with pytest.raises(ValueError, match="a picture of a sheet must have shape"):
        viz.save(np.ones((2, 2)), tmp_path / "map.png")


@pytest.mark.parametrize("ending", ["tif", "TIFF", "jpg", "webp", "pdf", "svg"])
def test_a_single_heatmap_is_written_in_many_formats(tmp_path, ending):
    viz.save(viz.heatmap(np.eye(8)), tmp_path / f"map.{ending}")
    assert (tmp_path / f"map.{ending}").stat().st_size > 100


@pytest.mark.parametrize("ending", ["svgz", "raw", "pgf"])
def test_a_single_heatmap_has_no_figures_formats(tmp_path, ending):
    with pytest.raises(ValueError, match=rf"cannot write an array as \.{ending}: .* such as \.png, \.tif"):
        viz.save(viz.heatmap(np.eye(8)), tmp_path / f"map.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_channels_are_summed():
    R = np.array([[[1.0, -1.0, 0.0], [1.0, 2.0, 1.0]]])  # sums 0 and 4
    np.testing.assert_array_equal(viz.heatmap(R), viz.heatmap(np.array([[0.0, 4.0]])))


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_relevance_is_the_colour_of_zero(symmetric):
    assert (viz.heatmap(np.zeros((2, 3)), symmetric=symmetric) == 255).all()


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    picture = viz.heatmap(np.array([[scale, 0.0, -scale]]))
    np.testing.assert_array_equal(picture, viz.heatmap(np.array([[1.0, 0.0, -1.0]])))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_marked_and_do_not_touch_the_others(bad, symmetric):
    picture = viz.heatmap(np.array([[bad, 2.0, 0.0]]), symmetric=symmetric)
    assert picture[0, 0].tolist() == GREEN
    np.testing.assert_array_equal(picture[0, 1:], viz.heatmap(np.array([[2.0, 0.0]]), symmetric=symmetric)[0])
    assert viz.overlay(np.zeros((1, 3)), np.array([[bad, 2.0, 0.0]]), opacity=0.5)[0, 0].tolist() == GREEN


def test_infinities_of_both_signs_in_one_pixel_are_marked():
    assert viz.heatmap(np.array([[[np.inf, -np.inf], [1.0, 1.0]]]))[0].tolist() == [GREEN, RED]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(3),), ValueError, r"shape \(H, W\).*it has \(3,\)"),
        ((np.zeros((0, 3)),), ValueError, "none of them empty"),
        ((np.zeros((1, 1), complex),), TypeError, "R must be real, not complex128"),
        ((np.zeros((1, 1)), 0.0), ValueError, "limit must be positive and finite"),
        ((np.zeros((1, 1)), -1.0), ValueError, "limit must be positive and finite"),
        ((np.zeros((1, 1)), np.nan), ValueError, "limit must be positive and finite"),
        ((np.zeros((1, 1)), np.ones(2)), ValueError, "one number per picture"),
        ((np.zeros((3, 1, 1, 1)), np.ones(2)), ValueError, "one number per picture"),
        ((np.zeros((1, 1)), None, True, "warm"), ValueError, "unknown colour map 'warm'"),
    ],
)
def test_heatmap_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        viz.heatmap(*arguments)


def test_overlay_shows_grey_without_relevance_and_colour_with_it():
    image = np.array([[0.0, 1.0, 0.5, 0.5]])
    picture = viz.overlay(image, np.array([[0.0, 0.0, 4.0, 1.0]]))
    # Grey is 255 (1/8 + 3/4 v); a quarter of the limit weighs √¼ = ½ and is the map's colour at 5/8.
    quarter = viz.heatmap(np.array([[1.0]]), limit=4.0)[0, 0].astype(float)
    expected = [[32] * 3, [223] * 3, RED, np.rint(0.5 * quarter + 0.5 * 127.5)]
    np.testing.assert_array_equal(picture[0], expected)
    half = viz.overlay(image, np.array([[0.0, 0.0, 4.0, 1.0]]), opacity=0.5)
    assert half[0, 2].tolist() == [170, 74, 73]  # ½ (212, 20, 18) + ½ · 127.5, rounded to even
    assert (viz.overlay(image, np.ones((1, 4)), opacity=0.0)[0, 0] == 32).all()


def test_overlay_of_colour_images_bytes_and_batches():
    red = np.zeros((2, 1, 1, 3))
    red[..., 0] = 1.0
    expected = np.rint(255 * (0.125 + 0.75 * 0.299))
    for image in (red, (255 * red).astype(np.uint8), jnp.asarray(red)):
        picture = viz.overlay(image, np.zeros((2, 1, 1, 3)))
        assert picture.shape == (2, 1, 1, 3)
        assert (picture == expected).all()
    one = viz.overlay(np.full((1, 2, 1), 128, np.uint8), np.zeros((1, 2)))
    assert (one == np.rint(255 * (0.125 + 0.75 * 128 / 255))).all()


def test_a_one_sided_overlay_leaves_negatives_clear():
    picture = viz.overlay(np.zeros((1, 2)), np.array([[-1.0, 1.0]]), symmetric=False)
    assert picture[0].tolist() == [[32] * 3, [10, 0, 0]]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((2, 3)), {}, r"image is \(2, 3\) and R is \(2, 2\)"),
        (np.full((2, 2), 1.5), {}, r"floats in \[0, 1\]"),
        (np.full((2, 2), np.nan), {}, r"floats in \[0, 1\]"),
        (np.full((2, 2), 7), {}, r"floats in \[0, 1\]"),
        (np.zeros((2, 2, 2)), {}, r"image must have shape"),
        (np.zeros((2, 2)), {"opacity": 1.1}, "opacity must be in"),
    ],
)
def test_overlay_refuses(image, options, message):
    with pytest.raises(ValueError, match=message):
        viz.overlay(image, np.zeros((2, 2)), **options)


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_sheet_places_pictures_and_labels(tmp_path):
    red, blue = viz.heatmap(np.ones((4, 4))), viz.heatmap(-np.ones((4, 4)))
    path = tmp_path / "sheet.png"
    figure = viz.sheet(
        [[red, blue], [blue, None], [red, red]],
        ["first", "second", "third"],
        ["a", "b"],
        captions=[["1", "2"], ["3", ""], ["5", "6"]],
        group=2,
        title="Title",
        footer="Footer",
        colorbar="relevance",
        limit="own",
        path=path,
    )
    labels = [
        "first",
        "second",
        "third",
        "a",
        "b",
        "1",
        "2",
        "3",
        "5",
        "6",
        "Title",
        "Footer",
        "for the class\nlargest |R|",
    ]
    assert set(labels) <= set(texts(figure))
    cells = [axes for axes in figure.axes if axes.images]
    assert len(cells) == 5
    assert cells[0].get_ylabel() == "first"
    np.testing.assert_array_equal(cells[2].images[0].get_array(), blue)
    first, second, third = (cells[i].get_position() for i in (0, 2, 3))
    assert second.y1 < first.y0
    assert third.y1 < second.y0
    assert second.y0 - third.y1 > 1.2 * (first.y0 - second.y1), "groups stand apart"

    written = matplotlib.image.imread(path)
    reds = (written[..., :3] == np.array(RED, np.float32) / 255).all(-1).sum()
    blues = (written[..., :3] == np.array(BLUE, np.float32) / 255).all(-1).sum()
    assert reds > 1.3 * blues > 0, "three red pictures and two blue ones"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays behind"


def test_sheet_takes_rgba_and_floats_and_no_labels():
    figure = viz.sheet([[np.zeros((2, 2, 4), np.uint8), np.full((2, 2, 3), 0.5)]])
    assert len(figure.axes) == 2
    assert texts(figure) == []


ONE = np.zeros((1, 1, 3), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "at least one picture"),
        (([[]],), {}, "at least one picture"),
        (([[ONE], [ONE, ONE]],), {}, r"same number of pictures: \[1, 2\]"),
        (([[ONE]], ["a", "b"]), {}, "2 row labels for 1 rows"),
        (([[ONE]], [], ["a", "b"]), {}, "2 column labels for 1 columns"),
        (([[ONE]],), {"captions": [["a", "b"]]}, "captions must be 1 rows of 1"),
        (([[ONE]],), {"group": 0}, "group must be at least 1"),
        (([[ONE]],), {"colorbar": "warm"}, "unknown colour map"),
        (([[np.zeros((2, 2))]],), {}, "heatmap turns an array into a picture"),
        (([[-np.ones((2, 2, 3))]],), {}, "heatmap turns relevance into one"),
    ],
)
def test_sheet_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        viz.sheet(*arguments, **options)


def test_ansi_tokens_have_backgrounds_and_legible_text():
    text = viz.tokens(["for", "none", "against"], [1.0, 0.0, -1.0])
    assert text == (
        "\x1b[48;2;212;20;18m\x1b[38;5;231mfor\x1b[0m "
        "\x1b[48;2;255;255;255m\x1b[38;5;16mnone\x1b[0m "
        "\x1b[48;2;20;94;240m\x1b[38;5;231magainst\x1b[0m"
    )


def test_tokens_cannot_speak_to_the_terminal_or_break_the_line():
    text = viz.tokens(["\x1b[2J", "a\nb", "naïve 日本"], [0.0, 0.0, 0.0])
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == r"\x1b[2J a\nb naïve 日本"


def test_html_tokens_are_escaped_and_well_formed():
    tokens = ["<script>alert('x')</script>", '"&', "plain"]
    text = viz.tokens(tokens, [0.5, np.nan, -2.0], mode="html", separator="|")
    seen, titles, styles = [], [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag in ("div", "span")
            if tag == "span":
                titles.append(dict(attrs)["title"])
                styles.append(dict(attrs)["style"])

        def handle_data(self, data):
            seen.append(data)

    Reader().feed(text)
    assert "".join(seen) == "|".join(tokens)
    assert titles == ["+0.5", "+nan", "-2"]
    assert styles[1].startswith("background:#00ff00"), "NaN is marked"
    assert styles[2].startswith("background:#145ef0")


def test_tokens_sum_embeddings_and_share_a_given_limit():
    embedded = viz.tokens(["a", "b"], np.array([[1.0, -1.0], [1.0, 1.0]]), limit=4.0)
    assert embedded == viz.tokens(["a", "b"], [0.0, 2.0], limit=4.0)
    assert "249;153;131" in embedded, "half of the limit"


def test_no_tokens_are_an_empty_text():
    assert viz.tokens([], []) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [1.0]), r"each of the 2 tokens; tokens is a list and relevance has shape \(1,\)"),
        (("ab", [1.0, 2.0]), "tokens is a str"),
        ((["a"], [1.0], "latex"), "'ansi' or 'html'; it is 'latex'"),
    ],
)
def test_tokens_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        viz.tokens(*arguments)


def test_curves_draw_means_with_standard_errors(tmp_path):
    samples = np.array([[1.0, 2.0], [3.0, 6.0]])  # means 2, 4; std 1.414, 2.828; over √2: 1, 2
    figure = viz.curves(
        [0, 1], {"one": [5.0, 6.0], "many": samples}, x_label="x", y_label="y", path=tmp_path / "c.svg"
    )
    axes = figure.axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[5.0, 6.0], [2.0, 4.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "many"]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(9).tolist()}
    assert {(0.0, 1.0), (0.0, 3.0), (1.0, 2.0), (1.0, 6.0)} <= corners
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("x", "values", "message"),
    [
        ([0, 1], {}, "at least one curve"),
        ([[0, 1]], {"a": [0, 1]}, r"x of shape \(S,\)"),
        ([0, 1], {"a": [0, 1, 2]}, r"curve 'a' must have shape \(2,\) or \(N, 2\); it has \(3,\)"),
        ([0, 1], {"a": np.zeros((0, 2))}, "curve 'a' must have shape"),
    ],
)
def test_curves_refuse(x, values, message):
    with pytest.raises(ValueError, match=message):
        viz.curves(x, values)


def test_save_replaces_whole_files_and_leaves_the_old_one_on_failure(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    figure = viz.sheet([[ONE]])
    figure.savefig = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        viz.save(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    viz.save(viz.sheet([[ONE]]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_paths_it_cannot_write(tmp_path):
    figure = viz.sheet([[ONE]])
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        viz.save(figure, tmp_path / "folder.png")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        viz.save(figure, tmp_path / "missing" / "a.png")
    for name in ("a.txt", "noending"):
        with pytest.raises(ValueError, match="its ending must be a picture's"):
            viz.save(figure, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


def test_a_folder_without_permission_is_found_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.access", lambda path, mode: False
    )  # tests may run as root, whom no permission stops
    with pytest.raises(PermissionError, match="no permission to write to the folder"):
        viz.check_path(tmp_path / "a.png")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "lrpjax\[viz\]"'):
        viz.heatmap(np.zeros((1, 1)))


def test_the_share_that_is_left_stage_by_stage(tmp_path):
    stage = lambda path, kept: types.SimpleNamespace(path=path, kept=np.asarray(kept))
    high, low = [0.5, 0.25, 0.75], [1e-3, -1e-2, 2e-3]
    figure = viz.kept(
        {
            "one": [stage("net/head", 0.9), stage("net/stem", 0.8)],
            "three": [stage("net/head", high), stage("net/stem", low)],
        },
        path=tmp_path / "kept.png",
    )
    (axes,) = figure.axes
    assert axes.get_yscale() == "symlog"
    assert (
        viz.kept({"one": [stage("net", 0.9)]}).axes[0].get_yscale() == "linear"
    )  # powers of ten would be off it
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["one"], [1, 0.9, 0.8])
    np.testing.assert_allclose(lines["three"], [1, 0.5, 1e-3])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["output", "head", "stem"]
    assert {t.get_text(): t.get_color() for t in axes.texts}.keys() == {"one", "three"}
    assert (tmp_path / "kept.png").exists()
    with pytest.raises(ValueError, match="kept needs the same stages"):
        viz.kept({"a": [stage("x", 1.0)], "b": [stage("y", 1.0)]})
    with pytest.raises(ValueError, match="kept needs the same stages"):
        viz.kept({})


def test_labels_leave_out_the_modules_that_all_stages_stand_in():
    shorten = charts._without_shared
    assert shorten(["net/a/x", "net/a/y", "net/b"]) == ["a/x", "a/y", "b"]
    assert shorten(["net/layer1", "net/norm", "net"]) == ["layer1", "norm", "net"]
    assert shorten(["net/low"]) == ["low"] and shorten(["", "a"]) == ["-", "a"]


def test_labels_keep_apart():
    labels = charts._apart(np.array([0.99, 0.5, 0.51, 1.0]), 0.1)
    np.testing.assert_allclose(labels, [0.9, 0.5, 0.6, 1.0])


# --------------------------------------------------------------------------------------------------------------------- colours, measured


def lab(cmap, matrix=None):
    """CIELAB of a map's colours from −1 to 1, (257, 3); as someone sees them whom a matrix stands for."""
    colours = viz.heatmap(np.linspace(-1, 1, 257)[None], limit=1.0, cmap=cmap)[0] / 255
    if matrix is not None:
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        linear = np.clip(linear @ np.array(matrix).T, 0, 1)
        colours = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return skimage.color.rgb2lab(colours[None])[0]


def sides(values):
    """What belongs to magnitudes from 0 to 1, on the positive and on the negative side."""
    return values[128:], values[128::-1]


@pytest.mark.parametrize(("cmap", "lightness", "chroma"), [(None, 45, 86), ("blue-orange", 50, 68)])
def test_equal_steps_of_relevance_are_equal_steps_of_colour_up_to_the_ends(cmap, lightness, chroma):
    seen, r = lab(cmap), np.linspace(0, 1, 129)
    for side in sides(seen):
        np.testing.assert_allclose(side[:, 0], 100 - (100 - lightness) * r, atol=1.5)
        np.testing.assert_allclose(np.hypot(side[:, 1], side[:, 2]), chroma * r, atol=2.1)
        far = np.linalg.norm(side - seen[128], axis=1)
        assert (far[2:] > far[:-2]).all(), "the more relevance, the further from white"


def test_the_measurement_tells_the_faults_of_other_maps():
    chroma = np.hypot(*lab("seismic")[:, 1:].T)
    for side in sides(chroma):
        assert side.argmax() < 70, "seismic is strongest at half of its range"
    ends = np.hypot(*lab("bwr")[[0, -1], 1:].T)
    assert ends[0] > 1.25 * ends[1], "the blue of bwr is stronger than its red"


# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color vision deficiency":
# severity 1.0, for linear sRGB.
SEEN = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("cmap", ["relevance", "blue-orange", "PuOr_r", "RdBu_r"])
def test_the_sides_of_a_map_differ_to_the_colour_blind(cmap, kind):
    seen = lab(cmap, SEEN[kind])
    apart = np.linalg.norm(seen - seen[::-1], axis=1)
    assert apart[0] > 35, "the ends"
    assert apart[64] > 35, "and half of the range"
    for side in sides(seen[:, 0]):
        assert (np.diff(side[::8]) < 0).all(), "the more relevance, the darker"


def test_blue_and_orange_are_about_equally_strong_to_the_colour_blind():
    uneven = {}
    for cmap in ("relevance", "blue-orange"):
        ends = [lab(cmap, matrix)[[0, -1], 0] for matrix in SEEN.values()]
        uneven[cmap] = max(abs(first - last) for first, last in ends)
    assert uneven["blue-orange"] < 10 < uneven["relevance"] < 17


def test_the_test_of_colour_blindness_can_fail():
    seen = lab("RdYlGn", SEEN["deuteranopia"])
    assert np.linalg.norm(seen[64] - seen[192]) < 35, "red and green, to whom they are alike"


def test_text_on_every_colour_of_the_default_map_is_legible():
    """WCAG 2.1 asks for a contrast of 4.5 between a text and its background."""
    R = np.linspace(-1, 1, 257)
    page = viz.tokens(["x"] * 257, R, mode="html", limit=1.0)
    found = re.findall(r"background:#(\w{6});color:#(\w{6})", page)
    assert len(found) == 257
    for colours in found:
        channels = np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in colours])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
        assert (light + 0.05) / (dark + 0.05) > 4.5, colours


# ------------------------------------------------------------------------------------------------------- what the colours stand for, in words

MAPS = [[viz.heatmap(np.array([[1.0, -2.0]]), limit=0.305), viz.heatmap(np.array([[3.0, 0.0]]), limit=0.305)]]


@pytest.mark.parametrize(
    ("options", "ends", "note"),
    [
        ({"limit": 0.305}, ["−0.305", "0.305"], "the same range in all pictures"),
        ({"limit": np.float32(1234.5)}, ["−1.23e+03", "1.23e+03"], "the same range in all pictures"),
        (
            {"limit": "own"},
            ["−largest |R|", "largest |R|"],
            "each picture has its own range, up to its largest |R|",
        ),
        (
            {},
            ["−limit", "limit"],
            "the limit of each picture's colours: its own largest |R|, unless another was set",
        ),
        ({"limit": 2.0, "note": "99 % of the pixels"}, ["−2", "2"], "99 % of the pixels"),
    ],
)
def test_a_sheet_says_what_the_ends_of_its_colours_stand_for(options, ends, note):
    figure = viz.sheet(MAPS, colorbar="relevance", **options)
    bar = figure.axes[-1]
    assert [label.get_text() for label in bar.get_xticklabels()] == [
        f"against the class\n{ends[0]}",
        "0",
        f"for the class\n{ends[1]}",
    ]
    assert bar.get_xlabel() == note
    assert note in figure.get_label()


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan, np.inf, "each"])
def test_a_sheet_refuses_limits_that_are_none(limit):
    with pytest.raises(ValueError, match="limit must be a positive number, 'own' or None; it is"):
        viz.sheet(MAPS, colorbar="relevance", limit=limit)


@pytest.mark.parametrize("options", [{"limit": 1.0}, {"note": "x"}])
def test_a_range_needs_a_colour_bar(options):
    with pytest.raises(ValueError, match="limit and note are about the colour bar: give colorbar"):
        viz.sheet(MAPS, **options)


def description(path):
    """The alternative text in a file, as those who read it for others find it."""
    if path.suffix == ".png":
        with PIL.Image.open(path) as picture:
            return picture.info.get("Description")
    if path.suffix == ".svg":
        root = xml.etree.ElementTree.parse(path).getroot()
        (title,) = root.findall("{http://www.w3.org/2000/svg}title")
        (about,) = root.iter("{http://purl.org/dc/elements/1.1/}description")
        assert about.text == title.text
        return title.text
    (subject,) = re.findall(rb"/Subject \(([^)]*)\)", path.read_bytes())
    return subject.decode()


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_sheet_is_described_to_those_who_do_not_see_it(tmp_path, ending):
    path = tmp_path / f"sheet.{ending}"
    labels = {"row_labels": ["why 3?"], "column_labels": ["image", "LRP"], "title": "Two\nmaps"}
    figure = viz.sheet(MAPS, **labels, captions=[["a", ""]], footer="Red is for.", path=path)
    made = "Two maps. Sheet of pictures, 1 row by 2 columns. Rows: why 3?. Columns: image, LRP. Captions: a. Red is for."
    assert figure.get_label() == description(path) == made
    viz.sheet(MAPS, alt="A cat & a <dog>", path=path)
    assert description(path) == "A cat & a <dog>"
    viz.save(figure, path, alt="Other")
    assert description(path) == "Other"


@pytest.mark.parametrize("ending", ["jpg", "tif", "webp", "svgz", "eps"])
def test_formats_without_a_place_for_a_description_are_written_too(tmp_path, ending):
    viz.sheet(MAPS, alt="words", path=tmp_path / f"sheet.{ending}")
    assert (tmp_path / f"sheet.{ending}").stat().st_size > 100


def test_a_single_heatmap_is_described(tmp_path):
    path = tmp_path / "map.png"
    viz.save(MAPS[0][0], path, alt="Größer als −1")
    assert description(path) == "Größer als −1"
    viz.save(MAPS[0][0], path)
    assert description(path) is None
    with PIL.Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), MAPS[0][0])


def test_figures_are_described():
    figure = viz.curves(
        [0, 1], {"a": [3.0, 1.0], "b": [[3.0, 2.0], [5.0, 2.0]]}, x_label="flipped", title="T"
    )
    assert figure.get_label() == "T. Curves of values against flipped: a from 3 to 1; b from 4 to 2."
    assert viz.curves([0, 1], {"a": [3.0, 1.0]}, alt="mine").get_label() == "mine"
    stages = [types.SimpleNamespace(path="x", kept=np.array(0.25))]
    share = "Share of the output's relevance that is left after each of 1 stages; in the end: one 0.25."
    assert viz.kept({"one": stages}).get_label() == share
    assert viz.kept({"one": stages}, alt="mine").get_label() == "mine"
    layers = viz.token_layers({"low": [1.0, 2.0], "high": [4.0, -8.0]}, ["a", " b"])
    told = "The token with the largest in each: low: b; high: a."
    assert layers.get_label() == f"Relevance of 2 tokens in 2 layers, colours up to 8. {told}"
    assert viz.token_layers([[1.0]], ["a"], alt="mine").get_label() == "mine"


def test_coloured_text_is_described():
    label = lambda page: next(dict(attrs) for tag, attrs in opened(page) if tag == "div")
    page = viz.tokens(['"a"', "b", "c", "d", "e"], [1.0, -2.0, 0.0, np.nan, 0.5], mode="html")
    said = 'Tokens coloured by their relevance; the largest: “b” -2, “"a"” +1, “e” +0.5; not finite: 1'
    assert (label(page)["aria-label"], label(page)["role"]) == (said, "group")
    assert (
        label(viz.tokens(["a"], [0.0], mode="html"))["aria-label"]
        == "Tokens coloured by their relevance; none has any"
    )
    assert label(viz.tokens(["a"], [1.0], mode="html", alt='"<'))["aria-label"] == '"<'
    page = viz.generated(["a", "b"], [[3.0, 0.0]], 1)
    assert (
        label(page)["aria-label"] == "Text with its tokens coloured by their relevance; the largest: “a” +3"
    )
    assert label(viz.generated(["a", "b"], [[3.0, 0.0]], 1, alt="mine"))["aria-label"] == "mine"


def opened(page):
    """The elements of a page as they are opened, with their attributes."""
    found = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, attrs: found.append((tag, attrs))
    reader.feed(page)
    return found


# ------------------------------------------------------------------------------------------------------------------------ language models


def test_tokens_by_layers_from_the_bottom_to_the_top(tmp_path):
    R = {"embedding": [0.0, 2.0, np.nan], "block": jnp.array([[4.0, 0.0, -4.0], [1.0, 0.0, 0.0]])}
    figure = viz.token_layers(R, ["a", " b\n", "$c$"], title="why", path=tmp_path / "layers.png")
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.origin == "lower", "the first layer at the bottom"
    picture = np.asarray(image.get_array())
    np.testing.assert_array_equal(
        picture, viz.heatmap([[0, 2, np.nan], [4, 0, -4], [1, 0, 0]])
    )  # one limit for all, 4
    assert picture[0].tolist() == [WHITE, [249, 153, 131], GREEN] and picture[1, 0].tolist() == RED
    assert [t.get_text() for t in axes.get_yticklabels()] == ["embedding", "block 0", "block 1"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", " b↵", "$c$"]
    assert not any(t.get_parse_math() for t in axes.get_xticklabels())
    assert axes.get_title() == "why" and figure.axes[1].get_ylim() == (-4.0, 4.0)
    assert matplotlib.image.imread(tmp_path / "layers.png").shape[0] > 100


def test_tokens_by_layers_take_an_array_names_and_a_limit():
    figure = viz.token_layers([[1.0, -1.0]], ["a", "b"], ["first"], limit=2.0, symmetric=False, cmap="gray")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["first"]
    assert figure.axes[0].images[0].get_array()[0, 1].tolist() == [0, 0, 0]
    assert figure.axes[1].get_ylim() == (0.0, 2.0)
    plain = viz.token_layers(np.zeros((2, 1)), ["a"])
    assert [t.get_text() for t in plain.axes[0].get_yticklabels()] == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([[1.0, 2.0]], ["a"]),
            r"R must hold one number for each of the 1 tokens.*shape \(L, 1\); it has \(1, 2\)",
        ),
        (
            ({"x": np.ones((1, 2, 2))}, ["a", "b"]),
            r"x must hold.*shape \(L, 2\) or \(2,\); it has \(1, 2, 2\)",
        ),
        (([1.0, 2.0], ["a", "b"]), "R must hold"),
        (([[1.0, 2.0]], "ab"), "R must hold"),
        (({}, ["a"]), "R holds no layers"),
        (([[1.0]], ["a"], ["x", "y"]), "layers must be 1 names, one for each layer of R, but is"),
        (([[1.0]], ["a"], None), None),
    ],
)
def test_tokens_by_layers_refuse(arguments, message):
    if message is None:
        with pytest.raises(ValueError, match="limit must be positive"):
            viz.token_layers(*arguments, limit=0.0)
        return
    with pytest.raises(ValueError, match=message):
        viz.token_layers(*arguments)


class Page(html.parser.HTMLParser):
    """The spans of a page, with the text in each, and its script."""

    def __init__(self, text):
        super().__init__()
        self.spans, self.script, self.tags, self.inside, self.said = [], "", [], [], ""
        self.feed(text)
        assert not self.inside, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "meta":
            self.inside.append(tag)
        if tag == "span":
            self.spans.append(dict(attrs) | {"text": ""})

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside and self.inside[-1] == "script":
            self.script += data
        elif "style" not in self.inside:
            self.said += data
            if self.inside and self.inside[-1] == "span":
                self.spans[-1]["text"] += data


GENERATED = ["<b>", "\n", "Ġwo", "rd</script>", "Ġend", '"&\t\x1b']
ROWS = np.array(
    [
        [1.0, -2.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, np.nan, 0.0, 0.0],
        [0.0, 4.0, 0.0, 0.0, -1.0, 0.0],
    ]
)


def test_generated_text_is_the_sum_without_scripts_and_escaped():
    page = Page(viz.generated(GENERATED, ROWS, 2))
    assert page.said == '<b>↵\nĠword</script>Ġend"&→\t\\x1b'
    assert page.tags == ["div", "style", "div", *["span"] * 6, "script"]
    assert [s["title"] for s in page.spans] == ["+1.5", "+2", "+1", "+nan", "-1", "+0"]
    colours = [s["style"].partition(";")[0] for s in page.spans]
    assert colours[1] == "background:#d41412" and colours[3] == "background:#00ff00"
    assert colours[4] == "background:#aaabfa" and colours[5] == "background:#ffffff"
    assert [(s.get("data-row"), s.get("data-word")) for s in page.spans] == [
        (None, None),
        (None, None),
        ("0", "0"),
        ("1", "0"),
        ("2", "1"),
        ("3", "1"),
    ]
    for token in ("wo", "rd", "end"):
        assert token not in page.script.partition("views=")[0].replace("word", ""), (
            "no text in the script's data"
        )
    whole = viz.generated(["é", "b"], [[1.0, 0.0]], 1, document=True)
    assert whole.startswith("<!doctype html>") and '<meta charset="utf-8">' in whole
    assert [s["text"] for s in Page(whole).spans] == ["é", "b"]


def words(tokens, **options):
    page = Page(viz.generated(["x", *tokens], np.zeros((len(tokens), len(tokens) + 1)), 1, **options))
    return [s["data-word"] for s in page.spans[1:]]


def test_words_of_generated_tokens():
    assert words(["a", "b", " c", "d", "▁e", "f"]) == ["0", "0", "1", "1", "2", "2"]
    assert words(["a", "\n", "b", "Ċ", "c"]) == ["0", "1", "2", "3", "4"]
    assert words(["a", "b"], separator=" ") == ["0", "1"]
    assert words(["a", " b", "c"], words=[3, 3, 7]) == ["0", "0", "1"]
    assert Page(viz.generated(["a", "b"], [[0.0, 0.0]], 1, separator="<")).said == "a<b"


def test_several_views_on_a_page_do_not_meet():
    one, other = (
        re.findall("lrpjax-[0-9a-f]+", viz.generated(["a", "b"], [[v, 0.0]], 1)) for v in (1.0, 2.0)
    )
    assert len({*one}) == len({*other}) == 1 and one[0] != other[0]


STAGE = """
const page = JSON.parse(require("fs").readFileSync(0, "utf8"));
const spans = page.spans.map(s => ({style: {}, title: s.title, dataset: {row: s["data-row"], word: s["data-word"]},
  marks: {}, classList: {toggle(name, on) { this.owner.marks[name] = on; }}}));
spans.forEach(s => s.classList.owner = s);
const own = spans.filter(s => s.dataset.row !== undefined);
const box = {querySelectorAll: what => what === "span" ? spans : own};
global.document = {querySelectorAll: () => [box]};
eval(page.script);
const said = [], tell = () => said.push([spans.map(s => s.title), spans.map(s => s.style.background), own.map(s => s.marks.shown)]);
own[0].onmouseenter(); tell(); own[0].onmouseleave(); tell();
own[1].onclick(); tell(); own[3].onmouseenter(); tell(); own[1].onkeydown({key: "Enter", preventDefault() {}}); tell();
own[2].onfocus(); tell();
console.log(JSON.stringify(said));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, which runs the script of the page")
@pytest.mark.parametrize("limit", [None, 8.0])
def test_the_script_of_generated_text(limit):
    page = Page(viz.generated(GENERATED, ROWS, 2, limit=limit))
    given = json.dumps({"spans": page.spans, "script": page.script})
    done = subprocess.run(["node", "-e", STAGE], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hover, left, held, still, released, focus = json.loads(done.stdout)
    views = {"sum": ROWS.sum(0), "first": ROWS[0], "word": ROWS[:2].sum(0), "third": ROWS[2]}
    shown = [("first", hover, [0]), ("sum", left, []), ("word", held, [0, 1]), ("word", still, [0, 1])]
    for name, (titles, colours, marks), marked in [*shown, ("sum", released, []), ("third", focus, [2])]:
        values = [np.nan if t == "not finite" else float(t) for t in titles]
        np.testing.assert_allclose(values, views[name], atol=1e-3, err_msg=name)
        wanted = viz.heatmap(views[name][None], limit=limit)[0].astype(int)
        found = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]
        np.testing.assert_allclose(found, wanted, atol=2)  # of 255 colours in place of 257
        assert [i for i, mark in enumerate(marks) if mark] == marked


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (["a", "b"], [[1.0]], 1),
            {},
            r"R must have shape \(T - start, T\).*2 tokens, start is 1, and R has \(1, 1\)",
        ),
        ((["a", "b"], np.ones((2, 2)), 0), {}, "start is 0"),
        (("ab", [[1.0, 1.0]], 1), {}, "R must have shape"),
        (
            (["a", "b", "c"], np.ones((2, 3)), 1),
            {"words": [1, 0]},
            "words must be 2 integers that never fall",
        ),
        ((["a", "b", "c"], np.ones((2, 3)), 1), {"words": [0.0, 1.0]}, "words must be 2 integers"),
        ((["a", "b"], [[1.0, 1.0]], 1), {"limit": -1.0}, "limit must be positive"),
    ],
)
def test_generated_text_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        viz.generated(*arguments, **options)


def test_a_circuit_has_its_layers_and_tokens(tmp_path):
    node = lambda path, kind, layer, R, token=None, feature=None: types.SimpleNamespace(
        path=path,
        name=f"{path}[{token}, {feature}]",
        kind=kind,
        layer=layer,
        relevance=R,
        token=token,
        feature=feature,
    )
    nodes = [
        node("input", "input", 0, 1.0, 0),
        node("input", "input", 0, -4.0, 1),
        node("mlp", "feature", 1, 3.0, 1, 17),
        node("mlp", "feature", 1, 0.0, 1, 20),
        node("mlp/error", "error", 1, 1.0, 1),
        node("output", "output", 2, 4.0, None, 5),
    ]
    weights = np.zeros((6, 6))
    weights[2, 0], weights[2, 1], weights[5, 2] = 1.0, -2.0, 4.0
    graph = types.SimpleNamespace(nodes=nodes, weights=weights)
    figure = viz.circuit(
        graph, tokens=["a", "b"], labels={"mlp[1, 20]": "cats"}, path=tmp_path / "circuit.png"
    )
    (axes,) = figure.axes
    assert (tmp_path / "circuit.png").exists()
    said = "Attribution graph of 6 nodes and 3 edges, from the bottom: input; mlp; output."
    assert figure.get_label() == f"{said} Strongest features: mlp[1, 17] (+3), cats (+0)."
    assert viz.circuit(graph, alt="mine").get_label() == "mine"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["input", "mlp", "output"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert [t.get_text() for t in axes.texts] == ["17", "cats", "5"]
    lines = next(c for c in axes.collections if isinstance(c, matplotlib.collections.LineCollection))
    (first, second), (low, high) = axes.get_xticks(), sorted(axes.get_xlim())
    assert low < first < second < high
    # The largest last, on top: blue for −2, red for 4, and twice as wide above the least width.
    ends = [segment.tolist() for segment in lines.get_segments()]
    widths = np.array(lines.get_linewidths()) - 0.3
    np.testing.assert_allclose(widths / widths[-1], [0.25, 0.5, 1.0])
    colours = np.array(lines.get_colors())[:, :3]
    assert [("red" if r > b else "blue") for r, _, b in colours] == ["red", "blue", "red"]
    assert ends[-1][0][1] == 1 and ends[-1][1] == [pytest.approx(second), 2], (
        "the output stands above the last token"
    )
    assert ends[0][0] == [pytest.approx(first), 0]
    places = {
        tuple(p) for c in axes.collections if c is not lines for p in np.asarray(c.get_offsets()).tolist()
    }
    assert len(places) == 6, "no two nodes stand in one place"
    few = viz.circuit(graph, edges=1).axes[0].collections[0]
    assert len(few.get_segments()) == 1
    bare = viz.circuit(types.SimpleNamespace(nodes=nodes[-1:], weights=np.zeros((1, 1))))
    assert [t.get_text() for t in bare.axes[0].get_xticklabels()] == []
    with pytest.raises(ValueError, match="nodes at 2 tokens, but 1 are named"):
        viz.circuit(graph, tokens=["a"])
    with pytest.raises(ValueError, match="circuit needs a graph with nodes"):
        viz.circuit(types.SimpleNamespace(nodes=[], weights=np.zeros((0, 0))))
    with pytest.raises(ValueError, match="edges of at least 0"):
        viz.circuit(graph, edges=-1)
