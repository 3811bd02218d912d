"""The maps a gallery is made from: what each file holds, and how it becomes 8-bit RGB."""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.geodesy import utm_epsg
from bicrossnet_ros.manifest import sha256_of
from bicrossnet_ros.types import FloatArray

WGS84 = 'EPSG:4326'
PERCENTILES = (1.0, 99.0)
_SAMPLED_WINDOWS = 64
_WINDOW_PX = 256


@dataclass(frozen=True)
class Source:
    """One map file.

    Parameters
    ----------
    path : Path
    sha256 : str
        Of the file.
    date : str or None
        When the map says it was made.
    crs_wkt : str
        Its CRS.
    transform : affine.Affine
        Pixel corner (col, row) to CRS coordinates; may rotate.
    width_px, height_px : int
    bands : tuple of int
        Three bands (from 1) that are red, green and blue; the same three times for grey.
    dtype : str
    nodata : float or None
    alpha : int or None
        Band of opacity.
    scaling : tuple of float or None
        Values that become 0 and 255; None for 8-bit maps, which are taken as they are.
    """

    path: Path
    sha256: str
    date: str | None
    crs_wkt: str
    transform: Any
    width_px: int
    height_px: int
    bands: tuple[int, int, int]
    dtype: str
    nodata: float | None
    alpha: int | None
    scaling: tuple[float, float] | None

    def outline(self, crs: str, *, points_per_edge: int = 33) -> FloatArray:
        """Points (N, 2) along the border of the map, (x, y) in `crs`.

        Raises
        ------
        MapError
            If they cannot be expressed there.
        """
        steps = np.linspace(0.0, 1.0, points_per_edge)
        zero, one = np.zeros_like(steps), np.ones_like(steps)
        cols = np.concatenate([steps, one, steps[::-1], zero]) * self.width_px
        rows = np.concatenate([zero, steps, one, steps[::-1]]) * self.height_px
        return self.to_crs(crs, cols, rows)

    def to_crs(self, crs: str, cols: FloatArray, rows: FloatArray) -> FloatArray:
        """Pixel corner coordinates to (N, 2) points in `crs`."""
        x, y = _apply(self.transform, cols, rows)
        transformer = Transformer.from_crs(CRS.from_wkt(self.crs_wkt), crs, always_xy=True)
        try:
            east, north = transformer.transform(x, y, errcheck=True)
        except ProjError as error:
            raise MapError(
                f'{self.path} cannot be expressed in {crs} ({error}); is its own CRS right? '
                'Otherwise name a fitting one with --crs'
            ) from error
        points = np.stack([east, north], axis=-1)
        if not np.isfinite(points).all():
            raise MapError(
                f'{self.path} cannot be expressed in {crs}; is its own CRS right? '
                'Otherwise name a fitting one with --crs'
            )
        return np.asarray(points, np.float64)

    def gsd_m(self, crs: str) -> float:
        """Side of the square with the area of the central pixel, in metres of `crs`."""
        cols = self.width_px / 2 + np.array([0.0, 1.0, 0.0])
        rows = self.height_px / 2 + np.array([0.0, 0.0, 1.0])
        corner, right, down = self.to_crs(crs, cols, rows)
        (a, b), (c, d) = right - corner, down - corner
        return math.sqrt(abs(a * d - b * c))

    def record(self, licence: str | None) -> dict[str, Any]:
        """What the gallery's manifest keeps of this map."""
        scaling = 'none (8 bit)'
        if self.scaling is not None:
            scaling = f'{self.scaling[0]:g}..{self.scaling[1]:g} to 0..255'
        return {
            'name': self.path.name,
            'sha256': self.sha256,
            'date': self.date,
            'licence': licence,
            'scaling': scaling,
        }


def open_map(path: Path) -> Any:
    """Open a raster with rasterio.

    Raises
    ------
    MapError
        If it is not there or not a raster.
    """
    if not path.exists():
        raise MapError(f'map {path} does not exist')
    if not path.is_file():
        raise MapError(f'map {path} is a folder; name the raster files themselves')
    if path.stat().st_size == 0:
        raise MapError(f'map {path} is empty (0 bytes); fetch it again')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        raise MapError(
            f'map {path} is not a raster that GDAL can read ({error}); expected a georeferenced '
            'raster such as a GeoTIFF'
        ) from error


def describe(
    path: Path,
    *,
    bands: Sequence[int] | None = None,
    assume_crs: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> Source:
    """Read what a build must know of one map.

    Raises
    ------
    MapError
        If the map cannot be used; the message says why and what helps.
    """
    with open_map(path) as dataset:
        if dataset.count == 0:
            raise MapError(
                f'map {path} has no bands of its own; export the wanted layer as a GeoTIFF '
                '(gdal_translate)'
            )
        crs_wkt = _crs_wkt(dataset, path, assume_crs)
        _check_transform(dataset, path)
        chosen = choose_bands(dataset, path, bands)
        dtype = str(dataset.dtypes[chosen[0] - 1])
        if dtype.startswith('complex'):
            raise MapError(f'map {path} has complex values; expected brightness, 8 or 16 bit')
        alpha = _alpha_band(dataset)
        scaling = None if dtype == 'uint8' else _sample_scaling(dataset, path, chosen)
        _check_latitudes(dataset, crs_wkt, path)
        return Source(
            path=path,
            sha256=sha256_of(path, advance=advance),
            date=_date(dataset.tags().get('TIFFTAG_DATETIME')),
            crs_wkt=crs_wkt,
            transform=dataset.transform,
            width_px=dataset.width,
            height_px=dataset.height,
            bands=chosen,
            dtype=dtype,
            nodata=None if dataset.nodata is None else float(dataset.nodata),
            alpha=alpha,
            scaling=scaling,
        )


def choose_bands(dataset: Any, path: Path, bands: Sequence[int] | None) -> tuple[int, int, int]:
    """The bands taken as red, green and blue; grey gives the same three times."""
    if bands is not None:
        if max(bands) > dataset.count:
            raise MapError(
                f'--bands {",".join(map(str, bands))}: map {path} has only {dataset.count} band(s)'
            )
        return (bands[0], bands[0], bands[0]) if len(bands) == 1 else tuple(bands)  # type: ignore[return-value]
    meaning = dict(zip(dataset.colorinterp, dataset.indexes, strict=False))
    if ColorInterp.palette in meaning:
        raise MapError(
            f'map {path} has a colour table, whose indices cannot be resampled; expand it first: '
            'gdal_translate -expand rgb'
        )
    primary = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in meaning for colour in primary):
        return meaning[primary[0]], meaning[primary[1]], meaning[primary[2]]
    picture = [
        index
        for index, colour in zip(dataset.indexes, dataset.colorinterp, strict=True)
        if colour != ColorInterp.alpha
    ]
    if len(picture) == 1:
        return picture[0], picture[0], picture[0]
    if len(picture) in (3, 4):  # the fourth of four is near infrared
        return picture[0], picture[1], picture[2]
    raise MapError(
        f'map {path} has {len(picture)} bands and does not say which are red, green and blue; '
        'name them with --bands, for example --bands 3,2,1'
    )


def default_crs(sources: Sequence[Source]) -> str:
    """The UTM zone of the maps' common centre, right across the antimeridian too."""
    points = np.concatenate([source.outline(WGS84) for source in sources])
    lon, lat = np.radians(points[:, 0]), np.radians(points[:, 1])
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    lon_deg = math.degrees(math.atan2(y.mean(), x.mean()))
    lat_deg = math.degrees(math.atan2(z.mean(), math.hypot(x.mean(), y.mean())))
    try:
        return f'EPSG:{utm_epsg(lat_deg, lon_deg)}'
    except ConfigError as error:
        raise MapError(f'{error}; give it with --crs') from error


def _apply(transform: Any, cols: FloatArray, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    x = transform.a * cols + transform.b * rows + transform.c
    y = transform.d * cols + transform.e * rows + transform.f
    return x, y


def _alpha_band(dataset: Any) -> int | None:
    for index, colour in zip(dataset.indexes, dataset.colorinterp, strict=True):
        if colour == ColorInterp.alpha:
            return int(index)
    return None


def _crs_wkt(dataset: Any, path: Path, assume_crs: str | None) -> str:
    if dataset.crs is not None and dataset.crs.to_wkt():
        return str(dataset.crs.to_wkt())
    if assume_crs is None:
        raise MapError(
            f'map {path} names no coordinate reference system; if you know it, give it with '
            '--assume-crs, for example --assume-crs EPSG:32617'
        )
    try:
        return str(CRS.from_user_input(assume_crs).to_wkt('WKT1_GDAL'))
    except CRSError as error:
        raise MapError(
            f'--assume-crs {assume_crs!r} is unknown; name one like EPSG:32617'
        ) from error


def _check_transform(dataset: Any, path: Path) -> None:
    if dataset.transform.is_identity:
        hint = ' (it has ground control points only)' if dataset.gcps[0] else ''
        raise MapError(
            f'map {path} has no geotransform{hint}: nothing says where its pixels lie; '
            'georeference it first (gdalwarp, QGIS Georeferencer)'
        )
    determinant = dataset.transform.determinant
    if not math.isfinite(determinant) or determinant == 0.0:
        raise MapError(f'map {path} has a geotransform without area: {dataset.transform!r}')


def _check_latitudes(dataset: Any, crs_wkt: str, path: Path) -> None:
    south, north = sorted((dataset.bounds.bottom, dataset.bounds.top))
    if CRS.from_wkt(crs_wkt).is_geographic and (south < -90.001 or north > 90.001):
        raise MapError(
            f'map {path} claims latitudes from {south:g} to {north:g} degrees; its geotransform '
            'or its CRS is wrong: georeference it again'
        )


def _date(text: str | None) -> str | None:
    """TIFF's 'YYYY:MM:DD HH:MM:SS' in ISO 8601; anything else as it is."""
    match = re.fullmatch(r'(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)', text or '')
    return '{}-{}-{}T{}'.format(*match.groups()) if match else text


def _sample_scaling(dataset: Any, path: Path, bands: tuple[int, ...]) -> tuple[float, float]:
    """Percentiles of all chosen bands together: the colours keep their balance."""
    samples: list[NDArray[Any]] = []
    for window in _shuffled_windows(dataset.width, dataset.height):
        try:
            values = dataset.read(sorted(set(bands)), window=window)
            valid = dataset.dataset_mask(window=window) > 0
        except RasterioError as error:
            raise unreadable(path, error) from error
        valid = valid & np.isfinite(values).all(axis=0)
        if valid.any():
            samples.append(values[:, valid].ravel()[:: 1 + valid.sum() // 20000])
        if len(samples) >= _SAMPLED_WINDOWS:
            break
    if not samples:
        raise MapError(f'map {path} has no valid pixel: all are nodata or masked')
    low, high = np.percentile(np.concatenate(samples).astype(np.float64), PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def _shuffled_windows(width_px: int, height_px: int) -> Iterator[Window]:
    cols, rows = math.ceil(width_px / _WINDOW_PX), math.ceil(height_px / _WINDOW_PX)
    order = list(range(cols * rows))
    random.Random(0).shuffle(order)
    for number in order:
        col, row = number % cols * _WINDOW_PX, number // cols * _WINDOW_PX
        yield Window(col, row, min(_WINDOW_PX, width_px - col), min(_WINDOW_PX, height_px - row))


def unreadable(path: Path, error: Exception) -> MapError:
    """The error of a map whose pixels cannot be read."""
    return MapError(
        f'map {path} cannot be read to its end ({error}); it is truncated or damaged: fetch it '
        'again'
    )
