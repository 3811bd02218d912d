"""Aerial scenes: the images below a folder, and the largest square of each."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError, ImageError
from training.data.images import SUFFIXES, read_image

# One cell of a network's last map. What has fewer pixels shows no place, however it is enlarged.
LEAST_SIDE_PX = 32


def list_scenes(folder: Path, *, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """List every image below a folder, sorted by its path relative to the folder.

    Raises
    ------
    ConfigError
        If there is none.
    """
    paths = [path for path in folder.rglob('*') if path.suffix.lower() in suffixes]
    if not paths:
        raise ConfigError(f'{folder}: found no image below it; expected *.jpg, *.png or *.tif')
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def read_scene(path: Path, *, scene_px: int) -> NDArray[np.uint8]:
    """Read the largest square about the centre of an image, reduced to `scene_px`.

    Returns
    -------
    ndarray of uint8, shape (scene_px, scene_px, 3)
        RGB; area averaging, so that later warps need not smooth.

    Raises
    ------
    ImageError
        If the file is no image, or too small.
    """
    square = read_square(path, at_least_px=max(scene_px, LEAST_SIDE_PX))
    return np.asarray(cv2.resize(square, (scene_px, scene_px), interpolation=cv2.INTER_AREA))


def read_square(path: Path, *, at_least_px: int | None = None) -> NDArray[np.uint8]:
    """Read the largest square about the centre of an image; see `read_image`.

    Raises
    ------
    ImageError
        If the file is no image, or its shorter side has less than `LEAST_SIDE_PX`.
    """
    square = central_square(read_image(path, at_least_px=at_least_px))
    if len(square) < LEAST_SIDE_PX:
        raise ImageError(
            f'{path}: its shorter side has {len(square)} px; expected {LEAST_SIDE_PX} or more: '
            'replace or remove it'
        )
    return square


def central_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the longer side of an image (H, W, 3) evenly at both ends."""
    height_px, width_px = image.shape[:2]
    side_px = min(height_px, width_px)
    top, left = (height_px - side_px) // 2, (width_px - side_px) // 2
    return image[top : top + side_px, left : left + side_px]
