"""Simulated flights: the projection by definition, the pixels, the folder as it is read."""

import math

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.flight import open_flight
from gallery_builder.flight_plan import FlightPlan, Pose, fly, ground_center_m, ground_to_pixel

pytest.importorskip('rasterio', reason='the builder extra is not installed')

import rasterio
from gallery_fixtures import textured, write_map

from gallery_builder.__main__ import main
from gallery_builder.mosaic import MapSources
from gallery_builder.simulate import expose, render

WEST_M, NORTH_M, GSD_M, SIDE_PX = 300000.0, 4500300.0, 0.25, 1200


@pytest.fixture(scope='module')
def map_path(tmp_path_factory):
    """300 x 300 m of smooth texture at 0.25 m in UTM 17N."""
    path = tmp_path_factory.mktemp('map') / 'texture.tif'
    pixels = textured(SIDE_PX, SIDE_PX, seed=3)
    return write_map(path, pixels, west_m=WEST_M, north_m=NORTH_M, gsd_m=GSD_M)


def pose(**changes):
    level = {
        'stamp_s': 0.0,
        'east_m': 0.0,
        'north_m': 0.0,
        'agl_m': 100.0,
        'roll_deg': 0.0,
        'pitch_deg': 0.0,
        'grid_heading_deg': 0.0,
    }
    return Pose(**{**level, **changes})


def project(plan, at, east_m, north_m):
    col, row, scale = ground_to_pixel(plan, at) @ (east_m - at.east_m, north_m - at.north_m, 1.0)
    assert scale > 0, 'in front of the camera'
    return col / scale, row / scale


def test_level_camera_heading_north_sees_north_at_the_top_and_east_on_the_right():
    plan = FlightPlan()
    center = ((plan.width_px - 1) / 2, (plan.height_px - 1) / 2)
    assert project(plan, pose(), 0, 0) == pytest.approx(center)
    col, row = project(plan, pose(), 10, 0)
    assert col - center[0] == pytest.approx(10 * plan.focal_px / 100)
    assert row == pytest.approx(center[1])
    assert project(plan, pose(), 0, 10)[1] < center[1]


def test_heading_east_puts_east_at_the_top():
    plan = FlightPlan()
    col, row = project(plan, pose(grid_heading_deg=90), 10, 0)
    assert (col, row) == pytest.approx(
        ((plan.width_px - 1) / 2, (plan.height_px - 1) / 2 - 10 * plan.focal_px / 100)
    )


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'pitch_deg': 10}, (0, 1)),  # nose up: looks ahead, which is north
        ({'roll_deg': 10}, (-1, 0)),  # right wing down: looks to the left, which is west
        ({'pitch_deg': 10, 'grid_heading_deg': 90}, (1, 0)),
        ({'roll_deg': 10, 'grid_heading_deg': 180}, (1, 0)),
    ],
)
def test_tilt_moves_the_image_centre_by_height_times_its_tangent(changes, expected):
    center = ground_center_m(FlightPlan(), pose(**changes))
    distance_m = 100 * math.tan(math.radians(10))
    assert center == pytest.approx(tuple(distance_m * part for part in expected), abs=1e-9)


def test_rendered_pixels_are_the_map_where_the_projection_says(map_path):
    plan = FlightPlan(width_px=320, height_px=240)
    at = pose(
        east_m=WEST_M + 150.3,
        north_m=NORTH_M - 149.1,
        agl_m=70.0,
        roll_deg=6.0,
        pitch_deg=-4.0,
        grid_heading_deg=33.0,
    )
    image, mask = render(plan, at, MapSources([map_path]))
    assert mask.all()
    with rasterio.open(map_path) as raster:
        chart = raster.read().transpose(1, 2, 0).astype(np.float64)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(200):
        east_m, north_m = np.array([at.east_m, at.north_m]) + rng.uniform(-8, 8, 2)
        col, row = project(plan, at, east_m, north_m)
        map_col, map_row = (east_m - WEST_M) / GSD_M - 0.5, (NORTH_M - north_m) / GSD_M - 0.5
        seen = cv2.getRectSubPix(image.astype(np.float32), (1, 1), (col, row))[0, 0]
        there = cv2.getRectSubPix(chart.astype(np.float32), (1, 1), (map_col, map_row))[0, 0]
        differences.append(np.abs(seen - there).max())
    assert np.median(differences) < 2.0  # grey levels; shifted by one map pixel it is over 5
    assert max(differences) < 12.0


def test_poses_stay_inside_and_depend_on_the_seed_alone():
    plan = FlightPlan(frames=50, min_agl_m=60, max_agl_m=100)
    bounds_m = (0.0, 0.0, 300.0, 400.0)
    poses = list(fly(plan, bounds_m))
    assert poses == list(fly(plan, bounds_m))
    assert poses != list(fly(FlightPlan(frames=50, max_agl_m=100, seed=2), bounds_m))
    for at in poses:
        for east, north in ((0, 0), (639, 0), (0, 479), (639, 479)):
            ground = np.linalg.solve(ground_to_pixel(plan, at), (east, north, 1.0))
            assert 0 <= at.east_m + ground[0] / ground[2] <= 300
            assert 0 <= at.north_m + ground[1] / ground[2] <= 400


def test_exposure_changes_the_light_but_not_the_geometry(map_path):
    plan = FlightPlan(width_px=320, height_px=240)
    at = pose(east_m=WEST_M + 150, north_m=NORTH_M - 150)
    image, _ = render(plan, at, MapSources([map_path]))
    exposed = expose(image, np.random.default_rng(1))
    assert exposed.shape == image.shape
    assert np.abs(exposed.astype(int) - image.astype(int)).mean() > 3
    gray = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32) for one in (image, exposed)]
    shift, _ = cv2.phaseCorrelate(*gray)
    assert np.hypot(*shift) < 2.0  # pixels; motion blur moves the centroid a little


def test_command_line_writes_a_flight_that_reads_back(map_path, tmp_path, capsys):
    out = tmp_path / 'flight'
    arguments = ['simulate', str(map_path), '--out', str(out), '--frames', '4']
    assert main([*arguments, '--agl-m', '60', '90', '--size-px', '320', '240']) == 0
    flight = open_flight(out)
    assert len(flight.records) == 4
    assert flight.truth_is_map_relative
    for record in flight.records:
        assert not record.problem
        assert record.has_truth
        assert record.has_center_truth
        assert flight.image(record).shape == (240, 320, 3)
    assert main(arguments) == 2
    assert 'is not empty' in capsys.readouterr().err


def test_a_map_that_is_too_small_is_refused_with_its_size(map_path, tmp_path, capsys):
    arguments = ['simulate', str(map_path), '--out', str(tmp_path / 'flight'), '--frames', '4']
    assert main([*arguments, '--agl-m', '900', '1000']) == 2
    assert 'the map is 300 m wide' in capsys.readouterr().err
    with pytest.raises(MapError, match='fly lower'):
        next(fly(FlightPlan(min_agl_m=900, max_agl_m=900), (0, 0, 300, 300)))


@pytest.mark.parametrize(
    'changes',
    [{'frames': 0}, {'min_agl_m': 200.0}, {'hfov_deg': 170.0}, {'width_px': 8}, {'hz': 0.0}],
)
def test_impossible_plans_are_refused(changes):
    with pytest.raises(ConfigError, match='flight plan'):
        FlightPlan(**changes)
