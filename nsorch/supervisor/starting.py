"""Bringing workers up, one or thousands at once: admit, make namespaces, wire, execute, wait until ready; or undo."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import anyio

from nsorch import events
from nsorch.core.collector import no_full_collections
from nsorch.core.threads import in_thread
from nsorch.errors import ClosedError, NsorchError
from nsorch.events import State
from nsorch.supervisor import admission
from nsorch.supervisor.commands import encode_environment
from nsorch.supervisor.confined import reconfined
from nsorch.supervisor.main_process import MainProcess
from nsorch.supervisor.making import execute, join_processes, make_and_execute, make_namespaces
from nsorch.supervisor.removal import remove
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.connecting import Connecting
from nsorch.topology.joins import joined_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Bridge
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec, WorkerSpec

# So many workers are under way at a time: more would only wait in the spawner's socket, with their descriptors open.
_UNDER_WAY = 32
# What commands do before and after their exec takes processors, too: more at a time take the caller's loop its own. Few
# where their namespaces are there, because then the spawner has little to do for each.
_COMMANDS_UNDER_WAY, _EXECS_UNDER_WAY = 8, 2
_SLICE = 25
# Of so many namespaces without a process another helper makes its part: it takes some 2 ms to begin.
_MANY = 100


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
            join_processes(self._supervisor, worker)
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
        *,
        checked: bool,
    ) -> tuple[list[Worker], list[Bridge]]:
        """As :meth:`start_all`, with *bridges*, and whatever *plan* adds when all names are known.

        :param trunks: bridges that will be linked
        :param checked: nothing that is planned will turn out to be taken: namespaces can be made meanwhile
        """
        wiring = self._supervisor._wiring
        made: list[Bridge] = []
        errors: list[Exception] = []
        try:
            self._supervisor._check_running()
            made.extend(wiring.record.plan_bridge(spec) for spec in bridges)  # those before a failure, too
            for a, b in trunks:  # before their workers get addresses
                wiring.record.merge(*(wiring.record.bridge(name, f"links.{a}-{b}") for name in (a, b)))
            workers = await self._bring_up(specs, errors, made, plan, checked=checked)
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
        *,
        checked: bool = False,
    ) -> list[Worker]:
        """All, or none: then *errors* says why."""
        workers: list[Worker] = []
        with contextlib.ExitStack() as burst:
            burst.enter_context(no_full_collections())
            try:
                await self._make_all(specs, workers, errors, bridges, plan, checked=checked)
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
        *,
        checked: bool,
    ) -> None:
        """Up to the exec of their commands."""
        supervisor = self._supervisor
        await admission.admit(supervisor, specs, workers)

        async def plan_all() -> None:
            await admission.plan(supervisor, workers)
            if plan is not None:
                await plan()
            if supervisor._wiring.has_interfaces:
                await supervisor._wiring.interfaces.plan(workers)

        # Of services, and of interfaces other than the ends of links, too little was checked before.
        early = checked and not any(spec.service is not None or spec.interfaces for spec in specs)
        if not early:
            await plan_all()
        linked = plan is not None or any(_is_wired(spec) for spec in specs)
        environment = encode_environment(None)  # of all who give none
        if linked:
            make = partial(make_namespaces, supervisor, environment=environment)
            await self._make_and_connect(workers, bridges, make, errors, plan_all if early else None)
            late = await self._with_dhcp(workers)
            main = [worker for worker in workers if worker.spec.command is not None and worker not in late]
            for rank in await _ranks(main):
                await self._each(rank, partial(execute, supervisor, environment=environment), errors, _EXECS_UNDER_WAY)
        else:
            if sum(worker.spec.command is None for worker in workers) >= _MANY:
                supervisor._helper.add_maker()
            for rank in await _ranks(workers):
                commands = any(worker.spec.command is not None for worker in rank)
                limit = _COMMANDS_UNDER_WAY if commands else _UNDER_WAY
                await self._each(rank, partial(make_and_execute, supervisor, environment=environment), errors, limit)

    async def _make_and_connect(
        self,
        workers: Sequence[Worker],
        bridges: Sequence[Bridge],
        make: Callable[[Worker], Awaitable[None]],
        errors: list[Exception],
        plan: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """The links of those that are made are made while the spawner makes others.

        :param plan: plans these links; meanwhile the spawner makes the first namespaces
        """
        wiring = self._supervisor._wiring
        connecting: Connecting | None = None
        waiting: list[Worker] = []  # that are made, until their links are planned
        failure: Exception | None = None

        async def make_one(worker: Worker) -> None:
            await make(worker)
            if connecting is None:
                waiting.append(worker)
            else:
                await connect(worker, connecting)

        async def connect(worker: Worker, connecting: Connecting) -> None:
            await wiring.filters.apply(worker, worker.spec)  # before its first link: no packet passes that is not to
            connecting.made(worker)

        async def take(some: Sequence[Worker], step: Callable[[Worker], Awaitable[None]]) -> None:
            for rank in await _ranks(some):
                await self._each(rank, step, errors)
            if errors:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take, workers, make_one)
            try:
                if plan is not None:
                    await plan()
                connecting = await Connecting.of(wiring, workers)
            except Exception as exc:
                failure = exc
                tasks.cancel_scope.cancel()
            else:
                tasks.start_soon(take, waiting, partial(connect, connecting=connecting))
                try:
                    await connecting.run()
                except Exception as exc:
                    errors.append(exc)
                    tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not errors:
            try:
                await self._finish_wiring(workers, bridges)
            except Exception as exc:
                errors.append(exc)

    async def _finish_wiring(self, workers: Sequence[Worker], bridges: Sequence[Bridge]) -> None:
        """What takes all their links."""
        wiring = self._supervisor._wiring
        await wiring.finish(workers, bridges)
        if wiring.has_interfaces:
            await wiring.interfaces.make_all(workers)
        if uplinked := [worker for worker in workers if worker.spec.uplink is not None]:
            await self._supervisor._ensure_uplinks().make_all(uplinked)

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
                await execute(self._supervisor, worker, environment)
                await self._become_ready(worker)

        async def take(worker: Worker) -> None:
            await self._take(finish, worker, errors)
            if errors:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(take, worker)

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
            bare = worker.spec.command is None and not _is_wired(worker.spec)
            if bare and self._slots.statistics().tasks_waiting >= _MANY:
                self._supervisor._helper.add_maker()
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
            if worker._state not in (State.EXITED, State.REMOVED):  # by somebody else, meanwhile
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
            await remove(self._supervisor, workers)
            if made := [worker._confined.work async for worker in in_turns(workers) if worker._confined.work]:
                from nsorch.supervisor.confining import discard_work

                await in_thread(discard_work, made)


def _is_wired(spec: WorkerSpec) -> bool:
    """Whether something of its network has to be there before its command."""
    return bool(spec.links or spec.interfaces or spec.nat or spec.firewall or spec.service or spec.uplink)


async def _ranks(workers: Sequence[Worker]) -> list[list[Worker]]:
    """Those who join others come after them."""
    joined = {worker.name: others async for worker in in_turns(workers) if (others := joined_names(worker.spec))}
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
