"""The real Seneca flight without a prior position: our model beside naive baselines, in one run.

    python bench/seneca.py [--data DIR] [--out DIR] [--models NAME=FILE ...]

Every model gets a gallery of its own from the same map and replays the same frames, once with the
heading of the autopilot and once without any. Recall is that of retrieval alone (the best
place within 25 m of the true image centre); coverage, errors and false fixes are those of the
whole pipeline. Without --models the baselines are made first: the shipped model, the same network
untrained, and EfficientNet-Lite0 with GeM pooling (ImageNet weights).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
HEADINGS = ('recorded', 'unknown')
COLUMNS = (
    ('R@1', 'recall_at_1', '{:.0%}'),
    ('R@5', 'recall_at_5', '{:.0%}'),
    ('R@20', 'recall_at_20', '{:.0%}'),
    ('coverage', 'coverage', '{:.0%}'),
    ('median m', 'median_m', '{:.2f}'),
    ('90 % m', 'p90_m', '{:.2f}'),
    ('false fixes', 'false_fixes', '{:.0f}'),
    ('median ms', 'median_ms', '{:.0f}'),
)


def run(*arguments: str | Path) -> None:
    """Run one of our command line tools from the repository's root; its failure ends the bench."""
    command = [sys.executable, '-m', *map(str, arguments)]
    print('$', 'python', *command[1:], file=sys.stderr, flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)


def make_models(folder: Path) -> dict[str, Path]:
    """Return the shipped model and make the two baselines in `folder`."""
    from bicrossnet_ros.encoder import default_model_path

    shipped = default_model_path()
    untrained = folder / 'untrained.safetensors'
    efficientnet = folder / 'efficientnet_lite0_gem.onnx'
    if not untrained.exists():
        run('training.export', '--untrained', shipped, '--out', untrained)
    if not efficientnet.exists():
        run('training.export_efficientnet', '--out', efficientnet)
    return {shipped.stem: shipped, 'untrained': untrained, 'EfficientNet-Lite0 GeM': efficientnet}


def measure(
    name: str, model: Path, data: Path, out: Path, *, replay_options: Sequence[str] = ()
) -> list[dict[str, float | str]]:
    """Build the gallery, replay the flight per kind of heading; one row of figures each."""
    folder = out / model.stem
    folder.mkdir(parents=True, exist_ok=True)
    gallery = folder / 'seneca.gallery'
    options = ('--out', gallery, '--model', model, '--force', '--restart')
    run('gallery_builder', 'build', data / 'map.tif', *options)
    rows = []
    for heading in HEADINGS:
        target = folder / f'heading_{heading}'
        options = ('--gallery', gallery, '--model', model, '--out', target, '--heading', heading)
        run('bicrossnet_ros.replay', data, *options, *replay_options)
        summary = json.loads((target / 'summary.json').read_text(encoding='utf-8'))
        rows.append({'model': name, 'heading': heading, **figures(summary)})
    return rows


def figures(summary: dict) -> dict[str, float]:
    """Pick the table's figures from a summary."""
    return {
        'recall_at_1': summary['recall']['at_1'],
        'recall_at_5': summary['recall']['at_5'],
        'recall_at_20': summary['recall']['at_20'],
        'coverage': summary['coverage'],
        'median_m': summary['center_error_m']['median'],
        'p90_m': summary['center_error_m']['p90'],
        'false_fixes': summary['false_fixes'],
        'median_ms': summary['latency_ms']['total']['p50'],
    }


def table(rows: list[dict]) -> str:
    """Format the rows as Markdown."""
    lines = ['| model | heading | ' + ' | '.join(title for title, _, _ in COLUMNS) + ' |']
    lines.append('|---|---|' + '---|' * len(COLUMNS))
    for row in rows:
        cells = [form.format(row[key]) for _, key, form in COLUMNS]
        lines.append(f'| {row["model"]} | {row["heading"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> int:
    """Run the comparison and print the table; `results.json` in --out holds the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=REPOSITORY.parent / 'shared' / 'data')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'out' / 'bench' / 'seneca')
    parser.add_argument(
        '--models', nargs='*', metavar='NAME=FILE', help='instead of the three models'
    )
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.models:
        models = {
            name: Path(file) for name, file in (item.split('=', 1) for item in arguments.models)
        }
    else:
        models = make_models(out)
    data = (arguments.data / 'seneca').resolve()
    rows = [row for name, model in models.items() for row in measure(name, model, data, out)]
    (out / 'results.json').write_text(json.dumps(rows, indent=2), encoding='utf-8')
    print(table(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
