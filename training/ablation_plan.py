"""What an ablation study trains: rows of one configuration, each with its change, at one budget.

A plan is a YAML file::

    config: ../default_nano.yaml   # as seen from the plan
    passes: 2                      # how often a run of the plan's budget sees every scene
    scenes: 512                    # of the training scenes so many, evenly spread; default all
    seeds: [0, 1]
    set: [run.precision=float32]   # changes for all rows
    rows:
      - name: everything
        says: the whole recipe
      - name: no_near_misses
        says: without near misses
        set: [data.places_per_scene=2, losses.soft_positives=0]

Every run sees equally many images, whatever its ``data.places_per_scene``: its epochs follow from
the budget. A row may take another share of it (``budget: 0.5``), of the scenes (``data: 0.5``,
which leaves the number of images), or have its own ``seeds``. A change such as
``unfreezing.head_epochs=10%`` is that share of the epochs. ``against`` names the row that a row is
to be compared with, `FIRST` if not given. ``teacher: imagenet`` takes for a teacher
EfficientNet-Lite0 with its ImageNet weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bicrossnet_ros.errors import ConfigError
from training.config import TrainConfig
from training.config_files import load_config, with_changes

IMAGENET = 'imagenet'
FIRST = 'everything'
_PERCENT = re.compile(r'([\w.]+)=(\d+(?:\.\d+)?)%$')
_PLAN_KEYS = {'config', 'passes', 'scenes', 'seeds', 'set', 'rows'}
_ROW_KEYS = {'name', 'says', 'set', 'budget', 'data', 'seeds', 'teacher', 'against'}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
        Of its runs' folders.
    says : str
        Of the table.
    changes : tuple of str
        As of ``--set``.
    budget, data : float
        Shares of the plan's images, and of its scenes.
    seeds : tuple of int
    teacher : str
        'imagenet', or empty: what the configuration says.
    against : str
        Row to compare with; empty: none.
    """

    name: str
    says: str
    changes: tuple[str, ...]
    budget: float
    data: float
    seeds: tuple[int, ...]
    teacher: str
    against: str


@dataclass(frozen=True)
class Plan:
    """A study; see the module for its fields."""

    config: TrainConfig
    passes: float
    scenes: int | None
    changes: tuple[str, ...]
    rows: tuple[Row, ...]


def load_plan(
    path: Path, *, changes: tuple[str, ...] = (), only: Sequence[str] | None = None
) -> Plan:
    """Read a plan.

    Parameters
    ----------
    path : Path
    changes : tuple of str
        Made to all rows, after the plan's own.
    only : sequence of str, optional
        Names of the rows that are wanted.

    Raises
    ------
    ConfigError
        If it cannot be read, or says what cannot be.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'{path}: not readable as YAML: {reason}') from error
    _check_keys(data, _PLAN_KEYS, str(path), needed={'config', 'rows'})
    seeds = tuple(data.get('seeds', (0,)))
    rows = tuple(_row(entry, seeds, f'{path}: rows') for entry in data['rows'])
    _check_rows(rows, path)
    rows = _chosen(rows, only, path)
    plan = Plan(
        config=load_config(path.parent / str(data['config'])),
        passes=_positive(data.get('passes', 1), f'{path}: passes', 1e6),
        scenes=_scenes(data.get('scenes'), path),
        changes=(*data.get('set', ()), *changes),
        rows=rows,
    )
    for row in rows:  # what cannot be is found before any run
        try:
            row_config(plan, row, scenes=1000, seed=0)
        except ConfigError as error:
            raise ConfigError(f'{path}: {row.name}: {error}') from error
    return plan


def row_config(plan: Plan, row: Row, *, scenes: int, seed: int) -> TrainConfig:
    """Return what a run of a row trains, its paths aside.

    Parameters
    ----------
    plan, row : Plan, Row
    scenes : int
        Number of the plan's training scenes, before the row's share.
    seed : int
    """
    changes = [*plan.changes, *row.changes]
    ready = [change for change in changes if not _PERCENT.match(change)]
    # Longer than any unfreezing; the true length follows from what has been set.
    config = with_changes(plan.config, ['run.epochs=1000000', *ready, f'run.seed={seed}'])
    common = [change for change in plan.changes if not _PERCENT.match(change)]
    places = with_changes(plan.config, common).data.places_per_scene
    images = plan.passes * row.budget * scenes * places
    epochs = max(1, round(images / (row.data * scenes * config.data.places_per_scene)))
    shares = [
        f'{found[1]}={round(float(found[2]) / 100 * epochs)}'
        for change in changes
        if (found := _PERCENT.match(change))
    ]
    return with_changes(config, [*shares, f'run.epochs={epochs}'])


def _row(entry: Any, seeds: tuple[int, ...], where: str) -> Row:
    _check_keys(entry, _ROW_KEYS, where, needed={'name', 'says'})
    name = str(entry['name'])
    teacher = str(entry.get('teacher', ''))
    if teacher not in ('', IMAGENET):
        raise ConfigError(f'{where}: {name}: teacher is {teacher!r}; expected {IMAGENET}')
    return Row(
        name=name,
        says=str(entry['says']),
        changes=tuple(entry.get('set', ())),
        budget=_positive(entry.get('budget', 1), f'{where}: {name}: budget', 100.0),
        data=_positive(entry.get('data', 1), f'{where}: {name}: data', 1.0),
        seeds=tuple(entry.get('seeds', seeds)),
        teacher=teacher,
        against=str(entry.get('against', FIRST if name != FIRST else '')),
    )


def _check_rows(rows: tuple[Row, ...], path: Path) -> None:
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f'{path}: the row {twice[0]} stands twice; rename one')
    for row in rows:
        if row.against and row.against not in names:
            raise ConfigError(
                f'{path}: {row.name} is compared with {row.against}, which is no row; expected '
                f'one of {", ".join(names)}'
            )
        if not row.seeds or not all(isinstance(seed, int) for seed in row.seeds):
            raise ConfigError(f'{path}: {row.name}: seeds are {row.seeds}; expected whole numbers')


def _chosen(rows: tuple[Row, ...], only: Sequence[str] | None, path: Path) -> tuple[Row, ...]:
    if only is None:
        return rows
    known = {row.name: row for row in rows}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f'{path}: no row {unknown[0]}; expected some of {", ".join(known)}')
    return tuple(known[name] for name in dict.fromkeys(only))


def _check_keys(data: Any, known: set[str], where: str, *, needed: set[str]) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f'{where}: found {type(data).__name__}; expected a mapping')
    unknown, missing = sorted(set(data) - known), sorted(needed - set(data))
    if unknown or missing:
        raise ConfigError(
            f'{where}: unknown keys {unknown}, missing keys {missing}; expected '
            f'{", ".join(sorted(known))}'
        )


def _scenes(value: Any, path: Path) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f'{path}: scenes is {value!r}; expected a whole number above 0')
    return value


def _positive(value: Any, where: str, most: float) -> float:
    if not isinstance(value, int | float) or not 0 < value <= most:
        raise ConfigError(f'{where} is {value!r}; expected a number above 0, at most {most:g}')
    return float(value)
