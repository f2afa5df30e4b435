"""One subscriber's stream: gaps, terminal events, receiving, cancellation, against a plain model."""

from __future__ import annotations

import contextlib

import anyio
import anyio.lowlevel
import pytest
from events_support import (
    accepts,
    brief,
    drain,
    exited,
    make,
    make_bus,
    one_event,
    one_filter,
    publish_when_blocked,
    started,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nsorch import events as ev
from nsorch.events.types import TERMINAL_TYPES

pytestmark = pytest.mark.once

# --- slow subscribers


@pytest.mark.anyio
async def test_the_oldest_are_dropped_and_terminal_events_stay():
    bus = make_bus()
    async with bus.subscribe(buffer=2) as stream:
        for event in (started(), started(), exited(), started(), started(), exited("b"), started()):
            bus.publish(event)
        assert brief(drain(stream)) == [(1, 2), 3, (4, 4), 5, 6, 7]
        bus.publish(started())
        assert brief(drain(stream)) == [8]


@pytest.mark.anyio
async def test_a_gap_that_was_received_does_not_grow():
    bus = make_bus()
    async with bus.subscribe(buffer=1) as stream:
        for _ in range(3):
            bus.publish(started())
        gap = stream.receive_nowait()
        assert (gap.seq, gap.first, gap.last) == (0, 1, 2)
        bus.publish(started())
        assert brief(drain(stream)) == [(3, 3), 4]


@pytest.mark.anyio
async def test_a_filter_makes_no_gaps():
    bus = make_bus()
    async with bus.subscribe(workers="a", buffer=2) as stream:
        for worker in "babbab":
            bus.publish(started(worker))
        assert brief(drain(stream)) == [2, 5]
        for worker in "abab":
            bus.publish(started(worker))
        for worker in "ba":
            bus.publish(started(worker))
        assert brief(drain(stream)) == [(7, 7), 9, 12]


class Model:
    """What one subscriber must get, in the plainest way."""

    def __init__(self, stream, published, first, wanted, buffer):
        self.stream, self.buffer, self.wanted = stream, buffer, wanted
        self.first = first
        self.replayed = [event for event in published if event.seq >= first and wanted(event)]
        self.pending = []
        self.dropped = []
        self.received = []

    def publish(self, event):
        if event.seq < self.first or not self.wanted(event):
            return
        droppable = [old for old in self.pending if type(old) not in TERMINAL_TYPES]
        if type(event) not in TERMINAL_TYPES and len(droppable) == self.buffer:
            self.pending.remove(droppable[0])
            self.dropped.append(droppable[0].seq)
        self.pending.append(event)

    def expect(self):
        if self.replayed:
            return self.replayed.pop(0).seq
        until = self.pending[0].seq if self.pending else float("inf")
        run = [seq for seq in self.dropped if seq < until]
        if run:
            self.dropped = self.dropped[len(run) :]
            return run[0], run[-1]
        return self.pending.pop(0).seq if self.pending else "nothing"

    def receive(self):
        try:
            event = self.stream.receive_nowait()
        except anyio.WouldBlock:
            event = None
        got = "nothing" if event is None else brief([event])[0]
        assert got == self.expect()
        if event is not None:
            self.received.append(event)
        return event

    def check(self, published):
        while self.receive() is not None:
            pass
        check_contract(self.received, [e for e in published if e.seq >= self.first and self.wanted(e)])


def check_contract(received, deliverable):
    """In order, without duplicates, each missing one in exactly one gap, terminal events never missing."""
    last = 0
    for event in received:
        low, high = (event.first, event.last) if isinstance(event, ev.Gap) else (event.seq, event.seq)
        assert last < low <= high
        last = high
    seqs = {event.seq for event in received if not isinstance(event, ev.Gap)}
    gaps = [event for event in received if isinstance(event, ev.Gap)]
    for event in deliverable:
        covers = sum(gap.first <= event.seq <= gap.last for gap in gaps)
        assert covers == (0 if event.seq in seqs else 1)
        if type(event) in TERMINAL_TYPES:
            assert event.seq in seqs
    wanted = {event.seq for event in deliverable}
    assert seqs <= wanted
    assert all(gap.first in wanted and gap.last in wanted for gap in gaps)


operation = (
    st.tuples(st.just("publish"), st.lists(one_event, min_size=1, max_size=12))
    | st.tuples(st.just("receive"), st.integers(0, 9), st.integers(1, 6))
    | st.tuples(st.just("subscribe"), one_filter, st.none() | st.integers(0, 30), st.integers(1, 4))
    | st.tuples(st.just("close"), st.integers(0, 9))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(operation, max_size=30))
def test_any_history_follows_the_plain_model(operations):
    async def main():
        bus = make_bus()
        published, models = [], []
        for name, *arguments in operations:
            if name == "publish":
                for kind, worker in arguments[0]:
                    published.append(bus.publish(make(kind, worker=worker)))
                    assert bus.seq == published[-1].seq == len(published)
                    for model in models:
                        model.publish(published[-1])
            elif name == "subscribe":
                chosen, since, buffer = arguments
                stream = await bus.subscribe(**chosen, since=since, buffer=buffer).__aenter__()
                first = len(published) + 1 if since is None else max(since, 1)
                models.append(Model(stream, published, first, accepts(**chosen), buffer))
            elif models and name == "receive":
                for _ in range(arguments[1]):
                    models[arguments[0] % len(models)].receive()
            elif models:
                models.pop(arguments[0] % len(models)).stream.close()
        for model in models:
            model.check(published)
            model.stream.close()
        assert not bus._streams
        assert bus._followers == {None: {}}

    anyio.run(main)


# --- receiving and cancellation


@pytest.mark.anyio
async def test_publishing_wakes_a_receiver_that_waits():
    bus = make_bus()
    async with bus.subscribe() as stream, anyio.create_task_group() as tg:
        tg.start_soon(publish_when_blocked, bus, started())
        assert (await stream.receive()).seq == 1


@pytest.mark.anyio
async def test_a_cancelled_receive_leaves_the_event():
    bus = make_bus()
    async with bus.subscribe() as stream:
        bus.publish(started())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert scope.cancelled_caught
        assert (await stream.receive()).seq == 1


@pytest.mark.anyio
@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelled_and_woken_at_once(cancel_first):
    bus = make_bus()
    got = []

    async def receive(scope):
        with scope:
            got.append((await stream.receive()).seq)

    async with bus.subscribe() as stream:
        async with anyio.create_task_group() as tg:
            scope = anyio.CancelScope()
            tg.start_soon(receive, scope)
            await anyio.wait_all_tasks_blocked()
            if cancel_first:
                scope.cancel()
            bus.publish(started())
            scope.cancel()
        assert got + brief(drain(stream)) == [1]


@pytest.mark.anyio
async def test_only_one_task_receives():
    bus = make_bus()
    async with bus.subscribe() as stream, anyio.create_task_group() as tg:
        tg.start_soon(stream.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        bus.publish(started())


@pytest.mark.anyio
async def test_closing():
    bus = make_bus()
    async with bus.subscribe() as stream:
        bus.publish(started())
        await stream.aclose()
        await stream.aclose()
        bus.publish(started())
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
    with pytest.raises(anyio.ClosedResourceError):
        stream.receive_nowait()


@pytest.mark.anyio
async def test_closing_under_a_receiver():
    bus = make_bus()

    async def close():
        await anyio.wait_all_tasks_blocked()
        await stream.aclose()

    async with bus.subscribe() as stream, anyio.create_task_group() as tg:
        tg.start_soon(close)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


@pytest.mark.anyio
async def test_aclose_closes_also_when_cancelled():
    bus = make_bus()
    stream = await bus.subscribe().__aenter__()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        stream.receive_nowait()
    assert not bus._streams


def test_publishing_after_the_loop_of_a_receiver_is_gone():
    bus = make_bus()
    stream = None

    class Wake:
        def set(self):
            raise RuntimeError("Event loop is closed")

    async def main():
        nonlocal stream
        stream = await bus.subscribe().__aenter__()

    anyio.run(main)
    stream._wake = Wake()
    bus.publish(started())
    assert brief(drain(stream)) == [1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_publishers_slow_subscribers_and_cancellations(backend, data):
    """Tasks publish, receive slowly and are cancelled while they receive, in an order drawn by hypothesis."""
    scripts = data.draw(
        st.lists(st.lists(st.tuples(one_event, st.integers(0, 2)), max_size=15), min_size=1, max_size=3)
    )
    readers = data.draw(
        st.lists(
            st.tuples(one_filter, st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8)),
            min_size=1,
            max_size=4,
        )
    )

    async def pause(turns):
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()

    async def main():
        bus = make_bus()
        published = []

        async def publisher(script):
            for (kind, worker), turns in script:
                published.append(bus.publish(make(kind, worker=worker)))
                await pause(turns)

        async def receive_one(stream, received, scope):
            with scope, contextlib.suppress(anyio.EndOfStream):
                received.append(await stream.receive())

        async def reader(chosen, buffer, plan, *, task_status):
            received = []
            async with bus.subscribe(**chosen, buffer=buffer) as stream:
                task_status.started()
                for turns, cancel in plan:
                    if cancel:
                        async with anyio.create_task_group() as tg:
                            scope = anyio.CancelScope()
                            tg.start_soon(receive_one, stream, received, scope)
                            await pause(turns)
                            scope.cancel()
                    else:
                        await pause(turns)
                        with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                            received.append(stream.receive_nowait())
                received.extend([event async for event in stream])
            check_contract(received, [event for event in published if accepts(**chosen)(event)])

        async with anyio.create_task_group() as tg:
            for chosen, buffer, plan in readers:
                await tg.start(reader, chosen, buffer, plan)
            async with anyio.create_task_group() as publishers:
                for script in scripts:
                    publishers.start_soon(publisher, script)
            published.append(bus.publish(ev.SupervisorStopped()))

    anyio.run(main, backend=backend)
