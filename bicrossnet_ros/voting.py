"""Places of the map scored by all patches of a frame together.

A patch that lies at an offset from the image's middle speaks for a place with its similarity to
the map at place + offset, interpolated between the four tiles around that point. Two ways to the
same scores: over a block of the map, every tile by every patch; and, where the map is too large
for that, over the places that single patches propose.

The score of a place is the weighted mean of its patches' similarities. Where patches fall off the
map the rest must speak for all. Their mean alone would favour the border, because the mean of few
strays further by chance; counting the missing as average would lose it. So the deviation from the
average similarity is shrunk until chance has the same spread everywhere: by the square root of
the share of the (squared) weights that is present.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.query_patches import Ballot
from bicrossnet_ros.tile_grid import NO_TILE, TileGrid, hat
from bicrossnet_ros.tile_index import Float32Array, Int64Array
from bicrossnet_ros.types import FloatArray, MaskArray

# Below this share of the tiles that interpolation needs, the map does not reach a point: half a
# stride beyond the last tile in both directions leaves just a quarter.
MIN_SUPPORT = 0.25 - 1e-6


@dataclass(frozen=True)
class Block:
    """A rectangle of the tile grid.

    Parameters
    ----------
    columns_m, rows_m : ndarrays of shape (C,) and (R,)
        East and north, ascending.
    tiles : ndarray of shape (R, C), int64
        `NO_TILE` where there is none.
    stride_m : float
    """

    columns_m: FloatArray
    rows_m: FloatArray
    tiles: Int64Array
    stride_m: float

    @classmethod
    def cut(
        cls, grid: TileGrid, low_m: FloatArray, high_m: FloatArray, *, limit: int
    ) -> Block | None:
        """The part of a grid between two corners (east, north), if it keeps to so many cells."""
        first_c, last_c = np.searchsorted(grid.columns_m, (low_m[0], high_m[0]))
        first_r, last_r = np.searchsorted(grid.rows_m, (low_m[1], high_m[1]))
        if (last_c - first_c) * (last_r - first_r) > limit:
            return None
        row, column = np.mgrid[first_r:last_r, first_c:last_c]
        return cls(
            grid.columns_m[first_c:last_c],
            grid.rows_m[first_r:last_r],
            grid.tiles_at(row, column),
            grid.stride_m,
        )

    @property
    def there(self) -> MaskArray:
        """Which cells have a tile, (R, C)."""
        return np.asarray(self.tiles != NO_TILE)


def vote_over_block(
    block: Block, similarities: Float32Array, average: FloatArray, ballot: Ballot
) -> FloatArray:
    """Scores of all places of a block.

    Parameters
    ----------
    block : Block
    similarities : ndarray of shape (Q, N), float32
        Of every patch to every tile of the block, in the order of `block.tiles[block.there]`.
    average : ndarray of shape (Q,)
        Of every patch to the map.
    ballot : Ballot

    Returns
    -------
    ndarray of shape (H, R, C)
        One map a hypothesis; -inf where there is no tile or no patch reaches the map.
    """
    there = block.there
    whole = there.astype(np.float32)
    scores = np.full((len(ballot.guesses), *there.shape), -np.inf)
    for number in range(len(ballot.guesses)):
        values, supports = [], []
        members = ballot.members(number)
        for patch in members.tolist():
            plane = np.zeros(there.shape, np.float32)
            plane[there] = similarities[patch] - np.float32(average[patch])
            east_m, north_m = ballot.offsets_m[patch]
            across = hat(block.columns_m, block.columns_m + east_m, block.stride_m)
            along = hat(block.rows_m, block.rows_m + north_m, block.stride_m)
            values.append(_resampled(plane, across, along))
            supports.append(_resampled(whole, across, along))
        scores[number] = score(
            np.stack(values), np.stack(supports), ballot.weights[members], average[members]
        )
    scores[:, ~there] = -np.inf
    return scores


def vote_at_places(
    grid: TileGrid,
    places_m: FloatArray,
    descriptors: Float32Array,
    average: FloatArray,
    ballot: Ballot,
    *,
    hypothesis: int,
    embeddings_of: Callable[[Int64Array], Float32Array],
) -> FloatArray:
    """Scores of single places under one hypothesis, by the same rule as those of a block.

    Parameters
    ----------
    grid : TileGrid
    places_m : ndarray of shape (N, 2)
        (east, north).
    descriptors : ndarray of shape (Q, D), float32
        Of all patches.
    average : ndarray of shape (Q,)
        Of every patch to the map.
    ballot : Ballot
    hypothesis : int
    embeddings_of : callable
        Tile ids (M,) to embeddings (M, D): `Gallery.embeddings`.

    Returns
    -------
    ndarray of shape (N,)
        -inf where no patch reaches the map.
    """
    members = ballot.members(hypothesis)
    points_m = places_m[None] + ballot.offsets_m[members][:, None]
    tiles, weights = grid.surrounding(points_m.reshape(-1, 2))
    needed, index = np.unique(tiles, return_inverse=True)
    shape = (len(members), len(places_m), 4)
    index, weights = index.reshape(shape), weights.reshape(shape)
    here = needed != NO_TILE
    deviation = np.zeros((len(members), len(needed)), np.float32)
    if here.any():
        similarities = descriptors[members] @ embeddings_of(needed[here]).T
        deviation[:, here] = similarities - average[members][:, None].astype(np.float32)
    values = deviation[np.arange(len(members))[:, None, None], index]
    return score(
        (values * weights).sum(axis=2),
        weights.sum(axis=2),
        ballot.weights[members],
        average[members],
    )


def score(
    values: NDArray[np.floating],
    supports: NDArray[np.floating],
    weights: FloatArray,
    average: FloatArray,
) -> FloatArray:
    """What the patches of one hypothesis say about places together.

    Parameters
    ----------
    values : ndarray of shape (P, ...)
        Deviations from the average similarity, summed with the weights of the tiles that exist.
    supports : ndarray of shape (P, ...)
        Sums of those weights: 1 where all tiles exist.
    weights, average : ndarrays of shape (P,)
        Of the patches.

    Returns
    -------
    ndarray of shape (...)
        The weighted mean similarity; -inf where no patch reaches the map.
    """
    reached = supports >= MIN_SUPPORT
    said = np.where(reached, values / np.maximum(supports, MIN_SUPPORT), 0.0)
    total = np.tensordot(weights, said, axes=1)
    present = np.tensordot(weights**2, reached, axes=1) / (weights**2).sum()
    deviation = total / (weights.sum() * np.sqrt(np.maximum(present, 1e-12)))
    mean = float(weights @ average / weights.sum())
    return np.asarray(np.where(present > 0, mean + deviation, -np.inf), np.float64)


def _resampled(
    plane: Float32Array,
    across: tuple[Int64Array, FloatArray],
    along: tuple[Int64Array, FloatArray],
) -> Float32Array:
    """A plane (R, C) at other columns and rows, each given by two neighbours and weights."""
    index, weight = across[0], across[1].astype(np.float32)
    plane = plane[:, index[:, 0]] * weight[:, 0] + plane[:, index[:, 1]] * weight[:, 1]
    index, weight = along[0], along[1].astype(np.float32)
    return plane[index[:, 0]] * weight[:, :1] + plane[index[:, 1]] * weight[:, 1:]
