"""A worker's way to the outside of the lab, as a frozen value that has been checked."""

from __future__ import annotations

from typing import Any, Literal, get_args

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.converters import valid_interface_name
from nsorch.topology.kinds import shown
from nsorch.topology.values import one_of, read
from nsorch.values import Value

UplinkMethod = Literal["pasta", "nat"]
UPLINK_METHODS = get_args(UplinkMethod)


@frozen(eq=False, repr=False)
class UplinkSpec(Value):
    """A way to the outside, which a worker has before its command runs: ``uplink=True`` is ``nsorch.UplinkSpec()``.

    :ivar method: ``"pasta"`` or ``"nat"``, see :meth:`nsorch.Supervisor.uplink`; None: what the host has
    :ivar name: of its interface
    """

    method: UplinkMethod | None = field(default=None, validator=one_of(UPLINK_METHODS, empty=True))
    name: str = field(default="up0", kw_only=True, converter=valid_interface_name)


def to_uplink(value: Any) -> UplinkSpec | None:
    """From one, ``True``, a method, or a mapping of its fields."""
    if value is None or value is False:
        return None
    if value is not True and not isinstance(value, str | dict | UplinkSpec):
        raise TopologyError(f"uplink: {shown(value)} is neither true, a method nor a table")
    return UplinkSpec() if value is True else read("uplink", UplinkSpec, value, "method")


def uplink_to_plain(value: UplinkSpec | None) -> Any:
    """As a file has it: plain types, defaults left out."""
    if value is None:
        return None
    if value.name != "up0":
        return {"name": value.name} | ({} if value.method is None else {"method": value.method})
    return value.method or True
