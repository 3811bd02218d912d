"""Play a recorded flight over ROS 2: camera, orientation and height as if it were flown now.

    flight_player FLIGHT [--rate 2] [--clock] [--wait-for-report] [--ros-args ...]

The flight is a folder or a rosbag2, read by `bicrossnet_ros.flight`. GNSS is lost by default.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.utilities import remove_ros_args

from bicrossnet_ros.errors import BiCrossNetError, FlightError
from bicrossnet_ros.flight import HEADINGS, Flight, FlightRecord, open_flight
from bicrossnet_ros.nodes.player_node import PlayerNode
from bicrossnet_ros.types import Frame

RESEND_AFTER_S = 30.0
SENDS = 3
RANGE_LIMIT = '0 is allowed with --wait-for-report only: as fast as the node goes'


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (without the arguments of ROS)."""
    parser = argparse.ArgumentParser(prog='flight_player', description=__doc__.split('\n')[0])
    parser.add_argument('flight', type=Path, help='flight folder or rosbag2')
    parser.add_argument('--config', type=Path, help="a flight.yaml instead of the folder's own")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        '--rate', type=float, default=1.0, help=f'times the recorded speed ({RANGE_LIMIT})'
    )
    pace.add_argument('--hz', type=float, help='frames a second, whatever was recorded')
    parser.add_argument(
        '--stamp',
        choices=('now', 'recorded'),
        default='now',
        help='time in the messages; recorded needs a node with use_sim_time and --clock, '
        'or max_age_s 0',
    )
    parser.add_argument(
        '--clock', action='store_true', help='publish /clock with the recorded time'
    )
    parser.add_argument(
        '--wait-for-report',
        action='store_true',
        help='send the next frame when the node has reported on the one before: none is lost',
    )
    parser.add_argument('--report-topic', default='geolocalizer/report')
    parser.add_argument('--heading', choices=HEADINGS, default='recorded')
    parser.add_argument('--gps', action='store_true', help='publish the recorded gps/fix as well')
    parser.add_argument('--compressed', action='store_true', help='image/compressed (JPEG)')
    parser.add_argument('--limit', type=int, default=0, help='stop after so many frames; 0: all')
    parser.add_argument('--wait-s', type=float, default=10.0, help='for a node that listens')
    options = parser.parse_args(args)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    """Raise FlightError for numbers that make no sense, alone or together."""
    lowest = 0.0 if options.wait_for_report else 1e-3
    for name in ('rate', 'hz'):
        value = getattr(options, name)
        if value is not None and not lowest <= value <= 1000.0:
            raise FlightError(f'--{name} is {value}; expected {lowest:g} to 1000 ({RANGE_LIMIT})')
    if not 0.0 <= options.wait_s < math.inf or options.limit < 0:
        raise FlightError('--wait-s and --limit must not be negative')
    if options.clock and options.stamp == 'now':
        raise FlightError('--clock publishes the recorded time: it needs --stamp recorded')


class Player:
    """Sends the frames of a flight at their time.

    Parameters
    ----------
    node : PlayerNode
        Publishes.
    flight : Flight
        What to play.
    options : argparse.Namespace
        Of `parse`.
    """

    def __init__(self, node: PlayerNode, flight: Flight, options: argparse.Namespace) -> None:
        self._node = node
        self._flight = flight
        self._options = options
        self.sent = 0
        self.skipped = 0

    def play(self) -> None:
        """Send all frames.

        Raises
        ------
        FlightError
            If nobody listens, a report does not come, or the flight has no stamps where they
            are needed.
        """
        options = self._options
        needs_stamps = options.stamp == 'recorded' or (options.hz is None and options.rate > 0)
        if needs_stamps and not all(math.isfinite(r.stamp_s) for r in self._flight.records):
            raise FlightError(
                f'{self._flight.name}: no stamp on every frame; play it with --stamp now --hz X'
            )
        records = self._flight.records[: options.limit or None]
        if options.clock:
            self._node.publish_clock(records[0].stamp_s)
        self._node.wait_for_listeners(options.wait_s, report=options.wait_for_report)
        previous: FlightRecord | None = None
        sent_at_s = time.monotonic()
        for record in records:
            frame = self._read(record)
            if frame is None:
                continue
            gap_s = self._gap_s(previous, record)
            self._pause(previous, record, sent_at_s, gap_s)
            sent_at_s = time.monotonic()
            self._send(record, frame)
            previous = record
        self._node.finish()

    def _read(self, record: FlightRecord) -> Frame | None:
        try:
            return self._flight.frame(record, heading=self._options.heading)
        except BiCrossNetError as error:
            self._node.get_logger().warning(f'skipped {record.file}: {error}')
            self.skipped += 1
            return None

    def _gap_s(self, previous: FlightRecord | None, record: FlightRecord) -> float:
        """Seconds of real time between two frames."""
        options = self._options
        if previous is None:
            return 0.0
        if options.hz is not None:
            return 1.0 / options.hz if options.hz > 0 else 0.0
        if options.rate == 0.0:
            return 0.0
        return max(0.0, record.stamp_s - previous.stamp_s) / float(options.rate)

    def _pause(
        self, previous: FlightRecord | None, record: FlightRecord, since_s: float, gap_s: float
    ) -> None:
        """Wait for the frame's turn; meanwhile simulated time runs from one stamp to the next."""
        while (share := self._share(since_s, gap_s)) < 1.0:
            if self._options.clock and previous is not None:
                step_s = record.stamp_s - previous.stamp_s
                self._node.publish_clock(previous.stamp_s + share * step_s)
            left_s = gap_s * (1.0 - share)
            self._node.spin(min(0.02, left_s))
        if self._options.clock:
            self._node.publish_clock(record.stamp_s)

    @staticmethod
    def _share(since_s: float, gap_s: float) -> float:
        return (time.monotonic() - since_s) / gap_s if gap_s > 0.0 else 1.0

    def _send(self, record: FlightRecord, frame: Frame) -> None:
        options = self._options
        for _ in range(SENDS if options.wait_for_report else 1):
            stamp = self._node.publish_frame(
                record, frame, recorded_stamp=options.stamp == 'recorded'
            )
            if not options.wait_for_report or self._node.wait_for_report(stamp, RESEND_AFTER_S):
                self.sent += 1
                return
        raise FlightError(
            f'no report about {record.file} on {options.report_topic} within '
            f'{SENDS * RESEND_AFTER_S:.0f} s; is the node active?'
        )


def run(args: list[str] | None = None) -> int:
    """Play a flight; the exit code."""
    options = parse(remove_ros_args(args if args is not None else sys.argv)[1:])
    flight = open_flight(options.flight, config=options.config)
    rclpy.init(args=args)
    node = player = None
    started_s = time.monotonic()
    try:
        node = PlayerNode(
            gps=options.gps, compressed=options.compressed, report_topic=options.report_topic
        )
        player = Player(node, flight, options)
        player.play()
    except (KeyboardInterrupt, ExternalShutdownException):
        print('interrupted', file=sys.stderr)
    except RuntimeError:
        # A signal may end the context while something is about to wait or publish: an RCLError.
        if rclpy.ok():
            raise
        print('interrupted', file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if player is not None:
        print(
            f'{flight.name}: {player.sent} frames published, {player.skipped} skipped, '
            f'in {time.monotonic() - started_s:.1f} s',
            flush=True,
        )
    return 0


def main(args: list[str] | None = None) -> int:
    """Run the player; a known error is one line and exit code 2."""
    try:
        return run(args)
    except BiCrossNetError as error:
        print(f'flight_player: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
