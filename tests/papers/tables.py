"""Pages of results with several tables, and in how many of their columns one method beats another."""

import datetime
import platform

import jax
from common import RESULTS, always_above, interval

import lrpjax


def cell(values):
    """Mean ± half-width, with fewer decimals of large figures and more of small ones."""
    mean, half = interval(values)
    digits = 0 if abs(mean) >= 100 else 2 if abs(mean) >= 0.05 else 4
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def write_tables(name, title, settings, tables, findings):
    """As common.write, for several tables: {heading: {row: {column: values of all seeds}}}."""
    lines = [f"# {title}", "", f"{datetime.date.today()}, lrpjax {lrpjax.__version__}, jax {jax.__version__}, "
             f"Python {platform.python_version()}, CPU. {settings}", ""]  # fmt: skip
    for heading, rows in tables.items():
        columns = list(next(iter(rows.values())))
        lines += [
            f"## {heading}",
            "",
            "| | " + " | ".join(columns) + " |",
            "| --- |" + " --- |" * len(columns),
        ]
        lines += [
            f"| {row} | " + " | ".join(cell(values[c]) for c in columns) + " |"
            for row, values in rows.items()
        ]
        lines.append("")
    lines += [
        "## Findings",
        "",
        "“Above” and “below” mean: beyond the 95 % interval of paired differences.",
        "",
    ]
    lines += [*(f"- {finding}" for finding in findings), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def against(rows, methods, other):
    """A finding: where each method is above the other beyond the interval of paired differences, and where below."""
    found = [f"Against {other}:"]
    for method in methods:
        columns = list(rows[method])
        above, below = (always_above(rows[a], rows[b]) for a, b in ((method, other), (other, method)))
        found.append(f"{method}: above {_places(columns, above)}; below {_places(columns, below)}.")
    return "\n  - ".join(found)


def _places(columns, held):
    """Columns begin with a word for a setting: where all of several columns of a setting hold, only the word is given."""
    where = [column for column, yes in zip(columns, held, strict=True) if yes]
    if len(where) in (0, len(held)):
        return "everywhere" if where else "nowhere"
    family = lambda column: column.split()[0].rstrip(",")
    size = lambda columns, column: sum(family(c) == family(column) for c in columns)
    whole = lambda column: size(where, column) == size(columns, column) > 1
    named = dict.fromkeys(family(column) if whole(column) else column for column in where)
    return f"in {len(where)} of {len(held)} ({'; '.join(named)})"
