"""What a compressed descriptor costs: recall of floats, 256 floats and 32 bytes, side by side.

    python bench/descriptor.py NAME=MODEL ... --data SCENES [--flight DIR] [--out FILE.json]

MODEL has a descriptor (`python -m training.descriptor`); its own embeddings, their projection to
256 floats, the packed signs compared as galleries do, with float queries, and the same by Hamming
distance are measured on

- the test scenes of the split: a simulated view must find its own tile;
- the Seneca flight without a prior: one of the best 1 or 5 tiles must lie within 25 m of the true
  image centre; with the frame's patches voting, and with one patch of 64 m a frame.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from bicrossnet_ros.descriptor import HOW_TO_FIT, Projection, signs
from bicrossnet_ros.encoder import Encoder, open_encoder
from bicrossnet_ros.errors import BiCrossNetError, ModelError
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.gallery import Gallery, open_gallery
from bicrossnet_ros.geodesy import to_projected
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.manifest import EMBEDDING_KINDS, MAP_NAME
from bicrossnet_ros.tile_index import build_index, index_parameters
from training.checkpoint import git_revision
from training.data.view_config import ViewConfig
from training.descriptor_task import RANKS, embed_pairs, recalls, scenes_of
from training.flight_retrieval import config_for
from training.splits import TEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
NEAR_M = 25.0
HEADINGS = ('recorded', 'unknown')
TEST_PLACES = 1000
TEST_SEED = 77
# Which gallery each kind of row is measured with.
KINDS = {
    'float': 'float32',
    'float256': 'float256',
    'packed': 'packed',
    'packed, Hamming': 'packed',
}
# How the product's gallery is made, and the one for one patch a frame.
RETRIEVALS = {
    'vote': (),
    'single': ('--gsd-m', '0.25', '--tile-px', '256', '--overlap', '0.75'),
}


class Signed(Projection):
    """Keeps the signs of queries alone: inner products then rank as Hamming distances do."""

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project and take the signs."""
        return signs(super().apply(embeddings))


@dataclass
class Remembering:
    """An encoder that looks at every image once: all kinds of galleries are asked the same."""

    encoder: Encoder
    known: dict[bytes, NDArray[np.float32]] = field(default_factory=dict)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed patches (N, H, W, 3)."""
        key = hashlib.sha256(patches.tobytes()).digest()
        if key not in self.known:
            self.known[key] = self.encoder.encode(patches)
        return self.known[key]


def test_rows(encoder: Encoder, data: Path, *, views: ViewConfig) -> Iterator[dict]:
    """Recall among the test scenes."""
    pairs = embed_pairs(
        encoder,
        scenes_of(data, TEST),
        places=TEST_PLACES,
        seed=TEST_SEED,
        views=views,
        what='test scenes',
    )
    assert encoder.projection is not None
    for kind, found in recalls(pairs, encoder.projection).items():
        yield {'task': 'test scenes', 'descriptor': kind, **found}


def flight_rows(encoder: Encoder, model: Path, flight_folder: Path) -> Iterator[dict]:
    """Recall on a flight, for both kinds of retrieval and of heading."""
    for retrieval, options in RETRIEVALS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'flight.gallery')
            command = [sys.executable, '-m', 'gallery_builder', 'build']
            command += [flight_folder / 'map.tif', '--out', path, '--model', model, *options]
            subprocess.run(command, cwd=REPOSITORY, check=True)
            with open_gallery(path, encoder=encoder) as gallery:
                yield from _gallery_rows(gallery, encoder, flight_folder, retrieval)


def _gallery_rows(
    gallery: Gallery, encoder: Encoder, flight_folder: Path, retrieval: str
) -> Iterator[dict]:
    remembering = Remembering(encoder)
    config = config_for(retrieval)
    config = replace(config, registration=replace(config.registration, enabled=False))
    for heading in HEADINGS:
        for kind in KINDS:
            with compressed(gallery, encoder.projection, kind) as asked:
                localizer = Localizer(asked, remembering, config)
                found = _recall(localizer, flight_folder, heading)
            yield {
                'task': f'Seneca, {retrieval}',
                'heading': heading,
                'descriptor': kind,
                'tiles': asked.manifest.tile_count,
                'bytes_per_tile': asked.manifest.tile_bytes,
                **found,
            }


def compressed(gallery: Gallery, projection: Projection | None, kind: str) -> Gallery:
    """The same gallery with another descriptor: what the builder would have made."""
    assert projection is not None
    manifest, packed = gallery.manifest, KINDS[kind] == 'packed'
    rows = gallery.embeddings(np.arange(manifest.tile_count))
    if KINDS[kind] != 'float32':
        rows = projection.apply(rows)
    if kind == 'packed, Hamming':
        projection = Signed(projection.mean, projection.matrix)
    parameters = index_parameters('flat', manifest.tile_count, packed=packed)
    manifest = replace(
        manifest,
        format_version=EMBEDDING_KINDS[KINDS[kind]],
        embedding_kind=KINDS[kind],
        embedding_dim=rows.shape[1],
        index=parameters,
    )
    raster = GeoPackage.open(gallery.path / MAP_NAME, grid=manifest.grid, crs=manifest.crs)
    index = build_index(rows, parameters)
    return Gallery(gallery.path, manifest, raster, index, projection=projection)


def _recall(localizer: Localizer, flight_folder: Path, heading: str) -> dict[str, float]:
    flight = open_flight(flight_folder)
    hits = dict.fromkeys(RANKS, 0)
    for record in tqdm(flight.records, heading, leave=False, disable=None):
        estimate = localizer.localize(flight.frame(record, heading=heading))
        true = to_projected(
            localizer.gallery.crs, record.truth_center_lat_deg, record.truth_center_lon_deg
        )
        near = [
            np.hypot(tile.east_m - true[0], tile.north_m - true[1]) <= NEAR_M
            for tile in estimate.candidates[: max(RANKS)]
        ]
        for rank in RANKS:
            hits[rank] += any(near[:rank])
    return {f'recall_at_{rank}': hit / len(flight.records) for rank, hit in hits.items()}


def table(rows: list[dict]) -> str:
    """Format the rows as Markdown, one line a task and model, one column a descriptor."""
    lines = [
        '| task | model | heading | ' + ' | '.join(KINDS) + ' |',
        '|---|---|---|' + '---|' * 4,
    ]
    groups: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        key = (row['task'], row['model'], row.get('heading', ''))
        figures = ' / '.join(f'{100 * row[f"recall_at_{rank}"]:.1f}' for rank in RANKS)
        groups.setdefault(key, {})[row['descriptor']] = figures
    for key, found in groups.items():
        cells = [found.get(kind, '') for kind in KINDS]
        lines.append('| ' + ' | '.join([*key, *cells]) + ' |')
    return '\n'.join(lines)


def measure(name: str, path: Path, options: argparse.Namespace) -> Iterator[dict]:
    """All rows of a model, as they are found."""
    encoder = open_encoder(path)
    if encoder.projection is None:
        raise ModelError(f'{path} has no descriptor; {HOW_TO_FIT}')
    views = replace(ViewConfig(), heading_error_deg=options.heading_error_deg)
    parts = [test_rows(encoder, options.data, views=views)]
    if options.flight:
        parts.append(flight_rows(encoder, path.resolve(), options.flight.resolve()))
    for row in itertools.chain(*parts):
        yield {'model': name, 'embedding_dim': encoder.embedding_dim, **row}


def save(rows: list[dict], path: Path) -> None:
    """Write the rows and how they were made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'command': ' '.join(['python', *sys.argv]),
        'revision': git_revision(),
        'rows': rows,
    }
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def main() -> int:
    """Command line; prints the table and writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='+', metavar='NAME=MODEL')
    parser.add_argument('--data', type=Path, required=True, help='folder of training.data.gather')
    parser.add_argument('--flight', type=Path, help='flight folder with map.tif beside it')
    parser.add_argument(
        '--heading-error-deg',
        type=float,
        default=ViewConfig().heading_error_deg,
        help='of the views of the test scenes (%(default)s)',
    )
    parser.add_argument(
        '--out', type=Path, default=REPOSITORY / 'out' / 'evaluation' / 'descriptor.json'
    )
    options = parser.parse_args()
    rows: list[dict] = []
    try:
        for item in options.models:
            name, _, path = item.partition('=')
            for row in measure(name, Path(path), options):
                rows.append(row)
                save(rows, options.out)  # hours of a busy machine are not lost with it
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
