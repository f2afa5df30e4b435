"""Addresses that ends of links have by DHCP: a client for each, whom a process in the worker's network namespace is,
visible as a worker. It only asks; what it is told is set, and written down, as any other address."""

from __future__ import annotations

import itertools
import signal
from functools import partial
from typing import TYPE_CHECKING

import anyio
from attrs import define

from nsorch.core.process import PIPE
from nsorch.core.programs import find
from nsorch.errors import AddressError, ClosedError, NsorchError, UnsupportedError
from nsorch.services import udhcpc
from nsorch.supervisor.readiness import LeaseReady
from nsorch.supervisor.removal import remove
from nsorch.supervisor.wiring.changing import set_addresses
from nsorch.topology import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nsorch.services.udhcpc import Told
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Link, Side
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker


@define(eq=False, repr=False)
class Lease:
    """Of one end.

    :ivar failure: of setting what it was told
    """

    leases: Leases
    link: Link
    side: Side
    other: Side
    process: Worker | None = None
    bound: bool = False
    failure: NsorchError | None = None

    def __str__(self) -> str:
        return f"no DHCP server gives an address to {self.side}"

    def holds(self, process: Worker) -> bool:
        """Whether it has an address. Called first when *process* has begun.

        :raises NsorchError: it was given one that it can't have
        """
        if self.process is None:
            self.process = process
            self.leases.follow(self, process)
        if self.failure is not None:
            raise self.failure
        return self.bound


class Leases:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._of: dict[Side, Lease] = {}
        self._numbers = itertools.count(1)

    @staticmethod
    def check(worker: str) -> str:
        """The client's path.

        :raises UnsupportedError: it isn't installed; names the Debian package
        """
        program = find("udhcpc")
        if program is None:
            raise UnsupportedError("udhcpc isn't installed (Debian: udhcpc)", worker=worker, stage="dhcp")
        return program

    async def obtain(self, links: Iterable[Link]) -> None:
        """For the ends of *links* that have none yet, at the same time.

        :raises NotReadyError: no server has answered in time
        :raises AddressError: the address is outside of the subnet, or somebody else's
        """
        wanted = [
            (link, side, other)
            for link in links
            for side, other in link._both()
            if side.dhcp and side not in self._of and link._state in ("up", "down")
        ]
        errors: list[Exception] = []

        async def obtain(link: Link, side: Side, other: Side) -> None:
            try:
                await self._obtain(link, side, other)
            except Exception as exc:
                errors.append(exc)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for ends in wanted:
                tasks.start_soon(obtain, *ends)
        if errors:
            raise errors[0]

    async def _obtain(self, link: Link, side: Side, other: Side) -> None:
        worker = side.worker
        assert worker is not None
        lease = self._of[side] = Lease(self, link, side, other)
        spec = WorkerSpec(
            name=f"{worker.name[:48]}-dhcp-{next(self._numbers)}",
            command=udhcpc.command(self.check(worker.name), side.ifname, worker.name),
            namespaces={"net": f"worker:{worker.name}", "mnt": "new", "pid": "new"},
            stdout=PIPE,
            ready=LeaseReady(lease),  # type: ignore[arg-type]
        )
        try:
            await self._supervisor._starter.start(spec)
        except BaseException:
            self._of.pop(side, None)
            raise
        link._on_removal.append(partial(self._drop, side))

    def _drop(self, side: Side) -> None:
        """Its link is gone."""
        lease = self._of.pop(side, None)
        if lease is not None and lease.process is not None and self._supervisor._phase == "running":
            self._supervisor._start_soon(partial(remove, self._supervisor, [lease.process]))

    def renew(self, side: Side) -> None:
        """It is somewhere else: ask anew."""
        lease = self._of.get(side)
        if lease is not None and lease.process is not None:
            for number in (signal.SIGUSR2, signal.SIGUSR1):  # release, then ask
                lease.process.signal(number)

    def helpers_of(self, workers: Collection[Worker]) -> list[Worker]:
        """Processes that end with *workers*."""
        doomed = set(workers)
        return [
            lease.process for side, lease in self._of.items() if side.worker in doomed and lease.process is not None
        ]

    # -- what the clients tell

    def follow(self, lease: Lease, process: Worker) -> None:
        self._supervisor._start_soon(partial(self._follow, lease, process))

    async def _follow(self, lease: Lease, process: Worker) -> None:
        assert process.stdout is not None
        rest = b""
        try:
            async for data in process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    await self._take(lease, line.decode(errors="replace"))
        except (anyio.ClosedResourceError, ClosedError):
            pass  # the worker or the link has gone

    async def _take(self, lease: Lease, line: str) -> None:
        try:
            told = udhcpc.parse(line)
            if told is not None:
                await self._set(lease, told)
        except ClosedError:
            raise
        except ValueError as exc:
            self._fail(lease, AddressError(f"{lease.side}: the DHCP server gave {line!r}: {exc}"))
        except NsorchError as exc:
            self._fail(lease, exc)

    def _fail(self, lease: Lease, exc: NsorchError) -> None:
        if not lease.bound:
            lease.failure = exc
            return
        self._wiring.report("dhcp", exc)

    async def _set(self, lease: Lease, told: Told) -> None:
        side = lease.side
        has = next((address for address in side.addresses if address.version == 4), None)
        if (told.address, told.router) != (has, side.router):
            async with self._wiring.watcher.own(lease.link):
                side.router = told.router
                addresses = [] if told.address is None else [told.address]
                await set_addresses(self._wiring, lease.link, side, lease.other, addresses)
        lease.bound = lease.bound or told.address is not None
