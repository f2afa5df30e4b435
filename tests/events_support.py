"""What the tests of the events share: a bus with a counting clock, short ways to make events, strategies."""

from __future__ import annotations

import itertools

import anyio
from hypothesis import strategies as st

from nsorch import events as ev

WORKERS = ("a", "b", "c")
FIELDS = {
    ev.WorkerSetupFailed: {"stage": "exec"},
    ev.WorkerSpawned: {"pid": 9},
    ev.WorkerStarted: {"pid": 10},
    ev.WorkerStopping: {"signal": 15, "deadline": 1.0},
    ev.WorkerExited: {"exit": ev.Exit(code=3)},
    ev.WorkerBackoff: {"delay": 1.0, "attempt": 1},
    ev.WorkerFailed: {"reason": "x"},
    ev.BridgeCreated: {"bridge": "lan"},
    ev.NetError: {"operation": "x", "errno": 1},
}


def make(kind, **envelope):
    return kind(**FIELDS.get(kind, {}), **envelope)


def make_bus(ring=65_536):
    ticks = itertools.count(1)

    def clock():
        tick = next(ticks)
        return 1000.0 + tick, tick

    return ev.Bus(ring=ring, clock=clock, log=None)


def started(worker="a", incarnation=1):
    return ev.WorkerStarted(worker=worker, incarnation=incarnation, pid=10)


def exited(worker="a", incarnation=1, code=0):
    return ev.WorkerExited(worker=worker, incarnation=incarnation, exit=ev.Exit(code=code))


def drain(stream):
    """All that can be received now."""
    received = []
    while True:
        try:
            received.append(stream.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return received


def brief(received):
    """Numbers of events; pairs for gaps; None for a snapshot."""
    return [
        (event.first, event.last) if type(event) is ev.Gap else event.seq if type(event) is not ev.Snapshot else None
        for event in received
    ]


async def publish_when_blocked(bus, event):
    await anyio.wait_all_tasks_blocked()
    bus.publish(event)


KINDS = [ev.WorkerRequested, ev.WorkerStarted, ev.WorkerReady, ev.WorkerExited, ev.WorkerFailed, ev.WorkerRemoved]
one_event = st.builds(lambda kind, worker: (kind, worker), st.sampled_from(KINDS), st.sampled_from(WORKERS)) | st.just(
    (ev.BridgeCreated, None)
)
one_filter = st.fixed_dictionaries(
    {
        "kinds": st.none() | st.sets(st.sampled_from([*KINDS, ev.BridgeCreated]), min_size=1),
        "workers": st.none() | st.sets(st.sampled_from(WORKERS), min_size=1),
    }
)


def accepts(kinds, workers):
    return lambda event: (kinds is None or type(event) in kinds) and (workers is None or event.worker in workers)
