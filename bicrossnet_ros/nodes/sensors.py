"""What the aircraft said around the moment of an exposure: camera, orientation, height, prior."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any, Generic, TypeVar

import numpy as np

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.geodesy import LocalFrame, check_position
from bicrossnet_ros.messages import (
    attitude_from_imu,
    has_orientation,
    intrinsics_from_message,
    position_from_navsat,
    range_from_message,
    stamp_s,
    tilt_cosine,
)
from bicrossnet_ros.nodes.settings import NodeSettings
from bicrossnet_ros.types import (
    Attitude,
    Frame,
    ImageArray,
    PositionEstimate,
    Prior,
)

T = TypeVar('T')


class TimeBuffer(Generic[T]):
    """The last values of one source with their stamps, in the order in which they came."""

    def __init__(self, size: int = 1000) -> None:
        self._items: deque[tuple[float, T]] = deque(maxlen=size)

    def add(self, at_s: float, value: T) -> None:
        """Keep a value."""
        self._items.append((at_s, value))

    def nearest(self, at_s: float, max_gap_s: float) -> T | None:
        """The value closest in time; None if none is within `max_gap_s`."""
        best = min(self._items, key=lambda item: abs(item[0] - at_s), default=None)
        if best is None or not abs(best[0] - at_s) <= max_gap_s:
            return None
        return best[1]

    def has_reached(self, at_s: float) -> bool:
        """Whether waiting is over: a value of this moment came, or the source never spoke."""
        return not self._items or self._items[-1][0] >= at_s

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()


class Sensors:
    """Collects messages as they come (any thread) and answers for one exposure.

    Parameters
    ----------
    settings : NodeSettings
        Which sources count and how far they may be from the exposure.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._camera_info: Any = None
        self._orientations: TimeBuffer[Any] = TimeBuffer()
        self._ranges: TimeBuffer[float | None] = TimeBuffer()
        self._odometry: TimeBuffer[tuple[float, float, float]] = TimeBuffer()
        self._gps: tuple[float, Prior] | None = None
        self._gps_refused = 0
        self._last_fix: tuple[float, Prior] | None = None
        self._search_everywhere = False

    def add_camera_info(self, message: Any) -> None:
        """Keep a `sensor_msgs/CameraInfo`; the last one counts."""
        with self._changed:
            self._camera_info = message
            self._changed.notify_all()

    def add_imu(self, message: Any) -> None:
        """Keep a `sensor_msgs/Imu`, unless it says that it has no orientation."""
        if has_orientation(message):
            self._add(self._orientations, message, message)

    def add_range(self, message: Any) -> None:
        """Keep the reading of a `sensor_msgs/Range`."""
        self._add(self._ranges, message, range_from_message(message))

    def add_odometry(self, message: Any) -> None:
        """Keep the position of a `nav_msgs/Odometry`."""
        p = message.pose.pose.position
        self._add(self._odometry, message, (p.x, p.y, p.z))

    def add_gps(self, message: Any) -> None:
        """Keep a `sensor_msgs/NavSatFix`, if it is a fix and a place on Earth.

        What is none is counted and dropped: kept, it would spoil every frame until it is too old.
        """
        position = position_from_navsat(message)
        if position is None:
            return
        try:
            check_position(*position[:2])
        except ConfigError:
            with self._changed:
                self._gps_refused += 1
            return
        variance = max(message.position_covariance[0], message.position_covariance[4])
        is_known = message.position_covariance_type != 0 and math.isfinite(variance)
        sigma_m = math.sqrt(max(0.0, variance)) if is_known else 0.0
        with self._changed:
            self._gps = (stamp_s(message.header.stamp), Prior(*position[:2], radius_m=3 * sigma_m))

    @property
    def gps_refused(self) -> int:
        """Messages of `add_gps` that called themselves a fix but named no place on Earth."""
        with self._changed:
            return self._gps_refused

    def add_fix(self, estimate: PositionEstimate) -> None:
        """Keep our own fix."""
        prior = Prior(estimate.lat_deg, estimate.lon_deg, radius_m=3 * estimate.sigma_m)
        with self._changed:
            self._last_fix = (estimate.stamp_s, prior)

    def _add(self, buffer: TimeBuffer[Any], message: Any, value: Any) -> None:
        with self._changed:
            buffer.add(stamp_s(message.header.stamp), value)
            self._changed.notify_all()

    def forget_position(self) -> None:
        """Search the whole map with the next frame, and forget the last fix."""
        with self._changed:
            self._last_fix = None
            self._search_everywhere = True

    def reset(self) -> None:
        """The clock was set back: nothing with a stamp is worth anything."""
        with self._changed:
            for buffer in (self._orientations, self._ranges, self._odometry):
                buffer.clear()
            self._gps = self._last_fix = None

    def wait_for(self, at_s: float) -> None:
        """Wait until every source that speaks has said what belongs to this moment, or too long.

        Messages of one moment come over different topics, in any order.
        """
        settings = self._settings
        buffers: list[TimeBuffer[Any]] = []
        if settings.attitude_source != 'none':
            buffers.append(self._orientations)
        if settings.height_source == 'range':
            buffers.append(self._ranges)
        if 'odom' in (settings.height_source, settings.prior_source):
            buffers.append(self._odometry)
        with self._changed:
            self._changed.wait_for(
                lambda: all(buffer.has_reached(at_s) for buffer in buffers),
                timeout=settings.sync_wait_s,
            )

    def frame(self, image: ImageArray, at_s: float) -> Frame:
        """Everything known about one exposure.

        Raises
        ------
        ImageError
            If what a source said is damaged, or a source that is required said nothing.
        """
        with self._changed:
            attitude = self._attitude(at_s)
            return Frame(
                image=image,
                stamp_s=at_s,
                intrinsics=(
                    None
                    if self._camera_info is None
                    else intrinsics_from_message(self._camera_info)
                ),
                attitude=attitude,
                agl_m=self._agl_m(at_s, attitude),
                prior=self._prior(at_s),
            )

    def _attitude(self, at_s: float) -> Attitude | None:
        settings = self._settings
        if settings.attitude_source == 'none':
            return None
        found = self._orientations.nearest(at_s, settings.imu_max_gap_s)
        if found is not None:
            return attitude_from_imu(found, heading_known=settings.imu_heading == 'known')
        if settings.attitude_source == 'imu':
            raise ImageError(
                f'no imu orientation within {settings.imu_max_gap_s} s of the exposure; '
                'check the topic imu, or set attitude_source to auto or none'
            )
        return None

    def _agl_m(self, at_s: float, attitude: Attitude | None) -> float | None:
        settings = self._settings
        if settings.height_source == 'fixed':
            return settings.fixed_agl_m
        if settings.height_source == 'odom':
            position = self._odometry.nearest(at_s, settings.height_max_gap_s)
            return None if position is None else position[2] - settings.odom_ground_z_m
        if settings.height_source == 'range':
            range_m = self._ranges.nearest(at_s, settings.height_max_gap_s)
            if range_m is None or settings.range_is_vertical:
                return range_m
            return range_m * tilt_cosine(attitude)
        return None

    def _prior(self, at_s: float) -> Prior | None:
        if self._search_everywhere:
            self._search_everywhere = False
            return None
        settings = self._settings
        if settings.prior_source == 'none':
            return None
        source = self._gps if settings.prior_source == 'gps' else self._last_fix
        if source is None or abs(at_s - source[0]) > settings.prior_max_age_s:
            return None
        known_s, known = source
        radius_m = max(settings.prior_min_radius_m, known.radius_m)
        if settings.prior_source == 'odom':
            return self._moved(known, radius_m, known_s, at_s)
        return Prior(
            known.lat_deg,
            known.lon_deg,
            radius_m + settings.prior_max_speed_mps * abs(at_s - known_s),
        )

    def _moved(self, known: Prior, radius_m: float, known_s: float, at_s: float) -> Prior | None:
        """The last fix, moved as the odometry (axes east, north, up) has moved since."""
        gap_s = self._settings.height_max_gap_s
        then, now = self._odometry.nearest(known_s, gap_s), self._odometry.nearest(at_s, gap_s)
        if then is None or now is None:
            return None
        step_m = np.array([now[0] - then[0], now[1] - then[1], 0.0])
        if not np.isfinite(step_m).all():
            raise ImageError(f'odometry moved by {step_m} m; expected finite numbers')
        lat_deg, lon_deg, _ = LocalFrame(known.lat_deg, known.lon_deg).to_wgs84(step_m)
        grown_m = radius_m + self._settings.prior_odom_drift * float(np.linalg.norm(step_m))
        return Prior(lat_deg, lon_deg, grown_m)
