"""Where the tiles of a gallery lie, and which of them surround a point of the map.

Tiles stand in columns and rows a stride apart; the last column and row are snapped to the map's
border, so they may be closer, and cells without enough map have no tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.tile_index import Int64Array
from bicrossnet_ros.types import FloatArray

NO_TILE = -1


@dataclass(frozen=True)
class TileGrid:
    """Columns and rows of tile centres; cells are looked up, not stored: a corridor has few.

    Parameters
    ----------
    columns_m, rows_m : ndarrays of shape (C,) and (R,)
        East of the columns and north of the rows, ascending.
    column, row : ndarrays of shape (T,), int64
        Of every tile.
    stride_m : float
        Distance of neighbouring columns and rows.
    keys, ids : ndarrays of shape (T,), int64
        row * C + column of the tiles in ascending order, and the tiles in that order.
    """

    columns_m: FloatArray
    rows_m: FloatArray
    column: Int64Array
    row: Int64Array
    stride_m: float
    keys: Int64Array
    ids: Int64Array

    @classmethod
    def of(cls, gallery: Gallery) -> TileGrid:
        """The grid of a gallery's tiles."""
        manifest = gallery.manifest
        stride_px = max(1, round(manifest.tile_px * (1.0 - manifest.overlap)))
        columns_m, column = _axis(gallery.tile_east_m, manifest.gsd_m)
        rows_m, row = _axis(gallery.tile_north_m, manifest.gsd_m)
        keys = row * len(columns_m) + column
        order = np.argsort(keys, kind='stable')
        return cls(columns_m, rows_m, column, row, stride_px * manifest.gsd_m, keys[order], order)

    def tiles_at(self, row: Int64Array, column: Int64Array) -> Int64Array:
        """Tiles of cells, `NO_TILE` where there is none; any shape."""
        if len(self.keys) == 0:
            return np.full(np.shape(row), NO_TILE, np.int64)
        keys = row * len(self.columns_m) + column
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[found] == keys, self.ids[found], NO_TILE)

    def surrounding(self, points_m: FloatArray) -> tuple[Int64Array, FloatArray]:
        """The up to four tiles around each point, and what each of them counts.

        Parameters
        ----------
        points_m : ndarray of shape (N, 2)
            (east, north).

        Returns
        -------
        tiles : ndarray of shape (N, 4), int64
            `NO_TILE` where there is none.
        weights : ndarray of shape (N, 4)
            Those of bilinear interpolation; their sum is below 1 where tiles are missing.
        """
        column, across = hat(self.columns_m, points_m[:, 0], self.stride_m)
        row, along = hat(self.rows_m, points_m[:, 1], self.stride_m)
        tiles = self.tiles_at(row[:, :, None], column[:, None, :]).reshape(-1, 4)
        weights = (along[:, :, None] * across[:, None, :]).reshape(-1, 4)
        return tiles, np.where(tiles == NO_TILE, 0.0, weights)

    def nearest(self, points_m: FloatArray, *, limit_m: float) -> Int64Array:
        """The tile of the nearest column and row, N of them, `NO_TILE` beyond the limit."""
        column, row = (
            _nearest(axis_m, points_m[:, number])
            for number, axis_m in enumerate((self.columns_m, self.rows_m))
        )
        off_m = np.maximum(
            np.abs(self.columns_m[column] - points_m[:, 0]),
            np.abs(self.rows_m[row] - points_m[:, 1]),
        )
        return np.where(off_m <= limit_m, self.tiles_at(row, column), NO_TILE)


def hat(axis_m: FloatArray, at_m: FloatArray, stride_m: float) -> tuple[Int64Array, FloatArray]:
    """The two neighbours of each place on an axis, and the weights of linear interpolation.

    A weight falls from 1 at the neighbour to 0 a stride away: where the axis has a gap, or ends,
    the weights do not reach from one side to the other, and their sum is below 1.

    Parameters
    ----------
    axis_m : ndarray of shape (A,)
        Ascending.
    at_m : ndarray of shape (N,)
    stride_m : float

    Returns
    -------
    index : ndarray of shape (N, 2), int64
    weight : ndarray of shape (N, 2)
    """
    if len(axis_m) == 0:
        return np.zeros((len(at_m), 2), np.int64), np.zeros((len(at_m), 2))
    above = np.searchsorted(axis_m, at_m, side='right')
    raw = np.stack([above - 1, above], axis=1)
    index = np.clip(raw, 0, len(axis_m) - 1)
    weight = np.maximum(0.0, 1.0 - np.abs(axis_m[index] - at_m[:, None]) / stride_m)
    weight[raw != index] = 0.0
    # Columns closer than a stride, at the border: their weights are shared out to 1.
    return index, weight / np.maximum(weight.sum(axis=1, keepdims=True), 1.0)


def _axis(centers_m: FloatArray, step_m: float) -> tuple[FloatArray, Int64Array]:
    """The distinct coordinates, ascending, and which of them each tile has."""
    if len(centers_m) == 0:
        return np.zeros(0), np.zeros(0, np.int64)
    pixel: NDArray[np.int64] = np.rint((centers_m - centers_m.min()) / step_m).astype(np.int64)
    _, first, index = np.unique(pixel, return_index=True, return_inverse=True)
    return centers_m[first], index.reshape(-1).astype(np.int64)


def _nearest(axis_m: FloatArray, at_m: FloatArray) -> Int64Array:
    middles = 0.5 * (axis_m[1:] + axis_m[:-1])
    return np.asarray(np.searchsorted(middles, at_m), np.int64)
