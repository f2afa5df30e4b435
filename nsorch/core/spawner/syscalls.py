"""The system calls that Python 3.11 doesn't have, as thin functions that raise :class:`OSError`.

``ctypes.PyDLL`` keeps the interpreter lock: the helpers have one thread, and a child of clone3 must own the lock.
"""

from __future__ import annotations

import ctypes
import os

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

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# One number on every architecture: the tables were unified before these calls came (asm-generic/unistd.h).
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_CLONE3 = 430, 431, 432, 435
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


class _CloneArgs(ctypes.Structure):
    """``struct clone_args``, first version (CLONE_ARGS_SIZE_VER0, 64 bytes): linux/sched.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    )


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def setns(fd: int, kinds: int) -> None:
    _check(_libc.setns(fd, kinds))


_SIGCHLD = 17


def clone3(flags: int) -> tuple[int, int]:
    """Fork with *flags*. Returns (pid, pidfd), in the child (0, -1); pidfd is -1 unless CLONE_PIDFD is in flags.

    The child is a copy of a single-threaded interpreter, so none of the at-fork handlers is needed.
    """
    pidfd = ctypes.c_int(-1)
    # With CLONE_PARENT the caller's own exit signal counts, and giving one is an error.
    args = _CloneArgs(flags=flags, exit_signal=0 if flags & CLONE_PARENT else _SIGCHLD)
    if flags & CLONE_PIDFD:
        args.pidfd = ctypes.addressof(pidfd)
    pid = _check(_libc.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args))))
    return pid, pidfd.value if pid else -1


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode() or None))


def umount(target: str, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags))


def detached_mount(kind: str) -> int:
    """Mount a file system of *kind* nowhere; the descriptor returned is its root, and its only reference."""
    context = _check(_libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC))
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        return _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)


def set_parent_death_signal(signal: int) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0))


def become_subreaper() -> None:
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def signalfd(*numbers: int) -> int:
    """A descriptor that gives *numbers*, which must be blocked; 128 bytes each, the number first.

    It gives the signals of the process that reads, so a forked child may use it for its own.
    """
    # sigset_t is 128 bytes in glibc and musl, bit n - 1 for signal n.
    mask = sum(1 << number - 1 for number in numbers).to_bytes(128, "little")
    return _check(_libc.signalfd(-1, mask, os.O_CLOEXEC))
