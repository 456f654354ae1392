"""The package zarr reads stores as Zarr 3, and what it writes becomes a store."""

import numpy as np
import pytest
from helpers import store_of

from lrpjax import exchange

zarr = pytest.importorskip("zarr")


def test_it_reads_our_stores(tmp_path):
    rng = np.random.default_rng(0)
    # 300 batches: a file full of them, and the rest.
    R, output = rng.normal(size=(600, 3, 3)), rng.normal(size=(600, 4)).astype(np.float16)
    store = store_of(tmp_path / "store", R, output, {"model": "net"}, batch=2)
    group = zarr.open_group(tmp_path / "store", mode="r", zarr_format=3)
    assert sorted(group.array_keys()) == ["batches", "output", "relevance"]
    assert group.attrs["lrpjax"]["settings"] == store.settings
    np.testing.assert_array_equal(group["relevance"][:], R)
    np.testing.assert_array_equal(group["relevance"][511:514], R[511:514])
    np.testing.assert_array_equal(group["output"][:], output)
    assert group["output"].dtype == np.float16


@pytest.mark.parametrize("version", [2, 3])
def test_what_it_writes_is_imported(tmp_path, version):
    R = np.random.default_rng(0).normal(size=(10, 3, 5, 4)).astype(np.float32)
    group = zarr.create_group(tmp_path / "theirs", zarr_format=version)
    group.create_array("run/attr", data=R, chunks=(4, 3, 5, 4))
    group.create_array("logits", data=R[:, 0, 0], chunks=(3, 4))
    store = exchange.import_store(
        tmp_path / "store",
        tmp_path / "theirs",
        settings={"model": "net"},
        names={"relevance": "run/attr", "output": "logits"},
        channel_axis=1,
    )
    np.testing.assert_array_equal(store["relevance"], np.moveaxis(R, 1, -1))
    np.testing.assert_array_equal(store["output"], R[:, 0, 0])
