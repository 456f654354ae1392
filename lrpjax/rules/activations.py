"""The rules of activations, and those that any unit may be given: pass on, the derivative, nothing.

Sources: Achtibat et al. 2024 (AttnLRP), Ali et al. 2022 (CP-LRP), Zeiler & Fergus 2014, Springenberg et al. 2015.
"""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrpjax.rules.arithmetic import positive
from lrpjax.rules.base import EVERY, Rule

RECTIFIERS = ("relu", "relu6", "hard_tanh", "clip")
"""The names of activations that are made of lines with a flat side, for which the rules of ReLU are meant."""


class Pass(Rule):
    """R_i = R_j, unchanged: the default of activations (AttnLRP's identity rule, eq. 9; zennit's `Pass`).

    For activations, affine maps, normalisations, quotients, what only moves elements, and functions of one
    array that keep its shape. Any other unit that a pair gives it to is a RuleError.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: jnp.tanh(x), lrpjax.Composite([('*', Pass())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([0.0, 20.0])).round(1))
    [0. 1.]
    """

    kinds: ClassVar = (EVERY,)


class Gradient(Rule):
    """The plain chain rule, applied to the relevance itself: R_i = Σ_j ∂z_j/∂x_i R_j, as zennit does to modules
    that no rule names.

    It conserves nothing in general; `composites.gradient()` is this rule everywhere.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Gradient())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 3. -1.]
    """

    kinds: ClassVar = (EVERY,)


class Stop(Rule):
    """No relevance goes below this unit (CP-LRP stops at the attention weights, Ali et al. 2022).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Stop())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0. 0.]
    """

    kinds: ClassVar = (EVERY,)


class Deconvnet(Rule):
    """Zeiler & Fergus 2014: the backward signal passes a ReLU where it is positive itself, R_i = max(R_j, 0).

    For rectifiers, and any other activation that a selector names by its function, its kind or its path; leaky ReLUs
    are no rectifiers here, as in zennit and captum.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0])
    >>> composite = lrpjax.Composite([('*', Deconvnet())], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([-1.0, 1.0, 1.0])).round(1))
    [2. 0. 3.]
    """

    kinds: ClassVar = RECTIFIERS
    named: ClassVar = ("activation",)
    linear: ClassVar = False

    def through(self, x: jax.Array, y: jax.Array, R: jax.Array, derivative: jax.Array) -> jax.Array:
        return positive(R)


class GuidedBackprop(Rule):
    """Springenberg et al. 2015: the gradient through a ReLU, of a positive signal, R_i = φ'(x_i) max(R_j, 0).

    For rectifiers, and any other activation that a selector names by its function, its kind or its path; leaky ReLUs
    are no rectifiers here, as in zennit and captum.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0])
    >>> composite = lrpjax.Composite([('*', GuidedBackprop())], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([-1.0, 1.0, 1.0])).round(1))
    [0. 0. 3.]
    """

    kinds: ClassVar = RECTIFIERS
    named: ClassVar = ("activation",)
    linear: ClassVar = False

    def through(self, x: jax.Array, y: jax.Array, R: jax.Array, derivative: jax.Array) -> jax.Array:
        return derivative * positive(R)


class BetaSmooth(Rule):
    """R_i = R_j · sigmoid(β x_i) through a ReLU: a smooth derivative for second-order uses (Dombrowski et al.
    2019: the derivative of a softplus with this β; zennit's `ReLUBetaSmooth`).

    For rectifiers, and any other activation that a selector names by its function, its kind or its path; leaky ReLUs
    are no rectifiers here, as in zennit and captum.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0])
    >>> composite = lrpjax.Composite([('*', BetaSmooth(1.0))], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([0.0, 0.0, 9.0])).round(1))
    [ 1.  -0.5  3. ]
    """

    beta: Any = 10.0
    kinds: ClassVar = RECTIFIERS
    named: ClassVar = ("activation",)

    def through(self, x: jax.Array, y: jax.Array, R: jax.Array, derivative: jax.Array) -> jax.Array:
        return R * jax.nn.sigmoid(jnp.asarray(self.beta, x.dtype) * x)
