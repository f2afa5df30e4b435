"""How late an event loop is."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PERIOD = 0.001


@contextlib.asynccontextmanager
async def ticker() -> AsyncIterator[list[float]]:
    """Tick every millisecond while the body runs; gives the lateness (seconds) of each tick so far.

    The schedule is fixed: if the loop stands still for 50 ms, 50 ticks are late, not one.
    """
    lateness: list[float] = []
    due = anyio.current_time() + PERIOD

    def record() -> None:
        nonlocal due
        late = anyio.current_time() - due
        while late >= 0:
            lateness.append(late)
            due += PERIOD
            late -= PERIOD

    async def tick() -> None:
        while True:
            await anyio.sleep_until(due)
            record()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await anyio.lowlevel.checkpoint()
        yield lateness
        record()
        tasks.cancel_scope.cancel()


def percentile(values: list[float], share: float) -> float:
    """The smallest of *values* that a *share* (0 to 1) of them doesn't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
