"""From a frame to the ground: attitude and height above it make a north-up patch.

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

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.config import CameraConfig
from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.lens import camera_matrix, distorted, has_distortion, undistorted
from bicrossnet_ros.types import Attitude, FloatArray, ImageArray, Intrinsics, MaskArray

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
        """Ground points (N, 2) along the frame's border, those too near the horizon left out."""
        border = undistorted(self.intrinsics, _border(self.intrinsics))
        seen = self.ray_off_vertical_deg(border) <= MAX_RAY_DEG
        return apply(inverse(self.frame_from_ground), border[seen])


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


def check_view(view: GroundView, config: CameraConfig) -> None:
    """Raise ImageError if the camera is tilted too far or sees too much of the horizon."""
    if not view.tilt_deg <= config.max_tilt_deg:
        raise ImageError(
            f'the camera looks {view.tilt_deg:.1f} deg off the vertical; '
            f'expected at most {config.max_tilt_deg:g} deg (max_tilt_deg)'
        )
    rows, cols = np.mgrid[0.0:1.0:9j, 0.0:1.0:9j]
    size = [view.intrinsics.width_px - 1, view.intrinsics.height_px - 1]
    points = undistorted(view.intrinsics, np.stack([cols.ravel(), rows.ravel()], axis=1) * size)
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


@dataclass(frozen=True)
class GroundPatch:
    """A north-up picture of the ground.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
    mask : ndarray of shape (H, W), bool
        Where the frame saw the ground; elsewhere the image has the mean colour of what it saw, as
        tiles at the border of a map have.
    gsd_m : float
        Metres per pixel.
    west_m, north_m : float
        Outer corner of the first pixel, from the point below the camera.
    frame_from_patch : ndarray of shape (3, 3)
        Homography from patch pixels (col, row) to ideal frame pixels (col, row).
    """

    image: ImageArray
    mask: MaskArray
    gsd_m: float
    west_m: float
    north_m: float
    frame_from_patch: FloatArray

    @property
    def ground_from_patch(self) -> FloatArray:
        """Affine map (3, 3) from patch pixels (col, row) to (east, north) below the camera."""
        return _ground_from_patch(self.west_m, self.north_m, self.gsd_m)


def _ground_from_patch(west_m: float, north_m: float, gsd_m: float) -> FloatArray:
    return np.array(
        [
            [gsd_m, 0.0, west_m + 0.5 * gsd_m],
            [0.0, -gsd_m, north_m - 0.5 * gsd_m],
            [0.0, 0.0, 1.0],
        ]
    )


class FramePyramid:
    """A frame and the shrunken copies that patches of coarser resolution are taken from.

    Shrinking by area averages before the warp samples, so that fine furrows do not alias; copies
    are kept because all hypotheses of one frame need the same ones.
    """

    def __init__(self, image: ImageArray) -> None:
        self._image = image
        self._copies: dict[tuple[int, int], ImageArray] = {}

    def at(self, scale: float) -> ImageArray:
        """The frame at this scale, never enlarged."""
        height, width = self._image.shape[:2]
        if scale >= 0.95:
            return self._image
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size not in self._copies:
            self._copies[size] = np.asarray(
                cv2.resize(self._image, size, interpolation=cv2.INTER_AREA), np.uint8
            )
        return self._copies[size]


def ground_patch(
    pyramid: FramePyramid,
    view: GroundView,
    *,
    size_px: tuple[int, int],
    gsd_m: float,
    middle_m: FloatArray | None = None,
) -> GroundPatch:
    """Resample the frame to a north-up patch.

    Parameters
    ----------
    pyramid : FramePyramid
        The frame.
    view : GroundView
        Where the camera is and looks.
    size_px : (int, int)
        (H, W) of the patch.
    gsd_m : float
        Metres per pixel of the patch.
    middle_m : ndarray of shape (2,), optional
        Ground point at the patch's middle; the one at the image's middle by default.
    """
    middle = view.center_m if middle_m is None else middle_m
    west_m = float(middle[0] - 0.5 * size_px[1] * gsd_m)
    north_m = float(middle[1] + 0.5 * size_px[0] * gsd_m)
    to_ground = _ground_from_patch(west_m, north_m, gsd_m)
    frame_from_patch = view.frame_from_ground @ to_ground
    shrunk = pyramid.at(view.gsd_m / gsd_m)
    factor = np.array([shrunk.shape[1], shrunk.shape[0]]) / [
        view.intrinsics.width_px,
        view.intrinsics.height_px,
    ]
    scale = np.array(
        [
            [factor[0], 0.0, 0.5 * factor[0] - 0.5],
            [0.0, factor[1], 0.5 * factor[1] - 0.5],
            [0.0, 0.0, 1.0],
        ]
    )
    if has_distortion(view.intrinsics):
        image, mask = _warp_lens(shrunk, view.intrinsics, frame_from_patch, scale, size_px)
    else:
        image, mask = _warp_flat(shrunk, scale @ frame_from_patch, size_px)
    mask &= _near_enough(to_ground, size_px, view.agl_m * math.tan(math.radians(MAX_RAY_DEG)))
    # The sign of w tells the ground in front of the camera from its mirror image behind.
    cols, rows = np.arange(size_px[1]), np.arange(size_px[0])[:, None]
    mask &= (
        frame_from_patch[2, 0] * cols + frame_from_patch[2, 1] * rows + frame_from_patch[2, 2] > 0
    )
    if mask.any() and not mask.all():
        image[~mask] = np.rint(image[mask].mean(axis=0)).astype(np.uint8)
    return GroundPatch(image, mask, gsd_m, west_m, north_m, frame_from_patch)


def _warp_flat(
    image: ImageArray, homography: FloatArray, size_px: tuple[int, int]
) -> tuple[ImageArray, MaskArray]:
    size = (size_px[1], size_px[0])
    flags = cv2.WARP_INVERSE_MAP
    out = cv2.warpPerspective(
        image, homography, size, flags=flags | cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    ones = np.full(image.shape[:2], 255, np.uint8)
    mask = cv2.warpPerspective(ones, homography, size, flags=flags | cv2.INTER_LINEAR)
    return np.asarray(out, np.uint8), np.asarray(mask == 255)


def _warp_lens(
    image: ImageArray,
    intrinsics: Intrinsics,
    frame_from_patch: FloatArray,
    scale: FloatArray,
    size_px: tuple[int, int],
) -> tuple[ImageArray, MaskArray]:
    rows, cols = np.mgrid[0 : size_px[0], 0 : size_px[1]]
    ideal = apply(frame_from_patch, np.stack([cols.ravel(), rows.ravel()], axis=1))
    real = apply(scale, distorted(intrinsics, ideal)).reshape(*size_px, 2)
    height, width = image.shape[:2]
    inside = np.isfinite(real).all(axis=2) & (real >= 0).all(axis=2)
    inside &= (real[..., 0] <= width - 1) & (real[..., 1] <= height - 1)
    # Outside its field a polynomial lens folds back into the frame; count what comes home.
    back = undistorted(intrinsics, apply(inverse(scale), real[inside]))
    inside[inside] = np.linalg.norm(back - ideal.reshape(*size_px, 2)[inside], axis=1) < 1.0
    maps = np.clip(np.nan_to_num(real), -1e4, 1e5).astype(np.float32)
    out = cv2.remap(image, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(out, np.uint8), np.asarray(inside)


def _near_enough(to_ground: FloatArray, size_px: tuple[int, int], limit_m: float) -> MaskArray:
    east = to_ground[0, 0] * np.arange(size_px[1]) + to_ground[0, 2]
    north = to_ground[1, 1] * np.arange(size_px[0]) + to_ground[1, 2]
    return np.asarray(east**2 + (north**2)[:, None] <= limit_m**2)
