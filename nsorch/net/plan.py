"""What is to be made of a network, as pure values: no kernel objects, nothing that blocks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.net.mac import link_local
from nsorch.values import Value

if TYPE_CHECKING:
    from nsorch.net.qdiscs import QdiscPlan

#: key of a network namespace; 0 is the fabric
Netns = int

IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

KERNEL_MTU = 1500  #: of what is made without one


@frozen(kw_only=True, repr=False)
class BridgePlan(Value):
    """A bridge in the fabric; *name* is for errors.

    :ivar forward_delay: seconds, with the spanning tree protocol; None without
    :ivar ageing: seconds, or None for the kernel's 300
    """

    name: str
    ifname: str
    index: int
    mtu: int | None = None
    mac: bytes | None = None
    vlan_aware: bool = False
    forward_delay: float | None = None
    ageing: float | None = None
    multicast_snooping: bool = False


@frozen(repr=False)
class PortVlans(Value):
    """VLANs of a bridge's port.

    :ivar pvid: of its untagged frames
    :ivar tagged: in ascending order
    """

    pvid: int | None
    tagged: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[int, ...]:
        return self.tagged if self.pvid is None else (self.pvid, *self.tagged)


#: of a port to another bridge of the same segment
EVERY_VLAN = PortVlans(1, tuple(range(2, 4095)))


@frozen(kw_only=True, repr=False)
class EndPlan(Value):
    """One end of a link.

    :ivar index: ifindex to be given, or None to let the kernel choose
    :ivar mtu: bytes, or None for the kernel's 1500
    :ivar master: ifindex of the bridge that it is a port of
    :ivar vlans: where that is VLAN-aware
    :ivar ipv6: give it a link-local address; without, IPv6 stays silent on it
    :ivar neighbours: (address, MAC) of others on the link, which need not be asked for then, and don't count against
        the 1,024 neighbours that all network namespaces share
    :ivar qdisc: what packets go through that this end sends
    """

    netns: Netns
    ifname: str
    index: int | None = None
    mac: bytes | None = None
    mtu: int | None = None
    addresses: tuple[IPInterface, ...] = ()
    master: int | None = None
    vlans: PortVlans | None = None
    ipv6: bool = False
    neighbours: tuple[tuple[IPAddress, bytes], ...] = ()
    qdisc: QdiscPlan | None = None

    @property
    def all_addresses(self) -> tuple[IPInterface, ...]:
        """With the link-local one."""
        return self.addresses if not self.ipv6 or self.mac is None else (*self.addresses, link_local(self.mac))


@frozen(kw_only=True, repr=False)
class LinkPlan(Value):
    name: str
    a: EndPlan
    b: EndPlan


@frozen(kw_only=True, repr=False)
class InterfacePlan(Value):
    """An interface in a network namespace that is no end of a veth pair.

    :ivar kind: as the kernel calls it
    :ivar data: its own attributes, as pyroute2 names them
    :ivar index: ifindex to be given, or None to let the kernel choose
    :ivar parent: the interface that it is above
    :ivar ports: interfaces that become ports of it
    :ivar carrier: whether it has any without a program's doing, and is waited for
    :ivar link_local: whether it has a link-local address with IPv6 ones
    """

    ifname: str
    kind: str
    data: tuple[tuple[str, Any], ...] = ()
    index: int | None = None
    parent: str | None = None
    ports: tuple[str, ...] = ()
    mac: bytes | None = None
    mtu: int | None = None
    addresses: tuple[IPInterface, ...] = ()
    carrier: bool = True
    link_local: bool = True


@frozen(kw_only=True, repr=False)
class NextHop(Value):
    """Through interface *dev*, by gateway *via* unless the destination is on the link."""

    via: IPAddress | None
    dev: str


@frozen(kw_only=True, repr=False)
class RoutePlan(Value):
    """Several next hops are of equal cost.

    :ivar table: the main one if None
    """

    destination: IPNetwork
    nexthops: tuple[NextHop, ...]
    source: IPAddress | None = None
    metric: int | None = None
    table: int | None = None


@frozen(repr=False)
class RouteGroup(Value):
    """Routes to many hosts over the same next hops: a few bytes each, where a network has half a million of them.

    :ivar nexthops: several are of equal cost
    :ivar destinations: their addresses, packed, one behind the other
    :ivar hop_limit: of packets that are sent there; the kernel's 64 if None
    """

    version: int
    nexthops: tuple[NextHop, ...]
    source: IPAddress | None
    destinations: bytes
    hop_limit: int | None = None


@frozen(kw_only=True, repr=False)
class NodePlan(Value):
    """What a network namespace gets besides its ends of links. *name* is for errors."""

    netns: Netns
    name: str
    loopback: tuple[IPInterface, ...] = ()
    routes: tuple[RoutePlan, ...] = ()
    groups: tuple[RouteGroup, ...] = ()


@frozen(kw_only=True, repr=False)
class Batch(Value):
    """To be made together, or not at all.

    :ivar raised: ifindices of bridges, and of links between them, that are set up last: a port that joins a bridge
        which is up has its multicast flooded to all others
    """

    bridges: tuple[BridgePlan, ...] = ()
    links: tuple[LinkPlan, ...] = ()
    nodes: tuple[NodePlan, ...] = ()
    raised: tuple[int, ...] = ()
