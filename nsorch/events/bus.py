"""The event bus: one total order, a state table, a ring for replay, and a stream of its own for each subscriber."""

from __future__ import annotations

import sys
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, overload

from nsorch.errors import ClosedError
from nsorch.events.filter import Filter, make_filter
from nsorch.events.log import log_event, prepare_logging
from nsorch.events.stream import EventStream
from nsorch.events.table import StateTable
from nsorch.events.types import Event, Gap, Snapshot, SupervisorStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from nsorch.events.filter import Kind, Kinds, Names
    from nsorch.events.values import WorkerStatus

E = TypeVar("E", bound=Event)

# An event takes about 200 bytes: a full ring is some 13 MiB.
RING = 65_536
BUFFER = 1024


def _now() -> tuple[float, int]:
    return time.time(), time.monotonic_ns()


class Bus:
    """Takes events from the supervisor and hands them to any number of subscribers.

    Not for several threads: all calls come from the thread of one event loop, or from before or after it.

    :param ring: number of latest events kept for replay, from 0
    :param clock: gives the wall clock (seconds) and the monotonic clock (nanoseconds)
    :param log: called with each event after its subscribers have it; must not raise; None for no log
    """

    def __init__(
        self,
        *,
        ring: int = RING,
        clock: Callable[[], tuple[float, int]] = _now,
        log: Callable[[Event], None] | None = log_event,
    ) -> None:
        if ring < 0:
            raise ValueError(f"ring: {ring} is not a number of events from 0")
        if log is log_event:
            prepare_logging()
        self._clock = clock
        self._log = log
        self._seq = 0
        self._closed = False
        self._table = StateTable()
        self._ring: deque[Event] = deque()
        self._ring_size = ring
        # The state just before the ring's first event: what a replay that comes too late starts from.
        self._ring_table = StateTable()
        self._streams: dict[EventStream, None] = {}
        # By the worker that they follow, None for all events: a thousand tasks that each wait for their own worker
        # would else make publishing quadratic.
        self._followers: dict[str | None, dict[EventStream, None]] = {None: {}}

    @property
    def seq(self) -> int:
        """Number of the latest event, 0 before the first."""
        return self._seq

    @property
    def closed(self) -> bool:
        """Whether the last event was published."""
        return self._closed

    @property
    def workers(self) -> Mapping[str, WorkerStatus]:
        """Live, read-only view of the state table; removed workers aren't in it."""
        return self._table.workers

    def publish(self, event: E) -> E:
        """Give an event its place in the order and hand it to everyone.

        Synchronous, so that no cancellation can come between; no subscriber can make it fail or wait.

        :return: the event itself, with ``seq``, ``time`` and ``mono`` filled in
        :raises ClosedError: after :class:`SupervisorStopped` or :meth:`close`
        :raises ValueError: if the event was published before, or is a Gap or Snapshot, which belong to one subscriber
        """
        if event.seq or isinstance(event, (Gap, Snapshot)):
            raise ValueError(f"{event!r} can't be published")
        return self._publish(event)

    def publish_gap(self) -> Gap:
        """Tell all who follow links that events of other programs' changes are missing here, nobody knows how many.

        :raises ClosedError: as :meth:`publish`
        """
        return self._publish(Gap(first=self._seq + 1, last=self._seq + 1))

    def _publish(self, event: E) -> E:
        if self._closed:
            raise ClosedError(f"{event.kind} published after the last event", worker=event.worker)
        self._seq += 1
        now, mono = self._clock()
        # The one mutation of a frozen event, before anybody else has seen it.
        object.__setattr__(event, "seq", self._seq)
        object.__setattr__(event, "time", now)
        object.__setattr__(event, "mono", mono)

        self._table.apply(event)
        self._ring.append(event)
        if len(self._ring) > self._ring_size:
            self._ring_table.apply(self._ring.popleft())
        for stream in self._followers[None]:
            stream.offer(event)
        if event.worker is not None:
            for stream in self._followers.get(event.worker, ()):
                stream.offer(event)
        if isinstance(event, SupervisorStopped):
            self.close()
        if self._log is not None:
            self._log(event)
        return event

    def close(self) -> None:
        """No event will follow: streams end when all that they hold was received. A second call does nothing."""
        self._closed = True
        for stream in self._streams:
            stream.end()

    def snapshot(self) -> Snapshot:
        """Every worker's state and last exit now; its ``seq`` is that of the latest event."""
        return self._snapshot(self._table, self._seq, None)

    def subscribe(
        self, *, kinds: Kinds = None, workers: Names = None, since: int | None = None, buffer: int = BUFFER
    ) -> Subscription:
        """Follow the events, as an async context manager that gives an ``anyio.abc.ObjectReceiveStream[Event]``.

        It may be entered before, during and after the supervisor's life.

        :param kinds: event class, name of one, or a collection of these; a base class stands for all below it. None:
            all. :class:`Gap` and :class:`Snapshot` come in any case
        :param workers: a worker's name or a collection of names: only events about these. None: all events
        :param since: replay from the event with this ``seq``, 0 or 1 being the first. If some are no longer held, a
            Gap that covers these (whatever the filter), then a Snapshot of the state after them, come first. None:
            follow from the moment of entering
        :param buffer: number of undelivered events that it holds before it drops the oldest; terminal
            events and those replayed are not counted
        :raises ValueError: if there is no such kind, or ``since`` or ``buffer`` is out of range
        :raises TypeError: if a kind or worker is of a wrong type
        """
        if since is not None and since < 0:
            raise ValueError(f"since: {since} is negative")
        if buffer < 1:
            raise ValueError(f"buffer: {buffer} is not a positive number of events")
        return Subscription(self, make_filter(kinds, workers), since, buffer)

    @overload
    async def wait(
        self,
        kind: type[E],
        *,
        worker: str | None = None,
        since: int | None = None,
        predicate: Callable[[E], bool] | None = None,
    ) -> E: ...

    @overload
    async def wait(
        self,
        kind: Kinds,
        *,
        worker: str | None = None,
        since: int | None = None,
        predicate: Callable[[Event], bool] | None = None,
    ) -> Event: ...

    async def wait(
        self,
        kind: Kinds,
        *,
        worker: str | None = None,
        since: int | None = None,
        predicate: Callable[[E], bool] | None = None,
    ) -> Event:
        """Wait for the first event that matches. A :class:`Gap` or :class:`Snapshot` does for who names that kind.

        :param since: look also at earlier events from this ``seq``, as far as the ring holds them
        :param predicate: called with each event of the kind; what it raises is raised here
        :raises ClosedError: if the last event was published and none matched
        """
        # Without a bound: what matches must not be dropped in a burst before this task is scheduled.
        async with self.subscribe(kinds=kind, workers=worker, since=since, buffer=sys.maxsize) as stream:
            async for event in stream:
                if isinstance(event, (Gap, Snapshot)) and event.kind not in _names(kind):
                    continue
                if predicate is None or predicate(event):  # type: ignore[arg-type]  # the overloads relate the two
                    return event
        raise ClosedError(f"ended without the awaited event {_describe(kind)}", worker=worker)

    def _attach(self, filter: Filter, since: int | None, buffer: int) -> EventStream:  # noqa: A002
        first = self._seq + 1 if since is None else max(since, 1)
        stream = EventStream(
            filter=filter,
            first=first,
            backlog=self._backlog(filter, first),
            buffer=buffer,
            clock=self._clock,
            ended=self._closed,
            on_close=self._detach,
        )
        self._streams[stream] = None
        for worker in (None,) if filter.workers is None else filter.workers:
            self._followers.setdefault(worker, {})[stream] = None
        return stream

    def _detach(self, stream: EventStream) -> None:
        del self._streams[stream]
        if stream.filter.workers is None:
            del self._followers[None][stream]
            return
        for worker in stream.filter.workers:
            followers = self._followers[worker]
            del followers[stream]
            if not followers:
                del self._followers[worker]

    def _backlog(self, filter: Filter, first: int) -> list[Event]:  # noqa: A002
        if first > self._seq:
            return []
        held = self._seq - len(self._ring) + 1
        found = list(islice(self._ring, max(first - held, 0), None))
        if filter.kinds is not None or filter.workers is not None:
            found = [event for event in found if filter.accepts(event)]
        if first < held:
            now, mono = self._clock()
            gap = Gap(first=first, last=held - 1, time=now, mono=mono)
            return [gap, self._snapshot(self._ring_table, held - 1, filter.workers), *found]
        return found

    def _snapshot(self, table: StateTable, seq: int, names: frozenset[str] | None) -> Snapshot:
        now, mono = self._clock()
        workers = {name: status for name, status in table.workers.items() if names is None or name in names}
        return Snapshot(seq=seq, time=now, mono=mono, workers=workers)


class Subscription:
    """What :meth:`Bus.subscribe` gives: enter it for the stream, leave it to close that.

    It can be entered again after it was left, and then follows anew.
    """

    def __init__(self, bus: Bus, filter: Filter, since: int | None, buffer: int) -> None:  # noqa: A002
        self._bus = bus
        self._filter = filter
        self._since = since
        self._buffer = buffer
        self._stream: EventStream | None = None

    async def __aenter__(self) -> EventStream:
        if self._stream is not None:
            raise RuntimeError("this subscription is entered already; each reader needs one of its own")
        self._stream = self._bus._attach(self._filter, self._since, self._buffer)  # noqa: SLF001 - the two are one unit
        return self._stream

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None


def _names(kind: Kind | Kinds) -> list[str]:
    kinds = (kind,) if isinstance(kind, (str, type)) else kind or ()
    return [each if isinstance(each, str) else each.__name__ for each in kinds]


def _describe(kind: Kind | Kinds) -> str:
    return " or ".join(_names(kind)) or "of any kind"
