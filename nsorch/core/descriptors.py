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

if TYPE_CHECKING:
    from collections.abc import Iterable

_open: set[int] = set()
_RESERVE = 256  # for the rest of the application
#: held while a descriptor is open but not registered yet
registering = threading.RLock()


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


def make_room(count: int) -> None:
    """Raise the limit of open files of this process where *count* more might not fit: the soft one, and the hard one,
    too, where we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (len(_open) + count + _RESERVE)
    if soft >= wanted // 2:
        return
    for limits in ((wanted, max(hard, wanted)), (min(hard, wanted), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return


def _forget_in_child() -> None:
    registering.release()
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()


os.register_at_fork(before=registering.acquire, after_in_parent=registering.release, after_in_child=_forget_in_child)
