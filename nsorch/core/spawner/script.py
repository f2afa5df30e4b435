"""Children that make a list of system calls, up to an execve, and run nothing else.

A forked copy of the interpreter can do more, but its fork and its first steps take 1.5 ms, most of it for pages that
are copied; and what posix_spawn starts has its caller wait for the exec. This child shares the memory of the
interpreter, uses none of it but the list, and the caller goes on: it makes the next one while this one mounts and
executes on another processor.

Nothing may be done that concerns all who share the memory: user and time namespaces, credentials, limited memory, and
what makes a process traceable or not are for forked children. Nobody but the caller's own processes may see the child
before its exec, so it is the first of a new pid namespace.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from typing import TYPE_CHECKING, Any

from .stages import StageError
from .syscalls import CLONE_PIDFD, CloneArgs, protect

if TYPE_CHECKING:
    from collections.abc import Iterable

# By os.uname().machine: script.S as assembled.
_PROGRAMS = {
    "x86_64": (
        "4989c94989d0b8b30100000f054885c07401c34c89cb4d89c4498b0424498b7c2408498b742410498b5424184d8b5424204d8b44"
        "24284d8b4c24300f05498b742438498b7c2440483d01f0ffff73184885f674034889064883ff0275044983c4484983c448ebb248"
        "f7d84883ff0372144883f80274eb4883f80d74e54883f81474dfeb054885ff75d8498904244c8923b8e7000000bf7d0000000f05"
    )
}

# Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl), the only machine that has a program.
READ, WRITE, SIGACTION, SIGPROCMASK, IOCTL, DUP2 = 0, 1, 13, 14, 16, 33
SOCKET, EXECVE, CHDIR, SETSID, MOUNT, UMOUNT = 41, 59, 80, 112, 165, 166
SETHOSTNAME, SETDOMAINNAME, OPENAT, UNSHARE, SETNS, EXECVEAT = 170, 171, 257, 272, 308, 322

AT_EMPTY_PATH = 0x1000
_CLONE_VM = 0x100
_CLONE_CLEAR_SIGHAND = 0x100000000  # the handlers are the interpreter's, and would run in its memory

#: what the failure of a call means, see script.S
FATAL, OPTIONAL, OR_NEXT, OR_NEXT_PROGRAM = range(4)

_CALL, _WORD = 9, 8  # numbers of a call, and bytes of each
_UNUSED = (0,) * 6
_NO_CALLS = (ctypes.c_long * 1)()


class Script:
    """The calls of one child."""

    __slots__ = ("_list", "_memory", "_numbers", "_results", "_stages")

    def __init__(self) -> None:
        self._numbers: list[int] = []  # of all calls, 9 each
        self._results: list[tuple[int, int]] = []  # places in it: where an address is to be, of what
        self._stages: list[tuple[str, str]] = []
        self._memory: list[object] = []  # what it has addresses of
        self._list: ctypes.Array[ctypes.c_long] = _NO_CALLS

    def text(self, text: bytes) -> int:
        """The address of a C string."""
        return self.keep(ctypes.create_string_buffer(text))

    def texts(self, texts: Iterable[bytes]) -> int:
        """The address of an array of C strings that ends with NULL."""
        return self.keep(array_of(texts))

    def keep(self, memory: ctypes.Array[Any]) -> int:
        """The address of *memory*, which lives as long as the script."""
        self._memory.append(memory)
        return ctypes.addressof(memory)

    def call(
        self,
        stage: tuple[str, str],
        number: int,
        *arguments: int,
        failure: int = FATAL,
        result_to: int | None = None,
    ) -> None:
        """Add a call.

        :param stage: of the :class:`StageError` that it would be, and its detail
        :param result_to: the argument of the next call that its result becomes
        """
        self._numbers += (number, *arguments, *_UNUSED[len(arguments) :], 0, failure)
        self._stages.append(stage)
        if result_to is not None:
            end = len(self._numbers)
            self._results.append((end - 2, end + 1 + result_to))

    def duplicate(self, fd: int, number: int) -> None:
        """Have *fd* as *number*, for the program, too. It must be another."""
        self.call(("streams", ""), DUP2, fd, number)

    def arrange(self) -> tuple[int, int]:
        """Nothing is added any more. Addresses of the calls, and of where it will be said which has failed."""
        self._list = (ctypes.c_long * (len(self._numbers) + 1))(*self._numbers)
        calls = ctypes.addressof(self._list)
        for place, target in self._results:
            self._list[place] = calls + _WORD * target
        return calls, calls + _WORD * len(self._numbers)

    def failure(self) -> StageError | None:
        """The call that has failed, once the child is through; None if its exec has happened, or it was killed."""
        if not (failed := self._list[-1]):
            return None
        place = (failed - ctypes.addressof(self._list)) // _WORD
        stage, detail = self._stages[place // _CALL]
        return StageError(stage, self._list[place], detail)


def array_of(texts: Iterable[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """An array of C strings that ends with NULL."""
    texts = tuple(texts)
    return (ctypes.c_char_p * (len(texts) + 1))(*texts)


class Scripts:
    """Begins them."""

    def __init__(self, program: bytes) -> None:
        self._pages = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._pages.write(program)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
        kind = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
        self._begin = kind(address)

    @classmethod
    def prepare(cls) -> Scripts | None:
        """None where it can't run: on other machines, or where a security module forbids it."""
        program = assembled(os.uname().machine)
        if program is None:
            return None
        try:
            return cls(program)
        except OSError:
            return None

    def begin(self, script: Script, kinds: int) -> tuple[int, int]:
        """Begin a child in new namespaces of *kinds*, with all signals blocked, as the caller's must be.

        :param script: keep it, and this, until the child is through, by an exec or by its death
        :return: its pid, and a pidfd
        :raises OSError: of clone3
        """
        pidfd = ctypes.c_int(-1)
        flags = kinds | _CLONE_VM | _CLONE_CLEAR_SIGHAND | CLONE_PIDFD
        args = CloneArgs(flags=flags, pidfd=ctypes.addressof(pidfd), exit_signal=signal.SIGCHLD)
        pid = self._begin(ctypes.addressof(args), ctypes.sizeof(args), *script.arrange())
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid, pidfd.value


def assembled(machine: str) -> bytes | None:
    """The program for *machine*; None if there is none."""
    return bytes.fromhex(_PROGRAMS[machine]) if machine in _PROGRAMS else None
