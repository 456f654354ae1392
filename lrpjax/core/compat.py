"""All that differs between JAX versions, or that JAX does not publish: the only module that may reach into
its internals.

Checked on jax 0.10.2 (Python 3.11), 0.11.2 and 0.12.0.1 (Python 3.12). What changes between them:
`get_bind_params` returns a pair or a dict; `scan` describes its operands by `num_consts`/`num_carry` or by
the flat trees `ft_in`/`ft_out`; `Jaxpr` and `ClosedJaxpr` are two types or one. The primitives that only some
of them have are marked in `primitives.ELSEWHERE`.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import config
from jax._src.core import trace_state_clean
from jax.extend import core, linear_util, source_info_util
from jax.interpreters import ad, batching, mlir

Literal = core.Literal
jaxpr_as_fun = core.jaxpr_as_fun
_JITTED = type(jax.jit(lambda x: x))


def _folders(*packages: str) -> tuple[str, ...]:
    """The folders that these packages lie in, wherever that is; none for a package that is not installed."""
    specs = [importlib.util.find_spec(p) for p in packages]
    places = [os.path.abspath(p) for s in specs if s for p in s.submodule_search_locations or ()]
    return tuple(os.path.join(p, "") for p in places)


_JAX = _folders("jax")
_HERE = _folders(__name__.partition(".")[0])
_MACHINERY = _folders("jax", "jaxlib", "flax", "keras", "torch", "torchax") + _HERE
# The layers of frameworks: what a model that is put together from nothing else knows of its places.
_LAYERS = tuple(
    os.path.join(folder, *place, "")
    for framework, place in [("keras", ("src", "layers")), ("torch", ("nn", "modules"))]
    for folder in _folders(framework)
)
# What calls all layers.
_CALLING = tuple(os.path.join(layers, file) for layers in _LAYERS for file in ("layer.py", "module.py"))
# Where the model of another framework is called: what it computes has its lines among the frames inside of that one.
_BRIDGES = tuple(
    os.path.join(here, *place) for here in _HERE for place in [("keras.py",), ("torch", "running.py")]
)
# Models, as a user's are; all else in this package is machinery.
_MODELS = tuple(
    os.path.join(here, *place)
    for here in _HERE
    for place in [("demo.py",), ("bow", ""), ("cli", "demos", "")]
)
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """Splits an open or closed jaxpr into its equations' holder (`.invars`, `.constvars`, `.eqns`,
    `.outvars`) and its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def bind(primitive: Any, params: dict, *values: Any) -> list:
    """Binds a primitive as the interpreter of the installed JAX does, and returns the list of its results."""
    bound = primitive.get_bind_params(params)
    if isinstance(bound, tuple):
        subfuns, bound = bound
        values = (*subfuns, *values)
    out = primitive.bind(*values, **bound)
    return list(out) if primitive.multiple_results else [out]


def scan_layout(params: dict) -> tuple[int, int]:
    """The number of constants and of carries among the operands of a `scan` equation."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def traced_at(eqn: Any, f: Any) -> Any:
    """The jaxpr of a function of an equation's operands, as if it stood in the place of the equation: with its
    source, and the axes of a `shard_map` around it. None where these are a part of the operands' types
    (`check_vma=True`), of which JAX makes no operands."""
    avals = [v.aval for v in eqn.invars]
    if any(getattr(getattr(a, "mat", None), "varying", None) for a in avals):
        return None
    operands = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
    mesh = eqn.ctx.cur_abstract_mesh
    manual = [(n, mesh.shape[n]) for n in getattr(mesh, "manual_axes", ())]
    with eqn.ctx.manager, source_info_util.user_context(eqn.source_info.traceback):
        return jax.make_jaxpr(f, axis_env=manual)(*operands)


def rewritten(closed: Any, calls: Mapping[str, str], exchange: Callable[[Any], Callable | None]) -> Any:
    """A closed jaxpr with equations exchanged, the bodies of calls in place of these, and loops and branches with
    bodies that are rewritten too. Equations keep their sources; those of JAX's own functions get their callers'.

    calls: where the body of a call is among its parameters, by the name of its primitive. exchange: of an equation,
    the function of its operands that is traced in its place and gives a list, or None where it stays.
    """

    def run(body: Any, args: Sequence[Any], site: Any = None) -> list:
        jaxpr, consts = open_jaxpr(body)
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        read = lambda v: v.val if isinstance(v, Literal) else env[v]
        for eqn in jaxpr.eqns:
            names = source_info_util.current_name_stack() + eqn.source_info.name_stack
            line = site or eqn.source_info.traceback
            with source_info_util.user_context(line, name_stack=names), eqn.ctx.manager:
                out = compute(eqn, [read(v) for v in eqn.invars], site)
            env.update(zip(eqn.outvars, out, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def compute(eqn: Any, values: list, site: Any) -> list:
        if eqn.primitive is custom_call:
            return run(jax.make_jaxpr(lambda *xs: eqn.params["call"](*xs))(*values), values)
        if eqn.primitive.name in calls:
            site = site or (eqn.source_info.traceback if is_library_call(eqn) else None)
            return run(eqn.params[calls[eqn.primitive.name]], values, site)
        eqn = eqn.replace(params={name: inner(value) for name, value in eqn.params.items()})
        function = exchange(eqn)
        return bind(eqn.primitive, eqn.params, *values) if function is None else function(*values)

    def inner(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(inner, value)) if any(hasattr(v, "jaxpr") for v in value) else value
        return again(value) if isinstance(value, core.ClosedJaxpr) else value

    def again(body: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype, weak_type=v.weak_type) for v in body.in_avals]
        return jax.make_jaxpr(lambda *xs: run(body, xs))(*shapes)

    return again(closed)


def scope_of(eqn: Any) -> str:
    """The named scopes of an equation, relative to the jaxpr it stands in, joined by '/', without
    `jit(...)`-like wrappers and without the formulas that `jnp.einsum` opens scopes for."""
    return "/".join(
        s.name for s in eqn.source_info.name_stack.stack if type(s).__name__ == "Scope" and "->" not in s.name
    )


@functools.cache
def _rank(file: str) -> int:
    """How well a line of this file tells users where they are: their own file is 0, code without a file
    (a prompt, a string) is 1, another installed package is 2, a layer of Keras or torch is 3, machinery is 4.

    What a file belongs to is told by where it lies, not by the interpreter's paths: environments may be
    layered, and JAX need not lie in the interpreter's own.
    """
    if file.startswith("<"):
        return 4 if file.startswith("<frozen ") else 1
    file = os.path.abspath(file)
    if file.startswith(_MODELS):
        return 0
    if file.startswith(_MACHINERY):
        return 3 if file.startswith(_LAYERS) and file not in _CALLING else 4
    installed = {"site-packages", "dist-packages"} & set(file.split(os.sep))
    return 2 if installed or file.startswith(_STANDARD_LIBRARY) else 0


def source_of(*eqns: Any) -> str:
    """`file:line (function)` of the innermost frame of the user's own code that made an equation, or one of
    the equations that hold it.

    Frames of JAX, flax, Keras, torch and lrpjax are passed over; frames of other installed packages serve when
    there is no
    frame outside them, and before those that only call a model of another framework.
    """
    tracebacks = [e.source_info.traceback for e in eqns if e.source_info.traceback is not None]
    best = _telling([(f.file_name, f.line_num, f.function_name) for t in tracebacks for f in t.frames])
    return source_info_util.summarize(eqns[0].source_info) if best is None else best


def running() -> str:
    """`file:line (function)` of the user's code that is running, as `source_of` tells it of an equation."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname))
        frame = frame.f_back
    return _telling(frames) or "an unknown line"


def stacklevel() -> int:
    """The `stacklevel` with which the caller's warnings name the line of the user's code that is running."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and _rank(frame.f_code.co_filename) == 4:
        level, frame = level + 1, frame.f_back
    return level if frame is not None else 2


def _telling(frames: Sequence[tuple[str, int, str]]) -> str | None:
    """The frame, of some from the innermost outwards, that tells users best where they are."""
    bridge = next((i for i, (file, *_) in enumerate(frames) if file.startswith(_BRIDGES)), 0)
    for among in (frames[:bridge], frames):
        best = min(among, key=lambda frame: _rank(frame[0]), default=None)
        if best is not None and _rank(best[0]) < 4:
            return f"{best[0]}:{best[1]} ({best[2]})"
    return None


def is_library_call(eqn: Any) -> bool:
    """Whether an equation calls a function of JAX. JAX traces those once: their equations name the line of
    their first use.

    Not those of flax: what `jax.jit(module.apply)`, `nn.remat` and their like hold is the user's module.
    """
    for body in eqn.params.values():
        info = str(getattr(getattr(open_jaxpr(body)[0], "debug_info", None), "func_src_info", None) or "")
        if info.rpartition(" at ")[2].startswith(_JAX):
            return True
    return False


def is_float(aval: Any) -> bool:
    """Whether values of this type can carry relevance: real or complex floating-point numbers."""
    return jax.dtypes.issubdtype(aval.dtype, jnp.inexact)


def is_narrow(aval: Any) -> bool:
    """Whether values of this type are floating-point numbers of eight bits or fewer."""
    return is_float(aval) and aval.dtype.itemsize == 1


def is_known(array: Any) -> bool:
    """Whether an array's elements can be looked at while tracing."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Arrays typed as varying over the same manual axes of a `shard_map`, as `primitive.bind` wants them."""
    axes = [getattr(getattr(jax.typeof(a), "mat", None), "varying", frozenset()) for a in arrays]
    union = frozenset().union(*axes)
    return [
        a if own == union else lax.pcast(a, tuple(union - own), to="varying")
        for a, own in zip(arrays, axes, strict=True)
    ]


# ---------------------------------------------------------------------------------------------- late values
# What is computed from constants alone is computed by XLA when compiling (slow for kernels), and on the CPU
# at the very start of a run, all of it at once (memory). `late` ties an array to another that comes later: it
# is that array, but XLA cannot know.

_late = core.Primitive("lrpjax_late")


def late(array: jax.Array, after: jax.Array) -> jax.Array:
    """`array`, available to the compiler only once `after` is. Batching `after` does not batch the result."""
    return _late.bind(array, after)


def _late_lowered(ctx: Any, array: Any, after: Any) -> Any:
    """A barrier, which needs nothing of other devices. On a CPU alone, whose compiler takes barriers out before it
    orders the program, an element of `after` that is looked at: of an array that lies on several devices it would
    have to be sent to all of them."""
    context = ctx.module_context
    alone = getattr(context.axis_context, "num_devices", None) == 1
    own = _late_by_element if alone and tuple(context.platforms) == ("cpu",) else _late_by_barrier
    return mlir.lower_fun(own, multiple_results=False)(ctx, array, after)


def _late_by_barrier(array: jax.Array, after: jax.Array) -> jax.Array:
    return lax.optimization_barrier((array, after))[0]


def _late_by_element(array: jax.Array, after: jax.Array) -> jax.Array:
    if not after.size:
        return array
    probe = lax.reshape(lax.slice(after, [0] * after.ndim, [1] * after.ndim), ())
    # A square root is dear enough for XLA to compute it once. Else it copies all that `after` is a sum of
    # into whatever reads the array.
    probe = lax.sqrt(lax.real(probe) if jnp.iscomplexobj(probe) else probe)
    impossible = (probe != probe) & (probe > 0)
    return lax.select(jnp.broadcast_to(impossible, array.shape), jnp.zeros_like(array), array)


def _late_jvp(primals: Any, tangents: Any) -> Any:
    return _late.bind(*primals), tangents[0]


def _late_batch(args: Any, dims: Any) -> Any:
    return _late.bind(*args), dims[0]


_late.def_impl(lambda array, after: jnp.asarray(array))
_late.def_abstract_eval(lambda array, after: array)
mlir.register_lowering(_late, _late_lowered)
ad.primitive_jvps[_late] = _late_jvp
batching.primitive_batchers[_late] = _late_batch


# --------------------------------------------------------------------------------------------- custom calls
# The primitive of `custom_relevance`: a call that stays visible in the jaxpr under jit, vmap, remat and scan,
# and is its function to everything else.

custom_call: Any = core.Primitive("custom_relevance_call")
custom_call.multiple_results = True


def _custom_shapes(*avals: Any, call: Any) -> list:
    shapes = jax.eval_shape(call, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return [jax.core.ShapedArray(s.shape, s.dtype) for s in shapes]


def _custom_jvp(primals: Any, tangents: Any, *, call: Any) -> Any:
    return jax.jvp(
        lambda *values: call(*values), tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents)
    )


def _custom_batch(args: Any, dims: Any, *, call: Any) -> Any:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    moved = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, dims, strict=True)
    ]
    out = custom_call.bind(*moved, call=call.batched())
    return out, [0] * len(out)


custom_call.def_impl(lambda *values, call: call(*values))
custom_call.def_abstract_eval(_custom_shapes)
mlir.register_lowering(
    custom_call, mlir.lower_fun(lambda *values, call: call(*values), multiple_results=True)
)
ad.primitive_jvps[custom_call] = _custom_jvp
batching.primitive_batchers[custom_call] = _custom_batch


# ----------------------------------------------------------------------------------------- what is called


def kernel_name(eqn: Any) -> str:
    """The name of the kernel, or of the foreign function, that an equation runs; "" if it runs none."""
    params = eqn.params
    if eqn.primitive.name == "pallas_call":
        described, info = params.get("name_and_src_info"), getattr(params["jaxpr"], "debug_info", None)
        named = getattr(described, "name", None) or params.get("name") or getattr(info, "func_name", None)
        return str(named or "")
    return str(params.get("target_name") or "") if eqn.primitive.name == "ffi_call" else ""


def defined_in(jaxpr: Any) -> str:
    """The file of the function that a jaxpr was traced from, relative to the folder of JAX; "" for others."""
    info = str(getattr(getattr(open_jaxpr(jaxpr)[0], "debug_info", None), "func_src_info", None) or "")
    file = info.rpartition(" at ")[2].rpartition(":")[0]
    folder = next((f for f in _JAX if file.startswith(f)), None)
    return "" if folder is None else file[len(folder) :].replace(os.sep, "/")


def arguments_of(eqn: Any) -> tuple[tuple, Any, list]:
    """(the static arguments, the tree of the others, the batched axes) of a call of a `custom_vjp` function: the
    values of `nondiff_argnums`, in their order; the treedef of the tuple of all else, or None if it is not known; for
    each `vmap` around the call, the outermost first, the axes of the operands that it maps over.

    JAX keeps neither among the parameters, but hands both to the function that runs the derivative.
    """
    static: tuple = ()
    tree = None
    batched: list = []
    seen: set[int] = set()
    stack = [eqn.params.get("bwd")]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, linear_util.WrappedFun):
            transforms: Any = item.transforms
            for function, given in transforms:
                name = getattr(function, "__name__", "")
                if name == "_prepend_static_args":
                    static = tuple(a.val for a in given[0])
                elif name == "_flatten_bwd":
                    tree = given[0]
            stack.append(item.f)
            stack += [one for _, given in transforms for one in given]
        elif isinstance(item, functools.partial):
            stack += [item.func, *item.args]
        elif isinstance(item, (tuple, list)):
            stack += item
        elif callable(item) and getattr(item, "__closure__", None):
            names = item.__code__.co_freevars
            held = {n: c.cell_contents for n, c in zip(names, item.__closure__, strict=True) if _filled(c)}
            if "out_dim_dests" in held:
                batched.append(held.pop("out_dim_dests"))
            stack += held.values()
    return static, tree, batched


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def places_in_arguments(eqn: Any, number: int) -> list[int]:
    """Which operands of a primitive that `equinox.internal.filter_primitive_bind` bound are leaves of its argument of
    this number."""
    params = eqn.params
    sizes = [child.num_leaves for child in params["treedef"].children()]
    first = sum(sizes[:number])
    dynamic = [i for i, leaf in enumerate(params["static"]) if type(leaf) is object]  # its sign for an array
    return [place for place, i in enumerate(dynamic) if first <= i < first + sizes[number]]


def has_derivative(primitive: Any) -> bool:
    """Whether JAX can differentiate a primitive."""
    return primitive in ad.primitive_jvps


# ----------------------------------------------------------------------------------- what a call depends on


def settings() -> Any:
    """JAX's settings that traced programs depend on, hashable: the precisions, the mesh that is set and so on."""
    return config.trace_context()


def tracing() -> bool:
    """Whether a transformation of JAX is going on, or compiling is switched off."""
    return not trace_state_clean() or jax.config.jax_disable_jit


def is_jitted(thing: Any) -> bool:
    """Whether it is a function that `jax.jit` made."""
    return isinstance(thing, _JITTED)


def version_of_tensor(thing: Any) -> int | None:
    """How often a torch tensor was written to; None for anything else."""
    torch = sys.modules.get("torch")
    return thing._version if torch is not None and isinstance(thing, torch.Tensor) else None


def is_users_file(file: str) -> bool:
    """Whether code is none of an installed package, nor of Python itself; what has no file is the user's."""
    return _rank(file) < 2


def is_users(module: str | None) -> bool:
    """Whether a module is none of an installed package, nor of Python itself; one that nobody knows is the user's."""
    known = sys.modules.get(module or "")
    file = getattr(known, "__file__", None)
    if file is not None:
        return is_users_file(file)
    origin = getattr(getattr(known, "__spec__", None), "origin", None)
    return module != "builtins" and origin not in ("built-in", "frozen")
