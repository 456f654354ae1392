"""Other people's PyTorch models through `lrpjax.torch`: `python tests/world/torch_models.py [NAMES OR GLOBS] [--list] [...]`.

For each model, in float64: the forward value is torch's; the plan has named units, and none that no rule is known for;
`jax.jit` changes nothing; an audit closes; input × gradient is that of torch's autograd; relevance is finite under a fitting
composite; and LXT and zennit give the same where they know the model. Not part of the default tests: it wants an
environment of its own, and another for LXT, which does not import beside transformers 5 (there, models of collections that
are missing are left out, and peers that are missing are named),

    pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0 timm==1.0.31 torchax==0.0.13 .
    pip install --no-deps zennit==0.5.1 lxt==2.1

    pip install torch==2.13.0 transformers==4.57.6 torchax==0.0.13 .
    pip install --no-deps zennit==0.5.1 lxt==2.1

Nothing is downloaded. Columns: the largest difference from torch's output over the largest output; units of the plan; the
largest difference that jit makes, of the largest relevance; what the audit leaves open, of all relevance in it; the largest
difference from torch's input × gradient, and from peers, each of the largest value; seconds of it all.
"""

import argparse
import dataclasses
import datetime
import fnmatch
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
import traceback
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Small programs, run once: compiling is what takes the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
warnings.filterwarnings("ignore")  # of the collections, which torch has moved on from

# ruff: noqa: E402
import check
import jax
import jax.numpy as jnp
import numpy as np
import torch_peers
import torch_zoo

import lrpjax
import lrpjax.torch
from lrpjax import composites

jax.config.update("jax_enable_x64", True)

COMPOSITES = {
    torch_zoo.IMAGE: composites.epsilon_plus,
    torch_zoo.TOKENS: composites.attnlrp,
    torch_zoo.GATED: composites.mambalrp,
}

EXACT = 1e-10
"""Largest difference that passes where all is float64, unless torch's own values move by more than a tenth of their
difference where the inputs change in their last digit (`torch_peers.moved`: efficientnet_v2_s, which is deep)."""

SINGLE = 1e-6
"""And where the module itself computes a part in float32 (the norms of Llama, say), which is rounded in another order; ten
times that for input × gradient, which is rounded on the way back as well."""

REST = 1e-8
"""Largest part of the relevance that an audit may leave open."""


@dataclasses.dataclass
class Row:
    """One line of the table; `failures` empty means a pass. peers: {peer and method: difference}. single: what the module
    computes in float32. strange: units that no rule of the literature is about. said: the notes of the plan."""

    name: str
    forward: float = float("nan")
    units: int = 0
    jit: float = float("nan")
    audit: float = float("nan")
    gradient: float = float("nan")
    peers: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = float("nan")
    single: bool = False
    strange: list[str] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


def examine(name: str, *, eager: bool, quick: bool, verbose: bool) -> Row:
    """All checks of one model."""
    row, start = Row(name), time.perf_counter()
    try:
        _examine(row, eager, quick)
    except Exception as error:
        row.failures.append(_brief(error))
        if verbose:
            traceback.print_exc()
    row.seconds = time.perf_counter() - start
    jax.clear_caches()
    return row


def _examine(row: Row, eager: bool, quick: bool) -> None:
    network = torch_zoo.build(row.name)
    y, expected = torch_peers.gradient(network)
    f, params = lrpjax.torch.function(
        network.module, output=network.output, **network.inputs, **network.fixed
    )
    given = [jnp.asarray(v.numpy()) for v in network.inputs.values()]
    options = {"argnums": 1} if network.at is None else {"argnums": 1, "at": network.at.replace(".", "/")}
    row.single = re.search(r"\b(b?f16|f32)\[", str(jax.make_jaxpr(f)(params, *given))) is not None
    least = SINGLE if row.single else EXACT
    value, gradient = torch_peers.moved(network)
    limit, limit_of_gradient = (
        max(least, 10 * value),
        max(10 * least if row.single else least, 10 * gradient),
    )

    composite = COMPOSITES[network.kind]()
    plan = lrpjax.plan(f, composite, params, *given, **options)
    row.units, row.said = len(plan), [str(note) for note in plan.notes]
    names = {name.replace(".", "/") for name, _ in network.module.named_modules()}
    row.strange = [f"{n} × {kind}" for kind, n in check.unrecognised(plan).items()]
    row.failures += [kind for kind in row.strange if "unknown" in kind]
    row.failures += [f"{unit.kind}: {unit.path}" for unit in plan.units if unit.kind == "call"]
    strange = [unit.path for unit in plan.units if unit.path and unit.path not in names]
    if strange:
        row.failures.append(f"paths of no module: {', '.join(strange[:3])}")
    row.failures += [f"says {s}" for s in row.said if not any(part in s for part in network.expected)]

    hot = lambda y: jnp.where(jnp.arange(y.size) == jnp.argmax(jnp.abs(y)), y.reshape(-1), 0).reshape(y.shape)
    if quick:
        row.forward = difference(jax.jit(f)(params, *given), y)
        hold(row, "forward", row.forward, limit)
        return
    explain = lrpjax.value_and_relevance(f, composite, target=hot, **options)
    value, R = jax.jit(explain)(params, *given)
    row.forward = difference(value, y)
    hold(row, "forward", row.forward, limit)
    if not np.all(np.isfinite(R)) or not np.any(R):
        row.failures.append("relevance is not finite, or nowhere")
    if eager:
        row.jit = difference(explain(params, *given)[1], R)
        hold(row, "jit", row.jit, limit_of_gradient)

    audit = jax.jit(lrpjax.audit(f, composite, target=hot, **options))(params, *given)
    row.audit = abs(float(audit.rest)) / max(
        [float(audit.size), *(float(u.size_out / u.turns) for u in audit.units)]
    )
    hold(row, "audit", row.audit, SINGLE if row.single else REST)

    one = lambda y: jnp.where(hot(y) != 0, 1.0, 0.0).astype(y.dtype)
    plain = lrpjax.relevance(f, composites.input_x_gradient(), target=one, **options)
    R = np.asarray(jax.jit(plain)(params, *given))
    row.gradient = difference(R, expected)
    if row.gradient > limit_of_gradient and network.at is None:
        ours, theirs = torch_peers.slopes(network, R)
        if ours < 1e-6 < 1e-3 < theirs:
            row.said.append(
                f"torch's own derivative is wrong, by {theirs:.1g} from difference quotients of its outputs: "
                "these are compared with instead"
            )
            row.gradient, limit_of_gradient = ours, 1e-6
    hold(row, "input × gradient", row.gradient, limit_of_gradient)

    for peer, method, bound, theirs, ours in torch_peers.of(row.name, network):
        try:
            S = theirs()
        except ImportError as error:
            row.said.append(f"without {peer}: {error}")
            continue
        R = jax.jit(lrpjax.relevance(f, ours, target=hot, **options))(params, *given)
        row.peers[f"{peer} {method}"] = difference(R, S)
        hold(row, f"{peer} {method}", row.peers[f"{peer} {method}"], max(bound, least, 10 * gradient))


def hold(row: Row, what: str, error: float, limit: float) -> None:
    if not error <= limit:
        row.failures.append(f"{what}: {error:.1e} > {limit:.0e}")


def difference(a: object, b: object) -> float:
    """The largest difference, over the largest value of the second."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] + list(
        getattr(error, "__notes__", ())
    )
    return f"{type(error).__name__}: {' | '.join(lines)[:600]}"


HEAD = ("model", "forward", "units", "jit", "audit", "input × gradient", "peers", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    show = lambda value: "–" if np.isnan(value) else f"{value:.0e}"
    peers = ", ".join(f"{peer} {show(error)}" for peer, error in row.peers.items()) or "–"
    single = " (float32 inside)" if row.single else ""
    numbers = (show(row.jit), show(row.audit), show(row.gradient), peers, f"{row.seconds:.0f}")
    failed = " **fails**" if row.failures else ""
    return (row.name + single + failed, show(row.forward), str(row.units), *numbers)


def markdown(rows: list[Row]) -> str:
    """The table, what failed and why, and with what it was made."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES if version(name))
    failed = [row for row in rows if row.failures]
    strange = [row for row in rows if row.strange]
    lines = [
        "# PyTorch models through `lrpjax.torch`",
        "",
        f"{datetime.date.today()}, {versions}, Python {platform.python_version()}, CPU. {len(rows) - len(failed)} of "
        f"{len(rows)} models pass. Columns: {' '.join(__doc__.split('Columns: ')[1].split())} All is computed in float64, but for what a module itself "
        "casts to float32. LXT's relevances of models of transformers are from the second environment, with torch 2.13.0 and transformers 4.57.6. The "
        "column jit is filled where the script was run with `--eager`, which takes long.",
        "",
        f"| {' | '.join(HEAD)} |",
        "| --- " * len(HEAD) + "|",
        *(f"| {' | '.join(cells(row))} |" for row in rows),
    ]
    if failed:
        lines += ["", "## Failures", "", *(f"- {row.name}: {'; '.join(row.failures)}" for row in failed)]
    if strange:
        lines += ["", "## Units that no rule of the literature is about", ""]
        lines += [f"- {row.name}: {', '.join(row.strange)}" for row in strange]
    said = [row for row in rows if any("derivative is wrong" in text for text in row.said)]
    if said:
        lines += ["", "## Where torch's own derivative is wrong", ""]
        lines += [f"- {row.name}: {next(t for t in row.said if 'derivative is wrong' in t)}" for row in said]
    return "\n".join(lines) + "\n"


def earlier(file: str) -> list[Row]:
    with open(file) as text:
        return [Row(**row) for row in json.load(text)]


def merged(runs: list[list[Row]]) -> list[Row]:
    """The rows of several runs by the order of the zoo: of a model in more than one the last, with the peers of all."""
    found: dict[str, Row] = {}
    for row in (row for rows in runs for row in rows):
        if row.name in found:
            row.peers = {**found[row.name].peers, **row.peers}
        found[row.name] = row
    return [found[name] for name in torch_zoo.MODELS if name in found]


PACKAGES = ("lrpjax", "jax", "torch", "torchax", "torchvision", "transformers", "timm", "zennit", "lxt")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], help="names or globs of models; all without")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of every failure")
    parser.add_argument(
        "--eager", action="store_true", help="compare with runs without jit as well, which take long"
    )
    parser.add_argument("--quick", action="store_true", help="look at the forward value and the plan alone")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file as well")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file as well")
    parser.add_argument(
        "--merge",
        nargs="+",
        default=[],
        metavar="FILE",
        help="put the rows of earlier runs (--json) into the table",
    )
    options = parser.parse_args()
    names = list(dict.fromkeys(n for g in options.names for n in torch_zoo.MODELS if fnmatch.fnmatch(n, g)))
    if options.list:
        print("\n".join(names))
        return 0
    rows = []
    for name in names:
        package = name.partition("/")[0]
        if package in ("torchvision", "transformers", "timm") and not version(package):
            print(f"{name} is left out: there is no {package}", flush=True)
            continue
        rows.append(row := examine(name, eager=options.eager, quick=options.quick, verbose=options.verbose))
        print("  ".join(cells(row)), flush=True)
        for text in dict.fromkeys(row.said):
            print(f"    says {text}", flush=True)
        for failure in row.failures:
            print(f"    FAILED {failure}", flush=True)
        if options.json:
            with open(options.json, "w") as file:
                json.dump([vars(row) for row in rows], file, indent=1)
    passed = sum(not row.failures for row in rows)
    print(f"{passed} of {len(rows)} models pass")
    if options.markdown:
        rows = merged([*map(earlier, options.merge), rows])
        with open(options.markdown, "w") as file:
            file.write(markdown(rows))
    return 0 if passed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
