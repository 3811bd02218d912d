"""Replay: a whole flight through the real encoder, gallery and localizer, and its error paths."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from gallery_fixtures import textured, write_map

from bicrossnet_ros.config import IntegrityConfig, LocalizerConfig
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.replay import main, notes_for, replay, settle_config

REPOSITORY = Path(__file__).resolve().parents[1]
FRAMES = 6


@pytest.fixture(scope='module')
def encoder():
    return open_encoder(default_model_path())


def build_gallery(source, out, encoder, **more):
    from gallery_builder.build import build
    from gallery_builder.options import BuildOptions

    build(BuildOptions(maps=(source,), out=out, **more), encoder, say=lambda _: None)
    return out


@pytest.fixture(scope='module')
def world(tmp_path_factory, encoder):
    """A drawn map, its gallery, and a simulated flight over it: (gallery, flight)."""
    from gallery_builder.flight_plan import FlightPlan
    from gallery_builder.mosaic import MapSources
    from gallery_builder.simulate import simulate

    folder = tmp_path_factory.mktemp('world')
    image = textured(1600, 1600, seed=5)
    rng = np.random.default_rng(5)
    for _ in range(900):  # corners and edges, which the smooth texture lacks
        center = tuple(int(one) for one in rng.integers(0, 1600, 2))
        size = tuple(float(one) for one in rng.uniform(6, 40, 2))
        box = cv2.boxPoints((center, size, float(rng.uniform(0, 90)))).astype(np.int32)
        cv2.fillPoly(image, [box], tuple(int(one) for one in rng.integers(20, 235, 3)))
    source = write_map(folder / 'map.tif', image, gsd_m=0.25)
    gallery = build_gallery(source, folder / 'world.gallery', encoder)
    plan = FlightPlan(frames=FRAMES, min_agl_m=60.0, max_agl_m=80.0, width_px=512, height_px=384)
    flight = folder / 'flight'
    assert len(list(simulate(MapSources([source]), flight, plan))) >= 3
    return gallery, flight


@pytest.fixture(scope='module')
def replayed(world, tmp_path_factory):
    """The report of that flight: (folder, rows, summary)."""
    gallery, flight = world
    out = tmp_path_factory.mktemp('replayed') / 'report'
    assert main([str(flight), '--gallery', str(gallery), '--out', str(out)]) == 0
    return out, rows_of(out), summary_of(out)


def rows_of(out):
    with (out / 'fixes.csv').open(encoding='utf-8', newline='') as stream:
        return list(csv.DictReader(stream))


def summary_of(out):
    return json.loads((out / 'summary.json').read_text(encoding='utf-8'))


def test_simulated_flight_is_found(world, replayed):
    out, rows, summary = replayed
    assert summary['frames'] == len(rows) == len(open_flight(world[1]))
    assert summary['fixes'] >= 1
    assert summary['false_fixes'] == 0
    assert summary['error_m']['median'] < 2.0
    assert (out / 'report.html').stat().st_size > 50_000


def test_every_frame_is_timed_and_explained(replayed, encoder):
    out, rows, summary = replayed
    for row in rows:
        assert float(row['read_ms']) > 0.0
        stages = [
            name for name in row if name.endswith('_ms') and name not in {'read_ms', 'total_ms'}
        ]
        assert stages
        known_ms = sum(float(row[name]) for name in stages if row[name])
        assert 0.0 < known_ms <= float(row['total_ms']) * 1.01
        assert (row['reason'] == '') == (row['status'] == 'fix')
        assert (row['lat_deg'] != '') == (row['status'] == 'fix')
        assert (row['sigma_m'] != '') == (row['status'] == 'fix')
    assert summary['latency_ms']['total']['count'] == len(rows)
    assert summary['options']['runtime'] == encoder.runtime  # without it times say nothing
    assert encoder.runtime in (out / 'report.html').read_text(encoding='utf-8')
    assert summary['options']['map_accuracy_m'] == 0.0  # the simulated truth is the map's


def test_seneca(seneca, encoder, tmp_path, capsys):
    """The real flight: five frames, no prior position, nothing told but the folder."""
    gallery = build_gallery(seneca / 'map.tif', tmp_path / 'seneca.gallery', encoder)
    out = tmp_path / 'report'
    arguments = [str(seneca), '--gallery', str(gallery), '--out', str(out), '--limit', '5']
    assert main(arguments) == 0
    summary = summary_of(out)
    assert summary['frames'] == 5
    assert summary['fixes'] >= 2
    assert summary['false_fixes'] == 0
    assert summary['center_error_m']['median'] < 1.5
    assert summary['truth_is_map_relative'] is True
    said = capsys.readouterr()
    assert f'{summary["fixes"]} of 5 frames got a fix' in said.out
    assert 'Recall within 25 m before registration: @1 ' in said.out
    assert '5/5 frames' in said.err


def test_bad_frames_become_refusals(world, encoder, tmp_path, capsys):
    gallery, flight = world
    folder = tmp_path / 'flight'
    shutil.copytree(flight, folder)
    frames = sorted((folder / 'frames').iterdir())
    frames[0].unlink()
    frames[1].write_bytes(frames[1].read_bytes()[:300])
    lines = (folder / 'flight.csv').read_text().splitlines()
    agl = lines[0].split(',').index('agl_m')
    cells = lines[3].split(',')
    cells[agl] = 'nan'
    lines[3] = ','.join(cells)
    (folder / 'flight.csv').write_text('\n'.join(lines))
    out = tmp_path / 'out'
    assert main([str(folder), '--gallery', str(gallery), '--out', str(out), '--limit', '3']) == 0
    rows = rows_of(out)
    assert [row['status'] for row in rows] == ['no_fix'] * 3
    assert [row['reason'] for row in rows] == ['bad_input'] * 3
    assert 'row 2, column file: image' in rows[0]['detail']
    assert 'not decodable' in rows[1]['detail']
    assert "row 4, column agl_m: is 'nan'" in rows[2]['detail']
    assert summary_of(out)['no_fix_reasons'] == {'bad_input': 3}
    assert '0 of 3 frames got a fix' in capsys.readouterr().out


def test_unreadable_rows_keep_the_table_parsable(world, tmp_path):
    gallery, _ = world
    folder = tmp_path / 'flight'
    folder.mkdir()
    (folder / 'flight.csv').write_text('file,stamp\n,\n"a,\n""b"".jpg",noon\n')
    out = tmp_path / 'out'
    assert main([str(folder), '--gallery', str(gallery), '--out', str(out)]) == 0
    rows = rows_of(out)
    assert [row['stamp_s'] for row in rows] == ['', '']
    assert rows[1]['file'] == 'a,\n"b".jpg'


def test_radius_keeps_candidates_near_the_recorded_position(world, encoder):
    gallery_path, flight_path = world
    flight = open_flight(flight_path)
    radius_m = 60.0
    with open_gallery(gallery_path) as gallery:
        localizer = Localizer(gallery, encoder)
        # The prior is about the camera; a tile is about the image's middle, up to half its side.
        slack_m = 0.5 * gallery.tile_size_m + 40.0
        near = list(replay(flight, localizer.localize, radius_m=radius_m, limit=2))
        far = list(replay(flight, localizer.localize, limit=2))
    from bicrossnet_ros.evaluation import distance_m

    def reach_m(records):
        return [
            distance_m((source.lat_deg, source.lon_deg), tile)
            for record, source in zip(records, flight.records, strict=False)
            for tile in record.candidates
        ]

    assert reach_m(near)
    assert max(reach_m(near)) <= radius_m + slack_m
    assert max(reach_m(far)) > radius_m + slack_m


def test_no_registration_rests_on_retrieval_alone(world, tmp_path):
    gallery, flight = world
    out = tmp_path / 'out'
    arguments = [str(flight), '--gallery', str(gallery), '--out', str(out)]
    assert main([*arguments, '--no-registration', '--limit', '2']) == 0
    rows = rows_of(out)
    assert {row['inliers'] for row in rows} == {'0'}
    assert summary_of(out)['options']['registration'] is False


def test_what_is_known_of_the_heading_reaches_the_localizer(world, encoder):
    flight = open_flight(world[1])
    asked = []
    with open_gallery(world[0], verify=False) as gallery:
        localizer = Localizer(gallery, encoder)

        def localize(frame):
            asked.append(frame.attitude.heading_deg)
            return localizer.localize(frame)

        for heading in ('recorded', 'unknown'):
            list(replay(flight, localize, heading=heading, limit=1))
    assert asked == [flight.records[0].heading_deg, None]


def test_interrupted_replay_reports_what_it_has(world, tmp_path):
    gallery, flight = world
    folder = tmp_path / 'flight'
    shutil.copytree(flight, folder)
    lines = (folder / 'flight.csv').read_text().splitlines()
    stamp = lines[0].split(',').index('stamp_s')
    rows = []
    for number in range(400):
        cells = lines[1 + number % (len(lines) - 1)].split(',')
        cells[stamp] = str(number)
        rows.append(','.join(cells))
    (folder / 'flight.csv').write_text('\n'.join([lines[0], *rows]))
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'bicrossnet_ros.replay', str(folder)]
    command += ['--gallery', str(gallery), '--out', str(out)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert 'frames' in process.stderr.readline()  # the first progress line: it works
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    summary = summary_of(out)
    assert 1 <= summary['frames'] < 400
    assert summary['notes'][0] == f'Interrupted after {summary["frames"]} of 400 frames.'
    assert 'report.html' in said


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'flight': 'nowhere'}, 'does not exist'),
        ({'--gallery': 'nowhere.gallery'}, 'nowhere.gallery'),
        ({'--model': 'nowhere.safetensors'}, 'no such model file'),
        ({'--radius-m': '-5'}, '--radius-m is -5; expected metres above 0'),
        ({'--radius-m': 'nan'}, '--radius-m is nan'),
        ({'--limit': '0'}, '--limit is 0; expected at least 1'),
        ({'--threads': '0'}, 'threads is 0'),
        ({'--config': 'bad.yaml'}, "unknown key(s) ['speed']"),
        ({'--flight-config': 'bad.yaml'}, "unknown key(s) ['camera_speed'"),
        ({'--out': 'a_file'}, 'is a file; expected a folder'),
    ],
)
def test_known_errors_are_one_line_and_exit_code_2(world, tmp_path, capsys, change, message):
    gallery, flight = world
    if '--flight-config' in change:
        (tmp_path / 'bad.yaml').write_text('camera_speed: 3\n')
    else:
        (tmp_path / 'bad.yaml').write_text('camera: {speed: 3}\n')
    (tmp_path / 'a_file').touch()
    given = {'--gallery': str(gallery), '--out': str(tmp_path / 'out')}
    change = dict(change)
    where = change.pop('flight', str(flight))
    for key, value in change.items():
        relative = key in {'--model', '--config', '--flight-config', '--gallery', '--out'}
        given[key] = str(tmp_path / value) if relative else value
    words = [word for pair in given.items() for word in pair]
    assert main([where, *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith('error: ')
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / 'out' / 'report.html').exists()


def test_map_accuracy_is_left_out_only_where_the_truth_shares_it():
    plain = LocalizerConfig()
    relative = settle_config(plain, registration=True, truth_is_map_relative=True)
    assert relative.integrity.map_accuracy_m == 0.0
    absolute = settle_config(plain, registration=True, truth_is_map_relative=False)
    assert absolute == plain
    chosen = replace(plain, integrity=IntegrityConfig(map_accuracy_m=2.0))
    assert settle_config(chosen, registration=True, truth_is_map_relative=True) == chosen
    assert not settle_config(
        plain, registration=False, truth_is_map_relative=False
    ).registration.enabled


def test_notes_say_what_flatters_the_figures(world):
    flight = open_flight(world[1])
    config = settle_config(LocalizerConfig(), registration=True, truth_is_map_relative=True)
    notes = ' '.join(notes_for(flight, config, heading='truth', radius_m=100.0))
    assert 'relative to this map' in notes
    assert 'leave the accuracy of the map out' in notes
    assert 'true heading, which no flight has' in notes
    assert 'within 100 m of the recorded GNSS position' in notes
