"""A camera that is no perfect one: vignetting, blur, motion, noise, compression, frame edges."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Generator = np.random.Generator

# In the order in which light meets them.
SENSOR_CHANGES: tuple[str, ...] = ('vignette', 'blur', 'motion', 'noise', 'jpeg')


def apply_sensor(
    image: Image,
    rng: Generator,
    drawn: Mapping[str, float],
    frame_from_view: NDArray[np.float64] | None = None,
    half_frame: tuple[float, float] = (0.5, 0.5),
) -> Image:
    """Apply each change that `drawn` names, at the strength given there; others are ignored.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB; left as it is.
    rng : numpy Generator
        Source of every random choice.
    drawn : mapping of str to float
        Strengths as of `training.data.view_config.ViewConfig`.
    frame_from_view : ndarray of shape (3, 3), optional
        Homography from the unit view, its middle (0, 0), to the frame's plane; by default the
        view is the frame.
    half_frame : (float, float)
        Half width and height of the frame on that plane.
    """
    if strength := drawn.get('vignette', 0.0):
        image = vignette(image, strength, frame_from_view, half_frame)
    if strength := drawn.get('blur', 0.0):
        image = blur(image, strength)
    if strength := drawn.get('motion', 0.0):
        image = motion(image, strength, rng.uniform(0, math.pi))
    if strength := drawn.get('noise', 0.0):
        image = noise(image, rng, strength)
    if strength := drawn.get('jpeg', 0.0):
        image = jpeg(image, round(95 - 85 * strength))
    return image


def vignette(
    image: Image,
    loss: float,
    frame_from_view: NDArray[np.float64] | None = None,
    half_frame: tuple[float, float] = (0.5, 0.5),
) -> Image:
    """Darken towards the corners of the frame, by the square of the distance from its middle.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
    loss : float
        Of light in the corners, 0 to 1.
    frame_from_view, half_frame
        As of `apply_sensor`.
    """
    height, width = image.shape[:2]
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / np.float32(width)
    y = ((np.arange(height, dtype=np.float32) - (height - 1) / 2) / np.float32(height))[:, None]
    if frame_from_view is not None:
        rows = frame_from_view.astype(np.float32)
        u, v, w = (row[0] * x + (row[1] * y + row[2]) for row in rows)
        x, y = u / w, v / w
    square = (x * x + y * y) * np.float32(1 / math.hypot(*half_frame) ** 2)
    kept = 1 - np.float32(loss) * np.minimum(square, 1)
    return np.asarray(cv2.multiply(image, cv2.merge([kept] * 3), dtype=cv2.CV_8U), np.uint8)


def blur(image: Image, sigma: float) -> Image:
    """Blur by a lens out of focus; sigma as a share of the shorter side."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(0.2, sigma * min(image.shape[:2]))))


def motion(image: Image, length: float, angle_rad: float) -> Image:
    """Smear along a line; its length as a share of the shorter side."""
    reach = length * min(image.shape[:2]) / 2
    half = max(1, math.ceil(reach))
    size = 2 * half + 1
    kernel = np.zeros((size, size), np.float32)
    # Bilinear dots along the line: it may be shorter than a pixel and point anywhere.
    along = np.linspace(-reach, reach, 4 * size)
    x, y = half + along * math.cos(angle_rad), half + along * math.sin(angle_rad)
    col, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for right in (0, 1):
        for down in (0, 1):
            weight = np.abs(1 - right - (x - col)) * np.abs(1 - down - (y - row))
            at = np.minimum(row + down, size - 1), np.minimum(col + right, size - 1)
            np.add.at(kernel, at, weight)
    kernel /= kernel.sum()
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


def noise(image: Image, rng: Generator, sigma: float) -> Image:
    """Add noise, of full scale: half of its variance is the sensor's, half grows with light."""
    values = np.arange(256, dtype=np.float32)
    # The same at mid-grey as `sigma` says: shot noise is Poisson, its variance goes with light.
    scale = 255 * sigma * np.sqrt(0.5 + values / 255)
    grain = rng.standard_normal(image.shape, np.float32)
    grain *= np.take(scale.astype(np.float32), image)
    return np.asarray(cv2.add(image, grain, dtype=cv2.CV_8U), np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress, colour at full resolution: the frame is finer than the view."""
    full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    _, data = cv2.imencode('.jpg', image[..., ::-1], options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def fill_unseen(image: Image, mask: NDArray[np.bool_] | None) -> Image:
    """Give what the frame did not see the mean colour of what it saw, as the product does.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        Changed in place.
    mask : ndarray of bool, shape (H, W), or None
        What was seen; None: everything.

    See Also
    --------
    bicrossnet_ros.patch.ground_patch : where the product does the same.
    """
    if mask is not None and mask.any() and not mask.all():
        color = cv2.mean(image, mask.view(np.uint8))[:3]
        np.copyto(image, np.rint(color).astype(np.uint8), where=~mask[..., None])
    return image
