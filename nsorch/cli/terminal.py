"""The standard streams of the command line, which may be closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from typing import TYPE_CHECKING, Any, TextIO

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds between looks for a stop, which the kernel tells to the parent alone; to the first, sooner than anybody types.
_INTERVAL, _EARLY = 0.1, 0.02


def is_terminal(stream: TextIO | None) -> bool:
    """None is what Python has for one that was closed when it started."""
    return stream is not None and stream.isatty()


class Loan:
    """The terminal while a command has it. Without one, nothing happens."""

    def __init__(self) -> None:
        self.code = -1  #: return code of the command; as if a signal had ended it, until it is known
        self._fd = sys.stdin.fileno() if is_terminal(sys.stdin) else -1
        self._modes = None if self._fd < 0 else _modes(self._fd)
        self._lent = self._fd >= 0 and _foreground(self._fd) in (None, os.getpgrp())
        #: whether the command is a job by itself; not in a pipeline, whose other programs may need the terminal, too
        self.to_a_job = is_terminal(sys.stdout) and self._fd >= 0 and _foreground(self._fd) is not None

    async def follow(self, pid: int) -> None:
        """As shells do: whenever we have the terminal, the process group of *pid* gets it, and whenever that stops
        (Ctrl-Z), so do we, until somebody lets us go on."""
        self._lent, early = False, True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while True:
                self._hand_over(pid)
                await anyio.sleep(_EARLY if early else _INTERVAL)
                if _is_stopped(pid):
                    if not early:  # it may have asked for the terminal before it had it
                        self._take_back()
                        os.killpg(0, signal.SIGTSTP)
                        self._hand_over(pid)
                    os.killpg(os.getpgid(pid), signal.SIGCONT)
                early = False

    def _hand_over(self, pid: int) -> None:
        if _foreground(self._fd) == os.getpgrp():
            self._lent = True
            _set_foreground(self._fd, os.getpgid(pid))

    def _take_back(self) -> None:
        if self._lent:
            self._lent = False
            _set_foreground(self._fd, os.getpgrp())

    def end(self) -> None:
        """Get it back. Modes are set back where the command had no chance to do that: a signal ended it, or we do."""
        if self._lent and _foreground(self._fd) != os.getpgid(os.getppid()):  # a shell that has put us aside
            _set_foreground(self._fd, os.getpgrp())
        if self._lent and self._modes is not None and self.code < 0:
            with _unstopped(), contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._modes)
        if self.to_a_job and self._lent and self.code == -signal.SIGINT:
            os.killpg(0, signal.SIGINT)  # the script, say, that has begun us, and would have had the Ctrl-C as well


@contextlib.contextmanager
def lent_terminal() -> Iterator[Loan]:
    """Hand the terminal, if there is one, on to a command, and get it back."""
    loan = Loan()
    try:
        yield loan
    finally:
        loan.end()


def _foreground(fd: int) -> int | None:
    """The process group that the terminal obeys; None where it isn't our controlling one, or has been hung up."""
    try:
        return os.tcgetpgrp(fd)
    except OSError:
        return None


def _set_foreground(fd: int, group: int) -> None:
    with _unstopped(), contextlib.suppress(OSError):
        os.tcsetpgrp(fd, group)


@contextlib.contextmanager
def _unstopped() -> Iterator[None]:
    """Changing a terminal from the background would stop us."""
    previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, previous)


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False


def _modes(fd: int) -> list[Any] | None:
    try:
        return termios.tcgetattr(fd)
    except termios.error:  # it has been hung up
        return None


def drop_output(number: int = 1) -> None:
    """Nobody reads descriptor *number* any more: forget what wasn't written, or the interpreter would try again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
