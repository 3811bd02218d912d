"""The gallery searched with all hypotheses of a frame: which tiles, which places of the map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.tile_index import Float32Array
from bicrossnet_ros.types import FloatArray, TileMatch

# (east_m, north_m) and radius_m.
Circle = tuple[tuple[float, float], float]
# Tiles in a circle of half a tile around one, at the overlap of 0.75 that galleries have: what
# must be ranked so that a number of distinct places comes out.
TILES_PER_PLACE = 16


@dataclass(frozen=True)
class Place:
    """A piece of map worth a closer look: the best tile of a group of neighbours."""

    east_m: float
    north_m: float
    match: int


def rank_tiles(
    gallery: Gallery,
    embeddings: Float32Array,
    guesses: list[tuple[float, float]],
    *,
    count: int,
    center_m: tuple[float, float] | None,
    radius_m: float | None,
) -> list[TileMatch]:
    """The most similar tiles over all hypotheses, each tile once, best first.

    Parameters
    ----------
    gallery : Gallery
    embeddings : ndarray of shape (Q, D), float32
        One row a hypothesis.
    guesses : list of (heading_deg, agl_m)
        Of the Q hypotheses.
    count : int
        Tiles wanted.
    center_m, radius_m : (east_m, north_m) and float, or None
        Limits the search to tile centres in this circle.
    """
    wanted = min(count, len(gallery.tile_east_m))
    similarities, tile_ids = gallery.search(
        embeddings, k=wanted, center_m=center_m, radius_m=radius_m
    )
    row, column = np.nonzero(tile_ids >= 0)
    order = np.argsort(-similarities[row, column], kind='stable')
    row, column = row[order], column[order]
    _, first = np.unique(tile_ids[row, column], return_index=True)
    kept = np.sort(first)[:wanted]
    return [
        TileMatch(
            tile_id=tile,
            east_m=float(gallery.tile_east_m[tile]),
            north_m=float(gallery.tile_north_m[tile]),
            lat_deg=float(gallery.tile_lat_deg[tile]),
            lon_deg=float(gallery.tile_lon_deg[tile]),
            similarity=float(similarities[line, rank]),
            heading_deg=guesses[line][0],
            agl_m=guesses[line][1],
        )
        for line, rank in zip(row[kept].tolist(), column[kept].tolist(), strict=True)
        for tile in [int(tile_ids[line, rank])]
    ]


def distinct_places(
    matches: list[TileMatch], *, apart_m: float, count: int, start: int = 0
) -> list[Place]:
    """Tiles that are at least `apart_m` from every better one, best first.

    Parameters
    ----------
    matches : list of TileMatch
        Best first.
    apart_m : float
    count : int
        Places wanted.
    start : int
        Places skipped, because they were looked at before.
    """
    if not matches:
        return []
    centers = np.array([(match.east_m, match.north_m) for match in matches])
    free = np.ones(len(matches), bool)
    places: list[Place] = []
    while free.any() and len(places) < start + count:
        best = int(np.argmax(free))
        places.append(Place(matches[best].east_m, matches[best].north_m, best))
        free &= np.linalg.norm(centers - centers[best], axis=1) >= apart_m
    return places[start:]


def nearest_tile(gallery: Gallery, point_m: FloatArray) -> int:
    """The tile whose centre is the nearest to (east_m, north_m)."""
    east, north = gallery.tile_east_m - point_m[0], gallery.tile_north_m - point_m[1]
    return int(np.argmin(east**2 + north**2))


def look_alikes(
    gallery: Gallery, point_m: FloatArray, *, apart_m: float, count: int, circle: Circle | None
) -> list[Place]:
    """Places that the map itself takes for the place around a point, which is one of them.

    The network may see little in a frame, and rank a copy of the true place far down; two pieces
    of map differ by nothing but their ground.

    Parameters
    ----------
    gallery : Gallery
    point_m : ndarray of shape (2,)
        (east, north).
    apart_m : float
        Distance between places.
    count : int
        Places wanted.
    circle : Circle or None
        Where to look; None: everywhere.
    """
    if count == 0:
        return []
    own = gallery.embedding(nearest_tile(gallery, point_m))
    # A search within a radius visits every tile there, an IVF index's too.
    center_m, radius_m = circle or ((float(point_m[0]), float(point_m[1])), math.inf)
    ranked = rank_tiles(
        gallery,
        own[None],
        [(0.0, 0.0)],
        count=TILES_PER_PLACE * count,
        center_m=center_m,
        radius_m=radius_m,
    )
    return distinct_places(ranked, apart_m=apart_m, count=count)
