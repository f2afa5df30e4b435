"""What can be told of few labs: imported when somebody asks for it."""

from __future__ import annotations

from nsorch.events.types import EVENT_TYPES, Event, event_type


@event_type
class WorkerUnhealthy(Event):
    """A probe of the worker failed."""

    detail: str = ""


@event_type
class WorkerHealthy(Event):
    """A worker that was unhealthy answers again."""


@event_type
class WorkerBackoff(Event):
    """:ivar delay: seconds until the next start; :ivar attempt: number of that start, from 1."""

    delay: float
    attempt: int


@event_type
class WorkerFrozen(Event):
    """None of its processes runs, until :class:`WorkerThawed`."""


@event_type
class WorkerThawed(Event):
    """Its processes go on."""


@event_type
class WorkerOomKilled(Event):
    """Processes of the worker were killed because its memory, or the host's, was used up. Where one of them was its
    main process, it comes before :class:`WorkerExited`.

    :ivar count: how many since the last such event
    :ivar total: how many in all
    """

    count: int
    total: int


@event_type
class WorkerLimitHit(Event):
    """A limit of the worker was hit; at most one a second for each of its files.

    :ivar limit: ``"memory"`` (something had to be reclaimed, or killed), ``"memory_high"``, ``"swap"``, or ``"pids"``
        (a fork was refused)
    :ivar count: how often since the last such event
    :ivar total: how often in all
    """

    limit: str
    count: int
    total: int


@event_type
class InterfaceCreated(Event):
    """An interface of the worker that is no end of a link is up, and has its addresses.

    :ivar type: its kind, such as ``"vlan"``
    """

    interface: str
    type: str


@event_type
class InterfaceRemoved(Event):
    """:ivar type: as :class:`InterfaceCreated` has it."""

    interface: str
    type: str


@event_type
class NetworkPartitioned(Event):
    """:ivar groups: names of workers; those of one don't hear those of another"""

    groups: tuple[tuple[str, ...], ...]


@event_type
class NetworkHealed(Event):
    """The opposite of :class:`NetworkPartitioned`."""


@event_type
class NetError(Event):
    """A network operation failed after the call that asked for it had returned.

    :ivar detail: the kernel's own text (extended ack), or ``""``
    """

    operation: str
    errno: int
    detail: str = ""


EVERY_TYPE: tuple[type[Event], ...] = (
    *EVENT_TYPES,
    WorkerUnhealthy,
    WorkerHealthy,
    WorkerBackoff,
    WorkerFrozen,
    WorkerThawed,
    WorkerOomKilled,
    WorkerLimitHit,
    InterfaceCreated,
    InterfaceRemoved,
    NetworkPartitioned,
    NetworkHealed,
    NetError,
)
