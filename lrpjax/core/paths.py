"""Module paths: which value of a function a path, a tag or a glob names."""

from collections.abc import Iterable
from typing import Any

from lrpjax.core import compat
from lrpjax.core.graph import Graph, Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.units import Level
from lrpjax.errors import PathError
from lrpjax.select import matches


def is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def scopes(g: Graph, at: Any) -> dict[str, Value]:
    """For each plain path, the value that leaves that scope last."""
    if at is None:
        return {}
    paths = list(at) if isinstance(at, Iterable) and not isinstance(at, str) else [at]
    leaving = {}
    for path in paths:
        if not isinstance(path, str):
            raise PathError(f"`at` takes module paths, but got {path!r}")
        if not is_glob(path):
            leaving[path] = _tagged(g, path) or _leaving(g, path)
    return leaving


def _tagged(g: Graph, name: str) -> Value | None:
    """The last value that `lrpjax.tag` gave this name."""
    hits = [node.out for node in g.walk() if node.name == "name" and node.params.get("name") == name]
    return hits[-1] if hits else None


def _leaving(g: Graph, path: str) -> Value:
    inside = lambda node: matches(path, node.path) or matches(path + "/*", node.path)
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


def globbed(level: Level, at: Any) -> dict[str, Value]:
    """For each glob, the outputs of all units whose path matches, by path ("path#2" for the second unit of a path)."""
    named: dict[str, Value] = {}
    for glob in [] if at is None else [at] if isinstance(at, str) else at:
        if not is_glob(glob):
            continue
        hits = [u for u in level.walk() if KINDS[u.kind].shown and matches(glob, u.path) and u.out.carries]
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
