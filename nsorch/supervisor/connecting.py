"""Links of many workers, made while others of these workers are still being made: on two processors at a time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from nsorch.supervisor.turns import in_turns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.supervisor.network import Link
    from nsorch.supervisor.wiring import Wiring
    from nsorch.supervisor.worker import Worker

# So many links at a time: enough for the way to the thread and back not to count.
_AT_ONCE = 48


class Connecting:
    """Makes the planned links of *workers*, each as soon as its ends are there."""

    def __init__(self, wiring: Wiring, links_left: dict[Worker, int]) -> None:
        self._wiring = wiring
        self._unmade = set(links_left)
        self._links_left = links_left
        self._complete: list[Worker] = []
        self._ready: deque[Link] = deque()
        self._changed = anyio.Event()

    @classmethod
    async def of(cls, wiring: Wiring, workers: Iterable[Worker]) -> Connecting:
        left = {
            worker: sum(link._state == "planned" for link in wiring.record.links_of.get(worker.name, ()))
            async for worker in in_turns(workers)
        }
        return cls(wiring, left)

    def made(self, worker: Worker) -> None:
        """Its network namespace exists."""
        self._unmade.discard(worker)
        if not self._links_left[worker]:
            self._complete.append(worker)
        for link in dict.fromkeys(self._wiring.record.links_of.get(worker.name, ())):
            if link._state == "planned" and not any(side.worker in self._unmade for side in link._sides):
                self._ready.append(link)
        self._changed.set()

    async def run(self) -> None:
        """Ends when all links exist.

        :raises NetlinkError: the kernel refused one
        """
        left = len(self._links_left)
        while left:
            while not self._ready and not self._complete:
                self._changed = anyio.Event()
                await self._changed.wait()
            links = [self._ready.popleft() for _ in range(min(_AT_ONCE, len(self._ready)))]
            complete, self._complete = self._complete, []
            for worker in (side.worker for link in links for side in link._sides):
                if worker in self._links_left:
                    self._links_left[worker] -= 1
                    if not self._links_left[worker]:
                        complete.append(worker)
            await self._wiring.make(links, complete, rise=False)
            left -= len(complete)
            for worker in complete:
                worker._close_netlink()
