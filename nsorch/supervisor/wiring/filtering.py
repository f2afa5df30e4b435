"""Address translation and firewalls of workers: their names become interfaces and addresses, and the kernel gets rules.

The rules of a worker follow what they name: when a worker that ports lead to gets another address, they do, too.
"""

from __future__ import annotations

import socket
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import anyio
from attrs import evolve

from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError, NetlinkError, NsorchError, SetupError, TopologyError, UnsupportedError
from nsorch.net.netlink import NETLINK_NETFILTER, Netlink
from nsorch.supervisor.wiring.kernel import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from nsorch.net.netlink import Request
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.filter_plans import Planner, Plans
    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec

_NOTHING: Plans = (None, None)
_MODULES = "nf_tables, nft_chain_nat, nft_nat, nft_masq, nft_ct, nft_reject_inet; for prefixes nft_compat, ip6t_NPT"


class Filters:
    """Of all workers that have any."""

    def __init__(self, supervisor: Supervisor, wiring: Wiring, kernel: Kernel) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._kernel = kernel
        self._set: dict[Worker, Plans] = {}  # what the kernel has
        self._changing: dict[Worker, anyio.Lock] = {}
        self._planner: Planner | None = None  # until a worker has any

    def check(self, spec: WorkerSpec, coming: AbstractSet[str] = frozenset()) -> None:
        """Refuse what can't be made, before any worker is admitted.

        :param coming: workers that are started together with it
        :raises TopologyError: it names what doesn't exist, or lacks its outside
        """
        where = f"workers.{spec.name}"
        if spec.nat is None and spec.firewall is None:
            return
        from nsorch.topology.filters import filter_names, outside_problem

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
        """Have the kernel do what *spec* says, as *worker*'s description does from then on.

        :raises TopologyError: a worker that ports lead to has no address that fits
        :raises UnsupportedError: the kernel lacks a part of nf_tables; names the modules
        :raises NetlinkError: the kernel refused; what was there stays
        """
        if worker in self._set or spec.nat is not None or spec.firewall is not None:
            async with self._changing.setdefault(worker, anyio.Lock()):
                await self._set_plans(worker, spec, strict=True)
                worker._spec = evolve(worker._spec, nat=spec.nat, firewall=spec.firewall)

    async def change(self, worker: Worker, change: Callable[[WorkerSpec], WorkerSpec]) -> None:
        """As :meth:`apply`, with what *change* makes of its description as it is then."""
        async with self._changing.setdefault(worker, anyio.Lock()):
            spec = change(worker.spec)
            self.check(spec)
            await self._set_plans(worker, spec, strict=True)
            worker._spec = spec

    async def refresh(self, names: AbstractSet[str]) -> None:
        """*names* have other addresses or links now: change the rules that go by these."""
        if self._supervisor._helper.died or not self._set:
            return
        from nsorch.topology.filters import filter_names

        for worker in list(self._set):
            spec = worker.spec
            if worker.name in names or names & {name for _, name in filter_names(spec.nat, spec.firewall)}:
                try:
                    async with self._changing.setdefault(worker, anyio.Lock()):
                        await self._set_plans(worker, worker.spec, strict=False)
                except ClosedError:
                    continue  # it has just been removed
                except NsorchError as exc:
                    self._wiring.report("change the rules", exc, worker=worker)

    def drop(self, worker: Worker) -> None:
        """Its network namespace ends, and the rules with it."""
        self._set.pop(worker, None)
        self._changing.pop(worker, None)

    async def flush(self, worker: Worker) -> None:
        """Forget all connections and mappings."""
        planner = await self._planning()
        flush = partial(_execute, worker.name, planner.flush())
        await self.with_socket(worker, flush)
        nat, _ = self._set.get(worker, _NOTHING)
        if nat is not None:
            await self.with_socket(worker, partial(commit, worker.name, planner.renewal(nat)))

    async def _planning(self) -> Planner:
        if self._planner is None:
            # In a thread: it takes some milliseconds the first time, for which the loop doesn't wait.
            module = await in_thread_or_here(import_module, "nsorch.supervisor.wiring.filter_plans")
            self._planner = module.Planner(self._supervisor, self._wiring)
        assert self._planner is not None
        return self._planner

    async def _set_plans(self, worker: Worker, spec: WorkerSpec, *, strict: bool) -> None:
        """Under the worker's lock. *strict*: see :meth:`Planner.plans`."""
        planner = await self._planning()
        plans = planner.plans(worker, spec, strict=strict)
        before = self._set.get(worker, _NOTHING)
        requests = planner.requests(plans, before)
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
                if exc.errno in MISSING:
                    raise _unsupported("a firewall or NAT", worker.name, exc) from exc
                raise
            with sock:
                await self._kernel.in_thread(use, sock)


def commit(worker: str, requests: Sequence[Request], sock: socket.socket) -> None:
    """In the thread."""
    try:
        Netlink(sock, worker).commit(requests)
    except NetlinkError as exc:
        if exc.errno in MISSING:
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
