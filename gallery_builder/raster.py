"""Source maps -> the pixels of map.gpkg, a strip of blocks at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.geopackage_format import BLOCK_PX
from bicrossnet_ros.types import ImageArray, MaskArray
from gallery_builder.mosaic import Mosaic

_STRIP_BLOCKS = 8  # blocks read at once: 2048 x 256 px, about 25 MB in the widest data type


class Ledger(Protocol):
    """Remembers across runs how many units of a step are done."""

    def done(self, step: str) -> int:
        """Units done."""

    def mark(self, step: str, done: int) -> None:
        """Record the units done; called after they are safely stored."""


def write_finest(
    mosaic: Mosaic, raster: GeoPackage, ledger: Ledger, advance: Callable[[int], None]
) -> None:
    """Write the finest level; a row of blocks is one transaction and one unit of the ledger."""
    zoom = raster.grid.max_zoom
    rows, cols = raster.grid.blocks_at(zoom)
    step = f'zoom {zoom}'
    for row in range(ledger.done(step), rows):
        raster.connection.execute('BEGIN')
        for first in range(0, cols, _STRIP_BLOCKS):
            count = min(_STRIP_BLOCKS, cols - first)
            image, mask = mosaic.read(row * BLOCK_PX, first * BLOCK_PX, BLOCK_PX, count * BLOCK_PX)
            for number in range(count):
                part = slice(number * BLOCK_PX, (number + 1) * BLOCK_PX)
                raster.write_block(zoom, row, first + number, image[:, part], mask[:, part])
        raster.connection.execute('COMMIT')
        ledger.mark(step, row + 1)
        advance(cols)


def write_overviews(raster: GeoPackage, ledger: Ledger, advance: Callable[[int], None]) -> None:
    """Write all coarser levels, each from the next finer one."""
    for zoom in range(raster.grid.max_zoom - 1, -1, -1):
        rows, cols = raster.grid.blocks_at(zoom)
        step = f'zoom {zoom}'
        advance(ledger.done(step) * cols)
        for row in range(ledger.done(step), rows):
            raster.connection.execute('BEGIN')
            for col in range(cols):
                side = 2 * BLOCK_PX
                image, mask = raster.read(zoom + 1, row * side, col * side, side, side)
                raster.write_block(zoom, row, col, *halve(image, mask))
            raster.connection.execute('COMMIT')
            ledger.mark(step, row + 1)
            advance(cols)


def halve(image: ImageArray, mask: MaskArray) -> tuple[ImageArray, MaskArray]:
    """Half the size: the mean of the valid ones among 2 x 2 pixels, valid if at least 2 are."""
    height, width = mask.shape[0] // 2, mask.shape[1] // 2
    weighted = np.where(mask[:, :, None], image, 0).astype(np.uint16)
    total = weighted.reshape(height, 2, width, 2, 3).sum(axis=(1, 3), dtype=np.uint16)
    count = mask.reshape(height, 2, width, 2).sum(axis=(1, 3), dtype=np.uint16)
    divisor = np.maximum(count, 1)[:, :, None]
    return ((total + divisor // 2) // divisor).astype(np.uint8), count >= 2
