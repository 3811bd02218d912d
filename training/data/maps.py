"""Pairs made from maps alone: the source `maps`, for places of which no drone images exist.

A scene is a square of ground. One place, or two side by side, are taken from it; each is rendered
as a map tile and as a simulated drone view (`training.data.views`). Where in the scene a place
lies is drawn anew in every epoch, so the places of one scene are no classes to be learnt by heart:
losses on classes need ``data.places_per_scene: 1`` (the class is the scene), retrieval losses
profit from 2 (the neighbour is the hardest negative there is). A place takes up
``views.min_side`` to ``views.max_side`` of its scene, so views are sharp from a ``scene_px`` of
about twice ``input_px``.

Scenes of one raster do not overlap, so none that is held out is trained on; where files overlap
each other, merge them first (gdal_merge, gdalwarp).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import DataConfig, TrainConfig, ViewConfig
from training.data.rasters import MISSING_LIMIT, SUFFIXES, RasterGrid, raster_grid
from training.data.scenes import list_scenes, read_scene
from training.data.views import sample_places, view_pair
from training.progress import counted

MEMORY_LIMIT_BYTES = 8 * 2**30

# A scene as it is read: its name, and its pixels or why there are none.
UNREADABLE, GAPS, SMALL = 'unreadable', 'with gaps in the imagery', 'smaller than a scene'
Read = tuple[str, NDArray[np.uint8] | str]

# Random streams of a scene. None is 0: numpy seeds (a, b) and (a, b, 0) alike.
_PLACEMENT, _FIRST_VIEW = 1, 2


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


class MapsSource:
    """Pairs of a map tile and a simulated drone view; a `training.data.places.PairSource`.

    Parameters
    ----------
    scenes : Scenes
    chosen : sequence of int
        The scenes of this source, rows of ``scenes.images``.
    places_per_scene : int
        1 or 2. With 2, places 2k and 2k + 1 are the halves of one placement in scene k and belong
        in one batch (`group`).
    input_px : int
        Side of the views.
    views : ViewConfig
        How much the two views of a place differ.

    Attributes
    ----------
    names : tuple of str
        One for each place.
    views : tuple of int
        Drone images of each place: 1, which is another one in every epoch.
    group : int
        Places that must stand in one batch together.
    """

    def __init__(
        self,
        scenes: Scenes,
        chosen: Sequence[int],
        *,
        places_per_scene: int,
        input_px: int,
        views: ViewConfig,
    ) -> None:
        self._images = scenes.images
        self._chosen = tuple(chosen)
        self._input_px = input_px
        self._config = views
        self.group = places_per_scene
        halves = ('',) if places_per_scene == 1 else (' a', ' b')
        self.names = tuple(scenes.names[row] + half for row in self._chosen for half in halves)
        self.views = (1,) * len(self.names)

    def sample(
        self, place: int, view: int | None = None, *, key: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Render a place.

        Parameters
        ----------
        place : int
            0 <= place < len(names).
        view : int, optional
            0 or None: there is but one.
        key : tuple of int
            (seed, stream, epoch); everything random follows from it and the place.

        Returns
        -------
        satellite, drone : ndarray of uint8, shape (input_px, input_px, 3)
            RGB.
        """
        if view not in (None, 0):
            raise IndexError(f'view {view}: a place of a map has one view, 0')
        scene, half = divmod(place, self.group)
        placement = np.random.default_rng((*key, scene, _PLACEMENT))
        places = sample_places(
            placement, scene_px=self._images.shape[1], places=self.group, config=self._config
        )
        return view_pair(
            self._images[self._chosen[scene]],
            places[half],
            np.random.default_rng((*key, scene, _FIRST_VIEW + half)),
            size_px=self._input_px,
            config=self._config,
        )


def make_sources(config: TrainConfig, root: Path) -> tuple[MapsSource, MapsSource | None]:
    """Load the scenes below a folder: the source to train on and the one held out.

    Every ``data.holdout``-th scene is held out, from the first; None if that is 0.

    Raises
    ------
    ConfigError
        If there is no scene, too few for the split or too many for the memory.
    ImageError
        If an image cannot be read and ``data.unreadable`` is 'fail'.
    """
    data = config.data
    scenes = open_maps(root, data)
    held_out = [
        row for row, at in enumerate(scenes.positions) if data.holdout and at % data.holdout == 0
    ]
    training = sorted(set(range(len(scenes.names))) - set(held_out))
    if not training or (data.holdout and not held_out):
        raise ConfigError(
            f'{root}: {len(scenes.names)} scene(s) leave {len(training)} to train on and '
            f'{len(held_out)} to hold out; expected some of both: add images or set data.holdout '
            f'(now {data.holdout}) to 0'
        )

    def source(chosen: list[int]) -> MapsSource:
        return MapsSource(
            scenes,
            chosen,
            places_per_scene=data.places_per_scene,
            input_px=config.model.input_px,
            views=data.views,
        )

    return source(training), source(held_out) if held_out else None


def open_maps(root: Path, data: DataConfig) -> Scenes:
    """Read every scene below a folder into memory; see `make_sources` for the errors."""
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; name the folder of the aerial images')
    if data.scene_m:
        return _load(*_read_rasters(root, data), root, data)
    paths = list_scenes(root)
    return _load(_read_images(paths, root, data), len(paths), root, data)


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
