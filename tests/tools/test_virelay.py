"""The real ViRelAy's server opens what is written for it; in an environment of its own, as it wants another NumPy."""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from helpers import planted_strategies, store_of

import lrpjax
from lrpjax import exchange, explore

model = pytest.importorskip("virelay.model")
server = pytest.importorskip("virelay.server")
image = pytest.importorskip("PIL.Image")


def test_the_server_shows_a_project(tmp_path):
    x = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    results = lambda x: {"relevance": x, "output": x.reshape(len(x), -1)[:, :3]}
    for _ in lrpjax.explain_batches(results, [x[:4], x[4:]], store=tmp_path / "store", progress=False):
        pass
    rows = np.arange(6)
    found = explore.Findings(
        rows, rows % 2, rows % 3, np.zeros((6, 2)), rows + 1.0, (), {0: rows * 1.0}, {}, {}
    )
    store = lrpjax.open_store(tmp_path / "store")
    path = exchange.to_virelay(tmp_path / "p", store, x, rows % 3, found, names=["a", "b", "c"])
    workspace = model.Workspace()
    workspace.add_project(str(path))
    client = server.Server(workspace).app.test_client()
    analysis = "analyses/findings?category=00000001&clustering=clusters&embedding=position"
    points = client.get(f"/api/projects/0/{analysis}").json["embedding"]
    assert [p["attributionIndex"] for p in points] == [1, 3, 5]
    for colours in ("jet", "black-fire-red", "gray-red"):
        for over in ("true", "false"):
            heatmap = f"attributions/2/heatmap?colorMap={colours}&superimpose={over}"
            assert client.get(f"/api/projects/0/{heatmap}").status_code == 200
    workspace.close()


@pytest.fixture
def command(tmp_path):
    """The address of the command virelay, which shows clusters of planted strategies, its log, and the rows of
    the second cluster; ended afterwards."""
    R, classes, _ = planted_strategies()
    R = R.repeat(4, 1).repeat(4, 2).astype(np.float32)
    x = 0.7 * np.clip(R / R.max(), 0, 1) + 0.3 * np.random.default_rng(0).random(R.shape)
    said = {"model": "net", "composite": "epsilon_plus", "target": "max"}
    store = store_of(tmp_path / "store", R, np.eye(2, dtype=np.float32)[classes], said)
    rows = np.arange(len(R))
    corner = np.abs(R[:, :16, :16]).sum((1, 2, 3)) > np.abs(R).sum((1, 2, 3)) / 2
    position = np.random.default_rng(1).uniform(-0.4, 0.4, (len(R), 2)) + np.where(corner, 0.5, -0.5)[:, None]
    # Of class 0, which is drawn first, 12 rows look at the corner.
    labels = np.where(classes == 1, 2, corner)
    values = {0: np.linspace(0, 0.8, 7)}
    found = explore.Findings(rows, classes, labels, position, rows * 0.0 + 1, (), values, {}, {})
    path = exchange.to_virelay(tmp_path / "planted", store, x, classes, found, names=["cat", "dog"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        run = [sys.executable, "-m", "virelay", str(path), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(run, stdout=output, stderr=subprocess.STDOUT)
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/projects", timeout=10).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/", log, np.flatnonzero((classes == 0) & corner).tolist()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def shown(page, wanted):
    """{the sample's number: whether it is an overlay} of the pictures of samples that the page has drawn; waits until it
    is what is wanted, or half a minute."""
    script = """() => [...document.querySelectorAll('img')]
        .filter(picture => picture.complete && picture.naturalWidth == 48).map(picture => picture.src)"""
    found = {}
    for _ in range(150):
        urls = [
            re.search(r"(dataset|attributions)/(\d+)/(image|heatmap)", url) for url in page.evaluate(script)
        ]
        found = {int(match[2]): match[3] == "heatmap" for match in urls if match}
        if found == wanted:
            break
        page.wait_for_timeout(200)
    return found


def drawn_points(picture):
    """How many pixels of a picture of the scatter are in colour."""
    pixels = np.asarray(image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return (np.ptp(pixels, axis=-1) > 60).sum()


def test_the_command_shows_it_in_a_browser(command, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    address, log, odd = command
    answers, faults = [], []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.on("response", lambda answer: answers.append((answer.status, answer.url)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.get_by_text("Cluster 1 (40)").wait_for()
        cluster = page.get_by_text("Cluster 2 (12)")
        categories = page.locator("select[name=category] option").all_inner_texts()
        assert [name.strip() for name in categories] == ["cat (00000000)", "dog (00000001)"]
        cluster.click()
        inputs, overlays = dict.fromkeys(odd, False), dict.fromkeys(odd, True)
        assert shown(page, inputs) == inputs
        # The round button lies over its label.
        page.get_by_text("Overlay").click(force=True)
        assert shown(page, overlays) == overlays
        scatter = page.locator("canvas").first.screenshot()
        page.screenshot(path=tmp_path / "virelay.png")
        browser.close()
    assert drawn_points(scatter) > 500  # 52 points, each of some 50 pixels
    assert not faults and all(status < 400 for status, _ in answers)
    assert "Traceback" not in log.read_text()
