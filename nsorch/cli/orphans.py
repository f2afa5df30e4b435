"""What an interrupted command on the host has started: it ends with the command, as all in a worker does."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import signal

import anyio

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE, _PERIOD = 1.0, 0.01


class Orphans:
    """Who loses their parent from now on, and becomes a child of this process; to be made before the command is ended.

    What has left it before, as daemons do, is on its own.
    """

    def __init__(self) -> None:
        self._others = _children()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    async def end(self) -> None:
        """By SIGTERM, and by SIGKILL after a second; then those that these leave."""
        told: set[int] = set()
        begin = anyio.current_time()
        while (left := _children() - self._others) and anyio.current_time() < begin + 2 * _PATIENCE:
            late = anyio.current_time() > begin + _PATIENCE
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                    if late or pid not in told:
                        told.add(pid)
                        os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it doesn't wait
            await anyio.sleep(_PERIOD)


def _children() -> set[int]:
    pids: set[int] = set()
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:  # a thread that has just ended
            pids.update(map(int, file.read().split()))
    return pids
