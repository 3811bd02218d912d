"""Every kind of map that can be asked for becomes the right pixels at the right place."""

import cv2
import numpy as np
import pytest
import rasterio
from affine import Affine
from gallery_fixtures import build_gallery, finest, textured, write_map
from pyproj import CRS, Transformer
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin

from bicrossnet_ros.gallery import open_gallery
from gallery_builder.mosaic import MapSources

SIDE_PX = 200
JPEG_MEAN = 1.0  # grey levels that JPEG at quality 92 may change these pictures on average
JPEG_MAX = 10


def opened(tmp_path, *maps, **options):
    return open_gallery(build_gallery(tmp_path / 'test.gallery', *maps, **options))


def assert_same(found, expected, mask, *, mean=JPEG_MEAN, most=JPEG_MAX):
    difference = np.abs(found.astype(int) - expected.astype(int))[mask]
    assert difference.mean() < mean
    assert difference.max() <= most


@pytest.fixture(scope='module')
def image():
    return textured(SIDE_PX, SIDE_PX)


def sampled(image, transform, source_crs, gallery):
    """The expected pixels: every pixel centre of the gallery carried into the source by pyproj.

    An oracle that shares nothing with GDAL's warper. Returns the picture and where it lies at
    least two pixels within the source.
    """
    grid = gallery.manifest.grid
    cols, rows = np.meshgrid(np.arange(grid.width_px) + 0.5, np.arange(grid.height_px) + 0.5)
    east_m, north_m = grid.west_m + cols * grid.gsd_m, grid.north_m - rows * grid.gsd_m
    back = Transformer.from_crs(gallery.crs, CRS.from_user_input(source_crs), always_xy=True)
    x, y = back.transform(east_m, north_m)
    if CRS.from_user_input(source_crs).is_geographic:
        middle = (transform @ (SIDE_PX / 2, SIDE_PX / 2))[0]
        x = (np.asarray(x) - middle + 180.0) % 360.0 - 180.0 + middle
    inverse = ~transform
    u = inverse.a * x + inverse.b * y + inverse.c - 0.5
    v = inverse.d * x + inverse.e * y + inverse.f - 0.5
    picture = cv2.remap(image, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)
    inside = (u > 2) & (v > 2) & (u < image.shape[1] - 3) & (v < image.shape[0] - 3)
    return picture, inside


def test_a_map_on_its_own_grid_is_copied(tmp_path, image):
    chart = write_map(tmp_path / 'map.tif', image)
    with opened(tmp_path, chart) as gallery:
        found, mask = finest(gallery)
        assert gallery.manifest.bounds_m == (305900.0, 4545600.0, 306000.0, 4545700.0)
        assert gallery.crs == 'EPSG:32617'
    assert mask.all()
    assert_same(found, image, mask)


@pytest.mark.parametrize(
    ('crs', 'transform', 'gallery_crs'),
    [
        pytest.param(
            'EPSG:4326', from_origin(-83.31, 41.04, 6e-6, 4.5e-6), 'EPSG:32617', id='degrees'
        ),
        pytest.param(
            'EPSG:3857', from_origin(-9273900.0, 5013700.0, 0.66, 0.66), 'EPSG:32617', id='web'
        ),
        pytest.param(
            'EPSG:3734', from_origin(1650000.0, 600000.0, 1.6, 1.6), 'EPSG:32617', id='feet'
        ),
        pytest.param(
            'EPSG:32617',
            Affine.translation(305900.0, 4545700.0)
            @ Affine.rotation(27.0)
            @ Affine.scale(0.5, -0.5),
            'EPSG:32617',
            id='rotated',
        ),
        pytest.param(
            'EPSG:32617',
            Affine(0.5, 0.0, 305900.0, 0.0, 0.5, 4545600.0),
            'EPSG:32617',
            id='south up',
        ),
        pytest.param(
            'EPSG:4326', from_origin(179.9996, -16.5, 6e-6, 4.5e-6), 'EPSG:32701', id='over 180 E'
        ),
        pytest.param(
            'EPSG:4326', from_origin(-180.0008, 16.5, 6e-6, 4.5e-6), 'EPSG:32660', id='over 180 W'
        ),
        pytest.param(
            'EPSG:4326', from_origin(-60.0, -33.5, 6e-6, 4.5e-6), 'EPSG:32721', id='south'
        ),
        pytest.param(
            'EPSG:2180', from_origin(500000.0, 400000.0, 0.5, 0.5), 'EPSG:32634', id='north first'
        ),
    ],
)
def test_maps_of_other_crs_land_where_pyproj_says(tmp_path, image, crs, transform, gallery_crs):
    chart = write_map(tmp_path / 'map.tif', image, crs=crs, transform=transform)
    with opened(tmp_path, chart, min_valid=0.6) as gallery:
        assert gallery.crs == gallery_crs
        found, mask = finest(gallery)
        expected, inside = sampled(image, transform, crs, gallery)
        assert mask[inside].all()
        assert inside.mean() > 0.4
        # Bilinear twice over (ours widens where the map shrinks) and JPEG: in grey levels.
        assert_same(found, expected, inside, mean=2.0, most=25)
        shift_px, _ = cv2.phaseCorrelate(
            np.where(inside, found.mean(axis=2), 0).astype(np.float32),
            np.where(inside, expected.mean(axis=2), 0).astype(np.float32),
        )
        assert np.hypot(*shift_px) < 0.02
        lat_deg, lon_deg = gallery.origin
        to_metres = Transformer.from_crs('EPSG:4326', gallery.crs, always_xy=True)
        west, south, east, north = gallery.manifest.bounds_m
        assert to_metres.transform(lon_deg, lat_deg) == pytest.approx(
            ((west + east) / 2, (south + north) / 2), abs=1e-3
        )


def test_two_maps_on_both_sides_of_the_antimeridian_join(tmp_path, image):
    step = 5e-6
    left = write_map(
        tmp_path / 'left.tif',
        image,
        crs='EPSG:4326',
        transform=from_origin(180.0 - SIDE_PX * step, -16.5, step, step),
    )
    right = write_map(
        tmp_path / 'right.tif',
        textured(SIDE_PX, SIDE_PX, seed=2),
        crs='EPSG:4326',
        transform=from_origin(-180.0, -16.5, step, step),
    )
    with opened(tmp_path, left, right, crs='EPSG:32701') as gallery:
        west, _, east, _ = gallery.manifest.bounds_m
        assert east - west == pytest.approx(2 * SIDE_PX * step * 111_320 * 0.959, rel=0.02)
        _, mask = finest(gallery)
        assert mask[15:-15, 15:-15].all()
        assert gallery.tile_lon_deg.min() < -179.9
        assert gallery.tile_lon_deg.max() > 179.9


def test_the_first_map_wins_and_the_next_fills_its_gaps(tmp_path, image):
    hole = np.ones((SIDE_PX, SIDE_PX), bool)
    hole[60:120, 50:150] = False
    below = textured(SIDE_PX, SIDE_PX + 80, seed=5)
    first = write_map(tmp_path / 'first.tif', image, mask=hole)
    second = write_map(tmp_path / 'second.tif', below)
    with opened(tmp_path, first, second) as gallery:
        found, mask = finest(gallery)
        assert [source['name'] for source in gallery.manifest.sources] == [
            'first.tif',
            'second.tif',
        ]
    assert mask.all()
    expected = below.copy()
    expected[:, :SIDE_PX][hole] = image[hole]
    edge = (
        cv2.dilate(
            cv2.morphologyEx(hole.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))),
            np.ones((9, 9)),
        )
        > 0
    )  # JPEG rings at the seam
    calm = np.ones(mask.shape, bool)
    calm[:, :SIDE_PX] = ~edge
    calm[:, SIDE_PX - 9 : SIDE_PX + 9] = False
    assert_same(found, expected, calm, most=14)
    with opened(tmp_path, second, first, force=True) as gallery:
        assert_same(finest(gallery)[0], below, mask)


def _with_hole(image):
    mask = np.ones(image.shape[:2], bool)
    mask[:, 150:] = False
    mask[20:50, 20:60] = False
    return mask


def _alpha(image, mask):
    alpha = np.where(mask, 255, 0).astype(np.uint8)
    return {'image': np.dstack([image, alpha]), 'photometric': 'RGB', 'alpha': 'YES'}


KINDS = {
    'mask band': lambda image, mask: {'image': image, 'mask': mask},
    'alpha': _alpha,
    'nodata': lambda image, mask: {'image': np.where(mask[..., None], image, 0), 'nodata': 0},
    'grey and alpha': lambda image, mask: {
        'image': np.dstack([image[..., 0], np.where(mask, 255, 0).astype(np.uint8)]),
        'colorinterp': (ColorInterp.gray, ColorInterp.alpha),
    },
    'NaN': lambda image, mask: {
        'image': np.where(mask[..., None], image / np.float32(300.0), np.float32('nan'))
    },
    'NaN beside nodata': lambda image, mask: {
        'image': np.where(mask[..., None], image / np.float32(300.0), np.float32('nan')),
        'nodata': -9999.0,
    },
    '16 bit and nodata': lambda image, mask: {
        'image': np.where(mask[..., None], image.astype(np.uint16) * 40 + 1000, 0).astype(
            np.uint16
        ),
        'nodata': 0,
    },
    '16 bit and alpha': lambda image, mask: {
        'image': np.dstack(
            [image.astype(np.uint16) * 40 + 1000, np.where(mask, 65535, 0).astype(np.uint16)]
        ),
        'photometric': 'RGB',
        'alpha': 'YES',
    },
    'signed 16 bit': lambda image, mask: {
        'image': np.where(mask[..., None], image.astype(np.int16) * 40 - 3000, -32768).astype(
            np.int16
        ),
        'nodata': -32768,
    },
}


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_not_map_stays_out(tmp_path, image, kind):
    mask = _with_hole(image)
    chart = write_map(tmp_path / 'map.tif', **KINDS[kind](image, mask))
    said = []
    with opened(tmp_path, chart, say=said.append) as gallery:
        found, valid = finest(gallery)
        scaling = gallery.manifest.sources[0]['scaling']
        for east_m, north_m in zip(gallery.tile_east_m, gallery.tile_north_m, strict=True):
            col, row = int((east_m - 305900) / 0.5), int((4545700 - north_m) / 0.5)
            assert mask[row - 32 : row + 32, col - 32 : col + 32].mean() >= 0.8
    assert (valid == mask).mean() > 0.99  # NaN spreads by a pixel at most
    assert not (valid & ~mask).any()
    inner = cv2.erode(valid.astype(np.uint8), np.ones((3, 3)), borderValue=0) > 0
    expected = np.repeat(image[..., :1], 3, axis=2) if 'grey' in kind else image
    if scaling == 'none (8 bit)':
        assert_same(found, expected, inner)
        return
    assert any('become 0 to 255' in text for text in said)
    low, high = np.percentile(expected[valid], (1, 99))
    stretched = np.clip((expected.astype(float) - low) * 255.0 / (high - low), 0, 255)
    assert_same(found, stretched, inner, mean=2.0, most=14)


def test_a_grey_map_becomes_rgb(tmp_path, image):
    chart = write_map(tmp_path / 'map.tif', image[..., 0])
    with opened(tmp_path, chart) as gallery:
        found, mask = finest(gallery)
    assert_same(found, np.repeat(image[..., :1], 3, axis=2), mask)


def test_near_infrared_is_not_taken_for_alpha(tmp_path, image):
    infrared = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    chart = write_map(
        tmp_path / 'map.tif', np.dstack([image, infrared]), photometric='RGB', alpha='NO'
    )
    with rasterio.open(chart) as dataset:
        assert ColorInterp.alpha not in dataset.colorinterp
    with opened(tmp_path, chart) as gallery:
        found, mask = finest(gallery)
    assert mask.all()
    assert_same(found, image, mask)


def test_bands_in_another_order_are_found_by_their_meaning(tmp_path, image):
    order = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    chart = write_map(tmp_path / 'map.tif', image[..., ::-1], colorinterp=order)
    with opened(tmp_path, chart) as gallery:
        found, mask = finest(gallery)
    assert_same(found, image, mask)


@pytest.mark.parametrize(('bands', 'channels'), [((5, 3, 1), (2, 1, 0)), ((3,), (1, 1, 1))])
def test_bands_can_be_named(tmp_path, image, bands, channels):
    five = np.zeros((SIDE_PX, SIDE_PX, 5), np.uint8)
    five[..., ::2] = image
    chart = write_map(tmp_path / 'map.tif', five)
    with opened(tmp_path, chart, bands=bands) as gallery:
        found, mask = finest(gallery)
    assert_same(found, image[..., list(channels)], mask)


def test_dark_pixels_with_one_band_at_nodata_are_kept(tmp_path, image):
    dark = image.copy()
    dark[80:120, 80:120, 0] = 0
    chart = write_map(tmp_path / 'map.tif', dark, nodata=0)
    with opened(tmp_path, chart) as gallery:
        _, mask = finest(gallery)
    assert mask.all()


def test_a_shrunk_map_is_averaged_not_aliased(tmp_path):
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200  # 0.25 m stripes: at 1 m their mean is all there is to see
    chart = write_map(tmp_path / 'map.tif', stripes, gsd_m=0.25)
    with opened(tmp_path, chart, gsd_m=1.0, tile_px=32) as gallery:
        found, _ = finest(gallery)
    assert abs(float(found.mean()) - 100.0) < 2.0
    assert found.astype(float).std() < 5.0


def test_the_default_resolution_is_the_finest_source_but_not_below_25_cm(tmp_path, image):
    fine = write_map(tmp_path / 'fine.tif', textured(600, 600), gsd_m=0.1)
    coarse = write_map(tmp_path / 'coarse.tif', image, gsd_m=0.8)
    with opened(tmp_path, fine, gsd_m=None) as gallery:
        assert gallery.manifest.gsd_m == 0.25
    with opened(tmp_path, coarse, gsd_m=None, force=True) as gallery:
        assert gallery.manifest.gsd_m == pytest.approx(0.8, rel=1e-9)


def test_a_map_without_crs_can_be_told_one(tmp_path, image):
    chart = write_map(tmp_path / 'map.tif', image, crs=None)
    with opened(tmp_path, chart, assume_crs='EPSG:32617') as gallery:
        found, mask = finest(gallery)
    assert_same(found, image, mask)


def test_sources_can_be_read_anywhere(tmp_path, image):
    chart = write_map(tmp_path / 'map.tif', image)
    maps = MapSources([chart])
    assert maps.crs == 'EPSG:32617'
    assert maps.native_gsd_m == pytest.approx(0.5)
    assert maps.bounds_m == (305900.0, 4545600.0, 306000.0, 4545700.0)
    found, mask = maps.read(
        west_m=305890.0, north_m=4545690.0, gsd_m=0.5, width_px=100, height_px=60
    )
    assert not mask[:, :20].any()
    assert mask[:, 20:].all()
    np.testing.assert_array_equal(found[:, 20:], image[20:80, :80])


def test_overviews_are_the_map_seen_from_further_away(tmp_path):
    image = textured(600, 600)
    chart = write_map(tmp_path / 'map.tif', image)
    out = build_gallery(tmp_path / 'test.gallery', chart)
    with rasterio.open(out / 'map.gpkg') as dataset:
        factors = dataset.overviews(1)
        small = dataset.read([1, 2, 3], out_shape=(3, 150, 150), resampling=Resampling.nearest)
    assert factors == [2, 4]
    expected = cv2.resize(image, (150, 150), interpolation=cv2.INTER_AREA)
    assert_same(small.transpose(1, 2, 0), expected, np.ones((150, 150), bool), mean=2.0, most=20)
