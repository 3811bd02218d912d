"""Places of one scene that nearly show the same: the hardest negatives, and the softest positives.

In a gallery whose tiles overlap, the right tile competes with its neighbours. Here up to four
places of one scene lie at random, 0.3 to 1.2 sides from each other, of one size and turned alike,
as tiles of one map are; `Ground` tells where each tile and each query really is, so that a loss
can know by how much they overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from training.data.view_config import ViewConfig
from training.data.views import Generator, Place, draw_view

NEAREST, FARTHEST = 0.3, 1.2
# Centres lie at least so far to either side of the scene's middle, in sides: where a place takes
# up half of its scene there must be room for four, and a strip beyond the edge is mirrored.
_LEAST_ROOM = 0.45
_TRIES = 200
_CORNERS_AND_MIDDLE = np.array(
    [[-0.5, -0.5, 1], [0.5, -0.5, 1], [0.5, 0.5, 1], [-0.5, 0.5, 1], [0, 0, 1]]
)


@dataclass(frozen=True)
class Ground:
    """What ground the two views of a place show, as squares that are parallel to the tile.

    Parameters
    ----------
    scene : int
        Places of different scenes have nothing in common.
    row, col, side : float
        Centre and side of the tile, in pixels of the scene along the tile's own axes, which all
        tiles of a scene share.
    query_row, query_col, query_side : float
        Of the query: the centre of its image, and the side of a square of the same area.
    """

    scene: int
    row: float
    col: float
    side: float
    query_row: float
    query_col: float
    query_side: float


def near_places(rng: Generator, *, scene_px: int, places: int, config: ViewConfig) -> list[Place]:
    """Draw places of one side and rotation, each `NEAREST` to `FARTHEST` sides from all others.

    Parameters
    ----------
    rng : numpy Generator
    scene_px : int
        Side of the scene.
    places : int
        1 to 4.
    config : ViewConfig
        Its `min_side` and `max_side`.
    """
    side = scene_px * rng.uniform(config.min_side, config.max_side)
    rotation = rng.uniform(0, 2 * math.pi)
    reach = 0.5 * (abs(math.cos(rotation)) + abs(math.sin(rotation)))
    room = max(0.5 * scene_px / side - reach, _LEAST_ROOM)
    centers = _centers(rng, places, room)
    middle = (scene_px - 1) / 2
    return [
        Place(
            row_px=middle + side * row,
            col_px=middle + side * col,
            side_px=side,
            rotation_rad=rotation,
        )
        for row, col in centers
    ]


def _centers(rng: Generator, places: int, room: float) -> list[tuple[float, float]]:
    """Centres (row, col) in sides about the scene's middle, at most `room` from it either way."""
    for _ in range(_TRIES):
        first = rng.uniform(-room, room, 2)
        others = first + rng.uniform(-FARTHEST, FARTHEST, (4 * places, 2))
        chosen = [first]
        for center in others[(np.abs(others) <= room).all(axis=1)]:
            distances = [math.dist(center, other) for other in chosen]
            if len(chosen) < places and NEAREST <= min(distances) <= max(distances) <= FARTHEST:
                chosen.append(center)
        if len(chosen) == places:
            return [(float(row), float(col)) for row, col in chosen]
    # Not seen; the corners of a square satisfy all that is asked.
    corners = ((-0.3, -0.3), (0.3, 0.3), (-0.3, 0.3), (0.3, -0.3))
    return list(corners[:places])


def ground_of(scene: int, place: Place, rng: Generator, *, config: ViewConfig) -> Ground:
    """Tell what ground `training.data.views.view_pair` shows of a place.

    Parameters
    ----------
    scene : int
    place : Place
    rng : numpy Generator
        In the state in which `view_pair` gets it: the geometry of the query is what is drawn
        from it first.
    config : ViewConfig
    """
    _, ground_from_patch = draw_view(rng, config)
    seen = _CORNERS_AND_MIDDLE @ ground_from_patch.T
    seen = seen[:, :2] / seen[:, 2:]
    # Of the quadrilateral, half the cross product of its diagonals.
    (ax, ay), (bx, by) = seen[2] - seen[0], seen[3] - seen[1]
    col, row = seen[4]
    cos, sin = math.cos(place.rotation_rad), math.sin(place.rotation_rad)
    tile_col = cos * place.col_px + sin * place.row_px
    tile_row = cos * place.row_px - sin * place.col_px
    return Ground(
        scene=scene,
        row=tile_row,
        col=tile_col,
        side=place.side_px,
        query_row=tile_row + place.side_px * float(row),
        query_col=tile_col + place.side_px * float(col),
        query_side=place.side_px * math.sqrt(abs(ax * by - ay * bx) / 2),
    )
