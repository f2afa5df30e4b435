"""Interfaces of workers besides their ends of links, as frozen values that have been checked."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, ClassVar

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.converters import (
    addresses,
    among,
    checked,
    one_or_many,
    to_mac,
    to_mtu,
    valid_interface_name,
    within,
)
from nsorch.topology.kinds import shown
from nsorch.topology.units import duration
from nsorch.values import Value

VLAN_PROTOCOLS = ("802.1q", "802.1ad")
MACVLAN_MODES = ("private", "vepa", "bridge", "passthru")
IPVLAN_MODES = ("l2", "l3", "l3s")
BOND_MODES = ("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb")
HASH_POLICIES = ("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")
LACP_RATES = ("slow", "fast")
TUN_MODES = ("tun", "tap")


def _interface(path: str, value: Any) -> str:
    try:
        return valid_interface_name(value)
    except TopologyError as exc:
        raise TopologyError(*(f"{path}: {problem.removeprefix('name: ')}" for problem in exc.problems)) from None


def _parent(value: Any) -> str:
    return _interface("parent", value)


def _ports(value: Any) -> tuple[str, ...]:
    ports = tuple(_interface("ports", item) for item in one_or_many(value))
    if len(set(ports)) < len(ports):
        raise TopologyError("ports: one is named twice")
    return ports


def _protocol(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


_LONGEST_MIIMON = (1 << 31) // 1000  # the kernel counts milliseconds in an int


def _miimon(value: Any) -> float:
    seconds = checked("miimon", duration, value) or 0.1
    if seconds > _LONGEST_MIIMON:
        raise TopologyError(f"miimon: {shown(value)} is above {_LONGEST_MIIMON} s")
    return seconds


@frozen(eq=False, repr=False)
class InterfaceSpec(Value):
    """What all have.

    :ivar address: one, or several, with the length of their subnet (``"10.0.0.1/24"``); where the interface is on a
        segment that has a subnet, the next free one of it unless given
    :ivar mac: such as ``"02:00:00:00:00:01"``; not of kinds without hardware address, or that share one
    :ivar mtu: bytes; the kernel's choice if None
    """

    kind: ClassVar[str]

    name: str = field(converter=valid_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=addresses)
    mac: str | None = field(kw_only=True, default=None, converter=to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=to_mtu)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of interfaces that must be there before it."""
        return ()

    def _refuse_mac(self, why: str) -> None:
        if self.mac is not None:
            raise TopologyError(f"mac: {why}")


@frozen(kw_only=True, eq=False, repr=False)
class _Above(InterfaceSpec):
    """On top of another: an end of a link, or an interface before it."""

    parent: str = field(converter=_parent)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.parent,)


@frozen(kw_only=True, eq=False, repr=False)
class Vlan(_Above):
    """A sub-interface for the frames of *parent* that are tagged with VLAN *id* (IEEE 802.1Q).

    :ivar id: 1 to 4094
    :ivar protocol: ``"802.1q"``, or ``"802.1ad"`` for service tags
    """

    kind = "vlan"
    id: int = field(validator=within(1, 4094))
    protocol: str = field(default="802.1q", converter=_protocol, validator=among(VLAN_PROTOCOLS))

    @property
    def is_of_bridges(self) -> bool:
        """Whether its tags are those of VLAN-aware bridges: these take no notice of others."""
        return self.protocol == "802.1q"


@frozen(kw_only=True, eq=False, repr=False)
class Macvlan(_Above):
    """Another interface on the wire of *parent*, with a hardware address of its own.

    :ivar mode: ``"bridge"``: those of one parent reach each other; ``"private"``: they don't; ``"vepa"``: by a switch
        that sends back; ``"passthru"``: the only one, with the parent's address
    """

    kind = "macvlan"
    mode: str = field(default="bridge", validator=among(MACVLAN_MODES))


@frozen(kw_only=True, eq=False, repr=False)
class Ipvlan(_Above):
    """Another interface on the wire of *parent*, that shares its hardware address.

    :ivar mode: ``"l2"``, or ``"l3"`` and ``"l3s"``, in which the parent's side routes, and ARP is never asked
    """

    kind = "ipvlan"
    mode: str = field(default="l2", validator=among(IPVLAN_MODES))

    def __attrs_post_init__(self) -> None:
        self._refuse_mac("an ipvlan interface has its parent's")


@frozen(kw_only=True, eq=False, repr=False)
class Dummy(InterfaceSpec):
    """Swallows what is sent to it: for addresses of a worker itself."""

    kind = "dummy"


@frozen(kw_only=True, eq=False, repr=False)
class Vrf(InterfaceSpec):
    """A routing table of its own for its *ports*. Routes through them are put there.

    :ivar table: number of the routing table
    """

    kind = "vrf"
    table: int = field(validator=within(1, 0xFFFFFFFE))
    ports: tuple[str, ...] = field(default=(), converter=_ports)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.ports

    def __attrs_post_init__(self) -> None:
        if self.table in (253, 254, 255):
            raise TopologyError(f"table: {self.table} is the kernel's own default, main or local table")


@frozen(kw_only=True, eq=False, repr=False)
class Bond(InterfaceSpec):
    """Several *ports* as one interface; they lose their addresses to it.

    :ivar mode: as the kernel's documentation of bonding names it, such as ``"active-backup"`` or ``"802.3ad"``
    :ivar miimon: seconds between two looks at the carrier of each port
    """

    kind = "bond"
    mode: str = field(default="balance-rr", validator=among(BOND_MODES))
    ports: tuple[str, ...] = field(default=(), converter=_ports)
    miimon: float = field(default=0.1, converter=_miimon)
    xmit_hash_policy: str | None = field(default=None, validator=among(HASH_POLICIES))
    lacp_rate: str | None = field(default=None, validator=among(LACP_RATES))

    @property
    def needs(self) -> tuple[str, ...]:
        return self.ports

    def __attrs_post_init__(self) -> None:
        if self.lacp_rate is not None and self.mode != "802.3ad":
            raise TopologyError(f"lacp_rate: only for mode 802.3ad, not {self.mode}")


@frozen(kw_only=True, eq=False, repr=False)
class Tun(InterfaceSpec):
    """A network interface whose packets a program reads and writes: one in the worker, which opens ``/dev/net/tun``,
    or this one, by :meth:`nsorch.Worker.open_tun`.

    :ivar mode: ``"tun"`` for IP packets, ``"tap"`` for Ethernet frames
    """

    kind = "tun"
    mode: str = field(default="tun", validator=among(TUN_MODES))

    def __attrs_post_init__(self) -> None:
        if self.mode == "tun":
            self._refuse_mac("a tun interface has none; a tap one has")


def order_problems(interfaces: Sequence[InterfaceSpec]) -> list[str]:
    """Names used twice, and interfaces that need one that stands behind them; with paths below the worker's."""
    problems = []
    places: dict[str, int] = {}
    for number, interface in enumerate(interfaces):
        if interface.name in places:
            problems.append(f'interfaces[{number}].name: "{interface.name}" is used twice')
        places.setdefault(interface.name, number)
    masters: dict[str, str] = {}
    for number, interface in enumerate(interfaces):
        behind = [name for name in interface.needs if places.get(name, -1) >= number]
        problems += [f'interfaces[{number}]: "{name}" must stand before "{interface.name}"' for name in behind]
        if isinstance(interface, Vrf | Bond):
            taken = [port for port in interface.ports if port in masters]
            problems += [f'interfaces[{number}].ports: "{p}" is a port of "{masters[p]}" already' for p in taken]
            masters |= dict.fromkeys(interface.ports, interface.name)
    return problems
