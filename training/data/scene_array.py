"""Scenes in memory: the images below a folder, or squares of rasters, read at once.

What cannot be used is left out and told of on standard error.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import DataConfig
from training.data.rasters import MISSING_LIMIT, SUFFIXES, RasterGrid, raster_grid
from training.data.scenes import list_scenes, read_scene
from training.progress import counted
from training.splits import load_split

MEMORY_LIMIT_BYTES = 8 * 2**30

# A scene as it is read: its name, and its pixels or why there are none.
UNREADABLE, GAPS, SMALL = 'unreadable', 'with gaps in the imagery', 'smaller than a scene'
Read = tuple[str, NDArray[np.uint8] | str]


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes in memory.

    Parameters
    ----------
    names : tuple of str
        One for each scene, in the order of the listing.
    images : ndarray of uint8, shape (N, scene_px, scene_px, 3)
        RGB.
    positions : tuple of int
        Position of each scene in the listing, the skipped ones counted: what the split goes by,
        so that a file that turns bad moves no other scene from one side to the other.
    """

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    positions: tuple[int, ...]

    def take(self, rows: Sequence[int]) -> Scenes:
        """Return some of the scenes; the images are copied."""
        return Scenes(
            tuple(self.names[row] for row in rows),
            self.images[rows],
            tuple(self.positions[row] for row in rows),
        )


def open_maps(root: Path, data: DataConfig) -> Scenes:
    """Read every scene below a folder into memory.

    Raises
    ------
    ConfigError
        If there is no scene, or too many for the memory.
    ImageError
        If an image cannot be read and ``data.unreadable`` is 'fail'.
    """
    _check_folder(root)
    if data.scene_m:
        return _load(*_read_rasters(root, data), root, data)
    paths = list_scenes(root)
    return _load(_read_images(paths, root, data), len(paths), root, data)


def open_split(root: Path, data: DataConfig, *, sides: Collection[str]) -> dict[str, Scenes]:
    """Read the scenes of some sides of the split ``data.split`` into memory.

    Parameters
    ----------
    root : Path
        The data folder, below which scenes lie as the split names them.
    data : DataConfig
    sides : collection of str
        Out of 'train', 'validation' and 'test'.

    Returns
    -------
    dict of str to Scenes
        For each side asked for.

    Raises
    ------
    ConfigError
        If the split cannot be read, a side has no scene in the folder, or too many for the
        memory. Scenes that only the folder or only the split has are told of on standard error.
    ImageError
        If an image cannot be read and ``data.unreadable`` is 'fail'.
    """
    _check_folder(root)
    split = load_split(Path(data.split))
    paths = {path.relative_to(root).as_posix(): path for path in list_scenes(root)}
    _tell_of_split(split, set(paths), root, data.split)
    wanted = [(name, path) for name, path in paths.items() if split.get(name) in sides]
    found = Counter(split[name] for name, _ in wanted)
    if empty := [side for side in sides if not found[side]]:
        raise ConfigError(
            f'{root}: holds {len(paths)} images, but none that {data.split} puts into '
            f'{" or ".join(empty)}; give the folder that training.data.gather made, or another '
            'data.split'
        )
    scenes = _load(_read_images([p for _, p in wanted], root, data), len(wanted), root, data)
    rows = {
        side: [row for row, name in enumerate(scenes.names) if split[name] == side]
        for side in sides
    }
    return {side: scenes.take(chosen) for side, chosen in rows.items()}


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; name the folder of the aerial images')


def _tell_of_split(split: dict[str, str], found: set[str], root: Path, source: str) -> None:
    """Say on standard error where a folder and a split differ."""
    missing = sorted(split.keys() - found)
    unknown = sorted(found - split.keys())
    for names, what in ((missing, f'of {source} are not there'), (unknown, 'are not in it')):
        if names:
            print(
                f'{root}: {len(names)} scenes {what} (first: {names[0]}); left out',
                file=sys.stderr,
            )


def _read_images(paths: list[Path], root: Path, data: DataConfig) -> Iterator[Read]:
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            yield name, read_scene(path, scene_px=data.scene_px)
        except ImageError:
            if data.unreadable == 'fail':
                raise
            yield name, UNREADABLE


def _read_rasters(root: Path, data: DataConfig) -> tuple[Iterator[Read], int]:
    """Return the squares of all rasters as they are read, and how many there are at most."""
    bad: list[Read] = []
    grids: list[RasterGrid] = []
    for path in list_scenes(root, suffixes=SUFFIXES):
        name = path.relative_to(root).as_posix()
        try:
            grid = raster_grid(path, side_m=data.scene_m, side_px=data.scene_px)
        except ImageError:
            if data.unreadable == 'fail':
                raise
            bad.append((name, UNREADABLE))
            continue
        if grid.rows and grid.cols:
            grids.append(grid)
        else:
            bad.append((name, SMALL))

    def read() -> Iterator[Read]:
        yield from bad
        for grid in grids:
            yield from _read_grid(grid, root, data)

    return read(), sum(grid.rows * grid.cols for grid in grids)


def _read_grid(grid: RasterGrid, root: Path, data: DataConfig) -> Iterator[Read]:
    name = grid.path.relative_to(root).as_posix()
    try:
        for row, col, image, missing in grid.read():
            yield f'{name} {row:04d} {col:04d}', GAPS if missing > MISSING_LIMIT else image
    except ImageError:
        if data.unreadable == 'fail':
            raise
        yield f'{name} (its rest)', UNREADABLE


def _load(scenes: Iterator[Read], most: int, root: Path, data: DataConfig) -> Scenes:
    """Collect at most `most` scenes in one array."""
    size = (most, data.scene_px, data.scene_px, 3)
    needed_bytes = math.prod(size)
    if needed_bytes > MEMORY_LIMIT_BYTES:
        raise ConfigError(
            f'{root}: {most} scenes of {data.scene_px} px take {needed_bytes / 2**30:.1f} GiB of '
            f'memory; expected at most {MEMORY_LIMIT_BYTES / 2**30:g} GiB: lower data.scene_px or '
            'train on fewer images'
        )
    images = np.empty(size, np.uint8)
    names: list[str] = []
    positions: list[int] = []
    without: dict[str, list[str]] = {}
    position = 0
    for name, image in counted(scenes, 'loading scenes', most):
        if isinstance(image, str):
            without.setdefault(image, []).append(name)
            position += image == UNREADABLE
            continue
        images[len(names)] = image
        names.append(name)
        positions.append(position)
        position += 1
    _tell(without, root, data, found=len(names))
    return Scenes(tuple(names), images[: len(names)], tuple(positions))


def _tell(without: dict[str, list[str]], root: Path, data: DataConfig, *, found: int) -> None:
    """Say on standard error what was left out.

    Raises
    ------
    ConfigError
        If nothing is left.
    """
    parts = [f'{len(names)} {why} (first: {names[0]})' for why, names in without.items()]
    if parts:
        print(f'{root}: {found} scenes; left out: {", ".join(parts)}', file=sys.stderr)
    if found:
        return
    remedy = 'add images that can be decoded'
    if data.scene_m:
        remedy += (
            f', or set data.scene_m (now {data.scene_m:g} m) to less than the smaller side of the '
            'rasters and their gaps'
        )
    raise ConfigError(f'{root}: no usable scene; left out: {", ".join(parts)}; {remedy}')
