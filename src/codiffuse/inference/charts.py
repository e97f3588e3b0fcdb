"""Charts of the report page as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

MAX_POINTS = 200  # of a curve: more than it has pixels to show
MAX_PITCH = 48  # from bar to bar: a few bars do not fill the width


def residual_curve(trace: Sequence[dict[str, float | None]], sigma: float | None, alt: str) -> str:
    """Residual over the steps on a logarithmic scale, with the noise level as a dashed line.

    Args:
        trace: one dict a step with `step` and `residual`; a residual that is None, or not positive, leaves a gap.
        sigma: noise level in the units of the residual; None draws no line.
        alt: what the chart shows, for those who do not see it.

    Returns:
        An `<svg>` element; empty when fewer than two residuals can be drawn.
    """
    points = [(record["step"], record["residual"]) for record in trace if (record["residual"] or 0) > 0]
    if len(points) < 2:
        return ""
    points = points[:: math.ceil(len(points) / MAX_POINTS)] + points[-1:]
    width, height, left, right, top, bottom = 320, 170, 44, 312, 10, 138
    values = [value for _, value in points] + ([sigma] if sigma else [])
    lo, hi = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    first, last = points[0][0], points[-1][0]

    def x(step: float) -> float:
        return left + (right - left) * (step - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - lo) / (hi - lo)

    ticks = "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="end" x="{left - 6}" y="{y(tick) + 4:.1f}">{tick:g}</text>'
        for tick in _log_ticks(lo, hi)
    )
    noise = ""
    if sigma:
        noise = (
            f'<line class="reference" x1="{left}" x2="{right}" y1="{y(sigma):.1f}" y2="{y(sigma):.1f}"/>'
            f'<text x="{left + 4}" y="{y(sigma) - 5:.1f}">noise level</text>'
        )
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">{ticks}{noise}'
        f'<polyline class="curve" points="{path}"/>'
        f'<text x="{left}" y="{bottom + 18}">step {first:g}</text>'
        f'<text class="end" x="{right}" y="{bottom + 18}">{last:g}</text></svg>'
    )


def gain_bars(gains: Sequence[tuple[str, str, float]], mean: float) -> str:
    """One bar an image, the largest gain first, each a link to its card.

    Args:
        gains: (id, anchor on the page, gain in dB) of each image.
        mean: mean gain in dB, drawn as a dashed line.

    Returns:
        An `<svg>` element.
    """
    ordered = sorted(gains, key=lambda item: -item[2])
    width, left, right, top, bottom = 640, 58, 632, 12, 168
    lo, hi = min(0.0, ordered[-1][2]), max(0.0, ordered[0][2])
    pitch = min((right - left) / len(ordered), MAX_PITCH)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - lo) / max(hi - lo, 1e-9)

    bars = "".join(
        f'<a href="#{anchor}"><rect class="{"worse" if value < 0 else "better"}" '
        f'x="{left + (i + 0.125) * pitch:.1f}" y="{min(y(value), y(0)):.1f}" '
        f'width="{0.75 * pitch:.1f}" height="{max(abs(y(value) - y(0)), 1):.1f}">'
        f"<title>{escape(name)}: {value:+.2f} dB</title></rect></a>"
        for i, (name, anchor, value) in enumerate(ordered)
    )
    labels = "".join(
        f'<text class="end" x="{left - 6}" y="{y(value) + 4:.1f}">{value:+.1f}</text>'
        for value in {lo, hi} - {0.0}
        if abs(y(value) - y(0)) > 14
    )
    return (
        f'<svg class="chart wide" viewBox="0 0 {width} 180" role="group" aria-label="Gain of each image in dB">{bars}'
        f'<line class="axis" x1="{left}" x2="{right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>'
        f'<line class="reference" x1="{left}" x2="{right}" y1="{y(mean):.1f}" y2="{y(mean):.1f}"/>'
        f'<text class="end" x="{right}" y="{y(mean) - 5:.1f}">mean {mean:+.2f} dB</text>'
        f'<text class="end" x="{left - 6}" y="{y(0) + 4:.1f}">0</text>{labels}</svg>'
    )


def _log_ticks(lo: float, hi: float) -> list[float]:
    """1, 2 and 5 times powers of ten from 10^lo to 10^hi; powers of ten alone where these are many."""
    exponents = range(math.floor(lo), math.ceil(hi) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
        inside = [tick for tick in ticks if lo <= math.log10(tick) <= hi]
        if len(inside) <= 5:
            break
    return inside
