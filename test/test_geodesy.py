"""Conversions against definitions, a second implementation and the edges of the globe."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Geod

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.geodesy import (
    LocalFrame,
    check_map_crs,
    check_position,
    grid_convergence_deg,
    heading_to_yaw_rad,
    metric_crs,
    to_projected,
    to_wgs84,
    to_wgs84_many,
    utm_epsg,
    wrap_deg,
    yaw_to_heading_deg,
)

UTM_17N = 'EPSG:32617'
latitudes = st.floats(-79.9, 83.9)
longitudes = st.floats(-180.0, 180.0)


@given(latitudes, longitudes)
def test_the_zone_contains_the_position(lat_deg, lon_deg):
    code = utm_epsg(lat_deg, lon_deg)
    assert code // 100 == (326 if lat_deg >= 0 else 327)
    zone = code % 100
    assert 1 <= zone <= 60
    middle_deg = -183.0 + 6.0 * zone
    assert abs(wrap_deg(lon_deg - middle_deg)) <= 3.0 + 1e-9


@pytest.mark.parametrize(
    ('lat_deg', 'lon_deg', 'code'),
    [
        (41.035, -83.305, 32617),
        (-33.9, 151.2, 32756),
        (0.0, 0.0, 32631),
        (10.0, 180.0, 32601),  # the antimeridian from either side
        (10.0, -180.0, 32601),
        (10.0, 179.9999, 32660),
        (-1e-9, 3.0, 32731),
    ],
)
def test_known_zones(lat_deg, lon_deg, code):
    assert utm_epsg(lat_deg, lon_deg) == code


@pytest.mark.parametrize('lat_deg', [84.01, 90.0, -80.01, -90.0])
def test_the_poles_have_no_zone(lat_deg):
    with pytest.raises(ConfigError, match='lies outside UTM'):
        utm_epsg(lat_deg, 0.0)


@pytest.mark.parametrize(
    ('lat_deg', 'lon_deg'),
    [(90.1, 0.0), (-91.0, 0.0), (0.0, 180.1), (math.nan, 0.0), (0.0, math.inf)],
)
def test_positions_off_the_globe_are_refused(lat_deg, lon_deg):
    with pytest.raises(ConfigError, match='is not a WGS84 latitude and longitude'):
        check_position(lat_deg, lon_deg)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('EPSG:4326', 'is not projected in metres'),
        ('EPSG:2263', 'is not projected in metres'),  # New York, in feet
        ('EPSG:999999', 'is unknown; name one like EPSG:32617'),
        ('', 'is unknown'),
    ],
)
def test_other_systems_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        metric_crs(name)
    assert metric_crs(UTM_17N).to_epsg() == 32617


@settings(deadline=None)
@given(latitudes, longitudes)
def test_projecting_and_back_is_the_same_place(lat_deg, lon_deg):
    crs = f'EPSG:{utm_epsg(lat_deg, lon_deg)}'
    back = to_wgs84(crs, *to_projected(crs, lat_deg, lon_deg))
    assert back[0] == pytest.approx(lat_deg, abs=1e-8)
    assert abs(wrap_deg(back[1] - lon_deg)) < 1e-7 / max(math.cos(math.radians(lat_deg)), 0.1)


def test_a_zone_reaches_over_the_antimeridian():
    west = to_projected('EPSG:32601', 10.0, -179.9999)
    east = to_projected('EPSG:32601', 10.0, 179.9999)
    assert west[0] - east[0] == pytest.approx(
        0.0002 * 111320 * math.cos(math.radians(10)), abs=0.2
    )


def test_the_antimeridian_comes_back_as_a_position():
    check_position(*to_wgs84('EPSG:32601', *to_projected('EPSG:32601', 0.0, 180.0)))


def test_many_at_once_are_as_one_by_one():
    east, north = np.array([306000.0, 306500.0]), np.array([4545000.0, 4545600.0])
    lat_deg, lon_deg = to_wgs84_many(UTM_17N, east, north)
    assert [to_wgs84(UTM_17N, e, n) for e, n in zip(east, north, strict=True)] == [
        pytest.approx(pair) for pair in zip(lat_deg, lon_deg, strict=True)
    ]


def test_impossible_projections_are_refused():
    with pytest.raises(ConfigError, match='cannot be expressed in EPSG:32617'):
        to_projected(UTM_17N, math.nan, 0.0)


# Convergence


def test_convergence_at_seneca_is_as_surveyed():
    """The flight's truth: grid rotation = true rotation + 1.5 deg."""
    assert grid_convergence_deg(UTM_17N, 41.0351, -83.3050) == pytest.approx(1.51, abs=0.01)


@settings(deadline=None)
@given(st.floats(-79.0, 79.0), st.floats(-83.9, -78.1))
def test_convergence_is_the_direction_of_north_on_the_grid(lat_deg, lon_deg):
    """Definition: walk a little north and see where the grid says that this leads."""
    east, north = to_projected(UTM_17N, lat_deg, lon_deg)
    ahead_east, ahead_north = to_projected(UTM_17N, lat_deg + 1e-4, lon_deg)
    expected = math.degrees(math.atan2(ahead_east - east, ahead_north - north))
    assert grid_convergence_deg(UTM_17N, lat_deg, lon_deg) == pytest.approx(expected, abs=1e-3)


@given(st.floats(0.0, 79.0), st.floats(0.01, 3.0))
def test_convergence_is_odd_about_the_central_meridian(lat_deg, offset_deg):
    west = grid_convergence_deg(UTM_17N, lat_deg, -81.0 - offset_deg)
    east = grid_convergence_deg(UTM_17N, lat_deg, -81.0 + offset_deg)
    assert west == pytest.approx(-east, abs=1e-7)
    assert west >= -1e-7


@pytest.mark.parametrize(
    ('crs', 'lat_deg', 'lon_deg', 'expected_deg'),
    [
        ('EPSG:27572', 48.0, 2.0, 0.2458),  # counts longitude from Paris, 2.337 deg east
        ('EPSG:2048', -33.9, 18.5, 179.7211),  # axes to west and south
        ('EPSG:2193', -41.0, 174.5, 0.9842),  # names north before east
        ('EPSG:32661', 86.0, 170.0, -170.0),  # around the pole
    ],
)
def test_convergence_on_grids_of_other_making(crs, lat_deg, lon_deg, expected_deg):
    found_deg = grid_convergence_deg(crs, lat_deg, lon_deg)
    assert found_deg == pytest.approx(expected_deg, abs=2e-4)


# Grids fit for a map


def bounds_around(crs, lat_deg, lon_deg):
    east_m, north_m = to_projected(crs, lat_deg, lon_deg)
    return east_m - 300.0, north_m - 200.0, east_m + 300.0, north_m + 200.0


@pytest.mark.parametrize(
    ('crs', 'lat_deg', 'lon_deg', 'message'),
    [
        ('EPSG:3857', 41.0, -83.0, r'metre of ground as 1\.323 to 1\.328 m.* EPSG:32617'),
        ('EPSG:3857', -41.0, -83.0, r'expected 1 to within 1%; take .* EPSG:32717'),
        ('EPSG:32617', 41.0, -65.0, r'EPSG:32617 at 41\.0000, -65\.0000 deg.* EPSG:32620'),
        ('EPSG:3031', -86.0, 40.0, r'as 0\.974 to 0\.974 m.* EPSG:32761'),
        ('EPSG:2048', -33.9, 18.5, r'true north 179\.7 deg clockwise.* EPSG:32734'),
        ('EPSG:5513', 49.8, 15.5, r'is mirrored; expected axes to east and north.* EPSG:32633'),
        ('EPSG:32661', 86.0, math.nan, 'cannot be expressed'),
    ],
)
def test_grids_that_would_falsify_height_or_heading_are_refused(crs, lat_deg, lon_deg, message):
    bounds_m = (math.nan,) * 4 if math.isnan(lon_deg) else bounds_around(crs, lat_deg, lon_deg)
    with pytest.raises(ConfigError, match=message):
        check_map_crs(crs, bounds_m)


@settings(deadline=None)
@given(latitudes, longitudes)
def test_the_zone_of_a_place_is_fit_for_its_map(lat_deg, lon_deg):
    crs = f'EPSG:{utm_epsg(lat_deg, lon_deg)}'
    check_map_crs(crs, bounds_around(crs, lat_deg, lon_deg))


@pytest.mark.parametrize(
    ('crs', 'lat_deg', 'lon_deg'),
    [
        ('EPSG:2193', -41.0, 174.5),
        ('EPSG:5514', 49.8, 15.5),
        ('EPSG:2056', 47.0, 8.0),
        ('EPSG:32661', 86.0, 170.0),
        ('EPSG:3857', 1.0, -83.0),  # at the equator Web Mercator is true
    ],
)
def test_other_true_grids_are_fit_for_a_map(crs, lat_deg, lon_deg):
    check_map_crs(crs, bounds_around(crs, lat_deg, lon_deg))


# Headings


@given(st.floats(-1e6, 1e6))
def test_wrapping_stays_in_range_and_keeps_the_angle(angle_deg):
    wrapped = wrap_deg(angle_deg)
    assert -180.0 <= wrapped < 180.0
    turns = (angle_deg - wrapped) / 360.0
    assert turns == pytest.approx(round(turns), abs=1e-6)


@given(st.floats(0.0, 359.99))
def test_heading_and_yaw_are_inverse(heading_deg):
    back = yaw_to_heading_deg(heading_to_yaw_rad(heading_deg))
    assert abs(wrap_deg(back - heading_deg)) < 1e-9


def test_known_headings():
    assert heading_to_yaw_rad(0.0) == pytest.approx(math.pi / 2)  # north
    assert heading_to_yaw_rad(90.0) == pytest.approx(0.0)  # east
    assert yaw_to_heading_deg(math.pi) == pytest.approx(270.0)  # west


# Local frame


@settings(deadline=None)
@given(
    st.floats(-90.0, 90.0),
    longitudes,
    st.floats(-100.0, 4000.0),
    st.floats(-5000.0, 5000.0),
    st.floats(-5000.0, 5000.0),
    st.floats(-500.0, 3000.0),
)
def test_local_frames_round_trip_everywhere(lat_deg, lon_deg, height_m, east, north, up):
    frame = LocalFrame(lat_deg, lon_deg, height_m)
    lat, lon, ellipsoid_m = frame.to_wgs84(np.array([east, north, up]))
    assert abs(lat) <= 90.0
    assert frame.to_enu_m(lat, lon, ellipsoid_m) == pytest.approx([east, north, up], abs=1e-4)


@settings(deadline=None)
@given(st.floats(-85.0, 85.0), longitudes, st.floats(0.0, 360.0), st.floats(1.0, 1000.0))
def test_local_distance_and_direction_are_the_geodesics(lat_deg, lon_deg, azimuth_deg, distance_m):
    lon, lat, _ = Geod(ellps='WGS84').fwd(lon_deg, lat_deg, azimuth_deg, distance_m)
    assume(abs(lat) <= 90.0)
    east, north, up = LocalFrame(lat_deg, lon_deg).to_enu_m(lat, lon)
    assert math.hypot(east, north) == pytest.approx(distance_m, rel=1e-6, abs=1e-5)
    turned = wrap_deg(math.degrees(math.atan2(east, north)) - azimuth_deg)
    assert abs(turned) < 0.01
    # The Earth curves away: d^2 / 2R.
    assert up == pytest.approx(-(distance_m**2) / 2 / 6.371e6, rel=0.02, abs=1e-6)


def test_the_origin_is_zero_and_a_height_is_up():
    frame = LocalFrame(41.0, -83.0, 250.0)
    assert frame.to_enu_m(41.0, -83.0) == pytest.approx([0.0, 0.0, 0.0], abs=1e-8)
    assert frame.to_enu_m(41.0, -83.0, 260.0) == pytest.approx([0.0, 0.0, 10.0], abs=1e-7)


def test_a_frame_off_the_globe_is_refused():
    with pytest.raises(ConfigError, match='is not a WGS84'):
        LocalFrame(95.0, 0.0)
