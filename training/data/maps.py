"""Pairs made from maps alone: the source `maps`, for places of which no drone images exist.

A scene is a square of ground. One place, two side by side, or three or four that nearly show the
same (`training.data.near_misses`) are taken from it; each is rendered as a map tile and as a
simulated drone view (`training.data.views`). Where in the scene a place lies is drawn anew in
every epoch, so the places of one scene are no classes to be learnt by heart: losses on classes
need ``data.places_per_scene: 1`` (the class is the scene), retrieval losses profit from more (the
neighbour is the hardest negative there is). A place takes up ``views.min_side`` to
``views.max_side`` of its scene, so views are sharp from a ``scene_px`` of about twice
``input_px``.

Scenes of one raster do not overlap, so none that is held out is trained on; where files overlap
each other, merge them first (gdal_merge, gdalwarp).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError
from training.config import TrainConfig, ViewConfig
from training.data.near_misses import Ground, ground_of, near_places
from training.data.scene_array import Scenes as Scenes
from training.data.scene_array import open_maps as open_maps
from training.data.scene_array import open_split
from training.data.views import Place, sample_places, view_pair
from training.splits import TRAIN, VALIDATION

# So many places of a scene lie apart; more are near misses.
DISJOINT_PLACES = 2

# Random streams of a scene. None is 0: numpy seeds (a, b) and (a, b, 0) alike.
_PLACEMENT, _FIRST_VIEW = 1, 2


class MapsSource:
    """Pairs of a map tile and a simulated drone view; a `training.data.places.PairSource`.

    Parameters
    ----------
    scenes : Scenes
    chosen : sequence of int
        The scenes of this source, rows of ``scenes.images``.
    places_per_scene : int
        1 to 4. With n, places n k to n k + n - 1 are of one placement in scene k and belong in one
        batch (`group`).
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
        parts = ('',) if places_per_scene == 1 else (' a', ' b', ' c', ' d')[:places_per_scene]
        self.names = tuple(scenes.names[row] + part for row in self._chosen for part in parts)
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
        scene, part = divmod(place, self.group)
        return view_pair(
            self._images[self._chosen[scene]],
            self._place(scene, part, key),
            np.random.default_rng((*key, scene, _FIRST_VIEW + part)),
            size_px=self._input_px,
            config=self._config,
        )

    def ground(self, place: int, *, key: tuple[int, ...]) -> Ground | None:
        """Tell where the two views of `sample` lie; None where no two places overlap."""
        if self.group <= DISJOINT_PLACES:
            return None
        scene, part = divmod(place, self.group)
        rng = np.random.default_rng((*key, scene, _FIRST_VIEW + part))
        return ground_of(scene, self._place(scene, part, key), rng, config=self._config)

    def _place(self, scene: int, part: int, key: tuple[int, ...]) -> Place:
        draw = near_places if self.group > DISJOINT_PLACES else sample_places
        places = draw(
            np.random.default_rng((*key, scene, _PLACEMENT)),
            scene_px=self._images.shape[1],
            places=self.group,
            config=self._config,
        )
        return places[part]


def make_sources(config: TrainConfig, root: Path) -> tuple[MapsSource, MapsSource | None]:
    """Load the scenes below a folder: the source to train on and the one held out.

    The file ``data.split`` says which is which; without one every ``data.holdout``-th scene is
    held out, from the first; None if that is 0.

    Raises
    ------
    ConfigError
        If there is no scene, too few for the split or too many for the memory, or the split
        cannot be used.
    ImageError
        If an image cannot be read and ``data.unreadable`` is 'fail'.
    """
    data = config.data

    def source(scenes: Scenes, chosen: Sequence[int]) -> MapsSource:
        return MapsSource(
            scenes,
            chosen,
            places_per_scene=data.places_per_scene,
            input_px=config.model.input_px,
            views=data.views,
        )

    if data.split:
        sides = open_split(root, data, sides=(TRAIN, VALIDATION))
        training, validation = sides[TRAIN], sides[VALIDATION]
        return source(training, range(len(training.names))), source(
            validation, range(len(validation.names))
        )
    scenes = open_maps(root, data)
    chosen, held_out = _every_nth(scenes, root, data.holdout)
    return source(scenes, chosen), source(scenes, held_out) if held_out else None


def _every_nth(scenes: Scenes, root: Path, holdout: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows to hold out."""
    held_out = [row for row, at in enumerate(scenes.positions) if holdout and at % holdout == 0]
    training = sorted(set(range(len(scenes.names))) - set(held_out))
    if not training or (holdout and not held_out):
        raise ConfigError(
            f'{root}: {len(scenes.names)} scene(s) leave {len(training)} to train on and '
            f'{len(held_out)} to hold out; expected some of both: add images or set data.holdout '
            f'(now {holdout}) to 0'
        )
    return training, held_out
