"""What kind of value a field takes: checks that all descriptions share, and how errors show what they refuse."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from nsorch.errors import AddressError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from attrs import Attribute


T = TypeVar("T")


def shown(value: Any) -> str:
    """For an error: not all of it, where it is long."""
    try:
        text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    except ValueError:  # more digits than Python writes
        return "a huge number" if isinstance(value, int) else f"a {type(value).__name__} with a huge number"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def items(path: str, value: Any, what: str) -> list[Any]:
    """
    :raises TopologyError: it is one thing, not several of *what*
    """
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise TopologyError(f"{path}: {shown(value)} is not a list of {what}")
    return list(value)


def each(path: str, value: Any, what: str, convert: Callable[[str, Any], T]) -> tuple[T, ...]:
    """What *convert* makes of each of several, with its path.

    :raises TopologyError: with what is wrong of all of them
    """
    made: list[T] = []
    problems: list[str] = []
    for number, item in enumerate(items(path, value, what)):
        with noted(problems):
            made.append(convert(f"{path}[{number}]", item))
    if problems:
        raise TopologyError(*problems)
    return tuple(made)


@contextmanager
def noted(problems: list[str]) -> Iterator[None]:
    """What is wrong in the block is added to *problems*: what comes after it is looked at, too."""
    try:
        yield
    except TopologyError as exc:
        problems += exc.problems
    except AddressError as exc:
        problems.append(str(exc))


def of_kind(path: str, value: Any, what: str, *kinds: type) -> None:
    """
    :raises TopologyError: *value* is of none of *kinds*, of which truth is no number
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TopologyError(f"{path}: {shown(value)} is not {what}")


def check_seconds(path: str, value: Any) -> None:
    """
    :raises TopologyError: it is no number of seconds to wait for
    """
    of_kind(path, value, "a number of seconds", int, float)
    if not 0 <= value < 1 << 32 and value != float("inf"):
        raise TopologyError(f"{path}: {shown(value)} is not a number of seconds from 0")


def check_port(path: str, value: Any, *, least: int = 1) -> None:
    """
    :raises TopologyError: it is no port
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 65535:
        raise TopologyError(f"{path}: {shown(value)} is not a port: a whole number from {least} to 65535")


def name_of(path: str, value: Any, what: str) -> str:
    """Itself, or what an object is called.

    :raises TopologyError: it is neither a name nor *what*
    """
    name = value if isinstance(value, str) else getattr(value, "name", None)
    if not isinstance(name, str):
        raise TopologyError(f"{path}: {shown(value)} is neither {what} nor the name of one")
    return name


@contextmanager
def at(path: str) -> Iterator[None]:
    """What is wrong of a description is so below *path*."""
    try:
        yield
    except TopologyError as exc:
        raise TopologyError(*(f"{path}.{problem}" for problem in exc.problems)) from None
    except AddressError as exc:
        raise AddressError(f"{path}.{exc}") from None


def to_path(where: str, value: Any) -> str:
    """
    :raises TopologyError: it is no path
    """
    if not isinstance(value, str | bytes | os.PathLike):
        raise TopologyError(f"{where}: {shown(value)} is not a path")
    path = os.fsdecode(value)
    if not path or not is_text(path):
        raise TopologyError(f"{where}: {shown(path)} is not a path, of characters other than null")
    return path


def absolute(where: str, path: str) -> str:
    """As the kernel reads it: ``LINK/..`` is above where the link leads to, so :func:`os.path.abspath` won't do.

    :raises TopologyError: there is nothing that it could be relative to
    """
    try:
        return path if path.startswith("/") else os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise TopologyError(f"{where}: {shown(path)} is in the working directory, which is gone") from None


def is_text(value: str | bytes) -> bool:
    """Whether the kernel can be told: a null character would end it."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def to_command(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    arguments = tuple(items("command", value, "strings"))
    if not arguments or not all(isinstance(item, str | bytes | os.PathLike) for item in arguments):
        raise TopologyError(f"command: {shown(value)} is not a list of strings, the program first")
    if not os.fspath(arguments[0]):
        raise TopologyError("command: the program has no name")
    for item in arguments:
        if not is_text(os.fspath(item)):
            raise TopologyError(f"command: {shown(item)} can't be an argument: a null character, or no Unicode")
    return arguments


# Validators of attrs: each names the field.


def flag(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
    if not isinstance(value, bool):
        raise TopologyError(f"{attribute.name}: {shown(value)} is neither true nor false")


def string(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
    """A string, or None where that is the default."""
    if not isinstance(value, str) and (value is not None or attribute.default is not None):
        raise TopologyError(f"{attribute.name}: {shown(value)} is not a string")
