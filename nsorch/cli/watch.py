"""``nsorch run --watch``: the file is applied again when it changes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import anyio

from nsorch import NsorchError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nsorch import Deployment, Topology

# Seconds between two looks at the file. Polling sees changes on every file system, and editors that replace the file.
_PERIOD = 0.25


State = tuple[int, ...]


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
    """Until cancelled. A file that is wrong, empty or gone, or can't be applied, is told, and what is up stays.

    :param applied: called each time that other workers may be there
    """
    seen = latest = watched.state
    while True:
        await anyio.sleep(_PERIOD)
        before, latest = latest, (now := state_of(watched.file))
        # Once it is the same twice: a file that is being written is empty at first, or gone.
        if now == seen or now != before:
            continue
        seen = now
        try:
            topology = await anyio.to_thread.run_sync(_load, watched)
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


def _load(watched: Watched) -> Topology:
    if os.path.isfile(watched.file) and os.path.getsize(watched.file) == 0:  # in TOML that is a lab of nothing
        raise TopologyError("is empty", source=watched.file)
    return watched.load()


def state_of(file: str) -> State:
    """That there is none, or that it can't be looked at, is a state, too."""
    try:
        found = os.stat(file)
    except OSError as exc:
        return (exc.errno or errno.EIO,)
    # Programs may set back the first of these times.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _lines(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        return [line for part in exc.exceptions for line in _lines(part)]
    return [str(exc)]
