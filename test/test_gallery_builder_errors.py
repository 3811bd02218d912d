"""Everything that cannot become a gallery is refused with what was found and what helps."""

import sys

import numpy as np
import pytest
import rasterio
from gallery_fixtures import ProjectionEncoder, build_gallery, textured, write_map

from bicrossnet_ros.errors import ConfigError, GalleryError, MapError, ModelError
from gallery_builder.__main__ import main
from gallery_builder.options import BuildOptions, parse_bands


@pytest.fixture(scope='module')
def chart(tmp_path_factory):
    return write_map(tmp_path_factory.mktemp('map') / 'map.tif', textured(200, 260))


def corrupt(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def truncated_map(tmp_path):
    whole = write_map(
        tmp_path / 'whole.tif', textured(600, 600), tiled=True, blockxsize=256, blockysize=256
    )
    data = whole.read_bytes()
    return corrupt(tmp_path, 'truncated.tif', data[: len(data) * 2 // 3])


def palette_map(tmp_path):
    chart = write_map(tmp_path / 'palette.tif', np.zeros((200, 200), np.uint8))
    with rasterio.open(chart, 'r+') as dataset:
        dataset.write_colormap(1, {0: (255, 0, 0), 1: (0, 255, 0)})
    return chart


def many_bands(tmp_path):
    return write_map(tmp_path / 'many.tif', np.zeros((200, 200, 7), np.uint8))


MAPS = {
    'absent': (lambda p: p / 'absent.tif', 'absent.tif does not exist'),
    'a folder': (lambda p: p, 'is a folder; name the raster files'),
    'empty file': (lambda p: corrupt(p, 'x.tif', b''), r'is empty \(0 bytes\)'),
    'text': (lambda p: corrupt(p, 'x.tif', b'hello ' * 99), 'not a raster that GDAL can read'),
    'header only': (lambda p: corrupt(p, 'x.tif', b'II*\0\x08\0\0\0'), 'not a raster that GDAL'),
    'truncated': (truncated_map, 'truncated.tif cannot be read to its end .* fetch it again'),
    'no crs': (
        lambda p: write_map(p / 'x.tif', textured(200, 200), crs=None),
        'names no coordinate reference system.*--assume-crs EPSG:',
    ),
    'no geotransform': (
        lambda p: write_map(p / 'x.tif', textured(200, 200), transform=rasterio.Affine.identity()),
        'has no geotransform',
    ),
    'palette': (palette_map, 'colour table.*gdal_translate -expand rgb'),
    'seven bands': (many_bands, 'has 7 bands .* name them with --bands'),
    'complex': (
        lambda p: write_map(p / 'x.tif', np.ones((200, 200), np.complex64)),
        'complex values',
    ),
    'all nodata': (
        lambda p: write_map(p / 'x.tif', np.zeros((200, 200, 3), np.uint8), nodata=0),
        'no valid pixel: all are nodata',
    ),
    'all nodata in 16 bit': (
        lambda p: write_map(p / 'x.tif', np.zeros((200, 200), np.uint16), nodata=0),
        'no valid pixel: all are nodata',
    ),
    'all NaN': (
        lambda p: write_map(p / 'x.tif', np.full((200, 200), np.nan, np.float32)),
        'no valid pixel',
    ),
    'all masked': (
        lambda p: write_map(p / 'x.tif', textured(200, 200), mask=np.zeros((200, 200), bool)),
        'no valid pixel',
    ),
    'scattered': (
        lambda p: write_map(
            p / 'x.tif', textured(200, 200), mask=np.arange(200 * 200).reshape(200, 200) % 40 < 20
        ),
        'no tile has 80% valid pixels; lower --min-valid',
    ),
    'smaller than a tile': (
        lambda p: write_map(p / 'x.tif', textured(40, 40)),
        'the map is 20.0 x 20.0 m but a tile is 32.0 m: not one fits',
    ),
    'at the pole': (
        lambda p: write_map(
            p / 'x.tif',
            textured(200, 200),
            crs='EPSG:4326',
            transform=rasterio.Affine(1e-5, 0, 10.0, 0, -1e-5, 89.0),
        ),
        'lies outside UTM .* give it with --crs',
    ),
    'off the Earth': (
        lambda p: write_map(
            p / 'x.tif',
            textured(200, 200),
            crs='EPSG:4326',
            transform=rasterio.Affine(1e-5, 0, 10.0, 0, -1e-5, 989.0),
        ),
        r'claims latitudes from .* to 989 degrees',
    ),
}


@pytest.mark.parametrize('kind', MAPS)
def test_useless_maps_are_refused_with_a_remedy(tmp_path, kind):
    make, message = MAPS[kind]
    with pytest.raises(MapError, match=message):
        build_gallery(tmp_path / 'out.gallery', make(tmp_path))
    assert list(tmp_path.glob('out.gallery*')) == []


OPTIONS = {
    'gsd 0': ({'gsd_m': 0.0}, ConfigError, '--gsd-m is 0.0; expected a value from 0.001'),
    'gsd NaN': ({'gsd_m': float('nan')}, ConfigError, '--gsd-m is nan'),
    'gsd too fine': ({'gsd_m': 0.01}, MapError, 'finer than a quarter of the finest map'),
    'gsd too coarse': ({'gsd_m': 500.0}, MapError, 'not one fits; take a finer --gsd-m'),
    'tile': ({'tile_px': 4}, ConfigError, '--tile-px is 4; expected a value from 16 to 4096'),
    'overlap 1': ({'overlap': 1.0}, ConfigError, '--overlap is 1.0; expected .* from 0.0 to 0.95'),
    'overlap -': ({'overlap': -0.1}, ConfigError, '--overlap is -0.1'),
    'min-valid': ({'min_valid': 0.0}, ConfigError, '--min-valid is 0.0'),
    'accuracy': ({'accuracy_m': 0.0}, ConfigError, '--accuracy-m is 0.0'),
    'ground': ({'ground_ellipsoid_m': 1e6}, ConfigError, '--ground-ellipsoid-m is 1000000.0'),
    'batch': ({'batch': 0}, ConfigError, '--batch is 0'),
    'threads': ({'threads': 0}, ConfigError, '--threads is 0'),
    'index': ({'index': 'tree'}, ConfigError, "--index is 'tree'"),
    'degrees': ({'crs': 'EPSG:4326'}, ConfigError, 'not projected in metres'),
    'feet': ({'crs': 'EPSG:3734'}, ConfigError, 'not projected in metres'),
    'web mercator': ({'crs': 'EPSG:3857'}, ConfigError, 'as 1.32. to 1.32. m.* EPSG:32617'),
    'unknown crs': ({'crs': 'EPSG:1'}, ConfigError, "CRS 'EPSG:1' is unknown"),
    'two bands': ({'bands': (1, 2)}, ConfigError, '--bands is'),
    'band 0': ({'bands': (0, 1, 2)}, ConfigError, '--bands is'),
    'no such band': ({'bands': (1, 2, 9)}, MapError, r'has only 3 band\(s\)'),
}


@pytest.mark.parametrize('kind', OPTIONS)
def test_impossible_options_are_refused(tmp_path, chart, kind):
    options, error, message = OPTIONS[kind]
    with pytest.raises(error, match=message):
        build_gallery(tmp_path / 'out.gallery', chart, **options)
    assert not (tmp_path / 'out.gallery').exists()


def test_unknown_assumed_crs(tmp_path):
    chart = write_map(tmp_path / 'map.tif', textured(200, 200), crs=None)
    with pytest.raises(MapError, match="--assume-crs 'EPSG:1' is unknown"):
        build_gallery(tmp_path / 'out.gallery', chart, assume_crs='EPSG:1')


def test_a_crs_far_from_the_map_is_refused(tmp_path, chart):
    with pytest.raises(MapError):
        build_gallery(tmp_path / 'out.gallery', chart, crs='EPSG:2056', gsd_m=0.001)


def test_maps_worlds_apart_are_refused(tmp_path, chart):
    far = write_map(tmp_path / 'far.tif', textured(200, 200), crs='EPSG:32631', north_m=700000.0)
    with pytest.raises(MapError, match=r'km, .* maps that lie together|cannot be expressed'):
        build_gallery(tmp_path / 'out.gallery', chart, far)


def test_bands_as_text():
    assert parse_bands('3,2,1') == (3, 2, 1)
    for text in ('', 'red', '1,', '1;2;3', '-1'):
        with pytest.raises(ConfigError, match='expected three band numbers'):
            parse_bands(text)


def test_names_of_the_output(tmp_path, chart):
    with pytest.raises(GalleryError, match=r'expected a name that ends in \.gallery'):
        BuildOptions(maps=(chart,), out=tmp_path / 'out')
    with pytest.raises(GalleryError, match=r'absent does not exist; make it first'):
        BuildOptions(maps=(chart,), out=tmp_path / 'absent' / 'out.gallery')
    with pytest.raises(MapError, match='no map given'):
        BuildOptions(maps=(), out=tmp_path / 'out.gallery')


def test_a_place_that_cannot_be_written(tmp_path, chart):
    # Not a matter of permissions, which do not bind root: a file stands in the way.
    (tmp_path / 'out.gallery.partial').write_text('in the way')
    with pytest.raises(GalleryError, match=r'partial cannot be written'):
        build_gallery(tmp_path / 'out.gallery', chart)


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, chart, monkeypatch):
    usage = type('Usage', (), {'free': 1000})()
    monkeypatch.setattr('gallery_builder.plan.shutil.disk_usage', lambda path: usage)
    with pytest.raises(GalleryError, match=r'needs about . MB but .* 0 MB free; free some'):
        build_gallery(tmp_path / 'out.gallery', chart)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_unit_length_is_refused(tmp_path, chart):
    class LongEncoder(ProjectionEncoder):
        def encode(self, patches):
            return super().encode(patches) * 2.0

    with pytest.raises(ModelError, match='length 2 to 2; expected 1'):
        build_gallery(tmp_path / 'out.gallery', chart, encoder=LongEncoder())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_line_with_the_remedy(chart, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'rasterio', None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith('gallery_builder.')]:
        monkeypatch.delitem(sys.modules, name)
    assert main(['build', str(chart), '--out', str(tmp_path / 'out.gallery')]) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert "rasterio is not installed; pip install '.[builder]'" in said
