"""Read a rosbag2 (sqlite3 or MCAP) as a flight, without ROS.

Every image message is one record. The other topics are looked up at its exposure time: the
attitude within 0.2 s, height and position within 1 s; otherwise they are unknown.
"""

from __future__ import annotations

import bisect
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import Flight, FlightRecord
from bicrossnet_ros.flight_folder import FlightConfig, load_flight_config
from bicrossnet_ros.messages import (
    attitude_from_imu,
    image_from_message,
    intrinsics_from_message,
    position_from_navsat,
    range_from_message,
    tilt_cosine,
)
from bicrossnet_ros.types import Attitude, ImageArray, Intrinsics

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


class _Height(NamedTuple):
    """Of the odometry, or along the beam of a rangefinder."""

    value_m: float
    is_range: bool


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
        bag = _Bag(reader, chosen, range_is_vertical=settings.range_is_vertical)
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

    def __init__(self, reader: Any, topics: Mapping[str, str], *, range_is_vertical: bool) -> None:
        self._reader = reader
        self._range_is_vertical = range_is_vertical
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
            problems = []
            if stamp_s < previous_s:
                problems.append(f'the clock goes backwards by {previous_s - stamp_s:g} s')
            previous_s = stamp_s
            attitude = self._series['imu'].near(stamp_s, MAX_ATTITUDE_AGE_S)
            if isinstance(attitude, ImageError):  # a level flight is not assumed instead
                problems.append(str(attitude))
                attitude = None
            record = self._record(number, stamp_s, attitude)
            if problems:
                record = replace(record, problem=f'image message {number}: {"; ".join(problems)}')
            records.append(record)
        return tuple(records)

    def _record(self, number: int, stamp_s: float, attitude: Attitude | None) -> FlightRecord:
        position = self._series['gps'].near(stamp_s, MAX_AGE_S) or (math.nan,) * 3
        truth = self._series['truth'].near(stamp_s, MAX_AGE_S) or (math.nan,) * 3
        return FlightRecord(
            file=f'{stamp_s:.6f}',
            stamp_s=stamp_s,
            lat_deg=position[0],
            lon_deg=position[1],
            ellipsoid_m=position[2],
            agl_m=self._agl_m(stamp_s, attitude),
            roll_deg=None if attitude is None else attitude.roll_deg,
            pitch_deg=None if attitude is None else attitude.pitch_deg,
            heading_deg=None if attitude is None else attitude.heading_deg,
            truth_lat_deg=truth[0],
            truth_lon_deg=truth[1],
            row=number,
        )

    def _agl_m(self, stamp_s: float, attitude: Attitude | None) -> float | None:
        height: _Height | None = self._series['agl'].near(stamp_s, MAX_AGE_S)
        if height is None:
            return None
        if not height.is_range or self._range_is_vertical:
            return height.value_m
        return height.value_m * tilt_cosine(attitude)

    def image(self, record: FlightRecord) -> ImageArray:
        """Read one image message again and decode it."""
        time_ns = self._times_ns[record.row]
        source = f'image message {record.row}'
        for connection, _, raw in self._reader.messages(
            connections=self._images, start=time_ns, stop=time_ns + 1
        ):
            if (_header_stamp_s(raw) or time_ns * 1e-9) == record.stamp_s:
                message = self._reader.deserialize(raw, connection.msgtype)
                try:
                    return image_from_message(message)
                except ImageError as error:
                    raise ImageError(f'{source}: {error}') from error
        raise ImageError(f'{source}: is no longer in the bag')

    def camera(self, path: Path) -> Intrinsics | None:
        """The intrinsics of the first camera_info message of a calibrated camera, if any."""
        values: list[Intrinsics | ImageError] = self._series['camera_info'].values
        if not values:
            return None
        if isinstance(values[0], ImageError):
            raise FlightError(f'{path}: camera_info: {values[0]}') from values[0]
        return values[0]


def _header_stamp_s(raw: bytes) -> float:
    """Stamp of a serialised message that begins with a std_msgs/Header; 0 if it is not set.

    Read in place: deserialising every image only for its stamp would double the time.
    """
    order = '<' if raw[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', raw, 4)
    return float(seconds + nanoseconds * 1e-9)


def _value(kind: str, message: Any) -> Any:
    """What a message says, in our units; None if it says that it does not know.

    What is wrong with a damaged one becomes its value: only a frame that needs it is refused.
    """
    try:
        if kind == 'camera_info':
            return intrinsics_from_message(message)
        if kind == 'imu':
            return attitude_from_imu(message)
    except ImageError as error:
        return error
    if kind != 'agl':
        return position_from_navsat(message)
    if not hasattr(message, 'range'):
        return _Height(float(message.pose.pose.position.z), is_range=False)
    range_m = range_from_message(message)
    return None if range_m is None else _Height(range_m, is_range=True)
