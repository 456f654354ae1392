"""A report in a real browser: clicks, filters, selecting, keyboard, dark mode, phone width. Needs Playwright and Chromium."""

import shutil
import time

import numpy as np
import pytest

import lrpjax
from lrpjax import explore, report

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

N, BIG = 300, 10_000


def made(folder, n, side, text=False, classes=True):
    rng = np.random.default_rng(0)
    R = rng.normal(size=(n, 12) if text else (n, side, side)).astype(np.float32)
    y = rng.normal(size=(n, 3)).astype(np.float32)
    R[5] = np.nan
    explain = lambda i: {
        "relevance": R[i],
        "output": y[i],
        "explained": y[i].max(1),
        "arrived": y[i].max(1) * 0.9,
    }
    batches = [np.arange(i, min(i + 100, n)) for i in range(0, n, 100)]
    import jax

    shapes = jax.eval_shape(
        lambda i: {k: jax.numpy.asarray(v)[i] for k, v in whole(R, y).items()}, batches[0]
    )
    writer = lrpjax.store.StoreWriter(folder / "store", {"model": "synthetic"}, shapes)
    for number, batch in enumerate(batches):
        writer.write(number, explain(batch), lrpjax.store.fingerprint(batch), int(5 in batch))
    writer.finish(len(batches))
    rows = np.arange(n)
    left, right = rows[: n // 2], rows[n // 2 :]
    position = np.stack([np.where(rows < n // 2, -0.5, 0.5), np.linspace(-1, 1, n)], 1)
    clusters = (
        explore.Cluster(0, 0, left, left[:3], left[-1:], 0.8),
        explore.Cluster(1, 0, right, right[:3], right[-1:], 0.2),
    )
    found = explore.Findings(
        rows,
        rows * 0,
        (rows >= n // 2).astype(int),
        position,
        rng.uniform(size=n),
        clusters,
        {0: np.array([0, 0.1, 0.7])},
        {},
        {},
    )
    more = (
        {"tokens": [["<img src=x onerror=alert(1)>", *"abcdefghijk"]] * n}
        if text
        else {"inputs": rng.uniform(size=(n, side, side))}
    )
    page = report.write(
        folder / "store", folder / "r.html", classes=rows % 3 if classes else None, findings=found, **more
    )
    return page, y.argmax(1), rows % 3


def whole(R, y):
    return {"relevance": R, "output": y, "explained": y.max(1), "arrived": y.max(1)}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    return made(tmp_path_factory.mktemp("report"), N, 8)


@pytest.fixture
def opened(browser):
    """Opens a page; afterwards nothing was said on the console, and nothing but the file was asked for."""
    said, asked, contexts = [], [], []

    def go(path, width=1300, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not said, said
    assert all(url.startswith(("file://", "data:", "blob:")) for url in asked), asked


def count(page):
    return int(page.inner_text("#shown").split(" ")[0].replace(",", ""))


def test_filters_and_sorting(report_page, opened):
    path, predicted, true = report_page
    page = opened(path)
    assert count(page) == N
    page.select_option("[name=error]", "wrong")
    assert count(page) == (predicted != true).sum()
    page.select_option("[name=class]", "1")
    assert count(page) == ((predicted != true) & (true == 1)).sum()
    page.click("#reset-all")
    page.select_option("[name=finite]", "no")
    assert count(page) == 1 and "not finite" in page.locator(".cell").first.get_attribute("aria-label")
    page.click("#reset-all")
    page.fill("[name=min-row]", "10")
    page.fill("[name=max-row]", "19")
    page.select_option("[name=order]", "down")
    assert count(page) == 10 and page.locator(".cell").first.get_attribute("aria-label").startswith("row 19,")
    page.click("#reset-all")
    page.locator("#classes button").nth(0).click()
    assert count(page) == N // 3


def test_clusters_and_the_map_select(report_page, opened):
    page = opened(report_page[0])
    page.locator(".card button", has_text="Show its").nth(1).click()
    assert count(page) == N // 2 and page.input_value("[name=cluster]") == "1"
    page.click("#reset-all")
    page.locator("#scatter").scroll_into_view_if_needed()
    box = page.locator("#scatter").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 4, steps=4)
    page.mouse.up()
    assert count(page) == N // 2 and "selection" in page.inner_text("#shown")
    page.click("#clear")
    assert count(page) == N
    page.mouse.click(box["x"] + 3, box["y"] + 3)  # far from any point
    assert not page.locator("#detail").is_visible()


def test_thumbnails_are_painted_and_follow_the_choices(report_page, opened):
    page = opened(report_page[0])
    canvas = page.locator(".cell canvas").first
    page.wait_for_selector(".cell canvas[data-done='0']")
    pixels = lambda: page.evaluate("document.querySelector('.cell canvas').toDataURL()")
    seen = {pixels()}
    for choose in (
        lambda: page.check("[name=view][value=heat]"),
        lambda: page.select_option("[name=map]", "seismic"),
        lambda: page.select_option("[name=range]", "shared"),
        lambda: page.check("[name=view][value=input]"),
    ):
        choose()
        page.wait_for_timeout(250)
        seen.add(pixels())
    assert canvas.is_visible() and len(seen) == 5
    # Full opacity and none differ; none shows the input in grey.
    page.check("[name=view][value=overlay]")
    page.locator("[name=opacity]").evaluate(
        "e => { e.value = 0; e.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.wait_for_timeout(250)
    assert pixels() not in seen


def test_keyboard(report_page, opened):
    page = opened(report_page[0])
    page.locator(".cell[tabindex='0']").focus()
    label = lambda: page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label().startswith("row 0,")
    page.keyboard.press("ArrowRight")
    assert label().startswith("row 1,") and page.locator(".cell[tabindex='0']").count() == 1
    page.keyboard.press("Control+End")
    assert label().startswith(f"row {N - 1},")
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible() and f"Row {N - 1}" in page.inner_text("#detail-title")
    page.keyboard.press("ArrowLeft")
    assert f"Row {N - 2}" in page.inner_text("#detail-title")
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible() and label().startswith(f"row {N - 2},")


NAMELESS = """() => Array.from(document.querySelectorAll('button,input,select,a,canvas[role],svg[role],meter')).filter(e => {
  const label = e.closest('label');
  return !(e.getAttribute('aria-label') || e.textContent.trim() && e.tagName !== 'SELECT' || label && label.textContent.trim());
}).map(e => e.outerHTML.slice(0, 120))"""


def test_everything_has_a_name_and_a_role(report_page, opened):
    page = opened(report_page[0])
    assert page.evaluate(NAMELESS) == []
    assert page.locator("main").count() == page.locator("h1").count() == 1
    assert page.locator("#grid[role=grid] [role=row] > [role=gridcell]").count() > 10
    assert page.locator("#shown[role=status]").count() == 1
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), e => e.id)")
    assert len(ids) == len({*ids})


def test_dark_and_light(report_page, opened):
    page = opened(report_page[0], color_scheme="dark")
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    night = paper()
    page.click("#theme")
    assert paper() != night and page.get_attribute("#theme", "aria-pressed") == "false"


def test_phone_width(report_page, opened):
    page = opened(report_page[0], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".cell").first.click()
    assert page.locator("#detail").is_visible()
    assert page.locator("#detail").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_text(tmp_path, opened):
    page = opened(made(tmp_path, 30, 8, text=True)[0])
    page.wait_for_selector(".cell .tokens span")
    assert page.locator(".cell .tokens span").first.inner_text() == "<img src=x onerror=alert(1)>"
    assert page.locator("img").count() == 0


def test_ten_thousand_samples_stay_usable(tmp_path, opened):
    path = made(tmp_path, BIG, 16)[0]
    start = time.monotonic()
    page = opened(path)
    page.wait_for_selector(".cell canvas[data-done='0']")
    first = time.monotonic() - start
    start = time.monotonic()
    page.evaluate("document.getElementById('grid').scrollTop = 1e9")
    page.wait_for_selector(f".cell[aria-label^='row {BIG - 1},'] canvas[data-done]")
    scrolled = time.monotonic() - start
    start = time.monotonic()
    page.select_option("[name=error]", "wrong")
    assert 0 < count(page) < BIG
    filtered = time.monotonic() - start
    print(
        f"{path.stat().st_size / 1e6:.1f} MB, first paint {first:.2f} s, to the end {scrolled:.2f} s, filter {filtered:.2f} s"
    )
    assert page.locator(".cell").count() < 200
    assert max(first, scrolled, filtered) < 10
