"""Relevance in NumPy, from contributions z_ij that are all written out: nothing here is lrpjax's or JAX's.

Rules are read as data: the name of their class, and their fields. Every layer is a matrix of its inputs and outputs,
however it is written, with a table of which of them are connected.
"""

import math

import numpy as np

# ---------------------------------------------------------------------------------------------------------- layers


def divide(a, b):
    """a / b, and 0 where b is 0."""
    return np.where(b == 0, 0.0, a / np.where(b == 0, 1.0, b))


def share(a, z, epsilon):
    """a / (z + ε sign z), with sign 0 = +1 and 0/0 = 0."""
    return divide(a, z + np.where(z >= 0, epsilon, -epsilon))


def pos(v):
    return np.where(v > 0, v, 0.0)


def neg(v):
    return np.where(v < 0, v, 0.0)


def layer(rule, x, w, connected, b, R):
    """R_i of a layer's inputs x (n,), for weights (n, m), biases b (m,) and relevances R (m,)."""
    z_ij = x[:, None] * w
    name = "Epsilon" if rule is None else type(rule).__name__
    epsilon = 1e-6 if rule is None else getattr(rule, "epsilon", 0.0)
    z = z_ij.sum(0) + b
    kept = b if getattr(rule, "bias", True) else np.zeros_like(b)
    if name in ("Epsilon", "Norm"):
        return (z_ij * share(R, z_ij.sum(0) + kept, epsilon)).sum(1)
    if name in ("ZPlus", "AlphaBeta"):
        alpha, beta = (1.0, 0.0) if name == "ZPlus" else (rule.alpha, rule.beta)
        above = pos(z_ij) * share(R, pos(z_ij).sum(0) + pos(kept), epsilon)
        below = neg(z_ij) * share(R, neg(z_ij).sum(0) + neg(kept), epsilon)
        return (alpha * above - beta * below).sum(1)
    if name == "Gamma":
        favoured = lambda c: np.where(z > 0, pos(c), neg(c))
        raised, raised_bias = z_ij + rule.gamma * favoured(z_ij), kept + rule.gamma * favoured(kept)
        s = share(np.where(z == 0, 0.0, R), raised.sum(0) + raised_bias, epsilon)
        return (raised * s).sum(1)
    if name == "ZBox":
        boxed = z_ij - rule.low * pos(w) - rule.high * neg(w)
        return (boxed * share(R, boxed.sum(0), epsilon)).sum(1)
    if name == "WSquare":
        return (w**2 * share(R, (w**2).sum(0) + kept**2, epsilon)).sum(1)
    if name == "Flat":
        return (connected * share(R, connected.sum(0).astype(float), epsilon)).sum(1)
    if name == "Gradient":
        return (w * R).sum(1)
    raise AssertionError(rule)


def folded(step, w, b):
    """A layer's matrix (inputs, positions, features) and bias with a BatchNorm behind it."""
    b = step.arrays.get("b", np.zeros(w.shape[-1])) if b is None else b
    if step.settings["bias"] != "batch norm":
        return w, b
    a = step.arrays["scale"] / np.sqrt(step.arrays["var"] + 1e-3)
    return w * a, (b - step.arrays["mean"]) * a + step.arrays["offset"]


def matrix(step, shape):
    """(weights, connected, bias) of a layer as a map of flat inputs to flat outputs."""
    if step.op == "dense":
        rows = int(np.prod(shape[:-1]))
        n, m = step.arrays["w"].shape
        w, connected = np.zeros((rows, n, rows, m)), np.zeros((rows, n, rows, m), bool)
        kernel, bias = folded(step, step.arrays["w"], None)
        for row in range(rows):
            w[row, :, row], connected[row, :, row] = kernel, True
        return w.reshape(rows * n, -1), connected.reshape(rows * n, -1), np.tile(bias, rows)
    s, (_, height, width, channels), (_, rows, columns, features) = step.settings, shape, step.shape
    kernel, bias = folded(step, step.arrays["w"], None)
    w = np.zeros((height, width, channels, rows, columns, features))
    connected = np.zeros(w.shape, bool)
    per_group, out_per_group = channels // s["groups"], features // s["groups"]
    for row, column, k, l in np.ndindex(rows, columns, *kernel.shape[:2]):
        i = row * s["stride"] + k * s["dilation"] - s["padding"][0][0]
        j = column * s["stride"] + l * s["dilation"] - s["padding"][1][0]
        if i % s["spacing"] or j % s["spacing"]:
            continue
        i, j = i // s["spacing"], j // s["spacing"]
        if 0 <= i < height and 0 <= j < width:
            for g in range(s["groups"]):
                ins = slice(g * per_group, (g + 1) * per_group)
                outs = slice(g * out_per_group, (g + 1) * out_per_group)
                w[i, j, ins, row, column, outs] += kernel[k, l, :, outs]
                connected[i, j, ins, row, column, outs] = True
    n = height * width * channels
    return w.reshape(n, -1), connected.reshape(n, -1), np.tile(bias, rows * columns)


# ----------------------------------------------------------------------------------------------------- activations

erf = np.vectorize(math.erf)
sigmoid = lambda v: 1 / (1 + np.exp(-v))
GELU = math.sqrt(2 / math.pi)
ACTIVATIONS = {
    "relu": (pos, lambda v: (v > 0) * 1.0),
    "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
    "sigmoid": (sigmoid, lambda v: sigmoid(v) * (1 - sigmoid(v))),
    "silu": (lambda v: v * sigmoid(v), lambda v: sigmoid(v) * (1 + v * (1 - sigmoid(v)))),
    "gelu": (
        lambda v: v / 2 * (1 + erf(v / math.sqrt(2))),
        lambda v: (1 + erf(v / math.sqrt(2))) / 2 + v * np.exp(-(v**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "softplus": (lambda v: np.log1p(np.exp(v)), sigmoid),
    "leaky_relu": (lambda v: np.where(v > 0, v, 0.01 * v), lambda v: np.where(v > 0, 1.0, 0.01)),
    "elu": (lambda v: np.where(v > 0, v, np.exp(v) - 1), lambda v: np.where(v > 0, 1.0, np.exp(v))),
    "relu6": (lambda v: np.clip(v, 0, 6), lambda v: ((v > 0) & (v < 6)) * 1.0),
    "hard_tanh": (lambda v: np.clip(v, -1, 1), lambda v: (abs(v) < 1) * 1.0),
}
"""Each function with its derivative."""


def activation(step, v, y, R):
    slope = ACTIVATIONS[step.settings["name"]][1]
    name = "Pass" if step.rule is None else type(step.rule).__name__
    if name == "Pass":
        return R
    if name == "Gradient":
        return slope(v) * R
    if name == "GuidedBackprop":
        return np.where(v > 0, pos(R), 0.0)
    if name == "Deconvnet":
        return pos(R)
    if name == "BetaSmooth":
        return R * sigmoid(step.rule.beta * v)
    raise AssertionError(step.rule)


# ------------------------------------------------------------------------------------------- several values into one


def receives(step) -> list[int]:
    """The numbers of the operands that get relevance."""
    both = list(range(len(step.inputs)))
    share = getattr(step.rule, "share", None)
    if type(step.rule).__name__ == "Stop":
        return []
    if step.op == "quotient":
        return [0]
    if isinstance(share, int):
        return [share]
    gates = step.settings.get("gates", (False, False))
    if step.op == "mul" and sum(gates) == 1 and share in (None, "gate") and not gradient(step):
        return [gates.index(False)]
    return both


def gradient(step):
    return type(step.rule).__name__ == "Gradient"


def summands(step, a, b, R, takers):
    """R of a and b in y = a + b; a difference is the sum with −b. takers: whether each leads to the input. One that
    does not has no part in shares that are fixed numbers."""
    sign = -1.0 if step.op == "sub" else 1.0
    terms = [a, sign * b]
    y = terms[0] + terms[1]
    name = "native" if step.rule is None else type(step.rule).__name__
    if name == "Gradient":
        return [R, sign * R]
    if name == "Norm":
        return [t * share(R, y, step.rule.epsilon) for t in terms]
    how = "native" if name == "native" else step.rule.share
    if how == "native":
        return [t * divide(R, y) for t in terms]
    return [R * w for w in weights(how, a, b, takers)]


def weights(how, a, b, takers):
    """The share of each of two operands, among those that take any."""
    if sum(takers) < 2:
        return [float(taker) for taker in takers]
    if how == "magnitude":
        return [divide(abs(f), abs(a) + abs(b)) for f in (a, b)]
    return [0.5, 0.5]


def parts(step, a, b, takers):
    """(which part of the relevance each of two factors takes, the stabiliser)"""
    epsilon = step.rule.epsilon if type(step.rule).__name__ == "Epsilon" else 0.0
    return weights(getattr(step.rule, "share", "gate"), a, b, takers), epsilon


def contraction(step, terms, R, axis, to_a, to_b, takers):
    """R of the factors of y = Σ_k a_k b_k, with `terms` all of a_k b_k. The sums are those that lead to a and b."""
    (part_a, part_b), epsilon = parts(step, None, None, takers)
    y = terms.sum(axis)
    messages = terms * np.expand_dims(share(R, y, epsilon), axis)
    return [part_a * messages.sum(to_a), part_b * messages.sum(to_b)]


def factors(step, a, b, R, takers):
    """R of a and b in their product, elementwise or of matrices."""
    if step.op == "mul":
        if gradient(step):
            return [b * R, a * R]
        taken, epsilon = parts(step, a, b, takers)
        y = a * b
        kept = y * share(R, y, epsilon)
        return [w * kept for w in taken]
    if step.op == "score":  # y_ts = Σ_d a_td b_sd
        if gradient(step):
            return [R @ b, R.T @ a]
        return contraction(step, a[:, None] * b[None], R, 2, 1, 0, takers)
    if gradient(step):  # y_td = Σ_s a_ts b_sd
        return [R @ b.T, a.T @ R]
    return contraction(step, a[:, :, None] * b[None], R, 1, 2, 0, takers)


# ------------------------------------------------------------------------------------------------ all the operations


def norm(step, v):
    """(the numerator's matrix along the last axis, the fixed denominator, the affine map's a and c)"""
    n = v.shape[-1]
    centre = np.eye(n) - (1 / n if step.op == "layer_norm" else 0.0)
    u = v @ centre
    below = np.sqrt((u**2).mean(-1, keepdims=True) + 1e-3)
    return centre, below, step.arrays.get("scale", np.ones(n)), step.arrays.get("offset", np.zeros(n))


def affine_relevance(rule, above, c, R):
    """R through above + c, where `above` is what was scaled."""
    return above * share(R, above + c, rule.epsilon) if type(rule).__name__ == "Norm" else R


def order(step, shape):
    """For each element of a shuffled value, in flat order, the number of the one it was."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    how, axis = step.settings["how"], 0 if len(shape) == 2 else 1
    half = shape[axis] // 2
    first, rest = np.split(numbers, [half], axis)
    moved = {
        "reverse": np.flip(numbers, axis),
        "roll": np.roll(numbers, 1, axis),
        "swap": np.concatenate([rest, first], axis),
        "repeat": np.take(numbers, [0, *range(shape[axis] - 1)], axis),
    }[how]
    return moved.ravel()


def mask(shape):
    """Where a mixture of two values is the first of them."""
    return (np.arange(shape[-1]) < shape[-1] // 2) & np.ones(shape, bool)


def windows(step, shape):
    """For each output of a pool, in flat order, the numbers of its inputs."""
    numbers, s = np.arange(int(np.prod(shape))).reshape(shape), step.settings["stride"]
    _, rows, columns, channels = step.shape
    return np.array(
        [
            numbers[0, r * s : r * s + 2, c * s : c * s + 2, f].ravel()
            for r, c, f in np.ndindex(rows, columns, channels)
        ]
    )


def forward(step, *values):
    a, b = values[0], values[-1]
    if step.op in ("dense", "conv"):
        w, _, bias = matrix(step, a.shape)
        return (a.ravel() @ w + bias).reshape(step.shape)
    if step.op == "act":
        return ACTIVATIONS[step.settings["name"]][0](a)
    if step.op in ("layer_norm", "rms_norm"):
        centre, below, scale, offset = norm(step, a)
        return a @ centre / below * scale + offset
    if step.op == "softmax":
        e = np.exp(a)
        return e / e.sum(-1, keepdims=True)
    if step.op == "affine":
        return a * step.arrays.get("a", 1.0) + step.arrays.get("c", 0.0)
    if step.op == "shuffle":
        return a.ravel()[order(step, a.shape)].reshape(a.shape)
    if step.op in ("max_pool", "avg_pool"):
        taken = a.ravel()[windows(step, a.shape)]
        return (taken.max(1) if step.op == "max_pool" else taken.mean(1)).reshape(step.shape)
    return {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "score": lambda: a @ b.T,
        "attend": lambda: a @ b,
        "maximum": lambda: np.maximum(a, b),
        "quotient": lambda: a / (1 + abs(b)),
        "mix": lambda: np.where(mask(a.shape), a, b),
        "flatten": lambda: a.ravel(),
    }[step.op]()


def backward(step, values, y, R, leads):
    """The relevances of the values that a step reads. leads: whether relevance gets to the input from each."""
    a, b = values[0], values[-1]
    takers = [leads[i] and i in receives(step) for i in range(len(values))]
    if step.op in ("dense", "conv"):
        w, connected, bias = matrix(step, a.shape)
        return [layer(step.rule, a.ravel(), w, connected, bias, R.ravel()).reshape(a.shape)]
    if step.op == "act":
        return [activation(step, a, y, R)]
    if step.op in ("add", "sub"):
        return summands(step, a, b, R, takers)
    if step.op in ("mul", "score", "attend"):
        return factors(step, a, b, R, takers)
    if step.op in ("layer_norm", "rms_norm"):
        centre, below, scale, offset = norm(step, a)
        R = affine_relevance(step.rule, a @ centre / below * scale, offset, R)
        if step.op == "rms_norm":
            return [R]  # an element is made of its own input alone, also where that is 0
        return [a * (divide(R, a @ centre) @ centre.T)]
    if step.op == "softmax":
        if gradient(step):
            return [y * (R - (y * R).sum(-1, keepdims=True))]
        if type(step.rule).__name__ == "Stop":
            return [np.zeros_like(a)]
        return [a * (R - y * R.sum(-1, keepdims=True))]
    if step.op == "affine":
        return [affine_relevance(step.rule, a * step.arrays.get("a", 1.0), step.arrays.get("c", 0.0), R)]
    if step.op == "shuffle":
        back = np.zeros(a.size)
        np.add.at(back, order(step, a.shape), R.ravel())
        return [back.reshape(a.shape)]
    if step.op in ("max_pool", "avg_pool"):
        back, places = np.zeros(a.size), windows(step, a.shape)
        for inputs, r in zip(places, R.ravel(), strict=True):
            terms = a.ravel()[inputs] / 4
            if step.op == "max_pool":
                wins = terms == terms.max()
                if (
                    step.writing % 2 == 0
                ):  # a window, of which the first wins; along an axis all that are largest do
                    wins = np.arange(wins.size) == wins.argmax()
                back[inputs] += wins * r / wins.sum()
            elif gradient(step):
                back[inputs] += r / 4
            else:
                back[inputs] += terms * share(r, terms.sum(), getattr(step.rule, "epsilon", 0.0))
        return [back.reshape(a.shape)]
    return {
        "maximum": lambda: [np.where(a >= b, R, 0.0), np.where(a >= b, 0.0, R)],
        "quotient": lambda: [R, np.zeros_like(b)],
        "mix": lambda: [np.where(mask(a.shape), R, 0.0), np.where(mask(a.shape), 0.0, R)],
        "flatten": lambda: [R.reshape(a.shape)],
    }[step.op]()


def run(program, x=None):
    """All values of a program."""
    values = [program.x if x is None else x]
    for step in program.steps:
        values.append(forward(step, *(values[i] for i in step.inputs)))
    return values


def explain(program, x=None, seed=None):
    """(the values, the relevance of every value)"""
    values = run(program, x)
    relevances = [np.zeros(v.shape) for v in values]
    relevances[-1] = program.seed if seed is None else seed
    leads = [True]
    for step in program.steps:
        leads.append(any(leads[step.inputs[i]] for i in receives(step)))
    for number in range(len(program.steps), 0, -1):
        step = program.steps[number - 1]
        read, passes = [values[i] for i in step.inputs], [leads[i] for i in step.inputs]
        given = backward(step, read, values[number], relevances[number], passes)
        for i, R in zip(step.inputs, given, strict=True):
            relevances[i] = relevances[i] + R
    return values, relevances
