"""The map of a gallery as an OGC GeoPackage, written and read with sqlite3 and OpenCV alone.

The imagery is a pyramid of 256-pixel blocks with factor-2 overviews; zoom 0 is one block. A block
that is valid everywhere is a JPEG, one at the edge of the map a PNG with alpha, one without any
valid pixel is absent. The same file holds the table of the retrieval tiles' centres. QGIS and
GDAL open it as it is.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.geopackage_format import (
    APPLICATION_ID,
    BLOCK_PX,
    RASTER_TABLE,
    TILE_TABLE,
    Grid,
    TileRow,
    decode_block,
    encode_block,
    point_blob,
    srs_id_of,
    write_schema,
)
from bicrossnet_ros.types import FloatArray, ImageArray, MaskArray

_CACHED_BLOCKS = 96  # about 24 MB: the windows of one frame overlap, decoding is what costs


class GeoPackage:
    """A map file, open. Reading is safe from any thread; writing from one.

    Use `GeoPackage.create` or `GeoPackage.open`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, grid: Grid, crs: str) -> None:
        self.path = path
        self.connection = connection
        self.grid = grid
        self.crs = crs
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], tuple[ImageArray, MaskArray] | None]
        self._cache = OrderedDict()

    @classmethod
    def create(cls, path: Path, *, crs: str, grid: Grid, changed: str) -> GeoPackage:
        """Make an empty map file.

        Parameters
        ----------
        path : Path
            Must not exist.
        crs : str
            'EPSG:...' of a projected CRS in metres.
        grid : Grid
            Extent and resolution.
        changed : str
            Time of the last change, such as '2026-01-31T12:00:00.000Z'.
        """
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        connection.execute('BEGIN')
        write_schema(connection, crs, grid, changed)
        connection.execute('COMMIT')
        return cls(path, connection, grid, crs)

    @classmethod
    def open(cls, path: Path, *, grid: Grid, crs: str, write: bool = False) -> GeoPackage:
        """Open a map file; without `write` nothing in its folder is ever touched.

        Raises
        ------
        GalleryError
            If the file is not a GeoPackage with the tables of a gallery.
        """
        mode = 'mode=rw' if write else 'mode=ro&immutable=1'
        try:
            connection = sqlite3.connect(
                f'{path.resolve().as_uri()}?{mode}',
                uri=True,
                check_same_thread=False,
                isolation_level=None,
            )
            found = connection.execute('PRAGMA application_id').fetchone()[0]
            tables = {row[0] for row in connection.execute('SELECT name FROM sqlite_master')}
        except (sqlite3.Error, OSError) as error:
            raise GalleryError(f'{path} is not a readable GeoPackage: {error}') from error
        if found != APPLICATION_ID or not {RASTER_TABLE, TILE_TABLE} <= tables:
            connection.close()
            raise GalleryError(
                f'{path} is not the map of a gallery: application id {found:#x}, tables '
                f'{sorted(tables)}; expected {APPLICATION_ID:#x} with {RASTER_TABLE!r} and '
                f'{TILE_TABLE!r}'
            )
        return cls(path, connection, grid, crs)

    def write_block(
        self, zoom: int, row: int, col: int, image: ImageArray, mask: MaskArray
    ) -> None:
        """Store one block, image (256, 256, 3) and mask (256, 256), unless nothing is valid."""
        data = encode_block(image, mask)
        if data is None:
            return
        self.connection.execute(
            f'INSERT OR REPLACE INTO {RASTER_TABLE} '
            '(zoom_level, tile_column, tile_row, tile_data) VALUES (?, ?, ?, ?)',
            (zoom, col, row, data),
        )

    def read_block(self, zoom: int, row: int, col: int) -> tuple[ImageArray, MaskArray] | None:
        """One block as (image, mask), None if it is absent. The arrays must not be changed."""
        key = (zoom, row, col)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            data = self._fetch(key)
            block = None if data is None else self._decode(data, key)
            self._cache[key] = block
            if len(self._cache) > _CACHED_BLOCKS:
                self._cache.popitem(last=False)
            return block

    def read_mask(self, zoom: int, row: int, col: int) -> MaskArray | None:
        """Which pixels of a block are valid; does not decode blocks that are valid everywhere."""
        key = (zoom, row, col)
        with self._lock:
            data = self._fetch(key)
        if data is None:
            return None
        if data[:2] == b'\xff\xd8':  # JPEG: see `encode_block`
            return np.ones((BLOCK_PX, BLOCK_PX), np.bool_)
        return self._decode(data, key)[1]

    def read(
        self, zoom: int, row_px: int, col_px: int, height_px: int, width_px: int
    ) -> tuple[ImageArray, MaskArray]:
        """Pixels of a level: image (H, W, 3), mask (H, W); outside the map the mask is False."""
        image = np.zeros((height_px, width_px, 3), np.uint8)
        mask = np.zeros((height_px, width_px), np.bool_)
        rows, cols = self.grid.blocks_at(zoom)
        first_row, first_col = max(row_px // BLOCK_PX, 0), max(col_px // BLOCK_PX, 0)
        last_row = min((row_px + height_px - 1) // BLOCK_PX, rows - 1)
        last_col = min((col_px + width_px - 1) // BLOCK_PX, cols - 1)
        for row in range(first_row, last_row + 1):
            for col in range(first_col, last_col + 1):
                block = self.read_block(zoom, row, col)
                if block is None:
                    continue
                to_rows, from_rows = _overlap(row * BLOCK_PX - row_px, height_px)
                to_cols, from_cols = _overlap(col * BLOCK_PX - col_px, width_px)
                image[to_rows, to_cols] = block[0][from_rows, from_cols]
                mask[to_rows, to_cols] = block[1][from_rows, from_cols]
        return image, mask

    def write_tiles(self, tiles: Iterable[TileRow]) -> None:
        """Add rows to the table of tile centres."""
        srs_id = srs_id_of(self.crs)
        self.connection.executemany(
            f'INSERT INTO {TILE_TABLE} (id, geom, east, north, lat, lon, level, ambiguity) '
            'VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
            (
                (
                    tile.tile_id,
                    point_blob(srs_id, tile.east_m, tile.north_m),
                    tile.east_m,
                    tile.north_m,
                    tile.lat_deg,
                    tile.lon_deg,
                    tile.level,
                    tile.ambiguity,
                )
                for tile in tiles
            ),
        )

    def read_tiles(self) -> Iterator[TileRow]:
        """Rows of the table of tile centres in the order of their ids."""
        query = f'SELECT id, east, north, lat, lon, level, ambiguity FROM {TILE_TABLE} ORDER BY id'
        try:
            with self._lock:
                rows = self.connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise GalleryError(f'{self.path} is damaged: {error}') from error
        return (TileRow(*row) for row in rows)

    def delete_tiles(self) -> None:
        """Empty the table of tile centres."""
        self.connection.execute(f'DELETE FROM {TILE_TABLE}')

    def set_ambiguity(self, values: FloatArray) -> None:
        """Fill the ambiguity of every tile, shape (T,); NaN is stored as NULL."""
        self.connection.executemany(
            f'UPDATE {TILE_TABLE} SET ambiguity = ? WHERE id = ?',
            ((None if np.isnan(v) else float(v), number) for number, v in enumerate(values)),
        )

    def count_tiles(self) -> int:
        """Rows of the table of tile centres."""
        return self._count(TILE_TABLE)

    def count_blocks(self) -> int:
        """Blocks present, all levels."""
        return self._count(RASTER_TABLE)

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        with self._lock:
            self._cache.clear()
            self.connection.close()

    def __enter__(self) -> GeoPackage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _count(self, table: str) -> int:
        return int(self.connection.execute(f'SELECT COUNT(*) FROM {table}').fetchone()[0])

    def _fetch(self, key: tuple[int, int, int]) -> bytes | None:
        query = (
            f'SELECT tile_data FROM {RASTER_TABLE} '
            'WHERE zoom_level = ? AND tile_row = ? AND tile_column = ?'
        )
        try:
            row = self.connection.execute(query, key).fetchone()
        except sqlite3.Error as error:
            raise GalleryError(f'{self.path} cannot be read: {error}') from error
        return None if row is None else bytes(row[0])

    def _decode(self, data: bytes, key: tuple[int, int, int]) -> tuple[ImageArray, MaskArray]:
        block = decode_block(data)
        if block is None:
            raise GalleryError(
                f'{self.path} is damaged: the block at zoom, row, column {key} is not a picture '
                f'of {BLOCK_PX} x {BLOCK_PX} pixels; run `python -m gallery_builder verify`'
            )
        return block


def _overlap(offset_px: int, size_px: int) -> tuple[slice, slice]:
    """Slices (in the window, in the block) of what a block at `offset_px` shares with a window."""
    start, stop = max(offset_px, 0), min(offset_px + BLOCK_PX, size_px)
    return slice(start, stop), slice(start - offset_px, stop - offset_px)
