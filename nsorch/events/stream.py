"""One subscriber's stream: its own bounded buffer, gaps for what didn't fit, and the wait for the next event."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectReceiveStream

from nsorch.events.types import TERMINAL_TYPES, Event, Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nsorch.events.filter import Filter


class _Run:
    """A run of dropped events, which may still grow."""

    __slots__ = ("first", "last")

    def __init__(self, seq: int) -> None:
        self.first = self.last = seq


class EventStream(ObjectReceiveStream[Event]):
    """The events of one subscriber, in order. Iteration ends after the supervisor's last event.

    A full buffer drops its oldest event that isn't terminal. In the place of the dropped comes one
    :class:`~nsorch.events.Gap` for each run of them, from the first to the last of the run; a run is broken by an event
    that is kept, or by having been received while it still grew. Filtered events neither make a gap nor break one.
    Terminal events and replayed ones are never dropped and don't count.

    One task at a time may receive.
    """

    # Every event comes in through _fresh, whose oldest moves to _settled when one must be dropped: there are only runs,
    # terminal events and what was replayed, all older than _fresh and never looked at again. So each event is moved at
    # most once, and offering one costs the same whether the buffer is full or not.

    def __init__(
        self,
        *,
        filter: Filter,  # noqa: A002 - the plain word
        first: int,
        backlog: Iterable[Event],
        buffer: int,
        clock: Callable[[], tuple[float, int]],
        ended: bool,
        on_close: Callable[[EventStream], None],
    ) -> None:
        self.filter = filter
        self._first = first
        self._settled: deque[Event | _Run] = deque(backlog)
        self._fresh: deque[Event] = deque()
        self._droppable = 0
        self._buffer = buffer
        self._clock = clock
        self._ended = ended
        self._on_close = on_close
        self._closed = False
        self._wake: anyio.Event | None = None
        self._guard = anyio.ResourceGuard("receiving from")

    def offer(self, event: Event) -> None:
        """Take an event if it is wanted, dropping an older one if there is no room. For the bus."""
        if event.seq < self._first or not self.filter.accepts(event):
            return
        if type(event) not in TERMINAL_TYPES:
            if self._droppable == self._buffer:
                self._drop_oldest()
            else:
                self._droppable += 1
        self._fresh.append(event)
        self._notify()

    def end(self) -> None:
        """No event will follow. For the bus."""
        self._ended = True
        self._notify()

    def receive_nowait(self) -> Event:
        """Take the next event if it is there.

        :raises anyio.WouldBlock: if there is none now
        :raises anyio.EndOfStream: if there will be none
        :raises anyio.ClosedResourceError: if this stream was closed
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if self._settled:
            item = self._settled.popleft()
            if isinstance(item, Event):
                return item
            time, mono = self._clock()
            return Gap(first=item.first, last=item.last, time=time, mono=mono)
        if self._fresh:
            event = self._fresh.popleft()
            if type(event) not in TERMINAL_TYPES:
                self._droppable -= 1
            return event
        if self._ended:
            raise anyio.EndOfStream
        raise anyio.WouldBlock

    async def receive(self) -> Event:
        """Wait for the next event and take it. Cancellation leaves it in the stream.

        :raises anyio.EndOfStream: if the supervisor's last event was received or filtered out
        :raises anyio.ClosedResourceError: if this stream was closed, also while waiting
        :raises anyio.BusyResourceError: if another task is receiving
        """
        with self._guard:
            await anyio.lowlevel.checkpoint()
            while True:
                # Nothing is awaited between taking an event and returning it.
                try:
                    return self.receive_nowait()
                except anyio.WouldBlock:
                    self._wake = anyio.Event()
                try:
                    await self._wake.wait()
                finally:
                    self._wake = None

    def close(self) -> None:
        """Leave the bus and forget what wasn't received. A second call does nothing.

        A task that waits in :meth:`receive` gets ClosedResourceError.
        """
        if self._closed:
            return
        self._closed = True
        self._settled.clear()
        self._fresh.clear()
        self._on_close(self)
        self._notify()

    async def aclose(self) -> None:
        """:meth:`close`. Closed in any case, also when cancelled; a second call does nothing."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def _drop_oldest(self) -> None:
        while True:
            event = self._fresh.popleft()
            if type(event) in TERMINAL_TYPES:
                self._settled.append(event)
                continue
            last = self._settled[-1] if self._settled else None
            if isinstance(last, _Run):
                last.last = event.seq
            else:
                self._settled.append(_Run(event.seq))
            return

    def _notify(self) -> None:
        if self._wake is None:
            return
        try:
            self._wake.set()
        except RuntimeError:
            # The loop of the receiving task was closed under it: nobody is there to be woken.
            self._wake = None
