"""Starting the stub, whatever the state of the application."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
from typing import NamedTuple

from nsorch.errors import PermissionDeniedError, SetupError, UnsupportedError

from . import descriptors, spawner
from .failures import PROCESSES, translate
from .interpreter import guarded
from .spawner import protocol
from .subids import find_subids

#: what the helpers need to make namespaces, to return to a mount namespace, and to set a loopback interface up
_NEEDED = {"CAP_SYS_ADMIN": 21, "CAP_SYS_CHROOT": 18, "CAP_NET_ADMIN": 12}
_NS_GET_USERNS = 0xB701  # linux/nsfs.h
_NULL = os.makedev(1, 3)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_OPTIONS = ("-I", "-S", "-X", "utf8")
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from spawner.stub import main; main(3, *map(int, sys.argv[2:]))"


class Launched(NamedTuple):
    """The stub just started: its pid and pidfd, and the application's ends of both sockets."""

    pid: int
    pidfd: int
    stub: socket.socket
    spawner: socket.socket


def may_administer() -> bool:
    """Whether this process can make namespaces without a user namespace of its own.

    :raises UnsupportedError: see :func:`check_files`
    """
    check_files()
    return all(map(has_capability, _NEEDED.values())) and all(map(_is_own, ("net", "uts", "ipc")))


def check_files() -> None:
    """
    :raises UnsupportedError: what nsorch can't do without is missing, as in a bare chroot
    """
    if not os.path.exists("/proc/self/status"):
        raise UnsupportedError("nsorch needs a /proc: mount -t proc proc /proc", stage="launch")
    with contextlib.suppress(OSError):
        if os.stat("/dev/null").st_rdev == _NULL:
            return
    raise UnsupportedError("nsorch needs the null device: mknod -m 666 /dev/null c 1 3", stage="launch")


def has_capability(number: int) -> bool:
    """Whether this process has it, in its user namespace."""
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(effective >> number & 1)


def _is_own(kind: str) -> bool:
    """Whether this process's namespace of *kind* belongs to its own user namespace: else who leaves it can't return,
    as below ``unshare --map-root-user``."""
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    except PermissionError:  # an ancestor's
        return False
    finally:
        os.close(fd)
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)


def launch(rootless: bool, subids: bool | None = None) -> Launched:
    """Start the stub by posix_spawn, which shares the memory until the exec: a large heap costs nothing. About 1 ms.

    :param subids: see :func:`nsorch.core.subids.find_subids`
    :raises SetupError: it can't be started
    :raises PermissionDeniedError: it takes a user namespace
    :raises UnsupportedError: there is no interpreter, or no such ids as *subids* insists on, or
        another pid namespace's /proc; or see :func:`check_files`
    """
    check_files()
    if not rootless and not may_administer():
        raise PermissionDeniedError(
            "work without a user namespace (rootless=False)",
            stage="launch",
            detail=f"that takes {', '.join(_NEEDED)} in the user namespace that this process's network, UTS and IPC "
            "namespaces belong to",
        )
    if rootless and os.readlink("/proc/self") != str(os.getpid()):
        raise UnsupportedError(
            "nsorch needs the /proc of this pid namespace, and sees another's: mount -t proc proc /proc", stage="launch"
        )
    if not sys.executable:
        raise UnsupportedError(
            "nsorch needs a Python interpreter to start its helper with, and sys.executable is empty"
        )
    found = find_subids(subids if rootless else False)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(spawner.__file__)))
    # Its modules are compiled once, as the application's are: each time would take 50 ms.
    options = (*_OPTIONS, *(("-B",) if sys.dont_write_bytecode else ()))
    with descriptors.registering:
        opened = _open_ends()
        descriptors.own(opened)
    stub, stub_end, requests, requests_end, own_pidfd = opened
    try:
        try:
            with guarded(sys.executable) as program:
                actions = [(os.POSIX_SPAWN_DUP2, stub_end, 3)]
                if program.mount >= 0:
                    actions.append((os.POSIX_SPAWN_DUP2, program.mount, 4))
                pid = os.posix_spawn(
                    program.path,
                    [sys.executable, *options, "-c", _BOOT, folder, *(("4",) if program.mount >= 0 else ())],
                    os.environ,
                    file_actions=actions,
                    setsigmask=(),
                    setsigdef=_SIGNALS,
                )
        except OSError as exc:
            detail = PROCESSES if exc.errno == errno.EAGAIN else sys.executable
            raise SetupError("start the helper", stage="posix_spawn", errno=exc.errno, detail=detail) from exc
        pidfd = _pidfd(pid)
        stub_socket = _adopt(stub)
        protocol.send(stub_socket, (rootless, found.id_maps, found.programs, subids is True), [own_pidfd, requests_end])
    except BaseException:
        descriptors.close((stub, requests))
        raise
    finally:
        descriptors.close((stub_end, requests_end, own_pidfd))
    return Launched(pid, pidfd, stub_socket, _adopt(requests))


def _pidfd(pid: int) -> int:
    with descriptors.registering:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:  # an application that ignores SIGCHLD has no zombies
            raise SetupError("the helper ended at once", stage="posix_spawn", errno=errno.ESRCH) from None
        descriptors.own([fd])
    return fd


def _open_ends() -> list[int]:
    """Both of the stub's socket, both of the spawner's, and a pidfd of our own."""
    opened: list[int] = []
    try:
        for _ in range(2):
            _add_pair(opened)
        opened.append(os.pidfd_open(os.getpid()))
    except OSError as exc:
        for fd in opened:
            os.close(fd)
        raise translate("launch", exc.errno or errno.EIO, "", None) from None
    return opened


def _add_pair(opened: list[int]) -> None:
    """A socket pair with numbers above 9: none is a standard stream that the caller closed, or a target of ours."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ends[0], ends[1]:
        # The first is among them also where there is no second.
        opened.extend(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)


def _adopt(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def reap(pid: int) -> None:
    """Collect the stub, which has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
