"""What a build will make, worked out before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bicrossnet_ros.errors import GalleryError, MapError
from bicrossnet_ros.geodesy import check_map_crs
from bicrossnet_ros.geopackage_format import BLOCK_PX, Grid
from gallery_builder.mosaic import bounds_of
from gallery_builder.options import BuildOptions
from gallery_builder.sources import Source, default_crs
from gallery_builder.tiles import tile_starts

DEFAULT_GSD_M = 0.25
MAX_TILES = 20_000_000
MAX_SIDE_PX = 1 << 22
_BYTES_PER_PX = 1.6  # measured on farm land: JPEG and the PNG of edges, overviews included


@dataclass(frozen=True)
class Plan:
    """Extent, resolution and size of a gallery to be built.

    Parameters
    ----------
    crs : str
        'EPSG:...' of the gallery.
    grid : Grid
    native_gsd_m : float
        Of the finest source.
    max_tiles : int
        Tiles if every pixel is valid.
    map_bytes, index_bytes : int
        Upper estimates of the files' sizes.
    work_bytes : int
        The floats that are kept until the index stands.
    """

    crs: str
    grid: Grid
    native_gsd_m: float
    max_tiles: int
    map_bytes: int
    index_bytes: int
    work_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Space that the build takes at its peak."""
        return self.map_bytes + self.index_bytes + self.work_bytes + 1_000_000

    def describe(self, options: BuildOptions) -> str:
        """The plan in two lines for people."""
        grid = self.grid
        return (
            f'map: {grid.width_px} x {grid.height_px} px at {grid.gsd_m:g} m '
            f'({grid.width_px * grid.gsd_m:.0f} x {grid.height_px * grid.gsd_m:.0f} m) in '
            f'{self.crs}; finest source {self.native_gsd_m:.3g} m\n'
            f'estimate: up to {self.max_tiles} tiles of {options.tile_px * grid.gsd_m:g} m, '
            f'{(self.map_bytes + self.index_bytes) / 1e6:.1f} MB on disk '
            f'({self.needed_bytes / 1e6:.1f} MB while building)'
        )


def plan_build(sources: Sequence[Source], options: BuildOptions, *, embedding_dim: int) -> Plan:
    """Choose CRS, extent and resolution.

    Raises
    ------
    MapError, ConfigError
        If they cannot be chosen sensibly.
    """
    crs = options.crs or default_crs(sources)
    native_gsd_m = min(source.gsd_m(crs) for source in sources)
    gsd_m = options.gsd_m or max(DEFAULT_GSD_M, native_gsd_m)
    if gsd_m < 0.25 * native_gsd_m:
        raise MapError(
            f'--gsd-m {gsd_m:g} is finer than a quarter of the finest map ({native_gsd_m:.3g} m): '
            f'there is nothing to see; take at least {native_gsd_m:.2g}'
        )
    grid = _grid(sources, crs, gsd_m)
    check_map_crs(crs, grid.bounds_m)
    tile_count = _count_tiles(grid, options)
    work_bytes = 4 * embedding_dim * tile_count
    return Plan(
        crs=crs,
        grid=grid,
        native_gsd_m=native_gsd_m,
        max_tiles=tile_count,
        map_bytes=int(_BYTES_PER_PX * grid.width_px * grid.height_px) + 200 * tile_count + 100_000,
        index_bytes=work_bytes // 32 if options.embedding_kind == 'packed' else work_bytes,
        work_bytes=work_bytes,
    )


def check_disk(plan: Plan, folder: Path) -> None:
    """Raise GalleryError unless the estimate fits the disk."""
    free = shutil.disk_usage(folder).free
    if free < plan.needed_bytes:
        raise GalleryError(
            f'the build needs about {plan.needed_bytes / 1e6:.0f} MB but {folder} has only '
            f'{free / 1e6:.0f} MB free; free some, choose another --out or a coarser --gsd-m'
        )


def _grid(sources: Sequence[Source], crs: str, gsd_m: float) -> Grid:
    """The smallest grid over all maps; its corner is theirs, so an unchanged grid stays exact."""
    west_m, south_m, east_m, north_m = bounds_of(sources, crs)
    # A thousandth of a pixel is rounding, not another pixel.
    width_px = math.ceil((east_m - west_m) / gsd_m - 1e-3)
    height_px = math.ceil((north_m - south_m) / gsd_m - 1e-3)
    if max(width_px, height_px) > MAX_SIDE_PX:
        raise MapError(
            f'the maps span {(east_m - west_m) / 1e3:.0f} x {(north_m - south_m) / 1e3:.0f} km, '
            f'{width_px} x {height_px} px at {gsd_m:g} m; at most {MAX_SIDE_PX} px a side: take a '
            'coarser --gsd-m, or maps that lie together'
        )
    return Grid(west_m, north_m, gsd_m, max(width_px, 1), max(height_px, 1))


def _count_tiles(grid: Grid, options: BuildOptions) -> int:
    tile_px, stride_px = options.tile_px, options.stride_px
    covered = min(grid.width_px, tile_px) * min(grid.height_px, tile_px) / tile_px**2
    if covered < options.min_valid:
        raise MapError(
            f'the map is {grid.width_px * grid.gsd_m:.1f} x {grid.height_px * grid.gsd_m:.1f} m '
            f'but a tile is {tile_px * grid.gsd_m:.1f} m: not one fits; take a finer --gsd-m '
            f'(now {grid.gsd_m:g}), a smaller --tile-px (now {tile_px}), or a larger map'
        )
    count = len(tile_starts(grid.width_px, tile_px=tile_px, stride_px=stride_px)) * len(
        tile_starts(grid.height_px, tile_px=tile_px, stride_px=stride_px)
    )
    if count > MAX_TILES:
        raise MapError(
            f'{count} tiles; at most {MAX_TILES}: take a coarser --gsd-m or a smaller --overlap'
        )
    return count


def block_total(grid: Grid) -> tuple[int, int]:
    """Number of blocks of the finest level and of all coarser ones."""
    counts = [rows * cols for rows, cols in map(grid.blocks_at, range(grid.max_zoom + 1))]
    assert BLOCK_PX * 2**grid.max_zoom >= max(grid.width_px, grid.height_px)
    return counts[-1], sum(counts[:-1])
