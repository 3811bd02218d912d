"""The builder as people use it: the command line, verify, real imagery, large maps."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from command_line import run_module
from gallery_fixtures import ProjectionEncoder, build_gallery, finest, textured, write_map

from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.errors import (
    BiCrossNetError,
    ModelError,
)
from bicrossnet_ros.gallery import open_gallery
from gallery_builder.__main__ import main
from gallery_builder.inspect import inspect, problems
from gallery_builder.tiles import neighbour_reach, tile_starts

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def chart(tmp_path_factory):
    return write_map(tmp_path_factory.mktemp('map') / 'map.tif', textured(200, 260))


@pytest.fixture(scope='module')
def folder(tmp_path_factory, chart):
    return build_gallery(tmp_path_factory.mktemp('gallery') / 'test.gallery', chart, licence='CC0')


@pytest.fixture(scope='module')
def model():
    try:
        return default_model_path()
    except ModelError as error:
        pytest.skip(str(error))


# --- where tiles lie


@pytest.mark.parametrize(
    ('size_px', 'starts'),
    [
        (256, [0]),
        (100, [-78]),
        (257, [0, 1]),
        (320, [0, 64]),
        (400, [0, 64, 128, 144]),
    ],
)
def test_tiles_cover_a_side_to_its_end(size_px, starts):
    assert tile_starts(size_px, tile_px=256, stride_px=64) == starts


@pytest.mark.parametrize(('tile_px', 'stride_px'), [(256, 64), (64, 3), (100, 100), (255, 64)])
def test_reach_is_more_than_the_neighbours_that_can_be(tile_px, stride_px):
    starts = np.array(tile_starts(9 * tile_px + 17, tile_px=tile_px, stride_px=stride_px))
    near = max(int((np.abs(starts - start) <= tile_px).sum()) for start in starts)
    assert neighbour_reach(tile_px=tile_px, stride_px=stride_px) > near**2


# --- inspect and verify


def test_inspect_tells_the_essentials(folder):
    text = inspect(folder)
    for part in ('EPSG:32617', '0.5 m/px', '48 of 64 px = 32 m', 'projection', 'licence CC0'):
        assert part in text
    body = json.loads(inspect(folder, as_json=True))
    assert body['tile_count'] == 48
    assert body['sources'][0]['licence'] == 'CC0'


def test_the_estimate_comes_before_and_is_an_upper_bound(tmp_path, chart):
    said = []
    out = build_gallery(tmp_path / 'out.gallery', chart, say=said.append)
    tiles, size_mb = re.search(r'up to (\d+) tiles .* ([\d.]+) MB on disk', said[0]).groups()
    with open_gallery(out) as gallery:
        assert gallery.manifest.tile_count <= int(tiles)
    actual_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    assert 0.3 * float(size_mb) < actual_mb <= float(size_mb)


def test_verify_finds_nothing_in_a_whole_gallery(folder, capsys):
    assert main(['verify', str(folder)]) == 0
    assert 'whole' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['gallery.json', 'map.gpkg', 'index.faiss'])
def test_verify_finds_any_flipped_byte(tmp_path, chart, name, capsys):
    out = build_gallery(tmp_path / 'out.gallery', chart)
    path = out / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    rng = random.Random(name)
    for offset in rng.sample(range(len(data)), 15):
        flip = rng.randrange(1, 256)
        data[offset] ^= flip
        path.write_bytes(data)
        assert list(problems(out)) != []
        data[offset] ^= flip
    path.write_bytes(data)
    assert list(problems(out)) == []
    path.write_bytes(data[:-1])
    assert main(['verify', str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert name in error


def test_verify_sees_through_a_gallery_that_was_built_wrongly(tmp_path, chart):
    class CrookedEncoder(ProjectionEncoder):
        def encode(self, patches):
            rows = super().encode(patches)
            return np.where(np.arange(len(rows))[:, None] == 3, rows * 1.0009, rows)

    out = build_gallery(tmp_path / 'out.gallery', chart, encoder=CrookedEncoder())
    assert list(problems(out)) == []
    import sqlite3

    from bicrossnet_ros.manifest import Manifest, sha256_of

    (out / 'map.gpkg').chmod(0o644)
    with sqlite3.connect(out / 'map.gpkg') as connection:
        connection.execute('UPDATE tile_centres SET lat = lat + 0.001 WHERE id = 5')
        connection.execute("UPDATE map SET tile_data = x'00' WHERE zoom_level = 0")
    connection.close()
    path = out / 'gallery.json'
    path.chmod(0o644)
    body = json.loads(path.read_text())
    body.pop('checksum')
    body['files']['map.gpkg'] = sha256_of(out / 'map.gpkg')
    body['bounds_m'], body['sources'] = tuple(body['bounds_m']), tuple(body['sources'])
    path.write_text(Manifest(**body).to_json())
    found = ' '.join(problems(out))
    assert 'tile 5 lies outside the map or its latitude' in found
    assert 'block at zoom, row, column (0, 0, 0)' in found


def test_an_approximate_index_can_be_asked_for(tmp_path, chart):
    out = build_gallery(tmp_path / 'out.gallery', chart, index='ivf', overlap=0.9)
    flat = build_gallery(tmp_path / 'flat.gallery', chart, overlap=0.9)
    assert list(problems(out)) == []
    with open_gallery(out) as gallery, open_gallery(flat) as exact:
        assert gallery.manifest.index['type'] == 'ivf'
        assert gallery.manifest.index['nlist'] > 4
        queries = exact._index.reconstruct_n(0, exact.manifest.tile_count)
        _, found = gallery.search(queries, k=1)
        _, expected = exact.search(queries, k=1)
        assert (found == expected).mean() > 0.95
        np.testing.assert_allclose(gallery.tile_ambiguity, exact.tile_ambiguity, atol=1e-5)


# --- the command line


def test_known_errors_are_one_line_and_exit_2(tmp_path, model):
    done = run_module(
        *('gallery_builder', 'build', tmp_path / 'absent.tif'),
        *('--out', tmp_path / 'out.gallery'),
    )
    assert done.returncode == 2
    assert done.stdout == ''
    lines = [line for line in done.stderr.splitlines() if not line.startswith('reading maps')]
    assert lines == [f'error: map {tmp_path / "absent.tif"} does not exist']


def test_a_missing_model_is_named(tmp_path, chart, capsys):
    arguments = ['build', str(chart), '--out', str(tmp_path / 'out.gallery')]
    assert main([*arguments, '--model', str(tmp_path / 'absent.safetensors')]) == 2
    assert 'absent.safetensors' in capsys.readouterr().err


def test_the_command_line_builds_with_the_shipped_model(tmp_path, chart, model, capsys):
    out = tmp_path / 'out.gallery'
    arguments = ['build', str(chart), '--out', str(out), '--gsd-m', '0.5', '--tile-px', '128']
    assert main([*arguments, '--ground-ellipsoid-m', '210', '--accuracy-m', '0.7']) == 0
    assert main(['inspect', str(out), '--json']) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index('{') :])['accuracy_m'] == 0.7
    with open_gallery(out, encoder=open_encoder(model)) as gallery:
        assert gallery.manifest.ground_ellipsoid_m == 210.0
    with pytest.raises(BiCrossNetError, match='rebuild the gallery with this model'):
        open_gallery(out, encoder=ProjectionEncoder())


# --- real imagery


def test_the_real_map_of_seneca(tmp_path, seneca, model):
    encoder = open_encoder(model)
    source = seneca / 'map.tif'
    out = build_gallery(
        tmp_path / 'seneca.gallery', source, encoder=encoder, gsd_m=None, tile_px=256
    )
    assert list(problems(out)) == []
    with (
        open_gallery(out, encoder=encoder) as gallery,
        rasterio.open(source) as original,
        rasterio.open(out / 'map.gpkg') as seen_by_gdal,
    ):
        assert gallery.crs == 'EPSG:32617'
        assert gallery.manifest.gsd_m == 0.25
        bounds = gallery.manifest.bounds_m
        assert tuple(seen_by_gdal.bounds) == pytest.approx(bounds, abs=1e-6)
        assert bounds == pytest.approx(tuple(original.bounds), abs=0.25)
        image, mask = finest(gallery)
        theirs = seen_by_gdal.read()
        np.testing.assert_array_equal(theirs[3] > 0, mask)
        difference = np.abs(theirs[:3].transpose(1, 2, 0).astype(int) - image)[mask]
        assert difference.max() <= 1
        # Valid area 144,900 m2 by the map's own description.
        assert mask.sum() * 0.25**2 == pytest.approx(144_900, rel=0.005)
        averaged = original.read(
            out_shape=(3, *(round(side * 0.15 / 0.25) for side in original.shape)),
            resampling=rasterio.enums.Resampling.average,
        ).transpose(1, 2, 0)
        rows = min(averaged.shape[0], image.shape[0])
        cols = min(averaged.shape[1], image.shape[1])
        inner = mask[:rows, :cols]
        error = np.abs(averaged[:rows, :cols].astype(int) - image[:rows, :cols])[inner]
        assert error.mean() < 3.0  # grey levels: JPEG, and a tent where a box was
        tile = gallery.manifest.tile_count // 2
        window = gallery.window(
            gallery.tile_east_m[tile], gallery.tile_north_m[tile], size_m=gallery.tile_size_m
        )
        assert window.mask.all()
        similarities, ids = gallery.search(encoder.encode(window.image[None]), k=3)
        assert ids[0, 0] == tile
        assert similarities[0, 0] > 0.99


# --- size


def _peak_mb(code, *arguments):
    """Peak memory of a fresh Python that runs `code`, in MB."""
    script = (
        f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}\n'
        'import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)'
    )
    done = subprocess.run(
        [sys.executable, '-c', script, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    'side_px', [12_000, pytest.param(30_000, marks=pytest.mark.slow)], ids=['12k', '30k']
)
def test_a_map_larger_than_the_memory_allowed_is_built(tmp_path, side_px):
    """A sparse map of 430 MB (2.7 GB) of pixels, valid in its corners and middle."""
    chart = tmp_path / 'big.tif'
    profile = {'tiled': True, 'blockxsize': 512, 'blockysize': 512, 'SPARSE_OK': 'TRUE'}
    piece = textured(600, 600).transpose(2, 0, 1)
    with rasterio.open(
        chart,
        'w',
        driver='GTiff',
        height=side_px,
        width=side_px,
        count=3,
        dtype='uint8',
        nodata=0,
        crs='EPSG:32617',
        transform=rasterio.Affine(0.3, 0, 305000.0, 0, -0.3, 4550000.0),
        BIGTIFF='YES',
        **profile,
    ) as dataset:
        for corner in (0, side_px // 2, side_px - 600):
            dataset.write(piece, window=rasterio.windows.Window(corner, corner, 600, 600))
    code = (
        'from pathlib import Path\n'
        'from gallery_fixtures import build_gallery\n'
        'build_gallery(Path(sys.argv[2]), Path(sys.argv[1]), gsd_m=0.3, tile_px=256)'
    )
    out = tmp_path / 'big.gallery'
    small = write_map(tmp_path / 'small.tif', textured(600, 600), gsd_m=0.3)
    base_mb = _peak_mb(code, small, tmp_path / 'small.gallery')
    peak_mb = _peak_mb(code, chart, out)
    assert peak_mb - base_mb < 300.0
    with open_gallery(out) as gallery:
        assert 15 <= gallery.manifest.tile_count <= 60
    assert list(problems(out)) == []
