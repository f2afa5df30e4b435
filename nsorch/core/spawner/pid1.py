"""The init of a worker as a program of its own: 517 bytes of code, 8 KiB of memory, and nothing of ours in it.

A forked copy of the interpreter can do the same (:mod:`.reaper`, :mod:`.nursery`), but its fork and its first steps
take 1.5 ms, and the pages that it touches 1.3 MiB. It serves where more is to be done before the command's exec, and on
other machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct

from .command import identify
from .sealed import sealed
from .stages import StageError, stage

# By os.uname().machine: the number of the architecture in linux/elf-em.h, and pid1.S as assembled.
_PROGRAMS = {
    "x86_64": (
        62,
        (
            "488b04244c8d74c410488b5c24104c8b7c24184c8b6c24204c8d642428b89d000000bf0f000000488d35be0100000f05b8b40100"
            "00bf03000000beffffffffba040000000f05803b31752ab8a5000000488d3da7010000488d359a0100004889fa41ba0e00000045"
            "31c00f05bd0100000085c07548b83a0000000f05bd0200000085c078387560807b01317507b8700000000f056a00b80e000000bf"
            "020000004889e631d241ba080000000f05b83b0000004c89ef4c89e64c89f20f05f7d848c1e0204809e850b801000000bf030000"
            "004889e6ba080000000f05b8e7000000bf7d0000000f05498b2f488d5c2410b902000000488b3b4883c3084885ff740d803f0074"
            "efc6070048ffc7ebf3e2e5b8b401000031ffbe0200000031d20f05b850000000488d3dd80000000f056a00b801000000bf030000"
            "004889e6ba080000000f0531c0bf030000004889e6ba080000000f05b803000000bf030000000f056aff4883ec10b83d00000048"
            "c7c7ffffffff488d742408ba010000004531d20f0583f802743385c07fdcb880000000488d7c241031f631d241ba080000000f05"
            "83f81174c185c07ee189c6b83e000000bf020000000f05ebd148892c24b801000000bf040000004889e6ba0c0000000f058b4424"
            "0889c7c1ef0883e07f74068db880000000b8e70000000f056e736f7263682d696e6974002f70726f630070726f63002f00"
        ),
    )
}
_BASE = 0x400000
_ALL_SIGNALS = tuple(map(int, signal.valid_signals()))  # asking for them takes as long as a mount
_FILE_HEADER, _PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_ET_EXEC, _PT_LOAD, _PT_GNU_STACK, _RX, _RW = 2, 1, 0x6474E551, 5, 6
_TOLD, _REPORT = struct.Struct("=ii"), struct.Struct("=8si")
_STAGES = {1: "mount /proc", 2: "exec"}


def assembled(machine: str) -> bytes | None:
    """The program for *machine*, as an ELF file (elf(5)); None if there is none."""
    if machine not in _PROGRAMS:
        return None
    number, code = _PROGRAMS[machine][0], bytes.fromhex(_PROGRAMS[machine][1])
    start = _FILE_HEADER.size + 2 * _PROGRAM_HEADER.size
    size = start + len(code)
    return b"".join(
        (
            _FILE_HEADER.pack(
                b"\x7fELF\2\1\1", _ET_EXEC, number, 1, _BASE + start, _FILE_HEADER.size, 0, 0, 64, 56, 2, 0, 0, 0
            ),
            _PROGRAM_HEADER.pack(_PT_LOAD, _RX, 0, _BASE, _BASE, size, size, 4096),
            _PROGRAM_HEADER.pack(_PT_GNU_STACK, _RW, 0, 0, 0, 0, 0, 16),  # or the stack could be executed
            code,
        )
    )


class Pid1:
    """Starts commands below it. The program is a file that exists in memory alone, and that nobody can change."""

    def __init__(self, file: int) -> None:
        self._path = f"/proc/self/fd/{file}"
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reports, report = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)
        self._report = report

    @classmethod
    def prepare(cls) -> Pid1 | None:
        """None where it can't run: on other machines, where vm.memfd_noexec or a security module forbids it, or where
        the kernel doesn't tell who is whose child (CONFIG_PROC_CHILDREN)."""
        program = assembled(os.uname().machine)
        if program is None or not os.path.exists("/proc/thread-self/children"):
            return None
        with contextlib.suppress(OSError):
            file = sealed("nsorch-init", program)
            # Without an argument it ends at once, by a signal: no more is asked here than whether it may be executed.
            os.waitpid(os.posix_spawn(f"/proc/self/fd/{file}", ("nsorch-init",), {}), 0)
            return cls(file)
        return None

    def can_start(self) -> bool:
        """Whether the caller's mount namespace has a /proc that knows the caller."""
        return os.path.exists(self._path)

    def start(
        self,
        job: int,
        program: bytes,
        argv: tuple[bytes, ...],
        env: dict[bytes, bytes],
        streams: tuple[int, int, int],
        ignored: tuple[int, ...],
        proc: int,
        host_proc: int,
        *,
        mount_proc: bool,
        session: bool,
    ) -> tuple[int, int, int, int]:
        """Run a command below an init, the first process of the pid namespace of the caller's children.

        :param ignored: signals that the caller ignores, and the command doesn't
        :param proc: descriptor of the caller's /proc
        :param host_proc: and of the host's
        :return: pid of the init; of the command, whose exec has happened, pidfd, pid as the host sees it, and the inode
            of its pid namespace
        :raises StageError: both are gone, or will be; the caller reaps the init
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs, stage("init"):
                numbers = (*streams, theirs.fileno(), self._report)
                init = os.posix_spawn(
                    self._path,
                    ("nsorch-init", f"{mount_proc:d}{session:d}", f"{job:08x}", program, *argv),
                    env,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(numbers)],
                    setsigmask=_ALL_SIGNALS,
                    setsigdef=ignored,
                )
            try:
                with stage("init"):
                    return init, *self._hear(ours, init, program, proc, host_proc)
            except StageError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(init, signal.SIGKILL)
                raise

    @staticmethod
    def _hear(ours: socket.socket, init: int, program: bytes, proc: int, host_proc: int) -> tuple[int, int, int]:
        """Wait for the exec; pidfd, pid and inode as :meth:`start` returns them."""
        stage_number, error = _TOLD.unpack(ours.recv(_TOLD.size) or _TOLD.pack(1, errno.EIO))
        if stage_number:
            raise StageError(_STAGES[stage_number], error, os.fsdecode(program) if stage_number == 2 else "")
        # Now, because the init reaps once our end is closed. The first: those that it has left to the init come behind.
        children = os.open(f"{init}/task/{init}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        with open(children, "rb") as file:
            pids = file.read().split(None, 1)
        if not pids:
            raise ProcessLookupError(errno.ESRCH, "it was killed")
        pidfd = os.pidfd_open(int(pids[0]))
        try:
            return pidfd, *identify(pidfd, host_proc)
        except OSError:
            os.close(pidfd)
            raise

    def read_ends(self) -> list[tuple[int, int]]:
        """(job, wait status) of commands that have ended since; before their inits can be reaped, they are there."""
        try:
            reports = os.read(self._reports, 4096 * _REPORT.size)
        except BlockingIOError:
            return []
        return [(int(job, 16), status) for job, status in _REPORT.iter_unpack(reports)]
