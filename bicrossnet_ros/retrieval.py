"""The gallery searched with all patches of a frame: which places of the map look like it."""

from __future__ import annotations

import math

import numpy as np

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.query_patches import Ballot
from bicrossnet_ros.ranking import Circle, Place, Ranking, distinct_places, places_in
from bicrossnet_ros.tile_grid import NO_TILE, TileGrid
from bicrossnet_ros.tile_index import Float32Array, Int64Array
from bicrossnet_ros.types import FloatArray
from bicrossnet_ros.voting import Block, vote_at_places, vote_over_block

# Up to this many cells every tile is compared with every patch: about 80 MB of embeddings.
DENSE_CELLS = 20_000
# In larger maps every patch proposes this many places, and the most proposed ones are scored.
PROPOSALS = 64
VERIFIED = 512
# Neighbours of so many of the best are scored too: a proposal is a stride off at worst.
POLISHED = 32
# Tiles that stand for the map when its average similarity is taken.
AVERAGED_TILES = 4096


class PlaceSearch:
    """Ranks the places of a gallery for the patches of a frame.

    Embeddings of a small gallery, and of the last piece of a large one, are kept between frames,
    so one search is used by one thread.

    Parameters
    ----------
    gallery : Gallery
    dense_cells : int
        Up to this many cells of the tile grid every tile is compared with every patch.
    """

    def __init__(self, gallery: Gallery, *, dense_cells: int = DENSE_CELLS) -> None:
        self.gallery = gallery
        self.grid = TileGrid.of(gallery)
        self._dense_cells = dense_cells
        self._mean: Float32Array | None = None
        self._kept: tuple[Int64Array, Float32Array] | None = None

    def rank(
        self,
        descriptors: Float32Array,
        ballot: Ballot,
        *,
        count: int,
        circle: Circle | None = None,
        everywhere: bool = False,
    ) -> Ranking:
        """The best places over all hypotheses.

        Parameters
        ----------
        descriptors : ndarray of shape (Q, D), float32
            One row a patch, as `Gallery.descriptor` returns them.
        ballot : Ballot
            Whose Q patches they are.
        count : int
            Places wanted.
        circle : Circle, optional
            Where places may be.
        everywhere : bool
            Visit every tile when places are proposed, an IVF index's too; the patch nearest to the
            middle then proposes alone.
        """
        descriptors = self.gallery.checked_queries(descriptors)
        average = np.asarray(descriptors @ self._mean_embedding(), np.float64)
        block = self._block(ballot, circle)
        if block is None:
            exhaustive = count if everywhere else 0
            found = self._propose(descriptors, average, ballot, circle, exhaustive)
        else:
            found = self._vote(block, descriptors, average, ballot)
        tiles, scores, hypothesis = found
        if np.isnan(average).any() or np.isnan(scores).any():
            raise GalleryError(
                f'{self.gallery.path} holds embeddings that are not finite; rebuild the gallery'
            )
        allowed = np.isfinite(scores) & self._inside(tiles, circle)
        tiles, scores, hypothesis = tiles[allowed], scores[allowed], hypothesis[allowed]
        best = np.argsort(-scores, kind='stable')[:count]
        return Ranking(self.gallery, tiles[best], scores[best], hypothesis[best], ballot.guesses)

    def _mean_embedding(self) -> Float32Array:
        """What the map looks like on average, from tiles spread over it."""
        if self._mean is None:
            count = len(self.gallery.tile_east_m)
            size = self.gallery.manifest.embedding_dim
            spread = np.unique(np.linspace(0, count - 1, AVERAGED_TILES).astype(np.int64))
            self._mean = (
                self.gallery.embeddings(spread).mean(axis=0)
                if count
                else np.zeros(size, np.float32)
            )
        return self._mean

    def _inside(self, tiles: Int64Array, circle: Circle | None) -> np.ndarray:
        if circle is None:
            return np.ones(len(tiles), bool)
        (east_m, north_m), radius_m = circle
        off_m = np.hypot(
            self.gallery.tile_east_m[tiles] - east_m, self.gallery.tile_north_m[tiles] - north_m
        )
        return np.asarray(off_m <= radius_m)

    def _block(self, ballot: Ballot, circle: Circle | None) -> Block | None:
        """The cells that patches of allowed places can lie on, unless they are too many."""
        center, reach_m = np.zeros(2), math.inf
        if circle is not None:
            center, reach_m = np.array(circle[0]), circle[1] + ballot.reach_m + self.grid.stride_m
        return Block.cut(self.grid, center - reach_m, center + reach_m, limit=self._dense_cells)

    def _vote(
        self, block: Block, descriptors: Float32Array, average: FloatArray, ballot: Ballot
    ) -> tuple[Int64Array, FloatArray, Int64Array]:
        tiles = block.tiles[block.there]
        if self._kept is None or not np.array_equal(self._kept[0], tiles):
            self._kept = (tiles, self.gallery.embeddings(tiles))
        similarities = descriptors @ self._kept[1].T
        scores = vote_over_block(block, similarities, average, ballot)[:, block.there]
        best = scores.argmax(axis=0) if len(tiles) else np.zeros(0, np.int64)
        return tiles, scores[best, np.arange(len(tiles))], best

    def _propose(
        self,
        descriptors: Float32Array,
        average: FloatArray,
        ballot: Ballot,
        circle: Circle | None,
        exhaustive: int,
    ) -> tuple[Int64Array, FloatArray, Int64Array]:
        """Places that the best tiles of single patches point to, scored by all patches.

        With `exhaustive`, so many tiles of one patch out of all there are.
        """
        tile_count = len(self.gallery.tile_east_m)
        center_m, radius_m = circle or ((0.0, 0.0), math.inf)
        proposing, k = np.arange(len(descriptors)), min(PROPOSALS, tile_count)
        if exhaustive:
            # Visiting every tile costs as much as the rest of a frame: one patch must do.
            proposing = np.array([np.linalg.norm(ballot.offsets_m, axis=1).argmin()])
            k = min(max(PROPOSALS, exhaustive), tile_count)
        within = circle is not None or exhaustive > 0
        similarity, tile = self.gallery.search(
            descriptors[proposing],
            k=k,
            center_m=center_m if within else None,
            radius_m=radius_m + ballot.reach_m if within else None,
        )
        line, rank = np.nonzero(tile != NO_TILE)
        patch, tiles = proposing[line], tile[line, rank]
        points_m = self._centers_m(tiles) - ballot.offsets_m[patch]
        places = self.grid.nearest(points_m, limit_m=0.5 * self.gallery.tile_size_m)
        excess = ballot.weights[patch] * (similarity[line, rank] - average[patch])
        known = (places != NO_TILE) & self._inside(places, circle) & (excess > 0)
        keys, index = np.unique(
            ballot.hypothesis[patch][known] * tile_count + places[known], return_inverse=True
        )
        tally = np.bincount(index.reshape(-1), excess[known], minlength=len(keys))
        # With a large overlap the wanted places are more: neighbours of each are among them.
        chosen = keys[np.argsort(-tally, kind='stable')[: max(VERIFIED, exhaustive)]]
        scores = self._verify(chosen, descriptors, average, ballot)
        best = chosen[np.argsort(-scores, kind='stable')[:POLISHED]]
        further = np.setdiff1d(self._beside(best), chosen)
        chosen = np.concatenate([chosen, further])
        scores = np.concatenate([scores, self._verify(further, descriptors, average, ballot)])
        order = np.argsort(-scores, kind='stable')
        chosen, scores = chosen[order], scores[order]
        tiles, first = np.unique(chosen % tile_count, return_index=True)
        return tiles, scores[first], chosen[first] // tile_count

    def _verify(
        self, keys: Int64Array, descriptors: Float32Array, average: FloatArray, ballot: Ballot
    ) -> FloatArray:
        """Scores of pairs hypothesis * T + tile."""
        tile_count = len(self.gallery.tile_east_m)
        scores = np.full(len(keys), -np.inf)
        for hypothesis in np.unique(keys // tile_count).tolist():
            members = np.flatnonzero(keys // tile_count == hypothesis)
            # Piece by piece: the embeddings around thousands of places are many.
            for start in range(0, len(members), VERIFIED):
                own = members[start : start + VERIFIED]
                scores[own] = vote_at_places(
                    self.grid,
                    self._centers_m(keys[own] % tile_count),
                    descriptors,
                    average,
                    ballot,
                    hypothesis=hypothesis,
                    embeddings_of=self.gallery.embeddings,
                )
        return scores

    def _beside(self, keys: Int64Array) -> Int64Array:
        """The pairs of the eight cells around those of some pairs, where they have tiles."""
        tile_count = len(self.gallery.tile_east_m)
        hypothesis, tiles = keys // tile_count, keys % tile_count
        step = np.array([(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if row or col])
        row = self.grid.row[tiles][:, None] + step[:, 0]
        column = self.grid.column[tiles][:, None] + step[:, 1]
        within = (row >= 0) & (row < len(self.grid.rows_m))
        within &= (column >= 0) & (column < len(self.grid.columns_m))
        found = self.grid.tiles_at(row, column)
        pairs = hypothesis[:, None] * tile_count + found
        return np.unique(pairs[within & (found != NO_TILE)])

    def _centers_m(self, tiles: Int64Array) -> FloatArray:
        return np.stack([self.gallery.tile_east_m[tiles], self.gallery.tile_north_m[tiles]], 1)


def look_alikes(
    search: PlaceSearch,
    point_m: FloatArray,
    offsets_m: FloatArray,
    *,
    apart_m: float,
    count: int,
    circle: Circle | None,
) -> list[Place]:
    """Places that the map itself takes for the ground around a point, which is one of them.

    The network may see little in a frame, and rank a copy of the true place far down; two pieces
    of map differ by nothing but their ground.

    Parameters
    ----------
    search : PlaceSearch
    point_m : ndarray of shape (2,)
        (east, north).
    offsets_m : ndarray of shape (P, 2)
        Middles of tiles around the point that show what the frame saw.
    apart_m : float
        Distance between places.
    count : int
        Places wanted.
    circle : Circle or None
        Where to look; None: everywhere.
    """
    if count == 0:
        return []
    gallery, grid = search.gallery, search.grid
    around = grid.nearest(point_m + offsets_m, limit_m=0.5 * gallery.tile_size_m)
    around = np.unique(around[around != NO_TILE])
    if len(around) == 0:
        around = np.array([nearest_tile(gallery, point_m)])
    centers_m = np.stack([gallery.tile_east_m[around], gallery.tile_north_m[around]], axis=1)
    ballot = Ballot(
        centers_m - point_m, np.ones(len(around)), np.zeros(len(around), np.int64), ((0.0, 0.0),)
    )
    ranking = search.rank(
        gallery.embeddings(around),
        ballot,
        count=count * places_in(apart_m, grid.stride_m),
        circle=circle,
        everywhere=True,
    )
    return distinct_places(ranking, apart_m=apart_m, count=count)


def nearest_tile(gallery: Gallery, point_m: FloatArray) -> int:
    """The tile whose centre is the nearest to (east_m, north_m)."""
    east, north = gallery.tile_east_m - point_m[0], gallery.tile_north_m - point_m[1]
    return int(np.argmin(east**2 + north**2))
