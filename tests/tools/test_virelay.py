"""The real ViRelAy's server opens what is written for it; in an environment of its own, as it wants another NumPy."""

import numpy as np
import pytest

import lrpjax
from lrpjax import exchange, explore

model = pytest.importorskip("virelay.model")
server = pytest.importorskip("virelay.server")


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
