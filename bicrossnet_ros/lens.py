"""The lens: intrinsics checked and scaled, distortion put on and taken off.

Points are (col, row), the order of OpenCV. An ideal pixel is where a pinhole with the same camera
matrix would see the point.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.types import FloatArray, Intrinsics

DISTORTION_LENGTHS = {'plumb_bob': (0, 4, 5), 'rational_polynomial': (0, 8), 'equidistant': (0, 4)}


def check_intrinsics(intrinsics: Intrinsics) -> None:
    """Raise ImageError unless the intrinsics describe a camera."""
    focal = (intrinsics.fx_px, intrinsics.fy_px)
    if not all(math.isfinite(f) and f > 0 for f in focal):
        raise ImageError(f'focal length is {focal} px; expected two positive numbers')
    if intrinsics.width_px <= 0 or intrinsics.height_px <= 0:
        raise ImageError(
            f'intrinsics are for {intrinsics.width_px} x {intrinsics.height_px} px; '
            'expected the size of a calibrated image'
        )
    inside = 0 <= intrinsics.cx_px < intrinsics.width_px
    if not (inside and 0 <= intrinsics.cy_px < intrinsics.height_px):
        raise ImageError(
            f'principal point ({intrinsics.cx_px}, {intrinsics.cy_px}) lies outside the image of '
            f'{intrinsics.width_px} x {intrinsics.height_px} px'
        )
    if intrinsics.model not in DISTORTION_LENGTHS:
        raise ImageError(
            f'distortion model {intrinsics.model!r} is unknown; '
            f'known are {sorted(DISTORTION_LENGTHS)}'
        )
    expected = DISTORTION_LENGTHS[intrinsics.model]
    if len(intrinsics.distortion) not in expected:
        raise ImageError(
            f'{intrinsics.model} has {len(intrinsics.distortion)} distortion coefficients; '
            f'expected one of {expected}'
        )
    if not all(math.isfinite(value) for value in intrinsics.distortion):
        raise ImageError(f'distortion {intrinsics.distortion} is not finite')


def assumed_intrinsics(shape: tuple[int, ...], hfov_deg: float) -> Intrinsics:
    """Intrinsics of an ideal camera with this horizontal field of view, for (H, W) pixels."""
    height_px, width_px = shape[:2]
    focal_px = 0.5 * width_px / math.tan(math.radians(0.5 * hfov_deg))
    return Intrinsics(
        width_px, height_px, focal_px, focal_px, (width_px - 1) / 2, (height_px - 1) / 2
    )


def scaled_intrinsics(intrinsics: Intrinsics, shape: tuple[int, ...]) -> Intrinsics:
    """Intrinsics for an image of shape (H, W) that is a resized version of the calibrated one.

    Raises
    ------
    ImageError
        If width and height changed by different factors: then the image was cropped, and nothing
        says where.
    """
    height_px, width_px = shape[:2]
    scale_x, scale_y = width_px / intrinsics.width_px, height_px / intrinsics.height_px
    # One pixel of rounding is what a resize may add.
    if abs(scale_x * intrinsics.height_px - height_px) > 1.0 + 0.005 * height_px:
        raise ImageError(
            f'frame is {width_px} x {height_px} px but the intrinsics are for '
            f'{intrinsics.width_px} x {intrinsics.height_px} px, which is no pure scale; '
            'give the intrinsics of the cropped image'
        )
    return replace(
        intrinsics,
        width_px=width_px,
        height_px=height_px,
        fx_px=intrinsics.fx_px * scale_x,
        fy_px=intrinsics.fy_px * scale_y,
        cx_px=(intrinsics.cx_px + 0.5) * scale_x - 0.5,
        cy_px=(intrinsics.cy_px + 0.5) * scale_y - 0.5,
    )


def camera_matrix(intrinsics: Intrinsics) -> FloatArray:
    """The 3 x 3 matrix K."""
    return np.array(
        [
            [intrinsics.fx_px, 0.0, intrinsics.cx_px],
            [0.0, intrinsics.fy_px, intrinsics.cy_px],
            [0.0, 0.0, 1.0],
        ]
    )


def has_distortion(intrinsics: Intrinsics) -> bool:
    """Whether the lens bends anything; an equidistant one always does."""
    return intrinsics.model == 'equidistant' or any(intrinsics.distortion)


def undistorted(intrinsics: Intrinsics, points: FloatArray) -> FloatArray:
    """Frame pixels (N, 2) as (col, row) to those of the ideal pinhole with the same K."""
    if not has_distortion(intrinsics) or len(points) == 0:
        return np.asarray(points, np.float64)
    K = camera_matrix(intrinsics)
    given = np.asarray(points, np.float64).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
    if intrinsics.model == 'equidistant':
        out = cv2.fisheye.undistortPoints(given, K, _coefficients(intrinsics), P=K)
    else:
        out = cv2.undistortPoints(given, K, _coefficients(intrinsics), P=K, criteria=criteria)
    return np.asarray(out, np.float64).reshape(-1, 2)


def distorted(intrinsics: Intrinsics, points: FloatArray) -> FloatArray:
    """Inverse of `undistorted`: ideal pixels (N, 2) to those of the real lens."""
    if not has_distortion(intrinsics) or len(points) == 0:
        return np.asarray(points, np.float64)
    K = camera_matrix(intrinsics)
    x = (points[:, 0] - intrinsics.cx_px) / intrinsics.fx_px
    y = (points[:, 1] - intrinsics.cy_px) / intrinsics.fy_px
    if intrinsics.model == 'equidistant':
        rays = np.stack([x, y], axis=1).reshape(-1, 1, 2)
        out = cv2.fisheye.distortPoints(rays, K, _coefficients(intrinsics))
    else:
        rays = np.stack([x, y, np.ones_like(x)], axis=1)
        out, _ = cv2.projectPoints(
            rays, np.zeros(3), np.zeros(3), K, np.asarray(_coefficients(intrinsics))
        )
    return np.asarray(out, np.float64).reshape(-1, 2)


def _coefficients(intrinsics: Intrinsics) -> FloatArray:
    if intrinsics.distortion:
        return np.asarray(intrinsics.distortion, np.float64)
    return np.zeros(4)
