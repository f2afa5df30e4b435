"""Calls that wait for the kernel, in threads that the application's own can't keep waiting."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

import anyio

from nsorch.errors import SetupError

from .failures import translate

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.lowlevel import RunVar

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_MOST = 40  # at a time, of one limiter
_STAGE = "thread"


class Limiter:
    """A limiter of each event loop's own. The default one is the application's, which may fill it with calls that
    don't end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limiters: RunVar[anyio.CapacityLimiter] | None = None

    def get(self) -> anyio.CapacityLimiter:
        if self._limiters is None:  # made in a loop, which has imported it
            self._limiters = anyio.lowlevel.RunVar(self._name)
        limiter = self._limiters.get(None)
        if limiter is None:
            limiter = anyio.CapacityLimiter(_MOST)
            self._limiters.set(limiter)
        return limiter


_short = Limiter("nsorch_threads")


async def in_thread(
    func: Callable[[Unpack[Arguments]], T],
    *args: *Arguments,
    limiter: anyio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """As :func:`anyio.to_thread.run_sync`.

    :param limiter: None: one for calls that end soon
    :raises SetupError: no thread can be started
    """
    begun = False

    def call() -> T:
        nonlocal begun
        begun = True
        return func(*args)

    try:
        return await anyio.to_thread.run_sync(
            call, limiter=limiter or _short.get(), abandon_on_cancel=abandon_on_cancel
        )
    except RuntimeError:
        if begun:
            raise
        raise translate(_STAGE, errno.EAGAIN, "", None) from None


async def in_thread_or_here(
    func: Callable[[Unpack[Arguments]], T],
    *args: *Arguments,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """As :func:`in_thread`, for what has to be done: the loop waits for it where no thread can be started."""
    try:
        return await in_thread(func, *args, limiter=limiter)
    except SetupError as exc:
        if exc.stage != _STAGE:
            raise
    return func(*args)
