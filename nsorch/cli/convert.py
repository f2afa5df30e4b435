"""``nsorch import``: files of other tools as topology files."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import click

from nsorch import Topology

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS: dict[str, Callable[[str], Topology]] = {
    "containerlab": Topology.from_containerlab,
    "munet": Topology.from_munet,
    "graphml": Topology.load,
}


def convert(kind: str, file: str, output: str | None) -> None:
    """Write it to *output*, by its suffix, or as TOML to standard output; the notes go to standard error."""
    topology = KINDS[kind](file)
    if output is not None:
        topology.dump(output)
    else:
        with tempfile.NamedTemporaryFile("r", suffix=".toml") as target:
            topology.dump(target.name)
            click.echo(target.read(), nl=False)
    for note in topology.notes:
        click.echo(f"nsorch: {note}", err=True)
