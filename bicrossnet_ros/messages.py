"""ROS messages in and out: images, camera, orientation, height and position.

Only the fields of the messages are used, no ROS function and no message class: the nodes give the
messages of rclpy, the reader of bags those of rosbags, and NumPy replaces cv_bridge.
"""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np

from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.flight import decode_image
from bicrossnet_ros.geodesy import heading_to_yaw_rad, wrap_deg, yaw_to_heading_deg
from bicrossnet_ros.lens import check_intrinsics
from bicrossnet_ros.types import Attitude, FloatArray, ImageArray, Intrinsics

# Encoding -> (bytes a pixel, positions of red, green and blue among them). 8UC1 and 8UC3 are left
# out as cv_bridge does (vision_opencv issue 175): they may be colour in any order, or no colour.
ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    'bgr8': (3, (2, 1, 0)),
    'rgb8': (3, (0, 1, 2)),
    'mono8': (1, (0, 0, 0)),
    'bgra8': (4, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
}
MAX_PIXELS = 100_000_000
"""More than any camera that flies; a header that says more is damaged."""

UNKNOWN_YAW_RAD2 = 1.0
"""An IMU that gives its yaw a larger variance than (57 deg)^2 does not know it."""


def stamp_s(stamp: Any) -> float:
    """Seconds of a `builtin_interfaces/Time`."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def image_from_message(message: Any) -> ImageArray:
    """Decode a `sensor_msgs/Image` or `CompressedImage` (JPEG, PNG ...) to uint8 RGB (H, W, 3).

    Raises
    ------
    ImageError
        If the encoding is none of `ENCODINGS`, the size is absurd, the data do not fit it, or
        the compressed data are empty or not an image.
    """
    if hasattr(message, 'encoding'):
        return _raw_image(message)
    return decode_image(bytes(message.data), f'compressed image ({message.format!r})')


def _raw_image(message: Any) -> ImageArray:
    """Rows may be padded (`step`); `is_bigendian` means nothing for 8-bit pixels."""
    if message.encoding not in ENCODINGS:
        raise ImageError(
            f'image encoding {message.encoding!r} is not supported; '
            f'expected one of {sorted(ENCODINGS)}'
        )
    channels, order = ENCODINGS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ImageError(
            f'image size {width} x {height} px is absurd; expected 1 to {MAX_PIXELS} pixels'
        )
    if step < width * channels:
        raise ImageError(
            f'image step is {step} bytes; {width} px of {message.encoding} '
            f'need at least {width * channels}'
        )
    if len(message.data) != step * height:
        raise ImageError(
            f'image data have {len(message.data)} bytes; step {step} x height {height} '
            f'makes {step * height}'
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    return np.ascontiguousarray(pixels[:, :, order])


def fill_image(message: Any, image: ImageArray) -> None:
    """Write a uint8 RGB image into a `sensor_msgs/Image` as rgb8."""
    message.height, message.width = image.shape[:2]
    message.encoding = 'rgb8'
    message.is_bigendian = 0
    message.step = 3 * image.shape[1]
    # An array.array is the one type that rclpy takes over without looking at every byte.
    message.data = array.array('B', np.ascontiguousarray(image).tobytes())


def intrinsics_from_message(message: Any) -> Intrinsics | None:
    """Read a `sensor_msgs/CameraInfo`; None if it says that the camera is not calibrated.

    A region of interest and binning are applied, so that the result belongs to the image as sent.

    Raises
    ------
    ImageError
        If the numbers describe no camera; see `lens.check_intrinsics`.
    """
    k = [float(value) for value in message.k]
    if k[0] == 0.0:  # CameraInfo.msg: uncalibrated cameras have K[0] == 0
        return None
    width, height = int(message.width), int(message.height)
    x, y = 0, 0
    region = message.roi
    if region.width and region.height:
        x, y = int(region.x_offset), int(region.y_offset)
        width, height = int(region.width), int(region.height)
    columns, rows = max(1, int(message.binning_x)), max(1, int(message.binning_y))
    intrinsics = Intrinsics(
        width_px=width // columns,
        height_px=height // rows,
        fx_px=k[0] / columns,
        fy_px=k[4] / rows,
        # Pixel centres have whole coordinates, so a bin of n pixels has its centre at (n - 1) / 2.
        cx_px=(k[2] - x - (columns - 1) / 2) / columns,
        cy_px=(k[5] - y - (rows - 1) / 2) / rows,
        distortion=tuple(float(value) for value in message.d),
        model=message.distortion_model or 'plumb_bob',
    )
    check_intrinsics(intrinsics)
    return intrinsics


def fill_camera_info(message: Any, intrinsics: Intrinsics) -> None:
    """Write intrinsics into a `sensor_msgs/CameraInfo`."""
    message.width, message.height = intrinsics.width_px, intrinsics.height_px
    message.distortion_model = intrinsics.model
    message.d = [float(value) for value in intrinsics.distortion]
    fx, fy, cx, cy = (
        intrinsics.fx_px,
        intrinsics.fy_px,
        intrinsics.cx_px,
        intrinsics.cy_px,
    )
    message.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]


def has_orientation(message: Any) -> bool:
    """Whether a `sensor_msgs/Imu` says anything about orientation (Imu.msg: -1 if not)."""
    return bool(message.orientation_covariance[0] != -1.0)


def attitude_from_imu(message: Any, *, heading_known: bool = True) -> Attitude | None:
    """Attitude of the aircraft from a `sensor_msgs/Imu`; None if it has no orientation.

    The heading is unknown where the variance of the yaw says so (`UNKNOWN_YAW_RAD2`), or with
    `heading_known` False.

    Raises
    ------
    ImageError
        If the orientation is no rotation.
    """
    if not has_orientation(message):
        return None
    q = message.orientation
    yaw_is_known = message.orientation_covariance[8] < UNKNOWN_YAW_RAD2
    return attitude_from_quaternion(
        q.x, q.y, q.z, q.w, heading_known=bool(heading_known and yaw_is_known)
    )


def _rotation(x: float, y: float, z: float, w: float) -> FloatArray:
    """Rotation matrix of a unit quaternion (world from body)."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def attitude_from_quaternion(
    x: float, y: float, z: float, w: float, *, heading_known: bool = True
) -> Attitude:
    """Orientation of a forward-left-up body in an east-north-up world, as an autopilot says it.

    Parameters
    ----------
    x, y, z, w : float
        Rotation that takes body vectors into the world.
    heading_known : bool
        Whether the rotation about the vertical counts.

    Raises
    ------
    ImageError
        If it is no rotation: not finite, or its length is not 1.

    References
    ----------
    REP 103 (axes) and REP 145 (IMU conventions) of ROS.
    """
    length = math.sqrt(x * x + y * y + z * z + w * w)
    if not 0.9 < length < 1.1:  # NaN fails as well
        raise ImageError(
            f'imu orientation ({x}, {y}, {z}, {w}) has length {length:.3g}; '
            'expected a unit quaternion'
        )
    matrix = _rotation(x / length, y / length, z / length, w / length)
    nose_e, nose_n, nose_u = matrix[:, 0]
    heading_deg = yaw_to_heading_deg(math.atan2(nose_n, nose_e))
    # With the left wing's and the mast's upward components: u of left rises when the right wing
    # drops.
    return Attitude(
        roll_deg=math.degrees(math.atan2(matrix[2, 1], matrix[2, 2])),
        pitch_deg=math.degrees(math.asin(min(1.0, max(-1.0, nose_u)))),
        heading_deg=heading_deg if heading_known else None,
    )


def quaternion_from_attitude(attitude: Attitude) -> tuple[float, float, float, float]:
    """Inverse of `attitude_from_quaternion`: (x, y, z, w); an unknown heading is taken as 0.

    In forward-left-up axes the nose goes up by a negative rotation about the left axis.
    """
    yaw = heading_to_yaw_rad(attitude.heading_deg or 0.0) / 2
    pitch = -math.radians(attitude.pitch_deg) / 2
    roll = math.radians(wrap_deg(attitude.roll_deg)) / 2
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    return (
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    )


def range_from_message(message: Any) -> float | None:
    """Reading of a `sensor_msgs/Range` in metres; None where it measured nothing.

    Outside its limits, infinite or NaN is no measurement (REP 117).
    """
    reading_m = float(message.range)
    if not math.isfinite(reading_m) or not message.min_range <= reading_m <= message.max_range:
        return None
    return reading_m


def tilt_cosine(attitude: Attitude | None) -> float:
    """Cosine between the body's down axis and the vertical; 1 where the attitude is unknown."""
    if attitude is None:
        return 1.0
    return math.cos(math.radians(attitude.roll_deg)) * math.cos(math.radians(attitude.pitch_deg))


def position_from_navsat(message: Any) -> tuple[float, float, float] | None:
    """(lat_deg, lon_deg, ellipsoid_m) of a `sensor_msgs/NavSatFix`; None if it is no fix."""
    position = float(message.latitude), float(message.longitude), float(message.altitude)
    if message.status.status < 0 or not all(map(math.isfinite, position[:2])):
        return None
    return position
