"""Which ends of links hear each other: on bridges, and in their VLANs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.topology.interfaces import Vlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import BridgeSpec, End, To, WorkerSpec


def vlan_problem(path: str, end: End | To, aware: bool) -> str | None:
    """Why *end* can't be in the VLANs that it names; *aware*: it is linked to a VLAN-aware bridge."""
    key = "vlan" if end.vlan is not None else "tagged"
    if (end.vlan is None and not end.tagged) or (aware and end.vlan not in end.tagged):
        return None
    if aware:
        return f"{path}.tagged: {end.vlan} is the VLAN of its untagged frames"
    return f"{path}.{key}: it isn't linked to a bridge that is vlan_aware"


def wires(topology: Topology) -> Iterator[tuple[str, str]]:
    """Each worker with the layer-2 segments that it is on (a bridge, or a VLAN of one), and pairs of linked workers."""
    bridges, workers = topology.bridges, topology.workers
    for name, worker in workers.items():
        for to in worker.links:
            for segment in _segments(bridges[to.bridge], to, worker):
                yield name, segment
    for link in topology.links:
        a, b = (link.b, link.a) if link.a.worker in bridges else (link.a, link.b)
        if b.worker not in bridges:
            yield a.worker, b.worker
            continue
        for segment in _segments(bridges[b.worker], a, workers[a.worker]):
            yield a.worker, segment


def _segments(bridge: BridgeSpec, end: End | To, worker: WorkerSpec) -> Iterator[str]:
    """Names, that no other node has."""
    if not bridge.vlan_aware:
        yield bridge.name
        return
    if end.pvid is not None:
        yield f"{bridge.name} {end.pvid}"
    used = {interface.id for interface in worker.interfaces if isinstance(interface, Vlan)}
    yield from (f"{bridge.name} {vlan}" for vlan in end.tagged if vlan in used)
