"""The report's plot of error over time as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bicrossnet_ros.fix_record import FALSE_FIX_M, FixRecord
from bicrossnet_ros.report_map import bound_95_m, describe, grade, thinned

WIDTH, HEIGHT = 1000, 380
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 12, 74
REFUSED_Y = HEIGHT - 48


@dataclass(frozen=True)
class _Axes:
    """Linear time to the right, decades of metres upwards from 10^low to 10^high."""

    span_s: float
    low: int
    high: int

    def x(self, time_s: float) -> float:
        share = time_s / self.span_s if self.span_s > 0.0 else 0.5
        return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * share

    def y(self, value_m: float) -> float:
        """Values beyond the axis are drawn at its ends."""
        exponent = math.log10(max(value_m, 1e-9)) if math.isfinite(value_m) else self.high
        share = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def error_svg(records: Sequence[FixRecord]) -> str:
    """Error of every fix over time, with the bound that was claimed for it; refusals below."""
    shown = thinned(records)
    times_s = _times_s(shown)
    axes = _axes(shown, max(times_s, default=0.0))
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Error over time on a logarithmic scale">'
    ]
    for exponent in range(axes.low, axes.high + 1):
        y = axes.y(10.0**exponent)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="axis-y" x="{LEFT - 8}" y="{y + 5:.1f}">{10.0**exponent:g} m</text>'
        )
    y = axes.y(FALSE_FIX_M)
    parts.append(f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="axis-y" x="{LEFT - 8}" y="{REFUSED_Y + 5}">no fix</text>')
    parts += _time_axis(axes)
    parts += [
        _mark(axes, record, axes.x(time_s)) for record, time_s in zip(shown, times_s, strict=True)
    ]
    return ''.join([*parts, '</svg>'])


def _axes(records: Sequence[FixRecord], span_s: float) -> _Axes:
    values = [
        value
        for one in records
        if one.is_fix
        for value in (one.error_m, bound_95_m(one))
        if math.isfinite(value) and value > 0.0
    ]
    low = math.floor(math.log10(min(values))) if values else -1
    high = math.ceil(math.log10(max(values))) if values else 1
    return _Axes(span_s, min(max(low, -3), -1), max(high, 2))  # the limit of a false fix shows


def _times_s(records: Sequence[FixRecord]) -> list[float]:
    """Seconds since the first frame; the number of the frame where a stamp is missing."""
    stamps = [one.stamp_s for one in records]
    if not all(map(math.isfinite, stamps)):
        return [float(number) for number in range(len(records))]
    first_s = min(stamps, default=0.0)
    return [stamp_s - first_s for stamp_s in stamps]


def _time_axis(axes: _Axes) -> list[str]:
    """Ticks at a round step, about six of them, in seconds or minutes."""
    in_minutes = axes.span_s >= 300.0
    unit_s, word = (60.0, 'min') if in_minutes else (1.0, 's')
    span = axes.span_s / unit_s
    if span <= 0.0:
        return []
    base = 10.0 ** math.floor(math.log10(span / 6.0))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= span / 6.0)
    parts = []
    for number in range(int(span / step + 1e-9) + 1):
        x = axes.x(number * step * unit_s)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - 30}"/>'
            f'<text class="axis-x" x="{x:.1f}" y="{HEIGHT - 10}">{number * step:g} {word}</text>'
        )
    return parts


def _mark(axes: _Axes, record: FixRecord, x: float) -> str:
    """A dot at the error under a tick at the 95% bound, or a hollow dot in the row of refusals."""
    kind, bound_m = grade(record), bound_95_m(record)
    title = f'<title>{html.escape(describe(record))}</title>'
    if not record.is_fix:
        here = f'M{x:.1f} {REFUSED_Y}h0'
        return (
            f'<g>{title}<path class="dot no" d="{here}"/><path class="dot-hole" d="{here}"/></g>'
        )
    parts = []
    if math.isfinite(bound_m):
        parts.append(f'<path class="bound" d="M{x - 4:.1f} {axes.y(bound_m):.1f}h8"/>')
    if not math.isnan(record.error_m):
        parts.append(f'<path class="dot {kind}" d="M{x:.1f} {axes.y(record.error_m):.1f}h0"/>')
    return f'<g>{title}{"".join(parts)}</g>'
