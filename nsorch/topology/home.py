"""What stands between a home and its provider."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nsorch.topology.filters import Firewall, Forward, Nat, NatKind, Rule
from nsorch.topology.services import Dnsmasq
from nsorch.topology.specs import To, WorkerSpec


def home_router(
    name: str,
    *,
    inside: Any,
    outside: Any,
    kind: NatKind = "masquerade",
    forwards: Iterable[Forward] = (),
    rules: Iterable[Rule] = (),
    services: bool = True,
    range: str | None = None,  # noqa: A002 - dnsmasq's word
    domain: str | None = "home",
    servers: Iterable[str | IPv4Address | IPv6Address] = (),
    label: str | None = None,
) -> WorkerSpec:
    """The description of a worker that does what a home router does: it translates IPv4 addresses, routes IPv6, lets in
    nothing from the outside that wasn't asked for, and serves DHCP, DNS and router advertisements on the inside.

    Give it to :meth:`nsorch.Supervisor.start_all` or :meth:`nsorch.Topology.add`; ``gateway=name`` of the inner bridge
    makes it the others' default route.

    :param inside: bridge of the home, or a :class:`nsorch.To`
    :param outside: bridge of the provider, or a :class:`nsorch.To`
    :param kind: of :class:`nsorch.Nat`
    :param forwards: ports of the outside that lead inside
    :param rules: exceptions from the firewall
    :param services: without, it needs no dnsmasq, and serves nothing
    :param range: of the addresses that are given out, see :class:`nsorch.Dnsmasq`
    :param domain: of the home's names
    :param servers: DNS servers of the provider
    """
    outer, inner = (end if isinstance(end, To) else To(end) for end in (outside, inside))
    outside_name, inside_name = (end.name or end.bridge for end in (outer, inner))
    return WorkerSpec(
        name=name,
        links=(outer, inner),
        nat=Nat(outside_name, kind=kind, forwards=tuple(forwards)),
        firewall=Firewall("home", rules=tuple(rules)),
        service=Dnsmasq(inside_name, range=range, domain=domain, servers=tuple(servers)) if services else None,
        label=label,
    )
