"""Files that the kernel changes and notifies of: one epoll for all, and no timer.

Such a file of a cgroup, ``memory.events`` for one, becomes ready for POLLPRI when it changes, until it is read from its
start (kernfs_notify). An epoll of them becomes readable, which is what both backends can wait for.
"""

from __future__ import annotations

import contextlib
import select
from typing import TYPE_CHECKING

import anyio

from nsorch.core.cgroups import counts

from . import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Told = Callable[[Mapping[str, int]], None]


class EventFiles:
    def __init__(self) -> None:
        with descriptors.registering:
            self._epoll = select.epoll()
            descriptors.own([self._epoll.fileno()])
        self._told: dict[int, Told] = {}

    def add(self, fd: int, told: Told) -> None:
        """Call *told* with the numbers of the file when they change; once at first, because nobody has read it."""
        self._told[fd] = told
        self._epoll.register(fd, select.EPOLLPRI)

    def remove(self, fd: int) -> None:
        if self._told.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await anyio.wait_readable(self._epoll)
            for fd, _ in self._epoll.poll(0):
                numbers = counts(fd)
                if not numbers:
                    self.remove(fd)  # its cgroup is gone
                elif fd in self._told:
                    self._told[fd](numbers)

    def close(self) -> None:
        """:meth:`run` must not be running any more."""
        with descriptors.registering:
            descriptors.disown(self._epoll.fileno())
            self._epoll.close()
