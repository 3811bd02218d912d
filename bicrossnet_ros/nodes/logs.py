"""What the rest of the package logs, said by a node: in ROS' format, its files and /rosout."""

from __future__ import annotations

import logging
from typing import Any


class RosLogHandler(logging.Handler):
    """Hands Python's log records to the logger of a node.

    Parameters
    ----------
    logger : rclpy.impl.rcutils_logger.RcutilsLogger
        `Node.get_logger()`.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Say it at the same level."""
        message = self.format(record)
        # A line each: rclpy allows a line of code one level only.
        if record.levelno >= logging.ERROR:
            self._logger.error(message)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(message)
        else:
            self._logger.info(message)
