"""How exact z⁺, α2β1 and γ are where the sign of inputs is not known: `python tests/benchmarks/widths.py [--markdown FILE]`.

One dense layer of 16 outputs and 4 rows, with weights that lean against the first row: the further, the smaller are its
positive contributions against all contributions. Errors are ‖R − R₆₄‖₁ / ‖R₆₄‖₁ of the first row and the largest of the
others, against float64, one connection at a time. In float32 positive and negative sums are found as differences of z and
|x||w|; in half precision x is split into x⁺ and x⁻ (see the docstring of `lrpjax.rules.layers`).
"""

import argparse
import datetime
import pathlib
import sys

import bench
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "rules"))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import test_halves as halves

import lrpjax

WIDTHS, LEANS, DTYPES = (9, 64, 768, 4096, 16384), (0, -1, -4, -30), ("float32", "bfloat16", "float16")
NAMES = ("z+", "alpha2 beta1", "gamma")


def rows():
    for dtype in DTYPES:
        for width in WIDTHS:
            for lean in LEANS:
                cast = lambda a, dtype=dtype: jnp.asarray(a, dtype)
                exact = lambda a, cast=cast: np.asarray(cast(a), np.float64)
                x, w, b, R = halves.case(width, lean, np.float32)
                contributions = exact(x)[:1, :, None] * exact(w)
                share = np.maximum(contributions, 0).sum(1) / np.abs(contributions).sum(1)
                errors = []
                for name in NAMES:
                    rule = halves.RULES[name]
                    explain = lrpjax.relevance(
                        lambda x, w, b: x @ w + b, halves.composite(rule), target=cast(R)
                    )
                    found = np.asarray(explain(cast(x), cast(w), cast(b)), np.float64)
                    wanted = halves.by_connection(rule, *map(exact, (x, w, b, R)))
                    error = np.abs(found - wanted).sum(1) / np.abs(wanted).sum(1)
                    errors += [error[0], error[1:].max()]
                yield dtype, width, f"{share.min():.0e}", *(f"{e:.0e}" for e in errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    head = [
        "type",
        "width",
        "least positive share",
        *(f"{n}{more}" for n in NAMES for more in ("", ", others")),
    ]
    lines = [
        f"What `tests/benchmarks/widths.py` says, whose docstring explains it ({datetime.date.today()}, jax {jax.__version__}, "
        f"{bench.processor()}).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * 2 + " ---: |" * (len(head) - 2),
    ]
    for row in rows():
        lines.append("| " + " | ".join(map(str, row)) + " |")
        print(lines[-1], flush=True)
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
