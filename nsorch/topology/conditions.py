"""What a start can wait for, whatever it is: see :mod:`nsorch.topology.ready`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsorch.errors import TopologyError
from nsorch.topology.kinds import shown
from nsorch.values import Value

if TYPE_CHECKING:
    from attrs import Attribute


class Condition(Value):
    """What a start can wait for."""

    __slots__ = ()


def ready(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
    if not isinstance(value, Condition | None):
        raise TopologyError(f"ready: {shown(value)} is neither nsorch.tcp_ready(…) nor nsorch.exec_ready(…)")
