"""Names that stand for nothing in a file: what can be said of relations while some of its parts are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nsorch.topology.names import name_problem

if TYPE_CHECKING:
    from collections.abc import Iterator


def dangling(top: Mapping[str, Any], bridges_of_all: object) -> Iterator[str]:
    """Problems in the words of :meth:`Topology.problems`, but from plain values, of which any may be wrong.

    :param bridges_of_all: the default of the workers' ``links``
    """
    bridges, workers = _tables(top.get("bridges")), _Workers(_tables(top.get("workers")))
    for name, table in workers.tables.items():
        if name in bridges and "count" not in table:
            yield f'workers.{name}: there is a worker or bridge "{name}" already'
        for number, item in enumerate(_items(table.get("links", bridges_of_all))):
            bridge = item.get("to") if isinstance(item, Mapping) else item
            if not name_problem(bridge) and bridge not in bridges:
                yield f'workers.{name}.links[{number}]: there is no bridge "{bridge}"'
    for number, link in enumerate(_items(top.get("links"))):
        for item in _items(link.get("ends")) if isinstance(link, Mapping) else ():
            worker = item.get("worker") if isinstance(item, Mapping) else str(item).partition(":")[0]
            if not name_problem(worker) and worker not in bridges and worker not in workers:
                yield f'links[{number}].ends: there is no worker or bridge "{worker}"'
    for name, table in bridges.items():
        gateway = table.get("gateway")
        if not name_problem(gateway) and gateway not in workers:
            yield f'bridges.{name}.gateway: there is no worker "{gateway}"'


class _Workers:
    def __init__(self, tables: dict[str, Mapping[str, Any]]) -> None:
        self.tables = tables

    def __contains__(self, name: object) -> bool:
        if name in self.tables:
            return "count" not in self.tables[str(name)]
        template, _, number = str(name).rpartition("-")
        if "count" not in self.tables.get(template, ()) or not number.isdecimal() or number.startswith("0"):
            return False
        count = self.tables[template]["count"]
        return not isinstance(count, int) or int(number) <= count  # a wrong count may have been meant so


def _tables(value: Any) -> dict[str, Mapping[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(key): item if isinstance(item, Mapping) else {} for key, item in items}


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
