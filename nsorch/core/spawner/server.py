"""The loop of a helper process: takes requests, makes namespaces, starts commands, reaps and reports.

The spawner runs it at home, in namespaces that it can always return to. The stub runs it outside, for workers of a
rootless supervisor that keep a namespace of the host's, which nobody can enter from inside.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import functools
import marshal
import operator
import os
import select
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import protocol
from .adopting import adopt, descendants, kill_and_wait
from .command import IGNORED, become, enter_directory, environment, identify, pick_streams, resolve, start
from .confinement import decode, hidden, lent_oom_score, set_oom_score
from .mounts import make_own, mount_sys
from .nursery import Nursery
from .pid1 import Pid1
from .pins import Pins
from .protocol import Command, Event, Kill, Mode, OpenSocket, OpenTun, Own, Spawn
from .reaper import supervise
from .rootfs import Sources, build
from .stages import StageError, stage
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_PARENT,
    MNT_DETACH,
    NS_FILES,
    clone3,
    set_domainname,
    set_dumpable,
    setns,
    signalfd,
    umount,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .homing import Namespaces

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_LO = struct.Struct("16sh14x")
# Requests that wait are served so many at a time before their answers go: each send wakes the application, which costs
# 60 to 80 µs.
_TOGETHER = 4


#: CLONE_NEW* and descriptor of each namespace to enter, in this order
Joined = list[tuple[int, int]]


class Home(NamedTuple):
    """Where a helper returns to after each request."""

    namespaces: Namespaces  #: CLONE_NEW* to descriptor; empty where there is no way back (the stub)
    streams: tuple[int, int, int]  #: the application's standard streams, as numbers above 2
    null: int
    proc: int  #: the host's /proc
    own_proc: int  #: the /proc of this helper's own pid namespace


class _Job:
    __slots__ = ("held", "killed", "mode", "number", "pid", "status")

    def __init__(self, number: int, mode: int, pid: int) -> None:
        self.number = number
        self.mode = mode
        self.pid = pid  #: the child: the command, or what stands before it; 0 until the nursery has borne it
        self.killed = False  #: before it was borne
        self.held: list[int] = []  #: the namespaces that STARTED will hand out
        self.status: int | None = None  #: the command's own wait status, where a reaper has reported it

    def forget(self) -> None:
        _close(self.held)
        self.held = []


class _Birth(NamedTuple):
    """A child that does its own set-up, while others are served."""

    told: socket.socket  #: by the child; its end of file is the exec, or the end of the set-up
    job: int
    pid: int
    started: tuple[int, ...]  #: what STARTED says, and the pidfd; where that is for us to say


class Server:
    def __init__(self, requests: socket.socket, home: Home) -> None:
        self._requests = requests
        self._home = home
        self._jobs: dict[int, _Job] = {}
        self._by_pid: dict[int, _Job] = {}
        self._outbox: collections.deque[tuple[tuple[Any, ...], list[int]]] = collections.deque()
        # Made here for all reapers: a forked child hears its own signals through it.
        self._signals = signalfd(*signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        self._reports, self._report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reports.setblocking(False)
        requests.setblocking(False)
        self.pins = Pins()
        self._poll = select.poll()
        self._births: dict[int, _Birth] = {}  # by descriptor
        self.subtree: tuple[str, int] | None = None  # name, and descriptor of the cgroup above
        self._leaf = -1  # the cgroup of what is being started
        self._nursery = None
        self._pid1 = None
        if home.namespaces:
            self._pid1 = Pid1.prepare()
            self._nursery = Nursery(home.namespaces, self._report, self._begin_init)

    def serve(self, *ends: int) -> None:
        """Serve, all signals blocked, until the application closes its end or one of *ends* becomes readable."""
        died = signalfd(signal.SIGCHLD)
        poll = self._poll
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
                elif fd in self._births:
                    self._hear_birth(fd)
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
        return True

    def _serve_request(self, message: tuple[Any, ...], fds: list[int]) -> None:
        operation, *values = message
        request = protocol.OPERATIONS[operation](*values)
        try:
            # One request that can't be served must not end all workers.
            with stage(operation):
                if isinstance(request, Spawn):
                    self._leaf = fds[-1] if request.cgroup else -1
                    self._spawn(request, fds)
                elif isinstance(request, OpenSocket):
                    self._open(request.job, fds[0], "socket", functools.partial(_socket, request))
                elif isinstance(request, OpenTun):
                    self._open(request.job, fds[0], "tun", _tun)
                elif isinstance(request, protocol.Pin):
                    self._pin(request)
                elif isinstance(request, protocol.Adopt):
                    self._adopt(request, fds[0])
                elif isinstance(request, protocol.Subtree):
                    # The lock is held for as long as we live.
                    self.subtree, fds[:] = (request.name, fds[0]), []
                    self._answer((Event.DONE, request.job), [])
                else:
                    self._kill(request)
        except StageError as exc:
            self._abandon(request.job)
            self._fail(request.job, exc)
        finally:
            _close(fds)

    def _abandon(self, number: int) -> None:
        """Kill what was started for a job that fails nevertheless; its exit is nobody's business."""
        job = self._jobs.pop(number, None)
        if job is not None:
            job.forget()
            if job.pid:
                os.kill(job.pid, signal.SIGKILL)

    def _answer(self, message: tuple[Any, ...], fds: list[int]) -> None:
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
            _close(self._outbox.popleft()[1])

    def _fail(self, job: int, error: StageError) -> None:
        self._answer((Event.FAILED, job, error.stage, error.number, error.detail), [])

    def _open(self, job: int, netns: int, step: str, make: Callable[[], int]) -> None:
        """Answer with the descriptor that *make* opens in a network namespace."""
        if not self._home.namespaces:
            self._fail(job, StageError("setns", errno.EPERM, "net"))
            return
        try:
            with stage("setns", "net"):
                setns(netns, CLONE_NEWNET)
            with stage(step):
                opened = make()
        except StageError as exc:
            self._fail(job, exc)
        else:
            self._answer((Event.SOCKET, job), [opened])
        finally:
            self._return(CLONE_NEWNET)

    def _pin(self, request: protocol.Pin) -> None:
        try:
            if request.target:
                self.pins.add(request.path, request.target)
            else:
                self.pins.remove(request.path)
            self._answer((Event.DONE, request.job), [])
        except StageError as exc:
            self._fail(request.job, exc)

    def _kill(self, request: Kill) -> None:
        job = self._jobs.get(request.job)
        if job is not None and not job.pid:
            job.killed = True
        elif job is not None and request.frozen:
            # It can't kill its descendants, and none of them can fork. Killed, they end though they are frozen.
            kill_and_wait(descendants([job.pid], self._home.own_proc)[1:])
            os.kill(job.pid, signal.SIGKILL)
        elif job is not None:
            # A child that we haven't reaped: the number is still its own.
            by_signal = signal.SIGTERM if job.mode in (Mode.RUNNER, Mode.KEEPER) else signal.SIGKILL
            os.kill(job.pid, by_signal)

    def kill_all(self) -> None:
        for job in self._jobs:
            with contextlib.suppress(ProcessLookupError):
                self._kill(Kill(job))

    def _adopt(self, request: protocol.Adopt, leaf: int) -> None:
        roots = [job.pid for job in map(self._jobs.get, request.targets) if job is not None and job.pid]
        adopt(leaf, roots, self._home.own_proc)
        self._answer((Event.DONE, request.job), [])

    # -- starting

    def _spawn(self, request: Spawn, fds: list[int]) -> None:
        command = request.command
        if command is not None:
            request = request._replace(command=Command(*command))
            command = request.command
            assert command is not None
        joined = list(zip(request.join, fds, strict=False))
        streams = (self._home.null,) * 3
        if command is not None:
            streams = pick_streams(command.streams, self._home.streams, self._home.null, fds[len(request.join) :])
        try:
            if request.check is not None:
                resolve(Command(*request.check))
            if not self._home.namespaces or (request.unshare | _kinds(request.join)) & CLONE_NEWUSER:
                self._spawn_by_child(request, joined, streams)
            elif self._nursery is not None and _wants_init(request):
                if not self._spawn_below_pid1(request, joined, streams):
                    self._spawn_by_nursery(self._nursery, request, joined, streams)
            else:
                self._spawn_from_here(request, joined, streams)
        except StageError as exc:
            self._fail(request.job, exc)

    def _spawn_from_here(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> None:
        command = request.command
        program = None
        if command is not None and CLONE_NEWNS not in request.join and not request.root:
            program = resolve(command)
        made = request.unshare & ~CLONE_NEWCGROUP
        # What is forked into a pid namespace that lives can be seen there, and nothing of ours may be (CVE-2016-9962).
        seen = CLONE_NEWPID in request.join
        try:
            self._enter(made, joined)
            self._prepare(request)
            self._build_root(request)
            if command is None:
                self._answer((Event.DONE, request.job), [*self._namespaces(request.hold), *_netlink(request.netlink)])
                return
            if command.mode == Mode.EXEC:
                if program is None:
                    program = resolve(command)
                held = self._namespaces(request.hold)
                try:
                    with lent_oom_score(decode(command.confinement), self._home.own_proc), hidden(seen):
                        pid = start(command, program, streams, Own(*request.own), self._leaf)
                except StageError:
                    _close(held)
                    raise
                self._register(request, pid)
                self._started(request.job, os.pidfd_open(pid), held)
                return
            if request.hold:
                self._answer((Event.CREATED, request.job), self._namespaces(request.hold))
            with lent_oom_score(decode(command.confinement), self._home.own_proc), hidden(seen):
                pid, _ = clone3(0, self._leaf)
                if pid == 0:
                    self._supervise(request, program, streams)
            self._register(request, pid)
        finally:
            self._return(made | _kinds(request.join))

    def _spawn_below_pid1(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> bool:
        """False if it takes an init that can do more."""
        pid1, command = self._pid1, request.command
        if pid1 is None or not _is_plain(request):
            return False
        assert command is not None
        proc = Own(*request.own).proc
        try:
            self._enter(request.unshare, joined)
            self._prepare(request)
            if proc == 2:
                # That of the pid namespace that is gone; ours lies below it.
                with contextlib.suppress(OSError):
                    umount("/proc", MNT_DETACH)
            if not pid1.can_start():
                return False
            program = resolve(command)
            held = self._namespaces(request.hold)
            try:
                enter_directory(command)
                init, pidfd = pid1.start(
                    request.job,
                    program,
                    command.argv,
                    environment(command),
                    streams,
                    IGNORED,
                    self._home.own_proc,
                    mount_proc=bool(proc),
                    session=command.session,
                )
            except StageError:
                _close(held)
                raise
            self._register(request, init)
            self._started(request.job, pidfd, held)
            return True
        finally:
            self._return(request.unshare | _kinds(request.join))

    def _spawn_by_nursery(
        self, nursery: Nursery, request: Spawn, joined: Joined, streams: tuple[int, int, int]
    ) -> None:
        """Make all but the pid namespace here, and leave the rest to the init."""
        command = request.command
        assert command is not None
        program = resolve(command) if CLONE_NEWNS not in request.join and not request.root else None
        made = request.unshare & ~(CLONE_NEWPID | CLONE_NEWCGROUP)
        held: list[int] = []
        if made:
            try:
                self._enter(made, joined)
                self._prepare(request)
                self._build_root(request)
                held = self._namespaces(made)
            finally:
                self._return(made | _kinds(request.join))
        namespaces = dict(joined) | dict(zip((kind for kind in NS_FILES if made & kind), held, strict=True))
        self._register(request, 0)
        self._jobs[request.job].held = held
        message = marshal.dumps((program, *request._replace(command=tuple(command))))  # type: ignore[arg-type]
        nursery.bear(request.job, namespaces, message, streams, self._leaf)

    def _begin_init(self, message: bytes, fds: list[int]) -> NoReturn:
        """In an init, which the nursery has forked."""
        program, *values = marshal.loads(message)
        request = Spawn(*values)
        os.write(self._report.fileno(), protocol.encode((Event.BORNE, request.job, _own_pid(self._home.own_proc))))
        command = Command(*request.command)  # type: ignore[misc]
        try:
            set_oom_score(decode(command.confinement), self._home.own_proc)
        except StageError as exc:
            protocol.send(self._report, (Event.FAILED, request.job, exc.stage, exc.number, exc.detail))
            os._exit(125)
        self._supervise(request._replace(command=command), program, (fds[0], fds[1], fds[2]))

    def _supervise(self, request: Spawn, program: bytes | None, streams: tuple[int, int, int]) -> NoReturn:
        command = request.command
        assert command is not None
        set_dumpable(False)
        own = Own(*request.own)
        os._exit(supervise(request.job, command, program, streams, own, self._signals, self._report, self._home.proc))

    def _namespaces(self, kinds: int) -> list[int]:
        return own_namespaces(kinds, self._home.own_proc)

    def _enter(self, made: int, joined: Joined) -> None:
        self._home.namespaces.prepare(made | _kinds(tuple(kind for kind, _ in joined)))
        for kind, fd in joined:
            with stage("setns", NS_FILES[kind]):
                setns(fd, kind)
        if made:
            with stage("unshare", _names(made)):
                unshare(made)

    def _return(self, kinds: int) -> None:
        try:
            for kind, fd in self._home.namespaces.items():
                if kinds & kind:
                    setns(fd, kind)
        except OSError:
            os._exit(1)  # what followed would be done in the wrong place

    def _prepare(self, request: Spawn) -> None:
        """What a new namespace needs, done from inside of it."""
        if request.loopback:
            with stage("loopback"):
                _raise_loopback()
        if request.hostname is not None:
            with stage("hostname"):
                socket.sethostname(request.hostname)
        if request.sysfs:
            mount_sys()
        if request.domainname is not None:
            with stage("domainname"):
                set_domainname(request.domainname)
        for path, value in request.sysctls:
            with stage("sysctl", path):
                _write(path, value, self._home.own_proc)
        if request.unshare & CLONE_NEWTIME:
            self._set_clocks(request.time_offsets)

    def _build_root(self, request: Spawn, sources: Sources | None = None) -> None:
        if not request.root:
            return
        sources = Sources(request.root) if sources is None else sources
        try:
            build(sources)
        finally:
            sources.close()

    def _set_clocks(self, offsets: tuple[tuple[str, int, int], ...]) -> None:
        """In a new time namespace, while nobody is in it; then enter it, because a vfork can't cross to it."""
        with stage("time offsets"):
            lines = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in offsets)
            if lines:
                _write("self/timens_offsets", lines, self._home.own_proc)
        (made,) = self._namespaces(CLONE_NEWTIME)
        with stage("setns", "time"):
            try:
                setns(made, CLONE_NEWTIME)
            finally:
                os.close(made)

    def _register(self, request: Spawn, pid: int) -> None:
        assert request.command is not None
        job = _Job(request.job, request.command.mode, pid)
        self._jobs[job.number] = job
        if pid:
            self._by_pid[pid] = job

    def _started(self, job: int, pidfd: int, held: list[int]) -> None:
        self._answer((Event.STARTED, job, *identify(pidfd, self._home.proc)), [pidfd, *held])

    # -- what ended

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                # Reapers report before they end, so the report is there; the nursery's children their birth, too.
                self._read_reports()
                for number, ended in () if self._pid1 is None else self._pid1.read_ends():
                    if number in self._jobs:
                        self._jobs[number].status = ended
                self._hear_births(pid=pid)
                job = self._by_pid.pop(pid, None)
                if job is None:
                    if self._nursery is not None and pid == self._nursery.pid:
                        os._exit(1)
                    continue  # an orphan that came to PID 1, or a step between
                if self._jobs.pop(job.number, None) is None:
                    continue
                job.forget()
                if job.status is not None:
                    status = job.status
                self._answer(
                    (Event.EXITED, job.number, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024), []
                )

    def _read_reports(self) -> None:
        while True:
            try:
                received = protocol.receive(self._reports)
            except BlockingIOError:
                return
            assert received is not None  # our own end stays open
            (event, number, *values), fds = received
            if event == Event.BORNE:
                self._bear_out(self._jobs[number], values[0])
            elif event == Event.STARTED:
                self._hear_births(job=number)
                started = self._jobs[number]
                self._answer((Event.STARTED, number, *values), [*fds, *started.held])
                started.held = []
            elif event == Event.EXITED:
                if number in self._jobs:
                    self._jobs[number].status = values[0]
            else:
                job = self._jobs.pop(number, None)
                if job is not None:
                    job.forget()
                self._answer((event, number, *values), [])

    def _bear_out(self, job: _Job, pid: int) -> None:
        job.pid = pid
        self._by_pid[pid] = job
        if job.killed:
            os.kill(pid, signal.SIGKILL)

    # -- through a child, where we couldn't come back from

    def _spawn_by_child(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> None:
        """Make the child in one clone3, and let it do its own set-up, because a user namespace is entered for good.

        Where one has to be joined first, or there is no way home, a step between does the joining, and leaves the
        child behind as its sibling: its parent is who reaps it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._home.namespaces and CLONE_NEWUSER not in request.join:
            with theirs:
                try:
                    self._enter(0, joined)
                    child = self._clone(request, streams, ours, theirs)
                except BaseException:
                    ours.close()
                    raise
                finally:
                    self._return(_kinds(request.join))
            self._await_birth(request, child, ours)
            return
        with ours:
            with theirs:
                between, _ = clone3(0)
                if between == 0:
                    self._step_between(request, joined, streams, ours, theirs)
            try:
                self._hear_child(request, ours)
            finally:
                os.waitpid(between, 0)

    def _await_birth(self, request: Spawn, child: int, told: socket.socket) -> None:
        """Go on with other requests: what the child has to say is heard from the loop."""
        started: tuple[int, ...] = ()
        self._register_if_command(request, child)
        if request.command is not None and request.command.mode == Mode.EXEC:
            # Now, because it may have ended and be reaped when its exec is heard of.
            pidfd = os.pidfd_open(child)
            started = (*identify(pidfd, self._home.proc), pidfd)
        told.setblocking(False)
        self._births[told.fileno()] = _Birth(told, request.job, child, started)
        self._poll.register(told, select.POLLIN)

    def _hear_birth(self, fd: int) -> None:
        birth = self._births[fd]
        while True:
            try:
                received = protocol.receive(birth.told)
            except BlockingIOError:
                return
            if received is None:
                break
            (event, *values), fds = received
            if event == Event.FAILED:
                self._jobs.pop(birth.job, None)
                self._fail(birth.job, StageError(*values))
                _close(list(birth.started[-1:]))
                birth = birth._replace(started=())
                break
            self._answer((event, birth.job), fds)
        del self._births[fd]
        self._poll.unregister(fd)
        birth.told.close()
        if birth.started:
            *facts, pidfd = birth.started
            self._answer((Event.STARTED, birth.job, *facts), [pidfd])

    def _hear_births(self, pid: int = 0, job: int = 0) -> None:
        """What those of the child *pid*, or of *job*, had to say before something else is told of them."""
        for fd, birth in list(self._births.items()):
            if birth.pid == pid or birth.job == job:
                self._hear_birth(fd)

    def _hear_child(self, request: Spawn, ours: socket.socket) -> None:
        """Until the end of file: the exec, the set-up's end, or a death that the reaping will report."""
        child = 0
        while (received := protocol.receive(ours)) is not None:
            (event, *values), fds = received
            if event == "child":
                child = values[0]
                self._register_if_command(request, child)
            elif event == Event.FAILED:
                self._jobs.pop(request.job, None)
                raise StageError(*values)
            else:
                self._answer((event, request.job), fds)
        if request.command is not None and request.command.mode == Mode.EXEC:
            self._started(request.job, os.pidfd_open(child), [])

    def _register_if_command(self, request: Spawn, child: int) -> None:
        if request.command is not None:
            self._register(request, child)

    def _clone(self, request: Spawn, streams: tuple[int, int, int], ours: socket.socket, theirs: socket.socket) -> int:
        mapped, map_done = os.pipe()
        try:
            kinds = request.unshare & ~(CLONE_NEWCGROUP | CLONE_NEWTIME)
            confinement = decode(request.command.confinement if request.command is not None else b"")
            with stage("clone3", _names(kinds)), lent_oom_score(confinement, self._home.own_proc):
                pid, _ = clone3(kinds, self._leaf)
                if pid == 0:
                    ours.close()
                    os.close(map_done)
                    self._set_up(request, streams, theirs, mapped)
            if request.unshare & CLONE_NEWUSER:
                try:
                    with stage("uid map"):
                        map_ids(pid, request.id_maps, self._home.own_proc)
                except StageError:
                    os.kill(pid, signal.SIGKILL)
                    raise
        finally:
            os.close(mapped)
            os.close(map_done)
        return pid

    def _step_between(
        self,
        request: Spawn,
        joined: Joined,
        streams: tuple[int, int, int],
        ours: socket.socket,
        theirs: socket.socket,
    ) -> NoReturn:
        try:
            for kind, fd in joined:
                with stage("setns", NS_FILES[kind]):
                    setns(fd, kind)
            if request.command is not None:
                set_oom_score(decode(request.command.confinement), self._home.own_proc)
            if CLONE_NEWPID in request.join and request.unshare & CLONE_NEWPID and clone3(CLONE_PARENT)[0]:
                # Only a process that is in a pid namespace itself can make one below it: the child, a sibling.
                os._exit(0)
            # Not by the clone3 that follows: CLONE_PARENT goes with neither NEWUSER nor NEWPID.
            kinds = request.unshare & ~(CLONE_NEWCGROUP | CLONE_NEWTIME)
            if kinds & CLONE_NEWUSER:
                self._unshare_mapped(kinds, request.id_maps)
            elif kinds:
                with stage("unshare", _names(kinds)):
                    unshare(kinds)
            if CLONE_NEWPID in request.join:
                set_dumpable(False)
            with stage("clone3"):
                pid, _ = clone3(CLONE_PARENT, self._leaf)
            if pid == 0:
                ours.close()
                protocol.send(theirs, ("child", _own_pid(self._home.own_proc)))
                self._set_up(request, streams, theirs)
        except StageError as exc:
            protocol.send(theirs, (Event.FAILED, exc.stage, exc.number, exc.detail))
        finally:
            os._exit(0)

    def _unshare_mapped(self, kinds: int, id_maps: IdMaps) -> None:
        """Enter a new user namespace and have its maps written by a child that stays in the one above."""
        me = _own_pid(self._home.own_proc)
        made, make = os.pipe()
        child, _ = clone3(0)
        if child == 0:
            os.close(make)
            os.read(made, 1)
            try:
                map_ids(me, id_maps, self._home.own_proc)
                os._exit(0)
            except OSError as exc:
                os._exit(exc.errno or errno.EIO)
        with stage("unshare", _names(kinds)):
            unshare(kinds)
        os.close(made)
        os.close(make)
        failure = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        if failure:
            raise StageError("uid map", failure)

    def _set_up(self, request: Spawn, streams: tuple[int, int, int], told: socket.socket, mapped: int = -1) -> NoReturn:
        """In the child: all that is left, then the command.

        :param mapped: a pipe whose end of file says that the maps are written, or that we are to die
        """
        command = request.command
        try:
            sources = Sources(request.root) if request.root else None
            if mapped >= 0:
                os.read(mapped, 1)
                os.close(mapped)
            if request.unshare & CLONE_NEWUSER:
                # Whoever makes a file must be mapped.
                uid, gid = (ranges[0][0] for ranges in request.id_maps)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            if request.unshare & CLONE_NEWTIME:
                with stage("unshare", "time"):
                    unshare(CLONE_NEWTIME)
            self._prepare(request)
            self._build_root(request, sources)
            fds = [*self._namespaces(request.hold), *_netlink(request.netlink)]
            protocol.send(told, (Event.DONE if command is None else Event.CREATED,), fds)
            if command is None:
                os._exit(0)
            _close(fds)
            program = resolve(command)
            if command.mode != Mode.EXEC:
                told.close()
                self._supervise(request, program, streams)
            set_dumpable(False)
            make_own(Own(*request.own))
            become(command, program, streams, told.fileno())
        except StageError as exc:
            protocol.send(told, (Event.FAILED, exc.stage, exc.number, exc.detail))
        finally:
            os._exit(125)


def _kinds(joined: tuple[int, ...]) -> int:
    return functools.reduce(operator.or_, joined, 0)


def _wants_init(request: Spawn) -> bool:
    command = request.command
    return command is not None and command.mode == Mode.INIT and bool(request.unshare & CLONE_NEWPID)


def _is_plain(request: Spawn) -> bool:
    """Whether nothing is to be done in the child but to mount /proc, and nothing by its clone."""
    command, own = request.command, Own(*request.own)
    return (
        command is not None
        and not request.cgroup
        and command.user is None
        and not (command.confinement or command.guarded or request.root or own.cgroup or own.guarded)
        and own.proc <= 2
    )


def _own_pid(proc: int) -> int:
    """The caller's pid, as *proc* counts."""
    return int(os.readlink("self", dir_fd=proc))


def _socket(request: OpenSocket) -> int:
    return socket.socket(request.family, request.type | socket.SOCK_CLOEXEC, request.proto).detach()


def _tun() -> int:
    return os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _netlink(wanted: bool) -> list[int]:
    if not wanted:
        return []
    with stage("socket"):
        return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE).detach()]


def own_namespaces(kinds: int, proc: int) -> list[int]:
    """Descriptors of the caller's namespaces of *kinds*, in the order of NS_FILES.

    :param proc: descriptor of a /proc that knows the caller: that of a worker may be none
    """
    fds: list[int] = []
    try:
        for kind, name in NS_FILES.items():
            if kinds & kind:
                # Of two time namespaces the one that was made last: the caller's children are in it.
                file = "time_for_children" if kind == CLONE_NEWTIME else name
                with stage("namespace descriptor", name):
                    fds.append(os.open(f"thread-self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))
    except StageError:
        _close(fds)
        raise
    return fds


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _LO.pack(b"lo", _IFF_UP))


def _names(kinds: int) -> str:
    return ", ".join(name for kind, name in NS_FILES.items() if kinds & kind)


#: ranges (first id inside, first outside, count) of uids, and of gids
IdMaps = tuple[tuple[tuple[int, int, int], ...], ...]


def map_ids(pid: int, id_maps: IdMaps, proc: int, *, deny_setgroups: bool = False) -> None:
    """Map ids in the user namespace of *pid*, as *proc* counts: one write each."""
    if deny_setgroups:
        _write(f"{pid}/setgroups", "deny", proc)
    for name, ranges in zip(("uid_map", "gid_map"), id_maps, strict=True):
        _write(f"{pid}/{name}", "".join("{} {} {}\n".format(*ids) for ids in ranges), proc)


def map_gids(pid: int, ranges: tuple[tuple[int, int, int], ...], proc: int) -> None:
    """The gids alone, as an ordinary user may: without setgroups."""
    _write(f"{pid}/setgroups", "deny", proc)
    _write(f"{pid}/gid_map", "".join("{} {} {}\n".format(*ids) for ids in ranges), proc)


def _write(path: str, text: str, folder: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
