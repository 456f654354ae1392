"""Random small programs, as data: a list of steps that `writings.py` runs in JAX and `reference.py` explains in NumPy.

A step names an operation, the earlier values it reads, its arrays and settings, its rule, and which of the
operation's writings is meant. Value 0 is the explained input. Values are tokens, (3, 4), or images, (1, 5, 5, 2),
until a layer makes them something else: few shapes, so that JAX compiles few operations.
"""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

import lrpjax
from lrpjax import rules, select

TOKENS, IMAGE = (3, 4), (1, 5, 5, 2)
RECTIFIERS = ("relu",)
ACTIVATIONS = (
    "relu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "softplus",
    "leaky_relu",
    "elu",
    "relu6",
    "hard_tanh",
)
AWAY_FROM_ZERO = ("sigmoid", "softplus")
"""Activations of 0 that have relevance, which an input of 0 cannot take in ratio form."""
ELEMENTWISE = ("act", "affine", "add", "sub", "mul", "maximum", "quotient")
LAYERS = ("dense", "conv")
PRODUCTS = ("mul", "attend", "score")
WRITINGS = 12
"""The number of a writing is below this: no operation of `writings.py` has more of them."""


@dataclasses.dataclass
class Step:
    """One operation. inputs: the numbers of the values that it reads. arrays: its weights. settings: what is static.
    rule: an instance of a class of `lrpjax.rules`, or None for the default of the kind."""

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rule: Any = None
    writing: int = 0

    def __str__(self):
        facts = [f"{name}={value}" for name, value in self.settings.items()]
        facts += [f"{name}: {array.shape}" for name, array in self.arrays.items()]
        reads = ", ".join(f"v{i}" for i in self.inputs)
        return f"{self.op}({reads}) -> {self.shape}, {self.rule}, writing {self.writing}; {', '.join(facts)}"


@dataclasses.dataclass
class Program:
    """Steps, of which the last one makes the output, with an input x and an output relevance."""

    steps: list[Step]
    x: np.ndarray = dataclasses.field(repr=False)
    seed: np.ndarray = dataclasses.field(repr=False)

    def _repr_pretty_(self, printer, cycle):
        lines = [f"v0: {self.x.shape}", *(f"v{n} = {step}" for n, step in enumerate(self.steps, 1))]
        printer.text("\n    ".join(lines))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [self.x.shape, *(s.shape for s in self.steps)]

    def composite(self) -> lrpjax.Composite:
        """Each step is a scope of its own, s1, s2, …, and by that name it is given its rule."""
        pairs = []
        for number, step in enumerate(self.steps, 1):
            if step.rule is not None:
                selector = select.path(f"s{number}")
                pairs.append((selector & select.kind(*kinds_of(step)), step.rule))
        return lrpjax.Composite(pairs)

    def without_rules(self) -> "Program":
        return self.changed(lambda step: {"rule": None})

    def rewritten(self, data) -> "Program":
        """The same program, each step in a writing that is drawn anew. Those of a max pool are two functions to JAX:
        of several largest elements the first wins in a window, and all of them do along an axis."""
        drawn = lambda: data.draw(st.integers(0, WRITINGS - 1), label="writing")
        return self.changed(lambda step: {} if step.op == "max_pool" else {"writing": drawn()})

    def changed(self, change) -> "Program":
        return dataclasses.replace(self, steps=[dataclasses.replace(s, **change(s)) for s in self.steps])

    def cuts(self) -> list[int]:
        """The values between input and output that everything passes."""
        return [v for v in range(1, len(self.steps)) if not self._reaches_output_without(v)]

    def _reaches_output_without(self, removed: int) -> bool:
        known = {0}
        for number, step in enumerate(self.steps, 1):
            if number != removed and known & set(step.inputs):
                known.add(number)
        return len(self.steps) in known


def kinds_of(step: Step) -> tuple[str, ...]:
    """The kinds of unit that the rule of a step is for, among those that its writings consist of."""
    if step.op in LAYERS:
        return LAYERS
    if step.op in ("layer_norm", "rms_norm"):
        return ("affine",)
    if step.op == "avg_pool":
        return ("pool",)
    kinds = {"act": "activation", "add": "sum", "sub": "sum", "mul": "product", "attend": "product"}
    return (kinds.get(step.op, {"score": "product"}.get(step.op, step.op)),)


# ------------------------------------------------------------------------------------------------ rules, at random

epsilons = st.sampled_from([0.0, 1e-6, 0.1])
flags = st.booleans()


def layer_rules():
    """Every rule of layers, with hyper-parameters."""
    one = st.one_of(
        st.builds(rules.Epsilon, epsilons, flags),
        st.builds(rules.Gamma, st.sampled_from([0.0, 0.25, 2.0]), epsilons, flags),
        st.sampled_from([(1.0, 0.0), (2.0, 1.0), (1.5, 0.5)]).flatmap(
            lambda ab: st.builds(rules.AlphaBeta, st.just(ab[0]), st.just(ab[1]), epsilons, flags)
        ),
        st.builds(rules.ZPlus, epsilons, flags),
        st.builds(rules.ZBox, st.sampled_from([-4.0, 0.0]), st.sampled_from([0.5, 4.0]), epsilons),
        st.builds(rules.WSquare, epsilons, flags),
        st.builds(rules.Flat, epsilons),
        st.builds(rules.Norm, epsilons),
        st.just(rules.Gradient()),
    )
    return st.one_of(st.none(), one, one, one, one, one)


def activation_rules(name: str):
    usual = st.sampled_from([None, None, rules.Pass(), rules.Gradient()])
    if name not in RECTIFIERS:
        return usual
    return usual | st.sampled_from([rules.GuidedBackprop(), rules.Deconvnet(), rules.BetaSmooth(2.0)])


def sum_rules():
    shares = st.sampled_from(["native", "uniform", "magnitude", 0, 1])
    own = st.builds(rules.Sum, shares) | st.builds(rules.Norm, epsilons) | st.just(rules.Gradient())
    return st.none() | own


def product_rules(elementwise: bool):
    shares = ["gate", "uniform", 0, 1, *(["magnitude"] if elementwise else [])]
    own = st.builds(rules.Product, st.sampled_from(shares))
    return st.none() | own | st.builds(rules.Epsilon, epsilons) | st.just(rules.Gradient())


shift_rules = st.just(rules.Pass()) | st.builds(rules.Norm, epsilons)
"""What adds a constant behind no layer always gets a rule: without one it depends on the form in which relevance comes."""

# --------------------------------------------------------------------------------------------- programs, at random


class Builder:
    """A program while it is drawn. `rng` makes the weights: hypothesis draws the structure, and shrinks that."""

    def __init__(self, draw, shape):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16), label="weights"))
        x = self.rng.normal(size=shape)
        signs = draw(st.sampled_from(["both", "both", "positive", "zeros"]), label="input")
        self.sparse = signs == "zeros"
        self.x = {"both": x, "positive": abs(x), "zeros": np.where(self.rng.random(shape) < 0.3, 0.0, x)}[
            signs
        ]
        self.steps: list[Step] = []

    def shape(self, value):
        return self.x.shape if value == 0 else self.steps[value - 1].shape

    def add(self, op, *inputs, shape=None, rule=None, arrays=None, **settings):
        writing = self.draw(st.integers(0, WRITINGS - 1), label=f"writing of {op}")
        shape = self.shape(inputs[0]) if shape is None else shape
        self.steps.append(Step(op, inputs, shape, arrays or {}, settings, rule, writing))
        return len(self.steps)

    def normal(self, *shape):
        return self.rng.normal(size=shape)

    # What units would be made of, looked at so that every step stays a unit of its own.

    def behind(self, value, through=("shuffle",)):
        """The operation that made a value, behind those that only move elements."""
        while value and self.steps[value - 1].op in through:
            value = self.steps[value - 1].inputs[0]
        return self.steps[value - 1].op if value else "input"

    def roots(self, value):
        """The values of which a value is an elementwise function."""
        if value == 0 or self.steps[value - 1].op not in ELEMENTWISE:
            return {value}
        return set().union(*(self.roots(v) for v in self.steps[value - 1].inputs))

    def layered(self, value):
        """Whether a layer is on the way to a value."""
        if value == 0:
            return False
        step = self.steps[value - 1]
        return step.op in LAYERS or any(map(self.layered, step.inputs))

    def two(self, a, b):
        """Whether an elementwise function of a and b is one of two values. (x + tanh(x) is one activation.)"""
        return len(self.roots(a) | self.roots(b)) > 1

    # The operations.

    def dense(self, value, outputs=4, rule=None):
        n = self.shape(value)[-1]
        arrays = {"w": self.normal(n, outputs) / np.sqrt(n)}
        bias = self.draw(st.sampled_from(["none", "bias", "batch norm"]), label="bias")
        arrays |= self._behind_layer(bias, outputs)
        rule = self.draw(layer_rules(), label="rule") if rule is None else rule
        return self.add(
            "dense", value, shape=(*self.shape(value)[:-1], outputs), rule=rule, arrays=arrays, bias=bias
        )

    def _behind_layer(self, bias, outputs):
        arrays = {} if bias == "none" else {"b": 0.5 * self.normal(outputs)}
        if bias == "batch norm":
            arrays |= {"mean": 0.3 * self.normal(outputs), "var": 0.5 + self.rng.random(outputs)}
            arrays |= {"scale": self.normal(outputs), "offset": 0.3 * self.normal(outputs)}
        return arrays

    def conv(self, value, same=False):
        _, h, w, c = self.shape(value)
        outputs, kernel = 2 if same else self.draw(st.sampled_from([2, 4]), label="features"), 3
        groups = self.draw(st.sampled_from([1, 1, 2]), label="groups")
        stride = 1 if same else self.draw(st.sampled_from([1, 2]), label="stride")
        dilation = self.draw(st.sampled_from([1, 1, 2]), label="dilation")
        spacing = 1 if same else self.draw(st.sampled_from([1, 1, 1, 2]), label="transposed")
        around = [(dilation, dilation)] * 2
        if not same:
            around = [(self.draw(st.integers(0, 2), label="padding"), dilation) for _ in range(2)]
        out = [
            ((n - 1) * spacing + low + high - (kernel - 1) * dilation) // stride + 1
            for n, (low, high) in zip((h, w), around, strict=True)
        ]
        if min(out) < 1:
            return value
        arrays = {"w": self.normal(kernel, kernel, c // groups, outputs) / np.sqrt(9 * c / groups)}
        bias = self.draw(st.sampled_from(["none", "bias", "batch norm"]), label="bias")
        arrays |= self._behind_layer(bias, outputs)
        settings = {
            "stride": stride,
            "padding": around,
            "dilation": dilation,
            "spacing": spacing,
            "groups": groups,
        }
        rule = self.draw(layer_rules(), label="rule")
        shape = (1, *out, outputs)
        return self.add("conv", value, shape=shape, rule=rule, arrays=arrays, bias=bias, **settings)

    def act(self, value, name=None):
        if self.behind(value) in ("act", "affine"):
            return value
        name = name or self.draw(st.sampled_from(ACTIVATIONS), label="activation")
        if name in AWAY_FROM_ZERO and self.sparse and not self.layered(value):
            return value
        return self.add("act", value, rule=self.draw(activation_rules(name), label="rule"), name=name)

    def join(self, a, b):
        """A sum, a difference, a product, a maximum, a quotient or a mixture of two values of one shape."""
        if not self.two(a, b):
            return b
        op = self.draw(
            st.sampled_from(["add", "add", "sub", "mul", "maximum", "quotient", "mix"]), label="joined by"
        )
        if op in ("add", "sub"):
            return self.add(op, a, b, rule=self.draw(sum_rules(), label="rule"))
        if op == "mul":
            return self.mul(a, b)
        if op == "quotient" and self.behind(b) in ("act", "affine"):
            op = "mix"  # |tanh(b)| would be one activation
        return self.add(op, a, b)

    def mul(self, a, b):
        if {self.behind(a), self.behind(b)} & set(PRODUCTS) or not self.two(a, b):
            return b
        rule = self.draw(product_rules(elementwise=True), label="rule")
        return self.add("mul", a, b, rule=rule, gates=(self._gate(a), self._gate(b)))

    def _gate(self, value):
        while value and self.steps[value - 1].op in ("shuffle", "affine"):
            value = self.steps[value - 1].inputs[0]
        return value > 0 and self.steps[value - 1].settings.get("name") == "sigmoid"

    def affine(self, value):
        if self.behind(value) not in ("add", "sub", "mul", "softmax"):
            return value
        n = self.shape(value)[-1]
        kind = self.draw(st.sampled_from(["scale", "shift", "both"]), label="affine")
        arrays = {} if kind == "shift" else {"a": 1.0 + 0.5 * self.normal(n)}
        arrays |= {} if kind == "scale" else {"c": 0.5 * self.normal(n)}
        return self.add("affine", value, arrays=arrays, rule=self.draw(shift_rules, label="rule"))

    def shuffle(self, value):
        how = self.draw(st.sampled_from(["reverse", "roll", "swap", "repeat"]), label="shuffle")
        return self.add("shuffle", value, how=how)

    def norm(self, value):
        op = self.draw(st.sampled_from(["layer_norm", "rms_norm"]), label="norm")
        n = self.shape(value)[-1]
        kind = self.draw(st.sampled_from(["plain", "scale", "both"]), label="affine")
        arrays = {} if kind == "plain" else {"scale": 1.0 + 0.5 * self.normal(n)}
        arrays |= {"offset": 0.5 * self.normal(n)} if kind == "both" else {}
        rule = None if kind == "plain" else self.draw(shift_rules, label="rule")
        return self.add(op, value, arrays=arrays, rule=rule)

    def softmax(self, value):
        rule = self.draw(st.sampled_from([None, None, rules.Stop(), rules.Gradient()]), label="rule")
        return self.add("softmax", value, rule=rule)

    def attention(self, value):
        q, k, v = (self.dense(value) for _ in range(3))
        n = self.shape(value)[0]
        scores = self.add("score", q, k, shape=(n, n), rule=self.draw(product_rules(False), label="rule"))
        weights = self.softmax(scores)
        return self.add(
            "attend", weights, v, shape=TOKENS, rule=self.draw(product_rules(False), label="rule")
        )

    def pool(self, value):
        op = self.draw(st.sampled_from(["max_pool", "avg_pool"]), label="pool")
        stride = self.draw(st.sampled_from([1, 2]), label="stride")
        _, h, w, c = self.shape(value)
        if min(h, w) < 2:
            return value
        shape = (1, (h - 2) // stride + 1, (w - 2) // stride + 1, c)
        rule = None
        if op == "avg_pool":
            rule = self.draw(
                st.none() | st.builds(rules.Norm, epsilons) | st.just(rules.Gradient()), label="rule"
            )
        return self.add(op, value, shape=shape, rule=rule, stride=stride)

    def finish(self, value, outputs=3):
        """A last layer, and only the steps that the output needs."""
        value = self.dense(value, outputs)
        needed, stack = set(), [value]
        while stack:
            v = stack.pop()
            if v and v not in needed:
                needed.add(v)
                stack += self.steps[v - 1].inputs
        numbers = {0: 0} | {v: i for i, v in enumerate(sorted(needed), 1)}
        steps = [
            dataclasses.replace(self.steps[v - 1], inputs=tuple(numbers[i] for i in self.steps[v - 1].inputs))
            for v in sorted(needed)
        ]
        return Program(steps, self.x, self.normal(*self.shape(value)))


def token_block(b: Builder, value: int) -> int:
    """Values (3, 4) to values (3, 4)."""
    block = b.draw(
        st.sampled_from(["layer", "residual", "gated", "attention", "norm", "change"]), label="block"
    )
    if block == "layer":
        return b.act(b.dense(value))
    if block == "residual":
        return b.join(value, b.act(b.dense(b.norm(value) if b.draw(flags) else value)))
    if block == "gated":
        gate = b.act(b.dense(value), b.draw(st.sampled_from(["sigmoid", "sigmoid", None]), label="gate"))
        return b.mul(gate, b.dense(value))
    if block == "attention":
        out = b.attention(value)
        return b.join(value, b.dense(out)) if b.draw(flags) else out
    if block == "norm":
        return b.norm(value)
    return b.draw(st.sampled_from([b.shuffle, b.affine, b.act, b.softmax]), label="change")(value)


def image_block(b: Builder, value: int) -> int:
    block = b.draw(st.sampled_from(["layer", "layer", "residual", "pool", "change"]), label="block")
    if block == "layer":
        return b.act(b.conv(value))
    if block == "residual":
        branch = b.act(b.conv(value, same=True))
        return b.join(value, branch) if b.shape(branch) == b.shape(value) else branch
    if block == "pool":
        return b.pool(value)
    return b.draw(st.sampled_from([b.affine, b.act, b.shuffle]), label="change")(value)


@st.composite
def token_programs(draw, most=3):
    b, value = Builder(draw, TOKENS), 0
    for _ in range(draw(st.integers(1, most), label="blocks")):
        value = token_block(b, value)
    return b.finish(value)


@st.composite
def image_programs(draw, most=3):
    b, value = Builder(draw, IMAGE), 0
    for _ in range(draw(st.integers(1, most), label="blocks")):
        value = image_block(b, value)
    size = int(np.prod(b.shape(value)))
    return b.finish(b.add("flatten", value, shape=(size,)))


def programs(most=3):
    return token_programs(most) | image_programs(most)
