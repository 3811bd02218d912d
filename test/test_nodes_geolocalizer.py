"""The node as a real process, fed over DDS with frames cut from the map of its gallery."""

import json
import math
import shutil
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from nodes_harness import World
from nodes_scene import AGL_M, distance_m, frame_at, texture

from bicrossnet_ros.messages import quaternion_from_attitude
from bicrossnet_ros.types import Attitude, Reason

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytestmark = pytest.mark.ros

SENSORS = ('image', 'camera_info', 'imu', 'range')


@pytest.fixture(scope='module')
def running(gallery, tmp_path_factory):
    """A node that all tests of one frame share: none may take it down."""
    world = World(tmp_path_factory.mktemp('running'))
    process = world.start_node(gallery=gallery, autostart=True, max_age_s=5.0, max_future_s=1.0)
    client = world.client()
    client.wait_for_node(*SENSORS)
    yield client, process
    assert process.stop() == 0, process.output
    world.close()
    assert 'internal error' not in process.output
    assert 'XMLPARSER' not in process.output, 'the DDS profile was not read'


def set_orientation(messages, attitude: Attitude) -> None:
    q = messages['imu'].orientation
    q.x, q.y, q.z, q.w = quaternion_from_attitude(attitude)


@pytest.mark.parametrize(
    ('row', 'col', 'heading_deg'),
    [(600, 600, 0), (420, 730, 90), (700, 450, 180), (560, 640, 270)],
)
def test_a_fix_where_the_frame_was_cut(running, row, col, heading_deg):
    client, _ = running
    image, lat_deg, lon_deg = frame_at(row, col, heading_deg=heading_deg)
    at_s = client.next_stamp_s()
    estimate, fix = client.localize(client.messages(image, at_s, heading_deg=heading_deg))
    assert estimate.is_fix, estimate.detail
    assert estimate.stamp_s == pytest.approx(at_s, abs=1e-6)
    assert fix.header.frame_id == 'camera'
    assert fix.status.status == fix.status.STATUS_FIX
    assert (fix.latitude, fix.longitude) == (estimate.lat_deg, estimate.lon_deg)
    assert distance_m(fix.latitude, fix.longitude, lat_deg, lon_deg) < 1.0
    assert min(fix.position_covariance[0], fix.position_covariance[4]) > 0.0
    assert estimate.agl_m == pytest.approx(AGL_M, rel=0.02)
    assert {'decode', 'wait'} < set(estimate.timings_ms)


def test_pose_and_candidates_beside_the_fix(running, gallery):
    client, _ = running
    image = frame_at(600, 700)[0]
    estimate, fix = client.localize(client.messages(image, client.next_stamp_s()))
    client.spin_until(lambda: client.received['pose'] and client.received['candidates'])
    pose = client.received['pose'][-1]
    assert pose.header.stamp == fix.header.stamp
    assert pose.header.frame_id == 'map'
    # The origin is the centre of the map, (600, 600): 100 px of 0.25 m to the west.
    assert pose.pose.pose.position.x == pytest.approx(25.0, abs=1.5)
    assert pose.pose.pose.position.y == pytest.approx(0.0, abs=1.5)
    assert pose.pose.pose.position.z == pytest.approx(AGL_M, rel=0.02)
    assert pose.pose.covariance[0] > 0.0
    markers = client.received['candidates'][-1].markers
    assert len(markers) == 1 + len(estimate.candidates) > 1


def test_an_image_without_anything_else(running):
    """No camera_info, orientation or height of this moment: still the right place, or none."""
    client, _ = running
    image, lat_deg, lon_deg = frame_at(600, 600)
    messages = client.messages(image, client.next_stamp_s())
    estimate, _ = client.localize({'image': messages['image']})
    if estimate.is_fix:
        assert distance_m(estimate.lat_deg, estimate.lon_deg, lat_deg, lon_deg) < 30.0


# Each case spoils one message of a good frame: reason and part of the explanation.
BAD_FRAMES = {
    'unknown encoding': ('image', {'encoding': 'yuv422'}, "'yuv422' is not supported"),
    'no encoding': ('image', {'encoding': ''}, "'' is not supported"),
    'short data': ('image', {'data': b'\x01' * 100}, 'have 100 bytes'),
    'no data': ('image', {'data': b''}, 'have 0 bytes'),
    'empty image': ('image', {'width': 0, 'height': 0, 'step': 0, 'data': b''}, 'is absurd'),
    'absurd width': ('image', {'width': 4_000_000_000}, 'is absurd'),
    'step too small': ('image', {'step': 7}, 'step is 7 bytes'),
    'tiny image': (
        'image',
        {'width': 8, 'height': 8, 'step': 24, 'data': bytes(192)},
        'at least 32',
    ),
    'NaN intrinsics': ('camera_info', {'k': [math.nan] * 9}, 'two positive numbers'),
    'infinite focal length': (
        'camera_info',
        {'k': [math.inf, 0.0, 200.0, 0.0, 400.0, 150.0, 0.0, 0.0, 1.0]},
        'two positive numbers',
    ),
    'negative focal length': (
        'camera_info',
        {'k': [-1.0, 0.0, 200.0, 0.0, 400.0, 150.0, 0.0, 0.0, 1.0]},
        'two positive numbers',
    ),
    'unknown distortion': (
        'camera_info',
        {'distortion_model': 'fancy', 'd': [0.1]},
        "'fancy' is unknown",
    ),
    'three coefficients': ('camera_info', {'d': [0.1, 0.1, 0.1]}, 'has 3 distortion coefficients'),
    'NaN distortion': ('camera_info', {'d': [math.nan] * 5}, 'not finite'),
    'beyond any height': ('range', {'range': 90_000.0}, 'height'),
    'below the lowest height': ('range', {'range': 0.5}, 'height'),
}


@pytest.mark.parametrize('name', BAD_FRAMES)
def test_a_damaged_message_gives_no_fix_and_says_why(running, name):
    client, process = running
    topic, changes, expected = BAD_FRAMES[name]
    messages = client.messages(frame_at(600, 600)[0], client.next_stamp_s())
    for field, value in changes.items():
        setattr(messages[topic], field, value)
    estimate, fix = client.localize(messages)
    assert estimate.reason is Reason.BAD_INPUT
    assert expected in estimate.detail
    assert fix.status.status == fix.status.STATUS_NO_FIX
    assert math.isnan(fix.latitude)
    assert process.popen.poll() is None


@pytest.mark.parametrize(
    'quaternion', [(0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0), (3.0, 0.0, 0.0, 0.0)]
)
def test_an_orientation_that_is_none_gives_no_fix(running, quaternion):
    client, _ = running
    messages = client.messages(frame_at(600, 600)[0], client.next_stamp_s())
    q = messages['imu'].orientation
    q.x, q.y, q.z, q.w = quaternion
    estimate, _ = client.localize(messages)
    assert estimate.reason is Reason.BAD_INPUT
    assert 'unit quaternion' in estimate.detail


def test_a_camera_that_looks_at_the_horizon_gives_no_fix(running):
    client, _ = running
    messages = client.messages(frame_at(600, 600)[0], client.next_stamp_s())
    set_orientation(messages, Attitude(pitch_deg=70.0, heading_deg=0.0))
    estimate, _ = client.localize(messages)
    assert estimate.reason is Reason.BAD_INPUT


@pytest.mark.parametrize(
    ('offset_s', 'reason', 'expected'),
    [
        (None, Reason.BAD_INPUT, 'no stamp'),
        (-60.0, Reason.STALE, 's old'),
        (3600.0, Reason.BAD_INPUT, 'ahead of the clock'),
    ],
)
def test_a_stamp_that_cannot_be(running, offset_s, reason, expected):
    client, _ = running
    at_s = 0.0 if offset_s is None else time.time() + offset_s
    estimate, _ = client.localize(client.messages(frame_at(600, 600)[0], at_s))
    assert estimate.reason is reason
    assert expected in estimate.detail


def test_a_clock_that_goes_backwards(running):
    client, _ = running
    image = frame_at(600, 600)[0]
    at_s = client.next_stamp_s()
    assert client.localize(client.messages(image, at_s))[0].is_fix
    estimate, _ = client.localize(client.messages(image, at_s - 0.5))
    assert estimate.reason is Reason.BAD_INPUT
    assert 'before the newest one' in estimate.detail
    assert client.localize(client.messages(image, client.next_stamp_s()))[0].is_fix


@pytest.mark.parametrize('picture', ['black', 'noise', 'another place'])
def test_what_is_not_on_the_map_gives_no_fix(running, picture):
    client, _ = running
    image = {
        'black': np.zeros((300, 400, 3), np.uint8),
        'noise': np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8),
        'another place': texture(seed=99)[450:750, 400:800],
    }[picture]
    estimate, fix = client.localize(client.messages(image, client.next_stamp_s()))
    assert not estimate.is_fix
    assert estimate.detail
    assert fix.status.status == fix.status.STATUS_NO_FIX


def test_no_pose_without_a_fix(running):
    client, _ = running
    client.localize(client.messages(np.zeros((300, 400, 3), np.uint8), client.next_stamp_s()))
    client.spin(0.3)
    assert client.received['pose'] == []


def test_the_newest_frame_wins(running):
    client, _ = running
    client.localize(client.messages(frame_at(600, 600)[0], client.next_stamp_s()))
    for received in client.received.values():
        received.clear()
    sent = []
    for number in range(30):
        image = frame_at(600, 500 + 5 * number)[0]
        messages = client.messages(image, client.next_stamp_s())
        client.publish(messages)
        sent.append(messages['image'].header.stamp)
        client.spin(0.005)
    reports = client.received['geolocalizer/report']
    client.spin_until(lambda: reports and reports[-1].header.stamp == sent[-1])
    client.spin(0.5)
    stamps = [(one.header.stamp.sec, one.header.stamp.nanosec) for one in reports]
    assert stamps == sorted(stamps)
    assert stamps[-1] == (sent[-1].sec, sent[-1].nanosec), 'a queue was worked off'
    assert len(stamps) < len(sent)


def test_diagnostics_every_second(running, gallery):
    client, _ = running
    image = frame_at(600, 600)[0]
    for _ in range(2):  # the first one may take long: it reads the map
        client.localize(client.messages(image, client.next_stamp_s()))
    client.received['/diagnostics'].clear()
    client.spin_until(lambda: client.received['/diagnostics'])
    status = client.received['/diagnostics'][0].status[0]
    values = {pair.key: pair.value for pair in status.values}
    assert status.name == 'geolocalizer: localization'
    assert status.level == status.OK, status.message
    assert values['state'] == 'active'
    assert values['gallery'] == str(gallery)
    assert len(values['model_id']) == 64
    assert values['runtime'].startswith(('native ', 'ONNX Runtime '))
    assert int(values['frames_received']) >= int(values['frames_processed']) > 0
    assert int(values['count.fix']) > 0
    assert float(values['ms.latency.p95']) >= float(values['ms.latency.p50']) > 0.0
    assert float(values['age_of_last_fix_s']) < 5.0


def test_relocalize(running):
    client, _ = running
    answer = client.trigger('relocalize')
    assert answer.success
    assert 'whole gallery' in answer.message


def test_a_parameter_in_flight_is_refused_with_the_remedy(running):
    client, _ = running
    result = client.set_parameter('registration.min_inliers', 6)
    assert not result.successful
    assert 'clean up first' in result.reason
    assert not client.set_parameter('registration.min_inlier', 6).successful


def test_reload_keeps_the_gallery_that_works(running, gallery, tmp_path):
    client, _ = running
    image, lat_deg, lon_deg = frame_at(600, 600)
    assert client.set_parameter('gallery', str(tmp_path / 'none.gallery')).successful
    answer = client.trigger('reload_gallery')
    assert not answer.success
    assert 'the gallery in use stays' in answer.message
    assert 'none.gallery' in answer.message
    assert client.localize(client.messages(image, client.next_stamp_s()))[0].is_fix

    assert client.set_parameter('gallery', str(tmp_path / ('x' * 300))).successful
    answer = client.trigger('reload_gallery')
    assert not answer.success
    assert 'the gallery in use stays' in answer.message
    assert 'File name too long' in answer.message
    assert client.localize(client.messages(image, client.next_stamp_s()))[0].is_fix

    copy = shutil.copytree(gallery, tmp_path / 'copy.gallery')
    assert client.set_parameter('gallery', str(copy)).successful
    answer = client.trigger('reload_gallery')
    assert answer.success, answer.message
    estimate, _ = client.localize(client.messages(image, client.next_stamp_s()))
    assert distance_m(estimate.lat_deg, estimate.lon_deg, lat_deg, lon_deg) < 1.0

    assert client.set_parameter('gallery', str(gallery)).successful
    assert client.trigger('reload_gallery').success


# The node with defects put into it: one in each way that a callback can be reached.
DEFECTIVE = """
from bicrossnet_ros.nodes import geolocalizer, pipeline, publishers, sensors

def fail(*_):
    raise ValueError('put in by a test')

publish = publishers.EstimatePublisher.publish

def publish_sometimes(self, pipeline, where, estimate, exposure, latency_ms):
    if exposure.frame_id == 'exit':
        raise SystemExit
    if exposure.frame_id == 'fail':
        fail()
    publish(self, pipeline, where, estimate, exposure, latency_ms)

pipeline.Pipeline.reload_map = fail
sensors.Sensors.add_range = fail
sensors.Sensors.forget_position = fail
publishers.EstimatePublisher.publish = publish_sometimes
geolocalizer.main()
"""


def test_a_defect_of_ours_is_told_and_survived(world, gallery):
    from std_srvs.srv import Trigger

    parameters = ['-p', f'gallery:={gallery}', '-p', 'autostart:=true']
    started_s = time.monotonic()
    process = world.start([sys.executable, '-c', DEFECTIVE, '--ros-args', *parameters])
    client = world.client()
    client.wait_for_node(*SENSORS)
    image = frame_at(600, 600)[0]

    def shot(frame_id: str) -> dict:
        messages = client.messages(image, client.next_stamp_s())
        messages['image'].header.frame_id = frame_id
        return messages

    def problem_told(text: str) -> bool:
        return any(text in one.status[0].message for one in client.received['/diagnostics'])

    for _ in range(5):
        client.publish({'range': shot('camera')['range']})
        client.spin(0.05)
    client.publish(shot('fail'))
    client.spin(0.5)
    client.localize(shot('camera'))
    unanswered = client.node.create_client(Trigger, 'geolocalizer/relocalize')
    unanswered.wait_for_service(5.0)
    unanswered.call_async(Trigger.Request())
    answer = client.trigger('reload_gallery')
    assert not answer.success
    assert answer.message == 'the gallery in use stays: ValueError: put in by a test'
    client.localize(shot('camera'))
    client.spin_until(lambda: problem_told('internal error: ValueError: put in by a test'))
    values = {
        pair.key: pair.value for pair in client.received['/diagnostics'][-1].status[0].values
    }
    assert int(values['internal_errors']) >= 8
    # At most one in 5 s.
    told, running_s = (
        process.output.count('internal error in a callback'),
        time.monotonic() - started_s,
    )
    assert told <= 1 + running_s / 5, 'not throttled'
    client.publish(shot('exit'))
    client.spin_until(lambda: problem_told('the thread that works on frames ended'))
    assert client.change_state('deactivate')
    assert client.change_state('activate')
    client.wait_for_node(*SENSORS)
    client.localize(shot('camera'))
    assert process.stop() == 0, process.output


def test_deactivated_it_is_silent_and_comes_back(running):
    client, _ = running
    assert client.change_state('deactivate')
    assert client.state() == 'inactive'
    client.spin_until(lambda: not client.publishers['image'].get_subscription_count())
    assert client.change_state('cleanup')
    assert client.state() == 'unconfigured'
    assert not client.trigger('relocalize').success
    assert not client.trigger('reload_gallery').success
    assert client.set_parameter('registration.min_inliers', 26).successful
    assert client.change_state('configure')
    assert client.change_state('activate')
    client.wait_for_node(*SENSORS)
    image = frame_at(600, 600)[0]
    assert client.localize(client.messages(image, client.next_stamp_s()))[0].is_fix


def spoiled(gallery: Path, folder: Path, how: str) -> Path:
    """A copy of the gallery with one thing wrong."""
    copy = shutil.copytree(gallery, folder / f'{how}.gallery')
    manifest = copy / 'gallery.json'
    values = json.loads(manifest.read_text())
    if how == 'version':
        values['format_version'] = 999
    elif how == 'model':
        values['model_id'] = '0' * 64
    elif how == 'flipped':
        data = bytearray((copy / 'index.faiss').read_bytes())
        data[len(data) // 2] ^= 1
        (copy / 'index.faiss').write_bytes(data)
        return copy
    elif how == 'missing':
        (copy / 'map.gpkg').unlink()
        return copy
    elif how == 'truncated':
        manifest.write_text(manifest.read_text()[:100])
        return copy
    manifest.write_text(json.dumps(values))
    return copy


def test_what_cannot_be_used_fails_at_configure_and_can_be_put_right(world, gallery, tmp_path):
    process = world.start_node()
    client = world.client()
    assert client.state() == 'unconfigured'
    garbage = tmp_path / 'garbage.safetensors'
    garbage.write_bytes(b'no model')
    for name, value, expected in (
        ('gallery', '', 'parameter gallery is empty'),
        ('gallery', str(tmp_path / 'nowhere.gallery'), 'nowhere.gallery'),
        ('gallery', str(spoiled(gallery, tmp_path, 'version')), '999'),
        ('gallery', str(spoiled(gallery, tmp_path, 'model')), 'rebuild the gallery'),
        ('gallery', str(spoiled(gallery, tmp_path, 'flipped')), 'index.faiss'),
        ('gallery', str(spoiled(gallery, tmp_path, 'missing')), 'map.gpkg'),
        ('gallery', str(spoiled(gallery, tmp_path, 'truncated')), 'gallery.json'),
        ('model', str(tmp_path / 'nowhere.safetensors'), 'nowhere.safetensors'),
        ('model', str(garbage), 'garbage.safetensors'),
    ):
        before = len(process.output)
        assert client.set_parameter(name, value).successful
        assert not client.change_state('configure')
        assert client.state() == 'unconfigured'
        process.wait_for_output('cannot configure')
        said = process.output[before:]
        assert 'cannot configure' in said
        assert expected in said
        assert 'Traceback' not in said
    for name, value, expected in (
        ('height_source', 'sonar', 'expected one of'),
        ('registration.ratio', 5.0, ''),
        ('registration.min_inliers', 'many', ''),
    ):
        result = client.set_parameter(name, value)
        assert not result.successful
        assert expected in result.reason
    assert client.set_parameter('model', '').successful
    assert client.set_parameter('gallery', str(gallery)).successful
    assert client.change_state('configure'), process.output
    assert process.stop(signal.SIGTERM) == 0, process.output


def test_bad_parameters_at_the_start_are_all_named_and_can_be_put_right(world, gallery):
    process = world.start_node(
        gallery=gallery,
        autostart=True,
        registration__min_inliers='few',
        registration__max_inliers=3,
        retrieval__candidates=100_000,
        camera__assumed_agl_m='[80, 100]',
        camera__mount_yaw_deg=90,
        height_source='sonar',
    )
    client = world.client()
    process.wait_for_output('cannot configure')
    said = process.output
    assert "registration.min_inliers is 'few'; expected a whole number" in said
    assert 'parameter registration.max_inliers is unknown; did you mean' in said
    assert 'retrieval.candidates' in said
    assert 'Traceback' not in said
    assert client.state() == 'unconfigured'
    assert not client.change_state('configure')
    assert process.stop() == 0, process.output


def test_compressed_images_and_a_prior_from_gps(world, gallery):
    from sensor_msgs.msg import CompressedImage, NavSatFix

    world.start_node(
        gallery=gallery,
        autostart=True,
        image_transport='compressed',
        prior_source='gps',
        frame_id='belly_camera',
    )
    client = world.client()
    client.wait_for_node('image/compressed', 'camera_info', 'imu', 'range', 'gps/fix')
    image, lat_deg, lon_deg = frame_at(600, 600)

    def shot(data: bytes, gps_lat_deg: float):
        messages = client.messages(image, client.next_stamp_s())
        header = messages.pop('image').header
        gps = NavSatFix(header=header, latitude=gps_lat_deg, longitude=lon_deg)
        gps.status.status = gps.status.STATUS_FIX
        messages['gps/fix'] = gps
        client.publish(messages)
        client.spin(0.2)
        return client.localize(
            {'image/compressed': CompressedImage(header=header, format='jpeg', data=data)}
        )

    jpeg = cv2.imencode('.jpg', image[:, :, ::-1])[1].tobytes()
    estimate, fix = shot(jpeg, lat_deg)
    assert estimate.is_fix, estimate.detail
    assert fix.header.frame_id == 'belly_camera'
    assert distance_m(fix.latitude, fix.longitude, lat_deg, lon_deg) < 1.0
    estimate, _ = shot(jpeg[:300], lat_deg)
    assert not estimate.is_fix
    estimate, _ = shot(b'no image', lat_deg)
    assert estimate.reason is Reason.BAD_INPUT
    assert 'not decodable' in estimate.detail
    # 50 km away there is no map; told to relocalize, the node looks everywhere.
    estimate, _ = shot(jpeg, lat_deg + 0.5)
    assert estimate.reason is Reason.NO_MAP_HERE, estimate.detail
    assert client.trigger('relocalize').success
    estimate, _ = shot(jpeg, lat_deg + 0.5)
    assert estimate.is_fix, estimate.detail


def test_simulated_time(world, gallery):
    from rclpy.time import Time
    from rosgraph_msgs.msg import Clock

    world.start_node(gallery=gallery, autostart=True, use_sim_time=True)
    client = world.client()
    client.wait_for_node(*SENSORS, '/clock')
    image = frame_at(600, 600)[0]

    def at(clock_s: float, stamp_s: float):
        client.publish({'/clock': Clock(clock=Time(nanoseconds=int(clock_s * 1e9)).to_msg())})
        return client.localize(client.messages(image, stamp_s))[0]

    estimate = client.localize(client.messages(image, 1000.0))[0]
    assert 'is /clock there' in estimate.detail
    assert at(1000.0, 1000.0).is_fix
    assert at(1010.0, 1001.0).reason is Reason.STALE
    assert at(1010.0, 1010.0).is_fix
    # The flight is played again from its start: not a frame out of order, a new time.
    assert at(1000.0, 1000.0).is_fix


@pytest.mark.parametrize('is_active', [False, True])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(world, gallery, number, is_active):
    process = world.start_node(gallery=gallery, autostart=is_active)
    client = world.client()
    if is_active:
        client.wait_for_node(*SENSORS)
        for _ in range(3):
            client.publish(client.messages(frame_at(600, 600)[0], client.next_stamp_s()))
    else:
        assert client.state() == 'unconfigured'
    assert process.stop(number) == 0, process.output
    assert 'Traceback' not in process.output


def test_a_second_interrupt_while_it_ends_does_no_harm(world, gallery):
    """As Ctrl-C under a launch file does it."""
    process = world.start_node(gallery=gallery, autostart=True)
    client = world.client()
    client.wait_for_node(*SENSORS)
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if process.popen.poll() is None:
        process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(timeout=10) == 0, process.output


@pytest.mark.parametrize(
    ('backend', 'said'),
    [
        # The package's own warnings are in ROS' log, where ground stations and bags look.
        ('onnxruntime', '[WARN]'),
        ('mmx', 'cannot configure: '),
    ],
)
def test_what_runs_the_network_is_said_in_the_log(backend, said, world, gallery):
    world.env['BICROSSNET_BACKEND'] = backend
    process = world.start_node(gallery=gallery, autostart=True)
    process.wait_for_output('in ONNX Runtime ' if said == '[WARN]' else 'cannot configure')
    (line,) = (line for line in process.output.splitlines() if 'BICROSSNET_BACKEND=' in line)
    assert said in line
    assert '[geolocalizer]' in line
    assert process.stop() == 0
