"""Reading the parts of a description from plain values: what is wrong, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import NOTHING, Attribute, fields_dict

from nsorch.errors import AddressError, TopologyError
from nsorch.topology.kinds import each, shown
from nsorch.topology.names import interface_problem, name_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def one_of(choices: Sequence[str], *, empty: bool = False) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value not in choices and not (empty and value is None):
            raise TopologyError(f"{attribute.name}: {shown(value)} is none of {', '.join(choices)}")

    return check


def many(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def below(key: str, convert: Callable[[Any], T], value: Any) -> T:
    try:
        return convert(value)
    except TopologyError as exc:
        raise TopologyError(f"{key}: {exc}") from None


def interface(value: Any) -> str:
    """Of a worker, or the name of what its link leads to."""
    name = value if isinstance(value, str) else getattr(value, "name", value)
    if not isinstance(name, str) or (interface_problem(name) and name_problem(name)):
        raise TopologyError(f"{shown(name)} is neither an interface nor a bridge or worker")
    return name


def interfaces(value: Any) -> tuple[str, ...]:
    return tuple(interface(item) for item in many(value))


def read(path: str, kind: type[T], value: Any, first: str) -> T:
    """A *kind* from a mapping of its fields, or from the value of its *first* one.

    :raises TopologyError: with every wrong key, and the path of each below *path*
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        value = {first: value}
    known = fields_dict(kind)  # type: ignore[arg-type]
    given = {first: None} if known[first].default is None else {}
    problems = []
    for key, item in value.items():
        if key in known:
            given[key] = item
            problems += [f"{path}.{problem}" for problem in problems_of(known[key], item)]
        else:
            problems.append(f"{path}.{key}: unknown key")
    problems += [
        f"{path}.{key}: is missing" for key, item in known.items() if item.default is NOTHING and key not in given
    ]
    if not problems:
        try:
            return kind(**given)
        except TopologyError as exc:
            problems += [f"{path}.{problem}" for problem in exc.problems]
    raise TopologyError(*problems)


def made(kind: type[T], table: Mapping[str, Any]) -> T:
    """A *kind* of its fields.

    :raises TopologyError: with what is wrong of each of them
    """
    known = fields_dict(kind)  # type: ignore[arg-type]
    problems = [problem for key, item in table.items() for problem in problems_of(known[key], item)]
    if problems:
        raise TopologyError(*problems)
    return kind(**table)


def problems_of(attribute: Attribute[Any], value: Any) -> Sequence[str]:
    """What is wrong of it without a look at the other fields."""
    try:
        if attribute.converter is not None:
            value = attribute.converter(value)  # type: ignore[operator]
        if attribute.validator is not None:
            attribute.validator(None, attribute, value)
    except TopologyError as exc:
        return exc.problems
    except AddressError as exc:
        return [str(exc)]
    except (TypeError, ValueError) as exc:
        return [f"{attribute.name}: {exc}"]
    return ()


def read_many(path: str, kind: type[T], value: Any) -> tuple[T, ...]:
    first = next(iter(fields_dict(kind)))  # type: ignore[arg-type]
    return each(path, value, "tables", lambda where, item: read(where, kind, item, first))
