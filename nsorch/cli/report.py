"""The result of a check, as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsorch import Reachability, Topology

_MATRIX = 20  # workers, up to which each pair is shown
_SHOWN = 20  # failures
_WIDEST = 10_000  # columns: a table that is too wide for a terminal is wrapped there, not cut


def count_links(topology: Topology) -> int:
    """With those that workers have to bridges."""
    return len(topology.links) + sum(len(worker.links) for worker in topology.workers.values())


def check_result(reachability: Reachability, components: Sequence[set[str]]) -> dict[str, Any]:
    """JSON types."""
    return {
        "kind": "CheckResult",
        **reachability.to_dict(),
        "loss": reachability.loss,
        "components": [sorted(component) for component in components],
    }


def render_check(topology: Topology, reachability: Reachability, components: Sequence[set[str]], summary: str) -> str:
    """A matrix of round trip times in ms for a small topology, the summary and the failures for a large one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names = list(topology.workers)
    console = Console(highlight=False, width=_WIDEST, height=25)  # it asks the terminal unless given both
    with console.capture() as text:
        if len(names) <= _MATRIX and reachability.pairs:
            title = f"{topology.name or 'lab'}: round trips in ms, from row to column"
            console.print(
                title, style="italic", markup=False, soft_wrap=True
            )  # the table's own would be as narrow as that
            table = Table(box=None, padding=(0, 1, 0, 0))
            table.add_column("")
            for name in names:
                table.add_column(name, justify="right", no_wrap=True)
            for source in names:
                table.add_row(source, *(_cell(reachability, source, target) for target in names))
            console.print(table)
        failures = reachability.failed
        for result in failures[:_SHOWN]:
            line = f"[red]{result.source} → {result.target}[/] ({result.address}): {escape(str(result.error))}"
            console.print(line, soft_wrap=True)
        if len(failures) > _SHOWN:
            console.print(f"… and {len(failures) - _SHOWN} more")
        if len(components) > 1:
            console.print(f"{len(components)} parts that no link connects, separate by design")
        failed = len(failures)
        answered = len(reachability.pairs) - failed
        colour = "red" if failed else "green"
        console.print(summary, markup=False, soft_wrap=True)  # one line, for who looks for it
        console.print(f"[{colour}]{answered} of {len(reachability.pairs)} pairs answered[/]")
    return text.get().rstrip("\n")


def _cell(reachability: Reachability, source: str, target: str) -> str:
    if source == target:
        return "·"
    result = reachability.pairs.get((source, target))
    if result is None:
        return "-"
    return "[red]✗[/]" if result.rtt is None else f"{result.rtt * 1000:.2f}"
