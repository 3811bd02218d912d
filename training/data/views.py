"""Two views of one place: what a map tile and a drone's patch of the same ground look like.

Tile and patch share a random base rotation. The patch is what the product makes of a frame
(`training.data.perspective`): it differs from the tile by an error of the heading, of the height
and so of the scale, by an offset of the centres and by what remains of the camera's tilt. The
world has changed since the map was made (`training.data.world`) and the camera is no perfect one
(`training.data.sensor`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from training.data.perspective import Shot, draw_view, seen
from training.data.sensor import SENSOR_CHANGES, apply_sensor, fill_unseen
from training.data.view_config import GEOMETRY_CHANGES
from training.data.world import WORLD_CHANGES, apply_world, infrared_mix, mix_channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.data.view_config import ViewConfig

Generator = np.random.Generator

# Every effect that has a switch, in the order of docs/views.md.
CHANGES: tuple[str, ...] = (*GEOMETRY_CHANGES, *SENSOR_CHANGES, *WORLD_CHANGES)

# What a map may differ in when `ViewConfig.map_views` is 'mild': share and strength of an effect.
MILD = {
    'tones': (0.6, 0.25),
    'gradient': (0.1, 0.2),
    'blur': (0.15, 0.006),
    'noise': (0.15, 0.015),
    'jpeg': (0.2, 0.4),
}


@dataclass(frozen=True)
class Place:
    """A square of ground in a scene: centre (row, col) and side in pixels, rotation in radians."""

    row_px: float
    col_px: float
    side_px: float
    rotation_rad: float


def sample_places(
    rng: Generator, *, scene_px: int, places: int, config: ViewConfig
) -> list[Place]:
    """Draw one to four neighbouring places of one side about the centre of a scene.

    One lies anywhere, two side by side in any direction, three or four at the corners of a square
    that is nearly parallel to the scene. Neighbours are ``config.spacing`` sides apart, each
    turned on its own.

    Raises
    ------
    ValueError
        If `places` is not between 1 and 4.
    """
    if not 1 <= places <= 4:
        raise ValueError(f'places is {places}; expected 1 to 4')
    side = scene_px * rng.uniform(config.min_side, config.max_side)
    direction = rng.uniform(0, 2 * math.pi)
    if places == 1:
        distance, angles = rng.uniform(0, 0.5 * (scene_px - side)), [direction]
    elif places == 2:
        distance, angles = config.spacing * side / 2, [direction, direction + math.pi]
    else:
        # Corners of a square far from parallel to the scene's sides would lie beyond them.
        quarter, lean = divmod(direction, math.pi / 2)
        start = (quarter + 0.5) * math.pi / 2 + 0.2 * (lean - math.pi / 4)
        distance = config.spacing * side / math.sqrt(2)
        angles = [start + k * math.pi / 2 for k in range(places)]
    center = (scene_px - 1) / 2
    return [
        Place(
            row_px=center + distance * math.sin(angle),
            col_px=center + distance * math.cos(angle),
            side_px=side,
            rotation_rad=rng.uniform(0, 2 * math.pi),
        )
        for angle in angles
    ]


def view_pair(
    scene: NDArray[np.uint8], place: Place, rng: Generator, *, size_px: int, config: ViewConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a place as a map tile and as a drone's patch.

    Parameters
    ----------
    scene : ndarray of uint8, shape (S, S, 3)
        RGB.
    place : Place
        Where, how large and how turned.
    rng : numpy Generator
        Source of every random choice.
    size_px : int
        Side of the two views.
    config : ViewConfig
        How much they may differ.

    Returns
    -------
    tile, query : ndarray of uint8, shape (size_px, size_px, 3)
    """
    # The geometry first: `training.data.near_misses` draws it again to know where the query lies.
    shot, ground = draw_view(rng, config)
    tile, image = look(scene, place, size_px), look(scene, place, size_px, ground)
    if rng.random() < config.false_color_share:
        matrix = infrared_mix(rng, config.infrared)
        tile, image = mix_channels(tile, matrix), mix_channels(image, matrix)
    query = _flown(image, shot, rng, config)
    return map_view(tile, rng, config), query


def map_view(image: NDArray[np.uint8], rng: Generator, config: ViewConfig) -> NDArray[np.uint8]:
    """Change a tile as far as ``config.map_views`` says; see there."""
    if config.map_views == 'clean':
        return image
    mild = config.map_views == 'mild'
    drawn = _draw(rng, MILD, 1.0) if mild else draw_changes(rng, config)
    return apply_sensor(apply_world(image, rng, drawn), rng, drawn)


def drone_view(
    scene: NDArray[np.uint8], place: Place, rng: Generator, *, size_px: int, config: ViewConfig
) -> NDArray[np.uint8]:
    """Render a place as the patch of a drone's frame, without a tile; see `view_pair`."""
    shot, ground = draw_view(rng, config)
    return _flown(look(scene, place, size_px, ground), shot, rng, config)


def _flown(
    image: NDArray[np.uint8], shot: Shot, rng: Generator, config: ViewConfig
) -> NDArray[np.uint8]:
    """Change the ground, which is shown in the geometry of a shot, as the camera sees it."""
    drawn = draw_changes(rng, config)
    image = apply_world(image, rng, drawn)
    frame_from_patch = shot.frame_from_patch if 'vignette' in drawn else None
    image = apply_sensor(image, rng, drawn, frame_from_patch, shot.half_frame)
    return fill_unseen(image, seen(shot, _patch_from_view(len(image)), len(image)))


def draw_changes(rng: Generator, config: ViewConfig) -> dict[str, float]:
    """Draw which changes of world and sensor a view has, and how strong each is.

    A view's busyness b has mean 1; with ``config.busyness`` 1 it is 3 u^2 with u uniform, so that
    half of the views have less than 0.75 and some 3. An effect of share p comes with probability
    1 - (1 - p)^b: never for 0, always for 1. Its strength is uniform up to the largest.
    """
    spread = 3 * rng.random() ** 2
    return _draw(rng, _shares(config), 1 + config.busyness * (spread - 1))


@lru_cache(maxsize=64)
def _shares(config: ViewConfig) -> dict[str, tuple[float, float]]:
    return {
        name: (getattr(config, f'{name}_share'), getattr(config, name))
        for name in (*SENSOR_CHANGES, *WORLD_CHANGES)
    }


def _draw(
    rng: Generator, shares: dict[str, tuple[float, float]], busyness: float
) -> dict[str, float]:
    chance, strength = rng.random((2, len(shares))).tolist()
    return {
        name: largest * (0.15 + 0.85 * strength[k])
        for k, (name, (share, largest)) in enumerate(shares.items())
        if chance[k] < 1 - (1 - share) ** busyness
    }


def look(
    scene: NDArray[np.uint8],
    place: Place,
    size_px: int,
    ground_from_patch: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """Render a place; where the scene is much finer than the view, from averages of its pixels.

    Parameters
    ----------
    scene : ndarray of uint8, shape (S, S, 3)
    place : Place
    size_px : int
        Side of the view.
    ground_from_patch : ndarray of shape (3, 3), optional
        Homography on the unit patch; the place straight from above by default.

    Returns
    -------
    ndarray of uint8, shape (size_px, size_px, 3)
    """
    finer = max(1, round(place.side_px / size_px))
    side_px = finer * size_px
    matrix = _scene_from_patch(place)
    if ground_from_patch is not None:
        matrix = matrix @ ground_from_patch
    view = warp(scene, matrix @ _patch_from_view(side_px), side_px)
    if finer == 1:
        return view
    return np.asarray(cv2.resize(view, (size_px, size_px), interpolation=cv2.INTER_AREA))


def _patch_from_view(size_px: int) -> NDArray[np.float64]:
    """Affine map from pixels (x, y) of a view to the unit patch about (0, 0)."""
    scale = 1 / size_px
    middle = (1 - size_px) / 2 * scale
    return np.array([[scale, 0, middle], [0, scale, middle], [0, 0, 1]])


def _scene_from_patch(place: Place) -> NDArray[np.float64]:
    cos, sin = (f(place.rotation_rad) * place.side_px for f in (math.cos, math.sin))
    return np.array([[cos, -sin, place.col_px], [sin, cos, place.row_px], [0, 0, 1]])


def warp(scene: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """Sample a scene through a homography (view to scene); beyond its edge it is mirrored."""
    return np.asarray(
        cv2.warpPerspective(
            scene,
            matrix,
            (size_px, size_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    )
