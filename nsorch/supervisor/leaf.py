"""A worker's cgroup, and what its event files tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from nsorch import events
from nsorch.core.cgroups import counts, open_event_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsorch.core.event_files import EventFiles
    from nsorch.supervisor.worker import Worker
    from nsorch.topology.limits import Limits

# What a number of an event file says: which limit was hit. An out-of-memory kill is told otherwise.
_HITS = {
    "memory.events": {"max": "memory", "high": "memory_high"},
    "memory.swap.events": {"max": "swap"},
    "pids.events": {"max": "pids"},
}
# Seconds. At a limit the kernel may notify a hundred times a second.
_PAUSE = 1.0


class Leaf:
    """:ivar fd: descriptor of its directory
    :ivar frozen: whether it is, or is about to be
    :ivar killed: all that ran in it was, once, or will be
    :ivar kills: of all that runs in it, asked for and not done yet
    :ivar closed: its directory is gone, and the number of the descriptor may be another's
    """

    __slots__ = (
        "_counted",
        "_files",
        "_open",
        "_worker",
        "changing",
        "closed",
        "fd",
        "frozen",
        "killed",
        "kills",
        "limits",
    )

    def __init__(self, worker: Worker, fd: int, files: EventFiles, limits: Limits | None) -> None:
        self._worker = worker
        self._files = files
        self._open: dict[str, int] = {}
        self._counted: dict[tuple[str, str], int] = {}
        self.fd = fd
        self.frozen = False
        self.limits = limits
        self.changing = anyio.Lock()
        self.killed = False
        self.kills: set[anyio.Event] = set()
        self.closed = anyio.Event()

    @property
    def name(self) -> str:
        """Of its worker."""
        return self._worker.name

    @property
    def leaving(self) -> bool:
        """It is removed with its worker, or has been."""
        return self._worker._leaving is not None

    @property
    def memory_kills(self) -> int:
        """How often the kernel has killed something in it for want of memory, as was told."""
        return self._counted.get(("memory.events", "oom_kill"), 0)

    def watch(self) -> None:
        """Tell of limits that are hit, from now on."""
        for name in _HITS:
            if name not in self._open and (fd := open_event_file(self.fd, name)) >= 0:
                self._open[name] = fd
                for key, number in counts(fd).items():
                    self._counted[name, key] = number
                self._listen(name)

    def _listen(self, name: str) -> None:
        self._files.add(self._open[name], lambda numbers: self._hear(name, numbers))

    def tell(self) -> None:
        """What hasn't been told: before the end of a process is."""
        for name, fd in self._open.items():
            self._publish(name, counts(fd))

    def _hear(self, name: str, numbers: Mapping[str, int]) -> None:
        if self._publish(name, numbers):
            self._files.remove(self._open[name])
            self._worker._supervisor._start_soon(lambda: self._listen_again(name))

    async def _listen_again(self, name: str) -> None:
        await anyio.sleep(_PAUSE)
        if name in self._open:
            self._listen(name)

    def _publish(self, name: str, numbers: Mapping[str, int]) -> bool:
        """Whether a limit was hit."""
        hit = False
        for key, total in numbers.items():
            new = total - self._counted.get((name, key), 0)
            if new <= 0:
                continue
            self._counted[name, key] = total
            worker, bus = self._worker, self._worker._supervisor._bus
            if limit := _HITS[name].get(key):
                hit = True
                bus.publish(
                    events.WorkerLimitHit(
                        worker=worker.name, incarnation=worker.incarnation, limit=limit, count=new, total=total
                    )
                )
            elif key == "oom_kill":
                bus.publish(
                    events.WorkerOomKilled(worker=worker.name, incarnation=worker.incarnation, count=new, total=total)
                )
        return hit

    def close(self) -> list[int]:
        """Its descriptors, to be closed."""
        fds = [self.fd, *self._open.values()]
        for fd in self._open.values():
            self._files.remove(fd)
        self._open.clear()
        self.closed.set()
        return fds
