"""The set-up of a file system, and the confinement of a command, as a script: the same functions that make the calls
elsewhere write them down here.

What would depend on an answer of the kernel's is decided beforehand, or that set-up is no script.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from .calls import INSIDE, LOOPBACK_UP, SIOCSIFFLAGS, Calls, is_device
from .mountapi import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    FSCONFIG,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT,
    FSMOUNT_CLOEXEC,
    FSOPEN,
    FSOPEN_CLOEXEC,
    MOUNT_SETATTR,
    MOVE_EMPTY_PATHS,
    MOVE_MOUNT,
    OPEN_TREE,
    OPEN_TREE_CLONE,
    OPENAT2,
    MountAttributes,
    OpenHow,
)
from .script import (
    ANY,
    AT_FDCWD,
    CAPSET,
    CHDIR,
    FCHDIR,
    IOCTL,
    KEYCTL,
    MKDIRAT,
    MKNODAT,
    MOUNT,
    OPENAT,
    PIVOT_ROOT,
    PRCTL,
    SETDOMAINNAME,
    SETGROUPS,
    SETHOSTNAME,
    SETRESGID,
    SETRESUID,
    SETRLIMIT,
    SOCKET,
    SYMLINKAT,
    UMASK,
    UMOUNT,
    UNSHARE,
    WRITE,
    Script,
    errnos,
)
from .syscalls import (
    KEYCTL_JOIN_SESSION_KEYRING,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    PR_SET_SECCOMP,
    SECCOMP_MODE_FILTER,
    Capabilities,
    FilterProgram,
    capabilities_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .script import Result

_INSIDE = OpenHow(os.O_PATH | os.O_CLOEXEC, 0, INSIDE)
_LOOPBACK_UP = ctypes.create_string_buffer(LOOPBACK_UP)
_KERNELS_OWN = (b"/proc/", b"/sys/")


class NoScriptError(Exception):
    """It takes an answer of the kernel's."""


class Writer(Calls):
    """Adds them to *script*. What they return are its results."""

    at_once = False

    def __init__(self, script: Script, permitted: int = 0) -> None:
        """:param permitted: capabilities that the child has"""
        self._script = script
        self._permitted = permitted
        self._stage = ("", "")

    def _add(self, number: int, *arguments: int) -> Result:
        return self._script.call(self._stage, number, *arguments)

    def _text(self, text: bytes) -> int:
        return self._script.text(text)

    # -- what becomes of failures

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        before, self._stage = self._stage, (name, detail)
        yield
        self._stage = before

    @contextlib.contextmanager
    def optional(self, *numbers: int) -> Iterator[None]:
        first = len(self._script)
        yield
        end = len(self._script)
        self._script.skip_failed(range(first, end), errnos(*numbers) if numbers else ANY, end)

    def permitted_or(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        begin = len(self._script)
        first()
        between = len(self._script)
        second()
        self._script.skip_failed(range(begin, between), errnos(errno.EPERM, errno.EACCES), between)
        self._script.skip_done(between - 1, len(self._script))

    def find(self, folder: int, path: bytes) -> Iterator[int]:
        call = len(self._script)
        yield self.open_inside(folder, path)
        self._script.skip_failed(range(call, call + 1), errnos(errno.ENOENT, errno.ENOTDIR), len(self._script))

    # -- what is there

    def is_folder(self, fd: int, path: bytes, *, of_worker: bool = False) -> bool:  # noqa: ARG002
        """As the helper sees it: what doesn't fit in the worker can't be attached."""
        if of_worker and not path.startswith(_KERNELS_OWN):
            raise NoScriptError
        return os.path.isdir(path)

    def is_same(self, fd: int, other: int) -> bool:  # noqa: ARG002
        """What covers another is no script, see :func:`.written_roots.find_programs`."""
        return False

    def require_kind(self, fd: int, *, folder: bool) -> None:
        """A mount of another kind can't be attached."""

    def is_device(self, fd: int, number: int, *, host: bytes = b"", ours: bool = False) -> bool:  # noqa: ARG002
        """Of the host's, of which one may not be needed, all must be there."""
        with contextlib.suppress(OSError):
            if ours or (host and is_device(os.stat(host), number)):
                return True
        raise NoScriptError

    # -- files

    def open(self, path: bytes, flags: int = os.O_PATH) -> int:
        return self._add(OPENAT, AT_FDCWD, self._text(path), flags | os.O_CLOEXEC)

    def open_inside(self, folder: int, path: bytes) -> int:
        return self._add(OPENAT2, folder, self._text(path), ctypes.addressof(_INSIDE), ctypes.sizeof(_INSIDE))

    def open_made(self, folder: int, name: bytes) -> int:
        return self._add(OPENAT, folder, self._text(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """By the exec."""

    def make_file(self, folder: int, name: bytes) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        return self._add(OPENAT, folder, self._text(name), flags, 0o666)

    def make_folder(self, folder: int, name: bytes) -> None:
        self._add(MKDIRAT, folder, self._text(name), 0o755)

    def make_node(self, folder: int, name: bytes, number: int) -> None:
        self._add(MKNODAT, folder, self._text(name), stat.S_IFCHR | 0o666, number)

    def make_link(self, folder: int, name: bytes, target: bytes) -> None:
        self._add(SYMLINKAT, self._text(target), folder, self._text(name))

    def umask(self, mask: int) -> int:
        return self._add(UMASK, mask)

    def fchdir(self, folder: int) -> None:
        self._add(FCHDIR, folder)

    def chdir(self, path: bytes) -> None:
        self._add(CHDIR, self._text(path))

    # -- what namespaces are called, and have

    def raise_loopback(self) -> None:
        opened = self._add(SOCKET, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        self._add(IOCTL, opened, SIOCSIFFLAGS, ctypes.addressof(_LOOPBACK_UP))

    def set_hostname(self, name: str) -> None:
        self._add(SETHOSTNAME, self._text(name.encode()), len(name.encode()))

    def set_domainname(self, name: str) -> None:
        self._add(SETDOMAINNAME, self._text(name.encode()), len(name.encode()))

    def write(self, path: str, text: str, folder: int) -> None:
        opened = self._add(OPENAT, folder, self._text(path.encode()), os.O_WRONLY | os.O_CLOEXEC)
        self._add(WRITE, opened, self._text(text.encode()), len(text.encode()))

    # -- mounts

    def clone_tree(self, fd: int, *, recursive: bool) -> int:
        flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        return self._add(OPEN_TREE, fd, self._text(b""), flags)

    def new_mount(self, kind: bytes, options: tuple[tuple[bytes, bytes], ...] = (), attributes: int = 0) -> int:
        context = self._add(FSOPEN, self._text(kind), FSOPEN_CLOEXEC)
        for key, value in options:
            if value:
                self._add(FSCONFIG, context, FSCONFIG_SET_STRING, self._text(key), self._text(value), 0)
            else:
                self._add(FSCONFIG, context, FSCONFIG_SET_FLAG, self._text(key), 0, 0)
        self._add(FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
        return self._add(FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)

    def attach(self, mount: int, target: int) -> None:
        self._add(MOVE_MOUNT, mount, self._text(b""), target, self._text(b""), MOVE_EMPTY_PATHS)

    def set_attributes(self, mount: int, attributes: int = 0, *, propagation: int = 0, recursive: bool = False) -> None:
        wanted = MountAttributes(attributes, 0, propagation, 0)
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        self._add(
            MOUNT_SETATTR, mount, self._text(b""), flags, self._script.keep(wanted), ctypes.sizeof(MountAttributes)
        )

    def unshare(self, kinds: int) -> None:
        self._add(UNSHARE, kinds)

    def mount(self, source: str, target: str, kind: str, flags: int) -> None:
        self._add(MOUNT, *(self._text(text.encode()) for text in (source, target, kind)), flags, 0)

    def pivot_root(self, new: bytes, old: bytes) -> None:
        self._add(PIVOT_ROOT, self._text(new), self._text(old))

    def umount(self, target: bytes, flags: int) -> None:
        self._add(UMOUNT, self._text(target), flags)

    # -- what the child may do

    def join_new_session_keyring(self) -> None:
        self._add(KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, 0)

    def set_limit(self, number: int, soft: int, hard: int) -> None:
        limit = (ctypes.c_ulong * 2)(soft, hard)
        self._add(SETRLIMIT, number, self._script.keep(limit))

    def drop_from_bounding_set(self, capability: int) -> None:
        self._add(PRCTL, PR_CAPBSET_DROP, capability)

    def keep_capabilities(self) -> None:
        self._add(PRCTL, PR_SET_KEEPCAPS, 1)

    def get_permitted(self) -> int:
        return self._permitted

    def set_capabilities(self, effective: int, permitted: int, inheritable: int) -> None:
        header = self._script.keep(capabilities_of(effective, permitted, inheritable))
        self._add(CAPSET, header, header + Capabilities.data.offset)

    def set_ambient(self, capabilities: int) -> None:
        self._add(PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(64):
            if capabilities >> number & 1:
                self._add(PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)

    def set_groups(self, groups: Sequence[int]) -> None:
        self._add(SETGROUPS, len(groups), self._script.keep((ctypes.c_uint32 * (len(groups) + 1))(*groups)))

    def set_ids(self, uid: int, gid: int) -> None:
        self._add(SETRESGID, gid, gid, gid)
        self._add(SETRESUID, uid, uid, uid)

    def set_no_new_privs(self) -> None:
        self._add(PRCTL, PR_SET_NO_NEW_PRIVS, 1)

    def set_parent_death_signal(self, number: int) -> None:
        self._add(PRCTL, PR_SET_PDEATHSIG, number)

    def set_seccomp(self, program: bytes) -> None:
        instructions = self._script.text(program)
        made = FilterProgram(len(program) // 8, ctypes.c_char_p(instructions))
        self._add(PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._script.keep(made))
