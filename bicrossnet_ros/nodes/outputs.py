"""Messages out: an estimate as NavSatFix, pose and markers. Messages are filled, not made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bicrossnet_ros.geodesy import LocalFrame, heading_to_yaw_rad
from bicrossnet_ros.types import FloatArray, PositionEstimate

UNKNOWN_VARIANCE = 1e12
"""Of a quantity that was not measured; finite, because filters choke on infinity."""

YAW_SIGMA_RAD = math.radians(5.0)
"""Of the registered heading, which also carries the tilt of the camera: a cautious figure."""

STATUS_NO_FIX, STATUS_FIX = -1, 0
COVARIANCE_UNKNOWN, COVARIANCE_KNOWN = 0, 3


def enu_covariance_m2(covariance_m2: FloatArray, convergence_deg: float) -> FloatArray:
    """Turn a covariance of grid (east, north) into one of true (east, north).

    Parameters
    ----------
    covariance_m2 : ndarray of shape (2, 2)
        In the gallery's CRS.
    convergence_deg : float
        As `geodesy.grid_convergence_deg` gives it.
    """
    c, s = math.cos(math.radians(convergence_deg)), math.sin(math.radians(convergence_deg))
    true_from_grid = np.array([[c, -s], [s, c]])
    return np.asarray(true_from_grid @ covariance_m2 @ true_from_grid.T, np.float64)


def altitude_m(estimate: PositionEstimate, ground_ellipsoid_m: float | None) -> float:
    """Height of the camera above the WGS84 ellipsoid; NaN if ground or height are unknown."""
    if ground_ellipsoid_m is None:
        return math.nan
    return ground_ellipsoid_m + estimate.agl_m


def fill_fix(
    message: Any,
    estimate: PositionEstimate,
    *,
    convergence_deg: float = 0.0,
    ground_ellipsoid_m: float | None = None,
    altitude_sigma_m: float = 10.0,
) -> None:
    """Write an estimate into a `sensor_msgs/NavSatFix`; the header stays as it is.

    Without a fix the position is NaN, the status says NO_FIX and the variances are huge: no reader
    that skips one of the three takes it for a position.
    """
    message.status.service = 0
    message.position_covariance = [0.0] * 9
    for axis in (0, 4, 8):
        message.position_covariance[axis] = UNKNOWN_VARIANCE
    if not estimate.is_fix:
        message.status.status = STATUS_NO_FIX
        message.latitude = message.longitude = message.altitude = math.nan
        message.position_covariance_type = COVARIANCE_UNKNOWN
        return
    message.status.status = STATUS_FIX
    message.latitude, message.longitude = estimate.lat_deg, estimate.lon_deg
    message.altitude = altitude_m(estimate, ground_ellipsoid_m)
    covariance = enu_covariance_m2(estimate.covariance_m2, convergence_deg)
    message.position_covariance[0] = float(covariance[0, 0])
    message.position_covariance[1] = float(covariance[0, 1])
    message.position_covariance[3] = float(covariance[1, 0])
    message.position_covariance[4] = float(covariance[1, 1])
    if math.isfinite(message.altitude):
        message.position_covariance[8] = altitude_sigma_m**2
    message.position_covariance_type = COVARIANCE_KNOWN


def local_enu_m(
    frame: LocalFrame, lat_deg: float, lon_deg: float, agl_m: float = 0.0
) -> tuple[float, float, float]:
    """A WGS84 position in the local frame, whose origin lies on the ground."""
    height_m = agl_m if math.isfinite(agl_m) else 0.0
    east, north, up = frame.to_enu_m(lat_deg, lon_deg, frame.ellipsoid_m + height_m)
    return float(east), float(north), float(up)


def fill_pose(
    message: Any,
    estimate: PositionEstimate,
    frame: LocalFrame,
    *,
    convergence_deg: float = 0.0,
    mount_yaw_deg: float = 0.0,
    altitude_sigma_m: float = 10.0,
) -> None:
    """Write a fix into a `geometry_msgs/PoseWithCovarianceStamped`; the header stays as it is.

    Position of the camera in the local east-north-up frame; orientation that of a level aircraft
    with the registered heading. What was not measured has the variance `UNKNOWN_VARIANCE`.
    """
    position = message.pose.pose.position
    position.x, position.y, position.z = local_enu_m(
        frame, estimate.lat_deg, estimate.lon_deg, estimate.agl_m
    )
    heading_known = math.isfinite(estimate.heading_deg)
    yaw_rad = heading_to_yaw_rad(estimate.heading_deg - mount_yaw_deg) if heading_known else 0.0
    orientation = message.pose.pose.orientation
    orientation.x = orientation.y = 0.0
    orientation.z, orientation.w = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
    covariance = np.diag([0.0, 0.0] + [UNKNOWN_VARIANCE] * 4)
    covariance[:2, :2] = enu_covariance_m2(estimate.covariance_m2, convergence_deg)
    if math.isfinite(estimate.agl_m):
        covariance[2, 2] = altitude_sigma_m**2
    if heading_known:
        covariance[5, 5] = YAW_SIGMA_RAD**2
    message.pose.covariance = [float(value) for value in covariance.ravel()]


def fill_markers(
    array: Any, marker_type: Any, header: Any, estimate: PositionEstimate, frame: LocalFrame
) -> None:
    """Write the candidates into a `visualization_msgs/MarkerArray`: dots, the best one greenest.

    The first marker clears those of the frame before.
    """
    clear = marker_type()
    clear.header = header
    clear.action = marker_type.DELETEALL
    array.markers.append(clear)
    similarities = [match.similarity for match in estimate.candidates]
    span = (max(similarities) - min(similarities)) if similarities else 0.0
    for rank, match in enumerate(estimate.candidates):
        marker = marker_type()
        marker.header = header
        marker.ns, marker.id = 'candidates', rank
        marker.type, marker.action = marker_type.SPHERE, marker_type.ADD
        position = marker.pose.position
        position.x, position.y, position.z = local_enu_m(frame, match.lat_deg, match.lon_deg)
        marker.pose.orientation.w = 1.0
        size_m = 12.0 if match.tile_id == estimate.tile_id else 6.0
        marker.scale.x = marker.scale.y = marker.scale.z = size_m
        share = (match.similarity - min(similarities)) / span if span > 0 else 1.0
        marker.color.r, marker.color.g = float(1.0 - share), float(share)
        marker.color.a = 1.0 if estimate.is_fix else 0.4
        marker.text = f'tile {match.tile_id}: {match.similarity:.3f}'
        array.markers.append(marker)
