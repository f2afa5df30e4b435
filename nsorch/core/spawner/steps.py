"""Into namespaces and home again, and what is done inside of new ones."""

from __future__ import annotations

import fcntl
import functools
import operator
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from .calls import NOW
from .idmaps import write
from .mounts import mount_sys
from .rootfs import Sources, build
from .stages import StageError, stage
from .syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    NS_FILES,
    setns,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .calls import Calls
    from .homing import Namespaces
    from .protocol import Spawn

#: CLONE_NEW* and descriptor of each namespace to enter, in this order
Joined = list[tuple[int, int]]


class Home(NamedTuple):
    """Where a helper returns to after each request."""

    namespaces: Namespaces  #: CLONE_NEW* to descriptor; empty where there is no way back (the stub)
    streams: tuple[int, int, int]  #: the application's standard streams, as numbers above 2
    null: int
    proc: int  #: the host's /proc
    own_proc: int  #: the /proc of this helper's own pid namespace
    hidden: bool = False  #: see :func:`.privacy.hide`


def enter(home: Home, made: int, joined: Joined) -> None:
    """Join namespaces, and make others."""
    home.namespaces.prepare(made | kinds_of(tuple(kind for kind, _ in joined)))
    for kind, fd in joined:
        with stage("setns", NS_FILES[kind]):
            setns(fd, kind)
    if made:
        with stage("unshare", names_of(made)):
            unshare(made)


def go_home(home: Home, kinds: int) -> None:
    """Leave those of *kinds* again."""
    try:
        for kind, fd in home.namespaces.items():
            if kinds & kind:
                setns(fd, kind)
    except OSError:
        os._exit(1)  # what followed would be done in the wrong place


def prepare(home: Home, request: Spawn, do: Calls = NOW) -> None:
    """What a new namespace needs, done from inside of it."""
    if request.loopback:
        with do.stage("loopback"):
            do.raise_loopback()
    if request.hostname is not None:
        with do.stage("hostname"):
            do.set_hostname(request.hostname)
    if request.sysfs:
        mount_sys(do)
    if request.domainname is not None:
        with do.stage("domainname"):
            do.set_domainname(request.domainname)
    for path, value in request.sysctls:
        with do.stage("sysctl", path):
            do.write(path, value, home.own_proc)
    if request.unshare & CLONE_NEWTIME:
        set_clocks(home, request.time_offsets)


def build_root(request: Spawn, sources: Sources | None = None) -> None:
    """Make the root file system that is asked for, if any."""
    if not request.root:
        return
    sources = Sources(request.root) if sources is None else sources
    try:
        build(sources)
    finally:
        sources.close()


def set_clocks(home: Home, offsets: tuple[tuple[str, int, int], ...]) -> None:
    """In a new time namespace, while nobody is in it; then enter it, because a vfork can't cross to it."""
    with stage("time offsets"):
        lines = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in offsets)
        if lines:
            write("self/timens_offsets", lines, home.own_proc)
    (made,) = own_namespaces(CLONE_NEWTIME, home.own_proc)
    with stage("setns", "time"):
        try:
            setns(made, CLONE_NEWTIME)
        finally:
            os.close(made)


def own_pid(proc: int) -> int:
    """The caller's pid, as *proc* counts."""
    return int(os.readlink("self", dir_fd=proc))


def kinds_of(joined: tuple[int, ...]) -> int:
    """All of them as one number."""
    return functools.reduce(operator.or_, joined, 0)


# linux/pidfd.h, since 6.11
_PIDFD_GET_NAMESPACE = {
    CLONE_NEWIPC: 0xFF02,
    CLONE_NEWNS: 0xFF03,
    CLONE_NEWNET: 0xFF04,
    CLONE_NEWUTS: 0xFF0A,
    CLONE_NEWUSER: 0xFF09,
}


def namespaces_of(pidfd: int, pid: int, kinds: int, proc: int) -> list[int]:
    """As :func:`own_namespaces`, of a child."""

    def open_one(kind: int, name: str) -> int:
        try:
            return fcntl.ioctl(pidfd, _PIDFD_GET_NAMESPACE[kind])
        except OSError:
            return os.open(f"{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)

    return _open_each(kinds, open_one)


def open_netlink(wanted: bool) -> list[int]:
    if not wanted:
        return []
    with stage("socket"):
        return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE).detach()]


def own_namespaces(kinds: int, proc: int) -> list[int]:
    """Descriptors of the caller's namespaces of *kinds*, in the order of NS_FILES.

    :param proc: descriptor of a /proc that knows the caller: that of a worker may be none
    """

    def open_one(kind: int, name: str) -> int:
        # Of two time namespaces the one that was made last: the caller's children are in it.
        file = "time_for_children" if kind == CLONE_NEWTIME else name
        return os.open(f"thread-self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)

    return _open_each(kinds, open_one)


def _open_each(kinds: int, open_one: Callable[[int, str], int]) -> list[int]:
    fds: list[int] = []
    try:
        for kind, name in NS_FILES.items():
            if kinds & kind:
                with stage("namespace descriptor", name):
                    fds.append(open_one(kind, name))
    except StageError:
        close(fds)
        raise
    return fds


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def names_of(kinds: int) -> str:
    return ", ".join(name for kind, name in NS_FILES.items() if kinds & kind)
