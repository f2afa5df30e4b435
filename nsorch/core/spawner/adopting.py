"""Moving the processes of a running worker into a cgroup that it was not started in."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

from .stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATIENCE = 0.1  # seconds: one that waits for a disk, uninterruptibly, must not stop the helper


def adopt(leaf: int, roots: Iterable[int], proc: int) -> None:
    """Move *roots*, as *proc* counts pids, and all that descends from them, into the cgroup of descriptor *leaf*.

    The children of those that are there already are born there, so passes are made until one finds nobody new.

    :raises StageError: of stage ``"cgroup"``
    """
    with stage("cgroup", "cgroup.procs"):
        procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=leaf)
        moved: set[int] = set()
        try:
            while fresh := set(descendants(roots, proc)) - moved:
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):
                        os.write(procs, b"%d" % pid)
                moved |= fresh
        finally:
            os.close(procs)


def descendants(roots: Iterable[int], proc: int) -> list[int]:
    """*roots*, and all below them; children come after their parents."""
    found: list[int] = []
    pending = list(roots)
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending += _children(pid, proc)
    return found


def kill_and_wait(pids: Iterable[int]) -> None:
    """SIGKILL to all, and wait until they are dead: some microseconds each, also where nobody can reap them yet."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # or set-user-id: it has become another's
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [], _PATIENCE)
            finally:
                os.close(fd)


def state_of(pid: int, proc: int) -> str:
    """A letter, see proc(5); none if there is no such process."""
    try:
        with open(os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as file:
            return chr(file.read().rpartition(b") ")[2][0])
    except OSError:
        return ""


def _children(pid: int, proc: int) -> list[int]:
    children: list[int] = []
    try:
        folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return children
    try:
        threads = os.listdir(folder)
    except OSError:
        return children
    finally:
        os.close(folder)
    for thread in threads:
        with contextlib.suppress(OSError):
            fd = os.open(f"{pid}/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            with open(fd) as file:
                children += map(int, file.read().split())
    return children
