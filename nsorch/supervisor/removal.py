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
    from collections.abc import Collection, Sequence

    from nsorch.core.helper import Job
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker


async def remove(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    """Kill, disconnect, let go of the namespaces, and free the names; for those that somebody else removes it
    waits. Shield it."""
    try:
        with no_full_collections():
            workers = list(dict.fromkeys((*_helpers_of(supervisor, workers), *workers)))
            while workers := [worker for worker in workers if worker._state is not State.REMOVED]:
                leaving = [w._leaving for w in workers if w._leaving is not None and not w._leaving.is_set()]
                await _remove_own(supervisor, [w for w in workers if w._leaving is None or w._leaving.is_set()])
                for over in leaving:
                    await over.wait()
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


async def _remove_own(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    over = anyio.Event()
    for worker in workers:
        worker._leaving = over  # nothing is linked to it, and no command begins in it, from here on
    try:
        if workers:
            await _remove(supervisor, workers)
    finally:
        over.set()


async def _remove(supervisor: Supervisor, workers: Sequence[Worker]) -> None:
    names = {worker.name for worker in workers}
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
        worker.kill()
        await worker._ended()
        for job in commands.get(worker.name, ()):
            await end(job)
        await worker._unpin()

    await for_each(workers, bring_down, DYING)
    await supervisor._cgroups.release(workers)

    async def let_go(owners: Collection[str]) -> None:
        await _close([fd async for w in in_turns(workers) if w.name in owners for fd in w._take_descriptors()])

    await disconnect(supervisor._wiring, workers, let_go)
    await _close([fd async for worker in in_turns(workers) for fd in worker._take_descriptors()])
    async for worker in in_turns(workers):
        if supervisor._workers.get(worker.name) is worker:
            worker._removed()
            del supervisor._workers[worker.name]


async def _close(fds: list[int]) -> None:
    if fds:
        await in_thread_or_here(descriptors.close, fds)
