"""Where in a file a key stands: lines by path, such as ``workers.web.links[0].delay``. Only asked after an error.

tomllib and json give no positions, so the text is scanned once more; it is known to be TOML or JSON then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def find_line(problem: str, lines: Mapping[str, int]) -> int | None:
    """The line of what *problem* is about, which begins with a path; or of the nearest part around it."""
    path = problem.partition(": ")[0]
    copy = re.match(r"(workers\.[^.[]+)-[0-9]+", path)
    if copy is not None and copy[0] not in lines:  # the file has its template alone
        path = f"{copy[1]}{path[copy.end() :]}"
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# -- YAML


def yaml_lines(text: str) -> dict[str, int]:
    """Of a text that PyYAML reads."""
    import yaml

    lines: dict[str, int] = {}
    root = yaml.compose(text, yaml.SafeLoader)
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        path, node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = _below(path, str(key.value))
                lines[below] = key.start_mark.line + 1
                todo.append((below, value))
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[f"{path}[{number}]"] = item.start_mark.line + 1
                todo.append((f"{path}[{number}]", item))
    return lines


# -- TOML and JSON


def toml_lines(text: str) -> dict[str, int]:
    """Of a text that tomllib reads."""
    return _Toml(text).scan()


def json_lines(text: str) -> dict[str, int]:
    """Of a text that json reads."""
    return _Json(text).scan()


class _Toml:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[str, int] = {}
        self._counts: dict[str, int] = {}  # items so far of each array of tables

    def scan(self) -> dict[str, int]:
        table = ""
        while self._skip_blank():
            if self._peek("["):
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        # Never nothing where something has to be: the scan must end whatever the text is.
        taken = match[0] if match else self._text[self._at : self._at + 1]
        self._at += len(taken)
        self._line += taken.count("\n")
        return taken

    def _skip_blank(self) -> bool:
        self._take(_BLANK)
        return self._at < len(self._text)

    def _advance(self, count: int = 1) -> None:
        self._at += count

    def _key(self) -> list[str]:
        """The parts of a dotted key."""
        parts = []
        while True:
            self._skip_blank()
            if self._peek('"') or self._peek("'"):
                parts.append(self._unquote(self._take(_STRING)))
            else:
                parts.append(self._take(_BARE))
            self._skip_blank()
            if not self._peek("."):
                return parts
            self._advance()

    def _header(self) -> str:
        line = self._line
        brackets = 2 if self._peek("[[") else 1
        self._advance(brackets)
        *above, last = self._key()
        self._advance(brackets)
        path = ""
        for part in above:
            path = self._current(_below(path, part))
        path = _below(path, last)
        if brackets == 2:
            self._lines.setdefault(path, line)
            self._counts[path] = self._counts.get(path, 0) + 1
        path = self._current(path)
        self._lines.setdefault(path, line)
        return path

    def _current(self, path: str) -> str:
        """Of an array of tables its latest item."""
        return f"{path}[{self._counts[path] - 1}]" if path in self._counts else path

    def _pair(self, path: str) -> None:
        line = self._line
        for part in self._key():
            path = _below(path, part)
            self._lines.setdefault(path, line)
        self._advance()  # the = or the :
        self._value(path)

    def _value(self, path: str) -> None:
        self._skip_blank()
        if self._peek("["):
            self._items(path, "]", array=True)
        elif self._peek("{"):
            self._items(path, "}", array=False)
        elif self._peek('"') or self._peek("'"):
            self._take(_STRING)
        else:
            self._take(_SCALAR)

    def _items(self, path: str, end: str, *, array: bool) -> None:
        self._advance()
        number = 0
        while self._skip_blank() and not self._peek(end):
            if array:
                self._lines[f"{path}[{number}]"] = self._line
                self._value(f"{path}[{number}]")
            else:
                self._pair(path)
            number += 1
            self._skip_blank()
            if self._peek(","):
                self._advance()
        self._advance()

    def _unquote(self, text: str) -> str:
        if text.startswith("'"):
            return text[1:-1]
        import tomllib

        key = tomllib.loads(f"x = {text}")["x"]
        return str(key)


class _Json(_Toml):
    """Its values are written as TOML's are, but for escapes."""

    def scan(self) -> dict[str, int]:
        self._value("")
        return self._lines

    def _unquote(self, text: str) -> str:
        import json

        return str(json.loads(text))
