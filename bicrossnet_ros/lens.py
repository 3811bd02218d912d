"""The lens: intrinsics checked and scaled, distortion put on and taken off.

Points are (col, row), the order of OpenCV. An ideal pixel is where a pinhole with the same camera
matrix would see the point.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.types import FloatArray, Intrinsics

# How densely `one_to_one_radius_px` looks at a lens, and how far beyond the frame's corner.
RINGS, SPOKES, BEYOND = 96, 72, 1.02
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


def distorted_grid(
    intrinsics: Intrinsics, ideal_from_grid: FloatArray, size_px: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the real lens puts the pixels (H, W) of a grid: their columns and rows in the frame.

    Parameters
    ----------
    intrinsics : Intrinsics
    ideal_from_grid : ndarray of shape (3, 3)
        Homography from the grid's (col, row) to ideal pixels.
    size_px : (int, int)
        (H, W).
    """
    K = camera_matrix(intrinsics)
    # OpenCV asks for the way back, from rays to the grid; a rotation is just what is usual there.
    grid_from_rays = np.linalg.inv(ideal_from_grid) @ K
    lens = cv2.fisheye if intrinsics.model == 'equidistant' else cv2
    cols, rows = lens.initUndistortRectifyMap(
        K, _coefficients(intrinsics), grid_from_rays, np.eye(3), size_px[::-1], cv2.CV_32FC1
    )
    return np.asarray(cols, np.float32), np.asarray(rows, np.float32)


@lru_cache(maxsize=16)
def one_to_one_radius_px(intrinsics: Intrinsics) -> float:
    """Radius about the principal point of a disc of ideal pixels that holds all the frame sees.

    A polynomial lens is fitted inside its field. Beyond, it may fold back, and points that the
    camera cannot see come to lie in the frame. Where the lens bends the disc without a fold,
    points outside of it are not seen, and those inside are wherever it puts them.

    Returns
    -------
    float
        0 if there is no such disc, or none is found: the lens folds in it, the frame sees beyond
        90 degrees, or its border does not come home. Then every point needs a look of its own.
    """
    right, bottom = intrinsics.width_px - 1.0, intrinsics.height_px - 1.0
    along = np.linspace(0.0, 1.0, SPOKES)
    zero, one = np.zeros(SPOKES), np.ones(SPOKES)
    sides = ((along, zero), (along, one), (zero, along), (one, along))
    border = np.concatenate([np.stack(side, axis=1) for side in sides]) * [right, bottom]
    ideal = undistorted(intrinsics, border)
    if not np.allclose(distorted(intrinsics, ideal), border, atol=0.1):
        return 0.0
    middle = np.array([intrinsics.cx_px, intrinsics.cy_px])
    radius = BEYOND * float(np.linalg.norm(ideal - middle, axis=1).max())
    angles = np.linspace(0.0, 2 * math.pi, SPOKES + 1)
    spokes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Evenly by the angle of the ray: a fisheye folds near its middle, if it does.
    focal = min(intrinsics.fx_px, intrinsics.fy_px)
    rings = focal * np.tan(np.linspace(0.0, math.atan(radius / focal), RINGS + 1)[1:])
    disc = middle + rings[:, None, None] * spokes
    bent = distorted(intrinsics, disc.reshape(-1, 2)).reshape(disc.shape)
    outward, around = np.diff(bent, axis=0)[:, :-1], np.diff(bent, axis=1)[:-1]
    turned = outward[..., 0] * around[..., 1] - outward[..., 1] * around[..., 0]
    return radius if bool((turned > 0).all()) else 0.0


def _coefficients(intrinsics: Intrinsics) -> FloatArray:
    if intrinsics.distortion:
        return np.asarray(intrinsics.distortion, np.float64)
    return np.zeros(4)
