"""What a pass over data leaves: moments, and the patterns made of them; both can be saved and loaded."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import rules
from lrpjax.errors import PathError, PatternError
from lrpjax.patterns.network import numbered
from lrpjax.rules import Rule
from lrpjax.select import Selector, among

# ------------------------------------------------------------------------------------------------------ fitted patterns


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Patterns(Mapping):
    """Fitted patterns: `fitted[path]` has the layout and shape of that layer's kernel. `kind` says which estimator;
    `marks` know the kernels.

    Paths are those of `lrpjax.plan`; the second layer of one path has "#2" behind it, and so on. What stands before the
    first "/" may be left out where that is unambiguous.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> f = lambda x: x @ jnp.array([[1.0], [-1.0]])
        >>> fitted = patterns.fit(f, [jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]])])
        >>> list(fitted), fitted['dense'].shape, fitted.kind
        (['dense'], (2, 1), 'relu')
    """

    arrays: tuple[jax.Array, ...]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})
    marks: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, path: str) -> jax.Array:
        found = [i for i, name in enumerate(self.names) if name == path] or [
            i for i, hit in enumerate(among(path, self.names)) if hit
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
    """The weighted layer number `index` of a model whose weighted layers have these names; a model that has others is
    refused."""

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


# -------------------------------------------------------------------------------------------------------------- moments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerMoments:
    """Sums over the samples of one layer: its `kernel` w, `reference` K, `count` of samples, `y` = Σ (y − K); and over
    each kind's mask `x` = Σ x and `xy` = Σ x (y − K), shaped as the kernel. `reference` and `y` are shaped as the
    kernel with one entry for each neuron."""

    kernel: jax.Array
    reference: jax.Array
    count: jax.Array
    y: jax.Array
    x: dict[str, jax.Array]
    xy: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """What a pass over data leaves: a pytree that can be merged with that of other data, saved, and finished into
    patterns.

    `samples` and `batches` say how much data went in.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> patterns.collect(lambda x: x @ jnp.ones((2, 1)), [jnp.eye(2)]).kinds
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

    Where both have the same reference (as after `start` on the same batch) this is plain addition, so one all-reduce of
    the pytree combines any number of shards. Derived here, after Chan, Golub & LeVeque 1983.

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
    """Patterns from moments: the formula in the docstring of `lrpjax.patterns` (Kindermans et al. 2018, eq. 4 and 8).

    Args:
        moments: what `collect` or `merge` gave.

    Returns:
        `Patterns`, or a tuple of them in the order of the kinds where several were collected.

    Raises:
        PatternError: a layer had no sample in its mask, or none that varied (0/0), or the statistics hold NaN or
            infinity.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> data = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
        >>> moments = patterns.collect(lambda x: x @ jnp.array([[1.0], [-1.0]]), [data], ("relu", "linear"))
        >>> print(*(fitted["dense"].ravel().round(4) for fitted in patterns.finish(moments)))
        [1.5 0.5] [ 0.9474 -0.0526]
    """
    check_finite(moments)
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
    """cov[x, y] / w·cov[x, y] over a mask, up to its number of samples; 0 where the denominator is no more than its own
    rounding error."""
    covariance = xy - x * mean
    axes = tuple(d for d, n in enumerate(reference.shape) if n == 1)
    scale = jnp.abs(kernel * xy) + jnp.abs(kernel * x) * (jnp.abs(mean) + jnp.abs(reference))
    noise = 8 * jnp.finfo(kernel.dtype).eps * scale.sum(axes, keepdims=True)
    variance = (kernel * covariance).sum(axes, keepdims=True)
    variance = jnp.where(jnp.abs(variance) > noise, variance, jnp.zeros_like(variance))
    return rules.divide(covariance, jnp.broadcast_to(variance, covariance.shape))


def check_finite(moments: Moments) -> None:
    fine = jax.device_get(
        [jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves(layer)]).all() for layer in moments.layers]
    )
    bad = [name for name, ok in zip(moments.names, fine, strict=True) if not ok]
    if bad:
        raise PatternError(
            f"the statistics of {', '.join(map(repr, bad[:8]))} hold NaN or infinity after "
            f"{int(moments.samples)} examples: look for them in the data and in the model's output"
        )


def same_model(a: "Moments | Patterns", b: "Moments | Patterns") -> None:
    if a.names != b.names:
        raise PatternError(f"these are of different models: {_difference(a.names, b.names)}")
    other = [n for n, p, q in zip(a.names, a.marks, b.marks, strict=True) if not rules.same_mark(p, q)]
    if other:
        raise PatternError(
            f"these are of models with different weights, in {', '.join(map(repr, other[:8]))}"
        )


# ------------------------------------------------------------------------------------------------------ saving, loading


def save(path: Any, fitted: Patterns | Moments) -> None:
    """Saves patterns or moments in a folder (orbax). Nothing that holds NaN is saved, and an interrupted save leaves
    the earlier one whole.

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
        check_finite(fitted)
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
        >>> import tempfile, jax.numpy as jnp
        >>> from lrpjax import patterns
        >>> fitted = patterns.fit(lambda x: x @ jnp.ones((2, 1)), [jnp.array([[1.0, 2.0], [3.0, 1.0]])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     patterns.save(folder, fitted)
        ...     patterns.load(folder).kind
        'relu'
    """
    if not steps(path):
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


def steps(path: Any) -> list[int]:
    """The steps that a folder of checkpoints holds."""
    if not pathlib.Path(path).is_dir():
        return []
    with _manager(path, create=False) as manager:
        return list(manager.all_steps())
