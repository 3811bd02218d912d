"""map.gpkg: blocks, windows, and what GDAL makes of the file."""

import hashlib
import math
import sqlite3
import struct

import numpy as np
import pytest
import rasterio
from gallery_fixtures import textured
from hypothesis import given
from hypothesis import strategies as st

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.geopackage_format import (
    BLOCK_PX,
    Grid,
    TileRow,
    decode_block,
    encode_block,
    point_blob,
    srs_id_of,
)
from gallery_builder.raster import halve, write_overviews

CRS = 'EPSG:32617'
GRID = Grid(305900.0, 4545700.0, 0.5, 700, 300)


class ForgetfulLedger:
    def done(self, step):
        return 0

    def mark(self, step, done):
        pass


@pytest.fixture(scope='module')
def picture():
    """Pixels (300, 700) with a hole and a ragged edge; black where invalid."""
    image = textured(300, 700)
    mask = np.ones((300, 700), bool)
    mask[100:140, 300:420] = False
    mask[:, 690:] = False
    mask[260:, :30] = False
    image[~mask] = 0
    return image, mask


@pytest.fixture(scope='module')
def stored(tmp_path_factory, picture):
    path = tmp_path_factory.mktemp('gpkg') / 'map.gpkg'
    image, mask = picture
    zoom = GRID.max_zoom
    with GeoPackage.create(path, crs=CRS, grid=GRID, changed='2026-01-31T12:00:00.000Z') as raster:
        rows, cols = GRID.blocks_at(zoom)
        for row in range(rows):
            for col in range(cols):
                pixels = np.zeros((BLOCK_PX, BLOCK_PX, 3), np.uint8)
                valid = np.zeros((BLOCK_PX, BLOCK_PX), bool)
                part = np.s_[
                    row * BLOCK_PX : (row + 1) * BLOCK_PX, col * BLOCK_PX : (col + 1) * BLOCK_PX
                ]
                height, width = mask[part].shape
                pixels[:height, :width], valid[:height, :width] = image[part], mask[part]
                raster.write_block(zoom, row, col, pixels, valid)
        write_overviews(raster, ForgetfulLedger(), lambda blocks: None)
        lat_deg, lon_deg = to_wgs84(CRS, 306000.25, 4545600.5)
        raster.write_tiles(
            [
                TileRow(0, 306000.25, 4545600.5, lat_deg, lon_deg, 0, 0.5),
                TileRow(1, 306100.0, 4545610.0, lat_deg, lon_deg),
            ]
        )
    return path


@pytest.fixture
def raster(stored):
    with GeoPackage.open(stored, grid=GRID, crs=CRS) as opened:
        yield opened


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_zoom_0_is_one_block_and_no_zoom_is_superfluous(width_px, height_px):
    grid = Grid(0.0, 0.0, 0.25, width_px, height_px)
    assert grid.blocks_at(0) == (1, 1)
    rows, cols = grid.blocks_at(grid.max_zoom)
    assert cols == math.ceil(width_px / BLOCK_PX)
    assert rows == math.ceil(height_px / BLOCK_PX)
    assert max(rows, cols) <= 2**grid.max_zoom
    assert grid.max_zoom == 0 or max(rows, cols) > 2 ** (grid.max_zoom - 1)


@given(st.floats(0.01, 100.0))
def test_zoom_for_gives_the_coarsest_level_that_is_fine_enough(gsd_m):
    grid = Grid(0.0, 0.0, 0.25, 20_000, 10_000)
    zoom = grid.zoom_for(gsd_m)
    assert zoom == grid.max_zoom or grid.gsd_at_m(zoom) <= gsd_m * (1 + 1e-6)
    assert zoom == 0 or grid.gsd_at_m(zoom - 1) > gsd_m * (1 - 1e-6)


def test_zoom_for_takes_a_level_of_exactly_the_resolution_asked_for():
    grid = Grid(0.0, 0.0, 0.3, 20_000, 10_000)
    for zoom in range(grid.max_zoom + 1):
        assert grid.zoom_for(grid.gsd_at_m(zoom)) == zoom
    assert grid.zoom_for(None) == grid.max_zoom


def test_valid_blocks_are_jpeg_and_close():
    image = textured(BLOCK_PX, BLOCK_PX)
    data = encode_block(image, np.ones((BLOCK_PX, BLOCK_PX), bool))
    assert data[:2] == b'\xff\xd8'
    back, mask = decode_block(data)
    assert mask.all()
    error = np.abs(back.astype(int) - image)
    assert error.mean() < 1.0  # grey levels
    assert error.max() <= 8


def test_partly_valid_blocks_are_png_and_exact():
    image = textured(BLOCK_PX, BLOCK_PX)
    mask = np.zeros((BLOCK_PX, BLOCK_PX), bool)
    mask[3:90, 17:200] = True
    back, found = decode_block(encode_block(image, mask))
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(back[mask], image[mask])
    assert not back[~mask].any()


def test_blocks_without_valid_pixels_are_absent():
    blank = np.zeros((BLOCK_PX, BLOCK_PX), bool)
    assert encode_block(textured(BLOCK_PX, BLOCK_PX), blank) is None


@pytest.mark.parametrize('data', [b'', b'nonsense', b'\xff\xd8\xff\xe0' + bytes(40)])
def test_decode_refuses_what_is_not_a_picture(data):
    assert decode_block(data) is None


def test_halve_averages_valid_pixels_only():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2] = np.array([[10, 20], [30, 41]], np.uint8)[..., None]
    image[:, 2:] = np.array([[99, 200], [99, 100]], np.uint8)[..., None]
    mask = np.array([[1, 1, 0, 1], [1, 1, 0, 0]], bool)
    half, valid = halve(image, mask)
    assert half[0, 0, 0] == 25  # (10 + 20 + 30 + 41 + 2) // 4
    assert half[0, 1, 0] == 200
    np.testing.assert_array_equal(valid, [[True, False]])


def test_a_point_is_geopackage_binary():
    blob = point_blob(32617, 305900.5, 4545700.25)
    assert blob[:4] == b'GP\x00\x01'
    assert struct.unpack('<i', blob[4:8]) == (32617,)
    assert struct.unpack('<BIdd', blob[8:]) == (1, 1, 305900.5, 4545700.25)


def test_gdal_sees_the_same_place_and_pyramid(stored):
    with rasterio.open(stored) as dataset:
        assert dataset.crs.to_epsg() == 32617
        assert dataset.shape == (300, 700)
        assert tuple(dataset.bounds) == pytest.approx(GRID.bounds_m, abs=1e-6)
        assert dataset.overviews(1) == [2, 4]
        assert dataset.count == 4


def test_gdal_decodes_the_same_pixels_at_every_level(stored, raster):
    for zoom in range(GRID.max_zoom, -1, -1):
        level = GRID.max_zoom - zoom
        options = {'overview_level': level - 1} if level else {}
        with rasterio.open(stored, **options) as dataset:
            theirs = dataset.read()
        image, mask = raster.read(zoom, 0, 0, *theirs.shape[1:])
        np.testing.assert_array_equal(theirs[3] > 0, mask)
        difference = np.abs(theirs[:3].transpose(1, 2, 0).astype(int) - image)[mask]
        assert difference.max() <= 1  # grey level: two JPEG decoders round differently
        assert difference.mean() < 1e-3


def test_gdal_reads_the_tile_centres(stored):
    pyogrio = pytest.importorskip('pyogrio')
    info = pyogrio.read_info(stored, layer='tile_centres')
    assert info['crs'] == CRS
    assert info['geometry_type'] == 'Point'
    assert info['features'] == 2
    assert list(info['fields']) == ['east', 'north', 'lat', 'lon', 'level', 'ambiguity']
    _, ids, geometry, fields = pyogrio.raw.read(stored, layer='tile_centres', return_fids=True)
    assert list(ids) == [0, 1]
    assert struct.unpack('<dd', geometry[0][5:21]) == (306000.25, 4545600.5)
    assert fields[0][0] == 306000.25
    assert math.isnan(fields[5][1])  # NULL


def test_the_file_has_what_the_standard_demands(stored):
    with sqlite3.connect(stored) as connection:
        assert connection.execute('PRAGMA application_id').fetchone() == (0x47504B47,)
        assert connection.execute('PRAGMA user_version').fetchone() == (10300,)
        assert connection.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        assert connection.execute('PRAGMA foreign_key_check').fetchall() == []
        systems = dict(
            connection.execute('SELECT srs_id, definition FROM gpkg_spatial_ref_sys').fetchall()
        )
        matrix = connection.execute(
            'SELECT zoom_level, matrix_width, tile_width, pixel_x_size FROM gpkg_tile_matrix'
        ).fetchall()
        (west, east) = connection.execute(
            'SELECT min_x, max_x FROM gpkg_tile_matrix_set'
        ).fetchone()
    connection.close()
    assert {-1, 0, 4326, 32617} <= set(systems)
    assert systems[32617].startswith('PROJCS["WGS 84 / UTM zone 17N"')
    for zoom, width, tile_px, pixel_m in matrix:  # 1.1.3.7: every matrix spans the set exactly
        assert width * tile_px * pixel_m == pytest.approx(east - west)
        assert width == 2**zoom


def test_windows_agree_with_the_picture_wherever_they_lie(raster, picture):
    image, mask = picture
    rng = np.random.default_rng(3)
    for _ in range(40):
        row, col = int(rng.integers(-200, 400)), int(rng.integers(-200, 800))
        height, width = (int(value) for value in rng.integers(1, 500, 2))
        found, valid = raster.read(GRID.max_zoom, row, col, height, width)
        assert found.shape == (height, width, 3)
        expected = np.zeros((height, width), bool)
        expected_image = np.zeros((height, width, 3), np.uint8)
        rows, cols = np.arange(row, row + height), np.arange(col, col + width)
        inside_rows = (rows >= 0) & (rows < 300)
        inside_cols = (cols >= 0) & (cols < 700)
        box = np.ix_(inside_rows, inside_cols)
        expected[box] = mask[np.ix_(rows[inside_rows], cols[inside_cols])]
        expected_image[box] = image[np.ix_(rows[inside_rows], cols[inside_cols])]
        np.testing.assert_array_equal(valid, expected)
        assert np.abs(found.astype(int) - expected_image).max(initial=0) <= 8


def test_reading_leaves_the_folder_as_it_was(stored):
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    with GeoPackage.open(stored, grid=GRID, crs=CRS) as raster:
        raster.read(GRID.max_zoom, 0, 0, 300, 700)
        list(raster.read_tiles())
    assert [path.name for path in stored.parent.iterdir()] == ['map.gpkg']
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == digest


def test_tiles_come_back(raster):
    first, second = raster.read_tiles()
    assert (first.tile_id, first.east_m, first.north_m) == (0, 306000.25, 4545600.5)
    assert first.ambiguity == 0.5
    assert second.ambiguity is None


def test_an_open_map_cannot_be_written(raster):
    with pytest.raises(sqlite3.OperationalError, match='readonly'):
        raster.write_tiles([TileRow(5, 0.0, 0.0, 0.0, 0.0)])


def test_other_files_are_refused(tmp_path):
    text = tmp_path / 'text.gpkg'
    text.write_text('not a database, but long enough to look at' * 50)
    with pytest.raises(GalleryError, match='not a readable GeoPackage'):
        GeoPackage.open(text, grid=GRID, crs=CRS)
    with pytest.raises(GalleryError, match='not a readable GeoPackage'):
        GeoPackage.open(tmp_path / 'absent.gpkg', grid=GRID, crs=CRS)
    other = tmp_path / 'other.gpkg'
    with sqlite3.connect(other) as connection:
        connection.execute('CREATE TABLE something (x)')
    connection.close()
    with pytest.raises(GalleryError, match='not the map of a gallery: application id 0x0'):
        GeoPackage.open(other, grid=GRID, crs=CRS)


def test_a_damaged_block_is_named(stored, tmp_path):
    damaged = tmp_path / 'map.gpkg'
    damaged.write_bytes(stored.read_bytes())
    with sqlite3.connect(damaged) as connection:
        connection.execute(
            "UPDATE map SET tile_data = x'00ff' WHERE zoom_level = 2 AND tile_column = 1"
        )
    connection.close()
    with (
        GeoPackage.open(damaged, grid=GRID, crs=CRS) as raster,
        pytest.raises(GalleryError, match=r'block at zoom, row, column \(2, 0, 1\)'),
    ):
        raster.read(2, 0, 0, 300, 700)


def test_a_crs_without_epsg_code_is_refused():
    with pytest.raises(GalleryError, match='has no EPSG code'):
        srs_id_of('+proj=tmerc +lon_0=9.123 +ellps=bessel +units=m')
