"""What the helpers do for the application, one by one: each may be waited for, killed, or ended."""

from __future__ import annotations

import contextlib
import errno
import signal
from typing import TYPE_CHECKING, NamedTuple

import anyio

from nsorch.errors import ClosedError, NsorchError

from . import descriptors
from .channel import Channel, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Container


class RawExit(NamedTuple):
    """A wait status, and what the process and its reaped descendants used (seconds, bytes)."""

    status: int
    user_time: float
    system_time: float
    max_rss: int


_AGAIN = 1.0  # seconds
KILLED = RawExit(signal.SIGKILL, 0.0, 0.0, 0)


class Job:
    """One request under way, or one command running.

    The callbacks run synchronously, in the order in which the helper reported.
    """

    __slots__ = (
        "_changed",
        "_channel",
        "_request",
        "exit",
        "failure",
        "frozen",
        "held",
        "number",
        "on_create",
        "on_end",
        "on_start",
        "pid",
        "pid_namespace",
        "pidfd",
        "worker",
    )

    def __init__(self, number: int, channel: Channel, worker: str | None) -> None:
        self.number = number
        self.worker = worker
        self.held: tuple[int, ...] | None = None  #: the descriptors of its namespaces, once they exist
        self.pid = 0  #: of the command, as the host sees it
        self.pidfd = -1
        self.pid_namespace = 0  #: inode
        self.exit: RawExit | None = None
        self.failure: NsorchError | None = None
        self.on_create: Callable[[tuple[int, ...]], None] | None = None
        self.on_start: Callable[[Job], None] | None = None
        self.on_end: Callable[[Job], None] | None = None
        self.frozen: Container[str | None] = ()  #: workers whose processes can't do their part of a kill
        self._channel = channel
        channel.under_way += 1
        self._request: Request | None = None
        self._changed: anyio.Event | None = None  # of those who wait

    @property
    def ended(self) -> bool:
        return self.exit is not None or self.failure is not None

    async def created(self) -> tuple[int, ...]:
        """Wait for the namespaces; the caller owns the descriptors.

        :raises NsorchError: the failure
        """
        while self.held is None and not self.ended:
            await self._change()
        if self.failure is not None:
            raise self.failure
        return self.held or ()

    async def started(self) -> None:
        """Wait until the exec is confirmed.

        :raises NsorchError: the failure
        """
        while not self.pid and not self.ended:
            await self._change()
        if self.failure is not None:
            raise self.failure
        if not self.pid:
            raise ClosedError("killed before it was started", worker=self.worker, errno=errno.ESRCH)

    async def end(self) -> None:
        """Wait for the exit, or the failure; raises nothing of them."""
        while not self.ended:
            await self._change()

    async def kill_and_wait(self) -> None:
        """As often as it takes: a command may stop the process that is to kill it, also once more."""
        while not self.ended:
            self.kill()
            with anyio.move_on_after(_AGAIN):
                await self.end()

    def signal(self, number: int) -> None:
        """Send a signal to the command; does nothing once it has ended."""
        if self.pidfd >= 0 and not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """SIGKILL to the command and what it left, also if it isn't started yet. :meth:`end` waits for it."""
        if not self.ended and not self.withdraw():
            self._channel.send(Request(("kill", self.number, self.worker in self.frozen), ()))

    def withdraw(self) -> bool:
        """Drop the request if it isn't sent yet: whether it wasn't."""
        request = self._request
        if request is None or request.sent:
            return False
        request.withdrawn = True
        self.finish(failure=ClosedError("cancelled before it was started", worker=self.worker))
        return True

    def finish(self, *, exit: RawExit | None = None, failure: NsorchError | None = None) -> None:  # noqa: A002
        if self.ended:
            return
        self.exit, self.failure = exit, failure
        if not self.pid:
            self._channel.under_way -= 1
        if self.pidfd >= 0:
            descriptors.close([self.pidfd])
            self.pidfd = -1
        if self.on_end is not None:
            self.on_end(self)
        # It is referred to by what they belong to: no work for the garbage collector.
        self.on_create = self.on_start = self.on_end = self._request = None
        self.changed()

    def begin(self, pid: int, pid_namespace: int, fds: list[int]) -> None:
        """Its command runs."""
        self._channel.under_way -= 1
        self.pid, self.pid_namespace = pid, pid_namespace
        self.pidfd, *held = fds
        self.hold(held)
        if self.on_start is not None:
            self.on_start(self)
        self.changed()

    def hold(self, fds: list[int]) -> None:
        """What was made for it is the application's now."""
        if fds or self.held is None:
            self.held = tuple(fds)
        if fds and self.on_create is not None:
            self.on_create(self.held)

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def changed(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
