"""Ways from a worker to the outside of the lab, for who asks for one: a process of pasta, which has its packets sent by
ordinary sockets of the host and needs no root; or address translation by the host's kernel, by root.

The host keeps nothing of it, however the lab ends: pasta is a worker; the veth pair goes with the worker's network
namespace, and the rules with the socket that owns their table.
"""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

import anyio
from attrs import define

from nsorch.core.process import DEVNULL
from nsorch.core.programs import find
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import NameInUseError, SetupError, TopologyError, UnsupportedError, WorkerExitedError
from nsorch.net import messages
from nsorch.net import nftables as nft
from nsorch.net.netlink import NETLINK_NETFILTER, Netlink, Request
from nsorch.net.plan import NextHop, RoutePlan
from nsorch.supervisor.readiness import RouteReady, has_route
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.kernel import netns_of
from nsorch.supervisor.worker import Worker  # noqa: TC001 - for typing.get_type_hints
from nsorch.topology import WorkerSpec
from nsorch.topology.names import interface_problem
from nsorch.topology.uplinks import UplinkMethod  # noqa: TC001 - for typing.get_type_hints
from nsorch.values import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.net.netlink import NetnsHandle
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.topology.uplinks import UplinkSpec

# Nobody's own (RFC 2544); a /31 of it that few others will think of.
_RANGE = IPv4Network("198.18.0.0/15")


@define(eq=False, repr=False)
class Uplink(Shown):
    """A worker's way to the outside of the lab. Made by :meth:`nsorch.Supervisor.uplink`.

    :ivar worker: its name
    :ivar interface: the worker's
    :ivar method: ``"pasta"`` or ``"nat"``
    """

    worker: str
    interface: str
    method: UplinkMethod
    _uplinks: Uplinks
    _owner: Worker
    _process: Worker | None = None  # pasta's
    _rules: socket.socket | None = None  # that owns the host's table
    _host_end: str = ""

    async def remove(self) -> None:
        """Take it down. Doing it twice is once; cancelled, it is done all the same."""
        with anyio.CancelScope(shield=True):
            await self._uplinks.remove(self)
        await anyio.lowlevel.checkpoint()


class Uplinks:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._of: dict[Worker, Uplink] = {}

    async def make(self, worker: Worker, name: str, method: UplinkMethod | None) -> Uplink:
        """See :meth:`Supervisor.uplink`."""
        if problem := interface_problem(name):
            raise TopologyError(f"uplink: {problem}")
        if CLONE_NEWNET not in worker._held or "net" not in worker.namespaces:
            raise UnsupportedError("an uplink is for a network namespace of its own", worker=worker.name)
        if name in worker.interfaces:
            raise NameInUseError(f'the worker has an interface "{name}" already', worker=worker.name)
        if worker in self._of or await has_route(worker):
            raise TopologyError(f"uplink: {worker.name} has a default route already")
        chosen = self._choose(method, worker.name)
        uplink = self._of[worker] = Uplink(worker.name, name, chosen, self, worker)
        try:
            await (self._start_pasta(uplink) if chosen == "pasta" else self._translate(uplink))
            await self._note_index(worker, name)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove(uplink)
            raise
        return uplink

    def check(self, worker: str, described: UplinkSpec) -> None:
        """:raises UnsupportedError: there is nothing that would make it; names the Debian package"""
        self._choose(described.method, worker)

    async def make_all(self, workers: Iterable[Worker]) -> None:
        """Those that their descriptions have."""
        async for worker in in_turns(workers):
            if worker.spec.uplink is not None:
                await self.make(worker, worker.spec.uplink.name, worker.spec.uplink.method)

    async def adapt(self, worker: Worker, described: UplinkSpec | None) -> None:
        """Make what the description has of what it had."""
        there = self._of.get(worker)
        if worker.spec.uplink is not None and there is not None:
            await there.remove()
        if described is not None:
            await self.make(worker, described.name, described.method)

    def _choose(self, method: UplinkMethod | None, worker: str) -> UplinkMethod:
        """:raises UnsupportedError: there is none"""
        problem = None
        if method != "pasta":
            problem = "the host's NAT needs root" if self._supervisor.rootless else _nat_problem()
            if problem is None:
                return "nat"
        if method != "nat" and find("pasta") is not None:
            return "pasta"
        missing = None if method == "nat" else "pasta isn't installed (Debian: passt)"
        raise UnsupportedError(", and ".join(filter(None, (missing, problem))), worker=worker, stage="uplink")

    def helpers_of(self, workers: Iterable[Worker]) -> list[Worker]:
        """Processes that end with *workers*."""
        found = (self._of.get(worker) for worker in workers)
        return [uplink._process for uplink in found if uplink is not None and uplink._process is not None]

    def drop(self, worker: Worker) -> None:
        """Its network namespace ends."""
        uplink = self._of.pop(worker, None)
        if uplink is not None and uplink._rules is not None:
            uplink._rules.close()

    def close(self) -> None:
        for worker in list(self._of):
            self.drop(worker)

    async def remove(self, uplink: Uplink) -> None:
        """Shield it."""
        if self._of.get(uplink._owner) is uplink:
            del self._of[uplink._owner]
        if uplink._rules is not None:
            uplink._rules.close()
        process, uplink._process = uplink._process, None
        if process is not None:
            await process.remove()
        host_end, uplink._host_end = uplink._host_end, ""
        if host_end:
            await self._supervisor._wiring.kernel.in_thread(_delete, host_end)

    async def _note_index(self, worker: Worker, name: str) -> None:
        """The numbers of the worker's next interfaces come behind this one's."""
        kernel = self._supervisor._wiring.kernel
        links = await kernel.in_netns(worker, kernel.engine.list_links)
        worker._indices = max(worker._indices, *(link.index for link in links if link.name == name))

    # -- without root

    async def _start_pasta(self, uplink: Uplink) -> None:
        program = find("pasta")
        assert program is not None  # see _choose
        command = [
            program,
            "--foreground",
            "--config-net",
            "--netns-only",
            "--no-map-gw",
            "--ns-ifname",
            uplink.interface,
        ]
        for option in ("-t", "-u", "-T", "-U"):  # no ports are forwarded
            command += [option, "none"]
        if not self._supervisor.rootless and os.geteuid() == 0:
            command += ["--runas", "0:0"]  # as nobody it couldn't enter the namespace
        command += ["--netns", "/proc/self/fd/0"]
        # It enters by a descriptor: no name of the namespace has to exist.
        spec = WorkerSpec(
            name=f"{uplink.worker[:56]}-uplink",
            command=command,
            namespaces={"net": "host", "mnt": "new", "pid": "new"},
            stdin=netns_of(uplink._owner),
            stdout=DEVNULL,
            ready=RouteReady(uplink._owner),  # type: ignore[arg-type]
        )
        try:
            uplink._process = await self._supervisor._starter.start(spec)
        except WorkerExitedError as exc:
            said = exc.stderr.decode(errors="replace").strip()
            hint = "; /dev/net/tun must be open to this user" if "tun" in said.lower() else ""
            raise SetupError(f"pasta ended{hint}", worker=uplink.worker, stage="uplink", detail=said) from exc

    # -- by root

    async def _translate(self, uplink: Uplink) -> None:
        kernel, worker = self._supervisor._wiring.kernel, uplink._owner
        number = os.getpid() * 64 + worker.order
        pair = int(_RANGE.network_address) + 2 * (number % (_RANGE.num_addresses // 2))
        outer, inner = IPv4Interface((pair, 31)), IPv4Interface((pair + 1, 31))
        uplink._host_end = f"nsorch{number % 0xFFFFFFFF:x}"
        await kernel.in_thread(_make_host_end, uplink._host_end, uplink.interface, netns_of(worker), outer)

        def configure(handle: NetnsHandle) -> None:
            kernel.engine.set_link(handle, uplink.interface, up=True)
            kernel.engine.change_addresses(handle, uplink.interface, add=[inner])
            hop = NextHop(via=outer.ip, dev=uplink.interface)
            kernel.engine.add_routes(handle, [RoutePlan(destination=IPv4Network("0.0.0.0/0"), nexthops=(hop,))])

        uplink._rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        await kernel.in_thread(_set_rules, uplink._rules, uplink._host_end)
        await kernel.in_netns(worker, configure)


def _nat_problem() -> str | None:
    """Why the host wouldn't pass the packets on, or None. nsorch doesn't change that: it would stay after a kill."""
    with open("/proc/net/route") as file:
        rows = [line.split() for line in file][1:]
    device = next((row[0] for row in rows if row[1] == "00000000" and row[7] == "00000000"), None)
    if device is None:
        return "the host has no default route"
    with open(f"/proc/sys/net/ipv4/conf/{device}/forwarding") as file:
        if file.read().strip() != "1":
            return f"the host doesn't forward: the sysctl net.ipv4.conf.{device}.forwarding is 0"
    return None


# In the thread, in the application's own network namespace, which is the host's.


def _make_host_end(name: str, inner: str, netns: int, address: IPv4Interface) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        netlink = Netlink(sock)
        pair = messages.create_veth(messages.VethEnd(ifname=name), messages.VethEnd(ifname=inner, netns=netns))
        netlink.execute([Request(pair, "create link", name)])
        index = messages.parse_link(netlink.ask(Request(messages.get_link(name=name), "look at", name))).index
        requests = [
            Request(messages.set_link(index, no_ipv6_addresses=True), "turn off IPv6 addresses of", name),
            Request(messages.set_link(index, up=True), "set up", name),
            Request(messages.address(messages.RTM_NEWADDR, index, address), "add an address to", name),
        ]
        netlink.execute(requests)
    with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding", "w") as file:
        file.write("1")


def _set_rules(sock: socket.socket, name: str) -> None:
    table = nft.Table(name, owned=True)
    requests = [
        Request(table.add(), "add", "table"),
        Request(
            table.add_chain("postrouting", kind="nat", hook=nft.POSTROUTING, priority=100), "add", "chain postrouting"
        ),
        Request(table.add_rule("postrouting", [*nft.incoming(name), nft.masquerade()]), "add", "masquerade"),
    ]
    Netlink(sock).commit(requests)


def _delete(name: str) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        Netlink(sock).transact([Request(messages.delete_link(name=name), "remove link", name)])
