"""A mailbox with one slot: what nobody fetched in time is replaced by what is newer."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar('T')


class Mailbox(Generic[T]):
    """Hands the newest item from the thread that receives to the thread that works."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._is_open = True

    def put(self, item: T) -> bool:
        """Leave an item; True if it replaced one that nobody had fetched."""
        with self._changed:
            replaced = self._item is not None
            self._item = item
            self._changed.notify()
            return replaced

    def take(self) -> T | None:
        """Wait for an item and fetch it; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or not self._is_open)
            if not self._is_open:
                return None
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Wake the one who waits; what was not fetched is dropped."""
        with self._changed:
            self._is_open = False
            self._item = None
            self._changed.notify_all()
