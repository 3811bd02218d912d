"""Places of the map by how much they look like a frame, and which of them are worth a look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.tile_index import Int64Array
from bicrossnet_ros.types import FloatArray, TileMatch

# (east_m, north_m) and radius_m.
Circle = tuple[tuple[float, float], float]


@dataclass(frozen=True)
class Place:
    """A piece of map worth a closer look: the best tile of a group of neighbours."""

    east_m: float
    north_m: float
    match: int


@dataclass(frozen=True)
class Ranking:
    """Places by score, best first, each tile once.

    Parameters
    ----------
    gallery : Gallery
    tiles : ndarray of shape (N,), int64
        The tile whose centre is the place.
    similarity : ndarray of shape (N,)
        Weighted mean of the patches' cosine similarities.
    hypothesis : ndarray of shape (N,), int64
        Under which the place scored best.
    guesses : tuple of (heading_deg, agl_m)
        Of the hypotheses.
    """

    gallery: Gallery
    tiles: Int64Array
    similarity: FloatArray
    hypothesis: Int64Array
    guesses: tuple[tuple[float, float], ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def centers_m(self) -> FloatArray:
        """(N, 2) as (east, north)."""
        gallery = self.gallery
        return np.stack([gallery.tile_east_m[self.tiles], gallery.tile_north_m[self.tiles]], 1)

    def matches(self, count: int | None = None) -> list[TileMatch]:
        """The first so many, or all."""
        gallery = self.gallery
        return [
            TileMatch(
                tile_id=tile,
                east_m=float(gallery.tile_east_m[tile]),
                north_m=float(gallery.tile_north_m[tile]),
                lat_deg=float(gallery.tile_lat_deg[tile]),
                lon_deg=float(gallery.tile_lon_deg[tile]),
                similarity=similarity,
                heading_deg=self.guesses[guess][0],
                agl_m=self.guesses[guess][1],
            )
            for tile, similarity, guess in zip(
                self.tiles[:count].tolist(),
                self.similarity[:count].tolist(),
                self.hypothesis[:count].tolist(),
                strict=True,
            )
        ]


def distinct_places(
    ranking: Ranking, *, apart_m: float, count: int, start: int = 0
) -> list[Place]:
    """Places that are at least `apart_m` from every better one, best first.

    Parameters
    ----------
    ranking : Ranking
    apart_m : float
    count : int
        Places wanted.
    start : int
        Places skipped, because they were looked at before.
    """
    if len(ranking) == 0:
        return []
    centers = ranking.centers_m
    free = np.ones(len(centers), bool)
    places: list[Place] = []
    while free.any() and len(places) < start + count:
        best = int(np.argmax(free))
        places.append(Place(float(centers[best, 0]), float(centers[best, 1]), best))
        free &= np.linalg.norm(centers - centers[best], axis=1) >= apart_m
    return places[start:]


def places_in(radius_m: float, stride_m: float) -> int:
    """Tiles in a circle: what must be ranked for every distinct place wanted."""
    return max(1, math.ceil(math.pi * (radius_m / stride_m) ** 2))
