"""The init of a worker as a program of its own: 562 bytes of code, 8 KiB of memory, and nothing of ours in it.

A forked copy of the interpreter can do the same (:mod:`.reaper`, :mod:`.nursery`), but its fork and its first steps
take 1.5 ms, and the pages that it touches 1.3 MiB. It serves where more is to be done before the command's exec than a
script can do, and on other machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import struct
from typing import TYPE_CHECKING

from .protocol import Session
from .script import AT_EMPTY_PATH, EXECVEAT, SETPGID
from .sealed import sealed
from .stages import StageError, stage
from .syscalls import machine

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from .protocol import Command
    from .script import Script

# By syscalls.machine(): the number of the architecture in linux/elf-em.h, and pid1.S as assembled.
_PROGRAMS = {
    "x86_64": (
        62,
        (
            "488b04244c8d74c410488b5c24104c8b7c24184c8d6c24204d89ec498b04244983c40880380075f3b89d000000bf0f000000488d"
            "35eb0100000f05b8b4010000bf03000000beffffffffba040000000f05803b320f8486000000b83a0000000f0585c00f8fb60000"
            "007552803b317507b8700000000f056a00b80e000000bf020000004889e631d241ba080000000f05b83b000000498b7d004c89e6"
            "4c89f20f054983c508498b7d00803f00740f83f8fe74dd83f8f374d883f8ec74d3f7d850b801000000bf030000004889e6ba0400"
            "00000f05b8e7000000bf7d0000000f05b89d000000bf0400000031f60f05b801000000bf050000004889deba010000000f0531c0"
            "bf050000004889deba010000000f05b803000000bf050000000f05498b2f488d5c2410b902000000488b3b4883c3084885ff740d"
            "803f0074efc6070048ffc7ebf3e2e5b8b401000031ffbe0200000031d20f05b850000000488d3dcd0000000f056a00b801000000"
            "bf030000004889e6ba040000000f0531c0bf030000004889e6ba080000000f05b803000000bf030000000f056aff4883ec10b83d"
            "00000048c7c7ffffffff488d742408ba010000004531d20f0583f802743385c07fdcb880000000488d7c241031f631d241ba0800"
            "00000f0583f81174c185c07ee189c6b83e000000bf020000000f05ebd148892c24b801000000bf040000004889e6ba0c0000000f"
            "058b44240889c7c1ef0883e07f74068db880000000b8e70000000f056e736f7263682d696e6974002f00"
        ),
    )
}
_BASE = 0x400000
_FILE_HEADER, _PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
_ET_EXEC, _PT_LOAD, _PT_GNU_STACK, _RX, _RW = 2, 1, 0x6474E551, 5, 6
_TOLD, _REPORT = struct.Struct("=i"), struct.Struct("=8sH2x")
_JOB = re.compile(rb"[0-9a-f]{8}")


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
        self._file = file
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reports, report = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)
        self._report = report

    @classmethod
    def prepare(cls) -> Pid1 | None:
        """None where it can't run: on other machines, where vm.memfd_noexec or a security module forbids it, or where
        the kernel doesn't tell who is whose child (CONFIG_PROC_CHILDREN)."""
        program = assembled(machine())
        if program is None or not os.path.exists("/proc/thread-self/children"):
            return None
        with contextlib.suppress(OSError):
            file = sealed("nsorch-init", program)
            # No more is asked here than whether it may be executed: adopting nobody, it waits for signals.
            pid = os.posix_spawn(f"/proc/self/fd/{file}", ("nsorch-init", "2", "00000000", ""), {})
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return cls(file)
        return None

    def add_to(
        self,
        script: Script,
        command: Command,
        programs: Sequence[bytes],
        environment: int,
        job: int,
        told: int,
        *,
        apart: bool,
    ) -> None:
        """Have *script* end as an init that runs *command*, and tells *told*, which is no standard stream.

        :param programs: to be tried, as execvp does
        :param environment: address of the command's
        :param apart: *told* is told of the end, too, not what all have in common: the command may be hostile, and have
            rights over its init
        """
        if command.session == Session.GROUP:  # the command is in that of its init, which it sees
            script.call(("session", ""), SETPGID, 0, 0)
        flags = b"%d" % (command.session == Session.NEW)
        argv = (b"nsorch-init", flags, b"%08x" % job, *programs, b"", *command.argv)
        self._add(script, script.texts(argv), environment, told, apart)

    def adopt(self, script: Script, job: int, told: int, child: int, *, apart: bool) -> None:
        """Have *script* end as the init of process 2, else as :meth:`add_to`.

        :param child: a socket: when it can't be traced, the init sends a byte, and then waits for the end of file
        """
        script.duplicate(child, 5)
        self._add(script, script.texts((b"nsorch-init", b"2", b"%08x" % job, b"")), script.texts(()), told, apart)

    def _add(self, script: Script, argv: int, environment: int, told: int, apart: bool) -> None:
        script.duplicate(told, 3)
        script.duplicate(told if apart else self._report, 4)
        script.call(("init", ""), EXECVEAT, self._file, script.text(b""), argv, environment, AT_EMPTY_PATH)

    @staticmethod
    def hear(told: bytes, init: int, proc: int) -> int:
        """A pidfd of the command below *init*, whose exec has happened, and which isn't reaped before the socket is
        closed.

        :param told: what the socket said
        :param proc: descriptor of the caller's /proc
        :raises StageError: there is none, or it was killed
        """
        if len(told) != _TOLD.size:
            raise StageError("init", errno.EPROTO)
        (error,) = _TOLD.unpack(told)
        if error:
            raise StageError("exec", error)
        with stage("init"):
            # The first: those that it has left to the init come behind.
            try:
                children = os.open(f"{init}/task/{init}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
                with open(children, "rb") as file:
                    pids = file.read().split(None, 1)
            except FileNotFoundError:  # nor is the init there any more
                pids = []
            if not pids:
                raise ProcessLookupError(errno.ESRCH, "it was killed")
            return os.pidfd_open(int(pids[0]))

    def read_ends(self) -> list[tuple[int, int]]:
        """(job, wait status) of commands that have ended since; before their inits can be reaped, they are there."""
        try:
            reports = os.read(self._reports, 4096 * _REPORT.size)
        except BlockingIOError:
            return []
        whole = reports[: len(reports) // _REPORT.size * _REPORT.size]
        found = ((job, _end_of(status)) for job, status in _REPORT.iter_unpack(whole))
        return [(int(job, 16), status) for job, status in found if _JOB.fullmatch(job) and status is not None]

    @staticmethod
    def read_end(told: socket.socket) -> int | None:
        """The wait status of a command that had *told* for itself; None where its init was killed, or was changed."""
        try:
            report = told.recv(_REPORT.size + 1)
        except OSError:
            return None
        return _end_of(_REPORT.unpack(report)[1]) if len(report) == _REPORT.size else None


def _end_of(status: int) -> int | None:
    """It, if it is that of a process that has ended."""
    return status if os.WIFEXITED(status) or os.WIFSIGNALED(status) else None
