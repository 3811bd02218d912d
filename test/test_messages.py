"""Messages in: what a camera and an autopilot may send, and what they may send by mistake."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.geodesy import wrap_deg
from bicrossnet_ros.messages import (
    ENCODINGS,
    attitude_from_imu,
    attitude_from_quaternion,
    fill_camera_info,
    fill_image,
    image_from_message,
    intrinsics_from_message,
    position_from_navsat,
    quaternion_from_attitude,
    range_from_message,
    stamp_s,
    tilt_cosine,
)
from bicrossnet_ros.types import Attitude, Intrinsics

PICTURE = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def image_message(encoding: str = 'rgb8', *, padding: int = 0, **changes: object):
    """PICTURE as a message of this encoding, rows padded with 0xAA."""
    channels = {
        'rgb8': PICTURE,
        'bgr8': PICTURE[:, :, ::-1],
        'mono8': PICTURE[:, :, :1],
        'rgba8': np.dstack([PICTURE, np.full((5, 7), 9, np.uint8)]),
        'bgra8': np.dstack([PICTURE[:, :, ::-1], np.full((5, 7), 9, np.uint8)]),
    }.get(encoding, PICTURE)
    rows = channels.reshape(5, -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    fields = {
        'encoding': encoding,
        'height': 5,
        'width': 7,
        'step': padded.shape[1],
        'is_bigendian': 0,
        'data': padded.tobytes(),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize('bigendian', [0, 1])
@pytest.mark.parametrize('padding', [0, 1, 13])
@pytest.mark.parametrize('encoding', sorted(ENCODINGS))
def test_image_of_every_encoding(encoding, padding, bigendian):
    image = image_from_message(image_message(encoding, padding=padding, is_bigendian=bigendian))
    expected = np.repeat(PICTURE[:, :, :1], 3, axis=2) if encoding == 'mono8' else PICTURE
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'encoding': '16UC1'}, "encoding '16UC1' is not supported"),
        ({'encoding': '8UC3'}, "encoding '8UC3' is not supported"),
        ({'encoding': ''}, "encoding '' is not supported"),
        ({'data': b''}, 'have 0 bytes; step 21 x height 5 makes 105'),
        ({'data': bytes(104)}, 'have 104 bytes'),
        ({'data': bytes(106)}, 'have 106 bytes'),
        ({'step': 20}, 'need at least 21'),
        ({'width': 0}, 'size 0 x 5 px is absurd'),
        ({'height': 0, 'data': b''}, 'is absurd'),
        ({'width': 4_000_000_000, 'height': 4_000_000_000}, 'is absurd'),
    ],
)
def test_image_that_is_damaged(changes, expected):
    with pytest.raises(ImageError, match=expected):
        image_from_message(image_message(**changes))


def test_image_round_trip():
    message = SimpleNamespace()
    fill_image(message, PICTURE)
    np.testing.assert_array_equal(image_from_message(message), PICTURE)


def test_compressed_image():
    png = cv2.imencode('.png', PICTURE[:, :, ::-1])[1].tobytes()
    message = SimpleNamespace(format='rgb8; png compressed', data=png)
    np.testing.assert_array_equal(image_from_message(message), PICTURE)


@pytest.mark.parametrize('data', [b'', b'\xff\xd8\xff', b'no image at all'])
def test_compressed_image_that_is_damaged(data):
    with pytest.raises(ImageError, match=r"compressed image \('jpeg'\)"):
        image_from_message(SimpleNamespace(format='jpeg', data=data))


def camera_info(**changes: object):
    fields = {
        'width': 640,
        'height': 480,
        'distortion_model': 'plumb_bob',
        'd': [0.1, -0.2, 0.001, 0.002, 0.05],
        'k': [500.0, 0.0, 319.5, 0.0, 510.0, 239.5, 0.0, 0.0, 1.0],
        'binning_x': 0,
        'binning_y': 0,
        'roi': SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**fields, **changes})


def test_intrinsics():
    assert intrinsics_from_message(camera_info()) == Intrinsics(
        640, 480, 500.0, 510.0, 319.5, 239.5, (0.1, -0.2, 0.001, 0.002, 0.05), 'plumb_bob'
    )


def test_intrinsics_round_trip():
    intrinsics = Intrinsics(640, 480, 500.0, 510.0, 320.25, 241.0, (0.1, 0.2, 0.3, 0.4, 0.5))
    message = camera_info()
    fill_camera_info(message, intrinsics)
    assert intrinsics_from_message(message) == intrinsics


def test_uncalibrated_camera_has_no_intrinsics():
    assert intrinsics_from_message(camera_info(k=[0.0] * 9, d=[])) is None


def test_region_of_interest_moves_the_principal_point():
    region = SimpleNamespace(x_offset=100, y_offset=50, width=320, height=240)
    found = intrinsics_from_message(camera_info(roi=region))
    assert (found.width_px, found.height_px) == (320, 240)
    assert (found.cx_px, found.cy_px) == (219.5, 189.5)
    assert (found.fx_px, found.fy_px) == (500.0, 510.0)


def test_binning_keeps_the_ray_of_a_pixel():
    found = intrinsics_from_message(camera_info(binning_x=2, binning_y=2, d=[]))
    assert (found.width_px, found.height_px) == (320, 240)
    # Full-size pixels 2u and 2u + 1 make the binned pixel u: their mean ray is its ray.
    for u in (0, 17, 319):
        full = ((2 * u + 0.5) - 319.5) / 500.0
        assert (u - found.cx_px) / found.fx_px == pytest.approx(full, abs=1e-12)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'k': [math.nan] + [1.0] * 8}, 'expected two positive numbers'),
        ({'k': [math.inf, 0, 0, 0, 1.0, 0, 0, 0, 1]}, 'expected two positive numbers'),
        ({'k': [500.0, 0, math.nan, 0, 500.0, 9, 0, 0, 1]}, 'lies outside the image'),
        ({'d': [math.nan] * 5}, 'is not finite'),
        ({'k': [-500.0, 0, 0, 0, 500.0, 0, 0, 0, 1]}, 'expected two positive numbers'),
        ({'k': [500.0, 0, 0, 0, 0.0, 0, 0, 0, 1]}, 'expected two positive numbers'),
        ({'width': 0}, 'intrinsics are for 0 x 480 px'),
        ({'binning_y': 481}, 'intrinsics are for 640 x 0 px'),
        ({'distortion_model': 'magic'}, "'magic' is unknown"),
        # Zeros mean no distortion in known models only: a fisheye with zeros is no pinhole.
        ({'distortion_model': 'magic', 'd': [0.0] * 5}, "'magic' is unknown"),
        ({'d': [0.1, 0.2, 0.3]}, 'has 3 distortion coefficients'),
    ],
)
def test_camera_info_that_is_damaged(changes, expected):
    with pytest.raises(ImageError, match=expected):
        intrinsics_from_message(camera_info(**changes))


@pytest.mark.parametrize(
    ('quaternion', 'roll_deg', 'pitch_deg', 'heading_deg'),
    [
        ((0.0, 0.0, 0.0, 1.0), 0.0, 0.0, 90.0),  # x points east (REP 103)
        ((0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)), 0.0, 0.0, 0.0),  # a left turn: to north
        ((0.0, 0.0, 1.0, 0.0), 0.0, 0.0, 270.0),
        ((math.sin(0.1), 0.0, 0.0, math.cos(0.1)), math.degrees(0.2), 0.0, 90.0),
        ((0.0, math.sin(0.1), 0.0, math.cos(0.1)), 0.0, -math.degrees(0.2), 90.0),
    ],
)
def test_attitude_of_known_orientations(quaternion, roll_deg, pitch_deg, heading_deg):
    found = attitude_from_quaternion(*quaternion)
    assert found.roll_deg == pytest.approx(roll_deg, abs=1e-9)
    assert found.pitch_deg == pytest.approx(pitch_deg, abs=1e-9)
    assert wrap_deg(found.heading_deg - heading_deg) == pytest.approx(0.0, abs=1e-9)


@given(
    st.floats(-179.0, 179.0),
    st.floats(-89.0, 89.0),
    st.floats(0.0, 359.9),
)
def test_attitude_round_trip(roll_deg, pitch_deg, heading_deg):
    quaternion = quaternion_from_attitude(Attitude(roll_deg, pitch_deg, heading_deg))
    assert math.hypot(*quaternion) == pytest.approx(1.0)
    found = attitude_from_quaternion(*quaternion)
    assert found.pitch_deg == pytest.approx(pitch_deg, abs=1e-6)
    assert wrap_deg(found.roll_deg - roll_deg) == pytest.approx(0.0, abs=1e-5)
    assert wrap_deg(found.heading_deg - heading_deg) == pytest.approx(0.0, abs=1e-5)


def test_heading_that_is_not_trusted():
    assert attitude_from_quaternion(0.0, 0.0, 0.0, 1.0, heading_known=False).heading_deg is None


@pytest.mark.parametrize(
    'quaternion', [(0.0, 0.0, 0.0, 0.0), (math.nan, 0, 0, 1), (0, 0, 0, 2.0), (math.inf, 0, 0, 0)]
)
def test_orientation_that_is_none(quaternion):
    with pytest.raises(ImageError, match='expected a unit quaternion'):
        attitude_from_quaternion(*quaternion)


def imu(*, first: float = 0.0, yaw_variance: float = 0.0):
    return SimpleNamespace(
        orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0),
        orientation_covariance=[first, 0, 0, 0, 0, 0, 0, 0, yaw_variance],
    )


def test_what_an_imu_knows():
    assert attitude_from_imu(imu(first=-1.0)) is None
    assert attitude_from_imu(imu()).heading_deg == pytest.approx(90.0)
    assert attitude_from_imu(imu(yaw_variance=10.0)) == Attitude(0.0, 0.0, None)
    assert attitude_from_imu(imu(), heading_known=False) == Attitude(0.0, 0.0, None)


def reading(value: float):
    return SimpleNamespace(range=value, min_range=0.5, max_range=120.0)


def test_range():
    assert range_from_message(reading(100.0)) == 100.0


@pytest.mark.parametrize('value', [0.1, 130.0, math.inf, -math.inf, math.nan, -3.0])
def test_range_that_measured_nothing(value):
    assert range_from_message(reading(value)) is None


@given(st.floats(-80.0, 80.0), st.floats(-80.0, 80.0), st.floats(0.0, 360.0))
def test_tilt_cosine_is_that_of_the_body_axis(roll_deg, pitch_deg, heading_deg):
    attitude = Attitude(roll_deg, pitch_deg, heading_deg)
    x, y, _, _ = quaternion_from_attitude(attitude)
    assert tilt_cosine(attitude) == pytest.approx(1 - 2 * (x * x + y * y), abs=1e-9)
    assert tilt_cosine(None) == 1.0


def test_position():
    def navsat(status: int, lat_deg: float, ellipsoid_m: float = 250.0):
        state = SimpleNamespace(status=status)
        return SimpleNamespace(
            status=state, latitude=lat_deg, longitude=-83.0, altitude=ellipsoid_m
        )

    assert position_from_navsat(navsat(0, 41.0)) == (41.0, -83.0, 250.0)
    assert position_from_navsat(navsat(0, 41.0, math.nan))[:2] == (41.0, -83.0)
    assert position_from_navsat(navsat(-1, 41.0)) is None
    assert position_from_navsat(navsat(0, math.nan)) is None


def test_stamp():
    assert stamp_s(SimpleNamespace(sec=12, nanosec=500_000_000)) == 12.5
