"""Which events a subscriber wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.events.types import EVENT_TYPES, Event, Gap, LinkChanged, LinkDown, LinkRemoved, LinkUp
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Collection

    Kind = type[Event] | str
    Kinds = Kind | Collection[Kind] | None
    Names = str | Collection[str] | None

# What a published Gap may stand for.
_MISSED = {Gap, LinkUp, LinkDown, LinkChanged, LinkRemoved}
_ALL: tuple[type[Event], ...] = (Event, *EVENT_TYPES)
_BY_NAME: dict[str, type[Event]] = {cls.__name__: cls for cls in _ALL}


@frozen(kw_only=True, repr=False)
class Filter(Value):
    """A subscriber's choice.

    :ivar kinds: classes wanted, or None for all
    :ivar workers: names wanted, or None for all and for events about no worker
    """

    kinds: frozenset[type[Event]] | None
    workers: frozenset[str] | None

    def accepts(self, event: Event) -> bool:
        if type(event) is Gap:
            return self.workers is None and (self.kinds is None or not self.kinds.isdisjoint(_MISSED))
        return (self.kinds is None or type(event) in self.kinds) and (
            self.workers is None or event.worker in self.workers
        )


def make_filter(kinds: Kinds, workers: Names) -> Filter:
    """Check what a user gave.

    :raises ValueError: if no event has a given name
    :raises TypeError: if something is neither an event class nor a name
    """
    if workers is not None:
        workers = frozenset((workers,)) if isinstance(workers, str) else frozenset(workers)
        for worker in workers:
            if not isinstance(worker, str):
                raise TypeError(f"workers: {worker!r} is not the name of a worker")
    if kinds is None:
        return Filter(kinds=None, workers=workers)
    wanted: set[type[Event]] = set()
    for kind in (kinds,) if isinstance(kinds, (str, type)) else kinds:
        wanted.update(_classes(kind))
    return Filter(kinds=frozenset(wanted), workers=workers)


def _classes(kind: Kind) -> list[type[Event]]:
    if isinstance(kind, str):
        if kind not in _BY_NAME:
            raise ValueError(f"kinds: no event is named {kind!r}; there are {', '.join(sorted(_BY_NAME))}")
        base = _BY_NAME[kind]
    elif isinstance(kind, type) and issubclass(kind, Event):
        base = kind
    else:
        raise TypeError(f"kinds: {kind!r} is neither an event class nor the name of one")
    return [cls for cls in EVENT_TYPES if issubclass(cls, base)]
