"""What is in a gallery, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.gallery import Gallery, open_gallery
from bicrossnet_ros.geodesy import to_wgs84_many
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.manifest import (
    INDEX_NAME,
    MAP_NAME,
    REBUILD,
    Manifest,
    file_problems,
    read_manifest,
)
from bicrossnet_ros.tile_index import read_index
from bicrossnet_ros.types import FloatArray


def inspect(folder: Path, *, as_json: bool = False) -> str:
    """Describe a gallery without reading its files whole."""
    if as_json:
        return json.dumps(json.loads(read_manifest(folder).to_json()), indent=2)
    with open_gallery(folder, verify=False) as gallery:
        manifest = gallery.manifest
        lat_deg, lon_deg = gallery.origin
        ambiguity = gallery.tile_ambiguity[np.isfinite(gallery.tile_ambiguity)]
        west_m, south_m, east_m, north_m = manifest.bounds_m
    size_mb = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    rows = [
        ('format version', manifest.format_version),
        ('map', f'{east_m - west_m:.1f} x {north_m - south_m:.1f} m at {manifest.gsd_m:g} m/px'),
        ('crs', manifest.crs),
        ('centre', f'{lat_deg:.7f}, {lon_deg:.7f} deg'),
        ('bounds', f'{west_m:.2f}, {south_m:.2f}, {east_m:.2f}, {north_m:.2f} m (W, S, E, N)'),
        ('accuracy', f'{manifest.accuracy_m:g} m (1 sigma, per axis)'),
        ('ground', _height(manifest.ground_ellipsoid_m)),
        (
            'tiles',
            f'{manifest.tile_count} of {manifest.tile_px} px = '
            f'{manifest.tile_px * manifest.gsd_m:g} m, overlap {manifest.overlap:g}',
        ),
        (
            'embeddings',
            f'{manifest.embedding_dim} x {manifest.embedding_kind}, {manifest.tile_bytes} bytes '
            'a tile',
        ),
        ('index', ', '.join(f'{key} {value}' for key, value in manifest.index.items())),
        ('model', f'{manifest.model_name} {manifest.model_id[:16]}...'),
        ('ambiguity', _spread(ambiguity)),
        ('size', f'{size_mb:.1f} MB'),
        *(
            (
                'source',
                f'{source["name"]} {source["sha256"][:16]}..., date {source["date"]}, '
                f'licence {source["licence"]}, scaling {source.get("scaling")}',
            )
            for source in manifest.sources
        ),
        ('built by', f'bicrossnet_ros {manifest.tool_version}'),
    ]
    return '\n'.join(f'{name:<15} {value}' for name, value in rows)


def problems(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a gallery, one sentence each.

    First every file against its checksum; where those hold, every block, tile and vector is
    looked at, which finds a gallery that was built wrongly.
    """
    try:
        manifest = read_manifest(folder)
    except GalleryError as error:
        yield str(error)
        return
    damaged = file_problems(folder, manifest, checksums=True)
    yield from damaged
    if damaged:
        return
    try:
        with open_gallery(folder, verify=False) as gallery:
            yield from _misplaced_tiles(gallery)
        yield from _bad_blocks(folder, manifest)
        yield from _bad_vectors(folder, manifest)
    except GalleryError as error:
        yield str(error)


def _misplaced_tiles(gallery: Gallery) -> Iterator[str]:
    west_m, south_m, east_m, north_m = gallery.manifest.bounds_m
    lat_deg, lon_deg = to_wgs84_many(gallery.crs, gallery.tile_east_m, gallery.tile_north_m)
    good = (
        (gallery.tile_east_m > west_m)
        & (gallery.tile_east_m < east_m)
        & (gallery.tile_north_m > south_m)
        & (gallery.tile_north_m < north_m)
        & (np.abs(lat_deg - gallery.tile_lat_deg) < 1e-7)
        & (np.abs((lon_deg - gallery.tile_lon_deg + 180.0) % 360.0 - 180.0) < 1e-7)
    )
    if not good.all():
        yield (
            f'{gallery.path / MAP_NAME}: tile {int(np.argmin(good))} lies outside the map or its '
            f'latitude and longitude disagree with its east and north; {REBUILD}'
        )


def _bad_blocks(folder: Path, manifest: Manifest) -> Iterator[str]:
    grid = manifest.grid
    with GeoPackage.open(folder / MAP_NAME, grid=grid, crs=manifest.crs) as raster:
        for zoom in range(grid.max_zoom + 1):
            rows, cols = grid.blocks_at(zoom)
            for row in range(rows):
                for col in range(cols):
                    try:
                        raster.read_block(zoom, row, col)
                    except GalleryError as error:
                        yield str(error)


def _bad_vectors(folder: Path, manifest: Manifest) -> Iterator[str]:
    index = read_index(
        folder / INDEX_NAME,
        size=manifest.embedding_dim,
        tile_count=manifest.tile_count,
        parameters=manifest.index,
    )
    if manifest.index['type'] != 'flat':
        return
    for start in range(0, manifest.tile_count, 4096):
        vectors = index.reconstruct_n(start, min(4096, manifest.tile_count - start))
        good = np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < 1e-3
        if not good.all():
            yield (
                f'{folder / INDEX_NAME}: embedding {start + int(np.argmin(good))} has not unit '
                f'length; {REBUILD}'
            )
            return


def _height(ground_ellipsoid_m: float | None) -> str:
    if ground_ellipsoid_m is None:
        return 'height unknown'
    return f'{ground_ellipsoid_m:g} m above the WGS84 ellipsoid'


def _spread(ambiguity: FloatArray) -> str:
    if len(ambiguity) == 0:
        return 'unknown: no two tiles are further apart than one tile size'
    low, middle, high = np.percentile(ambiguity, [0, 50, 100])
    return f'similarity to the likest tile elsewhere: {low:.3f} .. {middle:.3f} .. {high:.3f}'
