"""PatternNet and PatternAttribution: patterns fitted to a model in one streaming pass over data, and how good they are.

Model (Kindermans et al. 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution", arXiv 1705.05598): what a neuron
y = w·x sees is a signal s that y comes from and a distractor d that it does not, x = s + d, cov[d, y] = 0. The pattern a says where
the signal lies, S(x) = a·(w·x). It is

    a = (E_m[x y] − E_m[x] E[y]) / (w·E_m[x y] − w·E_m[x] E[y])

with E_m the mean over the samples in a mask m and E over all samples: all of them for kind "linear" (then a = cov[x, y] / var[y], eq. 6),
those with positive (or not positive) output of the unit for "relu" and "relu.negative" (the two-component estimator, eq. 7). Every position of a
convolution is a sample. This is what iNNvestigate 1.0.9 computes; where the denominator is 0 (a neuron that was never active), the pattern is 0.

The sums over samples are those of x ⊗ (y − K) and of x over the mask: each is the layer's own derivative with respect to its kernel, so no
patches are ever written out. K is the mean of y over the first batch; the result does not depend on it, its rounding error does (the
shifted-data algorithm, Chan, Golub & LeVeque 1983, The American Statistician 37(3)). Sums about one K are combined by adding them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import _compat, rules, transform, units
from lrpjax.composites import Composite
from lrpjax.errors import PathError, PatternError, UnsupportedError
from lrpjax.graph import Value
from lrpjax.plan import carry_of, path_of
from lrpjax.rewrite import AFFINE, Rewritten, _Weighted, wide
from lrpjax.rules import PLAIN, Gradient, Rule
from lrpjax.select import Selector, matches
from lrpjax.units import Level, Unit

KINDS = ("relu", "linear", "relu.negative")

# --------------------------------------------------------------------------------------------------------------------- fitted patterns


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Patterns(Mapping):
    """Fitted patterns: `fitted[path]` has the layout and shape of that layer's kernel. `kind` says which estimator; `marks` know the kernels.

    Paths are those of `lrpjax.plan`; the second layer of one path has "#2" behind it, and so on. What stands before the first "/" may be
    left out where that is unambiguous.
    """

    arrays: tuple[jax.Array, ...]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})
    marks: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, path: str) -> jax.Array:
        found = [i for i, name in enumerate(self.names) if name == path] or [i for i, name in enumerate(self.names) if matches(path, name)]
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


def numbered(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths made unique: the second layer of a path gets "#2", the third "#3".

    >>> numbered(["conv", "dense", "dense"])
    ('conv', 'dense', 'dense#2')
    """
    counts: dict[str, int] = {}
    names = []
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
        names.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
    return tuple(names)


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
    any number of shards.

    Raises:
        PatternError: they are of different models or of different kinds.

    >>> import jax.numpy as jnp
    >>> from lrpjax import patterns
    >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
    >>> data = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    >>> both = patterns.merge(patterns.collect(f, [data[:2]]), patterns.collect(f, [data[2:]]))
    >>> print(both.samples, patterns.finish(both)["dense"].ravel().round(4))
    4 [ 1.0714  0.0714]
    """
    _same_model(a, b)
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
    return dataclasses.replace(a, layers=tuple(merged), batches=a.batches + b.batches, samples=a.samples + b.samples)


def finish(moments: Moments) -> Any:
    """Patterns from moments: `Patterns`, or a tuple of them in the order of the kinds where several were collected. See `fit`.

    Raises:
        PatternError: a layer had no sample in its mask (0/0), or the statistics hold NaN or infinity.
    """
    _check_finite(moments)
    fitted = []
    for kind in moments.kinds:
        arrays = []
        for name, layer in zip(moments.names, moments.layers, strict=True):
            if not bool(jnp.any(layer.x[kind]) | jnp.any(layer.xy[kind])):
                when = {"relu": "active", "relu.negative": "inactive", "linear": "reached by anything but zeros"}[kind]
                raise PatternError(f"layer {name!r} was never {when} in {int(moments.samples)} examples: its pattern of kind {kind!r} is 0/0")
            arrays.append(_pattern(layer, kind))
        fitted.append(Patterns(tuple(arrays), moments.names, kind, moments.marks))
    return fitted[0] if len(fitted) == 1 else tuple(fitted)


@jax.jit
def _pattern_of(kernel: jax.Array, reference: jax.Array, mean: jax.Array, x: jax.Array, xy: jax.Array) -> jax.Array:
    covariance = xy - x * mean
    axes = tuple(d for d, n in enumerate(reference.shape) if n == 1)
    return rules.divide(covariance, jnp.broadcast_to((kernel * covariance).sum(axes, keepdims=True), covariance.shape))


def _pattern(layer: LayerMoments, kind: str) -> jax.Array:
    return _pattern_of(layer.kernel, layer.reference, layer.y / layer.count, layer.x[kind], layer.xy[kind])


def _check_finite(moments: Moments) -> None:
    fine = jax.device_get([jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(layer)]).all() for layer in moments.layers])
    bad = [name for name, ok in zip(moments.names, fine, strict=True) if not ok]
    if bad:
        raise PatternError(
            f"the statistics of {', '.join(map(repr, bad[:8]))} hold NaN or infinity after {int(moments.samples)} examples: "
            "look for them in the data and in the model's output"
        )


def _same_model(a: "Moments | Patterns", b: "Moments | Patterns") -> None:
    if a.names != b.names:
        raise PatternError(f"these are of different models: {_difference(a.names, b.names)}")
    other = [n for n, p, q in zip(a.names, a.marks, b.marks, strict=True) if not rules.same_mark(p, q)]
    if other:
        raise PatternError(f"these are of models with different weights, in {', '.join(map(repr, other[:8]))}")


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
    """Fits the pattern of every weighted layer of a function in one pass over batches (Kindermans et al. 2018, eq. 6 and 7).

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

    >>> import jax.numpy as jnp, lrpjax
    >>> y, distractor = jnp.array([1.0, -1.0, 2.0, -2.0]), jnp.array([1.0, 1.0, -1.0, -1.0])
    >>> x = y[:, None] * jnp.array([1.0, 0.0]) + distractor[:, None] * jnp.array([1.0, 1.0])
    >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
    >>> print(lrpjax.patterns.fit(f, [x], kind="linear")["dense"].ravel())
    [1. 0.]
    """
    return finish(collect(f, batches, kind, progress=progress, checkpoint=checkpoint, every=every))


def start(f: Callable, batch: Any, kind: str | Sequence[str] = "relu") -> Moments:
    """Empty moments, with the references taken from a batch. Shards that start from the same ones can be combined by addition; see `fit`."""
    return _Network(f, batch).start(batch, _kinds(kind))


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
    """The pass of `fit`: adds batches to `moments` (None: to new ones). The first batch is read twice, once for the references."""
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise PatternError("there are no batches to fit patterns to")
    network = _Network(f, first)
    fresh = network.start(first, moments.kinds if moments is not None else _kinds(kind))
    skip = 0
    if checkpoint is not None and _steps(checkpoint):
        moments = load(checkpoint)
        if not isinstance(moments, Moments):
            raise PatternError(f"{checkpoint} holds patterns, not the moments of a pass")
        skip = int(moments.batches)
    if moments is not None:
        _same_model(moments, fresh)
        if moments.kinds != fresh.kinds:
            raise PatternError(f"the checkpoint {checkpoint} is of kind {moments.kinds}, but {fresh.kinds} is wanted")
    moments = fresh if moments is None else moments
    all_batches = itertools.islice(itertools.chain([first], stream), skip, None)
    total = len(batches) - skip if isinstance(batches, Sized) else None
    for number, (leaves, valid) in enumerate(_bar(network.padded(all_batches), total, progress), 1):
        jax.block_until_ready(moments.layers)  # or the host runs ahead, and keeps all batches that it has read
        layers = network.update(moments.layers, leaves, valid)
        moments = dataclasses.replace(moments, layers=layers, batches=moments.batches + 1, samples=moments.samples + valid)
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


@dataclasses.dataclass(eq=False)
class _Site:
    """A weighted layer where it stands in a program: its unit, the value behind its activation, and the loops around it."""

    unit: Unit
    post: Value
    loops: int
    constants: Mapping[Value, Any]

    def __post_init__(self):
        assert self.unit.core is not None
        self.core = self.unit.core
        self.x = self.unit.operands[0]
        self.weighted = _Weighted(self.unit, self.x, Gradient(), PLAIN, False)
        self.at = self.weighted.at
        self.kernel_shape = self.core.inputs[1 - self.at].shape
        self.labels = (units._dot_labels if self.unit.kind == "dense" else units._conv_labels)(self.core)

    def neurons(self, v: jax.Array, weights: jax.Array) -> jax.Array:
        """Σ over samples of an array of the layer's output; shaped as the kernel, with one entry for each neuron."""
        lead = 1 + self.loops
        v = v.sum((*range(1, lead), *(lead + d for d, label in enumerate(self.labels) if label is None)))
        v = (v * weights.reshape(-1, *[1] * (v.ndim - 1))).sum(0)
        kept = [label for label in self.labels if label is not None]
        shape = [n if d in kept else 1 for d, n in enumerate(self.kernel_shape)]
        return v.transpose(np.argsort(kept)).reshape(shape)

    def spread(self, k: jax.Array) -> jax.Array:
        """An array with one entry for each neuron, so that it broadcasts against the layer's output."""
        kept = [label for label in self.labels if label is not None]
        k = k.reshape([self.kernel_shape[d] for d in sorted(kept)]).transpose([sorted(kept).index(d) for d in kept])
        return k.reshape([1 if label is None else self.kernel_shape[label] for label in self.labels])

    def unmoved(self, v: jax.Array) -> jax.Array:
        """An array of the unit's output, as an array of the dot's or convolution's own output: undoes the reshapes between."""

        def moves(z):
            for node in self.weighted.moves:
                z = node.bind(z)[0]
            return z

        if not self.weighted.moves:
            return wide(v)
        undo = lambda v: jax.linear_transpose(moves, jax.ShapeDtypeStruct(self.core.out.shape, self.core.out.aval.dtype))(v)[0]
        return wide(_mapped(undo, 1 + self.loops)(v))

    def outer(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Σ over samples of x_i c_j, shaped as the kernel: the derivative of the layer with respect to its kernel, with c for cotangent."""
        params = self.core.params | {"precision": (lax.Precision.HIGHEST,) * 2, "preferred_element_type": c.dtype}

        def apply(w):
            bind = lambda x: _compat.bind(self.core.primitive, params, *((x, w) if self.at == 0 else (w, x)))[0]
            with self.core.eqn.ctx.manager:
                return _mapped(bind, 1 + self.loops)(x.astype(c.dtype))

        return jax.linear_transpose(apply, jax.ShapeDtypeStruct(self.kernel_shape, c.dtype))(c)[0]


def _mapped(function: Callable, times: int) -> Callable:
    for _ in range(times):
        function = jax.vmap(function)
    return function


class _Network:
    """A function of a batch, traced for one example, with its weighted layers."""

    def __init__(self, f: Callable, batch: Any):
        leaves, self.treedef = jax.tree.flatten(batch)
        if not leaves or any(np.ndim(leaf) == 0 for leaf in leaves):
            raise PatternError("a batch is an array, or a pytree of arrays, with the examples along the first axis")
        leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves]
        self.size = _size(leaves, 1)
        self.shapes = [jax.ShapeDtypeStruct(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
        example = jax.tree.unflatten(self.treedef, [jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for s in self.shapes])
        composite = Composite((), default=Gradient(), method="gradient")
        self.program = transform.Program(f, composite, (example,), {}, 0, None, False)
        self.sites = list(_sites(self.program.level))
        if not self.sites:
            raise PatternError("the function has no dense layer or convolution that patterns could be fitted to")
        self.names = numbered([path_of(s.unit) or s.unit.kind for s in self.sites])
        self._update = jax.jit(self._step)

    def observe(self, values: Iterable[Value], consts: Sequence[Any], leaves: Sequence[Any]) -> dict[Value, Any]:
        """The values that a run of one example (as a batch of one) computes; those in loops are stacked over the steps."""
        values = list(dict.fromkeys(values))
        level = self.program.level
        zeros = {i: jnp.zeros(transform._tap_shape(level, v), v.aval.dtype) for i, v in enumerate(values)}
        rewritten = Rewritten(self.program.assignment.rules, self.program.found, values)
        _, seen = rewritten.run(level, [*consts, *leaves], zeros)
        return {v: seen[i] for i, v in enumerate(values)}

    def observe_all(self, values: Iterable[Value], consts: Sequence[Any], leaves: Sequence[Any]) -> dict[Value, Any]:
        """`observe` of every example of a batch, stacked."""
        values = list(dict.fromkeys(values))
        run = lambda *leaves: list(self.observe(values, consts, [leaf[None] for leaf in leaves]).values())
        return dict(zip(values, jax.vmap(run)(*leaves), strict=True))

    def kernels(self, consts: Sequence[Any]) -> list[jax.Array]:
        """The kernel of every layer, with the affine constants behind it folded in."""
        wanted = [v for site in self.sites for v in site.weighted.externals if v not in site.constants]
        seen = self.observe(wanted, consts, [jnp.zeros((1, *s.shape), s.dtype) for s in self.shapes])
        read = lambda site, v: site.constants[v] if v in site.constants else seen[v][(0,) * site.loops]
        return [wide(s.weighted.merge([read(s, v) for v in s.weighted.externals])[0]) for s in self.sites]

    def start(self, batch: Any, kinds: tuple[str, ...]) -> Moments:
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch)]

        @jax.jit
        def prepare(consts, leaves):
            seen = self.observe_all([s.unit.out for s in self.sites], consts, leaves)
            layers = []
            for site, kernel in zip(self.sites, self.kernels(consts), strict=True):
                z = site.unmoved(seen[site.unit.out])
                total = site.neurons(z, jnp.ones(self.size, z.dtype))
                reference, empty = total * (total.size / z.size), jnp.zeros(site.kernel_shape, z.dtype)
                zeros = lambda empty=empty: dict.fromkeys(kinds, empty)
                layers.append(LayerMoments(kernel, reference, jnp.zeros((), z.dtype), jnp.zeros_like(reference), zeros(), zeros()))
            return tuple(layers)

        layers = prepare(self.program.consts, leaves)
        marks = tuple(rules.mark_of(np.asarray(layer.kernel)) for layer in layers)
        return Moments(layers, 0, 0, self.names, kinds, marks)

    def update(self, layers: tuple[LayerMoments, ...], leaves: Sequence[Any], valid: int) -> tuple[LayerMoments, ...]:
        """The moments with a batch added, of which the first `valid` examples count."""
        return self._update(self.program.consts, layers, leaves, valid)

    def _step(self, consts: Sequence[Any], layers: tuple[LayerMoments, ...], leaves: Sequence[Any], valid: Any) -> tuple[LayerMoments, ...]:
        seen = self.observe_all([v for s in self.sites for v in (s.x, s.unit.out, s.post)], consts, leaves)
        used = jnp.arange(self.size) < valid
        return tuple(self._add(s, layer, used, seen[s.x], seen[s.unit.out], seen[s.post]) for s, layer in zip(self.sites, layers, strict=True))

    def _add(self, site: _Site, layer: LayerMoments, used: jax.Array, x: jax.Array, z: jax.Array, post: jax.Array) -> LayerMoments:
        y = site.unmoved(z) - site.spread(layer.reference)  # with the bias: a covariance does not see it
        post = site.unmoved(post)
        each = (-1, *[1] * (y.ndim - 1))
        weights = used.astype(y.dtype)
        sums_x, sums_xy = dict(layer.x), dict(layer.xy)
        for kind in layer.x:
            if kind == "linear":
                mask = jnp.broadcast_to(weights.reshape(each), y.shape)
            else:  # the threshold leaves the unused examples out, at no cost for each neuron
                limit = jnp.where(used, 0.0, jnp.inf if kind == "relu" else -jnp.inf).astype(y.dtype).reshape(each)
                mask = (post > limit if kind == "relu" else post <= limit).astype(y.dtype)
            sums_x[kind] += site.outer(x, mask)
            sums_xy[kind] += site.outer(x, mask * y)
        count = weights.sum() * (y.size // (self.size * layer.reference.size))
        return LayerMoments(layer.kernel, layer.reference, layer.count + count, layer.y + site.neurons(y, weights), sums_x, sums_xy)

    def padded(self, batches: Iterable[Any]) -> Iterator[tuple[list, int]]:
        """(leaves, number of examples) of each batch; a shorter last one is filled up with copies of its last example."""
        short = None
        for number, batch in enumerate(batches, 1):
            leaves, treedef = jax.tree.flatten(batch)
            leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves]
            shapes = [jax.ShapeDtypeStruct(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
            if treedef != self.treedef or shapes != self.shapes:
                described = lambda shapes: ", ".join(f"{s.dtype}{list(s.shape)}" for s in shapes)
                raise PatternError(f"batch {number} holds examples of {described(shapes)}, but the first one has {described(self.shapes)}")
            size = _size(leaves, number)
            if short is not None or size > self.size:
                number, size = (number, size) if short is None else short
                raise PatternError(f"batch {number} has {size} examples, others have {self.size}: only the last batch may be shorter")
            if size < self.size:
                short = number, size
                leaves = [np.concatenate([leaf, np.repeat(leaf[-1:], self.size - size, 0)]) for leaf in map(np.asarray, leaves)]
            yield leaves, size


def _size(leaves: Sequence[Any], number: int) -> int:
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise PatternError(f"batch {number} has no examples, or arrays with different numbers of them: {sorted(sizes)}")
    return sizes.pop()


def _sites(level: Level, loops: int = 0, varying: frozenset[Value] = frozenset()) -> Iterator[_Site]:
    """The weighted layers of a level and of its loops, in execution order. `varying` are inputs that change from step to step."""
    changing = set(varying)
    for node in level.graph.nodes:
        if any(v in changing for v in node.inputs):
            changing.update(node.outputs)
    owner = {node: unit for unit in level.units for node in unit.nodes}
    for unit in level.units:
        if unit.kind in rules.LAYERS:
            activations = [owner[n] for n in unit.out.users if n in owner and owner[n].kind == "activation"]
            post = next((a.out for a in activations if a.operands == [unit.out] and a.out.shape == unit.out.shape), unit.out)
            site = _Site(unit, post, loops, level.graph.constants)
            if any(v in changing for v in site.weighted.externals):
                raise UnsupportedError(
                    f"the layer {path_of(unit)!r} at {unit.main.source} stands in a loop and has another kernel in every step: unroll the loop "
                    "to fit patterns"
                )
            yield site
        elif unit.kind in ("scan", "remat"):
            first, _ = carry_of(unit)
            body, inputs = unit.bodies[0], unit.nodes[0].inputs
            inner = unit.bodies[0].graph.inputs
            new = [v for i, v in enumerate(inner) if (unit.kind == "scan" and i >= first) or inputs[i] in changing]
            yield from _sites(body, loops + (unit.kind == "scan"), frozenset(new))
        elif any(u.kind in rules.LAYERS for body in unit.bodies for u in body.walk()):
            raise UnsupportedError(f"the {unit.kind} at {unit.main.source} holds weighted layers: patterns cannot be fitted inside it")


# --------------------------------------------------------------------------------------------------------------------- saving, loading


def save(path: Any, fitted: Patterns | Moments) -> None:
    """Saves patterns or moments in a folder (orbax). Nothing that holds NaN is saved, and an interrupted save leaves the earlier one whole.

    Raises:
        PatternError: the statistics hold NaN or infinity.

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
    """Loads what `save` saved: `Patterns` or `Moments`.

    Patterns of another model, or fitted to other weights, are refused where they are used.

    Raises:
        PatternError: the folder holds nothing that `save` has saved.
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
    import pathlib

    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager(pathlib.Path(path).absolute(), options=options)


def _steps(path: Any) -> list[int]:
    """The steps that a folder of checkpoints holds."""
    import pathlib

    if not pathlib.Path(path).is_dir():
        return []
    with _manager(path, create=False) as manager:
        return list(manager.all_steps())
