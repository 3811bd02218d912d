"""From a frame to a north-up picture of the ground at the resolution of the map.

Points are (col, row); see `camera` for the axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.camera import MAX_RAY_DEG, GroundView, apply
from bicrossnet_ros.lens import (
    distorted_grid,
    has_distortion,
    one_to_one_radius_px,
    undistorted,
)
from bicrossnet_ros.types import FloatArray, ImageArray, Intrinsics, MaskArray


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
    limit_m = view.agl_m * math.tan(math.radians(MAX_RAY_DEG))
    if not _sees_all(frame_from_patch, to_ground, size_px, limit_m):
        mask &= _near_enough(to_ground, size_px, limit_m)
        # The sign of w tells the ground in front of the camera from its mirror image behind.
        cols, rows = np.arange(size_px[1]), np.arange(size_px[0])[:, None]
        w = frame_from_patch[2]
        mask &= w[0] * cols + w[1] * rows + w[2] > 0
    share = cv2.countNonZero(mask.view(np.uint8))
    if 0 < share < mask.size:
        seen = cv2.mean(image, mask.view(np.uint8))[:3]
        np.copyto(image, np.rint(seen).astype(np.uint8), where=~mask[:, :, None])
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
    cols, rows = distorted_grid(intrinsics, frame_from_patch, size_px)
    right, bottom = intrinsics.width_px - 0.5, intrinsics.height_px - 0.5
    inside = (cols > -0.5) & (rows > -0.5) & (cols < right) & (rows < bottom)
    _leave_out_folds(inside, cols, rows, intrinsics, frame_from_patch)
    cols = cols * np.float32(scale[0, 0]) + np.float32(scale[0, 2])
    rows = rows * np.float32(scale[1, 1]) + np.float32(scale[1, 2])
    height, width = image.shape[:2]
    inside &= (cols >= 0) & (rows >= 0) & (cols <= width - 1) & (rows <= height - 1)
    cols, rows = (np.clip(np.nan_to_num(axis), -1e4, 1e5) for axis in (cols, rows))
    out = cv2.remap(image, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(out, np.uint8), np.asarray(inside)


def _leave_out_folds(
    inside: MaskArray,
    cols: NDArray[np.float32],
    rows: NDArray[np.float32],
    intrinsics: Intrinsics,
    frame_from_patch: FloatArray,
) -> None:
    """Take from a mask the pixels that the lens folds into the frame from outside of its field."""
    middle = [intrinsics.cx_px, intrinsics.cy_px]
    radius_px = one_to_one_radius_px(intrinsics)
    corners = _corners((inside.shape[0], inside.shape[1])) @ frame_from_patch.T
    if (corners[:, 2] > 0).all():
        off = corners[:, :2] / corners[:, 2:] - middle
        if (np.linalg.norm(off, axis=1) <= radius_px).all():
            return
    row, col = np.nonzero(inside)
    ideal = apply(frame_from_patch, np.stack([col, row], axis=1))
    if radius_px > 0:
        inside[inside] = np.linalg.norm(ideal - middle, axis=1) <= radius_px
    else:
        real = np.stack([cols[inside], rows[inside]], axis=1).astype(np.float64)
        back = undistorted(intrinsics, real)
        inside[inside] = np.linalg.norm(back - ideal, axis=1) < 1.0


def _corners(size_px: tuple[int, int]) -> FloatArray:
    """The outer pixels of a patch, (4, 3) as (col, row, 1)."""
    right, bottom = size_px[1] - 1.0, size_px[0] - 1.0
    return np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]], np.float64)


def _sees_all(
    frame_from_patch: FloatArray, to_ground: FloatArray, size_px: tuple[int, int], limit_m: float
) -> bool:
    """Whether all corners lie in front of the camera and near enough; then everything does."""
    corners = _corners(size_px)
    ground = corners @ to_ground[:2].T
    near = (ground**2).sum(axis=1) <= limit_m**2
    return bool((near & (corners @ frame_from_patch[2] > 0)).all())


def _near_enough(to_ground: FloatArray, size_px: tuple[int, int], limit_m: float) -> MaskArray:
    east = to_ground[0, 0] * np.arange(size_px[1]) + to_ground[0, 2]
    north = to_ground[1, 1] * np.arange(size_px[0]) + to_ground[1, 2]
    return np.asarray(east**2 + (north**2)[:, None] <= limit_m**2)
