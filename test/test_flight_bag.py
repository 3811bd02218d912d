"""rosbag2 as a flight: written with the rosbags package, read back."""

import math

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.flight_bag import attitude_deg

rosbags = pytest.importorskip('rosbags', reason='the package rosbags is not installed')
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
STAMP_S = 1_700_000_000
RED = np.zeros((6, 8, 3), np.uint8)
RED[:, :, 0] = 250


def header(offset_s):
    whole = math.floor(offset_s)
    stamp = T['builtin_interfaces/msg/Time'](STAMP_S + whole, round((offset_s - whole) * 1e9))
    return T['std_msgs/msg/Header'](stamp, 'camera')


def image(offset_s, *, pixels=RED[:, :, ::-1], encoding='bgr8', padding=0):
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    return T['sensor_msgs/msg/Image'](
        header(offset_s),
        pixels.shape[0],
        pixels.shape[1],
        encoding,
        0,
        rows.shape[1],
        rows.ravel(),
    )


def compressed(offset_s):
    data = cv2.imencode('.png', RED[:, :, ::-1])[1].ravel()
    return T['sensor_msgs/msg/CompressedImage'](header(offset_s), 'png', data)


def imu(offset_s, quaternion, *, known=True):
    vector = T['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
    covariance = np.full(9, 0.0 if known else -1.0)
    zeros = np.zeros(9)
    return T['sensor_msgs/msg/Imu'](
        header(offset_s),
        T['geometry_msgs/msg/Quaternion'](*quaternion),
        covariance,
        vector,
        zeros,
        vector,
        zeros,
    )


def navsat(offset_s, lat_deg, lon_deg, status=0):
    return T['sensor_msgs/msg/NavSatFix'](
        header(offset_s),
        T['sensor_msgs/msg/NavSatStatus'](status, 1),
        lat_deg,
        lon_deg,
        250.0,
        np.zeros(9),
        0,
    )


def height(offset_s, value, *, longest=200.0):
    return T['sensor_msgs/msg/Range'](header(offset_s), 0, 0.1, 0.5, longest, value)


def camera_info(fx=700.0):
    K = np.array([fx, 0, 4, 0, fx, 3, 0, 0, 1.0])
    region = T['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return T['sensor_msgs/msg/CameraInfo'](
        header(0.0),
        6,
        8,
        'plumb_bob',
        np.zeros(5),
        K,
        np.eye(3).ravel(),
        np.zeros(12),
        0,
        0,
        region,
    )


def write_bag(path, messages, storage=StoragePlugin.SQLITE3):
    """`messages`: (topic, time_s, message), any order of topics."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for topic, time_s, message in messages:
            if topic not in connections:
                kind = message.__msgtype__
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            raw = STORE.serialize_cdr(message, message.__msgtype__)
            writer.write(connections[topic], int((STAMP_S + time_s) * 1e9), raw)
    return path


def quaternion(roll_deg=0.0, pitch_deg=0.0, heading_deg=0.0):
    """Body (forward, left, up) in east, north, up, composed from three turns."""
    yaw, pitch, roll = (math.radians(one) / 2 for one in (90 - heading_deg, -pitch_deg, roll_deg))
    about_z = (0.0, 0.0, math.sin(yaw), math.cos(yaw))
    about_y = (0.0, math.sin(pitch), 0.0, math.cos(pitch))
    about_x = (math.sin(roll), 0.0, 0.0, math.cos(roll))
    return product(product(about_z, about_y), about_x)


def product(a, b):
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


@pytest.mark.parametrize(
    ('roll_deg', 'pitch_deg', 'heading_deg'),
    [(0, 0, 0), (0, 0, 90), (10, 0, 45), (0, 8, 200), (-12, 7, 300), (25, -30, 181)],
)
def test_attitude_of_a_quaternion(roll_deg, pitch_deg, heading_deg):
    found = attitude_deg(*quaternion(roll_deg, pitch_deg, heading_deg))
    assert found == pytest.approx((roll_deg, pitch_deg, heading_deg), abs=1e-9)


def test_nose_up_is_positive_pitch():
    # Facing east, forward axis raised by 10 degrees: its up component is sin(10 deg).
    x, y, z, w = quaternion(0, 10, 90)
    forward_up = 2 * (x * z - w * y)
    assert forward_up == pytest.approx(math.sin(math.radians(10)))


@pytest.mark.parametrize('wrong', [(0, 0, 0, 0), (math.nan, 0, 0, 1), (9, 0, 0, 0)])
def test_no_quaternion_no_attitude(wrong):
    assert attitude_deg(*wrong) is None


@pytest.mark.parametrize('storage', [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_whole_bag(tmp_path, storage):
    bag = write_bag(
        tmp_path / 'bag',
        [
            ('/camera_info', 0.0, camera_info()),
            ('/image', 1.0, image(1.0, padding=4)),
            ('/imu', 1.1, imu(1.1, quaternion(3, 4, 120))),
            ('/gps', 1.4, navsat(1.4, 41.0, -83.0)),
            ('/range', 1.5, height(1.5, 80.0)),
            ('/image', 5.0, image(5.0, pixels=RED[:, :, 0], encoding='mono8')),
            ('/gps', 5.2, navsat(5.2, 42.0, -83.0, status=-1)),
            ('/range', 5.3, height(5.3, 300.0)),
            ('/imu', 5.05, imu(5.05, quaternion(), known=False)),
        ],
        storage,
    )
    flight = open_flight(bag)
    first, second = flight.records
    assert first.stamp_s == pytest.approx(STAMP_S + 1.0, abs=1e-6)
    assert (first.lat_deg, first.lon_deg, first.ellipsoid_m, first.agl_m) == (
        41.0,
        -83.0,
        250.0,
        80.0,
    )
    assert (first.roll_deg, first.pitch_deg, first.heading_deg) == pytest.approx((3, 4, 120))
    assert second.agl_m is None
    assert second.heading_deg is None
    assert not second.has_position
    assert flight.camera is not None
    assert (flight.camera.fx_px, flight.camera.width_px) == (700.0, 8)
    assert (flight.image(first) == RED).all()
    assert flight.image(second).shape == (6, 8, 3)
    assert (flight.image(second) == 250).all()
    (file,) = [one for one in bag.iterdir() if one.suffix in {'.db3', '.mcap'}]
    assert len(open_flight(file)) == 2
    assert not flight.truth_is_map_relative


def test_compressed_images_and_a_configured_truth(tmp_path):
    bag = write_bag(
        tmp_path / 'bag',
        [
            ('/image/compressed', 1.0, compressed(1.0)),
            ('/gps', 1.0, navsat(1.0, 41.0, -83.0)),
            ('/rtk', 1.0, navsat(1.0, 41.5, -83.5)),
        ],
    )
    with pytest.raises(FlightError, match=r"2 topics fit gps: \['/gps', '/rtk'\]"):
        open_flight(bag)
    config = tmp_path / 'flight.yaml'
    config.write_text('name: field\ntopics: {gps: /gps, truth: /rtk}\n')
    flight = open_flight(bag, config=config)
    assert flight.name == 'field'
    (bag / 'flight.yaml').write_text(config.read_text())
    assert open_flight(bag).name == 'field'
    record = flight.records[0]
    assert (record.lat_deg, record.truth_lat_deg) == (41.0, 41.5)
    assert (flight.image(record) == RED).all()


def test_clock_going_backwards(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('/i', 1.0, image(5.0)), ('/i', 2.0, image(3.0))])
    problems = [one.problem for one in open_flight(bag).records]
    assert problems[0] == ''
    assert 'image message 1: the clock goes backwards by 2 s' in problems[1]


def test_unset_stamp_falls_back_to_the_time_of_recording(tmp_path):
    message = image(-STAMP_S)
    flight = open_flight(write_bag(tmp_path / 'bag', [('/i', 2.0, message)]))
    assert flight.records[0].stamp_s == pytest.approx(STAMP_S + 2.0, abs=1e-6)
    assert (flight.image(flight.records[0]) == RED).all()


@pytest.mark.parametrize(
    ('encoding', 'message'),
    [('32FC1', "encoding '32FC1' is unknown"), ('rgba8', 'bytes a row')],
)
def test_image_that_cannot_be_read(tmp_path, encoding, message):
    flight = open_flight(write_bag(tmp_path / 'bag', [('/i', 1.0, image(1.0, encoding=encoding))]))
    with pytest.raises(ImageError, match=message):
        flight.image(flight.records[0])


def test_bad_topics(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('/i', 1.0, image(1.0)), ('/r', 1.0, height(1.0, 50.0))])
    config = tmp_path / 'flight.yaml'
    for text, message in (
        ('topics: {image: /r}', "topic '/r' for image is sensor_msgs/msg/Range"),
        ('topics: {imu: /nowhere}', "topic '/nowhere' for imu is not there"),
        ('topics: {music: /i}', r"topics: unknown \['music'\]"),
    ):
        config.write_text(text)
        with pytest.raises(FlightError, match=message):
            open_flight(bag, config=config)


def test_bag_without_images(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('/r', 1.0, height(1.0, 50.0))])
    with pytest.raises(FlightError, match='no topic with images'):
        open_flight(bag)


def test_damaged_bag(tmp_path):
    bag = write_bag(tmp_path / 'bag', [('/i', 1.0, image(1.0))])
    (bag / 'metadata.yaml').write_text('rosbag2_bagfile_information: {version: 99}')
    with pytest.raises(FlightError, match='not readable as a rosbag2'):
        open_flight(bag)
