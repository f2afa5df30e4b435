"""Commands that begin in the namespaces of a worker that is there: beside its main process, or without one."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import anyio
from attrs import frozen

from nsorch.core.lending import lent
from nsorch.core.process import Process
from nsorch.core.spawner.protocol import Mode, Spawn
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP, CLONE_NEWNS, CLONE_NEWPID
from nsorch.errors import NsorchError
from nsorch.supervisor.commands import build_command, encode_environment, environment_of, open_streams
from nsorch.supervisor.main_process import end
from nsorch.values import Value

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from anyio.abc import ByteReceiveStream

    from nsorch.core.jobs import Job
    from nsorch.supervisor.worker import Worker

# Seconds from the end of a command to that of the process that took it along, as we hear of them.
_CRITICAL_LAG = 0.1
_LAG = 1.0  # seconds at most from the end of a pid namespace to that of its process


@frozen(kw_only=True, eq=False, repr=False)
class Options(Value):
    """See :meth:`nsorch.Worker.popen`."""

    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    user: str | int | None
    session: int
    confined: bool


async def start(
    worker: Worker,
    command: Sequence[str | bytes | os.PathLike[str]],
    streams: tuple[object, object, object],
    options: Options,
) -> Process:
    """Returns when it is executed. While the worker has a live process it begins in its pid namespace; if that ends
    meanwhile, in a fresh one.

    :raises NsorchError: nothing of it is left
    """
    while True:
        alive = None if worker._main is None else worker._main.alive
        try:
            with _kept(alive) as pidfd:
                return await _start_beside(worker, pidfd, command, streams, options)
        except NsorchError as exc:
            if exc.errno not in (errno.ESRCH, errno.ENOMEM):  # who forks where PID 1 is gone hears ENOMEM
                raise
            worker._check_here()  # it was killed with the worker
            if alive is None or not await _is_over(alive):
                raise


async def communicate(process: Process, data: bytes | None) -> tuple[bytes | None, bytes | None]:
    """Feed it *data*, and wait for its end. What it wrote to its standard output and error, where these are pipes."""
    output: list[bytes | None] = [None, None]

    async def collect(number: int, stream: ByteReceiveStream) -> None:
        output[number] = b"".join([chunk async for chunk in stream])

    async with anyio.create_task_group() as tasks:
        for number, stream in enumerate((process.stdout, process.stderr)):
            if stream is not None:
                tasks.start_soon(collect, number, stream)
        if data is not None:
            tasks.start_soon(_feed, process, data)
        await process.wait()
    return output[0], output[1]


async def await_critical(worker: Worker) -> None:
    """A command was killed, maybe with a process whose end cancels the block: that comes before the command's own
    failure."""
    alive = None if worker._main is None else worker._main.alive
    if worker.spec.critical and alive is not None:
        with anyio.move_on_after(_CRITICAL_LAG):
            await alive.end()
        await anyio.lowlevel.checkpoint()


async def _start_beside(
    worker: Worker,
    pidfd: int | None,
    command: Sequence[str | bytes | os.PathLike[str]],
    sources: tuple[object, object, object],
    options: Options,
) -> Process:
    supervisor = worker._supervisor
    supervisor._check_running()
    worker._check_here()
    await supervisor._wiring.watcher.enter(worker)
    entry = worker._entry
    assert entry is not None
    make, proc, mode = 0, 0, Mode.RUNNER
    held = dict(worker._held)
    if pidfd is None:
        make, mode = CLONE_NEWPID, Mode.INIT
        # Its own mounts must see what the command mounts, if it may, but not its /proc.
        proc = 3 if CLONE_NEWNS in held and (worker._confined.may_mount or not options.confined) else 4
        held.pop(CLONE_NEWPID, None)  # another worker's, which a fresh one can't be below of
    elif entry.make & CLONE_NEWPID:
        held[CLONE_NEWPID] = pidfd
    if entry.make & CLONE_NEWCGROUP:
        if pidfd is None:
            make |= CLONE_NEWCGROUP
        else:
            held[CLONE_NEWCGROUP] = pidfd
    host = entry.host & ~make
    joins = supervisor._home.joins(held, host, entry.above)
    line = await build_command(
        command,
        env=encode_environment(environment_of(worker._spec, worker._confined) if options.env is None else options.env),
        cwd=worker._spec.cwd if options.cwd is None else options.cwd,
        user=options.user,
        mode=mode,
        session=options.session,
        worker=worker.name,
        confined=worker._confined,
        unconfined=not options.confined,
    )
    streams = await open_streams(*sources, inherited=supervisor._helper.streams, worker=worker.name)
    job: Job | None = None
    try:
        await supervisor._cgroups.await_kills(worker)
        worker._check_here()  # else what it joins may be closed by now
        with supervisor._cgroups.entering(worker) as leaf:
            job = supervisor._helper.spawn(
                lambda number: Spawn(
                    number,
                    make,
                    tuple(kind for kind, _ in joins),
                    0,
                    None,
                    (),
                    False,
                    False,
                    worker._confined.own_of(make, proc, leaf.fd),
                    line._replace(streams=streams.numbers),
                    None,
                    cgroup=leaf.fd >= 0,
                    moves=leaf.moves,
                ),
                [*(fd for _, fd in joins), *streams.fds, *([leaf.fd] if leaf.fd >= 0 else ())],
                worker=worker.name,
                outside=supervisor._home.outside(host),
            )
            await job.started()
    except BaseException:
        streams.close()
        if job is not None:
            await end(job)
        raise
    finally:
        streams.sent()
    return Process(job, streams)


@contextlib.contextmanager
def _kept(alive: Job | None) -> Iterator[int | None]:
    """A descriptor of its process that stays open also when that ends."""
    if alive is None:
        yield None
        return
    with lent(alive.pidfd, "start", alive.worker) as pidfd:
        yield pidfd


async def _is_over(job: Job) -> bool:
    """Whether a process has ended, and with it the pid namespace: it is the last whom the kernel lets go from there."""
    with anyio.move_on_after(_LAG):
        await job.end()
    return job.ended


async def _feed(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    async with process.stdin:
        # It may end, or close its end, without reading everything.
        with contextlib.suppress(anyio.BrokenResourceError):
            await process.stdin.send(data)
