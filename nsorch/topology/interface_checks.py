"""What interfaces and VLANs say of other parts of a topology, one step after the other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from nsorch.topology.layer2 import vlan_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import WorkerSpec


def interface_checks(topology: Topology) -> Iterator[str | None]:
    """All problems, each with the path of what is wrong, and None for a step without one."""
    yield from _vlans(topology)
    with_interfaces = {name: worker for name, worker in topology.workers.items() if worker.interfaces}
    if not with_interfaces:
        return
    links: dict[str, list[str | None]] = {name: [to.name for to in w.links] for name, w in with_interfaces.items()}
    for link in topology.links:
        for end in (link.a, link.b):
            if end.worker in links:
                links[end.worker].append(end.name)
        yield None
    for name, worker in with_interfaces.items():
        yield from _needs(name, worker, set(_link_names(worker, links[name])))
        yield from _far_ends(name, worker, topology)


def _vlans(topology: Topology) -> Iterator[str | None]:
    for name, worker in topology.workers.items():
        for number, to in enumerate(worker.links):
            bridge = topology.bridges.get(to.bridge)
            yield vlan_problem(f"workers.{name}.links[{number}]", to, bridge is not None and bridge.vlan_aware)
    for number, link in enumerate(topology.links):
        for side, (end, other) in enumerate(((link.a, link.b), (link.b, link.a))):
            bridge = topology.bridges.get(other.worker)
            aware = bridge is not None and bridge.vlan_aware
            yield vlan_problem(f"links[{number}].ends[{side}]", end, aware)


def _link_names(worker: WorkerSpec, given: list[str | None]) -> Iterator[str]:
    """Those that links without a name get, too."""
    taken = {interface.name for interface in worker.interfaces} | {name for name in given if name is not None}
    for name in given:
        free = name or next(n for number in itertools.count() if (n := f"eth{number}") not in taken)
        taken.add(free)
        yield free


def _needs(name: str, worker: WorkerSpec, known: set[str]) -> Iterator[str | None]:
    from nsorch.topology.interfaces import Bond, Vrf

    known |= {interface.name for interface in worker.interfaces}
    for number, interface in enumerate(worker.interfaces):
        path = f"workers.{name}.interfaces[{number}].{'ports' if isinstance(interface, Bond | Vrf) else 'parent'}"
        for needed in interface.needs:
            yield None if needed in known else f'{path}: the worker has no interface "{needed}"'


def _far_ends(name: str, worker: WorkerSpec, topology: Topology) -> Iterator[str | None]:
    from nsorch.topology.tunnels import Vxlan, WireGuard

    for number, interface in enumerate(worker.interfaces):
        if not isinstance(interface, Vxlan | WireGuard):
            continue
        for other in interface.workers:
            path = f"workers.{name}.interfaces[{number}].{'remote' if isinstance(interface, Vxlan) else 'peers'}"
            if other not in topology.workers:
                yield f'{path}: there is no worker "{other}"'
            elif other == name:
                yield f'{path}: "{other}" is the worker itself'
            else:
                theirs = {its.name for its in topology.workers[other].interfaces if isinstance(its, WireGuard)}
                wanted = {p.interface or "" for p in getattr(interface, "peers", ()) if p.worker == other} - {""}
                if isinstance(interface, WireGuard) and not (theirs and wanted <= theirs):
                    name_of_it = f' "{", ".join(sorted(wanted - theirs))}"' if wanted else ""
                    yield f'{path}: "{other}" has no WireGuard interface{name_of_it}'
                yield None
