"""The system calls that Python 3.11 doesn't have, as thin functions that raise :class:`OSError`.

``ctypes.PyDLL`` keeps the interpreter lock: the helpers have one thread, and a child of clone3 must own the lock.
"""

from __future__ import annotations

import array
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

#: file name below /proc/PID/ns of each kind
NS_FILES = {
    CLONE_NEWUSER: "user",
    CLONE_NEWNET: "net",
    CLONE_NEWNS: "mnt",
    CLONE_NEWUTS: "uts",
    CLONE_NEWIPC: "ipc",
    CLONE_NEWPID: "pid",
    CLONE_NEWCGROUP: "cgroup",
    CLONE_NEWTIME: "time",
}

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
SECCOMP_MODE_FILTER = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
KEYCTL_JOIN_SESSION_KEYRING = 1

# One number on every architecture: the tables were unified before this call came (asm-generic/unistd.h).
_SYS_CLONE3 = 435

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def call(number: int, *arguments: Any) -> int:
    """The system call *number*: integers are passed as ``long``, bytes as C strings."""
    return _check(_libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


class CloneArgs(ctypes.Structure):
    """``struct clone_args``, third version (CLONE_ARGS_SIZE_VER2, 88 bytes): linux/sched.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


# What uname(2) says below personality(2)'s PER_LINUX32, and where the interpreter is one of 32 bits on a kernel of 64.
_WITHOUT_32 = {"i686": "x86_64", "armv8l": "aarch64", "ppcle": "ppc64le", "s390": "s390x"}
_OF_32 = {"x86_64": "i686", "aarch64": "armv7l"}


def machine() -> str:
    """Whose system calls this interpreter makes, as uname(2) calls it."""
    name = os.uname().machine
    return (_WITHOUT_32 if sys.maxsize > 1 << 32 else _OF_32).get(name, name)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def setns(fd: int, kinds: int) -> None:
    _check(_libc.setns(fd, kinds))


class Cgroup(NamedTuple):
    """That in which a child begins.

    :ivar moves: it goes there by itself. What is cloned into a cgroup that was killed once dies at birth on Linux 6.18,
        not on 6.12: how often that was is compared with the parent's (cgroup_post_fork() in kernel/cgroup/cgroup.c)
    """

    fd: int = -1  #: of its directory; -1 is the caller's
    moves: bool = False

    def enter(self) -> None:
        """The caller must be a child that has just been forked: if it can't, it ends."""
        try:
            procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
            os.write(procs, b"0")
            os.close(procs)
        except OSError:
            os._exit(125)


NO_CGROUP = Cgroup()


def clone3(flags: int, cgroup: Cgroup = NO_CGROUP) -> tuple[int, int]:
    """Fork with *flags*, into *cgroup*.

    Returns (pid, pidfd), in the child (0, -1); pidfd is -1 unless CLONE_PIDFD is in flags.

    The child is a copy of a single-threaded interpreter, so none of the at-fork handlers is needed.
    """
    pidfd = ctypes.c_int(-1)
    # With CLONE_PARENT the caller's own exit signal counts, and giving one is an error.
    args = CloneArgs(flags=flags, exit_signal=0 if flags & CLONE_PARENT else signal.SIGCHLD)
    if flags & CLONE_PIDFD:
        args.pidfd = ctypes.addressof(pidfd)
    if cgroup.fd >= 0 and not cgroup.moves:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup.fd
    pid = _check(_libc.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args))))
    if pid == 0 and cgroup.moves:
        cgroup.enter()
    return pid, pidfd.value if pid else -1


def protect(address: int, size: int, protection: int) -> None:
    """mprotect(2): whole pages."""
    _check(_libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode() or None))


def umount(target: str | bytes, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags))


def set_domainname(name: str) -> None:
    encoded = os.fsencode(name)
    _check(_libc.setdomainname(encoded, ctypes.c_size_t(len(encoded))))


def pivot_root(new: str | bytes, old: str | bytes) -> None:
    _check(_libc.pivot_root(os.fsencode(new), os.fsencode(old)))


def set_parent_death_signal(number: int) -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0))


def set_name(name: bytes) -> None:
    """What the calling process is called, up to 15 bytes, and its arguments: everybody may read those, also in a worker
    whose business it is not where the host has its interpreter."""
    text = ctypes.create_string_buffer(name)
    _check(_libc.prctl(_PR_SET_NAME, ctypes.addressof(text), 0, 0, 0))
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # arg_start, arg_end of proc(5)
    if end - start >= len(text):
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(name))


def become_subreaper() -> None:
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def signalfd(*numbers: int) -> int:
    """A descriptor that gives *numbers*, which must be blocked; 128 bytes each, the number first.

    It gives the signals of the process that reads, so a forked child may use it for its own.
    """
    return _check(_libc.signalfd(-1, _signal_set(numbers), os.O_CLOEXEC))


def _signal_set(numbers: Iterable[int]) -> bytes:
    """``sigset_t``: 128 bytes in glibc and musl, bit n - 1 for signal n."""
    return sum(1 << number - 1 for number in numbers).to_bytes(128, "little")


def set_dumpable(dumpable: bool) -> None:
    """Whether others may trace the process and see what it has open and mapped; a fork inherits it, an exec sets it."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def keep_capabilities() -> None:
    """Through the next change of all uids to another than 0; an exec forgets it."""
    _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))


def drop_from_bounding_set(capability: int) -> None:
    _check(_libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))


def set_ambient(capabilities: int) -> None:
    """Bits of those that are both permitted and inheritable."""
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    for number in range(64):
        if capabilities >> number & 1:
            _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))


class Capabilities(ctypes.Structure):
    """``struct __user_cap_header_struct``, then two of ``__user_cap_data_struct``: linux/capability.h."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("pid", ctypes.c_int),
        ("data", ctypes.c_uint32 * 6),  # effective, permitted, inheritable; the low halves, then the high ones
    )


def get_permitted() -> int:
    """Bits of the caller's permitted capabilities."""
    held = Capabilities(version=_LINUX_CAPABILITY_VERSION_3)
    _check(_libc.capget(ctypes.byref(held), held.data))
    return int(held.data[1]) | int(held.data[4]) << 32


def capabilities_of(effective: int, permitted: int, inheritable: int) -> Capabilities:
    made = Capabilities(version=_LINUX_CAPABILITY_VERSION_3)
    for place, bits in enumerate((effective, permitted, inheritable)):
        made.data[place], made.data[place + 3] = bits & 0xFFFFFFFF, bits >> 32
    return made


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    wanted = capabilities_of(effective, permitted, inheritable)
    _check(_libc.capset(ctypes.byref(wanted), wanted.data))


def set_no_new_privs() -> None:
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


class FilterProgram(ctypes.Structure):
    """``struct sock_fprog``: linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def set_seccomp(program: bytes) -> None:
    """Add a filter, of ``struct sock_filter``, 8 bytes each. Needs no_new_privs or CAP_SYS_ADMIN."""
    filter_ = FilterProgram(len(program) // 8, program)
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_), 0, 0))


# The C library's own, which it lets nobody else set (signal(7)); its posix_spawn leaves them ignored unless told.
_LIBRARY_SIGNALS = (32, 33)
_DEFAULT_ACTION = bytes(32)  # struct sigaction of the kernel: SIG_DFL
_SYS_RT_SIGACTION = {"x86_64": 13, "i686": 174, "armv7l": 174, "ppc64le": 173, "s390x": 174}
_SYS_RT_SIGACTION_GENERIC = 134


def reset_library_signals() -> None:
    """Set those to default, for whatever the caller forks."""
    number = _SYS_RT_SIGACTION.get(machine(), _SYS_RT_SIGACTION_GENERIC)
    for library_signal in _LIBRARY_SIGNALS:
        _check(_libc.syscall(number, library_signal, _DEFAULT_ACTION, None, 8))


_POSIX_SPAWN_SETPGROUP, _POSIX_SPAWN_SETSIGDEF, _POSIX_SPAWN_SETSIGMASK, _POSIX_SPAWN_SETSID = 0x02, 0x04, 0x08, 0x80
_libc.posix_spawn.argtypes = (ctypes.c_void_p, ctypes.c_char_p, *(ctypes.c_void_p,) * 4)
# posix_spawn_file_actions_t, and the pid: what a forked child makes or changes is memory of its own.
_spawn_actions, _spawned = ctypes.create_string_buffer(512), ctypes.c_int()


def spawn_attributes(defaults: Iterable[int], *, session: bool, group: bool) -> ctypes.Array[ctypes.c_char]:
    """``posix_spawnattr_t``, of 336 bytes in glibc and musl: *defaults*, and the C library's own signals, are set to
    default, and none is blocked. In a session or a process group of its own, if so."""
    attributes = ctypes.create_string_buffer(1024)
    flags = _POSIX_SPAWN_SETSIGDEF | _POSIX_SPAWN_SETSIGMASK
    flags |= session * _POSIX_SPAWN_SETSID | group * _POSIX_SPAWN_SETPGROUP
    _libc.posix_spawnattr_init(attributes)
    _libc.posix_spawnattr_setflags(attributes, ctypes.c_short(flags))
    _libc.posix_spawnattr_setsigmask(attributes, _signal_set(()))
    _libc.posix_spawnattr_setsigdefault(attributes, _signal_set((*defaults, *_LIBRARY_SIGNALS)))
    return attributes


def posix_spawn(
    program: bytes,
    arguments: Sequence[bytes],
    variables: Mapping[bytes, bytes],
    streams: Sequence[int],
    attributes: ctypes.Array[ctypes.c_char],
) -> int:
    """As Python's, which can't set the C library's own signals to default.

    :param streams: what become descriptors 0, 1, …
    """
    argv, _kept = _vector(arguments)
    envp, _kept_too = _vector([b"%s=%s" % variable for variable in variables.items()])
    _libc.posix_spawn_file_actions_init(_spawn_actions)
    try:
        for number, fd in enumerate(streams):
            _libc.posix_spawn_file_actions_adddup2(_spawn_actions, fd, number)
        failure = _libc.posix_spawn(
            ctypes.addressof(_spawned),
            program,
            ctypes.addressof(_spawn_actions),
            ctypes.addressof(attributes),
            argv.buffer_info()[0],
            envp.buffer_info()[0],
        )
    finally:
        _libc.posix_spawn_file_actions_destroy(_spawn_actions)
    if failure:
        raise OSError(failure, os.strerror(failure))
    return _spawned.value


def _vector(texts: Sequence[bytes]) -> tuple[array.array[int], array.array[int]]:
    """An array of C strings that ends with NULL, and what they are in: without a type of ctypes for each length."""
    characters = array.array("b", b"\0".join((*texts, b"")))
    place = characters.buffer_info()[0]
    pointers = array.array("L")
    for text in texts:
        pointers.append(place)
        place += len(text) + 1
    pointers.append(0)
    return pointers, characters


def array_of(texts: Iterable[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """An array of C strings that ends with NULL."""
    texts = tuple(texts)
    return (ctypes.c_char_p * (len(texts) + 1))(*texts)


# keyctl is older than the unification of the tables.
_SYS_KEYCTL = {"x86_64": 250, "i686": 288, "armv7l": 311, "ppc64le": 271, "s390x": 280}
_SYS_KEYCTL_GENERIC = 219


def join_new_session_keyring() -> None:
    """Leave the session keyring for a new one without a name."""
    number = _SYS_KEYCTL.get(machine(), _SYS_KEYCTL_GENERIC)
    _check(_libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None))
