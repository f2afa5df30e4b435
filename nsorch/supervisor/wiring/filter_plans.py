"""From address translation and firewalls to plans for the kernel: their names become interfaces and addresses.

Imported with the first worker that has any of it.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from nsorch.errors import TopologyError
from nsorch.net.filters import FirewallPlan, ForwardPlan, NatPlan, PrefixPlan, RulePlan, firewall_requests, nat_requests
from nsorch.net.netlink import Request
from nsorch.net.nftables import flush_connections
from nsorch.supervisor.wiring.planning import interfaces_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec
    from nsorch.topology.filters import Firewall, Forward, Nat, Rule

    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network
    Plans = tuple[NatPlan | None, FirewallPlan | None]


class Planner:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring

    @staticmethod
    def requests(plans: Plans, before: Plans) -> list[Request]:
        """What the kernel is to do, that did *before*."""
        found: list[Request] = []
        if plans[0] != before[0]:
            found += nat_requests(plans[0], before[0])
        if plans[1] != before[1]:
            found += firewall_requests(plans[1])
        return found

    @staticmethod
    def flush() -> list[Request]:
        """Of all connections."""
        return [Request(flush_connections(), "forget", "connections")]

    @staticmethod
    def renewal(nat: NatPlan) -> list[Request]:
        """The same again, without its mappings."""
        return nat_requests(nat, nat)

    def plans(self, worker: Worker, spec: WorkerSpec, *, strict: bool) -> Plans:
        """*strict*: refuse what leads nowhere; else it is left out, until its worker is back."""
        nat, firewall = spec.nat, spec.firewall
        outside = () if nat is None else nat.outside
        return (
            None if nat is None else self._nat(worker, nat, strict=strict),
            None if firewall is None else self._firewall(worker, firewall, firewall.outside or outside),
        )

    def _nat(self, worker: Worker, nat: Nat, *, strict: bool) -> NatPlan:
        outside = interfaces_of(worker, nat.outside, self._wiring.record)
        by_interface = self._wiring.addresses_by_interface(worker).items()
        addresses = tuple(address.ip for name, own in by_interface if name in outside for address in own)
        inside = [address.network for name, own in by_interface if name not in outside for address in own]
        forwards: list[ForwardPlan] = []
        for number, forward in enumerate(nat.forwards):
            made = list(self._forward(forward, inside, ipv6=nat.ipv6))
            if not made and strict:
                where = f"workers.{worker.name}.nat.forwards[{number}].to"
                raise TopologyError(f'{where}: "{forward.host}" has no {"" if nat.ipv6 else "IPv4 "}address')
            forwards += made
        return NatPlan(
            outside=outside,
            addresses=addresses,
            kind=nat.kind,
            forwards=tuple(forwards),
            ipv6=nat.ipv6,
            prefixes=tuple(PrefixPlan(inside=mine, outside=theirs) for mine, theirs in nat.prefixes),
            timeout=nat.timeout,
        )

    def _forward(self, forward: Forward, inside: Sequence[IPNetwork], *, ipv6: bool) -> Iterator[ForwardPlan]:
        """To the address that the router is on a link with, if there is one."""
        try:
            found = [ip_address(forward.host)]
        except ValueError:
            its = self._addresses(forward.host)
            near = [ip for ip in its if any(ip in network for network in inside)]
            choice = [next((ip for ip in (*near, *its) if ip.version == version), None) for version in (4, 6)]
            found = [ip for ip in choice if ip is not None and (ipv6 or ip.version == 4)]
        first, last = forward.port
        for address in found:
            yield ForwardPlan(protocol=forward.protocol, first=first, last=last, address=address, port=forward.to_port)

    def _firewall(self, worker: Worker, firewall: Firewall, outside: Sequence[str]) -> FirewallPlan:
        names = interfaces_of(worker, outside, self._wiring.record)
        rules = [plan for rule in firewall.rules_for(names) for plan in self._rule(worker, rule)]
        return FirewallPlan(
            input=firewall.policy("input"),
            forward=firewall.policy("forward"),
            output=firewall.policy("output"),
            rules=tuple(rules),
        )

    def _rule(self, worker: Worker, rule: Rule) -> Iterator[RulePlan]:
        source, destination = (tuple(self._networks(ends)) for ends in (rule.source, rule.destination))
        if (rule.source and not source) or (rule.destination and not destination):
            return  # about a worker that isn't there
        incoming, outgoing = (
            interfaces_of(worker, [name], self._wiring.record) if name else (None,)
            for name in (rule.incoming, rule.outgoing)
        )
        for came_by in incoming:
            for leaves_by in outgoing:
                yield RulePlan(
                    action=rule.action,
                    chain=rule.chain,
                    protocol=rule.protocol,
                    ports=rule.port,
                    source=source,
                    destination=destination,
                    incoming=came_by,
                    outgoing=leaves_by,
                )

    def _addresses(self, name: str) -> list[IPAddress]:
        worker = self._supervisor._workers.get(name)
        return [] if worker is None else [address.ip for address in self._wiring.addresses_of(worker)]

    def _networks(self, ends: Iterable[str]) -> Iterator[IPNetwork]:
        for end in ends:
            bridge = self._wiring.record.bridges.get(end)
            if bridge is not None:
                yield from bridge.subnets
                for subnets in bridge.spec.vlans.values():
                    yield from subnets
                continue
            try:
                yield ip_network(end)
            except ValueError:
                yield from (ip_network(address) for address in self._addresses(end))
