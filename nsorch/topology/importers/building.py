"""What the importers share: names that fit, problems collected, and a note for everything that is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from nsorch.errors import NsorchError, TopologyError, printable
from nsorch.topology.kinds import shown
from nsorch.topology.model import Topology
from nsorch.topology.names import name_problem
from nsorch.topology.positions import find_line, yaml_lines
from nsorch.topology.reading import read_text, read_yaml

Table = Mapping[str, Any]
_LISTED = 10


class Building:
    """A topology in the making."""

    def __init__(self, name: str | None, source: str | None = None) -> None:
        self.topology = Topology(name)
        self._source = source
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._names: dict[str, str] = {}

    def note(self, path: str, text: str) -> None:
        self._notes.append(printable(f"{path}: {text}"))

    def refuse(self, path: str, text: str) -> None:
        self._problems.append(f"{path}: {text}")

    def leave(self, path: str, table: Table, taken: Collection[str], why: str = "is not carried over") -> None:
        """Note each key of *table* that isn't *taken*."""
        for key in table:
            if key not in taken:
                self.note(f"{path}.{key}" if path else str(key), why)

    def name(self, original: str, path: str) -> str:
        """A name that a worker or bridge may have, always the same for *original*."""
        if original not in self._names:
            name = original
            if name_problem(original):
                name = re.sub(r"[^A-Za-z0-9-]", "-", original)[:63]
                name = name if name[:1].isalpha() else f"n{name}"[:63]
                self.note(path, f'"{original}" is called {name}')
            if name in self._names.values():
                self.refuse(path, f'"{original}" would be called {name}, as another')
            self._names[original] = name
        return self._names[original]

    def table(self, value: Any, path: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.refuse(path, f"{shown(value)} is not a table")
            return {}
        return {str(key): item for key, item in value.items()}

    def sequence(self, value: Any, path: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.refuse(path, f"{shown(value)} is not a list")
            return []
        return list(value)

    def text(self, value: Any, path: str) -> str | None:
        if value is None or isinstance(value, str):
            return value
        self.refuse(path, f"{shown(value)} is not a string")
        return None

    def add(self, path: str, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What *make* makes of the rest, or None and a problem."""
        try:
            return make(*arguments, **options)
        except TopologyError as exc:
            self._problems += [f"{path}: {problem}" for problem in exc.problems]
        except (NsorchError, ValueError, TypeError) as exc:
            self._problems.append(f"{path}: {exc}")
        return None

    def finish(self) -> Topology:
        """:raises TopologyError: with all problems at once"""
        if not self._problems:
            self._problems += self.topology.problems()
        if self._problems:
            problems = list(dict.fromkeys(self._problems))
            lines = yaml_lines(read_text(self._source)) if self._source else {}
            raise TopologyError(
                *problems, source=self._source, lines=[find_line(problem, lines) for problem in problems]
            )
        self.topology.notes = tuple(dict.fromkeys(self._notes))
        return self.topology


def read(path: str) -> dict[str, Any]:
    """The table that a YAML file holds. In these formats aliases are usual.

    :raises TopologyError: it can't be read, or holds none
    """
    try:
        data, problems = read_yaml(read_text(path), aliases=True)
    except TopologyError as exc:
        raise TopologyError(*exc.problems, source=path, lines=exc.lines) from None
    except RecursionError:
        raise TopologyError("nested too deeply", source=path) from None
    if problems:
        raise TopologyError(*problems, source=path)
    if not isinstance(data, Mapping):
        raise TopologyError("holds no table", source=path)
    return {str(key): item for key, item in data.items()}
