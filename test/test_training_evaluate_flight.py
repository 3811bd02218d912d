import csv
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, write_map
from localizer_scene import CRS, GSD_M, NORTH_M, WEST_M, Shot, ground_texture, render

from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.fix_record import FixRecord
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.geodesy import to_wgs84
from training.data.world import WORLD_CHANGES, change_world
from training.evaluate_flight import main
from training.flight_conditions import (
    parse_condition,
    some_frames,
    under,
    with_heading,
)
from training.flight_gallery import (
    RETRIEVALS,
    build_base,
    embeddings_of,
    map_tiles,
    mosaic_tiles,
    open_written,
    write_gallery,
)
from training.flight_growth import repeated
from training.flight_mosaic import SCENE_PX, make_mosaic, scene_paths
from training.flight_plan import Job, Wishes, list_jobs
from training.flight_retrieval import config_for
from training.flight_rows import RowFile, recall_figures, wilson_interval

SIDE_PX = 440


@pytest.fixture(scope='module')
def ground():
    return ground_texture(SIDE_PX, SIDE_PX, seed=11)


@pytest.fixture(scope='module')
def world(tmp_path_factory, ground):
    """A map, a flight of six frames over it, scenes with a split, all drawn."""
    root = tmp_path_factory.mktemp('world')
    write_map(root / 'map.tif', ground, west_m=WEST_M, north_m=NORTH_M, gsd_m=GSD_M)
    (root / 'flight' / 'frames').mkdir(parents=True)
    header = ['file', 'stamp_s', 'agl_m', 'roll_deg', 'pitch_deg', 'heading_deg']
    header += ['truth_center_lat_deg', 'truth_center_lon_deg', 'truth_heading_deg']
    rng = np.random.default_rng(1)
    rows = []
    for number in range(6):
        east_m, north_m = WEST_M + rng.uniform(70, 150), NORTH_M - rng.uniform(70, 150)
        shot = Shot(east_m, north_m, agl_m=70.0, heading_deg=float(rng.uniform(0, 360)))
        name = f'{number}.png'
        cv2.imwrite(str(root / 'flight' / 'frames' / name), render(ground, shot)[..., ::-1])
        lat_deg, lon_deg = to_wgs84(CRS, *shot.center.tolist())
        truth = [lat_deg, lon_deg, shot.heading_deg]
        rows.append([name, 100 + number, 70.0, 0.0, 0.0, shot.heading_deg + 8.0, *truth])
    with (root / 'flight' / 'flight.csv').open('w', newline='') as file:
        csv.writer(file).writerows([header, *rows])
    lens = Shot(0, 0).lens
    (root / 'flight' / 'camera.yaml').write_text(
        f'image_width: {lens.width_px}\nimage_height: {lens.height_px}\n'
        'distortion_model: plumb_bob\ndistortion_coefficients: {data: [0, 0, 0, 0, 0]}\n'
        f'camera_matrix: {{data: [{lens.fx_px}, 0, {lens.cx_px}, 0, {lens.fy_px}, {lens.cy_px},'
        ' 0, 0, 1]}\n'
    )
    (root / 'data' / 'drawn').mkdir(parents=True)
    split = ['scene,split']
    for number in range(9):
        name = f'drawn/{number}.png'
        scene = ground_texture(SCENE_PX + 16, SCENE_PX + 16, seed=50 + number)
        cv2.imwrite(str(root / 'data' / name), scene)
        split.append(f'{name},{"train" if number < 6 else "test"}')
    (root / 'split.csv').write_text('\n'.join(split) + '\n')
    return root


def arguments(world, out, *more):
    return [
        str(world / 'flight'),
        *('--map', str(world / 'map.tif'), '--out', str(out)),
        *('--models', f'nano={default_model_path()}'),
        *('--data', str(world / 'data'), '--split', str(world / 'split.csv')),
        *more,
    ]


def rows_of(path):
    return json.loads(path.read_text())['rows']


def test_wilson_interval_against_its_equation():
    # The interval holds every share p whose own spread explains what was seen:
    # (seen - p)^2 <= z^2 p (1 - p) / n; found here by trying them all.
    for hits, total in ((0, 9), (3, 7), (42, 95), (95, 95)):
        shares = np.linspace(0, 1, 200_001)
        explained = (hits / total - shares) ** 2 <= 1.959964**2 * shares * (1 - shares) / total
        low, high = wilson_interval(hits, total)
        assert low == pytest.approx(shares[explained].min(initial=1.0), abs=1e-4)
        assert high == pytest.approx(shares[explained].max(initial=0.0), abs=1e-4)
    assert all(map(math.isnan, wilson_interval(0, 0)))
    with pytest.raises(ValueError, match='3 hits of 2'):
        wilson_interval(3, 2)


def test_recall_counts_frames_one_by_one():
    rng = np.random.default_rng(5)
    records = [
        FixRecord(
            f'{number}',
            0.0,
            'no_fix',
            truth_lat_deg=41.0,
            candidate_distances_m=tuple(rng.uniform(0, 90, rng.integers(0, 25)).tolist()),
        )
        for number in range(40)
    ]
    records.append(FixRecord('without truth', 0.0, 'no_fix', candidate_distances_m=(1.0,)))
    found = recall_figures(records)
    assert found['frames'] == 40
    for k in (1, 5, 20):
        for radius_m in (10, 25):
            hits = 0
            for record in records[:40]:
                for rank, distance_m in enumerate(record.candidate_distances_m):
                    if rank < k and distance_m <= radius_m:
                        hits += 1
                        break
            name = f'recall_at_{k}_{radius_m}m'
            assert found[name] == pytest.approx(hits / 40)
            assert (found[f'{name}_low'], found[f'{name}_high']) == wilson_interval(hits, 40)


def test_rows_are_kept_replaced_and_found(tmp_path):
    path = tmp_path / 'flight.json'
    key = {'model': 'a', 'retrieval': 'vote', 'heading': 'unknown', 'condition': 'plain'}
    rows = RowFile(path, command='one', revision='r')
    rows.put({**key, 'fingerprint': 'x', 'recall': math.nan})
    rows.put({**key, 'model': 'b', 'fingerprint': 'y', 'recall': 0.5})
    rows.put({**key, 'fingerprint': 'z', 'recall': 0.25})
    again = RowFile(path, command='two', revision='r')
    assert [row['model'] for row in again.rows] == ['a', 'b']
    assert again.finished(key, 'z')['recall'] == 0.25
    assert again.finished(key, 'x') is None
    assert again.finished({**key, 'heading': 'truth15'}, 'z') is None
    path.write_text('{"rows": [{"model": "a"}]}')
    with pytest.raises(ConfigError, match='no results of this tool'):
        RowFile(path, command='', revision='')


def test_headings_carry_their_noise_whatever_else_is_flown(world):
    flight = open_flight(world / 'flight')
    noisy = with_heading(flight, 'truth15', seed=4)
    errors = [
        (one.truth_heading_deg - two.truth_heading_deg + 180) % 360 - 180
        for one, two in zip(noisy.records, flight.records, strict=True)
    ]
    assert all(abs(error) <= 15 for error in errors)
    assert np.std(errors) > 3
    some = with_heading(some_frames(flight, 3), 'truth15', seed=4)
    assert set(some.records) <= set(noisy.records)
    assert with_heading(flight, 'truth15', seed=5).records != noisy.records
    assert with_heading(flight, 'autopilot', seed=4) is flight
    with pytest.raises(ConfigError, match="heading 'north' is unknown"):
        with_heading(flight, 'north', seed=4)


def test_frames_change_the_same_way_every_time(world):
    flight = open_flight(world / 'flight')
    strong = parse_condition('strong')
    one = under(flight, strong, seed=2)
    record = flight.records[3]
    assert (one.image(record) == under(some_frames(flight, 2), strong, seed=2).image(record)).all()
    assert (one.image(record) != flight.image(record)).mean() > 0.5
    assert (one.image(record) != under(flight, strong, seed=3).image(record)).mean() > 0.5
    assert (
        under(flight, parse_condition('plain'), seed=2).image(record) == (flight.image(record))
    ).all()
    # One kind is what the simulator makes of that kind, with a stream of the frame's own.
    kind = WORLD_CHANGES[0]
    alone = under(flight, parse_condition(f'medium:{kind}'), seed=2).image(record)
    assert alone.shape == flight.image(record).shape
    assert not (alone == one.image(record)).all()


def test_unknown_conditions_are_named():
    with pytest.raises(ConfigError, match="condition 'storm' is unknown; expected plain"):
        parse_condition('storm')
    with pytest.raises(ConfigError, match='medium:storm'):
        parse_condition('medium:storm')
    assert parse_condition('strong').kinds == tuple(WORLD_CHANGES)
    assert callable(change_world)


@pytest.fixture(scope='module')
def base(world):
    out = world / 'base.gallery'
    build_gallery(out, world / 'map.tif', overlap=0.75)
    with open_gallery(out) as gallery:
        yield gallery


def test_a_written_gallery_is_the_built_one(base, tmp_path):
    encoder = ProjectionEncoder()
    tiles = map_tiles(base)
    rows = embeddings_of(tiles, encoder, tmp_path / 'kept', 'projection')
    np.testing.assert_array_equal(rows, base.embeddings(np.arange(len(tiles))))
    path = write_gallery(base, tmp_path / 'own.gallery', encoder, [(tiles.centers_m, rows)])
    with open_gallery(path) as own:  # with all checksums
        assert own.manifest.tile_count == base.manifest.tile_count
        np.testing.assert_array_equal(own.tile_lat_deg, base.tile_lat_deg)
        for found, expected in zip(own.search(rows, k=3), base.search(rows, k=3), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_embeddings_are_read_again_or_made_anew(base, tmp_path):
    encoder, tiles = ProjectionEncoder(), map_tiles(base)
    rows = embeddings_of(tiles, encoder, tmp_path, 'a')
    file = next(tmp_path.glob('a-*.npy'))
    np.save(file, 2 * rows)
    np.testing.assert_array_equal(embeddings_of(tiles, encoder, tmp_path, 'a'), 2 * rows)
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(embeddings_of(tiles, encoder, tmp_path, 'a'), rows)
    other = embeddings_of(tiles, ProjectionEncoder(seed=8), tmp_path, 'a')
    assert not np.array_equal(other, rows)
    assert len(list(tmp_path.glob('a-*.npy'))) == 1


def test_distractors_lie_beside_the_map_on_its_lattice(world, base):
    split = {f'drawn/{number}.png': 'test' if number > 5 else 'train' for number in range(9)}
    split['drawn/missing.png'] = 'test'
    paths = scene_paths(world / 'data', split, 'test')
    assert sorted(path.name for path in paths) == ['6.png', '7.png', '8.png']
    assert scene_paths(world / 'data', split, 'test', count=2) == paths[:2]
    mosaic = make_mosaic(paths)
    assert mosaic.scenes == 3
    tiles = mosaic_tiles(base, mosaic)
    # Every corner that keeps to the three scenes: two in the first column, one in the second.
    tile_px, stride_px = base.manifest.tile_px, 16
    expected = [
        (row, col)
        for col in range(0, 2 * SCENE_PX - tile_px + 1, stride_px)
        for row in range(0, 2 * SCENE_PX - tile_px + 1, stride_px)
        if col + tile_px <= SCENE_PX or row + tile_px <= SCENE_PX
    ]
    assert [tuple(corner) for corner in tiles.corners_px.tolist()] == expected
    row, col = expected[-1]
    square = mosaic.image[row : row + tile_px, col : col + tile_px]
    np.testing.assert_array_equal(tiles.image(len(tiles) - 1), square)
    assert tiles.image(0).any()
    west, _, east, _ = base.manifest.bounds_m
    assert tiles.centers_m[:, 0].min() > east + 200
    steps = (tiles.centers_m[:, 0] - base.tile_east_m[0]) / (stride_px * base.manifest.gsd_m)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert west < east


def test_repeated_tiles_lie_apart():
    centers, rows = np.arange(6.0).reshape(3, 2), np.eye(3, dtype=np.float32)
    parts = repeated(centers, rows, 7, step_m=100.0)
    assert [len(part) for _, part in parts] == [3, 3, 1]
    all_centers = np.concatenate([part for part, _ in parts])
    assert len(np.unique(all_centers, axis=0)) == 7
    np.testing.assert_array_equal(parts[2][0], [[200.0, 1.0]])


def test_a_compressed_gallery_needs_a_projection(base, tmp_path):
    encoder = replace(open_encoder(default_model_path()), projection=None)
    tiles = map_tiles(base)
    rows = np.zeros((len(tiles), encoder.embedding_dim), np.float32)
    with pytest.raises(ConfigError, match='has no compressed descriptor'):
        write_gallery(
            base, tmp_path / 'p.gallery', encoder, [(tiles.centers_m, rows)], descriptor='packed'
        )


def test_a_compressed_gallery_holds_signs(base, tmp_path):
    from bicrossnet_ros.descriptor import SIZE, Projection

    plain = open_encoder(default_model_path())
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((plain.embedding_dim, SIZE)).astype(np.float16)
    mean = np.zeros(plain.embedding_dim, np.float32)
    encoder = replace(plain, projection=Projection(mean, matrix))
    rows = rng.standard_normal((len(map_tiles(base)), plain.embedding_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = [(map_tiles(base).centers_m, rows)]
    path = write_gallery(base, tmp_path / 'p.gallery', encoder, parts, descriptor='packed')
    with open_written(path, encoder, descriptor='packed') as packed:
        assert packed.manifest.tile_bytes == 32
        signs = np.sign(rows @ matrix.astype(np.float32)) / 16
        np.testing.assert_allclose(packed.embeddings(np.arange(9)), signs[:9], atol=1e-6)


def test_single_is_one_patch_and_one_heading():
    single, vote = config_for('single'), config_for('vote', candidates=77)
    assert single.retrieval.patches == 1
    assert single.camera.known_headings == 1
    assert vote.retrieval.patches > 1
    assert vote.retrieval.candidates == 77


def test_a_calibrated_compass_narrows_the_headings():
    known, worse = (config_for('vote', heading=name) for name in ('truth15', 'autopilot'))
    assert known.camera.heading_spread_deg == 20
    assert worse == LocalizerConfig()


def test_the_plan_has_every_row_once_and_lean_models_few():
    wishes = Wishes(
        models=('nano', 'float'),
        lean=('float',),
        conditions=('plain', 'distractors', 'strong'),
        pipeline=('plain',),
        each_kind='medium',
        baselines=('vlad', 'brute_force'),
        descriptors=('packed',),
    )
    jobs = list_jobs(wishes)
    assert len(set(jobs)) == len(jobs)
    nano = [job for job in jobs if job.model == 'nano']
    # 3 conditions x 2 ways x 3 headings, the pipeline, each kind, and packed x 3 headings.
    assert len(nano) == 18 + 1 + len(WORLD_CHANGES) + 3
    lean = {(job.condition, job.retrieval, job.heading) for job in jobs if job.model == 'float'}
    assert {one for one in lean if one[0] != 'plain'} == {('strong', 'vote', 'autopilot')}
    assert ('plain', 'vote', 'unknown') not in lean
    assert len(lean) == 6
    assert {job.condition for job in jobs if job.retrieval == 'brute force'} == {
        'plain',
        'strong',
        *(f'medium:{kind}' for kind in WORLD_CHANGES),
    }
    conditions = [job.condition for job in jobs]
    assert [c for k, c in enumerate(conditions) if c not in conditions[:k]] == [
        c for k, c in enumerate(conditions) if k == 0 or conditions[k - 1] != c
    ]
    assert Job('a', 'vote packed', 'unknown', 'plain').descriptor == 'packed'
    assert Job('a', 'vote packed', 'unknown', 'plain').searched == 'vote'


def test_a_whole_evaluation(world, tmp_path, capsys):
    out = tmp_path / 'out'
    few = ('--headings', 'autopilot', '--retrievals', 'vote', '--each-kind', 'none')
    once = arguments(world, out, *few, '--conditions', 'plain', 'distractors', '--pipeline')
    once += ['plain', '--growth', '1', '2', '--growth-frames', '3', '--failures', '2']
    assert main(once) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert 'estimate' in said
    rows = {
        (row['model'], row['retrieval'], row['condition']): row
        for row in rows_of(out / 'flight.json')
    }
    assert set(rows) == {
        ('nano', 'vote', 'plain'),
        ('nano', 'vote', 'distractors'),
        ('nano', 'pipeline', 'plain'),
        ('SIFT + VLAD', 'vote', 'plain'),
        ('SIFT, whole map', 'brute force', 'plain'),
    }
    brute = rows['SIFT, whole map', 'brute force', 'plain']
    assert brute['frames'] == 6
    assert brute['recall_at_1_10m'] == brute['coverage'] == 1.0
    assert brute['median_m'] < 1.0
    pipeline = rows['nano', 'pipeline', 'plain']
    assert pipeline['false_fixes'] == 0
    assert pipeline['coverage'] > 0.5
    assert rows['SIFT + VLAD', 'vote', 'plain']['recall_at_20_25m'] >= 0.5
    plain, more = rows['nano', 'vote', 'plain'], rows['nano', 'vote', 'distractors']
    assert more['distractor_scenes'] == 3
    assert more['tiles'] > plain['tiles']
    assert more['recall_at_20_25m'] <= plain['recall_at_20_25m']
    growth = {
        (row['method'], row['area_times']): row for row in rows_of(out / 'flight_growth.json')
    }
    assert len(growth) == 4
    tiles = [growth['retrieval', times]['tiles'] for times in (1, 2)]
    assert tiles == [plain['tiles'], 2 * plain['tiles']]
    assert growth['brute force', 2]['features'] > growth['brute force', 1]['features']
    assert (out / 'flight_growth.png').stat().st_size > 1000
    before = (out / 'flight.json').read_text()
    assert main([*once, '--estimate']) == 0
    assert '5 rows, 5 of them finished' in capsys.readouterr().err
    assert (out / 'flight.json').read_text() == before


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (['--models', 'nano'], "--models 'nano': expected NAME=FILE"),
        (['--models', 'nano=missing.onnx'], 'missing.onnx is not there'),
        (['--lean', 'other'], "--lean ['other']: no such models"),
        (['--conditions', 'storm'], "condition 'storm' is unknown"),
        (['--map', 'missing.tif'], 'missing.tif is not there; expected the map'),
        (['--growth', '0'], '--growth 0: expected whole numbers from 1'),
    ],
)
def test_bad_input_is_one_line(world, tmp_path, capsys, changed, message):
    assert main([*arguments(world, tmp_path / 'out'), *changed]) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.count('\n') == 1
    assert message in said


def test_a_flight_without_truth_and_a_map_elsewhere(world, tmp_path, capsys, ground):
    folder = tmp_path / 'blind'
    folder.mkdir()
    (folder / 'flight.csv').write_text('file,stamp_s\n0.png,1\n')
    frame = world / 'flight' / 'frames' / '0.png'
    (folder / '0.png').write_bytes(frame.read_bytes())
    given = arguments(world, tmp_path / 'out', '--headings', 'unknown')
    assert main([str(folder), *given[1:]]) == 2
    assert 'no frame has the true position of its middle' in capsys.readouterr().err
    far = write_map(
        tmp_path / 'far.tif', ground, west_m=WEST_M + 9000, north_m=NORTH_M, gsd_m=GSD_M
    )
    assert main([*given, '--map', str(far)]) == 2
    assert 'no frame was taken above the map' in capsys.readouterr().err


def test_a_base_is_built_once_for_a_map(world, tmp_path, monkeypatch):
    first = build_base(world / 'map.tif', tmp_path, 'vote')
    before = (first / 'map.gpkg').stat().st_mtime_ns
    assert build_base(world / 'map.tif', tmp_path, 'vote') == first
    assert (first / 'map.gpkg').stat().st_mtime_ns == before
    monkeypatch.setitem(RETRIEVALS, 'vote', ('--tile-px', '96'))
    other = build_base(world / 'map.tif', tmp_path, 'vote')
    assert not first.exists()
    with open_gallery(other) as gallery:
        assert gallery.manifest.tile_px == 96
    (tmp_path / 'no.tif').write_bytes(b'no map')
    with pytest.raises(MapError, match=r'no gallery of .*no\.tif'):
        build_base(tmp_path / 'no.tif', tmp_path, 'vote')
