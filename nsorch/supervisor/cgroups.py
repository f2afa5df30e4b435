"""The cgroups of a lab: a subtree from its first use on, and a leaf for each worker that needs one.

A worker begins in a leaf if it has limits or a cgroup namespace, or the supervisor was made with ``cgroups=True``.
Others get theirs, with all that runs in them, when somebody asks for their statistics or freezes them: an ordinary
worker has no use for one, and a command that begins in one takes a fork.
"""

from __future__ import annotations

import contextlib
import errno
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

from nsorch import events
from nsorch.core import cgroups, descriptors
from nsorch.core.event_files import EventFiles
from nsorch.core.failures import translate
from nsorch.core.spawner.subtree import kill, read, write
from nsorch.core.spawner.syscalls import NO_CGROUP, Cgroup
from nsorch.core.threads import in_thread, in_thread_or_here
from nsorch.errors import ClosedError, NsorchError, SetupError, UnsupportedError
from nsorch.supervisor.leaf import Leaf
from nsorch.topology.namespaces import New

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nsorch.core.spawner.subtree import Subtree
    from nsorch.core.usage import WorkerStats
    from nsorch.supervisor.confined import Confined
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec
    from nsorch.topology.limits import Limits

T = TypeVar("T")

_DESCRIPTORS = 4  # of a leaf: its directory, and event files


class Cgroups:
    """:param always: every worker begins in a leaf."""

    def __init__(self, supervisor: Supervisor, *, always: bool) -> None:
        self._supervisor = supervisor
        self._always = always
        self._subtree: Subtree | None = None
        self._moved = False  # our own processes, for the sake of the subtree
        self._users = 0  # who make or remove leaves: meanwhile it stays
        self._files: EventFiles | None = None
        self._making: anyio.Lock | None = None  # made in the loop
        self._leaves: dict[str, Leaf] = {}
        self._idle: dict[str, anyio.Event] = {}
        self._coming: dict[Worker, anyio.Event] = {}  # whose leaves are being made: set once that is over
        self._closed = False

    # -- before a worker is made

    async def admit(self, specs: Sequence[WorkerSpec]) -> None:
        """Refuse limits that can't be kept, before anything is made.

        :raises UnsupportedError: naming the worker, the limit, what is missing, and what would help
        """
        for spec in specs:
            if spec.limits is not None or self._always:
                subtree = await self._root_for(spec.name, spec.limits, move=True)
                self._check(subtree, spec.limits, spec.name)

    def _check(self, subtree: Subtree, limits: Limits | None, worker: str) -> None:
        for controller, limit in ({} if limits is None else limits.controllers()).items():
            if controller not in subtree.controllers:
                raise cgroups.missing(controller, limit, worker)

    async def make(self, workers: Sequence[Worker]) -> None:
        """Leaves for those of *workers* that begin in one.

        :raises NsorchError: naming the worker; no leaf of these is left
        """
        wanted = [worker for worker in workers if self._begins_in_leaf(worker.spec, worker._confined)]
        if not wanted:
            return
        try:
            subtree = await self._root(move=False)
        except NsorchError:
            if any(worker.spec.limits is not None or self._always for worker in wanted):
                raise
            return  # a cgroup namespace can do without: its root is our own cgroup then
        with self._using():
            await self._make(subtree, wanted)

    async def _make(self, subtree: Subtree, wanted: Sequence[Worker]) -> None:
        await descriptors.make_room(_DESCRIPTORS * len(wanted))
        made: dict[str, int] = {}

        def make() -> None:
            for worker in wanted:
                made[worker.name] = cgroups.make_leaf(subtree, worker.name, _files(worker.spec.limits, worker.name))

        try:
            await in_thread(make)
        finally:  # so that they are removed with their workers, whatever happened
            for worker in wanted:
                if worker.name in made and not self._closed:
                    self._adopt(worker, made[worker.name])
            if self._closed:
                descriptors.close(made.values())
                self._check_open()

    def _begins_in_leaf(self, spec: WorkerSpec, confined: Confined) -> bool:
        return self._always or spec.limits is not None or isinstance(confined.namespaces.cgroup, New)

    def _adopt(self, worker: Worker, fd: int) -> Leaf:
        assert self._files is not None
        leaf = self._leaves[worker.name] = Leaf(worker, fd, self._files, worker.spec.limits)
        leaf.watch()
        return leaf

    async def _root_for(self, worker: str, limits: Limits | None, *, move: bool) -> Subtree:
        """As :meth:`_root`, with errors that say for whom, and which limit can't be kept."""
        try:
            return await self._root(move=move)
        except NsorchError as exc:
            if limits and isinstance(exc, UnsupportedError):
                controller, limit = next(iter(limits.controllers().items()))
                raise cgroups.missing(controller, limit, worker) from None
            exc.worker = worker
            raise

    async def _root(self, *, move: bool) -> Subtree:
        """The subtree, which is made now if there is none.

        :param move: get the controllers, also where that takes moving our own processes to a leaf
        """
        if self._making is None:
            self._making = anyio.Lock()
        async with self._making:
            if self._subtree is not None and not (move and self._may_get_more(self._subtree)):
                return self._subtree
            with anyio.CancelScope(shield=True):
                if self._subtree is not None:  # one without controllers, in which nothing is
                    await in_thread_or_here(cgroups.remove_subtree, self._subtree)
                    self._subtree = None
                made = await in_thread(partial(cgroups.make_subtree, move=move))
                try:
                    self._check_open()
                    await self._supervisor._helper.keep_subtree(made.name, made.above, made.folder)
                except BaseException:
                    await in_thread_or_here(cgroups.remove_subtree, made)
                    raise
                self._subtree, self._moved = made, move
            if self._files is None:
                self._files = EventFiles()
                self._supervisor._start_soon(self._files.run)
            return made

    # -- what is started in a worker

    def _may_get_more(self, subtree: Subtree) -> bool:
        """Whether another one may have controllers, and nothing is in this one."""
        return not (subtree.controllers or self._moved or self._leaves or self._users)

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    @contextlib.contextmanager
    def entering(self, worker: Worker) -> Iterator[Cgroup]:
        """Until a command has begun: the cgroup that it is to begin in.

        :raises SetupError: the worker is frozen, and a command in it would never begin; or the kernel has killed it for
            want of memory
        """
        leaf = self._leaves.get(worker.name)
        if leaf is not None and leaf.frozen:
            raise SetupError("the worker is frozen: thaw it first", worker=worker.name, stage="cgroup")
        worker._entering += 1
        before = 0 if leaf is None else leaf.memory_kills
        try:
            yield NO_CGROUP if leaf is None else Cgroup(leaf.fd, leaf.killed)
        except (ClosedError, SetupError) as exc:
            if exc.errno != errno.ESRCH or leaf is None:
                raise
            leaf.tell()
            if leaf.memory_kills == before:
                raise
            raise SetupError(
                "it was killed before its command ran",
                worker=worker.name,
                stage="start",
                errno=errno.ENOMEM,
                detail="its memory is used up: raise limits.memory",
            ) from None
        finally:
            worker._entering -= 1
            if not worker._entering and (idle := self._idle.pop(worker.name, None)) is not None:
                idle.set()

    async def _until_idle(self, worker: Worker) -> None:
        """Wait until no command is between its request and its exec. No checkpoint follows."""
        while worker._entering:
            await self._idle.setdefault(worker.name, anyio.Event()).wait()

    def told(self, worker: Worker) -> None:
        """Publish what its cgroup tells of the process that has just ended."""
        if (leaf := self._leaves.get(worker.name)) is not None:
            leaf.tell()

    # -- what is asked of a worker

    async def leaf_of(self, worker: Worker, *, limits: Limits | None = None, move: bool = False) -> Leaf:
        """Its leaf; all that runs in it is moved to a new one if it has none.

        :param limits: what it is for
        :raises UnsupportedError: there is no cgroup v2, or none that we may use
        :raises ClosedError: the worker is gone
        """
        self._check_alive(worker)
        while (leaf := self._leaves.get(worker.name)) is None:
            await worker._settled()  # its start may make one
            subtree = await self._root_for(worker.name, limits, move=move)
            with self._using():
                await self._make_one(worker, subtree)
        return leaf

    async def _make_one(self, worker: Worker, subtree: Subtree) -> None:
        """Unless somebody else has, meanwhile."""
        assert self._making is not None
        async with self._making:
            self._check_alive(worker)
            if worker.name in self._leaves:
                return
            over = self._coming[worker] = anyio.Event()
            try:
                await self._move_to_leaf(worker, subtree)
            finally:
                del self._coming[worker]
                over.set()

    async def _move_to_leaf(self, worker: Worker, subtree: Subtree) -> None:
        with anyio.CancelScope(shield=True):
            fd = await in_thread(cgroups.make_leaf, subtree, worker.name, {})
            if self._closed:
                descriptors.close([fd])
                self._check_open()
            # From here on what is started begins in it.
            await self._until_idle(worker)
            self._adopt(worker, fd)
            await self._supervisor._helper.adopt(fd, worker.name)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the supervisor has ended")

    def _check_alive(self, worker: Worker) -> None:
        self._supervisor._check_running()
        worker._check_here()

    async def stats(self, worker: Worker) -> WorkerStats:
        leaf = await self.leaf_of(worker)
        try:
            return await self._with_copy(leaf, _read_stats)
        except OSError as exc:
            if leaf.leaving or leaf.closed.is_set():
                raise ClosedError("the worker was removed", worker=worker.name) from None
            raise cgroups.refused(exc, "read its statistics", worker.name) from None

    async def _with_copy(self, leaf: Leaf, func: Callable[[int], T]) -> T:
        """Run *func* in a thread, with a descriptor that nobody closes meanwhile.

        :raises ClosedError: it is gone
        """
        if leaf.closed.is_set():
            raise ClosedError("the worker was removed")
        try:
            copy = descriptors.duplicate(leaf.fd)
            with anyio.CancelScope(shield=True):  # a call that is cancelled before its thread begins would keep it
                result = await in_thread_or_here(_consume, copy, func)
            return result  # noqa: RET504 - for the type checker, a scope may swallow what ends it
        except OSError as exc:
            if leaf.leaving:
                raise ClosedError("the worker was removed") from None
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise translate("cgroup", exc.errno, "", leaf.name) from None
            raise

    async def freeze(self, worker: Worker) -> None:
        leaf = await self.leaf_of(worker)
        async with leaf.changing:
            if leaf.frozen:
                return
            frozen = self._supervisor._helper.frozen
            try:
                leaf.frozen = True  # nothing begins from here on
                await self._until_idle(worker)
                frozen.add(worker.name)
                await self._set_frozen(leaf, True)
            except BaseException:
                with anyio.CancelScope(shield=True), contextlib.suppress(OSError, NsorchError):  # it may be gone
                    await self._with_copy(leaf, partial(write, name="cgroup.freeze", text="0"))
                leaf.frozen = False
                frozen.discard(worker.name)
                raise
        self._supervisor._bus.publish(events.WorkerFrozen(worker=worker.name, incarnation=worker.incarnation))

    async def thaw(self, worker: Worker) -> None:
        self._check_alive(worker)
        leaf = self._leaves.get(worker.name)
        if leaf is None:
            return
        async with leaf.changing:
            if not leaf.frozen:
                return
            with anyio.CancelScope(shield=True):
                await self._set_frozen(leaf, False)
            leaf.frozen = False
            self._supervisor._helper.frozen.discard(worker.name)
        self._supervisor._bus.publish(events.WorkerThawed(worker=worker.name, incarnation=worker.incarnation))

    async def _set_frozen(self, leaf: Leaf, wanted: bool) -> None:
        """Ask for it, and wait until the kernel says so."""
        assert self._files is not None
        changed = anyio.Event()
        now = {"frozen": -1}

        def tell(numbers: Mapping[str, int]) -> None:
            now["frozen"] = numbers.get("frozen", -1)
            changed.set()

        if leaf.closed.is_set():
            raise ClosedError("the worker was removed")
        try:
            fd = cgroups.open_events(leaf.fd, "cgroup.events")
        except OSError as exc:
            if leaf.leaving:
                raise ClosedError("the worker was removed") from None
            raise translate("cgroup", exc.errno or errno.EIO, "", leaf.name) from None
        try:
            self._files.add(fd, tell)
            await self._with_copy(leaf, partial(write, name="cgroup.freeze", text=str(int(wanted))))
            while now["frozen"] != wanted:
                await _either(changed, leaf.closed)
                if leaf.closed.is_set():
                    raise ClosedError("the worker was removed")
                changed = anyio.Event()
        finally:
            self._files.remove(fd)
            descriptors.close([fd])

    async def set_limits(self, worker: Worker, limits: Limits | None) -> None:
        leaf = await self.leaf_of(worker, limits=limits, move=True)
        assert self._subtree is not None
        self._check(self._subtree, limits, worker.name)
        above = self._subtree.folder
        async with leaf.changing:
            before = leaf.limits

            def change(fd: int) -> None:
                from nsorch.topology.limits import UNLIMITED, IoLimits

                old, new = _files(before, worker.name), _files(limits, worker.name)
                reset = {name: UNLIMITED[name] for name in old if name in UNLIMITED and name not in new}
                if "cpuset.cpus" in reset:  # it can't be emptied while something runs there: all that there are
                    reset["cpuset.cpus"] = read(above, "cpuset.cpus.effective").strip()
                if "io.max" in old:
                    gone = [line.split()[0] for line in old["io.max"].splitlines()]
                    reset["io.max"] = "\n".join(f"{device} {IoLimits().line()}" for device in gone)
                cgroups.write_files(fd, reset, worker.name)
                cgroups.write_files(fd, new, worker.name)

            if limits is not None and limits.memory is not None and (before is None or before.memory is None):
                await self._share_no_memory(leaf, worker)
            with anyio.CancelScope(shield=True):
                await self._with_copy(leaf, change)
            leaf.limits = limits
            leaf.watch()

    async def _share_no_memory(self, leaf: Leaf, worker: Worker) -> None:
        """Wait until nothing in the cgroup has the helper's memory, which would be killed with it. Where there is a
        limit, what begins has its own."""
        set_to = partial(cgroups.write_files, worker=worker.name)
        try:
            await self._with_copy(leaf, partial(set_to, files={"memory.max": _SOME_LIMIT}))
            await self._until_idle(worker)
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(SetupError, ClosedError):
                await self._with_copy(leaf, partial(set_to, files={"memory.max": "max"}))
            raise

    def kill(self, worker: Worker) -> None:
        """SIGKILL to all that runs in its cgroup, soon."""
        leaf = self._leaves.get(worker.name)
        if leaf is not None:
            with contextlib.suppress(OSError):  # such as EMFILE; what the process leaves goes with the leaf then
                copy = descriptors.duplicate(leaf.fd)
                over = anyio.Event()
                leaf.kills.add(over)
                leaf.killed = True
                self._supervisor._start_soon(partial(_kill_later, leaf, copy, over))

    async def await_kills(self, worker: Worker) -> None:
        """Wait until what runs in it and was to be killed is: what begins from here on must not be killed with it."""
        leaf = self._leaves.get(worker.name)
        while leaf is not None and leaf.kills and not leaf.closed.is_set():
            await _either(next(iter(leaf.kills)), leaf.closed)

    def path(self, worker: Worker) -> str | None:
        if self._subtree is None or worker.name not in self._leaves:
            return None
        return f"{self._subtree.path}/{worker.name}"

    def is_frozen(self, worker: Worker) -> bool:
        return worker.name in self._leaves and self._leaves[worker.name].frozen

    # -- the end

    async def release(self, workers: Iterable[Worker]) -> None:
        """Remove the leaves of *workers*, with whatever still runs in them. Shield it."""
        for over in [self._coming[worker] for worker in workers if worker in self._coming]:
            await over.wait()
        names = [worker.name for worker in workers if worker.name in self._leaves]
        if not names or self._subtree is None:
            return
        fds = self._forget(names)
        with self._using():
            await in_thread_or_here(cgroups.remove_leaves, self._subtree, names)
        await in_thread_or_here(descriptors.close, fds)

    def _forget(self, names: Iterable[str]) -> list[int]:
        fds = []
        for name in list(names):
            fds += self._leaves.pop(name).close()
            self._supervisor._helper.frozen.discard(name)
        return fds

    async def gone(self) -> None:
        """After the stub is: see to it that nothing is left. Shield it."""
        self._closed = True
        descriptors.close(self._forget(self._leaves))
        if self._subtree is not None:
            await in_thread_or_here(cgroups.remove_subtree, self._subtree)
            self._subtree = None
        if self._files is not None:
            self._files.close()
            self._files = None


async def _either(one: anyio.Event, other: anyio.Event) -> None:
    """Wait until one of both is set."""
    async with anyio.create_task_group() as tasks:

        async def wait(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(wait, one)
        tasks.start_soon(wait, other)


async def _kill_later(leaf: Leaf, fd: int, over: anyio.Event) -> None:
    try:
        with anyio.CancelScope(shield=True):
            await in_thread_or_here(_consume, fd, kill)
    finally:
        leaf.kills.discard(over)
        over.set()


def _consume(fd: int, func: Callable[[int], T]) -> T:
    try:
        return func(fd)
    finally:
        descriptors.close([fd])


#: bytes that are never used
_SOME_LIMIT = str(1 << 60)


def _files(limits: Limits | None, worker: str) -> dict[str, str]:
    """What its cgroup's files are to hold. Looks devices up."""
    if limits is None:
        return {}
    files = limits.files()
    if limits.io:
        devices = {device: cgroups.device_numbers(device, worker) for device in limits.io}
        files["io.max"] = "\n".join(f"{devices[device]} {each.line()}" for device, each in limits.io.items())
    return files


def _read_stats(fd: int) -> WorkerStats:
    from nsorch.core.usage import read_stats

    return read_stats(fd)
