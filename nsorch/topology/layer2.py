"""Which ends of links hear each other: on bridges, and in their VLANs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from nsorch.topology.routing import connected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import BridgeSpec, End, To, WorkerSpec


LEAST_MTU6 = 1280  # of IPv6: RFC 8200, section 5


def is_short(mtus: Iterable[int | None]) -> bool:
    """Whether one of them is too small for IPv6."""
    return any(mtu is not None and mtu < LEAST_MTU6 for mtu in mtus)


def vlan_problem(path: str, end: End | To, aware: bool) -> str | None:
    """Why *end* can't be in the VLANs that it names; *aware*: it is linked to a VLAN-aware bridge."""
    key = "vlan" if end.vlan is not None else "tagged"
    if (end.vlan is None and not end.tagged) or (aware and end.vlan not in end.tagged):
        return None
    if aware:
        return f"{path}.tagged: {end.vlan} is the VLAN of its untagged frames"
    return f"{path}.{key}: it isn't linked to a bridge that is vlan_aware"


def port_problems(path: str, end: End | To) -> Iterator[str]:
    """What *end*, which is a bridge, says that only workers' ends have."""
    for key in ("address", "dhcp"):
        if getattr(end, key):
            yield f"{path}.{key}: a bridge has no address"
    for key in ("name", "mac"):
        if getattr(end, key) is not None:
            yield f"{path}.{key}: the end on a bridge has none to be given"


def trunk_problem(bridges: Sequence[BridgeSpec], *, loop: bool) -> str | None:
    """Why *bridges* can't be one segment; *loop*: those that are to be linked are on it already."""
    if loop and not all(bridge.stp for bridge in bridges):
        return "are linked already: without stp, frames would go round for ever"
    if len({bridge.vlan_aware for bridge in bridges}) > 1:
        return "would be one segment, but not all of its bridges are vlan_aware"
    numbers = {number for bridge in bridges for number in bridge.vlans}
    given = [("", {bridge.subnet for bridge in bridges if bridge.subnet})]
    given += [(f" of VLAN {n}", {bridge.vlans[n] for bridge in bridges if n in bridge.vlans}) for n in sorted(numbers)]
    for of, subnets in given:
        if len(subnets) > 1:
            shown = " and ".join(sorted(", ".join(map(str, subnet)) for subnet in subnets))
            return f"would be one segment with different subnets{of}: {shown}"
    gateways = {bridge.gateway for bridge in bridges if bridge.gateway is not None}
    if len(gateways) > 1:
        return f"would be one segment with two gateways: {' and '.join(sorted(gateways))}"
    return None


def linked_bridges(topology: Topology) -> dict[str, BridgeSpec]:
    """All bridges; those that are linked with the subnet, the gateway and the VLANs that one of them gives to all."""
    found = dict(topology.bridges)
    trunks = topology.trunks()
    for names in connected(found, trunks) if trunks else ():
        specs = [spec for name, spec in topology.bridges.items() if name in names]
        subnet = next((spec.subnet for spec in specs if spec.subnet), ())
        gateway = next((spec.gateway for spec in specs if spec.gateway is not None), None)
        vlans = {number: subnet for spec in specs for number, subnet in spec.vlans.items()}
        found.update((spec.name, evolve(spec, subnet=subnet, gateway=gateway, vlans=vlans)) for spec in specs)
    return found


def wires(topology: Topology) -> Iterator[tuple[str, str]]:
    """Each worker with the layer-2 segments that it is on (a bridge, or a VLAN of one), and pairs of linked workers."""
    bridges, workers = topology.bridges, topology.workers
    whole = _first_bridges(topology)
    for name, worker in workers.items():
        for to in worker.links:
            for segment in _segments(bridges[whole.get(to.bridge, to.bridge)], to, worker):
                yield name, segment
    for link in topology.links:
        a, b = (link.b, link.a) if link.a.worker in bridges else (link.a, link.b)
        if b.worker not in bridges:
            yield a.worker, b.worker
        elif a.worker in workers:
            for segment in _segments(bridges[whole.get(b.worker, b.worker)], a, workers[a.worker]):
                yield a.worker, segment


def _first_bridges(topology: Topology) -> dict[str, str]:
    """Of bridges that are linked, the one that stands for all of the segment."""
    trunks = topology.trunks()
    found = connected(topology.bridges, trunks) if trunks else []
    return {name: next(each for each in topology.bridges if each in names) for names in found for name in names}


def _segments(bridge: BridgeSpec, end: End | To, worker: WorkerSpec) -> Iterator[str]:
    """Names, that no other node has."""
    if not bridge.vlan_aware:
        yield bridge.name
        return
    if end.pvid is not None:
        yield f"{bridge.name} {end.pvid}"
    used = _vlans_of(worker) if worker.interfaces else ()
    yield from (f"{bridge.name} {vlan}" for vlan in end.tagged if vlan in used)


def _vlans_of(worker: WorkerSpec) -> set[int]:
    from nsorch.topology.interfaces import Vlan

    return {interface.id for interface in worker.interfaces if isinstance(interface, Vlan) and interface.is_of_bridges}
