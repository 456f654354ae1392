"""Class artefact compensation (ClArC) put on models as functions: values are moved along the direction of a concept."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import rules
from lrpjax.circuits import intervene
from lrpjax.custom import custom_relevance
from lrpjax.repair.cavs import CAV, RepairError

__all__ = ["augment", "project", "react"]


def project(f: Callable, cavs: Mapping[str, CAV | Sequence[CAV]]) -> Callable:
    """f without a concept: a value is moved along the concept's direction to where samples without it lie (P-ClArC).

    h' = h − v (vᵀh − z⁻), so that vᵀh' = z⁻ for every sample, and for every position of a value with positions (Anders
    et al. 2022, "Finding and removing Clever Hans: Using explanation methods to debug and improve deep models",
    Information Fusion 77, section on projective class artifact compensation). Nothing is trained. All samples are
    changed, also those without the concept: what else lies in the direction is lost to them; see `react`.

    In relevance, the step is a linear layer with the bias v z⁻ under the rule LRP-ε, whatever the composite says of
    others: what the direction carried is gone, and the bias absorbs its share.

    Args:
        f: any function, as for `lrpjax.relevance`.
        cavs: {path: a `CAV`, or several}, the values that are moved; paths are module paths and tags, as for
            `lrpjax.circuits.intervene`. With several at one value, h' is the nearest point to h with vᵀh' = z⁻ for each
            v.

    Returns:
        A function of the same arguments, which may be jitted, differentiated, vmapped and explained: its values have
        the paths that they have in f. What `at=path` explains there is the value before it is moved.

    Raises:
        RepairError: a CAV does not fit the value, `cavs` is empty or holds something else, or several have linearly
            dependent directions. PathError: a path names nothing.

    >>> import jax.numpy as jnp, numpy as np, lrpjax
    >>> from lrpjax import repair
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> mark = repair.cav(np.array([[1.0, 0.0], [9.0, 0.0]]), np.array([False, True]))  # h[0] tells of the mark
    >>> x = jnp.array([[9.0, 5.0]])
    >>> print(f(x), repair.project(f, {"h": mark})(x))
    [[14. 10.]] [[ 6. 10.]]
    >>> print(jnp.rint(lrpjax.relevance(repair.project(f, {"h": mark}), target=0)(x)))
    [[0. 5.]]
    """
    return intervene(f, _steps(cavs, "absent"))


def augment(f: Callable, cavs: Mapping[str, CAV | Sequence[CAV]]) -> Callable:
    """f with a concept in every sample, to be trained on without regard to it (a-ClArC).

    h' = h + v (z⁺ − vᵀh): every sample lies along the direction where those with the concept do (Anders et al. 2022,
    section on augmentative class artifact compensation). Train the layers behind the value on this function: as all
    samples have the concept, it tells nothing. Then use f with the new weights.

    Args:
        f, cavs: as for `project`.

    Returns:
        As `project`.

    Raises:
        As `project`.

    >>> import jax.numpy as jnp, numpy as np, lrpjax
    >>> from lrpjax import repair
    >>> f = lambda x: lrpjax.tag(x, "h").sum(-1)
    >>> mark = repair.cav(np.array([[1.0, 0.0], [9.0, 0.0]]), np.array([False, True]))
    >>> print(repair.augment(f, {"h": mark})(jnp.array([[1.0, 5.0], [9.0, 5.0]])))
    [14. 14.]
    """
    return intervene(f, _steps(cavs, "present"))


def react(
    f: Callable,
    cavs: Mapping[str, CAV],
    *,
    classes: int | Sequence[int] | None = None,
    detect: bool | float = False,
) -> Callable:
    """`project`, only for those samples for which a condition holds; all others stay as they are (reactive ClArC).

    h' = h − c(x) v (vᵀh − z⁻) with c(x) in {0, 1} (Bareeva et al. 2024, "Reactive Model Correction: Mitigating Harm to
    Task-Relevant Features via Conditional Bias Suppression", arXiv 2404.09601). c is conditioned on the class, where f
    without a correction predicts one of `classes`; on the artefact, where it is detected in the value itself; or on
    both at once, where both are asked for.

    The prediction costs one further run of f in the same function. Conditions are constants of gradients and relevance.
    For several concepts put one `react` around the other; the outer one judges predictions of the inner one.

    Args:
        f: a function of a batch, [B, classes] or [B, ..., classes] where `classes` are given.
        cavs: {path: CAV}, one for each value.
        classes: those for which the concept is an artefact.
        detect: whether the concept has to be there: vᵀh of the value, pooled as the CAV's activations were, is above
            the CAV's threshold, or above the number given.

    Returns:
        As `project`.

    Raises:
        RepairError: neither condition, classes that f does not have, or as `project`.

    >>> import jax.numpy as jnp, numpy as np, lrpjax
    >>> from lrpjax import repair
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> mark = repair.cav(np.array([[1.0, 0.0], [9.0, 0.0]]), np.array([False, True]))
    >>> x = jnp.array([[9.0, 5.0], [9.0, 12.0], [4.0, 3.0]])  # the last one is without the mark
    >>> print(f(x).argmax(1), repair.react(f, {"h": mark}, classes=0)(x)[:, 0])
    [0 1 0] [ 6. 21.  4.]
    >>> print(repair.react(f, {"h": mark}, classes=0, detect=True)(x)[:, 0])
    [ 6. 21.  7.]
    """
    wanted = None if classes is None else np.atleast_1d(np.asarray(classes))
    if wanted is not None and (wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iu"):
        raise RepairError(f"classes is a class or several, but this is {classes!r}")
    if wanted is None and detect is False:
        raise RepairError(
            "a reaction needs a condition: classes=, detect=, or both; without one it is project"
        )
    steps = _steps(cavs, "absent", several=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        chosen = None
        if wanted is not None:
            held_args, held_kwargs = jax.tree.map(_held, (args, kwargs))
            chosen = _predicted(f(*held_args, **held_kwargs), wanted)

        def when_needed(path: str, step: Callable, h: jax.Array) -> jax.Array:
            needed = jnp.ones(h.shape[:1], bool) if chosen is None else chosen
            if h.ndim < 2 or needed.shape != h.shape[: needed.ndim]:
                raise RepairError(
                    f"{path!r} has shape {h.shape}, which does not begin as the predictions do, {needed.shape}"
                )
            if detect is not False:
                cav = cavs[path]
                limit = cav.threshold if detect is True else detect
                there = cav.along(jax.lax.stop_gradient(h)) > jnp.asarray(limit, h.dtype)
                needed = needed & there.reshape(-1, *(1,) * (needed.ndim - 1))
            return jnp.where(needed.reshape(*needed.shape, *(1,) * (h.ndim - needed.ndim)), step(h), h)

        put = {path: functools.partial(when_needed, path, step) for path, step in steps.items()}
        return intervene(f, put)(*args, **kwargs)

    functools.update_wrapper(run, f)
    return run


def _held(leaf: Any) -> Any:
    """An array as a constant of gradients and relevance; what is no array as it is."""
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf


def _predicted(output: Any, classes: np.ndarray) -> jax.Array:
    """Whether the largest output is one of the classes, for every sample."""
    if not hasattr(output, "ndim") or output.ndim < 2:
        shape = getattr(output, "shape", None)
        raise RepairError(
            f"a reaction to classes needs outputs [B, classes], but f gives {shape or type(output)}"
        )
    if classes.min() < 0 or classes.max() >= output.shape[-1]:
        raise RepairError(
            f"f has {output.shape[-1]} classes, 0 … {output.shape[-1] - 1}, but `classes` names {list(classes)}"
        )
    predicted = output.argmax(-1)[..., None]
    return (predicted == jnp.asarray(classes).astype(predicted.dtype)).any(-1)


def _steps(cavs: Any, to: str, several: bool = True) -> dict[str, Callable]:
    """What becomes of each value: moved to `present` or `absent` along the directions of its CAVs."""
    if not isinstance(cavs, Mapping) or not cavs:
        raise RepairError(f"cavs maps paths to CAVs, but this is {cavs!r}")
    steps = {}
    for path, given in cavs.items():
        group = [given] if isinstance(given, CAV) else list(given) if several and _listed(given) else []
        if not group or not all(isinstance(one, CAV) for one in group):
            wanted = "a CAV of lrpjax.repair" + (", or several" if several else "")
            raise RepairError(f"{path!r} takes {wanted}, but was given {given!r}")
        shapes = {one.direction.shape for one in group}
        if len(shapes) > 1:
            raise RepairError(f"the CAVs of {path!r} have different shapes: {sorted(shapes)}")
        V = np.stack([one.direction for one in group])
        flat = V.reshape(len(V), -1)
        if np.linalg.matrix_rank(flat) < len(flat):
            raise RepairError(f"the {len(flat)} CAVs of {path!r} have linearly dependent directions")
        # Rows u of the dual basis: h' = h − Σ u (vᵀh − z) has vᵀh' = z for each v. With one, u is v.
        U = V if len(V) == 1 else np.linalg.pinv(flat).T.reshape(V.shape)
        goals = np.array([getattr(one, to) for one in group])
        steps[path] = functools.partial(_step, path, group[0], V, U, goals)
    return steps


def _listed(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _step(path: str, like: CAV, V: np.ndarray, U: np.ndarray, goals: np.ndarray, h: jax.Array) -> jax.Array:
    like.check(h.shape, path)
    axes = V.ndim - 1

    def moved(h: jax.Array) -> jax.Array:
        lead, back = h.ndim - axes, (*range(1, axes + 1),)
        along = jnp.tensordot(h, V.astype(h.dtype), ((*range(lead, h.ndim),), back))
        return h - jnp.tensordot(along - goals.astype(h.dtype), U.astype(h.dtype), 1)

    return custom_relevance(moved, rule=rules.Epsilon())(h)
