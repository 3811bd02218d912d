"""What the tests of the nodes share: node processes in a ROS domain and a client beside them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
from nodes_scene import AGL_M, CAMERA, REPOSITORY

from bicrossnet_ros.types import Attitude

# What does not happen in this time hangs. The first frame takes seconds of computing: it reads the
# map around it, and a busy machine gives a test a tenth of a core.
PATIENCE_S = 90.0


def free_domain() -> tuple[int, IO[str]]:
    """A ROS domain that no other test on this computer uses while the file stays open.

    Domains up to 101 keep clear of the ephemeral ports.
    """
    for domain in random.SystemRandom().sample(range(1, 102), 101):
        path = Path(tempfile.gettempdir()) / f'test_ros_domain_{domain}.lock'
        lock = path.open('w')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return domain, lock
    raise AssertionError('all ROS domains are in use')


def _die_with_parent() -> None:
    """A node that outlives a killed test run would answer in the tests of the next one."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Process:
    """A node as a real process; its output goes to a file that a failing test can show."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        self._log = log
        with log.open('w', encoding='utf-8') as stream:
            self.popen = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=env,
                preexec_fn=_die_with_parent if sys.platform == 'linux' else None,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding='utf-8')

    def wait_for_output(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        until_s = time.monotonic() + timeout_s
        while text not in self.output:
            assert time.monotonic() < until_s, f'{text!r} did not appear in:\n{self.output}'
            time.sleep(0.05)

    def stop(self, with_signal: int = signal.SIGINT) -> int:
        """End it; the exit code (negative: the signal that had to kill it)."""
        for number in (with_signal, signal.SIGTERM, signal.SIGKILL):
            if self.popen.poll() is None:
                self.popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.popen.wait(timeout=10)
        raise AssertionError('the process outlived SIGKILL')


class World:
    """One ROS domain on this computer alone, with the processes and the client in it."""

    def __init__(self, folder: Path) -> None:
        self.domain, self._lock = free_domain()
        self._folder = folder
        self._processes: list[Process] = []
        self._clients: list[Client] = []
        # The discovery of this process is limited by the same variable.
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        self.env = {
            **os.environ,
            'ROS_DOMAIN_ID': str(self.domain),
            'PYTHONPATH': os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get('PYTHONPATH')])
            ),
            'PYTHONUNBUFFERED': '1',
            'RCUTILS_LOGGING_BUFFERED_STREAM': '0',
            'ROS_LOG_DIR': str(folder / 'ros_log'),
        }
        profile = str(REPOSITORY / 'config' / 'fastdds.xml')
        for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
            os.environ[name] = self.env[name] = profile

    def start(self, command: list[str]) -> Process:
        """Start a process in this domain."""
        log = self._folder / f'process_{len(self._processes)}.log'
        process = Process(command, log, self.env)
        self._processes.append(process)
        return process

    def start_node(self, **parameters: object) -> Process:
        """Start the geolocalizer with parameters given on the command line."""
        command = [sys.executable, '-m', 'bicrossnet_ros.nodes.geolocalizer', '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name.replace("__", ".")}:={_yaml(value)}']
        return self.start(command)

    def start_player(self, *arguments: str) -> Process:
        """Start the flight player."""
        return self.start([sys.executable, '-m', 'bicrossnet_ros.nodes.flight_player', *arguments])

    def client(self, **topics: str) -> Client:
        """A node of this process in the same domain; `topics` renames what it publishes."""
        client = Client(self.domain, topics)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """End everything."""
        for client in self._clients:
            client.close()
        for process in self._processes:
            if process.popen.poll() is None:
                process.stop()
        self._lock.close()


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


class Client:
    """Plays camera, autopilot and ground station for the node `geolocalizer`."""

    def __init__(self, domain: int, topics: dict[str, str]) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from nav_msgs.msg import Odometry
        from rclpy.executors import SingleThreadedExecutor
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import (
            CameraInfo,
            CompressedImage,
            Image,
            Imu,
            NavSatFix,
            Range,
        )
        from visualization_msgs.msg import MarkerArray

        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.node = rclpy.create_node('test_client', context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        publish = self.node.create_publisher
        self.publishers = {
            'image': publish(Image, topics.get('image', 'image'), 10),
            'image/compressed': publish(CompressedImage, 'image/compressed', 10),
            'camera_info': publish(CameraInfo, topics.get('camera_info', 'camera_info'), 10),
            'imu': publish(Imu, 'imu', 10),
            'range': publish(Range, 'range', 10),
            'odom': publish(Odometry, 'odom', 10),
            'gps/fix': publish(NavSatFix, 'gps/fix', 10),
            '/clock': publish(Clock, '/clock', 10),
        }
        self.received: dict[str, list] = {}
        for kind, topic in (
            (NavSatFix, 'fix'),
            (PoseWithCovarianceStamped, 'pose'),
            (MarkerArray, 'candidates'),
            (DiagnosticArray, 'geolocalizer/report'),
            (DiagnosticArray, '/diagnostics'),
        ):
            messages = self.received.setdefault(topic, [])
            self.node.create_subscription(kind, topic, messages.append, 50)
        self._services: dict[str, object] = {}
        self._stamp_s = 0.0

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def spin_until(self, condition, *, timeout_s: float = PATIENCE_S, what: str = '') -> None:
        until_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until_s, f'{what or condition} not within {timeout_s} s'
            self._executor.spin_once(timeout_sec=0.05)

    def spin(self, duration_s: float) -> None:
        until_s = time.monotonic() + duration_s
        while time.monotonic() < until_s:
            self._executor.spin_once(timeout_sec=0.05)

    def listen(self, *topics: str) -> dict[str, list]:
        """Collect what others publish on topics that this client could publish on itself."""
        heard: dict[str, list] = {topic: [] for topic in topics}
        for topic in topics:
            publisher = self.publishers.pop(topic)
            kind = publisher.msg_type
            self.node.destroy_publisher(publisher)
            self.node.create_subscription(kind, topic, heard[topic].append, 20)
        return heard

    # Services

    def call(self, kind: type, name: str, request: object, timeout_s: float = PATIENCE_S):
        key = f'{name} {kind.__name__}'
        if key not in self._services:
            self._services[key] = self.node.create_client(kind, name)
        service = self._services[key]
        self.spin_until(service.service_is_ready, what=f'service {name}')
        future = service.call_async(request)
        self.spin_until(future.done, timeout_s=timeout_s, what=f'answer of {name}')
        return future.result()

    def trigger(self, name: str):
        from std_srvs.srv import Trigger

        return self.call(Trigger, f'geolocalizer/{name}', Trigger.Request())

    def change_state(self, transition: str) -> bool:
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.label = transition
        request.transition.id = {
            'configure': 1,
            'cleanup': 2,
            'activate': 3,
            'deactivate': 4,
            'unconfigured_shutdown': 5,
        }[transition]
        return self.call(ChangeState, 'geolocalizer/change_state', request).success

    def state(self) -> str:
        from lifecycle_msgs.srv import GetState

        answer = self.call(GetState, 'geolocalizer/get_state', GetState.Request())
        return answer.current_state.label

    def set_parameter(self, name: str, value: object):
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, 'geolocalizer/set_parameters', request).results[0]

    # Frames

    def wait_for_node(self, *topics: str) -> None:
        """Until the node listens to these topics and is heard."""
        publishers = [self.publishers[topic] for topic in topics]
        self.spin_until(
            lambda: (
                all(publisher.get_subscription_count() for publisher in publishers)
                and all(
                    self.node.count_publishers(topic)
                    for topic in ('fix', 'pose', 'candidates', 'geolocalizer/report')
                )
            ),
            what=f'a node that listens to {topics}',
        )
        self.spin(1.0)  # the node learns of us on its own

    def next_stamp_s(self) -> float:
        """The time now, later than any before."""
        self._stamp_s = max(time.time(), self._stamp_s + 1e-3)
        return self._stamp_s

    def header(self, at_s: float):
        from rclpy.time import Time
        from std_msgs.msg import Header

        return Header(stamp=Time(nanoseconds=round(at_s * 1e9)).to_msg(), frame_id='camera')

    def messages(self, image: np.ndarray, at_s: float, *, heading_deg: float = 0.0) -> dict:
        """Everything about one exposure, level at AGL_M, by topic."""
        from sensor_msgs.msg import CameraInfo, Image, Imu, Range

        from bicrossnet_ros.messages import (
            fill_camera_info,
            fill_image,
            quaternion_from_attitude,
        )

        header = self.header(at_s)
        info = CameraInfo(header=header)
        fill_camera_info(info, CAMERA)
        imu = Imu(header=header)
        q = imu.orientation
        q.x, q.y, q.z, q.w = quaternion_from_attitude(Attitude(heading_deg=heading_deg))
        height = Range(header=header, min_range=0.1, max_range=1e6, range=AGL_M)
        picture = Image(header=header)
        fill_image(picture, image)
        return {'camera_info': info, 'imu': imu, 'range': height, 'image': picture}

    def publish(self, messages: dict) -> None:
        for topic, message in messages.items():
            self.publishers[topic].publish(message)

    def localize(self, messages: dict, *, timeout_s: float = PATIENCE_S):
        """Publish one exposure and wait for what the node says: (estimate, fix)."""
        from bicrossnet_ros.nodes.diagnostics import estimate_from_diagnostic

        for received in self.received.values():
            received.clear()
        self.publish(messages)
        stamp = (messages.get('image') or messages['image/compressed']).header.stamp

        def answered(topic: str) -> list:
            return [one for one in self.received[topic] if one.header.stamp == stamp]

        self.spin_until(
            lambda: answered('geolocalizer/report') and answered('fix'),
            timeout_s=timeout_s,
            what='a report',
        )
        report = answered('geolocalizer/report')[-1]
        return estimate_from_diagnostic(report.status[0]), answered('fix')[-1]
