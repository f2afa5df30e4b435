"""The application's turn, which may have to wait on this processor."""

from __future__ import annotations

import os
import time

# After so many seconds: half the scheduler's usual tick.
_TURN = 0.002


class Turns:
    """Gives it, but not each time that it is asked to: see net/netlink.py."""

    def __init__(self) -> None:
        self._last = 0.0

    def give(self) -> None:
        if time.monotonic() - self._last > _TURN:
            os.sched_yield()
            self._last = time.monotonic()
