"""Signal estimators other than fitted patterns, and the quality of all of them (Kindermans et al. 2018, arXiv
1705.05598, sections 4.1 and 4.2).

Every estimator here is S(x) = a (w·x): with fitted patterns (`lrpjax.patterns`) the linear one or, with a pair of them,
the two-component one; with the kernel itself the filter one; with noise the random one.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import rules
from lrpjax.errors import PatternError, UnsupportedError
from lrpjax.patterns.fitted import Patterns, same_model
from lrpjax.patterns.network import Network, Site


def filters(f: Callable, batch: Any) -> Patterns:
    """The filter estimator S(x) = w / (w·w) (w·x): the signal lies where the kernel points (Kindermans et al. 2018,
    section 4.2; the w²-rule).

    Args:
        f: a function of one argument, as in `lrpjax.patterns.fit`.
        batch: a batch of its inputs; only shapes and dtypes are looked at.

    Returns:
        `Patterns` a = w / (w·w) for `quality` or a composite.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import estimators
        >>> print(estimators.filters(lambda x: x @ jnp.array([[3.0], [4.0]]), jnp.ones((1, 2)))["dense"].ravel())
        [0.12 0.16]
    """
    return _scaled(f, batch, "filter", lambda kernel, number: kernel)


def random(f: Callable, batch: Any, key: jax.Array) -> Patterns:
    """The random estimator S(x) = u / (w·u) (w·x) with u normal: the worst that a pattern can be expected to be (ibid.,
    figure 3).

    Args:
        f, batch: as in `filters`.
        key: of the noise.

    Returns:
        `Patterns`, scaled so that w·a = 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import estimators
        >>> a = estimators.random(lambda x: x @ jnp.array([[3.0], [4.0]]), jnp.ones((1, 2)), jax.random.key(0))["dense"]
        >>> print((jnp.array([[3.0], [4.0]]) * a).sum().round(5))
        1.0
    """
    draw = lambda kernel, number: jax.random.normal(
        jax.random.fold_in(key, number), kernel.shape, kernel.dtype
    )
    return _scaled(f, batch, "random", draw)


def _scaled(f: Callable, batch: Any, kind: str, direction: Callable) -> Patterns:
    network = Network(f, batch)

    @jax.jit
    def run(consts):
        kernels = [w for w, _ in network.merged(consts)]
        arrays = []
        for number, (site, w) in enumerate(zip(network.sites, kernels, strict=True)):
            u = direction(w, number)
            axes = tuple(d for d in range(w.ndim) if d not in site.labels)
            arrays.append(rules.divide(u, jnp.broadcast_to((w * u).sum(axes, keepdims=True), w.shape)))
        return kernels, tuple(arrays)

    kernels, arrays = run(network.consts)
    return Patterns(arrays, network.names, kind, tuple(map(rules.mark_of, kernels)))


Estimator = Patterns | tuple[Patterns, Patterns] | None
"""Patterns a for S(x) = a (w·x); a pair of them for the two-component estimator, the first where the unit is active
(its output behind the activation is positive), the second elsewhere; None for the identity S(x) = x."""


def quality(
    f: Callable,
    estimators: Mapping[str, Estimator],
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    key: jax.Array,
    positions: int = 4,
    neurons: int | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """How little is left of y in what an estimator calls the distractor: ρ(S) = 1 − max_v corr(w·x, v·(x − S(x))).

    Kindermans et al. 2018, eq. 1. The best v is the least-squares predictor of y = w·x from the distractor on `train`;
    the correlation is that on `test`. 1 is best, up to sampling errors of both signs; the identity calls nothing a
    distractor and has 1 by definition, which says nothing for it.

    Args:
        f: the function that the patterns were fitted to.
        estimators: what to measure, by name; all are measured on the same samples. See `Estimator`.
        train: an iterable of batches, as in `lrpjax.patterns.fit`, to find v with.
        test: an iterable of batches to measure on.
        key: of the random positions.
        positions: how many samples are taken of each layer from each example (all, where it has no more).
        neurons: for how many neurons of each layer, evenly spaced, it is measured. None: for all.

    Returns:
        For each estimator and each layer's path, ρ of each neuron, in the order of the kernel's output dimensions. NaN
        for a neuron whose y does not vary.

    Raises:
        PatternError: fewer samples in `train` than twice the inputs of a neuron, or patterns of another model.
        UnsupportedError: a convolution whose data are its kernel.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import estimators, patterns
        >>> x = jax.random.normal(jax.random.key(0), (2000, 2)) @ jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> compared = {"filter": estimators.filters(f, x), "linear": patterns.fit(f, [x], kind="linear")}
        >>> rho = estimators.quality(f, compared, [x[:1000]], [x[1000:]], key=jax.random.key(1))
        >>> print(rho["filter"]["dense"].round(1), rho["linear"]["dense"].round(1))
        [0.5] [1.]
    """
    keys = jax.random.split(key)
    network, kernels, inputs, active = _samples(f, train, positions, keys[0])
    _, _, test_inputs, test_active = _samples(f, test, positions, keys[1])
    ours = Patterns((), network.names, "", tuple(map(rules.mark_of, kernels)))
    for estimator in estimators.values():
        for patterns in _pair(estimator):
            same_model(patterns, ours)
    result: dict[str, dict[str, jax.Array]] = {name: {} for name in estimators}
    for i, (path, site) in enumerate(zip(network.names, network.sites, strict=True)):
        w = _kernel_rows(site, kernels[i])
        groups, number, fan_in = w.shape
        if len(inputs[i]) < 2 * fan_in:
            raise PatternError(
                f"layer {path!r} has {fan_in} inputs, but there are {len(inputs[i])} samples to fit v to: give more "
                "examples or more positions"
            )
        chosen = np.arange(groups * number)
        if neurons is not None and neurons < len(chosen):
            chosen = np.linspace(0, len(chosen) - 1, neurons).astype(int)
        data = inputs[i], active[i], test_inputs[i], test_active[i], chosen // number, chosen % number
        for name, estimator in estimators.items():
            pair = [_kernel_rows(site, p.arrays[i].astype(w.dtype)) for p in _pair(estimator)]
            result[name][path] = _rho(w, *pair, *data) if pair else jnp.ones(len(chosen), w.dtype)
    return result


def _pair(estimator: Estimator) -> tuple[Patterns, ...]:
    if estimator is None:
        return ()
    return estimator if isinstance(estimator, tuple) else (estimator, estimator)


@jax.jit
def _rho(
    w: jax.Array,
    above: jax.Array,
    below: jax.Array,
    x: jax.Array,
    active: jax.Array,
    test_x: jax.Array,
    test_active: jax.Array,
    groups: jax.Array,
    numbers: jax.Array,
) -> jax.Array:
    def split(x, active, g, j):
        """y and the distractor of a neuron, about their means."""
        x = x[:, g]
        y = jnp.matmul(x, w[g, j], precision="highest")
        signal = jnp.where(active[:, g, j, None], above[g, j], below[g, j]) * y[:, None]
        d = x - signal
        return y - y.mean(), d - d.mean(0)

    def one(index):
        y, d = split(x, active, *index)
        gram = jnp.matmul(d.T, d, precision="highest")
        v = jnp.linalg.lstsq(gram, jnp.matmul(d.T, y, precision="highest"))[0]
        y, d = split(test_x, test_active, *index)
        u = jnp.matmul(d, v, precision="highest")
        return 1 - jnp.vdot(u, y) / (jnp.linalg.norm(u) * jnp.linalg.norm(y))

    return lax.map(one, (groups, numbers))


def _samples(
    f: Callable, batches: Iterable[Any], positions: int, key: jax.Array
) -> tuple[Network, list[jax.Array], list[jax.Array], list[jax.Array]]:
    """(network, kernels, inputs, activity): for each layer, `positions` samples of each example as samples × groups ×
    inputs, and whether each neuron is active in them."""
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise PatternError("there are no batches to measure patterns on")
    network = Network(f, first)

    @jax.jit
    def take(consts, leaves, key):
        seen = network.observe_all([v for s in network.sites for v in (s.x, s.post)], consts, leaves)
        taken = []
        for number, site in enumerate(network.sites):
            x = site.mapped(functools.partial(_input_rows, site))(seen[site.x])
            post = site.mapped(functools.partial(_output_rows, site))(
                site.mapped(site.unmoved)(seen[site.post])
            )
            x, post = (a.reshape(network.size, -1, *a.shape[-2:]) for a in (x, post))
            count = min(positions, x.shape[1])
            keys = jax.random.split(jax.random.fold_in(key, number), network.size)
            draw = lambda key, x=x, count=count: jax.random.choice(key, x.shape[1], (count,), replace=False)
            at = jax.vmap(draw)(keys)[:, :, None, None]
            taken.append((jnp.take_along_axis(x, at, 1), jnp.take_along_axis(post, at, 1) > 0))
        return taken

    collected = []
    for number, (leaves, valid) in enumerate(network.padded(itertools.chain([first], stream))):
        taken = take(network.consts, leaves, jax.random.fold_in(key, number))
        collected.append([[a[:valid].reshape(-1, *a.shape[2:]) for a in pair] for pair in taken])
    inputs, active = (
        [jnp.concatenate([batch[i][which] for batch in collected]) for i in range(len(network.sites))]
        for which in (0, 1)
    )
    kernels = [w for w, _ in jax.jit(network.merged)(network.consts)]
    return network, kernels, inputs, active


# --------------------------------------------------------------------- samples, written out as rows of a matrix


def _dot_layout(site: Site) -> tuple[list[int], list[int], list[int], list[int]]:
    """(dimensions of the input that enumerate samples, those shared with the kernel's groups, those summed over; those
    of the kernel alike: groups, neurons and inputs in one permutation) of a dot."""
    (contract, other_contract), (batch, other_batch) = site.core.params["dimension_numbers"]
    if site.at == 1:
        contract, other_contract, batch, other_batch = other_contract, contract, other_batch, batch
    free = [d for d in range(len(site.x.shape)) if d not in contract and d not in batch]
    neurons = [d for d in range(len(site.kernel_shape)) if d not in other_contract and d not in other_batch]
    return free, list(batch), list(contract), [*other_batch, *neurons, *other_contract]


def _groups(site: Site) -> int:
    """In how many groups the neurons see different inputs at one position."""
    if site.unit.kind == "dense":
        return int(np.prod([site.x.shape[d] for d in _dot_layout(site)[1]], dtype=int))
    if site.at != 0 or site.core.params["batch_group_count"] != 1:
        raise UnsupportedError(f"the samples of the convolution {site.unit.path!r} cannot be written out")
    return site.core.params["feature_group_count"]


def _kernel_rows(site: Site, w: jax.Array) -> jax.Array:
    """A kernel (or pattern) as groups × neurons × inputs."""
    groups = _groups(site)
    if site.unit.kind == "dense":
        _, _, contract, order = _dot_layout(site)
        inputs = int(np.prod([site.x.shape[d] for d in contract], dtype=int))
        return w.transpose(order).reshape(groups, -1, inputs)
    spec = site.core.params["dimension_numbers"].rhs_spec
    return w.transpose(spec).reshape(groups, w.shape[spec[0]] // groups, -1)


def _input_rows(site: Site, x: jax.Array) -> jax.Array:
    """What one example feeds into the layer, as samples × groups × inputs: the patches of a convolution."""
    groups = _groups(site)
    if site.unit.kind == "dense":
        free, batch, contract, _ = _dot_layout(site)
        samples = int(np.prod([x.shape[d] for d in free], dtype=int))
        return x.transpose([*free, *batch, *contract]).reshape(samples, groups, -1)
    p = site.core.params
    numbers = p["dimension_numbers"]
    patches = lax.conv_general_dilated_patches(
        x,
        [site.kernel_shape[d] for d in numbers.rhs_spec[2:]],
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        numbers,
        precision=lax.Precision.HIGHEST,
    )
    patches = jnp.moveaxis(patches, (numbers.out_spec[0], numbers.out_spec[1]), (0, -1))
    return patches.reshape(-1, groups, patches.shape[-1] // groups)


def _output_rows(site: Site, z: jax.Array) -> jax.Array:
    """What one example makes of the layer's output, as samples × groups × neurons."""
    groups = _groups(site)
    if site.unit.kind == "dense":
        shared = [d for d, label in enumerate(site.labels) if label is not None]
        batch, neurons = shared[: len(_dot_layout(site)[1])], shared[len(_dot_layout(site)[1]) :]
        samples = [d for d in range(z.ndim) if d not in shared]
        shape = int(np.prod([z.shape[d] for d in samples], dtype=int)), groups, -1
        return z.transpose([*samples, *batch, *neurons]).reshape(shape)
    numbers = site.core.params["dimension_numbers"]
    z = jnp.moveaxis(z, (numbers.out_spec[0], numbers.out_spec[1]), (0, -1))
    return z.reshape(-1, groups, z.shape[-1] // groups)
