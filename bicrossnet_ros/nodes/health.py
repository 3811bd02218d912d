"""Counts and latencies of the node, for `/diagnostics`."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from bicrossnet_ros.types import PositionEstimate

WINDOW = 50
"""Frames over which rates and latencies are taken."""


class Health:
    """What happened so far. Counted in the threads that receive and work, read by a timer.

    Parameters
    ----------
    clock_s : callable
        A steady clock in seconds (not the node's: simulated time may stand still).
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._received = 0
        self._dropped = 0
        self._internal_errors = 0
        self._reasons: Counter[str] = Counter()
        self._arrivals_s: deque[float] = deque(maxlen=WINDOW)
        self._timings_ms: dict[str, deque[float]] = {}
        self._latencies_ms: deque[float] = deque(maxlen=WINDOW)
        self._fix_at_s = -math.inf
        self._frame_at_s = -math.inf
        self._last_detail = ''
        self._error_at_s = -math.inf
        self._last_error = ''

    def count_image(self, *, replaced: bool) -> None:
        """An image came; `replaced` if it took the place of one that was not yet looked at."""
        with self._lock:
            self._received += 1
            self._dropped += replaced
            self._arrivals_s.append(self._clock_s())

    def count_estimate(
        self, estimate: PositionEstimate, *, latency_ms: float, is_internal_error: bool = False
    ) -> None:
        """A frame was worked on; `latency_ms` is from its arrival to the publication."""
        with self._lock:
            self._frame_at_s = self._clock_s()
            self._reasons[str(estimate.reason) or 'fix'] += 1
            self._internal_errors += is_internal_error
            self._latencies_ms.append(latency_ms)
            for stage, spent_ms in estimate.timings_ms.items():
                self._timings_ms.setdefault(stage, deque(maxlen=WINDOW)).append(spent_ms)
            if estimate.is_fix:
                self._fix_at_s = self._frame_at_s
            self._last_detail = '' if estimate.is_fix else estimate.detail

    def count_error(self, error: BaseException) -> None:
        """A defect of ours showed outside the work on a frame."""
        with self._lock:
            self._internal_errors += 1
            self._error_at_s = self._clock_s()
            self._last_error = f'{type(error).__name__}: {error}'

    def problem(self) -> str:
        """What a pilot should know; empty while fixes come."""
        with self._lock:
            now_s = self._clock_s()
            if now_s - self._error_at_s <= 5.0:
                return f'internal error: {self._last_error}'
            if not self._arrivals_s:
                return 'no image yet'
            if now_s - self._arrivals_s[-1] > 5.0:
                return f'no image for {now_s - self._arrivals_s[-1]:.0f} s'
            if now_s - self._fix_at_s > 5.0:
                return f'no fix lately: {self._last_detail or "none yet"}'
            return ''

    def values(self) -> dict[str, str]:
        """Everything counted, as text."""
        with self._lock:
            now_s = self._clock_s()
            values = {
                'frames_received': str(self._received),
                'frames_processed': str(sum(self._reasons.values())),
                'frames_dropped': str(self._dropped),
                'internal_errors': str(self._internal_errors),
                'last_internal_error': self._last_error,
                'rate_hz': f'{self._rate_hz(now_s):.2f}',
                'age_of_last_fix_s': _seconds(now_s - self._fix_at_s),
                'age_of_last_frame_s': _seconds(now_s - self._frame_at_s),
                'last_no_fix': self._last_detail,
            }
            values.update({f'count.{key}': str(n) for key, n in sorted(self._reasons.items())})
            values.update(_percentiles('latency', self._latencies_ms))
            for stage, spent_ms in self._timings_ms.items():
                values.update(_percentiles(stage, spent_ms))
            return values

    def _rate_hz(self, now_s: float) -> float:
        """Images a second over the last ones; falls when none come any more."""
        recent = [at_s for at_s in self._arrivals_s if now_s - at_s < 10.0]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(1e-6, now_s - recent[0])


def _seconds(age_s: float) -> str:
    return f'{age_s:.1f}' if math.isfinite(age_s) else 'never'


def _percentiles(stage: str, spent_ms: deque[float]) -> dict[str, str]:
    if not spent_ms:
        return {}
    middle, high = np.percentile(np.array(spent_ms), [50, 95])
    return {f'ms.{stage}.p50': f'{middle:.1f}', f'ms.{stage}.p95': f'{high:.1f}'}
