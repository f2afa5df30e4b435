"""From what people write to checked values: the converters and validators that several kinds of spec share."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

from nsorch.errors import AddressError, TopologyError
from nsorch.topology.kinds import shown
from nsorch.topology.names import interface_problem, name_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attrs import Attribute

T = TypeVar("T")


# RFC 1122, section 3.2.1.3; RFC 4291, section 2.5
_NO_HOSTS = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "::/127")))


def checked(path: str, convert: Callable[[Any], T], value: Any) -> T | None:
    if value is None:
        return None
    try:
        return convert(value)
    except ValueError as exc:
        if isinstance(exc, TopologyError | AddressError):
            raise
        raise TopologyError(f"{path}: {exc}") from None


def valid_name(value: Any) -> str:
    if problem := name_problem(value):
        raise TopologyError(f"name: {problem}")
    return str(value)


def named(path: str, value: Any) -> str:
    """The name of a worker or bridge: itself, or what an object is called."""
    name = value if isinstance(value, str) else getattr(value, "name", value)
    if problem := name_problem(name):
        raise TopologyError(f"{path}: {problem}")
    return str(name)


def valid_interface_name(value: Any) -> str:
    if problem := interface_problem(value):
        raise TopologyError(f"name: {problem}")
    return str(value)


def valid_mtu(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 68 <= value <= 65535:
        raise ValueError(f"{shown(value)} is not a number of bytes from 68 to 65535")
    return value


def one_or_many(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def to_network(path: str, value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value))
    except ValueError:
        hint = ""
        with contextlib.suppress(ValueError):
            hint = f": that of this address is {ip_network(str(value), strict=False)}"
        raise AddressError(f"{path}: {shown(value)} is not a network{hint}") from None


def networks(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    found = []
    for item in one_or_many(value):
        network = to_network("subnet", item)
        if network.is_multicast:
            raise AddressError(f"subnet: {network} is for groups, not for hosts (multicast)")
        if any(network.version == none.version and network.overlaps(none) for none in _NO_HOSTS):
            raise AddressError(f"subnet: {network} has addresses that mean this host, not one of many")
        found.append(network)
    if len({network.version for network in found}) < len(found):
        raise AddressError(f"subnet: more than one of a family: {', '.join(map(str, found))}")
    return tuple(found)


def addresses(value: Any) -> tuple[IPv4Interface | IPv6Interface, ...]:
    found = []
    for item in one_or_many(value):
        try:
            found.append(ip_interface(str(item)))
        except ValueError:
            raise AddressError(f"address: {shown(item)} is not an IP address") from None
    return tuple(found)


def valid_mac(value: Any) -> str:
    parts = str(value).split(":")
    if len(parts) != 6 or not all(len(part) == 2 and _is_hex(part) for part in parts):
        raise AddressError(f"mac: {shown(value)} is not a MAC address such as 02:00:00:00:00:01")
    if int(parts[0], 16) & 1 or not int("".join(parts), 16):
        raise AddressError(f"mac: {shown(value)} can't be one interface's: it is a group's, or zero")
    return str(value).lower()


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def to_interface_name(value: Any) -> str | None:
    return checked("name", valid_interface_name, value)


def to_mac(value: Any) -> str | None:
    return checked("mac", valid_mac, value)


def to_mtu(value: Any) -> int | None:
    return checked("mtu", valid_mtu, value)


def whole_number(value: Any, first: int, last: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
        raise ValueError(f"{shown(value)} is not a whole number from {first} to {last}")
    return value


def allowed_networks(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    """Several of a family may be."""
    return tuple(to_network("allowed_ips", item) for item in one_or_many(value))


def to_vlans(value: Any) -> tuple[int, ...]:
    """Numbers of VLANs, each once, in order."""
    try:
        found = sorted(whole_number(item, 1, 4094) for item in one_or_many(value))
    except ValueError as exc:
        raise TopologyError(f"tagged: {exc}") from None
    if len(set(found)) < len(found):
        raise TopologyError("tagged: a VLAN is named twice")
    return tuple(found)


def vlan_subnets(value: Any) -> Mapping[int, tuple[IPv4Network | IPv6Network, ...]]:
    """By the number of the VLAN; in files a table, whose keys are strings."""
    if value is None or value == ():
        return {}
    if not isinstance(value, Mapping):
        raise TopologyError(f"vlans: {shown(value)} is not a table of subnets by VLAN")
    found: dict[int, tuple[IPv4Network | IPv6Network, ...]] = {}
    wrong: list[AddressError | TopologyError] = []
    for key, item in value.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        try:
            if whole_number(number, 1, 4094) in found:
                wrong.append(TopologyError(f"vlans.{key}: VLAN {number} is given twice"))
            found[number] = networks(item)
        except AddressError as exc:
            wrong.append(AddressError(f"vlans.{key}: {str(exc).removeprefix('subnet: ')}"))
        except ValueError as exc:
            wrong.append(TopologyError(f"vlans: {exc}"))
    if wrong:
        raise wrong[0] if len(wrong) == 1 else TopologyError(*map(str, wrong))
    return found


Validator = Any  # of attrs, which mypy knows by its own types


def within(first: int, last: int) -> Validator:
    """Of attrs: a whole number, or None where that is the default."""

    def validate(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
        try:
            if value is not None or attribute.default is not None:
                whole_number(value, first, last)
        except ValueError as exc:
            raise TopologyError(f"{attribute.name}: {exc}") from None

    return validate


def among(choices: Sequence[str]) -> Validator:
    """Of attrs: one of these, or None where that is the default."""

    def validate(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
        if value not in choices and (value is not None or attribute.default is not None):
            raise TopologyError(f"{attribute.name}: {shown(value)} is none of {', '.join(choices)}")

    return validate
