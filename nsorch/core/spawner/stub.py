"""The stub, which the application starts, and the spawner, which the stub clones as PID 1 of a pid namespace.

The stub stays outside: when the application goes, it kills PID 1, and the kernel kills everything below. The spawner
watches the application and the stub for itself: any of the three may be killed, and nothing of the other two is left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NamedTuple, NoReturn

from . import mountapi, protocol, subtree
from .command import close_all_but
from .homing import Namespaces
from .idmaps import IdMaps, map_gids, map_ids
from .mounts import mount_home
from .privacy import hide
from .protocol import Event
from .server import Server
from .stages import StageError, stage
from .steps import Home
from .syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CLONE_PIDFD,
    NS_FILES,
    clone3,
    get_permitted,
    reset_library_signals,
    set_name,
    set_parent_death_signal,
    unshare,
)

_ROOM = 5  # descriptors that a server opens, but for as many as are closed before


class Start(NamedTuple):
    """The application's first message to the stub; then come its pidfd and the spawner's socket."""

    rootless: bool
    id_maps: IdMaps  #: of its user namespace
    programs: tuple[str, ...]  #: newuidmap and newgidmap, where more than the caller's own ids is mapped
    insists: bool  #: on all of id_maps; else the caller's own serve where these programs fail


def main(stub_fd: int, program_mount: int = -1) -> NoReturn:
    """Run the stub around the socket *stub_fd*. Descriptors 0 to 2 are the application's, all others aren't ours.

    :param program_mount: of the file that we run, see :mod:`nsorch.core.interpreter`
    """
    if program_mount >= 0:
        # Not before: the kernel had yet to map the file. Others can't undo it, as the mount is in no namespace.
        mountapi.set_attributes(program_mount, mountapi.ATTR_RDONLY | mountapi.ATTR_NOEXEC)
    set_name(b"nsorch")
    close_all_but(0, 1, 2, stub_fd)
    # The terminal of the application sends some to its whole process group. Blocked, none is lost for a forked child,
    # which hears them by signalfd; commands start with none blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # else it would run in a vfork child, and so in our memory
    reset_library_signals()
    os.umask(0o022)
    _raise_descriptor_limit()
    streams = _keep_streams()  # before anything is received under a number of those
    application = socket.socket(fileno=stub_fd)
    received = protocol.receive(application)
    if received is None:
        os._exit(0)
    values, (application_pidfd, spawner_fd) = received
    start = Start(*values)
    null = _above(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    proc = _above(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    flags = CLONE_NEWPID | CLONE_NEWNS
    if start.rootless:
        flags |= CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC
    hidden = not start.rootless and hide(proc)
    gc.disable()
    gc.freeze()
    try:
        with stage("clone3", ", ".join(name for kind, name in NS_FILES.items() if flags & kind)):
            pid, pidfd = clone3(flags | CLONE_PIDFD)
        if pid == 0:
            ours.close()
            application.close()
            requests = socket.socket(fileno=spawner_fd)
            _run_spawner(start, requests, application_pidfd, theirs, streams, null, proc, hidden)
        os.close(spawner_fd)
        theirs.close()
        if start.rootless:
            _map_home(pid, start, proc)
        ours.send(b"mapped")
        with contextlib.suppress(BrokenPipeError):  # it is leaving already, and the end of file comes next
            protocol.send(application, (Event.READY, 0), [pidfd])
    except StageError as exc:
        protocol.send(application, (Event.FAILED, 0, exc.stage, exc.number, exc.detail))
        os._exit(1)
    with contextlib.suppress(OSError):
        subtree.sweep()
    server = Server(application, Home(Namespaces({}), streams, null, proc, proc, hidden))
    try:
        server.serve(application_pidfd, pidfd, ours.fileno())
    finally:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        server.pins.remove_all()
        server.kill_all()
        # All, not only the spawner: it ends when the last process of its pid namespace is reaped, and some are ours.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        if server.subtree is not None:
            name, above = server.subtree
            subtree.remove(above, name)
        elif select.select([application_pidfd], [], [], 0)[0]:
            subtree.sweep()  # it was killed, maybe before it could tell of one
        os._exit(0)


def _map_home(pid: int, start: Start, proc: int) -> None:
    """Map the ids of the spawner's user namespace: alone, only the caller's own may be."""
    own = tuple(ranges[:1] for ranges in start.id_maps)
    if not start.programs:
        with stage("uid map"):
            map_ids(pid, own, proc, deny_setgroups=True)
        return
    for number, (program, ranges) in enumerate(zip(start.programs, start.id_maps, strict=True)):
        words = [str(word) for ids in ranges for word in ids]
        refusal = _run_mapper(program, [program, str(pid), *words])
        if refusal is None:
            continue
        if start.insists:
            raise StageError("uid map", errno.EPERM, f"{program} refuses {' '.join(words)}: {refusal}")
        with stage("uid map"):
            if number == 0:
                map_ids(pid, own, proc, deny_setgroups=True)
                return
            map_gids(pid, own[1], proc)


def _run_mapper(program: str, argv: list[str]) -> str | None:
    """What *program* says against it; None where it did it."""
    ours, theirs = os.pipe()
    with open(ours, "rb") as said:
        try:
            outputs = [(os.POSIX_SPAWN_DUP2, theirs, number) for number in (1, 2)]
            child = os.posix_spawn(program, argv, os.environ, file_actions=outputs, setsigmask=())
        finally:
            os.close(theirs)
        refusal = said.read().decode(errors="replace").strip()
    return refusal if os.waitpid(child, 0)[1] else None


def _run_spawner(
    start: Start,
    requests: socket.socket,
    application_pidfd: int,
    stub: socket.socket,
    streams: tuple[int, int, int],
    null: int,
    proc: int,
    hidden: bool,
) -> NoReturn:
    try:
        set_parent_death_signal(signal.SIGKILL)
        if not stub.recv(16):
            os._exit(1)
        with stage("start"):
            home, facts, fds = _settle(start, streams, null, proc)
            _check_room(null)
        with contextlib.suppress(BrokenPipeError):
            protocol.send(requests, (Event.READY, 0, facts), fds)
        for fd in fds:
            if fd not in home.namespaces.values():
                os.close(fd)
        gc.collect()
        gc.freeze()
        server = Server(requests, home._replace(hidden=hidden))
        server.serve(application_pidfd, stub.fileno())
    except StageError as exc:
        with contextlib.suppress(OSError):
            protocol.send(requests, (Event.FAILED, 0, exc.stage, exc.number, exc.detail))
    finally:
        if (failure := sys.exc_info()[1]) is not None and not isinstance(failure, StageError):
            sys.excepthook(*sys.exc_info())
        # The last act of PID 1: the kernel kills what is left in its pid namespace.
        os._exit(0)


def _settle(
    start: Start, streams: tuple[int, int, int], null: int, proc: int
) -> tuple[Home, dict[str, Any], list[int]]:
    """Make the namespaces to return to. Answers the home, and what the application must know of it."""
    if start.rootless:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    host = {}
    if not start.rootless:
        # A worker that keeps one of these enters it from its home.
        host = _open_namespaces(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)
        with stage("unshare", "net"):
            unshare(CLONE_NEWNET)
    hosts = mount_home()
    own_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        for scope in ("all", "default"):
            with open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file:
                file.write("1")
    ipv6 = os.path.isdir("/proc/sys/net/ipv6")
    inherited = {"ipv6": "1" if ipv6 else ""} | {name: _read(f"/proc/sys/net/ipv4/{name}") for name in _WATCHED}
    kinds = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    home = _open_namespaces(kinds | CLONE_NEWUSER)
    user = home.pop(CLONE_NEWUSER)
    rtnl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    fds = {f"home {NS_FILES[kind]}": fd for kind, fd in home.items()}
    fds |= {f"host {NS_FILES[kind]}": fd for kind, fd in host.items()}
    fds |= {"home user": user, "rtnetlink": rtnl.detach()}
    if hosts >= 0:
        fds["hosts"] = hosts
    return (
        Home(Namespaces(home, own_proc, rootless=start.rootless), streams, null, proc, own_proc),
        {
            "descriptors": list(fds),
            "sysctls": inherited,
            "capabilities": get_permitted(),
            "ids": tuple(_id_ranges(name) for name in ("uid_map", "gid_map")),
        },
        list(fds.values()),
    )


#: what a new network namespace may inherit from the host's (net.core.devconf_inherit_init_net)
_WATCHED = ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter")


def _id_ranges(name: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, line.split())) for line in _read(f"/proc/self/{name}").splitlines())


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _open_namespaces(kinds: int) -> dict[int, int]:
    opened = {}
    for kind, name in NS_FILES.items():
        if kinds & kind:
            with stage("namespace descriptor", name):
                opened[kind] = _above(os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
    return opened


def _keep_streams() -> tuple[int, int, int]:
    """Duplicates of the application's standard streams, above 2; /dev/null for those it had closed."""
    kept = []
    for number in range(3):
        try:
            kept.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            kept.append(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3))
            if null > 2:
                os.close(null)
    return kept[0], kept[1], kept[2]


def _above(fd: int) -> int:
    """*fd* under a number above 2, where no standard stream of a command can overwrite it."""
    if fd > 2:
        return fd
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _check_room(null: int) -> None:
    """Whether what the spawner opens itself can be had: later, nobody would hear why it ended."""
    with contextlib.ExitStack() as opened:
        for _ in range(_ROOM):
            opened.callback(os.close, fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 3))


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
