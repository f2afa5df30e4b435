"""Services of workers: their commands are made of the worker's links when it starts, and follow these later."""

from __future__ import annotations

import os
import signal
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from nsorch.core.programs import find
from nsorch.errors import TopologyError, UnsupportedError
from nsorch.net.interfaces import look_at
from nsorch.services import dnsmasq
from nsorch.supervisor.wiring.planning import interfaces_of
from nsorch.supervisor.wiring.routes import default_routes
from nsorch.topology.services import PROGRAMS, TAYGA_INTERFACE, Dnsmasq, Frr, Tayga

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.routers import Routers
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec

_DNS = 53


class Services:
    """Of all workers that have one."""

    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._routers: Routers | None = None  # until there is one
        self._all: dict[Worker, None] = {}
        self._reading: dict[Worker, int] = {}  # incarnations of dnsmasq that a signal doesn't end
        self._unread: set[Worker] = set()  # whose dnsmasq may not know the latest names

    @property
    def routers(self) -> Routers:
        if self._routers is None:
            from nsorch.supervisor.wiring.routers import Routers

            self._routers = Routers(self._supervisor, self._wiring)
        return self._routers

    @staticmethod
    def check(spec: WorkerSpec) -> None:
        """:raises UnsupportedError: its program isn't installed; names the Debian package"""
        if spec.rootfs is None:
            program, package = PROGRAMS[type(spec.service)]
            if find(program) is None:
                raise UnsupportedError(
                    f"{os.path.basename(program)} isn't installed (Debian: {package})",
                    worker=spec.name,
                    stage="service",
                )

    def admit(self, worker: Worker) -> None:
        """Reserve the loopback addresses of a router."""
        self._all[worker] = None
        if isinstance(worker.spec.service, Frr):
            routing = self._wiring.routing
            routing.plan(worker.name, routing.pool.take(worker.name), ())

    def drop(self, worker: Worker) -> None:
        self._all.pop(worker, None)
        self._reading.pop(worker, None)
        self._unread.discard(worker)
        if self._routers is not None:
            self._routers.drop(worker)

    def command(self, worker: Worker) -> Sequence[str | bytes | os.PathLike[str]]:
        """Of its main process, as its links are now.

        :raises TopologyError: its service can't serve what it is to
        """
        service = worker.spec.service
        if isinstance(service, Dnsmasq):
            found = find("dnsmasq") if worker.spec.rootfs is None else None
            return [found or "dnsmasq", *self._dnsmasq(worker, service)]
        if isinstance(service, Frr):
            return self.routers.command(worker, service)
        assert isinstance(service, Tayga)
        return self._tayga(worker, service)

    async def is_ready(self, worker: Worker) -> bool:
        """Whether it does what it is to, for now."""
        if isinstance(worker.spec.service, Frr):
            return await self.routers.has_converged(worker, worker.spec.service)
        if isinstance(worker.spec.service, Tayga):
            state = await self._wiring.kernel.in_netns(worker, look_at, TAYGA_INTERFACE)
            return bool(state.carrier)  # somebody has it open
        try:
            async with await worker.connect_tcp("127.0.0.1", _DNS):
                pass
        except OSError:
            return False
        self._reading[worker] = worker.incarnation
        if worker in self._unread:
            self._read_names(worker)
        return True

    def refresh(self) -> None:
        """Some workers have other addresses or links now."""
        if self._supervisor._helper.died:
            return
        for worker in self._all:
            service = worker.spec.service
            if worker._main is None or worker._main.alive is None:
                continue
            if isinstance(service, Frr):
                self.routers.refresh(worker, service)
            elif isinstance(service, Dnsmasq):
                self._read_names(worker)

    def _read_names(self, worker: Worker) -> None:
        """Have dnsmasq read the hosts file again; before it is ready, that would end it."""
        if self._reading.get(worker) == worker.incarnation:
            self._unread.discard(worker)
            worker.signal(signal.SIGHUP)
        else:
            self._unread.add(worker)

    # -- dnsmasq

    def _dnsmasq(self, worker: Worker, service: Dnsmasq) -> list[str]:
        names = interfaces_of(worker, service.inside, self._wiring.record)
        where = f"workers.{worker.name}.service.dnsmasq"
        own = self._wiring.addresses_by_interface(worker)
        served = [dnsmasq.Served(ifname=name, addresses=own[name]) for name in names if name in own]
        if {one.ifname for one in served} < set(names):
            raise TopologyError(f"{where}.inside: it has no interface {', '.join(service.inside)}")
        networks = [address.network for one in served for address in one.addresses]
        if service.range is not None and not any(all(ip in network for ip in service.range) for network in networks):
            raise TopologyError(
                f"{where}.range: {service.range[0]} to {service.range[1]} is in no subnet of its inside"
            )
        for network in networks:
            if service.ra and network.version == 6 and network.prefixlen != 64:
                raise TopologyError(f"{where}.ra: hosts make addresses of a /64 only, not of {network} (RFC 4862)")
        return dnsmasq.arguments(
            served,
            dhcp=service.dhcp,
            range_=service.range,
            lease=service.lease,
            ra=service.ra,
            domain=service.domain,
            servers=service.servers,
        )

    # -- tayga

    def _tayga(self, worker: Worker, service: Tayga) -> list[str]:
        from nsorch.services import tayga

        where = f"workers.{worker.name}.service.tayga"
        own = self._wiring.addresses_by_interface(worker)
        networks = [a.network for addresses in own.values() for a in addresses if isinstance(a, IPv4Interface)]
        for network in networks:
            if network.overlaps(service.pool):
                raise TopologyError(f"{where}.pool: {service.pool} overlaps {network}, where the worker has a link")
        if (
            service.prefix == tayga.WELL_KNOWN
            and networks
            and all(tayga.is_local(network) for network in networks)
            and not self._may_lead_on(worker, own)
        ):
            raise TopologyError(
                f"{where}.prefix: nothing can be reached: tayga translates no private IPv4 addresses behind "
                f"{service.prefix} (RFC 6052, 3.1), only behind a prefix of your own such as fd64::/96"
            )
        program = find("tayga")
        assert program is not None  # see check
        return tayga.command(program, interface=TAYGA_INTERFACE, prefix=service.prefix, pool=service.pool)

    def _may_lead_on(self, worker: Worker, own: Collection[str]) -> bool:
        """Whether it has, or is to get, a way to IPv4 networks that it has no link to."""
        if worker.spec.nat is not None and not set(
            interfaces_of(worker, worker.spec.nat.outside, self._wiring.record)
        ) <= set(own):
            return True
        links = self._wiring.record.links_of.get(worker.name, ())
        destinations = [route.destination for route in default_routes(worker, links, links)]
        return any(network.version == 4 for network in (*destinations, *(route.to for route in worker.spec.routes)))
