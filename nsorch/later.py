"""Names of a package that are imported when they are first used: a program that doesn't shouldn't wait for them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def later(names: dict[str, Any], modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package (PEP 562).

    :param names: its ``globals()``
    :param modules: where each name of its ``__all__`` is that isn't there yet
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {names['__name__']!r} has no attribute {name!r}")
        value = names[name] = getattr(importlib.import_module(modules[name]), name)
        return value

    def names_there() -> list[str]:
        return sorted({*names, *names["__all__"]})

    return get, names_there
