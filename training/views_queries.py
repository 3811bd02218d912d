"""The queries of the view evaluation: what a drone would see of the test scenes, per condition.

A condition says what differs from the map: nothing, one effect of `training.data.views.CHANGES`
alone, or several together. All conditions look at the same places; everything random follows from
the seed, the scene, the place and the condition, so every model gets the same pixels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bicrossnet_ros.errors import ConfigError
from training.data.sensor import SENSOR_CHANGES
from training.data.view_config import GEOMETRY_CHANGES, ViewConfig, only
from training.data.views import Place, drone_view
from training.data.world import STRENGTHS, WORLD_CHANGES, change_world
from training.views_scenes import MIDDLE, SIDE, TestScenes, tile_px

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Each place is off the tiles' centres already; an offset more would make the truth unknown.
ALONE = tuple(name for name in GEOMETRY_CHANGES if name != 'offset')
# A view of which a square of the tile's size can be cut at any angle.
WIDER = math.sqrt(2)


@dataclass(frozen=True)
class Condition:
    """What differs between the map and what the camera sees.

    Attributes
    ----------
    name : str
        As results are stored.
    group : str
        'none', 'geometry', 'sensor', 'world' or 'together'.
    views : ViewConfig
        Of `training.data.views.drone_view`.
    changes : tuple of str
        World changes made besides, each of them in every query.
    strength : float
        Of those, as `training.data.world.change_world` takes it.
    any_heading : bool
        Whether the heading is unknown: the query is turned by any angle, and so wide that it can
        be turned back.
    """

    name: str
    group: str
    views: ViewConfig
    changes: tuple[str, ...] = ()
    strength: float = 0.0
    any_heading: bool = False


@dataclass(frozen=True, eq=False)
class Places:
    """Where the queries look.

    Attributes
    ----------
    scenes : ndarray of int64, shape (Q,)
        Positions in `TestScenes`.
    numbers : ndarray of int64, shape (Q,)
        Number of the place in its scene.
    centers : ndarray of float64, shape (Q, 2)
        (row, col), shares of the scene's side.
    """

    scenes: NDArray[np.int64]
    numbers: NDArray[np.int64]
    centers: NDArray[np.float64]


def conditions() -> tuple[Condition, ...]:
    """All conditions, in the order of the tables."""
    plain = only()
    alone = [
        *(Condition(name, 'geometry', only(name)) for name in ALONE),
        *(Condition(name, 'sensor', only(name)) for name in SENSOR_CHANGES),
        *(Condition(name, 'world', plain, (name,), STRENGTHS['strong']) for name in WORLD_CHANGES),
    ]
    world = [
        Condition(f'world_{name}', 'together', plain, WORLD_CHANGES, strength)
        for name, strength in STRENGTHS.items()
    ]
    whole = Condition('everything', 'together', only(*ALONE, *SENSOR_CHANGES, *WORLD_CHANGES))
    typical = Condition('typical', 'together', replace(ViewConfig(), offset=0.0))
    base = Condition('plain', 'none', plain)
    return (
        base,
        *alone,
        Condition('geometry', 'together', only(*ALONE)),
        Condition('sensor', 'together', only(*SENSOR_CHANGES)),
        *world,
        typical,
        whole,
        *(_any_heading(one) for one in (base, typical, world[0])),
    )


def choose_conditions(names: Sequence[str] | None) -> tuple[Condition, ...]:
    """Pick conditions by name; all for None.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    known = {condition.name: condition for condition in conditions()}
    if names is None:
        return tuple(known.values())
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f'condition {unknown[0]!r} is unknown; expected some of {", ".join(known)}'
        )
    return tuple(known[name] for name in names)


def _any_heading(condition: Condition) -> Condition:
    views = replace(condition.views, heading_error_deg=180.0)
    return replace(
        condition,
        name=f'{condition.name}_any_heading',
        group='any heading',
        views=views,
        any_heading=True,
    )


def draw_places(scenes: TestScenes, *, per_scene: int, seed: int) -> Places:
    """Draw where the queries look, the same for every condition."""
    numbers = np.tile(np.arange(per_scene), len(scenes.names))
    rows = np.repeat(np.arange(len(scenes.names)), per_scene)
    centers = [
        _random(seed, scenes.names[row], number, 'place').uniform(*MIDDLE, 2)
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True)
    ]
    return Places(rows, numbers, np.asarray(centers))


def render(
    scenes: TestScenes, places: Places, condition: Condition, *, seed: int
) -> NDArray[np.uint8]:
    """Render the queries of a condition.

    Returns
    -------
    ndarray of uint8, shape (Q, P, P, 3)
        RGB, P as of `tile_px`; with `Condition.any_heading` so much wider that `turned` finds a
        square of that size at any angle.
    """
    scene_px = scenes.images.shape[1]
    wider = WIDER if condition.any_heading else 1.0
    size_px = math.ceil(wider * tile_px(scene_px))
    views = []
    for scene, number, center in zip(places.scenes, places.numbers, places.centers, strict=True):
        rng = _random(seed, scenes.names[scene], int(number), condition.name)
        row_px, col_px = (center * scene_px - 0.5).tolist()
        # As many scene pixels as the tile has, so that a plain view of a tile's place is the tile.
        place = Place(row_px, col_px, size_px * SIDE * scene_px / tile_px(scene_px), 0.0)
        view = drone_view(
            scenes.images[scene], place, rng, size_px=size_px, config=condition.views
        )
        if condition.changes:
            view = change_world(view, rng, kinds=condition.changes, strength=condition.strength)
        views.append(view)
    return np.stack(views)


def turned(views: NDArray[np.uint8], *, size_px: int, headings: int) -> NDArray[np.uint8]:
    """Turn wide views into squares for so many evenly spaced guesses of the heading.

    Parameters
    ----------
    views : ndarray of uint8, shape (Q, W, W, 3)
        As `render` makes them for an unknown heading.
    size_px : int
        Side P of the squares, at most ``W / sqrt(2)``.
    headings : int
        Number of guesses; the first leaves the view as it is.

    Returns
    -------
    ndarray of uint8, shape (Q, headings, P, P, 3)
    """
    middle = (views.shape[1] - 1) / 2
    out = np.empty((len(views), headings, size_px, size_px, 3), np.uint8)
    for guess in range(headings):
        matrix = cv2.getRotationMatrix2D((middle, middle), 360.0 * guess / headings, 1.0)
        matrix[:, 2] += (size_px - 1) / 2 - middle
        for row, view in enumerate(views):
            out[row, guess] = cv2.warpAffine(view, matrix, (size_px, size_px))
    return out


def _random(seed: int, scene: str, number: int, what: str) -> np.random.Generator:
    words = (zlib.crc32(scene.encode()), number, zlib.crc32(what.encode()))
    return np.random.default_rng((seed, *words))
