"""Listen to the node like any other consumer would, and keep what really came over ROS."""

from __future__ import annotations

import math
from collections.abc import Callable

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import NavSatFix, NavSatStatus

from bicrossnet_ros.messages import stamp_s
from bicrossnet_ros.nodes.diagnostics import estimate_from_diagnostic
from bicrossnet_ros.types import PositionEstimate

RELIABLE = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE
)


class Recorder:
    """Collects `fix` and `geolocalizer/report`, paired by the exposure time they carry.

    Only the first answer to an exposure counts: a player that waits in vain sends the frame again,
    and the node refuses what it has seen.

    Parameters
    ----------
    on_answer : callable
        Called with each pair (NavSatFix, PositionEstimate) once both have arrived.
    """

    def __init__(self, on_answer: Callable[[NavSatFix, PositionEstimate], None]) -> None:
        rclpy.init()
        self._on_answer = on_answer
        self._fixes: dict[float, NavSatFix] = {}
        self._estimates: dict[float, PositionEstimate] = {}
        self._answered: set[float] = set()
        self._node = Node('demo_recorder')
        self._node.create_subscription(NavSatFix, 'fix', self._on_fix, RELIABLE)
        self._node.create_subscription(
            DiagnosticArray, 'geolocalizer/report', self._on_report, RELIABLE
        )
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)

    def spin_once(self, timeout_s: float) -> None:
        """Handle what has arrived, waiting for at most `timeout_s`."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def close(self) -> None:
        """Leave the ROS graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _on_fix(self, message: NavSatFix) -> None:
        key = stamp_s(message.header.stamp)
        self._fixes.setdefault(key, message)
        self._pair(key)

    def _on_report(self, message: DiagnosticArray) -> None:
        key = stamp_s(message.header.stamp)
        self._estimates.setdefault(key, estimate_from_diagnostic(message.status[0]))
        self._pair(key)

    def _pair(self, key: float) -> None:
        if key in self._answered or key not in self._fixes or key not in self._estimates:
            return
        self._answered.add(key)
        self._on_answer(self._fixes[key], self._estimates[key])


def is_position(message: NavSatFix) -> bool:
    """Whether a consumer of the standard message would take it as a position."""
    return message.status.status >= NavSatStatus.STATUS_FIX and math.isfinite(message.latitude)
