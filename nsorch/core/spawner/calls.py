"""The calls that set up a file system, each made at once; :mod:`.writing` has them made by a script instead."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from . import mountapi
from .mountapi import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from .stages import stage
from .syscalls import mount, pivot_root, umount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class Calls:
    """What they return are descriptors, close-on-exec, or nothing.

    :raises OSError: of a call; inside of :meth:`stage`, :class:`.stages.StageError`
    """

    at_once = True  #: there are answers when a method returns

    # -- what becomes of failures

    def stage(self, name: str, detail: str = "") -> AbstractContextManager[None]:
        """What the calls inside are a step of."""
        return stage(name, detail)

    def optional(self) -> AbstractContextManager[None]:
        """After a failure, what is left of the block is left out."""
        return contextlib.suppress(OSError)

    def permitted_or(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        """Do *first*, or *second* where that isn't permitted."""
        try:
            first()
        except PermissionError:
            second()

    def find(self, folder: int, path: bytes) -> Iterator[int]:
        """A descriptor of *path* inside of *folder*, for as long as the loop's body takes; none if it isn't there."""
        try:
            found = self.open_inside(folder, path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            yield found
        finally:
            self.close(found)

    # -- what is there

    def is_folder(self, fd: int, path: bytes, *, of_worker: bool = False) -> bool:  # noqa: ARG002
        """Whether *fd* is of a directory.

        :param path: where that is on the host, or else *of_worker*
        """
        return stat.S_ISDIR(os.fstat(fd).st_mode)

    def is_same(self, fd: int, other: int) -> bool:
        """Whether both are of one file."""
        return os.path.samestat(os.fstat(fd), os.fstat(other))

    def require_kind(self, fd: int, *, folder: bool) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) != folder:
            number = errno.ENOTDIR if folder else errno.EISDIR
            raise OSError(number, os.strerror(number))

    def is_device(self, fd: int, number: int, *, host: bytes = b"", ours: bool = False) -> bool:  # noqa: ARG002
        """Whether *fd* is of the character device *number*, and not of something that lies in its place.

        :param host: where that is on the host
        :param ours: we have put it there
        """
        return is_device(os.fstat(fd), number)

    # -- files

    def open(self, path: bytes, flags: int = os.O_PATH) -> int:
        return os.open(path, flags | os.O_CLOEXEC)

    def open_inside(self, folder: int, path: bytes) -> int:
        """With O_PATH; links lead nowhere out of *folder*."""
        return mountapi.openat2(folder, path, os.O_PATH, INSIDE)

    def open_made(self, folder: int, name: bytes) -> int:
        """What has just been made there, with O_PATH."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)

    def close(self, fd: int) -> None:
        os.close(fd)

    def make_file(self, folder: int, name: bytes) -> int:
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder)

    def make_folder(self, folder: int, name: bytes) -> None:
        os.mkdir(name, 0o755, dir_fd=folder)

    def make_node(self, folder: int, name: bytes, number: int) -> None:
        os.mknod(name, stat.S_IFCHR | 0o666, number, dir_fd=folder)

    def make_link(self, folder: int, name: bytes, target: bytes) -> None:
        os.symlink(target, name, dir_fd=folder)

    def umask(self, mask: int) -> int:
        return os.umask(mask)

    def fchdir(self, folder: int) -> None:
        os.fchdir(folder)

    def chdir(self, path: bytes) -> None:
        os.chdir(path)

    # -- mounts, see mountapi

    def clone_tree(self, fd: int, *, recursive: bool) -> int:
        return mountapi.clone_tree(fd, recursive=recursive)

    def new_mount(self, kind: bytes, options: tuple[tuple[bytes, bytes], ...] = (), attributes: int = 0) -> int:
        return mountapi.new_mount(kind, options, attributes)

    def attach(self, mount: int, target: int) -> None:
        mountapi.attach(mount, target)

    def set_attributes(self, mount: int, attributes: int = 0, *, propagation: int = 0, recursive: bool = False) -> None:
        mountapi.set_attributes(mount, attributes, propagation=propagation, recursive=recursive)

    def mount(self, source: str, target: str, kind: str, flags: int) -> None:
        mount(source, target, kind, flags)

    def pivot_root(self, new: bytes, old: bytes) -> None:
        pivot_root(new, old)

    def umount(self, target: bytes, flags: int) -> None:
        umount(target, flags)


def is_device(found: os.stat_result, number: int) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == number


#: in the calling process
NOW = Calls()
