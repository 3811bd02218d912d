"""The README's two tables of the real flight: the model card's figures without their intervals."""

from __future__ import annotations

from training.card_tables import (
    MISSING,
    Results,
    Row,
    Table,
    brute_force_row,
    flight_row,
    markdown,
    models_of,
)

NAMES = {
    'nano': '**shipped: binary**',
    'nano_heading_free': 'the same for any heading',
    'tiny': 'binary, twice the width',
    'efficientnet': 'EfficientNet-Lite0 fine-tuned here, its teacher',
    'bound': 'EfficientNet-Lite2 fine-tuned here',
    'efficientnet_zero_shot': 'EfficientNet-Lite0 GeM, ImageNet weights, 224 px',
    'SIFT + VLAD': 'SIFT + VLAD, no network',
    'untrained': 'the shipped network untrained',
}
# Column: way of retrieval, heading, condition, radius in metres.
RECALLS = {
    'voting: heading ±15°': ('vote', 'truth15', 'plain', 25),
    'autopilot': ('vote', 'autopilot', 'plain', 25),
    'unknown': ('vote', 'unknown', 'plain', 25),
    'autopilot, within 10 m': ('vote', 'autopilot', 'plain', 10),
    'autopilot, world mildly changed': ('vote', 'autopilot', 'mild', 25),
    'one 64 m patch: autopilot': ('single', 'autopilot', 'plain', 25),
    'one 64 m patch: unknown': ('single', 'unknown', 'plain', 25),
}
CONDITIONS = {'plain': 'as flown', 'mild': 'mildly changed', 'medium': 'changed'}


def recalls(results: Results) -> str:
    """Recall@1 of every model."""
    sizes = {row['model']: f'{row["file_bytes"] / 1e6:.1f}' for row in results['costs']}
    lines = []
    for name in models_of(results['flight'], 'vote'):
        cells = []
        for *wanted, radius_m in RECALLS.values():
            row = flight_row(results['flight'], name, *wanted)
            cells.append(_percent(row, f'recall_at_1_{radius_m}m'))
        lines.append([NAMES.get(name, name), sizes.get(name, MISSING), *cells])
    return markdown(['', 'MB', *RECALLS], lines)


def fixes(results: Results) -> str:
    """What registration makes of the shipped model's places, and of the whole map."""
    lines = []
    for condition, says in CONDITIONS.items():
        row = flight_row(results['flight'], 'nano', 'pipeline', 'autopilot', condition)
        if row:
            alone = brute_force_row(results['flight'], condition)
            errors = [f'{row[key]:.2f} m' for key in ('median_m', 'p90_m')]
            cells = [_percent(row, 'coverage'), *errors, str(row['false_fixes'])]
            lines.append([says, *cells, _percent(alone, 'coverage')])
    titles = ['', 'coverage', 'median error', '90 %', 'false fixes']
    return markdown([*titles, 'SIFT against the whole map: coverage'], lines)


def _percent(row: Row | None, key: str) -> str:
    return MISSING if row is None or row.get(key) is None else f'{100 * row[key]:.0f}%'


README_TABLES = {
    'recalls': Table(('costs', 'flight'), recalls),
    'fixes': Table(('flight',), fixes),
}
