"""Address translation and firewalls of workers: their names become interfaces and addresses, and the kernel gets rules.

The rules of a worker follow what they name: when a worker that ports lead to gets another address, they do, too.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import anyio

from nsorch import events
from nsorch.errors import ClosedError, NetlinkError, NsorchError, SetupError, TopologyError, UnsupportedError
from nsorch.net.filters import (
    FirewallPlan,
    ForwardPlan,
    NatPlan,
    PrefixPlan,
    RulePlan,
    firewall_requests,
    nat_requests,
)
from nsorch.net.netlink import Netlink, Request
from nsorch.net.nftables import NETLINK_NETFILTER, flush_connections
from nsorch.topology.filters import filter_names, outside_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from nsorch.supervisor.kernel import Kernel
    from nsorch.supervisor.network import Side
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Firewall, Forward, Nat, Rule, WorkerSpec

    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network
    Plans = tuple[NatPlan | None, FirewallPlan | None]

_NOTHING: Plans = (None, None)
# What the kernel says of an expression, a chain or a protocol that it doesn't have.
_MISSING = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_MODULES = "nf_tables, nft_chain_nat, nft_nat, nft_masq, nft_ct, nft_reject_inet; for prefixes nft_compat, ip6t_NPT"


class Filters:
    """Of all workers that have any."""

    def __init__(self, supervisor: Supervisor, wiring: Wiring, kernel: Kernel) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._kernel = kernel
        self._set: dict[Worker, Plans] = {}  # what the kernel has
        self._changing: dict[Worker, anyio.Lock] = {}

    def check(self, spec: WorkerSpec, coming: AbstractSet[str] = frozenset()) -> None:
        """Refuse what can't be made, before any worker is admitted.

        :param coming: workers that are started together with it
        :raises TopologyError: it names what doesn't exist, or lacks its outside
        """
        where = f"workers.{spec.name}"
        if spec.nat is None and spec.firewall is None:
            return
        problem = outside_problem(spec.nat, spec.firewall)
        problems = [problem] if problem else []
        known = self._supervisor._workers.keys() | coming
        bridges = self._wiring.record.bridges
        for path, name in filter_names(spec.nat, spec.firewall):
            if name not in known and (path.startswith("nat") or name not in bridges):
                problems.append(f'{path}: there is no worker{"" if path.startswith("nat") else " or bridge"} "{name}"')
        if problems:
            raise TopologyError(*(f"{where}.{problem}" for problem in problems))

    async def apply(self, worker: Worker, spec: WorkerSpec) -> None:
        """Have the kernel do what *spec* says, which is *worker*'s description from then on.

        :raises TopologyError: a worker that ports lead to has no address that fits
        :raises UnsupportedError: the kernel lacks a part of nf_tables; names the modules
        :raises NetlinkError: the kernel refused; what was there stays
        """
        if worker in self._set or spec.nat is not None or spec.firewall is not None:
            async with self._changing.setdefault(worker, anyio.Lock()):
                await self._set_plans(worker, self._plans(worker, spec, strict=True))
                worker._spec = spec

    async def change(self, worker: Worker, change: Callable[[WorkerSpec], WorkerSpec]) -> None:
        """As :meth:`apply`, with what *change* makes of its description as it is then."""
        async with self._changing.setdefault(worker, anyio.Lock()):
            spec = change(worker.spec)
            self.check(spec)
            await self._set_plans(worker, self._plans(worker, spec, strict=True))
            worker._spec = spec

    async def refresh(self, names: AbstractSet[str]) -> None:
        """*names* have other addresses or links now: change the rules that go by these."""
        if self._supervisor._helper.died:
            return
        for worker in list(self._set):
            spec = worker.spec
            if worker.name in names or names & {name for _, name in filter_names(spec.nat, spec.firewall)}:
                try:
                    async with self._changing.setdefault(worker, anyio.Lock()):
                        await self._set_plans(worker, self._plans(worker, worker.spec, strict=False))
                except ClosedError:
                    continue  # it has just been removed
                except NsorchError as exc:
                    self._supervisor._bus.publish(
                        events.NetError(
                            worker=worker.name, operation="change the rules", errno=exc.errno or 0, detail=str(exc)
                        )
                    )

    def drop(self, worker: Worker) -> None:
        """Its network namespace ends, and the rules with it."""
        self._set.pop(worker, None)
        self._changing.pop(worker, None)

    async def flush(self, worker: Worker) -> None:
        """Forget all connections and mappings."""
        flush = partial(_execute, worker.name, [Request(flush_connections(), "forget", "connections")])
        await self.with_socket(worker, flush)
        nat, _ = self._set.get(worker, _NOTHING)
        if nat is not None:
            await self.with_socket(worker, partial(commit, worker.name, nat_requests(nat, nat)))

    async def _set_plans(self, worker: Worker, plans: Plans) -> None:
        """Under the worker's lock."""
        before = self._set.get(worker, _NOTHING)
        requests = []
        if plans[0] != before[0]:
            requests += nat_requests(plans[0], before[0])
        if plans[1] != before[1]:
            requests += firewall_requests(plans[1])
        if requests:
            await self.with_socket(worker, partial(commit, worker.name, requests))
        if plans == _NOTHING:
            self._set.pop(worker, None)
        else:
            self._set[worker] = plans

    async def with_socket(self, worker: Worker, use: partial[None]) -> None:
        """Call *use* in the kernel's thread, with a socket of nfnetlink in *worker*'s network namespace."""
        with anyio.CancelScope(shield=True):  # what the kernel has, and what is written down of it, are one
            try:
                sock = await worker._open_socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            except SetupError as exc:
                if exc.errno in _MISSING:
                    raise _unsupported("a firewall or NAT", worker.name, exc) from exc
                raise
            with sock:
                await self._kernel.in_thread(use, sock)

    # -- from names to interfaces and addresses

    def _plans(self, worker: Worker, spec: WorkerSpec, *, strict: bool) -> Plans:
        """*strict*: refuse what leads nowhere; else it is left out, until its worker is back."""
        nat, firewall = spec.nat, spec.firewall
        outside = () if nat is None else nat.outside
        return (
            None if nat is None else self._nat(worker, nat, strict=strict),
            None if firewall is None else self._firewall(worker, firewall, firewall.outside or outside),
        )

    def _nat(self, worker: Worker, nat: Nat, *, strict: bool) -> NatPlan:
        outside = self.interfaces(worker, nat.outside)
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
        names = self.interfaces(worker, outside)
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
            self.interfaces(worker, [name]) if name else (None,) for name in (rule.incoming, rule.outgoing)
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

    def interfaces(self, worker: Worker, names: Iterable[str]) -> tuple[str, ...]:
        """Of *worker*, by their own names, or by what they lead to; one that isn't there yet keeps its name."""
        ends = list(self._wiring.record.ends_of(worker))
        found: list[str] = []
        for name in names:
            own = [side.ifname for side, _ in ends if side.ifname == name]
            leading = [side.ifname for side, other in ends if _leads_to(other, name)]
            found += own or leading or [name]
        return tuple(dict.fromkeys(found))

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


def _leads_to(side: Side, name: str) -> bool:
    node = side.bridge if side.worker is None else side.worker
    return node is not None and node.name == name


def commit(worker: str, requests: Sequence[Request], sock: socket.socket) -> None:
    """In the thread."""
    try:
        Netlink(sock, worker).commit(requests)
    except NetlinkError as exc:
        if exc.errno in _MISSING:
            raise _unsupported(f"{exc.operation} {exc.object}", worker, exc) from exc
        raise


def _execute(worker: str, requests: Sequence[Request], sock: socket.socket) -> None:
    Netlink(sock, worker).execute(requests)


def _unsupported(what: str, worker: str, exc: NsorchError) -> UnsupportedError:
    return UnsupportedError(
        f"{what}: this kernel lacks a part of nf_tables (modules {_MODULES})",
        worker=worker,
        stage="netlink",
        errno=exc.errno,
        detail=exc.detail,
    )
