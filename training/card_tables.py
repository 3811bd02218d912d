"""Tables of the model card: from rows of results to Markdown, one function a table.

Shares are written in per cent, with their 95 % interval in brackets where a reader would compare
them; a dash stands for what was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# By name of the file, without its suffix.
Results = Mapping[str, Sequence[Row]]

NAMES = {
    'nano': 'nano',
    'nano_heading_free': 'nano, heading-free',
    'tiny': 'tiny',
    'tiny_heading_free': 'tiny, heading-free',
    'untrained': 'nano, untrained',
    'efficientnet_zero_shot': 'EfficientNet-Lite0 GeM, ImageNet weights',
    'efficientnet': 'EfficientNet-Lite0, fine-tuned',
    'bound': 'EfficientNet-Lite2, fine-tuned',
    'convnext': 'ConvNeXt-tiny, fine-tuned',
}
TOGETHER = {
    'plain': 'nothing',
    'geometry': 'all of geometry',
    'sensor': 'all of the camera',
    'world_mild': 'whole world, mild',
    'world_medium': 'whole world, medium',
    'world_strong': 'whole world, strong',
    'typical': 'as in training',
    'everything': 'everything',
}
HEADINGS = {'truth15': '±15°', 'autopilot': 'autopilot', 'unknown': 'unknown'}
MISSING = '-'


@dataclass(frozen=True)
class Table:
    """One table: which results it needs, and how it is made of them."""

    needs: tuple[str, ...]
    make: Callable[[Results], str]


def front(results: Results) -> str:
    """What a user weighs: recall on the flight and on the test split, time and size."""
    titles = ['model', 'input px', 'file MB', 'ms a patch', 'numbers', 'flight, autopilot']
    titles += ['flight, unknown', 'test, as in training', 'test, world mild', 'test, world medium']
    lines = []
    for row in results['costs']:
        name = row['model']
        flight = [
            _cell(flight_row(results['flight'], name, 'vote', heading, 'plain'), 'recall_at_1_25m')
            for heading in ('autopilot', 'unknown')
        ]
        test = [
            _cell(_view(results['views'], name, condition), 'recall_at_1')
            for condition in ('typical', 'world_mild', 'world_medium')
        ]
        cost = [
            str(row['input_px']),
            f'{row["file_bytes"] / 1e6:.1f}',
            f'{row["median_ms"]:.1f} ({row["least_ms"]:.1f})',
            str(row['embedding_dim']),
        ]
        lines.append([_name(name), *cost, *flight, *test])
    return markdown(titles, lines)


def flight_headings(results: Results, *, retrieval: str) -> str:
    """Recall on the unchanged flight, by what is known of the heading."""
    figures = {
        'R@1, 25 m': 'recall_at_1_25m',
        'R@5, 25 m': 'recall_at_5_25m',
        'R@1, 10 m': 'recall_at_1_10m',
        'R@5, 10 m': 'recall_at_5_10m',
    }
    titles = ['model', 'heading', *figures, 'ms a frame']
    lines = []
    for name in models_of(results['flight'], retrieval):
        for heading, says in HEADINGS.items():
            row = flight_row(results['flight'], name, retrieval, heading, 'plain')
            if row:
                cells = [_cell(row, key) for key in figures.values()]
                lines.append([_name(name), says, *cells, f'{row["total_ms"]:.0f}'])
    return markdown(titles, lines)


def flight_conditions(results: Results) -> str:
    """Recall on the flight with distractors and with a changed world, by voting."""
    conditions = ('plain', 'distractors', 'mild', 'medium', 'strong')
    lines = []
    for name in models_of(results['flight'], 'vote'):
        rows = [flight_row(results['flight'], name, 'vote', 'autopilot', c) for c in conditions]
        lines.append([_name(name), *(_cell(row, 'recall_at_1_25m') for row in rows)])
    alone = [brute_force_row(results['flight'], condition) for condition in conditions]
    if any(alone):
        lines.append(['brute-force SIFT', *(_cell(row, 'recall_at_1_25m') for row in alone)])
    return markdown(['model', *conditions], lines)


def flight_kinds(results: Results) -> str:
    """Recall on the flight under each change of the world alone, beside brute-force matching."""
    flight = results['flight']
    names = [row['condition'] for row in flight if ':' in row['condition']]
    lines = []
    for condition in dict.fromkeys(names):
        model = [
            row for row in flight if row['condition'] == condition and row['retrieval'] == 'vote'
        ]
        strength, _, kind = condition.partition(':')
        cells = [_cell(model[0] if model else None, 'recall_at_1_25m')]
        cells.append(_cell(brute_force_row(flight, condition), 'recall_at_1_25m'))
        lines.append([kind, strength, *cells])
    return markdown(['change', 'strength', 'the product', 'brute-force SIFT'], lines)


def pipeline(results: Results) -> str:
    """What the whole pipeline made of the flight: fixes and their errors."""
    rows = [row for row in results['flight'] if 'coverage' in row]
    lines = [
        [
            _name(row['model']),
            row['condition'],
            _cell(row, 'coverage'),
            _number(row['median_m'], 2),
            _number(row['p90_m'], 2),
            _number(row['max_m'], 1),
            str(row['false_fixes']),
            _number(row['total_ms'], 0),
        ]
        for row in rows
    ]
    titles = ['model', 'condition', 'coverage', 'median m', '90 % m', 'most m', 'false fixes']
    return markdown([*titles, 'ms a frame'], lines)


def growth(results: Results) -> str:
    """How recall and time change with the area of the map."""
    lines = [
        [
            f'{row["area_times"]}',
            f'{row["area_km2"]:.2f}',
            'brute-force SIFT' if row['method'] != 'retrieval' else 'retrieval',
            _cell(row, 'recall_at_1_25m'),
            _number(row['total_ms'], 0),
        ]
        for row in results['flight_growth']
    ]
    return markdown(['times the map', 'km²', 'method', 'R@1, 25 m', 'ms a frame'], lines)


def views_together(results: Results) -> str:
    """Recall on the test split with several changes together, models as rows."""
    views = results['views']
    known = [name for name in TOGETHER if any(row['condition'] == name for row in views)]
    lines = [
        [_name(name), *(_cell(_view(views, name, c), 'recall_at_1') for c in known)]
        for name in models_of(views)
    ]
    return markdown(['model', *(TOGETHER[name] for name in known)], lines)


def views_alone(results: Results) -> str:
    """Recall on the test split under each change alone, models as columns."""
    views, names = results['views'], models_of(results['views'])
    groups = ('none', 'geometry', 'sensor', 'world')
    alone = {row['condition']: row['group'] for row in views if row['group'] in groups}
    lines = [
        [group, condition, *(_cell(_view(views, n, condition), 'recall_at_1') for n in names)]
        for condition, group in sorted(alone.items(), key=lambda item: groups.index(item[1]))
    ]
    return markdown(['', 'change', *map(_name, names)], lines)


def views_heading(results: Results) -> str:
    """Recall on the test split with an unknown heading: as it comes, and by twelve guesses."""
    views = results['views']
    known = [row['condition'] for row in views if row['group'] == 'any heading']
    lines = [
        [
            TOGETHER[condition.removesuffix('_any_heading')],
            _name(name),
            *(_cell(_view(views, name, condition, guesses=g), 'recall_at_1') for g in (1, 12)),
        ]
        for condition in dict.fromkeys(known)
        for name in models_of(views)
        if _view(views, name, condition)
    ]
    return markdown(['changed', 'model', 'one look', 'best of 12 headings'], lines)


def views_groups(results: Results, *, groups: str) -> str:
    """Recall on the test split by scale or by land use, views as in training."""
    views = results['views']
    rows = {name: _view(views, name, 'typical') for name in models_of(views)}
    names = sorted({group for row in rows.values() if row for group in row[groups]})
    lines = [
        [_name(name), *(_cell(row[groups].get(group), 'recall_at_1') for group in names)]
        for name, row in rows.items()
        if row
    ]
    return markdown(['model', *names], lines)


def descriptors(results: Results) -> str:
    """Recall of compressed descriptors on the test split, and what they lose."""
    views, lines = results['views'], []
    for name in models_of(views):
        for condition, says in TOGETHER.items():
            full = _view(views, name, condition)
            for kind, stored in (('projected', '256 floats'), ('packed', '256 bits')):
                row = _view(views, name, condition, descriptor=kind)
                if full and row:
                    cells = [
                        f'{_percent(row[key])} ({100 * (row[key] - full[key]):+.1f})'
                        for key in ('recall_at_1', 'recall_at_5')
                    ]
                    lines.append([_name(name), says, stored, *cells])
    return markdown(['model', 'changed', 'stored', 'R@1', 'R@5'], lines)


def ablations(results: Results) -> str:
    """Each row's mean over its seeds, half their range, and the difference to its reference."""
    rows = results['ablations']
    conditions = list(rows[0]['results'])
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row['row'], []).append(row)
    lines = []
    for own in runs.values():
        first = own[0]
        reference = runs.get(first['against'], [])
        cells = [_spread(own, reference, condition) for condition in conditions]
        images = f'{round(first["images_seen"] / 1000, 1):g}'
        lines.append([first['says'], str(len(own)), images, *cells])
    titles = ['', 'seeds', '1000 images', *(TOGETHER.get(name, name) for name in conditions)]
    return markdown(titles, lines)


def _spread(runs: Sequence[Row], reference: Sequence[Row], condition: str) -> str:
    own = [100 * row['results'][condition]['recall_at_1'] for row in runs]
    mean = sum(own) / len(own)
    cell = f'{mean:.1f}'
    if len(own) > 1:
        cell += f' ± {(max(own) - min(own)) / 2:.1f}'
    # Seed by seed: runs of one seed see the same scenes in the same order.
    before = {row['seed']: 100 * row['results'][condition]['recall_at_1'] for row in reference}
    pairs = [
        value - before[row['seed']]
        for row, value in zip(runs, own, strict=True)
        if row['seed'] in before
    ]
    return cell + (f' ({sum(pairs) / len(pairs):+.1f})' if pairs else '')


TABLES: dict[str, Table] = {
    'front': Table(('costs', 'flight', 'views'), front),
    'seneca vote': Table(('flight',), lambda r: flight_headings(r, retrieval='vote')),
    'seneca single': Table(('flight',), lambda r: flight_headings(r, retrieval='single')),
    'seneca conditions': Table(('flight',), flight_conditions),
    'seneca kinds': Table(('flight',), flight_kinds),
    'seneca pipeline': Table(('flight',), pipeline),
    'growth': Table(('flight_growth',), growth),
    'test together': Table(('views',), views_together),
    'test alone': Table(('views',), views_alone),
    'test heading': Table(('views',), views_heading),
    'test scale': Table(('views',), lambda r: views_groups(r, groups='by_scale')),
    'test land use': Table(('views',), lambda r: views_groups(r, groups='by_land_use')),
    'ablations': Table(('ablations',), ablations),
    'descriptor': Table(('views',), descriptors),
}


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; the first column is text, numbers stand at the right."""
    marks = ['---', *['---:'] * (len(titles) - 1)]
    lines = [titles, marks, *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _name(name: str) -> str:
    return NAMES.get(name, name)


def models_of(rows: Sequence[Row], retrieval: str | None = None) -> list[str]:
    """Names of the models, as the card orders them; others behind."""
    found = dict.fromkeys(
        row['model'] for row in rows if retrieval in (None, row.get('retrieval'))
    )
    return [*(name for name in NAMES if name in found), *(n for n in found if n not in NAMES)]


def flight_row(
    rows: Sequence[Row], model: str, retrieval: str, heading: str, condition: str
) -> Row | None:
    """The row of a flight with this key, if it was measured."""
    wanted = (model, retrieval, heading, condition)
    keys = ('model', 'retrieval', 'heading', 'condition')
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)


def brute_force_row(rows: Sequence[Row], condition: str) -> Row | None:
    """The row of matching against the whole map, if it was measured."""
    return next(
        (r for r in rows if r['retrieval'] == 'brute force' and r['condition'] == condition), None
    )


def _view(
    rows: Sequence[Row], model: str, condition: str, *, guesses: int = 1, descriptor: str = 'float'
) -> Row | None:
    wanted = (model, condition, guesses, descriptor)
    keys = ('model', 'condition', 'guesses', 'descriptor')
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f'{100 * share:.0f}'


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f'{value:.{digits}f}'


def _cell(row: Row | None, key: str) -> str:
    """Write a share with its interval, where the row has one."""
    if row is None or row.get(key) is None:
        return MISSING
    low, high = row.get(f'{key}_low'), row.get(f'{key}_high')
    if low is None and key.startswith('recall_at_'):
        low, high = row.get(f'interval_at_{key[len("recall_at_") :]}', (None, None))
    if low is None or high is None:
        return _percent(row[key])
    return f'{_percent(row[key])} ({_percent(low)}-{_percent(high)})'
