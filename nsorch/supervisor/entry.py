"""From what a worker asks for to what the clone core does: which namespaces to make, to join and to hold."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from nsorch.core import descriptors
from nsorch.core.failures import translate
from nsorch.core.spawner.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    NS_FILES,
)
from nsorch.errors import SetupError, TopologyError, UnsupportedError
from nsorch.topology.namespaces import AtPath, Host, New, OfDescriptor, OfPid, OfWorker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Protocol

    from nsorch.topology.namespaces import NamespaceSet, Source

    class Held(Protocol):
        """What other workers hold: descriptors by CLONE_NEW*, with a pidfd for ``pid``."""

        def __contains__(self, name: object) -> bool: ...

        def __getitem__(self, name: str) -> Mapping[int, int]: ...


KINDS = {name: kind for kind, name in NS_FILES.items()}
_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703  # linux/nsfs.h
_HOSTS_OWN = CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC


class Entry(NamedTuple):
    """How to get into a worker's namespaces for the first time.

    :ivar make: CLONE_NEW* of those to make, with pid if a command is to get one
    :ivar joined: descriptors of those to join, by CLONE_NEW*; the worker owns them
    :ivar host: CLONE_NEW* of those that it shares with the host
    """

    make: int
    joined: Mapping[int, int]
    host: int

    @property
    def above(self) -> Collection[int]:
        """Those that it joins and then makes a user namespace: they are of the one above."""
        return self.joined if self.make & CLONE_NEWUSER else ()


def open_sources(namespaces: NamespaceSet, held: Held, worker: str) -> Entry:
    """Open what is to be joined. *held* gives the descriptors of other workers, with their pidfd for ``pid``.

    :raises SetupError: a namespace can't be opened, or is of another kind
    :raises TopologyError: another worker has no such namespace
    """
    make, host, others = _sorted(namespaces)
    joined: dict[int, int] = {}
    try:
        for name, kind in others:
            source = getattr(namespaces, name)
            if isinstance(source, OfWorker):
                _join_worker(joined, kind, source.name, held, worker, own_user=isinstance(namespaces.user, New))
            else:
                joined[kind] = _open(source, name, kind, worker)
    except BaseException:
        descriptors.close(joined.values())
        raise
    return Entry(make=make, joined=joined, host=host)


@functools.lru_cache(maxsize=64)
def _sorted(namespaces: NamespaceSet) -> tuple[int, int, Sequence[tuple[str, int]]]:
    """CLONE_NEW* of those to make, and of the host's; and kinds of which it names one. Thousands have the same."""
    make = host = 0
    others: list[tuple[str, int]] = []
    for name, kind in KINDS.items():
        source = getattr(namespaces, name)
        if isinstance(source, New):
            make |= kind
        elif _names_one(source):
            others.append((name, kind))
        elif isinstance(source, Host) or kind & _HOSTS_OWN:
            host |= kind
    return make, host, tuple(others)


def _names_one(source: Source) -> bool:
    return isinstance(source, OfWorker | OfPid | AtPath | OfDescriptor)


def _join_worker(joined: dict[int, int], kind: int, other: str, held: Held, worker: str, *, own_user: bool) -> None:
    if other not in held:
        raise TopologyError(f'workers.{worker}.namespaces.{NS_FILES[kind]}: there is no worker "{other}"')
    if kind not in held[other]:
        raise TopologyError(
            f'workers.{worker}.namespaces.{NS_FILES[kind]}: "{other}" has no {NS_FILES[kind]} namespace of its own'
        )
    joined[kind] = descriptors.duplicate(held[other][kind])
    # Whoever enters a namespace wants rights in the user namespace that owns it; a user namespace of its own has none.
    if CLONE_NEWUSER in held[other] and CLONE_NEWUSER not in joined and not own_user:
        joined[CLONE_NEWUSER] = descriptors.duplicate(held[other][CLONE_NEWUSER])


def _open(source: Source, name: str, kind: int, worker: str) -> int:
    path = ""
    try:
        if isinstance(source, OfDescriptor):
            path = f"descriptor {source.fd}"
            fd = descriptors.duplicate(source.fd)
        else:
            path = f"/proc/{source.pid}/ns/{name}" if isinstance(source, OfPid) else str(source.path)  # type: ignore[union-attr]
            with descriptors.registering:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo waits for nobody
                descriptors.own([fd])
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise translate("setns", exc.errno, path, worker) from None
        raise SetupError(f"open the {name} namespace {path}", worker=worker, stage="setns", errno=exc.errno) from None
    found = 0
    with contextlib.suppress(OSError):
        found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    if found != kind:
        descriptors.close([fd])
        what = f"is a {NS_FILES[found]} namespace, not a {name} one" if found in NS_FILES else "is no namespace"
        raise SetupError(f"{path} {what}", worker=worker, stage="setns", errno=errno.EINVAL)
    return fd


class Home(NamedTuple):
    """What the spawner said of the namespaces that it returns to.

    :ivar descriptors: of its own namespaces, by CLONE_NEW*
    :ivar hosts: of the application's, as far as the spawner may enter them; empty when rootless
    """

    descriptors: Mapping[int, int]
    hosts: Mapping[int, int]
    rootless: bool

    def outside(self, host: int) -> bool:
        """Whether a command that keeps the *host* namespaces has to be started from there."""
        return bool(host & CLONE_NEWPID) or (self.rootless and bool(host))

    def joins(self, held: Mapping[int, int], host: int, above: Collection[int] = ()) -> list[tuple[int, int]]:
        """(CLONE_NEW*, descriptor) of all that a command must join to be in the *held* namespaces, and in those of the
        *host*.

        In the order in which one may: a user namespace gives the right to enter those that it owns, and takes the
        right to enter those of its parent.

        :param above: see :attr:`Entry.above`
        """
        joins: list[tuple[int, int]] = []
        if self.outside(host):
            if self.rootless:
                joins.append((CLONE_NEWUSER, self.descriptors[CLONE_NEWUSER]))
            joins += [
                (kind, self.descriptors[kind])
                for kind in (CLONE_NEWNS, CLONE_NEWPID)
                if kind not in held and not host & kind
            ]
        else:
            joins += [(kind, fd) for kind, fd in self.hosts.items() if host & kind and kind not in held]
        if CLONE_NEWUSER not in held:
            return [*joins, *held.items()]
        home = os.fstat(self.descriptors[CLONE_NEWUSER])
        before = [
            kind for kind, fd in held.items() if kind != CLONE_NEWUSER and (kind in above or _is_owned_by(home, fd))
        ]
        order = (*before, CLONE_NEWUSER)
        return joins + sorted(held.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))

    def check(self, entry: Entry, worker: str, *, has_command: bool) -> None:
        """Refuse what can't work, before anything is made.

        :raises UnsupportedError: naming it
        """
        if CLONE_NEWPID in entry.joined and not has_command:
            raise UnsupportedError(
                "a worker without a command can't join a pid namespace: only a process can be in one", worker=worker
            )


def _is_owned_by(user: os.stat_result, fd: int) -> bool:
    """Whether the namespace *fd* is of the user namespace *user*, and not of one below."""
    with descriptors.registering:
        try:
            owner = fcntl.ioctl(fd, _NS_GET_USERNS)
        except OSError:  # an ancestor's
            return False
        try:
            return os.path.samestat(os.fstat(owner), user)
        finally:
            os.close(owner)


def home_of(opened: Mapping[str, int], rootless: bool) -> Home:
    """*opened* as :class:`nsorch.core.helper.Facts` has it."""
    return Home(
        descriptors={kind: opened[f"home {name}"] for name, kind in KINDS.items() if f"home {name}" in opened},
        hosts={kind: opened[f"host {name}"] for name, kind in KINDS.items() if f"host {name}" in opened},
        rootless=rootless,
    )


#: of those that need a process to be in them
OF_PROCESSES = CLONE_NEWPID | CLONE_NEWCGROUP
