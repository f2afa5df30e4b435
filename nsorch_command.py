"""The ``nsorch`` command before anything else is imported, which takes a while: Ctrl-C ends it quietly from here on."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point of the console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    from nsorch.cli import main as command

    command()
