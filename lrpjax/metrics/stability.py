"""Robustness: how much the explanation changes where the input changes a little."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from lrpjax._evaluate import apply, as_callable, fill_like, map_batched
from lrpjax.metrics._noise import perturbations, uniform
from lrpjax.metrics.perturb import translate


class Robustness(NamedTuple):
    """Largest and mean relative change of the relevance under noise, each of shape [B].

    Example:
        >>> import jax.numpy as jnp
        >>> print(*robustness(lambda x: 2 * x, jnp.ones((1, 4)), noise=jnp.full((1, 1, 4), 0.5)))
        [0.5] [0.5]
    """

    maximum: jax.Array
    mean: jax.Array


def robustness(
    explain: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    batch: int = 8,
) -> Robustness:
    """Max-sensitivity and avg-sensitivity: change of the explanation in a neighbourhood of x.

    max_k and mean_k of ‖R(x + δ_k) − R(x)‖₂ / ‖R(x)‖₂, δ_k uniform in [−r, r]. Yeh et al., NeurIPS 2019
    (arXiv 1901.09392), max-sensitivity; divided by the norm of the explanation as Quantus and captum do.
    Quantus' `MaxSensitivity` and `AvgSensitivity` agree for the same δ and
    `return_nan_when_prediction_changes=False`.

    Does not show: whether the explanation is faithful: one that ignores the model is perfectly robust. A
    large value may be the model's own: where the function changes quickly so should its explanation. The
    maximum over samples is a lower bound of the maximum over the neighbourhood, and grows with their
    number.

    Args:
        explain: x -> relevance [B, ...]; give it fixed classes, or a change of class counts as a change of
            relevance.
        x: [B, ...], floating.
        noise: radius r in the unit of x, or the perturbations δ themselves, [K, *x.shape].
        samples: number K of perturbations, with a radius.
        key: random key, with a radius.
        batch: number of perturbed copies of x that are explained at once.

    Returns:
        `Robustness(maximum [B], mean [B])`; NaN where R(x) is 0.

    Raises:
        ValueError: if the radius is not positive or comes without samples or key, samples is not positive, or
            perturbations do not have the shape of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> worst, mean = metrics.robustness(lambda x: 2 * x, x, noise=noise)
        >>> print(worst, mean)
        [0.5] [0.5]
    """
    distances = _changes_near(x, noise, samples, key, explain, _norm_ratio, batch)
    return Robustness(distances.max(0), distances.mean(0))


def local_lipschitz(
    explain: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    predict: Callable | None = None,
    batch: int = 8,
) -> jax.Array:
    """Local Lipschitz estimate: the largest change of the explanation over the change of the input.

    max_k ‖R(x + δ_k) − R(x)‖₂ / ‖δ_k‖₂, δ_k uniform in [−r, r]. Alvarez-Melis & Jaakkola 2018 (arXiv 1806.08049),
    Eq. (1). Quantus' `LocalLipschitzEstimate` agrees for the same δ and `return_nan_when_prediction_changes=False`;
    its own δ are normal.

    Does not show: see `robustness`. It has a unit, that of R over that of x: only explanations of the same scale
    can be compared. It is small for small scores.

    Args:
        explain, x, noise, samples, key, batch: as in `robustness`.
        predict: x -> scores [B, classes]; perturbed copies with another largest class are then left out.

    Returns:
        [B]; NaN if all copies were left out.

    Raises:
        ValueError: as `robustness`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> print(metrics.local_lipschitz(lambda x: 3 * x, x, noise=noise))
        [3.]
    """
    return _largest(_changes_near(x, noise, samples, key, explain, _slope, batch, predict=predict))


def continuity(
    explain: Callable,
    x: ArrayLike,
    *,
    shifts: Sequence[int] | ArrayLike,
    axis: int = 2,
    fill: ArrayLike = 0.0,
    predict: Callable | None = None,
    batch: int = 8,
) -> jax.Array:
    """Continuity: the largest change of the explanation over the change of the input, as the input is moved sideways.

    max_k ‖R(x_k) − R(x)‖₁ / ‖x_k − x‖₂, x_k being x moved by the k-th shift. Montavon et al., Digital Signal Processing
    73, 2018, section 7.1, where a digit is moved through the image. Quantus' `Continuity` agrees for the same shifts
    and `return_nan_when_prediction_changes=False`.

    Does not show: see `robustness`. The map of an object that moves should move with it, and counts as changed in all
    its elements: the number is about jumps from one place to the next, so give small shifts. It has a unit (see
    `local_lipschitz`).

    Args:
        explain, x, batch: as in `robustness`.
        shifts: integers [K], none of them 0.
        axis: along which x is moved, counted with the batch; 2 is the width of images [B, H, W, C].
        fill: what comes in from beyond the border; broadcasts to x.
        predict: as in `local_lipschitz`.

    Returns:
        [B]; NaN if all copies were left out.

    Raises:
        ValueError: if shifts are no integers or one is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[[[0.0], [3.0], [0.0]]]])
        >>> print(metrics.continuity(lambda x: x, x, shifts=[-1, 1]).round(4))
        [1.4142]
    """
    x, shifts = jnp.asarray(x), np.asarray(shifts)
    if shifts.ndim != 1 or not np.issubdtype(shifts.dtype, np.integer) or not shifts.size or not shifts.all():
        raise ValueError(f"shifts must be integers [K] other than 0, not {shifts}")
    move = Partial(functools.partial(_moved, axis=axis), fill_like(fill, x))
    return _largest(_changes(explain, x, _slope_of_sums, move, jnp.asarray(shifts), batch, predict=predict))


def relative_input_stability(
    explain: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    predict: Callable | None = None,
    smallest: float = 1e-6,
    batch: int = 8,
) -> jax.Array:
    """Relative input stability (RIS): the relative change of the explanation over the relative change of the input.

    max_k ‖(R(x) − R(x_k)) / R(x)‖₂ / max(‖(x − x_k) / x‖₂, ε_min), x_k = x + δ_k of the same predicted class. Agarwal
    et al. 2022 (arXiv 2203.06877), Eq. (2). As in Quantus' `RelativeInputStability`, which agrees for the same δ,
    elements that are 0 are divided by ε_min.

    Does not show: see `robustness`. Elements with hardly any relevance decide the number, and those with none multiply
    by 1 / ε_min: maps with zeros get figures in the millions.

    Args:
        explain, x, noise, samples, key, batch: as in `robustness`.
        predict: as in `local_lipschitz`; None keeps copies of all classes.
        smallest: ε_min.

    Returns:
        [B]; NaN if all copies were left out.

    Raises:
        ValueError: as `robustness`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> print(metrics.relative_input_stability(lambda x: x * x, x, noise=noise))
        [2.5]
    """
    return relative_representation_stability(
        explain,
        _itself,
        x,
        noise=noise,
        samples=samples,
        key=key,
        predict=predict,
        smallest=smallest,
        batch=batch,
    )


def relative_representation_stability(
    explain: Callable,
    represent: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    predict: Callable | None = None,
    smallest: float = 1e-6,
    batch: int = 8,
) -> jax.Array:
    """Relative representation stability (RRS): as `relative_input_stability`, over the change of inner values.

    max_k ‖(R(x) − R(x_k)) / R(x)‖₂ / max(‖(L(x) − L(x_k)) / L(x)‖₂, ε_min). Agarwal et al. 2022 (arXiv 2203.06877),
    Eq. (3). Quantus' `RelativeRepresentationStability` agrees for the same δ and the same layers.

    Does not show: see `relative_input_stability`; behind a ReLU many inner values are 0 as well.

    Args:
        explain, x, noise, samples, key, predict, smallest, batch: as in `relative_input_stability`.
        represent: L, x -> inner values [B, ...].

    Returns:
        [B]; NaN if all copies were left out.

    Raises:
        ValueError: as `robustness`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> explain, represent = (lambda x: x * x), (lambda x: 2 * x)
        >>> print(metrics.relative_representation_stability(explain, represent, x, noise=noise))
        [2.5]
    """
    measure = Partial(_relative_to_relative, smallest)
    changes = _changes_near(
        x, noise, samples, key, explain, measure, batch, predict=predict, represent=represent
    )
    return _largest(changes)


def relative_output_stability(
    explain: Callable,
    f: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    predict: Callable | None = None,
    smallest: float = 1e-6,
    batch: int = 8,
) -> jax.Array:
    """Relative output stability (ROS): as `relative_input_stability`, over the change of the logits.

    max_k ‖(R(x) − R(x_k)) / R(x)‖₂ / max(‖f(x) − f(x_k)‖₂, ε_min). Agarwal et al. 2022 (arXiv 2203.06877), Eq. (5).
    Quantus' `RelativeOutputStability` agrees for the same δ.

    Does not show: see `relative_input_stability`.

    Args:
        explain, x, noise, samples, key, predict, smallest, batch: as in `relative_input_stability`.
        f: x -> logits [B, classes].

    Returns:
        [B]; NaN if all copies were left out.

    Raises:
        ValueError: as `robustness`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.relative_output_stability(lambda x: x * x, f, x, noise=noise))
        [1.25]
    """
    measure = Partial(_relative_to_absolute, smallest)
    changes = _changes_near(x, noise, samples, key, explain, measure, batch, predict=predict, represent=f)
    return _largest(changes)


def _itself(x):
    return x


def _changes_near(x, noise, samples, key, explain, measure, batch, **others):
    """`_changes` of copies that noise is added to."""
    x = jnp.asarray(x)
    seeds, radius = perturbations(x, noise, samples, key)
    return _changes(explain, x, measure, Partial(_added, radius), seeds, batch, **others)


def _changes(explain, x, measure, copy, seeds, batch, *, predict=None, represent=_itself):
    """measure(R(x), R(x_k), L(x), L(x_k)) for every copy x_k of x, [K, B]; −∞ where `predict` sees another class."""
    predict = None if predict is None else as_callable(predict)
    explain, represent, measure = (as_callable(g) for g in (explain, represent, measure))
    return _measured(explain, represent, predict, measure, copy, x, seeds, batch)


@functools.partial(jax.jit, static_argnames="batch")
def _measured(explain, represent, predict, measure, copy, x, seeds, batch):
    flat = lambda v: v.reshape(len(x), -1)
    describe = lambda x: (flat(apply(explain, x)), flat(represent(x)))
    predicted = None if predict is None else jnp.argmax(predict(x), -1)
    relevance, inner = describe(x)

    def one(seed):
        near = copy(seed, x)
        changed, inner_changed = describe(near)
        value = measure(relevance, changed, inner, inner_changed)
        return (
            value
            if predict is None
            else jnp.where(jnp.argmax(predict(near), -1) == predicted, value, -jnp.inf)
        )

    return map_batched(one, seeds, batch)


def _largest(values):
    """The largest value of each sample; NaN where every copy was left out."""
    largest = values.max(0)
    return jnp.where(largest == -jnp.inf, jnp.nan, largest)


def _added(radius, seed, x):
    return x + uniform(seed, radius, x)


def _moved(fill, shift, x, *, axis):
    return translate(x, shift, axis=axis, fill=fill)


def _norm(v):
    return jnp.linalg.norm(v, axis=1)


def _norm_ratio(relevance, changed, _inner, _inner_changed):
    return _norm(changed - relevance) / _norm(relevance)


def _slope(relevance, changed, inner, inner_changed):
    return _norm(changed - relevance) / _norm(inner_changed - inner)


def _slope_of_sums(relevance, changed, inner, inner_changed):
    return jnp.abs(changed - relevance).sum(1) / _norm(inner_changed - inner)


def _relative(smallest, before, after):
    """‖(before − after) / before‖₂, zeros being divided by the smallest number instead."""
    return _norm((before - after) / jnp.where(before == 0, jnp.asarray(smallest, before.dtype), before))


def _relative_to_relative(smallest, relevance, changed, inner, inner_changed):
    below = jnp.maximum(_relative(smallest, inner, inner_changed), jnp.asarray(smallest, inner.dtype))
    return _relative(smallest, relevance, changed) / below


def _relative_to_absolute(smallest, relevance, changed, inner, inner_changed):
    below = jnp.maximum(_norm(inner - inner_changed), jnp.asarray(smallest, inner.dtype))
    return _relative(smallest, relevance, changed) / below
