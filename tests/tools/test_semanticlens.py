"""The real semanticlens takes the samples that are written for it as its own, and does not run the model."""

import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import concepts, exchange

torch = pytest.importorskip("torch")
visualization = pytest.importorskip("semanticlens.component_visualization")


def test_it_finds_what_it_would_find_itself(tmp_path):
    rng = np.random.default_rng(0)
    # Quarters are exact in the 16 bits that semanticlens keeps of an activation.
    x = rng.integers(-8, 9, (20, 4, 4, 3)) / 4
    kernel = rng.integers(-1, 2, (3, 5)) / 1.0
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1, bias=False))
    model[0].weight.data = torch.from_numpy(kernel.T[:, :, None, None].copy()).float()
    model.name = "net"
    pictures = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).float()
    data = torch.utils.data.TensorDataset(pictures, torch.zeros(20))
    data.name = "planted"

    def visualizer(folder):
        maximum = visualization.aggregators.aggregate_conv_max
        return visualization.ActivationComponentVisualizer(
            model, data, data, ["0"], num_samples=3, aggregate_fn=maximum, cache_dir=str(folder)
        )

    f = lambda x: lrpjax.tag(x @ kernel, "conv").sum((1, 2))
    best = concepts.maximising_samples(f, None, [jnp.asarray(x)], at="conv", by="activation", pool="max", k=3)
    file = exchange.to_semanticlens(
        tmp_path / "ours", best, dataset="planted", model="net", layer="0", aggregation="aggregate_conv_max"
    )
    ours = visualizer(tmp_path / "ours")
    model.forward = None  # nothing is run
    assert ours.storage_dir == file.parent
    np.testing.assert_array_equal(ours.run()["0"].sample_ids, best.index)
    np.testing.assert_array_equal(ours.get_max_reference("0"), best.index)
    np.testing.assert_allclose(ours.run()["0"].activations, best.score, rtol=1e-6)
    del model.forward
    theirs = visualizer(tmp_path / "theirs").run(batch_size=7)["0"]
    assert [p.name for p in (tmp_path / "theirs").rglob("*.safetensors")] == [file.name]
    np.testing.assert_array_equal(theirs.activations.float(), best.score)
    for channel, samples in enumerate(theirs.sample_ids.numpy()):
        largest = [(x[sample] @ kernel)[..., channel].max() for sample in samples]
        np.testing.assert_array_equal(largest, best.score[channel])
