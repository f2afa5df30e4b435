"""The ``nsorch`` command, over the public surface alone."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """What the console script comes to, and ``python -m nsorch``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names may be in any script
    from nsorch.cli.command import nsorch

    nsorch(prog_name="nsorch")
