"""Pipes of a command as anyio byte streams, on every backend."""

from __future__ import annotations

import collections
import contextlib
import os

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

from nsorch.core import descriptors


def make_pipe() -> tuple[int, int]:
    """(read end, write end), owned: no forked child of the application keeps them."""
    with descriptors.registering:
        ends = os.pipe2(os.O_CLOEXEC)
        descriptors.own(ends)
    return ends


class _PipeEnd:
    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._busy = False

    def _enter(self) -> None:
        if self._fd < 0:
            raise anyio.ClosedResourceError
        if self._busy:
            raise anyio.BusyResourceError("using")

    async def aclose(self) -> None:
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close at once; a task that waits gets ClosedResourceError."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._busy:
                anyio.notify_closing(fd)
            descriptors.close([fd])


class PipeReceiveStream(_PipeEnd, ByteReceiveStream):
    """The end of a pipe that a command writes to."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at most *max_bytes*. Cancelled, it loses nothing.

        :raises anyio.EndOfStream: every writer has closed its end
        :raises anyio.BusyResourceError: another task receives
        :raises anyio.ClosedResourceError: this end was closed
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._enter()
        self._busy = True
        try:
            while True:
                try:
                    data = os.read(self._fd, max_bytes)
                except BlockingIOError:
                    await anyio.wait_readable(self._fd)
                    if self._fd < 0:
                        raise anyio.ClosedResourceError from None
                    continue
                break
        finally:
            self._busy = False
        if not data:
            raise anyio.EndOfStream
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return data


class PipeSendStream(_PipeEnd, ByteSendStream):
    """The end of a pipe that a command reads from."""

    async def send(self, item: bytes) -> None:
        """Send all of *item*. Cancelled, it may have sent a part.

        :raises anyio.BrokenResourceError: no reader is left
        :raises anyio.BusyResourceError: another task sends
        :raises anyio.ClosedResourceError: this end was closed
        """
        await anyio.lowlevel.checkpoint()
        self._enter()
        self._busy = True
        view = memoryview(item)
        if view.format != "B" or view.ndim != 1 or not view.contiguous:
            view = memoryview(view.tobytes())  # what was written is counted in bytes
        try:
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._fd)
                    if self._fd < 0:
                        raise anyio.ClosedResourceError from None
                except BrokenPipeError:
                    raise anyio.BrokenResourceError from None
        finally:
            self._busy = False


class Tail:
    """The last bytes that a command wrote to a pipe, kept while it runs.

    :ivar limit: how many bytes are kept
    """

    def __init__(self, stream: PipeReceiveStream, limit: int = 65536) -> None:
        self.limit = limit
        self._stream = stream
        self._chunks: collections.deque[bytes] = collections.deque()
        self._size = 0
        self.ended = anyio.Event()

    async def collect(self) -> None:
        """Read until the end of the stream, or until it is closed."""
        try:
            with contextlib.suppress(anyio.ClosedResourceError):
                async with self._stream:
                    async for chunk in self._stream:
                        self._keep(chunk)
        finally:
            self.ended.set()

    def _keep(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= self.limit:
            self._size -= len(self._chunks.popleft())

    @property
    def data(self) -> bytes:
        return b"".join(self._chunks)[-self.limit :]
