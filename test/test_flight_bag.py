"""rosbag2 as a flight: written with the rosbags package, read back."""

import math

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.messages import quaternion_from_attitude
from bicrossnet_ros.types import Attitude

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


def imu(offset_s, quaternion, *, known=True, yaw_variance=0.0):
    vector = T['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
    covariance = np.full(9, 0.0 if known else -1.0)
    covariance[8] = yaw_variance
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


def camera_info(fx=700.0, *, region=(0, 0, 0, 0), model='plumb_bob'):
    return T['sensor_msgs/msg/CameraInfo'](
        header(0.0),
        6,
        8,
        model,
        np.zeros(5),
        np.array([fx, 0, 4, 0, fx, 3, 0, 0, 1.0]),
        np.eye(3).ravel(),
        np.zeros(12),
        0,
        0,
        T['sensor_msgs/msg/RegionOfInterest'](*region, False),
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
    return quaternion_from_attitude(Attitude(roll_deg, pitch_deg, heading_deg))


def cosine_deg(angle_deg):
    return math.cos(math.radians(angle_deg))


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
    assert (first.lat_deg, first.lon_deg, first.ellipsoid_m) == (41.0, -83.0, 250.0)
    assert first.agl_m == pytest.approx(80.0 * cosine_deg(3) * cosine_deg(4))
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


@pytest.mark.parametrize(
    ('settings', 'orientations', 'agl_m'),
    [
        ('', [imu(1.0, quaternion(roll_deg=25))], 80 * cosine_deg(25)),
        ('range_is_vertical: true', [imu(1.0, quaternion(roll_deg=25))], 80.0),
        ('', [], 80.0),
    ],
)
def test_rangefinder_is_fixed_to_the_body(tmp_path, settings, orientations, agl_m):
    messages = [('/i', 1.0, image(1.0)), ('/r', 1.0, height(1.0, 80.0))]
    messages += [('/imu', 1.0, one) for one in orientations]
    bag = write_bag(tmp_path / 'bag', messages)
    (bag / 'flight.yaml').write_text(settings or '{}')
    assert open_flight(bag).records[0].agl_m == pytest.approx(agl_m)


def test_odometry_is_a_height_already(tmp_path):
    pose = T['geometry_msgs/msg/Pose'](
        T['geometry_msgs/msg/Point'](1.0, 2.0, 90.0),
        T['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0),
    )
    vector = T['geometry_msgs/msg/Vector3'](0.0, 0.0, 0.0)
    odometry = T['nav_msgs/msg/Odometry'](
        header(1.0),
        'base_link',
        T['geometry_msgs/msg/PoseWithCovariance'](pose, np.zeros(36)),
        T['geometry_msgs/msg/TwistWithCovariance'](
            T['geometry_msgs/msg/Twist'](vector, vector), np.zeros(36)
        ),
    )
    tilted = imu(1.0, quaternion(roll_deg=25))
    bag = write_bag(
        tmp_path / 'bag', [('/i', 1.0, image(1.0)), ('/o', 1.0, odometry), ('/imu', 1.0, tilted)]
    )
    assert open_flight(bag).records[0].agl_m is None
    (bag / 'flight.yaml').write_text('topics: {agl: /o}')
    assert open_flight(bag).records[0].agl_m == 90.0


def test_damaged_orientation_is_no_level_flight(tmp_path):
    bag = write_bag(
        tmp_path / 'bag',
        [
            ('/i', 1.0, image(1.0)),
            ('/imu', 1.0, imu(1.0, (0.0, 0.0, 0.0, 0.0))),
            ('/i', 2.0, image(2.0)),
            ('/imu', 2.0, imu(2.0, quaternion(roll_deg=1), yaw_variance=10.0)),
        ],
    )
    flight = open_flight(bag)
    damaged, good = flight.records
    assert damaged.roll_deg is None
    with pytest.raises(FlightError, match=r'image message 0: imu orientation .* unit quaternion'):
        flight.frame(damaged)
    assert flight.frame(good).attitude.roll_deg == pytest.approx(1.0)
    assert good.heading_deg is None


def test_region_of_interest_of_the_camera(tmp_path):
    info = camera_info(region=(2, 1, 4, 5))
    camera = open_flight(
        write_bag(tmp_path / 'bag', [('/i', 1.0, image(1.0)), ('/c', 0.0, info)])
    ).camera
    assert (camera.width_px, camera.height_px, camera.cx_px, camera.cy_px) == (5, 4, 2.0, 2.0)


def test_uncalibrated_camera(tmp_path):
    messages = [('/i', 1.0, image(1.0)), ('/c', 0.0, camera_info(fx=0.0))]
    assert open_flight(write_bag(tmp_path / 'bag', messages)).camera is None


@pytest.mark.parametrize(
    ('info', 'message'),
    [
        (camera_info(fx=-1.0), 'camera_info: focal length'),
        (camera_info(model='magic'), "camera_info: distortion model 'magic' is unknown"),
    ],
)
def test_damaged_camera(tmp_path, info, message):
    bag = write_bag(tmp_path / 'bag', [('/i', 1.0, image(1.0)), ('/c', 0.0, info)])
    with pytest.raises(FlightError, match=message):
        open_flight(bag)


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
    [
        ('32FC1', "image message 0: image encoding '32FC1' is not supported"),
        ('rgba8', 'image message 0: image step is 24 bytes'),
    ],
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
