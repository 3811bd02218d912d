"""The launch file: what it asks for, and that the installed executable does it.

`launch` is not on PyPI. The unchanged file is evaluated by `launch_stand_in`, its command line is
run with the executable that colcon installed, and its transitions are sent by hand. Where a real
`ros2` is found, the real `ros2 launch` runs as well.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import launch_stand_in
import pytest
import yaml
from nodes_scene import REPOSITORY, distance_m, frame_at, shared_install

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytestmark = pytest.mark.ros

FILE = REPOSITORY / 'launch' / 'geolocalize.launch.py'
PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')


def test_every_argument_is_described_and_optional():
    description = launch_stand_in.describe(FILE, Path('/share'))
    declared = {
        one.name: one
        for one in description.entities
        if isinstance(one, launch_stand_in.DeclareLaunchArgument)
    }
    assert set(declared) == {
        *('gallery', 'model', 'params_file', 'namespace', 'image', 'camera_info'),
        *('log_level', 'use_sim_time'),
    }
    assert all(len(one.description) > 10 for one in declared.values())


def test_without_arguments_only_the_shipped_file_counts():
    node = launch_stand_in.launch(FILE, Path('/share')).node
    assert node.parameters == ['/share/bicrossnet_ros/config/geolocalizer.yaml']
    assert node.remappings == []
    assert (node.name, node.namespace) == ('geolocalizer', '')
    assert node.arguments == ['--ros-args', '--log-level', 'info']


def test_arguments_reach_the_node(tmp_path):
    node = launch_stand_in.launch(
        FILE,
        Path('/share'),
        gallery='/maps/2024',
        params_file='/my.yaml',
        namespace='drone1',
        image='/cam/image_raw',
        camera_info='/cam/camera_info',
        log_level='debug',
        use_sim_time='true',
    ).node
    command = node.command(Path('/prefix'), tmp_path)
    assert command == [
        '/prefix/lib/bicrossnet_ros/geolocalizer',
        *('--ros-args', '--log-level', 'debug', '--ros-args'),
        *('-r', '__node:=geolocalizer', '-r', '__ns:=/drone1'),
        *('--params-file', '/my.yaml', '--params-file', f'{tmp_path}/launch_params_1.yaml'),
        *('-r', 'image:=/cam/image_raw', '-r', 'camera_info:=/cam/camera_info'),
        *('-r', 'image/compressed:=/cam/image_raw/compressed'),
    ]
    parameters = yaml.safe_load((tmp_path / 'launch_params_1.yaml').read_text())
    assert parameters == {
        '/**': {'ros__parameters': {'gallery': '/maps/2024', 'use_sim_time': True}}
    }


def test_it_is_configured_and_once_that_is_done_activated():
    launched = launch_stand_in.launch(FILE, Path('/share'))
    (configure,) = launched.transitions
    assert configure.transition_id == 1
    (handler,) = launched.handlers
    assert handler.target_lifecycle_node is launched.node
    assert (handler.start_state, handler.goal_state) == ('configuring', 'inactive')
    assert handler.handle_once
    (activate,) = handler.entities
    assert activate.event.transition_id == 3
    assert activate.event.lifecycle_node_matcher(launched.node)
    order = [name for name in launched.order if name != 'SetEnvironmentVariable']
    assert order == ['RegisterEventHandler', 'LifecycleNode', 'EmitEvent']
    assert launched.order[0] == 'SetEnvironmentVariable' or any(map(os.environ.get, PROFILES))


def test_the_dds_profile_is_set_unless_the_user_did(monkeypatch):
    for name in PROFILES:
        monkeypatch.delenv(name, raising=False)
    environment = launch_stand_in.launch(FILE, Path('/share')).environment
    assert environment == dict.fromkeys(PROFILES, '/share/bicrossnet_ros/config/fastdds.xml')
    monkeypatch.setenv(PROFILES[0], '/mine.xml')
    assert set(launch_stand_in.launch(FILE, Path('/share')).environment) == {PROFILES[1]}


@pytest.mark.parametrize(
    'line', ['from launch.actions import GroupAction', 'from launch_ros.actions import Node']
)
def test_the_stand_in_knows_nothing_else(tmp_path, line):
    path = tmp_path / 'other.launch.py'
    path.write_text(line)
    with pytest.raises((NotImplementedError, ImportError)):
        launch_stand_in.describe(path, Path('/share'))


@pytest.fixture(scope='module')
def installed() -> Path:
    return shared_install()


def test_the_installed_executable_does_what_the_file_says(installed, gallery, world, tmp_path):
    launched = launch_stand_in.launch(
        installed / 'share' / 'bicrossnet_ros' / 'launch' / FILE.name,
        installed / 'share',
        gallery=str(gallery),
        image='/belly/image',
        camera_info='/belly/camera_info',
    )
    world.env.update(launched.environment)
    world.env['PATH'] = f'{Path(sys.executable).parent}:{world.env["PATH"]}'
    (site,) = (installed / 'lib').glob('python3*/site-packages')
    world.env['PYTHONPATH'] = str(site)
    process = world.start(launched.node.command(installed, tmp_path))
    client = world.client(image='/belly/image', camera_info='/belly/camera_info')
    assert client.change_state('configure'), process.output
    assert client.change_state('activate'), process.output
    client.wait_for_node('image', 'camera_info', 'imu', 'range')
    image, lat_deg, lon_deg = frame_at(600, 600)
    estimate, _ = client.localize(client.messages(image, client.next_stamp_s()))
    assert estimate.is_fix, estimate.detail
    assert distance_m(estimate.lat_deg, estimate.lon_deg, lat_deg, lon_deg) < 1.0
    assert process.stop() == 0, process.output


def test_real_ros2_launch(gallery, installed, world):
    if shutil.which('ros2') is None:
        pytest.skip('ros2 is not installed; the stand-in above is what can be checked')
    setup = installed.parent / 'setup.bash'
    command = f'. {setup} && exec ros2 launch bicrossnet_ros {FILE.name} gallery:={gallery}'
    process = world.start(['bash', '-c', command])
    client = world.client()
    client.wait_for_node('image', 'camera_info', 'imu', 'range')
    image = frame_at(600, 600)[0]
    assert client.localize(client.messages(image, client.next_stamp_s()))[0].is_fix
    process.popen.send_signal(signal.SIGINT)
    try:
        assert process.popen.wait(timeout=15) == 0, process.output
    except subprocess.TimeoutExpired:
        process.stop(signal.SIGTERM)
        raise
