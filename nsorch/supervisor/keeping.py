"""Addresses that links keep which are made anew, where their description leaves them open, and did before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from nsorch.topology import Topology
from nsorch.topology.difference import links_of
from nsorch.topology.specs import as_link

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Interface, IPv6Interface
    from typing import TypeVar

    from nsorch.supervisor.wiring.given import Given
    from nsorch.supervisor.wiring.network import Link
    from nsorch.topology import End, To
    from nsorch.topology.specs import LinkKey

    Plug = TypeVar("Plug", End, To)


def keeping(topology: Topology, given: Given, before: Topology, links: Mapping[LinkKey, Link]) -> Topology:
    """The same, where ends on bridges of *links* have the addresses that they have now.

    :param given: the addresses in *topology*
    :param before: what *links* were made by
    """
    specs = dict(links_of(before))
    kept: dict[LinkKey, dict[str, list[IPv4Interface | IPv6Interface]]] = {}
    for key, link in links.items():
        spec = as_link(key, specs[key])
        open_ends = [end.worker for end in (spec.a, spec.b) if not end.address]
        for side, port in link._both():
            bridge = None if port.bridge is None else topology.bridges.get(port.bridge.name)
            if side.worker is None or side.worker.name not in open_ends or bridge is None or bridge.vlan_aware:
                continue
            if bridge.name not in key:  # somebody has moved it there
                continue
            if bridge.gateway not in _gateways(link):  # which gets the first address: it may be this
                continue
            taken = given.addresses_on(bridge.name)
            own = [a for a in side.addresses if a.network in bridge.subnet and a.packed not in taken]
            kept.setdefault(key, {})[side.worker.name] = own
    same = Topology(topology.name, routing=topology.routing, metric=topology.metric)
    keys = iter(dict(links_of(topology)))
    for bridge in topology.bridges.values():
        same.add(bridge)
    for worker in topology.workers.values():
        plugs = [_with(to, kept.get(next(keys), {}).get(worker.name)) for to in worker.links]
        same.add(worker if plugs == list(worker.links) else evolve(worker, links=plugs))
    for spec in topology.links:
        own_ends = kept.get(next(keys), {})
        a, b = (_with(end, own_ends.get(end.worker)) for end in (spec.a, spec.b))
        same.add(evolve(spec, a=a, b=b) if own_ends else spec)
    return same


def _gateways(link: Link) -> set[str | None]:
    return {None, *(side.bridge.gateway for side in link._sides if side.bridge is not None)}


def _with(plug: Plug, addresses: list[IPv4Interface | IPv6Interface] | None) -> Plug:
    return plug if not addresses or plug.address or plug.dhcp else evolve(plug, address=addresses)
