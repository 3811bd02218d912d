"""Which scenes are trained on, validated on and tested with: a file, so that it never changes.

``overhead.csv`` divides the scenes of `training.data.gather`. It was made by
`training.splits.divide`, which says how; the file is what counts.
"""

from __future__ import annotations

import csv
from pathlib import Path

from bicrossnet_ros.errors import ConfigError

TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'
SIDES = (TRAIN, VALIDATION, TEST)
HEADER = ['scene', 'split']
OVERHEAD = Path(__file__).with_name('overhead.csv')


def load_split(path: Path | None = None) -> dict[str, str]:
    """Read which side of a split every scene is on.

    Parameters
    ----------
    path : Path, optional
        A CSV file with the header ``scene,split``; None: the packaged ``overhead.csv``.

    Returns
    -------
    dict of str to str
        Scene (its path below the data folder, with forward slashes) to 'train', 'validation' or
        'test', in the order of the file.

    Raises
    ------
    ConfigError
        If the file is missing or no such table, names a scene twice or an unknown side.
    """
    path = OVERHEAD if path is None else path
    try:
        with path.open(encoding='utf-8', newline='') as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f'{path}: not readable as a split ({error}); seen from {Path.cwd()}'
        ) from error
    if not rows or rows[0] != HEADER:
        found = ','.join(rows[0]) if rows else 'nothing'
        raise ConfigError(f'{path}: begins with {found!r}; expected the header scene,split')
    split: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or row[1] not in SIDES:
            raise ConfigError(
                f'{path}: line {line} is {",".join(row)!r}; expected a scene and one of '
                f'{", ".join(SIDES)}'
            )
        if row[0] in split:
            raise ConfigError(f'{path}: line {line} names {row[0]} a second time; remove one')
        split[row[0]] = row[1]
    return split


def write_split(split: dict[str, str], path: Path) -> None:
    """Write what `load_split` reads, sorted by scene."""
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(HEADER)
        writer.writerows(sorted(split.items()))
