"""The loop of a helper process: takes requests, makes namespaces, starts commands, reaps and reports.

The spawner runs it at home, in namespaces that it can always return to. The stub runs it outside, for workers of a
rootless supervisor that keep a namespace of the host's, which nobody can enter from inside.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import marshal
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from . import maker, protocol
from .adopting import adopt, descendants, kill_and_wait, state_of
from .births import Births
from .command import identify, is_leased, is_plain, pick_streams, resolve, spawn
from .confinement import decode, hidden, lent_oom_score, set_oom_score
from .launches import Launches
from .nursery import Nursery
from .pid1 import Pid1
from .pins import Pins
from .protocol import Command, Event, Kill, Mode, OpenSocket, OpenTun, Own, Spawn
from .reaper import supervise
from .stages import StageError, stage
from .steps import build_root, close, enter, go_home, kinds_of, own_namespaces, prepare
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    NO_CGROUP,
    NS_FILES,
    Cgroup,
    clone3,
    set_dumpable,
    setns,
    signalfd,
)
from .turns import Turns
from .writing import NoScriptError

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable

    from .steps import Home, Joined

# Requests that wait are served so many at a time before their answers go: each send wakes the application, which costs
# 60 to 80 µs.
_TOGETHER = 4
_STOPPED, _DEAD = ("T", "t"), ("Z", "X", "")  # states of processes, see proc(5)
_PASSES = 10


class _Job:
    __slots__ = ("held", "killed", "mode", "number", "pid", "started", "status", "told")

    def __init__(self, number: int, mode: int, pid: int) -> None:
        self.number = number
        self.mode = mode
        self.pid = pid  #: the child: the command, or what stands before it; 0 until the nursery has borne it
        self.killed = False  #: before it was borne
        self.started = False  #: as a reaper has reported
        self.held: list[int] = []  #: the namespaces that STARTED will hand out
        self.status: int | None = None  #: the command's own wait status, where a reaper has reported it
        self.told: socket.socket | None = None  #: by an init that reports to nobody else

    def forget(self) -> None:
        close(self.held)
        self.held = []
        if self.told is not None:
            self.told.close()


class Server:
    def __init__(self, requests: socket.socket, home: Home) -> None:
        self._requests = requests
        self._turns = Turns()
        self.home = home
        self.jobs: dict[int, _Job] = {}
        self._by_pid: dict[int, _Job] = {}
        self._outbox: collections.deque[tuple[tuple[Any, ...], list[int]]] = collections.deque()
        # Made here for all reapers: a forked child hears its own signals through it.
        self._signals = signalfd(*signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        self._reports, self._report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reports.setblocking(False)
        requests.setblocking(False)
        self.pins = Pins()
        self.poll = select.poll()
        self._births = Births(self)
        self.subtree: tuple[str, int] | None = None  # name, and descriptor of the cgroup above
        self.leaf = NO_CGROUP  # the cgroup of what is being started
        self.seen = False  # commands are in our pid namespace: they see our children, and we can't hide them
        self._launches = Launches(self)
        self._unborn: set[int] = set()  # jobs whose child the nursery has still to tell of
        self._early: dict[int, tuple[int, resource.struct_rusage]] = {}  # what has ended meanwhile and might be one
        self._nursery = (
            Nursery(home.namespaces, self._report, self._begin_init, self._make) if home.namespaces else None
        )

    def serve(self, *ends: int) -> None:
        """Serve, all signals blocked, until the application closes its end or one of *ends* becomes readable."""
        died = signalfd(signal.SIGCHLD)
        poll = self.poll
        for fd in (died, self._reports.fileno(), *ends):
            poll.register(fd, select.POLLIN)
        poll.register(self._requests, select.POLLIN)
        writing = False
        while True:
            self._flush()
            if writing != bool(self._outbox):
                writing = not writing
                poll.modify(self._requests, select.POLLIN | (select.POLLOUT if writing else 0))
            for fd, _ in poll.poll():
                if fd == died:
                    os.read(died, 4096)
                    self._reap()
                elif fd == self._reports.fileno():
                    self._read_reports()
                elif fd == self._requests.fileno():
                    if not self._read_requests():
                        return
                elif fd in self._launches:
                    self._launches.hear_one(fd)
                elif fd in self._births:
                    self._births.hear_one(fd)
                elif fd in ends:
                    return

    # -- requests

    def _read_requests(self) -> bool:
        """Serve what is there; False at the end of file."""
        for _ in range(_TOGETHER):
            try:
                received = protocol.receive(self._requests)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if received is None:
                return False
            self._serve_request(*received)
            self._turns.give()
        return True

    def _serve_request(self, message: tuple[Any, ...], fds: list[int]) -> None:
        operation, *values = message
        request = protocol.OPERATIONS[operation](*values)
        try:
            # One request that can't be served must not end all workers.
            with stage(operation):
                if isinstance(request, Spawn):
                    self.leaf = Cgroup(fds[-1], request.moves) if request.cgroup else NO_CGROUP
                    self._spawn(request, fds)
                elif isinstance(request, OpenSocket):
                    self._open(request.job, fds[0], "socket", functools.partial(_socket, request))
                elif isinstance(request, OpenTun):
                    self._open(request.job, fds[0], "tun", _tun)
                elif isinstance(request, protocol.AddMaker):
                    self._add_maker(request)
                elif isinstance(request, protocol.Pin):
                    self._pin(request)
                elif isinstance(request, protocol.Adopt):
                    self._adopt(request, fds[0])
                elif isinstance(request, protocol.Subtree):
                    # The lock is held for as long as we live.
                    self.subtree, fds[:] = (request.name, fds[0]), []
                    self.answer((Event.DONE, request.job), [])
                else:
                    self._kill(request)
        except StageError as exc:
            self.abandon(request.job)
            self.fail(request.job, exc)
        finally:
            close(fds)

    def abandon(self, number: int) -> None:
        """Kill what was started for a job that fails nevertheless; its exit is nobody's business."""
        job = self.jobs.pop(number, None)
        if job is not None:
            job.forget()
            if job.pid:
                os.kill(job.pid, signal.SIGKILL)

    def answer(self, message: tuple[Any, ...], fds: list[int]) -> None:
        """Queue an answer: a full socket must not stop the reaping. *fds* are closed when it is sent."""
        self._outbox.append((message, fds))

    def _try_send(self, message: tuple[Any, ...], fds: list[int]) -> bool:
        try:
            protocol.send(self._requests, message, fds)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # nobody is left to tell; the end of file is next
        except OSError as exc:
            # Too many descriptors under way: they count against RLIMIT_NOFILE until they are received.
            if exc.errno == errno.ETOOMANYREFS:
                return False
            raise
        return True

    def _flush(self) -> None:
        while self._outbox and self._try_send(*self._outbox[0]):
            close(self._outbox.popleft()[1])

    def fail(self, job: int, error: StageError) -> None:
        self.answer((Event.FAILED, job, error.stage, error.number, error.detail), [])

    def _open(self, job: int, netns: int, step: str, make: Callable[[], int]) -> None:
        """Answer with the descriptor that *make* opens in a network namespace."""
        if not self.home.namespaces:
            self.fail(job, StageError("setns", errno.EPERM, "net"))
            return
        try:
            with stage("setns", "net"):
                setns(netns, CLONE_NEWNET)
            with stage(step):
                opened = make()
        except StageError as exc:
            self.fail(job, exc)
        else:
            self.answer((Event.SOCKET, job), [opened])
        finally:
            go_home(self.home, CLONE_NEWNET)

    def _add_maker(self, request: protocol.AddMaker) -> None:
        if self._nursery is None:
            self.fail(request.job, StageError("maker", errno.EPERM))
            return
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self._nursery.add_maker(ours.fileno())
        self.answer((Event.SOCKET, request.job), [theirs.detach()])

    def _make(self, requests: int) -> NoReturn:
        """In a maker, which the nursery has forked."""
        try:
            maker.serve(self.home, socket.socket(fileno=requests))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _pin(self, request: protocol.Pin) -> None:
        try:
            if request.target:
                self.pins.add(request.path, request.target)
            else:
                self.pins.remove(request.path)
            self.answer((Event.DONE, request.job), [])
        except StageError as exc:
            self.fail(request.job, exc)

    def _kill(self, request: Kill) -> None:
        job = self.jobs.get(request.job)
        if job is not None and not job.pid:
            job.killed = True
        elif job is not None and request.frozen:
            # It can't kill its descendants, and none of them can fork. Killed, they end though they are frozen.
            kill_and_wait(descendants([job.pid], self.home.own_proc)[1:])
            os.kill(job.pid, signal.SIGKILL)
        elif job is not None and job.mode in (Mode.RUNNER, Mode.KEEPER):
            # A child that we haven't reaped: the number is still its own.
            if state_of(job.pid, self.home.own_proc) in _STOPPED:  # by its command, which may be of the same user
                self._kill_in_its_place(job.pid)
            os.kill(job.pid, signal.SIGTERM)
            os.kill(job.pid, signal.SIGCONT)  # it may be about to stop
            if not job.started:  # it hears that once its child's exec, which may hang, is done
                kill_and_wait(descendants([job.pid], self.home.own_proc)[1:])
        elif job is not None:
            os.kill(job.pid, signal.SIGKILL)

    def _kill_in_its_place(self, pid: int) -> None:
        """Do what a runner can't that is stopped. What is forked meanwhile is found by the next pass."""
        for _ in range(_PASSES):
            below = descendants([pid], self.home.own_proc)[1:]
            if not (alive := [each for each in below if state_of(each, self.home.own_proc) not in _DEAD]):
                break
            kill_and_wait(alive)
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        for job in self.jobs:
            with contextlib.suppress(ProcessLookupError):
                self._kill(Kill(job))

    def _adopt(self, request: protocol.Adopt, leaf: int) -> None:
        self._launches.settle()
        roots = [job.pid for job in map(self.jobs.get, request.targets) if job is not None and job.pid]
        adopt(leaf, roots, self.home.own_proc)
        self.answer((Event.DONE, request.job), [])

    # -- starting

    def _spawn(self, request: Spawn, fds: list[int]) -> None:
        command = request.command
        if command is not None:
            request = request._replace(command=Command(*command))
            command = request.command
            assert command is not None
        joined = list(zip(request.join, fds, strict=False))
        streams = (self.home.null,) * 3
        if command is not None:
            streams = pick_streams(command.streams, self.home.streams, self.home.null, fds[len(request.join) :])
        try:
            if request.check is not None:
                resolve(Command(*request.check))
            if _concerns_sharers(request):
                self._launches.settle()
            if not self.home.hidden and command is not None and not self.seen and not _has_pid_namespace(request):
                self._launches.settle()
                self.seen = True
            if self._launches.can_start(request):
                with contextlib.suppress(NoScriptError):
                    self._launches.spawn(request, joined, streams)
                    return
            if self._births.has_to(request):
                self._births.spawn(request, joined, streams)
            elif command is None:
                self.answer((Event.DONE, request.job), maker.make(self.home, request, joined))
            elif self._nursery is not None and _wants_init(request):
                self._spawn_by_nursery(self._nursery, request, joined, streams)
            else:
                self._spawn_from_here(request, joined, streams)
        except StageError as exc:
            self.fail(request.job, exc)

    def _spawn_from_here(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> None:
        command = request.command
        assert command is not None
        program = None
        if CLONE_NEWNS not in request.join and not request.root:
            program = resolve(command)
        made = request.unshare & ~CLONE_NEWCGROUP
        # What is forked into a pid namespace that lives can be seen there, and nothing of ours may be (CVE-2016-9962).
        seen = CLONE_NEWPID in request.join and not self.home.hidden
        try:
            enter(self.home, made, joined)
            prepare(self.home, request)
            build_root(request)
            if command.mode == Mode.EXEC:
                if program is None:
                    program = resolve(command)
                held = own_namespaces(request.hold, self.home.own_proc)
                try:
                    if is_plain(command, Own(*request.own)) and not request.cgroup and not is_leased(program):
                        pid = spawn(command, program, streams)
                        self.register(request, pid)
                        self.started(request.job, os.pidfd_open(pid), held)
                    else:
                        with lent_oom_score(decode(command.confinement), self.home.own_proc), hidden(seen):
                            self._births.start(request, program, streams, held)
                except StageError:
                    close(held)
                    raise
                return
            if request.hold:
                self.answer((Event.CREATED, request.job), own_namespaces(request.hold, self.home.own_proc))
            with lent_oom_score(decode(command.confinement), self.home.own_proc), hidden(seen):
                pid, _ = clone3(0, self.leaf)
                if pid == 0:
                    self.supervise(request, program, streams)
            self.register(request, pid)
        finally:
            go_home(self.home, made | kinds_of(request.join))

    def _spawn_by_nursery(
        self, nursery: Nursery, request: Spawn, joined: Joined, streams: tuple[int, int, int]
    ) -> None:
        """Make all but the pid namespace here, and leave the rest to the init."""
        command = request.command
        assert command is not None
        program = resolve(command) if CLONE_NEWNS not in request.join and not request.root else None
        made = request.unshare & ~(CLONE_NEWPID | CLONE_NEWCGROUP)
        held = maker.make(self.home, request._replace(unshare=made, hold=made), joined) if made else []
        namespaces = dict(joined) | dict(zip((kind for kind in NS_FILES if made & kind), held, strict=True))
        self.register(request, 0)
        self._unborn.add(request.job)
        self.jobs[request.job].held = held
        message = marshal.dumps((program, *request._replace(command=tuple(command))))  # type: ignore[arg-type]
        nursery.bear(request.job, namespaces, message, streams, self.leaf)

    def _begin_init(self, message: bytes, fds: list[int]) -> NoReturn:
        """In an init, which the nursery has forked."""
        program, *values = marshal.loads(message)
        request = Spawn(*values)
        command = Command(*request.command)  # type: ignore[misc]
        try:
            set_oom_score(decode(command.confinement), self.home.own_proc)
        except StageError as exc:
            protocol.send(self._report, (Event.FAILED, request.job, exc.stage, exc.number, exc.detail))
            os._exit(125)
        self.supervise(request._replace(command=command), program, (fds[0], fds[1], fds[2]))

    def supervise(self, request: Spawn, program: bytes | None, streams: tuple[int, int, int]) -> NoReturn:
        command = request.command
        assert command is not None
        set_dumpable(False)
        own = Own(*request.own)
        os._exit(supervise(request.job, command, program, streams, own, self._signals, self._report, self.home.proc))

    def register(self, request: Spawn, pid: int) -> None:
        assert request.command is not None
        job = _Job(request.job, request.command.mode, pid)
        self.jobs[job.number] = job
        if pid:
            self._by_pid[pid] = job

    def started(self, job: int, pidfd: int, held: list[int]) -> None:
        self.answer((Event.STARTED, job, *identify(pidfd, self.home.proc)), [pidfd, *held])

    # -- what ended

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                # Reapers report before they end, so the report is there; the nursery's children their birth, too.
                self._read_reports()
                for number, ended in self._launches.read_ends():
                    if number in self.jobs:
                        self.jobs[number].status = ended
                job = self._by_pid.pop(pid, None)
                if job is not None:
                    job.pid = 0  # the number may be another's now
                self._births.hear(pid=pid)
                self._launches.hear(pid)
                if job is None:
                    if self._nursery is not None and pid == self._nursery.pid:
                        os._exit(1)
                    if self._unborn:
                        self._early[pid] = status, usage
                    continue  # else an orphan that came to PID 1, or a step between
                self._end(job, status, usage)

    def _end(self, job: _Job, status: int, usage: resource.struct_rusage) -> None:
        if self.jobs.pop(job.number, None) is None:
            return
        if job.told is not None:
            job.status = Pid1.read_end(job.told)
        job.forget()
        if job.status is not None:
            status = job.status
        self.answer((Event.EXITED, job.number, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024), [])

    def _read_reports(self) -> None:
        while True:
            try:
                received = protocol.receive(self._reports)
            except BlockingIOError:
                return
            assert received is not None  # our own end stays open
            (event, number, *values), fds = received
            if event == Event.BORNE:
                self._bear_out(number, values[0])
            elif event == Event.STARTED:
                self._births.hear(job=number)
                started = self.jobs[number]
                started.started = True
                self.answer((Event.STARTED, number, *values), [*fds, *started.held])
                started.held = []
            elif event == Event.EXITED:
                if number in self.jobs:
                    self.jobs[number].status = values[0]
            else:
                self._unborn.discard(number)
                job = self.jobs.pop(number, None)
                if job is not None:
                    job.forget()
                self.answer((event, number, *values), [])

    def _bear_out(self, number: int, pid: int) -> None:
        self._unborn.discard(number)
        ended = self._early.pop(pid, None)
        if not self._unborn:
            self._early.clear()
        job = self.jobs.get(number)
        if job is None:  # it has failed, and said so, before
            return
        if ended is not None and not _is_child(pid):  # the number may have been an orphan's before
            self._end(job, *ended)
            return
        job.pid = pid
        self._by_pid[pid] = job
        if job.killed:
            with contextlib.suppress(ProcessLookupError):  # it is being reaped
                os.kill(pid, signal.SIGKILL)


def _is_child(pid: int) -> bool:
    """Whether it is there, or hasn't been reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _wants_init(request: Spawn) -> bool:
    command = request.command
    return command is not None and command.mode == Mode.INIT and bool(request.unshare & CLONE_NEWPID)


def _has_pid_namespace(request: Spawn) -> bool:
    return bool((request.unshare | kinds_of(request.join)) & CLONE_NEWPID)


def _concerns_sharers(request: Spawn) -> bool:
    """Whether it changes what others who share this process's memory have, too."""
    if (request.unshare | kinds_of(request.join)) & CLONE_NEWTIME:
        return True
    return request.command is not None and decode(request.command.confinement).oom_score_adj is not None


def _socket(request: OpenSocket) -> int:
    return socket.socket(request.family, request.type | socket.SOCK_CLOEXEC, request.proto).detach()


def _tun() -> int:
    return os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
