"""A network that falls apart into groups, and heals.

Each worker drops what comes from workers of other groups: by hardware address what they send, or forward, on a link or
bridge that both are on, and by IP address what comes from further away. So nothing of links, bridges and routes
changes, what happens inside a group isn't touched, and healing leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from nsorch import events
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import ClosedError, NsorchError, TopologyError, UnsupportedError
from nsorch.net.mac import link_local
from nsorch.supervisor.wiring.filtering import commit
from nsorch.topology.kinds import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from collections.abc import Set as AbstractSet

    from nsorch.net.partition import PartitionPlan
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

    Groups = tuple[frozenset[str], ...]


class Partitions:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._groups: Groups = ()
        self._set: dict[Worker, PartitionPlan] = {}  # what the kernel has, by owners of network namespaces
        self._changing = anyio.Lock()

    async def partition(self, groups: Sequence[Iterable[Worker | str]]) -> None:
        """See :meth:`nsorch.Supervisor.partition`."""
        names = self._named(groups)
        async with self._changing:
            before = self._groups
            try:
                self._groups = names
                await self._apply()
            except BaseException:
                self._groups = before
                with anyio.CancelScope(shield=True):
                    await self._apply()
                raise
        self._wiring.publish(events.NetworkPartitioned(groups=tuple(tuple(sorted(group)) for group in names)))

    async def heal(self) -> None:
        """See :meth:`nsorch.Supervisor.heal`."""
        async with self._changing:
            if not self._groups:
                return
            self._groups = ()
            with anyio.CancelScope(shield=True):
                await self._apply()
        self._wiring.publish(events.NetworkHealed())

    async def refresh(self, names: AbstractSet[str]) -> None:
        """*names* have other addresses or links now."""
        if not self._groups or self._supervisor._helper.died or not names & frozenset().union(*self._groups):
            return
        async with self._changing:
            try:
                await self._apply()
            except NsorchError as exc:
                self._wiring.report("change the partition", exc)

    def drop(self, worker: Worker) -> None:
        """Its network namespace ends."""
        self._set.pop(worker, None)

    # -- what each is not to hear

    def _named(self, groups: Sequence[Iterable[Worker | str]]) -> Groups:
        """:raises TopologyError: a worker in two groups; fewer than two groups; something else than a group"""
        found: list[frozenset[str]] = []
        owners: dict[str, int] = {}
        for number, group in enumerate(groups):
            if isinstance(group, str) or not isinstance(group, Iterable):
                raise TopologyError(f"partition: {shown(group)} is no group: give a set of workers, or of their names")
            members = list(group)
            workers = [self._supervisor._worker(member) for member in members]
            for worker in workers:
                owner = self._owner(worker)
                if owners.setdefault(owner.name, number) != number:
                    raise TopologyError(f"partition: {worker.name} is in groups {owners[owner.name]} and {number}")
            found.append(frozenset(worker.name for worker in workers))
        if len(found) < 2 or not all(found):
            raise TopologyError("partition: it takes two groups or more, of one worker or more each")
        return tuple(found)

    def _owner(self, worker: Worker) -> Worker:
        owner = self._wiring.record.owner_of_netns(worker)
        if owner is None:
            raise UnsupportedError(
                "it has the host's network namespace, which nothing is done to", worker=worker.name, stage="partition"
            )
        return owner

    async def _apply(self) -> None:
        from nsorch.net.partition import PartitionPlan, partition_requests

        workers = self._supervisor._workers
        groups = [[workers[name] for name in group if name in workers] for group in self._groups]
        whole = [self._of(group) for group in groups]
        wanted: dict[Worker, PartitionPlan] = {}
        for number, group in enumerate(groups):
            others = [plan for other, plan in enumerate(whole) if other != number]
            plan = PartitionPlan(
                addresses=frozenset().union(*(other.addresses for other in others)),
                macs=frozenset().union(*(other.macs for other in others)),
            )
            wanted.update((self._owner(worker), plan) for worker in group)
        for worker in {**self._set, **wanted}:
            plan_or_none = wanted.get(worker)
            if self._set.get(worker) == plan_or_none or CLONE_NEWNET not in worker._held:
                continue
            try:
                requests = partition_requests(plan_or_none)
                await self._wiring.filters.with_socket(worker, partial(commit, worker.name, requests))
            except ClosedError:
                continue  # it has just been removed
            if plan_or_none is None:
                self._set.pop(worker, None)
            else:
                self._set[worker] = plan_or_none

    def _of(self, group: Collection[Worker]) -> PartitionPlan:
        """Whoever is to hear none of *group* drops these."""
        from nsorch.net.partition import PartitionPlan

        record = self._wiring.record
        sides = [
            side
            for worker in group
            for link in record.links_of.get(worker.name, ())
            for side in link._sides
            if side.worker is worker and side.mac is not None
        ]
        macs = frozenset(side.mac for side in sides if side.mac is not None)
        addresses = {address.ip for worker in group for address in self._wiring.addresses_of(worker)}
        return PartitionPlan(addresses=frozenset(addresses | {link_local(mac).ip for mac in macs}), macs=macs)
