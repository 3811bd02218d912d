"""Georeferenced rasters cut into squares of equal ground, as 8-bit RGB.

The squares lie in the raster's own CRS if its unit is a metre on the ground (within 1 % at the
raster's centre), else in the UTM zone of the centre: geographic coordinates, Web Mercator away
from the equator and grids in feet all give squares of true size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError, ImageError
from training.data.scenes import LEAST_SIDE_PX

SUFFIXES = {'.tif', '.tiff', '.jp2', '.png', '.jpg', '.jpeg'}
MISSING_LIMIT = 0.05  # of a square, beyond which it is left out

_METRE_TOLERANCE = 0.01
_PERCENTILES = (1.0, 99.0)  # of deeper rasters become 0 and 255, all bands together
_SAMPLED_SQUARES = 32
_ALPHA_MAX = {'uint8': 255, 'uint16': 65535, 'int16': 32767, 'float32': 1, 'float64': 1}


@dataclass(frozen=True)
class RasterGrid:
    """The squares of one raster.

    Parameters
    ----------
    path : Path
        The raster.
    crs : str
        Of the squares, as WKT or EPSG code.
    west_m, north_m : float
        North-west corner of the first square.
    rows, cols : int
        Squares that fit.
    side_m : float
        Of a square.
    side_px : int
        Of its image.
    """

    path: Path
    crs: str
    west_m: float
    north_m: float
    rows: int
    cols: int
    side_m: float
    side_px: int

    def read(self) -> Iterator[tuple[int, int, NDArray[np.uint8], float]]:
        """Read all squares: row, col, image (side_px, side_px, 3), share that is missing.

        Raises
        ------
        ConfigError
            If it is not clear which bands are red, green and blue.
        ImageError
            If the file is damaged.
        """
        from rasterio.errors import RasterioError

        with _open(self.path) as dataset:
            bands, alpha = _bands(dataset, self.path)
            try:
                with self._warped(dataset, alpha) as warped:
                    alpha = alpha or warped.count
                    scaling = self._scaling(warped, bands, alpha)
                    for row in range(self.rows):
                        for col in range(self.cols):
                            values, valid = self._square(warped, bands, alpha, row, col)
                            values[~valid] = 0 if scaling is None else scaling[0]
                            yield row, col, to_8_bit(values, scaling), 1 - float(valid.mean())
            except RasterioError as error:
                raise _damaged(self.path, error) from error

    def _warped(self, dataset: Any, alpha: int | None) -> Any:
        """Resample onto the squares; the kernel widens where pixels get larger: no aliasing."""
        from rasterio.enums import Resampling
        from rasterio.transform import from_origin
        from rasterio.vrt import WarpedVRT

        dtype = dataset.dtypes[0]
        nodata = dataset.nodata
        if nodata is None and dtype.startswith('float'):
            nodata = math.nan
        gsd_m = self.side_m / self.side_px
        return WarpedVRT(
            dataset,
            src_nodata=nodata if alpha is None else None,
            crs=self.crs,
            transform=from_origin(self.west_m, self.north_m, gsd_m, gsd_m),
            width=self.cols * self.side_px,
            height=self.rows * self.side_px,
            resampling=Resampling.bilinear,
            add_alpha=alpha is None,
            SRC_ALPHA_MAX=str(_ALPHA_MAX.get(dtype, 255)),
            DST_ALPHA_MAX='255',
            UNIFIED_SRC_NODATA='YES',  # nodata is a pixel whose bands are all nodata
        )

    def _square(
        self, warped: Any, bands: tuple[int, ...], alpha: int, row: int, col: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        from rasterio.windows import Window

        side = self.side_px
        values = warped.read([*bands, alpha], window=Window(col * side, row * side, side, side))
        picture = np.ascontiguousarray(values[:-1].transpose(1, 2, 0))
        valid = (values[-1].astype(np.float32) > 127) & np.isfinite(picture).all(axis=-1)
        return picture, valid

    def _scaling(
        self, warped: Any, bands: tuple[int, ...], alpha: int
    ) -> tuple[float, float] | None:
        """Percentiles of squares spread over the raster; None for 8 bit."""
        if warped.dtypes[0] == 'uint8':
            return None
        count = self.rows * self.cols
        samples = [np.zeros(0)]
        for number in range(0, count, max(1, count // _SAMPLED_SQUARES)):
            values, valid = self._square(warped, bands, alpha, *divmod(number, self.cols))
            samples.append(values[valid].ravel()[::7])
        values = np.concatenate(samples).astype(np.float64)
        if not len(values):
            return 0.0, 1.0
        low, high = np.percentile(values, _PERCENTILES)
        return float(low), float(max(high, low + 1e-6))


def raster_grid(path: Path, *, side_m: float, side_px: int) -> RasterGrid:
    """Lay squares over a raster, as many as fit, about its middle.

    The grid has no rows or no columns if the raster is smaller than a square.

    Raises
    ------
    ConfigError
        If the raster does not say where it lies, or is too coarse for such squares.
    ImageError
        If it cannot be opened.
    """
    from rasterio.errors import RasterioError
    from rasterio.vrt import WarpedVRT

    with _open(path) as dataset:
        crs = _metric_crs(dataset, path)
        try:
            with WarpedVRT(dataset, crs=crs) as warped:
                west_m, south_m, east_m, north_m = warped.bounds
                native_px = side_m / max(warped.res)
        except RasterioError as error:
            raise _damaged(path, error) from error
    if native_px < LEAST_SIDE_PX:
        raise ConfigError(
            f'{path}: a square of {side_m:g} m has {native_px:.1f} px in it; expected '
            f'{LEAST_SIDE_PX} or more: raise data.scene_m or remove the raster'
        )
    # A square that lacks a hair of the last pixel still fits.
    cols, rows = (
        int((far - near) / side_m + 1e-6) for near, far in ((west_m, east_m), (south_m, north_m))
    )
    return RasterGrid(
        path=path,
        crs=crs,
        west_m=west_m + (east_m - west_m - cols * side_m) / 2,
        north_m=north_m - (north_m - south_m - rows * side_m) / 2,
        rows=rows,
        cols=cols,
        side_m=side_m,
        side_px=side_px,
    )


def to_8_bit(values: NDArray[Any], scaling: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Map `scaling` linearly to 0..255 and clip; without it the values are 8 bit already."""
    if scaling is None:
        return np.asarray(values, np.uint8)
    low, high = scaling
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _open(path: Path) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        raise ImageError(
            f'{path}: not a raster that GDAL can read ({error}); replace or remove it'
        ) from error


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(
        f'{path}: cannot be read to its end ({error}); it is cut off or damaged: fetch it again'
    )


def _metric_crs(dataset: Any, path: Path) -> str:
    """The raster's CRS if it measures metres on the ground, else its UTM zone."""
    from pyproj import CRS, Geod, Transformer
    from pyproj.exceptions import ProjError

    if dataset.crs is None or dataset.transform.is_identity:
        raise ConfigError(
            f'{path}: does not say where it lies (no CRS or no geotransform), but data.scene_m is '
            'set; georeference it (gdalwarp, QGIS) or set data.scene_m: 0, each image one scene'
        )
    wkt = str(dataset.crs.to_wkt())
    middle = dataset.transform * (dataset.width / 2, dataset.height / 2)
    aside = dataset.transform * (dataset.width / 2 + 1, dataset.height / 2)
    try:
        crs = CRS.from_wkt(wkt)
        to_wgs84 = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True)
        lons, lats = to_wgs84.transform(*zip(middle, aside, strict=True), errcheck=True)
    except ProjError as error:
        raise ConfigError(
            f'{path}: its CRS cannot be expressed in latitude and longitude ({error}); '
            'georeference it again'
        ) from error
    if crs.is_projected:
        true_m = Geod(ellps='WGS84').inv(lons[0], lats[0], lons[1], lats[1])[2]
        claimed = math.dist(middle, aside)
        if abs(true_m - claimed) <= _METRE_TOLERANCE * claimed:
            return wkt
    return _utm(lats[0], lons[0])


def _utm(lat_deg: float, lon_deg: float) -> str:
    """UTM zone of a place, polar stereographic beyond 84 N and 80 S."""
    if lat_deg > 84 or lat_deg < -80:
        return 'EPSG:32661' if lat_deg > 0 else 'EPSG:32761'
    zone = int((lon_deg + 180) % 360 // 6) + 1
    return f'EPSG:{(32600 if lat_deg >= 0 else 32700) + zone}'


def _bands(dataset: Any, path: Path) -> tuple[tuple[int, int, int], int | None]:
    """Bands of red, green and blue (grey: one of them three times), and of opacity."""
    from rasterio.enums import ColorInterp

    meaning = dict(zip(dataset.colorinterp, dataset.indexes, strict=True))
    alpha = meaning.get(ColorInterp.alpha)
    primary = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in meaning for colour in primary):
        red, green, blue = (meaning[colour] for colour in primary)
        return (red, green, blue), alpha
    picture = [index for index in dataset.indexes if index != alpha]
    if ColorInterp.palette in meaning:
        raise ConfigError(
            f'{path}: has a colour table; expand it first (gdal_translate -expand rgb)'
        )
    if len(picture) == 1:
        return (picture[0],) * 3, alpha
    if len(picture) in (3, 4):  # the fourth of four is near infrared
        return (picture[0], picture[1], picture[2]), alpha
    raise ConfigError(
        f'{path}: has {len(picture)} bands and does not say which are red, green and blue; choose '
        'them first (gdal_translate -b 3 -b 2 -b 1 -colorinterp red,green,blue)'
    )
