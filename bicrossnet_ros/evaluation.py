"""How good were the fixes: errors, false fixes, recall, containment, latency. Pure functions.

Everything works on `FixRecord`s, whoever made them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.fix_record import FALSE_FIX_M, NAN, FixRecord, record_from_estimate
from bicrossnet_ros.flight import FlightRecord
from bicrossnet_ros.geodesy import LocalFrame, to_projected

__all__ = [
    'FALSE_FIX_M', 'FixRecord', 'containment_95', 'distance_m', 'has_truth', 'nees', 'percentiles',
    'recall_at', 'record_from_estimate', 'score', 'spread', 'stage_names', 'summarize',
]  # fmt: skip

RECALL_RADIUS_M = 25.0
RECALL_AT = (1, 5, 20)
# 95 % quantile of chi-squared with 2 degrees of freedom: -2 ln(0.05).
CHI2_95 = -2.0 * math.log(0.05)


def score(fix: FixRecord, truth: FlightRecord, *, crs: str) -> FixRecord:
    """The same record with its errors against the truth.

    Parameters
    ----------
    fix : FixRecord
        A position of it counts only with status `fix`.
    truth : FlightRecord
        Of the same frame.
    crs : str
        The gallery's CRS, in whose east and north the covariances are.
    """
    camera_truth = (truth.truth_lat_deg, truth.truth_lon_deg)
    center_truth = (truth.truth_center_lat_deg, truth.truth_center_lon_deg)
    camera_m, camera_nees = _error(
        (fix.lat_deg, fix.lon_deg),
        camera_truth,
        (fix.cov_ee_m2, fix.cov_en_m2, fix.cov_nn_m2),
        crs,
    )
    center_m, center_nees = _error(
        (fix.center_lat_deg, fix.center_lon_deg),
        center_truth,
        (fix.center_cov_ee_m2, fix.center_cov_en_m2, fix.center_cov_nn_m2),
        crs,
    )
    known = replace(
        fix,
        truth_lat_deg=camera_truth[0],
        truth_lon_deg=camera_truth[1],
        truth_center_lat_deg=center_truth[0],
        truth_center_lon_deg=center_truth[1],
    )
    if not fix.is_fix:
        camera_m = camera_nees = center_m = center_nees = NAN
    error_m = center_m if known.uses_center else camera_m
    if fix.is_fix and has_truth(known) and math.isnan(error_m):
        error_m = math.inf  # a fix without a usable position is as wrong as can be
    reference = center_truth if truth.has_center_truth else camera_truth
    return replace(
        known,
        error_m=error_m,
        center_error_m=center_m,
        camera_error_m=camera_m,
        center_nees=center_nees,
        camera_nees=camera_nees,
        candidate_distances_m=tuple(distance_m(reference, one) for one in fix.candidates)
        if has_truth(known)
        else (),
    )


def _error(
    found: tuple[float, float],
    truth: tuple[float, float],
    covariance_m2: tuple[float, float, float],
    crs: str,
) -> tuple[float, float]:
    """Distance in metres and normalised squared error; both NaN where one side is unknown."""
    if not all(map(math.isfinite, (*truth, *found))):
        return NAN, NAN
    # Covariances lie along east and north of the CRS, so the error is taken there.
    try:
        truth_m, found_m = to_projected(crs, *truth), to_projected(crs, *found)
    except ConfigError:  # a truth so far off that the CRS does not reach it: in no ellipse
        return distance_m(truth, found), math.inf
    error_m = (found_m[0] - truth_m[0], found_m[1] - truth_m[1])
    return distance_m(truth, found), nees(error_m, covariance_m2)


def distance_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Distance between two positions (lat_deg, lon_deg); NaN if one is not finite.

    The straight line between the two points on the ellipsoid: shorter than the way along the
    ground by less than a millimetre at 1 km, and never small for points far apart.
    """
    if not all(map(math.isfinite, (*one, *other))):
        return NAN
    return float(np.linalg.norm(LocalFrame(*one).to_enu_m(*other)))


def nees(error_m: tuple[float, float], covariance_m2: tuple[float, float, float]) -> float:
    """Normalised estimation error squared, e^T C^-1 e, of a 2-vector.

    Parameters
    ----------
    error_m : (east, north)
    covariance_m2 : (ee, en, nn)

    Returns
    -------
    float
        NaN if anything is not finite; infinite if the covariance is not positive definite and
        the error is not zero: such an ellipse contains nothing.

    References
    ----------
    Bar-Shalom, Li, Kirubarajan (2001), Estimation with Applications to Tracking and Navigation,
    section 5.4.
    """
    east_m, north_m = error_m
    ee, en, nn = covariance_m2
    if not all(map(math.isfinite, (*error_m, *covariance_m2))):
        return NAN
    determinant = ee * nn - en * en
    if ee <= 0.0 or determinant <= 0.0:
        return math.inf
    return (nn * east_m**2 - 2.0 * en * east_m * north_m + ee * north_m**2) / determinant


def recall_at(records: Iterable[FixRecord], k: int, *, radius_m: float = RECALL_RADIUS_M) -> float:
    """Share of frames with truth that have one of the first k candidates within `radius_m`.

    A frame with truth and no candidates counts as a miss; NaN if no frame has truth.
    """
    hits = [
        any(distance <= radius_m for distance in one.candidate_distances_m[:k])
        for one in records
        if has_truth(one)
    ]
    return sum(hits) / len(hits) if hits else NAN


def has_truth(record: FixRecord) -> bool:
    """Whether a scored record has any truth to compare with."""
    return math.isfinite(record.truth_lat_deg) or math.isfinite(record.truth_center_lat_deg)


def containment_95(values: Iterable[float]) -> float:
    """Share of squared normalised errors inside the 95% ellipse; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(value <= CHI2_95 for value in known) / len(known) if known else NAN


def spread(values: Iterable[float]) -> dict[str, float]:
    """Number, median, 90th and 95th percentile and maximum of the values that are not NaN."""
    known = np.array([value for value in values if not math.isnan(value)], np.float64)
    if not known.size:
        return {'count': 0, 'median': NAN, 'p90': NAN, 'p95': NAN, 'max': NAN}
    # Nothing can be interpolated towards infinity: take the value above instead.
    method: Literal['linear', 'higher'] = 'linear' if np.isfinite(known).all() else 'higher'
    median, p90, p95 = np.percentile(known, [50, 90, 95], method=method)
    return {
        'count': int(known.size),
        'median': float(median),
        'p90': float(p90),
        'p95': float(p95),
        'max': float(known.max()),
    }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """A `spread` in the words of latency: the median is p50."""
    found = spread(values)
    return {
        'count': found['count'],
        'p50': found['median'],
        **{name: found[name] for name in ('p90', 'p95', 'max')},
    }


def stage_names(records: Sequence[FixRecord]) -> list[str]:
    """All stages that were timed, in the order of the pipeline, `total` last."""
    names = dict.fromkeys(name for one in records for name in one.timings_ms if name != 'total')
    has_total = any('total' in one.timings_ms for one in records)
    return [*names, *(['total'] if has_total else [])]


def summarize(records: Sequence[FixRecord]) -> dict[str, Any]:
    """All figures of a replay over scored records; NaN where there is nothing to say.

    Keys: frames, fixes, coverage, no_fix_reasons, with_truth, false_fixes (NaN without any
    truth), false_fix_limit_m, error_m, center_error_m, camera_error_m (each a `spread`), recall
    (at_1, at_5, at_20: within `recall_radius_m`, before registration), containment_95 (center,
    camera), latency_ms (percentiles per stage).
    """
    fixes = [one for one in records if one.is_fix]
    reasons = Counter(one.reason for one in records if not one.is_fix)
    return {
        'frames': len(records),
        'fixes': len(fixes),
        'coverage': len(fixes) / len(records) if records else NAN,
        'no_fix_reasons': dict(reasons.most_common()),
        'with_truth': sum(map(has_truth, records)),
        'false_fixes': sum(one.is_false_fix for one in fixes)
        if any(map(has_truth, records))
        else NAN,
        'false_fix_limit_m': FALSE_FIX_M,
        'error_m': spread(one.error_m for one in fixes),
        'center_error_m': spread(one.center_error_m for one in fixes),
        'camera_error_m': spread(one.camera_error_m for one in fixes),
        'recall': {f'at_{k}': recall_at(records, k) for k in RECALL_AT},
        'recall_radius_m': RECALL_RADIUS_M,
        'containment_95': {
            'center': containment_95(one.center_nees for one in fixes),
            'camera': containment_95(one.camera_nees for one in fixes),
        },
        'latency_ms': {
            name: percentiles(one.timings_ms.get(name, NAN) for one in records)
            for name in stage_names(records)
        },
    }
