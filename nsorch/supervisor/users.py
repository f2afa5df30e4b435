"""Users and groups, by name or number, of the host or of a worker's root file system."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING

from nsorch.core.spawner.mountapi import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nsorch.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsorch.topology import Overlay

#: uid, gid, supplementary groups
User = tuple[int, int, tuple[int, ...]]


def find_user(user: str | int | None, groups: Sequence[str | int], rootfs: str | Overlay | None, worker: str) -> User:
    """Of a name, a uid, or ``uid:gid``, each by number or name; uid 0 if *user* is None. Blocks.

    :raises SetupError: there is no such user or group
    """
    name, _, group = ("0:0" if user is None else str(user)).partition(":")
    uid, gid, found = (_host_user if rootfs in (None, "/") else _Files(rootfs).user)(name, worker)
    if group:
        gid, found = _group(group, rootfs, worker), ()
    if groups:
        found = tuple(_group(str(one), rootfs, worker) for one in groups)
    return uid, gid, found


def _group(group: str, rootfs: str | Overlay | None, worker: str) -> int:
    if is_id(group):
        return int(group)
    if rootfs is not None and rootfs != "/":
        return _Files(rootfs).group(group, worker)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise SetupError(f'there is no group "{group}"', worker=worker, stage="user") from None


def _host_user(name: str, worker: str) -> User:
    try:
        entry = pwd.getpwuid(int(name)) if is_id(name) else pwd.getpwnam(name)
        return entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, ValueError):
        if not is_id(name):
            raise SetupError(f'there is no user "{name}"', worker=worker, stage="user") from None
        return int(name), int(name), ()


class _Files:
    """passwd(5) and group(5) of a root file system, read without following a link out of it."""

    def __init__(self, rootfs: str | Overlay) -> None:
        if isinstance(rootfs, str):
            self._layers = [rootfs]
        else:
            self._layers = [*([] if rootfs.upper is None else [rootfs.upper]), *rootfs.lower]

    def user(self, name: str, worker: str) -> User:
        column = 2 if is_id(name) else 0
        for fields in self._entries(b"etc/passwd", 7, numbers=(2, 3)):
            if fields[column] == name:
                uid, gid = int(fields[2]), int(fields[3])
                others = (int(g[2]) for g in self._groups() if fields[0] in g[3].split(","))
                return uid, gid, tuple(dict.fromkeys((gid, *others)))
        if not is_id(name):
            raise SetupError(f'there is no user "{name}" in its rootfs', worker=worker, stage="user")
        return int(name), int(name), ()

    def group(self, name: str, worker: str) -> int:
        for fields in self._groups():
            if fields[0] == name:
                return int(fields[2])
        raise SetupError(f'there is no group "{name}" in its rootfs', worker=worker, stage="user")

    def _groups(self) -> Iterator[list[str]]:
        return self._entries(b"etc/group", 4, numbers=(2,))

    def _entries(self, path: bytes, length: int, numbers: tuple[int, ...]) -> Iterator[list[str]]:
        """Lines that don't have so many fields, with *numbers* among them, are none."""
        for line in self._read(path).decode(errors="surrogateescape").split("\n"):
            fields = line.split(":")
            if len(fields) == length and all(is_id(fields[number]) for number in numbers):
                yield fields

    def _read(self, path: bytes) -> bytes:
        """Of the topmost layer that has it."""
        for layer in self._layers:
            try:
                folder = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:  # the spawner will say so, of the whole
                continue
            try:
                return _read_file(folder, path)
            except FileNotFoundError:
                if _is_opaque(folder, os.path.dirname(path)):
                    break
                continue
            except OSError:  # no file, such as a whiteout (a device node), hides those below
                break
            finally:
                os.close(folder)
        return b""


def _read_file(folder: int, path: bytes) -> bytes:
    """Nothing else is even opened: an image may have a device of the host's there, which that would set going.

    :raises OSError: it is no file
    """
    found = openat2(folder, path, os.O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with open(f"/proc/self/fd/{found}", "rb", opener=_without_waiting) as file:
            return file.read(1 << 20)
    finally:
        os.close(found)


def _is_opaque(layer: int, path: bytes) -> bool:
    """Whether a directory hides all that lower layers have in it: "whiteouts and opaque directories" in the kernel's
    filesystems/overlayfs.rst."""
    try:
        folder = openat2(layer, path, os.O_RDONLY | os.O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return False
    try:
        for kind in ("trusted", "user"):  # the latter in user namespaces
            with contextlib.suppress(OSError):
                if os.getxattr(folder, f"{kind}.overlay.opaque") == b"y":
                    return True
        return False
    finally:
        os.close(folder)


def _without_waiting(path: str, flags: int) -> int:
    """Who has a lease on it isn't waited for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def is_id(text: str) -> bool:
    """Whether it is a uid or gid: 32 bits, but for the one that means none (credentials(7))."""
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**32 - 1
