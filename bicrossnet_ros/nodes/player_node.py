"""The ROS side of the flight player: publishers, simulated time, and the node's reports."""

from __future__ import annotations

import math
import time
from typing import Any

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    Imu,
    NavSatFix,
    NavSatStatus,
    Range,
)
from std_msgs.msg import Header

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import FlightRecord
from bicrossnet_ros.messages import (
    fill_camera_info,
    fill_image,
    quaternion_from_attitude,
    tilt_cosine,
)
from bicrossnet_ros.types import Attitude, Frame

UNKNOWN_YAW_RAD2 = 10.0
"""Variance of a yaw that nobody knows: pi squared."""

GPS_SIGMA_M = 3.0


class PlayerNode(Node):  # type: ignore[misc]  # rclpy is not typed everywhere
    """Publishes what a camera and an autopilot would.

    Parameters
    ----------
    gps : bool
        Whether the recorded position is published as `gps/fix`.
    compressed : bool
        JPEG on `image/compressed` instead of `image`.
    report_topic : str
        Where the node under test reports on every frame.
    """

    def __init__(self, *, gps: bool, compressed: bool, report_topic: str) -> None:
        super().__init__('flight_player')
        reliable = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=20, reliability=ReliabilityPolicy.RELIABLE
        )
        self._compressed = compressed
        self._image = (
            self.create_publisher(CompressedImage, 'image/compressed', reliable)
            if compressed
            else self.create_publisher(Image, 'image', reliable)
        )
        self._camera_info = self.create_publisher(CameraInfo, 'camera_info', reliable)
        self._imu = self.create_publisher(Imu, 'imu', reliable)
        self._range = self.create_publisher(Range, 'range', reliable)
        self._gps = self.create_publisher(NavSatFix, 'gps/fix', reliable) if gps else None
        self._sim_clock = self.create_publisher(Clock, '/clock', reliable)
        self._report_topic = report_topic
        self._reported: set[tuple[int, int]] = set()
        self._report = self.create_subscription(
            DiagnosticArray, report_topic, self._on_report, reliable
        )

    def _on_report(self, message: Any) -> None:
        self._reported.add((message.header.stamp.sec, message.header.stamp.nanosec))

    def spin(self, timeout_s: float) -> None:
        """Handle what comes in within this time."""
        until_s = time.monotonic() + timeout_s
        while (left_s := until_s - time.monotonic()) > 0.0:
            rclpy.spin_once(self, timeout_sec=left_s)

    def wait_for_listeners(self, timeout_s: float, *, report: bool) -> None:
        """Wait for a node that listens to the images (and reports, where that is asked for).

        Raises
        ------
        FlightError
            If there is none in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._image.get_subscription_count() or (
            report and not self.count_publishers(self._report_topic)
        ):
            if time.monotonic() > deadline_s:
                raise FlightError(
                    f'nobody listens to {self._image.topic_name} after {timeout_s:.0f} s; '
                    'is the node active, in this ROS domain and namespace, '
                    'and its image_transport the same?'
                )
            self.spin(0.05)
        # Endpoints are found one by one; the others of the node may take a moment longer.
        others = (self._camera_info, self._imu, self._range)
        deadline_s = time.monotonic() + 1.0
        while time.monotonic() < deadline_s and not all(
            publisher.get_subscription_count() for publisher in others
        ):
            self.spin(0.05)
        self.spin(0.5)

    def publish_clock(self, at_s: float) -> None:
        """Say which time it is."""
        self._sim_clock.publish(Clock(clock=_to_message(at_s)))

    def publish_frame(
        self, record: FlightRecord, frame: Frame, *, recorded_stamp: bool
    ) -> tuple[int, int]:
        """Publish everything of one exposure, the image last; its stamp as (sec, nanosec)."""
        stamp = _to_message(record.stamp_s) if recorded_stamp else self.get_clock().now().to_msg()
        if frame.attitude is not None:
            self._imu.publish(_imu(stamp, frame.attitude))
        if frame.agl_m is not None:
            self._range.publish(_range(stamp, frame.agl_m, frame.attitude))
        if self._gps is not None and record.has_position:
            self._gps.publish(_gps(stamp, record))
        header = Header(stamp=stamp, frame_id='camera')
        if frame.intrinsics is not None:
            info = CameraInfo(header=header)
            fill_camera_info(info, frame.intrinsics)
            self._camera_info.publish(info)
        self._image.publish(self._image_message(header, frame))
        return stamp.sec, stamp.nanosec

    def _image_message(self, header: Header, frame: Frame) -> Any:
        if not self._compressed:
            image = Image(header=header)
            fill_image(image, frame.image)
            return image
        encoded, data = cv2.imencode('.jpg', frame.image[:, :, ::-1])
        if not encoded:
            raise ImageError(f'{frame.name}: cannot be encoded as JPEG')
        return CompressedImage(header=header, format='rgb8; jpeg compressed', data=data.tobytes())

    def wait_for_report(self, stamp: tuple[int, int], timeout_s: float) -> bool:
        """Whether the node reported on the frame of this stamp in time."""
        deadline_s = time.monotonic() + timeout_s
        while stamp not in self._reported:
            if time.monotonic() > deadline_s:
                return False
            rclpy.spin_once(self, timeout_sec=0.1)
        self._reported.clear()
        return True

    def finish(self) -> None:
        """Give the last messages time to arrive."""
        self._image.wait_for_all_acked(Duration(seconds=2))
        self.spin(0.3)


def _to_message(at_s: float) -> Any:
    # Through whole nanoseconds: a float of seconds since 1970 resolves 0.2 us only.
    return Time(nanoseconds=round(at_s * 1e9)).to_msg()


def _imu(stamp: Any, attitude: Attitude) -> Imu:
    message = Imu(header=Header(stamp=stamp, frame_id='base_link'))
    q = message.orientation
    q.x, q.y, q.z, q.w = quaternion_from_attitude(attitude)
    level = math.radians(2.0) ** 2
    yaw = UNKNOWN_YAW_RAD2 if attitude.heading_deg is None else math.radians(5.0) ** 2
    message.orientation_covariance = [level, 0.0, 0.0, 0.0, level, 0.0, 0.0, 0.0, yaw]
    # Imu.msg: -1 says that there is no such estimate.
    message.angular_velocity_covariance[0] = -1.0
    message.linear_acceleration_covariance[0] = -1.0
    return message


def _range(stamp: Any, agl_m: float, attitude: Attitude | None) -> Range:
    """As a rangefinder fixed to the body would read over flat ground."""
    return Range(
        header=Header(stamp=stamp, frame_id='rangefinder'),
        radiation_type=Range.INFRARED,
        field_of_view=0.01,
        min_range=0.0,
        max_range=10000.0,
        range=agl_m / max(0.1, tilt_cosine(attitude)),
    )


def _gps(stamp: Any, record: FlightRecord) -> NavSatFix:
    message = NavSatFix(header=Header(stamp=stamp, frame_id='gps'))
    message.status.status = NavSatStatus.STATUS_FIX
    message.status.service = NavSatStatus.SERVICE_GPS
    message.latitude, message.longitude = record.lat_deg, record.lon_deg
    message.altitude = record.ellipsoid_m
    message.position_covariance = [0.0] * 9
    for axis in (0, 4, 8):
        message.position_covariance[axis] = GPS_SIGMA_M**2
    message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_APPROXIMATED
    return message
