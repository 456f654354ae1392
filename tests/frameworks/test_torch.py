"""PyTorch modules as functions: against torch's own values and gradients, and the same networks written in JAX."""

import functools
import inspect
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("lrpjax.torch", exc_type=ImportError)  # which helps torchax to be imported

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

import lrpjax
import lrpjax.torch
from lrpjax import composites, rules, select
from lrpjax.cli.main import main


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Tagger(torch.nn.Module):
    """Tokens to classes, with tied embeddings, dropout, a list of blocks and a dict of outputs."""

    def __init__(self, width=6, words=9):
        super().__init__()
        self.embed = torch.nn.Embedding(words, width)
        self.blocks = torch.nn.ModuleList(Block(width) for _ in range(2))
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids, mask=None, *, twice=False):
        h = self.embed(ids)
        for block in self.blocks:
            h = block(h)
        if mask is not None:
            h = h * mask[..., None]
        logits = self.head(self.drop(h)) * self.scale
        return {"logits": 2 * logits if twice else logits, "states": {"last": h}}


def doubled(module):
    """In float64 and evaluation mode, with parameters of which none is 0 or 1."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor.data, dtype=torch.float64) + 0.1
    for parameter in module.parameters():
        parameter.data -= 0.6
    return module.eval()


@functools.cache
def cnn():
    return doubled(
        torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(inplace=True),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 3),
        )
    )


@functools.cache
def tagger():
    return doubled(Tagger())


IMAGES = torch.linspace(-1, 1, 2 * 2 * 6 * 6, dtype=torch.float64).sin().reshape(2, 2, 6, 6)
IDS = torch.tensor([[1, 4, 2], [7, 0, 3]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)


def paths(f, params, *arrays, at=None):
    return [unit.path for unit in lrpjax.plan(f, None, params, *arrays, at=at).units]


# ------------------------------------------------------------------------------------------------------------ functions


def test_a_module_is_a_function_with_its_names_as_paths():
    f, params = lrpjax.torch.function(cnn(), IMAGES)
    x = jnp.asarray(IMAGES.numpy())
    expected = cnn()(IMAGES).detach().numpy()
    np.testing.assert_allclose(f(params, x), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(f)(params, x), expected, rtol=1e-12)
    assert set(params) == set(cnn().state_dict())
    assert paths(f, params, x) == ["0", "2", "3", "5"]


def test_relevance_is_that_of_the_network_written_in_jax():
    f, params = lrpjax.torch.function(cnn(), IMAGES)
    x = jnp.asarray(IMAGES.numpy())

    def written(x):
        dims = ("NCHW", "OIHW", "NCHW")
        h = jax.lax.conv_general_dilated(x, params["0.weight"], (1, 1), "VALID", dimension_numbers=dims)
        h = h + params["0.bias"][:, None, None]
        column = lambda name: params[name][:, None, None]
        h = (h - column("1.running_mean")) / jnp.sqrt(column("1.running_var") + 1e-5)
        h = jax.nn.relu(h * column("1.weight") + column("1.bias"))
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return h.reshape(len(x), -1) @ params["5.weight"].T + params["5.bias"]

    for composite in (
        composites.epsilon(),
        composites.epsilon_plus_flat(),
        composites.epsilon_alpha2_beta1(),
    ):
        R = lrpjax.relevance(f, composite, target=1)(params, x)
        np.testing.assert_allclose(
            R, lrpjax.relevance(written, composite, target=1)(x), rtol=1e-9, atol=1e-12
        )


def test_concepts_patterns_and_rules_go_by_the_modules_names():
    f, params = lrpjax.torch.function(cnn(), IMAGES)
    g, x = functools.partial(f, params), jnp.asarray(IMAGES.numpy())
    composite = composites.epsilon(0.0)
    whole = lrpjax.relevance(g, composite, target=1)(x)

    def through(channel):
        conditions = {"3": channel}
        return lrpjax.concepts.relevance(g, composite, conditions, target=1, channel_axis=1)(x)

    parts = jax.vmap(through)(jnp.arange(4))
    np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-9, atol=1e-12)
    channels = lrpjax.concepts.channel_relevance(g, composite, at="3", target=1, channel_axis=1)(x)
    at = lrpjax.relevance(g, composite, at="3", target=1)(x)
    np.testing.assert_allclose(channels, at.sum((2, 3)), rtol=1e-9, atol=1e-12)

    fitted = lrpjax.patterns.fit(g, [x])
    assert set(fitted) == {"0", "5"}
    R = lrpjax.relevance(g, composites.pattern_attribution(fitted), target=1)(x)
    assert R.shape == x.shape and np.all(np.isfinite(R)) and np.any(R)

    by_name = lrpjax.Composite([("0", rules.Flat()), ("5", rules.Epsilon(0.0))])
    by_kind = lrpjax.Composite(
        [(select.first("conv"), rules.Flat()), (select.kind("dense"), rules.Epsilon(0.0))]
    )
    np.testing.assert_array_equal(
        *(lrpjax.relevance(g, composite, target=1)(x) for composite in (by_name, by_kind))
    )
    alone = jax.vmap(lambda x: lrpjax.relevance(g, composite, target=1)(x[None])[0])(x)
    np.testing.assert_allclose(alone, whole, rtol=1e-9, atol=1e-12)


def test_gradient_times_input_is_torchs():
    x = IMAGES.clone().requires_grad_()
    cnn()(x)[:, 2].sum().backward()
    R = lrpjax.torch.explain(cnn(), composites.input_x_gradient(), IMAGES, target=2)
    assert isinstance(R, torch.Tensor) and R.dtype == torch.float64
    np.testing.assert_allclose(R, (x * x.grad).detach(), rtol=1e-10, atol=1e-14)


def test_params_are_an_argument_and_tied_ones_stand_there_once():
    f, params = lrpjax.torch.function(tagger(), IDS)
    assert "embed.weight" in params and "head.weight" not in params and "scale" in params
    ids = jnp.asarray(IDS.numpy())
    changed = params | {"embed.weight": params["embed.weight"] * 0.5}
    other = doubled(Tagger())
    other.embed.weight.data *= 0.5
    np.testing.assert_allclose(f(changed, ids), other(IDS)["logits"].detach(), rtol=1e-10)
    np.testing.assert_allclose(f(params, ids), tagger()(IDS)["logits"].detach(), rtol=1e-10)


def test_params_share_the_memory_of_the_tensors_and_keep_their_types():
    module = torch.nn.Linear(64, 64).eval()
    _, params = lrpjax.torch.function(module, torch.ones(1, 64))
    assert params["weight"].unsafe_buffer_pointer() == module.weight.data_ptr()
    _, params = lrpjax.torch.function(module.bfloat16(), torch.ones(1, 64, dtype=torch.bfloat16))
    assert params["weight"].dtype == jnp.bfloat16


def test_weights_that_a_module_holds_in_a_list_are_params_too():
    """`nn.LSTM` computes with `_flat_weights`, not with its attributes."""
    lstm = doubled(torch.nn.LSTM(2, 3, batch_first=True))
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 4, 2)
    f, params = lrpjax.torch.function(lstm, x, output="0")
    np.testing.assert_allclose(f(params, x.numpy()), lstm(x)[0].detach(), rtol=1e-10)
    zero = {name: jnp.zeros_like(array) for name, array in params.items()}
    np.testing.assert_array_equal(f(zero, x.numpy()), 0)


def test_inputs_by_name_and_fixed_ones():
    f, params = lrpjax.torch.function(tagger(), IDS, mask=MASK, twice=True)
    expected = tagger()(IDS, MASK, twice=True)["logits"].detach()
    ids, mask = IDS.numpy(), MASK.numpy()
    for y in (f(params, ids, mask), f(params, ids, mask=mask), f(params, mask=mask, ids=ids)):
        np.testing.assert_allclose(y, expected, rtol=1e-10)
    with pytest.raises(lrpjax.InputError, match=r"takes \(params, ids, mask\), but got 1 arrays"):
        f(params, ids)
    with pytest.raises(lrpjax.InputError, match="takes"):
        f(params, ids, mask, twice=False)


def test_inputs_in_a_dict():
    class Sum(torch.nn.Module):
        def forward(self, batch):
            return batch["a"] + 2 * batch["more"][0]

    f, params = lrpjax.torch.function(Sum().eval(), {"a": IMAGES, "more": [IMAGES]})
    x = jnp.asarray(IMAGES.numpy())
    R = lrpjax.relevance(f)(params, {"a": x, "more": [3 * x]})
    np.testing.assert_allclose(R["a"], x)
    np.testing.assert_allclose(R["more"][0], 6 * x)


@pytest.mark.parametrize(
    "output, key",
    [
        ("states.last", "h"),
        (lambda made: made["states"]["last"], "h"),
        (None, "logits"),
        ("logits", "logits"),
    ],
)
def test_which_output(output, key):
    f, params = lrpjax.torch.function(tagger(), IDS, output=output)
    made = tagger()(IDS)
    expected = made["states"]["last"] if key == "h" else made["logits"]
    np.testing.assert_allclose(f(params, IDS.numpy()), expected.detach(), rtol=1e-10)


def test_outputs_that_are_not_there_or_are_several():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x, (2 * x, x > 0)

    for output, message in [
        (None, "output= one of '0', '1.0'"),
        ("2", "no '2' among"),
        ("1", "is a tuple, not a tensor"),
    ]:
        f, params = lrpjax.torch.function(Two().eval(), IMAGES, output=output)
        with pytest.raises(lrpjax.InputError, match=message):
            f(params, IMAGES.numpy())


# ---------------------------------------------------------------------------------------------------------- explanations


def test_paths_globs_and_audits_of_a_token_model():
    f, params = lrpjax.torch.function(tagger(), IDS)
    ids = jnp.asarray(IDS.numpy())
    found = paths(f, params, ids, at="embed")
    assert {"blocks/0/norm", "blocks/0/up", "blocks/1/down", "head"} <= set(found)
    named = lrpjax.relevance(f, composites.attnlrp(), at=["embed", "blocks/1"], target=3)(params, ids)
    assert named["embed"].shape == named["blocks/1"].shape == (2, 3, 6)
    audit = lrpjax.audit(f, composites.attnlrp(), at="embed", target=3)(params, ids)
    np.testing.assert_allclose(audit.rest, 0, atol=1e-9)


def test_source_lines_are_those_of_the_torch_code():
    f, params = lrpjax.torch.function(tagger(), IDS)
    plan = lrpjax.plan(f, None, params, jnp.asarray(IDS.numpy()), at="embed")
    assert all("test_torch.py" in unit.source for unit in plan.units), [u.source for u in plan.units]
    f, params = lrpjax.torch.function(cnn(), IMAGES)
    assert all("modules" in u.source for u in lrpjax.plan(f, None, params, IMAGES.numpy()).units)


def test_a_module_that_is_called_by_another_has_its_own_path():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.outer = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3)})

        def forward(self, x):
            return self.outer["a"](torch.relu(self.inner(torch.relu(self.inner(x)))))

    f, params = lrpjax.torch.function(doubled(Shared()), torch.ones(1, 3, dtype=torch.float64))
    found = paths(f, params, jnp.ones((1, 3)))
    assert [p for p in found if p] == ["inner", "inner", "outer/a"]


def test_the_explained_argument_is_the_input_unless_said_otherwise():
    f, params = lrpjax.torch.function(cnn(), IMAGES)
    x = jnp.asarray(IMAGES.numpy())
    R = lrpjax.relevance(f, target=0)(params, x)
    np.testing.assert_array_equal(R, lrpjax.relevance(f, argnums=1, target=0)(params, x))
    floating = params | {"1.num_batches_tracked": jnp.zeros(())}
    with pytest.raises(lrpjax.InputError, match=r"lrpjax\.parameters\.relevance"):
        lrpjax.relevance(f, argnums=0, target=0)(floating, x)
    of_params = lrpjax.parameters.relevance(f, composites.epsilon(0.0), target=0)(params, x)
    y = f(params, x)[..., 0].sum()
    np.testing.assert_allclose(of_params["5.weight"].sum() + of_params["5.bias"].sum(), y, rtol=1e-6)
    assert not of_params["1.num_batches_tracked"].any()
    g, params = lrpjax.torch.function(tagger(), IDS, MASK)
    assert f.argnums == 1 and g.argnums == 2, "the first that is floating-point"


def test_arguments_may_be_given_by_name():
    net = cnn()
    (name,) = inspect.signature(net.forward).parameters
    f, params = lrpjax.torch.function(net, **{name: IMAGES})
    x = jnp.asarray(IMAGES.numpy())
    R = lrpjax.relevance(f, target=0)(params, **{name: x})
    np.testing.assert_array_equal(R, lrpjax.relevance(f, target=0)(params, x))
    assert len(lrpjax.plan(f, None, params, **{name: x})) == len(lrpjax.plan(f, None, params, x))
    with pytest.raises(lrpjax.InputError, match=r"do not fit .*missing a required argument"):
        lrpjax.relevance(f, target=0)(params, other=x)


def test_an_explainer_compiles_once_and_follows_a_training():
    net = doubled(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    explain = lrpjax.torch.explainer(net, composites.epsilon(0.0))
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    expected = lambda: (x * net[0].weight[1]).detach()
    for target in (1, torch.tensor([1])):
        np.testing.assert_allclose(explain(x, target=target), expected(), rtol=1e-9)
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    np.testing.assert_allclose(explain(x, target=1), expected(), rtol=1e-9)


# ------------------------------------------------------------------------------------------------------ the command line

BUILD = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()

class Tagger(torch.nn.Module):
    def forward(self, x, factor):
        return {"doubled": factor * x.flatten(1), "other": x}

def tagger():
    return Tagger().eval(), {"factor": 2.0, "output": "doubled"}

def wrong():
    return Tagger().eval(), 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "torch_project.py").write_text(BUILD)
    yield tmp_path
    sys.modules.pop("torch_project", None)


def test_the_command_line_explains_torch_modules(project, capsys):
    picture = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(picture).save("a.png")
    assert main(["plan", "--model", "torch:torch_project:build", "--inputs", "a.png"]) == 0
    assert "conv" in capsys.readouterr().out
    assert (
        main(
            [
                "explain",
                "--model",
                "torch:torch_project:build",
                "--inputs",
                "a.png",
                "--out",
                "out",
                "--target",
                "1",
            ]
        )
        == 0
    )
    stored = lrpjax.open_store("out")
    x = torch.tensor(picture / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    import torch_project

    module = torch_project.build()
    R = lrpjax.torch.explain(module, composites.epsilon_plus(), x, target=1)
    np.testing.assert_allclose(stored["relevance"][:], R.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stored["output"][:], module(x).detach(), rtol=1e-4, atol=1e-5)


def test_the_command_line_takes_arguments_of_the_module(project, capsys):
    np.save("x.npy", np.ones((2, 2, 2), np.float32))
    assert (
        main(["explain", "--model", "torch:torch_project:tagger", "--inputs", "x.npy", "--out", "out"]) == 0
    )
    np.testing.assert_allclose(lrpjax.open_store("out")["output"][:], 2.0)
    capsys.readouterr()
    for name, option, message in [
        ("wrong", [], "must return a torch.nn.Module, or (module, a dict"),
        ("build", ["--params", "somewhere"], "loads its own weights"),
    ]:
        command = [
            "explain",
            "--model",
            f"torch:torch_project:{name}",
            "--inputs",
            "x.npy",
            "--out",
            "o",
            *option,
        ]
        assert main(command) == 2
        assert message in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- bad input


def test_modules_that_are_not_the_function_they_seem():
    x = torch.ones(1, 3)
    hooked = torch.nn.Sequential(torch.nn.Linear(3, 3)).eval()
    hooked[0].register_forward_hook(lambda module, args, out: 2 * out)
    cases = [
        (torch.nn.Linear(3, 3), r"training mode \(Linear\).*module.eval\(\)"),
        (hooked, r"has hooks \(0: .*lambda.*in _forward_hooks\)"),
        (torch.nn.Linear(3, 3).eval().half(), r"float16 \(weight, bias\).*module.float\(\)"),
        (torch.nn.Linear(3, 3, device="meta").eval(), "weight: a tensor is on the device 'meta'.*module.cpu"),
        (lambda x: x, "a torch.nn.Module, but got a function"),
    ]
    for module, message in cases:
        with pytest.raises(lrpjax.InputError, match=message):
            lrpjax.torch.function(module, x)
    with pytest.raises(lrpjax.InputError, match="wants an example of each input"):
        lrpjax.torch.function(Branching(lambda number: torch.ones(number)).eval(), 3)
    with pytest.raises(lrpjax.InputError, match=r"do not fit Linear\.forward"):
        lrpjax.torch.function(torch.nn.Linear(3, 3).eval(), x, x)


def test_float64_where_jax_computes_in_float32():
    with (
        jax.enable_x64(False),
        pytest.raises(lrpjax.InputError, match=r"0.weight: a tensor is torch.float64.*\.float\(\)"),
    ):
        lrpjax.torch.function(cnn(), IMAGES)


def test_whole_numbers_that_jax_would_cut_off():
    """Converters of ONNX write "up to the end" as 2⁶³ - 1, which was cut off to -1: one element fewer, and silent."""
    net = torch.nn.Linear(2, 2).eval()
    net.register_buffer("end", torch.tensor([3, 2**63 - 1]))
    assert lrpjax.torch.function(net, torch.ones(1, 2))[1]["end"].tolist() == [3, 2**63 - 1]
    net.register_buffer("small", torch.tensor([3, -(2**31)]))
    with jax.enable_x64(False):
        with pytest.raises(lrpjax.InputError, match=f"end: a tensor of torch.int64 holds {2**63 - 1}, which"):
            lrpjax.torch.function(net, torch.ones(1, 2))
        del net.end
        assert lrpjax.torch.function(net, torch.ones(1, 2))[1]["small"].tolist() == [3, -(2**31)]


class Branching(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


def test_what_depends_on_data_or_chance_names_module_and_line():
    x = torch.ones(2, 3, dtype=torch.float64)
    for how, message in [
        (lambda x: x if x.sum() > 0 else -x, "depends on values of its input"),
        (lambda x: x[x > 0], "depends on values of its input"),
        (lambda x: torch.nn.functional.dropout(x), "draws random numbers"),
        (torch.special.airy_ai, "no lowering of aten::special_airy_ai"),
    ]:
        outer = torch.nn.Sequential(Branching(how)).eval()
        f, params = lrpjax.torch.function(outer, x)
        with pytest.raises(
            lrpjax.UnsupportedError, match=rf"{message}.*'0' \(Branching\) at .*test_torch.py:\d+"
        ):
            jax.make_jaxpr(f)(params, x.numpy())


def changed(how):
    """A function that changes a tensor in place which has views, by `how(x, a view, another view)`."""

    def run(x):
        x = 1 * x
        return how(x, x.view(-1), x.view(-1))

    return run


@pytest.mark.parametrize(
    "how",
    [
        lambda x, y, z: (y.__setitem__(slice(2, 4), 0), x)[1],
        lambda x, y, z: (y[1:5].__setitem__(slice(0, 2), 0), x)[1],
        lambda x, y, z: (y[2:4].zero_(), x)[1],
        lambda x, y, z: (y.zero_(), z)[1],
        lambda x, y, z: (x.zero_(), y)[1],
        lambda x, y, z: (x.__setitem__(0, 0), y)[1],
        # Methods that torchax writes itself.
        lambda x, y, z: (x.flatten().zero_(), x)[1],
        lambda x, y, z: [flat := x.flatten(), x.zero_(), flat][2],
        lambda x, y, z: (x.detach().zero_(), x)[1],
        lambda x, y, z: (x.data.zero_(), x)[1],
        lambda x, y, z: [a := x.split(1), x.split(1)[0].zero_(), a[1]][2],  # another split of it
    ],
)
def test_a_change_in_place_that_would_be_lost_is_an_error(how):
    x = torch.ones(2, 3, dtype=torch.float64)
    f, params = lrpjax.torch.function(Branching(changed(how)).eval(), x)
    with pytest.raises(lrpjax.UnsupportedError, match="changed in place through a view"):
        f(params, x.numpy())
    f, params = lrpjax.torch.function(Branching(changed(lambda x, y, z: y.mul_(2.0))).eval(), x)
    np.testing.assert_array_equal(f(params, x.numpy()), 2.0)


@pytest.mark.parametrize(
    "how",
    [
        lambda x: [parts := x.chunk(2), parts[0].mul_(3.0), torch.cat(parts)][2],  # do not overlap
        lambda x: [cast := x.to(torch.float32), cast.zero_(), x][2],  # a copy in torch as well
        lambda x: [same := x.to(x.dtype), same.zero_(), x][2],  # the tensor itself
        lambda x: [part := x[:, 1:], part.mul_(3.0), x][2],
        lambda x: [part := x[0], x.zero_(), part][2],
    ],
)
def test_a_change_in_place_that_torchax_carries_out_is_torchs(how):
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    f, params = lrpjax.torch.function(Branching(lambda x: how(1 * x)).eval(), x)
    np.testing.assert_array_equal(f(params, x.numpy()), how(1 * x))


def test_no_attribute_of_ours_hides_one_of_torchs_tensors():
    """`chunk` was the name of one, and `x.chunk(2)` None."""
    from lrpjax.torch.environment import Tensor

    ours = {name for name in vars(Tensor) if hasattr(torch.Tensor, name) and not name.startswith("__")}
    assert ours == {"flatten", "detach", "data", "type_as"}


class Remembering(torch.nn.Module):
    """Keeps what it computed of its parameters, as LeViT does, and its last output, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.kept, self.last, self.calls = {}, [], 0

    def forward(self, x):
        self.calls += 1
        if "double" not in self.kept:
            self.kept["double"] = 2 * self.weight
        self.last.append(x)
        self.newest = x
        return self.kept["double"] * x


def test_what_a_module_keeps_for_the_next_call_is_not_kept_while_jax_traces():
    net = Remembering().eval()
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    f, params = lrpjax.torch.function(net, x)
    for p in (params, {"weight": 3 * params["weight"]}):
        np.testing.assert_array_equal(jax.jit(f)(p, x.numpy()), 2 * p["weight"] * x.numpy())
    np.testing.assert_array_equal(f(params, x.numpy()), 2 * x)
    assert (net.kept, net.last, net.calls, hasattr(net, "newest")) == ({}, [], 0, False)
    net(x)
    assert net.calls == 1 and net.last[0] is x and torch.equal(net.kept["double"], 2 * net.weight)


def test_a_lowering_of_the_users_own():
    f, params = lrpjax.torch.function(
        Branching(lambda x: torch.special.i1e(x) + torch.special.airy_ai(x)).eval(),
        torch.ones(2, 2, dtype=torch.float64),
        lowerings={
            torch.ops.aten.special_airy_ai: lambda x: 0 * x,
            torch.ops.aten.special_i1e: jax.scipy.special.i1e,
        },
    )
    x = np.array([[0.1, 0.2], [0.3, 0.4]])
    np.testing.assert_allclose(f(params, x), torch.special.i1e(torch.tensor(x)), rtol=1e-10)


def test_the_module_is_as_it_was():
    module = tagger()
    before = {name: (id(p), p.clone()) for name, p in module.named_parameters()}
    f, params = lrpjax.torch.function(module, IDS)
    lrpjax.relevance(f, at="embed")(params, IDS.numpy())
    with pytest.raises(Exception, match="does not match"):
        f(params | {"blocks.0.up.weight": jnp.ones((5, 5))}, IDS.numpy())
    for name, p in module.named_parameters():
        assert id(p) == before[name][0] and torch.equal(p, before[name][1])
    assert (
        not torch.nn.modules.module._global_forward_hooks
        and not torch.nn.modules.module._global_forward_pre_hooks
    )
    assert isinstance(module(IDS)["logits"], torch.Tensor)


@pytest.mark.parametrize("missing", ["torch", "torchax"])
def test_without_torch_one_line_says_what_to_install(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; import lrpjax\n"
        "try:\n    import lrpjax.torch\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == 'lrpjax.torch needs torch and torchax: pip install "lrpjax[torch]"', (
        done.stderr
    )
