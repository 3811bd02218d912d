"""Opening, checking and searching a gallery, and windows of its map."""

import dataclasses
import json
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, finest, textured, write_map
from hypothesis import given, settings
from hypothesis import strategies as st

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.gallery import Manifest, MapWindow, open_gallery
from bicrossnet_ros.geodesy import to_projected
from bicrossnet_ros.manifest import file_problems, read_manifest
from bicrossnet_ros.preprocess import Preprocessing
from bicrossnet_ros.tile_index import (
    build_index,
    index_parameters,
    read_embeddings,
    read_index,
    search_index,
    write_index,
)

WIDTH_PX, HEIGHT_PX = 640, 420


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A gallery of 320 x 210 m with a hole in its middle."""
    base = tmp_path_factory.mktemp('gallery')
    mask = np.ones((HEIGHT_PX, WIDTH_PX), bool)
    mask[200:280, 300:420] = False
    chart = write_map(base / 'map.tif', textured(HEIGHT_PX, WIDTH_PX), mask=mask)
    return build_gallery(base / 'test.gallery', chart, ground_ellipsoid_m=212.5, licence='CC0')


@pytest.fixture
def copy(folder, tmp_path):
    """The same, and what is done to it harms no other test."""
    target = tmp_path / 'copy.gallery'
    shutil.copytree(folder, target)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


@pytest.fixture(scope='module')
def gallery(folder):
    with open_gallery(folder, encoder=ProjectionEncoder()) as opened:
        yield opened


@pytest.fixture(scope='module')
def embeddings(gallery):
    """All embeddings of the gallery, from its index."""
    return gallery._index.reconstruct_n(0, gallery.manifest.tile_count)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(embeddings, queries, k, allowed=None):
    similarities = queries.astype(np.float64) @ embeddings.T.astype(np.float64)
    if allowed is not None:
        similarities[:, ~allowed] = -np.inf
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    best = np.take_along_axis(similarities, order, axis=1)
    return best, np.where(np.isfinite(best), order, -1)


# --- what stands in it


def test_tiles_lie_where_the_manifest_says(gallery):
    manifest = gallery.manifest
    assert len(gallery.tile_east_m) == manifest.tile_count > 100
    west, south, east, north = manifest.bounds_m
    half_m = gallery.tile_size_m / 2
    assert gallery.tile_size_m == 32.0
    assert gallery.tile_east_m.min() == west + half_m
    assert gallery.tile_east_m.max() == east - half_m
    assert gallery.tile_north_m.max() == north - half_m
    assert gallery.tile_north_m.min() == south + half_m
    for tile in (0, 57, manifest.tile_count - 1):
        found = to_projected(gallery.crs, gallery.tile_lat_deg[tile], gallery.tile_lon_deg[tile])
        assert found == pytest.approx(
            (gallery.tile_east_m[tile], gallery.tile_north_m[tile]), abs=1e-4
        )
    for values in (gallery.tile_east_m, gallery.tile_lat_deg, gallery.tile_ambiguity):
        assert values.dtype == np.float64


def test_origin_is_the_centre_of_the_bounds(gallery):
    assert to_projected(gallery.crs, *gallery.origin) == pytest.approx(
        (305900 + 160, 4545700 - 105), abs=1e-4
    )


def test_every_tile_finds_itself_when_its_own_pixels_are_asked(gallery):
    encoder = ProjectionEncoder()
    image, mask = finest(gallery)
    for tile in range(0, gallery.manifest.tile_count, 7):
        col = round((gallery.tile_east_m[tile] - 305900) / 0.5) - 32
        row = round((4545700 - gallery.tile_north_m[tile]) / 0.5) - 32
        box = np.s_[row : row + 64, col : col + 64]
        if not mask[box].all():
            continue
        similarities, ids = gallery.search(encoder.encode(image[box][None]), k=1)
        assert ids[0, 0] == tile
        assert similarities[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_ambiguity_is_the_best_similarity_further_than_one_tile_away(gallery, embeddings):
    similarities = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    distance_m = np.hypot(
        gallery.tile_east_m[:, None] - gallery.tile_east_m,
        gallery.tile_north_m[:, None] - gallery.tile_north_m,
    )
    similarities[distance_m <= (1.0 + 1e-6) * gallery.tile_size_m] = -np.inf
    np.testing.assert_allclose(gallery.tile_ambiguity, similarities.max(axis=1), atol=1e-5)


def test_ambiguity_is_nan_where_nothing_is_far_enough(tmp_path):
    chart = write_map(tmp_path / 'map.tif', textured(80, 80))
    with open_gallery(build_gallery(tmp_path / 'small.gallery', chart)) as small:
        assert small.manifest.tile_count == 4
        assert np.isnan(small.tile_ambiguity).all()


# --- search


@pytest.mark.parametrize('k', [1, 5, 50])
def test_search_agrees_with_brute_force(gallery, embeddings, k):
    queries = unit(np.random.default_rng(k).standard_normal((30, embeddings.shape[1])))
    similarities, ids = gallery.search(queries, k=k)
    expected, expected_ids = brute_force(embeddings, queries, k)
    assert similarities.dtype == np.float32
    assert ids.dtype == np.int64
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_array_equal(ids, expected_ids)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(305850, 306270), st.floats(4545450, 4545750), st.floats(0, 300), st.integers(1, 20)
)
def test_radius_search_agrees_with_brute_force(gallery, embeddings, east_m, north_m, radius_m, k):
    queries = unit(np.random.default_rng(5).standard_normal((4, embeddings.shape[1])))
    allowed = np.hypot(gallery.tile_east_m - east_m, gallery.tile_north_m - north_m) <= radius_m
    similarities, ids = gallery.search(queries, k=k, center_m=(east_m, north_m), radius_m=radius_m)
    expected, expected_ids = brute_force(embeddings, queries, k, allowed)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_array_equal(ids, expected_ids)


def test_a_radius_without_tiles_finds_none(gallery):
    queries = unit(np.ones((2, 24)))
    similarities, ids = gallery.search(queries, k=3, center_m=(0.0, 0.0), radius_m=500.0)
    assert (ids == -1).all()
    assert (similarities == -np.inf).all()


def test_more_tiles_than_there_are_pads(gallery):
    count = gallery.manifest.tile_count
    similarities, ids = gallery.search(unit(np.ones((1, 24))), k=count + 10)
    assert sorted(ids[0, :count]) == list(range(count))
    assert (ids[0, count:] == -1).all()
    assert (similarities[0, count:] == -np.inf).all()


def test_no_query_gives_no_row(gallery):
    similarities, ids = gallery.search(np.empty((0, 24), np.float32), k=3)
    assert similarities.shape == ids.shape == (0, 3)


def test_equal_tiles_are_all_found():
    rows = unit(np.ones((6, 8)))
    parameters = index_parameters('flat', 6)
    similarities, ids = search_index(
        build_index(rows, parameters), rows[:1], k=6, parameters=parameters
    )
    assert sorted(ids[0]) == list(range(6))
    np.testing.assert_allclose(similarities, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'embeddings': np.ones((1, 16), np.float32)}, 'shape .1, 16. but .* embeddings of 24'),
        ({'embeddings': np.ones(24, np.float32)}, r'shape \(24,\)'),
        ({'embeddings': np.full((1, 24), np.nan, np.float32)}, 'not finite'),
        ({'k': 0}, 'search for 0 tiles'),
        ({'center_m': (1.0, 2.0)}, 'both center_m and radius_m'),
        ({'radius_m': 5.0}, 'both center_m and radius_m'),
        ({'center_m': (np.nan, 2.0), 'radius_m': 5.0}, 'expected a finite centre'),
        ({'center_m': (1.0, 2.0), 'radius_m': -5.0}, 'a radius of at least 0 m'),
        ({'center_m': (1.0, 2.0), 'radius_m': np.nan}, 'a radius of at least 0 m'),
    ],
)
def test_impossible_searches_are_refused(gallery, arguments, message):
    with pytest.raises(GalleryError, match=message):
        gallery.search(**{'embeddings': unit(np.ones((1, 24))), 'k': 3, **arguments})


def test_ivf_finds_nearly_all_and_within_a_radius_all(tmp_path):
    rng = np.random.default_rng(11)
    rows = unit(rng.standard_normal((5000, 16)))
    queries = unit(rows[::100] + 0.1 * rng.standard_normal((50, 16)))
    parameters = index_parameters('ivf', len(rows))
    write_index(build_index(rows, parameters), tmp_path / 'index.faiss')
    index = read_index(tmp_path / 'index.faiss', size=16, tile_count=5000, parameters=parameters)
    _, ids = search_index(index, queries, k=1, parameters=parameters)
    assert (ids[:, 0] == np.arange(0, 5000, 100)).mean() > 0.9
    allowed = rng.random(5000) < 0.02
    similarities, ids = search_index(index, queries, k=10, parameters=parameters, allowed=allowed)
    expected, expected_ids = brute_force(rows, queries, 10, allowed)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['flat', 'ivf'])
def test_an_index_gives_back_what_was_put_into_it(tmp_path, kind):
    rows = unit(np.random.default_rng(12).standard_normal((300, 16)))
    parameters = index_parameters(kind, len(rows))
    write_index(build_index(rows, parameters), tmp_path / 'index.faiss')
    index = read_index(tmp_path / 'index.faiss', size=16, tile_count=300, parameters=parameters)
    for row in (0, 117, 299):
        found = read_embeddings(index, np.array([row]), parameters=parameters)[0]
        np.testing.assert_array_equal(found, rows[row])


@pytest.mark.parametrize(('kind', 'packed'), [('flat', True), ('ivf', True), ('ivf', False)])
def test_an_index_that_compares_by_distance_is_refused(tmp_path, kind, packed):
    """Its best is what is nearest, with the smallest number: the order would be upside down."""
    import faiss

    rows = unit(np.random.default_rng(3).standard_normal((300, 16)))
    parameters = index_parameters(kind, len(rows), packed=packed)
    index = build_index(rows, parameters)
    index.metric_type = faiss.METRIC_L2
    write_index(index, tmp_path / 'index.faiss')
    with pytest.raises(GalleryError, match='compares by distance and not by inner product'):
        read_index(tmp_path / 'index.faiss', size=16, tile_count=300, parameters=parameters)


@pytest.mark.parametrize(
    ('changes', 'first', 'message'),
    [
        ({'nlist': 3}, 0, 'has 7 clusters, gallery.json says nlist 3, nprobe 1'),
        ({'nprobe': 0}, 0, 'nlist 7, nprobe 0; rebuild the gallery'),
        ({'nprobe': None}, 0, 'nprobe None'),
        ({}, 5, 'lacks some of the tile numbers; rebuild the gallery'),
    ],
)
def test_clusters_that_contradict_the_manifest_are_refused(tmp_path, changes, first, message):
    rows = unit(np.random.default_rng(3).standard_normal((300, 16)))
    parameters = index_parameters('ivf', len(rows))
    index = build_index(rows, parameters)
    index.reset()
    index.add_with_ids(rows, np.arange(first, first + len(rows)))
    write_index(index, tmp_path / 'index.faiss')
    with pytest.raises(GalleryError, match=message):
        read_index(
            tmp_path / 'index.faiss', size=16, tile_count=300, parameters=parameters | changes
        )


def test_the_embedding_of_a_tile_finds_that_tile(gallery):
    last = gallery.manifest.tile_count - 1
    for tile in (0, last):
        found = gallery.embedding(tile)
        assert (found.shape, found.dtype) == ((24,), np.float32)
        assert gallery.search(found[None], k=1)[1][0, 0] == tile
    for tile in (-1, last + 1):
        with pytest.raises(GalleryError, match=f'tile {tile} is not in the gallery'):
            gallery.embedding(tile)


# --- windows


@pytest.mark.parametrize(('east_m', 'north_m'), [(306000.0, 4545600.0), (306033.3, 4545577.9)])
def test_a_window_is_centred_and_its_pixels_are_the_maps(gallery, east_m, north_m):
    window = gallery.window(east_m, north_m, size_m=60.0)
    assert window.image.shape == (120, 120, 3)
    assert window.gsd_m == 0.5
    middle = window.to_map(np.array([[59.5, 59.5]]))[0]
    np.testing.assert_allclose(middle, (east_m, north_m), atol=0.2501)
    image, mask = finest(gallery)
    col, row = round((window.west_m - 305900) / 0.5), round((4545700 - window.north_m) / 0.5)
    np.testing.assert_array_equal(window.image, image[row : row + 120, col : col + 120])
    np.testing.assert_array_equal(window.mask, mask[row : row + 120, col : col + 120])


def test_to_map_takes_col_row_at_pixel_centres():
    window = MapWindow(np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool), 1000.0, 2000.0, 0.5)
    found = window.to_map(np.array([[0.0, 0.0], [3.0, 1.0], [-0.5, -0.5]]))
    np.testing.assert_array_equal(
        found, [[1000.25, 1999.75], [1001.75, 1999.25], [1000.0, 2000.0]]
    )


def test_a_coarser_window_shows_the_same_ground(gallery):
    import cv2

    fine = gallery.window(306010.0, 4545620.0, size_m=64.0)
    coarse = gallery.window(306010.0, 4545620.0, size_m=64.0, gsd_m=1.3)
    assert coarse.gsd_m == 1.0  # the coarsest level that is at least as fine
    assert (coarse.west_m, coarse.north_m) == (fine.west_m, fine.north_m)
    expected = cv2.resize(fine.image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert np.abs(coarse.image.astype(int) - expected).mean() < 1.5
    assert gallery.window(306010.0, 4545620.0, size_m=9.0, gsd_m=0.01).gsd_m == 0.5
    assert gallery.window(306010.0, 4545620.0, size_m=9.0, gsd_m=99.0).gsd_m == 2.0


def test_outside_the_map_the_mask_is_false(gallery):
    away = gallery.window(0.0, 0.0, size_m=20.0)
    assert not away.mask.any()
    corner = gallery.window(305900.0, 4545700.0, size_m=20.0)
    np.testing.assert_array_equal(corner.mask[20:, 20:], True)
    assert corner.mask.sum() == 400
    hole = gallery.window(305900 + 180.0, 4545700 - 120.0, size_m=10.0)
    assert not hole.mask.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'east_m': np.nan}, 'expected finite numbers'),
        ({'size_m': 0.0}, 'size and resolution above 0'),
        ({'size_m': np.inf}, 'expected finite numbers'),
        ({'gsd_m': -1.0}, 'size and resolution above 0'),
        ({'size_m': 1e6}, 'at most 16384'),
    ],
)
def test_impossible_windows_are_refused(gallery, arguments, message):
    wanted = {'east_m': 306000.0, 'north_m': 4545600.0, 'size_m': 10.0, **arguments}
    with pytest.raises(GalleryError, match=message):
        gallery.window(wanted.pop('east_m'), wanted.pop('north_m'), **wanted)


def test_another_thread_may_read(gallery):
    expected = gallery.window(306000.0, 4545600.0, size_m=50.0).image
    found = []

    def work():
        for _ in range(20):
            found.append(gallery.window(306000.0, 4545600.0, size_m=50.0).image)
            gallery.search(unit(np.ones((1, 24))), k=2)

    thread = threading.Thread(target=work)
    thread.start()
    for step in range(20):
        gallery.window(305950.0 + 10 * step, 4545600.0, size_m=80.0)
    thread.join()
    assert len(found) == 20
    for image in found:
        np.testing.assert_array_equal(image, expected)


def test_closing_twice_is_harmless(folder):
    opened = open_gallery(folder)
    opened.close()
    opened.close()


# --- checks when opening


def test_the_manifest_survives_the_round_trip(gallery):
    manifest = gallery.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.ground_ellipsoid_m == 212.5
    assert manifest.sources[0]['licence'] == 'CC0'


def edited(folder, **changes):
    """Rewrite gallery.json as a careful forger would: with a checksum that fits."""
    path = folder / 'gallery.json'
    manifest = dataclasses.replace(Manifest.from_json(path.read_text()), **changes)
    path.write_text(manifest.to_json())
    return folder


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'format_version': 3}, 'has format version 3, this software reads 1 to 2'),
        ({'crs': 'EPSG:4326'}, "crs is 'EPSG:4326'; expected a projected CRS in metres"),
        ({'crs': 'EPSG:999999'}, 'expected a projected CRS'),
        (
            {'crs': 'EPSG:3857', 'bounds_m': (-9270000.0, 5013000.0, -9269500.0, 5013400.0)},
            r'a metre of ground as 1\.32\d to 1\.32\d m.* EPSG:32617; rebuild the gallery',
        ),
        (
            {'crs': 'EPSG:2048', 'bounds_m': (46000.0, 3752000.0, 46500.0, 3752400.0)},
            'true north 179.7 deg clockwise from its second axis.* EPSG:32734',
        ),
        ({'tile_px': 0}, 'tile_px is 0'),
        ({'tile_px': True}, 'tile_px is True'),
        ({'gsd_m': -0.5}, 'gsd_m is -0.5'),
        ({'overlap': 1.0}, 'overlap is 1.0'),
        ({'tile_count': 7}, r'holds .* gallery.json says .*, 7\)'),
        ({'bounds_m': (5.0, 0.0, 1.0, 9.0)}, 'bounds_m is'),
        ({'embedding_dim': 25}, 'embedding size'),
        ({'embedding_kind': 'bits'}, 'expected one of float32, float256, packed'),
        ({'model_id': 'abc'}, 'model_id'),
        ({'sources': ()}, 'sources'),
        ({'accuracy_m': 0.0}, 'accuracy_m is 0.0'),
        ({'ground_ellipsoid_m': 'low'}, 'ground_ellipsoid_m'),
        ({'index': {'type': 'tree'}}, 'index is'),
        ({'index': {'type': 'ivf', 'nlist': 4, 'nprobe': 1}}, 'IndexFlatIP'),
        ({'files': {'map.gpkg': '0' * 64}}, 'files is'),
    ],
)
def test_manifests_that_cannot_be_true_are_refused(copy, changes, message):
    with pytest.raises(GalleryError, match=message):
        open_gallery(edited(copy, **changes))


def test_unknown_and_missing_entries_are_named(copy):
    path = copy / 'gallery.json'
    body = json.loads(path.read_text())
    body['extra'] = body.pop('overlap')
    path.write_text(json.dumps(body))
    with pytest.raises(GalleryError, match=r"missing entries \['overlap'\], unknown .*'extra'"):
        open_gallery(copy)


@pytest.mark.parametrize('text', ['', '[]', '{"format_version": 1', '\x00\x01', 'ä'])
def test_what_is_not_a_manifest_is_refused(copy, text):
    (copy / 'gallery.json').write_text(text, encoding='utf-8')
    with pytest.raises(GalleryError, match='is damaged'):
        open_gallery(copy)


def test_a_reformatted_manifest_is_refused(copy):
    path = copy / 'gallery.json'
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    with pytest.raises(GalleryError, match='was changed after it was written'):
        open_gallery(copy)


def test_paths_that_are_no_gallery(tmp_path):
    with pytest.raises(GalleryError, match=r'does not exist; build one with'):
        open_gallery(tmp_path / 'absent.gallery')
    with pytest.raises(GalleryError, match=r'is not a gallery: it has no gallery.json'):
        open_gallery(tmp_path)
    (tmp_path / 'file.gallery').write_text('x')
    with pytest.raises(GalleryError, match='is not a gallery'):
        open_gallery(tmp_path / 'file.gallery')


def test_a_path_that_the_system_refuses(tmp_path):
    with pytest.raises(GalleryError, match=r'cannot be read: File name too long; check the path'):
        open_gallery(tmp_path / ('x' * 300))


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='needs /proc of Linux')
@pytest.mark.parametrize('name', ['gallery.json', 'map.gpkg', 'index.faiss'])
def test_a_disk_that_cannot_be_read(copy, name):
    (copy / name).unlink()
    (copy / name).symlink_to('/proc/self/mem')  # opens, and answers EIO when it is read
    with pytest.raises(GalleryError, match=f'{name} cannot be read: Input/output error; check'):
        open_gallery(copy)


def test_a_folder_that_vanishes_is_a_problem_of_its_own(copy):
    manifest = read_manifest(copy)
    shutil.rmtree(copy)
    (problem,) = file_problems(copy, manifest, checksums=True)
    assert 'cannot be read: No such file or directory' in problem


@pytest.mark.parametrize('name', ['map.gpkg', 'index.faiss'])
def test_missing_and_truncated_files_are_named(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(GalleryError, match=f'{name} is damaged: its SHA-256'):
        open_gallery(copy)
    (copy / name).unlink()
    with pytest.raises(GalleryError, match=f'{name} is missing'):
        open_gallery(copy, verify=False)


def test_files_that_do_not_belong_are_named(copy):
    (copy / 'map.gpkg-wal').write_bytes(b'x')
    with pytest.raises(GalleryError, match=r'map\.gpkg-wal does not belong to the gallery'):
        open_gallery(copy)


@pytest.mark.parametrize('name', ['gallery.json', 'map.gpkg', 'index.faiss'])
def test_any_flipped_bit_is_found(copy, name):
    path = copy / name
    data = bytearray(path.read_bytes())
    rng = random.Random(name)
    offsets = range(len(data)) if name == 'gallery.json' else rng.sample(range(len(data)), 25)
    for offset in offsets:
        bit = 1 << rng.randrange(8)
        data[offset] ^= bit
        path.write_bytes(data)
        with pytest.raises(GalleryError):
            open_gallery(copy)
        data[offset] ^= bit
    path.write_bytes(data)
    open_gallery(copy).close()


def test_without_verify_a_ruined_index_is_still_refused(copy):
    (copy / 'index.faiss').write_bytes(b'not an index')
    with pytest.raises(GalleryError, match='not a readable FAISS index'):
        open_gallery(copy, verify=False)


def test_another_model_is_refused_by_name(folder):
    other = ProjectionEncoder(model_name='newer', seed=8)
    with pytest.raises(GalleryError) as caught:
        open_gallery(folder, encoder=other)
    for part in ('projection', ProjectionEncoder().model_id, 'newer', other.model_id, 'rebuild'):
        assert part in str(caught.value)


def test_another_preprocessing_is_refused_with_both_values(folder):
    other = ProjectionEncoder(preprocessing=Preprocessing(32, 16))
    with pytest.raises(
        GalleryError, match=r'input_height_px: gallery 16, model 32.*rebuild the gallery'
    ):
        open_gallery(folder, encoder=other)
