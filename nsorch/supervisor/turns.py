"""Long rows of small steps, with the event loop's turn between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

T = TypeVar("T")

# So many processes may be dying at a time: more would take the processors away from the caller's loop.
DYING = 32
# Seconds that the loop is kept at a time.
_TURN = 0.0005


class in_turns(Generic[T]):  # noqa: N801 - reads as a word of the loop: async for item in in_turns(items)
    """*items*, for an ``async for`` that is a checkpoint whenever the loop has waited long enough. Who changes the
    collection meanwhile gives a copy."""

    __slots__ = ("_end", "_items")

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._end = time.perf_counter() + _TURN

    def __aiter__(self) -> in_turns[T]:
        return self

    async def __anext__(self) -> T:
        if time.perf_counter() > self._end:
            await anyio.lowlevel.checkpoint()
            self._end = time.perf_counter() + _TURN
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


async def for_each(items: Collection[T], step: Callable[[T], Awaitable[None]], limit: int) -> None:
    """Take *step* for all, at most *limit* at a time. The first error ends it, and is raised as it is."""
    pending = in_turns(items)
    failures: list[Exception] = []

    async def work() -> None:
        try:
            async for item in pending:
                await step(item)
        except Exception as exc:
            failures.append(exc)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(min(limit, len(items))):
            tasks.start_soon(work)
    if failures:
        raise failures[0]
