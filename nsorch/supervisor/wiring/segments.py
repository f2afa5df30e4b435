"""What a layer-2 segment is in the kernel: one bridge, or several where it has more ports than one can have; and what
they are told, so that no worker has to ask all others where somebody is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from nsorch.net.mac import derive_mac, link_local
from nsorch.net.plan import EVERY_VLAN, BridgePlan, EndPlan, LinkPlan
from nsorch.values import Shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.supervisor.wiring.network import Side
    from nsorch.topology import BridgeSpec

# The kernel's bridges have at most 1,023 ports: some for workers, the rest for others of the same segment.
_PORTS, _BRANCHES = 1000, 20
#: from so many on, the first question of each to all others takes seconds
MANY = 500
# The least that the kernel takes with the spanning tree protocol, instead of 15 s: a port forwards after twice that.
_FORWARD_DELAY = 2.0
FABRIC = 0  # as a key of network namespaces; a worker's is its order plus one


@define(eq=False, repr=False)
class Part(Shown):
    """One of a segment's kernel bridges; together they are a tree.

    :ivar trunk: ifindices of the ends of the veth pair to the parent: the one there, and the one here
    """

    index: int
    parent: Part | None = None
    trunk: tuple[int, int] = (0, 0)
    ports: int = 0
    made: bool = False
    up: bool = False
    told: set[Side] = field(factory=set)  #: ports whose workers' whereabouts it knows

    def plan(self, spec: BridgeSpec) -> BridgePlan:
        # One that took the MAC of a port would change it with the ports, and forget its neighbours each time.
        ifname = f"b{self.index}"
        return BridgePlan(
            name=spec.name,
            ifname=ifname,
            index=self.index,
            mtu=spec.mtu,
            mac=derive_mac(spec.name, ifname),
            vlan_aware=spec.vlan_aware,
            forward_delay=(spec.forward_delay or _FORWARD_DELAY) if spec.stp else None,
            ageing=spec.ageing,
            multicast_snooping=spec.multicast_snooping,
        )

    def plan_trunk(self, spec: BridgeSpec) -> LinkPlan | None:
        if self.parent is None:
            return None
        there, here = self.trunk
        ends = ((there, self.parent.index), (here, self.index))
        vlans = EVERY_VLAN if spec.vlan_aware else None
        a, b = (
            EndPlan(netns=FABRIC, ifname=f"t{index}", index=index, mtu=spec.mtu, master=master, vlans=vlans)
            for index, master in ends
        )
        return LinkPlan(name=f"{spec.name} (trunk)", a=a, b=b)

    @property
    def interfaces(self) -> list[int]:
        """To be set up last, and deleted: the trunk's near end, and the bridge itself."""
        return [self.index] if self.parent is None else [self.trunk[1], self.index]

    def _above(self) -> Iterator[Part]:
        part: Part | None = self
        while part is not None:
            yield part
            part = part.parent

    def towards(self, other: Part) -> int:
        """The port behind which *other* is."""
        below = None
        for part in other._above():
            if part is self:
                assert below is not None
                return below.trunk[0]
            below = part
        return self.trunk[1]


class Parts:
    """All of a segment. *indices* are numbers for interfaces."""

    def __init__(self, indices: Iterator[int]) -> None:
        self._indices = indices
        self.all = [Part(next(indices))]

    @property
    def group(self) -> int:
        """Nobody else's number for a group of interfaces: its ports."""
        return self.all[0].index

    def plug(self) -> Part:
        """Where there is room for one more port."""
        for part in reversed(self.all):
            if part.ports < _PORTS:
                break
        else:
            parent = self.all[(len(self.all) - 1) // _BRANCHES]
            part = Part(next(self._indices), parent, (next(self._indices), next(self._indices)))
            self.all.append(part)
        part.ports += 1
        return part


Entry = tuple[int, bytes, int]  # port, hardware address, and VLAN or 0
Neighbour = tuple["IPv4Address | IPv6Address", bytes]


class News:
    """What a part isn't told yet, or knows of what is gone."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.forwarding: list[Entry] = []
        self.neighbours: list[Neighbour] = []
        self.answering: list[int] = []  #: ports to be answered for
        self.asked: list[Neighbour] = []  #: of IPv6, on ports of its own
        self.asking: list[int] = []  #: these ports


def news(part: Part, ends: Collection[tuple[Side, Side]], *, answers: bool) -> News:
    """
    :param ends: of workers, each with its port
    :param answers: whether the bridges answer ARP
    """
    found = News(part)
    if answers and not part.told:
        found.answering += [index for index in part.trunk if index]
    for side, port in ends:
        assert side.mac is not None
        assert port.part is not None
        there = port.index if port.part is part else part.towards(port.part)
        assert there is not None
        if port.vlans is None:
            found.forwarding.append((there, side.mac, 0))
        elif port.vlans.pvid is not None:
            found.forwarding.append((there, side.mac, port.vlans.pvid))
        if answers:
            found.neighbours += [(address.ip, side.mac) for address in side.addresses if address.version == 4]
            if port.part is part:
                found.answering.append(there)
                ipv6 = [address.ip for address in side.addresses if address.version == 6]
                if ipv6:
                    found.asking.append(there)
                    found.asked += [(ip, side.mac) for ip in (*ipv6, link_local(side.mac).ip)]
    return found
