"""The calls that set up a file system, or confine a command, each made at once; :mod:`.writing` has a script do it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import stat
import struct
from typing import TYPE_CHECKING

from . import mountapi, syscalls
from .idmaps import write
from .mountapi import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from .stages import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

SIOCSIFFLAGS = 0x8914
#: ``struct ifreq``: lo, IFF_UP
LOOPBACK_UP = struct.pack("16sh14x", b"lo", 1)
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

    @contextlib.contextmanager
    def optional(self, *numbers: int) -> Iterator[None]:
        """After a failure, by one of these errnos if any is given, what is left of the block is left out."""
        try:
            yield
        except OSError as exc:
            if numbers and exc.errno not in numbers:
                raise

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
        with self.closing(found):
            yield found

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

    @contextlib.contextmanager
    def closing(self, fd: int) -> Iterator[int]:
        """Close *fd* at the end of the block, however it ends: a helper lives on, and what it has open isn't freed."""
        try:
            yield fd
        finally:
            self.close(fd)

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

    # -- what namespaces are called, and have

    def raise_loopback(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, SIOCSIFFLAGS, LOOPBACK_UP)

    def set_hostname(self, name: str) -> None:
        socket.sethostname(name)

    def set_domainname(self, name: str) -> None:
        syscalls.set_domainname(name)

    def write(self, path: str, text: str, folder: int) -> None:
        write(path, text, folder)

    # -- mounts, see mountapi

    def clone_tree(self, fd: int, *, recursive: bool) -> int:
        return mountapi.clone_tree(fd, recursive=recursive)

    def new_mount(self, kind: bytes, options: tuple[tuple[bytes, bytes], ...] = (), attributes: int = 0) -> int:
        return mountapi.new_mount(kind, options, attributes)

    def attach(self, mount: int, target: int) -> None:
        mountapi.attach(mount, target)

    def set_attributes(self, mount: int, attributes: int = 0, *, propagation: int = 0, recursive: bool = False) -> None:
        mountapi.set_attributes(mount, attributes, propagation=propagation, recursive=recursive)

    def unshare(self, kinds: int) -> None:
        syscalls.unshare(kinds)

    def mount(self, source: str, target: str, kind: str, flags: int) -> None:
        syscalls.mount(source, target, kind, flags)

    def pivot_root(self, new: bytes, old: bytes) -> None:
        syscalls.pivot_root(new, old)

    def umount(self, target: bytes, flags: int) -> None:
        syscalls.umount(target, flags)

    # -- what the caller may do

    def join_new_session_keyring(self) -> None:
        syscalls.join_new_session_keyring()

    def set_limit(self, number: int, soft: int, hard: int) -> None:
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:  # a soft limit above the hard one, or a hard one above the caller's
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None

    def drop_from_bounding_set(self, capability: int) -> None:
        syscalls.drop_from_bounding_set(capability)

    def keep_capabilities(self) -> None:
        syscalls.keep_capabilities()

    def get_permitted(self) -> int:
        return syscalls.get_permitted()

    def set_capabilities(self, effective: int, permitted: int, inheritable: int) -> None:
        syscalls.set_capabilities(effective, permitted, inheritable)

    def set_ambient(self, capabilities: int) -> None:
        syscalls.set_ambient(capabilities)

    def set_groups(self, groups: Sequence[int]) -> None:
        os.setgroups(groups)

    def set_ids(self, uid: int, gid: int) -> None:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    def set_no_new_privs(self) -> None:
        syscalls.set_no_new_privs()

    def set_parent_death_signal(self, number: int) -> None:
        syscalls.set_parent_death_signal(number)

    def set_seccomp(self, program: bytes) -> None:
        syscalls.set_seccomp(program)


def is_device(found: os.stat_result, number: int) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == number


#: in the calling process
NOW = Calls()
