"""Routes of workers: by a bridge's gateway, as given, and by shortest paths through a whole topology."""

from __future__ import annotations

import functools
from ipaddress import ip_network
from typing import TYPE_CHECKING

from nsorch.errors import TopologyError
from nsorch.net.plan import NextHop, RouteGroup, RoutePlan
from nsorch.supervisor.turns import in_turns
from nsorch.topology.routing import connected, first_edges, whole_costs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.supervisor.wiring.devices import Device
    from nsorch.supervisor.wiring.network import Link, Side
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Route, Topology


def default_routes(worker: Worker, new: Collection[Link], links: Sequence[Link]) -> list[RoutePlan]:
    """By the first gateway of each family, of a bridge or as a DHCP server named it, if that is among the *new* of its
    *links*; not where one is given."""
    first: dict[int, RoutePlan | None] = {}
    for link in links:
        for side, other in link._both():
            bridge = other.bridge
            if side.worker is not worker:
                continue
            led = bridge is not None and bridge.gateway not in (None, worker.name)
            if led or side.router is not None:
                gateways = [address.ip for address in bridge._gateway_of(side)] if led and bridge is not None else []
                if side.router is not None:
                    gateways = [side.router, *(ip for ip in gateways if ip.version == 6)]
                versions = {own.version for own in side.addresses}
                for ip in gateways:
                    if ip.version in versions and ip.version not in first:
                        route = _default(ip, side.ifname, worker._tables.get(side.ifname))
                        first[ip.version] = route if link in new else None
        if len(first) == 2:
            break
    given = {route.destination for route in _routes(worker, links)} if first else set()
    return [route for route in first.values() if route is not None and route.destination not in given]


@functools.lru_cache(maxsize=1024)
def _default(gateway: IPv4Address | IPv6Address, dev: str, table: int | None) -> RoutePlan:
    """One for the thousands that have the same."""
    destination = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
    return RoutePlan(destination=destination, nexthops=(NextHop(via=gateway, dev=dev),), table=table)


def given_routes(worker: Worker, new: Collection[Link], links: Sequence[Link]) -> list[RoutePlan]:
    """Those of its description that go through one of the *new* links. What has no way, now that something was removed,
    is left out until it has one again."""
    names = {side.ifname for link in links if link in new for side in link._sides if side.worker is worker}
    return [route for route in _routes(worker, links) if route.nexthops[0].dev in names]


def device_routes(worker: Worker, links: Sequence[Link], devices: Collection[Device]) -> list[RoutePlan]:
    """Those that go through others of its interfaces."""
    names = {device.name for device in devices}
    return [route for route in _routes(worker, links) if route.nexthops[0].dev in names]


def check_routes(worker: Worker, links: Sequence[Link]) -> None:
    """:raises TopologyError: there is no such interface, or a gateway is on no link"""
    # An interface that went with a link that is replaced comes again, with its routes.
    if any(spec.name not in worker._devices for spec in worker.spec.all_interfaces):
        return
    for number, (route, dev) in enumerate(_ways(worker, links)):
        if dev is None:
            where = f"workers.{worker.name}.routes[{number}]"
            raise TopologyError(f"{where}: {route.dev or route.via} is on none of its links")


def _routes(worker: Worker, links: Sequence[Link]) -> Iterator[RoutePlan]:
    for route, dev in _ways(worker, links):
        if dev is not None:
            hop = NextHop(via=route.via, dev=dev)
            yield RoutePlan(destination=route.to, nexthops=(hop,), table=worker._tables.get(dev))


def _ways(worker: Worker, links: Sequence[Link]) -> Iterator[tuple[Route, str | None]]:
    """The given routes, each with its interface."""
    routes = worker.spec.all_routes
    if not routes:
        return
    there: list[tuple[str, Collection[IPv4Interface | IPv6Interface]]] = [
        (side.ifname, side.addresses) for link in links for side in link._sides if side.worker is worker
    ]
    there += [(device.name, device.addresses) for device in worker._devices.values()]
    for route in routes:
        if route.dev is None:
            yield route, next((name for name, own in there if any(route.via in a.network for a in own)), None)
        else:
            yield route, route.dev if any(name == route.dev for name, _ in there) else None


Loopbacks = dict[str, "tuple[IPv4Interface | IPv6Interface, ...]"]

# The kernel's packets live for 64 hops; where paths may be longer, for as many as there can be.
_NEAR, _HOP_LIMIT = 60, 255


class ShortestPaths:
    """For each worker, routes to the loopback addresses of all others; equal-cost ones are multipath routes.

    The two families have paths of their own where some links have addresses of one alone.

    :param links: of each worker
    :param cost: of sending into a link, by the end that sends; 0 is allowed for ports of bridges
    :param netns_of: the worker in whose network namespace another one is
    """

    def __init__(
        self, links: Mapping[str, Sequence[Link]], loopbacks: Loopbacks, netns_of: Callable[[str], str]
    ) -> None:
        self._links = links
        self._loopbacks = loopbacks
        self._netns_of = netns_of
        self._whole: dict[str, str] = {}  # bridges that are linked are one segment: its first name
        self._numbers: dict[str, int] = {}  # of segments and workers
        self._packed: dict[int, list[bytes]] = {4: [], 6: []}
        self._transit: set[int] = set()
        self._costs: dict[Side, int] = {}
        self._on_segment: dict[str, list[tuple[Side, Side]]] = {}  # ends, and their ports
        self._graphs: dict[int, list[list[tuple[int, int]]]] = {}
        self._hop_limit: int | None = None

    @classmethod
    async def of(
        cls,
        topology: Topology,
        links: Mapping[str, Sequence[Link]],
        loopbacks: Loopbacks,
        cost: Callable[[Link, Side], float],
        netns_of: Callable[[str], str],
    ) -> ShortestPaths:
        """Look at all links, which takes 20 ms for a network of 754: the loop gets its turns between."""
        paths = cls(links, loopbacks, netns_of)
        await paths._look(topology, cost)
        return paths

    async def _look(self, topology: Topology, cost: Callable[[Link, Side], float]) -> None:
        every = list(dict.fromkeys(link for name in topology.workers for link in self._links.get(name, ())))
        self._whole = {name: min(names) for names in connected(topology.bridges, topology.trunks()) for name in names}
        segments = dict.fromkeys(self._node(side) for link in every for side in link._sides if side.worker is None)
        names = [*segments, *topology.workers]  # segments first: what leaves them may cost nothing
        self._numbers = {name: number for number, name in enumerate(names)}
        self._packed = {version: [b""] * len(names) for version in (4, 6)}
        async for name in in_turns(topology.workers):
            # Who has no links is reached by those of the worker whose network namespace it has joined.
            owner = name if self._links.get(name) else self._netns_of(name)
            number = self._numbers.get(owner, self._numbers[name])
            for address in self._loopbacks.get(name, ()):
                self._packed[address.version][number] += address.packed
        self._transit = {self._numbers[name] for name in names if name in segments or topology.workers[name].forward}
        self._hop_limit = _HOP_LIMIT if len(names) > _NEAR else None
        costs = {side: cost(link, side) async for link in in_turns(every) for side in link._sides}
        whole = whole_costs(costs.values())
        self._costs = {side: whole[value] for side, value in costs.items()}
        graphs: dict[int, list[list[tuple[int, int]]]] = {version: [[] for _ in names] for version in (4, 6)}
        async for link in in_turns(every):
            for side, other in link._both():
                if side.bridge is not None:
                    self._on_segment.setdefault(self._node(side), []).append((other, side))
                for version in _versions(link):
                    graphs[version][self._number(side)].append((self._number(other), self._costs[side]))
        if graphs[4] == graphs[6]:
            graphs[6] = graphs[4]
        self._graphs = graphs

    def _node(self, side: Side) -> str:
        """The worker, or the segment: a bridge, or a VLAN of one."""
        if side.worker is not None:
            return side.worker.name
        assert side.bridge is not None
        name = self._whole[side.bridge.name]
        return name if side.vlans is None else f"{name} {side.vlans.pvid}"

    def _number(self, side: Side) -> int:
        return self._numbers[self._node(side)]

    def routes_of(self, name: str) -> tuple[RouteGroup, ...]:
        """A millisecond or two for a network of 754."""
        source = self._numbers[name]
        groups = []
        found = None
        for address in self._loopbacks[name]:
            version, graph = address.version, self._graphs[address.version]
            hops, first = self._first(name, version)
            if found is None or found[:2] != (graph, first):
                found = graph, first, first_edges(graph, source, first, transit=self._transit)
            for mask, targets in found[2].items():
                destinations = b"".join([self._packed[version][target] for target in targets])
                if destinations:
                    chosen = tuple(hop for number, hop in enumerate(hops) if mask >> number & 1)
                    groups.append(RouteGroup(version, chosen, address.ip, destinations, self._hop_limit))
        return tuple(groups)

    def _first(self, name: str, version: int) -> tuple[list[NextHop], list[tuple[int, int]]]:
        """The next hops of a worker, and the edges that they stand for: one to each of the others on a bridge."""
        hops: list[NextHop] = []
        edges: list[tuple[int, int]] = []
        for link in self._links.get(name, ()):
            for side, other in link._both():
                if side.worker is None or side.worker.name != name or version not in _versions(link):
                    continue
                ends = [(other, None)] if other.bridge is None else self._on_segment[self._node(other)]
                for end, port in ends:
                    gateway = _address(end, version)
                    if gateway is not None and end.worker is not side.worker:
                        hops.append(NextHop(via=gateway, dev=side.ifname))
                        edges.append((self._number(end), self._costs[side] + (self._costs[port] if port else 0)))
        return hops, edges


def _versions(link: Link) -> list[int]:
    """Of IP, that all its ends in workers have addresses of."""
    ends = [side for side in link._sides if side.worker is not None]
    return [version for version in (4, 6) if all(_address(side, version) is not None for side in ends)]


def _address(side: Side, version: int) -> IPv4Address | IPv6Address | None:
    return next((address.ip for address in side.addresses if address.version == version), None)
