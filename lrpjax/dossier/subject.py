"""The explanation that is examined: one compiled program, given its samples a batch at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrpjax import transform
from lrpjax.analysis.audit import Audit, audit
from lrpjax.composites import Composite
from lrpjax.core.seeds import output_relevance
from lrpjax.dossier.errors import DossierError


def score(f: Callable[..., Any], classes: Any, params: Any, x: Any) -> jax.Array:
    """What is explained of each sample, [B]: the output of its class, or the sum of its outputs without classes."""
    y = f(params, x)
    if classes is None:
        return y.reshape(len(x), -1).sum(1)
    return jnp.take_along_axis(y, classes[:, None], axis=1)[:, 0]


@dataclasses.dataclass
class Subject:
    """n samples of x with the classes that they are explained for, and what explains them.

    f, composite, params: as in `dossier.make`. x: [n, ...]. classes: int32 [n], or None where all outputs are explained
    together. batch: how many samples the program takes at once.
    """

    f: Callable[..., Any]
    composite: Composite
    params: Any
    x: np.ndarray
    classes: np.ndarray | None
    batch: int

    def __post_init__(self):
        def explain(params: Any, x: Any, classes: Any) -> tuple[Any, Any]:
            target = None if self.classes is None else classes
            return transform.value_and_relevance(self.f, self.composite, argnums=1, target=target)(params, x)

        self._function = explain
        began = time.monotonic()
        self.lowered, self.executable = self._compile()
        self.compiling = time.monotonic() - began

    def _compile(self) -> tuple[Any, Any]:
        explain = self._function
        # A function of its own for each call: jax.jit would give the program that it has.
        lowered = jax.jit(lambda params, x, classes: explain(params, x, classes)).lower(
            self.params, *self._given(0)
        )
        return lowered, lowered.compile()

    def _given(self, first: int, classes: np.ndarray | None = None) -> tuple[jax.Array, jax.Array]:
        """One batch; the last row stands in for rows beyond the end."""
        rows = np.minimum(np.arange(first, first + self.batch), len(self.x) - 1)
        asked = self.classes if classes is None else classes
        asked = np.zeros(len(self.x), np.int32) if asked is None else asked
        return jnp.asarray(self.x[rows]), jnp.asarray(asked[rows], jnp.int32)

    def explain(
        self, params: Any = None, classes: np.ndarray | None = None, executable: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(outputs [n, ...], relevance [n, ...]), with other params, other classes or another program if given."""
        run = executable or self.executable
        found = [
            run(self.params if params is None else params, *self._given(first, classes))
            for first in range(0, len(self.x), self.batch)
        ]
        join = lambda parts: np.concatenate([np.asarray(part) for part in parts])[: len(self.x)]
        return join([y for y, _ in found]), join([R for _, R in found])

    def again(self) -> Any:
        """The program, compiled anew."""
        return self._compile()[1]

    def audit(self) -> Audit:
        """Where relevance went, summed over all samples.

        The rows that fill up the last batch begin with no relevance, and so count nowhere.
        """

        def ledger(params: Any, x: Any, classes: Any, counted: Any) -> Audit:
            def seed(y: Any) -> Any:
                full = output_relevance(y, None if self.classes is None else classes, self.composite.method)
                return full * counted.astype(full.dtype).reshape(-1, *[1] * (full.ndim - 1))

            return audit(self.f, self.composite, argnums=1, target=seed)(params, x)

        run, total = jax.jit(ledger), None
        for first in range(0, len(self.x), self.batch):
            counted = np.arange(first, first + self.batch) < len(self.x)
            found = run(self.params, *self._given(first), jnp.asarray(counted))
            found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
            total = found if total is None else jax.tree.map(np.add, total, found)
        assert total is not None
        return total

    def scores(self) -> Any:
        """`score` as a function of x, for the metrics: of all samples at once."""
        classes = None if self.classes is None else jnp.asarray(self.classes, jnp.int32)
        return Partial(_Score(self.f), classes, self.params)


@dataclasses.dataclass(frozen=True)
class _Score:
    """`score` of one function, equal to others of the same function, so that it is compiled once."""

    f: Callable[..., Any]

    def __call__(self, classes: Any, params: Any, x: Any) -> jax.Array:
        return score(self.f, classes, params, x)


def first_uses(f: Callable[..., Any], params: Any, x: Any) -> list[int]:
    """For each leaf of params, the number of the step of the program in which it is first read; leaves that are never
    read get the number of steps.

    >>> def f(params, x):
    ...     return (x @ params["z"]) @ params["a"]
    >>> w = jnp.eye(2)
    >>> first_uses(f, {"a": w, "unused": w, "z": w}, w)
    [1, 2, 0]
    """
    jaxpr = jax.make_jaxpr(f)(params, x).jaxpr
    count = len(jax.tree.leaves(params))
    found: dict[int, int] = {}
    steps = _walk(jaxpr, dict(zip(jaxpr.invars, range(count), strict=False)), found, 0)
    return [found.get(i, steps) for i in range(count)]


def _walk(jaxpr: Any, leaf: dict[Any, int], found: dict[int, int], step: int) -> int:
    for eqn in jaxpr.eqns:
        bodies = [
            getattr(v, "jaxpr", v) for v in eqn.params.values() if hasattr(getattr(v, "jaxpr", v), "eqns")
        ]
        read = [(i, leaf[v]) for i, v in enumerate(eqn.invars) if not hasattr(v, "val") and v in leaf]
        if len(bodies) == 1 and len(bodies[0].invars) == len(eqn.invars):  # a call, or the body of a scan
            inner = {bodies[0].invars[i]: which for i, which in read}
            step = _walk(bodies[0], inner, found, step)
            continue
        if len(eqn.invars) == 1 and not bodies:  # what only changes a leaf's shape or type is still that leaf
            leaf |= {v: which for _, which in read for v in eqn.outvars}
        else:
            found |= {which: step for _, which in read if which not in found}
        step += 1
    return step


def fixed_classes(y: Any, target: Any, n: int) -> np.ndarray | None:
    """The class that each of n samples is explained for, int32 [n]; None where all outputs are.

    Where y is only its shape the largest output is not known, and class 0 stands in its place.

    Raises:
        DossierError: the outputs are several arrays, or have classes along no axis that is known; the target is none of
            "max", None, a class, or a class for each sample.
    """
    shapes = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(y)]
    if not hasattr(y, "shape") or len(shapes) != 1 or not y.ndim or y.shape[0] != n:
        raise DossierError(
            f"a dossier is of a function with one array of outputs [N, classes] or [N, ...] for N = {n} samples, but "
            f"f(params, x) gives {', '.join(map(str, shapes)) or 'nothing'}: choose one output in f"
        )
    if target is None:
        return None
    if y.ndim != 2:
        raise DossierError(
            f"the outputs have shape {tuple(y.shape)}, and classes are looked for in outputs [N, classes]. For a "
            "regression give target=None; else choose in f what is explained"
        )
    if isinstance(target, str) and target == "max":
        if isinstance(y, jax.ShapeDtypeStruct):
            return np.zeros(n, np.int32)
        return np.asarray(y).argmax(1).astype(np.int32)
    asked = np.asarray(target) if not callable(target) else np.zeros((), object)
    if asked.dtype.kind not in "iu" or asked.shape not in ((), (n,)):
        raise DossierError(
            f'a target is "max", a class, {n} classes (one for each sample) or None, not {target!r}'
        )
    if asked.size and not (-y.shape[1] <= asked.min() and asked.max() < y.shape[1]):
        raise DossierError(f"target {target} is out of range: the outputs have {y.shape[1]} classes")
    return (np.broadcast_to(asked, (n,)) % y.shape[1]).astype(np.int32)
