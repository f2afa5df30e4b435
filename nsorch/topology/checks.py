"""What one part of a topology says of another, one step after the other: for those who may not be kept long."""

from __future__ import annotations

import itertools
from ipaddress import ip_network
from typing import TYPE_CHECKING

from nsorch.errors import TopologyError
from nsorch.topology.emulation import NO_EMULATION, Emulation, directions
from nsorch.topology.interface_checks import interface_checks
from nsorch.topology.joins import find_loop, joined_names
from nsorch.topology.layer2 import LEAST_MTU6, port_problems, trunk_problem
from nsorch.topology.namespaces import Host, NamespaceSet, Shared
from nsorch.topology.route_checks import route_checks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import End, To

    # The path of an end, its addresses, and its MTU where it has one of its own.
    Given = list[tuple[str, tuple[IPv4Interface | IPv6Interface, ...], int | None]]


#: of the subnets that links without one get
POOLS = (ip_network("100.64.0.0/11"), ip_network("fd6e:736f:7263::/48"))


def checks(topology: Topology) -> Iterator[str | None]:
    """All problems, each with the path of what is wrong, and None for a step without one."""
    found = _Ends(topology)
    yield from found.dangling()
    yield from _names(topology)
    yield from _unlinkable(topology)
    yield from _joins(topology)
    yield from _filters(topology)
    yield from interface_checks(topology)
    yield from _special_ends(topology)
    yield from found.addresses()
    yield from route_checks(topology, found.segments, POOLS, lambda: _interfaces(topology)[0])
    yield from _contradictions(topology)


def lasting_problems(topology: Topology) -> list[str]:
    """What of :func:`checks` stays wrong however more workers, and bridges without links among bridges, are added."""
    found = _Ends(topology)
    for _ in found.dangling():  # of which names may be those that are still missing
        pass
    steps = itertools.chain(_names(topology), _unlinkable(topology), found.addresses(), _contradictions(topology))
    return [problem for problem in (*steps, *_loops(dict(_joined(topology)))) if problem is not None]


def emulations(topology: Topology) -> Iterator[tuple[str, Emulation, Emulation, Emulation]]:
    """Paths of all links, and what is said of their two ends and of both together."""
    for name, worker in topology.workers.items():
        for number, to in enumerate(worker.links):
            yield f"workers.{name}.links[{number}]", to, NO_EMULATION, NO_EMULATION
    for number, link in enumerate(topology.links):
        a, b = link.a, link.b
        if a.worker in topology.bridges:
            a, b = b, a  # the worker is the subscriber of a profile
        yield f"links[{number}]", a, b, link


def _contradictions(topology: Topology) -> Iterator[str | None]:
    for path, a, b, both in emulations(topology):
        try:
            directions(a, b, both)
            yield None
        except TopologyError as exc:
            for problem in exc.problems:
                yield f"{path}.{problem.removeprefix('ends[0].') if path.startswith('workers') else problem}"


class _Ends:
    """Who is on which bridge.

    :ivar segments: by bridge: all that it is linked to, itself included; after :meth:`dangling`
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._workers: dict[str, set[str]] = {name: set() for name in topology.bridges}
        self._given: dict[tuple[str, int | None], Given] = {}  # by bridge, and VLAN if that has a subnet of its own
        self.segments = {name: [name] for name in topology.bridges}  # with all that it is linked to

    def dangling(self) -> Iterator[str | None]:
        topology = self._topology
        for number, link in enumerate(topology.links):
            a, b = link.a.worker, link.b.worker
            yield self._join(number, a, b) if a in topology.bridges and b in topology.bridges else None
        for name, worker in topology.workers.items():
            for number, to in enumerate(worker.links):
                path = f"workers.{name}.links[{number}]"
                if to.bridge in topology.bridges:
                    self._workers[to.bridge].add(name)
                    self._note(to.bridge, to, path, to.mtu)
                    yield None
                else:
                    yield f'{path}: there is no bridge "{to.bridge}"'
        for number, link in enumerate(topology.links):
            yield None
            for end, other in ((link.a, link.b), (link.b, link.a)):
                if end.worker in topology.bridges:
                    if other.worker in topology.bridges:
                        continue
                    self._workers[end.worker].add(other.worker)
                    self._note(end.worker, other, f"links[{number}]", link.mtu if other.mtu is None else other.mtu)
                elif end.worker not in topology.workers:
                    yield f'links[{number}].ends: there is no worker or bridge "{end.worker}"'
        for name, bridge in topology.bridges.items():
            if bridge.gateway is None:
                continue
            if bridge.gateway not in topology.workers:
                yield f'bridges.{name}.gateway: there is no worker "{bridge.gateway}"'
            elif bridge.gateway not in self._workers[name]:
                yield f'bridges.{name}.gateway: "{bridge.gateway}" has no link to it'

    def _join(self, number: int, a: str, b: str) -> str | None:
        """Bridges that are linked are one segment."""
        bridges = self._topology.bridges
        here, there = self.segments[a], self.segments[b]
        both = here if here is there else [*here, *there]
        for name in both:
            self.segments[name] = both
        problem = trunk_problem([bridges[name] for name in both], loop=here is there)
        return problem and f"links[{number}].ends: {a} and {b} {problem}"

    def _note(self, name: str, end: End | To, path: str, mtu: int | None) -> None:
        bridge = self._topology.bridges[name]
        vlan = end.pvid if bridge.vlan_aware else None
        if bridge.vlan_aware and vlan is None and not end.address:
            return  # all its frames have tags: its address would be of no use
        known = any(vlan in self._topology.bridges[near].vlans for near in self.segments[name])
        self._given.setdefault((name, vlan if known else None), []).append((path, end.address, mtu))

    def addresses(self) -> Iterator[str | None]:
        """Those outside of their subnet or used twice, and more ends than addresses. After :meth:`dangling`."""
        topology = self._topology
        whole: dict[tuple[str, int | None], Given] = {}
        for (name, vlan), given in self._given.items():
            # Of a segment of several bridges, the one that has the subnet stands for all.
            for each in self.segments[name]:
                if topology.bridges[each].subnet if vlan is None else vlan in topology.bridges[each].vlans:
                    name = each
                    break
            whole.setdefault((name, vlan), []).extend(given)
        for (name, vlan), given in whole.items():
            bridge = topology.bridges[name]
            if vlan is None:
                yield from _check_addresses(f"bridges.{name}.subnet", bridge.subnet, given)
            else:
                yield from _check_addresses(f"bridges.{name}.vlans.{vlan}", bridge.vlans[vlan], given)
        for name, bridge in topology.bridges.items():
            subnets = (*bridge.subnet, *itertools.chain(*bridge.vlans.values()))
            yield _too_short(f"bridges.{name}.mtu", bridge.mtu, subnets)
        for number, link in enumerate(topology.links):
            yield _too_short(f"links[{number}].mtu", link.mtu, link.subnet)
            if link.a.worker in topology.bridges or link.b.worker in topology.bridges:
                if link.subnet:
                    yield f"links[{number}].subnet: the bridge has its own"
                continue
            given = [(f"links[{number}].ends[{end}]", e.address, e.mtu) for end, e in enumerate((link.a, link.b))]
            if link.subnet:
                yield from _check_addresses(f"links[{number}].subnet", link.subnet, given)
                continue
            for path, addresses, _ in given:
                for address in addresses:
                    if not any(address.ip in pool for pool in POOLS):
                        yield f"{path}.address: {address.ip} is of no subnet: the link has none"


def _filters(topology: Topology) -> Iterator[str | None]:
    """What NAT, firewalls and services refer to."""
    interfaces: dict[str, set[str]] | None = None
    for name, worker in topology.workers.items():
        yield None
        nat, firewall = worker.nat, worker.firewall
        if nat is None and firewall is None and worker.service is None:
            continue
        from nsorch.topology.filters import filter_names, interface_names, outside_problem
        from nsorch.topology.services import Frr, served_interfaces

        if isinstance(worker.service, Frr) and topology.routing != "none":
            yield f'workers.{name}.service.frr: with routing "{topology.routing}" the routes are set already'
        if interfaces is None:
            own, behind = _interfaces(topology)
            interfaces = {name: own[name] | behind[name] for name in own}
        if problem := outside_problem(nat, firewall):
            yield f"workers.{name}.{problem}"
        for path, other in filter_names(nat, firewall):
            is_bridge = other in topology.bridges and path.startswith("firewall")
            if other not in topology.workers and not is_bridge:
                kinds = "worker" if path.startswith("nat") else "worker or bridge"
                yield f'workers.{name}.{path}: there is no {kinds} "{other}"'
        for path, interface in (*interface_names(nat, firewall), *served_interfaces(worker.service)):
            if interface not in interfaces[name]:
                there = ", ".join(sorted(interfaces[name])) or "no link"
                yield f'workers.{name}.{path}: it has no interface "{interface}" and no link to such: it has {there}'


def _special_ends(topology: Topology) -> Iterator[str | None]:
    """Ends of bridges, which have no address, and those whose address others have to know beforehand."""
    ends: list[tuple[str, str, str, End | To]] = []
    for name, worker in topology.workers.items():
        ends += [(f"workers.{name}.links[{n}]", name, to.bridge, to) for n, to in enumerate(worker.links)]
        yield None
    for number, link in enumerate(topology.links):
        a, b = link.a, link.b
        ends += [
            (f"links[{number}].ends[0]", a.worker, b.worker, a),
            (f"links[{number}].ends[1]", b.worker, a.worker, b),
        ]
        yield None
    for path, name, other, end in ends:
        if name in topology.bridges:
            yield from port_problems(path, end)
        elif not end.dhcp:
            continue
        elif topology.routing != "none":
            yield f'{path}.dhcp: with routing "{topology.routing}" others have routes by its address'
        elif other in topology.bridges and topology.bridges[other].gateway == name:
            yield f'{path}.dhcp: the gateway of "{other}" has the first address'


def _interfaces(topology: Topology) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Of each worker: the names of its interfaces, in the order in which they are given out, and of what is behind."""
    names = {name: {interface.name for interface in w.all_interfaces} for name, w in topology.workers.items()}
    for w in topology.workers.values():
        if w.uplink is not None:
            names[w.name].add(w.uplink.name)
    behind: dict[str, set[str]] = {name: set() for name in topology.workers}
    ends = [(worker.name, to.name, to.bridge) for worker in topology.workers.values() for to in worker.links]
    for link in topology.links:
        ends += [(a.worker, a.name, b.worker) for a, b in ((link.a, link.b), (link.b, link.a))]
    for worker, name, _ in ends:
        if worker in names and name is not None:
            names[worker].add(name)
    for worker, name, other in ends:
        if worker in names:
            taken = names[worker]
            taken.add(name or next(eth for number in itertools.count() if (eth := f"eth{number}") not in taken))
            behind[worker].add(other)
    return names, behind


def _joins(topology: Topology) -> Iterator[str | None]:
    joined = {}
    for name, others in _joined(topology):
        if others:
            joined[name] = others
        yield None
    for name, others in joined.items():
        for other in sorted(others - topology.workers.keys()):
            yield f'workers.{name}.namespaces: there is no worker "{other}"'
    yield from _loops(joined)


def _joined(topology: Topology) -> Iterator[tuple[str, set[str]]]:
    for name, worker in topology.workers.items():
        yield name, joined_names(worker)


def _loops(joined: Mapping[str, set[str]]) -> Iterator[str]:
    done: set[str] = set()
    for name in joined:
        if loop := find_loop(name, joined, done):
            yield f"workers.{name}.namespaces: a loop of joined namespaces: {' → '.join(loop)}"


def _too_short(path: str, mtu: int | None, subnets: Collection[IPv4Network | IPv6Network]) -> str | None:
    if mtu is None or mtu >= LEAST_MTU6 or all(subnet.version == 4 for subnet in subnets):
        return None
    return f"{path}: {mtu} bytes are too few for IPv6, which needs {LEAST_MTU6}"


def is_host(subnet: IPv4Network | IPv6Network, ip: IPv4Address | IPv6Address) -> bool:
    """Not the network's own, nor that of all: RFC 3021, RFC 4291 and RFC 6164."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    return ip != subnet.network_address and (subnet.version == 6 or ip != subnet.broadcast_address)


def _unlinkable(topology: Topology) -> Iterator[str | None]:
    """Links of workers that have the host's network."""
    hosts = set()
    for name, worker in topology.workers.items():
        yield None
        if worker.namespaces is not None:
            namespaces = NamespaceSet.parse(worker.namespaces, passive=worker.command is None)
            if isinstance(namespaces.net, Shared | Host):
                hosts.add(name)
    if not hosts:
        return
    problem = "has the host's network namespace, where nothing is linked to"
    for name in (name for name in topology.workers if name in hosts):
        if topology.workers[name].links:
            yield f"workers.{name}.links: the worker {problem}"
    for number, link in enumerate(topology.links):
        yield None
        for side, end in enumerate((link.a, link.b)):
            if end.worker in hosts:
                yield f"links[{number}].ends[{side}]: {end.worker} {problem}"


def _names(topology: Topology) -> Iterator[str | None]:
    """Names that two interfaces of a worker are given."""
    taken: dict[tuple[str, str], str] = {
        (name, interface.name): f"workers.{name}.interfaces[{number}]"
        for name, worker in topology.workers.items()
        for number, interface in enumerate(worker.interfaces)
    }
    for name, worker in topology.workers.items():
        yield None
        for number, to in enumerate(worker.links):
            if to.name is not None:
                taken.setdefault((name, to.name), f"workers.{name}.links[{number}]")
    for number, link in enumerate(topology.links):
        yield None
        for side, end in enumerate((link.a, link.b)):
            path = f"links[{number}].ends[{side}]"
            if end.name is not None and taken.setdefault((end.worker, end.name), path) != path:
                yield f'{path}.name: "{end.name}" is the name of {taken[end.worker, end.name]} already'


def _check_addresses(where: str, subnets: tuple[IPv4Network | IPv6Network, ...], given: Given) -> Iterator[str | None]:
    taken: dict[object, str] = {}
    for path, addresses, mtu in given:
        yield _too_short(f"{path}.mtu", mtu, subnets)
        for address in addresses:
            if not any(address.ip in subnet for subnet in subnets):
                names = " and ".join(map(str, subnets)) or "(none)"
                yield f"{path}.address: {address.ip} is outside of the subnet {names}"
            elif not any(
                address.ip in s and address.network.prefixlen in (s.prefixlen, s.max_prefixlen) for s in subnets
            ):
                yield f"{path}.address: {address} has another length than its subnet"
            elif not any(address.ip in subnet and is_host(subnet, address.ip) for subnet in subnets):
                yield f"{path}.address: {address.ip} is no host's address in {' and '.join(map(str, subnets))}"
            elif address.ip in taken:
                yield f"{path}.address: {address.ip} is used by {taken[address.ip]} already"
            else:
                taken[address.ip] = path
    for subnet in subnets:
        hosts = subnet.num_addresses
        if subnet.prefixlen < subnet.max_prefixlen - 1:
            hosts -= 2 if subnet.version == 4 else 1
        if len(given) > hosts:
            yield f"{where}: {subnet} has {hosts} addresses for {len(given)} ends"
