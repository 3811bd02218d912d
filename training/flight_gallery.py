"""Galleries of one map for many models: built once, embedded by each, with distractors or not.

`gallery_builder` makes one gallery per kind of retrieval, with the tiles that the product takes.
Any encoder then embeds the same tiles, and the tiles of other scenes beside the map; what comes
out is a gallery that `open_gallery` opens as any other. Embeddings are kept as files named after
all that they depend on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bicrossnet_ros.descriptor import HOW_TO_FIT, Projection
from bicrossnet_ros.encoder import Encoder
from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.gallery import Gallery, open_gallery
from bicrossnet_ros.geodesy import to_wgs84_many
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.geopackage_format import TileRow
from bicrossnet_ros.manifest import EMBEDDING_KINDS, INDEX_NAME, MANIFEST_NAME, MAP_NAME, sha256_of
from bicrossnet_ros.tile_index import Float32Array, build_index, index_parameters, write_index
from bicrossnet_ros.types import FloatArray, ImageArray
from training.flight_mosaic import Mosaic
from training.progress import counted

BATCH = 64
# How the product's own gallery is made, and the paper's: 64 m tiles every 16 m.
RETRIEVALS: dict[str, tuple[str, ...]] = {
    'vote': (),
    'single': ('--gsd-m', '0.25', '--tile-px', '256', '--overlap', '0.75'),
}


class FlightEncoder(Protocol):
    """What is embedded with: an `encoder.Encoder`, or `baselines.vlad.Vlad`."""

    @property
    def model_id(self) -> str:
        """SHA-256 of what makes the embeddings."""

    @property
    def model_name(self) -> str:
        """For people."""

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""

    def encode(self, patches: ImageArray) -> Float32Array:
        """uint8 RGB (N, H, W, 3) to unit rows (N, D)."""


@dataclass(frozen=True)
class Tiles:
    """Where tiles lie, and their pixels batch by batch.

    Parameters
    ----------
    centers_m : ndarray of shape (T, 2)
        (east, north).
    source : Gallery or Mosaic
        Where the pixels come from.
    fingerprint : str
        Of the pixels and places.
    """

    centers_m: FloatArray
    corners_px: np.ndarray[Any, np.dtype[np.int64]]
    tile_px: int
    source: Gallery | Mosaic
    fingerprint: str

    def __len__(self) -> int:
        return len(self.centers_m)

    def image(self, row: int) -> ImageArray:
        """Pixels (tile_px, tile_px, 3); where there is no map, the mean colour of the rest."""
        if isinstance(self.source, Mosaic):
            return self.source.cut(*self.corners_px[row].tolist(), self.tile_px)
        size_m = self.tile_px * self.source.manifest.gsd_m
        window = self.source.window(*self.centers_m[row].tolist(), size_m=size_m)
        if window.mask.all():
            return window.image
        image = window.image.copy()
        image[~window.mask] = np.rint(image[window.mask].mean(axis=0)).astype(np.uint8)
        return image


def build_base(map_path: Path, folder: Path, retrieval: str) -> Path:
    """Build the gallery whose map and tiles all models share, with the model that is shipped.

    One that an earlier run built is taken again if map, options and builder are the same.

    Raises
    ------
    MapError
        If `gallery_builder` cannot; its own words are above on standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f'base_{retrieval}-{_recipe(map_path, retrieval)}.gallery'
    if (out / MANIFEST_NAME).is_file():
        return out
    for stale in folder.glob(f'base_{retrieval}-*.gallery*'):
        shutil.rmtree(stale)
    command = [sys.executable, '-m', 'gallery_builder', 'build', str(map_path), '--out', str(out)]
    command += ['--force', '--restart', *RETRIEVALS[retrieval]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        found = done.stderr.strip().splitlines() or ['no message']
        raise MapError(f'no gallery of {map_path}: {found[-1].removeprefix("error: ")}')
    return out


def _recipe(map_path: Path, retrieval: str) -> str:
    """Hash of what a base is built from; the builder's defaults stand in its code."""
    digest = hashlib.sha256(repr(RETRIEVALS[retrieval]).encode())
    try:
        digest.update(sha256_of(map_path).encode())
    except OSError as error:
        raise MapError(f'{map_path}: cannot be read ({error.strerror})') from error
    package = importlib.util.find_spec('gallery_builder')
    for folder in (package.submodule_search_locations or ()) if package else ():
        for module in sorted(Path(folder).glob('*.py')):
            digest.update(module.read_bytes())
    return digest.hexdigest()[:12]


def map_tiles(base: Gallery) -> Tiles:
    """The tiles of a gallery's own map."""
    centers = np.stack([base.tile_east_m, base.tile_north_m], axis=1)
    manifest = base.manifest
    # Not that of map.gpkg, which holds the time when it was written.
    sources = [(source['sha256'], source.get('scaling')) for source in manifest.sources]
    made_of = (sources, manifest.crs, manifest.bounds_m, manifest.gsd_m, manifest.tile_px)
    digest = hashlib.sha256(repr(made_of).encode() + centers.tobytes())
    return Tiles(
        centers,
        np.zeros((len(centers), 2), np.int64),
        manifest.tile_px,
        base,
        digest.hexdigest()[:16],
    )


def mosaic_tiles(base: Gallery, mosaic: Mosaic) -> Tiles:
    """The tiles of the scenes beside the map, on the lattice of its own, west to east."""
    manifest = base.manifest
    stride_px = max(1, round(manifest.tile_px * (1.0 - manifest.overlap)))
    corners = mosaic.corners(manifest.tile_px, stride_px)
    if len(corners) == 0:
        raise ConfigError(
            f'{mosaic.scenes} distractor scenes hold no tile of {manifest.tile_px} px; expected '
            'at least one larger scene, or leave out the condition distractors'
        )
    west_m, north_m = mosaic_corner_m(base)
    middle = corners + 0.5 * manifest.tile_px
    centers = np.stack(
        [west_m + middle[:, 1] * manifest.gsd_m, north_m - middle[:, 0] * manifest.gsd_m], axis=1
    )
    digest = hashlib.sha256(f'{mosaic.fingerprint} {manifest.tile_px}'.encode())
    digest.update(centers.tobytes())
    return Tiles(centers, corners, manifest.tile_px, mosaic, digest.hexdigest()[:16])


GAP_M = 200.0


def mosaic_corner_m(base: Gallery) -> tuple[float, float]:
    """Where the scenes' first corner lies: on the lattice, far enough east of the map."""
    west, _, east, north = base.manifest.bounds_m
    stride_m = base.tile_size_m * (1.0 - base.manifest.overlap)
    return west + stride_m * math.ceil((east - west + GAP_M) / stride_m), north


def embeddings_of(tiles: Tiles, encoder: FlightEncoder, folder: Path, label: str) -> Float32Array:
    """Embed tiles, or read what an earlier run embedded.

    Parameters
    ----------
    tiles : Tiles
    encoder : FlightEncoder
    folder : Path
        For the file.
    label : str
        Of the model and the tiles, for the file's name and the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{label}-{encoder.model_id[:12]}-{tiles.fingerprint}.npy'
    if path.is_file():
        try:
            kept = np.load(path, mmap_mode='r')
        except (ValueError, EOFError):
            kept = np.zeros((0, 0), np.float32)
        if kept.shape == (len(tiles), encoder.embedding_dim):
            return np.asarray(kept)
    for stale in folder.glob(f'{label}-*.npy'):
        stale.unlink()
    rows = np.empty((len(tiles), encoder.embedding_dim), np.float32)
    starts = range(0, len(tiles), BATCH)
    for start in counted(starts, f'{label}: tiles by {BATCH}', len(starts)):
        stop = min(start + BATCH, len(tiles))
        rows[start:stop] = encoder.encode(np.stack([tiles.image(k) for k in range(start, stop)]))
    partial = path.with_suffix('.partial')
    with partial.open('wb') as stream:
        np.save(stream, rows)
    partial.replace(path)
    return rows


def write_gallery(
    base: Gallery,
    out: Path,
    encoder: FlightEncoder,
    parts: Sequence[tuple[FloatArray, Float32Array]],
    *,
    descriptor: str = 'float32',
) -> Path:
    """Write a gallery with the map of another one and tiles of one's own.

    Parameters
    ----------
    base : Gallery
        Whose map it shows.
    out : Path
        Folder NAME.gallery; replaced.
    encoder : FlightEncoder
        What made the embeddings.
    parts : sequence of (centers_m, embeddings)
        Tile centres (T, 2) as (east, north), and their rows (T, D).
    descriptor : str
        One of `manifest.EMBEDDING_KINDS`: what is stored of the rows.

    Raises
    ------
    ConfigError
        If a compressed descriptor is asked for and the model has none.
    """
    centers_m = np.concatenate([centers for centers, _ in parts])
    embeddings = np.concatenate([rows for _, rows in parts])
    packed = descriptor == 'packed'
    if descriptor != 'float32':
        embeddings = _projection(encoder).apply(embeddings)
    partial = out.with_suffix('.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    manifest = base.manifest
    shutil.copyfile(base.path / MAP_NAME, partial / MAP_NAME)
    with GeoPackage.open(
        partial / MAP_NAME, grid=manifest.grid, crs=manifest.crs, write=True
    ) as raster:
        raster.connection.execute('BEGIN')
        raster.delete_tiles()
        raster.write_tiles(_tile_rows(manifest.crs, centers_m))
        raster.connection.execute('COMMIT')
    parameters = index_parameters('flat', len(centers_m), packed=packed)
    write_index(build_index(embeddings, parameters), partial / INDEX_NAME)
    manifest = replace(
        manifest,
        format_version=EMBEDDING_KINDS[descriptor],
        tile_count=len(centers_m),
        embedding_dim=embeddings.shape[1],
        embedding_kind=descriptor,
        preprocessing=_preprocessing(encoder),
        model_id=encoder.model_id,
        model_name=encoder.model_name,
        index=parameters,
        files={name: sha256_of(partial / name) for name in (MAP_NAME, INDEX_NAME)},
    )
    (partial / MANIFEST_NAME).write_text(manifest.to_json(), encoding='ascii')
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def open_written(path: Path, encoder: FlightEncoder, *, descriptor: str = 'float32') -> Gallery:
    """Open what `write_gallery` wrote a moment ago: its checksums need no second look."""
    if descriptor == 'float32':
        return open_gallery(path, verify=False)
    assert isinstance(encoder, Encoder), 'write_gallery asked for its projection'
    return open_gallery(path, encoder=encoder, verify=False)


def _projection(encoder: FlightEncoder) -> Projection:
    found = encoder.projection if isinstance(encoder, Encoder) else None
    if found is None:
        raise ConfigError(
            f'{encoder.model_name} has no compressed descriptor: {HOW_TO_FIT}; or --descriptors '
            'none'
        )
    return found


def _preprocessing(encoder: FlightEncoder) -> dict[str, Any]:
    return encoder.preprocessing.to_dict() if isinstance(encoder, Encoder) else {}


def _tile_rows(crs: str, centers_m: FloatArray) -> Iterator[TileRow]:
    lat_deg, lon_deg = to_wgs84_many(crs, centers_m[:, 0], centers_m[:, 1])
    columns = centers_m[:, 0], centers_m[:, 1], lat_deg, lon_deg
    for tile_id, values in enumerate(zip(*columns, strict=True)):
        yield TileRow(tile_id, *map(float, values))
