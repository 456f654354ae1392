"""Small drawings for the page, as SVG. Colours are those of the page's style; each says in words what it shows."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 44

Band = tuple[str, str, Sequence[float], Sequence[float | None], Sequence[float | None]]
"""A name, a class of the style, the values of a curve, and the lower and the upper ends of their intervals."""


def histogram(
    edges: Sequence[float], counts: Sequence[int], label: str, unit: str, mark: float | None = None
) -> str:
    """Bars of counts between edges, with a line at `mark` if that lies among them.

    >>> histogram([0.0, 1.0, 2.0], [3, 1], "two bars", "share").count("<rect")
    2
    """
    low, high = edges[0], edges[-1]
    if mark is not None and low - (high - low) <= mark <= high + (high - low):
        low, high = min(low, mark), max(high, mark)
    across, up = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(0, max(*counts, 1), HEIGHT - BOTTOM, TOP)
    bars = "".join(
        f'<rect class="bar" x="{across(a):.1f}" y="{up(n):.1f}" width="{max(across(b) - across(a) - 1, 1):.1f}" '
        f'height="{up(0) - up(n):.1f}"/>'
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    if mark is not None and low <= mark <= high:
        bars += f'<line class="mark" x1="{across(mark):.1f}" x2="{across(mark):.1f}" y1="{TOP}" y2="{up(0):.1f}"/>'
    return _svg(bars + _axes(low, high, 0, max(*counts, 1), unit, "samples", whole=True), label)


def bars(names: Sequence[str], values: Sequence[float], label: str) -> str:
    """One bar for each name, from 0, with its value in per cent.

    >>> bars(["a<b"], [0.5], "one bar").count("a&lt;b")
    1
    """
    row, wide = 24, 220
    low, high = min(0.0, *values), max(1.0, *values)
    across = _scale(low, high, wide, WIDTH - 70)
    drawn = ""
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 6 + i * row
        left, right = sorted((across(0), across(value)))
        shown = name if len(name) <= 32 else f"…{name[-31:]}"
        drawn += (
            f'<text x="{wide - 8}" y="{y + 13}" text-anchor="end">{html.escape(shown)}</text>'
            f'<rect class="bar" x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="16"/>'
            f'<text x="{right + 6:.1f}" y="{y + 13}">{value:.1%}</text>'
        )
    return _svg(drawn, label, 12 + row * len(names))


def curves(x: Sequence[float], bands: Sequence[Band], label: str, across_unit: str, up_unit: str) -> str:
    """Curves with bands of their intervals; each has its own dashes, so that they are told apart without colours.

    >>> page = curves([0, 1], [("one", "first", [1, 2], [0.5, 1.5], [1.5, 2.5])], "a rising line", "regions", "score")
    >>> page.count("<polyline"), page.count("<polygon")
    (1, 1)
    """
    every = [v for _, _, mean, low, high in bands for v in (*mean, *low, *high) if v is not None]
    bottom, top = min(every, default=0.0), max(every, default=1.0)
    bottom, top = (bottom - 0.5, top + 0.5) if bottom == top else (bottom, top)
    to_x, to_y = _scale(min(x), max(x), LEFT, WIDTH - RIGHT), _scale(bottom, top, HEIGHT - BOTTOM, TOP)
    drawn = ""
    for _, style, _, low, high in bands:
        if all(v is not None for v in (*low, *high)):
            ends = [*zip(x, high, strict=True), *reversed(list(zip(x, low, strict=True)))]
            points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in ends if b is not None)
            drawn += f'<polygon class="band {style}" points="{points}"/>'
    for _, style, mean, _, _ in bands:
        points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in zip(x, mean, strict=True))
        drawn += f'<polyline class="curve {style}" points="{points}"/>'
    legend = "".join(
        f'<line class="curve {style}" x1="{LEFT + 4 + i * 165}" x2="{LEFT + 32 + i * 165}" y1="{HEIGHT + 8}" '
        f'y2="{HEIGHT + 8}"/><text x="{LEFT + 38 + i * 165}" y="{HEIGHT + 12}">{html.escape(name)}</text>'
        for i, (name, style, *_) in enumerate(bands)
    )
    return _svg(drawn + _axes(min(x), max(x), bottom, top, across_unit, up_unit) + legend, label, HEIGHT + 20)


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """About five round numbers from low to high.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= 5)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _axes(
    low: float, high: float, bottom: float, top: float, across: str, up: str, whole: bool = False
) -> str:
    to_x, to_y = _scale(low, high, LEFT, WIDTH - RIGHT), _scale(bottom, top, HEIGHT - BOTTOM, TOP)
    drawn = (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    )
    for value in ticks(low, high):
        drawn += (
            f'<text x="{to_x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    for value in ticks(bottom, top, whole):
        drawn += (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(value):.1f}" y2="{to_y(value):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{to_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    return (
        f'{drawn}<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across)}'
        f'</text><text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{html.escape(up)}</text>'
    )


def _svg(content: str, label: str, height: int = HEIGHT) -> str:
    words = html.escape(label)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{words}</title>{content}</svg>"
    )
