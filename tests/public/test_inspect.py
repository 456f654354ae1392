"""Relevance per frequency, component and wavelet: against sums written out, the chain by hand, and composition."""

import functools
import warnings

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, rules, select

close = functools.partial(helpers.close, tolerance=1e-10)

N = 32
RNG = np.random.default_rng(3)
W1, W2 = jnp.asarray(RNG.normal(size=(N, 12))), jnp.asarray(RNG.normal(size=(12, 3)))
X = jnp.asarray(RNG.normal(size=N))
ORTHOGONAL = jnp.asarray(np.linalg.qr(RNG.normal(size=(N, N)))[0])
Z_PLUS = lrpjax.Composite([(select.kind("dense"), rules.ZPlus())])
COMPOSITES = {
    "epsilon": composites.epsilon(0),
    "attnlrp": composites.attnlrp(epsilon=0.0),
    "z_plus": Z_PLUS,
    "alpha_beta": lrpjax.Composite([(select.kind("dense"), rules.AlphaBeta(2.0, 1.0))]),
}


def net(x):
    """Bias-free, from [..., N] to [..., 3]."""
    return jax.nn.relu(x @ W1) @ W2


def haar(n):
    """The orthonormal Haar wavelets of n samples, one in each row."""
    if n == 1:
        return np.ones((1, 1))
    coarse = np.kron(haar(n // 2), [1, 1])
    return np.concatenate([coarse, np.kron(np.eye(n // 2), [1, -1])]) / np.sqrt(2)


HAAR = jnp.asarray(haar(N))

DFT = (jnp.fft.rfft, lambda z: jnp.fft.irfft(z, N))
STFT = (
    lambda x: jax.scipy.signal.stft(x, nperseg=8)[2],
    lambda z: jax.scipy.signal.istft(z, nperseg=8)[1][..., :N],
)
PCA = (lambda x: x @ ORTHOGONAL.T, lambda z: z @ ORTHOGONAL)
WAVELETS = (lambda x: x @ HAAR.T, lambda z: z @ HAAR)
PAIRS = {"dft": DFT, "stft": STFT, "pca": PCA, "wavelets": WAVELETS}


def relevance_of_parts(f, composite, back, z):
    """That of f(back(z)) with respect to the pair of the real and imaginary parts, both together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lrpjax.errors.NativeWarning)
        R = lrpjax.relevance(lambda p: f(back(jax.lax.complex(*p))), composite)((z.real, z.imag))
    return R[0] + R[1]


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_coordinates_share_all_that_the_samples_have(pair, composite):
    R = lrpjax.relevance(net, composite, target=1, inspect=pair)(X)
    samples = lrpjax.relevance(net, composite, target=1)(X)
    assert R.shape == pair[0](X).shape and R.dtype == X.dtype
    close(R.sum(), samples.sum())


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("basis", [ORTHOGONAL, HAAR])
def test_an_orthogonal_basis_against_the_chain_by_hand(basis, composite):
    """R_z = z ⊙ T (R_x / x): the matrix is no layer to which the composite's rules apply."""
    pair = (lambda x: basis @ x, lambda z: z @ basis)
    samples = np.asarray(lrpjax.relevance(net, composite)(X))
    T, x = np.asarray(basis), np.asarray(X)
    close(lrpjax.relevance(net, composite, inspect=pair)(X), (T @ x) * (T @ (samples / x)))


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_frequencies_against_the_sum_of_cosines_and_sines(composite):
    """x_n = (1/N) Σ_k c_k (Re z_k cos φ − Im z_k sin φ), φ = 2πkn/N, with c_k = 2 for what stands for two."""
    x, z = np.asarray(X), np.fft.rfft(X)
    ratio = np.asarray(lrpjax.relevance(net, composite)(X)) / x
    expected = np.zeros(N // 2 + 1)
    for k in range(N // 2 + 1):
        for n in range(N):
            angle, count = 2 * np.pi * k * n / N, 1 if k in (0, N // 2) else 2
            part = z[k].real * np.cos(angle) - z[k].imag * np.sin(angle)
            expected[k] += count / N * part * ratio[n]
    close(lrpjax.relevance(net, composite, inspect=DFT)(X), expected)


@pytest.mark.parametrize("composite", [composites.epsilon(0), Z_PLUS], ids=["epsilon", "z_plus"])
@pytest.mark.parametrize("pair", [DFT, STFT], ids=["dft", "stft"])
def test_complex_coordinates_are_as_an_inverse_transform_in_front_of_the_network(pair, composite):
    expected = relevance_of_parts(net, composite, pair[1], pair[0](X))
    close(lrpjax.relevance(net, composite, inspect=pair)(X), expected)


def test_a_tone_is_at_its_frequency():
    n = np.arange(N)
    low, high = (jnp.asarray(np.cos(2 * np.pi * k * n / N)) for k in (3, 7))
    R = lrpjax.relevance(lambda x: jax.nn.relu(x @ high), composites.epsilon(0), inspect=DFT)(low + high)
    close(R, np.where(np.arange(N // 2 + 1) == 7, N / 2, 0.0))


def test_what_comes_first_in_the_network_stays_first():
    """The rule of the first layer (flat) is not the inverse transform's."""
    composite = composites.epsilon_plus_flat()
    ratio = lrpjax.relevance(net, composite)(X) / X
    close(lrpjax.relevance(net, composite, inspect=PCA)(X), PCA[0](X) * (ORTHOGONAL @ ratio))


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_jit_and_vmap(composite):
    explain = lrpjax.relevance(net, composite, target="max", inspect=DFT)
    batch = jnp.asarray(RNG.normal(size=(3, N)))
    expected = jnp.stack([explain(x) for x in batch])
    close(jax.jit(explain)(batch), expected)
    close(jax.vmap(explain)(batch), expected)
    close(jax.jit(jax.vmap(explain))(batch), expected)


def test_value_aux_arguments_and_check():
    f = lambda scale, x, offset: (net(x) * scale + offset, x[0])
    explain = functools.partial(
        lrpjax.value_and_relevance, f, COMPOSITES["epsilon"], has_aux=True, inspect=DFT
    )
    expected = lrpjax.relevance(net, COMPOSITES["epsilon"], inspect=DFT)(X)
    for argnums in (1, -2):
        (y, aux), R = (
            explain(argnums=argnums)(1.0, X, offset=0.0) if argnums > 0 else explain(argnums=-2)(1.0, X, 0.0)
        )
        close((y, aux, R), (net(X), X[0], expected))
    _, (R,) = explain(argnums=(1,), check=True)(1.0, X, offset=0.0)
    close(R, expected)
    R, aux = lrpjax.relevance(f, COMPOSITES["epsilon"], has_aux=True, argnums=1, inspect=DFT)(1.0, X, 0.0)
    close((R, aux), (expected, X[0]))


def test_trees_of_coordinates_and_of_arguments():
    """A stereo sound; coarse and fine wavelets, and complex numbers beside real ones."""
    f = lambda sound: net(sound["left"] - sound["right"])
    to = lambda s: (jnp.fft.rfft(s["left"]), {"coarse": HAAR[:8] @ s["right"], "fine": HAAR[8:] @ s["right"]})
    back = lambda z: {
        "left": jnp.fft.irfft(z[0], N),
        "right": z[1]["coarse"] @ HAAR[:8] + z[1]["fine"] @ HAAR[8:],
    }
    sound = {"left": X, "right": jnp.asarray(RNG.normal(size=N))}
    R = lrpjax.relevance(f, COMPOSITES["epsilon"], inspect=(to, back))(sound)
    samples = lrpjax.relevance(f, COMPOSITES["epsilon"])(sound)
    assert jax.tree.map(jnp.shape, R) == (
        (N // 2 + 1,),
        {"coarse": (8,), "fine": (N - 8,)},
    )
    close(R[0].sum(), samples["left"].sum())
    close(R[1]["coarse"].sum() + R[1]["fine"].sum(), samples["right"].sum())


def test_a_constant_that_back_adds_takes_its_share():
    mean = jnp.asarray(RNG.normal(size=N))
    pair = (lambda x: ORTHOGONAL @ (x - mean), lambda z: z @ ORTHOGONAL + mean)
    samples = lrpjax.relevance(net, COMPOSITES["epsilon"])(X)
    R = lrpjax.relevance(net, COMPOSITES["epsilon"], inspect=pair)(X)
    close(R.sum(), samples.sum() - (samples / X * mean).sum())


def test_what_a_sample_of_zero_is_given_is_in_no_coordinate():
    x = X.at[3].set(0.0)
    composite = composites.epsilon_plus_flat()
    samples = lrpjax.relevance(net, composite)(x)
    assert abs(samples[3]) > 1e-3
    close(lrpjax.relevance(net, composite, inspect=DFT)(x).sum(), samples.sum() - samples[3])
    close(lrpjax.relevance(net, COMPOSITES["epsilon"], inspect=DFT)(x).sum(), net(x).sum())


def test_the_gradient_family():
    of_parts = lambda p: net(DFT[1](jax.lax.complex(*p))).sum()
    z = DFT[0](X)
    by_hand = jax.grad(of_parts)((z.real, z.imag))
    expected = z.real * by_hand[0] + z.imag * by_hand[1]
    close(lrpjax.relevance(net, composites.input_x_gradient(), inspect=DFT)(X), expected)
    gradient = lrpjax.relevance(net, composites.gradient(), inspect=WAVELETS)(X)
    close(gradient, jax.grad(lambda z: net(WAVELETS[1](z)).sum())(WAVELETS[0](X)))
    with pytest.raises(
        lrpjax.InputError, match="derivative with respect to a complex number is no real number"
    ):
        lrpjax.relevance(net, composites.gradient(), inspect=DFT)(X)


def test_a_complex_argument():
    """The relevance of its frequencies is real, and conserved."""
    f = lambda x: net(x.real) + net(x.imag)
    pair = (jnp.fft.fft, jnp.fft.ifft)
    x = jax.lax.complex(X, X[::-1])
    R = lrpjax.relevance(f, COMPOSITES["epsilon"], inspect=pair)(x)
    assert R.dtype == X.dtype
    close(R.sum(), f(x).sum())


def test_single_precision():
    x, weights = X.astype(jnp.float32), W1.astype(jnp.float32)
    f = lambda x: jax.nn.relu(x @ weights).sum()
    R = lrpjax.relevance(f, COMPOSITES["epsilon"], inspect=DFT)(x)
    assert R.dtype == jnp.float32
    helpers.close(R.sum(), f(x), 1e-5)


BAD = {
    "no pair": (jnp.fft.rfft, r"inspect is a pair \(to, back\) of functions"),
    "shape": (
        (jnp.fft.rfft, lambda z: jnp.fft.irfft(z, N + 2)),
        r"is float64\[34\], but the argument is float64\[32\]",
    ),
    "dtype": (
        (lambda x: x, lambda z: z.astype(jnp.float32)),
        r"is float32\[32\], but the argument is float64\[32\]",
    ),
    "structure": (
        (lambda x: x, lambda z: (z,)),
        r"is \('float64\[32\]',\), but the argument is float64\[32\]",
    ),
    "integers": ((lambda x: x.astype(int), lambda z: z * 1.0), r"to\(x\) holds int64\[32\]"),
    "values": (
        (lambda x: HAAR[:16] @ x, lambda z: z @ HAAR[:16]),
        r"back\(to\(x\)\) differs from x, by up to .* where the largest value is",
    ),
    "sizes": ((lambda x: (jnp.sign(x), jnp.abs(x)), lambda z: z[0] * z[1]), "back is not linear"),
    "logarithms": ((lambda x: jnp.log(x + 9.0), lambda z: jnp.exp(z) - 9.0), "back is not linear"),
}


@pytest.mark.parametrize(("pair", "match"), BAD.values(), ids=BAD)
def test_pairs_that_do_not_fit(pair, match):
    with pytest.raises(lrpjax.InputError, match=match):
        lrpjax.relevance(net, inspect=pair)(X)


def test_one_argument_is_explained_and_no_value_inside():
    f = lambda a, b: net(a + b)
    with pytest.raises(lrpjax.InputError, match=r"in other coordinates: argnums=\(0, 1\) names 2"):
        lrpjax.relevance(f, argnums=(0, 1), inspect=DFT)(X, X)
    with pytest.raises(lrpjax.InputError, match="in other coordinates: leave out `at`"):
        lrpjax.relevance(net, at="*", inspect=DFT)(X)
