"""The main signatures as users write them, for a type checker: what it makes of a call, and which calls it refuses.

Pyright reads this file: it is in the `include` of pyproject.toml. A call that has to be refused says by which rule; if it
is refused no more, that comment is an error of its own. `test_typing_cases.py` also runs the calls that are right.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
# JAX annotates its functions in part.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, assert_type

import jax
import numpy as np
from jax import numpy as jnp

import lrpjax
from lrpjax import Audit, Composite, Linearised, composites, positions, rules, select, targets
from lrpjax.core.plan import Plan
from lrpjax.linearised import Reading
from lrpjax.select import Selector

x = np.array([[1.0, 2.0]], np.float32)
w = np.array([[1.0, -1.0], [2.0, 1.0]], np.float32)


def model(x: Any, scale: float = 1.0) -> jax.Array:
    """A model with an argument that has a default."""
    return jax.nn.relu(lrpjax.tag(jnp.dot(x, w), "hidden")) * scale


def paired(x: Any) -> tuple[jax.Array, dict[str, int]]:
    """A model that returns something besides its output."""
    return model(x), {"units": 2}


def twice(x: jax.Array) -> jax.Array:
    return 2 * x


def half(z: jax.Array) -> jax.Array:
    return z / 2


class Model:
    """An object that can be called."""

    def __call__(self, x: Any) -> jax.Array:
        return model(x)


def transforms() -> None:
    """The parameters of f stay; its output, where it is returned, too."""
    assert_type(lrpjax.relevance(model)(x), Any)
    assert_type(lrpjax.relevance(model, composites.epsilon(), target=0)(x, scale=2.0), Any)
    assert_type(lrpjax.relevance(Model(), None, argnums=(0,), at="hidden")(x), Any)
    assert_type(lrpjax.relevance(paired, has_aux=True, check=True)(x), Any)
    lrpjax.relevance(model, inspect=(twice, half))(x)
    lrpjax.relevance(jax.jit(model))(x)

    assert_type(lrpjax.value_and_relevance(model)(x, 2.0), tuple[jax.Array, Any])
    (y, aux), found = lrpjax.value_and_relevance(paired, has_aux=True)(x)
    assert_type(y, jax.Array)
    assert_type(aux, dict[str, int])
    assert_type(found, Any)

    y, pull = lrpjax.vjp(model, None, x)
    assert_type(y, jax.Array)
    assert_type(pull(y), tuple[Any, ...])
    lrpjax.vjp(model, x)

    assert_type(lrpjax.plan(model, composites.epsilon(), x), Plan)
    assert_type(lrpjax.plan(model, x, at=["hidden"]), Plan)

    if TYPE_CHECKING:  # refused
        lrpjax.relevance(3)  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, "epsilon_plus")  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, composites.epsilon)  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, rules.Epsilon())  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, x)  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, argnums="x")  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, eps=1e-6)  # pyright: ignore[reportCallIssue]
        lrpjax.relevance(model)(x, x, x)  # pyright: ignore[reportCallIssue]
        lrpjax.relevance(model)(x, size=2.0)  # pyright: ignore[reportCallIssue]
        lrpjax.value_and_relevance(model, inspect=jnp.fft.rfft)  # pyright: ignore[reportArgumentType]
        lrpjax.value_and_relevance(model, check="yes")  # pyright: ignore[reportArgumentType]


def what_is_explained() -> None:
    """Targets: a class, classes, a name, an array, a function of the output."""
    lrpjax.relevance(model, target=1)(x)
    lrpjax.relevance(model, target=[1])(x)
    lrpjax.relevance(model, target=np.array([0]))(x)
    lrpjax.relevance(model, target="max")(x)
    lrpjax.relevance(model, target=jnp.ones((1, 2)))(x)
    lrpjax.relevance(model, target=lambda y: y)(x)
    lrpjax.relevance(model, target=targets.clrp(0))(x)
    assert_type(targets.difference(0, 1), Callable[[jax.Array], jax.Array])
    assert_type(targets.sglrp(0)(jnp.array([0.0, 1.0])), jax.Array)
    assert_type(targets.similarity(jnp.ones(2))(jnp.ones(2)), jax.Array)

    if TYPE_CHECKING:  # refused
        lrpjax.relevance(model, target="min")  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, target=(0, 1))  # pyright: ignore[reportArgumentType]
        lrpjax.relevance(model, target={"class": 0})  # pyright: ignore[reportArgumentType]
        targets.difference()  # pyright: ignore[reportCallIssue]


def audits() -> None:
    """An audit, alone or with the relevance."""
    assert_type(lrpjax.audit(model)(x), Audit)
    assert_type(lrpjax.audit(model, with_relevance=True)(x, 2.0), tuple[Any, Audit])
    if TYPE_CHECKING:  # which need layers and values of other names
        assert_type(lrpjax.messages(model, at="layer")(x), jax.Array)
        assert_type(positions.relevance(model, tokens="a", positions="b")(x), positions.Positions)

    if TYPE_CHECKING:  # refused
        lrpjax.audit(model, with_relevances=True)  # pyright: ignore[reportCallIssue]


def linearised() -> None:
    """The frozen program, and what it is read to give."""
    frozen = lrpjax.linearise(model, composites.epsilon(), x, at="hidden")
    assert_type(frozen, Linearised)
    assert_type(frozen.pull(0), Reading)
    assert_type(frozen.pull(targets.difference(0))["hidden"], jax.Array)
    assert_type(frozen.coefficients(unit=jnp.ones((1, 2)), stop=["hidden"]).input, Any)
    assert_type(frozen.push("hidden", jnp.ones((1, 2))).at, dict[str, jax.Array])
    assert_type(frozen.edges(), dict[tuple[str, str], Any])
    assert_type(frozen.values, dict[str, jax.Array])

    if TYPE_CHECKING:  # refused
        frozen.pull(start=0)  # pyright: ignore[reportArgumentType]
        frozen.pull("min")  # pyright: ignore[reportArgumentType]
        frozen.push("hidden")  # pyright: ignore[reportCallIssue]


def which_rule() -> None:
    """Composites: presets, pairs of one's own, and both together."""
    assert_type(composites.epsilon_gamma_box(-1.0, 1.0, gamma=np.float32(0.5)), Composite)
    assert_type(composites.gamma_stages(), Composite)
    assert_type(select.kind("conv") & ~select.first("conv") | select.path("head/*"), Selector)
    assert_type(select.between(0.0, 0.5, "dense") & "body/*", Selector)
    own = Composite(
        [
            ("head/*", rules.Epsilon(0.01)),
            (select.last("dense"), rules.Gamma(0.1, bias=False)),
            (select.contracted(), rules.Product("uniform")),
            *composites.epsilon_plus().pairs,
        ],
        default=rules.Pass(),
    )
    assert_type(own, Composite)
    kept = [("head/*", rules.Epsilon())]
    Composite(kept)

    if TYPE_CHECKING:  # refused
        Composite([rules.Epsilon()])  # pyright: ignore[reportArgumentType]
        Composite([("*", rules.Epsilon)])  # pyright: ignore[reportArgumentType]
        Composite([(3, rules.Epsilon())])  # pyright: ignore[reportArgumentType]
        Composite([("*", "epsilon")])  # pyright: ignore[reportArgumentType]
        Composite({"*": rules.Epsilon()})  # pyright: ignore[reportArgumentType]
        Composite(own)  # pyright: ignore[reportArgumentType]
        Composite((), gamma=0.1)  # pyright: ignore[reportCallIssue]
        select.kind(3)  # pyright: ignore[reportArgumentType]
        select.kind("conv") & 3  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
        composites.epsilon(eps=0.1)  # pyright: ignore[reportCallIssue]
        composites.epsilon_gamma_box(low=0.0)  # pyright: ignore[reportCallIssue]


class Halves(rules.Rule):
    """A rule of a user's own: its fields are its arguments."""

    part: float = 0.5
    emits = rules.PLAIN

    def kernels(self, w: Any) -> tuple[Any, ...]:
        return (abs(w),)

    def back(self, layer: rules.Layer, x: jax.Array, z: jax.Array, R: jax.Array) -> jax.Array:
        return self.part * layer.transpose(R, layer.kernels[0])


@rules.rule("mode")
class Named(Halves):
    """One with a switch."""

    mode: str = "quick"


def rules_of_ones_own() -> None:
    """Fields of rules, ours and users', are arguments with types."""
    assert_type(Halves(0.25), Halves)
    assert_type(Named(part=0.25, mode="slow"), Named)
    assert_type(rules.Epsilon(epsilon=0.1).epsilon, Any)
    assert_type(rules.ZBox(0.0, 1.0), rules.ZBox)
    Composite([("*", Named())])

    if TYPE_CHECKING:  # refused
        Halves(whole=0.25)  # pyright: ignore[reportCallIssue]
        Halves(part="half")  # pyright: ignore[reportArgumentType]
        Named(mode=1)  # pyright: ignore[reportArgumentType]
        rules.Epsilon(gamma=0.1)  # pyright: ignore[reportCallIssue]
        rules.ZBox(low=0.0)  # pyright: ignore[reportCallIssue]
        rules.Epsilon().epsilon = 0.1  # pyright: ignore[reportAttributeAccessIssue]


@lrpjax.custom_relevance
def spread(x: jax.Array, scale: float = 1.0) -> jax.Array:
    """A function with a relevance of its own."""
    return x.max() * scale


def forward(x: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """Its output, and what `backward` needs."""
    return x.max() * scale, x


def backward(x: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What its arguments get."""
    return jnp.broadcast_to(R / x.size, x.shape), jnp.zeros(())


def custom_relevances() -> None:
    """A function with a relevance of its own is called as before."""
    spread.defrelevance(forward, backward)
    assert_type(spread(jnp.ones(2)), jax.Array)
    assert_type(spread(jnp.ones(2), 2.0), jax.Array)
    passed = lrpjax.custom_relevance(model, rule=rules.Pass())
    assert_type(passed(x), jax.Array)
    assert_type(lrpjax.value_and_relevance(spread)(jnp.ones(2), 2.0), tuple[jax.Array, Any])
    assert_type(lrpjax.tag(jnp.ones(2), "ones"), jax.Array)

    if TYPE_CHECKING:  # refused
        spread("text")  # pyright: ignore[reportArgumentType]
        spread(jnp.ones(2), 2.0, 3.0)  # pyright: ignore[reportCallIssue]
        lrpjax.custom_relevance(model, rule="pass")  # pyright: ignore[reportArgumentType]
        spread.defrelevance(forward, forward)  # pyright: ignore[reportArgumentType]
        spread.defrelevance(forward)  # pyright: ignore[reportCallIssue]


CASES = (transforms, what_is_explained, audits, linearised, which_rule, rules_of_ones_own, custom_relevances)
