"""``nsorch graph``: a topology drawn, or in the language of another program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from nsorch import Topology

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITERS: dict[str, Callable[[Topology], str]] = {
    "dot": Topology.to_dot,
    "mermaid": Topology.to_mermaid,
    "graphml": Topology.to_graphml,
    "svg": Topology.to_svg,
    "json": lambda topology: topology.to_json() + "\n",
}
_SUFFIXES = {".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".graphml": "graphml", ".svg": "svg", ".json": "json"}
FORMATS = tuple(_WRITERS)


def write_graph(file: str, form: str | None, output: str | None) -> None:
    """Write the topology of *file* to *output*, or standard output; without *form* the suffix of *output* decides."""
    topology = Topology.load(file)
    if form is None:
        suffix = os.path.splitext(output or "")[1].lower()
        if output is not None and suffix not in _SUFFIXES:
            raise click.UsageError(f'"{suffix}" is none of {", ".join(_SUFFIXES)}: choose a --format')
        form = _SUFFIXES.get(suffix, "dot")
    text = _WRITERS[form](topology)
    for note in topology.notes:
        click.echo(f"nsorch: {note}", err=True)
    if output is None or output == "-":
        click.echo(text, nl=False)
    else:
        with open(output, "w", encoding="utf-8") as target:
            target.write(text)
