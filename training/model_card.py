"""Put the measured figures into docs/model_card.md, and the first of them into README.md.

    python -m training.model_card [--check]

Results are read from out/evaluation: costs.json (`training.model_costs`), views.json
(`training.evaluate_views`), flight.json and flight_growth.json (`training.evaluate_flight`),
ablations.json (`training.ablations`). Each table stands between ``<!-- table NAME -->`` and
``<!-- end NAME -->``; everything else is written by hand and stays. A table whose results are
missing stays as it is. With --check nothing is written; the exit code is 1 if a table is not what
the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.card_figure import write_front
from training.card_tables import TABLES, Results, Table
from training.readme_tables import README_TABLES

REPOSITORY = Path(__file__).resolve().parents[1]
CARD = REPOSITORY / 'docs' / 'model_card.md'
README = REPOSITORY / 'README.md'
RESULTS = REPOSITORY / 'out' / 'evaluation'
FIGURE = 'images/model_card_front.png'


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read every results file below a folder: its rows by the file's name without suffix.

    Raises
    ------
    ConfigError
        If there is no such folder, or a file that the tables need is not of results.
    """
    if not folder.is_dir():
        raise ConfigError(f'{folder}: no such folder; evaluate the models first')
    found = {}
    for name in sorted({name for table in TABLES.values() for name in table.needs}):
        path = folder / f'{name}.json'
        if not path.exists():
            continue
        try:
            rows = json.loads(path.read_text(encoding='utf-8'))['rows']
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}: not readable as results ({type(error).__name__}: {error}); evaluate '
                'again'
            ) from error
        if rows:
            found[name] = rows
    return found


def make_tables(results: Results, tables: Mapping[str, Table] = TABLES) -> dict[str, str]:
    """Make every table whose results are there.

    Raises
    ------
    ConfigError
        If rows lack what a table shows.
    """
    made = {}
    for name, table in tables.items():
        if all(need in results for need in table.needs):
            try:
                made[name] = table.make(results)
            except (KeyError, TypeError, AttributeError) as error:
                files = ', '.join(f'{need}.json' for need in table.needs)
                raise ConfigError(
                    f'table {name}: {files} lack {error}; evaluate again with this version'
                ) from error
    return made


def with_tables(text: str, tables: Mapping[str, str], *, source: str) -> str:
    """Replace what stands between the markers of each table, nothing else.

    Raises
    ------
    ConfigError
        If a marker is missing, stands twice or in the wrong order.
    """
    for name, table in tables.items():
        begin, end = f'<!-- table {name} -->', f'<!-- end {name} -->'
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ConfigError(
                f'{source}: found {text.count(begin)} times {begin} and {text.count(end)} times '
                f'{end}; expected each once'
            )
        head, _, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not closed:
            raise ConfigError(f'{source}: {end} stands before {begin}; expected it behind')
        text = f'{head}{begin}\n\n{table}\n\n{end}{tail}'
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.model_card',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--check', action='store_true', help='write nothing; 1 if out of date')
    parser.add_argument('--results', type=Path, default=RESULTS, help='folder of the JSON files')
    parser.add_argument('--card', type=Path, default=CARD, help='the model card')
    parser.add_argument('--readme', type=Path, default=README, help='the README')
    options = parser.parse_args(arguments)
    try:
        return update(options.card, options.readme, options.results, check=options.check)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def update(card: Path, readme: Path, folder: Path, *, check: bool = False) -> int:
    """Bring both documents up to date, or check that they are; returns the exit code."""
    results = read_results(folder)
    stale: dict[Path, str] = {}
    for path, tables in ((card, TABLES), (readme, README_TABLES)):
        made = make_tables(results, tables)
        try:
            before = path.read_text(encoding='utf-8')
        except OSError as error:
            raise ConfigError(f'{path}: cannot be read ({error.strerror})') from error
        after = with_tables(before, made, source=str(path))
        if after != before:
            stale[path] = after
        for name in tables.keys() - made.keys():
            lacking = ', '.join(
                f'{need}.json' for need in tables[name].needs if need not in results
            )
            print(f'table {name} stays: no {lacking}', file=sys.stderr)
    if check:
        for path in stale:
            print(f'{path}: not what the results say; run python -m training.model_card')
        return 1 if stale else 0
    for path, after in stale.items():
        path.write_text(after, encoding='utf-8')
    if all(need in results for need in TABLES['front'].needs):
        figure = card.parent / FIGURE
        figure.parent.mkdir(parents=True, exist_ok=True)
        write_front(results, figure)
    return 0


if __name__ == '__main__':
    sys.exit(main())
