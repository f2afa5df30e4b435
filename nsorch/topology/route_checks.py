"""Whether given routes lead through a link, as far as that is known before addresses are given out."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from nsorch.topology.namespaces import NamespaceSet, New

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import WorkerSpec


def route_checks(
    topology: Topology,
    segments: Mapping[str, Sequence[str]],
    pools: Sequence[IPv4Network | IPv6Network],
    interfaces: Callable[[], Mapping[str, Collection[str]]],
) -> Iterator[str | None]:
    """
    :param segments: by bridge: all that it is linked to, itself included
    :param pools: of the subnets that links without one get
    :param interfaces: the names of each worker's, when they are needed
    """
    routed = {name: worker for name, worker in topology.workers.items() if worker.routes and _has_own_network(worker)}
    if not routed:
        return
    near: dict[str, list[IPv4Network | IPv6Network]] = {name: [] for name in routed}
    special = {name for name, worker in routed.items() if worker.all_interfaces or worker.uplink is not None}
    for name, worker in routed.items():
        yield None
        for to in worker.links:
            near[name] += _subnets(topology, segments.get(to.bridge, ()))
            if to.dhcp:
                special.add(name)
    for link in topology.links:
        yield None
        for end, other in ((link.a, link.b), (link.b, link.a)):
            if end.worker not in near:
                continue
            if other.worker in topology.bridges:
                near[end.worker] += _subnets(topology, segments[other.worker])
            else:
                near[end.worker] += link.subnet or pools
            if end.dhcp:
                special.add(end.worker)
    names: Mapping[str, Collection[str]] | None = None
    for name, worker in routed.items():
        for number, route in enumerate(worker.routes):
            problem = None
            if route.dev is not None:
                names = names or interfaces()
                problem = None if route.dev in names[name] else f"{route.dev} is on none of its links"
            elif name not in special:
                problem = _gateway_problem(route.via, near[name])
            yield problem and f"workers.{name}.routes[{number}]: {problem}"


def _gateway_problem(via: IPv4Address | IPv6Address, near: Collection[IPv4Network | IPv6Network]) -> str | None:
    subnets = [subnet for subnet in near if via in subnet]
    if not subnets:
        return f"{via} is on none of its links"
    if via.version == 4 and all(via == subnet.broadcast_address and subnet.prefixlen < 31 for subnet in subnets):
        return f"{via} is all of {subnets[0]}, and nobody's address"
    return None


def _has_own_network(worker: WorkerSpec) -> bool:
    if worker.namespaces is None:
        return True
    return isinstance(NamespaceSet.parse(worker.namespaces, passive=worker.command is None).net, New)


def _subnets(topology: Topology, names: Collection[str]) -> Iterator[IPv4Network | IPv6Network]:
    for name in names:
        bridge = topology.bridges[name]
        yield from itertools.chain(bridge.subnet, *bridge.vlans.values())
