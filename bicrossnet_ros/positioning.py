"""From an alignment to a position: camera and image centre on the map, with covariances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.camera import apply, clockwise, top_heading_deg
from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.hypotheses import Hypothesis, Knowledge
from bicrossnet_ros.integrity import disagreement_covariance, inflated, tilt_covariance
from bicrossnet_ros.pose import CameraPose, ground_point, solve_pose
from bicrossnet_ros.registration import Refusal, Registration, jacobian_at
from bicrossnet_ros.types import FloatArray, Reason

# An attitude that the picture contradicts by this many of its sigmas is no rounding matter.
MAX_TILT_SIGMAS = 5.0


@dataclass(frozen=True)
class Position:
    """Camera and image centre on the map.

    Parameters
    ----------
    camera_m, center_m : ndarrays of shape (2,)
        (east, north).
    camera_covariance_m2, center_covariance_m2 : ndarrays of shape (2, 2)
    agl_m : float
        Height above ground; NaN if it does not follow.
    grid_heading_deg : float
        Direction of the image's top, clockwise from grid north.
    """

    camera_m: FloatArray
    camera_covariance_m2: FloatArray
    center_m: FloatArray
    center_covariance_m2: FloatArray
    agl_m: float
    grid_heading_deg: float


def locate(
    registration: Registration,
    knowledge: Knowledge,
    tried: Hypothesis,
    config: LocalizerConfig,
    *,
    map_accuracy_m: float,
) -> Position | Refusal:
    """Place the camera and the image centre.

    With known intrinsics the camera's whole pose is solved for; else the tilt that the attitude
    says, or none, leads from the image centre to the camera.
    """
    if not knowledge.lens_known:
        return _from_center(registration, knowledge, tried, config, map_accuracy_m)
    pose = _pose(registration, knowledge, tried, config)
    if pose is None:
        return Refusal(
            Reason.IMPLAUSIBLE,
            'no camera pose explains the matches',
            registration.inliers,
        )
    problem = _refused_pose(pose, knowledge, tried, config)
    if problem:
        return Refusal(Reason.IMPLAUSIBLE, problem, registration.inliers)
    center, center_covariance = ground_point(pose, knowledge.intrinsics, tried.view.center_px)
    integrity = config.integrity
    camera_covariance = inflated(
        pose.covariance[3:5, 3:5], integrity, map_accuracy_m=map_accuracy_m
    )
    if knowledge.agl_known:
        camera_covariance = camera_covariance + disagreement_covariance(
            height_m=float(pose.position_m[2]),
            given_m=tried.agl_m,
            offset_m=pose.position_m[:2] - center,
        )
    return Position(
        camera_m=registration.origin_m + pose.position_m[:2],
        camera_covariance_m2=camera_covariance,
        center_m=registration.origin_m + center,
        center_covariance_m2=inflated(center_covariance, integrity, map_accuracy_m=map_accuracy_m),
        agl_m=float(pose.position_m[2]),
        grid_heading_deg=top_heading_deg(pose.rotation),
    )


def _pose(
    registration: Registration,
    knowledge: Knowledge,
    tried: Hypothesis,
    config: LocalizerConfig,
) -> CameraPose | None:
    below = apply(registration.homography, np.zeros((1, 2)))[0]
    integrity = config.integrity
    return solve_pose(
        knowledge.intrinsics,
        apply(tried.view.frame_from_ground, registration.source_m),
        registration.target_m,
        rotation=tried.view.rotation @ clockwise(registration.rotation_deg).T,
        position_m=np.array([*below, tried.agl_m * registration.scale]),
        tilt_sigma_deg=(
            integrity.attitude_sigma_deg
            if knowledge.attitude_known
            else integrity.unknown_tilt_deg
        ),
    )


def _refused_pose(
    pose: CameraPose, knowledge: Knowledge, tried: Hypothesis, config: LocalizerConfig
) -> str:
    """Why a pose cannot be; empty if it can."""
    height_m, camera = float(pose.position_m[2]), config.camera
    if not camera.min_agl_m <= height_m <= camera.max_agl_m:
        return (
            f'the registered height is {height_m:.1f} m; '
            f'expected {camera.min_agl_m:g} to {camera.max_agl_m:g} m'
        )
    down, believed = -pose.rotation[:, 2], -tried.view.rotation[:, 2]
    tilt_deg = math.degrees(math.acos(min(1.0, float(down[2]))))
    off_deg = math.degrees(math.acos(min(1.0, float(down @ believed))))
    limit_deg = MAX_TILT_SIGMAS * config.integrity.attitude_sigma_deg
    if tilt_deg > camera.max_tilt_deg:
        return (
            f'the registered tilt is {tilt_deg:.0f} deg; '
            f'expected at most {camera.max_tilt_deg:g} deg'
        )
    if knowledge.attitude_known and off_deg > limit_deg:
        return (
            f'the registered tilt differs from roll and pitch by {off_deg:.0f} deg; '
            f'expected at most {limit_deg:.0f} deg'
        )
    return ''


def _from_center(
    registration: Registration,
    knowledge: Knowledge,
    tried: Hypothesis,
    config: LocalizerConfig,
    map_accuracy_m: float,
) -> Position:
    source = tried.view.center_m
    center = registration.to_map(source[None])[0]
    residual = apply(registration.homography, registration.source_m) - registration.target_m
    variance = float(np.median((residual**2).sum(axis=1)) / 1.386)
    raw = variance * homography_spread(registration.source_m, source) * np.eye(2)
    jacobian = jacobian_at(registration.homography, source)
    offset = jacobian @ -source
    height_m = tried.agl_m * registration.scale
    tilt_sigma_deg = (
        config.integrity.attitude_sigma_deg
        if knowledge.attitude_known
        else config.integrity.unknown_tilt_deg
    )
    center_covariance = inflated(raw, config.integrity, map_accuracy_m=map_accuracy_m)
    # An unknown lens leaves the height open by the same factor that the offset scales with.
    doubt = tilt_covariance(height_m, tilt_sigma_deg) + 0.25 * np.outer(offset, offset)
    turned = tried.view.rotation @ clockwise(registration.rotation_deg).T
    return Position(
        camera_m=np.asarray(center + offset, np.float64),
        camera_covariance_m2=np.asarray(center_covariance + doubt, np.float64),
        center_m=np.asarray(center, np.float64),
        center_covariance_m2=center_covariance,
        agl_m=math.nan,
        grid_heading_deg=top_heading_deg(turned),
    )


def homography_spread(points: FloatArray, point: FloatArray) -> float:
    """Variance of a fitted homography at a point, per unit variance of a match.

    Near the points' middle a homography behaves as a quadratic fit; the leverage of the point in
    that fit is the factor.
    """
    middle = points.mean(axis=0)
    size = max(float(np.abs(points - middle).max()), 1e-6)

    def terms(at: FloatArray) -> FloatArray:
        x, y = ((at - middle) / size).T
        return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)

    design = terms(points)
    normal = design.T @ design + 1e-9 * np.eye(6)
    row = terms(point[None])[0]
    return float(row @ np.linalg.solve(normal, row))
