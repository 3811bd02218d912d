"""How good were the fixes: errors, false fixes, recall, containment, latency. Pure functions.

Everything works on `FixRecord`s, plain values that a replay makes from the localizer's estimates
and a demonstration makes from what it received over ROS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from bicrossnet_ros.flight import FlightRecord
from bicrossnet_ros.types import PositionEstimate

NAN = math.nan


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
    cov_ee_m2, cov_en_m2, cov_nn_m2 : float
        Covariance of the camera position; east and north of the gallery's CRS.
    center_cov_ee_m2, center_cov_en_m2, center_cov_nn_m2 : float
        The same for the image centre.
    timings_ms : dict
        Milliseconds per stage; `total` is what the caller waited.
    candidates : tuple of (lat_deg, lon_deg)
        Centres of the retrieved tiles, best first, before registration.
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


def record_from_estimate(estimate: PositionEstimate, file: str) -> FixRecord:
    """The localizer's answer as a plain record, without errors: `score` adds them."""
    raise NotImplementedError


def score(fix: FixRecord, truth: FlightRecord, *, crs: str) -> FixRecord:
    """The same record with its errors against the truth, in metres."""
    raise NotImplementedError


__all__ = ['FixRecord', 'record_from_estimate', 'replace', 'score']
