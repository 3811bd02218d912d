"""What is flown and with which camera: poses along a path, and their projection.

The projection is written here from its definition, apart from `bicrossnet_ros.camera`, so that a
flight simulated with it checks the signs there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.types import FloatArray

CAMERA_FROM_BODY = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Image right = body right, image down = towards the tail, optical axis = body down (FRD)."""

TAKE_OFF = datetime(2026, 6, 1, 10, 0, 0, tzinfo=timezone.utc)


@dataclass(frozen=True)
class FlightPlan:
    """What is flown and with which camera.

    Parameters
    ----------
    frames : int
        Number of exposures.
    min_agl_m, max_agl_m : float
        The height above ground swings between the two.
    hz : float
        Exposures a second.
    width_px, height_px : int
        Frame size.
    hfov_deg : float
        Horizontal field of view.
    wobble_deg : float
        Standard deviation of roll and pitch.
    seed : int
        Of everything random.
    """

    frames: int = 40
    min_agl_m: float = 60.0
    max_agl_m: float = 120.0
    hz: float = 1.0
    width_px: int = 640
    height_px: int = 480
    hfov_deg: float = 50.0
    wobble_deg: float = 4.0
    seed: int = 1

    def __post_init__(self) -> None:
        checks = {
            'frames must be from 1 to 100000': 1 <= self.frames <= 100_000,
            'heights must satisfy 5 <= min <= max <= 3000 m': 5
            <= self.min_agl_m
            <= self.max_agl_m
            <= 3000,
            'hz must be over 0 and at most 100': 0 < self.hz <= 100,
            'frame size must be from 64 x 64 to 8192 x 8192 px': 64 <= self.width_px <= 8192
            and 64 <= self.height_px <= 8192,
            'hfov must be from 10 to 120 deg': 10 <= self.hfov_deg <= 120,
            'wobble must be from 0 to 20 deg': 0 <= self.wobble_deg <= 20,
        }
        broken = [text for text, holds in checks.items() if not holds]
        if broken:
            raise ConfigError(f'flight plan: {"; ".join(broken)} (got {self})')

    @property
    def focal_px(self) -> float:
        """Focal length in pixels."""
        return self.width_px / 2.0 / math.tan(math.radians(self.hfov_deg / 2.0))

    @property
    def camera_matrix(self) -> FloatArray:
        """Pinhole matrix, shape (3, 3); the principal point is the image centre."""
        center = ((self.width_px - 1) / 2.0, (self.height_px - 1) / 2.0)
        return np.array(
            [[self.focal_px, 0.0, center[0]], [0.0, self.focal_px, center[1]], [0.0, 0.0, 1.0]]
        )

    def footprint_radius_m(self, agl_m: float) -> float:
        """Radius around the nadir that holds the footprint at twice the usual wobble."""
        half_diagonal = math.hypot(self.width_px, self.height_px) / 2.0 / self.focal_px
        return agl_m * math.tan(math.atan(half_diagonal) + math.radians(2.0 * self.wobble_deg))


@dataclass(frozen=True)
class Pose:
    """The true camera at one exposure; heading from GRID north, position in the map's CRS."""

    stamp_s: float
    east_m: float
    north_m: float
    agl_m: float
    roll_deg: float
    pitch_deg: float
    grid_heading_deg: float


def camera_from_ned(roll_deg: float, pitch_deg: float, heading_deg: float) -> FloatArray:
    """Rotation from north-east-down to the camera (x right, y down, z forward), shape (3, 3)."""
    roll, pitch, heading = (math.radians(angle) for angle in (roll_deg, pitch_deg, heading_deg))
    turn_x = np.array(
        [[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]]
    )
    turn_y = np.array(
        [[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]]
    )
    turn_z = np.array(
        [
            [math.cos(heading), -math.sin(heading), 0],
            [math.sin(heading), math.cos(heading), 0],
            [0, 0, 1],
        ]
    )
    return np.asarray(CAMERA_FROM_BODY @ (turn_z @ turn_y @ turn_x).T, np.float64)


def ground_to_pixel(plan: FlightPlan, pose: Pose) -> FloatArray:
    """Homography from (east, north, 1) relative to the nadir to frame pixels (col, row, 1)."""
    rotation = camera_from_ned(pose.roll_deg, pose.pitch_deg, pose.grid_heading_deg)
    ned_from_ground = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, pose.agl_m]])
    return np.asarray(plan.camera_matrix @ rotation @ ned_from_ground, np.float64)


def ground_center_m(plan: FlightPlan, pose: Pose) -> tuple[float, float]:
    """(east, north) of the ground point seen at the image centre."""
    pixel = np.array([(plan.width_px - 1) / 2.0, (plan.height_px - 1) / 2.0, 1.0])
    ground = np.linalg.solve(ground_to_pixel(plan, pose), pixel)
    return pose.east_m + ground[0] / ground[2], pose.north_m + ground[1] / ground[2]


def fly(plan: FlightPlan, bounds_m: tuple[float, float, float, float]) -> Iterator[Pose]:
    """Fly a serpentine over (west, south, east, north) that keeps every footprint inside.

    Raises
    ------
    MapError
        If the map is too small for the lowest height.
    """
    west, south, east, north = bounds_m
    half = min(east - west, north - south) / 2.0
    needed = plan.footprint_radius_m(plan.min_agl_m)
    if half <= needed:
        raise MapError(
            f'the map is {2 * half:.0f} m wide, but a frame taken at {plan.min_agl_m:.0f} m needs '
            f'{2 * needed:.0f} m; fly lower, narrow the field of view or take a larger map'
        )
    rng = np.random.default_rng(plan.seed)
    phase = rng.uniform(0.0, 2.0 * math.pi, 6)
    path = [
        _place(plan, bounds_m, index / max(plan.frames - 1, 1)) for index in range(plan.frames)
    ]
    for index, (east_m, north_m, agl_m) in enumerate(path):
        before, after = path[max(index - 1, 0)], path[min(index + 1, plan.frames - 1)]
        course_deg = math.degrees(math.atan2(after[0] - before[0], after[1] - before[1]))
        swing = [math.sin(phase[k] + index * (0.9 + 0.37 * k)) for k in range(3)]
        yield Pose(
            stamp_s=TAKE_OFF.timestamp() + index / plan.hz,
            east_m=east_m,
            north_m=north_m,
            agl_m=agl_m,
            roll_deg=plan.wobble_deg * math.sqrt(2.0) * swing[0],
            pitch_deg=plan.wobble_deg * math.sqrt(2.0) * swing[1],
            grid_heading_deg=(course_deg + 8.0 * swing[2]) % 360.0,
        )


def _place(
    plan: FlightPlan, bounds_m: tuple[float, float, float, float], progress: float
) -> tuple[float, float, float]:
    """East, north and height at `progress` in [0, 1]: legs up and down, drawn in as it climbs."""
    west, south, east, north = bounds_m
    half_width, half_height = (east - west) / 2.0, (north - south) / 2.0
    highest = plan.max_agl_m
    while (
        plan.footprint_radius_m(highest) > 0.9 * min(half_width, half_height)
        and highest > plan.min_agl_m
    ):
        highest = max(highest * 0.98, plan.min_agl_m)
    agl_m = plan.min_agl_m + (highest - plan.min_agl_m) * 0.5 * (
        1.0 - math.cos(2.0 * math.pi * progress)
    )
    radius_m = plan.footprint_radius_m(agl_m)
    across = 2.0 * progress - 1.0
    along = math.sin(4.0 * math.pi * progress)
    return (
        west + half_width + across * (half_width - radius_m),
        south + half_height + along * (half_height - radius_m),
        agl_m,
    )
