"""From what is recorded of workers and links to the plans that the kernel's thread carries out: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.net.plan import EndPlan, LinkPlan, PortPlan
from nsorch.supervisor.wiring.emulating import qdisc_plan
from nsorch.supervisor.wiring.segments import FABRIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.wiring.record import Record
    from nsorch.supervisor.worker import Worker

    Neighbours = tuple[tuple[IPv4Address | IPv6Address, bytes], ...]


def netns_key(worker: Worker) -> int:
    """Of its network namespace, in plans."""
    return worker.order + 1


def link_plan(link: Link, links_of: Mapping[str, Sequence[Link]]) -> LinkPlan:
    a, b = (_plan(side, _neighbours(link, side, other, links_of)) for side, other in link._both())
    return LinkPlan(name=link.name, a=a, b=b)


def end_plan(link: Link, side: Side, links_of: Mapping[str, Sequence[Link]]) -> EndPlan:
    other = next(other for other in link._sides if other is not side)
    return _plan(side, _neighbours(link, side, other, links_of))


def _neighbours(link: Link, side: Side, other: Side, links_of: Mapping[str, Sequence[Link]]) -> Neighbours:
    """What an end of *link* knows from the start: a routed link's other one, or the gateway."""
    bridge = other.bridge
    if bridge is None:
        return tuple(as_neighbour(other, side)) if link._static else ()
    if side.worker is None or bridge.gateway in (None, side.worker.name) or not bridge._serves(side):
        return ()
    for its in links_of.get(str(bridge.gateway), ()):
        for gateway, port in its._both():
            if port.bridge is bridge and gateway.worker is not None and gateway.worker.name == bridge.gateway:
                side.gateway = gateway.mac, gateway.addresses
                return tuple(as_neighbour(gateway, side))
    return ()


def as_neighbour(side: Side, of: Side) -> Iterator[tuple[IPv4Address | IPv6Address, bytes]]:
    """What an end is to know of *side*, in the families that it has itself."""
    if side.mac is not None:
        for address in side.addresses:
            if any(own.version == address.version for own in of.addresses):
                yield address.ip, side.mac


def port_plan(port: Side) -> PortPlan:
    """Of one that joins a bridge which is up."""
    assert port.index is not None
    assert port.part is not None
    return PortPlan(port=port.index, master=port.part.index, vlans=port.vlans)


def _plan(side: Side, neighbours: Neighbours) -> EndPlan:
    part = None if side.part is None or side.part.up else side.part  # else it joins later
    return EndPlan(
        netns=FABRIC if side.worker is None else netns_key(side.worker),
        ifname=side.ifname,
        index=side.index,
        mac=side.mac,
        mtu=side.mtu,
        addresses=side.addresses,
        master=None if part is None else part.index,
        vlans=None if part is None else side.vlans,
        ipv6=any(address.version == 6 for address in side.addresses),
        neighbours=neighbours,
        qdisc=qdisc_plan(side.emulation) if side.emulation.active else None,
    )


def addresses_in(link: Link, worker: Worker) -> Iterable[IPv4Interface | IPv6Interface]:
    for side in link._sides:
        if side.worker is worker:
            yield from side.addresses


def interfaces_of(worker: Worker, names: Iterable[str], record: Record) -> tuple[str, ...]:
    """Of *worker*, by their own names, or by what they lead to; one that isn't there yet keeps its name."""
    ends = list(record.ends_of(worker))
    found: list[str] = []
    for name in names:
        own = [side.ifname for side, _ in ends if side.ifname == name]
        leading = [side.ifname for side, other in ends if _leads_to(other, name)]
        found += own or leading or [name]
    return tuple(dict.fromkeys(found))


def _leads_to(side: Side, name: str) -> bool:
    node = side.bridge if side.worker is None else side.worker
    return node is not None and node.name == name


def bridges_of(links: Iterable[Link]) -> Iterator[Bridge]:
    return (side.bridge for link in links for side in link._sides if side.bridge is not None)
