"""Workers that join the namespaces of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.topology.namespaces import NamespaceSet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from nsorch.topology.specs import WorkerSpec


def joined_names(worker: WorkerSpec, *kinds: str) -> set[str]:
    """Of the workers whose namespaces it joins, of any kind unless given."""
    if worker.namespaces is None or isinstance(worker.namespaces, tuple):  # a collection of kinds is all new ones
        return set()
    return NamespaceSet.parse(worker.namespaces, passive=worker.command is None).joined(*kinds)


def find_loop(start: str, joined: Mapping[str, Collection[str]], done: set[str]) -> list[str]:
    """The first loop among those that *start* joins, and these join in turn; empty if there is none.

    :param done: those that were looked at, and are from here on
    """
    path: dict[str, Iterator[str]] = {start: iter(sorted(joined.get(start, ())))}
    while path and start not in done:
        name = next(reversed(path))
        other = next(path[name], None)
        if other is None:
            del path[name]
            done.add(name)
        elif other in path:
            done.update(path)
            names = list(path)
            return [*names[names.index(other) :], other]
        elif other not in done:
            path[other] = iter(sorted(joined.get(other, ())))
    return []
