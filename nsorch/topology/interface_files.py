"""Interfaces of workers as files have them: tables with a ``kind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import NOTHING, fields

from nsorch.errors import TopologyError
from nsorch.topology.interfaces import Bond, Dummy, InterfaceSpec, Ipvlan, Macvlan, Tun, Vlan, Vrf
from nsorch.topology.kinds import items, shown
from nsorch.topology.tunnels import Vxlan, WireGuard, WireGuardPeer

if TYPE_CHECKING:
    from attrs import AttrsInstance

#: by the word that files have for them
INTERFACES: dict[str, type[InterfaceSpec]] = {
    cls.kind: cls for cls in (Vlan, Macvlan, Ipvlan, Dummy, Vxlan, Vrf, Bond, WireGuard, Tun)
}


def keys_of(kind: str) -> tuple[str, ...]:
    """Of a table; those of *kind* itself last."""
    return ("kind", *(item.name for item in fields(INTERFACES[kind])))


def required_of(kind: str) -> list[str]:
    return [item.name for item in fields(INTERFACES[kind]) if item.default is NOTHING]


def to_interfaces(value: Any) -> tuple[InterfaceSpec, ...]:
    """From what code gives: one, or several; mappings have the keys of files."""
    several = [value] if isinstance(value, InterfaceSpec | Mapping) else items("interfaces", value, "interfaces")
    return tuple(to_interface(item, f"interfaces[{number}]") for number, item in enumerate(several))


def to_interface(item: Any, where: str) -> InterfaceSpec:
    if isinstance(item, InterfaceSpec):
        return item
    if not isinstance(item, Mapping):
        raise TopologyError(f"{where}: {shown(item)} is not an interface such as nsorch.Dummy('d0')")
    options = dict(item)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in INTERFACES:
        raise TopologyError(f"{where}.kind: {shown(kind)} is none of {', '.join(INTERFACES)}")
    unknown = [key for key in options if key not in keys_of(kind)]
    missing = [key for key in required_of(kind) if key not in options]
    if unknown or missing:
        problems = [f"{where}.{key}: unknown key" for key in unknown]
        raise TopologyError(*problems, *(f"{where}.{key}: is missing" for key in missing))
    try:
        return INTERFACES[kind](**options)
    except TopologyError as exc:
        raise TopologyError(*(f"{where}.{problem}" for problem in exc.problems)) from None


def interface_to_dict(spec: InterfaceSpec) -> dict[str, Any]:
    """As a file has it: plain types, defaults left out."""
    return {"kind": spec.kind, **_table(spec)}


def _table(spec: AttrsInstance) -> dict[str, Any]:
    found = {item.name: (getattr(spec, item.name), item.default) for item in fields(type(spec))}
    return {name: _plain(name, value) for name, (value, default) in found.items() if value != default}


def _plain(name: str, value: Any) -> Any:
    if name == "endpoint":
        host, port = value
        return f"{host}:{port}" if host.version == 4 else f"[{host}]:{port}"
    if isinstance(value, WireGuardPeer):
        table = _table(value)
        return table["worker"] if table.keys() == {"worker"} else table
    if isinstance(value, tuple):
        return [_plain("", item) for item in value]
    return value if isinstance(value, str | int | float) else str(value)
