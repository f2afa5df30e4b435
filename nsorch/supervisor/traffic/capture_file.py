"""Where a capture is written: a file, or a fifo that somebody reads meanwhile, such as Wireshark."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Self

import anyio

from nsorch.core.threads import Limiter, in_thread_or_here
from nsorch.supervisor.opening import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable

_writing = Limiter("nsorch_captures")  # of their own: a disk may be slow


class CaptureFile:
    """An open one. What :meth:`write` was given and a cancellation has left, the next call writes."""

    def __init__(self, fd: int, path: str | os.PathLike[str]) -> None:
        self._fd = fd
        self._path = path
        self._unwritten = memoryview(b"")
        self._is_fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
        if self._is_fifo:
            os.set_blocking(fd, False)

    @classmethod
    async def open(cls, path: str | os.PathLike[str]) -> Self:
        """:raises OSError: it can't be written"""
        return cls(await open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), path)

    async def write(self, blocks: Iterable[bytes]) -> None:
        """Cancelled, a file gets them all the same; a fifo what its reader has room for.

        :raises OSError: there is no room left, or nobody reads the fifo any more
        """
        self._unwritten = memoryview(b"".join([self._unwritten, *blocks]))
        try:
            if self._is_fifo:
                while self._unwritten:
                    try:
                        self._write_some()
                    except BlockingIOError:
                        await anyio.wait_writable(self._fd)
            else:
                with anyio.CancelScope(shield=True):
                    await in_thread_or_here(self._write_all, limiter=_writing.get())
        except OSError as exc:
            exc.filename = self._path
            raise

    async def close(self) -> None:
        """Also when cancelled."""
        with anyio.CancelScope(shield=True):
            await in_thread_or_here(os.close, self._fd, limiter=_writing.get())

    def _write_all(self) -> None:
        while self._unwritten:
            self._write_some()

    def _write_some(self) -> None:
        self._unwritten = self._unwritten[os.write(self._fd, self._unwritten) :]
