"""What the localizer says, put together: a fix with all its numbers, or none with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.positioning import Position
from bicrossnet_ros.registration import Refusal
from bicrossnet_ros.types import PositionEstimate, Reason, Status, TileMatch


@dataclass(frozen=True)
class MapFrame:
    """The map's projected CRS, and where true north lies clockwise from its grid north."""

    crs: str
    convergence_deg: float


def no_fix(refusal: Refusal, shown: list[TileMatch] | None = None) -> PositionEstimate:
    """No position, why, and the tiles that were looked at; the stamp is the caller's to add."""
    best = shown[0] if shown else None
    return PositionEstimate(
        stamp_s=math.nan,
        status=Status.NO_FIX,
        reason=refusal.reason,
        detail=refusal.detail,
        similarity=best.similarity if best else math.nan,
        inliers=refusal.inliers,
        tile_id=best.tile_id if best else -1,
        candidates=tuple(shown or ()),
    )


def fix(
    position: Position,
    shown: list[TileMatch],
    frame_of_map: MapFrame,
    *,
    tile_id: int,
    inliers: int,
    detail: str,
) -> PositionEstimate:
    """A position in the map's CRS and in WGS84; the stamp is the caller's to add."""
    camera = to_wgs84(frame_of_map.crs, *position.camera_m.tolist())
    center = to_wgs84(frame_of_map.crs, *position.center_m.tolist())
    return PositionEstimate(
        stamp_s=math.nan,
        status=Status.FIX,
        reason=Reason.NONE,
        detail=detail,
        lat_deg=camera[0],
        lon_deg=camera[1],
        east_m=float(position.camera_m[0]),
        north_m=float(position.camera_m[1]),
        covariance_m2=position.camera_covariance_m2,
        center_lat_deg=center[0],
        center_lon_deg=center[1],
        center_east_m=float(position.center_m[0]),
        center_north_m=float(position.center_m[1]),
        center_covariance_m2=position.center_covariance_m2,
        agl_m=position.agl_m,
        heading_deg=(position.grid_heading_deg - frame_of_map.convergence_deg) % 360.0,
        similarity=shown[0].similarity,
        inliers=inliers,
        tile_id=tile_id,
        candidates=tuple(shown),
    )
