"""Routes of workers: by a bridge's gateway, as given, and by shortest paths through a whole topology."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from nsorch.errors import TopologyError
from nsorch.net.plan import NextHop, RoutePlan
from nsorch.topology.routing import Edge, next_hops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.supervisor.network import Link, Side
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Topology
    from nsorch.topology.routing import Hop


def default_routes(worker: Worker, new: Sequence[Link], links: Sequence[Link]) -> list[RoutePlan]:
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


def given_routes(worker: Worker, new: Sequence[Link], links: Sequence[Link]) -> list[RoutePlan]:
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


def shortest_paths(
    topology: Topology,
    links: Mapping[str, Sequence[Link]],
    loopbacks: Loopbacks,
    weights: Mapping[str, float],
) -> dict[str, tuple[RoutePlan, ...]]:
    """For each worker, routes to the loopback addresses of all others, equal-cost ones as one multipath route.

    :param links: of each worker
    :param weights: of links, by name
    """
    graph, ways = _graph(topology, links, weights)
    transit = {name for name, spec in topology.workers.items() if spec.forward}
    hops = next_hops(graph, transit=transit)
    return {source: tuple(_routes(source, hops[source], ways, loopbacks)) for source in hops}


Ways = dict[tuple[str, "int | str", str], "tuple[Side, Side]"]


def _graph(
    topology: Topology, links: Mapping[str, Sequence[Link]], weights: Mapping[str, float]
) -> tuple[dict[str, list[Edge]], Ways]:
    """Neighbours, and for each (worker, edge, neighbour) the two ends between them."""
    graph: dict[str, list[Edge]] = {name: [] for name in topology.workers}
    ways: Ways = {}
    on_bridge: dict[str, list[Side]] = {}
    seen: set[str] = set()
    for name in graph:
        for link in links.get(name, ()):
            if link.name in seen:
                continue
            seen.add(link.name)
            a, b = link._sides
            if b.bridge is not None or a.bridge is not None:
                side, port = (a, b) if b.bridge is not None else (b, a)
                assert port.bridge is not None
                on_bridge.setdefault(port.bridge.name, []).append(side)
            else:
                _connect(graph, ways, a, b, link.name, weights.get(link.name, 1.0))
    for bridge, sides in on_bridge.items():
        for number, a in enumerate(sides):
            for b in sides[number + 1 :]:
                if a.worker is not b.worker:
                    _connect(graph, ways, a, b, f"{bridge}/{a}/{b}", 1.0)
    return graph, ways


def _connect(graph: dict[str, list[Edge]], ways: Ways, a: Side, b: Side, key: str, weight: float) -> None:
    assert a.worker is not None
    assert b.worker is not None
    first, second = a.worker.name, b.worker.name
    graph[first].append(Edge(second, key, weight))
    graph[second].append(Edge(first, key, weight))
    ways[first, key, second] = (a, b)
    ways[second, key, first] = (b, a)


def _routes(source: str, targets: Mapping[str, Iterable[Hop]], ways: Ways, loopbacks: Loopbacks) -> Iterable[RoutePlan]:
    own = {address.version: address.ip for address in loopbacks[source]}
    for target, hops in targets.items():
        sides = [ways[source, hop.edge, hop.node] for hop in hops]
        for address in loopbacks[target]:
            nexthops = tuple(
                NextHop(via=gateway, dev=side.ifname)
                for side, other in sides
                if (gateway := _address(other, address.version)) is not None
            )
            if nexthops:
                yield RoutePlan(destination=address.network, nexthops=nexthops, source=own[address.version])


def _address(side: Side, version: int) -> IPv4Address | IPv6Address | None:
    return next((address.ip for address in side.addresses if address.version == version), None)
