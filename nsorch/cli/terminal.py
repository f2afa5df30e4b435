"""The standard streams of the command line, which may be closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TextIO


def is_terminal(stream: TextIO | None) -> bool:
    """None is what Python has for one that was closed when it started."""
    return stream is not None and stream.isatty()


def take_terminal() -> None:
    """Get the terminal back from a command that it was handed on to."""
    if is_terminal(sys.stdin):
        # Writing its foreground group from the background would stop us.
        previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
        signal.signal(signal.SIGTTOU, previous)


def drop_output() -> None:
    """Nobody reads standard output any more: forget what wasn't written, or the interpreter would try again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
