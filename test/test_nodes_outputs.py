"""Messages out: fix, pose, candidates and report, in the real message types."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.geodesy import LocalFrame, grid_convergence_deg, to_wgs84
from bicrossnet_ros.nodes.diagnostics import (
    estimate_from_diagnostic,
    estimate_from_values,
    estimate_to_diagnostic,
    estimate_to_values,
)
from bicrossnet_ros.nodes.outputs import (
    UNKNOWN_VARIANCE,
    enu_covariance_m2,
    fill_fix,
    fill_markers,
    fill_pose,
)
from bicrossnet_ros.types import PositionEstimate, Reason, Status, TileMatch

FRAME = LocalFrame(41.0, -83.0, 200.0)
NO_FIX = PositionEstimate(5.0, Status.NO_FIX, Reason.FEW_INLIERS, '7 inliers; expected 25')


def a_fix(**changes: object) -> PositionEstimate:
    values = {
        'stamp_s': 1_700_000_000.123456,
        'status': Status.FIX,
        'reason': Reason.NONE,
        'lat_deg': 41.001,
        'lon_deg': -83.0,
        'east_m': 331_800.5,
        'north_m': 4_540_800.25,
        'covariance_m2': np.array([[4.0, 1.0], [1.0, 9.0]]),
        'center_lat_deg': 41.0011,
        'center_covariance_m2': np.array([[1.0, 0.0], [0.0, 1.0]]),
        'agl_m': 80.0,
        'heading_deg': 30.0,
        'similarity': 0.75,
        'inliers': 120,
        'tile_id': 7,
        'candidates': (
            TileMatch(7, 331_800.0, 4_540_800.0, 41.001, -83.0, 0.75, 30.0, 80.0),
            TileMatch(9, 331_900.0, 4_540_800.0, 41.001, -82.999, 0.5),
        ),
        'timings_ms': {'embed': 12.5, 'register': 30.0},
    }
    return PositionEstimate(**{**values, **changes})


def assert_same(one: PositionEstimate, other: PositionEstimate) -> None:
    assert estimate_to_values(one) == estimate_to_values(other)
    assert one.candidates == other.candidates
    assert one.timings_ms == other.timings_ms
    assert (one.status, one.reason, one.detail) == (other.status, other.reason, other.detail)
    np.testing.assert_array_equal(one.covariance_m2, other.covariance_m2)


@pytest.mark.parametrize('estimate', [a_fix(), NO_FIX, a_fix(candidates=(), timings_ms={})])
def test_report_round_trip_as_text(estimate):
    assert_same(estimate_from_values(estimate_to_values(estimate)), estimate)


@given(st.floats(-90, 90), st.floats(1e-6, 1e9), st.text(max_size=20))
def test_report_loses_no_digit(lat_deg, variance, detail):
    estimate = a_fix(lat_deg=lat_deg, covariance_m2=np.eye(2) * variance, detail=detail)
    assert_same(estimate_from_values(estimate_to_values(estimate)), estimate)


def test_report_survives_values_from_numpy():
    estimate = a_fix(
        inliers=np.int64(12), similarity=np.float32(0.5), timings_ms={'embed': np.float64(2.0)}
    )
    assert estimate_from_values(estimate_to_values(estimate)).timings_ms == {'embed': 2.0}


@pytest.mark.parametrize('key', ['status', 'lat_deg', 'candidates', 'covariance_m2_ee'])
def test_a_report_without_a_key_is_none(key):
    values = estimate_to_values(a_fix())
    del values[key]
    with pytest.raises(BiCrossNetError, match='not the report of a frame'):
        estimate_from_values(values)


def test_covariance_turns_with_the_meridian():
    """One metre east on the grid, turned by the convergence, is what the projection says."""
    crs, east_m, north_m = 'EPSG:32617', 700_000.0, 4_540_000.0
    lat_deg, lon_deg = to_wgs84(crs, east_m, north_m)
    moved = to_wgs84(crs, east_m + 1.0, north_m)
    step_m = LocalFrame(lat_deg, lon_deg).to_enu_m(*moved)[:2]
    turned = enu_covariance_m2(np.diag([1.0, 0.0]), grid_convergence_deg(crs, lat_deg, lon_deg))
    assert abs(grid_convergence_deg(crs, lat_deg, lon_deg)) > 1.0
    np.testing.assert_allclose(turned, np.outer(step_m, step_m), atol=2e-3)


ros = pytest.mark.ros


@pytest.fixture
def messages():
    pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
    import diagnostic_msgs.msg
    import geometry_msgs.msg
    import sensor_msgs.msg
    import std_msgs.msg
    import visualization_msgs.msg

    class Messages:
        NavSatFix = sensor_msgs.msg.NavSatFix
        Pose = geometry_msgs.msg.PoseWithCovarianceStamped
        Marker = visualization_msgs.msg.Marker
        MarkerArray = visualization_msgs.msg.MarkerArray
        Header = std_msgs.msg.Header
        Status = diagnostic_msgs.msg.DiagnosticStatus
        KeyValue = diagnostic_msgs.msg.KeyValue

    return Messages


@ros
def test_fix_message(messages):
    message = messages.NavSatFix()
    fill_fix(message, a_fix(), ground_ellipsoid_m=210.0, altitude_sigma_m=5.0)
    assert message.status.status == messages.NavSatFix().status.STATUS_FIX
    assert (message.latitude, message.longitude, message.altitude) == (41.001, -83.0, 290.0)
    assert message.position_covariance_type == messages.NavSatFix.COVARIANCE_TYPE_KNOWN
    np.testing.assert_array_equal(
        np.reshape(message.position_covariance, (3, 3)), [[4, 1, 0], [1, 9, 0], [0, 0, 25]]
    )


@ros
@pytest.mark.parametrize(('changes', 'ground_m'), [({}, None), ({'agl_m': math.nan}, 210.0)])
def test_fix_message_without_altitude(messages, changes, ground_m):
    message = messages.NavSatFix()
    fill_fix(message, a_fix(**changes), ground_ellipsoid_m=ground_m)
    assert math.isnan(message.altitude)
    assert message.position_covariance[8] == UNKNOWN_VARIANCE
    assert message.position_covariance[0] == 4.0


@ros
def test_no_fix_message_is_no_position_in_three_ways(messages):
    message = messages.NavSatFix()
    fill_fix(message, NO_FIX, ground_ellipsoid_m=210.0)
    assert message.status.status == message.status.STATUS_NO_FIX
    assert math.isnan(message.latitude)
    assert math.isnan(message.longitude)
    assert math.isnan(message.altitude)
    assert message.position_covariance_type == messages.NavSatFix.COVARIANCE_TYPE_UNKNOWN
    assert min(message.position_covariance[axis] for axis in (0, 4, 8)) == UNKNOWN_VARIANCE


@ros
def test_pose_message(messages):
    message = messages.Pose()
    fill_pose(message, a_fix(), FRAME, mount_yaw_deg=0.0, altitude_sigma_m=5.0)
    position = message.pose.pose.position
    assert position.x == pytest.approx(0.0, abs=1e-3)
    assert position.y == pytest.approx(111.06, abs=0.02)
    assert position.z == pytest.approx(80.0, abs=0.01)
    orientation = message.pose.pose.orientation
    yaw_rad = 2 * math.atan2(orientation.z, orientation.w)
    assert math.degrees(yaw_rad) == pytest.approx(60.0)  # heading 30 from north
    covariance = np.reshape(message.pose.covariance, (6, 6))
    np.testing.assert_array_equal(covariance[:2, :2], [[4, 1], [1, 9]])
    assert covariance[2, 2] == 25.0
    assert covariance[3, 3] == covariance[4, 4] == UNKNOWN_VARIANCE
    assert 0.0 < covariance[5, 5] < 0.02


@ros
def test_pose_message_with_a_turned_camera_and_nothing_known(messages):
    message = messages.Pose()
    fill_pose(message, a_fix(), FRAME, mount_yaw_deg=90.0)
    orientation = message.pose.pose.orientation
    assert math.degrees(2 * math.atan2(orientation.z, orientation.w)) == pytest.approx(150.0)
    fill_pose(message, a_fix(heading_deg=math.nan, agl_m=math.nan), FRAME)
    assert message.pose.covariance[35] == UNKNOWN_VARIANCE
    assert message.pose.covariance[14] == UNKNOWN_VARIANCE
    assert np.isfinite(message.pose.covariance).all()


@ros
def test_markers(messages):
    array = messages.MarkerArray()
    fill_markers(array, messages.Marker, messages.Header(frame_id='map'), a_fix(), FRAME)
    clear, best, other = array.markers
    assert clear.action == messages.Marker.DELETEALL
    assert best.header.frame_id == 'map'
    assert best.pose.position.y == pytest.approx(111.06, abs=0.02)
    assert best.scale.x > other.scale.x
    assert best.color.g > other.color.g
    assert 'tile 7: 0.750' in best.text
    assert (best.id, other.id) == (0, 1)


@ros
@pytest.mark.parametrize('estimate', [a_fix(), NO_FIX])
def test_report_round_trip_as_message(messages, estimate):
    from rclpy.serialization import deserialize_message, serialize_message

    message = messages.Status(name='geolocalizer: frame')
    estimate_to_diagnostic(message, estimate, messages.KeyValue, {'latency_ms': '3.5'})
    again = deserialize_message(serialize_message(message), messages.Status)
    assert again.level == (messages.Status.OK if estimate.is_fix else messages.Status.WARN)
    assert_same(estimate_from_diagnostic(again), estimate)
