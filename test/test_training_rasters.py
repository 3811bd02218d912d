"""Rasters cut into scenes: true size in any CRS, exact pixels, gaps left out, errors told."""

import dataclasses
import math

import numpy as np
import pytest
import rasterio
from pyproj import Geod, Transformer
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import TrainConfig
from training.data.maps import make_sources, open_maps
from training.data.rasters import raster_grid

UTM = 'EPSG:32633'  # central meridian 15 degrees east
BASE = TrainConfig()


def settings(**changes):
    data = {'source': 'maps', 'scene_px': 64, 'scene_m': 32.0, 'places_per_scene': 1}
    return dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, **data | changes))


def scenes(folder, **changes):
    return open_maps(folder, settings(**changes).data)


def write(path, image, *, crs=UTM, transform=None, gsd=0.5, colors=None, **profile):
    """Write (H, W, B) pixels, by default from (500000 E, 5400000 N)."""
    height, width, bands = image.shape
    profile = {'driver': 'GTiff', 'dtype': image.dtype, 'count': bands} | profile
    transform = transform or from_origin(500_000, 5_400_000, gsd, gsd)
    with rasterio.open(
        path, 'w', height=height, width=width, crs=crs, transform=transform, **profile
    ) as dataset:
        dataset.write(image.transpose(2, 0, 1))
        if colors:
            dataset.colorinterp = colors
    return path


def texture(height=128, width=192, bands=3, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(1, high, (height, width, bands)).astype(dtype)


def test_squares_on_the_native_grid_are_exact_copies(tmp_path):
    image = texture()
    write(tmp_path / 'map.tif', image)
    found = scenes(tmp_path)
    assert found.names == tuple(
        f'map.tif {row:04d} {col:04d}' for row in (0, 1) for col in range(3)
    )
    for index, scene in enumerate(found.images):
        row, col = divmod(index, 3)
        expected = image[64 * row : 64 * row + 64, 64 * col : 64 * col + 64]
        np.testing.assert_array_equal(scene, expected)


def test_what_does_not_fill_a_square_is_left_evenly_at_the_edges(tmp_path):
    write(tmp_path / 'map.tif', image := texture(128 + 20, 64 + 30))
    found = scenes(tmp_path)
    assert len(found.names) == 2
    np.testing.assert_array_equal(found.images[0], image[10:74, 15:79])


def test_fine_patterns_are_averaged_not_aliased(tmp_path):
    rows, cols = np.mgrid[:256, :256]
    checkers = np.where((rows + cols) % 2, 200, 50).astype(np.uint8)
    write(tmp_path / 'map.tif', np.repeat(checkers[..., None], 3, -1))
    (scene,) = scenes(tmp_path, scene_m=128.0).images
    np.testing.assert_allclose(scene[4:-4, 4:-4], 125, atol=4)


@pytest.mark.parametrize('crs', ['EPSG:4326', 'EPSG:3857', 'EPSG:2263'])
def test_squares_have_their_true_size_in_any_crs(tmp_path, crs):
    """60 degrees north in degrees and Web Mercator (twice too large there); New York in feet."""
    lon, lat, feet = (-73.95, 40.7, 0.3048006) if crs == 'EPSG:2263' else (15.3, 60.0, 1.0)
    x, y = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(lon, lat)
    if crs == 'EPSG:4326':
        step_x, step_y = 1 / 111_412 / math.cos(math.radians(60)), 1 / 111_412
    else:
        step_x = step_y = 2.0 if crs == 'EPSG:3857' else 1 / feet
    image = np.zeros((400, 400, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(400) // 2, np.arange(400)[:, None] // 2
    transform = from_origin(x, y, step_x, step_y)
    write(tmp_path / 'map.tif', image, crs=crs, transform=transform)
    found = scenes(tmp_path, scene_m=100.0, scene_px=100)
    assert 9 <= len(found.names) <= 16
    to_wgs84 = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True)
    for scene in found.images:
        # Red and green say which pixel of the raster is seen: where it lies is known exactly.
        ends = scene[[10, 10, 90], [10, 90, 10], :2].astype(float) * 2 + 1.0
        lons, lats = to_wgs84.transform(*(transform * tuple(ends.T)))
        for end in (1, 2):
            _, _, distance = Geod(ellps='WGS84').inv(lons[0], lats[0], lons[end], lats[end])
            assert distance == pytest.approx(80.0, abs=3.0)


def test_a_turned_raster_gives_squares_within_it(tmp_path):
    turned = Affine.translation(500_000, 5_400_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
    write(tmp_path / 'map.tif', texture(400, 400), transform=turned)
    found = scenes(tmp_path)
    assert 10 < len(found.names) < 36
    assert min((scene == 0).all(-1).mean() for scene in found.images) < 0.01
    assert max((scene == 0).all(-1).mean() for scene in found.images) < 0.05


@pytest.mark.parametrize('kind', ['nodata', 'alpha', 'mask'])
def test_squares_with_gaps_are_left_out(tmp_path, capsys, kind):
    image = texture()
    hole = np.zeros(image.shape[:2], bool)
    hole[70:128, 5:60] = True
    path = tmp_path / 'map.tif'
    if kind == 'nodata':
        write(path, np.where(hole[..., None], 0, image).astype(np.uint8), nodata=0)
    elif kind == 'alpha':
        alpha = np.where(hole, 0, 255).astype(np.uint8)
        colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        write(path, np.dstack([image, alpha]), colors=colors)
    else:
        write(path, image)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dataset:
            dataset.write_mask(~hole)
    found = scenes(tmp_path)
    assert 'map.tif 0001 0000' not in found.names
    assert len(found.names) == 5
    assert '5 scenes; left out: 1 with gaps in the imagery' in capsys.readouterr().err


def test_small_gaps_are_allowed(tmp_path):
    image = texture()
    image[100:105, 20:30] = 0
    write(tmp_path / 'map.tif', image, nodata=0)
    assert len(scenes(tmp_path).names) == 6


@pytest.mark.parametrize('dtype', [np.uint16, np.float32])
def test_deeper_rasters_are_stretched_to_8_bit(tmp_path, dtype):
    image = texture(dtype=dtype, high=1000) + dtype(300)
    image[:3, :3] = 60_000  # a glint must not darken the rest
    write(tmp_path / 'map.tif', image)
    found = scenes(tmp_path)
    values = found.images.astype(float)
    low, high = np.percentile(image, (1, 99))
    expected = np.clip((image[64:128, :64] - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(values[3], expected, atol=3)


def test_grey_and_four_bands(tmp_path):
    write(tmp_path / 'grey.tif', grey := texture(64, 64, 1))
    write(tmp_path / 'nir.tif', nir := texture(64, 64, 4), photometric='MINISBLACK')
    found = scenes(tmp_path)
    np.testing.assert_array_equal(found.images[0], np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(found.images[1], nir[..., :3])


def test_bands_by_their_colors(tmp_path):
    image = texture(64, 64, 3)
    write(
        tmp_path / 'bgr.tif',
        image,
        colors=[ColorInterp.blue, ColorInterp.green, ColorInterp.red],
        photometric='MINISBLACK',
    )
    np.testing.assert_array_equal(scenes(tmp_path).images[0], image[..., ::-1])


def test_scenes_of_rasters_are_split(tmp_path):
    write(tmp_path / 'map.tif', texture())
    training, held_out = make_sources(settings(holdout=3), tmp_path)
    assert held_out.names == ('map.tif 0000 0000', 'map.tif 0001 0000')
    assert len(training.names) == 4
    assert training.sample(0, None, key=(0, 0, 0))[1].shape == (256, 256, 3)


def test_rasters_that_cannot_be_used(tmp_path):
    path = tmp_path / 'map.tif'
    write(path, texture(), crs=None)
    with pytest.raises(ConfigError, match=r'map\.tif: does not say where it lies .*scene_m: 0'):
        scenes(tmp_path)
    write(path, texture(bands=5))
    with pytest.raises(ConfigError, match='has 5 bands'):
        scenes(tmp_path)
    write(path, texture(bands=1), colors=[ColorInterp.palette])
    with rasterio.open(path, 'r+') as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(ConfigError, match='colour table'):
        scenes(tmp_path)


def test_rasters_smaller_than_a_scene(tmp_path, capsys):
    write(tmp_path / 'small.tif', texture(64, 40))
    assert raster_grid(tmp_path / 'small.tif', side_m=32, side_px=64).cols == 0
    with pytest.raises(ConfigError, match=r'1 smaller than a scene .* data\.scene_m \(now 32 m\)'):
        scenes(tmp_path)
    write(tmp_path / 'large.tif', texture(64, 64))
    assert scenes(tmp_path).names == ('large.tif 0000 0000',)
    assert '1 smaller than a scene (first: small.tif)' in capsys.readouterr().err


def test_squares_of_a_few_pixels_are_no_scenes(tmp_path):
    write(tmp_path / 'coarse.tif', texture(), gsd=2)
    with pytest.raises(ConfigError, match=r'coarse\.tif: a square of 32 m has 16\.0 px .* 32 or'):
        scenes(tmp_path)
    assert len(scenes(tmp_path, scene_m=64).names) == 4 * 6


@pytest.mark.parametrize('damage', ['no raster', 'cut off'])
def test_damaged_rasters(tmp_path, capsys, damage):
    write(tmp_path / 'a.tif', texture())
    path = write(tmp_path / 'b.tif', texture(512, 512), compress='deflate')
    data = path.read_bytes()
    path.write_bytes(b'no raster' if damage == 'no raster' else data[: len(data) // 2])
    found = scenes(tmp_path)
    assert sum(name.startswith('a.tif') for name in found.names) == 6
    assert '1 unreadable (first: b.tif' in capsys.readouterr().err
    with pytest.raises(ImageError, match=r'b\.tif'):
        scenes(tmp_path, unreadable='fail')


def test_the_real_map(seneca, tmp_path):
    (tmp_path / 'map.tif').symlink_to(seneca / 'map.tif')
    found = scenes(tmp_path, scene_m=130.0)
    assert 3 <= len(found.names) <= 12
    assert all(scene.std() > 5 for scene in found.images)
