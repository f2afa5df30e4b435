"""What is written while a lab is up: by a thread, as whoever reads it may stall, and then neither the lab nor a signal
is to wait for that."""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import TextIO

import anyio


class Output:
    """Writes to one stream. Only one task writes at a time; who is cancelled leaves the rest unwritten.

    The thread is a daemon that uses the descriptor alone: the interpreter ends without it, also while it hangs.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._parts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._turn = anyio.Lock()
        self._written = -1  # tells that a part was
        self._failure: OSError | None = None

    async def write(self, text: str) -> None:
        """:raises OSError: it can't be written to, as of a pipe that nobody reads any more"""
        if self._stream is None:  # closed
            return
        async with self._turn:
            if self._written < 0:
                self._stream.flush()
                self._written = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                threading.Thread(target=self._work, args=(self._stream.fileno(),), daemon=True).start()
            self._parts.put(text.encode(self._stream.encoding, "backslashreplace"))
            await anyio.wait_readable(self._written)
            os.eventfd_read(self._written)
            if self._failure is not None:
                raise self._failure

    def _work(self, fd: int) -> None:
        while True:
            part = self._parts.get()
            try:
                while part:
                    part = part[os.write(fd, part) :]
            except OSError as exc:
                self._failure = exc
            os.eventfd_write(self._written, 1)


class Outputs:
    """Of a lab that is up."""

    def __init__(self) -> None:
        self._out, self._err = Output(sys.stdout), Output(sys.stderr)

    async def print(self, text: str) -> None:
        """A result."""
        await self._out.write(f"{text}\n")

    async def tell(self, text: str) -> None:
        """A diagnostic."""
        await self._err.write(f"nsorch: {text}\n")
