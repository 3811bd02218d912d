"""Worker processes that are lost, by a kill or a crash, as an error that a user can act on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import TypeVar

from torch.utils.data import DataLoader

from bicrossnet_ros.errors import BiCrossNetError

T = TypeVar('T')


class WorkerError(BiCrossNetError):
    """A process that makes batches was killed or crashed."""


def alive(loader: DataLoader[T]) -> Iterator[T]:
    """Pass on what a loader yields, as long as its workers live.

    Raises
    ------
    WorkerError
        If one of them is lost.
    """
    if not loader.num_workers:
        yield from loader
        return
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # Torch's handler raises wherever the training stands at that moment. Without it the
        # loader still looks after its workers, every few seconds that it waits for them.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError) as error:
            if not _tells_of_a_loss(error):
                raise
            raise WorkerError(
                'a process that makes batches was killed or crashed, most often for want of '
                'memory; lower data.workers or give more memory (in a container: /dev/shm too), '
                'then go on with --resume'
            ) from error
        yield item


def _tells_of_a_loss(error: Exception) -> bool:
    """Tell a lost worker from an error in one, which comes with the traceback of the worker."""
    if isinstance(error, RuntimeError):
        return 'exited unexpectedly' in str(error)
    # Its last batches can no longer be fetched from it.
    return 'DataLoader worker' not in str(error)
