"""Opening files that the user names, which may be anything."""

from __future__ import annotations

import contextlib
import os
import stat

import anyio

from nsorch.core.threads import Limiter, in_thread
from nsorch.errors import SetupError

_waiting = Limiter("nsorch_opening")  # of their own: a fifo may have nobody at its other end for long


async def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """In a thread. A fifo waits for somebody at its other end; cancelled, for nobody.

    :raises OSError: it can't be opened
    :raises SetupError: nor a thread be started
    """
    fd = -1
    ends: list[int] = []
    failure: OSError | SetupError | None = None

    async def let_go() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if fd < 0 and failure is None:
                with contextlib.suppress(OSError):
                    ends.append(_both_ends(path))

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_go)
            try:
                fd = await in_thread(os.open, path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666, limiter=_waiting.get())
            except (OSError, SetupError) as exc:
                failure = exc  # not through the task group, which would wrap it
            tasks.cancel_scope.cancel()
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    finally:
        for end in ends:
            os.close(end)
    if failure is not None:
        raise failure
    return fd


def _both_ends(path: str | os.PathLike[str]) -> int:
    """Of a fifo: whoever waits to open it goes on."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
