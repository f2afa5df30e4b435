"""The main process of a worker: one incarnation after the other, told in events."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

import anyio

from nsorch import events
from nsorch.core.process import DEVNULL, PIPE
from nsorch.core.spawner.protocol import Mode, Session, Spawn
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP, CLONE_NEWPID, NS_FILES
from nsorch.core.streams import Tail
from nsorch.errors import ClosedError, NotReadyError, WorkerExitedError
from nsorch.events import Exit, State, Usage
from nsorch.supervisor.commands import (
    build_command,
    check_same_files,
    encode_environment,
    environment_of,
    files_behind,
    open_streams,
)
from nsorch.supervisor.confined import has_own_proc
from nsorch.supervisor.entry import OF_PROCESSES

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream, ByteSendStream

    from nsorch.core.jobs import Job
    from nsorch.supervisor.commands import Files, OpenedStreams
    from nsorch.supervisor.entry import Entry
    from nsorch.supervisor.readiness import ServiceReady
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import ExecReady, TcpReady


class Setup(NamedTuple):
    """What the first process to enter a worker's new namespaces does there."""

    hostname: str | None = None
    sysctls: tuple[tuple[str, str], ...] = ()
    loopback: bool = False


class MainProcess:
    """Begins, ends, and tells; the worker's ``start``, ``stop`` and ``restart`` go through it."""

    __slots__ = (
        "_awaited",
        "_changed",
        "_due",
        "_files",
        "_job",
        "_stopping",
        "_streams",
        "_supervisor",
        "_tail",
        "_worker",
        "exit",
        "incarnation",
        "stderr",
        "stdin",
        "stdout",
        "was_ready",
    )

    def __init__(self, supervisor: Supervisor, worker: Worker) -> None:
        self._supervisor = supervisor
        self._worker = worker
        self._job: Job | None = None
        self._stopping = False
        self._due: float | None = None  # grace of a stop that waits for the exec
        self._files: Files = ()  # of the latest incarnation
        self._tail: Tail | None = None
        self._changed: anyio.Event | None = None
        self._awaited = False  # somebody waits until this incarnation is ready, and will hear of its end
        self.was_ready = False  #: any incarnation of it
        self.incarnation = 0
        self.exit: Exit | None = None
        self._streams: OpenedStreams | None = None
        self.stdin: ByteSendStream | None = None
        self.stdout: ByteReceiveStream | None = None
        self.stderr: ByteReceiveStream | None = None

    @property
    def alive(self) -> Job | None:
        """The job of the command that runs now."""
        job = self._job
        return job if job is not None and job.pid and not job.ended else None

    @property
    def pid(self) -> int | None:
        return None if self.alive is None else self.alive.pid

    @property
    def _ready(self) -> TcpReady | ExecReady | ServiceReady | None:
        spec = self._worker.spec
        if spec.service is None:
            return spec.ready
        from nsorch.supervisor.readiness import ready_of

        return ready_of(spec.service)

    # -- beginning

    async def execute(self, entry: Entry, setup: Setup | None, environment: bytes) -> None:
        """Run the command until its exec is confirmed. With *setup* the namespaces are made on the way.

        :param environment: for a description that gives none
        :raises NsorchError: no process is left, and no namespaces where they were to be made
        """
        spec, supervisor, worker = self._worker.spec, self._supervisor, self._worker
        command = supervisor._wiring.command_of(worker)
        confined = worker._confined
        make = entry.make if setup is not None else entry.make & OF_PROCESSES
        hold = make & ~OF_PROCESSES
        joins = supervisor._home.joins(entry.joined if setup is not None else worker._held, entry.host, entry.above)
        mode = Mode.EXEC
        if spec.init:
            mode = Mode.INIT if make & CLONE_NEWPID else Mode.KEEPER
        given = environment_of(spec, confined)
        line = await build_command(
            command,
            env=environment if given is None else encode_environment(given),
            cwd=spec.cwd,
            user=None,
            mode=mode,
            session=Session.NEW,
            worker=worker.name,
            confined=confined,
        )
        proc = 0
        if has_own_proc(confined.namespaces, rootless=confined.rootless):
            proc = 1 if self.incarnation == 0 else 2
        files = files_behind(spec.stdin, spec.stdout, spec.stderr)
        if self._files:
            check_same_files(self._files, files, worker.name)
        capture = self._ready is not None and spec.stderr is None
        streams = await open_streams(
            DEVNULL if spec.stdin is None else spec.stdin,
            spec.stdout,
            PIPE if capture else spec.stderr,
            inherited=supervisor._helper.streams,
            worker=worker.name,
        )
        before, first = self.exit, setup or Setup()
        job: Job | None = None
        try:
            await supervisor._cgroups.await_kills(worker)
            worker._check_here()  # else what it joins may be closed by now
            worker._check_turn()
            self.incarnation += 1
            self.exit, self._stopping, self._due = None, False, None
            self._awaited = self._ready is not None
            worker._state = State.STARTING
            with supervisor._cgroups.entering(worker) as leaf:
                job = self._job = supervisor._helper.spawn(
                    lambda number: Spawn(
                        number,
                        make,
                        tuple(kind for kind, _ in joins),
                        hold,
                        first.hostname,
                        first.sysctls,
                        first.loopback,
                        False,
                        confined.own_of(make, proc, leaf.fd),
                        line._replace(streams=streams.numbers),
                        None,
                        confined.domainname if setup is not None else None,
                        confined.time_offsets,
                        confined.root if setup is not None else b"",
                        confined.sysfs and setup is not None,
                        confined.id_maps,
                        leaf.fd >= 0,
                        leaf.moves,
                    ),
                    [*(fd for _, fd in joins), *streams.fds, *([leaf.fd] if leaf.fd >= 0 else ())],
                    worker=worker.name,
                    outside=supervisor._home.outside(entry.host),
                    on_created=lambda held: worker._adopt(_by_kind(hold, held), entry),
                    on_start=self._started,
                    on_end=self._ended,
                )
                await job.started()
        except BaseException:
            streams.close()
            self._stopping = True
            if job is not None:
                await end(job)
            self.exit = self.exit or before  # where no process came of it
            raise
        finally:
            streams.sent()
        self._files = files
        self._keep(streams, capture=capture)

    def _keep(self, streams: OpenedStreams, *, capture: bool) -> None:
        self.close_streams()
        self._streams = streams
        self.stdin, self.stdout, self.stderr = streams.stdin, streams.stdout, streams.stderr
        self._tail = None
        if capture and streams.stderr is not None:
            # For the error of a worker that doesn't become ready; it is read for as long as the worker writes.
            self._tail, self.stderr = Tail(streams.stderr), None
            self._supervisor._start_soon(self._tail.collect)

    def close_streams(self) -> None:
        """Close the ends that stay here: another incarnation has its own, and a removed worker none."""
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    async def become_ready(self) -> None:
        """Wait for the worker's ``ready`` condition; without one it is ready once its exec is confirmed.

        :raises NotReadyError: it doesn't hold in time; the process is gone
        :raises WorkerExitedError: the process ended before
        """
        job, ready = self._job, self._ready
        assert job is not None
        if ready is None:
            return
        try:
            from nsorch.supervisor.readiness import wait_until_ready

            holds = await wait_until_ready(self._worker, ready, job)
            if self._stopping:  # it goes: nobody is to rely on it
                holds = False
                await job.end()
        except BaseException as exc:
            self._stopping = True
            await end(job)
            if isinstance(exc, NotReadyError):
                exc.detail = await self._captured()
            raise
        if not holds:
            raise await self._ended_early(job)
        self._declare_ready()

    def _declare_ready(self) -> None:
        self.was_ready, self._awaited = True, False
        self._publish(
            events.WorkerReady(
                worker=self._worker.name, incarnation=self.incarnation, namespaces=dict(self._worker._inodes)
            )
        )

    async def _ended_early(self, job: Job) -> WorkerExitedError:
        assert job.exit is not None
        code = os.waitstatus_to_exitcode(job.exit.status)  # a restart may have begun the next meanwhile
        how = f"status {code}" if code >= 0 else f"signal {-code}"
        return WorkerExitedError(
            f"ended with {how} before it was ready",
            worker=self._worker.name,
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            stderr=(await self._captured()).encode(errors="surrogateescape"),
        )

    async def _captured(self) -> str:
        if self._tail is None:
            return (await self._unread()).decode(errors="surrogateescape")
        # The end of the stream follows the exit, unless a descendant outlives it.
        with anyio.move_on_after(0.5, shield=True):
            await self._tail.ended.wait()
        return self._tail.data.decode(errors="surrogateescape")

    async def _unread(self) -> bytes:
        """What is in the pipe that its user asked for, who gets no worker to read it from."""
        stream = None if self._streams is None or self.incarnation > 1 else self._streams.stderr
        if stream is None:
            return b""
        tail = Tail(stream)
        with (
            anyio.move_on_after(0.5, shield=True),
            contextlib.suppress(anyio.BusyResourceError, anyio.ClosedResourceError),  # somebody reads it already
        ):
            await tail.collect()
        return tail.data

    # -- ending

    def begin_stop(self, grace: float) -> None:
        """Send SIGTERM, and say so; to what isn't executed yet, as soon as it is."""
        if self.alive is None:
            self._due = grace
        else:
            if not self._stopping:
                self._stopping = True
                self._worker._state = State.STOPPING
                self._publish(
                    events.WorkerStopping(
                        worker=self._worker.name,
                        incarnation=self.incarnation,
                        signal=signal.SIGTERM.value,
                        deadline=grace,
                    )
                )
            self.signal(signal.SIGTERM)

    def expect_end(self) -> None:
        """From here on it ends because nsorch was asked to end it."""
        self._stopping = True

    async def stop(self, grace: float) -> Exit | None:
        job = self._job
        if job is not None and not job.ended:
            self.begin_stop(grace)
            try:
                with anyio.move_on_after(grace):
                    await job.end()
            finally:
                self._stopping = self._stopping or not job.ended
                await end(job)
        return self.exit

    def kill(self) -> None:
        if self._job is not None and not self._job.ended:
            self._stopping = True
            self._job.kill()

    async def kill_and_wait(self) -> None:
        """Until no process is left."""
        if self._job is not None and not self._job.ended:
            self._stopping = True
            await self._job.kill_and_wait()

    def signal(self, number: int) -> None:
        if self._job is not None:
            self._job.signal(number)

    async def wait(self) -> Exit:
        worker = self._worker
        while self.exit is None or self.alive is not None or worker._restarting:
            if worker.state is State.REMOVED:
                raise ClosedError("the worker was removed before its process had started", worker=worker.name)
            if worker.state in (State.FAILED, State.IDLE) and not worker._restarting:
                raise ClosedError("no process of the worker has ever started", worker=worker.name)
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self.exit

    async def end(self) -> None:
        """Wait until no process is left."""
        if self._job is not None:
            await self._job.end()

    def announce(self) -> None:
        """Wake those who wait: something has changed."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # -- what the helper reports, in its order

    def _started(self, job: Job) -> None:
        worker = self._worker
        assert worker._entry is not None
        if worker._entry.make & CLONE_NEWCGROUP:
            with contextlib.suppress(OSError):  # it has ended
                worker._inodes["cgroup"] = os.stat(f"/proc/{job.pid}/ns/cgroup").st_ino
        if worker._entry.make & CLONE_NEWPID and job.pid_namespace:
            worker._inodes["pid"] = job.pid_namespace
        worker._state = State.STOPPING if self._stopping else State.RUNNING
        self._publish(
            events.WorkerSpawned(
                worker=worker.name, incarnation=self.incarnation, pid=job.pid, namespaces=dict(worker._inodes)
            )
        )
        self._publish(events.WorkerStarted(worker=worker.name, incarnation=self.incarnation, pid=job.pid))
        if self._ready is None:  # here, else its exit may be told first
            self._declare_ready()
        if self._due is not None:
            self.begin_stop(self._due)

    def _ended(self, job: Job) -> None:
        worker = self._worker
        self._supervisor._cgroups.told(worker)
        if job.exit is not None and job.pid:
            code = os.waitstatus_to_exitcode(job.exit.status)
            self.exit = Exit(
                code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                expected=self._stopping,
                usage=Usage(user_time=job.exit.user_time, system_time=job.exit.system_time, max_rss=job.exit.max_rss),
            )
            worker._state = State.EXITED
            for kind in ("pid", "cgroup"):
                worker._inodes.pop(kind, None)
            self._publish(events.WorkerExited(worker=worker.name, incarnation=self.incarnation, exit=self.exit))
            if worker.spec.critical and not self._stopping and not self._awaited:
                self._supervisor._critical_exit(worker, self.exit)
        self.announce()

    def _publish(self, event: events.Event) -> None:
        self._supervisor._bus.publish(event)


def _by_kind(kinds: int, held: tuple[int, ...]) -> dict[int, int]:
    return dict(zip((kind for kind in NS_FILES if kinds & kind), held, strict=True))


async def end(job: Job) -> None:
    """Kill what still runs, and wait for it, whatever happens to the caller."""
    with anyio.CancelScope(shield=True):
        await job.kill_and_wait()
