"""A function whose named values are replaced by functions of them: its program is traced, and run with more in it."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr  # pyright: ignore[reportUnknownVariableType]

from lrpjax.core import compat, graph, paths
from lrpjax.core.given import checked_function
from lrpjax.core.nnx import nnx_scopes
from lrpjax.core.primitives import CALLS
from lrpjax.errors import LrpjaxError

__all__ = ["PatchError", "replaced"]

_Trail = tuple[int, ...]


class PatchError(LrpjaxError, ValueError):
    """Two runs, or what is put into one of them, do not fit.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(2.0 * x, "h").sum()
    >>> lrpjax.circuits.patch(f, jnp.ones(3), jnp.ones(4), at="h")
    Traceback (most recent call last):
    ...
    lrpjax.circuits.replacing.PatchError: 'h' has shape (3,) in the clean run, but (4,) in the corrupted one: two runs \
are compared value by value, so pad the inputs to one shape
    """


def replaced(f: Callable, functions: Mapping[str, Callable]) -> Callable:
    """`f` with each named value h replaced by functions[name](h), as a function of the same arguments.

    What else f does stays in the program as it is written, with module paths, tags, calls and lines of source, so that
    a transform of the result finds what it would find in f. Only calls around a replaced value are taken apart.
    """
    checked_function(f, "circuits.intervene")

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        with nnx_scopes():
            program, shapes = graph.trace(lambda: f(*args, **kwargs))
        outputs = _Replacing(program, functions).level(program, [], ())
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return run


class _Replacing:
    """Runs a program with functions put behind some of its values. They are found by their trails: the equations, by
    their ids, that lead to where they are made."""

    def __init__(self, program: Any, functions: Mapping[str, Callable]):
        built = graph.build(program)
        self.functions = functions
        self.places: dict[_Trail, list[tuple[int, str]]] = {}
        named: dict[graph.Value, str] = {}
        for name, value in paths.scopes(built, functions).items():
            if value in named:
                raise PatchError(
                    f"{named[value]!r} and {name!r} name the same value: put one function there that does both"
                )
            named[value] = name
            assert value.node is not None
            here = value.node.trail, value.node.outputs.index(value)
            for trail, index in [here, *built.twins_of(value)]:
                self.places.setdefault(trail, []).append((index, name))

    def holds(self, here: _Trail) -> bool:
        """Whether a value that is replaced is made by this equation, or inside of it."""
        return any(trail[: len(here)] == here for trail in self.places)

    def level(self, body: Any, args: Sequence[Any], trail: _Trail, caller: Any = None) -> list[Any]:
        """The outputs of a jaxpr. caller: the traceback of the call to one of JAX's own functions that it stands in,
        which is the user's line for all in it."""
        jaxpr, consts = compat.open_jaxpr(body)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        read = lambda atom: atom.val if isinstance(atom, compat.Literal) else env[atom]

        def plainly(first: int, stop: int) -> None:
            """Runs equations as they are, and keeps what is read later."""
            made = [v for eqn in jaxpr.eqns[first:stop] for v in eqn.outvars]
            rest = [*(v for eqn in jaxpr.eqns[stop:] for v in eqn.invars), *jaxpr.outvars]
            wanted = {v for v in rest if not isinstance(v, compat.Literal)}
            kept = [v for v in made if v in wanted]
            inner = [v for eqn in jaxpr.eqns[first:stop] for v in eqn.invars]
            needed = [
                v for v in dict.fromkeys(v for v in inner if not isinstance(v, compat.Literal)) if v in env
            ]
            eqns = jaxpr.eqns[first:stop]
            if caller is not None:
                eqns = [eqn.replace(source_info=eqn.source_info.replace(traceback=caller)) for eqn in eqns]
            part = jaxpr.replace(constvars=[], invars=needed, outvars=kept, eqns=eqns)
            env.update(zip(kept, eval_jaxpr(part, [], *map(read, needed)), strict=True))

        done = 0
        for number, eqn in enumerate(jaxpr.eqns):
            here = (*trail, id(eqn))
            if not self.holds(here):
                continue
            plainly(done, number)
            done = number + 1
            if eqn.primitive.name in CALLS or _rebuild(eqn) is not None:
                inside = any(place[: len(here)] == here != place for place in self.places)
            else:
                inside = False
            if inside:
                outputs = self.inside(eqn, [read(v) for v in eqn.invars], here, caller)
                env.update(zip(eqn.outvars, outputs, strict=True))
                places = self.places.get(here, [])
            else:
                plainly(number, number + 1)
                # What the graph writes out in its place, such as c^x as an exponential, ends in the same value.
                places = [
                    p for trail, found in self.places.items() if trail[: len(here)] == here for p in found
                ]
            for index, name in places:
                var = eqn.outvars[index]
                env[var] = self.put(name, env[var])
        plainly(done, len(jaxpr.eqns))
        return [read(v) for v in jaxpr.outvars]

    def inside(self, eqn: Any, values: list[Any], here: _Trail, caller: Any) -> list[Any]:
        """The outputs of a call, a loop or a branch that holds a value that is replaced."""
        scope = compat.scope_of(eqn)
        with jax.named_scope(scope) if scope else contextlib.nullcontext():
            if eqn.primitive.name in CALLS:
                caller = caller or (eqn.source_info.traceback if compat.is_library_call(eqn) else None)
                return self.level(eqn.params[CALLS[eqn.primitive.name]], values, here, caller)
            return _rebuild(eqn)(  # type: ignore[misc]
                eqn, values, lambda i, body: lambda *args: self.level(body, args, (*here, i), caller)
            )

    def put(self, name: str, value: Any) -> Any:
        found = self.functions[name](value)
        if jnp.shape(found) != value.shape:
            raise PatchError(
                f"the function put at {name!r} gives shape {jnp.shape(found)}, but the value has {value.shape}"
            )
        return jnp.asarray(found).astype(value.dtype)


# ----------------------------------------------------------------- loops and branches, made again around another body


def _scan(eqn: Any, values: list[Any], body: Callable) -> list[Any]:
    p = eqn.params
    first, count = compat.scan_layout(p)
    consts, carry, xs = values[:first], values[first : first + count], values[first + count :]
    run = body(0, p["jaxpr"])

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        out = run(*consts, *carry, *xs)
        return out[:count], out[count:]

    carry, ys = jax.lax.scan(step, carry, xs, p["length"], p["reverse"], p["unroll"])
    return [*carry, *ys]


def _cond(eqn: Any, values: list[Any], body: Callable) -> list[Any]:
    branches = [body(i, branch) for i, branch in enumerate(eqn.params["branches"])]
    return jax.lax.switch(values[0], branches, *values[1:])


def _while(eqn: Any, values: list[Any], body: Callable) -> list[Any]:
    p = eqn.params
    asked, read = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    run, condition = body(0, p["body_jaxpr"]), compat.jaxpr_as_fun(p["cond_jaxpr"])
    return jax.lax.while_loop(
        lambda state: condition(*values[:asked], *state)[0],
        lambda state: run(*values[asked:read], *state),
        values[read:],
    )


def _checkpoint(eqn: Any, values: list[Any], body: Callable) -> list[Any]:
    p = eqn.params
    return jax.checkpoint(body(0, p["jaxpr"]), prevent_cse=p["prevent_cse"], policy=p["policy"])(*values)


def _shard_map(eqn: Any, values: list[Any], body: Callable) -> list[Any]:
    raise PatchError(
        "functions cannot be put at values inside of a jax.shard_map, whose devices they would have to know of: call "
        "the function in what is mapped"
    )


_BODIES = {"scan": _scan, "cond": _cond, "while": _while, "remat2": _checkpoint, "shard_map": _shard_map}


def _rebuild(eqn: Any) -> Callable | None:
    return _BODIES.get(eqn.primitive.name)
