"""A worker's statistics, again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectReceiveStream

from nsorch.errors import ClosedError, TopologyError
from nsorch.topology.kinds import check_seconds

if TYPE_CHECKING:
    from nsorch.core.usage import WorkerStats
    from nsorch.supervisor.worker import Worker


class StatsStream(ObjectReceiveStream["WorkerStats"]):
    """Made by :meth:`nsorch.Worker.watch_stats`. It ends when the worker is gone."""

    def __init__(self, worker: Worker, interval: float) -> None:
        check_seconds("interval", interval)
        if not interval > 0:
            raise TopologyError(f"interval: {interval} is not above 0")
        self._worker = worker
        self._interval = interval
        self._next = 0.0
        self._closed = False

    async def receive(self) -> WorkerStats:
        """Wait for the next reading. Cancelled, the next call waits for the same."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            with self._worker._supervisor._until_end():
                await anyio.sleep_until(self._next)
            stats = await self._worker.stats()
        except ClosedError:
            raise anyio.EndOfStream from None
        now = anyio.current_time()
        self._next = max(self._next + self._interval, now) if self._next else now + self._interval
        return stats

    async def aclose(self) -> None:
        self._closed = True
        await anyio.lowlevel.checkpoint()
