"""Which namespaces a worker has, and where each comes from."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import evolve, fields, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import items, noted, shown
from nsorch.values import Value

if TYPE_CHECKING:
    from typing import Any


class New(Value):
    """Its own."""

    __slots__ = ()


class Shared(Value):
    """None of its own: the supervisor's for mnt, pid and user, the host's for net, uts and ipc."""

    __slots__ = ()


class Host(Value):
    """The host's, also where that isn't what one shares."""

    __slots__ = ()


@frozen(eq=False, repr=False)
class OfWorker(Value):
    """That of another worker."""

    name: str


@frozen(eq=False, repr=False)
class OfPid(Value):
    """That of a process, by its pid as the host sees it."""

    pid: int


@frozen(eq=False, repr=False)
class AtPath(Value):
    """The one at a path such as ``/run/netns/blue``."""

    path: str


@frozen(eq=False, repr=False)
class OfDescriptor(Value):
    """The one that a descriptor of the application refers to."""

    fd: int


Source = New | Shared | Host | OfWorker | OfPid | AtPath | OfDescriptor


@frozen(eq=False, repr=False)
class Pid(Value):
    """Names the namespaces of process *number*: ``namespaces={"net": nsorch.Pid(1)}``."""

    number: int


_SHARED = Shared()


@frozen(kw_only=True, eq=False, repr=False)
class NamespaceSet(Value):
    """A source for each kind."""

    net: Source = _SHARED
    mnt: Source = _SHARED
    uts: Source = _SHARED
    ipc: Source = _SHARED
    pid: Source = _SHARED
    user: Source = _SHARED
    cgroup: Source = _SHARED
    time: Source = _SHARED

    def evolve(self, **sources: Source) -> NamespaceSet:
        """The same but for the kinds that are given."""
        return evolve(self, **sources) if sources else self

    @classmethod
    def parse(cls, value: Any, *, passive: bool) -> NamespaceSet:
        """From what a user writes: None for the usual set, a collection of kinds, or a mapping from kind to source.

        A source is True or ``"new"``, ``"host"``, ``"worker:NAME"`` or a worker, a path, a descriptor, or :class:`Pid`.

        :raises TopologyError: it is none of these; or a passive worker is to have a pid namespace of its own
        """
        if isinstance(value, NamespaceSet):
            return value
        if value is None:
            return _PASSIVE if passive else _USUAL
        kinds = value if isinstance(value, Mapping | tuple) else items("namespaces", value, ", ".join(KINDS))
        wrong = [kind for kind in kinds if kind not in KINDS]
        problems = [f"namespaces: there is no {shown(kind)}, only {', '.join(KINDS)}" for kind in wrong]
        if isinstance(value, Mapping):
            sources: dict[str, Source] = {}
            for kind in (kind for kind in value if kind in KINDS):
                with noted(problems):
                    sources[kind] = _source(kind, value[kind])
            found = cls(**sources)
        elif not wrong:
            found = _all_new(frozenset(kinds))
        if problems:
            raise TopologyError(*problems)
        if passive and isinstance(found.pid, New):
            raise TopologyError(
                "namespaces.pid: a pid namespace can't be without a process, and the worker has no command"
            )
        return found

    def joins(self, kind: str) -> bool:
        """Whether that of *kind* is somebody else's."""
        return not isinstance(getattr(self, kind), New | Shared | Host)

    def joined(self, *kinds: str) -> set[str]:
        """Names of the workers that it joins, of any kind unless given."""
        return {source.name for kind in kinds or KINDS if isinstance(source := getattr(self, kind), OfWorker)}


def to_namespaces(value: Any) -> Any:
    """What :meth:`NamespaceSet.parse` takes, to be read more than once."""
    if value is None or isinstance(value, NamespaceSet):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    kinds = items("namespaces", value, ", ".join(KINDS))
    known = [kind for kind in KINDS if kind in kinds]
    return (*known, *(kind for kind in kinds if kind not in known))  # in one order: it says nothing


KINDS = tuple(field.name for field in fields(NamespaceSet))
_PASSIVE = NamespaceSet(net=New(), mnt=New(), uts=New(), ipc=New())
_USUAL = NamespaceSet(net=New(), mnt=New(), uts=New(), ipc=New(), pid=New())


@functools.cache
def _all_new(kinds: frozenset[str]) -> NamespaceSet:
    return NamespaceSet(**dict.fromkeys(kinds, New()))


def _source(kind: str, value: Any) -> Source:
    if value is True or value == "new":
        return New()
    if value is False or value is None:
        return Shared()
    if value == "host":
        if kind == "user":
            raise TopologyError('namespaces.user: "host" is not possible: a user namespace is entered for good')
        return Host()
    if isinstance(value, Source):
        return value
    if isinstance(value, Pid):
        if isinstance(value.number, bool) or not isinstance(value.number, int) or not 0 < value.number < 1 << 31:
            raise TopologyError(f"namespaces.{kind}: {value.number!r} is not a pid")
        return OfPid(value.number)
    if isinstance(value, int):
        if not 0 <= value < 1 << 31:
            raise TopologyError(f"namespaces.{kind}: {shown(value)} is not a descriptor")
        return OfDescriptor(value)
    if isinstance(value, str) and value.startswith("worker:"):
        return OfWorker(value.removeprefix("worker:"))
    if isinstance(value, os.PathLike) or (isinstance(value, str) and "/" in value):
        if "\0" in (path := os.fspath(value)):
            raise TopologyError(f"namespaces.{kind}: null character in {shown(path)}")
        return AtPath(path)
    if isinstance(name := getattr(value, "name", None), str):
        return OfWorker(name)
    raise TopologyError(
        f'namespaces.{kind}: {shown(value)} is not "new", "host", "worker:NAME", a path, a descriptor, or a pid'
    )
