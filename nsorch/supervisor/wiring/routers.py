"""Workers that run routing protocols: what FRR is told of their links, and whether all of them have taken it in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from nsorch.core.process import DEVNULL
from nsorch.errors import ClosedError, NsorchError
from nsorch.net.mac import link_local
from nsorch.services import frr
from nsorch.topology.services import Frr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.net.messages import Hop
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Side
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

    IPAddress = IPv4Address | IPv6Address
    Table = Mapping[bytes, tuple[Hop, ...]]

_FAMILIES = {"ospf": (4,), "bgp": (4, 6)}
_INTERVAL = 0.05


class Routers:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._configured: dict[Worker, str] = {}  # what FRR was told
        self._up: dict[Worker, int] = {}  # incarnations whose launcher has told it
        self._telling: dict[Worker, anyio.Lock] = {}

    def drop(self, worker: Worker) -> None:
        self._up.pop(worker, None)
        self._configured.pop(worker, None)
        self._telling.pop(worker, None)

    def command(self, worker: Worker, service: Frr) -> list[str]:
        router = self._described(worker, service)
        self._configured[worker] = frr.configuration(router)
        return frr.command(router)

    def refresh(self, worker: Worker, service: Frr) -> None:
        """Its links may be others now."""
        if self._up.get(worker) == worker.incarnation:
            self._supervisor._start_soon(lambda: self._tell(worker, service))

    async def converge(self) -> None:
        """Wait until all have converged, and the routes of each lead to all that they are to."""
        while True:
            self._supervisor._check_running()
            running = [worker for worker in self._supervisor._workers.values() if _runs(worker)]
            with contextlib.suppress(ClosedError):  # one of them has just been removed
                if await self._all_converged(running):
                    return
            await anyio.sleep(_INTERVAL)

    async def _all_converged(self, workers: Sequence[Worker]) -> bool:
        tables: dict[Worker, Table] = {}
        kernel = self._wiring.kernel
        for worker in workers:
            service = worker.spec.service
            assert isinstance(service, Frr)
            if not _runs(worker) or not await self.has_converged(worker, service):
                return False
            tables[worker] = await kernel.in_netns(worker, kernel.engine.list_host_routes)
        for target in workers:
            await anyio.lowlevel.checkpoint()
            sources = list(self._reachable(target))
            for address in self._wiring.routing.loopbacks_of(target.name):
                leads = {target: True}
                for source, families in sources:
                    if address.version in families and not self._leads(source, address.ip.packed, tables, leads):
                        return False
        return True

    def _leads(self, worker: Worker, target: bytes, tables: Mapping[Worker, Table], leads: dict[Worker, bool]) -> bool:
        """Whether all ways from *worker* end at the *target*, over links that are up, and none goes round in circles.

        :param leads: of those already known; False for those on the way here
        """
        if worker not in leads:
            leads[worker] = False
            hops = tables.get(worker, {}).get(target, ())
            following = [self._behind(worker, hop) for hop in hops]
            leads[worker] = bool(hops) and all(
                other is not None and self._leads(other, target, tables, leads) for other in following
            )
        return leads[worker]

    def _behind(self, worker: Worker, hop: Hop) -> Worker | None:
        gateway, index = hop
        for link in self._wiring.record.links_of.get(worker.name, ()):
            for side, other in link._both():
                if side.worker is worker and side.index == index and link.is_up:
                    if other.bridge is None:
                        return other.worker
                    ends = self._wiring.record.neighbours_of(side, other)
                    return next((end.worker for end in ends if gateway in _packed_addresses(end)), None)
        return None

    def _described(self, worker: Worker, service: Frr) -> frr.Router:
        ports = []
        for side, other in self._wiring.record.ends_of(worker):
            peers = [ip for _, protocol, ip in self._neighbours(worker, service, side, other) if protocol == "bgp"]
            ports.append(frr.Port(ifname=side.ifname, point_to_point=other.bridge is None, peers=tuple(peers)))
        return frr.Router(
            name=worker.name,
            place=worker.order + 1,
            loopbacks=self._wiring.routing.loopbacks_of(worker.name),
            ports=tuple(ports),
            protocols=service.protocols,
            number=service.asn,
            area=service.area,
            hello=service.hello,
            config=service.config,
        )

    def _neighbours(
        self, worker: Worker, service: Frr, side: Side, other: Side
    ) -> Iterator[tuple[Worker, str, IPAddress]]:
        """(neighbour, protocol, its address) behind an end of a link, for all that both speak."""
        for end in self._wiring.record.neighbours_of(side, other):
            if end.worker is None or end.worker is worker or not isinstance(end.worker.spec.service, Frr):
                continue
            families = {address.version for address in side.addresses}
            for protocol in service.protocols:
                if protocol in end.worker.spec.service.protocols:
                    for address in end.addresses:
                        if address.version in families and address.version in _FAMILIES[protocol]:
                            yield end.worker, protocol, address.ip

    def _live(self, worker: Worker, service: Frr) -> Iterator[tuple[Worker, str, IPAddress]]:
        """Neighbours that run, over links that are up."""
        for link in self._wiring.record.links_of.get(worker.name, ()):
            if link.is_up:
                for side, other in link._both():
                    if side.worker is worker:
                        for found in self._neighbours(worker, service, side, other):
                            if _runs(found[0]):
                                yield found

    async def has_converged(self, worker: Worker, service: Frr) -> bool:
        if self._up.get(worker) != worker.incarnation:
            incarnation = worker.incarnation
            if (await worker.run(["test", "-e", frr.CONFIGURED], check=False)).returncode != 0:
                return False
            self._up[worker] = incarnation
        if not await self._tell(worker, service):
            return False
        loopbacks = self._wiring.routing.loopbacks_of
        expected = {
            address.ip.packed
            for other, families in self._reachable(worker)
            for address in loopbacks(other.name)
            if address.version in families
        }
        kernel = self._wiring.kernel
        if expected and not expected <= (await kernel.in_netns(worker, kernel.engine.list_host_routes)).keys():
            return False
        live = list(self._live(worker, service))
        for protocol, question, read in (
            ("ospf", "show ip ospf neighbor json", frr.adjacent_neighbours),
            ("bgp", "show bgp neighbors json", frr.established_peers),
        ):
            wanted = {str(ip) for _, spoken, ip in live if spoken == protocol}
            if wanted:
                done = await worker.run([*frr.VTYSH, "-c", question], stderr=DEVNULL, check=False)
                if done.returncode != 0 or not wanted <= read(done.stdout):
                    return False
        return True

    def _reachable(self, worker: Worker) -> Iterator[tuple[Worker, set[int]]]:
        """All that routers lead to, with the families in which: those that a protocol connects it with."""
        found: dict[Worker, set[int]] = {}
        for protocol, families in _FAMILIES.items():
            seen, todo = {worker}, [worker]
            while todo:
                one = todo.pop()
                service = one.spec.service
                if isinstance(service, Frr):
                    for other, spoken, _ in self._live(one, service):
                        if spoken == protocol and other not in seen:
                            seen.add(other)
                            todo.append(other)
            for other in seen - {worker}:
                found.setdefault(other, set()).update(families)
        yield from found.items()

    async def _tell(self, worker: Worker, service: Frr) -> bool:
        """Have FRR know the links as they are now; whether it does."""
        async with self._telling.setdefault(worker, anyio.Lock()):
            text = frr.configuration(self._described(worker, service))
            if self._configured.get(worker) == text:
                return True
            try:
                done = await worker.run(
                    [*frr.VTYSH, "-f", "/dev/stdin"], input=text.encode(), stderr=DEVNULL, check=False
                )
            except NsorchError:
                return False  # it is ending
            if done.returncode == 0:
                self._configured[worker] = text
            return done.returncode == 0


def _runs(worker: Worker) -> bool:
    return isinstance(worker.spec.service, Frr) and worker._main is not None and worker._main.alive is not None


def _packed_addresses(side: Side) -> set[bytes]:
    found = {address.packed for address in side.addresses}
    return found if side.mac is None else found | {link_local(side.mac).packed}
