"""A thread for calls that wait for the kernel, one at a time; it can be closed, and is then out of use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Thread:
    """Made in the loop.

    :param check: called before each call once it is closed, to raise why
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._turn = anyio.Lock()
        self._limiter = anyio.CapacityLimiter(1)  # not the default one, in which others' calls would be before ours
        self._closed = False

    async def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Cancelled, it is waited for all the same. Where no thread can be started, the loop waits.

        :raises ClosedError: it is closed: what *func* would use is closed next, and the numbers are others'
        """
        with anyio.CancelScope(shield=True):
            async with self._turn:
                if self._closed:
                    self._check()
                    raise ClosedError("the supervisor has ended")
                return await in_thread_or_here(func, *args, limiter=self._limiter)

    async def close(self) -> None:
        """Let the call that is under way end, and no other begin. Shield it."""
        self._closed = True
        async with self._turn:
            pass
