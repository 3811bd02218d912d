"""What the node says about a frame: fix, pose, candidates and the full report."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import NavSatFix
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from bicrossnet_ros.nodes.diagnostics import LEVELS, estimate_to_diagnostic, fill_status
from bicrossnet_ros.nodes.outputs import fill_fix, fill_markers, fill_pose
from bicrossnet_ros.nodes.pipeline import Map, Pipeline
from bicrossnet_ros.types import PositionEstimate

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


def qos(reliability: ReliabilityPolicy, depth: int) -> QoSProfile:
    """Volatile, the last `depth` messages."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability)


def health_message(name: str, problem: str, values: dict[str, str]) -> DiagnosticArray:
    """What `/diagnostics` says of the node; a warning if there is a problem. Without a stamp."""
    status = DiagnosticStatus(
        name=f'{name}: localization',
        level=LEVELS[1] if problem or values['state'] != 'active' else LEVELS[0],
        message=problem or values['state'],
    )
    fill_status(status, values, KeyValue)
    return DiagnosticArray(status=[status])


class EstimatePublisher:
    """The publishers of a lifecycle node that speak about frames; silent unless it is active.

    Parameters
    ----------
    node : LifecycleNode
        On which they are made.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._name = node.get_name()
        make = node.create_lifecycle_publisher
        self._fix = make(NavSatFix, 'fix', qos(RELIABLE, 10))
        self._pose = make(PoseWithCovarianceStamped, 'pose', qos(RELIABLE, 10))
        self._candidates = make(MarkerArray, 'candidates', qos(RELIABLE, 1))
        self._report = make(DiagnosticArray, '~/report', qos(RELIABLE, 50))

    def publish(
        self,
        pipeline: Pipeline,
        where: Map,
        estimate: PositionEstimate,
        exposure: Header,
        latency_ms: float,
    ) -> None:
        """Publish an estimate with the stamp of its exposure; `pose` only with a fix."""
        settings = pipeline.settings
        convergence_deg = where.convergence_deg(estimate)
        fix = NavSatFix()
        fix.header.stamp = exposure.stamp
        fix.header.frame_id = settings.frame_id or exposure.frame_id
        fill_fix(
            fix,
            estimate,
            convergence_deg=convergence_deg,
            ground_ellipsoid_m=where.ground_ellipsoid_m,
            altitude_sigma_m=settings.altitude_sigma_m,
        )
        self._fix.publish(fix)
        local = Header(stamp=exposure.stamp, frame_id=settings.map_frame_id)
        if estimate.is_fix:
            pose = PoseWithCovarianceStamped(header=local)
            fill_pose(
                pose,
                estimate,
                where.frame,
                convergence_deg=convergence_deg,
                mount_yaw_deg=pipeline.config.camera.mount_yaw_deg,
                altitude_sigma_m=settings.altitude_sigma_m,
            )
            self._pose.publish(pose)
        markers = MarkerArray()
        fill_markers(markers, Marker, local, estimate, where.frame)
        self._candidates.publish(markers)
        status = DiagnosticStatus(
            name=f'{self._name}: frame', hardware_id=pipeline.encoder.model_id[:12]
        )
        extra = {'latency_ms': f'{latency_ms:.3f}'}
        estimate_to_diagnostic(status, estimate, KeyValue, extra)
        self._report.publish(
            DiagnosticArray(
                header=Header(stamp=exposure.stamp, frame_id=fix.header.frame_id),
                status=[status],
            )
        )
