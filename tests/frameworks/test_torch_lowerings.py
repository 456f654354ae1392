"""Operations that torchax lacks, or does otherwise than torch: the values are torch's, and so is input × gradient."""

# ruff: noqa: E402 (torch is looked for before lrpjax.torch is imported)
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if (
    importlib.util.find_spec("torchax") is None
):  # it imports beside few versions of torch, but for lrpjax's help
    pytest.skip("there is no torchax", allow_module_level=True)

import lrpjax
import lrpjax.torch
from lrpjax import composites
from lrpjax.errors import UnsupportedError

F = torch.nn.functional


class Of(torch.nn.Module):
    """A module of one function of its inputs."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_buffer(name, value)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def same_as_torch(function, *inputs, tolerance=1e-12, **parameters):
    """The plan of the function, after its value and its input × gradient have been compared."""
    module = Of(function, **parameters).eval()
    f, params = lrpjax.torch.function(module, *inputs)
    arrays = [jnp.asarray(x.numpy()) for x in inputs]
    leaf = inputs[0].clone().requires_grad_()
    y = module(leaf, *inputs[1:])
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (slope,) = torch.autograd.grad(y, leaf, seed)
    ours = lrpjax.value_and_relevance(
        f, composites.input_x_gradient(), argnums=1, target=jnp.asarray(seed.numpy())
    )
    value, R = jax.jit(ours)(params, *arrays)
    np.testing.assert_allclose(value, y.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(R, (slope * leaf).detach(), rtol=tolerance, atol=tolerance)
    return lrpjax.plan(f, None, params, *arrays, argnums=1)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_linear_takes_its_arguments_by_name():
    w, b = noise(4, 3, seed=1), noise(4, seed=2)
    plan = same_as_torch(lambda m, x: F.linear(input=x, weight=m.w, bias=m.b), noise(2, 3), w=w, b=b)
    assert [unit.kind for unit in plan] == ["dense"]


def test_linear_with_a_vector_has_one_output():
    same_as_torch(lambda m, x: F.linear(x, m.w), noise(2, 3), w=noise(3, seed=1))


PADDED = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
PADDED[1, :, :, :2] = False  # the first two queries of the second example may look at nothing


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": PADDED},
        {"attn_mask": torch.zeros(PADDED.shape, dtype=torch.float64).masked_fill(~PADDED, -torch.inf)},
        {"attn_mask": noise(2, 1, 5, 5, seed=4)},
    ],
    ids=["plain", "causal", "scaled", "rows of nothing", "rows of -inf", "bias"],
)
def test_attention_is_that_of_torch(options):
    k, v = noise(2, 4, 5, 3, seed=1), noise(2, 4, 5, 3, seed=2)
    options = dict(options)
    mask = options.pop("attn_mask", torch.empty(0))

    def attend(m, x):
        given = {"attn_mask": m.mask} if m.mask.numel() else {}
        return F.scaled_dot_product_attention(x, m.k, m.v + x, **given, **options)

    plan = same_as_torch(attend, noise(2, 4, 5, 3), k=k, v=v, mask=mask)
    assert [unit.kind for unit in plan].count("softmax") == 1


def test_attention_repeats_shared_keys():
    k, v = noise(2, 2, 5, 3, seed=1), noise(2, 2, 5, 3, seed=2)
    attend = lambda m, x: F.scaled_dot_product_attention(x, m.k, m.v, enable_gqa=True)
    same_as_torch(attend, noise(2, 4, 5, 3), k=k, v=v)


def test_attention_with_dropout_is_refused():
    f, params = lrpjax.torch.function(
        Of(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)).eval(), noise(1, 4, 3)
    )
    with pytest.raises(UnsupportedError, match="random numbers"):
        f(params, jnp.ones((1, 4, 3)))


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch has none")
def test_rows_are_multiplied_with_the_matrices_of_their_groups():
    w = noise(3, 16, 8, seed=1, dtype=torch.float32)
    offs = torch.tensor([2, 2, 6], dtype=torch.int32)
    multiply = lambda m, x: torch._grouped_mm(x, m.w, offs=m.offs)
    plan = same_as_torch(multiply, noise(6, 16, dtype=torch.float32), w=w, offs=offs, tolerance=1e-5)
    assert [unit.kind for unit in plan] == ["dense"]


@pytest.mark.parametrize("exponent", [0.5, -0.5, 2, 3.0, -1, 1.7, 0])
def test_powers_are_those_of_torch(exponent):
    same_as_torch(lambda m, x: x.pow(exponent), noise(5).abs() + 0.1)


def test_a_norm_of_powers_is_a_norm():
    plan = same_as_torch(lambda m, x: x / x.pow(2).sum(-1, keepdim=True).pow(0.5), noise(2, 5))
    assert [unit.kind for unit in plan] == ["norm"]


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part.zero_(),
        lambda part: part.fill_(2.0),
        lambda part: part.masked_fill_(torch.tensor([True, False]), -1.0),
        lambda part: F.silu(part, inplace=True),
        lambda part: part.add_(1.0),
        lambda part: part.mul_(3.0),
    ],
    ids=["zero_", "fill_", "masked_fill_", "silu_", "add_", "mul_"],
)
def test_what_changes_a_part_changes_the_whole(change):
    def run(m, x):
        y = 2.0 * x
        change(y[2:4])
        change(y[:2])
        return y + 0.0

    same_as_torch(run, noise(6))


def test_what_changes_a_copy_that_torch_would_not_make_is_refused():
    def run(m, x, look):
        y = 2.0 * x
        part = y[:2].view(2, 1)[:, 0].mul_(3.0)
        return y if look else part

    f, params = lrpjax.torch.function(Of(run).eval(), noise(6), True)
    with pytest.raises(UnsupportedError, match="changed in place through a view"):
        f(params, jnp.ones(6))
    f, params = lrpjax.torch.function(Of(run).eval(), noise(6), False)
    np.testing.assert_allclose(f(params, jnp.ones(6)), [6.0, 6.0])


def test_a_check_of_data_that_is_known_is_carried_out():
    class Checked(torch.nn.Module):
        def forward(self, x):
            torch._check_tensor_all(torch.ones(2, dtype=torch.bool, device=x.device))
            return x

    f, params = lrpjax.torch.function(Checked().eval(), noise(2))
    np.testing.assert_array_equal(f(params, jnp.ones(2)), np.ones(2))


def test_type_as_leaves_its_argument_as_it_is():
    class Casts(torch.nn.Module):
        def forward(self, x):
            numbers = torch.arange(3, device=x.device)
            scale = numbers.type_as(x)
            return x * scale + (numbers // 2)

    x = noise(3)
    f, params = lrpjax.torch.function(Casts().eval(), x)
    np.testing.assert_allclose(
        f(params, jnp.asarray(x.numpy())), x * torch.arange(3) + torch.tensor([0, 0, 1])
    )


def test_constants_that_a_module_keeps_stay_constants():
    kept = {}

    class Keeps(torch.nn.Module):
        def forward(self, x):
            if not kept:
                grid = torch.stack([torch.arange(4.0, device=x.device).view(2, 2)] * 2)
                grid[0, 0] = 2.0
                kept["grid"] = grid.flatten(0, 1)[1:].double()
            return x * kept["grid"]

    x = noise(3, 2)
    f, params = lrpjax.torch.function(Keeps().eval(), x)
    first, second = (jax.jit(lambda p, x, n=n: n * f(p, x))(params, jnp.asarray(x.numpy())) for n in (1, 2))
    expected = x * torch.tensor([[2.0, 3.0], [0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_allclose(first, expected)
    np.testing.assert_allclose(second, 2 * expected)
