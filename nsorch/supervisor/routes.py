"""Routes of workers: by a bridge's gateway, as given, and by shortest paths through a whole topology."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from nsorch.errors import TopologyError
from nsorch.net.plan import NextHop, RouteGroup, RoutePlan
from nsorch.topology.routing import Edge, first_edges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.supervisor.network import Link, Side
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Topology


def default_routes(worker: Worker, new: Collection[Link], links: Sequence[Link]) -> list[RoutePlan]:
    """By the gateway of the first bridge that has one, if that is among the *new* of its *links*."""
    for link in links:
        for side, other in link._both():
            bridge = other.bridge
            if side.worker is worker and bridge is not None and bridge.gateway not in (None, worker.name):
                if link not in new:
                    return []
                return [
                    RoutePlan(
                        destination=ip_network("0.0.0.0/0" if address.version == 4 else "::/0"),
                        nexthops=(NextHop(via=address.ip, dev=side.ifname),),
                    )
                    for address in bridge._gateway_addresses
                    if any(own.version == address.version for own in side.addresses)
                ]
    return []


def given_routes(worker: Worker, new: Collection[Link], links: Sequence[Link]) -> list[RoutePlan]:
    """Those of its description that go through one of the *new* links.

    :raises TopologyError: there is no such interface, or the gateway is on no link
    """
    found = []
    for number, route in enumerate(worker.spec.routes):
        sides = [side for link in links for side in link._sides if side.worker is worker]
        dev = route.dev
        if dev is None:
            dev = next((s.ifname for s in sides if any(route.via in a.network for a in s.addresses)), None)
        elif all(side.ifname != dev for side in sides):
            dev = None
        if dev is None:
            where = f"workers.{worker.name}.routes[{number}]"
            raise TopologyError(f"{where}: {route.dev or route.via} is on none of its links")
        if any(side.ifname == dev for link in new for side in link._sides if side.worker is worker):
            found.append(RoutePlan(destination=route.to, nexthops=(NextHop(via=route.via, dev=dev),)))
    return found


Loopbacks = dict[str, "tuple[IPv4Interface | IPv6Interface, ...]"]


Way = tuple["Side", "Side"]  # an end, and the end at the neighbour


class ShortestPaths:
    """For each worker, routes to the loopback addresses of all others; equal-cost ones are multipath routes.

    :param links: of each worker
    :param cost: of a link in the direction that an end of it stands for
    """

    def __init__(
        self,
        topology: Topology,
        links: Mapping[str, Sequence[Link]],
        loopbacks: Loopbacks,
        cost: Callable[[Link, Side], float],
    ) -> None:
        self._numbers = {name: number for number, name in enumerate(topology.workers)}
        self._graph: list[list[Edge]] = [[] for _ in self._numbers]
        self._loopbacks = loopbacks
        self._packed = {
            version: [b"".join(a.packed for a in loopbacks[name] if a.version == version) for name in self._numbers]
            for version in (4, 6)
        }
        self._transit = {self._numbers[name] for name, spec in topology.workers.items() if spec.forward}
        on_bridge: dict[str, list[Side]] = {}
        for link in dict.fromkeys(link for name in self._numbers for link in links.get(name, ())):
            a, b = link._sides
            if a.bridge is None and b.bridge is None:
                self._connect(a, b, cost(link, a))
                self._connect(b, a, cost(link, b))
            else:
                side, port = (a, b) if b.bridge is not None else (b, a)
                assert port.bridge is not None
                on_bridge.setdefault(port.bridge.name, []).append(side)
        for sides in on_bridge.values():
            for a in sides:
                for b in sides:
                    if a.worker is not b.worker:
                        self._connect(a, b, 1.0)

    def _connect(self, a: Side, b: Side, weight: float) -> None:
        assert a.worker is not None
        assert b.worker is not None
        self._graph[self._numbers[a.worker.name]].append(Edge(self._numbers[b.worker.name], (a, b), weight))

    def routes_of(self, name: str) -> tuple[RouteGroup, ...]:
        """A millisecond or two for a network of 754."""
        source = self._numbers[name]
        ways: list[Way] = [edge.key for edge in self._graph[source]]  # type: ignore[misc]
        own: dict[int, IPv4Address | IPv6Address] = {address.version: address.ip for address in self._loopbacks[name]}
        groups = []
        for edges, targets in first_edges(self._graph, source, transit=self._transit).items():
            chosen = [way for number, way in enumerate(ways) if edges >> number & 1]
            for version, packed in self._packed.items():
                hops = tuple(
                    NextHop(via=gateway, dev=side.ifname)
                    for side, other in chosen
                    if (gateway := _address(other, version)) is not None
                )
                destinations = b"".join([packed[target] for target in targets])
                if hops and destinations:
                    groups.append(RouteGroup(version, hops, own.get(version), destinations))
        return tuple(groups)


def _address(side: Side, version: int) -> IPv4Address | IPv6Address | None:
    return next((address.ip for address in side.addresses if address.version == version), None)
