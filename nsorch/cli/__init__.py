"""The ``nsorch`` command, over the public surface alone."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """Entry point of the console script, and of ``python -m nsorch``."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))  # quietly: what follows takes a while
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names may be in any script
    from nsorch.cli import command

    command.main()
