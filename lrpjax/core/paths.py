"""Module paths: which value of a function a path, a tag or a glob names."""

from collections.abc import Iterable
from typing import Any

from lrpjax.core import compat
from lrpjax.core.graph import Graph, Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.units import Level
from lrpjax.errors import PathError
from lrpjax.select import among, is_glob, tails


def listed(at: Any) -> list[str]:
    """The names that `at` holds: module paths, tags and globs.

    Raises:
        PathError: it holds none, or something else.
    """
    names = [at] if isinstance(at, str) or not isinstance(at, Iterable) else list(at)
    if not names:
        raise PathError(
            "`at` names nothing: give it a path, a tag or a glob, or leave it out to explain the argument"
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise PathError(f"`at` takes module paths, but got {name!r}")
    return names


def scopes(g: Graph, names: Iterable[str]) -> dict[str, Value]:
    """For each name that is no glob, the value that leaves that scope last. What is called just so is no glob,
    whatever characters are in its name."""
    leaving = {}
    for name in names:
        value = _tagged(g, name)
        if value is None and (not is_glob(name) or any(_inside(name, node.path) for node in g.walk())):
            value = _leaving(g, name)
        if value is not None:
            leaving[name] = value
    return leaving


def _inside(name: str, path: str) -> bool:
    """Whether a path is that of a scope, or of one inside it."""
    return any(tail == name or tail.startswith(name + "/") for tail in tails(path))


def _tagged(g: Graph, name: str) -> Value | None:
    """The last value that `lrpjax.tag` gave this name."""
    hits = [node.out for node in g.walk() if node.name == "name" and node.params.get("name") == name]
    return hits[-1] if hits else None


def _leaving(g: Graph, path: str) -> Value:
    inside = lambda node: _inside(path, node.path)
    last = None
    graphs = [g]
    while graphs:
        level = graphs.pop()
        graphs += [body for node in level.nodes for body in node.bodies]
        for node in level.nodes:
            for v in node.outputs:
                leaves = v.returned or any(not inside(u) for u in v.users)
                if (
                    inside(node)
                    and leaves
                    and compat.is_float(v.aval)
                    and not (node.bodies and all(inside(n) for b in node.bodies for n in b.nodes))
                ):
                    last = v
        if last is not None:
            return last
    known = sorted({node.path for node in g.walk() if node.path})
    raise PathError(
        f"no value leaves the scope {path!r}. Scopes of this function: "
        f"{', '.join(known[:40]) or '(none)'}{', …' if len(known) > 40 else ''}"
    )


def aliased(level: Level, wanted: dict[str, Value]) -> list[tuple[str, Value]]:
    """A value inside a unit (a convolution before its BatchNorm) has the relevance of the unit's output."""
    inner = {
        v: u.out
        for u in level.walk()
        if KINDS[u.kind].stands_for_inside
        for n in u.nodes[:-1]
        for v in n.outputs
    }
    return [(path, inner[v] if v in inner and inner[v].shape == v.shape else v) for path, v in wanted.items()]


def refuse_inner(level: Level, named: Iterable[tuple[str, Value]]) -> None:
    """
    Raises:
        PathError: a named value is made in the midst of a unit, where no relevance comes to it.
    """
    inner = {
        v: u
        for u in level.walk()
        if not u.bodies
        for n in u.nodes
        for v in n.outputs
        if v not in u.outputs and v not in u.operands
    }
    for path, v in named:
        if v in inner:
            raise PathError(
                f"{path!r} names a value in the midst of {inner[v].place}, which is explained as a whole: name the "
                "scope around it, or what goes into it"
            )


def globbed(level: Level, globs: Iterable[str]) -> dict[str, Value]:
    """For each glob, the outputs of all units whose path matches, by path ("path#2" for the second unit of a path)."""
    named: dict[str, Value] = {}
    shown = [u for u in level.walk() if KINDS[u.kind].shown]
    for glob in globs:
        matching = among(glob, [u.path for u in shown])
        hits = [u for u, hit in zip(shown, matching, strict=True) if hit and u.out.carries]
        if not hits:
            raise PathError(
                f"the glob {glob!r} matches no unit; str(lrpjax.plan(f, composite, *args)) lists them"
            )
        for unit in hits:
            path = base = unit.path or unit.kind
            number = 1
            while path in named and named[path] is not unit.out:
                number += 1
                path = f"{base}#{number}"
            named[path] = unit.out
    return named


def shape_outside(level: Level, value: Value) -> tuple[int, ...]:
    """The shape of a tapped value as seen from a level: inside scans it is stacked over the loops."""

    def search(level: Level) -> tuple[int, ...] | None:
        if value in level.graph.inputs or any(value in n.outputs for n in level.graph.nodes):
            return value.shape
        for unit in level.units:
            for body in unit.bodies:
                inner = search(body)
                if inner is not None:
                    steps = unit.nodes[0].steps
                    return inner if steps is None else (steps, *inner)
        return None

    shape = search(level)
    if shape is None:
        raise PathError("a value inside a loop that carries no relevance cannot be explained")
    return shape
