"""Accuracy against cost (figure 2 of the paper), and the style of all figures.

Colours are told apart in gray and by colour-blind readers too: right and wrong carry a sign,
kinds of networks a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, NEUTRAL, FAINT = '#1b8a3a', '#c8252c', '#444444', '#8a8a8a'
# Where a name may stand beside its point: offset in typographic points, and alignment.
PLACES = (
    (6, 0, 'left', 'center'),
    (-6, 0, 'right', 'center'),
    (0, 6, 'center', 'bottom'),
    (0, -6, 'center', 'top'),
    (5, 5, 'left', 'bottom'),
    (5, -5, 'left', 'top'),
    (-5, 5, 'right', 'bottom'),
    (-5, -5, 'right', 'top'),
)
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
        figure.draw_without_rendering()
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
    if max(point.percent for point in points) <= 100:
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name where it covers no point and no other name: right, left, above or below."""
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform([(point.ops_g, point.percent) for point in points])
    unit = axes.figure.dpi / 72  # pixels of a typographic point
    taken = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in pixels]
    panel = axes.get_window_extent()
    for point in sorted(points, key=lambda point: (point.kind != 'measured', -point.percent)):
        text = axes.annotate(
            point.label,
            (point.ops_g, point.percent),
            xytext=(6, 0),
            textcoords='offset points',
            size=7,
            weight='bold' if point.kind == 'measured' else 'normal',
            zorder=5,
        )
        costs = []
        for x, y, across, along in PLACES:
            text.set(position=(x, y), ha=across, va=along)
            box = text.get_window_extent()
            outside = box.x0 < panel.x0 or box.x1 > panel.x1 + 6 * unit
            costs.append(10 * outside + sum(box.overlaps(other) for other in taken))
        x, y, across, along = PLACES[costs.index(min(costs))]
        text.set(position=(x, y), ha=across, va=along)
        taken.append(text.get_window_extent())
