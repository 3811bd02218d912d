"""Pairs made from maps alone: the source `maps`, for places of which no drone images exist.

A scene is a square of ground. One place, or two side by side, are taken from it; each is rendered
as a map tile and as a simulated drone view (`training.data.views`). Where in the scene a place
lies is drawn anew in every epoch, so the places of one scene are no classes to be learnt by heart:
losses on classes need ``data.places_per_scene: 1`` (the class is the scene), retrieval losses
profit from 2 (the neighbour is the hardest negative there is).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import DataConfig, TrainConfig, ViewConfig
from training.data.scenes import list_scenes, read_scene
from training.data.views import sample_places, view_pair

MEMORY_LIMIT_BYTES = 8 * 2**30

# Scenes as they are read: name and pixels; None in place of an image that cannot be decoded.
Read = tuple[str, NDArray[np.uint8] | None]

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
            yield name, None


def _load(scenes: Iterator[Read], most: int, root: Path, data: DataConfig) -> Scenes:
    """Collect at most `most` scenes in one array."""
    size = (most, data.scene_px, data.scene_px, 3)
    needed = int(np.prod(size))
    if needed > MEMORY_LIMIT_BYTES:
        raise ConfigError(
            f'{root}: up to {most} scenes of {data.scene_px} px take {needed / 2**30:.1f} GiB; '
            f'expected at most {MEMORY_LIMIT_BYTES / 2**30:g} GiB: lower data.scene_px or train '
            'on fewer images'
        )
    images = np.empty(size, np.uint8)
    names: list[str] = []
    positions: list[int] = []
    skipped: list[str] = []
    bar = tqdm(scenes, 'loading scenes', most, mininterval=1, file=sys.stderr, leave=False)
    for position, (name, image) in enumerate(bar):
        if image is None:
            skipped.append(name)
            continue
        images[len(names)] = image
        names.append(name)
        positions.append(position)
    if skipped:
        print(
            f'{root}: skipped {len(skipped)} unreadable image(s), the first: {skipped[0]}',
            file=sys.stderr,
        )
    if not names:
        raise ConfigError(f'{root}: none of its {len(skipped)} image(s) is readable')
    return Scenes(tuple(names), images[: len(names)], tuple(positions))
