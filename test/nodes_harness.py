"""What the tests of the nodes share: a map, frames cut from it, processes and a ROS client."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.types import Attitude, Intrinsics

REPOSITORY = Path(__file__).resolve().parents[1]
CRS = 'EPSG:32617'
WEST_M, NORTH_M, GSD_M, SIDE_PX = 320_000.0, 4_560_000.0, 0.25, 1200
AGL_M = 100.0
WIDTH_PX, HEIGHT_PX = 400, 300
# One pixel of the camera is one pixel of the map.
CAMERA = Intrinsics(
    width_px=WIDTH_PX,
    height_px=HEIGHT_PX,
    fx_px=AGL_M / GSD_M,
    fy_px=AGL_M / GSD_M,
    cx_px=(WIDTH_PX - 1) / 2,
    cy_px=(HEIGHT_PX - 1) / 2,
)

# Domains up to 101 are safe from ephemeral ports; each pytest process takes a stretch of its own.
_domains = itertools.cycle(range(1 + os.getpid() % 90, 1 + os.getpid() % 90 + 11))


@functools.cache
def texture(seed: int = 7) -> np.ndarray:
    """An image that looks alike nowhere: blurred noise of several sizes and boxes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIDE_PX, SIDE_PX, 3), np.float32)
    for size in (4, 12, 40, 120):
        cells = SIDE_PX // size + 2
        noise = rng.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        grown = cv2.resize(noise, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        image += grown * size**0.3
    image = np.clip(255 * (image - image.min()) / np.ptp(image), 0, 255).astype(np.uint8)
    for _ in range(250):
        corner = rng.integers(0, SIDE_PX, 2)
        other = corner + rng.integers(8, 60, 2)
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.rectangle(image, corner.tolist(), other.tolist(), color, -1)
    return image


def write_map(path: Path, image: np.ndarray) -> None:
    """Write the image as a GeoTIFF."""
    rasterio = pytest.importorskip('rasterio', reason='needs the extra builder')
    from rasterio.transform import from_origin

    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=SIDE_PX,
        width=SIDE_PX,
        count=3,
        dtype='uint8',
        crs=CRS,
        transform=from_origin(WEST_M, NORTH_M, GSD_M, GSD_M),
    ) as target:
        target.write(image.transpose(2, 0, 1))


@functools.cache
def shared_gallery() -> Path:
    """A gallery of `texture()` with the model that is shipped, built once for all modules."""
    folder = Path(tempfile.mkdtemp(prefix='test_gallery_'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_map(folder / 'map.tif', texture())
    out = folder / 'test.gallery'
    subprocess.run(
        [
            *(sys.executable, '-m', 'gallery_builder', 'build'),
            *(str(folder / 'map.tif'), '--out', str(out)),
            *('--overlap', '0.5'),
        ],
        check=True,
        capture_output=True,
        cwd=REPOSITORY,
    )
    return out


def frame_at(row: int, col: int, *, heading_deg: int = 0) -> tuple[np.ndarray, float, float]:
    """What a level camera sees above a pixel corner of the map, and where that is.

    The heading is a multiple of 90 degrees, so that no pixel is invented.
    """
    upright = heading_deg % 180 == 0
    height, width = (HEIGHT_PX, WIDTH_PX) if upright else (WIDTH_PX, HEIGHT_PX)
    crop = texture()[row - height // 2 : row + height // 2, col - width // 2 : col + width // 2]
    # Turning counter-clockwise brings east to the top.
    image = np.ascontiguousarray(np.rot90(crop, heading_deg // 90))
    lat_deg, lon_deg = to_wgs84(CRS, WEST_M + col * GSD_M, NORTH_M - row * GSD_M)
    return image, lat_deg, lon_deg


def distance_m(
    lat_deg: float, lon_deg: float, other_lat_deg: float, other_lon_deg: float
) -> float:
    """Between two close positions."""
    north_m = (lat_deg - other_lat_deg) * 111_200.0
    east_m = (lon_deg - other_lon_deg) * 111_320.0 * np.cos(np.radians(lat_deg))
    return float(np.hypot(north_m, east_m))


def write_flight(folder: Path, pixels: list[tuple[int, int]], *, hz: float = 2.0) -> None:
    """A flight folder (docs/flight_format.md) over some pixels of the map."""
    (folder / 'frames').mkdir(parents=True)
    rows = []
    for number, (row, col) in enumerate(pixels):
        image, lat_deg, lon_deg = frame_at(row, col)
        name = f'frames/{number:03d}.png'
        cv2.imwrite(str(folder / name), image[:, :, ::-1])
        rows.append(
            {
                'file': name,
                'stamp_s': f'{1_700_000_000 + number / hz:.3f}',
                'lat_deg': f'{lat_deg:.9f}',
                'lon_deg': f'{lon_deg:.9f}',
                'agl_m': AGL_M,
                'roll_deg': 0.0,
                'pitch_deg': 0.0,
                'heading_deg': 0.0,
            }
        )
    with (folder / 'flight.csv').open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    camera = {
        'image_width': WIDTH_PX,
        'image_height': HEIGHT_PX,
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.0] * 5},
        'camera_matrix': {
            'rows': 3,
            'cols': 3,
            'data': [
                *(CAMERA.fx_px, 0.0, CAMERA.cx_px),
                *(0.0, CAMERA.fy_px, CAMERA.cy_px),
                *(0.0, 0.0, 1.0),
            ],
        },
    }
    (folder / 'camera.yaml').write_text(yaml.safe_dump(camera), encoding='utf-8')


class Process:
    """A node as a real process; its output goes to a file that a failing test can show."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        self._log = log
        with log.open('w', encoding='utf-8') as stream:
            self.popen = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=env
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding='utf-8')

    def wait_for_output(self, text: str, timeout_s: float = 20.0) -> None:
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
        self.domain = next(_domains)
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

    def spin_until(self, condition, *, timeout_s: float = 20.0, what: str = '') -> None:
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

    def call(self, kind: type, name: str, request: object, timeout_s: float = 30.0):
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
        self.spin(0.5)

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

        from bicrossnet_ros.nodes.messages import (
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

    def localize(self, messages: dict, *, timeout_s: float = 20.0):
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


@functools.cache
def shared_install() -> Path:
    """The package, built once with colcon in a workspace of its own; where it was installed."""
    for module in ('colcon_core', 'colcon_ros', 'ament_package'):
        pytest.importorskip(module, reason='needs colcon (the extra dev)')
    folder = Path(tempfile.mkdtemp(prefix='test_colcon_'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / 'src' / 'bicrossnet_ros'
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(
            '.*', 'build', 'install', 'log', 'out', 'test', 'training', 'bench', '*.egg-info'
        ),
    )
    result = subprocess.run(
        [sys.executable, '-m', 'colcon', 'build'],
        cwd=folder,
        env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / 'install' / 'bicrossnet_ros'
