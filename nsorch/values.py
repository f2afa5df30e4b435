"""What all value classes share."""

from __future__ import annotations

from typing import Any, cast

from attrs import NOTHING, Attribute, Factory, fields


class Value:
    """Base of classes that attrs makes with ``repr=False``: one representation for all, of what isn't as by default.

    Made for each class, as attrs does it, they would be a third of what importing nsorch costs.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in fields(cast("Any", type(self))) if field.repr)
        shown = (f"{field.name}={value!r}" for field, value in values if value != _default(field))
        return f"{type(self).__name__}({', '.join(shown)})"


def _default(field: Attribute[Any]) -> object:
    default: Any = field.default
    if not isinstance(default, Factory):  # type: ignore[arg-type]
        return default
    return NOTHING if default.takes_self else default.factory()
