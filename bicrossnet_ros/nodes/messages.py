"""Messages in: images, camera, orientation and height become the types of the package.

Only the fields of the messages are used, no ROS function: NumPy replaces cv_bridge.
"""

from __future__ import annotations

import array
import math
from typing import Any

import numpy as np

from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.flight import decode_image
from bicrossnet_ros.geodesy import heading_to_yaw_rad, wrap_deg
from bicrossnet_ros.types import Attitude, FloatArray, ImageArray, Intrinsics

# Encoding -> (bytes a pixel, positions of red, green and blue among them).
ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {
    'bgr8': (3, (2, 1, 0)),
    'rgb8': (3, (0, 1, 2)),
    'mono8': (1, (0, 0, 0)),
    'bgra8': (4, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
}
MAX_PIXELS = 100_000_000
"""More than any camera that flies; a header that says more is damaged."""

DISTORTION_SIZES = {
    'plumb_bob': (0, 4, 5),
    'rational_polynomial': (0, 8),
    'equidistant': (0, 4),
}


def stamp_s(stamp: Any) -> float:
    """Seconds of a `builtin_interfaces/Time`."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def image_from_message(message: Any) -> ImageArray:
    """Decode a `sensor_msgs/Image` to uint8 RGB (H, W, 3).

    Rows may be padded (`step`); `is_bigendian` means nothing for 8-bit pixels.

    Raises
    ------
    ImageError
        If the encoding is none of `ENCODINGS`, the size is absurd, or the data do not fit it.
    """
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


def image_from_compressed(message: Any) -> ImageArray:
    """Decode a `sensor_msgs/CompressedImage` (JPEG, PNG ...) to uint8 RGB (H, W, 3).

    Raises
    ------
    ImageError
        If the data are empty or not an image.
    """
    return decode_image(bytes(message.data), f'compressed image ({message.format!r})')


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
        If a number is not finite, a focal length or size is not positive, or the distortion is
        of an unknown kind.
    """
    k = [float(value) for value in message.k]
    if k[0] == 0.0:  # CameraInfo.msg: uncalibrated cameras have K[0] == 0
        return None
    distortion = tuple(float(value) for value in message.d)
    if not np.isfinite([*k, *distortion]).all():
        raise ImageError(f'camera_info has numbers that are not finite: K {k}, D {distortion}')
    width, height = int(message.width), int(message.height)
    x, y = 0, 0
    region = message.roi
    if region.width and region.height:
        x, y = int(region.x_offset), int(region.y_offset)
        width, height = int(region.width), int(region.height)
    columns, rows = max(1, int(message.binning_x)), max(1, int(message.binning_y))
    if k[0] < 0.0 or k[4] <= 0.0 or width < 1 or height < 1:
        raise ImageError(
            f'camera_info has fx {k[0]}, fy {k[4]} for {width} x {height} px; '
            'expected positive numbers'
        )
    model = message.distortion_model or 'plumb_bob'
    distortion = _checked_distortion(model, distortion)
    return Intrinsics(
        width_px=width // columns,
        height_px=height // rows,
        fx_px=k[0] / columns,
        fy_px=k[4] / rows,
        # Pixel centres have whole coordinates, so a bin of n pixels has its centre at (n - 1) / 2.
        cx_px=(k[2] - x - (columns - 1) / 2) / columns,
        cy_px=(k[5] - y - (rows - 1) / 2) / rows,
        distortion=distortion,
        model=model,
    )


def _checked_distortion(model: str, distortion: tuple[float, ...]) -> tuple[float, ...]:
    if model not in DISTORTION_SIZES:
        if not any(distortion):
            return ()
        raise ImageError(
            f'distortion model {model!r} is not supported; '
            f'expected one of {sorted(DISTORTION_SIZES)}'
        )
    if len(distortion) not in DISTORTION_SIZES[model]:
        raise ImageError(
            f'distortion model {model} has {len(distortion)} coefficients; '
            f'expected {DISTORTION_SIZES[model][-1]}'
        )
    return distortion if any(distortion) else ()


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
    # With the left wing's and the mast's upward components: u of left rises when the right wing
    # drops.
    return Attitude(
        roll_deg=math.degrees(math.atan2(matrix[2, 1], matrix[2, 2])),
        pitch_deg=math.degrees(math.asin(min(1.0, max(-1.0, nose_u)))),
        heading_deg=math.degrees(math.atan2(nose_e, nose_n)) % 360.0 if heading_known else None,
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


def height_from_range(message: Any, *, tilt_cosine: float = 1.0) -> float | None:
    """Height above ground from a `sensor_msgs/Range`; None where it measured nothing.

    Parameters
    ----------
    message : Range
        A reading outside its limits, infinite or NaN is no measurement (REP 117).
    tilt_cosine : float
        Cosine between the beam and the vertical.
    """
    reading = float(message.range)
    if not math.isfinite(reading) or not message.min_range <= reading <= message.max_range:
        return None
    return reading * tilt_cosine
