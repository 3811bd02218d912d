"""Where the camera was: its pose over flat ground from frame pixels and their places on the map.

The pose minimises the weighted reprojection error with a weak prior on the tilt, by
Gauss-Newton from a start that the attitude and the registration give; no other solution of the
planar problem is near that start.

References
----------
Hartley and Zisserman, Multiple View Geometry (2004), appendix A6.8: robust cost functions.
Sola, Deraye and Atchuthan, A micro Lie theory (2018), section II: the perturbation of a rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from bicrossnet_ros.lens import camera_matrix
from bicrossnet_ros.types import FloatArray, Intrinsics

ITERATIONS = 15
# Residuals beyond this many deviations weigh less (Huber); 1.345 keeps 95 % efficiency.
HUBER = 1.345
# The image is cut into so many cells a side to see how residuals hang together.
CELLS = 4


@dataclass(frozen=True)
class CameraPose:
    """A camera over flat ground.

    Parameters
    ----------
    rotation : ndarray of shape (3, 3)
        From (east, north, up) to camera axes.
    position_m : ndarray of shape (3,)
        (east, north, height above ground), relative to the origin of the ground points.
    covariance : ndarray of shape (6, 6)
        Of a small turn in camera axes (rad) and the position (m), as the residuals suggest.
    noise_px : float
        1-sigma of a residual coordinate, robust.
    """

    rotation: FloatArray
    position_m: FloatArray
    covariance: FloatArray
    noise_px: float


def solve_pose(
    intrinsics: Intrinsics,
    pixels: FloatArray,
    ground_m: FloatArray,
    *,
    rotation: FloatArray,
    position_m: FloatArray,
    tilt_sigma_deg: float,
) -> CameraPose | None:
    """Refine a pose.

    Parameters
    ----------
    intrinsics : Intrinsics
        Of the frame.
    pixels : ndarray of shape (N, 2)
        Ideal pixels (col, row).
    ground_m : ndarray of shape (N, 2)
        (east, north) of what they show.
    rotation, position_m : ndarrays of shape (3, 3) and (3,)
        Start; the start's tilt is also the prior.
    tilt_sigma_deg : float
        1-sigma of that prior about each axis.

    Returns
    -------
    CameraPose or None
        None if the iteration leaves the half space above the ground or does not settle.
    """
    K = camera_matrix(intrinsics)
    prior_down = rotation @ [0.0, 0.0, -1.0]
    prior_weight = 1.0 / math.radians(tilt_sigma_deg)
    R, C = rotation.copy(), position_m.astype(np.float64)
    noise_px = 1.0
    for _ in range(ITERATIONS):
        linear = _linearise(K, R, C, pixels, ground_m)
        if linear is None:
            return None
        residual, jacobian = linear
        noise_px = max(_robust_sigma(residual), 0.05)
        normal, gradients = _normal_equations(residual, jacobian, noise_px)
        gradient = gradients.sum(axis=0)
        down = R @ [0.0, 0.0, -1.0]
        # A turn w moves the vertical by w x down = -[down]x w; two components are enough.
        tilt = np.zeros((2, 6))
        tilt[:, :3] = -prior_weight * _cross(down)[:2]
        tilt_residual = prior_weight * (down - prior_down)[:2]
        normal += tilt.T @ tilt
        gradient += tilt.T @ tilt_residual
        step = -np.linalg.solve(normal, gradient)
        if not np.isfinite(step).all():
            return None
        R = np.asarray(cv2.Rodrigues(step[:3])[0], np.float64) @ R
        C = C + step[3:]
        if np.linalg.norm(step[:3]) < 1e-7 and np.linalg.norm(step[3:]) < 1e-5:
            break
    if np.linalg.norm(step[3:]) > 0.01:
        return None
    return CameraPose(R, C, _clustered_covariance(normal, gradients, pixels), noise_px)


def _clustered_covariance(
    normal: FloatArray, gradients: FloatArray, pixels: FloatArray
) -> FloatArray:
    """Covariance of the parameters that believes residuals only as far as they are independent.

    Relief, map seams and the lens push neighbouring matches the same way. Summed over cells of
    the image, the gradients show how much; the sandwich of Liang and Zeger, Longitudinal data
    analysis using generalized linear models (1986), equation 8, is added to the plain covariance.
    """
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    cell = np.minimum(CELLS * (pixels - low) / np.maximum(high - low, 1e-9), CELLS - 1).astype(int)
    sums = np.zeros((CELLS * CELLS, 6))
    np.add.at(sums, cell[:, 0] * CELLS + cell[:, 1], gradients)
    used = len(np.unique(cell, axis=0))
    plain = np.linalg.inv(normal)
    middle = sums.T @ sums * used / max(used - 1, 1)
    return np.asarray(plain + plain @ middle @ plain, np.float64)


def _linearise(
    K: FloatArray, R: FloatArray, C: FloatArray, pixels: FloatArray, ground_m: FloatArray
) -> tuple[FloatArray, FloatArray] | None:
    """Residuals (N, 2) and their derivative (N, 2, 6) by (turn, position)."""
    points = np.column_stack([ground_m, np.zeros(len(ground_m))])
    seen = (points - C) @ R.T
    if C[2] <= 0 or (seen[:, 2] <= 0).any():
        return None
    x, y, z = seen.T
    residual = np.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], axis=1) - pixels
    project = np.zeros((len(points), 2, 3))
    project[:, 0, 0], project[:, 0, 2] = K[0, 0] / z, -K[0, 0] * x / z**2
    project[:, 1, 1], project[:, 1, 2] = K[1, 1] / z, -K[1, 1] * y / z**2
    turned = np.zeros((len(points), 3, 3))
    turned[:, 0, 1], turned[:, 0, 2] = z, -y
    turned[:, 1, 0], turned[:, 1, 2] = -z, x
    turned[:, 2, 0], turned[:, 2, 1] = y, -x
    return residual, np.concatenate([project @ turned, -project @ R], axis=2)


def _robust_sigma(residual: FloatArray) -> float:
    """1-sigma of a coordinate from the median length (Rayleigh's median is 1.1774 sigma)."""
    return float(np.median(np.linalg.norm(residual, axis=1)) / 1.1774)


def _normal_equations(
    residual: FloatArray, jacobian: FloatArray, noise_px: float
) -> tuple[FloatArray, FloatArray]:
    """Matrix (6, 6) and every match's gradient (N, 6)."""
    length = np.linalg.norm(residual, axis=1) / noise_px
    weight = np.minimum(1.0, HUBER / np.maximum(length, 1e-12)) / noise_px**2
    weighted = jacobian * weight[:, None, None]
    normal = np.einsum('nia,nib->ab', weighted, jacobian)
    gradients = np.einsum('nia,ni->na', weighted, residual)
    return np.asarray(normal, np.float64), np.asarray(gradients, np.float64)


def _cross(vector: FloatArray) -> FloatArray:
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def ground_point(
    pose: CameraPose, intrinsics: Intrinsics, pixel: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Ground point (east, north) that an ideal pixel shows, and its covariance (2, 2).

    The derivative is that of the reprojection: where the pixel's ground point would have to move
    for the pixel to stay.
    """
    K = camera_matrix(intrinsics)
    flat = np.column_stack([pose.rotation[:, :2], -pose.rotation @ pose.position_m])
    lifted = np.linalg.solve(K @ flat, np.array([pixel[0], pixel[1], 1.0]))
    point = np.asarray(lifted[:2] / lifted[2], np.float64)
    linear = _linearise(K, pose.rotation, pose.position_m, pixel[None], point[None])
    assert linear is not None, 'the pixel sees the ground'
    by_pose = linear[1][0]
    by_ground = -by_pose[:, 3:5]
    moved = np.linalg.solve(by_ground, by_pose)
    return point, np.asarray(moved @ pose.covariance @ moved.T, np.float64)
