"""Read a rosbag2 (sqlite3 or MCAP) as a flight, without ROS.

Every image message is one record. The other topics are looked up at its exposure time: the
attitude within 0.2 s, height and position within 1 s; otherwise they are unknown.
"""

from __future__ import annotations

import bisect
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import Flight, FlightRecord, decode_image
from bicrossnet_ros.flight_folder import DISTORTION_MODELS, FlightConfig, load_flight_config
from bicrossnet_ros.geodesy import yaw_to_heading_deg
from bicrossnet_ros.types import ImageArray, Intrinsics

MAX_ATTITUDE_AGE_S = 0.2
MAX_AGE_S = 1.0

# What a flight is made of, and the message types it may come in. Odometry is a height above
# ground, and a second position the truth, only where the configuration says so.
KINDS: dict[str, tuple[str, ...]] = {
    'image': ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'),
    'camera_info': ('sensor_msgs/msg/CameraInfo',),
    'imu': ('sensor_msgs/msg/Imu',),
    'gps': ('sensor_msgs/msg/NavSatFix',),
    'agl': ('sensor_msgs/msg/Range', 'nav_msgs/msg/Odometry'),
    'truth': ('sensor_msgs/msg/NavSatFix',),
}
NEVER_GUESSED = {('agl', 'nav_msgs/msg/Odometry'), ('truth', 'sensor_msgs/msg/NavSatFix')}
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1, '8UC1': 1, '8UC3': 3}


class _Series(NamedTuple):
    """Values of one topic in the order of their stamps."""

    stamps_s: list[float]
    values: list[Any]

    def near(self, stamp_s: float, max_age_s: float) -> Any:
        """The value closest in time, or None if none is close enough."""
        at = bisect.bisect_left(self.stamps_s, stamp_s)
        around = [i for i in (at - 1, at) if 0 <= i < len(self.stamps_s)]
        if not around:
            return None
        best = min(around, key=lambda i: abs(self.stamps_s[i] - stamp_s))
        return self.values[best] if abs(self.stamps_s[best] - stamp_s) <= max_age_s else None


def open_bag(path: Path, *, config: Path | None = None) -> Flight:
    """Open a rosbag2; see `flight.open_flight`.

    The whole bag is read once, for the stamps; images are kept on disk.

    Raises
    ------
    FlightError
        If it cannot be read, `rosbags` is not installed, or the topics are not clear.
    """
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise FlightError(
            f'{path}: reading a rosbag2 needs the package rosbags: pip install rosbags'
        ) from error
    if path.suffix == '.db3':
        path = path.parent  # a SQLite bag is opened by the folder that holds its metadata
    own = path / 'flight.yaml'
    if config is None and own.is_file():
        config = own
    settings = load_flight_config(config) if config is not None else FlightConfig()
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.LATEST))
        reader.open()
        chosen = _choose_topics(reader.connections, settings.topics, path)
        bag = _Bag(reader, chosen)
        records = bag.records()
    except (AnyReaderError, OSError, ValueError) as error:
        raise FlightError(f'{path}: not readable as a rosbag2: {error}') from error
    if not records:
        raise FlightError(f'{path}: topic {chosen["image"]} holds no image')
    return Flight(
        settings.name or path.resolve().name,
        records,
        bag.image,
        camera=bag.camera(path),
        truth_is_map_relative=bool(settings.truth_is_map_relative),
    )


def _choose_topics(
    connections: list[Any], wanted: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Which topic serves what: as configured, else the only one of a fitting type."""
    types = {one.topic: one.msgtype for one in connections}
    unknown = sorted(key for key in wanted if key not in KINDS)
    if unknown:
        raise FlightError(f'{path}: topics: unknown {unknown}; known are {sorted(KINDS)}')
    chosen: dict[str, str] = {}
    for kind, allowed in KINDS.items():
        if kind in wanted:
            topic = wanted[kind]
            if types.get(topic) not in allowed:
                raise FlightError(
                    f'{path}: topic {topic!r} for {kind} is {types.get(topic, "not there")}; '
                    f'expected one of {list(allowed)}; the bag has {types}'
                )
            chosen[kind] = topic
            continue
        fitting = [
            topic
            for topic, name in types.items()
            if name in allowed and (kind, name) not in NEVER_GUESSED
        ]
        if len(fitting) > 1:
            raise FlightError(
                f'{path}: {len(fitting)} topics fit {kind}: {sorted(fitting)}; '
                f'choose one under `topics` in a flight.yaml'
            )
        if fitting:
            chosen[kind] = fitting[0]
    if 'image' not in chosen:
        raise FlightError(f'{path}: no topic with images; the bag has {types}')
    return chosen


class _Bag:
    """One pass over the bag for everything but pixels; images again when asked for."""

    def __init__(self, reader: Any, topics: Mapping[str, str]) -> None:
        self._reader = reader
        kinds = {topic: kind for kind, topic in topics.items()}
        self._images = [one for one in reader.connections if one.topic == topics['image']]
        self._times_ns: list[int] = []
        self._image_stamps_s: list[float] = []
        self._series: dict[str, _Series] = {}
        wanted = [one for one in reader.connections if one.topic in kinds]
        found: dict[str, list[tuple[float, Any]]] = {kind: [] for kind in KINDS}
        for connection, time_ns, raw in reader.messages(connections=wanted):
            kind = kinds[connection.topic]
            stamp_s = _header_stamp_s(raw) or time_ns * 1e-9
            if kind == 'image':
                self._times_ns.append(time_ns)
                self._image_stamps_s.append(stamp_s)
                continue
            value = _value(kind, reader.deserialize(raw, connection.msgtype))
            if value is not None:
                found[kind].append((stamp_s, value))
        for kind, pairs in found.items():
            pairs.sort(key=lambda pair: pair[0])
            self._series[kind] = _Series([one[0] for one in pairs], [one[1] for one in pairs])

    def records(self) -> tuple[FlightRecord, ...]:
        """One record per image, in the order of the recording."""
        records = []
        previous_s = -math.inf
        for number, stamp_s in enumerate(self._image_stamps_s):
            attitude = self._series['imu'].near(stamp_s, MAX_ATTITUDE_AGE_S) or (None,) * 3
            position = self._series['gps'].near(stamp_s, MAX_AGE_S) or (math.nan,) * 3
            truth = self._series['truth'].near(stamp_s, MAX_AGE_S) or (math.nan,) * 3
            problem = ''
            if stamp_s < previous_s:
                problem = (
                    f'image message {number}: the clock goes backwards by '
                    f'{previous_s - stamp_s:g} s'
                )
            previous_s = stamp_s
            records.append(
                FlightRecord(
                    file=f'{stamp_s:.6f}',
                    stamp_s=stamp_s,
                    lat_deg=position[0],
                    lon_deg=position[1],
                    ellipsoid_m=position[2],
                    agl_m=self._series['agl'].near(stamp_s, MAX_AGE_S),
                    roll_deg=attitude[0],
                    pitch_deg=attitude[1],
                    heading_deg=attitude[2],
                    truth_lat_deg=truth[0],
                    truth_lon_deg=truth[1],
                    row=number,
                    problem=problem,
                )
            )
        return tuple(records)

    def image(self, record: FlightRecord) -> ImageArray:
        """Read one image message again and decode it."""
        time_ns = self._times_ns[record.row]
        source = f'image message {record.row}'
        for connection, _, raw in self._reader.messages(
            connections=self._images, start=time_ns, stop=time_ns + 1
        ):
            if (_header_stamp_s(raw) or time_ns * 1e-9) == record.stamp_s:
                message = self._reader.deserialize(raw, connection.msgtype)
                if connection.msgtype == 'sensor_msgs/msg/CompressedImage':
                    return decode_image(bytes(message.data), source)
                return decode_raw(message, source)
        raise ImageError(f'{source}: is no longer in the bag')

    def camera(self, path: Path) -> Intrinsics | None:
        """The intrinsics of the first camera_info message, if there is one."""
        values = self._series['camera_info'].values
        if not values:
            return None
        info: Intrinsics = values[0]
        if info.model not in DISTORTION_MODELS:
            raise FlightError(f'{path}: distortion_model {info.model!r} is unknown')
        return info


def _header_stamp_s(raw: bytes) -> float:
    """Stamp of a serialised message that begins with a std_msgs/Header; 0 if it is not set.

    Read in place: deserialising every image only for its stamp would double the time.
    """
    order = '<' if raw[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', raw, 4)
    return float(seconds + nanoseconds * 1e-9)


def _value(kind: str, message: Any) -> Any:
    """What a message says, in our units; None if it says that it does not know."""
    if kind == 'camera_info':
        K = [float(value) for value in message.k]
        distortion = tuple(float(value) for value in message.d)
        model = message.distortion_model or 'plumb_bob'
        if K[0] <= 0.0:  # REP 104: an uncalibrated camera publishes zeros
            return None
        return Intrinsics(message.width, message.height, K[0], K[4], K[2], K[5], distortion, model)
    if kind == 'imu':
        if message.orientation_covariance[0] == -1.0:
            return None
        q = message.orientation
        return attitude_deg(q.x, q.y, q.z, q.w)
    if kind == 'agl':
        if hasattr(message, 'range'):
            valid = message.min_range <= message.range <= message.max_range
            return float(message.range) if valid else None
        return float(message.pose.pose.position.z)
    if message.status.status < 0 or not math.isfinite(message.latitude + message.longitude):
        return None
    return float(message.latitude), float(message.longitude), float(message.altitude)


def attitude_deg(x: float, y: float, z: float, w: float) -> tuple[float, float, float] | None:
    """Roll, pitch and heading of an aircraft from its orientation after REP 103.

    The quaternion turns body axes (forward, left, up) into east, north, up. Pitch changes its
    sign, because a positive turn about the axis to the left lowers the nose.

    Returns
    -------
    tuple of (roll_deg, pitch_deg, heading_deg), or None
        Right wing down, nose up, clockwise from north; None for a quaternion that is none.
    """
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not 0.5 < norm < 2.0:
        return None
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    roll_rad = math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y))
    pitch_rad = math.asin(max(-1.0, min(1.0, 2.0 * (w * y - z * x))))
    yaw_rad = math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
    return math.degrees(roll_rad), -math.degrees(pitch_rad), yaw_to_heading_deg(yaw_rad)


def decode_raw(message: Any, source: str) -> ImageArray:
    """A sensor_msgs/Image as uint8 RGB (H, W, 3); raises ImageError for what cannot be read."""
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise ImageError(
            f'{source}: encoding {message.encoding!r} is unknown; expected one of {list(CHANNELS)}'
        )
    height_px, width_px, step = message.height, message.width, message.step
    if height_px < 1 or width_px < 1 or step < width_px * channels:
        raise ImageError(f'{source}: is {width_px} x {height_px} px with {step} bytes a row')
    data = np.frombuffer(message.data, np.uint8)
    if data.size < height_px * step:
        raise ImageError(f'{source}: has {data.size} bytes; expected {height_px * step}')
    rows = data[: height_px * step].reshape(height_px, step)[:, : width_px * channels]
    pixels = rows.reshape(height_px, width_px, channels)
    if channels == 1:
        return np.ascontiguousarray(np.repeat(pixels, 3, axis=2))
    swap = message.encoding.startswith(('bgr', '8UC3'))
    return np.ascontiguousarray(pixels[:, :, 2::-1] if swap else pixels[:, :, :3])
