"""The application's side of the clone core: jobs that the stub and the spawner do for it."""

from __future__ import annotations

import errno
import itertools
import signal
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from nsorch.errors import ClosedError, NsorchError, SpawnerDiedError

from . import descriptors
from .channel import Channel, Request
from .failures import translate
from .jobs import KILLED, Job, RawExit
from .launch import launch, reap
from .lending import lent
from .process import standard_stream
from .spawner.protocol import Event
from .spawner.syscalls import CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_NEWUSER

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from anyio.abc import TaskGroup

    from .launch import Launched
    from .process import Inherited
    from .spawner import protocol

# The kernel frees what thousands of processes held in a fraction of this; then the stub is killed, too.
_STOP_DEADLINE = 5.0


class Facts(NamedTuple):
    """What the spawner said of itself when it was ready."""

    descriptors: dict[str, int]  #: "home net" (the fabric), "host net", "rtnetlink", "hosts", …
    sysctls: dict[str, str]  #: what a new network namespace has inherited
    capabilities: int  #: bits of those that its workers can have
    ids: tuple[tuple[tuple[int, int, int], ...], ...]  #: ranges of the uids and gids of its user namespace
    pid: int  #: of the stub


class Helper:
    """Stub and spawner of one supervisor."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._sockets: dict[int, _SocketRequest] = {}
        self._launched: Launched | None = None
        self.streams: Inherited = ()  #: the standard streams that it has
        self._spawner: Channel | None = None
        self._stub: Channel | None = None
        self._maker: Channel | None = None  #: once it is up
        self._tasks: TaskGroup | None = None  # while it serves
        self._ready = anyio.Event()
        self._waiting_for = 2
        self._failure: NsorchError | None = None
        self._facts: dict[str, Any] = {}
        self._owned: list[int] = []
        self._wants_maker = False
        self.died = False  #: nothing is asked of it any more
        self._left = False
        self.frozen: set[str | None] = set()  #: names of workers that are

    def launch(self, rootless: bool, subids: bool | None = None) -> None:
        """Start both, see :func:`nsorch.core.launch.launch`."""
        self.streams = tuple(map(standard_stream, range(3)))
        launched = self._launched = launch(rootless, subids)
        self._stub = Channel(launched.stub, self._deliver_stub, self._lose)
        self._spawner = Channel(launched.spawner, self._deliver, self._lose)

    async def serve(self) -> None:
        """Carry requests and answers until a helper's socket ends. Then every job has ended, and :attr:`died` is set.

        Run it in a task of its own, for the whole time; cancel it after :meth:`stop`.
        """
        assert self._stub is not None
        assert self._spawner is not None
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks

            async def read(channel: Channel) -> None:
                await channel.read()
                tasks.cancel_scope.cancel()

            tasks.start_soon(read, self._stub)
            tasks.start_soon(read, self._spawner)
            tasks.start_soon(self._stub.write)
            tasks.start_soon(self._spawner.write)
        self.died, self._tasks = True, None
        self._fail_all()

    def add_maker(self) -> None:
        """Have another process make namespaces from soon on, if there can be one, see :mod:`.spawner.maker`."""
        if self._tasks is None or self.died or self._tasks.cancel_scope.cancel_called:
            return  # what is begun in a group that ends may never be cancelled
        if not self._wants_maker:
            self._wants_maker = True
            self._tasks.start_soon(self._serve_maker, self._tasks.cancel_scope)

    async def _serve_maker(self, serving: anyio.CancelScope) -> None:
        try:
            requests = socket.socket(fileno=await self._open("maker"))
        except NsorchError:
            return  # the spawner makes them all
        requests.setblocking(False)

        def deliver(message: Any, fds: list[int]) -> None:
            if message[0] == Event.READY:
                self._maker = channel
            else:
                self._deliver(message, fds)

        channel = Channel(requests, deliver, self._lose)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(channel.write)
                await channel.read()
                tasks.cancel_scope.cancel()
        finally:
            channel.close()
        if self._maker is not None:  # else it couldn't begin
            serving.cancel()

    async def ready(self) -> Facts:
        """Wait until both are up.

        :raises NsorchError: what forbids it
        """
        await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        assert self._launched is not None
        names = self._facts["descriptors"]
        return Facts(
            dict(zip(names, self._owned, strict=True)),
            self._facts["sysctls"],
            self._facts["capabilities"],
            self._facts["ids"],
            self._launched.pid,
        )

    def spawn(
        self,
        make: Callable[[int], protocol.Spawn],
        fds: Sequence[int],
        *,
        worker: str | None,
        outside: bool = False,
        on_created: Callable[[tuple[int, ...]], None] | None = None,
        on_start: Callable[[Job], None] | None = None,
        on_end: Callable[[Job], None] | None = None,
    ) -> Job:
        """Ask for namespaces or a command; *outside*: from the host's namespaces. *fds* must stay open until it is
        started or has failed."""
        spawn = make(next(self._numbers))
        channel = self._stub if outside else self._spawner
        assert channel is not None
        if self._maker is not None and self._maker.under_way < channel.under_way and _is_bare(spawn):
            channel = self._maker
        job = Job(spawn.job, channel, worker)
        job.on_create, job.on_start, job.on_end = on_created, on_start, on_end
        job.frozen = self.frozen
        if self.died:
            job.finish(failure=self._gone(worker))
            return job
        self._jobs[job.number] = job
        job._request = Request(_message(spawn), tuple(fds))
        channel.send(job._request)
        return job

    async def open_socket(
        self, netns: int, family: int, kind: int, proto: int, worker: str | None = None
    ) -> socket.socket:
        """A non-blocking socket in the network namespace of descriptor *netns*. Cancelled, it leaves nothing open.

        :param worker: that an error names
        """
        with lent(netns, "socket") as lent_netns:
            fd = await self._open("socket", int(family), int(kind), int(proto), fds=(lent_netns,), worker=worker)
        opened = socket.socket(family, kind, proto, fileno=fd)
        opened.setblocking(False)
        with descriptors.registering:
            descriptors.disown(fd)
        return opened

    async def open_tun(self, netns: int, worker: str) -> int:
        """A non-blocking descriptor of ``/dev/net/tun``, for interfaces of the network namespace of descriptor *netns*;
        :func:`descriptors.close` it. Cancelled, it leaves nothing open."""
        with lent(netns, "tun") as lent_netns:
            return await self._open("tun", fds=(lent_netns,), worker=worker)

    async def _open(self, operation: str, *arguments: int, fds: tuple[int, ...] = (), worker: str | None = None) -> int:
        assert self._spawner is not None
        if self.died:
            raise self._gone(worker)
        number, answer = next(self._numbers), _SocketRequest(worker)
        self._sockets[number] = answer
        request = Request((operation, number, *arguments), fds)
        self._spawner.send(request)
        try:
            await answer.done.wait()
        except BaseException:
            answer.abandoned = True
            if not request.sent:
                request.withdrawn = True
                self._sockets.pop(number, None)
            if answer.fd >= 0:  # the answer and the cancellation came at one time
                descriptors.close([answer.fd])
            raise
        if answer.failure is not None:
            raise answer.failure
        return answer.fd

    async def pin(self, path: bytes, target: bytes, worker: str) -> None:
        """Have the symbolic link *path* to *target* made, or removed if *target* is empty; it doesn't outlive the stub.

        A cancellation waits until it is done.

        :raises NsorchError: of stage ``"pin"``
        """
        assert self._stub is not None
        await self._ask(self._stub, ("pin", path, target), (), worker)

    async def adopt(self, leaf: int, worker: str) -> None:
        """Have all that runs in *worker* moved into the cgroup of descriptor *leaf*. A cancellation waits for it.

        :raises NsorchError: of stage ``"cgroup"``
        """
        for channel in (self._spawner, self._stub):
            theirs = [job for job in self._jobs.values() if job.worker == worker and job._channel is channel]
            targets = tuple(job.number for job in theirs if job.pid)
            if targets and channel is not None:
                await self._ask(channel, ("adopt", targets), (leaf,), worker)

    async def keep_subtree(self, name: str, above: int, folder: int) -> None:
        """Have the stub remove the subtree of cgroups at the end. A cancellation waits for it."""
        assert self._stub is not None
        await self._ask(self._stub, ("subtree", name), (above, folder), None)

    async def _ask(self, channel: Channel, message: tuple[Any, ...], fds: tuple[int, ...], worker: str | None) -> None:
        """Wait until a helper has done something that takes no time."""
        job = Job(next(self._numbers), channel, worker)
        if self.died:
            raise self._gone(worker)
        self._jobs[job.number] = job
        operation, *values = message
        channel.send(Request((operation, job.number, *values), fds))
        with anyio.CancelScope(shield=True):
            await job.end()
        if job.failure is not None:
            raise job.failure

    def withdraw(self, workers: Container[str | None]) -> None:
        """Drop what is asked for *workers* and not sent yet: the descriptors that it lends may be closed then."""
        for job in self.jobs:
            if job.worker in workers:
                job.withdraw()

    @property
    def jobs(self) -> list[Job]:
        """All that haven't ended."""
        return list(self._jobs.values())

    def leave(self) -> None:
        """It is closed next: ask nothing more of it."""
        self._left = not self.died
        self.died = True

    def close(self) -> None:
        """Close both sockets: the helpers end, and all that they run. :meth:`serve` must not be running any more."""
        if self._stub is not None:
            self._stub.close()
        if self._spawner is not None:
            self._spawner.close()
        descriptors.close(self._owned)
        self._owned = []

    async def gone(self) -> None:
        """After :meth:`close`: wait until the last process of the helpers is gone. Shield it."""
        launched = self._launched
        if launched is None:
            return
        with anyio.move_on_after(_STOP_DEADLINE) as deadline:
            await anyio.wait_readable(launched.pidfd)
        if deadline.cancelled_caught:
            signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
            await anyio.wait_readable(launched.pidfd)
        reap(launched.pid)
        descriptors.close([launched.pidfd])
        self._launched = None
        self._fail_all()  # what somebody asked for while it was closed

    # -- answers

    def _deliver_stub(self, message: tuple[Any, ...], fds: list[int]) -> None:
        if message[0] == Event.READY:
            descriptors.close(fds)
            self._one_ready()
        else:
            self._deliver(message, fds)

    def _deliver(self, message: tuple[Any, ...], fds: list[int]) -> None:
        event, number, *values = message
        if number in self._sockets:
            self._deliver_socket(self._sockets.pop(number), event, values, fds)
        elif number == 0:
            self._deliver_facts(event, values, fds)
        elif (job := self._jobs.get(number)) is None:
            descriptors.close(fds)
        elif event == Event.CREATED:
            job.hold(fds)
            job.changed()
        elif event == Event.STARTED:
            pid, pid_namespace = values
            job.begin(pid, pid_namespace, fds)
        elif event == Event.EXITED:
            del self._jobs[number]
            job.finish(exit=RawExit(*values))
        elif event == Event.FAILED:
            del self._jobs[number]
            if job.pid:  # what it is about had begun, and was killed
                job.finish(exit=KILLED)
            else:
                job.finish(failure=translate(values[0], values[1], values[2], job.worker))
        else:  # DONE
            del self._jobs[number]
            job.hold(fds)
            job.finish(exit=RawExit(0, 0.0, 0.0, 0))

    def _lose(self, message: tuple[Any, ...]) -> None:
        """The table of open files is full: what the answer was about can't be had."""
        number = message[1] if message else 0
        asker: _SocketRequest | Job | None = self._sockets.get(number) or self._jobs.get(number)
        failure = translate("receive descriptors", errno.EMFILE, "", None if asker is None else asker.worker)
        if number in self._sockets:
            request = self._sockets.pop(number)
            request.failure = failure
            request.done.set()
        elif (job := self._jobs.pop(number, None)) is not None:
            self._abandon(job, failure)
        else:
            self._failure = failure
            self._ready.set()

    def _abandon(self, job: Job, failure: NsorchError) -> None:
        job.kill()
        job.finish(failure=failure)

    def _deliver_facts(self, event: int, values: list[Any], fds: list[int]) -> None:
        if event == Event.READY:
            self._facts, self._owned = values[0], fds
            self._one_ready()
        else:
            self._failure = translate(values[0], values[1], values[2], None)
            self._ready.set()

    def _one_ready(self) -> None:
        self._waiting_for -= 1
        if not self._waiting_for:
            self._ready.set()

    def _deliver_socket(self, request: _SocketRequest, event: int, values: list[Any], fds: list[int]) -> None:
        if event == Event.SOCKET:
            (request.fd,) = fds
            if request.abandoned:
                descriptors.close(fds)
        else:
            request.failure = translate(values[0], values[1], values[2], request.worker)
        request.done.set()

    def _fail_all(self) -> None:
        if self._failure is None:
            self._failure = self._gone(None)
        self._ready.set()
        for request in self._sockets.values():
            request.failure = self._gone(request.worker)
            request.done.set()
        self._sockets.clear()
        for job in self.jobs:
            # The kernel has killed what ran; what hadn't started never will.
            if job.pid:
                job.finish(exit=KILLED)
            else:
                job.finish(failure=self._gone(job.worker))
        self._jobs.clear()

    def _gone(self, worker: str | None) -> NsorchError:
        if self._left:
            return ClosedError("the supervisor has ended", worker=worker)
        return SpawnerDiedError("the helper process died", worker=worker)


def _is_bare(spawn: protocol.Spawn) -> bool:
    """Whether it takes no process, not even for a moment: see :mod:`.spawner.maker`."""
    return (
        spawn.command is None
        and not spawn.join
        and not spawn.root
        and not spawn.unshare & (CLONE_NEWUSER | CLONE_NEWTIME | CLONE_NEWCGROUP)
    )


def _message(spawn: protocol.Spawn) -> tuple[Any, ...]:
    """As marshal takes it: tuples, not their subclasses."""
    command, check = spawn.command, spawn.check
    if command is not None:
        spawn = spawn._replace(command=tuple(command))  # type: ignore[arg-type]
    if check is not None:
        spawn = spawn._replace(check=tuple(check))  # type: ignore[arg-type]
    return ("spawn", *spawn)


class _SocketRequest:
    __slots__ = ("abandoned", "done", "failure", "fd", "worker")

    def __init__(self, worker: str | None) -> None:
        self.worker = worker
        self.done = anyio.Event()
        self.fd = -1
        self.failure: NsorchError | None = None
        self.abandoned = False
