"""What a replay or a demonstration leaves behind: fixes.csv, summary.json and report.html."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bicrossnet_ros import __version__
from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.evaluation import score, stage_names, summarize
from bicrossnet_ros.fix_record import FixRecord
from bicrossnet_ros.flight import Flight, FlightRecord
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.report_page import Pair, page
from bicrossnet_ros.report_pictures import (
    data_uri,
    footprint_width_m,
    frame_picture,
    map_beside,
    map_picture,
)

__all__ = ['FixRecord', 'write_csv', 'write_report']

STRIP_LENGTH = 4
REFUSED_LENGTH = 6
LEADING = (
    *('file', 'stamp_s', 'status', 'reason', 'lat_deg', 'lon_deg'),
    *('center_lat_deg', 'center_lon_deg', 'sigma_m', 'similarity', 'inliers', 'tile_id'),
    'error_m',
)
TRAILING = (
    *('center_error_m', 'camera_error_m', 'heading_deg', 'agl_m'),
    *('cov_ee_m2', 'cov_en_m2', 'cov_nn_m2'),
    *('center_cov_ee_m2', 'center_cov_en_m2', 'center_cov_nn_m2', 'center_nees', 'camera_nees'),
    *('truth_lat_deg', 'truth_lon_deg', 'truth_center_lat_deg', 'truth_center_lon_deg'),
)


def write_report(
    out_dir: str | Path,
    records: Sequence[FixRecord],
    *,
    title: str,
    flight: Flight,
    gallery: Gallery,
    options: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the records against the flight's truth and write the three files.

    Parameters
    ----------
    out_dir : path
        Made if it is not there; files of the same names are replaced.
    records : sequence of FixRecord
        One per frame that was asked, in order; matched to the flight by `file`.
    title : str
        Of the page.
    flight : Flight
        Truth and frames.
    gallery : Gallery
        Map and identities.
    options : mapping, optional
        What the run was made with, written as it is.
    notes : sequence of str
        What a reader must know before believing the figures; shown first.

    Returns
    -------
    dict
        What stands in summary.json, with NaN where that has null.
    """
    truths = {one.file: one for one in flight.records}
    unknown = FlightRecord(file='', stamp_s=math.nan)
    scored = [score(one, truths.get(one.file, unknown), crs=gallery.crs) for one in records]
    manifest = gallery.manifest
    summary: dict[str, Any] = {
        **summarize(scored),
        'flight': flight.name,
        'truth_is_map_relative': flight.truth_is_map_relative,
        'gallery': gallery.path.name,
        'model': manifest.model_name,
        'model_id': manifest.model_id,
        'version': __version__,
        'options': dict(options or {}),
        'notes': list(notes),
    }
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / 'fixes.csv', scored)
    (out / 'summary.json').write_text(
        json.dumps(_plain(summary), indent=2, allow_nan=False) + '\n', encoding='utf-8'
    )
    text = page(
        title=title,
        summary=summary,
        records=scored,
        picture=map_picture(gallery, scored),
        strips=_strips(scored, flight, gallery),
        facts=_facts(summary, flight, gallery),
        notes=notes,
    )
    (out / 'report.html').write_text(text, encoding='utf-8')
    return summary


def write_csv(path: Path, records: Sequence[FixRecord]) -> None:
    """One row per record; unknown values are empty cells.

    The columns are those of `FixRecord`, and per stage its milliseconds as `STAGE_ms`.
    """
    stages = stage_names(records)
    header = [*LEADING, *(f'{name}_ms' for name in stages), *TRAILING]
    header += ['first_tile_distance_m', 'detail']
    with path.open('w', encoding='utf-8', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for one in records:
            distances = one.candidate_distances_m
            writer.writerow(
                [
                    *(_cell(name, getattr(one, name)) for name in LEADING),
                    *(_cell('_ms', one.timings_ms.get(name, math.nan)) for name in stages),
                    *(_cell(name, getattr(one, name)) for name in TRAILING),
                    _cell('_m', distances[0] if distances else math.nan),
                    one.detail,
                ]
            )


def _cell(name: str, value: Any) -> Any:
    """A number with the digits that its unit deserves; nothing for NaN."""
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return ''
    if name == 'stamp_s':
        return f'{value:.6f}'
    if name.endswith(('lat_deg', 'lon_deg')):
        return f'{value:.9f}'  # 0.1 mm
    if name.endswith('_m2'):
        return f'{value:.6g}'
    return f'{value:.4f}'


def _plain(value: Any) -> Any:
    """The same for JSON: NaN becomes null, infinity a word, other objects their text."""
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _strips(
    records: Sequence[FixRecord], flight: Flight, gallery: Gallery
) -> list[tuple[str, str, list[Pair]]]:
    """The frames worth looking at: the worst, the refused and the best."""
    fixes = [one for one in records if one.is_fix]
    by_error = all(not math.isnan(one.error_m) for one in fixes)
    # Without a truth, the fewest inliers stand for the worst.
    fixes.sort(key=lambda one: one.error_m if by_error else -float(one.inliers))
    worst = fixes[::-1][:STRIP_LENGTH]
    best = fixes[: len(fixes) - len(worst)][:STRIP_LENGTH]
    refused = _varied([one for one in records if not one.is_fix])
    truths = {one.file: one for one in flight.records}

    def pairs(chosen: Sequence[FixRecord]) -> list[Pair]:
        return [_pair(one, truths.get(one.file), flight, gallery) for one in chosen]

    beside = 'Left the frame, right the map at the fix, turned like the frame.'
    guess = 'Left the frame, right the tile that looked most like it, which was not believed.'
    measure = 'error' if by_error else 'inliers'
    return [
        (f'Worst fixes by {measure}', beside, pairs(worst)),
        ('Refused frames', guess, pairs(refused)),
        (f'Best fixes by {measure}', beside, pairs(best)),
    ]


def _varied(refused: Sequence[FixRecord]) -> list[FixRecord]:
    """The first few refusals, taking each reason in turn."""
    groups: dict[str, list[FixRecord]] = {}
    for one in refused:
        groups.setdefault(one.reason, []).append(one)
    chosen = [
        group[number]
        for number in range(REFUSED_LENGTH)
        for group in groups.values()
        if number < len(group)
    ]
    return chosen[:REFUSED_LENGTH]


def _pair(
    record: FixRecord, source: FlightRecord | None, flight: Flight, gallery: Gallery
) -> Pair:
    """A frame and the map at its fix, or at the tile that looked most like it."""
    if source is None:
        return Pair(record, frame_note='not in the flight')
    try:
        image = flight.image(source)
    except BiCrossNetError as error:
        return Pair(record, frame_note=str(error), map_note='no frame, no match')
    frame = frame_picture(image)
    frame_uri = data_uri(frame)
    center = _middle(record)
    if center is None:
        return Pair(record, frame_uri, frame_note='frame', map_note='no tile was looked at')
    heading_deg = record.heading_deg
    if math.isnan(heading_deg):
        heading_deg = math.nan if source.heading_deg is None else source.heading_deg
    turned = '' if math.isfinite(heading_deg) else ', north up'
    agl_m = record.agl_m if math.isfinite(record.agl_m) else source.agl_m
    beside = map_beside(
        gallery,
        center,
        heading_deg=heading_deg if math.isfinite(heading_deg) else 0.0,
        width_m=footprint_width_m(flight.camera, agl_m, image.shape),
        shape=(frame.shape[0], frame.shape[1]),
    )
    note = 'map at the fix' if record.is_fix else 'most similar tile'
    if not record.is_fix and record.candidate_distances_m:
        turned += f', {record.candidate_distances_m[0]:.0f} m from the truth'
    return Pair(record, frame_uri, data_uri(beside), 'frame', note + turned)


def _middle(record: FixRecord) -> tuple[float, float] | None:
    """What the map beside a frame is centred on."""
    if record.is_fix:
        center = (record.center_lat_deg, record.center_lon_deg)
        center = center if all(map(math.isfinite, center)) else (record.lat_deg, record.lon_deg)
        return center if all(map(math.isfinite, center)) else None
    return record.candidates[0] if record.candidates else None


def _facts(summary: Mapping[str, Any], flight: Flight, gallery: Gallery) -> dict[str, Any]:
    manifest = gallery.manifest
    return {
        'flight': f'{flight.name}, {len(flight)} frames',
        'truth': 'relative to the map: its own accuracy is no part of the error'
        if flight.truth_is_map_relative
        else 'absolute, as the flight states it',
        'gallery': f'{gallery.path.name}: {manifest.tile_count} tiles of '
        f'{gallery.tile_size_m:g} m at {manifest.gsd_m:g} m per pixel, {manifest.crs}',
        'map sources': ', '.join(str(one.get('name', '?')) for one in manifest.sources),
        'model': f'{manifest.model_name} ({manifest.model_id[:16]})',
        'version': f'bicrossnet_ros {summary["version"]}',
        **{name.replace('_', ' '): _word(value) for name, value in summary['options'].items()},
    }


def _word(value: Any) -> Any:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return 'not set' if value is None else value
