"""What is to be made of a network, as pure values: no kernel objects, nothing that blocks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from nsorch.net.mac import link_local

if TYPE_CHECKING:
    from nsorch.net.qdiscs import QdiscPlan

#: key of a network namespace; 0 is the fabric
Netns = int

IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

KERNEL_MTU = 1500  #: of what is made without one


class BridgePlan(NamedTuple):
    """A bridge in the fabric; *name* is for errors.

    :ivar forward_delay: seconds, with the spanning tree protocol; None without
    :ivar ageing: seconds, or None for the kernel's 300
    """

    name: str
    ifname: str
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    mtu: int | None = None
    mac: bytes | None = None
    vlan_aware: bool = False
    forward_delay: float | None = None
    ageing: float | None = None
    multicast_snooping: bool = False


class PortVlans(NamedTuple):
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


class PortPlan(NamedTuple):
    """An interface of the fabric that becomes a port of the bridge *master*; both by ifindex.

    :ivar vlans: where that is VLAN-aware
    """

    port: int
    master: int
    vlans: PortVlans | None = None


class EndPlan(NamedTuple):
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
    index: int | None = None  # type: ignore[assignment]  # a tuple has a method of this name
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


class LinkPlan(NamedTuple):
    name: str
    a: EndPlan
    b: EndPlan


class NextHop(NamedTuple):
    """Through interface *dev*, by gateway *via* unless the destination is on the link."""

    via: IPAddress | None
    dev: str


class RoutePlan(NamedTuple):
    """Several next hops are of equal cost.

    :ivar table: the main one if None
    """

    destination: IPNetwork
    nexthops: tuple[NextHop, ...]
    source: IPAddress | None = None
    metric: int | None = None
    table: int | None = None


class RouteGroup(NamedTuple):
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


class NodePlan(NamedTuple):
    """What a network namespace gets besides its ends of links. *name* is for errors."""

    netns: Netns
    name: str
    loopback: tuple[IPInterface, ...] = ()
    routes: tuple[RoutePlan, ...] = ()
    groups: tuple[RouteGroup, ...] = ()

    def and_also(self, other: NodePlan) -> NodePlan:
        """All that both give to one namespace, each once."""
        return self._replace(
            loopback=tuple(dict.fromkeys((*self.loopback, *other.loopback))),
            routes=tuple(dict.fromkeys((*self.routes, *other.routes))),
            groups=tuple(dict.fromkeys((*self.groups, *other.groups))),
        )


class Batch(NamedTuple):
    """To be made together, or not at all.

    :ivar joining: ports of bridges that are up; a worker whose end is new sends multicast, which these would flood to
        all others, so they join when all ends are there
    :ivar raised: ifindices of bridges, and of links between them, that are set up last, for the same reason
    """

    bridges: tuple[BridgePlan, ...] = ()
    links: tuple[LinkPlan, ...] = ()
    nodes: tuple[NodePlan, ...] = ()
    joining: tuple[PortPlan, ...] = ()
    raised: tuple[int, ...] = ()
