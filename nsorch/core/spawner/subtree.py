"""The cgroups of one supervisor: a directory of its own, with a leaf for each worker that needs one.

The application makes it, and whoever of application and stub lives longer removes it. Where both were killed, it stays,
empty, and the next start removes it: the owner holds a lock (flock) of the directory, which ends with its life.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from typing import NamedTuple

from . import cgroups
from .cgroups import CONTROLLERS, Place

PREFIX = "nsorch-"
#: where processes are that had to leave their cgroup, so that its children could have controllers; no worker's name
HOME = "_home"
_ENABLED = "user.nsorch.enabled"  # an attribute: what was enabled in the cgroup above
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATIENCE = 2.0  # seconds until killed processes have left


class Subtree(NamedTuple):
    path: str
    name: str
    above: int  #: descriptor of the cgroup that it is in
    folder: int  #: its own descriptor; holds the lock
    controllers: tuple[str, ...]  #: that its leaves can have


def make(place: Place, *, move: bool) -> Subtree:
    """
    :param move: where *place* has processes: move them to a leaf, without which there are no controllers
    :raises OSError: the kernel refuses
    """
    above = os.open(place.path, _FOLDER)
    folder = -1
    try:
        name, folder = _claim(above)
        if move and not place.free:
            os.mkdir(HOME, 0o755, dir_fd=folder)
            _move_all(above, f"{name}/{HOME}")
        enabled = [] if not place.free and not move else _enable(above, CONTROLLERS)
        with contextlib.suppress(OSError):  # without it they stay enabled
            os.setxattr(folder, _ENABLED, " ".join(enabled).encode())
        _enable(folder, CONTROLLERS)
        controllers = tuple(name for name in read(folder, "cgroup.subtree_control").split() if name in CONTROLLERS)
        return Subtree(f"{place.path}/{name}", name, above, folder, controllers)
    except BaseException:
        if folder >= 0:
            remove(above, name)
            os.close(folder)
        os.close(above)
        raise


def _claim(above: int) -> tuple[str, int]:
    while True:
        name = f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        os.mkdir(name, 0o755, dir_fd=above)
        try:
            folder = os.open(name, _FOLDER, dir_fd=above)
        except FileNotFoundError:  # another start took it for one that was left
            continue
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            if os.stat(name, dir_fd=above).st_ino == os.fstat(folder).st_ino:
                return name, folder
        except FileNotFoundError:
            pass
        os.close(folder)


def _enable(folder: int, wanted: tuple[str, ...]) -> list[str]:
    """Give the children what there is of *wanted*; what they had not before."""
    there = read(folder, "cgroup.controllers").split()
    has = read(folder, "cgroup.subtree_control").split()
    enabled = []
    for name in wanted:
        if name in there and name not in has:
            with contextlib.suppress(OSError):
                write(folder, "cgroup.subtree_control", f"+{name}")
                enabled.append(name)
    return enabled


def _move_all(source: int, target: str) -> None:
    """All processes of cgroup *source* to the one at *target* below it; some may fork meanwhile."""
    for _ in range(100):
        pids = read(source, "cgroup.procs").split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                write(source, f"{target}/cgroup.procs", pid)
    raise OSError(errno.EBUSY, "processes go on forking")


# -- removing


def remove(above: int, name: str) -> None:
    """Kill what is in the leaves of the subtree *name*, and remove all of it. Does what it can, and raises nothing."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=above)
    except OSError:
        return
    try:
        home = False
        for child in _children(folder):
            if child == HOME:
                home = True
            else:
                remove_leaf(folder, child)
        enabled = ""
        with contextlib.suppress(OSError):
            enabled = os.getxattr(folder, _ENABLED).decode()
        if home:
            _go_home(above, folder, f"{name}/{HOME}")
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=above)
        if enabled and not _children(above):
            _disable(above, enabled.split())
    finally:
        os.close(folder)


def remove_leaf(folder: int, name: str) -> None:
    """Kill what is in the cgroup *name* of *folder*, wait until it is gone, and remove it with all below. Does what it
    can, and raises nothing."""
    try:
        leaf = os.open(name, _FOLDER, dir_fd=folder)
    except OSError:
        return
    try:
        if "populated 0" not in read(leaf, "cgroup.events"):
            kill(leaf)
            _wait_until_empty(leaf)
        for child in _children(leaf):
            remove_leaf(leaf, child)
    finally:
        os.close(leaf)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=folder)


def kill(leaf: int) -> None:
    """SIGKILL to all processes in it and below, at once; frozen ones die, too."""
    try:
        write(leaf, "cgroup.kill", "1")
    except OSError:  # before Linux 5.14
        for pid in read(leaf, "cgroup.procs").split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), 9)


def _wait_until_empty(leaf: int) -> None:
    try:
        events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=leaf)
    except OSError:  # such as EMFILE: the rest is removed by who removes the subtree
        return
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(OSError):  # somebody else has removed it
            while b"populated 0" not in os.pread(events, 4096, 0) and (left := deadline - time.monotonic()) > 0:
                poll.poll(left * 1000)
    finally:
        os.close(events)


def _go_home(above: int, folder: int, home: str) -> None:
    """Let processes return to where they had to leave; no controller may be enabled there then."""
    with contextlib.suppress(OSError):
        for each in (folder, above):
            _disable(each, read(each, "cgroup.subtree_control").split())
        for pid in read(above, f"{home}/cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                write(above, "cgroup.procs", pid)
        os.rmdir(home, dir_fd=above)


def _disable(folder: int, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):  # some other child uses it
            write(folder, "cgroup.subtree_control", f"-{name}")


def sweep() -> None:
    """Remove what killed supervisors have left where one of ours would be."""
    where = cgroups.hierarchy()
    for place in () if where is None else cgroups.places(where):
        try:
            above = os.open(place.path, _FOLDER)
        except OSError:
            continue
        try:
            for name in _children(above):
                if name.startswith(PREFIX):
                    _sweep_one(above, name)
        finally:
            os.close(above)


def _sweep_one(above: int, name: str) -> None:
    with contextlib.suppress(OSError):
        folder = os.open(name, _FOLDER, dir_fd=above)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(above, name)
        finally:
            os.close(folder)


# -- files


def _children(folder: int) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    return []


def read(folder: int, name: str) -> str:
    """Empty where there is no such file."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    try:
        text = b""
        while chunk := os.read(fd, 65536):
            text += chunk
        return text.decode(errors="surrogateescape")
    except OSError:  # of a cgroup that was removed
        return ""
    finally:
        os.close(fd)


def write(folder: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, text.encode() or b"\n")
    finally:
        os.close(fd)
