"""Retrieval tiles: where they lie, what the network makes of them, how unique they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.errors import MapError, ModelError
from bicrossnet_ros.geodesy import to_wgs84_many
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.geopackage_format import BLOCK_PX, Grid, TileRow
from bicrossnet_ros.tile_index import Float32Array, search_index
from bicrossnet_ros.types import FloatArray, ImageArray, MaskArray

if TYPE_CHECKING:
    from bicrossnet_ros.encoder import Encoder


def tile_starts(size_px: int, *, tile_px: int, stride_px: int) -> list[int]:
    """First pixels of the tiles along one side: every stride, and one flush with the end.

    A side shorter than a tile gets one tile centred on it.
    """
    if size_px <= tile_px:
        return [(size_px - tile_px) // 2]
    starts = list(range(0, size_px - tile_px + 1, stride_px))
    if starts[-1] != size_px - tile_px:
        starts.append(size_px - tile_px)
    return starts


def select_tiles(
    raster: GeoPackage, *, tile_px: int, stride_px: int, min_valid: float
) -> Iterator[TileRow]:
    """Tiles with enough valid pixels, row by row from the north-west, ids counted from 0."""
    grid = raster.grid
    cols = np.array(tile_starts(grid.width_px, tile_px=tile_px, stride_px=stride_px))
    tile_id = 0
    for row, shares in _valid_shares(raster, cols, tile_px=tile_px, stride_px=stride_px):
        kept = cols[shares >= min_valid]
        if len(kept) == 0:
            continue
        east_m = grid.west_m + (kept + tile_px / 2) * grid.gsd_m
        north_m = np.full(len(kept), grid.north_m - (row + tile_px / 2) * grid.gsd_m)
        lat_deg, lon_deg = to_wgs84_many(raster.crs, east_m, north_m)
        for values in zip(east_m, north_m, lat_deg, lon_deg, strict=True):
            east, north, lat, lon = map(float, values)
            yield TileRow(tile_id, east, north, lat, lon)
            tile_id += 1


def _valid_shares(
    raster: GeoPackage, cols: Any, *, tile_px: int, stride_px: int
) -> Iterator[tuple[int, FloatArray]]:
    """For each row of tiles its first pixel and the share of valid pixels of each tile in it."""
    grid = raster.grid
    first_cols = np.clip(cols, 0, grid.width_px)
    last_cols = np.clip(cols + tile_px, 0, grid.width_px)
    strips = _MaskStrips(raster)
    for row in tile_starts(grid.height_px, tile_px=tile_px, stride_px=stride_px):
        per_col = strips.count(max(row, 0), min(row + tile_px, grid.height_px))
        summed = np.concatenate([[0], np.cumsum(per_col, dtype=np.int64)])
        yield row, (summed[last_cols] - summed[first_cols]) / tile_px**2


class _MaskStrips:
    """Counts valid pixels per column over some pixel rows; keeps the block rows in use."""

    def __init__(self, raster: GeoPackage) -> None:
        self._raster = raster
        self._kept: dict[int, MaskArray] = {}

    def count(self, first_px: int, last_px: int) -> Any:
        wanted = range(first_px // BLOCK_PX, (last_px - 1) // BLOCK_PX + 1)
        self._kept = {row: mask for row, mask in self._kept.items() if row in wanted}
        total = np.zeros(self._raster.grid.width_px, np.int64)
        for row in wanted:
            if row not in self._kept:
                self._kept[row] = self._block_row(row)
            top = row * BLOCK_PX
            part = self._kept[row][max(first_px - top, 0) : last_px - top]
            total += part.sum(axis=0)
        return total

    def _block_row(self, row: int) -> MaskArray:
        grid = self._raster.grid
        mask = np.zeros((BLOCK_PX, grid.blocks_at(grid.max_zoom)[1] * BLOCK_PX), np.bool_)
        for col in range(mask.shape[1] // BLOCK_PX):
            block = self._raster.read_mask(grid.max_zoom, row, col)
            if block is not None:
                mask[:, col * BLOCK_PX : (col + 1) * BLOCK_PX] = block
        return mask[:, : grid.width_px]


def read_tile(raster: GeoPackage, tile: TileRow, tile_px: int) -> ImageArray:
    """The pixels (tile_px, tile_px, 3) of a tile, as the vehicle's map shows them.

    Invalid pixels take the mean colour of the valid ones: black ones would be an edge that no
    camera sees.
    """
    row, col = tile_corner_px(raster.grid, tile, tile_px)
    image, mask = raster.read(raster.grid.max_zoom, row, col, tile_px, tile_px)
    if not mask.all():
        image[~mask] = np.rint(image[mask].mean(axis=0)).astype(np.uint8)
    return image


def tile_corner_px(grid: Grid, tile: TileRow, tile_px: int) -> tuple[int, int]:
    """(row, col) of a tile's first pixel at the finest level."""
    col = round((tile.east_m - grid.west_m) / grid.gsd_m - tile_px / 2)
    row = round((grid.north_m - tile.north_m) / grid.gsd_m - tile_px / 2)
    return row, col


def embed(encoder: Encoder, images: ImageArray) -> Float32Array:
    """Embeddings (N, D) of images (N, H, W, 3), checked to be finite and of unit length."""
    embeddings = np.ascontiguousarray(encoder.encode(images), np.float32)
    expected = (len(images), encoder.embedding_dim)
    if embeddings.shape != expected:
        raise ModelError(
            f'model {encoder.model_name} gave embeddings of shape {embeddings.shape}; expected '
            f'{expected}'
        )
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1.0, atol=1e-3):
        raise ModelError(
            f'model {encoder.model_name} gave embeddings of length {lengths.min():g} to '
            f'{lengths.max():g}; expected 1: the model file is unfit for retrieval'
        )
    return embeddings


def ambiguity(
    index: Any,
    embeddings: Float32Array,
    centers_m: FloatArray,
    rows: range,
    *,
    parameters: dict[str, Any],
    tile_size_m: float,
    reach: int,
) -> FloatArray:
    """Highest similarity of some tiles to any tile further than one tile size away.

    Parameters
    ----------
    index : faiss.Index
        Of all tiles.
    embeddings : ndarray of shape (T, D), float32
    centers_m : ndarray of shape (T, 2)
        East and north.
    rows : range
        The tiles asked for, R of them.
    parameters : dict
        Of the index.
    tile_size_m : float
    reach : int
        Nearest neighbours looked at first; more than there can be tiles within one tile size.

    Returns
    -------
    ndarray of shape (R,)
        NaN where there is no such tile. Exact, whatever the index: a likeness that is
        overlooked here would be a false confidence in flight.
    """
    found, labels = search_index(
        index,
        embeddings[rows.start : rows.stop],
        k=min(reach, len(embeddings)),
        parameters=parameters,
        exact=True,
    )
    here = centers_m[rows.start : rows.stop, None, :]
    offset_m = centers_m[np.maximum(labels, 0)] - here
    far = (labels >= 0) & (
        np.hypot(offset_m[..., 0], offset_m[..., 1]) > (1.0 + 1e-6) * tile_size_m
    )
    best = np.asarray(np.where(far, found, -np.inf).max(axis=1), np.float64)
    best[~far.any(axis=1)] = np.nan
    return best


def neighbour_reach(*, tile_px: int, stride_px: int) -> int:
    """One more than the tiles that can lie within one tile size of a tile."""
    # Per axis: those on the regular grid, itself, and on either side one flush with the end.
    per_axis = 2 * (tile_px // stride_px) + 3
    return per_axis**2 + 1


def require_tiles(count: int, *, min_valid: float, has_pixels: bool) -> None:
    """Raise MapError unless there are tiles."""
    if count > 0:
        return
    if not has_pixels:
        raise MapError('the maps have no valid pixel: all are nodata, masked or transparent')
    raise MapError(
        f'no tile has {min_valid:.0%} valid pixels; lower --min-valid, or take smaller tiles '
        '(--tile-px, --gsd-m)'
    )
