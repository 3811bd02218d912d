"""A textured piece of ground and frames of it, ray-traced pixel by pixel from the definitions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from bicrossnet_ros.geodesy import grid_convergence_deg, to_wgs84
from bicrossnet_ros.types import Attitude, Intrinsics

CRS = 'EPSG:32617'
WEST_M, NORTH_M, GSD_M = 305900.0, 4545700.0, 0.5
LENS = Intrinsics(320, 240, 260.0, 262.0, 158.0, 121.0)


def ground_texture(height_px: int, width_px: int, *, seed: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) with detail at every scale, the finest 3 px."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height_px, width_px, 3), np.float32)
    for cell_px, weight in ((90, 45.0), (30, 30.0), (11, 30.0), (5, 25.0), (3, 15.0)):
        shape = (height_px // cell_px + 4, width_px // cell_px + 4, 3)
        coarse = rng.uniform(-1, 1, shape).astype(np.float32)
        fine = cv2.resize(coarse, None, fx=cell_px, fy=cell_px, interpolation=cv2.INTER_CUBIC)
        total += weight * fine[:height_px, :width_px]
    return np.clip(total + 128, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Shot:
    """Where the camera was and how it looked; mount angles as in `CameraConfig`."""

    east_m: float
    north_m: float
    agl_m: float = 90.0
    heading_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    lens: Intrinsics = field(default_factory=lambda: LENS)
    mount: tuple[float, float, float] = (0.0, 0.0, 0.0)  # roll, pitch, yaw

    @property
    def attitude(self) -> Attitude:
        return Attitude(self.roll_deg, self.pitch_deg, self.heading_deg)

    @property
    def position(self) -> tuple[float, float]:
        return to_wgs84(CRS, self.east_m, self.north_m)

    @property
    def grid_heading_deg(self) -> float:
        return self.heading_deg + grid_convergence_deg(CRS, *self.position)

    def ground(self, pixels: np.ndarray) -> np.ndarray:
        """(east, north) that frame pixels (N, 2) as (col, row) see: one rotation at a time."""
        lens = self.lens
        x = (pixels[:, 0] - lens.cx_px) / lens.fx_px
        y = (pixels[:, 1] - lens.cy_px) / lens.fy_px
        x, y = _without_distortion(lens, x, y)
        # Body axes of a camera that looks down with its top to the nose: right is x, tail is y.
        ray = np.stack([-y, x, np.ones_like(x)])
        for roll, pitch, yaw in (
            self.mount,
            (self.roll_deg, self.pitch_deg, self.grid_heading_deg),
        ):
            ray = _about(0, roll) @ ray
            ray = _about(1, pitch) @ ray
            ray = _about(2, yaw) @ ray
        north, east, down = ray
        return np.stack(
            [self.east_m + self.agl_m * east / down, self.north_m + self.agl_m * north / down],
            axis=1,
        )

    @property
    def center(self) -> np.ndarray:
        middle = np.array([[(self.lens.width_px - 1) / 2, (self.lens.height_px - 1) / 2]])
        return self.ground(middle)[0]


def _about(axis: int, angle_deg: float) -> np.ndarray:
    """Right-handed rotation about one of the axes front, right, down."""
    one, two = ((1, 2), (2, 0), (0, 1))[axis]
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    matrix = np.eye(3)
    matrix[one, one] = matrix[two, two] = cos
    matrix[one, two], matrix[two, one] = -sin, sin
    return matrix


def _without_distortion(lens: Intrinsics, x: np.ndarray, y: np.ndarray):
    """Fixed-point inversion of k1, k2 (plumb_bob) or of the equidistant polynomial."""
    if lens.model == 'equidistant':
        radius = np.hypot(x, y)
        theta = radius.copy()
        k = np.array(lens.distortion or (0.0,) * 4)
        for _ in range(50):
            theta = radius / (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(4)))
        factor = np.where(radius > 1e-9, np.tan(theta) / np.maximum(radius, 1e-9), 1.0)
        return x * factor, y * factor
    if not any(lens.distortion):
        return x, y
    k1, k2 = lens.distortion[:2]
    assert not any(lens.distortion[2:]), 'this reference knows k1 and k2'
    u, v = x.copy(), y.copy()
    for _ in range(100):
        r2 = u * u + v * v
        factor = 1 + k1 * r2 + k2 * r2 * r2
        u, v = x / factor, y / factor
    return u, v


def render(ground: np.ndarray, shot: Shot, *, seed: int = 0, noise: float = 4.0) -> np.ndarray:
    """Frame uint8 RGB, four rays a pixel, with another light and some noise."""
    lens = shot.lens
    total = np.zeros((lens.height_px, lens.width_px, 3), np.float32)
    rows, cols = np.mgrid[0 : lens.height_px, 0 : lens.width_px].astype(np.float64)
    for shift_col, shift_row in ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)):
        pixels = np.stack([(cols + shift_col).ravel(), (rows + shift_row).ravel()], axis=1)
        place = shot.ground(pixels)
        col = ((place[:, 0] - WEST_M) / GSD_M - 0.5).reshape(rows.shape).astype(np.float32)
        row = ((NORTH_M - place[:, 1]) / GSD_M - 0.5).reshape(rows.shape).astype(np.float32)
        total += cv2.remap(ground, col, row, cv2.INTER_LINEAR).astype(np.float32)
    rng = np.random.default_rng(seed)
    frame = 0.8 * total / 4 + 25 + rng.normal(0, noise, total.shape)
    return np.clip(frame, 0, 255).astype(np.uint8)
