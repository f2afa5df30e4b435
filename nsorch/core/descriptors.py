"""Descriptors that the application holds for its workers, and that no forked child of it may keep.

A descriptor of a namespace keeps the namespace alive, with all its interfaces. Close-on-exec doesn't help against
``multiprocessing``, whose children fork and go on: so a child closes them as its first act.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import threading
from typing import TYPE_CHECKING

from .threads import in_thread_or_here

if TYPE_CHECKING:
    from collections.abc import Iterable

_open: set[int] = set()
_RESERVE = 256  # for the rest of the application
#: held while a descriptor is open but not registered yet
registering = threading.RLock()
_table = 0  # so many open files it has room for, at least


def own(fds: Iterable[int]) -> None:
    """From now on these are closed in every child that Python forks. Call it with :data:`registering` held."""
    _open.update(fds)


def duplicate(fd: int) -> int:
    """Another descriptor of the same, owned, and none of the standard streams.

    :raises OSError: *fd* isn't open
    """
    with registering:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        own([copy])
    return copy


def disown(fd: int) -> None:
    """*fd* belongs to somebody else now, who may keep it in forked children."""
    _open.discard(fd)


def close(fds: Iterable[int]) -> None:
    """Close for good. May take 60 µs each, where it was the last reference to a namespace."""
    for fd in fds:
        with registering:
            _open.discard(fd)
            with contextlib.suppress(OSError):
                os.close(fd)


async def make_room(count: int) -> None:
    """Prepare this process for *count* more: its limit of open files, the soft one, and the hard one, too, where we
    may, and its table of them."""
    global _table
    needed = len(_open) + count + _RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        wanted = 2 * needed
        for limits in ((wanted, max(hard, wanted)), (min(hard, wanted), hard)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                break
    if _table < needed:
        _table = 2 * needed
        await in_thread_or_here(_enlarge_table, _table)


def _enlarge_table(count: int) -> None:
    """The kernel enlarges it by the first number beyond its end, and whoever wants that number waits, where there are
    other threads, for all processors to have seen it: 10 to 20 ms. A thread can; the loop, to whom descriptors are
    sent, can't."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):  # then it grows when it has to
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
        try:
            last = min(len(os.listdir(folder)) + count, limit - 1)
            os.close(fcntl.fcntl(folder, fcntl.F_DUPFD_CLOEXEC, last))
        finally:
            os.close(folder)


def _forget_in_child() -> None:
    global _table
    registering.release()
    _table = 0  # its own is as large as it needed to be
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()


os.register_at_fork(before=registering.acquire, after_in_parent=registering.release, after_in_child=_forget_in_child)
