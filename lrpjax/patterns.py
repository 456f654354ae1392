"""PatternNet and PatternAttribution: patterns fitted to a model in one streaming pass over data, and how good they are.

Model (Kindermans et al. 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution", arXiv 1705.05598): what a neuron
y = w·x sees is a signal s that y comes from and a distractor d that it does not, x = s + d, cov[d, y] = 0. The pattern a says where
the signal lies, S(x) = a·(w·x). It is

    a = (E_m[x y] − E_m[x] E[y]) / (w·E_m[x y] − w·E_m[x] E[y])

with E_m the mean over the samples in a mask m and E over all samples: all of them for kind "linear" (then a = cov[x, y] / var[y], eq. 4),
those with positive (or not positive) output of the unit for "relu" and "relu.negative" (the two-component estimator, eq. 8). Every position of a
convolution is a sample. This is what iNNvestigate 1.0.9 computes; where the denominator is 0 (a neuron that was never active), the pattern is 0.

The sums over samples are those of x ⊗ (y − K) and of x over the mask: each is the layer's own derivative with respect to its kernel, so no
patches are ever written out. K is the mean of y over the first batch; the result does not depend on it, its rounding error does (the
shifted-data algorithm, Chan, Golub & LeVeque 1983, The American Statistician 37(3)). Sums about one K are combined by adding them.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import rules
from lrpjax.errors import PathError, PatternError
from lrpjax.layers import Network, Site, numbered
from lrpjax.rules import Rule
from lrpjax.select import Selector, matches

__all__ = ["Moments", "Patterns", "collect", "finish", "fit", "load", "merge", "save", "start"]

KINDS = ("relu", "linear", "relu.negative")

# --------------------------------------------------------------------------------------------------------------------- fitted patterns


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Patterns(Mapping):
    """Fitted patterns: `fitted[path]` has the layout and shape of that layer's kernel. `kind` says which estimator; `marks` know the kernels.

    Paths are those of `lrpjax.plan`; the second layer of one path has "#2" behind it, and so on. What stands before the first "/" may be
    left out where that is unambiguous.

    Example:
        >>> import jax.numpy as jnp
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> fitted = fit(f, [jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]])])
        >>> list(fitted), fitted['dense'].shape, fitted.kind
        (['dense'], (2, 1), 'relu')
    """

    arrays: tuple[jax.Array, ...]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})
    marks: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, path: str) -> jax.Array:
        found = [i for i, name in enumerate(self.names) if name == path] or [
            i for i, name in enumerate(self.names) if matches(path, name)
        ]
        if len(found) != 1:
            reason = "names several layers" if found else "is no layer that patterns were fitted to"
            raise PathError(f"{path!r} {reason}; there are {', '.join(self.names)}")
        return self.arrays[found[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def pairs(self, attribution: bool) -> list[tuple[Selector, Rule]]:
        """The pairs of a composite that give each layer its pattern."""
        return [
            (Layer(self.names, i), rules.Pattern(array, attribution, name, mark))
            for i, (name, array, mark) in enumerate(zip(self.names, self.arrays, self.marks, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class Layer(Selector):
    """The weighted layer number `index` of a model whose weighted layers have these names; a model that has others is refused."""

    names: tuple[str, ...]
    index: int

    def choose(self, units):
        weighted = [i for i, unit in enumerate(units) if unit.kind in rules.LAYERS]
        names = numbered([units[i].path or units[i].kind for i in weighted])
        if names != self.names:
            raise PatternError(f"these patterns belong to another model: {_difference(self.names, names)}")
        return [i == weighted[self.index] for i in range(len(units))]

    def __str__(self) -> str:
        return repr(self.names[self.index])


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    listed = lambda names: ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "no layer"
    return f"they were fitted to {listed(theirs)}; this model has {listed(ours)}"


# ------------------------------------------------------------------------------------------------------------------------------ moments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerMoments:
    """Sums over the samples of one layer: its `kernel` w, `reference` K, `count` of samples, `y` = Σ (y − K); and over each kind's mask
    `x` = Σ x and `xy` = Σ x (y − K), shaped as the kernel. `reference` and `y` are shaped as the kernel with one entry for each neuron."""

    kernel: jax.Array
    reference: jax.Array
    count: jax.Array
    y: jax.Array
    x: dict[str, jax.Array]
    xy: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """What a pass over data leaves: a pytree that can be merged with that of other data, saved, and finished into patterns.

    `samples` and `batches` say how much data went in.

    Example:
        >>> import jax.numpy as jnp
        >>> collect(lambda x: x @ jnp.ones((2, 1)), [jnp.eye(2)]).kinds
        ('relu',)
    """

    layers: tuple[LayerMoments, ...]
    batches: int
    samples: int
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    marks: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the data of both: sums about one reference add up, Σ x (y − K) = Σ x (y − K') + (K' − K) Σ x.

    Where both have the same reference (as after `start` on the same batch) this is plain addition, so one all-reduce of the pytree combines
    any number of shards. Derived here, after Chan, Golub & LeVeque 1983.

    Args:
        a, b: moments of one model, fitted for the same kinds.

    Returns:
        `Moments` about the references of a.

    Raises:
        PatternError: they are of different models or of different kinds.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> data = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
        >>> both = patterns.merge(patterns.collect(f, [data[:2]]), patterns.collect(f, [data[2:]]))
        >>> print(both.samples, patterns.finish(both)["dense"].ravel().round(4))
        4 [1.5 0.5]
    """
    same_model(a, b)
    if a.kinds != b.kinds:
        raise PatternError(f"moments of kinds {a.kinds} cannot be merged with those of kinds {b.kinds}")
    merged = []
    for p, q in zip(a.layers, b.layers, strict=True):
        shift = q.reference - p.reference
        merged.append(
            LayerMoments(
                p.kernel,
                p.reference,
                p.count + q.count,
                p.y + q.y + shift * q.count,
                {k: p.x[k] + q.x[k] for k in a.kinds},
                {k: p.xy[k] + q.xy[k] + shift * q.x[k] for k in a.kinds},
            )
        )
    return dataclasses.replace(
        a, layers=tuple(merged), batches=a.batches + b.batches, samples=a.samples + b.samples
    )


def finish(moments: Moments) -> Any:
    """Patterns from moments: the formula at the head of this module (Kindermans et al. 2018, eq. 4 and 8).

    Args:
        moments: what `collect` or `merge` gave.

    Returns:
        `Patterns`, or a tuple of them in the order of the kinds where several were collected.

    Raises:
        PatternError: a layer had no sample in its mask, or none that varied (0/0), or the statistics hold NaN or infinity.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> data = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
        >>> moments = patterns.collect(lambda x: x @ jnp.array([[1.0], [-1.0]]), [data], ("relu", "linear"))
        >>> print(*(fitted["dense"].ravel().round(4) for fitted in patterns.finish(moments)))
        [1.5 0.5] [ 0.9474 -0.0526]
    """
    _check_finite(moments)
    fitted = []
    for kind in moments.kinds:
        arrays = []
        for name, layer in zip(moments.names, moments.layers, strict=True):
            pattern = _pattern(
                layer.kernel, layer.reference, layer.y / layer.count, layer.x[kind], layer.xy[kind]
            )
            if not bool(jnp.any(pattern)):
                never = {"relu": "was never active, or ", "relu.negative": "was never inactive, or "}.get(
                    kind, ""
                )
                raise PatternError(
                    f"layer {name!r} {never}never varied, in {int(moments.samples)} examples: "
                    f"its pattern of kind {kind!r} is 0/0"
                )
            arrays.append(pattern)
        fitted.append(Patterns(tuple(arrays), moments.names, kind, moments.marks))
    return fitted[0] if len(fitted) == 1 else tuple(fitted)


@jax.jit
def _pattern(
    kernel: jax.Array, reference: jax.Array, mean: jax.Array, x: jax.Array, xy: jax.Array
) -> jax.Array:
    """cov[x, y] / w·cov[x, y] over a mask, up to its number of samples; 0 where the denominator is no more than its own rounding error."""
    covariance = xy - x * mean
    axes = tuple(d for d, n in enumerate(reference.shape) if n == 1)
    scale = jnp.abs(kernel * xy) + jnp.abs(kernel * x) * (jnp.abs(mean) + jnp.abs(reference))
    noise = 8 * jnp.finfo(kernel.dtype).eps * scale.sum(axes, keepdims=True)
    variance = (kernel * covariance).sum(axes, keepdims=True)
    variance = jnp.where(jnp.abs(variance) > noise, variance, jnp.zeros_like(variance))
    return rules.divide(covariance, jnp.broadcast_to(variance, covariance.shape))


def _check_finite(moments: Moments) -> None:
    fine = jax.device_get(
        [jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(layer)]).all() for layer in moments.layers]
    )
    bad = [name for name, ok in zip(moments.names, fine, strict=True) if not ok]
    if bad:
        raise PatternError(
            f"the statistics of {', '.join(map(repr, bad[:8]))} hold NaN or infinity after {int(moments.samples)} examples: "
            "look for them in the data and in the model's output"
        )


def same_model(a: "Moments | Patterns", b: "Moments | Patterns") -> None:
    if a.names != b.names:
        raise PatternError(f"these are of different models: {_difference(a.names, b.names)}")
    other = [n for n, p, q in zip(a.names, a.marks, b.marks, strict=True) if not rules.same_mark(p, q)]
    if other:
        raise PatternError(
            f"these are of models with different weights, in {', '.join(map(repr, other[:8]))}"
        )


# ------------------------------------------------------------------------------------------------------------------------------ fitting


def fit(
    f: Callable,
    batches: Iterable[Any],
    kind: str | Sequence[str] = "relu",
    *,
    progress: bool = False,
    checkpoint: Any = None,
    every: int = 100,
) -> Any:
    """Fits the pattern of every weighted layer of a function in one pass over batches (Kindermans et al. 2018, eq. 4 and 8).

    The layers are those that `lrpjax.plan(f, None, x)` lists as "dense" and "conv", with the affine constants behind them (a BatchNorm)
    folded in. f is applied to each example by itself, as a batch of one: its examples must not depend on each other.

    Args:
        f: a function of one argument, a batch of examples along the first axis (or a pytree of such arrays).
        batches: an iterable of such arguments, all of one size; only the last may be shorter.
        kind: "relu", over the samples where the unit's output behind its activation is positive; "relu.negative", over the others;
            "linear", over all. A sequence of kinds fits all of them in the same pass and returns a tuple.
        progress: whether to show a progress bar.
        checkpoint: a folder. The moments are saved there after every `every` batches and at the end; if it holds some already, the pass goes
            on behind the batches that went into them, which are skipped.
        every: see `checkpoint`.

    Returns:
        `Patterns`, a mapping from path to array, for `composites.pattern_net` and `composites.pattern_attribution`.

    Raises:
        PatternError: no batches, batches that do not fit together, a layer without a single sample in its mask, NaN or infinity, or a
            checkpoint of another model. A single neuron without samples has the pattern 0.
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
    """Empty moments, with the references K taken from a batch: shards that start from the same ones are combined by plain addition.

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
        >>> f, data = lambda x: x @ jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
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
    """The pass of `fit`: the sums over batches, added to `moments` or to new ones. The first batch is read twice, once for the references.

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
    if checkpoint is not None and _steps(checkpoint):
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
    _check_finite(moments)
    if checkpoint is not None and int(moments.batches) not in _steps(checkpoint):
        save(checkpoint, moments)
    return moments


def _bar(iterable: Iterator, total: int | None, progress: bool) -> Iterable:
    if not progress:
        return iterable
    try:
        from rich.progress import track
    except ImportError as error:
        raise ImportError("the progress bar needs rich: pip install rich") from error
    return track(iterable, "fitting patterns", total)


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


# --------------------------------------------------------------------------------------------------------------------- saving, loading


def save(path: Any, fitted: Patterns | Moments) -> None:
    """Saves patterns or moments in a folder (orbax). Nothing that holds NaN is saved, and an interrupted save leaves the earlier one whole.

    Args:
        path: the folder; it is made if need be, and what it holds already is replaced.
        fitted: what to save.

    Raises:
        PatternError: the statistics hold NaN or infinity.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> fitted = patterns.fit(lambda x: x @ jnp.ones((2, 1)), [jnp.array([[1.0, 2.0], [3.0, 1.0]])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     patterns.save(folder, fitted)
        ...     print(patterns.load(folder)["dense"].ravel())
        [ 2. -1.]
    """
    if isinstance(fitted, Moments):
        _check_finite(fitted)
    static = {f.name: getattr(fitted, f.name) for f in dataclasses.fields(fitted) if f.metadata.get("static")}
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(fitted))}
    meta = {
        "type": type(fitted).__name__,
        "static": static,
        "leaves": [[list(a.shape), str(a.dtype)] for a in leaves.values()],
    }
    args = _orbax().args
    with _manager(path, create=True) as manager:
        step = int(fitted.batches) if isinstance(fitted, Moments) else (manager.latest_step() or 0) + 1
        manager.save(step, args=args.Composite(arrays=args.StandardSave(leaves), meta=args.JsonSave(meta)))


def load(path: Any) -> Any:
    """Loads what `save` saved. Patterns of another model, or fitted to other weights, are refused where they are used.

    Args:
        path: the folder.

    Returns:
        `Patterns` or `Moments`, as saved.

    Raises:
        PatternError: the folder holds nothing that `save` has saved.

    Example:
        >>> import jax.numpy as jnp, tempfile
        >>> fitted = fit(lambda x: x @ jnp.ones((2, 1)), [jnp.array([[1.0, 2.0], [3.0, 1.0]])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, fitted)
        ...     load(folder).kind
        'relu'
    """
    if not _steps(path):
        raise PatternError(f"{path} holds no saved patterns")
    args = _orbax().args
    with _manager(path, create=False) as manager:
        step = manager.latest_step()
        meta = manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        target = {str(i): np.zeros(shape, dtype) for i, (shape, dtype) in enumerate(meta["leaves"])}
        arrays = manager.restore(step, args=args.Composite(arrays=args.StandardRestore(target)))["arrays"]
    static = {k: _tuples(v) for k, v in meta["static"].items()}
    leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
    if meta["type"] == "Patterns":
        return Patterns(tuple(leaves), **static)
    kinds = dict.fromkeys(static["kinds"], 0)
    layer = LayerMoments(0, 0, 0, 0, dict(kinds), dict(kinds))  # type: ignore[arg-type]
    blank = Moments((layer,) * len(static["names"]), 0, 0, **static)
    restored = jax.tree.unflatten(jax.tree.structure(blank), leaves)
    return dataclasses.replace(restored, batches=int(restored.batches), samples=int(restored.samples))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("saving and loading patterns needs orbax: pip install orbax-checkpoint") from error
    return ocp


def _manager(path: Any, create: bool) -> Any:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(pathlib.Path(path).absolute(), options=options)


def _steps(path: Any) -> list[int]:
    """The steps that a folder of checkpoints holds."""
    if not pathlib.Path(path).is_dir():
        return []
    with _manager(path, create=False) as manager:
        return list(manager.all_steps())
