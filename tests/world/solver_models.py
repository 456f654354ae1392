"""Neural differential equations, solved by diffrax, which is imported when a model is built.

What is solved in a while loop, or behind a derivative of its own, is no program that relevance can go through: such
a model is given the composite that the error message advises, under which the derivative of the whole solver is
applied to the relevance. That conserves nothing.
"""

import jax.numpy as jnp
from check import Case, image, model

from lrpjax import Composite, rules, select

DERIVED = {"epsilon": Composite([(select.kind("call"), rules.Gradient())])}
STEPS = "(PIDController.adapt_step_size)", "loop.<locals>.cond_fun", "cut: fn_wrapp"
"""Cuts that are right: whether a step is accepted, whether there is another, and how often a solver went round decide
what is computed."""


def _field():
    """What the state changes by."""
    w, v = image(4, 8, seed=1) / 2, image(8, 4, seed=2) / 8**0.5
    return lambda y: jnp.tanh(y @ w + 0.1) @ v


def _solve(name, solver, *, adaptive=False, adjoint="DirectAdjoint", **more):
    @model(f"diffrax/{name}")
    def build():
        import diffrax
        import optimistix

        options = {"adjoint": getattr(diffrax, adjoint)()}
        if adaptive:
            options["stepsize_controller"] = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        method = getattr(diffrax, solver)
        if solver == "ImplicitEuler":  # without tolerances of the step sizes its own are asked for
            find = diffrax.VeryChord(rtol=1e-3, atol=1e-3, norm=optimistix.max_norm)
            method = lambda: diffrax.ImplicitEuler(root_finder=find)
        field = _field()

        def f(y):
            term = diffrax.ODETerm(lambda t, y, args: field(y))
            solution = diffrax.diffeqsolve(
                term, method(), t0=0.0, t1=1.0, dt0=0.25, y0=y, max_steps=16, **options
            )
            return solution.ys[-1]

        return Case(f, image(4), **more)


def _euler(y):
    """Four steps by hand, which the solver with fixed steps must agree with."""
    field = _field()
    for _ in range(4):
        y = y + 0.25 * field(y)
    return y


_solve("euler", "Euler", like=_euler)
_solve("tsit5", "Tsit5")
_solve("adaptive", "Tsit5", adaptive=True, expected=STEPS)
_solve(
    "euler-checkpointed", "Euler", adjoint="RecursiveCheckpointAdjoint", composites=DERIVED, expected=STEPS
)
_solve(
    "adaptive-checkpointed",
    "Tsit5",
    adaptive=True,
    adjoint="RecursiveCheckpointAdjoint",
    composites=DERIVED,
    expected=STEPS,
)
_solve("euler-backsolve", "Euler", adjoint="BacksolveAdjoint", composites=DERIVED, expected=STEPS)
_solve("implicit-euler", "ImplicitEuler", composites=DERIVED, expected=STEPS)
_solve(
    "implicit-euler-checkpointed",
    "ImplicitEuler",
    adjoint="RecursiveCheckpointAdjoint",
    composites=DERIVED,
    expected=STEPS,
)
_solve("implicit-adaptive", "Kvaerno3", adaptive=True, composites=DERIVED, expected=STEPS)
