"""``nsorch validate``: what is wrong with topology files, for editors and CI. Needs no rights, and makes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from nsorch import NsorchError, Topology, TopologyError
from nsorch.cli.report import count_links

if TYPE_CHECKING:
    from collections.abc import Sequence


def validate_files(files: Sequence[str], as_json: bool) -> int:
    """0 if all are fine, else 1."""
    results = [_validate(file) for file in files]
    if as_json:
        click.echo(json.dumps(results, indent=2))
    return 0 if all(result["ok"] for result in results) else 1


def _validate(file: str) -> dict[str, Any]:
    try:
        topology = Topology.load(file)
    except TopologyError as exc:
        for text in exc.located():
            click.echo(text, err=True)
        pairs = zip(exc.problems, exc.lines, strict=True)
        return {"file": file, "ok": False, "problems": [{"line": line, "problem": problem} for problem, line in pairs]}
    except NsorchError as exc:
        click.echo(f"{file}: {exc}", err=True)
        return {"file": file, "ok": False, "problems": [{"line": None, "problem": str(exc)}]}
    for note in topology.notes:
        click.echo(f"{file}: note: {note}", err=True)
    counts = {"workers": len(topology.workers), "bridges": len(topology.bridges), "links": count_links(topology)}
    return {"file": file, "ok": True, "problems": [], "notes": list(topology.notes), **counts}
