"""Run the callbacks of a node for as long as the aircraft flies, whatever one of them does."""

from __future__ import annotations

import time
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, ExternalShutdownException

PAUSE_S = 1e-3
"""After an error, so that one that comes back at once leaves the processor to the frames."""


def spin_through_errors(executor: Executor, on_error: Callable[[Exception], None]) -> None:
    """Run callbacks until the shutdown of ROS.

    An executor raises what a subscription, service, timer or rclpy itself raised, which would end
    the process; what is left in its queues is worked on when it spins again.

    Parameters
    ----------
    executor : Executor
        With the node added.
    on_error : callable
        Is told of every error, inside its handler.
    """
    while rclpy.ok():
        try:
            executor.spin()
            return
        except ExternalShutdownException:
            return
        except Exception as error:
            # A signal may end the context while the executor is about to wait: an RCLError.
            if not rclpy.ok():
                return
            on_error(error)
        time.sleep(PAUSE_S)
