"""The answer to one frame as plain values: what is written, scored and drawn.

A replay makes it from the localizer's estimate, a demonstration from what it received over ROS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bicrossnet_ros.types import PositionEstimate

NAN = math.nan
FALSE_FIX_M = 25.0


@dataclass(frozen=True)
class FixRecord:
    """The answer to one frame, and its error where the truth is known.

    Parameters
    ----------
    status, reason : str
        Values of `types.Status` and `types.Reason`.
    lat_deg, lon_deg, center_lat_deg, center_lon_deg : float
        Camera, and ground point at the image centre; NaN without a fix.
    sigma_m : float
        Largest 1-sigma half axis of the camera position's error ellipse.
    similarity : float
        Of the best place by retrieval, the mean over the frame's patches.
    inliers, tile_id : int
        As in `types.PositionEstimate`.
    heading_deg, agl_m : float
        As registered; NaN where unknown.
    cov_ee_m2, cov_en_m2, cov_nn_m2 : float
        Covariance of the camera position; east and north of the gallery's CRS.
    center_cov_ee_m2, center_cov_en_m2, center_cov_nn_m2 : float
        The same for the image centre.
    timings_ms : dict
        Milliseconds per stage; `total` is what the caller waited.
    candidates : tuple of (lat_deg, lon_deg)
        Centres of the retrieved tiles, best first, before registration.
    truth_lat_deg, truth_lon_deg, truth_center_lat_deg, truth_center_lon_deg : float
        The truth; NaN where unknown. These and the following are filled in by `evaluation.score`.
    center_error_m, camera_error_m : float
        Distance to the truth of the centre and of the camera; NaN where unknown.
    error_m : float
        Centre against centre where that truth exists, else camera against camera.
    center_nees, camera_nees : float
        Squared error over covariance (2 degrees of freedom); the 95% ellipse ends at 5.991.
    candidate_distances_m : tuple of float
        From each candidate to the true image centre (else the true camera).
    """

    file: str
    stamp_s: float
    status: str
    reason: str = ''
    detail: str = ''
    lat_deg: float = NAN
    lon_deg: float = NAN
    center_lat_deg: float = NAN
    center_lon_deg: float = NAN
    sigma_m: float = NAN
    similarity: float = NAN
    inliers: int = 0
    tile_id: int = -1
    heading_deg: float = NAN
    agl_m: float = NAN
    cov_ee_m2: float = NAN
    cov_en_m2: float = NAN
    cov_nn_m2: float = NAN
    center_cov_ee_m2: float = NAN
    center_cov_en_m2: float = NAN
    center_cov_nn_m2: float = NAN
    timings_ms: dict[str, float] = field(default_factory=dict)
    candidates: tuple[tuple[float, float], ...] = ()
    truth_lat_deg: float = NAN
    truth_lon_deg: float = NAN
    truth_center_lat_deg: float = NAN
    truth_center_lon_deg: float = NAN
    error_m: float = NAN
    center_error_m: float = NAN
    camera_error_m: float = NAN
    center_nees: float = NAN
    camera_nees: float = NAN
    candidate_distances_m: tuple[float, ...] = ()

    @property
    def is_fix(self) -> bool:
        """Whether this may be used as a position."""
        return self.status == 'fix'

    @property
    def uses_center(self) -> bool:
        """Whether `error_m` compares image centres; else it compares camera positions."""
        known = math.isfinite(self.center_lat_deg) or not self.is_fix
        return known and math.isfinite(self.truth_center_lat_deg)

    @property
    def is_false_fix(self) -> bool:
        """Whether a fix was claimed that is further off than `FALSE_FIX_M`."""
        return self.is_fix and self.error_m > FALSE_FIX_M


def record_from_estimate(estimate: PositionEstimate, file: str) -> FixRecord:
    """The localizer's answer as a plain record, without errors: `evaluation.score` adds them."""
    camera, center = estimate.covariance_m2, estimate.center_covariance_m2
    return FixRecord(
        file=file,
        stamp_s=estimate.stamp_s,
        status=str(estimate.status),
        reason=str(estimate.reason),
        detail=estimate.detail,
        lat_deg=estimate.lat_deg,
        lon_deg=estimate.lon_deg,
        center_lat_deg=estimate.center_lat_deg,
        center_lon_deg=estimate.center_lon_deg,
        sigma_m=estimate.sigma_m,
        similarity=estimate.similarity,
        inliers=estimate.inliers,
        tile_id=estimate.tile_id,
        heading_deg=estimate.heading_deg,
        agl_m=estimate.agl_m,
        cov_ee_m2=float(camera[0, 0]),
        cov_en_m2=float(camera[0, 1]),
        cov_nn_m2=float(camera[1, 1]),
        center_cov_ee_m2=float(center[0, 0]),
        center_cov_en_m2=float(center[0, 1]),
        center_cov_nn_m2=float(center[1, 1]),
        timings_ms=dict(estimate.timings_ms),
        candidates=tuple((tile.lat_deg, tile.lon_deg) for tile in estimate.candidates),
    )
