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

import array
import ctypes
import errno
import mmap
import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from .stages import StageError
from .syscalls import CLONE_INTO_CGROUP, CLONE_PIDFD, CloneArgs, array_of, machine, protect

if TYPE_CHECKING:
    from collections.abc import Iterable

    _Memory = ctypes.Array[Any] | ctypes.Structure

# By syscalls.machine(): script.S as assembled.
_PROGRAMS = {
    "x86_64": (
        "4989c94989d0b8b30100000f054885c07401c34c89cb4d89c4498b0424498b7c2408498b742410498b5424184d8b5424204d8b44"
        "24284d8b4c24300f05483d01f0ffff732b498d742438488b164885d2740b4801d6488b16488906ebf0498b5424484885c0490f44"
        "5424504901d4eba948f7d8498b7c2440480fa3c773074d03642458eb94498904244c8923b8e7000000bf7d0000000f05"
    )
}

# Numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl), the only machine that has a program.
READ, WRITE, SIGACTION, SIGPROCMASK, IOCTL, DUP2 = 0, 1, 13, 14, 16, 33
SOCKET, EXECVE, CHDIR, FCHDIR, UMASK, SETPGID, SETSID = 41, 59, 80, 81, 95, 109, 112
PIVOT_ROOT, MOUNT, UMOUNT, SETHOSTNAME, SETDOMAINNAME = 155, 165, 166, 170, 171
OPENAT, MKDIRAT, MKNODAT, SYMLINKAT, UNSHARE, SETNS, EXECVEAT = 257, 258, 259, 266, 272, 308, 322
SETGROUPS, SETRESUID, SETRESGID, CAPSET, PRCTL, SETRLIMIT, EXIT = 116, 117, 119, 126, 157, 160, 231
KEYCTL, CLONE3 = 250, 435

AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
_CLONE_VM = 0x100
_CLONE_CLEAR_SIGHAND = 0x100000000  # the handlers are the interpreter's, and would run in its memory

_CALL, _WORD = 12, 8  # numbers of a call, and bytes of each
_RESULT, _TOLERATED, _NEXT, _NEXT_AFTER_0, _NEXT_FAILED = 7, 8, 9, 10, 11  # places among them
_UNUSED = (0,) * 6
_ONE = _WORD * _CALL


class Failure(NamedTuple):
    """What the failure of a call means.

    :ivar tolerated: bits of the errnos that don't end all, modulo 64
    :ivar done: how many calls further it goes on when there is none
    """

    tolerated: int = 0
    done: int = 1


def errnos(*numbers: int) -> int:
    """As bits."""
    return sum(1 << number for number in numbers)


#: all of them
ANY = -1
FATAL, OPTIONAL = Failure(), Failure(ANY)
#: if there is none, the next call is left out
OR_NEXT = Failure(ANY, done=2)
#: which the next of several programs may not have
OR_NEXT_PROGRAM = Failure(errnos(errno.ENOENT, errno.EACCES, errno.ENOTDIR))


class Result(int):
    """What a call of a script will return, as an argument of later ones: its place."""

    __slots__ = ()


class Script:
    """The calls of one child, or of a part of it."""

    __slots__ = ("_ends", "_memory", "_numbers", "_stages")

    def __init__(self) -> None:
        self._numbers = array.array("q")  # of all calls, 12 each
        self._ends: dict[Result, int] = {}  # where the way to all that becomes the result ends so far
        self._stages: list[tuple[str, str]] = []
        self._memory: list[object] = []  # what it has addresses of

    def text(self, text: bytes) -> int:
        """The address of a C string."""
        return self.keep(ctypes.create_string_buffer(text))

    def texts(self, texts: Iterable[bytes]) -> int:
        """The address of an array of C strings that ends with NULL."""
        return self.keep(array_of(texts))

    def keep(self, memory: _Memory) -> int:
        """The address of *memory*, which lives as long as the script."""
        self._memory.append(memory)
        return ctypes.addressof(memory)

    def call(self, stage: tuple[str, str], number: int, *arguments: int, failure: Failure = FATAL) -> Result:
        """Add a call.

        :param stage: of the :class:`StageError` that it would be, and its detail
        :param arguments: results of earlier calls of this script among them; not of those that may have failed
        """
        place = len(self._numbers)
        done = failure.done * _ONE
        self._numbers.extend((number, *arguments, *_UNUSED[len(arguments) :], 0, failure.tolerated, done, done, _ONE))
        self._stages.append(stage)
        for target, argument in enumerate(arguments, place + 1):
            if type(argument) is Result:
                end = self._ends.get(argument, argument)
                self._numbers[end] = (target - end) * _WORD
                self._numbers[target] = 0
                self._ends[argument] = target
        return Result(place + _RESULT)

    def skip_failed(self, calls: range, tolerated: int, to: int) -> None:
        """After a failure of *calls* by one of *tolerated*, go on with the call *to*, but for calls that have their own
        way to go on."""
        for call in calls:
            place = call * _CALL
            if not self._numbers[place + _TOLERATED]:
                self._numbers[place + _TOLERATED] = tolerated
                self._numbers[place + _NEXT_FAILED] = (to - call) * _ONE

    def skip_done(self, call: int, to: int) -> None:
        """Where *call* doesn't fail, go on with the call *to*."""
        self._numbers[call * _CALL + _NEXT] = (to - call) * _ONE
        self.skip_zero(call, to)

    def skip_zero(self, call: int, to: int) -> None:
        """Where *call* returns 0, go on with the call *to*."""
        self._numbers[call * _CALL + _NEXT_AFTER_0] = (to - call) * _ONE

    def __len__(self) -> int:
        """How many calls there are."""
        return len(self._stages)

    def add(self, part: Script) -> None:
        """Add what *part* does, to which nothing is added any more."""
        self._numbers.extend(part._numbers)
        self._stages += part._stages
        self._memory.append(part)

    def fork(self) -> int:
        """Add the making of a child, which makes calls of the same list, as :meth:`skip_zero` says.

        :return: the call
        """
        args = CloneArgs(flags=_CLONE_VM | _CLONE_CLEAR_SIGHAND, exit_signal=signal.SIGCHLD)
        self.call(("clone3", ""), CLONE3, self.keep(args), ctypes.sizeof(args))
        return len(self) - 1

    def duplicate(self, fd: int, number: int) -> None:
        """Have *fd* as *number*, for the program, too. It must be another."""
        self.call(("streams", ""), DUP2, fd, number)

    def arrange(self) -> tuple[int, int]:
        """Nothing is added any more. Addresses of the calls, and of where it will be said which has failed."""
        self._numbers.append(0)
        calls, numbers = self._numbers.buffer_info()
        return calls, calls + _WORD * (numbers - 1)

    def failure(self) -> StageError | None:
        """The call that has failed, once the child is through; None if its exec has happened, or it was killed."""
        if not (failed := self._numbers[-1]):
            return None
        place = (failed - self._numbers.buffer_info()[0]) // _WORD
        stage, detail = self._stages[place // _CALL]
        return StageError(stage, self._numbers[place], detail)


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
        program = assembled(machine())
        if program is None:
            return None
        try:
            return cls(program)
        except OSError:
            return None

    def begin(self, script: Script, kinds: int, cgroup: int = -1) -> tuple[int, int]:
        """Begin a child in new namespaces of *kinds*, with all signals blocked, as the caller's must be.

        :param cgroup: descriptor of the one that it begins in, or -1
        :param script: keep it, and this, until the child is through, by an exec or by its death
        :return: its pid, and a pidfd
        :raises OSError: of clone3
        """
        pidfd = ctypes.c_int(-1)
        flags = kinds | _CLONE_VM | _CLONE_CLEAR_SIGHAND | CLONE_PIDFD
        args = CloneArgs(flags=flags, pidfd=ctypes.addressof(pidfd), exit_signal=signal.SIGCHLD)
        if cgroup >= 0:
            args.flags |= CLONE_INTO_CGROUP
            args.cgroup = cgroup
        pid = self._begin(ctypes.addressof(args), ctypes.sizeof(args), *script.arrange())
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid, pidfd.value


def assembled(machine: str) -> bytes | None:
    """The program for *machine*; None if there is none."""
    return bytes.fromhex(_PROGRAMS[machine]) if machine in _PROGRAMS else None
