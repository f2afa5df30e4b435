"""The ``nsorch`` command, over the public surface alone."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from nsorch.cli.command import nsorch

    nsorch(prog_name="nsorch")
