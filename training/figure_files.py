"""From the results of an evaluation to the files of its figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bicrossnet_ros.errors import ConfigError
from training.benchmark import Ranking
from training.figures import Point, accuracy_figure, save_figure
from training.match_pictures import choose_examples, match_figure
from training.paper import rows_of
from training.results import ARROWS, ModelResults, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACIES = {'recall_at_1': 'R@1 in %', 'ap': 'AP in %'}
NOTE = 'Ops of this evaluation: two images at the input size; of the paper: as printed in table '


def write_match_figures(
    out: Path, name: str, rankings: Sequence[Ranking], *, count: int, top: int, seed: int
) -> list[Path]:
    """Write ``matches_<name>_<direction>[_<height>m].png`` for each ranking; returns the paths."""
    written = []
    for ranking in rankings:
        task, height = ranking.task, ranking.height_m
        examples = choose_examples(
            task,
            ranking.query,
            ranking.gallery,
            ranking.best,
            hits=count,
            misses=count,
            top=top,
            seed=seed,
        )
        if not examples:
            continue
        at = f', {height} m' if height else ''
        gallery = f'{len(task.gallery_paths):,} gallery images'
        title = f'{name}: {ARROWS[task.name]}{at} ({gallery})'
        suffix = f'_{height}m' if height else ''
        path = out / f'matches_{name}_{task.name}{suffix}.png'
        _save(match_figure(examples, title=title), path)
        written.append(path)
    return written


def write_accuracy_figures(out: Path, models: Sequence[ModelResults]) -> list[Path]:
    """Write ``accuracy_<metric>.png`` and ``.svg``: the models beside the paper's tables 2, 3.

    Each model stands with its first feature under the first protocol; one whose cost is unknown
    (a foreign ONNX file) is left out and named on stderr.
    """
    known = [model for model in models if model.ops_g is not None]
    for model in models:
        if model.ops_g is None:
            print(f'{model.name}: of unknown cost, not in the accuracy figures', file=sys.stderr)
    if not known:
        return []
    first = known[0].results[0]
    settings = [
        (result.direction, result.height_m)
        for result in known[0].results
        if (result.feature, result.protocol) == (first.feature, first.protocol)
    ]
    settings.sort(key=lambda setting: (setting[1], list(ARROWS).index(setting[0])))
    written = []
    for metric, label in ACCURACIES.items():
        panels = [
            (_title(direction, height), _points(known, metric, direction, height, first.protocol))
            for direction, height in settings
        ]
        figure = accuracy_figure(panels, y_label=label, note=_note(known, first))
        for suffix in ('.png', '.svg'):
            written.append(out / f'accuracy_{metric}{suffix}')
            _save(figure, written[-1])
    return written


def _note(models: Sequence[ModelResults], first: Result) -> str:
    note = f'{NOTE}{3 if models[0].source == "university1652" else 2}.'
    if first.feature == 'branches':
        note += ' The feature branches takes twice as many, and the heads.'
    if first.protocol != 'full':
        note += f' This evaluation: {first.protocol} protocol; the paper: full.'
    if not all(model.is_comparable for model in models):
        note += '\nThis evaluation is not on the published images: not comparable with the paper.'
    return note


def _title(direction: str, height_m: int) -> str:
    return f'{ARROWS[direction]}, {height_m} m' if height_m else ARROWS[direction]


def _points(
    models: Sequence[ModelResults], metric: str, direction: str, height_m: int, protocol: str
) -> list[Point]:
    points = []
    for row in rows_of(models[0].source):
        figures = row.figures.get((direction, height_m))
        if figures is not None and row.ops_g is not None:
            kind = 'paper_binary' if row.is_ours else 'paper_float'
            label = row.label.replace('Our (', 'BiCrossNet (')
            points.append(Point(label, row.ops_g, getattr(figures, metric), kind))
    for model in models:
        for result in model.results:
            if _is_shown(result, model, direction, height_m, protocol):
                percent = 100 * result.figures[metric]
                points.append(Point(model.name, model.ops_g or 0.0, percent, 'measured'))
    return points


def _is_shown(
    result: Result, model: ModelResults, direction: str, height_m: int, protocol: str
) -> bool:
    found = (result.direction, result.height_m, result.protocol, result.feature)
    return found == (direction, height_m, protocol, model.results[0].feature)


def _save(figure: Figure, path: Path) -> None:
    try:
        save_figure(figure, path)
    except OSError as error:
        raise ConfigError(f'{path}: could not be written ({error.strerror})') from error
