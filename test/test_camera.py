"""Lens and ground geometry, against definitions written out ray by ray."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localizer_scene import GSD_M, LENS, NORTH_M, WEST_M, Shot, ground_texture, render

from bicrossnet_ros.camera import (
    GroundView,
    apply,
    check_agl,
    check_attitude,
    check_image,
    check_view,
    clockwise,
    rotation_camera_from_world,
    top_heading_deg,
)
from bicrossnet_ros.config import CameraConfig
from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.lens import (
    assumed_intrinsics,
    camera_matrix,
    check_intrinsics,
    distorted,
    one_to_one_radius_px,
    scaled_intrinsics,
    undistorted,
)
from bicrossnet_ros.patch import FramePyramid, ground_patch
from bicrossnet_ros.types import Attitude, Intrinsics

PLUMB = replace(LENS, distortion=(-0.21, 0.06, 0.0, 0.0, 0.0))
TANGENTIAL = replace(LENS, distortion=(-0.2, 0.05, 0.002, -0.001, 0.01))
RATIONAL = replace(
    LENS, distortion=(0.3, -0.1, 0.001, 0.001, 0.02, 0.5, -0.05, 0.01), model='rational_polynomial'
)
FISHEYE = replace(LENS, distortion=(0.02, -0.01, 0.002, 0.0), model='equidistant')
FOLDS_BEYOND = replace(LENS, distortion=(-0.22, 0.0, 0.002, -0.001))
FOLDS_INSIDE = replace(LENS, distortion=(-1.2, 0.0, 0.0, 0.0))
WIDER_THAN_90 = replace(LENS, fx_px=95.0, fy_px=95.0, model='equidistant')
OFF_MIDDLE = replace(PLUMB, cx_px=40.0, cy_px=210.0)
# Folds from 31 degrees on, and comes back in time for the corners at 89.
FOLDS_NEAR_THE_MIDDLE = Intrinsics(
    640, 480, 267.68, 267.68, 319.5, 239.5, (-2.29204, 2.79543, -1.09953, 0.13759), 'equidistant'
)
LENSES = (LENS, PLUMB, TANGENTIAL, RATIONAL, FISHEYE)
NAMES = ('ideal', 'plumb_bob', 'tangential', 'rational', 'equidistant')

angles = st.floats(-30, 30)


def view_of(shot):
    config = CameraConfig(
        mount_roll_deg=shot.mount[0], mount_pitch_deg=shot.mount[1], mount_yaw_deg=shot.mount[2]
    )
    rotation = rotation_camera_from_world(
        shot.attitude, config, grid_heading_deg=shot.grid_heading_deg
    )
    return GroundView(shot.lens, rotation, shot.agl_m)


def corners(lens):
    return np.array(
        [[0, 0], [lens.width_px - 1, 0], [0, lens.height_px - 1], [40.5, 200.25], [160, 120]],
        float,
    )


# Lens


@pytest.mark.parametrize('lens', LENSES, ids=NAMES)
def test_distortion_and_its_inverse_cancel(lens):
    points = corners(lens)
    assert distorted(lens, undistorted(lens, points)) == pytest.approx(points, abs=1e-3)


def test_plumb_bob_is_its_formula():
    k1, k2, p1, p2, k3 = TANGENTIAL.distortion
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    ideal = apply(camera_matrix(LENS), np.array([[x, y]]))
    assert distorted(TANGENTIAL, ideal) == pytest.approx(
        apply(camera_matrix(LENS), np.array([[u, v]])), abs=1e-9
    )


def test_equidistant_without_coefficients_is_proportional_to_the_angle():
    lens = replace(LENS, fx_px=200.0, fy_px=200.0, model='equidistant')
    ideal = np.array([[lens.cx_px + 200.0 * math.tan(0.5), lens.cy_px]])
    assert distorted(lens, ideal)[0, 0] - lens.cx_px == pytest.approx(200.0 * 0.5, abs=1e-6)


def test_no_points_are_no_error():
    for lens in LENSES:
        assert distorted(lens, np.zeros((0, 2))).shape == (0, 2)
        assert undistorted(lens, np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize('lens', LENSES, ids=NAMES)
def test_one_to_one_radius_reaches_the_farthest_corner(lens):
    off = np.linalg.norm(undistorted(lens, corners(lens)) - [lens.cx_px, lens.cy_px], axis=1)
    assert off.max() < one_to_one_radius_px(lens) < 1.05 * off.max()


def test_coefficients_may_be_a_list():
    listed = replace(TANGENTIAL, distortion=list(TANGENTIAL.distortion))
    assert one_to_one_radius_px(listed) == one_to_one_radius_px(TANGENTIAL)


def test_a_lens_that_folds_in_the_frame_has_no_one_to_one_radius():
    assert one_to_one_radius_px(FOLDS_BEYOND) > 0
    assert one_to_one_radius_px(FOLDS_INSIDE) == 0
    assert one_to_one_radius_px(FOLDS_NEAR_THE_MIDDLE) == 0


@pytest.mark.parametrize(
    'lens',
    [*LENSES[1:], FOLDS_BEYOND, FOLDS_INSIDE, WIDER_THAN_90, OFF_MIDDLE],
    ids=(*NAMES[1:], 'folds_beyond', 'folds_inside', 'wider_than_90', 'off_middle'),
)
def test_a_patch_shows_what_comes_home_through_the_lens(lens):
    shot = Shot(0.0, 0.0, 100.0, heading_deg=40.0, pitch_deg=-6.0, roll_deg=8.0, lens=lens)
    view = view_of(shot)
    image = np.full((lens.height_px, lens.width_px, 3), 128, np.uint8)
    patch = ground_patch(FramePyramid(image), view, size_px=(560, 560), gsd_m=min(view.gsd_m, 0.4))
    rows, cols = np.mgrid[0:560, 0:560]
    ideal = apply(patch.frame_from_patch, np.stack([cols.ravel(), rows.ravel()], axis=1))
    real = distorted(lens, ideal)
    seen = ((real >= 0) & (real <= [lens.width_px - 1, lens.height_px - 1])).all(axis=1)
    seen[seen] = np.linalg.norm(undistorted(lens, real[seen]) - ideal[seen], axis=1) < 1.0
    assert patch.mask.mean() > 0.1
    assert np.array_equal(patch.mask, seen.reshape(560, 560))


@given(st.integers(1, 5))
def test_scaled_intrinsics_see_the_same_rays(factor):
    scaled = scaled_intrinsics(LENS, (240 * factor, 320 * factor, 3))
    # A pixel's outer corners stay where they were; centres shift by half a pixel.
    old = (np.array([100.0, 50.0]) + 0.5 - [LENS.cx_px + 0.5, LENS.cy_px + 0.5]) / [
        LENS.fx_px,
        LENS.fy_px,
    ]
    new_px = (np.array([100.0, 50.0]) + 0.5) * factor - 0.5
    new = (new_px - [scaled.cx_px, scaled.cy_px]) / [scaled.fx_px, scaled.fy_px]
    assert new == pytest.approx(old)


def test_a_cropped_frame_is_refused_and_a_rounded_size_is_not():
    scaled_intrinsics(replace(LENS, width_px=1024, height_px=769), (384, 512, 3))
    with pytest.raises(ImageError, match='320 x 200 px but the intrinsics are for 320 x 240 px'):
        scaled_intrinsics(LENS, (200, 320, 3))


def test_assumed_intrinsics_have_the_field_of_view():
    lens = assumed_intrinsics((480, 640, 3), 90.0)
    assert lens.fx_px == pytest.approx(320.0)
    assert (lens.cx_px, lens.cy_px) == (319.5, 239.5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fx_px': math.nan}, 'focal length is .*nan.*expected two positive'),
        ({'fy_px': -5.0}, 'focal length is .*-5.0'),
        ({'fx_px': 0.0}, 'focal length'),
        ({'fx_px': math.inf}, 'focal length'),
        ({'cx_px': 320.0}, 'principal point .* lies outside the image of 320 x 240'),
        ({'cy_px': -1.0}, 'principal point'),
        ({'cy_px': math.nan}, 'principal point'),
        ({'width_px': 0}, 'expected the size of a calibrated image'),
        ({'model': 'mei'}, "distortion model 'mei' is unknown; known are"),
        ({'distortion': (0.1,)}, 'plumb_bob has 1 distortion coefficients; expected one of'),
        ({'distortion': (0.1,) * 5, 'model': 'equidistant'}, 'equidistant has 5'),
        ({'distortion': (math.nan, 0.0, 0.0, 0.0, 0.0)}, 'is not finite'),
    ],
)
def test_impossible_intrinsics_are_refused(changes, message):
    with pytest.raises(ImageError, match=message):
        check_intrinsics(replace(LENS, **changes))


def test_possible_intrinsics_pass():
    for lens in LENSES:
        check_intrinsics(lens)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (None, 'image is NoneType; expected a uint8 array'),
        ([[1]], 'image is list'),
        (np.zeros((0, 0, 3), np.uint8), 'image has 0 x 0 pixels; expected at least 32 x 32'),
        (np.zeros((31, 640, 3), np.uint8), '31 x 640'),
        (np.zeros((64, 64), np.uint8), r'uint8 of shape \(64, 64\); expected uint8 RGB'),
        (np.zeros((64, 64, 4), np.uint8), r'\(64, 64, 4\)'),
        (np.zeros((64, 64, 3), np.float32), 'float32'),
        (np.zeros((64, 64, 3), np.uint16), 'uint16'),
    ],
)
def test_what_is_no_frame_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        check_image(image)


@pytest.mark.parametrize('agl_m', [math.nan, math.inf, -20.0, 0.0, 4.9, 3001.0])
def test_absurd_heights_are_refused(agl_m):
    with pytest.raises(ImageError, match=r'height above ground is .* expected 5 to 3000 m'):
        check_agl(agl_m, CameraConfig())


@pytest.mark.parametrize('name', ['roll_deg', 'pitch_deg', 'heading_deg'])
def test_an_attitude_that_is_not_finite_is_refused(name):
    with pytest.raises(ImageError, match=f'attitude has {name} = nan'):
        check_attitude(replace(Attitude(), **{name: math.nan}))
    check_attitude(Attitude())


# Geometry


@settings(max_examples=60, deadline=None)
@given(
    pitch=angles,
    roll=angles,
    heading=st.floats(0, 360),
    mount=st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.floats(-180, 180)),
    agl=st.floats(10, 500),
)
def test_the_homography_is_the_rays(pitch, roll, heading, mount, agl):
    shot = Shot(306150.0, 4545500.0, agl, heading, pitch, roll, mount=mount)
    view = view_of(shot)
    pixels = corners(LENS)
    ground = shot.ground(pixels) - [shot.east_m, shot.north_m]
    if np.abs(ground).max() > 20 * agl or (view.ray_off_vertical_deg(pixels) > 85).any():
        return
    assert apply(view.frame_from_ground, ground) == pytest.approx(pixels, abs=1e-5)
    assert view.center_m == pytest.approx(
        shot.center - [shot.east_m, shot.north_m], abs=1e-6 * agl
    )


def test_nose_up_looks_ahead_and_right_wing_down_looks_left():
    for heading, ahead in ((0.0, (0, 1)), (90.0, (1, 0)), (180.0, (0, -1))):
        up = rotation_camera_from_world(
            Attitude(pitch_deg=10.0), CameraConfig(), grid_heading_deg=heading
        )
        offset = GroundView(assumed_intrinsics((240, 320), 60), up, 100.0).center_m
        assert offset == pytest.approx(
            np.array(ahead) * 100 * math.tan(math.radians(10)), abs=1e-9
        )
    banked = rotation_camera_from_world(
        Attitude(roll_deg=10.0), CameraConfig(), grid_heading_deg=0.0
    )
    offset = GroundView(assumed_intrinsics((240, 320), 60), banked, 100.0).center_m
    assert offset == pytest.approx([-100 * math.tan(math.radians(10)), 0.0], abs=1e-9)


def test_level_views_have_the_textbook_scale_and_heading():
    level = rotation_camera_from_world(Attitude(), CameraConfig(), grid_heading_deg=37.0)
    view = GroundView(replace(LENS, fy_px=260.0), level, 100.0)
    assert view.gsd_m == pytest.approx(100.0 / 260.0)
    assert view.tilt_deg == pytest.approx(0.0, abs=1e-6)
    assert top_heading_deg(level) == pytest.approx(37.0)
    assert clockwise(90.0) @ [0.0, 1.0, 0.0] == pytest.approx([1.0, 0.0, 0.0])


def test_a_mount_yaw_turns_the_top_of_the_image():
    rotation = rotation_camera_from_world(
        Attitude(), CameraConfig(mount_yaw_deg=90.0), grid_heading_deg=20.0
    )
    assert top_heading_deg(rotation) == pytest.approx(110.0)


def test_tilt_beyond_the_limit_and_the_horizon_are_refused():
    config = CameraConfig()
    tilted = rotation_camera_from_world(Attitude(pitch_deg=50.0), config, grid_heading_deg=0.0)
    with pytest.raises(ImageError, match=r'looks 50\.0 deg off the vertical; expected at most 45'):
        check_view(GroundView(LENS, tilted, 100.0), config)
    wide = CameraConfig(max_tilt_deg=75.0)
    steep = rotation_camera_from_world(Attitude(pitch_deg=74.0), wide, grid_heading_deg=0.0)
    with pytest.raises(ImageError, match=r'the horizon is in view: 4.% of the frame'):
        check_view(GroundView(LENS, steep, 100.0), wide)
    check_view(
        GroundView(
            LENS,
            rotation_camera_from_world(Attitude(40.0, 10.0), config, grid_heading_deg=5.0),
            100.0,
        ),
        config,
    )


def test_an_aircraft_upside_down_is_refused():
    config = CameraConfig(max_tilt_deg=75.0)
    rotation = rotation_camera_from_world(Attitude(roll_deg=180.0), config, grid_heading_deg=0.0)
    with pytest.raises(ImageError, match=r'looks 180\.0 deg off the vertical'):
        check_view(GroundView(LENS, rotation, 100.0), config)


# Patches


@pytest.fixture(scope='module')
def ground():
    return ground_texture(800, 800, seed=3)


def map_patch(ground, west_m, north_m, size_px, gsd_m):
    cols, rows = np.meshgrid(np.arange(size_px), np.arange(size_px))
    col = (west_m + (cols + 0.5) * gsd_m - WEST_M) / GSD_M - 0.5
    row = (NORTH_M - north_m + (rows + 0.5) * gsd_m) / GSD_M - 0.5
    return cv2.remap(ground, col.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)


@pytest.mark.parametrize('lens', [LENS, PLUMB, FISHEYE], ids=['ideal', 'plumb_bob', 'equidistant'])
@pytest.mark.parametrize(
    ('heading', 'pitch', 'roll'), [(0, 0, 0), (57, 0, 0), (200, 12, -9), (311, -25, 10)]
)
def test_a_patch_is_the_map(ground, lens, heading, pitch, roll):
    shot = Shot(306100.0, 4545500.0, 90.0, heading, pitch, roll, lens=lens)
    frame = render(ground, shot, noise=0.0)
    patch = ground_patch(FramePyramid(frame), view_of(shot), size_px=(96, 96), gsd_m=0.5)
    truth = map_patch(ground, shot.east_m + patch.west_m, shot.north_m + patch.north_m, 96, 0.5)
    assert patch.mask.mean() > 0.7
    seen = np.stack([patch.image[patch.mask], truth[patch.mask]]).astype(float)
    assert np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1] > 0.97
    # And it lies exactly: a shift by a pixel either way fits worse.
    errors = {}
    for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        moved = np.roll(patch.image, shift, axis=(0, 1)).astype(float)
        inner = patch.mask.copy()
        inner[:2], inner[-2:], inner[:, :2], inner[:, -2:] = False, False, False, False
        errors[shift] = np.abs(moved - (0.8 * truth + 25))[inner].mean()
    assert min(errors, key=errors.get) == (0, 0)


def test_the_mask_is_the_footprint(ground):
    shot = Shot(306100.0, 4545500.0, 90.0, 30.0, 5.0, 8.0)
    view = view_of(shot)
    patch = ground_patch(FramePyramid(render(ground, shot)), view, size_px=(300, 300), gsd_m=0.5)
    rows, cols = np.mgrid[0:300, 0:300]
    pixels = apply(patch.frame_from_patch, np.stack([cols.ravel(), rows.ravel()], axis=1))
    inside = ((pixels >= 0) & (pixels <= [LENS.width_px - 1, LENS.height_px - 1])).all(axis=1)
    assert (patch.mask.ravel() != inside).mean() < 0.02
    assert not patch.mask.ravel()[~inside].any()


def test_outside_the_footprint_stands_the_mean_colour(ground):
    shot = Shot(306100.0, 4545500.0)
    patch = ground_patch(
        FramePyramid(render(ground, shot)), view_of(shot), size_px=(300, 300), gsd_m=0.5
    )
    outside = np.unique(patch.image[~patch.mask], axis=0)
    assert outside == pytest.approx(np.rint(patch.image[patch.mask].mean(axis=0))[None], abs=1)


def test_ground_behind_the_camera_is_not_seen():
    """A camera that looks 40 deg ahead must not paint its image behind itself."""
    shot = Shot(306100.0, 4545500.0, 60.0, pitch_deg=40.0)
    frame = np.full((240, 320, 3), 200, np.uint8)
    patch = ground_patch(
        FramePyramid(frame),
        view_of(shot),
        size_px=(400, 400),
        gsd_m=2.0,
        middle_m=np.zeros(2),
    )
    north = patch.north_m - (np.arange(400) + 0.5) * 2.0
    assert patch.mask.any()
    assert not patch.mask[north < 0].any()
    distance = math.hypot(*(np.argwhere(patch.mask) * 2.0 - 400.0).T.max(axis=1))
    assert distance < 60.0 * math.tan(math.radians(76)) * 1.5


def test_shrinking_averages_and_does_not_alias():
    """A chessboard of single pixels must become grey, not a coarse pattern."""
    rows, cols = np.mgrid[0:240, 0:320]
    frame = np.repeat((255 * ((rows + cols) % 2)).astype(np.uint8)[..., None], 3, axis=2)
    shot = Shot(306100.0, 4545500.0, 90.0)
    gsd_m = 7.3 * 90.0 / 260.0
    patch = ground_patch(FramePyramid(frame), view_of(shot), size_px=(24, 24), gsd_m=gsd_m)
    values = patch.image[patch.mask].astype(float)
    assert values.mean() == pytest.approx(127.5, abs=2)
    assert values.std() < 12
