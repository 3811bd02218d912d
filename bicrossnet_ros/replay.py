"""Replay a recorded flight through the localizer and write a report.

python -m bicrossnet_ros.replay FLIGHT --gallery NAME.gallery --out DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bicrossnet_ros import __version__
from bicrossnet_ros.config import LocalizerConfig, load_config
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from bicrossnet_ros.fix_record import FixRecord, record_from_estimate
from bicrossnet_ros.flight import HEADINGS, Flight, FlightRecord, open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.report import write_report
from bicrossnet_ros.report_page import verdict
from bicrossnet_ros.types import Frame, PositionEstimate, Reason, Status

PROGRESS_EVERY_S = 5.0


def replay(
    flight: Flight,
    localize: Callable[[Frame], PositionEstimate],
    *,
    heading: str = 'recorded',
    radius_m: float | None = None,
    limit: int | None = None,
) -> Iterator[FixRecord]:
    """Ask the localizer about every frame of a flight, in order.

    Parameters
    ----------
    flight : Flight
        What was recorded.
    localize : callable
        `Localizer.localize`.
    heading, radius_m
        As in `Flight.frame`.
    limit : int, optional
        Only the first so many frames.

    Yields
    ------
    FixRecord
        One per frame, without errors. A frame that cannot be read is a `no_fix` with reason
        `bad_input`. Its timings are the localizer's, `read` (image from disk) before them and
        `total` (all but `read`) after them.
    """
    for record in flight.records[:limit]:
        yield _one(flight, record, localize, heading=heading, radius_m=radius_m)


def _one(
    flight: Flight,
    record: FlightRecord,
    localize: Callable[[Frame], PositionEstimate],
    *,
    heading: str,
    radius_m: float | None,
) -> FixRecord:
    start_s = time.perf_counter()
    try:
        frame = flight.frame(record, heading=heading, radius_m=radius_m)
    except BiCrossNetError as error:
        return FixRecord(
            file=record.file,
            stamp_s=record.stamp_s,
            status=str(Status.NO_FIX),
            reason=str(Reason.BAD_INPUT),
            detail=str(error),
        )
    read_s = time.perf_counter()
    estimate = localize(frame)
    done_s = time.perf_counter()
    timings_ms = {
        'read': 1e3 * (read_s - start_s),
        **estimate.timings_ms,
        'total': 1e3 * (done_s - read_s),
    }
    return replace(record_from_estimate(estimate, record.file), timings_ms=timings_ms)


def settle_config(
    config: LocalizerConfig, *, registration: bool, truth_is_map_relative: bool
) -> LocalizerConfig:
    """The configuration of a replay.

    Where the truth is relative to the map, the map's own accuracy is no part of the error. Unless
    the configuration sets it, it is then left out of the covariance too: otherwise every ellipse
    would look generous.
    """
    if not registration:
        config = replace(config, registration=replace(config.registration, enabled=False))
    if truth_is_map_relative and config.integrity.map_accuracy_m < 0.0:
        config = replace(config, integrity=replace(config.integrity, map_accuracy_m=0.0))
    return config


def notes_for(
    flight: Flight, config: LocalizerConfig, *, heading: str, radius_m: float | None
) -> list[str]:
    """What a reader of the report must know before believing its figures."""
    notes = []
    if flight.truth_is_map_relative:
        left_out = config.integrity.map_accuracy_m == 0.0
        notes.append(
            'The truth is relative to this map: the errors say how well frames were placed on '
            'the map, not how well the map lies on Earth. '
            + (
                'The covariances leave the accuracy of the map out as well.'
                if left_out
                else f'The covariances include {config.integrity.map_accuracy_m:g} m for the map.'
            )
        )
    if heading == 'truth':
        notes.append('The localizer was given the true heading, which no flight has.')
    if radius_m is not None:
        notes.append(
            f'Only the map within {radius_m:g} m of the recorded GNSS position was searched.'
        )
        without = sum(not one.has_position for one in flight.records)
        if without:
            notes.append(
                f'{without} frames have no recorded position; the whole map was searched.'
            )
    bad = sum(bool(one.problem) for one in flight.records)
    if bad:
        notes.append(f'{bad} rows of the flight cannot be used; see their detail below.')
    return notes


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the report was written, 2 on a known error, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m bicrossnet_ros.replay',
        description='Replay a recorded flight through the localizer and write fixes.csv, '
        'summary.json and report.html.',
    )
    add = parser.add_argument
    add('flight', type=Path, help='flight folder, or rosbag2')
    add('--gallery', type=Path, required=True, help='folder NAME.gallery')
    add('--model', type=Path, help='model file (default: the one that comes with the package)')
    add('--out', type=Path, required=True, help='folder for the report')
    add('--radius-m', type=float, help='search only so far around the recorded position')
    add('--no-registration', action='store_true', help='retrieval alone, no alignment')
    add('--heading', choices=HEADINGS, default='recorded', help='which heading is given')
    add('--config', type=Path, help='YAML with the parameters of the stages')
    add('--threads', type=int, default=1, help='CPU threads of the encoder')
    add('--limit', type=int, help='only the first so many frames')
    add('--flight-config', type=Path, help="a flight.yaml instead of the folder's own")
    add('--version', action='version', version=f'bicrossnet_ros {__version__}')
    return parser


def _run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    flight = open_flight(arguments.flight, config=arguments.flight_config)
    config = settle_config(
        load_config(arguments.config) if arguments.config else LocalizerConfig(),
        registration=not arguments.no_registration,
        truth_is_map_relative=flight.truth_is_map_relative,
    )
    encoder = open_encoder(arguments.model or default_model_path(), threads=arguments.threads)
    with open_gallery(arguments.gallery, encoder=encoder) as gallery:
        localizer = Localizer(gallery, encoder, config)
        given = {'heading': arguments.heading, 'radius_m': arguments.radius_m}
        notes = notes_for(flight, config, **given)
        frames = replay(flight, localizer.localize, limit=arguments.limit, **given)
        count = len(flight.records[: arguments.limit])
        records, interrupted = _collect(frames, count)
        if interrupted:
            notes.insert(0, f'Interrupted after {len(records)} of {count} frames.')
        summary = write_report(
            arguments.out,
            records,
            title=f'Replay of {flight.name}',
            flight=flight,
            gallery=gallery,
            options={'runtime': encoder.runtime, **_options(arguments, config)},
            notes=notes,
        )
    print(verdict(summary).replace('\N{NO-BREAK SPACE}', ' '))
    recall = ', '.join(
        f'@{name[3:]} {100.0 * value:.0f}%' for name, value in summary['recall'].items()
    )
    print(f'Recall within {summary["recall_radius_m"]:g} m before registration: {recall}')
    print(f'Report: {arguments.out / "report.html"}')
    return 130 if interrupted else 0


def _check(arguments: argparse.Namespace) -> None:
    radius_m = arguments.radius_m
    if radius_m is not None and not (math.isfinite(radius_m) and radius_m > 0.0):
        raise ConfigError(f'--radius-m is {radius_m:g}; expected metres above 0')
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f'--limit is {arguments.limit}; expected at least 1')
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ConfigError(f'--out {arguments.out} is a file; expected a folder')


def _options(arguments: argparse.Namespace, config: LocalizerConfig) -> dict[str, Any]:
    return {
        'heading': arguments.heading,
        'radius_m': arguments.radius_m,
        'registration': config.registration.enabled,
        'map_accuracy_m': config.integrity.map_accuracy_m,
        'config': arguments.config.name if arguments.config else 'defaults',
        'threads': arguments.threads,
        'limit': arguments.limit,
    }


def _collect(frames: Iterator[FixRecord], count: int) -> tuple[list[FixRecord], bool]:
    """All records, with progress on stderr; Ctrl-C ends early and keeps what there is."""
    records: list[FixRecord] = []
    start_s = time.monotonic()
    shown_s = -math.inf
    live = sys.stderr.isatty()
    try:
        for record in frames:
            records.append(record)
            now_s = time.monotonic()
            if now_s - shown_s < (0.2 if live else PROGRESS_EVERY_S) and len(records) < count:
                continue
            shown_s = now_s
            fixes = sum(one.is_fix for one in records)
            remaining_s = (now_s - start_s) / len(records) * (count - len(records))
            line = (
                f'{len(records)}/{count} frames, {fixes} fixes, '
                f'{int(remaining_s) // 60}:{int(remaining_s) % 60:02d} left'
            )
            print(f'\r{line}\033[K' if live else line, end='' if live else '\n', file=sys.stderr)
    except KeyboardInterrupt:
        return records, True
    finally:
        if live:
            print(file=sys.stderr)
    return records, False


if __name__ == '__main__':
    sys.exit(main())
