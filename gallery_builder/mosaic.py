"""Several maps as one picture: resampled, mosaicked and brought to 8 bit, a window at a time."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from bicrossnet_ros.geopackage_format import Grid
from bicrossnet_ros.types import ImageArray, MaskArray
from gallery_builder.sources import Source, default_crs, describe, open_map, unreadable

_OPEN_MAPS = 16  # files held open at once
_ALPHA_MAX = {'uint8': 255, 'uint16': 65535, 'int16': 32767, 'float32': 1, 'float64': 1}


class Mosaic:
    """Several maps as one 8-bit RGB raster on a grid; the first map that is valid wins.

    Resampling is bilinear with a kernel that widens where the map shrinks, so fine texture is
    averaged, not aliased; on the map's own grid pixels are copied exactly.
    """

    def __init__(self, sources: Sequence[Source], *, crs: str, grid: Grid) -> None:
        self._sources = [turn for source in sources for turn in _turns(source)]
        self._crs = crs
        self._grid = grid
        self._extents_px = [_extent_px(source, crs, grid) for source in self._sources]
        self._open: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def read(
        self, row_px: int, col_px: int, height_px: int, width_px: int
    ) -> tuple[ImageArray, MaskArray]:
        """A window as image (H, W, 3) and mask (H, W); it may reach over the grid's end.

        Raises
        ------
        MapError
            If a file is truncated or damaged.
        """
        image = np.zeros((height_px, width_px, 3), np.uint8)
        mask = np.zeros((height_px, width_px), np.bool_)
        rows = min(height_px, self._grid.height_px - row_px)
        cols = min(width_px, self._grid.width_px - col_px)
        window = Window(col_px, row_px, cols, rows)
        for number, (left, top, right, bottom) in enumerate(self._extents_px):
            if (
                left >= col_px + cols
                or right <= col_px
                or top >= row_px + rows
                or bottom <= row_px
            ):
                continue
            pixels, valid = self._read_source(number, window)
            wanted = valid & ~mask[:rows, :cols]
            if not wanted.any():
                continue
            image[:rows, :cols][wanted] = to_8_bit(pixels[wanted], self._sources[number].scaling)
            mask[:rows, :cols] |= wanted
            if mask[:rows, :cols].all():
                break
        return image, mask

    def close(self) -> None:
        """Close all files."""
        while self._open:
            _, pair = self._open.popitem()
            for dataset in reversed(pair):
                dataset.close()

    def __enter__(self) -> Mosaic:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read_source(self, number: int, window: Window) -> tuple[NDArray[Any], MaskArray]:
        source = self._sources[number]
        bands = sorted(set(source.bands))
        try:
            warped = self._warped(number)
            opacity = source.alpha or warped.count
            values = warped.read([*bands, opacity], window=window)
        except RasterioError as error:
            raise unreadable(source.path, error) from error
        picture, alpha = values[:-1], values[-1]
        valid = (alpha.astype(np.float32) > 127.0) & np.isfinite(picture).all(axis=0)
        return picture[[bands.index(band) for band in source.bands]].transpose(1, 2, 0), valid

    def _warped(self, number: int) -> Any:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][1]
        source = self._sources[number]
        dataset = open_map(source.path)
        warped = warp(dataset, source, crs=self._crs, grid=self._grid)
        self._open[number] = (dataset, warped)
        if len(self._open) > _OPEN_MAPS:
            for old in reversed(self._open.popitem(last=False)[1]):
                old.close()
        return warped


class MapSources:
    """Maps read at any place and resolution, for those who want to look at them as a whole.

    Parameters
    ----------
    paths : sequence of Path
        Where they overlap the first wins.
    crs : str, optional
        Projected CRS in metres; default the UTM zone of their centre.
    bands, assume_crs
        As in `gallery_builder.options.BuildOptions`.

    Attributes
    ----------
    crs : str
    bounds_m : tuple of float
        (west, south, east, north) in `crs`.
    native_gsd_m : float
        Metres per pixel of the finest map.

    Raises
    ------
    MapError
        If a map cannot be used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        crs: str | None = None,
        bands: Sequence[int] | None = None,
        assume_crs: str | None = None,
    ) -> None:
        self._sources = [describe(path, bands=bands, assume_crs=assume_crs) for path in paths]
        self.crs = crs or default_crs(self._sources)
        self.bounds_m = bounds_of(self._sources, self.crs)
        self.native_gsd_m = min(source.gsd_m(self.crs) for source in self._sources)

    def read(
        self, *, west_m: float, north_m: float, gsd_m: float, width_px: int, height_px: int
    ) -> tuple[ImageArray, MaskArray]:
        """A north-up window from its north-west corner: image (H, W, 3) and mask (H, W)."""
        grid = Grid(west_m, north_m, gsd_m, width_px, height_px)
        with Mosaic(self._sources, crs=self.crs, grid=grid) as mosaic:
            return mosaic.read(0, 0, height_px, width_px)


def bounds_of(sources: Sequence[Source], crs: str) -> tuple[float, float, float, float]:
    """(west, south, east, north) of all maps together, in `crs`."""
    points = np.concatenate([source.outline(crs) for source in sources])
    west_m, south_m = points.min(axis=0)
    east_m, north_m = points.max(axis=0)
    return float(west_m), float(south_m), float(east_m), float(north_m)


def warp(dataset: Any, source: Source, *, crs: str, grid: Grid) -> Any:
    """The source on the grid, resampled as it is read.

    Opacity, 0 to 255, is its alpha band, else one added as the last.
    """
    nodata = source.nodata
    if nodata is None and source.dtype.startswith('float'):
        nodata = math.nan
    turned = {} if source.transform == dataset.transform else {'src_transform': source.transform}
    return WarpedVRT(
        dataset,
        src_crs=source.crs_wkt,
        **turned,
        src_nodata=nodata if source.alpha is None else None,
        crs=crs,
        transform=from_origin(grid.west_m, grid.north_m, grid.gsd_m, grid.gsd_m),
        width=grid.width_px,
        height=grid.height_px,
        resampling=Resampling.bilinear,
        add_alpha=source.alpha is None,
        tolerance=0.01,  # pixels; the default of 0.125 would show in registration
        warp_mem_limit=64,
        SRC_ALPHA_MAX=str(_ALPHA_MAX.get(source.dtype, 255)),
        DST_ALPHA_MAX='255',
        UNIFIED_SRC_NODATA='YES',  # nodata is a pixel whose bands are all nodata
    )


def to_8_bit(values: NDArray[Any], scaling: tuple[float, float] | None) -> ImageArray:
    """Map `scaling` linearly to 0..255 and clip; without scaling the values are 8 bit already."""
    if scaling is None:
        return np.asarray(values, np.uint8)
    low, high = scaling
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _turns(source: Source) -> list[Source]:
    """The source, and once more 360 degrees on if it reaches over the antimeridian.

    GDAL's warped rasters look for longitudes in -180..180 only.
    """
    if not CRS.from_wkt(source.crs_wkt).is_geographic:
        return [source]
    corners = [(0, 0), (source.width_px, 0), (0, source.height_px)]
    corners.append((source.width_px, source.height_px))
    transform = source.transform
    lons = [transform.a * col + transform.b * row + transform.c for col, row in corners]
    turns = [source]
    for beyond, shift_deg in ((max(lons) > 180.0, -360.0), (min(lons) < -180.0, 360.0)):
        if beyond:
            a, b, c, d, e, f = transform[:6]
            shifted = type(transform)(a, b, c + shift_deg, d, e, f)
            turns.append(dataclasses.replace(source, transform=shifted))
    return turns


def _extent_px(source: Source, crs: str, grid: Grid) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a source on the grid, a pixel wider than it is."""
    points = source.outline(crs)
    cols = (points[:, 0] - grid.west_m) / grid.gsd_m
    rows = (grid.north_m - points[:, 1]) / grid.gsd_m
    return (
        math.floor(cols.min()) - 1.0,
        math.floor(rows.min()) - 1.0,
        math.ceil(cols.max()) + 1.0,
        math.ceil(rows.max()) + 1.0,
    )
