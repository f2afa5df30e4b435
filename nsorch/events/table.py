"""The state table: what a sequence of events says about each worker."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from nsorch.events import types as t
from nsorch.events.values import State, WorkerStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

# WorkerReady isn't here: what it means depends on whether there is a process.
_STATES: Mapping[str, State] = {
    "WorkerRequested": State.STARTING,
    "WorkerSpawned": State.STARTING,
    "WorkerSetupFailed": State.FAILED,
    "WorkerStarted": State.RUNNING,
    "WorkerStopping": State.STOPPING,
    "WorkerExited": State.EXITED,
    "WorkerBackoff": State.BACKOFF,
    "WorkerFailed": State.FAILED,
}


class StateTable:
    """Each worker's status after the events applied so far.

    A worker is in it from :class:`~nsorch.events.WorkerRequested` to :class:`~nsorch.events.WorkerRemoved`; other
    events about a name that isn't in it change nothing.
    """

    def __init__(self) -> None:
        self._workers: dict[str, WorkerStatus] = {}
        self.workers: Mapping[str, WorkerStatus] = MappingProxyType(self._workers)

    def apply(self, event: t.Event) -> None:
        worker = event.worker
        if worker is None:
            return
        kind = event.kind
        if kind == "WorkerRemoved":
            self._workers.pop(worker, None)
            return
        state = _STATES.get(kind)
        old = self._workers.get(worker)
        if old is None:
            if kind == "WorkerRequested":
                self._workers[worker] = _REQUESTED
            return
        pid, exit = old.pid, old.exit  # noqa: A001 - the field's own word
        if kind == "WorkerReady":
            # A process that is ready was started before; without one the worker is passive.
            state = State.IDLE if pid is None and old.state is State.STARTING else old.state
        elif state is None:
            return
        elif kind == "WorkerSetupFailed":
            if old.state is State.EXITED and old.incarnation == event.incarnation:  # it wasn't ready yet
                state = State.EXITED
        elif isinstance(event, (t.WorkerSpawned, t.WorkerStarted)):
            pid = event.pid
        elif isinstance(event, t.WorkerExited):
            pid, exit = None, event.exit  # noqa: A001
        self._workers[worker] = WorkerStatus(
            state=state, incarnation=event.incarnation or old.incarnation, pid=pid, exit=exit
        )


_REQUESTED = WorkerStatus(state=State.STARTING)
