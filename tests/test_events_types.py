"""Event values, and the lines they become in a log."""

from __future__ import annotations

import json
import logging
import pickle

import attrs
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

import nsorch.events.log
from nsorch import events as ev
from nsorch.events.filter import make_filter
from nsorch.events.rare import EVERY_TYPE

pytestmark = pytest.mark.once

NAMESPACES = {"net": 4026532001, "uts": 4026532002}
USAGE = ev.Usage(user_time=0.5, system_time=0.25, max_rss=1 << 20)

EXAMPLES = [
    (ev.SupervisorStarted(name="lab", pid=7), {"name": "lab", "pid": 7}),
    (ev.SupervisorStopping(reason="SIGTERM"), {"reason": "SIGTERM"}),
    (ev.SupervisorStopped(), {}),
    (ev.WorkerRequested(), {}),
    (ev.WorkerSpawned(pid=8, namespaces=NAMESPACES), {"pid": 8, "namespaces": NAMESPACES}),
    (ev.WorkerSetupFailed(stage="unshare", errno=1, detail="no"), {"stage": "unshare", "errno": 1, "detail": "no"}),
    (ev.WorkerStarted(pid=8), {"pid": 8}),
    (ev.WorkerReady(namespaces=NAMESPACES), {"namespaces": NAMESPACES}),
    (ev.WorkerUnhealthy(detail="refused"), {"detail": "refused"}),
    (ev.WorkerHealthy(), {}),
    (ev.WorkerStopping(signal=15, deadline=1.0), {"signal": 15, "deadline": 1.0}),
    (
        ev.WorkerExited(exit=ev.Exit(signal=9, expected=True, usage=USAGE)),
        {
            "code": None,
            "signal": 9,
            "expected": True,
            "usage": {"user_time": 0.5, "system_time": 0.25, "max_rss": 1048576},
        },
    ),
    (ev.WorkerFrozen(), {}),
    (ev.WorkerThawed(), {}),
    (ev.WorkerOomKilled(count=1, total=3), {"count": 1, "total": 3}),
    (ev.WorkerLimitHit(limit="pids", count=2, total=5), {"limit": "pids", "count": 2, "total": 5}),
    (ev.WorkerBackoff(delay=0.5, attempt=2), {"delay": 0.5, "attempt": 2}),
    (ev.WorkerFailed(reason="5 exits in 10 s"), {"reason": "5 exits in 10 s"}),
    (ev.WorkerRemoved(), {}),
    (ev.BridgeCreated(bridge="lan"), {"bridge": "lan"}),
    (ev.BridgeRemoved(bridge="lan"), {"bridge": "lan"}),
    (ev.LinkCreated(link="l", ends=("a:eth0", "b:eth0")), {"link": "l", "ends": ["a:eth0", "b:eth0"]}),
    (ev.LinkUp(link="l", ends=("a", "b")), {"link": "l", "ends": ["a", "b"], "by": "nsorch"}),
    (ev.LinkDown(link="l", ends=("a", "b")), {"link": "l", "ends": ["a", "b"], "by": "nsorch"}),
    (
        ev.LinkChanged(link="l", changes=(("mtu", "9000"),), by="kernel"),
        {"link": "l", "changes": [["mtu", "9000"]], "by": "kernel"},
    ),
    (ev.LinkRemoved(link="l", ends=("a", "b")), {"link": "l", "ends": ["a", "b"], "by": "nsorch"}),
    (ev.NetworkPartitioned(groups=(("a", "b"), ("c",))), {"groups": [["a", "b"], ["c"]]}),
    (ev.NetworkHealed(), {}),
    (ev.InterfaceCreated(worker="w", interface="d0", type="dummy"), {"interface": "d0", "type": "dummy"}),
    (ev.InterfaceRemoved(worker="w", interface="d0", type="dummy"), {"interface": "d0", "type": "dummy"}),
    (
        ev.NetError(operation="add route", errno=113, detail="x"),
        {"operation": "add route", "errno": 113, "detail": "x"},
    ),
    (ev.Gap(first=3, last=5), {"first": 3, "last": 5}),
    (
        ev.Snapshot(workers={"web": ev.WorkerStatus(state=ev.State.EXITED, incarnation=2, exit=ev.Exit(code=3))}),
        {
            "workers": {
                "web": {
                    "state": "exited",
                    "incarnation": 2,
                    "pid": None,
                    "exit": {"code": 3, "signal": None, "expected": False, "usage": None},
                }
            }
        },
    ),
]


def test_every_type_has_an_example():
    assert {type(event) for event, _ in EXAMPLES} == set(EVERY_TYPE)
    assert {cls.__name__ for cls in EVERY_TYPE} <= set(ev.__all__)


@pytest.mark.parametrize(("event", "fields"), EXAMPLES, ids=lambda value: getattr(value, "kind", ""))
def test_to_dict_gives_json_types(event, fields):
    event = attrs.evolve(event, seq=3, time=1.5, mono=9, worker="web", incarnation=2)
    data = event.to_dict()
    envelope = {"seq": 3, "time": 1.5, "mono": 9, "worker": "web", "incarnation": 2}
    assert data == {"kind": type(event).__name__, **envelope, **fields}
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda event: event.kind)
def test_events_are_frozen_slotted_values(event):
    for name in ("seq", "worker", "brand_new"):
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(event, name, 1)
    assert not hasattr(event, "__dict__")
    twin = attrs.evolve(event)
    assert twin == event
    assert hash(twin) == hash(event)
    assert attrs.evolve(event, incarnation=7) != event
    assert repr(event).startswith(f"{event.kind}(seq=0")


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda event: event.kind)
def test_every_kind_can_be_asked_for(event):
    assert make_filter(event.kind, None) == make_filter(type(event), None)
    assert make_filter(event.kind, None).kinds == {type(event)}


def test_the_base_stands_for_all():
    assert make_filter("Event", None).kinds == make_filter(ev.Event, None).kinds == set(EVERY_TYPE)


def test_events_of_different_types_differ():
    assert ev.WorkerRequested(worker="a") != ev.WorkerRemoved(worker="a")
    assert ev.WorkerStarted(worker="a", pid=1) != ev.WorkerStarted(worker="a", pid=2)
    assert ev.WorkerRequested() != 0


def test_a_repr_shows_what_matters():
    event = ev.WorkerStarted(seq=4, time=1.5, mono=9, worker="web", incarnation=1, pid=12)
    assert repr(event) == "WorkerStarted(seq=4, worker='web', incarnation=1, pid=12)"
    assert repr(ev.BridgeCreated(bridge="lan")) == "BridgeCreated(seq=0, bridge='lan')"


def test_fields_are_keywords():
    with pytest.raises(TypeError):
        ev.BridgeCreated("lan")


def test_namespaces_are_a_copy_that_nobody_can_change():
    mine = dict(NAMESPACES)
    event = ev.WorkerSpawned(pid=1, namespaces=mine)
    mine["net"] = 0
    assert event.namespaces == NAMESPACES
    with pytest.raises(TypeError):
        event.namespaces["net"] = 0


@pytest.mark.parametrize("event", [ev.WorkerStarted(pid=3), ev.WorkerExited(exit=ev.Exit(code=0))])
def test_plain_events_can_travel(event):
    assert pickle.loads(pickle.dumps(event)) == event


@given(st.integers(0, 255), st.integers(1, 64))
def test_exit_status(code, signal):
    assert ev.Exit(code=code).status == code
    assert ev.Exit(signal=signal).status == 128 + signal


@pytest.mark.parametrize("fields", [{}, {"code": 0, "signal": 9}])
def test_an_exit_has_a_code_or_a_signal(fields):
    with pytest.raises(ValueError, match="either a code or a signal"):
        ev.Exit(**fields)


# --- the log


@pytest.fixture
def unconfigured():
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def stdlib_logger():
    logger = logging.getLogger("nsorch")
    before = logger.level
    yield logger
    logger.setLevel(before)


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


class Broken(logging.Handler):
    def emit(self, record):
        raise OSError("disk full")


def test_a_configured_structlog_gets_each_event(unconfigured):
    with structlog.testing.capture_logs() as lines:
        bus = ev.Bus()
        bus.publish(ev.SupervisorStarted(name="lab", pid=7))
        bus.publish(ev.WorkerFailed(worker="web", incarnation=2, reason="gave up"))
    first, second = lines
    assert (first["event"], first["log_level"], first["name"], first["pid"]) == ("SupervisorStarted", "info", "lab", 7)
    assert (second["event"], second["log_level"], second["worker"]) == ("WorkerFailed", "warning", "web")
    assert (second["seq"], second["incarnation"], second["reason"]) == (2, 2, "gave up")
    assert "kind" not in second


@pytest.mark.parametrize("event", [event for event, _ in EXAMPLES], ids=lambda event: event.kind)
def test_no_field_clashes_with_a_parameter_of_structlog(unconfigured, stdlib_logger, event, caplog):
    with structlog.testing.capture_logs() as lines:
        ev.log_event(event)
    assert [line["event"] for line in lines] == [event.kind]
    structlog.reset_defaults()
    caplog.set_level(logging.INFO, "nsorch")
    ev.log_event(event)
    assert [record.getMessage().split()[0] for record in caplog.records] == [f"event={event.kind}"]


def test_without_structlog_configured_the_standard_logger_gets_a_line(unconfigured, stdlib_logger, caplog):
    caplog.set_level(logging.INFO, "nsorch")
    ev.log_event(ev.WorkerExited(seq=3, worker="web", incarnation=1, exit=ev.Exit(code=4)))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("nsorch", logging.INFO)
    words = record.getMessage().split()
    assert words[0] == "event=WorkerExited"
    assert {"seq=3", "worker=web", "incarnation=1", "code=4", "expected=false"} <= set(words)


def test_the_standard_logger_gets_what_its_level_lets_through(unconfigured, stdlib_logger):
    lines = Lines()
    stdlib_logger.addHandler(lines)
    try:
        stdlib_logger.setLevel(logging.WARNING)
        ev.log_event(ev.WorkerRequested(worker="web"))
        assert lines.records == []
        ev.log_event(ev.WorkerFailed(worker="web", reason="x"))
        assert [record.levelno for record in lines.records] == [logging.WARNING]
    finally:
        stdlib_logger.removeHandler(lines)


def test_without_any_handler_nothing_goes_to_standard_error(unconfigured, stdlib_logger, monkeypatch, capsys):
    monkeypatch.setattr(stdlib_logger, "propagate", False)
    ev.log_event(ev.WorkerFailed(worker="web", reason="x"))
    assert capsys.readouterr() == ("", "")


def test_nothing_of_the_application_is_configured(unconfigured, capsys):
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    ev.Bus().publish(ev.WorkerRequested(worker="web"))
    assert not structlog.is_configured()
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert logging.getLogger("nsorch").handlers == []
    assert capsys.readouterr() == ("", "")


def test_a_logger_that_raises_breaks_no_publishing(unconfigured, caplog, monkeypatch):
    monkeypatch.setattr(nsorch.events.log, "_failure_told", False)

    def broken(logger, method, event):
        raise ZeroDivisionError

    structlog.configure(processors=[broken])
    bus = ev.Bus()
    bus.publish(ev.WorkerRequested(worker="a"))
    bus.publish(ev.WorkerRequested(worker="b"))
    assert bus.seq == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # told, and once


def test_a_handler_that_raises_breaks_no_publishing(unconfigured, stdlib_logger, monkeypatch):
    monkeypatch.setattr(nsorch.events.log, "_failure_told", False)
    broken = Broken()
    stdlib_logger.addHandler(broken)
    stdlib_logger.setLevel(logging.INFO)
    try:
        bus = ev.Bus()
        bus.publish(ev.WorkerRequested(worker="a"))
        assert bus.seq == 1
    finally:
        stdlib_logger.removeHandler(broken)
