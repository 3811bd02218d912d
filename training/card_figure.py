"""The front of the model card: accuracy against the time and the size of each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.card_tables import NAMES, Results, Row
from training.figures import FAINT, STYLE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is looked up for the height: (title, table, keys of the row, figure).
PANELS = (
    (
        'flight, heading of the autopilot',
        'flight',
        {'retrieval': 'vote', 'heading': 'autopilot', 'condition': 'plain'},
        'recall_at_1_25m',
    ),
    (
        'test split, views as in training',
        'views',
        {'condition': 'typical', 'guesses': 1, 'descriptor': 'float'},
        'recall_at_1',
    ),
)
COLORS = ('#0b62a4', '#e08214', '#1b8a3a', '#c8252c', '#6a51a3', '#444444', '#a6761d', '#8a8a8a')
MARKERS = 'osD^vPX*'
# Points of area to a megabyte's root: areas grow with the file.
AREA = 36.0


def front_figure(results: Results) -> Figure:
    """Draw recall over milliseconds a patch, one panel a task; the area is the file's size."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.7), layout='constrained')
        for axes, (title, table, wanted, key) in zip(
            figure.subplots(1, len(PANELS), sharex=True), PANELS, strict=True
        ):
            _panel(axes, results, table, wanted, key)
            axes.set_title(title, loc='left', weight='bold')
            axes.set_xlabel('ms a patch, one thread')
            axes.set_ylabel('R@1 in %')
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        legend = figure.legend(
            handles,
            labels,
            loc='outside lower center',
            ncols=2,
            frameon=False,
            title='areas: size of the file; bars: 95% intervals',
            title_fontproperties={'size': 6.5},
        )
        legend.get_title().set_color(FAINT)
        for handle in legend.legend_handles:
            handle.set_sizes([30.0])
    return figure


def write_front(results: Results, path: Path) -> None:
    """Draw `front_figure` into a file."""
    save_figure(front_figure(results), path)


def _panel(axes: Axes, results: Results, table: str, wanted: dict[str, object], key: str) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale('log')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter('')
    axes.grid(color='#e4e4e4', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(-3, 103)
    for number, cost in enumerate(results['costs']):
        row = _find(results[table], {**wanted, 'model': cost['model']})
        look = {'color': COLORS[number % len(COLORS)], 'zorder': 3}
        x, label = cost['median_ms'], NAMES.get(cost['model'], cost['model'])
        shown = ([x], [100 * row[key]]) if row else ([], [])
        area = AREA * (cost['file_bytes'] / 1e6) ** 0.5
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(*shown, s=area, marker=marker, label=label, edgecolor='white', **look)
        if row:
            low, high = _interval(row, key)
            axes.plot([x, x], [100 * low, 100 * high], linewidth=1.2, **look)
    axes.margins(x=0.15)


def _find(rows: Sequence[Row], wanted: dict[str, object]) -> Row | None:
    return next(
        (row for row in rows if all(row[name] == value for name, value in wanted.items())), None
    )


def _interval(row: Row, key: str) -> tuple[float, float]:
    if f'{key}_low' in row:
        return row[f'{key}_low'], row[f'{key}_high']
    low, high = row[f'interval_at_{key.removeprefix("recall_at_")}']
    return low, high
