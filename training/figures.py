"""Accuracy against cost (figure 2 of the paper), and the style of all figures.

Colours are told apart in gray and by colour-blind readers too: right and wrong carry a sign,
kinds of networks a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from numpy.typing import NDArray

RIGHT, WRONG, NEUTRAL, FAINT = '#1b8a3a', '#c8252c', '#444444', '#8a8a8a'
# Where a name may stand: direction from its point, alignment; and distances, in points.
SIDES = (
    (1, 0, 'left', 'center'),
    (-1, 0, 'right', 'center'),
    (0, 1, 'center', 'bottom'),
    (0, -1, 'center', 'top'),
    (0.7, 0.7, 'left', 'bottom'),
    (0.7, -0.7, 'left', 'top'),
    (-0.7, 0.7, 'right', 'bottom'),
    (-0.7, -0.7, 'right', 'top'),
)
DISTANCES = (6, 13, 20, 27, 34)
STYLE: dict[str, Any] = {
    'font.size': 8,
    'axes.titlesize': 9,
    'axes.labelsize': 8.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'bicrossnet',
}


@dataclass(frozen=True)
class Point:
    """A network in the plane of cost and accuracy.

    Attributes
    ----------
    label : str
        Its name.
    ops_g : float
        10^9 operations.
    percent : float
        Accuracy.
    kind : str
        One of `KINDS`.
    """

    label: str
    ops_g: float
    percent: float
    kind: str


# Of each kind: words for the legend, and how its points look.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    'measured': (
        'this evaluation',
        {
            'marker': 'o',
            's': 30,
            'zorder': 4,
            'color': '#0b62a4',
            'edgecolor': 'black',
            'linewidth': 0.6,
        },
    ),
    'paper_binary': (
        'paper, binary',
        {
            'marker': 's',
            's': 44,
            'zorder': 3,
            'color': '#e08214',
            'edgecolor': 'black',
            'linewidth': 0.6,
        },
    ),
    'paper_float': (
        'paper, full precision',
        {
            'marker': '^',
            's': 34,
            'zorder': 3,
            'facecolor': 'white',
            'edgecolor': '#555555',
            'linewidth': 1.0,
        },
    ),
}


def accuracy_figure(
    panels: Sequence[tuple[str, Sequence[Point]]],
    *,
    y_label: str,
    note: str = '',
    columns: int = 2,
) -> Figure:
    """Plot accuracy against operations, a panel each, on one logarithmic axis of cost.

    Parameters
    ----------
    panels : sequence of (title, points)
        In reading order.
    y_label : str
        The accuracy, with its unit.
    note : str
        Small print below.
    columns : int
        Panels beside each other.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        height = 2.75 * rows + 0.65
        figure = Figure(figsize=(3.6 * columns, height), layout='constrained')
        figure.get_layout_engine().set(
            rect=(0, 0.5 / height, 1, 1 - 0.5 / height), h_pad=0.08, w_pad=0.06
        )
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        ops = [point.ops_g for _, points in panels for point in points]
        for axes, (title, points) in zip(grid.flat, panels, strict=False):
            _scatter(axes, points, limits=(min(ops) / 1.6, max(ops) * 2.2))
            axes.set_title(title, loc='left', weight='bold')
            axes.set_ylabel(y_label)
        for axes in grid[-1]:
            axes.set_xlabel('Ops = FLOPs + BinOps / 64, in 10⁹')
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        handles = {kind: grid[0, 0].scatter([], [], **KINDS[kind][1]) for kind in KINDS}
        used = {point.kind for _, points in panels for point in points}
        figure.legend(
            [handles[kind] for kind in KINDS if kind in used],
            [KINDS[kind][0] for kind in KINDS if kind in used],
            loc='lower center',
            ncols=3,
            frameon=False,
            bbox_to_anchor=(0.5, 0.2 / height),
        )
        figure.text(0.5, 0.06 / height, note, ha='center', size=6.5, color=FAINT)
        figure.draw_without_rendering()  # so that the panels have their places
        figure.set_layout_engine('none')
        for axes, (_, points) in zip(grid.flat, panels, strict=False):
            _label(axes, points)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix; equal figures become equal files."""
    import matplotlib

    metadata = {'Date': None} if path.suffix == '.svg' else None
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=200, metadata=metadata, facecolor='white')


def _scatter(axes: Axes, points: Sequence[Point], *, limits: tuple[float, float]) -> None:
    axes.set_xscale('log')
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.grid(color='#e4e4e4', linewidth=0.6)
    axes.set_axisbelow(True)
    for kind, (_, look) in KINDS.items():
        own = [point for point in points if point.kind == kind]
        axes.scatter([p.ops_g for p in own], [p.percent for p in own], **look)
    axes.margins(y=0.12)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, -2), min(top, 101))


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name where it covers no point, name or line, near its own point.

    A name that has to stand further off gets a line to its point.
    """
    unit = axes.figure.dpi / 72  # pixels of a typographic point
    panel = axes.get_window_extent().padded(1)
    pixels = axes.transData.transform([(point.ops_g, point.percent) for point in points])
    taken = [_square(x, y, 4 * unit) for x, y in pixels]
    for k in sorted(range(len(points)), key=lambda k: (points[k].kind != 'measured', k)):
        at = points[k].ops_g, points[k].percent
        bold = 'bold' if points[k].kind == 'measured' else 'normal'
        beside = {'xytext': (0, 0), 'textcoords': 'offset points'}
        text = axes.annotate(points[k].label, at, size=7, weight=bold, zorder=5, **beside)
        size = text.get_window_extent().size
        others = taken[:k] + taken[k + 1 :]
        costs = {}
        for far in DISTANCES:
            for x, y, across, along in SIDES:
                offset = x * far, y * far
                line = _along(pixels[k], np.multiply(offset, unit))
                box = _box(pixels[k] + np.multiply(offset, unit), size, across, along)
                cost = far + _cost(box, line, others, panel=panel, unit=unit)
                costs.setdefault(cost, (offset, across, along, box, line))
        offset, across, along, box, line = costs[min(costs)]
        text.set(position=offset, ha=across, va=along)
        taken.append(box)
        if max(map(abs, offset)) > DISTANCES[0]:
            look = {'arrowstyle': '-', 'color': FAINT, 'lw': 0.5, 'shrinkA': 2, 'shrinkB': 3}
            axes.annotate('', at, arrowprops=look, **(beside | {'xytext': offset}))
            taken += line


def _cost(
    box: Bbox, line: Sequence[Bbox], others: Sequence[Bbox], *, panel: Bbox, unit: float
) -> float:
    """Rate a place of a name: what it covers, leaves or could be mistaken for."""
    near = box.padded(4 * unit)
    covered = sum(box.overlaps(other) for other in others)
    crossed = sum(part.overlaps(other) for part in line for other in others)
    doubtful = sum(near.overlaps(other) for other in others)
    inside = panel.x0 < box.x0 and box.x1 < panel.x1 + 2 * unit
    inside = inside and panel.y0 < box.y0 and box.y1 < panel.y1
    return 1000.0 * (not inside) + 100.0 * covered + 30.0 * crossed + 12.0 * doubtful


def _box(anchor: NDArray[np.float64], size: NDArray[np.float64], across: str, along: str) -> Bbox:
    """Return the place of a text of a size that is aligned to an anchor, in pixels."""
    from matplotlib.transforms import Bbox

    shares = {'left': 0.0, 'bottom': 0.0, 'center': 0.5, 'right': 1.0, 'top': 1.0}
    corner = anchor - size * (shares[across], shares[along])
    return Bbox.from_bounds(*corner, *size)


def _along(start: NDArray[np.float64], offset: NDArray[np.float64]) -> list[Bbox]:
    """Cover the line from a point to its name by small squares."""
    return [_square(*(start + offset * share), 0.5) for share in np.linspace(0.4, 0.95, 8)]


def _square(x: float, y: float, half: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half, y - half, x + half, y + half)
