"""Taking workers down, one or thousands at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from nsorch.core import descriptors
from nsorch.core.collector import no_full_collections
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError, SpawnerDiedError
from nsorch.events import State
from nsorch.supervisor.main_process import end
from nsorch.supervisor.turns import DYING, for_each, in_turns
from nsorch.supervisor.wiring.removing import disconnect

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from nsorch.core.jobs import Job
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker

# The kernel takes down together what it finds when it begins, and then what has come meanwhile. Two large parts take it
# up to four times as long as one namespace and then all others: of so many, one goes so many seconds ahead.
_MANY, _AHEAD = 200, 0.01


async def remove(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    """Kill, disconnect, let go of the namespaces, and free the names; for those that somebody else removes it
    waits. Shield it."""
    try:
        with no_full_collections():
            wanted = dict.fromkeys((*_helpers_of(supervisor, workers), *workers))
            while True:
                over = anyio.Event()
                own, others = _claim(wanted, over)
                try:
                    if own:
                        await _remove(supervisor, own)
                finally:
                    over.set()
                for other in others:
                    await other.wait()
                if not own and not others:
                    break
    except (ClosedError, SpawnerDiedError) as exc:
        if isinstance(exc, ClosedError) and supervisor._phase == "running":
            raise
        # The supervisor ends meanwhile: they go with it.
        assert supervisor._stopped is not None
        await supervisor._stopped.wait()


def _helpers_of(supervisor: Supervisor, workers: Sequence[Worker]) -> list[Worker]:
    """Processes that end with *workers*."""
    helpers = supervisor._wiring.helpers_of(workers)
    if supervisor._uplinks is not None:
        helpers += supervisor._uplinks.helpers_of(workers)
    return helpers


def _claim(workers: Iterable[Worker], over: anyio.Event) -> tuple[list[Worker], Collection[anyio.Event]]:
    """Those of *workers* that nobody removes yet: nothing is linked to them, and no command begins in them, from here
    on. Of the others that are left, when they are gone."""
    own: list[Worker] = []
    others: dict[anyio.Event, None] = {}
    for worker in workers:
        if worker._state is State.REMOVED:
            continue
        if worker._leaving is None or worker._leaving.is_set():
            worker._leaving = over
            own.append(worker)
        else:
            others[worker._leaving] = None
    return own, others


async def _remove(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    names = {worker.name async for worker in in_turns(workers)}
    supervisor._helper.withdraw(names)
    commands: dict[str, list[Job]] = {}  # that run and popen started
    for job in supervisor._helper.jobs:
        if job.worker in names:
            commands.setdefault(job.worker, []).append(job)
    # What a process holds alone it frees as it ends, beside the others; we would one by one, a mount
    # namespace in 0.2 ms.
    alone = [fd async for worker in in_turns(workers) if worker.pid for fd in worker._take_descriptors(CLONE_NEWNET)]
    await _close(alone)

    async def bring_down(worker: Worker) -> None:
        if supervisor._uplinks is not None:
            supervisor._uplinks.drop(worker)
        await worker._kill_and_wait()
        for job in commands.get(worker.name, ()):
            await end(job)
        await worker._unpin()

    await for_each(workers, bring_down, DYING)
    await supervisor._cgroups.release(workers)

    async def let_go(owners: Collection[str]) -> None:
        going = [worker async for worker in in_turns(workers) if worker.name in owners]
        if len(going) > _MANY:
            await _close(going[0]._take_descriptors())
            await anyio.sleep(_AHEAD)
        await _close([fd async for worker in in_turns(going) for fd in worker._take_descriptors()])

    await disconnect(supervisor._wiring, workers, let_go)
    await _close([fd async for worker in in_turns(workers) for fd in worker._take_descriptors()])
    async for worker in in_turns(workers):
        if supervisor._workers.get(worker.name) is worker:
            worker._removed()
            del supervisor._workers[worker.name]


async def _close(fds: list[int]) -> None:
    if fds:
        await in_thread_or_here(descriptors.close, fds)
