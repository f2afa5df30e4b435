"""Topology files: TOML, YAML and JSON by their suffix, and GraphML to be read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from nsorch.errors import TopologyError
from nsorch.topology.reading import check_file, read_json, read_text, read_toml, read_yaml
from nsorch.topology.structure import from_dict, unwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsorch.topology.model import Topology
    from nsorch.topology.reading import Read


def load(path: str | os.PathLike[str], **options: Any) -> Topology:
    """See :meth:`Topology.load`."""
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in _READERS and suffix != ".graphml":
        known = ", ".join([*_READERS, ".graphml"])
        check_file(name)
        raise TopologyError(f'"{suffix}" is none of the known suffixes {known}', source=name)
    if name.lower().endswith((".clab.yml", ".clab.yaml")):
        return _load_containerlab(name, options)
    text = read_text(name)
    if suffix == ".graphml":
        from nsorch.topology.graphml import GraphOptions, parse

        return parse(text, name, GraphOptions(**options))
    _refuse(options, name)
    try:
        data, problems = _READERS[suffix](text)
    except RecursionError:
        raise TopologyError("nested too deeply", source=name) from None
    except TopologyError as exc:
        raise TopologyError(*exc.problems, source=name, lines=exc.lines) from None
    try:
        topology = from_dict(data)
    except RecursionError:
        raise TopologyError("nested too deeply", source=name) from None
    except TopologyError as exc:
        problems += exc.problems
    if problems:
        raise TopologyError(*problems, source=name, lines=_lines(problems, text, suffix))
    if topology.name is None:
        topology.name = os.path.splitext(os.path.basename(name))[0]
    return topology


def _load_containerlab(name: str, options: dict[str, Any]) -> Topology:
    from nsorch.topology.importers.containerlab import from_containerlab

    _refuse(options, name)
    return from_containerlab(name)


def _refuse(options: Mapping[str, Any], name: str) -> None:
    if (
        options.get("delay") is not None
        or options.get("rate") is not None
        or options.get("missing", "error") != "error"
    ):
        raise TopologyError("delay, missing and rate are of the attributes of GraphML alone", source=name)


def _lines(problems: Sequence[str], text: str, suffix: str) -> list[int | None]:
    from nsorch.topology.positions import find_line, json_lines, toml_lines, yaml_lines

    try:
        lines = {".toml": toml_lines, ".json": json_lines}.get(suffix, yaml_lines)(text)
    except RecursionError:
        return []
    return [find_line(problem, lines) for problem in problems]


_READERS: dict[str, Callable[[str], Read]] = {
    ".toml": read_toml,
    ".json": read_json,
    ".yaml": read_yaml,
    ".yml": read_yaml,
}


def dump(topology: Topology, path: str | os.PathLike[str]) -> None:
    name = os.fspath(path)
    suffix = os.path.splitext(name)[1].lower()
    data = topology.to_dict()
    if problems := unwritable(data):
        raise TopologyError(*problems, source=name)
    if suffix == ".json":
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    elif suffix in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    elif suffix == ".toml":
        text = to_toml(data)
    else:
        raise TopologyError(f'"{suffix}" is none of .toml, .yaml, .yml, .json', source=name)
    encoded = text.encode()  # before the file is emptied
    with open(name, "wb") as file:
        file.write(encoded)


def to_toml(data: dict[str, Any]) -> str:
    """The small part of TOML that a topology needs: tables of tables, and a list of tables."""
    lines = [f"{key} = {_toml(value)}" for key, value in data.items() if key in ("name", "routing", "metric")]
    for section in ("bridges", "workers"):
        for name, table in data.get(section, {}).items():
            lines += ["", f"[{section}.{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    for link in data.get("links", []):
        lines += ["", "[[links]]", *(f"{_key(key)} = {_toml(value)}" for key, value in link.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but DEL must be escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(_toml(item) for item in value) + "]"
