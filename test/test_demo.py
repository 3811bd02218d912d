"""The demonstration as a newcomer runs it: real processes, real ROS 2, its exit code."""

import json

import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('rasterio', reason='the builder extra is not installed')

from command_line import run_module
from gallery_fixtures import textured, write_map
from nodes_harness import free_domain

from bicrossnet_ros.nodes.diagnostics import estimate_to_diagnostic
from bicrossnet_ros.types import PositionEstimate, Reason, Status
from gallery_builder.flight_plan import FlightPlan
from gallery_builder.mosaic import MapSources
from gallery_builder.simulate import simulate

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
    domain, lock = free_domain()
    with lock:
        return run_module('demo', *arguments, ROS_DOMAIN_ID=str(domain))


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
    done = demo('--flight', flight, '--map', elsewhere, '--out', tmp_path / 'out')
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


def test_files_of_others_are_not_touched(tmp_path):
    precious = tmp_path / 'flight' / 'IMG_0001.jpg'
    precious.parent.mkdir()
    precious.write_bytes(b'mine')
    done = demo('--out', tmp_path)
    assert done.returncode == 2
    assert 'holds files that no demonstration made' in done.stderr
    assert precious.read_bytes() == b'mine'


def test_a_frame_that_is_sent_twice_counts_once(monkeypatch):
    import rclpy
    from builtin_interfaces.msg import Time
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import NavSatFix

    from demo.recorder import RELIABLE, Recorder

    domain, lock = free_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    answers = []
    recorder = Recorder(lambda fix, estimate: answers.append((fix.latitude, estimate.detail)))
    node = rclpy.create_node('answering')
    fixes = node.create_publisher(NavSatFix, 'fix', RELIABLE)
    reports = node.create_publisher(DiagnosticArray, 'geolocalizer/report', RELIABLE)

    def answer(at_s: int, lat_deg: float, detail: str) -> None:
        fix = NavSatFix(latitude=lat_deg)
        report = DiagnosticArray(status=[DiagnosticStatus()])
        fix.header.stamp = report.header.stamp = Time(sec=at_s)
        estimate = PositionEstimate(at_s, Status.NO_FIX, Reason.AMBIGUOUS, detail)
        estimate_to_diagnostic(report.status[0], estimate, KeyValue)
        fixes.publish(fix)
        reports.publish(report)

    try:
        for _ in range(200):
            recorder.spin_once(0.05)
            if fixes.get_subscription_count() and reports.get_subscription_count():
                break
        answer(7, 41.0, 'first')
        answer(7, 0.0, 'out of order')
        answer(8, 42.0, 'next')
        for _ in range(200):
            recorder.spin_once(0.05)
            if len(answers) == 2 and answers[-1][1] == 'next':
                break
        recorder.spin_once(0.2)
        assert answers == [(41.0, 'first'), (42.0, 'next')]
    finally:
        node.destroy_node()
        recorder.close()
        lock.close()
