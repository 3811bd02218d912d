"""The camera over the ground: attitude and height say what every pixel sees.

Conventions beside those of `types`: points given to homographies are (col, row), the order of
OpenCV; the world is (east, north, up) of the map's grid with its origin on the ground below the
camera; the camera looks along its z axis, x to the right of the image and y down it.

References
----------
Hartley and Zisserman, Multiple View Geometry (2004), section 8.1.1: the homography between a
plane and its image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.config import CameraConfig
from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.lens import camera_matrix, undistorted
from bicrossnet_ros.types import Attitude, FloatArray, ImageArray, Intrinsics

# Beyond this angle off the vertical a metre of ground is a pixel or less and relief hides it.
MAX_RAY_DEG = 75.0
MIN_GROUND_SHARE = 0.5
MIN_SIDE_PX = 32

# Image x is the aircraft's right (y of front-right-down), image y its tail (-x).
_BODY_FROM_CAMERA = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_ENU_FROM_NED = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def check_image(image: ImageArray) -> None:
    """Raise ImageError unless `image` is uint8 RGB (H, W, 3) of at least 32 x 32 pixels."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f'image is {type(image).__name__}; expected a uint8 array (H, W, 3)')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f'image is {image.dtype} of shape {image.shape}; expected uint8 RGB (H, W, 3)'
        )
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise ImageError(
            f'image has {image.shape[0]} x {image.shape[1]} pixels; '
            f'expected at least {MIN_SIDE_PX} x {MIN_SIDE_PX}'
        )


def check_agl(agl_m: float, config: CameraConfig) -> None:
    """Raise ImageError unless the height above ground is finite and within the believed range."""
    if not math.isfinite(agl_m) or not config.min_agl_m <= agl_m <= config.max_agl_m:
        raise ImageError(
            f'height above ground is {agl_m} m; expected {config.min_agl_m:g} to '
            f'{config.max_agl_m:g} m (min_agl_m, max_agl_m); leave it out if it is unknown'
        )


def check_attitude(attitude: Attitude) -> None:
    """Raise ImageError unless all known angles are finite."""
    for name in ('roll_deg', 'pitch_deg', 'heading_deg'):
        value = getattr(attitude, name)
        if value is not None and not math.isfinite(value):
            raise ImageError(
                f'attitude has {name} = {value}; expected a finite angle, or no attitude'
            )


def rotation_camera_from_world(
    attitude: Attitude, config: CameraConfig, *, grid_heading_deg: float
) -> FloatArray:
    """Rotation (3, 3) from the map's (east, north, up) to camera axes.

    Parameters
    ----------
    attitude : Attitude
        Roll and pitch of the aircraft; its heading is not used.
    config : CameraConfig
        The mount: yaw, then pitch, then roll, each about the axes already turned.
    grid_heading_deg : float
        Heading of the nose clockwise from grid north (true heading + grid convergence).
    """
    ned_from_body = _yaw_pitch_roll(grid_heading_deg, attitude.pitch_deg, attitude.roll_deg)
    mount = _yaw_pitch_roll(config.mount_yaw_deg, config.mount_pitch_deg, config.mount_roll_deg)
    world_from_camera = _ENU_FROM_NED @ ned_from_body @ mount @ _BODY_FROM_CAMERA
    return np.asarray(world_from_camera.T, np.float64)


def _yaw_pitch_roll(yaw_deg: float, pitch_deg: float, roll_deg: float) -> FloatArray:
    """Rz(yaw) Ry(pitch) Rx(roll) of front-right-down axes, the aerospace order (ISO 1151-2)."""
    (cy, cp, cr), (sy, sp, sr) = (
        [fun(math.radians(angle)) for angle in (yaw_deg, pitch_deg, roll_deg)]
        for fun in (math.cos, math.sin)
    )
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def top_heading_deg(rotation: FloatArray) -> float:
    """Direction of the image's top on the ground, clockwise from grid north, in [0, 360)."""
    east, north, _ = -rotation[1]
    return math.degrees(math.atan2(east, north)) % 360.0


def clockwise(rotation_deg: float) -> FloatArray:
    """Rotation (3, 3) of (east, north, up) about the vertical, clockwise seen from above."""
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class GroundView:
    """A pinhole camera at a height above flat ground, its lens distortion taken away.

    Parameters
    ----------
    intrinsics : Intrinsics
        For the frame's own size.
    rotation : ndarray of shape (3, 3)
        From (east, north, up) to camera axes.
    agl_m : float
        Height above ground.
    """

    intrinsics: Intrinsics
    rotation: FloatArray
    agl_m: float

    @property
    def frame_from_ground(self) -> FloatArray:
        """Homography (3, 3) from (east, north) below the camera to ideal pixels (col, row)."""
        flat = np.diag([1.0, 1.0, -self.agl_m])
        return np.asarray(camera_matrix(self.intrinsics) @ self.rotation @ flat, np.float64)

    @property
    def tilt_deg(self) -> float:
        """Angle of the optical axis off the vertical."""
        return math.degrees(math.acos(float(np.clip(-self.rotation[2, 2], -1.0, 1.0))))

    @property
    def center_px(self) -> FloatArray:
        """The middle of the image as an ideal pixel (col, row)."""
        middle = [[(self.intrinsics.width_px - 1) / 2, (self.intrinsics.height_px - 1) / 2]]
        return np.asarray(undistorted(self.intrinsics, np.array(middle))[0], np.float64)

    @property
    def center_m(self) -> FloatArray:
        """Ground (east, north) at the middle of the image, from the point below the camera."""
        ground = apply(inverse(self.frame_from_ground), self.center_px[None])
        return np.asarray(ground[0], np.float64)

    @property
    def gsd_m(self) -> float:
        """Metres of ground per pixel at the middle of the image (geometric mean of both ways)."""
        return math.sqrt(_area_scale(inverse(self.frame_from_ground), self.center_px))

    def ray_off_vertical_deg(self, points: FloatArray) -> FloatArray:
        """Angle between the downward vertical and the rays of ideal pixels (N, 2)."""
        rays = np.column_stack([points, np.ones(len(points))])
        rays = rays @ inverse(camera_matrix(self.intrinsics)).T
        down = -(rays @ self.rotation)[:, 2] / np.linalg.norm(rays, axis=1)
        return np.asarray(np.degrees(np.arccos(np.clip(down, -1.0, 1.0))), np.float64)

    def footprint_m(self) -> FloatArray:
        """Ground points (N, 2) that span what the frame sees, none too near the horizon.

        Those of its border; where part of that is too near, points inside as well: of a fisheye
        the whole border may be.
        """
        points = undistorted(self.intrinsics, _border(self.intrinsics))
        seen = self.ray_off_vertical_deg(points) <= MAX_RAY_DEG
        if not seen.all():
            points = np.concatenate([points, undistorted(self.intrinsics, _grid(self.intrinsics))])
            seen = self.ray_off_vertical_deg(points) <= MAX_RAY_DEG
        return apply(inverse(self.frame_from_ground), points[seen])


def _border(intrinsics: Intrinsics, count: int = 16) -> FloatArray:
    along = np.linspace(0.0, 1.0, count)
    zero, one = np.zeros(count), np.ones(count)
    unit = np.concatenate(
        [
            np.stack(side, axis=1)
            for side in ((along, zero), (one, along), (along, one), (zero, along))
        ]
    )
    return unit * [intrinsics.width_px - 1, intrinsics.height_px - 1]


def _grid(intrinsics: Intrinsics) -> FloatArray:
    """Points (81, 2) all over the frame."""
    rows, cols = np.mgrid[0.0:1.0:9j, 0.0:1.0:9j]
    unit = np.stack([cols.ravel(), rows.ravel()], axis=1)
    return np.asarray(unit * [intrinsics.width_px - 1, intrinsics.height_px - 1], np.float64)


def check_view(view: GroundView, config: CameraConfig) -> None:
    """Raise ImageError if the camera is tilted too far or sees too much of the horizon."""
    if not view.tilt_deg <= config.max_tilt_deg:
        raise ImageError(
            f'the camera looks {view.tilt_deg:.1f} deg off the vertical; '
            f'expected at most {config.max_tilt_deg:g} deg (max_tilt_deg)'
        )
    points = undistorted(view.intrinsics, _grid(view.intrinsics))
    share = float((view.ray_off_vertical_deg(points) <= MAX_RAY_DEG).mean())
    if share < MIN_GROUND_SHARE:
        raise ImageError(
            f'the horizon is in view: {100 * share:.0f}% of the frame looks at ground within '
            f'{MAX_RAY_DEG:g} deg of the vertical; expected at least {100 * MIN_GROUND_SHARE:.0f}%'
        )


def apply(homography: FloatArray, points: NDArray[np.floating]) -> FloatArray:
    """Points (N, 2) through a homography (3, 3); behind the horizon they become NaN."""
    lifted = np.column_stack([points, np.ones(len(points))]) @ homography.T
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.asarray(lifted[:, :2] / lifted[:, 2:], np.float64)


def inverse(homography: FloatArray) -> FloatArray:
    """Inverse (3, 3)."""
    return np.asarray(np.linalg.inv(homography), np.float64)


def _area_scale(homography: FloatArray, point: FloatArray) -> float:
    """Factor on areas at a point: det(H) / w^3."""
    w = float(homography[2] @ [point[0], point[1], 1.0])
    return float(abs(np.linalg.det(homography) / w**3))
