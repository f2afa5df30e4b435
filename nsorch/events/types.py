"""What can be told of any lab: one frozen class for each kind of event."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar, dataclass_transform

from attrs import field, frozen

from nsorch.events.values import Exit, WorkerStatus

T = TypeVar("T")


# Event has one comparison and one repr for all: generating them per class would triple the import's cost.
@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
def event_type(cls: type[T]) -> type[T]:
    return frozen(kw_only=True, weakref_slot=False, eq=False, repr=False)(cls)


def _frozen_copy(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, MappingProxyType):
        return {key: _plain(item) for key, item in value.items()}
    return value.to_dict() if isinstance(value, WorkerStatus) else value


@event_type
class Event:
    """Base of all events, with the envelope. The bus fills in ``seq``, ``time`` and ``mono`` on publishing.

    :ivar seq: place in the supervisor's one total order, from 1, without holes; 0 until published
    :ivar time: wall clock, seconds since the epoch
    :ivar mono: monotonic clock, nanoseconds
    :ivar worker: name of the worker that it is about, or None
    :ivar incarnation: which life of the worker's process it is about, from 1; 0 when none
    """

    seq: int = 0
    time: float = 0.0
    mono: int = 0
    worker: str | None = None
    incarnation: int = 0

    @property
    def kind(self) -> str:
        """The name of the class."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """All fields and ``kind``, in types that :mod:`json` writes."""
        return {"kind": self.kind, **{name: _plain(getattr(self, name)) for name in self._names()}}

    @classmethod
    def _names(cls) -> list[str]:
        return [attribute.name for attribute in cls.__attrs_attrs__]  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._names())

    def __hash__(self) -> int:
        return hash((type(self), self.seq, self.time, self.mono, self.worker, self.incarnation))

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self._names() if name not in ("time", "mono")}
        if not self.incarnation:
            del shown["incarnation"]
        if self.worker is None:
            del shown["worker"]
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


@event_type
class SupervisorStarted(Event):
    """:ivar pid: of the spawner, as the host sees it."""

    name: str
    pid: int


@event_type
class SupervisorStopping(Event):
    """:ivar reason: why, if it isn't the block's normal end; else ``""``."""

    reason: str = ""


@event_type
class SupervisorStopped(Event):
    """The last event of a supervisor."""


@event_type
class WorkerRequested(Event):
    """The first event of a worker: its name is taken."""


@event_type
class WorkerSpawned(Event):
    """A process exists; its command runs only after :class:`WorkerStarted`.

    :ivar pid: of the command, as the host sees it
    :ivar namespaces: inode number of each namespace, by its name in /proc/PID/ns
    """

    pid: int
    namespaces: Mapping[str, int] = field(factory=dict, converter=_frozen_copy)


@event_type
class WorkerSetupFailed(Event):
    """nsorch's own preparation failed; the command didn't run."""

    stage: str
    errno: int | None = None
    detail: str = ""


@event_type
class WorkerStarted(Event):
    """The exec of the command is confirmed."""

    pid: int


@event_type
class WorkerReady(Event):
    """The ``ready`` condition holds; or a passive worker has its namespaces.

    :ivar namespaces: inode number of each namespace, by its name in /proc/PID/ns
    """

    namespaces: Mapping[str, int] = field(factory=dict, converter=_frozen_copy)


@event_type
class WorkerStopping(Event):
    """The worker was asked to end.

    :ivar signal: the signal that it got
    :ivar deadline: seconds until SIGKILL follows
    """

    signal: int
    deadline: float


@event_type
class WorkerExited(Event):
    """The process ended and was reaped. Exactly one for each :class:`WorkerSpawned`."""

    exit: Exit

    def to_dict(self) -> dict[str, Any]:
        """As :meth:`Event.to_dict`, with ``code``, ``signal``, ``expected`` and ``usage`` in place of ``exit``."""
        data = Event.to_dict(self)
        del data["exit"]
        return data | self.exit.to_dict()


@event_type
class WorkerFailed(Event):
    """nsorch gave up on the worker; no restart will follow."""

    reason: str


@event_type
class WorkerRemoved(Event):
    """The last event of a worker: its namespaces, descriptors and cgroup are released, its name is free."""


@event_type
class BridgeCreated(Event):
    bridge: str


@event_type
class BridgeRemoved(Event):
    bridge: str


@event_type
class LinkCreated(Event):
    link: str
    ends: tuple[str, ...]


@event_type
class LinkUp(Event):
    """Both ends have carrier.

    :ivar by: ``"nsorch"``; or ``"kernel"``, which told of what another program did
    """

    link: str
    ends: tuple[str, ...]
    by: str = "nsorch"


@event_type
class LinkDown(Event):
    """An end has no carrier. :ivar by: as of :class:`LinkUp`."""

    link: str
    ends: tuple[str, ...]
    by: str = "nsorch"


@event_type
class LinkChanged(Event):
    """:ivar changes: pairs of an option's name and its new value; :ivar by: as of :class:`LinkUp`."""

    link: str
    changes: tuple[tuple[str, str], ...]
    by: str = "nsorch"


@event_type
class LinkRemoved(Event):
    """:ivar by: as of :class:`LinkUp`."""

    link: str
    ends: tuple[str, ...]
    by: str = "nsorch"


@event_type
class Gap(Event):
    """Stands, in one subscriber's stream, for one run of events that it didn't get. It has no ``seq`` of its own (0).

    One other kind is published for all who follow links: when the kernel had more to tell of other programs' changes
    than could be heard, what was missed has one ``seq``, which is also *first* and *last*. The differences follow.

    :ivar first: ``seq`` of the first event missed
    :ivar last: ``seq`` of the last one; none between the two is delivered, and those the filter let through are lost
    """

    first: int
    last: int


@event_type
class Snapshot(Event):
    """The state of every worker that isn't removed, after the event numbered ``seq``."""

    workers: Mapping[str, WorkerStatus] = field(factory=dict, converter=_frozen_copy)


#: see also :mod:`nsorch.events.rare`
EVENT_TYPES: tuple[type[Event], ...] = (
    SupervisorStarted,
    SupervisorStopping,
    SupervisorStopped,
    WorkerRequested,
    WorkerSpawned,
    WorkerSetupFailed,
    WorkerStarted,
    WorkerReady,
    WorkerStopping,
    WorkerExited,
    WorkerFailed,
    WorkerRemoved,
    BridgeCreated,
    BridgeRemoved,
    LinkCreated,
    LinkUp,
    LinkDown,
    LinkChanged,
    LinkRemoved,
    Gap,
    Snapshot,
)

# Never dropped for a slow subscriber.
TERMINAL_TYPES = frozenset({WorkerExited, WorkerFailed, WorkerRemoved, SupervisorStopped})
