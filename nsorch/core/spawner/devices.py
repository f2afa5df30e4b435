"""A minimal ``/dev``."""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING

from .mountapi import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID
from .stages import StageError

if TYPE_CHECKING:
    from .calls import Calls

#: by name (Documentation/admin-guide/devices.txt)
DEVICES = {
    b"null": os.makedev(1, 3),
    b"zero": os.makedev(1, 5),
    b"full": os.makedev(1, 7),
    b"random": os.makedev(1, 8),
    b"urandom": os.makedev(1, 9),
    b"tty": os.makedev(5, 0),
}
_LINKS = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
    b"ptmx": b"pts/ptmx",
}
_QUIET = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC


def fill_dev(do: Calls, dev: int, *, mqueue: bool, tty_group: int) -> None:
    """Fill the attached tmpfs *dev*, while the host's ``/dev`` is still in its place."""
    umask = do.umask(0)
    try:
        for name, number in DEVICES.items():
            with do.stage("mount /dev", os.fsdecode(name)):
                do.permitted_or(
                    functools.partial(do.make_node, dev, name, number), functools.partial(_bind_node, do, dev, name)
                )
        for name, target in _LINKS.items():
            do.make_link(dev, name, target)
        group = ((b"gid", b"%d" % tty_group),) if tty_group >= 0 else ()
        ptys = ((b"newinstance", b""), (b"ptmxmode", b"0666"), (b"mode", b"0620"), *group)
        _mount(do, dev, b"pts", b"devpts", ptys, ATTR_NOSUID | ATTR_NOEXEC)
        _mount(do, dev, b"shm", b"tmpfs", ((b"mode", b"1777"),), _QUIET)
        if mqueue:
            _mount(do, dev, b"mqueue", b"mqueue", (), _QUIET)
    finally:
        do.umask(umask)


def _bind_node(do: Calls, dev: int, name: bytes) -> None:
    """The host's, because in a user namespace none can be made."""
    path = b"/dev/" + name
    with do.closing(do.open(path)) as host:
        if not do.is_device(host, DEVICES[name], host=path):
            raise StageError("mount /dev", errno.ENODEV, f"the host's {os.fsdecode(path)} is not that device")
        mount = do.clone_tree(host, recursive=False)
    with do.closing(mount), do.closing(do.make_file(dev, name)) as point:
        do.attach(mount, point)


def _mount(
    do: Calls, dev: int, name: bytes, kind: bytes, options: tuple[tuple[bytes, bytes], ...], attributes: int
) -> None:
    with do.stage(f"mount /dev/{os.fsdecode(name)}"):
        do.make_folder(dev, name)
        with do.closing(do.new_mount(kind, options, attributes)) as mount, do.closing(do.open_made(dev, name)) as point:
            do.attach(mount, point)
