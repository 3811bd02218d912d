"""Aerial scenes in memory, and their fixed split by scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from bicrossnet_ros.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = {'.jpg', '.jpeg', '.png', '.tif', '.tiff'}


def list_scenes(folder: Path) -> list[Path]:
    """List every image below a folder, sorted by its path relative to the folder.

    Raises
    ------
    ConfigError
        If there is none.
    """
    paths = [path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ConfigError(f'{folder}: found no image below it; expected *.jpg, *.png or *.tif')
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def split_scenes(paths: list[Path], *, holdout: int) -> tuple[list[Path], list[Path]]:
    """Split sorted scenes into (training, validation): every `holdout`-th is for validation."""
    validation = paths[::holdout]
    training = [path for index, path in enumerate(paths) if index % holdout]
    return training, validation


def load_scenes(paths: list[Path], *, scene_px: int) -> NDArray[np.uint8]:
    """Read scenes as RGB squares.

    Parameters
    ----------
    paths : list of Path
        Image files.
    scene_px : int
        Side of the squares; area averaging, so that later warps need not smooth.

    Returns
    -------
    ndarray of uint8, shape (len(paths), scene_px, scene_px, 3)

    Raises
    ------
    ImageError
        If a file is no image.
    """
    scenes = np.empty((len(paths), scene_px, scene_px, 3), np.uint8)
    for target, path in zip(scenes, paths, strict=True):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ImageError(f'{path}: not readable as an image; replace or remove it')
        reduced = cv2.resize(image, (scene_px, scene_px), interpolation=cv2.INTER_AREA)
        target[...] = reduced[..., ::-1]
    return scenes
