"""Exposure times: a stamp that is missing, out of order, old or ahead of the clock is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from bicrossnet_ros.nodes.settings import NodeSettings
from bicrossnet_ros.types import Reason

CLOCK_WAIT_S = 0.3
"""Simulated time comes over a topic of its own, and may come after the image of that time."""


class StampCheck:
    """Remembers the newest frame and judges the next.

    Parameters
    ----------
    settings : NodeSettings
        Limits of age.
    now_s : callable
        The node's clock, in seconds.
    on_set_back : callable
        Called when the camera's clock is taken to have been set back.
    """

    PATIENCE = 10
    """Frames in a row behind the newest one after which the camera's clock was set back."""

    def __init__(
        self,
        settings: NodeSettings,
        now_s: Callable[[], float],
        on_set_back: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._now_s = now_s
        self._on_set_back = on_set_back
        self.reset()

    def reset(self) -> None:
        """Any stamp may come next."""
        self._newest_s, self._behind = -math.inf, 0

    def problem(self, at_s: float) -> tuple[Reason, str]:
        """Why a frame of this time gives no fix; (Reason.NONE, '') if nothing is wrong."""
        if at_s <= 0.0:
            return Reason.BAD_INPUT, (
                'the image has no stamp (zero); the camera driver must set the exposure time'
            )
        problem = self._age_problem(at_s)
        if problem[0] is not Reason.NONE:
            return problem
        if at_s > self._newest_s:
            self._newest_s, self._behind = at_s, 0
            return Reason.NONE, ''
        behind_s = self._newest_s - at_s
        self._behind += 1
        if self._behind >= self.PATIENCE:
            self.reset()
            self._on_set_back()
        return Reason.BAD_INPUT, (
            f'the stamp {at_s:.6f} s is {behind_s:.3f} s before the newest one; '
            'expected exposure times in order'
        )

    def _age_problem(self, at_s: float) -> tuple[Reason, str]:
        settings = self._settings
        if settings.max_age_s == 0.0:
            return Reason.NONE, ''
        age_s = self._now_s() - at_s
        deadline = time.monotonic() + CLOCK_WAIT_S
        while age_s < -settings.max_future_s and time.monotonic() < deadline:
            time.sleep(0.01)
            age_s = self._now_s() - at_s
        if age_s > settings.max_age_s:
            return Reason.STALE, (
                f'the frame is {age_s:.2f} s old; expected at most max_age_s = '
                f'{settings.max_age_s} s (does the camera use another clock than this computer, '
                'or is use_sim_time missing?)'
            )
        if age_s < -settings.max_future_s:
            return Reason.BAD_INPUT, (
                f'the stamp lies {-age_s:.2f} s ahead of the clock; expected at most '
                f'max_future_s = {settings.max_future_s} s (with use_sim_time: is /clock there?)'
            )
        return Reason.NONE, ''
