"""The application's end of a helper's socket: requests go out without waiting, answers find their jobs."""

from __future__ import annotations

import collections
import contextlib
import errno
from typing import TYPE_CHECKING, Any

import anyio

from . import descriptors
from .spawner import protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# After so many messages the loop gets its turn: each takes 20 to 200 µs here.
_BURST = 12


class Request:
    """A message to be sent; its descriptors are borrowed until then."""

    __slots__ = ("fds", "message", "sent", "withdrawn")

    def __init__(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> None:
        self.message = message
        self.fds = fds
        self.sent = False
        self.withdrawn = False


class Channel:
    """One SOCK_SEQPACKET connection. *deliver* gets each answer and owns its descriptors, *lose* those
    whose descriptors this process has no room for."""

    def __init__(
        self, sock: socket.socket, deliver: Callable[[Any, list[int]], None], lose: Callable[[Any], None]
    ) -> None:
        self.under_way = 0  #: jobs whose answer is awaited
        self._lose = lose
        self._sock = sock
        self._deliver = deliver
        self._outbox: collections.deque[Request] = collections.deque()
        self._more = anyio.Event()
        self._closed = False

    def send(self, request: Request) -> None:
        """Send now if the socket takes it, else as soon as it does, in order. Never blocks, never raises."""
        if self._closed:
            return
        self._outbox.append(request)
        if len(self._outbox) == 1:
            self._flush()
        if self._outbox:
            self._more.set()

    def _flush(self) -> bool:
        """Whether the rest waits for the socket to become writable; else for a moment to pass."""
        while self._outbox:
            request = self._outbox[0]
            if not request.withdrawn:
                try:
                    protocol.send(self._sock, request.message, request.fds)
                except BlockingIOError:
                    return True
                except ConnectionError:
                    self._outbox.clear()  # the reader sees the end of file
                    return True
                except OSError as exc:
                    # Descriptors under way count against RLIMIT_NOFILE until they are received.
                    if exc.errno == errno.ETOOMANYREFS:
                        return False
                    raise
                request.sent = True
            self._outbox.popleft()
        return True

    async def write(self) -> None:
        """Send what the socket didn't take at once; runs until cancelled or closed."""
        while not self._closed:
            if not self._outbox:
                self._more = anyio.Event()
                await self._more.wait()
            if self._flush():
                if self._outbox:
                    await anyio.wait_writable(self._sock)
            else:
                await anyio.sleep(0.001)

    async def read(self) -> None:
        """Deliver answers until the end of file, then return."""
        while True:
            await anyio.wait_readable(self._sock)
            for _ in range(_BURST):
                try:
                    with descriptors.registering:
                        received = protocol.receive(self._sock)
                        if received is not None:
                            descriptors.own(received[1])
                except BlockingIOError:
                    break
                except ConnectionError:
                    return
                except protocol.LostDescriptorsError as exc:
                    self._lose(exc.args[0])
                    continue
                if received is None:
                    return
                self._deliver(*received)
            else:
                await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close this end: the helper ends. Requests not sent yet are dropped."""
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self._more.set()
            fd = self._sock.detach()
            with contextlib.suppress(OSError):
                descriptors.close([fd])
