"""The syntax of files: TOML, YAML and JSON as plain values, or what is wrong, and in which line."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nsorch.errors import TopologyError
from nsorch.topology.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BYTES = 64 * 1024 * 1024
# Aliases are expanded where they are read: more values than this are no topology, but an attack.
_MOST_VALUES = 1_000_000
_DEEPEST = 1000  # an alias of what it is in has no end


class Read(NamedTuple):
    """:ivar problems: what the syntax allows but nobody can mean, each with its path: keys that are given twice"""

    data: Any
    problems: list[str]


def check_file(name: str) -> None:
    """:raises TopologyError: there is no such file, or it is a directory"""
    try:
        if stat.S_ISDIR(os.stat(name).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except (OSError, ValueError) as exc:  # a name with a null character
        raise TopologyError(f"can't be read: {getattr(exc, 'strerror', exc)}", source=name) from None


def read_text(name: str) -> str:
    try:
        with open(name, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as exc:  # a name with a null character
        raise TopologyError(f"can't be read: {getattr(exc, 'strerror', exc)}", source=name) from None
    if len(data) > _MAX_BYTES:
        raise TopologyError(f"is larger than {_MAX_BYTES} bytes", source=name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise TopologyError(f"is not UTF-8: byte 0x{data[exc.start]:02x} in line {line}", source=name) from None


def _wrong_syntax(what: str, line: int, column: int) -> TopologyError:
    return TopologyError(f"{what} (column {column})", lines=[line])


def read_toml(text: str) -> Read:
    """:raises TopologyError: it is no TOML"""
    try:
        return Read(tomllib.loads(text), [])
    except tomllib.TOMLDecodeError as exc:
        if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(exc), re.DOTALL):
            raise _wrong_syntax(found[1], int(found[2]), int(found[3])) from None
        raise TopologyError(str(exc), lines=[text.rstrip("\n").count("\n") + 1]) from None  # at the end
    except ValueError as exc:
        raise TopologyError(str(exc)) from None


# -- JSON


class _Repeating(dict[str, Any]):
    """A table in whose text some keys are given twice."""

    __slots__ = ("twice",)

    twice: list[str]


def read_json(text: str) -> Read:
    """:raises TopologyError: it is no JSON"""
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_table)
    except json.JSONDecodeError as exc:
        raise _wrong_syntax(exc.msg, exc.lineno, exc.colno) from None
    except ValueError as exc:
        raise TopologyError(str(exc)) from None
    return Read(data, [_given_twice(path, key) for path, table in _tables(data) for key in table.twice])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    repeating = _Repeating(pairs)
    keys = [key for key, _ in pairs]
    repeating.twice = [key for key in table if keys.count(key) > 1]
    return repeating


def _tables(data: Any) -> Iterator[tuple[str, _Repeating]]:
    for path, value in walk(data):
        if isinstance(value, _Repeating):
            yield path, value


def walk(data: Any) -> Iterator[tuple[str, Any]]:
    """All values in *data*, itself included, with their paths."""
    todo = [("", data)]
    while todo:
        path, value = todo.pop()
        yield path, value
        if isinstance(value, Mapping):
            todo += reversed([(f"{path}.{key}" if path else str(key), item) for key, item in value.items()])
        elif isinstance(value, list | tuple):
            todo += reversed([(f"{path}[{number}]", item) for number, item in enumerate(value)])


def _given_twice(path: str, key: object) -> str:
    return f"{path}.{key}: is given twice" if path else f"{key}: is given twice"


# -- YAML

_STRING = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(text: str, *, aliases: bool = False) -> Read:
    """With the values that JSON has, dates and sets; no tag can make anything else.

    :param aliases: allow them, as long as what they stand for stays small
    :raises TopologyError: it is no YAML
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if not aliases and self.check_event(yaml.events.AliasEvent):
                event = self.peek_event()  # type: ignore[no-untyped-call]
                raise TopologyError("aliases are not allowed", lines=[event.start_mark.line + 1])
            return super().compose_node(parent, index)

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
            # YAML 1.1 takes 52:54:00:12:34:56, a MAC address, as a number of base 60; YAML 1.2 doesn't.
            return _STRING if tag in _NUMBERS and ":" in value else tag

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep=deep)
            except (ValueError, LookupError, AttributeError, ArithmeticError) as exc:
                if isinstance(exc, TopologyError):
                    raise
                # "!!int x" and the like: PyYAML takes the tag's word for what the text is.
                kind = node.tag.rpartition(":")[2]
                raise TopologyError(
                    f"{shown(node.value)} is not a YAML {kind}", lines=[node.start_mark.line + 1]
                ) from None

    loader = None
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Read(None, [])
        problems = _repeated(root)
        return Read(loader.construct_document(root), problems)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        what = ", ".join(part for part in (exc.context, exc.problem) if part)
        raise (TopologyError(what) if mark is None else _wrong_syntax(what, mark.line + 1, mark.column + 1)) from None
    except yaml.YAMLError as exc:
        raise TopologyError(" ".join(str(exc).split())) from None
    finally:
        if loader is not None:
            loader.dispose()


def _repeated(root: Any) -> list[str]:
    """Keys that are given twice.

    :raises TopologyError: the nodes are too many, counted as often as aliases repeat them
    """
    problems: list[str] = []
    todo: list[tuple[int, str, Any]] = [(0, "", root)]
    seen = 0
    while todo:
        depth, path, node = todo.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise TopologyError(f"holds more than {_MOST_VALUES} values")
        if depth > _DEEPEST:
            raise TopologyError("nested too deeply")
        if node.id == "mapping":
            keys: set[tuple[str, str]] = set()
            for key, value in node.value:
                if key.id == "scalar":
                    if (key.tag, key.value) in keys:
                        problems.append(_given_twice(path, key.value))
                    keys.add((key.tag, key.value))
                    todo.append((depth + 1, f"{path}.{key.value}" if path else key.value, value))
                else:
                    todo += [(depth + 1, path, key), (depth + 1, path, value)]
        elif node.id == "sequence":
            todo += [(depth + 1, f"{path}[{number}]", item) for number, item in enumerate(node.value)]
    return problems
