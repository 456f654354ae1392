"""The flops of matrix products and convolutions in a program, from its jaxpr.

XLA's `cost_analysis` counts elementwise work too, counts the body of a loop once, and what it counts depends on the backend. Here loops count as often as
they run, what nothing reads is not counted, equal products of equal values count once (XLA merges them), and a convolution counts the products with
values that exist: not those with the zeros that padding and dilation put between them.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from lrpjax.core import compat

INLINED = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_lin",
    "run_state",
)
"""The calls that XLA sees as a part of what calls them."""


def of_dot(equation: Any) -> int:
    """Multiply-adds of a dot_general: one for each element of the result and of what is contracted."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def of_convolution(equation: Any) -> int:
    """Multiply-adds of a convolution with values that are neither padding nor between dilated ones."""
    given = equation.params
    numbers = given["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    result = equation.outvars[0].aval.shape
    total = result[numbers.out_spec[0]] * result[numbers.out_spec[1]] * right[numbers.rhs_spec[1]]
    sides = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    for i, (a, b, c) in enumerate(sides):
        places = np.arange(result[c])[:, None] * given["window_strides"][i] - given["padding"][i][0]
        places = places + np.arange(right[b]) * given["rhs_dilation"][i]
        wide = given["lhs_dilation"][i]
        exists = (places >= 0) & (places <= (left[a] - 1) * wide) & (places % wide == 0)
        total *= int(exists.sum())
    return total


COUNTS = {"dot_general": of_dot, "conv_general_dilated": of_convolution}


@dataclasses.dataclass
class Counted:
    """Flops and number of the products that run: `kinds` has both for each primitive."""

    kinds: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @property
    def flops(self) -> int:
        return sum(flops for flops, _ in self.kinds.values())

    def add(self, name: str, flops: int, times: int) -> None:
        entry = self.kinds.setdefault(name, [0, 0])
        entry[0] += flops
        entry[1] += times


class _Walk:
    """Gives every value of a program a name that is the same for equal computations, so that products count once."""

    def __init__(self):
        self.counted = Counted()
        self.seen: set[Any] = set()
        self.names: dict[Any, int] = {}
        self.fresh = itertools.count()

    def name(self, key: Any) -> int:
        return self.names.setdefault(key, len(self.names))

    def new(self, values: Sequence[Any]) -> list[int]:
        return [self.name(("new", next(self.fresh))) for _ in values]

    def walk(self, jaxpr: Any, constants: Sequence[int], given: Sequence[int], times: int) -> list[int]:
        """The names of the results of an open jaxpr that runs so many times."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *given], strict=True))

        def read(v: Any) -> int:
            if isinstance(v, core.Literal):
                return self.name(("literal", str(v.aval), str(v.val)))
            return known[v]

        for equation in jaxpr.eqns:
            inputs = [read(v) for v in equation.invars]
            known |= zip(equation.outvars, self.results(equation, inputs, times), strict=True)
        return [read(v) for v in jaxpr.outvars]

    def closed(self, jaxpr: Any, given: Sequence[int], times: int) -> list[int]:
        """As `walk`, of a jaxpr with or without constants of its own."""
        if not hasattr(jaxpr, "consts"):
            return self.walk(jaxpr, [], given, times)
        return self.walk(jaxpr.jaxpr, self.constants(jaxpr.consts), given, times)

    def constants(self, values: Sequence[Any]) -> list[int]:
        """Their names: the same array has the same."""
        return [self.name(("constant", id(value))) for value in values]

    def results(self, equation: Any, inputs: list[int], times: int) -> list[int]:
        name, given = equation.primitive.name, equation.params
        inner = given.get("jaxpr", given.get("call_jaxpr", given.get("fun_jaxpr")))
        if name in INLINED:
            return self.closed(inner, inputs, times)
        if name in (
            "checkpoint",
            "remat",
            "remat2",
        ):  # what is computed once more is not merged with the first time
            return self.closed(inner, self.new(inputs) if given["prevent_cse"] else inputs, times)
        if name == "scan":
            fixed, _ = compat.scan_layout(given)
            loop = [*inputs[:fixed], *self.new(inputs[fixed:])]
            self.closed(inner, loop, times * given["length"])
            return self.new(equation.outvars)
        if name == "while":  # how often it runs, nobody knows: once
            constants = inputs[given["cond_nconsts"] :][: given["body_nconsts"]]
            state = self.new(inputs[given["cond_nconsts"] + given["body_nconsts"] :])
            self.closed(given["body_jaxpr"], [*constants, *state], times)
            return self.new(equation.outvars)
        if name == "cond":  # the dearest branch
            before, best = self.counted, Counted()
            for branch in given["branches"]:
                self.counted = Counted()
                self.closed(branch, self.new(inputs[1:]), times)
                best = max(best, self.counted, key=lambda counted: counted.flops)
            self.counted = before
            for kind, (flops, number) in best.kinds.items():
                self.counted.add(kind, flops, number)
            return self.new(equation.outvars)
        if inner is not None and name not in COUNTS:  # a call that is not known: nothing in it is merged
            if len(getattr(inner, "in_avals", getattr(inner, "invars", ()))) == len(inputs):
                self.closed(inner, self.new(inputs), times)
            return self.new(equation.outvars)
        key = (name, str(sorted(given.items(), key=str)), *inputs)
        if name in COUNTS and key not in self.seen:
            self.seen.add(key)
            self.counted.add(name, 2 * COUNTS[name](equation) * times, times)
        return [self.name((*key, i)) for i in range(len(equation.outvars))]


def products(jaxpr: Any) -> Counted:
    """Flops and number of the matrix products and convolutions of a closed jaxpr, such as `jax.jit(f).trace(x).jaxpr`."""
    used, kept = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    walk = _Walk()
    names = dict(zip(jaxpr.jaxpr.constvars, walk.constants(jaxpr.consts), strict=True))
    given = [name for name, keep in zip(walk.new(jaxpr.jaxpr.invars), kept, strict=True) if keep]
    walk.walk(used, [names[v] for v in used.constvars], given, 1)
    return walk.counted


SIZES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "s16": 2,
    "u16": 2,
    "s8": 1,
    "u8": 1,
}
"""Bytes of the types of HLO; 4 for the others."""
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (\(.*?\)|[\w\[\],{}:()*]+?) ([a-z][\w-]*)\((.*)$")


def size_of(shape: str) -> int:
    """Bytes of a type of HLO, or of all in a tuple."""
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(
        SIZES.get(kind, 4) * math.prod(map(int, filter(None, sides.split(",")))) for kind, sides in parts
    )


def operations(text: str) -> dict[str, list[int]]:
    """How often each operation of an optimised program in HLO runs, and the bytes that it writes.

    What is fused is one operation; the body of a loop counts as often as XLA knows that it runs.
    """
    computations: dict[str, list[Any]] = {}
    entry = ""
    for line in text.splitlines():
        if (header := re.match(r"^(ENTRY )?%?([\w.-]+) .*\{$", line)) and not line.startswith("HloModule"):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif found := INSTRUCTION.match(line):
            computations[name].append(found.groups())
    counts: dict[str, list[int]] = {}

    def run(name: str, times: int) -> None:
        for shape, opcode, rest in computations[name]:
            entry = counts.setdefault(opcode, [0, 0])
            entry[0] += times
            entry[1] += times * size_of(shape)
            if opcode in ("while", "call"):
                turns = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
                called = re.search(r"(?:body|to_apply)=%?([\w.-]+)", rest)
                run(called[1], times * (int(turns[1]) if turns else 1))

    run(entry, 1)
    return counts


def stacked(jaxpr: Any) -> int:
    """Bytes of what the loops of a closed jaxpr stack up over their steps and something reads: residuals, mostly."""
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))

    def within(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                found = (
                    v.aval
                    for v in equation.outvars[compat.scan_layout(equation.params)[1] :]
                    if type(v) is core.Var
                )
                total += sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in found)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
                if is_jaxpr(inner):
                    total += within(getattr(inner, "jaxpr", inner))
        return total

    return within(used)


def is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
