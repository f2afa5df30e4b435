"""The application's side of its cgroups: blocking work on their files, to be run in a thread."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from nsorch.errors import NsorchError, PermissionDeniedError, SetupError, UnsupportedError

from . import descriptors
from .spawner import cgroups
from .spawner import subtree as subtrees

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .spawner.subtree import Subtree

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make_subtree(*, move: bool) -> Subtree:
    """Find a place for a supervisor's cgroups, and make their root there. The caller owns both descriptors.

    :param move: processes beside the caller too, if there are no controllers without
    :raises UnsupportedError: there is no place
    :raises SetupError: the kernel refuses
    """
    where = cgroups.hierarchy()
    if where is None:
        raise _unsupported("make cgroups", *cgroups.why_no_hierarchy())
    place = cgroups.best(cgroups.places(where))
    if place is None:
        raise _unsupported("make cgroups", *cgroups.why_no_place(where))
    with descriptors.registering:
        try:
            made = subtrees.make(place, move=move)
        except OSError as exc:
            raise refused(exc, place.path, None) from None
        descriptors.own([made.above, made.folder])
    return made


def missing(controller: str, limit: str, worker: str) -> UnsupportedError:
    """The error of a limit that can't be kept here."""
    why, remedy = cgroups.why_without(controller, cgroups.hierarchy())
    return _unsupported(f"limits.{limit}", why, remedy, worker)


def _unsupported(what: str, why: str, remedy: str, worker: str | None = None) -> UnsupportedError:
    return UnsupportedError(what, worker=worker, stage="cgroup", detail=f"{why}; {remedy}" if remedy else why)


def refused(exc: OSError, what: str, worker: str | None) -> NsorchError:
    if exc.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return PermissionDeniedError(what, worker=worker, stage="cgroup", errno=exc.errno)
    return SetupError(what, worker=worker, stage="cgroup", errno=exc.errno)


def make_leaf(subtree: Subtree, worker: str, files: Mapping[str, str]) -> int:
    """A cgroup for *worker*, with *files* written. The caller owns the descriptor.

    :raises NsorchError: nothing of it is left
    """
    what = f"make the cgroup {subtree.path}/{worker}"
    try:
        os.mkdir(worker, 0o755, dir_fd=subtree.folder)
    except OSError as exc:
        raise refused(exc, what, worker) from None
    try:
        try:
            with descriptors.registering:
                leaf = os.open(worker, _FOLDER, dir_fd=subtree.folder)
                descriptors.own([leaf])
        except OSError as exc:
            raise refused(exc, what, worker) from None
        try:
            write_files(leaf, files, worker)
        except BaseException:
            descriptors.close([leaf])
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(worker, dir_fd=subtree.folder)
        raise
    return leaf


def write_files(leaf: int, files: Mapping[str, str], worker: str) -> None:
    """
    :raises UnsupportedError: the kernel has no such file
    :raises SetupError: it refuses a value
    """
    for name, text in files.items():
        try:
            for line in text.splitlines() or [""]:
                subtrees.write(leaf, name, line)
        except FileNotFoundError:
            raise UnsupportedError(
                f"set {name}", worker=worker, stage="cgroup", detail="this kernel has no such file in its cgroups"
            ) from None
        except OSError as exc:
            raise refused(exc, f"set {name} to {text!r}", worker) from None


def device_numbers(device: str, worker: str) -> str:
    """``major:minor`` of a block device, as ``io.max`` has it: of the whole disk, where *device* is a part of one.

    :raises SetupError: it is none
    """
    if not device.startswith("/"):
        return device
    try:
        status = os.stat(device)
    except OSError as exc:
        raise SetupError(f"limits.io: {device}", worker=worker, stage="cgroup", errno=exc.errno) from None
    numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if status.st_mode & 0o170000 != 0o060000:
        raise SetupError(f"limits.io: {device} is not a block device", worker=worker, stage="cgroup")
    if os.path.exists(f"/sys/dev/block/{numbers}/partition"):
        with open(os.path.join(os.path.realpath(f"/sys/dev/block/{numbers}"), "..", "dev")) as file:
            return file.read().strip()
    return numbers


def remove_leaves(subtree: Subtree, names: list[str]) -> None:
    """Kill what is in them, and remove them."""
    for name in names:
        subtrees.remove_leaf(subtree.folder, name)


def remove_subtree(subtree: Subtree) -> None:
    """What the stub does; in case it was killed."""
    subtrees.remove(subtree.above, subtree.name)
    descriptors.close([subtree.folder, subtree.above])


def open_event_file(leaf: int, name: str) -> int:
    """A descriptor of ``memory.events`` or the like, or -1."""
    with contextlib.suppress(OSError):
        return open_events(leaf, name)
    return -1


def open_events(leaf: int, name: str) -> int:
    """
    :raises OSError: there is no such file, or no descriptor left for it
    """
    with descriptors.registering:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=leaf)
        descriptors.own([fd])
    return fd


def counts(fd: int) -> dict[str, int]:
    """What an event file holds: names and numbers. Reading it takes some µs, and clears its notification."""
    try:
        return pairs(os.pread(fd, 4096, 0).decode())
    except OSError:  # of a cgroup that was removed
        return {}


def pairs(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            found[name] = int(number)
    return found
