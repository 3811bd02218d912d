"""Entry points of the executables; without ROS 2 they say so instead of a traceback."""

from __future__ import annotations

import importlib
import sys

NO_ROS = (
    'error: {name} needs ROS 2, but its Python package {missing} is not there; '
    "source a ROS 2 installation, or pip install 'bicrossnet_ros[ros]' (x86-64 Linux)"
)


def _run(name: str) -> int:
    try:
        module = importlib.import_module(f'bicrossnet_ros.nodes.{name}')
    except ModuleNotFoundError as error:
        missing = str(error.name).partition('.')[0]
        if missing != 'rclpy' and not missing.endswith('_msgs'):
            raise
        print(NO_ROS.format(name=name, missing=missing), file=sys.stderr)
        return 2
    return int(module.main() or 0)


def geolocalizer() -> int:
    """Run the node that localises."""
    return _run('geolocalizer')


def flight_player() -> int:
    """Run the player of recorded flights."""
    return _run('flight_player')
