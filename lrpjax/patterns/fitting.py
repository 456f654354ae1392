"""The pass over data that fits patterns: the sums over samples that the formula of `lrpjax.patterns` needs.

The sums are those of x ⊗ (y − K) and of x over the mask: each is the layer's own derivative with respect to its kernel,
so no patches are ever written out. K is the mean of y over the first batch; the result does not depend on it, its
rounding error does (the shifted-data algorithm, Chan, Golub & LeVeque 1983, The American Statistician 37(3)). Sums
about one K are combined by adding them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp

from lrpjax import rules
from lrpjax._progress import track
from lrpjax.errors import PatternError
from lrpjax.patterns.fitted import LayerMoments, Moments, check_finite, finish, load, same_model, save, steps
from lrpjax.patterns.network import Network, Site

KINDS = ("relu", "linear", "relu.negative")


def fit(
    f: Callable,
    batches: Iterable[Any],
    kind: str | Sequence[str] = "relu",
    *,
    progress: bool = False,
    checkpoint: Any = None,
    every: int = 100,
) -> Any:
    """Fits the pattern of every weighted layer of a function in one pass over batches (Kindermans et al. 2018, eq. 4
    and 8).

    The layers are those that `lrpjax.plan(f, None, x)` lists as "dense" and "conv", with the affine constants behind
    them (a BatchNorm) folded in. f is applied to each example by itself, as a batch of one: its examples must not
    depend on each other.

    Args:
        f: a function of one argument, a batch of examples along the first axis (or a pytree of such arrays).
        batches: an iterable of such arguments, all of one size; only the last may be shorter.
        kind: "relu", over the samples where the unit's output behind its activation is positive; "relu.negative", over
            the others; "linear", over all. A sequence of kinds fits all of them in the same pass and returns a tuple.
        progress: whether to show a progress bar.
        checkpoint: a folder. The moments are saved there after every `every` batches and at the end; if it holds some
            already, the pass goes on behind the batches that went into them, which are skipped.
        every: see `checkpoint`.

    Returns:
        `Patterns`, a mapping from path to array, for `composites.pattern_net` and `composites.pattern_attribution`.

    Raises:
        PatternError: no batches, batches that do not fit together, a layer without a single sample in its mask, NaN or
            infinity, or a checkpoint of another model. A single neuron without samples has the pattern 0.
        UnsupportedError: a weighted layer inside a branch, or in a loop with a kernel that changes from step to step.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> y, distractor = jnp.array([1.0, -1.0, 2.0, -2.0]), jnp.array([1.0, 1.0, -1.0, -1.0])
        >>> x = y[:, None] * jnp.array([1.0, 0.0]) + distractor[:, None] * jnp.array([1.0, 1.0])
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> print(lrpjax.patterns.fit(f, [x], kind="linear")["dense"].ravel())
        [1. 0.]
    """
    return finish(collect(f, batches, kind, progress=progress, checkpoint=checkpoint, every=every))


def start(f: Callable, batch: Any, kind: str | Sequence[str] = "relu") -> Moments:
    """Empty moments, with the references K taken from a batch: shards that start from the same ones are combined by
    plain addition.

    Args:
        f, kind: as in `fit`.
        batch: one batch of the data.

    Returns:
        `Moments` of no samples, for `collect(..., moments=...)`.

    Raises:
        PatternError: the batch is empty or no array, the kind is unknown, or the function has no weighted layer.
        UnsupportedError: see `fit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> data = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
        >>> empty = patterns.start(f, data)
        >>> shards = [patterns.collect(f, [data[i : i + 2]], moments=empty) for i in (0, 2)]
        >>> print(patterns.finish(patterns.merge(*shards))["dense"].ravel().round(4))
        [1.5 0.5]
    """
    return _Fitter(f, batch).start(batch, _kinds(kind))


def _kinds(kind: str | Sequence[str]) -> tuple[str, ...]:
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    for k in kinds:
        if k not in KINDS:
            raise PatternError(f"kind must be one of {', '.join(KINDS)}, but is {k!r}")
    return kinds


def collect(
    f: Callable,
    batches: Iterable[Any],
    kind: str | Sequence[str] = "relu",
    *,
    moments: Moments | None = None,
    progress: bool = False,
    checkpoint: Any = None,
    every: int = 100,
) -> Moments:
    """The pass of `fit`: the sums over batches, added to `moments` or to new ones. The first batch is read twice, once
    for the references.

    Args:
        f, batches, kind, progress, checkpoint, every: as in `fit`.
        moments: what to add to; its kinds go before `kind`. None: to empty ones, `start(f, first batch, kind)`.

    Returns:
        `Moments`, for `finish`.

    Raises:
        PatternError, UnsupportedError: see `fit`; or `moments` are those of another model.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> moments = patterns.collect(f, [jnp.array([[1.0, 0.0], [2.0, 1.0]]), jnp.array([[0.0, 1.0], [3.0, 1.0]])])
        >>> moments.batches, moments.samples
        (2, 4)
    """
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise PatternError("there are no batches to fit patterns to")
    fitter = _Fitter(f, first)
    fresh = fitter.start(first, moments.kinds if moments is not None else _kinds(kind))
    skip = 0
    if checkpoint is not None and steps(checkpoint):
        moments = load(checkpoint)
        if not isinstance(moments, Moments):
            raise PatternError(f"{checkpoint} holds patterns, not the moments of a pass")
        skip = int(moments.batches)
    if moments is not None:
        same_model(moments, fresh)
        if moments.kinds != fresh.kinds:
            raise PatternError(
                f"the checkpoint {checkpoint} is of kind {moments.kinds}, but {fresh.kinds} is wanted"
            )
    moments = fresh if moments is None else moments
    all_batches = itertools.islice(itertools.chain([first], stream), skip, None)
    total = len(batches) - skip if isinstance(batches, Sized) else None
    for number, (leaves, valid) in enumerate(_bar(fitter.network.padded(all_batches), total, progress), 1):
        jax.block_until_ready(
            moments.layers
        )  # or the host runs ahead, and keeps all batches that it has read
        layers = fitter.update(moments.layers, leaves, valid)
        moments = dataclasses.replace(
            moments, layers=layers, batches=moments.batches + 1, samples=moments.samples + valid
        )
        if checkpoint is not None and number % every == 0:
            save(checkpoint, moments)
    check_finite(moments)
    if checkpoint is not None and int(moments.batches) not in steps(checkpoint):
        save(checkpoint, moments)
    return moments


def _bar(iterable: Iterator, total: int | None, progress: bool) -> Iterable:
    return track(iterable, "fitting patterns", total) if progress else iterable


class _Fitter:
    """The compiled steps of a pass."""

    def __init__(self, f: Callable, batch: Any):
        self.network = Network(f, batch)
        self.step = jax.jit(self._step)

    def start(self, batch: Any, kinds: tuple[str, ...]) -> Moments:
        network = self.network

        @jax.jit
        def prepare(consts, leaves):
            seen = network.observe_all([s.unit.out for s in network.sites], consts, leaves)
            layers = []
            for site, (kernel, bias) in zip(network.sites, network.merged(consts), strict=True):
                nothing = jnp.zeros(site.neuron_shape, kernel.dtype)
                y = site.centred(seen[site.unit.out], bias, nothing)
                reference = site.neurons(y, jnp.ones(network.size, y.dtype)) * (nothing.size / y.size)
                empty = dict.fromkeys(kinds, jnp.zeros_like(kernel))
                layers.append(
                    LayerMoments(kernel, reference, jnp.zeros((), kernel.dtype), nothing, empty, dict(empty))
                )
            return tuple(layers)

        layers = prepare(network.consts, [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch)])
        marks = tuple(rules.mark_of(layer.kernel) for layer in layers)
        return Moments(layers, 0, 0, network.names, kinds, marks)

    def update(
        self, layers: tuple[LayerMoments, ...], leaves: Sequence[Any], valid: int
    ) -> tuple[LayerMoments, ...]:
        """The moments with a batch added, of which the first `valid` examples count."""
        references = [layer.reference for layer in layers]
        sums = [(layer.count, layer.y, layer.x, layer.xy) for layer in layers]
        sums = self.step(self.network.consts, references, sums, leaves, valid)
        new = zip(layers, sums, strict=True)
        return tuple(LayerMoments(layer.kernel, layer.reference, *sums) for layer, sums in new)

    def _step(self, consts: Sequence[Any], references: list, sums: list, leaves: list, valid: Any) -> list:
        network = self.network
        used = jnp.arange(network.size) < valid
        seen = network.observe_all(
            [v for s in network.sites for v in (s.x, s.unit.out, s.post)], consts, leaves
        )
        new = []
        of_each = zip(network.sites, network.merged(consts), references, sums, strict=True)
        for site, (_, bias), reference, old in of_each:
            y = site.centred(seen[site.unit.out], bias, reference)
            new.append(_add(site, old, used, seen[site.x], y, site.mapped(site.unmoved)(seen[site.post])))
        return new


def _add(site: Site, sums: tuple, used: jax.Array, x: jax.Array, y: jax.Array, post: jax.Array) -> tuple:
    """The sums of a layer with those over a batch added; `used` says which examples count, `y` is w·x − K."""
    count, total, of_x, of_xy = sums
    weights = used.astype(y.dtype)
    masks = {kind: _mask(kind, used.reshape(-1, *[1] * (y.ndim - 1)), post) for kind in of_x}
    of_x = {kind: of_x[kind] + site.outer(x, mask) for kind, mask in masks.items()}
    of_xy = {kind: of_xy[kind] + site.outer(x, mask * y) for kind, mask in masks.items()}
    count = count + weights.sum() * (y.size // (y.shape[0] * total.size))
    return count, total + site.neurons(y, weights), of_x, of_xy


def _mask(kind: str, used: jax.Array, post: jax.Array) -> jax.Array:
    """One where a sample counts, else zero. The threshold leaves unused examples out, at no cost for each neuron."""
    if kind == "linear":
        return jnp.broadcast_to(used, post.shape).astype(post.dtype)
    beyond = jnp.inf if kind == "relu" else -jnp.inf
    limit = jnp.where(used, jnp.zeros((), post.dtype), jnp.asarray(beyond, post.dtype))
    return (post > limit if kind == "relu" else post <= limit).astype(post.dtype)
