"""Bringing workers up, one or thousands at once: admit, make namespaces, wire, execute, wait until ready; or undo."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import anyio

from nsorch import events
from nsorch.core import descriptors
from nsorch.core.collector import no_full_collections
from nsorch.core.spawner.protocol import Mode, Spawn
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS, NS_FILES
from nsorch.errors import ClosedError, NameInUseError, NsorchError, SpawnerDiedError, TopologyError
from nsorch.events import State
from nsorch.supervisor.commands import build_command, encode_environment, environment_of
from nsorch.supervisor.confined import check_uppers, confined_of, reconfined
from nsorch.supervisor.entry import OF_PROCESSES, open_sources
from nsorch.supervisor.main_process import MainProcess, Setup, end
from nsorch.supervisor.turns import DYING, for_each, in_turns
from nsorch.supervisor.wiring.connecting import Connecting
from nsorch.supervisor.wiring.emulating import needs_netem, require_netem
from nsorch.supervisor.worker import Worker
from nsorch.topology.emulation import NO_EMULATION, directions
from nsorch.topology.joins import find_loop, joined_names
from nsorch.topology.namespaces import NamespaceSet, New, OfWorker, Shared
from nsorch.topology.sysctls import sysctl_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from nsorch.core.helper import Job
    from nsorch.supervisor.entry import Entry
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Bridge
    from nsorch.topology import BridgeSpec, WorkerSpec

# So many workers are under way at a time: more would only wait in the spawner's socket, with their descriptors open.
_UNDER_WAY = 32
# What commands do before and after their exec takes processors, too: more at a time take the caller's loop its own. Few
# where their namespaces are there, because then the spawner has little to do for each.
_COMMANDS_UNDER_WAY, _EXECS_UNDER_WAY = 8, 2
_SLICE = 25
_DESCRIPTORS = 6  # of a worker: its namespaces, a pidfd, a socket while it is wired


class Starter:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._slots: anyio.Semaphore | None = None  # made in the loop

    async def start(self, spec: WorkerSpec) -> Worker:
        errors: list[Exception] = []
        workers = await self._bring_up([spec], errors)
        if errors:
            self._supervisor._check_running()
            raise errors[0]
        return workers[0]

    async def start_all(self, specs: Sequence[WorkerSpec]) -> list[Worker]:
        errors: list[Exception] = []
        workers = await self._bring_up(specs, errors)
        if errors:
            self._supervisor._check_running()  # else not each worker's error, but one
            names = ", ".join(str(getattr(error, "worker", None) or "?") for error in errors[:5])
            raise ExceptionGroup(f"{len(errors)} of {len(specs)} workers failed: {names}", errors)
        return workers

    async def run_main(self, worker: Worker) -> None:
        """Begin another incarnation, up to its readiness."""
        worker._confined = await reconfined(worker._confined, worker.spec, self._supervisor._facts)
        if worker._main is None:
            worker._main = MainProcess(self._supervisor, worker)
        assert worker._entry is not None
        await self._supervisor._cgroups.thaw(worker)
        before, incarnation = worker._main.exit, worker._main.incarnation
        try:
            self._join_processes(worker)
            await worker._main.execute(worker._entry, None, encode_environment(None))
            await worker._main.become_ready()
        except BaseException as exc:
            if isinstance(exc, ClosedError) and worker._main.incarnation == incarnation:
                raise  # stopped or removed before anything began
            if worker._state is not State.REMOVED:  # of which nothing is told any more
                self._report(worker, exc)
                worker._state = State.FAILED if worker._main.exit is before else State.EXITED
            raise

    async def deploy(
        self,
        specs: Sequence[WorkerSpec],
        bridges: Sequence[BridgeSpec],
        trunks: Iterable[tuple[str, str]],
        plan: Callable[[], Awaitable[None]],
    ) -> tuple[list[Worker], list[Bridge]]:
        """As :meth:`start_all`, with *bridges*, and whatever *plan* adds when all names are known.

        :param trunks: bridges that will be linked
        """
        wiring = self._supervisor._wiring
        made: list[Bridge] = []
        errors: list[Exception] = []
        try:
            self._supervisor._check_running()
            made += [wiring.record.plan_bridge(spec) for spec in bridges]
            for a, b in trunks:  # before their workers get addresses
                wiring.record.merge(wiring.record.bridges[a], wiring.record.bridges[b])
            workers = await self._bring_up(specs, errors, made, plan)
            if errors:
                self._supervisor._check_running()
                raise ExceptionGroup(f"{len(errors)} errors while deploying", errors)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await wiring.remove_bridges(made)
            raise
        return workers, made

    async def _bring_up(
        self,
        specs: Sequence[WorkerSpec],
        errors: list[Exception],
        bridges: Sequence[Bridge] = (),
        plan: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Worker]:
        """All, or none: then *errors* says why."""
        workers: list[Worker] = []
        with contextlib.ExitStack() as burst:
            burst.enter_context(no_full_collections())
            try:
                await self._make_all(specs, workers, errors, bridges, plan)
                main = [worker for worker in workers if worker._main is not None]
                late = await self._with_dhcp(workers)
                conditions = sum(worker.spec.ready is not None for worker in main)
                if conditions:
                    burst.close()  # who knows how long they take
                await self._each(main, self._become_ready, errors, limit=1 + conditions)
                if late and not errors:
                    burst.close()
                    await self._finish_with_dhcp(late, errors)
                if errors:
                    await self._undo(workers)
                else:
                    await self._declare_passive(workers)
            except BaseException:
                await self._undo(workers)
                raise
        return workers

    async def _make_all(
        self,
        specs: Sequence[WorkerSpec],
        workers: list[Worker],
        errors: list[Exception],
        bridges: Sequence[Bridge],
        plan: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Up to the exec of their commands."""
        await self._admit(specs, workers)
        if plan is not None:
            await plan()
        if self._supervisor._wiring.has_interfaces:
            await self._supervisor._wiring.interfaces.plan(workers)
        linked = plan is not None or any(_is_wired(spec) for spec in specs)
        environment = encode_environment(None)  # of all who give none
        if linked:
            await self._make_and_connect(workers, bridges, partial(self._make, environment=environment), errors)
            late = await self._with_dhcp(workers)
            main = [worker for worker in workers if worker.spec.command is not None and worker not in late]
            for rank in _ranks(main):
                await self._each(rank, partial(self._execute, environment=environment), errors, _EXECS_UNDER_WAY)
        else:
            for rank in _ranks(workers):
                commands = any(worker.spec.command is not None for worker in rank)
                limit = _COMMANDS_UNDER_WAY if commands else _UNDER_WAY
                await self._each(rank, partial(self._make_and_execute, environment=environment), errors, limit)

    async def _make_and_connect(
        self,
        workers: Sequence[Worker],
        bridges: Sequence[Bridge],
        make: Callable[[Worker], Awaitable[None]],
        errors: list[Exception],
    ) -> None:
        """The links of those that are made are made while the spawner makes others."""
        connecting = await Connecting.of(self._supervisor._wiring, workers)
        filters = self._supervisor._wiring.filters

        async def connect() -> None:
            try:
                await connecting.run()
            except Exception as exc:
                errors.append(exc)

        async def make_one(worker: Worker) -> None:
            await make(worker)
            await filters.apply(worker, worker.spec)  # before its first link: no packet passes that is not to
            connecting.made(worker)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect)
            for rank in _ranks(workers):
                await self._each(rank, make_one, errors)
            if errors:
                tasks.cancel_scope.cancel()
        if not errors:
            try:
                await self._supervisor._wiring.finish(workers, bridges)
                if self._supervisor._wiring.has_interfaces:
                    await self._supervisor._wiring.interfaces.make_all(workers)
                if uplinked := [worker for worker in workers if worker.spec.uplink is not None]:
                    await self._supervisor._ensure_uplinks().make_all(uplinked)
            except Exception as exc:
                errors.append(exc)

    async def _with_dhcp(self, workers: Iterable[Worker]) -> Collection[Worker]:
        """Those whose commands wait for an address."""
        record = self._supervisor._wiring.record
        if not record.has_dhcp:
            return ()
        return {w: None async for w in in_turns(workers) if any(side.dhcp for side, _ in record.ends_of(w))}

    async def _finish_with_dhcp(self, workers: Collection[Worker], errors: list[Exception]) -> None:
        """Their addresses, when there are the others that may give them; then their commands. All at the same time: one
        may wait for another."""
        wiring = self._supervisor._wiring
        environment = encode_environment(None)

        async def finish(worker: Worker) -> None:
            await wiring.obtain(wiring.record.links_of[worker.name])
            if worker.spec.command is not None:
                await self._execute(worker, environment=environment)
                await self._become_ready(worker)

        async def take(worker: Worker) -> None:
            await self._take(finish, worker, errors)
            if errors:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(take, worker)

    # -- admission: everything that can be known before anything is made

    async def _admit(self, specs: Sequence[WorkerSpec], workers: list[Worker]) -> None:
        supervisor = self._supervisor
        supervisor._check_running()
        _check_names(specs, supervisor)
        _check_joined(specs, supervisor)
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
        await self.require(specs)
        await descriptors.make_room(_DESCRIPTORS * len(specs))
        async for spec, how in in_turns(zip(specs, confined, strict=True)):
            supervisor._check_running()
            _check_names([spec], supervisor)  # somebody may have been faster
            worker = Worker(supervisor, spec, next(supervisor._orders), how)
            supervisor._workers[spec.name] = worker
            workers.append(worker)
            supervisor._bus.publish(events.WorkerRequested(worker=spec.name))
        async for worker in in_turns(workers):  # when all are known: one may join the namespaces of another
            if worker.spec.all_interfaces:
                supervisor._wiring.interfaces.reserve(worker)
            supervisor._wiring.record.admit(worker)
            if worker.spec.service is not None:
                supervisor._wiring.services.admit(worker)
        await supervisor._cgroups.make(workers)

    async def require(self, specs: Sequence[WorkerSpec]) -> None:
        """:raises UnsupportedError: this host lacks what they need; names the worker"""
        supervisor = self._supervisor
        async for spec in in_turns(specs):
            if spec.service is not None:
                supervisor._wiring.services.check(spec)
            if spec.uplink is not None:
                supervisor._ensure_uplinks().check(spec.name, spec.uplink)
        await supervisor._cgroups.admit(specs)

    # -- one worker

    async def _make_and_execute(self, worker: Worker, *, environment: bytes) -> None:
        if worker.spec.command is None:
            await self._make(worker, environment=environment)
            return
        entry = self._enter(worker)
        worker._main = MainProcess(self._supervisor, worker)
        worker._entry = entry
        await worker._main.execute(entry, self._setup(worker, entry), environment)

    async def _make(self, worker: Worker, *, environment: bytes) -> None:
        """Only its namespaces, to be held."""
        supervisor, spec = self._supervisor, worker.spec
        entry = self._enter(worker, but=_of_processes(worker))
        worker._entry = entry
        confined = worker._confined
        make = entry.make & ~OF_PROCESSES
        joins = supervisor._home.joins(entry.joined, 0)
        setup = self._setup(worker, entry)
        check = None
        if spec.command is not None and not confined.root:
            given = environment_of(spec, confined)
            check = await build_command(
                supervisor._wiring.command_of(worker),
                env=environment if given is None else encode_environment(given),
                cwd=spec.cwd,
                user=None,
                mode=Mode.EXEC,
                session=True,
                worker=spec.name,
                confined=confined,
            )
        if not make and not check:
            worker._adopt({}, entry)
            return
        netlink = bool(make & CLONE_NEWNET)

        def adopt(held: tuple[int, ...]) -> None:
            made = dict(zip((kind for kind in NS_FILES if make & kind), held, strict=False))
            worker._adopt(made, entry, held[-1] if netlink else None)

        job: Job | None = None
        try:
            job = supervisor._helper.spawn(
                lambda number: Spawn(
                    number,
                    make,
                    tuple(kind for kind, _ in joins),
                    make,
                    setup.hostname,
                    setup.sysctls,
                    setup.loopback,
                    netlink,
                    (),
                    None,
                    check,
                    confined.domainname,
                    confined.time_offsets,
                    confined.root,
                    confined.sysfs,
                    confined.id_maps,
                ),
                [fd for _, fd in joins],
                worker=spec.name,
                on_created=adopt,
            )
            await job.created()
        except BaseException:
            if job is not None:
                await end(job)
            raise

    def _enter(self, worker: Worker, but: Iterable[str] = ()) -> Entry:
        """:param but: kinds that are joined later"""
        supervisor = self._supervisor
        namespaces = worker._confined.namespaces.evolve(**dict.fromkeys(but, Shared()))
        entry = open_sources(namespaces, _Held(supervisor._workers), worker.name)
        worker._held = dict(entry.joined)  # so that they are closed whatever happens
        supervisor._home.check(entry, worker.name, has_command=worker.spec.command is not None)
        return entry

    def _join_processes(self, worker: Worker) -> None:
        """Namespaces of others' present processes."""
        kinds = _of_processes(worker)
        if not kinds:
            return
        wanted = worker._confined.namespaces
        sources = NamespaceSet(user=wanted.user if isinstance(wanted.user, New) else Shared()).evolve(
            **{kind: getattr(wanted, kind) for kind in kinds}
        )
        found = open_sources(sources, _Held(self._supervisor._workers), worker.name).joined
        others = {kind: fd for kind, fd in found.items() if not kind & OF_PROCESSES and kind in worker._held}
        before = [worker._held[kind] for kind in found if kind in worker._held and kind not in others]
        worker._held.update((kind, fd) for kind, fd in found.items() if kind not in others)
        descriptors.close([*before, *others.values()])

    def _setup(self, worker: Worker, entry: Entry) -> Setup:
        spec = worker.spec
        new_net = bool(entry.make & CLONE_NEWNET)
        hostname = spec.hostname
        if hostname is None and entry.make & CLONE_NEWUTS:
            hostname = spec.name
        return Setup(
            hostname=hostname,
            sysctls=(*(_network_sysctls(spec, self._supervisor._facts.sysctls) if new_net else ()), *_sysctls(spec)),
            loopback=new_net,
        )

    async def _execute(self, worker: Worker, *, environment: bytes) -> None:
        self._join_processes(worker)
        worker._main = MainProcess(self._supervisor, worker)
        assert worker._entry is not None
        await worker._main.execute(worker._entry, None, environment)

    async def _become_ready(self, worker: Worker) -> None:
        assert worker._main is not None
        await worker._main.become_ready()

    async def _declare_passive(self, workers: Iterable[Worker]) -> None:
        async for worker in in_turns(workers):
            if worker.spec.command is None:
                worker._state = State.IDLE
                self._supervisor._bus.publish(events.WorkerReady(worker=worker.name, namespaces=dict(worker._inodes)))

    # -- all

    async def _each(
        self,
        workers: Collection[Worker],
        step: Callable[[Worker], Awaitable[None]],
        errors: list[Exception],
        limit: int = _UNDER_WAY,
    ) -> None:
        """Take *step* for all, a limited number at a time; the first error stops the others."""
        if errors or not workers:
            return
        if len(workers) == 1:
            (worker,) = workers
            if self._slots is None:
                self._slots = anyio.Semaphore(_UNDER_WAY, fast_acquire=True)
            async with self._slots:
                await self._take(step, worker, errors)
            return
        pending = iter(workers)

        async def work() -> None:
            async for worker in in_turns(pending):  # a step may have nothing to wait for
                await self._take(step, worker, errors)
                if errors:
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for number in range(min(limit, len(workers))):
                tasks.start_soon(work)
                if number % _SLICE == _SLICE - 1:
                    await anyio.lowlevel.checkpoint()

    async def _take(self, step: Callable[[Worker], Awaitable[None]], worker: Worker, errors: list[Exception]) -> None:
        try:
            self._supervisor._check_running()
        except NsorchError as exc:  # no fault of the worker's, whose command may run
            errors.append(exc)
            return
        try:
            await step(worker)
        except Exception as exc:
            if getattr(exc, "worker", "") is None:
                exc.worker = worker.name  # type: ignore[attr-defined]
            worker._doomed = True
            if worker._state is not State.EXITED:
                worker._state = State.FAILED
            self._report(worker, exc)
            errors.append(exc)

    def _report(self, worker: Worker, exc: BaseException) -> None:
        self._supervisor._bus.publish(
            events.WorkerSetupFailed(
                worker=worker.name,
                incarnation=worker.incarnation,
                stage=str(getattr(exc, "stage", None) or ("start" if isinstance(exc, Exception) else "cancelled")),
                errno=getattr(exc, "errno", None),
                detail=str(exc),
            )
        )

    async def _undo(self, workers: Sequence[Worker]) -> None:
        with anyio.CancelScope(shield=True):
            await self.remove(workers)

    async def remove(self, workers: Sequence[Worker]) -> None:
        """Kill, disconnect, let go of the namespaces, and free the names; for those that somebody else removes it
        waits. Shield it."""
        try:
            with no_full_collections():
                workers = list(dict.fromkeys((*self._helpers_of(workers), *workers)))
                while workers := [worker for worker in workers if worker._state is not State.REMOVED]:
                    leaving = [w._leaving for w in workers if w._leaving is not None and not w._leaving.is_set()]
                    await self._remove_own([w for w in workers if w._leaving is None or w._leaving.is_set()])
                    for over in leaving:
                        await over.wait()
        except (ClosedError, SpawnerDiedError) as exc:
            if isinstance(exc, ClosedError) and self._supervisor._phase == "running":
                raise
            # The supervisor ends meanwhile: they go with it.
            assert self._supervisor._stopped is not None
            await self._supervisor._stopped.wait()

    def _helpers_of(self, workers: Sequence[Worker]) -> list[Worker]:
        """Processes that end with *workers*."""
        helpers = self._supervisor._wiring.helpers_of(workers)
        if self._supervisor._uplinks is not None:
            helpers += self._supervisor._uplinks.helpers_of(workers)
        return helpers

    async def _remove_own(self, workers: Sequence[Worker]) -> None:
        over = anyio.Event()
        for worker in workers:
            worker._leaving = over  # nothing is linked to it, and no command begins in it, from here on
        try:
            if workers:
                await self._remove(workers)
        finally:
            over.set()

    async def _remove(self, workers: Sequence[Worker]) -> None:
        supervisor = self._supervisor
        names = {worker.name for worker in workers}
        supervisor._helper.withdraw(names)
        commands: dict[str, list[Job]] = {}  # that run and popen started
        for job in supervisor._helper.jobs:
            if job.worker in names:
                commands.setdefault(job.worker, []).append(job)
        # What a process holds alone it frees as it ends, beside the others; we would one by one, a mount
        # namespace in 0.2 ms.
        alone = [
            fd async for worker in in_turns(workers) if worker.pid for fd in worker._take_descriptors(CLONE_NEWNET)
        ]
        await _close(alone)

        async def bring_down(worker: Worker) -> None:
            if supervisor._uplinks is not None:
                supervisor._uplinks.drop(worker)
            worker.kill()
            await worker._ended()
            for job in commands.get(worker.name, ()):
                await end(job)
            await worker._unpin()

        await for_each(workers, bring_down, DYING)
        await supervisor._cgroups.release(workers)
        await supervisor._wiring.disconnect(workers)
        await _close([fd async for worker in in_turns(workers) for fd in worker._take_descriptors()])
        async for worker in in_turns(workers):
            if supervisor._workers.get(worker.name) is worker:
                worker._removed()
                del supervisor._workers[worker.name]


async def _close(fds: list[int]) -> None:
    if fds:
        await anyio.to_thread.run_sync(descriptors.close, fds)


def _of_processes(worker: Worker) -> list[str]:
    """Kinds that it joins of another worker, which has them with its process."""
    namespaces = worker._confined.namespaces
    joins = [kind for kind in ("pid", "cgroup") if isinstance(getattr(namespaces, kind), OfWorker)]
    return [] if worker.spec.command is None else joins


def _is_wired(spec: WorkerSpec) -> bool:
    """Whether something of its network has to be there before its command."""
    return bool(spec.links or spec.interfaces or spec.nat or spec.firewall or spec.service or spec.uplink)


class _Held:
    """What others hold, for those who join them: descriptors by CLONE_NEW*, with the pidfd for ``pid``."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    def __contains__(self, name: object) -> bool:
        return name in self._workers

    def __getitem__(self, name: str) -> Mapping[int, int]:
        worker = self._workers[name]
        held = dict(worker._held)
        main = worker._main
        alive = None if main is None else main.alive
        if alive is not None and worker._entry is not None and worker._entry.make & CLONE_NEWPID:
            held[CLONE_NEWPID] = alive.pidfd
        if alive is not None and worker._entry is not None and worker._entry.make & CLONE_NEWCGROUP:
            held[CLONE_NEWCGROUP] = alive.pidfd
        return held


def _check_names(specs: Sequence[WorkerSpec], supervisor: Supervisor) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise NameInUseError(f'two workers are to be called "{spec.name}"', worker=spec.name)
        if spec.name in supervisor._workers:
            raise NameInUseError(f'there is a worker "{spec.name}" already', worker=spec.name)
        if spec.name in supervisor.bridges:
            raise NameInUseError(f'there is a bridge "{spec.name}" already', worker=spec.name)
        seen.add(spec.name)


def _check_joined(specs: Sequence[WorkerSpec], supervisor: Supervisor) -> None:
    joined = {spec.name: others for spec in specs if (others := joined_names(spec))}
    known = {spec.name for spec in specs} if joined else set()
    for name, others in joined.items():
        for other in sorted(others - known):
            if other not in supervisor._workers:
                raise TopologyError(f'workers.{name}.namespaces: there is no worker "{other}"')
    done: set[str] = set()
    for name in joined:
        if loop := find_loop(name, joined, done):
            raise TopologyError(f"workers.{name}.namespaces: a loop of joined namespaces: {' → '.join(loop)}")


def _ranks(workers: Sequence[Worker]) -> list[list[Worker]]:
    """Those who join others come after them."""
    joined = {worker.name: others for worker in workers if (others := joined_names(worker.spec))}
    if not joined:
        return [list(workers)]
    rank = {worker.name: 0 for worker in workers if worker.name not in joined}
    while len(rank) < len(workers):
        for name, others in joined.items():
            if name not in rank and all(other in rank for other in others if other in joined):
                rank[name] = 1 + max(rank.get(other, -1) for other in others)
    ranks: list[list[Worker]] = [[] for _ in range(1 + max(rank.values()))]
    for worker in workers:
        ranks[rank[worker.name]].append(worker)
    return ranks


def _network_sysctls(spec: WorkerSpec, inherited: Mapping[str, str]) -> list[tuple[str, str]]:
    """Forwarding as asked for, and no reverse path filter: a new network namespace may have inherited the host's."""
    wanted = {"ip_forward": "1" if spec.forward else "0", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0"}
    pairs = [(f"sys/net/ipv4/{name}", value) for name, value in wanted.items() if inherited[name] != value]
    if spec.forward and inherited.get("ipv6"):
        pairs.append(("sys/net/ipv6/conf/all/forwarding", "1"))
    return pairs


def _sysctls(spec: WorkerSpec) -> list[tuple[str, str]]:
    return [(f"sys/{sysctl_path(name)}", str(value)) for name, value in spec.sysctls.items()]
