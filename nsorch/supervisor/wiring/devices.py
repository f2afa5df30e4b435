"""The record of a worker's interfaces that are no ends of links: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from nsorch.net.interfaces import InterfacePlan
from nsorch.net.mac import derive_mac, parse_mac
from nsorch.supervisor.wiring.network import Interface
from nsorch.topology import Bond, Ipvlan, Macvlan, Tun, Vlan, Vrf, Vxlan, WireGuard
from nsorch.topology.interfaces import BOND_MODES, HASH_POLICIES, IPVLAN_MODES, LACP_RATES
from nsorch.values import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

    from nsorch.net.addresses import Segment
    from nsorch.net.wireguard import Peer
    from nsorch.supervisor.traffic.tun import TunDevice
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import InterfaceSpec

# Ethernet, VXLAN, UDP and IP.
_VXLAN_HEADERS = {4: 50, 6: 70}
_ETHERTYPES = {"802.1q": 0x8100, "802.1ad": 0x88A8}


@define(eq=False, repr=False)
class Device(Shown):
    """
    :ivar netns: the worker whose network namespace it is in
    :ivar index: known in advance where nobody else makes interfaces
    :ivar described: by the worker's description; else it was added later
    :ivar segment: that some of its addresses are from
    :ivar known: what its kernel side has been told of far ends, by key or address
    """

    worker: Worker
    spec: InterfaceSpec
    netns: str
    index: int | None
    described: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    segment: Segment | None = None
    state: str = "planned"  # then "made", "up", "removed"
    mac: bytes = b""
    mtu: int | None = None
    public_key: str | None = None
    known: dict[Any, Peer | None] = field(factory=dict)
    opened: list[TunDevice] = field(factory=list)  # descriptors of it that nsorch closes with the worker
    handed_out: bool = False  # it lives as long as its descriptor
    below: str | None = None  # what another program has renamed its parent to

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def owner(self) -> str:
        """Of the addresses, in their segment."""
        return f"{self.worker.name}:{self.name}"

    @property
    def parent(self) -> str | None:
        return (self.below or self.spec.parent) if isinstance(self.spec, Vlan | Macvlan | Ipvlan) else None

    @property
    def ports(self) -> tuple[str, ...]:
        return self.spec.ports if isinstance(self.spec, Vrf | Bond) else ()

    @property
    def far_workers(self) -> tuple[str, ...]:
        return self.spec.workers if isinstance(self.spec, Vxlan | WireGuard) else ()

    @property
    def has_carrier(self) -> bool:
        """Once it is up; else only while a program has it open, or with ports."""
        return not isinstance(self.spec, Tun) and not (isinstance(self.spec, Bond) and not self.spec.ports)

    @property
    def has_link_local(self) -> bool:
        """Not what shares its hardware address, and hears whatever is sent to any of its own addresses."""
        return not isinstance(self.spec, Ipvlan)

    def interface(self) -> Interface:
        return Interface(
            name=self.name,
            kind=self.spec.kind,
            link=None,
            bridge=None,
            peer=None,
            parent=self.parent,
            mac=self.mac.hex(":"),
            mtu=self.mtu,
            addresses=self.addresses,
            public_key=self.public_key,
        )

    def wanted_mac(self) -> bytes | None:
        """The same in every run, where it isn't that of another interface."""
        spec = self.spec
        if spec.mac is not None:
            return parse_mac(spec.mac)
        shared = isinstance(spec, Vlan | Ipvlan | Bond | WireGuard) or getattr(spec, "mode", "") in ("passthru", "tun")
        return None if shared else derive_mac(self.worker.name, spec.name)

    def plan(self, version: int, mtu: int) -> InterfacePlan:
        """
        :param version: of IP, that a tunnel travels in
        :param mtu: bytes, of what it travels over
        """
        spec = self.spec
        own_mtu = mtu - _VXLAN_HEADERS[version] if isinstance(spec, Vxlan) and spec.mtu is None else spec.mtu
        return InterfacePlan(
            ifname=spec.name,
            kind=spec.kind,
            data=tuple(_data(spec, version)),
            index=self.index,
            parent=self.parent,
            ports=self.ports,
            mac=self.wanted_mac(),
            mtu=own_mtu,
            addresses=self.addresses,
            carrier=self.has_carrier,
            link_local=self.has_link_local,
        )


def _data(spec: InterfaceSpec, version: int) -> Iterable[tuple[str, Any]]:
    match spec:
        case Vlan():
            yield "IFLA_VLAN_ID", spec.id
            yield "IFLA_VLAN_PROTOCOL", _ETHERTYPES[spec.protocol]
        case Macvlan():
            yield "IFLA_MACVLAN_MODE", spec.mode
        case Ipvlan():
            yield "IFLA_IPVLAN_MODE", IPVLAN_MODES.index(spec.mode)
        case Vrf():
            yield "IFLA_VRF_TABLE", spec.table
        case Bond():
            yield "IFLA_BOND_MODE", BOND_MODES.index(spec.mode)
            yield "IFLA_BOND_MIIMON", max(round(spec.miimon * 1000), 1)
            if spec.xmit_hash_policy is not None:
                yield "IFLA_BOND_XMIT_HASH_POLICY", HASH_POLICIES.index(spec.xmit_hash_policy)
            if spec.lacp_rate is not None:
                yield "IFLA_BOND_AD_LACP_RATE", LACP_RATES.index(spec.lacp_rate)
        case Vxlan():
            yield "IFLA_VXLAN_ID", spec.id
            yield "IFLA_VXLAN_PORT", spec.port
            if version == 6:
                yield "IFLA_VXLAN_LOCAL6", str(spec.local or "::")
            elif spec.local is not None:
                yield "IFLA_VXLAN_LOCAL", str(spec.local)
