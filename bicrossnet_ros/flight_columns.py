"""Columns of a flight table: their names, their aliases, and how a cell becomes a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from bicrossnet_ros.errors import FlightError


@dataclass(frozen=True)
class Column:
    """One quantity of a record: other names it is found under, and the range that is believed."""

    aliases: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    is_truth: bool = False


# The first name found in the table wins, the canonical one (the key) before its aliases.
# `yaw` is no alias of the heading: it may be counter-clockwise from east (REP 103). A table that
# has it says what it means by mapping it in flight.yaml.
NUMBERS: dict[str, Column] = {
    'lat_deg': Column(('latitude', 'latitude_deg', 'lat'), -90, 90),
    'lon_deg': Column(('longitude', 'longitude_deg', 'lon', 'lng'), -180, 180),
    'ellipsoid_m': Column(('altitude', 'altitude_m', 'alt', 'alt_m'), -1000, 100000),
    'agl_m': Column(('agl_est_m', 'agl', 'height_agl_m'), -1000, 100000),
    'roll_deg': Column(('roll',), -180, 180),
    'pitch_deg': Column(('pitch',), -180, 180),
    'heading_deg': Column(('heading',), -360, 360),
    'truth_lat_deg': Column(('reg_cam_lat', 'truth_lat'), -90, 90, True),
    'truth_lon_deg': Column(('reg_cam_lon', 'truth_lon'), -180, 180, True),
    'truth_center_lat_deg': Column(('center_lat', 'truth_center_lat'), -90, 90, True),
    'truth_center_lon_deg': Column(('center_lon', 'truth_center_lon'), -180, 180, True),
    'truth_heading_deg': Column(('rotation_deg', 'truth_heading'), -360, 360, True),
}
FILE = ('file', 'filename', 'image', 'image_file')
STAMP = ('stamp_s', 'stamp', 'timestamp', 'timestamp_s', 'time_s', 'datetime')
# A position is one quantity in two columns: half of it is a mistake of the table.
PAIRS = (
    ('lat_deg', 'lon_deg'),
    ('truth_lat_deg', 'truth_lon_deg'),
    ('truth_center_lat_deg', 'truth_center_lon_deg'),
)
# Truth under these names was found by matching to the map itself.
MAP_RELATIVE = frozenset({'center_lat', 'center_lon', 'reg_cam_lat', 'reg_cam_lon'})
CANONICAL = ('file', 'stamp_s', *NUMBERS)


def find_columns(header: Sequence[str], chosen: Mapping[str, str], source: str) -> dict[str, str]:
    """Map canonical column names to the names in the table.

    Parameters
    ----------
    header : sequence of str
        Column names of the table.
    chosen : mapping
        Canonical name to the table's, from flight.yaml; wins over the aliases.
    source : str
        Name of the table, for messages.

    Raises
    ------
    FlightError
        If a chosen column is absent, a position has one half only, or the columns for file and
        stamp are missing.
    """
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise FlightError(f'{source}: column(s) {doubled} appear more than once in the header')
    found: dict[str, str] = {}
    for name, actual in chosen.items():
        if actual not in header:
            raise FlightError(
                f'{source}: column {actual!r} (mapped to {name}) is missing; '
                f'the header has {list(header)}'
            )
        found[name] = actual
    names = {'file': FILE, 'stamp_s': STAMP} | {
        name: (name, *column.aliases) for name, column in NUMBERS.items()
    }
    for name, candidates in names.items():
        present = [one for one in candidates if one in header]
        if name not in found and present:
            found[name] = present[0]
    for name in ('file', 'stamp_s'):
        if name not in found:
            raise FlightError(
                f'{source}: column {name} is missing (known names: {", ".join(names[name])}); '
                f'the header has {list(header)}; map it under `columns` in flight.yaml'
            )
    for one, other in PAIRS:
        if (one in found) != (other in found):
            have, lack = (one, other) if one in found else (other, one)
            raise FlightError(f'{source}: has column {found[have]} but no column for {lack}')
    return found


def parse_stamp_s(text: str) -> float:
    """Seconds since the Unix epoch from a number of seconds or an ISO 8601 date and time.

    A date without a time zone is UTC.

    Raises
    ------
    ValueError
        With what was expected.
    """
    text = text.strip()
    expected = 'expected seconds, or ISO 8601 like 2013-06-04T17:45:53Z'
    if not text:
        raise ValueError(f'is empty; {expected}')
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso_s(text, expected)
    if not math.isfinite(seconds):
        raise ValueError(f'is {text!r}; {expected}')
    return seconds


def _iso_s(text: str, expected: str) -> float:
    # Python 3.10 knows neither the suffix Z nor a fraction of any number of digits but 3 and 6.
    plain = text[:-1] + '+00:00' if text[-1] in 'Zz' else text
    head, dot, tail = plain.partition('.')
    digits = len(tail) - len(tail.lstrip('0123456789'))
    if dot and digits:
        plain = f'{head}.{tail[:digits][:6]:0<6}{tail[digits:]}'
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        raise ValueError(f'is {text!r}; {expected}') from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()


def parse_number(text: str, name: str) -> float | None:
    """The number in a cell, or None where it is empty (and, for a truth, `nan`).

    Raises
    ------
    ValueError
        With what was found and expected.
    """
    column = NUMBERS[name]
    text = text.strip()
    if not text or (column.is_truth and text.lower() == 'nan'):
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f'is {text!r}; expected a number, or nothing if unknown') from None
    if not math.isfinite(value):
        raise ValueError(f'is {text!r}; expected a finite number, or nothing if unknown')
    if not column.low <= value <= column.high:
        raise ValueError(f'is {value:g}; expected {column.low:g} to {column.high:g}')
    return value
