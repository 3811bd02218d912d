"""Which tile size retrieves best: galleries of several sizes searched with the same flights.

    python -m bench.tile_size FLIGHT=MAP [FLIGHT=MAP ...] [--tiles 128:0.75 160:0.75] \
        [--models NAME=FILE ...] [--headings recorded unknown] [--world 0.333] [--out DIR]

Retrieval alone, no prior: recall at 1 within 25 m and within 10 m of the true image centre, recall
at 5 and 20 within 25 m, tiles and bytes of embeddings a square kilometre of map, and the median
milliseconds of a frame until its places are ranked. `--world` changes the frames as
`training.data.world` does, seeded by the frame's number, at that strength.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bicrossnet_ros.config import LocalizerConfig, RegistrationConfig, load_config
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.evaluation import recall_at, score
from bicrossnet_ros.flight import HEADINGS, open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.replay import replay
from bicrossnet_ros.types import Frame, PositionEstimate

STAGES = ('patch', 'encode', 'search')
COLUMNS = (
    ('R@1', 'recall_at_1', '{:.0%}'),
    ('R@1 in 10 m', 'recall_at_1_10m', '{:.0%}'),
    ('R@5', 'recall_at_5', '{:.0%}'),
    ('R@20', 'recall_at_20', '{:.0%}'),
    ('tiles / km2', 'tiles_per_km2', '{:.0f}'),
    ('MB / km2', 'mb_per_km2', '{:.1f}'),
    *((f'{stage} ms', stage, '{:.0f}') for stage in STAGES),
)


def build(chart: Path, out: Path, encoder, tile_px: int, overlap: float) -> None:
    """Build a gallery of one tile size unless it is there."""
    from gallery_builder.build import build
    from gallery_builder.options import BuildOptions

    if not out.exists():
        options = BuildOptions(maps=(chart,), out=out, tile_px=tile_px, overlap=overlap)
        build(options, encoder, say=lambda _: None)


def changed(localize: Callable[[Frame], PositionEstimate], strength: float):
    """Localize frames of a changed world."""
    from training.data.world import change_world

    count = 0

    def localize_changed(frame: Frame) -> PositionEstimate:
        nonlocal count
        count += 1
        image = change_world(frame.image, np.random.default_rng(count), strength=strength)
        return localize(replace(frame, image=image))

    return localize_changed


def measure(flight, gallery, encoder, config, *, heading: str, world: float) -> dict:
    """One row: recall, size and time."""
    localize = Localizer(gallery, encoder, config).localize
    if world:
        localize = changed(localize, world)
    records = [
        score(record, truth, crs=gallery.crs)
        for record, truth in zip(
            replay(flight, localize, heading=heading), flight.records, strict=True
        )
    ]
    west, south, east, north = gallery.manifest.bounds_m
    km2 = (east - west) * (north - south) / 1e6
    tiles = gallery.manifest.tile_count
    return {
        'recall_at_1': recall_at(records, 1),
        'recall_at_1_10m': recall_at(records, 1, radius_m=10.0),
        'recall_at_5': recall_at(records, 5),
        'recall_at_20': recall_at(records, 20),
        'tiles_per_km2': tiles / km2,
        'mb_per_km2': 4e-6 * tiles * gallery.manifest.embedding_dim / km2,
        **{
            stage: float(np.median([record.timings_ms[stage] for record in records]))
            for stage in STAGES
        },
    }


def table(rows: list[dict]) -> str:
    """Format the rows as Markdown."""
    names = ('flight', 'model', 'tile', 'heading')
    lines = ['| ' + ' | '.join((*names, *(title for title, _, _ in COLUMNS))) + ' |']
    lines.append('|---' * (len(names) + len(COLUMNS)) + '|')
    for row in rows:
        cells = [str(row[name]) for name in names]
        cells += [form.format(row[key]) for _, key, form in COLUMNS]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def pairs(items: list[str], separator: str) -> list[tuple[str, str]]:
    """Split NAME=FILE and the like."""
    return [(first, second) for first, _, second in (one.partition(separator) for one in items)]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('flights', nargs='+', metavar='FLIGHT=MAP', help='flight folder and the map it flew over')
    add('--tiles', nargs='+', metavar='PX:OVERLAP', default=['128:0.75', '160:0.75', '192:0.75'])
    add('--models', nargs='+', metavar='NAME=FILE', default=[f'shipped={default_model_path()}'])
    add('--headings', nargs='+', choices=HEADINGS, default=['recorded', 'unknown'])
    add('--world', type=float, default=0.0, help='strength of changes of the world, 0 to 1')
    add('--config', type=Path, help='YAML with the parameters of the stages')
    add('--out', type=Path, default=Path('out/bench/tile_size'))
    return parser.parse_args()


def main() -> int:
    """Measure, print the table, write it as JSON too."""
    options = parse()
    config = load_config(options.config) if options.config else LocalizerConfig()
    config = replace(config, registration=RegistrationConfig(enabled=False))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for model, file in pairs(options.models, '='):
        encoder = open_encoder(file)
        for folder, chart in pairs(options.flights, '='):
            flight = open_flight(folder)
            for tile_px, overlap in pairs(options.tiles, ':'):
                name = f'{model}_{Path(chart).stem}_{tile_px}_{overlap}.gallery'
                out = options.out / name
                build(Path(chart), out, encoder, int(tile_px), float(overlap))
                with open_gallery(out, encoder=encoder) as gallery:
                    for heading in options.headings:
                        found = measure(
                            flight, gallery, encoder, config, heading=heading, world=options.world
                        )
                        tile = f'{gallery.tile_size_m:g} m, {float(overlap):.0%}'
                        row = {'flight': flight.name, 'model': model, 'tile': tile}
                        rows.append({**row, 'heading': heading, 'world': options.world, **found})
                        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    (options.out / 'results.json').write_text(json.dumps(rows, indent=2), encoding='utf-8')
    print(table(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
