"""Workers that are to be started: everything that can be known of them before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch import events
from nsorch.core import descriptors
from nsorch.errors import NameInUseError, TopologyError
from nsorch.supervisor.confined import check_uppers, confined_of
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.emulating import needs_netem, require_netem
from nsorch.supervisor.worker import Worker
from nsorch.topology.emulation import NO_EMULATION, directions
from nsorch.topology.joins import find_loop, joined_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.topology import WorkerSpec

_DESCRIPTORS = 6  # of a worker: its namespaces, a pidfd, a socket while it is wired


async def admit(supervisor: Supervisor, specs: Sequence[WorkerSpec], workers: list[Worker]) -> None:
    """Take them into the record.

    :param workers: gets each, also if a later one is refused
    :raises NsorchError: what forbids one of them
    """
    supervisor._check_running()
    await _check_names(supervisor, specs)
    await _check_joined(supervisor, specs)
    check_uppers(specs, (worker.spec for worker in supervisor._workers.values()))
    coming = {spec.name for spec in specs}
    confined = []
    async for spec in in_turns(specs):
        supervisor._wiring.record.check(spec)
        supervisor._wiring.filters.check(spec, coming)
        if any(to.dhcp for to in spec.links):
            supervisor._wiring.leases.check(spec.name)
        confined.append(await confined_of(spec, supervisor._facts, rootless=supervisor.rootless))
    await supervisor._wiring.require(specs, ())
    await require_netem(
        supervisor._wiring.kernel,
        [
            f"workers.{spec.name}.links[{number}]"
            async for spec in in_turns(specs)
            for number, to in enumerate(spec.links)
            if to.active and needs_netem(*directions(to, NO_EMULATION))
        ],
    )
    await require(supervisor, specs)
    await descriptors.make_room(_DESCRIPTORS * len(specs))
    async for spec, how in in_turns(zip(specs, confined, strict=True)):
        supervisor._check_running()
        _check_name(supervisor, spec)  # somebody may have been faster
        worker = Worker(supervisor, spec, next(supervisor._orders), how)
        supervisor._workers[spec.name] = worker
        workers.append(worker)
        supervisor._bus.publish(events.WorkerRequested(worker=spec.name))


async def plan(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    """What is to be made for them, now that all are known: one may join the namespaces of another.

    :raises NsorchError: something of it is taken
    """
    async for worker in in_turns(workers):
        if worker.spec.all_interfaces:
            supervisor._wiring.interfaces.reserve(worker)
        supervisor._wiring.record.admit(worker)
        if worker.spec.service is not None:
            supervisor._wiring.services.admit(worker)
    await supervisor._cgroups.make(workers)


async def require(supervisor: Supervisor, specs: Sequence[WorkerSpec]) -> None:
    """:raises UnsupportedError: this host lacks what they need; names the worker"""
    async for spec in in_turns(specs):
        if spec.service is not None:
            supervisor._wiring.services.check(spec)
        if spec.uplink is not None:
            supervisor._ensure_uplinks().check(spec.name, spec.uplink)
    await supervisor._cgroups.admit(specs)


async def _check_names(supervisor: Supervisor, specs: Sequence[WorkerSpec]) -> None:
    seen: set[str] = set()
    async for spec in in_turns(specs):
        if spec.name in seen:
            raise NameInUseError(f'two workers are to be called "{spec.name}"', worker=spec.name)
        _check_name(supervisor, spec)
        seen.add(spec.name)


def _check_name(supervisor: Supervisor, spec: WorkerSpec) -> None:
    if spec.name in supervisor._workers:
        raise NameInUseError(f'there is a worker "{spec.name}" already', worker=spec.name)
    if spec.name in supervisor.bridges:
        raise NameInUseError(f'there is a bridge "{spec.name}" already', worker=spec.name)


async def _check_joined(supervisor: Supervisor, specs: Sequence[WorkerSpec]) -> None:
    joined = {spec.name: others async for spec in in_turns(specs) if (others := joined_names(spec))}
    known = {spec.name for spec in specs} if joined else set()
    for name, others in joined.items():
        for other in sorted(others - known):
            if other not in supervisor._workers:
                raise TopologyError(f'workers.{name}.namespaces: there is no worker "{other}"')
    done: set[str] = set()
    for name in joined:
        if loop := find_loop(name, joined, done):
            raise TopologyError(f"workers.{name}.namespaces: a loop of joined namespaces: {' → '.join(loop)}")
