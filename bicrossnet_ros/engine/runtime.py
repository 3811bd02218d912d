"""What every way to run a network has in common: its interface, and how threads share it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar('T')

BACKEND_VARIABLE = 'BICROSSNET_BACKEND'
ONNX_RUNTIME = 'onnxruntime'  # value of BACKEND_VARIABLE that goes round the engine


class Runtime(Protocol):
    """A network, ready to run; `run` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What runs the network, for people: 'native avx2', 'ONNX Runtime 1.31.1'."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared images (N, 3, H, W), C-contiguous; returns (N, D), not normalised."""


class FreeList(Generic[T]):
    """Lends things that one thread uses at a time, and makes another only when all are lent.

    Parameters
    ----------
    make : callable
        Returns a new one; called once at construction, so that what is impossible fails there
        and the first frame pays for nothing.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._process = os.getpid()
        self._left_behind: list[T] = []
        # append and pop of a list are atomic: no lock is needed.
        self._free = [make()]

    @contextmanager
    def lend(self) -> Iterator[T]:
        """Hand one out for the length of a ``with`` block."""
        if os.getpid() != self._process:
            # A forked process has no threads but one: what has some must not even be released.
            self._left_behind, self._free = self._free, []
            self._process = os.getpid()
        try:
            item = self._free.pop()
        except IndexError:
            item = self._make()
        try:
            yield item
        finally:
            self._free.append(item)
