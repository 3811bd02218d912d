"""The flight player, alone and with the node: no frame lost, stamps kept, one-line errors."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from nodes_harness import REPOSITORY, World, distance_m, frame_at, shared_gallery, write_flight

from bicrossnet_ros.errors import FlightError
from bicrossnet_ros.nodes.diagnostics import estimate_from_diagnostic

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytestmark = pytest.mark.ros

PIXELS = [(600, 500), (600, 540), (610, 580), (620, 620), (640, 660)]


@pytest.fixture(scope='module')
def flight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('flight') / 'flight'
    write_flight(folder, PIXELS)
    return folder


@pytest.fixture(scope='module')
def gallery() -> Path:
    return shared_gallery()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def test_every_frame_is_localised_at_its_recorded_time(world, flight, gallery):
    node = world.start_node(
        gallery=gallery, autostart=True, use_sim_time=True, image_reliability='reliable'
    )
    client = world.client()
    reports = client.received['geolocalizer/report']
    client.spin_until(lambda: client.node.count_publishers('geolocalizer/report'))
    player = world.start_player(
        *(str(flight), '--rate', '0', '--wait-for-report', '--stamp', 'recorded', '--clock'),
        *('--wait-s', '20'),
    )
    client.spin_until(lambda: player.popen.poll() is not None, timeout_s=60)
    assert player.popen.returncode == 0, player.output
    assert 'flight: 5 frames published, 0 skipped' in player.output
    client.spin(0.3)
    estimates = [estimate_from_diagnostic(one.status[0]) for one in reports]
    assert [one.stamp_s for one in estimates] == [1_700_000_000 + 0.5 * n for n in range(5)]
    for estimate, (row, col) in zip(estimates, PIXELS, strict=True):
        assert estimate.is_fix, (estimate.detail, node.output)
        _, lat_deg, lon_deg = frame_at(row, col)
        assert distance_m(estimate.lat_deg, estimate.lon_deg, lat_deg, lon_deg) < 1.0


def test_recorded_pace_and_everything_around_the_image(world, flight):
    """Without a node: what is on the topics."""
    client = world.client()
    heard = client.listen('image', 'camera_info', 'imu', 'range', 'gps/fix')
    player = world.start_player(str(flight), '--gps', '--rate', '2', '--limit', '3')
    client.spin_until(lambda: player.popen.poll() is not None, timeout_s=30)
    assert player.popen.returncode == 0, player.output
    assert {topic: len(messages) for topic, messages in heard.items()} == dict.fromkeys(heard, 3)
    stamps = [one.header.stamp.sec + one.header.stamp.nanosec * 1e-9 for one in heard['image']]
    # Recorded 0.5 s apart, played twice as fast.
    assert [b - a for a, b in itertools.pairwise(stamps)] == pytest.approx([0.25, 0.25], abs=0.15)
    for topic in heard:
        assert [one.header.stamp for one in heard[topic]] == [
            one.header.stamp for one in heard['image']
        ]
    assert heard['range'][0].range == pytest.approx(100.0)
    assert heard['image'][0].encoding == 'rgb8'


def test_nobody_listens(world, flight):
    player = world.start_player(str(flight), '--wait-s', '1')
    assert player.popen.wait(timeout=30) == 2
    (line,) = [one for one in player.output.splitlines() if one.startswith('flight_player: ')]
    assert 'nobody listens to /image after 1 s' in line


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['/nowhere'], '/nowhere'),
        (['{flight}', '--rate', '0'], '--wait-for-report only'),
        (['{flight}', '--hz', '-1'], '--hz is -1.0'),
        (['{flight}', '--rate', 'nan'], '--rate is nan'),
        (['{flight}', '--limit', '-1'], 'must not be negative'),
        (['{flight}', '--clock'], 'needs --stamp recorded'),
    ],
)
def test_arguments_that_make_no_sense(flight, arguments, expected):
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'bicrossnet_ros.nodes.flight_player'),
            *(one.format(flight=flight) for one in arguments),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith('flight_player: ')
    assert expected in line


def test_a_flight_without_stamps_needs_a_pace():
    from bicrossnet_ros.flight import Flight, FlightRecord
    from bicrossnet_ros.nodes.flight_player import Player, parse

    flight = Flight('walk', (FlightRecord('a.jpg', float('nan')),), lambda record: None)
    with pytest.raises(FlightError, match='--stamp now --hz X'):
        Player(None, flight, parse(['walk'])).play()
