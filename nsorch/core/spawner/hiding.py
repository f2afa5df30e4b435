"""Masked and read-only paths, the ``/proc`` of a pid namespace, and the ``/sys/fs/cgroup`` of a cgroup namespace.

Paths below a file system that was just mounted go by its descriptor, not through the root file system: that may be
hostile, and lead ``/proc`` elsewhere between the mount and the mask.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from . import mountapi
from .devices import is_device
from .mountapi import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)
from .stages import StageError, stage
from .syscalls import MNT_DETACH, MS_PRIVATE, umount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_QUIET = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_CGROUPS = b"/sys/fs/cgroup"


def hide(masked: tuple[bytes, ...], readonly: tuple[bytes, ...], top: int, own: Mapping[bytes, int]) -> None:
    """Mask paths and make others read-only; what isn't there is left out.

    :param top: descriptor of the root
    :param own: descriptors of what was just mounted, by path
    """
    for path in masked:
        with stage("mask", os.fsdecode(path)), _opened(path, top, own) as target:
            if target >= 0:
                _mask(target, top, own)
    for path in readonly:
        with stage("read-only path", os.fsdecode(path)), _opened(path, top, own) as target:
            if target >= 0:
                mount = mountapi.clone_tree(target, recursive=True)
                try:
                    mountapi.set_attributes(mount, ATTR_RDONLY, recursive=True)
                    mountapi.attach(mount, target)
                finally:
                    os.close(mount)


def _mask(target: int, top: int, own: Mapping[bytes, int]) -> None:
    if stat.S_ISDIR(os.fstat(target).st_mode):
        mount = mountapi.new_mount(b"tmpfs", ((b"size", b"4k"), (b"mode", b"000")), _QUIET | ATTR_RDONLY)
    else:
        mount = _clone_null(top, own)
    try:
        mountapi.attach(mount, target)
    finally:
        os.close(mount)


def _clone_null(top: int, own: Mapping[bytes, int]) -> int:
    """The null device of the worker, if it is that: a worker may have put something else in its place, which a mask
    would then show, writable (CVE-2025-31133)."""
    with _opened(b"/dev/null", top, own) as null:
        if null < 0 or not is_device(null, "null"):
            raise StageError("mask", errno.ENODEV, "/dev/null is not the null device")
        return mountapi.clone_tree(null, recursive=False)


@contextlib.contextmanager
def _opened(path: bytes, top: int, own: Mapping[bytes, int]) -> Iterator[int]:
    """A descriptor of *path*, or -1 where there is no such thing."""
    folder, rest = top, path
    for above, mount in own.items():
        if path.startswith(above + b"/"):
            folder, rest = mount, path[len(above) + 1 :]
    try:
        fd = mountapi.openat2(folder, rest, os.O_PATH, _INSIDE)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def mount_own_proc(masked: tuple[bytes, ...], readonly: tuple[bytes, ...], *, replace: bool) -> None:
    """Mount the ``/proc`` of the caller's pid namespace inside its root, with what of it is hidden.

    :param replace: instead of the one there, which is another pid namespace's
    """
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    proc = -1
    try:
        with stage("mount /proc"):
            proc = mountapi.new_mount(b"proc", (), _QUIET)
            point = mountapi.openat2(top, b"proc", os.O_PATH, _INSIDE)
            if replace:
                os.fchdir(point)
                # In a nested user namespace it may be locked: mount above it.
                with contextlib.suppress(OSError):
                    umount(".", MNT_DETACH)
                os.chdir("/")
                os.close(point)
                point = mountapi.openat2(top, b"proc", os.O_PATH, _INSIDE)
            try:
                mountapi.attach(proc, point)
            finally:
                os.close(point)
        hide(masked, readonly, top, {b"/proc": proc})
    finally:
        if proc >= 0:
            os.close(proc)
        os.close(top)


def mount_cgroups(*, replace: bool) -> None:
    """Mount the v2 hierarchy, as the caller's cgroup namespace has it, in the ``/sys`` inside its root, not to be
    written to. Where a security module forbids that, or there is no such place, there is none.

    :param replace: instead of the one there, which is another cgroup namespace's
    """
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    cgroups = -1
    try:
        with contextlib.suppress(OSError):
            cgroups = mountapi.new_mount(b"cgroup2", (), _QUIET | ATTR_RDONLY)
            with _opened(b"/sys", top, {}) as sysfs:
                # A command of a passive worker has a cgroup namespace of its own, and this for itself.
                mountapi.set_attributes(sysfs, propagation=MS_PRIVATE)
            with _opened(_CGROUPS, top, {}) as point, contextlib.suppress(OSError):
                mountapi.set_attributes(point, propagation=MS_PRIVATE)  # fails where nothing is mounted there
                if replace:
                    os.fchdir(point)
                    umount(".", MNT_DETACH)
            with _opened(_CGROUPS, top, {}) as point:
                mountapi.attach(cgroups, point)
    finally:
        os.chdir("/")
        if cgroups >= 0:
            os.close(cgroups)
        os.close(top)
