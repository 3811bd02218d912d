"""The flight player, alone and with the node: no frame lost, stamps kept, one-line errors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from command_line import run_module
from nodes_scene import distance_m, frame_at, write_flight

from bicrossnet_ros.errors import FlightError
from bicrossnet_ros.messages import (
    attitude_from_quaternion,
    image_from_message,
)
from bicrossnet_ros.nodes.diagnostics import estimate_from_diagnostic

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytestmark = pytest.mark.ros

PIXELS = [(600, 500), (600, 540), (610, 580), (620, 620), (640, 660)]


@pytest.fixture(scope='module')
def flight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('flight') / 'flight'
    write_flight(folder, PIXELS)
    return folder


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


@pytest.mark.parametrize('kind', ['sqlite3', 'mcap'])
def test_a_rosbag2_is_played_like_a_folder(world, tmp_path, kind):
    bag = tmp_path / 'bag'
    write_bag(bag, PIXELS[:2], kind)
    client = world.client()
    heard = client.listen('image', 'imu', 'range')
    player = world.start_player(str(bag), '--hz', '5')
    client.spin_until(lambda: player.popen.poll() is not None, timeout_s=30)
    assert player.popen.returncode == 0, player.output
    assert 'bag: 2 frames published, 0 skipped' in player.output
    for message, (row, col) in zip(heard['image'], PIXELS, strict=False):
        np.testing.assert_array_equal(image_from_message(message), frame_at(row, col)[0])
    assert [one.range for one in heard['range']] == pytest.approx([100.0, 100.0])
    q = heard['imu'][0].orientation
    assert attitude_from_quaternion(q.x, q.y, q.z, q.w).heading_deg % 360 == pytest.approx(90.0)


def write_bag(path: Path, pixels: list[tuple[int, int]], kind: str) -> None:
    """A rosbag2 with images, orientation (heading east) and height, half a second apart."""
    rosbags = pytest.importorskip('rosbags.rosbag2', reason='needs rosbags (the extra bag)')
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    vector = types['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
    nine = np.zeros(9)
    with rosbags.Writer(
        path, version=rosbags.Writer.VERSION_LATEST, storage_plugin=plugin(rosbags, kind)
    ) as writer:
        names = {'/cam': 'Image', '/imu/data': 'Imu', '/rangefinder': 'Range'}
        topics = {
            topic: writer.add_connection(topic, f'sensor_msgs/msg/{name}', typestore=store)
            for topic, name in names.items()
        }
        for number, (row, col) in enumerate(pixels):
            time_ns = 1_700_000_000_000_000_000 + number * 500_000_000
            stamp = types['builtin_interfaces/msg/Time'](
                time_ns // 1_000_000_000, time_ns % 1_000_000_000
            )
            header = types['std_msgs/msg/Header'](stamp, 'base')
            image = frame_at(row, col)[0]
            height, width = image.shape[:2]
            level_east = types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0)
            messages = {
                '/cam': types['sensor_msgs/msg/Image'](
                    header, height, width, 'rgb8', 0, 3 * width, image.reshape(-1)
                ),
                '/imu/data': types['sensor_msgs/msg/Imu'](
                    header, level_east, nine, vector, nine, vector, nine
                ),
                '/rangefinder': types['sensor_msgs/msg/Range'](header, 1, 0.1, 0.1, 500.0, 100.0),
            }
            for topic, message in messages.items():
                kind_name = f'sensor_msgs/msg/{names[topic]}'
                writer.write(topics[topic], time_ns, store.serialize_cdr(message, kind_name))


def plugin(rosbags, kind: str):
    return {
        'sqlite3': rosbags.StoragePlugin.SQLITE3,
        'mcap': rosbags.StoragePlugin.MCAP,
    }[kind]


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
    gps = heard['gps/fix'][0]
    assert gps.status.status == gps.status.STATUS_FIX
    assert gps.position_covariance[0] > 0.0


def test_compressed_images(world, flight):
    client = world.client()
    heard = client.listen('image/compressed')
    player = world.start_player(str(flight), '--compressed', '--hz', '5', '--limit', '2')
    client.spin_until(lambda: player.popen.poll() is not None, timeout_s=30)
    assert player.popen.returncode == 0, player.output
    image = image_from_message(heard['image/compressed'][0])
    difference = image.astype(float) - frame_at(*PIXELS[0])[0]
    assert np.abs(difference).mean() < 8.0  # JPEG


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
    result = run_module(
        'bicrossnet_ros.nodes.flight_player', *(one.format(flight=flight) for one in arguments)
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
