"""The report as one HTML page that asks for nothing: style, headline, tables, picture strips."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bicrossnet_ros.fix_record import FixRecord
from bicrossnet_ros.report_map import GRADE_WORDS, MapPicture, bound_95_m, grade, map_svg
from bicrossnet_ros.report_plots import error_svg
from bicrossnet_ros.report_style import STYLE

MAX_ROWS = 600
TEXT = ' class="text"'


@dataclass(frozen=True)
class Pair:
    """A frame beside a piece of the map, as data URIs; either may be missing."""

    record: FixRecord
    frame_uri: str = ''
    map_uri: str = ''
    frame_note: str = ''
    map_note: str = ''


def page(
    *,
    title: str,
    summary: Mapping[str, Any],
    records: Sequence[FixRecord],
    picture: MapPicture | None,
    strips: Sequence[tuple[str, str, Sequence[Pair]]],
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """The whole page.

    Parameters
    ----------
    title : str
        Of the page.
    summary : mapping
        From `evaluation.summarize`.
    records : sequence of FixRecord
        Scored.
    picture : MapPicture or None
        The map; None leaves it out.
    strips : sequence of (heading, explanation, pairs)
        Frames beside the map.
    facts : mapping
        Options and identities, for the table at the end.
    notes : sequence of str
        What a reader must know before believing the figures.
    """
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{_e(title)}</title><style>{STYLE}</style></head><body><main>',
        f'<h1>{_e(title)}</h1><p class="verdict">{_e(verdict(summary))}</p>',
        ''.join(f'<p class="note">{_e(note)}</p>' for note in notes),
        _cards(summary),
    ]
    if picture is not None:
        parts += [
            '<section><h2>Where</h2>',
            map_svg(picture, records),
            _legend(records),
            '</section>',
        ]
    parts += [
        '<section><h2>Error over time</h2>',
        _scrolled(error_svg(records)),
        _plot_words(records),
        '</section>',
    ]
    parts += [_strip(*strip) for strip in strips if strip[2]]
    parts += [_latency(summary), _facts(facts), _frames(records), '</main></body></html>']
    return ''.join(parts)


def verdict(summary: Mapping[str, Any]) -> str:
    """The result in two or three sentences."""
    frames, fixes = summary['frames'], summary['fixes']
    words = [f'{fixes} of {frames} frames got a fix']
    error = summary['error_m']
    if error['count']:
        words[0] += (
            f': half of them within {_m(error["median"])} of the truth, '
            f'90% within {_m(error["p90"])}, the worst {_m(error["max"])} off'
        )
    false = summary['false_fixes']
    if not math.isnan(false):
        limit = f'more than {summary["false_fix_limit_m"]:g} m'
        words.append(
            f'{"No fix is" if not false else f"{false} fixes are" if false > 1 else "1 fix is"} '
            f'wrong by {limit}'
        )
    if frames > fixes:
        words.append(f'{frames - fixes} frames were refused: {_reasons(summary)}')
    return '. '.join(words) + '.'


def _reasons(summary: Mapping[str, Any]) -> str:
    return ', '.join(
        f'{name.replace("_", " ") or "no reason given"} {count}'
        for name, count in summary['no_fix_reasons'].items()
    )


def _cards(summary: Mapping[str, Any]) -> str:
    error, camera = summary['error_m'], summary['camera_error_m']
    false, recall = summary['false_fixes'], summary['recall']
    inside = summary['containment_95']
    total = summary['latency_ms'].get('total', {'p50': math.nan, 'p95': math.nan})
    radius = f'{summary["recall_radius_m"]:g} m'
    refused = summary['frames'] - summary['fixes']
    cards = [
        ('Median error', _m(error['median']), f'90% {_m(error["p90"])}, max {_m(error["max"])}'),
        (
            'False fixes',
            '-' if math.isnan(false) else str(false),
            f'fixes more than {summary["false_fix_limit_m"]:g} m off',
        ),
        (
            'Coverage',
            _percent(summary['coverage']),
            f'{summary["fixes"]} of {summary["frames"]} frames',
        ),
        ('No fix', str(refused), _reasons(summary) or 'no frame was refused'),
        (
            'Recall@1',
            _percent(recall['at_1']),
            f'@5 {_percent(recall["at_5"])}, @20 {_percent(recall["at_20"])}; best tile within '
            f'{radius}, before registration',
        ),
        (
            '95% ellipse holds',
            _percent(inside['camera']),
            f'of camera positions; {_percent(inside["center"])} of image centres',
        ),
        (
            'Camera error',
            _m(camera['median']),
            f'median; 90% {_m(camera["p90"])}, max {_m(camera["max"])}',
        ),
        ('Time per frame', _ms(total['p50']), f'median; 95% {_ms(total["p95"])}'),
    ]
    body = ''.join(
        f'<div class="card{" alarm" if name == "False fixes" and false > 0 else ""}">'
        f'<h3>{_e(name)}</h3><p class="figure">{_e(value)}</p><p>{_e(words)}</p></div>'
        for name, value, words in cards
    )
    return f'<div class="cards">{body}</div>'


def _legend(records: Sequence[FixRecord]) -> str:
    present = {grade(one) for one in records}
    keys = ''.join(
        f'<li><i class="key {name}"></i>{_e(words)}</li>'
        for name, words in GRADE_WORDS.items()
        if name in present
    )
    return (
        f'<ul class="legend">{keys}<li><i class="key line"></i>true track</li></ul>'
        '<p class="small">Ellipses hold 95% by the fix&rsquo;s own covariance, drawn to scale: '
        'a small one hides under its dot. A line leads from each fix to the truth. '
        'Rest the pointer on a dot for its frame.</p>'
    )


def _plot_words(records: Sequence[FixRecord]) -> str:
    what = 'image centre on the ground' if any(one.uses_center for one in records) else 'camera'
    return (
        f'<p class="small">Dots: error of the {what}. Ticks: the 95% bound that the fix claimed; '
        'a dot above its tick is worse than promised. Dashed: beyond it a fix counts as false. '
        'Hollow: no fix.</p>'
    )


def _strip(heading: str, explanation: str, pairs: Sequence[Pair]) -> str:
    figures = ''.join(_figure(pair) for pair in pairs)
    return (
        f'<section><h2>{_e(heading)}</h2><p class="small">{_e(explanation)}</p>'
        f'<div class="strip">{figures}</div></section>'
    )


def _figure(pair: Pair) -> str:
    record = pair.record
    if record.is_fix:
        error = f'error {_m(record.error_m)}, ' if math.isfinite(record.error_m) else ''
        words = (
            f'{error}95% within {_m(bound_95_m(record))}, {record.inliers} inliers, '
            f'similarity {_number(record.similarity)}'
        )
    else:
        words = record.reason.replace('_', ' ')
        if record.detail:
            words += f': {record.detail}'
    return (
        f'<figure><div class="pair">{_image(pair.frame_uri, pair.frame_note)}'
        f'{_image(pair.map_uri, pair.map_note)}</div>'
        f'<figcaption><b>{_e(record.file)}</b> <i class="key {grade(record)}"></i> '
        f'{_e(words)}</figcaption></figure>'
    )


def _image(uri: str, note: str) -> str:
    if not uri:
        return f'<div class="missing">{_e(note or "nothing to show")}</div>'
    return f'<div><img src="{uri}" alt="{_e(note)}"><span>{_e(note)}</span></div>'


def _latency(summary: Mapping[str, Any]) -> str:
    stages = summary['latency_ms']
    longest = max((one['p95'] for one in stages.values() if one['count']), default=0.0)
    if not longest > 0.0:
        return ''
    rows = ''.join(
        f'<tr><th>{_e(name)}</th><td>{_ms(one["p50"])}</td><td>{_ms(one["p95"])}</td>'
        f'<td>{_ms(one["max"])}</td><td class="wide"><div class="meter">'
        f'<i class="p95" style="width:{100 * one["p95"] / longest:.1f}%"></i>'
        f'<i class="p50" style="width:{100 * one["p50"] / longest:.1f}%"></i></div></td></tr>'
        for name, one in stages.items()
        if one['count']
    )
    return (
        '<section><h2>Time per stage</h2><table><thead><tr><th>stage</th><th>median</th>'
        f'<th>95%</th><th>max</th><th class="wide">median and 95%</th></tr></thead>{rows}'
        '</table></section>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = ''.join(
        f'<tr><th>{_e(name)}</th><td class="text">{_e(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<section><h2>How it was made</h2><table class="facts">{rows}</table></section>'


def _frames(records: Sequence[FixRecord]) -> str:
    rows = ''.join(_frame_row(one) for one in records[:MAX_ROWS])
    more = len(records) - MAX_ROWS
    tail = f'<p class="small">{more} more in fixes.csv.</p>' if more > 0 else ''
    heads = ''.join(
        f'<th{left}>{name}</th>'
        for name, left in (
            *(('frame', ''), ('answer', TEXT), ('error', ''), ('95% within', '')),
            *(('similarity', ''), ('inliers', ''), ('detail', TEXT)),
        )
    )
    return (
        f'<section><details><summary>All {len(records)} frames</summary><div class="scroll">'
        f'<table><thead><tr>{heads}</tr></thead>{rows}</table></div>{tail}</details></section>'
    )


def _frame_row(record: FixRecord) -> str:
    answer = record.reason.replace('_', ' ') or record.status
    return (
        f'<tr><th>{_e(record.file)}</th><td{TEXT}>{_e(answer)}</td><td>{_m(record.error_m)}</td>'
        f'<td>{_m(bound_95_m(record))}</td><td>{_number(record.similarity)}</td>'
        f'<td>{record.inliers}</td><td{TEXT}>{_e(record.detail)}</td></tr>'
    )


def _scrolled(text: str) -> str:
    return f'<div class="scroll">{text}</div>'


def _e(value: Any) -> str:
    return html.escape(str(value))


def _m(value: float) -> str:
    """Metres with about three significant digits."""
    if math.isnan(value):
        return '-'
    if not math.isfinite(value):
        return 'unbounded'
    digits = 3 if value < 0.1 else 2 if value < 10.0 else 1 if value < 100.0 else 0
    return f'{value:.{digits}f}\N{NO-BREAK SPACE}m'


def _ms(value: float) -> str:
    if not math.isfinite(value):
        return '-'
    return f'{value:.{1 if value < 10.0 else 0}f}\N{NO-BREAK SPACE}ms'


def _percent(value: float) -> str:
    return '-' if math.isnan(value) else f'{100.0 * value:.0f}%'


def _number(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.2f}'
