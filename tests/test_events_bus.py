"""The bus: one order, the state table, subscriptions, filters, replay, waiting for one event."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ObjectReceiveStream
from events_support import (
    WORKERS,
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
from nsorch.errors import ClosedError
from nsorch.events import State

pytestmark = pytest.mark.once

# --- publishing


def test_publishing_stamps_the_envelope():
    bus = make_bus()
    first = bus.publish(started())
    second = bus.publish(started())
    assert (first.seq, first.time, first.mono) == (1, 1001.0, 1)
    assert (second.seq, second.time, second.mono) == (2, 1002.0, 2)
    assert bus.seq == 2


def test_the_usual_clocks():
    bus = ev.Bus(log=None)
    first, second = bus.publish(started()), bus.publish(started())
    assert 0 < first.mono <= second.mono
    assert first.time > 1_600_000_000


def test_what_cannot_be_published():
    bus = make_bus()
    event = bus.publish(started())
    for wrong in (event, ev.Gap(first=1, last=2), bus.snapshot()):
        with pytest.raises(ValueError, match="can't be published"):
            bus.publish(wrong)
    bus.publish(ev.SupervisorStopped())
    with pytest.raises(ClosedError):
        bus.publish(started())
    assert bus.seq == 2
    assert bus.closed


def test_every_event_is_logged_after_the_subscribers_have_it():
    logged = []
    bus = ev.Bus(log=lambda event: logged.append((event.seq, bus.workers["a"].state)))
    bus.publish(ev.WorkerRequested(worker="a"))
    bus.publish(started())
    assert logged == [(1, State.STARTING), (2, State.RUNNING)]


# --- the state table


LIVES = [
    ([], None),
    ([ev.WorkerRequested], State.STARTING),
    ([ev.WorkerRequested, ev.WorkerReady], State.IDLE),
    ([ev.WorkerRequested, ev.WorkerSetupFailed], State.FAILED),
    ([ev.WorkerRequested, ev.WorkerSpawned], State.STARTING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerStarted], State.RUNNING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerStarted, ev.WorkerReady], State.RUNNING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerStarted, ev.WorkerUnhealthy], State.RUNNING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerStarted, ev.WorkerStopping], State.STOPPING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerStarted, ev.WorkerExited], State.EXITED),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerExited, ev.WorkerBackoff], State.BACKOFF),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerExited, ev.WorkerSpawned], State.STARTING),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerExited, ev.WorkerFailed], State.FAILED),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerExited, ev.WorkerSetupFailed], State.EXITED),
    ([ev.WorkerRequested, ev.WorkerSpawned, ev.WorkerExited, ev.WorkerRemoved], None),
    ([ev.WorkerRequested, ev.WorkerReady, ev.WorkerRemoved, ev.WorkerExited], None),
]


def name_of(life):
    return "-".join(kind.__name__.removeprefix("Worker") for kind in life) if isinstance(life, list) else ""


@pytest.mark.parametrize(("life", "state"), LIVES, ids=name_of)
def test_states(life, state):
    bus = make_bus()
    for kind in life:
        bus.publish(make(kind, worker="a"))
    workers = bus.snapshot().workers
    assert workers == bus.workers
    assert (workers["a"].state if workers else None) is state


def test_a_snapshot_has_the_last_exit_and_does_not_change():
    bus = make_bus()
    bus.publish(ev.WorkerRequested(worker="a"))
    bus.publish(ev.WorkerSpawned(worker="a", incarnation=1, pid=9))
    bus.publish(exited("a", 1, code=3))
    bus.publish(ev.WorkerSpawned(worker="a", incarnation=2, pid=19))
    bus.publish(started("a", 2))
    snapshot = bus.snapshot()
    bus.publish(ev.WorkerRemoved(worker="a"))
    assert snapshot.seq == 5
    assert dict(snapshot.workers) == {
        "a": ev.WorkerStatus(state=State.RUNNING, incarnation=2, pid=10, exit=ev.Exit(code=3))
    }
    assert bus.snapshot().workers == {}
    with pytest.raises(TypeError):
        bus.workers["x"] = None


def test_a_worker_without_a_process_has_no_pid():
    bus = make_bus()
    bus.publish(ev.WorkerRequested(worker="a"))
    bus.publish(started("a", 2))
    assert bus.workers["a"].pid == 10
    bus.publish(exited("a", 2))
    bus.publish(ev.WorkerFailed(worker="a", reason="x"))
    assert bus.workers["a"] == ev.WorkerStatus(state=State.FAILED, incarnation=2, exit=ev.Exit(code=0))


# --- subscribing


@pytest.mark.anyio
async def test_a_subscription_gives_an_object_stream_that_ends_after_the_last_event():
    bus = make_bus()
    subscription = bus.subscribe()
    bus.publish(started())  # before it is entered
    async with subscription as stream:
        assert isinstance(stream, ObjectReceiveStream)
        bus.publish(started())
        bus.publish(ev.SupervisorStopped())
        assert [event.seq async for event in stream] == [2, 3]
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


@pytest.mark.anyio
async def test_before_during_and_after():
    bus = make_bus()
    async with bus.subscribe(since=0) as before:
        bus.publish(started())
        async with bus.subscribe(since=0) as during, bus.subscribe() as now:
            bus.publish(ev.SupervisorStopped())
            async with bus.subscribe(since=0) as after, bus.subscribe(since=1) as after1, bus.subscribe() as late:
                for stream, seqs in (
                    (before, [1, 2]),
                    (during, [1, 2]),
                    (now, [2]),
                    (after, [1, 2]),
                    (after1, [1, 2]),
                    (late, []),
                ):
                    assert [event.seq async for event in stream] == seqs


@pytest.mark.anyio
async def test_a_filtered_out_last_event_ends_the_stream_too():
    bus = make_bus()
    seen = []

    async def follow(stream):
        seen.extend([event.seq async for event in stream])

    async with (
        bus.subscribe(workers="a") as of_a,
        bus.subscribe(kinds=ev.BridgeCreated) as bridges,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(follow, of_a)
        tg.start_soon(follow, bridges)
        await anyio.wait_all_tasks_blocked()
        bus.publish(started("a"))
        bus.publish(started("b"))
        bus.publish(ev.SupervisorStopped())
    assert seen == [1]


@pytest.mark.anyio
async def test_closing_without_a_last_event_ends_streams():
    bus = make_bus()
    async with bus.subscribe() as stream:
        bus.publish(started())
        bus.close()
        bus.close()
        assert [event.seq async for event in stream] == [1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kinds", "workers", "seqs"),
    [
        (None, None, [1, 2, 3, 4, 5, 6]),
        (ev.WorkerStarted, None, [1, 3]),
        ("WorkerStarted", None, [1, 3]),
        ([ev.WorkerStarted, "WorkerExited"], None, [1, 2, 3]),
        (ev.Event, "a", [1, 2]),
        (None, "a", [1, 2]),
        (None, {"a", "b"}, [1, 2, 3, 5]),
        (ev.WorkerStarted, ["b"], [3]),
        ([], None, []),
        (None, (), []),
    ],
)
async def test_filters_live_and_in_replay(kinds, workers, seqs):
    bus = make_bus()
    async with bus.subscribe(kinds=kinds, workers=workers) as live:
        for event in (
            started("a"),
            exited("a"),
            started("b"),
            ev.BridgeCreated(bridge="a"),
            ev.WorkerRemoved(worker="b"),
            ev.SupervisorStopped(),
        ):
            bus.publish(event)
        assert [event.seq async for event in live] == seqs
    async with bus.subscribe(kinds=kinds, workers=workers, since=0) as replayed:
        assert [event.seq async for event in replayed] == seqs


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kinds": "WorkerStart"}, ValueError, "no event is named 'WorkerStart'"),
        ({"kinds": ["WorkerStarted", "Nope"]}, ValueError, "Nope"),
        ({"kinds": int}, TypeError, "neither an event class"),
        ({"kinds": [3]}, TypeError, "neither an event class"),
        ({"workers": [3]}, TypeError, "not the name of a worker"),
        ({"since": -1}, ValueError, "since"),
        ({"buffer": 0}, ValueError, "buffer"),
    ],
)
def test_wrong_options_are_refused_before_entering(options, error, words):
    with pytest.raises(error, match=words):
        make_bus().subscribe(**options)


def test_a_ring_of_less_than_nothing():
    with pytest.raises(ValueError, match="ring"):
        ev.Bus(ring=-1)


@pytest.mark.anyio
async def test_a_subscription_is_for_one_reader():
    bus = make_bus()
    subscription = bus.subscribe(since=0)
    async with subscription:
        with pytest.raises(RuntimeError, match="entered already"):
            await subscription.__aenter__()
    bus.publish(started())
    async with subscription as stream:
        assert brief(drain(stream)) == [1]


# --- replay


@pytest.mark.anyio
async def test_replay_is_not_bounded_by_the_buffer():
    bus = make_bus()
    for _ in range(50):
        bus.publish(started())
    async with bus.subscribe(since=11, buffer=1) as stream:
        bus.publish(started())
        bus.publish(started())
        assert brief(drain(stream)) == [*range(11, 51), (51, 51), 52]


@pytest.mark.anyio
async def test_since_a_number_still_to_come():
    bus = make_bus()
    bus.publish(started())
    async with bus.subscribe(since=3) as stream:
        for _ in range(3):
            bus.publish(started())
        assert brief(drain(stream)) == [3, 4]


@pytest.mark.anyio
async def test_replay_of_what_the_ring_no_longer_holds():
    bus = make_bus(ring=2)
    bus.publish(ev.WorkerRequested(worker="a"))
    bus.publish(ev.WorkerRequested(worker="b"))
    bus.publish(ev.WorkerReady(worker="b"))
    bus.publish(started("a"))
    bus.publish(exited("a"))
    async with (
        bus.subscribe(since=2) as stream,
        bus.subscribe(since=0, workers="a") as of_a,
        bus.subscribe(since=4) as held,
    ):
        received = drain(stream)
        assert brief(received) == [(2, 3), None, 4, 5]
        snapshot = received[1]
        # The state after event 3, so that 4 and 5 continue it.
        assert snapshot.seq == 3
        assert {name: status.state for name, status in snapshot.workers.items()} == {
            "a": State.STARTING,
            "b": State.IDLE,
        }
        received = drain(of_a)
        assert brief(received) == [(1, 3), None, 4, 5]
        assert list(received[1].workers) == ["a"]
        assert brief(drain(held)) == [4, 5]


@settings(max_examples=100, deadline=None)
@given(st.lists(one_event, max_size=40), st.integers(0, 10), st.integers(0, 45), one_filter)
def test_a_late_replay_continues_from_its_snapshot(history, ring, since, chosen):
    async def main():
        bus = make_bus(ring)
        published, tables = [], [{}]
        for kind, worker in history:
            published.append(bus.publish(make(kind, worker=worker)))
            tables.append(dict(bus.workers))
        async with bus.subscribe(**chosen, since=since) as stream:
            received = drain(stream)
        first, held = max(since, 1), max(len(history) - ring, 0) + 1
        if first < held:
            gap, snapshot = received[:2]
            assert (gap.first, gap.last) == (first, held - 1)
            assert snapshot.seq == held - 1
            wanted = chosen["workers"] or WORKERS
            assert snapshot.workers == {name: s for name, s in tables[held - 1].items() if name in wanted}
            received = received[2:]
        assert received == [e for e in published if e.seq >= max(first, held) and accepts(**chosen)(e)]

    anyio.run(main)


# --- waiting for one event


@pytest.mark.anyio
async def test_wait_for_an_event_to_come():
    bus = make_bus()
    bus.publish(started("a"))

    async def publish():
        await anyio.wait_all_tasks_blocked()
        for event in (exited("a"), started("b"), exited("b", code=1), exited("b", code=2)):
            bus.publish(event)

    async with anyio.create_task_group() as tg:
        tg.start_soon(publish)
        event = await bus.wait(ev.WorkerExited, worker="b", predicate=lambda event: event.exit.status == 2)
    assert (event.seq, event.worker) == (5, "b")


@pytest.mark.anyio
async def test_wait_looks_back():
    bus = make_bus(ring=2)
    for worker in "abc":
        bus.publish(started(worker))
    assert (await bus.wait("WorkerStarted", since=0)).worker == "b"  # past the gap and the snapshot
    assert (await bus.wait(["WorkerExited", ev.WorkerStarted], worker="c", since=1)).worker == "c"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [ev.Gap, "Gap", [ev.WorkerReady, ev.Gap]])
async def test_wait_for_a_gap(kind):
    bus = make_bus(ring=2)
    for worker in "abc":
        bus.publish(started(worker))
    with anyio.fail_after(5):
        lost = await bus.wait(kind, since=0)
        assert (lost.kind, lost.first, lost.last) == ("Gap", 1, 1)
        assert (await bus.wait(ev.Snapshot, since=0)).seq == 1
        missed = bus.publish_gap()
        assert await bus.wait(kind, since=4) is missed
        assert (await bus.wait(None, since=0)).worker == "c"


@pytest.mark.anyio
async def test_wait_loses_nothing_in_a_burst():
    bus = make_bus()

    async def publish():
        await anyio.wait_all_tasks_blocked()
        for number in range(5000):
            bus.publish(started(incarnation=number))

    async with anyio.create_task_group() as tg:
        tg.start_soon(publish)
        event = await bus.wait(ev.WorkerStarted, predicate=lambda event: event.incarnation == 7)
    assert event.seq == 8


@pytest.mark.anyio
async def test_wait_for_what_does_not_come():
    bus = make_bus()
    async with anyio.create_task_group() as tg:
        tg.start_soon(publish_when_blocked, bus, ev.SupervisorStopped())
        with pytest.raises(ClosedError, match="WorkerExited or WorkerFailed") as caught:
            await bus.wait([ev.WorkerExited, "WorkerFailed"], worker="a")
    assert caught.value.worker == "a"
    assert (await bus.wait(ev.SupervisorStopped, since=0)).seq == 1
    assert not bus._streams
    assert bus._followers == {None: {}}


@pytest.mark.anyio
async def test_a_predicate_that_raises_raises_in_its_own_task():
    bus = make_bus()
    bus.publish(started())
    with pytest.raises(ZeroDivisionError):
        await bus.wait(ev.WorkerStarted, since=0, predicate=lambda event: 1 / 0 > 1)
    assert not bus._streams
