"""A function, traced, grouped, planned and ready to run: the one place where the stages meet."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lrpjax.core import (
    calls,
    cancelling,
    compat,
    cuts,
    factors,
    facts,
    graph,
    paths,
    plan,
    quantised,
    recognise,
    turns,
)
from lrpjax.core.frame import Rewritten, Tap
from lrpjax.core.given import checked_function, checked_leaf, explained_failures, given_to
from lrpjax.core.graph import Value
from lrpjax.core.inspection import Inspection
from lrpjax.core.nnx import nnx_scopes
from lrpjax.core.recognise.softmax import is_probability
from lrpjax.core.units import Unit
from lrpjax.core.vjps import SLOT
from lrpjax.errors import (
    CutWarning,
    InputError,
    NativeWarning,
    PathError,
    ProbabilityWarning,
    TargetError,
    UnsupportedError,
)
from lrpjax.rules import PLAIN, Rule, divide


@runtime_checkable
class Chooses(Protocol):
    """What chooses the rules: an `lrpjax.Composite`."""

    @property
    def method(self) -> str: ...

    @property
    def preset(self) -> str: ...

    @property
    def pairs(self) -> Sequence[tuple[Any, Rule]]: ...

    @property
    def calls(self) -> Mapping[str, Callable[..., Any]]: ...

    @property
    def derives(self) -> bool: ...

    @property
    def whole(self) -> bool: ...

    @property
    def families(self) -> Mapping[str, str]: ...

    @property
    def ends(self) -> list[Any]: ...

    def assign(self, units: Sequence[Any]) -> tuple[list[Rule | None], list[Any]]: ...

    def default_of(self, unit: Any) -> Rule | None: ...


class Program:
    """A function, traced, grouped, planned and ready to run: the one place where the stages meet."""

    def __init__(
        self,
        f: Callable[..., Any],
        composite: Chooses,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: int | Sequence[int] | None,
        at: Any,
        has_aux: bool,
        conditions: Sequence[str] = (),
        inlined: bool = False,
        inspect: Any = None,
        per_unit: bool = False,
        beside: Sequence[int] = (),
    ):
        """argnums: None stands for those that `f` says are its inputs, as models of other frameworks do, or else for
        the first. inlined: all calls are, also those that their own derivative would explain. inspect: None, or
        the functions
        (to, back) of the coordinates that are explained in place of the argument. per_unit: the output's relevance is
        given divided by the output, wherever no rule wants it as it is. beside: the arguments that are constants of
        the relevance, but inputs of the program all the same, the first behind its own constants: a function's
        parameters. Integers may be explained then."""
        f = checked_function(f, "relevance")
        if not isinstance(composite, Chooses):
            raise TypeError(
                f"the composite is made by lrpjax.composites or lrpjax.Composite, but is {composite!r}"
            )
        self.composite = composite
        self.has_aux = has_aux
        self.per_unit = per_unit
        args, kwargs, self.argnums, numbers = given_to(f, args, kwargs, argnums)
        self.warned = False
        explained = [args[i] for i in numbers]
        leaves, self.treedef = jax.tree.flatten(explained)
        self.tokens = at is not None or bool(beside)
        self.leaves = [checked_leaf(leaf, allow_integers=self.tokens) for leaf in leaves]
        own, own_tree = jax.tree.flatten([args[i] for i in beside])
        self.beside_leaves = [jnp.asarray(leaf) for leaf in own]
        if not leaves:
            raise InputError("the argument to be explained holds no arrays")

        def flat(*leaves: Any) -> Any:
            full = list(args)
            count = len(own)
            for i, arg in zip(beside, jax.tree.unflatten(own_tree, leaves[:count]), strict=True):
                full[i] = arg
            for i, arg in zip(numbers, jax.tree.unflatten(self.treedef, leaves[count:]), strict=True):
                full[i] = arg
            return f(*full, **kwargs)

        with nnx_scopes(), explained_failures(explained):
            self.jaxpr, self.shapes = graph.trace(flat, *self.beside_leaves, *self.leaves)
        self.consts = [*compat.open_jaxpr(self.jaxpr)[1], *self.beside_leaves]
        if has_aux and not (isinstance(self.shapes, (tuple, list)) and len(self.shapes) == 2):
            raise TargetError("with has_aux=True the function must return a pair (output, auxiliary data)")
        self.inspection = None
        if inspect is not None:
            self.inspection = self.inspected(inspect, at)
        self.prepare(at, conditions, inlined)

    def inspected(self, inspect: Any, at: Any) -> Inspection:
        explained = jax.tree.unflatten(self.treedef, self.leaves)
        if at is not None or len(explained) != 1:
            what = "leave out `at`" if at is not None else f"argnums={self.argnums!r} names {len(explained)}"
            raise InputError(f"inspect explains one argument in other coordinates: {what}")
        return Inspection(inspect, explained[0], derivative=self.composite.method == "gradient")

    def prepare(self, at: Any, conditions: Sequence[str], inlined: bool) -> None:
        everything = at is None and not conditions and not inlined and self.composite.derives
        treatment = calls.Calls(self.composite, everything)
        while True:
            named = self.group(treatment, at, conditions)
            turn = turns.wanted(self.level, self.composite.ends)
            if turn is None:
                self.assignment = plan.assign(self.level, self.composite)
                self.route(list(dict.fromkeys(self.taps.values())))
                whole = inlined or self.composite.whole
                turn = None if whole else turns.unlike(self.level, self.routes)
            if turn is not None:
                conditioned = [(name, v) for name, values in self.conditions.items() for v in values]
                turns.refuse_named(turn, [*self.taps.items(), *conditioned])
                treatment.apart[turn.node.trail] = turns.apart(turn, len(treatment.apart))
                continue
            families = self.composite.families
            done = everything or inlined
            if done or not treatment.extend(self.level, self.assignment, self.routes, families, named):
                break
        self.notes = list(treatment.notes)
        self.refuse_weights()
        self.unused = treatment.unused
        plan.check(self.assignment, self.composite, self.unused)
        plan.refuse(self.routes)
        self.cuts = self.cut()
        self.natives = plan.natives(self.level, self.assignment, self.routes)
        self.ended = plan.ended(self.level, self.seeded, self.assignment.propagations, self.routes)
        for path, values in self.conditions.items():
            self.conditions[path] = [v for v in values if v in self.routes.reached]
            if not self.conditions[path]:
                raise PathError(f"the condition {path!r} is on a value through which no relevance flows")
        self.warn_of_probabilities()
        self.rewrite()

    def group(self, treatment: calls.Calls, at: Any, conditions: Sequence[str]) -> list[Value]:
        """Builds the graph and finds its units, and the values that `at` and `conditions` name, which are returned."""
        self.graph = g = graph.build(self.jaxpr, treatment)
        families = self.composite.families
        names = [] if at is None else paths.listed(at)
        wanted, conditioned = paths.scopes(g, names), paths.scopes(g, conditions)
        inputs = len(self.leaves)
        floats = [compat.is_float(v.aval) for v in g.inputs]
        explained = [i >= len(g.inputs) - inputs for i in range(len(g.inputs))]
        sources = frozenset(v for v in wanted.values()) | (
            facts.token_sources(g, explained) if self.tokens else frozenset()
        )
        self.sources = sources
        carries = [e and f for e, f in zip(explained, floats, strict=True)]
        self.known = facts.mark(facts.find(g, carries, sources, families))
        self.cancelled = cancelling.find(g, families, self.composite.method == "relevance")
        self.made: dict[Value, Value] = {}
        if self.composite.method == "relevance":
            quantised.find(g)
            self.made = quantised.explained(g)
        if self.cancelled or self.made:
            found = facts.find(g, carries, sources, families, self.cancelled, self.made)
            self.known = facts.mark(found)
        visible = frozenset([*wanted.values(), *conditioned.values(), *treatment.borders(g)])
        self.level = recognise.find(g, families, visible, folds=self.composite.method == "relevance")
        self.taps = (
            dict(paths.aliased(self.level, wanted)) if self.composite.method == "relevance" else wanted
        )
        self.single = isinstance(at, str) and at in wanted
        self.taps |= paths.globbed(self.level, [name for name in names if name not in wanted])
        self.conditions = {path: [v] for path, v in paths.aliased(self.level, conditioned)} | {
            glob: list(paths.globbed(self.level, [glob]).values())
            for glob in conditions
            if glob not in conditioned
        }
        paths.refuse_inner(
            self.level, [*self.taps.items(), *((p, v) for p, vs in self.conditions.items() for v in vs)]
        )
        return [*wanted.values(), *conditioned.values()]

    def refuse_weights(self) -> None:
        """
        Raises:
            InputError: an explained argument holds the weights of layers.
        """
        if self.composite.method != "relevance" or self.tapped:
            return
        paths_of, numbers = [], []
        for number, one in enumerate(jax.tree.unflatten(self.treedef, self.leaves)):
            for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]:
                paths_of.append(jax.tree_util.keystr(path))
                numbers.append(number)
        inputs = self.level.inputs[len(self.consts) :]
        found = factors.find(self.level, self.routes, inputs, numbers)
        if found:
            lines = "\n".join(
                f"  {paths_of[a]} with what {paths_of[b]} made, {unit.place}" for unit, a, b in found
            )
            raise InputError(
                f"the argument to be explained holds the weights of layers, which are multiplied\n{lines}\nAs factors "
                "of products they and the activations would take half of the relevance each, again and again. For the "
                "relevance of parameters call lrpjax.parameters.relevance(f, composite)(params, x); to explain such a "
                "product all the same, give its arrays as arguments of their own, argnums=(0, 1)"
            )

    def warn_of_probabilities(self) -> None:
        outputs = self.graph.outputs
        if self.composite.method == "relevance" and any(
            is_probability(self.level, v) for v in outputs[: len(outputs) - self.aux_count()]
        ):
            warnings.warn(
                "the function ends in a softmax or log-softmax: relevance is that of a probability. "
                "Explaining the logits is usually meant",
                ProbabilityWarning,
                stacklevel=compat.stacklevel(),
            )

    def route(self, tapped: list[Value]) -> None:
        """Finds the ways of relevance from the output to the explained inputs and to the tapped values."""
        self.tapped, wanted = tapped, frozenset(tapped)
        propagations, outs = self.assignment.propagations, self.graph.outputs
        if self.beside_leaves:
            wanted |= self.sources  # relevance goes through the whole program, though tokens take none
        flowing = plan.flow(self.level, [v.carries for v in self.graph.inputs], propagations, wanted)
        self.seeded = [i < len(outs) - self.aux_count() for i in range(len(outs))]
        borders = [plan.Reached(s, s and not self.per_unit) for s in self.seeded]
        self.routes = plan.route(self.level, borders, propagations, wanted, flowing)

    def cut(self) -> list[str]:
        """The places where ways of relevance to what is explained are cut.

        Raises:
            UnsupportedError: all of them are.
        """
        known = self.known
        if self.tapped:
            g, families = self.graph, self.composite.families
            known = facts.find(
                g, [False] * len(g.inputs), frozenset(self.tapped), families, self.cancelled, self.made
            )
        seeded = [s and compat.is_float(v.aval) for s, v in zip(self.seeded, self.graph.outputs, strict=True)]
        found = cuts.find(self.level, known, seeded, self.assignment.propagations, self.routes)
        if found.whole and self.composite.method == "relevance":
            lines = "\n".join(f"  {place}" for place in found.places)
            raise UnsupportedError(
                "the output depends on what is explained only along what carries no relevance (integers, comparisons, "
                f"indices), made here\n{lines}\n{cuts.ADVICE}"
            )
        return found.places

    def warn(self) -> None:
        """Warns, once, of the places where a part of the relevance's ways is cut, and of weighted sums that the rules
        asked for pass over."""
        if self.warned:
            return
        self.warned = True
        if self.cuts:
            warnings.warn(
                f"{cuts.PARTLY} {'; '.join(self.cuts)}. {cuts.ADVICE}", CutWarning, compat.stacklevel()
            )
        if self.natives:
            warnings.warn(f"{plan.NATIVE} {'; '.join(self.natives)}", NativeWarning, compat.stacklevel())

    def warn_again(self) -> None:
        """Warns of all that was warned of when this program was made and first used."""
        self.warned = False
        plan.check(self.assignment, self.composite, self.unused)
        self.warn_of_probabilities()
        self.warn()

    def rewrite(
        self,
        audited: Sequence[Unit | tuple[Unit, Value]] = (),
        stops: frozenset[Value] = frozenset(),
        beside: Sequence[int] = (),
    ) -> None:
        """Makes the program that is run: with taps, conditions, and accounts of what is audited. At `stops` relevance
        goes no further; `beside` are the numbers of the arguments' arrays that it comes to nevertheless."""
        watched = [*self.tapped, *(v for values in self.conditions.values() for v in values)]
        self.slots = [jnp.zeros(SLOT)] * len(audited)
        self.beside = list(beside)
        watched = list(dict.fromkeys(watched))
        crediting = bool(self.beside_leaves)
        self.rewritten = Rewritten(
            self.assignment.propagations, self.routes, watched, audited, stops, crediting
        )

    def aux_count(self) -> int:
        return len(jax.tree.leaves(self.shapes[1])) if self.has_aux else 0

    def output_leaves(self) -> tuple[list, Any]:
        """The shapes of the output's arrays, and its structure.

        Raises:
            TargetError: it holds none, or one that is no floating-point number.
        """
        leaves, tree = jax.tree.flatten(self.shapes[0] if self.has_aux else self.shapes)
        if not leaves:
            raise TargetError("the function returned no array: there is nothing to explain")
        for leaf in leaves:
            if not compat.is_float(leaf):
                raise TargetError(
                    f"the output holds {leaf.dtype}{list(leaf.shape)}: only floating-point outputs can be explained. "
                    "Where f returns (output, other things), has_aux=True passes these through"
                )
        return leaves, tree

    def linearise(self, weights: Mapping[Value, Any] | None = None) -> tuple[Any, Any, Callable[[Any], Any]]:
        """(output, aux, pull): the function's value, and the map from output relevance to what was asked for.

        `weights` multiply the relevance of values that `conditions` named, on its way down; they broadcast to
        the shapes of `shape_of`.
        """
        y, aux, pull = self.linearise_audited(weights)
        return y, aux, lambda seed: pull(seed)[0]

    def linearise_audited(
        self, weights: Mapping[Value, Any] | None = None
    ) -> tuple[Any, Any, Callable[[Any], Any]]:
        """As `linearise`; pull gives a pair, the second of which are the accounts of what is audited, and what came to
        the arguments beside the values that are named."""
        self.warn()
        y_leaves, y_tree = self.output_leaves()
        inputs = self.graph.inputs[len(self.consts) :]

        def run(leaves, zeros, slots):
            outputs, seen = self.run(leaves, zeros, weights or {}, slots)
            return outputs[: len(y_leaves)], (outputs[len(y_leaves) :], seen)

        if self.tapped:
            on = (self.zeros(), self.slots, [self.leaves[i] for i in self.beside])

            def run_tapped(zeros, slots, beside):
                leaves = dict(enumerate(self.leaves)) | dict(zip(self.beside, beside, strict=True))
                return run([leaves[i] for i in range(len(leaves))], zeros, slots)

            y, back, (aux, seen) = jax.vjp(run_tapped, *on, has_aux=True)
        else:
            on = (self.leaves, self.slots)
            y, back, (aux, seen) = jax.vjp(lambda x, s: run(x, {}, s), *on, has_aux=True)

        def pull(seed: Any) -> Any:
            seeds = [jnp.asarray(s).astype(v.dtype) for s, v in zip(jax.tree.leaves(seed), y, strict=True)]
            cotangents, accounts, *beside = back(seeds)
            if self.tapped:
                accounts = (
                    accounts,
                    [
                        self.read(inputs[i], self.leaves[i], c)
                        for i, c in zip(self.beside, beside[0], strict=True)
                    ],
                )
                read = {i: self.read(v, seen[i], cotangents[i]) for i, v in enumerate(self.tapped)}
                named = {name: read[self.tapped.index(v)] for name, v in self.taps.items()}
                return (next(iter(named.values())) if self.single else named), accounts
            read = self.read if self.inspection is None else self.ratio
            R = [read(v, x, c) for v, x, c in zip(inputs, self.leaves, cotangents, strict=True)]
            explained = jax.tree.unflatten(self.treedef, R)
            if self.inspection is not None:
                explained = [self.inspection.relevance(*explained)]
            explained = tuple(explained) if isinstance(self.argnums, Sequence) else explained[0]
            return explained, (accounts, [])

        aux = jax.tree.unflatten(jax.tree.structure(self.shapes[1]), aux) if self.has_aux else None
        return jax.tree.unflatten(y_tree, y), aux, pull

    def run(
        self,
        leaves: Sequence[Any],
        zeros: Mapping[int, Any],
        weights: Mapping[Value, Any],
        slots: Sequence[Any] = (),
        puts: Mapping[int, tuple[Any, Any]] | None = None,
    ) -> Any:
        """(flat outputs, {index of a tapped value: its value}). At the tapped values of `puts` an array is put in their
        place: (where, array)."""
        puts = puts or {}
        taps = {
            i: Tap(zeros.get(i), weights.get(v), put=puts.get(i)) for v, i in self.rewritten.tapped.items()
        }
        return self.rewritten.run(self.level, [*self.consts, *leaves], taps, slots)

    def zeros(self) -> dict[int, Any]:
        return {i: jnp.zeros(self.shape_of(v), v.aval.dtype) for i, v in enumerate(self.tapped)}

    def values(self) -> dict[str, Any]:
        """The values that `at` names, by path, from a forward pass alone."""
        _, seen = self.run(self.leaves, self.zeros(), {})
        return {name: seen[self.tapped.index(v)] for name, v in self.taps.items()}

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """The shape of a value as seen from outside: inside scans it is stacked over the loops."""
        return paths.shape_outside(self.level, value)

    def read(self, value: Value, x: Any, c: Any) -> Any:
        """The relevance of a value, from the value and its cotangent: none where the plan lets none reach it."""
        if value not in self.routes.reached:
            return jnp.zeros_like(x)
        plain = self.routes.form.get(value) == PLAIN and self.composite.method != "input_x_gradient"
        return c if plain else c * x

    def ratio(self, value: Value, x: Any, c: Any) -> Any:
        """The relevance of a value divided by the value, and 0 where that is 0; or its derivative."""
        if value not in self.routes.reached:
            return jnp.zeros_like(x)
        plain = self.routes.form.get(value) == PLAIN and self.composite.method == "relevance"
        return divide(c, x) if plain else c
