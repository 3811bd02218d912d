"""Conversions between WGS84, a projected CRS and a local plane; the only module that makes them.

Everything horizontal goes through PROJ (pyproj). Heights are WGS84 ellipsoid heights.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.types import FloatArray

WGS84 = 'EPSG:4326'
WGS84_GEOCENTRIC = 'EPSG:4978'
MAX_SCALE_ERROR = 0.01
"""Of a map's grid: UTM stays below it up to 8 degrees of longitude from its middle."""
MAX_CONVERGENCE_DEG = 45.0
_PROBE_M = 50.0
_ELLIPSOID = Geod(ellps='WGS84')


def utm_epsg(lat_deg: float, lon_deg: float) -> int:
    """EPSG code of the WGS84 UTM zone of a position (6 degrees wide, no Norway exceptions).

    Raises
    ------
    ConfigError
        If the position is not on Earth or lies where UTM is not defined (beyond 84 N or 80 S).
    """
    check_position(lat_deg, lon_deg)
    if not _has_utm(lat_deg):
        raise ConfigError(
            f'latitude {lat_deg:.3f} deg lies outside UTM (80 S to 84 N); '
            'name a projected CRS in metres'
        )
    zone = int((lon_deg + 180.0) % 360.0 // 6.0) + 1
    return (32600 if lat_deg >= 0.0 else 32700) + zone


def check_position(lat_deg: float, lon_deg: float) -> None:
    """Raise ConfigError unless the position is finite and within +-90, +-180 degrees."""
    if (
        math.isfinite(lat_deg)
        and math.isfinite(lon_deg)
        and abs(lat_deg) <= 90
        and abs(lon_deg) <= 180
    ):
        return
    raise ConfigError(
        f'position ({lat_deg}, {lon_deg}) is not a WGS84 latitude and longitude in degrees'
    )


def metric_crs(name: str) -> CRS:
    """Parse a CRS and insist that it is projected, in metres.

    Raises
    ------
    ConfigError
        If `name` is unknown to PROJ, geographic, or has another unit.
    """
    try:
        crs = CRS.from_user_input(name)
    except CRSError as error:
        raise ConfigError(f'CRS {name!r} is unknown; name one like EPSG:32617') from error
    units = {axis.unit_name for axis in crs.axis_info[:2]}
    if not crs.is_projected or units != {'metre'}:
        raise ConfigError(
            f'CRS {name!r} is not projected in metres (its unit is {sorted(units)}); '
            'take a UTM zone such as EPSG:32617'
        )
    return crs


@functools.lru_cache(maxsize=32)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def to_projected(crs: str, lat_deg: float, lon_deg: float) -> tuple[float, float]:
    """WGS84 to (east_m, north_m) in `crs`; raises ConfigError where the CRS is not defined."""
    try:
        east_m, north_m = _transformer(WGS84, crs).transform(lon_deg, lat_deg, errcheck=True)
    except ProjError as error:
        raise ConfigError(
            f'({lat_deg}, {lon_deg}) cannot be expressed in {crs}: {error}'
        ) from error
    if not (math.isfinite(east_m) and math.isfinite(north_m)):
        raise ConfigError(f'({lat_deg}, {lon_deg}) cannot be expressed in {crs}')
    return float(east_m), float(north_m)


def to_wgs84(crs: str, east_m: float, north_m: float) -> tuple[float, float]:
    """(east_m, north_m) in `crs` to (lat_deg, lon_deg)."""
    lon_deg, lat_deg = _transformer(crs, WGS84).transform(east_m, north_m)
    if 180.0 < abs(lon_deg) < 181.0:  # PROJ rounds the antimeridian to -180.00000000000003
        lon_deg = wrap_deg(lon_deg)
    return float(lat_deg), float(lon_deg)


def to_wgs84_many(
    crs: str, east_m: FloatArray, north_m: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Vector form of `to_wgs84`: arrays of the same shape in and out."""
    lon_deg, lat_deg = _transformer(crs, WGS84).transform(east_m, north_m)
    return np.asarray(lat_deg, np.float64), np.asarray(lon_deg, np.float64)


def grid_axes(crs: str, lat_deg: float, lon_deg: float) -> FloatArray:
    """Where a metre to the true east and one to the true north lead on the grid of a CRS.

    Measured by projecting points `_PROBE_M` away: unlike PROJ's factors this holds for axes that
    point west or south, and for a CRS with another prime meridian than Greenwich.

    Returns
    -------
    ndarray of shape (2, 2), float64
        Columns: the step to true east and the one to true north; rows: grid (east, north).

    Raises
    ------
    ConfigError
        If the place cannot be expressed in the CRS.
    """
    columns = []
    for azimuth_deg in (90.0, 0.0):
        ends = []
        for turn_deg in (0.0, 180.0):
            lon, lat, _ = _ELLIPSOID.fwd(lon_deg, lat_deg, azimuth_deg + turn_deg, _PROBE_M)
            ends.append(np.array(to_projected(crs, float(lat), float(lon))))
        columns.append((ends[0] - ends[1]) / (2.0 * _PROBE_M))
    return np.stack(columns, axis=1)


def grid_convergence_deg(crs: str, lat_deg: float, lon_deg: float) -> float:
    """Direction of true north measured clockwise from the CRS's grid north.

    A heading from true north plus the convergence is the heading from grid north:
    `grid_heading_deg = heading_deg + grid_convergence_deg(...)`. On UTM's northern half it is
    negative east of the central meridian, positive west of it.
    """
    east, north = grid_axes(crs, lat_deg, lon_deg)[:, 1]
    return math.degrees(math.atan2(east, north))


def check_map_crs(crs: str, bounds_m: tuple[float, float, float, float]) -> None:
    """Insist that at the centre of a map a metre of its grid is a metre, and up is north.

    Heights above ground and headings are read off the map's grid: in Web Mercator at 41 degrees
    of latitude 70 m of height would become 92 m.

    Parameters
    ----------
    crs : str
        The map's.
    bounds_m : tuple of float
        (west, south, east, north) of the map in `crs`.

    Raises
    ------
    ConfigError
        If the scale is off by more than `MAX_SCALE_ERROR` in any direction, the grid is mirrored,
        or its second axis points more than `MAX_CONVERGENCE_DEG` away from north. The last does
        not count beyond the reach of UTM, where every polar grid does.

    References
    ----------
    The largest and least scale are the semi-axes of Tissot's indicatrix: J. P. Snyder, "Map
    projections: a working manual", USGS Professional Paper 1395, 1987.
    """
    west_m, south_m, east_m, north_m = bounds_m
    lat_deg, lon_deg = to_wgs84(crs, 0.5 * (west_m + east_m), 0.5 * (south_m + north_m))
    axes = grid_axes(crs, lat_deg, lon_deg)
    place = f'{crs} at {lat_deg:.4f}, {lon_deg:.4f} deg'
    remedy = f'take the CRS of that place, {_local_crs(lat_deg, lon_deg)}'
    high, low = np.linalg.svd(axes)[1]
    if high > 1.0 + MAX_SCALE_ERROR or low < 1.0 - MAX_SCALE_ERROR:
        raise ConfigError(
            f'{place} draws a metre of ground as {low:.3f} to {high:.3f} m: heights and distances '
            f'would be wrong; expected 1 to within {MAX_SCALE_ERROR:.0%}; {remedy}'
        )
    if np.linalg.det(axes) < 0.0:
        raise ConfigError(f'{place} is mirrored; expected axes to east and north; {remedy}')
    convergence_deg = math.degrees(math.atan2(axes[0, 1], axes[1, 1]))
    if _has_utm(lat_deg) and abs(convergence_deg) > MAX_CONVERGENCE_DEG:
        raise ConfigError(
            f'{place} has true north {convergence_deg:.1f} deg clockwise from its second axis; '
            f'expected axes to east and north, within {MAX_CONVERGENCE_DEG:g} deg; {remedy}'
        )


def _has_utm(lat_deg: float) -> bool:
    return -80.0 <= lat_deg <= 84.0


def _local_crs(lat_deg: float, lon_deg: float) -> str:
    """UTM, or UPS around the poles."""
    if _has_utm(lat_deg):
        return f'EPSG:{utm_epsg(lat_deg, lon_deg)}'
    return 'EPSG:32661' if lat_deg > 0.0 else 'EPSG:32761'


def wrap_deg(angle_deg: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle_deg + 180.0) % 360.0 - 180.0


def heading_to_yaw_rad(heading_deg: float) -> float:
    """Heading (degrees clockwise from north) to yaw (radians counter-clockwise from east)."""
    return math.radians(wrap_deg(90.0 - heading_deg))


def yaw_to_heading_deg(yaw_rad: float) -> float:
    """REP 103 yaw (radians counter-clockwise from east) to heading in [0, 360) degrees."""
    return (90.0 - math.degrees(yaw_rad)) % 360.0


class LocalFrame:
    """An East-North-Up tangent plane at a WGS84 origin.

    Parameters
    ----------
    lat_deg, lon_deg : float
        Origin.
    ellipsoid_m : float
        Height of the origin above the WGS84 ellipsoid.

    References
    ----------
    Geocentric to topocentric conversion: EPSG Guidance Note 7-2, method 9836.
    """

    def __init__(self, lat_deg: float, lon_deg: float, ellipsoid_m: float = 0.0) -> None:
        check_position(lat_deg, lon_deg)
        self.lat_deg = lat_deg
        self.lon_deg = lon_deg
        self.ellipsoid_m = ellipsoid_m
        lat, lon = math.radians(lat_deg), math.radians(lon_deg)
        self._enu_from_ecef = np.array(
            [
                [-math.sin(lon), math.cos(lon), 0.0],
                [-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)],
                [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)],
            ]
        )
        self._origin_ecef_m = self._ecef_m(lat_deg, lon_deg, ellipsoid_m)

    @staticmethod
    def _ecef_m(lat_deg: float, lon_deg: float, ellipsoid_m: float) -> FloatArray:
        transformer = _transformer('EPSG:4979', WGS84_GEOCENTRIC)
        return np.array(transformer.transform(lon_deg, lat_deg, ellipsoid_m), dtype=np.float64)

    def to_enu_m(
        self, lat_deg: float, lon_deg: float, ellipsoid_m: float | None = None
    ) -> FloatArray:
        """WGS84 to (east, north, up) in metres from the origin, shape (3,).

        Without a height the point is taken at the origin's height.
        """
        height_m = self.ellipsoid_m if ellipsoid_m is None else ellipsoid_m
        offset = self._ecef_m(lat_deg, lon_deg, height_m) - self._origin_ecef_m
        return np.asarray(self._enu_from_ecef @ offset, np.float64)

    def to_wgs84(self, enu_m: FloatArray) -> tuple[float, float, float]:
        """(east, north, up) in metres to (lat_deg, lon_deg, ellipsoid_m)."""
        ecef = self._origin_ecef_m + self._enu_from_ecef.T @ np.asarray(enu_m, np.float64)
        lon, lat, height = _transformer(WGS84_GEOCENTRIC, 'EPSG:4979').transform(*ecef)
        return float(lat), float(lon), float(height)
