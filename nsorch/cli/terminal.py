"""The standard streams of the command line, which may be closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def is_terminal(stream: TextIO | None) -> bool:
    """None is what Python has for one that was closed when it started."""
    return stream is not None and stream.isatty()


@contextlib.contextmanager
def lent_terminal() -> Iterator[Callable[[int], None]]:
    """Hand the terminal, if there is one, on to a command, and get it back. Gives what is to be told its return code.

    As shells do, modes are set back where the command had no chance to do that: a signal ended it, or we do.
    """
    ended = -1

    def tell(code: int) -> None:
        nonlocal ended
        ended = code

    if not is_terminal(sys.stdin):
        yield tell
        return
    fd = sys.stdin.fileno()
    modes = _modes(fd)
    try:
        yield tell
    finally:
        # Writing to it from the background would stop us.
        previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.tcsetpgrp(fd, os.getpgrp())
        if modes is not None and ended < 0:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSANOW, modes)
        signal.signal(signal.SIGTTOU, previous)


def _modes(fd: int) -> list[Any] | None:
    try:
        return termios.tcgetattr(fd)
    except termios.error:  # it has been hung up
        return None


def drop_output(number: int = 1) -> None:
    """Nobody reads descriptor *number* any more: forget what wasn't written, or the interpreter would try again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
