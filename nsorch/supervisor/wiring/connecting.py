"""Links of many workers, made while others of these workers are still being made: on two processors at a time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from nsorch.errors import ClosedError
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.orders import LINKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nsorch.supervisor.wiring.network import Link
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

# So many links at a time: enough for the way to the thread and back not to count.
_AT_ONCE = 128


class Connecting:
    """Makes the planned links of *workers*, each as soon as its ends are there."""

    def __init__(self, wiring: Wiring, planned: Collection[Link], links_left: dict[Worker, int]) -> None:
        self._wiring = wiring
        self._planned = planned
        self._unmade: set[Worker] = set()
        self._links_left = links_left
        self._complete: list[Worker] = []
        self._ready: deque[Link] = deque()
        self._changed = anyio.Event()
        self._one_removed = False

    @classmethod
    async def of(cls, wiring: Wiring, workers: Iterable[Worker]) -> Connecting:
        planned: dict[Link, None] = {}
        left: dict[Worker, int] = {}
        connecting = cls(wiring, planned, left)
        async for worker in in_turns(workers):
            own = [link for link in wiring.record.links_of.get(worker.name, ()) if link._state == "planned"]
            for link in own:
                if link not in planned:
                    planned[link] = None
                    link._on_removal.append(connecting.removed)
            connecting._one_removed |= len(own) < len(worker.spec.links)  # before we could hear of it
            left[worker] = len(own)
        connecting._unmade.update(left)
        return connecting

    def made(self, worker: Worker) -> None:
        """Its network namespace exists."""
        self._unmade.discard(worker)
        if not self._links_left[worker]:
            self._complete.append(worker)
        for link in dict.fromkeys(self._wiring.record.links_of.get(worker.name, ())):
            if link in self._planned and not any(side.worker in self._unmade for side in link._sides):
                self._ready.append(link)
        self._changed.set()

    def removed(self) -> None:
        """One of the planned links, by somebody else."""
        self._one_removed = True
        self._changed.set()

    async def run(self) -> None:
        """Ends when all links exist.

        :raises NetlinkError: the kernel refused one
        :raises ClosedError: somebody has removed one
        """
        left = len(self._links_left)
        while left:
            while not self._ready and not self._complete and not self._one_removed:
                self._changed = anyio.Event()
                await self._changed.wait()
            if self._one_removed:
                raise ClosedError("a link was removed before it was made", stage=LINKING)
            links = [self._ready.popleft() for _ in range(min(_AT_ONCE, len(self._ready)))]
            complete, self._complete = self._complete, []
            for worker in (side.worker for link in links for side in link._sides):
                if worker in self._links_left:
                    self._links_left[worker] -= 1
                    if not self._links_left[worker]:
                        complete.append(worker)
            for link in links:
                link._on_removal.remove(self.removed)
            await self._wiring.make(links, complete, rise=False)
            left -= len(complete)
            async for worker in in_turns(complete):
                worker._close_netlink()
