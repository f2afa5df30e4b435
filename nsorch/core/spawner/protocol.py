"""What the application and the helper processes say to each other: marshalled tuples over SOCK_SEQPACKET.

Both ends are the same interpreter of the same machine and user, so ``marshal`` serves: it is fast, it is built in, and
it takes nothing but plain values
(so numbers here are no enums). Descriptors travel beside a message as SCM_RIGHTS.
"""

import array
import errno
import marshal
import os
import socket
import time
from typing import Any, Final, NamedTuple

#: SCM_MAX_FD of the kernel is 253; nothing here needs more than a worker's streams and namespaces
MAX_FDS = 32
# A datagram must fit the socket's send buffer (net.core.wmem_default, 208 KiB, counted with overhead).
_INLINE = 64 * 1024


class Stream:
    """Where a standard stream of a command leads; FD + n is the n-th descriptor that came with the request."""

    INHERIT: Final = -1
    NULL: Final = -2
    FD: Final = 0


class Mode:
    """What stands between the helper and the command."""

    EXEC: Final = 0  #: nothing: the command is the child itself, and PID 1 of a new pid namespace
    INIT: Final = 1  #: an init, PID 1 of a new pid namespace: all dies with it
    RUNNER: Final = 2  #: a subreaper in a pid namespace that lives on: kills descendants when told to
    KEEPER: Final = 3  #: a subreaper that also kills the remaining descendants when the command ends


class Own(NamedTuple):
    """What a forked child makes for itself, because its cgroup or its pid namespace is needed for that."""

    cgroup: bool = False  #: a cgroup namespace
    #: 0 no; 1 mount the /proc of its pid namespace, 2 instead of an earlier one, 3 in a peer of the mount namespace,
    #: 4 in a new mount namespace
    proc: int = 0
    guarded: bool = False  #: the root may be hostile
    masked: tuple[bytes, ...] = ()  #: below /proc
    readonly: tuple[bytes, ...] = ()
    cgroupfs: bool = False  #: what the cgroup namespace shows, at /sys/fs/cgroup


class Session:
    """What of a command is its own: nothing, a session, or a process group in the session of the application."""

    SHARED: Final = 0
    NEW: Final = 1
    GROUP: Final = 2


class Command(NamedTuple):
    argv: tuple[bytes, ...]
    env: bytes  #: a marshalled dict of bytes: thousands of commands have the same, which is read once
    cwd: bytes
    cwd_required: bool  #: else "/" serves where cwd can't be entered
    streams: tuple[int, int, int]
    mode: int
    session: int  #: of Session
    user: tuple[int, int, tuple[int, ...]] | None  #: uid, gid, supplementary groups
    confinement: bytes  #: see :mod:`.confinement`
    guarded: bool  #: the file system may be hostile: what leads through magic links of /proc is no program


class Spawn(NamedTuple):
    """Make or enter namespaces, and run a command there.

    The descriptors that come along: first those of *join*, then those of *streams*.
    """

    job: int
    unshare: int  #: CLONE_NEW* of the namespaces to make
    join: tuple[int, ...]  #: CLONE_NEW* of each namespace to enter, in this order
    hold: int  #: CLONE_NEW* of the namespaces to answer with, as descriptors in the order of NS_FILES
    hostname: str | None
    sysctls: tuple[tuple[str, str], ...]  #: path below /proc, value
    loopback: bool  #: set the loopback interface up
    netlink: bool  #: hand out an rtnetlink socket of its network namespace, behind the descriptors of *hold*
    own: tuple[Any, ...]  #: of Own
    command: Command | None
    check: Command | None  #: must exist before anything is made; runs later
    domainname: str | None = None
    time_offsets: tuple[tuple[str, int, int], ...] = ()  #: clock, seconds, nanoseconds
    root: bytes = b""  #: see :mod:`.rootfs`
    sysfs: bool = False  #: mount the /sys of its network namespace, where the host allows that
    #: of a new user namespace: (first id inside, first outside, count) of the uids, and of the gids
    id_maps: tuple[tuple[tuple[int, int, int], ...], ...] = (((0, 0, 1),), ((0, 0, 1),))
    cgroup: bool = False  #: the last descriptor is that of a cgroup, which the command begins in
    moves: bool = False  #: see :class:`.syscalls.Cgroup`


class OpenSocket(NamedTuple):
    """Open a socket in the network namespace whose descriptor comes along."""

    job: int
    family: int
    type: int
    proto: int


class OpenTun(NamedTuple):
    """Open ``/dev/net/tun``, for interfaces of the network namespace whose descriptor comes along."""

    job: int


class AddMaker(NamedTuple):
    """Begin another process that makes namespaces, see :mod:`.maker`; the answer is a socket for its requests."""

    job: int


class Kill(NamedTuple):
    """SIGKILL to the command of *job* and all that it left, as far as its mode can find them."""

    job: int
    frozen: bool = False  #: what stands between can't do its part


class Pin(NamedTuple):
    """Make the symbolic link *path* to *target*, or remove it where that is empty. For the stub."""

    job: int
    path: bytes
    target: bytes


class Adopt(NamedTuple):
    """Move the processes of *targets*, and their descendants, into the cgroup whose descriptor comes along."""

    job: int
    targets: tuple[int, ...]


class Subtree(NamedTuple):
    """For the stub: the cgroup *name* below that of the first descriptor is to be removed at the end. The second one
    holds its lock."""

    job: int
    name: str


class Event:
    """First item of an answer; the second is the job."""

    #: (READY, 0, facts); the spawner is up: fabric netns, its rtnetlink socket, hosts file. Or (READY,); a maker is
    READY: Final = 0
    CREATED: Final = 1  #: (CREATED, job) with the descriptors of *hold*
    #: (STARTED, job, host's pid, inode of its pid namespace) with its pidfd, then those of *hold* if CREATED had none
    STARTED: Final = 2
    EXITED: Final = 3  #: (EXITED, job, wait status, user s, system s, max RSS bytes)
    FAILED: Final = 4  #: (FAILED, job, stage, errno, detail)
    SOCKET: Final = 5  #: (SOCKET, job) with the socket, or what else was opened
    DONE: Final = 6  #: (DONE, job) as CREATED, for a job without a command: nothing more follows
    # To the spawner only, from what the nursery has forked:
    BORNE: Final = 7  #: (BORNE, job, pid of the init as the spawner counts)


OPERATIONS: dict[str, type[Spawn | OpenSocket | OpenTun | AddMaker | Kill | Pin | Adopt | Subtree]] = {
    "spawn": Spawn,
    "socket": OpenSocket,
    "tun": OpenTun,
    "maker": AddMaker,
    "kill": Kill,
    "pin": Pin,
    "adopt": Adopt,
    "subtree": Subtree,
}


def send(sock: socket.socket, message: tuple[Any, ...], fds: tuple[int, ...] | list[int] = ()) -> None:
    """Send *message*, whole, with *fds*. A long one travels in a memory file, whose descriptor comes last."""
    data = marshal.dumps(message)
    if len(data) <= _INLINE:
        _send(sock, data, fds)
        return
    spill = os.memfd_create("nsorch-message")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(spill, view) :]
        _send(sock, b"", (*fds, spill))
    finally:
        os.close(spill)


def send_in_time(sock: socket.socket, message: tuple[Any, ...], fds: tuple[int, ...] | list[int] = ()) -> None:
    """As :func:`send`, from a process that has nothing else to do than to wait: descriptors under way count against
    RLIMIT_NOFILE until they are received."""
    while True:
        try:
            send(sock, message, fds)
            return
        except OSError as exc:
            if exc.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(0.001)


def encode(message: tuple[Any, ...]) -> bytes:
    """A short message as :func:`send` would send it, for a bare write."""
    return b"\x01" + marshal.dumps(message)


def _send(sock: socket.socket, data: bytes, fds: tuple[int, ...] | list[int]) -> None:
    # The leading byte keeps a message that spilled apart from the end of file, which is an empty datagram.
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([b"\x01", data] if data else [b"\x00"], control)


class LostDescriptorsError(Exception):
    """RLIMIT_NOFILE is too low for the descriptors of a message: the argument, or () where it was among them."""


#: a message and its descriptors
Received = tuple[Any, list[int]]


def receive(sock: socket.socket) -> Received | None:
    """Receive one message and its descriptors (close-on-exec), or None at the end of file."""
    data, control, flags, _ = sock.recvmsg(_INLINE + 1024, socket.CMSG_LEN(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
    if not data:
        return None
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        for fd in fds:
            os.close(fd)
        # The kernel drops what it can't install: the table of open files is full.
        raise LostDescriptorsError(marshal.loads(memoryview(data)[1:]) if data[0] else ())
    if data[0]:
        return marshal.loads(memoryview(data)[1:]), fds.tolist()
    with os.fdopen(fds.pop(), "rb") as spill:
        spill.seek(0)
        return marshal.loads(spill.read()), fds.tolist()
