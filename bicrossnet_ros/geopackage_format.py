"""What the bytes of a gallery's map file mean: grid, tables, blocks and geometries.

References
----------
OGC 12-128r17, GeoPackage Encoding Standard 1.3: 1.1 (base), 2.1 (features), 2.2 (tiles).
"""

from __future__ import annotations

import math
import sqlite3
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from pyproj import CRS

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.geodesy import metric_crs
from bicrossnet_ros.types import ImageArray, MaskArray

BLOCK_PX = 256
JPEG_QUALITY = 92
APPLICATION_ID = 0x47504B47  # 'GPKG'
USER_VERSION = 10300  # GeoPackage 1.3
RASTER_TABLE = 'map'
TILE_TABLE = 'tile_centres'


@dataclass(frozen=True)
class Grid:
    """Where the pixels of the map lie.

    Parameters
    ----------
    west_m, north_m : float
        Outer corner of the first pixel.
    gsd_m : float
        Metres per pixel of the finest level.
    width_px, height_px : int
        Size of the finest level.
    """

    west_m: float
    north_m: float
    gsd_m: float
    width_px: int
    height_px: int

    @property
    def max_zoom(self) -> int:
        """Zoom of the finest level; zoom 0 is a single block."""
        blocks = math.ceil(max(self.width_px, self.height_px) / BLOCK_PX)
        return max(blocks - 1, 0).bit_length()

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(west, south, east, north)."""
        south_m = self.north_m - self.height_px * self.gsd_m
        return self.west_m, south_m, self.west_m + self.width_px * self.gsd_m, self.north_m

    def gsd_at_m(self, zoom: int) -> float:
        """Metres per pixel at a zoom."""
        return float(self.gsd_m * 2 ** (self.max_zoom - zoom))

    def blocks_at(self, zoom: int) -> tuple[int, int]:
        """(rows, columns) of blocks that the map covers at a zoom."""
        side_px = BLOCK_PX * 2 ** (self.max_zoom - zoom)
        return math.ceil(self.height_px / side_px), math.ceil(self.width_px / side_px)

    def zoom_for(self, gsd_m: float | None) -> int:
        """The coarsest zoom that is at least as fine as `gsd_m`; None: the finest there is."""
        if gsd_m is None or gsd_m <= self.gsd_m:
            return self.max_zoom
        steps = math.floor(math.log2(gsd_m / self.gsd_m) + 1e-9)
        return max(self.max_zoom - steps, 0)


@dataclass(frozen=True)
class TileRow:
    """One row of the table of tile centres; positions in metres and WGS84 degrees."""

    tile_id: int
    east_m: float
    north_m: float
    lat_deg: float
    lon_deg: float
    level: int = 0
    ambiguity: float | None = None


def encode_block(image: ImageArray, mask: MaskArray) -> bytes | None:
    """JPEG where all is valid, PNG with alpha where part is, None where nothing is."""
    if not mask.any():
        return None
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    if mask.all():
        # Colour at full resolution: half-resolution colour costs more than it saves at this size.
        options = [
            cv2.IMWRITE_JPEG_QUALITY,
            JPEG_QUALITY,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        done, data = cv2.imencode('.jpg', bgr, options)
    else:
        alpha = mask.astype(np.uint8) * 255
        bgra = np.dstack([np.where(mask[:, :, None], bgr, 0), alpha])
        done, data = cv2.imencode('.png', bgra)
    assert done, 'OpenCV encodes JPEG and PNG'
    return bytes(data)


def decode_block(data: bytes) -> tuple[ImageArray, MaskArray] | None:
    """The inverse of `encode_block`; None if `data` is not a block."""
    if not data:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (BLOCK_PX, BLOCK_PX) or pixels.ndim != 3:
        return None
    image = np.ascontiguousarray(pixels[:, :, 2::-1])
    if pixels.shape[2] == 3:
        return image, np.ones(pixels.shape[:2], np.bool_)
    return image, pixels[:, :, 3] > 127


def point_blob(srs_id: int, east_m: float, north_m: float) -> bytes:
    """A GeoPackage geometry: header without envelope, then the point as little-endian WKB."""
    return struct.pack('<2sBBiBIdd', b'GP', 0, 1, srs_id, 1, 1, east_m, north_m)


def srs_id_of(crs: str) -> int:
    """The EPSG code, which GeoPackage takes as the id of the reference system."""
    code = metric_crs(crs).to_authority()
    if code is None or code[0] != 'EPSG':
        raise GalleryError(f'CRS {crs!r} has no EPSG code; a gallery needs one such as EPSG:32617')
    return int(code[1])


def write_schema(connection: sqlite3.Connection, crs: str, grid: Grid, changed: str) -> None:
    """Write the tables of an empty map file into a new database, inside a transaction."""
    srs_id = srs_id_of(crs)
    for statement in _TABLES:
        connection.execute(statement)
    _write_reference_systems(connection, crs, srs_id)
    contents = 'INSERT INTO gpkg_contents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)'
    extent = (*grid.bounds_m, srs_id)
    connection.execute(
        contents, (RASTER_TABLE, 'tiles', RASTER_TABLE, 'reference imagery', changed, *extent)
    )
    connection.execute(
        contents,
        (TILE_TABLE, 'features', TILE_TABLE, 'centres of the gallery tiles', changed, *extent),
    )
    connection.execute(
        'INSERT INTO gpkg_geometry_columns VALUES (?, ?, ?, ?, 0, 0)',
        (TILE_TABLE, 'geom', 'POINT', srs_id),
    )
    _write_matrices(connection, grid, srs_id)


def _write_reference_systems(connection: sqlite3.Connection, crs: str, srs_id: int) -> None:
    undefined = 'undefined'
    wgs84 = CRS.from_epsg(4326)
    named = metric_crs(crs)
    rows = [
        ('Undefined Cartesian', -1, 'NONE', -1, undefined),
        ('Undefined geographic', 0, 'NONE', 0, undefined),
        (wgs84.name, 4326, 'EPSG', 4326, wgs84.to_wkt('WKT1_GDAL')),
        (named.name, srs_id, 'EPSG', srs_id, named.to_wkt('WKT1_GDAL')),
    ]
    connection.executemany('INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)', rows)


def _write_matrices(connection: sqlite3.Connection, grid: Grid, srs_id: int) -> None:
    # The matrix set is the square of zoom 0's single block: every zoom then covers it exactly.
    side_m = BLOCK_PX * grid.gsd_at_m(0)
    square = (grid.west_m, grid.north_m - side_m, grid.west_m + side_m, grid.north_m)
    connection.execute(
        'INSERT INTO gpkg_tile_matrix_set VALUES (?, ?, ?, ?, ?, ?)',
        (RASTER_TABLE, srs_id, *square),
    )
    connection.executemany(
        'INSERT INTO gpkg_tile_matrix VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
        (
            (RASTER_TABLE, zoom, 2**zoom, 2**zoom, BLOCK_PX, BLOCK_PX, gsd_m, gsd_m)
            for zoom in range(grid.max_zoom + 1)
            for gsd_m in [grid.gsd_at_m(zoom)]
        ),
    )


_TABLES = (
    f'PRAGMA application_id = {APPLICATION_ID}',
    f'PRAGMA user_version = {USER_VERSION}',
    """CREATE TABLE gpkg_spatial_ref_sys (
        srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
        organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL,
        definition TEXT NOT NULL, description TEXT)""",
    """CREATE TABLE gpkg_contents (
        table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
        description TEXT DEFAULT '',
        last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
        min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
        CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id)
            REFERENCES gpkg_spatial_ref_sys(srs_id))""",
    """CREATE TABLE gpkg_geometry_columns (
        table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL,
        srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
        CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name),
        CONSTRAINT uk_gc_table_name UNIQUE (table_name),
        CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
        CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id))""",
    """CREATE TABLE gpkg_tile_matrix_set (
        table_name TEXT NOT NULL PRIMARY KEY, srs_id INTEGER NOT NULL,
        min_x DOUBLE NOT NULL, min_y DOUBLE NOT NULL,
        max_x DOUBLE NOT NULL, max_y DOUBLE NOT NULL,
        CONSTRAINT fk_gtms_table_name FOREIGN KEY (table_name)
            REFERENCES gpkg_contents(table_name),
        CONSTRAINT fk_gtms_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id))""",
    """CREATE TABLE gpkg_tile_matrix (
        table_name TEXT NOT NULL, zoom_level INTEGER NOT NULL,
        matrix_width INTEGER NOT NULL, matrix_height INTEGER NOT NULL,
        tile_width INTEGER NOT NULL, tile_height INTEGER NOT NULL,
        pixel_x_size DOUBLE NOT NULL, pixel_y_size DOUBLE NOT NULL,
        CONSTRAINT pk_ttm PRIMARY KEY (table_name, zoom_level),
        CONSTRAINT fk_tmm_table_name FOREIGN KEY (table_name)
            REFERENCES gpkg_contents(table_name))""",
    f"""CREATE TABLE {RASTER_TABLE} (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        zoom_level INTEGER NOT NULL, tile_column INTEGER NOT NULL, tile_row INTEGER NOT NULL,
        tile_data BLOB NOT NULL,
        UNIQUE (zoom_level, tile_column, tile_row))""",
    f"""CREATE TABLE {TILE_TABLE} (
        id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
        geom BLOB NOT NULL, east DOUBLE NOT NULL, north DOUBLE NOT NULL,
        lat DOUBLE NOT NULL, lon DOUBLE NOT NULL, level INTEGER NOT NULL, ambiguity DOUBLE)""",
)
