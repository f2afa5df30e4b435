"""What happens in a lab: the events, the bus that orders and hands them on, and the log. Pure: no kernel, no tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.events.bus import Bus, Subscription
from nsorch.events.log import log_event
from nsorch.events.stream import EventStream
from nsorch.events.types import (
    BridgeCreated,
    BridgeRemoved,
    Event,
    Gap,
    LinkChanged,
    LinkCreated,
    LinkDown,
    LinkRemoved,
    LinkUp,
    Snapshot,
    SupervisorStarted,
    SupervisorStopped,
    SupervisorStopping,
    WorkerExited,
    WorkerFailed,
    WorkerReady,
    WorkerRemoved,
    WorkerRequested,
    WorkerSetupFailed,
    WorkerSpawned,
    WorkerStarted,
    WorkerStopping,
)
from nsorch.events.values import Exit, State, Usage, WorkerStatus
from nsorch.later import later

if TYPE_CHECKING:
    from nsorch.events.rare import (
        InterfaceCreated,
        InterfaceRemoved,
        NetError,
        NetworkHealed,
        NetworkPartitioned,
        WorkerBackoff,
        WorkerFrozen,
        WorkerHealthy,
        WorkerLimitHit,
        WorkerOomKilled,
        WorkerThawed,
        WorkerUnhealthy,
    )

LATER = {
    "InterfaceCreated": "nsorch.events.rare",
    "InterfaceRemoved": "nsorch.events.rare",
    "NetError": "nsorch.events.rare",
    "NetworkHealed": "nsorch.events.rare",
    "NetworkPartitioned": "nsorch.events.rare",
    "WorkerBackoff": "nsorch.events.rare",
    "WorkerFrozen": "nsorch.events.rare",
    "WorkerHealthy": "nsorch.events.rare",
    "WorkerLimitHit": "nsorch.events.rare",
    "WorkerOomKilled": "nsorch.events.rare",
    "WorkerThawed": "nsorch.events.rare",
    "WorkerUnhealthy": "nsorch.events.rare",
}

__all__ = [
    "BridgeCreated",
    "BridgeRemoved",
    "Bus",
    "Event",
    "EventStream",
    "Exit",
    "Gap",
    "InterfaceCreated",
    "InterfaceRemoved",
    "LinkChanged",
    "LinkCreated",
    "LinkDown",
    "LinkRemoved",
    "LinkUp",
    "NetError",
    "NetworkHealed",
    "NetworkPartitioned",
    "Snapshot",
    "State",
    "Subscription",
    "SupervisorStarted",
    "SupervisorStopped",
    "SupervisorStopping",
    "Usage",
    "WorkerBackoff",
    "WorkerExited",
    "WorkerFailed",
    "WorkerFrozen",
    "WorkerHealthy",
    "WorkerLimitHit",
    "WorkerOomKilled",
    "WorkerReady",
    "WorkerRemoved",
    "WorkerRequested",
    "WorkerSetupFailed",
    "WorkerSpawned",
    "WorkerStarted",
    "WorkerStatus",
    "WorkerStopping",
    "WorkerThawed",
    "WorkerUnhealthy",
    "log_event",
]

if not TYPE_CHECKING:  # type checkers would take any name for one that exists
    __getattr__, __dir__ = later(globals(), LATER)
