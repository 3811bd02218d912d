"""The report's map as inline SVG: true track, fixes with their ellipses, refused frames.

Colours are classes of the page's style sheet. Points are strokes of no length with round caps:
they keep their size on any screen.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.evaluation import CHI2_95
from bicrossnet_ros.fix_record import FALSE_FIX_M, FixRecord
from bicrossnet_ros.geodesy import to_projected
from bicrossnet_ros.types import FloatArray

MAX_MARKERS = 1500
# Upper limit of the error and the class that draws it; the last one is a false fix.
GRADES = ((1.0, 'e0'), (5.0, 'e1'), (FALSE_FIX_M, 'e2'), (math.inf, 'e3'))
GRADE_WORDS = {
    'e0': 'error up to 1 m',
    'e1': '1 to 5 m',
    'e2': f'5 to {FALSE_FIX_M:g} m',
    'e3': f'false fix, over {FALSE_FIX_M:g} m',
    'eu': 'fix, truth unknown',
    'no': 'no fix (at the true place)',
}
# Refused frames first and false fixes last, so that the worst lies on top.
DRAWING_ORDER = ('no', 'eu', 'e0', 'e1', 'e2', 'e3')


@dataclass(frozen=True)
class MapPicture:
    """A picture of the map: north up, in the gallery's CRS.

    Parameters
    ----------
    data_uri : str
        The encoded picture.
    width_px, height_px : int
        Its size.
    west_m, north_m : float
        Outer corner of its first pixel.
    gsd_m : float
        Metres per pixel.
    crs : str
        The gallery's CRS.
    """

    data_uri: str
    width_px: int
    height_px: int
    west_m: float
    north_m: float
    gsd_m: float
    crs: str

    def xy_px(self, position: tuple[float, float]) -> tuple[float, float] | None:
        """Where (lat_deg, lon_deg) is drawn; None if it has no place."""
        if not all(map(math.isfinite, position)):
            return None
        try:
            east_m, north_m = to_projected(self.crs, *position)
        except ConfigError:
            return None
        return (east_m - self.west_m) / self.gsd_m, (self.north_m - north_m) / self.gsd_m


def grade(record: FixRecord) -> str:
    """The class that colours a record."""
    if not record.is_fix:
        return 'no'
    if math.isnan(record.error_m):
        return 'eu'
    return next(name for limit, name in GRADES if record.error_m <= limit)


def position(record: FixRecord) -> tuple[float, float]:
    """The position that `error_m` is about: the image centre or the camera."""
    if record.uses_center:
        return record.center_lat_deg, record.center_lon_deg
    return record.lat_deg, record.lon_deg


def true_position(record: FixRecord) -> tuple[float, float]:
    """The truth that belongs to `position`."""
    if record.uses_center:
        return record.truth_center_lat_deg, record.truth_center_lon_deg
    return record.truth_lat_deg, record.truth_lon_deg


def covariance_m2(record: FixRecord) -> FloatArray:
    """Covariance (2, 2) of `position`, along east and north of the CRS."""
    ee, en, nn = record.cov_ee_m2, record.cov_en_m2, record.cov_nn_m2
    if record.uses_center:
        ee, en, nn = record.center_cov_ee_m2, record.center_cov_en_m2, record.center_cov_nn_m2
    return np.array([[ee, en], [en, nn]])


def bound_95_m(record: FixRecord) -> float:
    """Largest half axis of the 95% ellipse of `position`; NaN if unknown."""
    covariance = covariance_m2(record)
    if not np.isfinite(covariance).all():
        return math.nan
    return math.sqrt(CHI2_95 * max(float(np.linalg.eigvalsh(covariance)[-1]), 0.0))


def describe(record: FixRecord) -> str:
    """One line about a record, for a hover title."""
    words = [record.file]
    if record.is_fix:
        if math.isfinite(record.error_m):
            words.append(f'error {record.error_m:.3g} m')
        words += [f'95% within {bound_95_m(record):.2f} m', f'{record.inliers} inliers']
    else:
        words.append(f'no fix: {record.reason.replace("_", " ")}')
    if math.isfinite(record.similarity):
        words.append(f'similarity {record.similarity:.2f}')
    return ', '.join(words)


def thinned(records: Sequence[FixRecord], limit: int = MAX_MARKERS) -> list[FixRecord]:
    """At most about `limit` records, evenly taken; false fixes are never left out."""
    step = math.ceil(len(records) / limit)
    return [one for i, one in enumerate(records) if i % max(step, 1) == 0 or one.is_false_fix]


def map_svg(picture: MapPicture, records: Sequence[FixRecord]) -> str:
    """The map with the true track, the fixes with their 95% ellipses, and the frames refused."""
    shown = thinned(records)
    markers = sorted(shown, key=lambda one: DRAWING_ORDER.index(grade(one)))
    return ''.join(
        [
            f'<svg class="map" viewBox="0 0 {picture.width_px} {picture.height_px}" role="img" '
            'aria-label="Map with true track and fixes">',
            f'<image href="{picture.data_uri}" width="{picture.width_px}" '
            f'height="{picture.height_px}"/>',
            _track(picture, shown),
            *[_ellipse(picture, one) for one in shown if one.is_fix],
            *[_marker(picture, one) for one in markers],
            _scale_bar(picture),
            '</svg>',
        ]
    )


def _track(picture: MapPicture, records: Sequence[FixRecord]) -> str:
    places = [picture.xy_px(true_position(one)) for one in records]
    points = ' '.join(f'{place[0]:.1f},{place[1]:.1f}' for place in places if place is not None)
    if not points:
        return ''
    return ''.join(
        f'<polyline class="{name}" points="{points}"/>' for name in ('track-edge', 'track')
    )


def _ellipse(picture: MapPicture, record: FixRecord) -> str:
    place, covariance = picture.xy_px(position(record)), covariance_m2(record)
    if place is None or not np.isfinite(covariance).all():
        return ''
    variances, axes = np.linalg.eigh(covariance)
    minor, major = np.sqrt(CHI2_95 * np.maximum(variances, 0.0)) / picture.gsd_m
    turn_deg = -math.degrees(math.atan2(axes[1, 1], axes[0, 1]))  # rows grow to the south
    return (
        f'<ellipse class="oval" rx="{major:.2f}" ry="{minor:.2f}" '
        f'transform="translate({place[0]:.1f} {place[1]:.1f}) rotate({turn_deg:.1f})"/>'
    )


def _marker(picture: MapPicture, record: FixRecord) -> str:
    truth = picture.xy_px(true_position(record))
    place = picture.xy_px(position(record)) if record.is_fix else truth
    if place is None:
        return ''
    here, kind = f'M{place[0]:.1f} {place[1]:.1f}', grade(record)
    line = ''
    if record.is_fix and truth is not None:
        line = f'<path class="miss {kind}" d="{here}L{truth[0]:.1f} {truth[1]:.1f}"/>'
    names = ('dot-edge', f'dot {kind}', *(('dot-hole',) if kind == 'no' else ()))
    dot = ''.join(f'<path class="{name}" d="{here}h0"/>' for name in names)
    return f'<g><title>{html.escape(describe(record))}</title>{line}{dot}</g>'


def _scale_bar(picture: MapPicture) -> str:
    """A bar of a round length up to a fifth of the width, with the word above it."""
    target_m = 0.2 * picture.width_px * picture.gsd_m
    base = 10.0 ** math.floor(math.log10(target_m))
    length_m = max(step * base for step in (1, 2, 5) if step * base <= target_m)
    size, left = picture.width_px / 45, picture.width_px / 50
    y, right = picture.height_px - left, left + length_m / picture.gsd_m
    bar = f'M{left:.1f} {y:.1f}H{right:.1f}'
    return (
        f'<path class="bar-edge" d="{bar}"/><path class="bar" d="{bar}"/>'
        f'<text class="bar-text" x="{left:.1f}" y="{y - size / 2:.1f}" '
        f'font-size="{size:.1f}">{length_m:g} m, north up</text>'
    )
