"""How far a long step is: a bar on a terminal, a line every tenth or so elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

QUIET_S = 2.0  # least time between two lines


class Progress:
    """Counts the units of one step on standard error.

    Parameters
    ----------
    label : str
        What is done.
    total : int
        Number of units.
    done : int
        Units done in an earlier run.
    unit : str
        Name of one unit; 'B' for bytes.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = '') -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._started_s = time.monotonic()
        self._told, self._told_s = self._tenth(), self._started_s
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=unit,
                unit_scale=unit == 'B',
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def advance(self, units: int = 1) -> None:
        """Count units as done."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
            return
        now_s = time.monotonic()
        if self._tenth() > self._told and now_s - self._told_s >= QUIET_S:
            self._told, self._told_s = self._tenth(), now_s
            print(f'{self._label}: {10 * self._told}%{self._left()}', file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tenth(self) -> int:
        return 10 * self._done // self._total if self._total else 10

    def _left(self) -> str:
        elapsed_s = time.monotonic() - self._started_s
        here = self._done - self._first
        left_s = elapsed_s / here * (self._total - self._done) if here else 0.0
        return f', about {left_s:.0f} s left' if left_s >= 1.0 else ''
