"""Figures of a replay on cases worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bicrossnet_ros import evaluation
from bicrossnet_ros.evaluation import (
    CHI2_95,
    containment_95,
    distance_m,
    nees,
    percentiles,
    recall_at,
    score,
    spread,
    stage_names,
    summarize,
)
from bicrossnet_ros.fix_record import FixRecord, record_from_estimate
from bicrossnet_ros.flight import FlightRecord
from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.types import PositionEstimate, Reason, Status, TileMatch

CRS = 'EPSG:32617'
EAST_M, NORTH_M = 306200.0, 4545200.0
TRUTH = to_wgs84(CRS, EAST_M, NORTH_M)
CENTER_TRUTH = to_wgs84(CRS, EAST_M + 8.0, NORTH_M + 6.0)


def at(east_m, north_m):
    """A position so many metres of grid from the true camera."""
    return to_wgs84(CRS, EAST_M + east_m, NORTH_M + north_m)


def truth(*, camera=True, center=True):
    nowhere = (math.nan, math.nan)
    one, other = TRUTH if camera else nowhere, CENTER_TRUTH if center else nowhere
    return FlightRecord(
        file='a',
        stamp_s=0.0,
        truth_lat_deg=one[0],
        truth_lon_deg=one[1],
        truth_center_lat_deg=other[0],
        truth_center_lon_deg=other[1],
    )


def fix(camera=(0.0, 0.0), center=(8.0, 6.0), *, covariance=(1.0, 0.0, 1.0), **more):
    camera, center = at(*camera), at(*center) if center else (math.nan, math.nan)
    ee, en, nn = covariance
    return FixRecord(
        file='a',
        stamp_s=0.0,
        status='fix',
        lat_deg=camera[0],
        lon_deg=camera[1],
        center_lat_deg=center[0],
        center_lon_deg=center[1],
        cov_ee_m2=ee,
        cov_en_m2=en,
        cov_nn_m2=nn,
        center_cov_ee_m2=ee,
        center_cov_en_m2=en,
        center_cov_nn_m2=nn,
        **more,
    )


def refusal(reason='few_inliers', **more):
    return FixRecord(file='a', stamp_s=0.0, status='no_fix', reason=reason, **more)


def test_errors_of_camera_and_center():
    scored = score(fix((3.0, 4.0), (8.0, 7.0)), truth(), crs=CRS)
    assert scored.camera_error_m == pytest.approx(5.0, rel=1e-3)
    assert scored.center_error_m == pytest.approx(1.0, rel=1e-3)
    assert scored.error_m == scored.center_error_m
    assert scored.camera_nees == pytest.approx(25.0, rel=1e-6)
    assert scored.center_nees == pytest.approx(1.0, rel=1e-6)
    assert (scored.truth_lat_deg, scored.truth_lon_deg) == TRUTH


def test_grid_and_ground_differ_by_the_point_scale():
    scored = score(fix((1000.0, 0.0)), truth(), crs=CRS)
    assert scored.camera_error_m == pytest.approx(1000.0, abs=0.5)
    assert scored.camera_error_m != pytest.approx(1000.0, abs=0.01)
    assert math.sqrt(scored.camera_nees) == pytest.approx(1000.0, abs=1e-3)


@pytest.mark.parametrize(
    ('with_center_truth', 'with_center', 'expected_m'),
    [(True, True, 0.0), (True, False, 5.0), (False, True, 5.0)],
)
def test_error_falls_back_to_the_camera(with_center_truth, with_center, expected_m):
    record = fix((3.0, 4.0), (8.0, 6.0) if with_center else None)
    scored = score(record, truth(center=with_center_truth), crs=CRS)
    assert scored.error_m == pytest.approx(expected_m, abs=0.01)


def test_no_truth_no_error():
    scored = score(fix(candidates=(at(0, 0),)), truth(camera=False, center=False), crs=CRS)
    assert math.isnan(scored.error_m)
    assert math.isnan(scored.camera_nees)
    assert scored.candidate_distances_m == ()
    assert not scored.is_false_fix


def test_refusal_has_no_error_even_with_a_position():
    scored = score(refusal(lat_deg=TRUTH[0], lon_deg=TRUTH[1]), truth(), crs=CRS)
    assert math.isnan(scored.error_m)
    assert math.isnan(scored.camera_error_m)


def test_fix_without_position_is_a_false_fix():
    scored = score(FixRecord(file='a', stamp_s=0.0, status='fix'), truth(), crs=CRS)
    assert scored.error_m == math.inf
    assert scored.is_false_fix


@pytest.mark.parametrize(('east_m', 'false'), [(24.9, False), (25.1, True)])
def test_false_fix_begins_at_25_m(east_m, false):
    scored = score(fix((0.0, 0.0), (8.0 + east_m, 6.0)), truth(), crs=CRS)
    assert scored.is_false_fix is false


def test_candidates_are_measured_from_the_image_center():
    record = refusal(candidates=(at(8.0, 36.0), at(8.0, 6.0)))
    scored = score(record, truth(), crs=CRS)
    assert scored.candidate_distances_m == pytest.approx((30.0, 0.0), abs=0.05)
    scored = score(record, truth(center=False), crs=CRS)
    assert scored.candidate_distances_m == pytest.approx((math.hypot(8, 36), 10.0), abs=0.05)


def test_distance_against_known_lengths():
    # 0.01 degrees of latitude at the equator: 1105.743 m; of longitude: 1113.195 m (WGS84).
    assert distance_m((0.0, 0.0), (0.01, 0.0)) == pytest.approx(1105.743, abs=0.01)
    assert distance_m((0.0, 179.995), (0.0, -179.995)) == pytest.approx(1113.195, abs=0.01)
    assert math.isnan(distance_m((math.nan, 0.0), (0.0, 0.0)))


def test_distance_to_the_antipode_is_not_small():
    assert distance_m((0.0, 10.0), (0.0, -170.0)) == pytest.approx(2 * 6378137.0)


@pytest.mark.parametrize('elsewhere', [(-TRUTH[0], TRUTH[1] + 180.0), (0.0, 7.0), (90.0, 0.0)])
def test_truth_on_another_continent_is_a_false_fix(elsewhere):
    far = FlightRecord('a', 0.0, truth_lat_deg=elsewhere[0], truth_lon_deg=elsewhere[1])
    scored = score(fix(), far, crs=CRS)
    assert scored.is_false_fix
    assert scored.error_m > 1e6
    assert scored.camera_nees > CHI2_95


@pytest.mark.parametrize(
    ('error_m', 'covariance', 'expected'),
    [
        ((2.0, 0.0), (4.0, 0.0, 1.0), 1.0),
        ((0.0, 2.0), (4.0, 0.0, 1.0), 4.0),
        ((1.0, 1.0), (2.0, 1.0, 2.0), 2.0 / 3.0),
        ((1.0, -1.0), (2.0, 1.0, 2.0), 2.0),
        ((1.0, 0.0), (0.0, 0.0, 1.0), math.inf),
        ((1.0, 0.0), (1.0, 1.0, 1.0), math.inf),
    ],
)
def test_nees_by_hand(error_m, covariance, expected):
    assert nees(error_m, covariance) == pytest.approx(expected)


def test_nees_of_the_unknown():
    assert math.isnan(nees((math.nan, 0.0), (1.0, 0.0, 1.0)))
    assert math.isnan(nees((0.0, 0.0), (math.nan, 0.0, 1.0)))


@given(
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
    st.floats(-0.9, 0.9),
)
def test_nees_against_numpy(error_m, sigma_e, sigma_n, correlation):
    en = correlation * sigma_e * sigma_n
    covariance = np.array([[sigma_e**2, en], [en, sigma_n**2]])
    e = np.array(error_m)
    expected = float(e @ np.linalg.solve(covariance, e))
    assert nees(error_m, (sigma_e**2, en, sigma_n**2)) == pytest.approx(
        expected, rel=1e-6, abs=1e-9
    )


def test_containment_limit_is_the_quantile_of_chi_squared():
    rng = np.random.default_rng(7)
    values = (rng.standard_normal((200_000, 2)) ** 2).sum(axis=1)
    assert containment_95(values) == pytest.approx(0.95, abs=0.002)
    assert pytest.approx(5.991, abs=1e-3) == CHI2_95
    assert containment_95([1.0, 5.99, 6.0, math.inf, math.nan]) == 0.5
    assert math.isnan(containment_95([math.nan]))


def test_recall_counts_misses_without_candidates():
    records = [
        score(refusal(candidates=(at(8, 6), at(500, 0))), truth(), crs=CRS),
        score(refusal(candidates=(at(500, 0), at(8, 26))), truth(), crs=CRS),
        score(refusal('bad_input'), truth(), crs=CRS),
        score(refusal(candidates=(at(8, 6),)), truth(camera=False, center=False), crs=CRS),
    ]
    assert recall_at(records, 1) == pytest.approx(1 / 3)
    assert recall_at(records, 5) == pytest.approx(2 / 3)
    assert recall_at(records, 5, radius_m=5.0) == pytest.approx(1 / 3)
    assert math.isnan(recall_at(records[3:], 1))


def test_spread_by_hand():
    found = spread([4.0, math.nan, 1.0, 2.0, 3.0, 5.0])
    assert found == {'count': 5, 'median': 3.0, 'p90': 4.6, 'p95': 4.8, 'max': 5.0}
    empty = spread([math.nan])
    assert empty['count'] == 0
    assert math.isnan(empty['median'])
    assert percentiles([1.0, 3.0])['p50'] == 2.0


def test_spread_keeps_an_unbounded_error():
    with np.errstate(invalid='raise'):
        found = spread([1.0, 2.0, math.inf])
    assert found['median'] == 2.0
    assert found['max'] == math.inf


def test_stages_keep_their_order_and_total_is_last():
    records = [
        refusal(timings_ms={'read': 1.0, 'total': 2.0}),
        fix(timings_ms={'read': 1.0, 'encode': 1.0, 'total': 9.0}),
    ]
    assert stage_names(records) == ['read', 'encode', 'total']
    assert stage_names([refusal()]) == []


def test_summary_of_a_small_flight():
    records = [
        score(fix((0, 0), (8, 7), candidates=(at(8, 6),)), truth(), crs=CRS),
        score(fix((0, 3), (8, 9), candidates=(at(400, 6),)), truth(), crs=CRS),
        score(fix((0, 50), (8, 56), candidates=(at(8, 6),)), truth(), crs=CRS),
        score(refusal('ambiguous', candidates=(at(400, 6),)), truth(), crs=CRS),
    ]
    summary = summarize(records)
    assert (summary['frames'], summary['fixes'], summary['coverage']) == (4, 3, 0.75)
    assert summary['no_fix_reasons'] == {'ambiguous': 1}
    assert summary['false_fixes'] == 1
    assert summary['error_m']['median'] == pytest.approx(3.0, abs=0.01)
    assert summary['center_error_m']['max'] == pytest.approx(50.0, abs=0.05)
    assert summary['camera_error_m']['median'] == pytest.approx(3.0, abs=0.01)
    assert summary['recall'] == {'at_1': 0.5, 'at_5': 0.5, 'at_20': 0.5}
    # Squared normalised errors with unit covariance: centre 1, 9, 2500; camera 0, 9, 2500.
    assert summary['containment_95']['center'] == pytest.approx(1 / 3)
    assert summary['containment_95']['camera'] == pytest.approx(1 / 3)


def test_summary_of_nothing():
    summary = summarize([])
    assert summary['frames'] == 0
    assert math.isnan(summary['coverage'])
    assert math.isnan(summary['false_fixes'])
    assert summary['latency_ms'] == {}


def test_record_from_estimate_copies_every_field():
    tile = TileMatch(tile_id=4, east_m=0, north_m=0, lat_deg=41.0, lon_deg=-83.0, similarity=0.8)
    estimate = PositionEstimate(
        stamp_s=5.0,
        status=Status.FIX,
        reason=Reason.NONE,
        detail='good',
        lat_deg=1.0,
        lon_deg=2.0,
        covariance_m2=np.array([[4.0, 0.5], [0.5, 1.0]]),
        center_lat_deg=3.0,
        center_lon_deg=4.0,
        center_covariance_m2=np.array([[0.4, 0.1], [0.1, 0.3]]),
        agl_m=70.0,
        heading_deg=12.0,
        similarity=0.8,
        inliers=33,
        tile_id=4,
        candidates=(tile,),
        timings_ms={'encode': 9.0},
    )
    record = record_from_estimate(estimate, 'a.jpg')
    assert (record.file, record.status, record.reason) == ('a.jpg', 'fix', '')
    assert (record.lat_deg, record.lon_deg) == (1.0, 2.0)
    assert (record.center_lat_deg, record.center_lon_deg) == (3.0, 4.0)
    assert (record.cov_ee_m2, record.cov_en_m2, record.cov_nn_m2) == (4.0, 0.5, 1.0)
    assert (record.center_cov_ee_m2, record.center_cov_nn_m2) == (0.4, 0.3)
    assert record.sigma_m == pytest.approx(estimate.sigma_m)
    assert record.candidates == ((41.0, -83.0),)
    assert (record.inliers, record.tile_id, record.agl_m, record.heading_deg) == (
        33,
        4,
        70.0,
        12.0,
    )
    assert record.timings_ms == {'encode': 9.0}


def test_module_is_pure():
    """No clock, no file, no network: only mathematics is imported."""
    assert not {'os', 'time', 'pathlib', 'Path', 'open_flight'} & set(vars(evaluation))
