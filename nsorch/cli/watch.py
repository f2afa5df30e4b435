"""``nsorch run --watch``: the file is applied again when it changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import anyio

from nsorch import NsorchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nsorch import Deployment, Topology

# Seconds between two looks at the file. Polling sees changes on every file system, and editors that replace the file.
_PERIOD = 0.25


State = tuple[int, int, int, int] | None


class Watched(NamedTuple):
    """:ivar state: of the file, before it was loaded for the first time"""

    file: str
    load: Callable[[], Topology]
    state: State


async def watch(
    deployment: Deployment,
    watched: Watched,
    applied: Callable[[], Awaitable[None]],
    tell: Callable[[str], Awaitable[None]],
) -> None:
    """Until cancelled. A file that is wrong, or can't be applied, is told, and what is up stays.

    :param applied: called each time that other workers may be there
    """
    seen = latest = watched.state
    while True:
        await anyio.sleep(_PERIOD)
        before, latest = latest, (now := state_of(watched.file))
        # Once it is the same twice: a file that is being written is empty at first, which would take down everything.
        if now is None or now == seen or now != before:
            continue
        seen = now
        try:
            topology = await anyio.to_thread.run_sync(watched.load)
            found = await deployment.apply(topology)
        except (NsorchError, OSError, ExceptionGroup) as exc:
            for line in _lines(exc):
                await tell(line)
            await applied()
            continue
        await applied()
        for change in found.changes:
            await tell(str(change))
        if not found:
            await tell(f"{watched.file}: nothing is different")


def state_of(file: str) -> State:
    """None while there is no such file, as between an editor's two steps."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    # Programs may set back the first of these times.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _lines(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        return [line for part in exc.exceptions for line in _lines(part)]
    return [str(exc)]
