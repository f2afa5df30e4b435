"""What all value classes share."""

from __future__ import annotations

import functools
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from attrs import NOTHING, Attribute, Factory, fields, has

if TYPE_CHECKING:
    from collections.abc import Callable

# attrs would compile these methods for each class: more than a fourth of what importing nsorch takes.


class Shown:
    """Base of classes that attrs makes with ``repr=False``: one representation for all, of what isn't as by default."""

    __slots__ = ()

    def __repr__(self) -> str:
        kind: Any = type(self)
        values = ((field, getattr(self, field.name)) for field in _fields(kind) if field.repr)
        shown = (f"{field.name}={value!r}" for field, value in values if value != _default(field))
        return f"{kind.__name__}({', '.join(shown)})"


class Value(Shown):
    """Base of classes that attrs makes frozen, with ``eq=False, repr=False``: those of one class with equal fields are
    equal, and have one hash. A class without fields is one without attrs."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        kind: Any = type(self)
        values = _compared(kind)
        return bool(values(self) == values(other))

    def __hash__(self) -> int:
        kind: Any = type(self)
        return hash(_hashed(kind)(self))


@functools.cache
def _compared(kind: Any) -> Callable[[Any], Any]:
    return attrgetter("__class__", *(field.name for field in _fields(kind) if field.eq))


@functools.cache
def _hashed(kind: Any) -> Callable[[Any], Any]:
    return attrgetter(
        "__class__", *(field.name for field in _fields(kind) if (field.eq if field.hash is None else field.hash))
    )


def _fields(kind: Any) -> tuple[Attribute[Any], ...]:
    return fields(kind) if has(kind) else ()


def _default(field: Attribute[Any]) -> object:
    default: Any = field.default
    if not isinstance(default, Factory):  # type: ignore[arg-type]
        return default
    return NOTHING if default.takes_self else default.factory()
