"""Masked and read-only paths, the ``/proc`` of a pid namespace, and the ``/sys/fs/cgroup`` of a cgroup namespace.

Paths below a file system that was just mounted go by its descriptor, not through the root file system: that may be
hostile, and lead ``/proc`` elsewhere between the mount and the mask.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .devices import DEVICES
from .mountapi import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY
from .stages import StageError
from .syscalls import MNT_DETACH, MS_PRIVATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .calls import Calls

_QUIET = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC
_EMPTY = ((b"size", b"4k"), (b"mode", b"000"))
_CGROUPS = b"/sys/fs/cgroup"


def hide(do: Calls, masked: tuple[bytes, ...], readonly: tuple[bytes, ...], top: int, own: Mapping[bytes, int]) -> None:
    """Mask paths and make others read-only; what isn't there is left out.

    :param top: descriptor of the root
    :param own: descriptors of what was just mounted, by path
    """
    # Last what the null device lies in, which others are masked by.
    for path in sorted(masked, key=lambda path: b"/dev/null".startswith(path + b"/")):
        with do.stage("mask", os.fsdecode(path)):
            for target in do.find(*_place(path, top, own)):
                _mask(do, target, path, top, own)
    for path in readonly:
        with do.stage("read-only path", os.fsdecode(path)):
            for target in do.find(*_place(path, top, own)):
                with do.closing(do.clone_tree(target, recursive=True)) as mount:
                    do.set_attributes(mount, ATTR_RDONLY, recursive=True)
                    do.attach(mount, target)


def _mask(do: Calls, target: int, path: bytes, top: int, own: Mapping[bytes, int]) -> None:
    if do.is_folder(target, path, of_worker=True):
        mount = do.new_mount(b"tmpfs", _EMPTY, _QUIET | ATTR_RDONLY)
    else:
        mount = _clone_null(do, top, own)
    with do.closing(mount):
        do.attach(mount, target)


def _clone_null(do: Calls, top: int, own: Mapping[bytes, int]) -> int:
    """The null device of the worker, if it is that: a worker may have put something else in its place, which a mask
    would then show, writable (CVE-2025-31133)."""
    for null in do.find(*_place(b"/dev/null", top, own)):
        if do.is_device(null, DEVICES[b"null"], ours=b"/dev" in own):
            return do.clone_tree(null, recursive=False)
        raise StageError("mask", errno.ENODEV, "/dev/null is not the null device")
    return _clone_empty(do, own.get(b"/proc", top))


def _clone_empty(do: Calls, place: int) -> int:
    """A file without contents: there is no null device where something else is mounted at ``/dev``, or that is masked.

    :param place: a mount that others don't see
    """
    with do.closing(do.new_mount(b"tmpfs", _EMPTY, _QUIET)) as folder:
        do.attach(folder, place)  # only of an attached mount a part can be cloned
        try:
            do.close(do.make_file(folder, b"empty"))
            with do.closing(do.open_made(folder, b"empty")) as file:
                mount = do.clone_tree(file, recursive=False)
        finally:
            do.fchdir(folder)
            do.umount(b".", MNT_DETACH)
            do.chdir(b"/")
    do.set_attributes(mount, ATTR_RDONLY)
    return mount


def _place(path: bytes, top: int, own: Mapping[bytes, int]) -> tuple[int, bytes]:
    """Where *path* is looked up: in what was just mounted above it, or in the root."""
    folder, rest = top, path
    for above, mount in own.items():
        if path.startswith(above + b"/"):
            folder, rest = mount, path[len(above) + 1 :]
    return folder, rest


def mount_own_proc(
    do: Calls, masked: tuple[bytes, ...], readonly: tuple[bytes, ...], own: Mapping[bytes, int], *, replace: bool
) -> None:
    """Mount the ``/proc`` of the caller's pid namespace inside its root, with what of it is hidden.

    :param own: descriptors of what else was just mounted, by path
    :param replace: instead of the one there, which is another pid namespace's
    """
    top = do.open(b"/", os.O_PATH | os.O_DIRECTORY)
    with do.stage("mount /proc"):
        proc = do.new_mount(b"proc", (), _QUIET)
        point = do.open_inside(top, b"proc")
        if replace:
            # In a nested user namespace it may be locked: mount above it.
            with do.optional():
                do.fchdir(point)
                do.umount(b".", MNT_DETACH)
            do.chdir(b"/")
            do.close(point)
            point = do.open_inside(top, b"proc")
        do.attach(proc, point)
        do.close(point)
    hide(do, masked, readonly, top, {**own, b"/proc": proc})
    do.close(proc)
    do.close(top)


def mount_cgroups(do: Calls, *, replace: bool) -> None:
    """Mount the v2 hierarchy, as the caller's cgroup namespace has it, in the ``/sys`` inside its root, not to be
    written to. Where a security module forbids that, or there is no such place, there is none.

    :param replace: instead of the one there, which is another cgroup namespace's
    """
    with do.optional():
        top = do.open(b"/", os.O_PATH | os.O_DIRECTORY)
        cgroups = do.new_mount(b"cgroup2", (), _QUIET | ATTR_RDONLY)
        # A command of a passive worker has a cgroup namespace of its own, and this for itself.
        do.set_attributes(do.open_inside(top, b"/sys"), propagation=MS_PRIVATE)
        with do.optional():
            point = do.open_inside(top, _CGROUPS)
            do.set_attributes(point, propagation=MS_PRIVATE)  # fails where nothing is mounted there
            if replace:
                do.fchdir(point)
                do.umount(b".", MNT_DETACH)
        do.attach(cgroups, do.open_inside(top, _CGROUPS))
    do.chdir(b"/")
