"""Scenes of other places side by side: ground that the frames never saw, to distract retrieval.

The scenes keep their pixels: one pixel counts as one of the map. That is what they are used for in
training, too, where a scene's true scale is unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.types import ImageArray
from training.data.images import read_image
from training.progress import counted

# 96 m at 0.25 m per pixel: a whole number of strides of 8 and of 16 m.
SCENE_PX = 384

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Squares of scenes in columns, the last of which may be short.

    Parameters
    ----------
    image : ndarray of shape (rows * SCENE_PX, columns * SCENE_PX, 3), uint8
    scenes : int
        Squares there are; they fill column after column.
    fingerprint : str
        Of their pixels and order.
    """

    image: ImageArray
    scenes: int
    fingerprint: str

    def cut(self, row_px: int, col_px: int, size_px: int) -> ImageArray:
        """A square of pixels."""
        return self.image[row_px : row_px + size_px, col_px : col_px + size_px]

    def corners(self, size_px: int, stride_px: int) -> IntArray:
        """First pixels (T, 2) as (row, col) of squares that lie wholly on scenes, west to east."""
        height, width = self.image.shape[:2]
        rows = np.arange(0, height - size_px + 1, stride_px)
        cols = np.arange(0, width - size_px + 1, stride_px)
        col, row = (axis.ravel() for axis in np.meshgrid(cols, rows, indexing='ij'))
        whole = self._there(row, col) & self._there(row + size_px - 1, col + size_px - 1)
        whole &= self._there(row + size_px - 1, col) & self._there(row, col + size_px - 1)
        return np.stack([row[whole], col[whole]], axis=1)

    def _there(self, row: IntArray, col: IntArray) -> Any:
        per_column = self.image.shape[0] // SCENE_PX
        return (col // SCENE_PX) * per_column + row // SCENE_PX < self.scenes


def scene_paths(
    data: Path, split: Mapping[str, str], part: str, *, count: int | None = None, seed: int = 0
) -> list[Path]:
    """Files of a part of the split that are there, in a seeded order.

    Parameters
    ----------
    data : Path
        Folder that the names of the split are relative to.
    split : mapping of str to str
        Scene to 'train', 'validation' or 'test'.
    part : str
    count : int, optional
        Only so many.
    seed : int
        Of the order, so that the first ones are a fair choice.

    Raises
    ------
    ConfigError
        If none is there.
    """
    names = sorted(name for name, where in split.items() if where == part)
    there = [data / name for name in names if (data / name).is_file()]
    if not there:
        raise ConfigError(
            f'{data}: none of the {len(names)} scenes of the part {part!r} is there, such as '
            f'{names[0] if names else "(none in the split)"}; give the folder of the scenes '
            'with --data'
        )
    order = np.random.default_rng(seed).permutation(len(there))[:count]
    return [there[row] for row in order]


def make_mosaic(paths: Sequence[Path]) -> Mosaic:
    """Put the squares of scenes side by side; scenes smaller than a square are left out.

    Raises
    ------
    ConfigError
        If no scene is large enough.
    """
    squares = [
        square
        for path in counted(paths, 'distractor scenes', len(paths))
        for square in squares_of(read_image(path))
    ]
    if not squares:
        raise ConfigError(
            f'all {len(paths)} distractor scenes are smaller than {SCENE_PX} px; give larger ones'
        )
    per_column = max(1, round(len(squares) ** 0.5))
    columns = -(-len(squares) // per_column)
    image = np.zeros((per_column * SCENE_PX, columns * SCENE_PX, 3), np.uint8)
    digest = hashlib.sha256()
    for number, square in enumerate(squares):
        column, row = divmod(number, per_column)
        place = image[row * SCENE_PX :, column * SCENE_PX :]
        place[:SCENE_PX, :SCENE_PX] = square
        digest.update(np.ascontiguousarray(square).tobytes())
    return Mosaic(image, len(squares), digest.hexdigest()[:16])


def squares_of(image: ImageArray) -> list[ImageArray]:
    """The squares of `SCENE_PX` that fit side by side into a scene."""
    height, width = image.shape[:2]
    return [
        image[row : row + SCENE_PX, col : col + SCENE_PX]
        for row in range(0, height - SCENE_PX + 1, SCENE_PX)
        for col in range(0, width - SCENE_PX + 1, SCENE_PX)
    ]
