"""A minimal ``/dev``."""

from __future__ import annotations

import errno
import os
import stat

from . import mountapi
from .mountapi import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID
from .stages import StageError, stage

#: major and minor number of each (Documentation/admin-guide/devices.txt)
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_QUIET = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC


def is_device(fd: int, name: str) -> bool:
    """Whether *fd* is of the device *name*, and not of something that lies in its place."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(*_NODES[name])


def fill_dev(dev: int, *, mqueue: bool, tty_group: int) -> None:
    """Fill the attached tmpfs *dev*, while the host's ``/dev`` is still in its place."""
    umask = os.umask(0)
    try:
        make = _make_node
        for name in _NODES:
            with stage("mount /dev", name):
                try:
                    make(dev, name)
                except PermissionError:
                    if make is _bind_node:
                        raise
                    make = _bind_node
                    make(dev, name)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        group = ((b"gid", b"%d" % tty_group),) if tty_group >= 0 else ()
        ptys = ((b"newinstance", b""), (b"ptmxmode", b"0666"), (b"mode", b"0620"), *group)
        _mount(dev, "pts", b"devpts", ptys, ATTR_NOSUID | ATTR_NOEXEC)
        _mount(dev, "shm", b"tmpfs", ((b"mode", b"1777"),), _QUIET)
        if mqueue:
            _mount(dev, "mqueue", b"mqueue", (), _QUIET)
    finally:
        os.umask(umask)


def _make_node(dev: int, name: str) -> None:
    os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*_NODES[name]), dir_fd=dev)


def _bind_node(dev: int, name: str) -> None:
    """The host's, because in a user namespace none can be made."""
    host = os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC)
    try:
        if not is_device(host, name):
            raise StageError("mount /dev", errno.ENODEV, f"the host's /dev/{name} is not that device")
        mount = mountapi.clone_tree(host, recursive=False)
    finally:
        os.close(host)
    _attach(mount, os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))


def _mount(dev: int, name: str, kind: bytes, options: tuple[tuple[bytes, bytes], ...], attributes: int) -> None:
    with stage(f"mount /dev/{name}"):
        os.mkdir(name, 0o755, dir_fd=dev)
        mount = mountapi.new_mount(kind, options, attributes)
        _attach(mount, os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev))


def _attach(mount: int, point: int) -> None:
    """Both are closed."""
    try:
        mountapi.attach(mount, point)
    finally:
        os.close(mount)
        os.close(point)
