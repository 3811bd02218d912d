"""What the aircraft said around an exposure, the order of stamps, the mailbox, the counts."""

import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.geodesy import wrap_deg
from bicrossnet_ros.nodes.health import Health
from bicrossnet_ros.nodes.mailbox import Mailbox
from bicrossnet_ros.nodes.sensors import Sensors, TimeBuffer
from bicrossnet_ros.nodes.settings import NodeSettings
from bicrossnet_ros.nodes.stamps import StampCheck
from bicrossnet_ros.types import PositionEstimate, Reason, Status

IMAGE = np.zeros((40, 60, 3), np.uint8)
NORTH = (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5))


def header(at_s: float):
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(at_s), nanosec=round((at_s % 1) * 1e9)))


def imu(at_s: float, quaternion=NORTH, *, first: float = 0.0, yaw_variance: float = 0.0):
    x, y, z, w = quaternion
    return SimpleNamespace(
        header=header(at_s),
        orientation=SimpleNamespace(x=x, y=y, z=z, w=w),
        orientation_covariance=[first, 0, 0, 0, 0, 0, 0, 0, yaw_variance],
    )


def height(at_s: float, value: float):
    return SimpleNamespace(header=header(at_s), range=value, min_range=0.1, max_range=500.0)


def odometry(at_s: float, east_m: float, north_m: float, up_m: float):
    position = SimpleNamespace(x=east_m, y=north_m, z=up_m)
    pose = SimpleNamespace(pose=SimpleNamespace(position=position))
    return SimpleNamespace(header=header(at_s), pose=pose)


def gps(at_s: float, *, status: int = 0, lat_deg: float = 41.0, variance: float = 25.0, known=2):
    return SimpleNamespace(
        header=header(at_s),
        status=SimpleNamespace(status=status),
        latitude=lat_deg,
        longitude=-83.0,
        altitude=250.0,
        position_covariance=[variance, 0, 0, 0, 4.0, 0, 0, 0, 9.0],
        position_covariance_type=known,
    )


def fix(at_s: float, lat_deg: float = 41.0, sigma_m: float = 2.0) -> PositionEstimate:
    return PositionEstimate(
        at_s,
        Status.FIX,
        Reason.NONE,
        lat_deg=lat_deg,
        lon_deg=-83.0,
        covariance_m2=np.eye(2) * sigma_m**2,
    )


def test_nearest_in_time():
    buffer = TimeBuffer()
    for at_s in (1.0, 2.0, 3.0):
        buffer.add(at_s, at_s)
    assert buffer.nearest(2.2, 0.5) == 2.0
    assert buffer.nearest(2.6, 0.5) == 3.0
    assert buffer.nearest(4.0, 0.5) is None
    assert buffer.nearest(math.nan, 0.5) is None
    assert TimeBuffer().nearest(1.0, 9.0) is None


def test_nothing_known():
    frame = Sensors(NodeSettings()).frame(IMAGE, 5.0)
    assert (frame.intrinsics, frame.attitude, frame.agl_m, frame.prior) == (None,) * 4


def test_orientation_and_height_of_the_moment():
    sensors = Sensors(NodeSettings())
    sensors.add_imu(imu(4.95))
    sensors.add_imu(imu(5.50, (0.0, 0.0, 0.0, 1.0)))
    sensors.add_range(height(4.8, 80.0))
    sensors.add_range(height(5.1, 90.0))
    frame = sensors.frame(IMAGE, 5.0)
    assert wrap_deg(frame.attitude.heading_deg) == pytest.approx(0.0, abs=1e-9)
    assert frame.agl_m == pytest.approx(90.0)


def test_a_rangefinder_on_the_body_is_corrected_for_tilt():
    rolled = (*(math.sin(math.radians(15)), 0.0, 0.0), math.cos(math.radians(15)))
    for is_vertical, expected in ((False, 100 * math.cos(math.radians(30))), (True, 100.0)):
        sensors = Sensors(NodeSettings(range_is_vertical=is_vertical))
        sensors.add_imu(imu(5.0, rolled))
        sensors.add_range(height(5.0, 100.0))
        assert sensors.frame(IMAGE, 5.0).agl_m == pytest.approx(expected)


def test_an_imu_without_orientation_is_not_taken():
    sensors = Sensors(NodeSettings())
    sensors.add_imu(imu(5.0, (0.0, 0.0, 0.0, 0.0), first=-1.0))
    assert sensors.frame(IMAGE, 5.0).attitude is None


@pytest.mark.parametrize(
    ('settings', 'yaw_variance'),
    [(NodeSettings(imu_heading='unknown'), 0.0), (NodeSettings(), 10.0)],
)
def test_a_yaw_that_nobody_knows(settings, yaw_variance):
    sensors = Sensors(settings)
    sensors.add_imu(imu(5.0, yaw_variance=yaw_variance))
    attitude = sensors.frame(IMAGE, 5.0).attitude
    assert attitude.heading_deg is None
    assert attitude.roll_deg == pytest.approx(0.0)


def test_a_zero_quaternion_is_an_error_not_a_level_flight():
    sensors = Sensors(NodeSettings())
    sensors.add_imu(imu(5.0, (0.0, 0.0, 0.0, 0.0)))
    with pytest.raises(ImageError, match='unit quaternion'):
        sensors.frame(IMAGE, 5.0)


def test_a_required_orientation_that_is_missing():
    sensors = Sensors(NodeSettings(attitude_source='imu'))
    sensors.add_imu(imu(4.0))
    with pytest.raises(ImageError, match=r'no imu orientation within 0\.1 s'):
        sensors.frame(IMAGE, 5.0)


def test_height_of_the_odometry_and_fixed_height():
    sensors = Sensors(NodeSettings(height_source='odom', odom_ground_z_m=-20.0))
    sensors.add_odometry(odometry(5.0, 0, 0, 70.0))
    assert sensors.frame(IMAGE, 5.0).agl_m == pytest.approx(90.0)
    assert Sensors(NodeSettings(height_source='fixed')).frame(IMAGE, 5.0).agl_m == 100.0
    assert Sensors(NodeSettings(height_source='none')).frame(IMAGE, 5.0).agl_m is None


def test_prior_from_gps_grows_with_its_age():
    sensors = Sensors(NodeSettings(prior_source='gps', prior_min_radius_m=1.0))
    sensors.add_gps(gps(5.0))
    assert sensors.frame(IMAGE, 5.0).prior.radius_m == pytest.approx(15.0)
    assert sensors.frame(IMAGE, 7.0).prior.radius_m == pytest.approx(15.0 + 2 * 30.0)
    assert sensors.frame(IMAGE, 66.0).prior is None


@pytest.mark.parametrize('message', [gps(5.0, status=-1), gps(5.0, lat_deg=math.nan)])
def test_a_gps_without_a_position_is_no_prior(message):
    sensors = Sensors(NodeSettings(prior_source='gps'))
    sensors.add_gps(message)
    assert sensors.frame(IMAGE, 5.0).prior is None


@pytest.mark.parametrize('lat_deg', [410.0, -90.5])
def test_a_gps_off_the_globe_is_counted_and_the_one_before_it_stays(lat_deg):
    sensors = Sensors(NodeSettings(prior_source='gps'))
    sensors.add_gps(gps(5.0))
    sensors.add_gps(gps(5.1, lat_deg=lat_deg))
    assert sensors.frame(IMAGE, 5.2).prior.lat_deg == 41.0
    assert sensors.gps_refused == 1


@pytest.mark.parametrize('message', [gps(5.0, known=0), gps(5.0, variance=math.nan)])
def test_an_unknown_covariance_takes_the_smallest_radius(message):
    sensors = Sensors(NodeSettings(prior_source='gps', prior_min_radius_m=70.0))
    sensors.add_gps(message)
    assert sensors.frame(IMAGE, 5.0).prior.radius_m == pytest.approx(70.0)


def test_prior_from_the_last_fix_until_told_to_forget():
    sensors = Sensors(NodeSettings(prior_source='last_fix', prior_min_radius_m=50.0))
    sensors.add_fix(fix(5.0))
    assert sensors.frame(IMAGE, 6.0).prior.radius_m == pytest.approx(80.0)
    sensors.forget_position()
    assert sensors.frame(IMAGE, 6.5).prior is None
    assert sensors.frame(IMAGE, 7.0).prior is None
    sensors.add_fix(fix(7.0))
    assert sensors.frame(IMAGE, 7.5).prior is not None


def test_forgetting_skips_a_gps_prior_once():
    sensors = Sensors(NodeSettings(prior_source='gps'))
    sensors.add_gps(gps(5.0))
    sensors.forget_position()
    assert sensors.frame(IMAGE, 5.0).prior is None
    assert sensors.frame(IMAGE, 5.1).prior is not None


def test_odometry_carries_the_last_fix():
    settings = NodeSettings(prior_source='odom', prior_min_radius_m=10.0, prior_odom_drift=0.1)
    sensors = Sensors(settings)
    sensors.add_odometry(odometry(5.0, 100.0, 200.0, 0.0))
    sensors.add_odometry(odometry(9.0, 100.0, 500.0, 0.0))
    assert sensors.frame(IMAGE, 9.0).prior is None
    sensors.add_fix(fix(5.0))
    prior = sensors.frame(IMAGE, 9.0).prior
    assert (prior.lat_deg - 41.0) * 111_050.0 == pytest.approx(300.0, rel=1e-3)
    assert prior.lon_deg == pytest.approx(-83.0, abs=1e-9)
    assert prior.radius_m == pytest.approx(40.0)


def test_a_reset_forgets_all_that_has_a_stamp():
    sensors = Sensors(NodeSettings(prior_source='last_fix'))
    sensors.add_imu(imu(5.0))
    sensors.add_range(height(5.0, 80.0))
    sensors.add_fix(fix(5.0))
    sensors.reset()
    frame = sensors.frame(IMAGE, 5.0)
    assert (frame.attitude, frame.agl_m, frame.prior) == (None,) * 3


def test_a_frame_waits_for_the_orientation_of_its_moment():
    sensors = Sensors(NodeSettings(sync_wait_s=1.0))
    sensors.add_imu(imu(4.0))
    late = threading.Timer(0.1, sensors.add_imu, [imu(5.0)])
    late.start()
    sensors.wait_for(5.0)
    assert sensors.frame(IMAGE, 5.0).attitude is not None
    late.join()


def test_nobody_waits_for_a_source_that_never_spoke():
    sensors = Sensors(NodeSettings(sync_wait_s=1.0))
    started_s = time.monotonic()
    sensors.wait_for(5.0)
    assert time.monotonic() - started_s < 0.5


# Stamps


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def stamp_check(**settings: object):
    clock, resets = Clock(), []
    check = StampCheck(NodeSettings(**settings), clock, lambda: resets.append(1))
    return check, clock, resets


def test_frames_in_order_are_fine():
    check, _, _ = stamp_check()
    assert [check.problem(at_s)[0] for at_s in (99.5, 99.6, 100.0)] == [Reason.NONE] * 3


def test_a_stamp_that_is_missing():
    check, _, _ = stamp_check()
    reason, detail = check.problem(0.0)
    assert reason is Reason.BAD_INPUT
    assert 'no stamp' in detail


def test_an_old_frame_is_stale():
    check, clock, _ = stamp_check(max_age_s=2.0)
    assert check.problem(97.9)[0] is Reason.STALE
    assert check.problem(98.1)[0] is Reason.NONE
    clock.now_s = 1e9
    assert check.problem(98.2)[0] is Reason.STALE


def test_a_frame_from_the_future_spoils_nothing():
    check, _, _ = stamp_check()
    reason, detail = check.problem(4e9)
    assert reason is Reason.BAD_INPUT
    assert 'ahead of the clock' in detail
    assert check.problem(100.0)[0] is Reason.NONE


def test_simulated_time_may_come_after_the_image():
    check, clock, _ = stamp_check()
    late = threading.Timer(0.1, setattr, [clock, 'now_s', 150.0])
    late.start()
    assert check.problem(150.0)[0] is Reason.NONE
    late.join()


@pytest.mark.parametrize('at_s', [99.9, 100.0])
def test_stamps_that_go_back_or_stand_still(at_s):
    check, _, _ = stamp_check()
    check.problem(100.0)
    reason, detail = check.problem(at_s)
    assert reason is Reason.BAD_INPUT
    assert 'before the newest one' in detail


def test_a_clock_that_was_set_back_is_believed_in_the_end():
    check, _, resets = stamp_check(max_age_s=0.0)
    check.problem(100.0)
    refused = [check.problem(50.0 + step)[0] for step in range(StampCheck.PATIENCE)]
    assert refused == [Reason.BAD_INPUT] * StampCheck.PATIENCE
    assert resets == [1]
    assert check.problem(70.0)[0] is Reason.NONE


# Mailbox


def test_the_newest_item_wins():
    box: Mailbox[int] = Mailbox()
    assert [box.put(number) for number in (1, 2, 3)] == [False, True, True]
    assert box.take() == 3
    assert box.put(4) is False


def test_a_closed_mailbox_releases_who_waits():
    box: Mailbox[int] = Mailbox()
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(box.take()))
    thread.start()
    box.close()
    thread.join(timeout=5)
    assert taken == [None]


# Health


def test_health_counts_and_complains():
    clock = Clock()
    health = Health(clock)
    assert health.problem() == 'no image yet'
    for second in range(4):
        clock.now_s = 100.0 + second
        health.count_image(replaced=second == 2)
    health.count_estimate(fix(103.0), latency_ms=40.0)
    refused = PositionEstimate(103.0, Status.NO_FIX, Reason.FEW_INLIERS, '7 inliers')
    health.count_estimate(refused, latency_ms=60.0)
    values = health.values()
    assert health.problem() == ''
    assert values['frames_received'] == '4'
    assert values['frames_dropped'] == '1'
    assert values['rate_hz'] == '1.00'
    assert values['count.fix'] == '1'
    assert values['count.few_inliers'] == '1'
    assert values['ms.latency.p50'] == '50.0'
    assert values['age_of_last_fix_s'] == '0.0'
    clock.now_s = 107.9
    health.count_image(replaced=False)
    clock.now_s = 108.5
    assert health.problem() == 'no fix lately: 7 inliers'
    clock.now_s = 120.0
    assert health.problem() == 'no image for 12 s'


def test_health_speaks_of_an_error_of_ours_for_a_while():
    clock = Clock()
    health = Health(clock)
    health.count_error(ValueError('a defect'))
    assert health.problem() == 'internal error: ValueError: a defect'
    values = health.values()
    assert values['internal_errors'] == '1'
    assert values['last_internal_error'] == 'ValueError: a defect'
    clock.now_s += 5.1
    assert health.problem() == 'no image yet'


def test_the_network_has_one_thread_unless_more_are_asked_for():
    """Threads wait for one another; with a camera driver on the core they want, that is slower."""
    assert NodeSettings().encoder_threads == 1


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'image_transport': 'theora'}, "expected one of ['raw', 'compressed']"),
        ({'height_source': ''}, 'expected one of'),
        ({'max_age_s': -1.0}, 'from 0 to 3600'),
        ({'fixed_agl_m': math.nan}, 'expected a number'),
        ({'encoder_threads': 0}, 'from 1 to 64'),
        ({'gallery': 3}, 'expected a text'),
    ],
)
def test_settings_that_make_no_sense(changes, expected):
    with pytest.raises(ConfigError) as caught:
        NodeSettings(**changes)
    assert expected in str(caught.value)
