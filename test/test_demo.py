"""The demonstration as a newcomer runs it: real processes, real ROS 2, its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('rasterio', reason='the builder extra is not installed')

from gallery_fixtures import textured, write_map

from gallery_builder.flight_plan import FlightPlan
from gallery_builder.mosaic import MapSources
from gallery_builder.simulate import simulate

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def flown(tmp_path_factory):
    """A map, and a flight of four frames over it."""
    folder = tmp_path_factory.mktemp('demo')
    chart = folder / 'here.tif'
    write_map(chart, textured(1000, 1000, seed=5), gsd_m=0.25)
    plan = FlightPlan(frames=4, min_agl_m=60, max_agl_m=70)
    list(simulate(MapSources([chart]), folder / 'flight', plan))
    return chart, folder / 'flight'


def demo(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'demo', *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_flight_is_localised_over_ros(flown, tmp_path):
    chart, flight = flown
    done = demo('--flight', flight, '--map', chart, '--out', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'fixes over ROS for 4 frames' in done.stdout
    summary = json.loads((tmp_path / 'report' / 'summary.json').read_text(encoding='utf-8'))
    assert summary['frames'] == 4
    assert summary['fixes'] >= 3
    assert summary['false_fixes'] == 0
    assert summary['error_m']['max'] < 1.0
    assert (tmp_path / 'report' / 'report.html').stat().st_size > 10_000


def test_a_flight_elsewhere_gets_no_fix_and_fails(flown, tmp_path):
    _, flight = flown
    elsewhere = tmp_path / 'elsewhere.tif'
    write_map(elsewhere, textured(1000, 1000, seed=6), gsd_m=0.25)
    done = demo('--flight', flight, '--map', elsewhere, '--out', tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert '0 fixes over ROS for 4 frames' in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--flight', 'nowhere'], 'give FLIGHT and MAP together'),
        (['--flight', 'nowhere', '--map', 'nothing.tif'], 'does not exist'),
    ],
)
def test_impossible_requests_end_with_one_line(arguments, message, tmp_path):
    done = demo(*arguments, '--out', tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
