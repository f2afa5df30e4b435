"""Which events a subscriber wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nsorch.events.types import EVENT_TYPES, Event, Gap, LinkChanged, LinkDown, LinkRemoved, LinkUp

if TYPE_CHECKING:
    from collections.abc import Collection

    Kind = type[Event] | str
    Kinds = Kind | Collection[Kind] | None
    Names = str | Collection[str] | None

# What a published Gap may stand for.
_MISSED = {Gap, LinkUp, LinkDown, LinkChanged, LinkRemoved}
_BY_NAME: dict[str, type[Event]] = {cls.__name__: cls for cls in EVENT_TYPES}


class Filter(NamedTuple):
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
        base = _BY_NAME[kind] if kind in _BY_NAME else _rare(kind)
    elif isinstance(kind, type) and issubclass(kind, Event):
        base = kind
    else:
        raise TypeError(f"kinds: {kind!r} is neither an event class nor the name of one")
    if base in EVENT_TYPES:
        return [base]
    from nsorch.events.rare import EVERY_TYPE

    return [cls for cls in EVERY_TYPE if issubclass(cls, base)]


def _rare(name: str) -> type[Event]:
    from nsorch.events.rare import EVERY_TYPE

    every: tuple[type[Event], ...] = (Event, *EVERY_TYPE)
    names = {cls.__name__: cls for cls in every}
    if name not in names:
        raise ValueError(f"kinds: no event is named {name!r}; there are {', '.join(sorted(names))}")
    return names[name]
