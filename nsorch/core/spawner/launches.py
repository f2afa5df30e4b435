"""Starts that need nothing but system calls between the clone and the exec, see :mod:`.script`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from .command import candidates, has_interpreter, identify, is_confined, resolve
from .composing import compose, is_apart, stays_the_same_user
from .confinement import Capabilities, decode
from .idmaps import map_ids, read
from .pid1 import Pid1
from .privacy import dumps_end_sharers
from .protocol import Event, Mode, Own
from .script import Script, Scripts
from .stages import StageError, failure_of, stage
from .steps import close, enter, go_home, kinds_of, names_of, namespaces_of
from .syscalls import CLONE_NEWCGROUP, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER
from .writing import NoScriptError
from .written_roots import find_programs

if TYPE_CHECKING:
    from .homing import Namespaces
    from .protocol import Command, Spawn
    from .server import Server
    from .steps import Joined

_CAP_SYS_PTRACE = 19


_PATIENCE = 3.0  # seconds that others wait for one that hangs


class _Launch:
    def __init__(self, told: socket.socket, script: Script, pid: int, pidfd: int, command: Command) -> None:
        self.told = told  #: the child waits for a byte from it; then its end of file is the exec, or an init speaks
        self.script = script
        self.pid = pid
        self.pidfd = pidfd
        self.command = command
        self.job = 0  #: or none: it has failed
        self.mounts = -1  #: descriptor of the mount namespace where the program is looked for, if that isn't ours
        self.facts: tuple[int, ...] = ()  #: what STARTED says, where that is known before
        self.held: list[int] = []
        self.hung = False  #: it was killed, see :meth:`Launches.settle`
        self.apart = False  #: *told* will be told of the end, too, see :meth:`.pid1.Pid1.add_to`


class _Gate:
    """Where a confined command waits for its init."""

    def __init__(self, request: Spawn) -> None:
        self.ends = (-1, -1)
        command = request.command
        if command is not None and command.mode == Mode.INIT and is_confined(command):
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.ends = ends[0].detach(), ends[1].detach()

    def close(self) -> None:
        close([end for end in self.ends if end >= 0])


class Programs(NamedTuple):
    """What it takes."""

    scripts: Scripts
    pid1: Pid1

    @classmethod
    def prepare(cls) -> Programs | None:
        """None where one of them can't run."""
        scripts, pid1 = Scripts.prepare(), Pid1.prepare()
        return None if scripts is None or pid1 is None else cls(scripts, pid1)


class Launches:
    """Those of *server* that are under way."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # Where there is no way back, all is done by a child.
        self._programs = Programs.prepare() if server.home.namespaces else None
        self._by_descriptor: dict[int, _Launch] = {}
        # 3 to 5 are an init's own: nothing that comes along with a request may have them.
        while (low := fcntl.fcntl(server.home.null, fcntl.F_DUPFD_CLOEXEC, 3)) <= 5:
            pass
        os.close(low)

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_descriptor

    def can_start(self, request: Spawn) -> bool:
        command, own = request.command, Own(*request.own)
        return (
            self._programs is not None
            and command is not None
            and command.mode in (Mode.EXEC, Mode.INIT)
            and bool(request.unshare & CLONE_NEWPID)
            and CLONE_NEWPID not in request.join
            and not request.unshare & CLONE_NEWTIME
            and not kinds_of(request.join) & (CLONE_NEWUSER | CLONE_NEWTIME)
            # Others of our user have rights over a child that has less than we, and so over our memory.
            and not (self._server.seen and (request.unshare & CLONE_NEWUSER or command.confinement))
            # From a new user namespace no others can be entered.
            and not (request.unshare & CLONE_NEWUSER and request.join)
            and (stays_the_same_user(request) or self._hides_others())
            and not _may_trace_init(request, self._server.home.namespaces)
            # What leads to the file of the process itself is refused by an interpreter.
            and not command.argv[0].startswith(b"/proc/")
            and not (decode(command.confinement).seccomp and dumps_end_sharers())
            # It would be that of all who share the memory.
            and decode(command.confinement).oom_score_adj is None
            # Its interpreter would have to be found, too, see :func:`.command.check_program`.
            and not (command.guarded and CLONE_NEWNS in request.join)
            and (own.guarded or not own.cgroupfs)
            # Where a cgroup's memory is used up, all who share the child's would be killed.
            and not (request.cgroup and (request.moves or _limits_memory(self._server.leaf.fd)))
        )

    def _hides_others(self) -> bool:
        """Whether who becomes another user stays hidden from it, and ends nobody by a core dump: the kernel sets anew
        whether the memory is dumped, for all who share it (commit_creds() in kernel/cred.c)."""
        home = self._server.home
        dumpable = read("sys/fs/suid_dumpable", home.own_proc)
        # "2" hides as well, but is dumped, by root.
        return home.hidden and (dumpable == b"0\n" if dumps_end_sharers() else dumpable != b"1\n")

    def spawn(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> None:
        """Begin; what becomes of it is heard from the loop.

        :raises StageError: the child is gone, or will be
        :raises NoScriptError: nothing has begun; it takes more than a script
        """
        command, home = request.command, self._server.home
        assert command is not None
        assert self._programs is not None
        mounts = dict(joined).get(CLONE_NEWNS, -1)
        # In other mounts the child does the looking.
        programs = candidates(command) if mounts >= 0 else find_programs(command, request.root)
        if not programs:
            raise StageError("command", errno.ENOENT)
        kinds = request.unshare & ~CLONE_NEWCGROUP
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.closing(_Gate(request)) as gate:
            try:
                script = compose(
                    home, self._programs.pid1, request, joined, streams, programs, theirs.fileno(), gate.ends
                )
                with stage("clone3", names_of(kinds)):
                    pid, pidfd = self._programs.scripts.begin(script, kinds, self._server.leaf.fd)
            except (StageError, NoScriptError):
                ours.close()
                raise
        ours.setblocking(False)
        launch = self._by_descriptor[ours.fileno()] = _Launch(ours, script, pid, pidfd, command)
        self._server.poll.register(ours, select.POLLIN)
        try:
            if request.unshare & CLONE_NEWUSER:
                with stage("uid map"):
                    map_ids(pid, request.id_maps, home.own_proc)
                    ours.send(b"\0")
            launch.held = namespaces_of(pidfd, pid, request.hold, home.own_proc)
            with stage("pidfd"):
                if command.mode == Mode.EXEC:
                    launch.facts = identify(pidfd, home.proc)
                if mounts >= 0:
                    launch.mounts = fcntl.fcntl(mounts, fcntl.F_DUPFD_CLOEXEC, 3)
                elif request.root:
                    (launch.mounts,) = namespaces_of(pidfd, pid, CLONE_NEWNS, home.own_proc)
            with stage("start"), contextlib.suppress(ConnectionError):  # it has failed before
                ours.send(b"\0")
        except StageError as exc:
            raise script.failure() or failure_of(pid, exc) from None
        launch.job, launch.apart = request.job, command.mode == Mode.INIT and is_apart(request)
        self._server.register(request, pid)

    def settle(self) -> None:
        """Wait until none shares the spawner's memory any more, as before what concerns all who do: who changes a time
        namespace must be alone, and an oom_score_adj is everybody's."""
        deadline = time.monotonic() + _PATIENCE
        for launch in self._by_descriptor.values():
            waiting = select.poll()
            waiting.register(launch.told, select.POLLIN)
            if not waiting.poll(max(0, deadline - time.monotonic()) * 1000):
                # Somebody has a lease on its program, or serves that file system: nobody else is to wait for them.
                launch.hung = True
                signal.pidfd_send_signal(launch.pidfd, signal.SIGKILL)
                waiting.poll()

    def read_ends(self) -> list[tuple[int, int]]:
        """See :meth:`.pid1.Pid1.read_ends`."""
        return [] if self._programs is None else self._programs.pid1.read_ends()

    def hear(self, pid: int) -> None:
        """What the child *pid* had to say before something else is told of it."""
        for fd, launch in list(self._by_descriptor.items()):
            if launch.pid == pid:
                self.hear_one(fd)

    def hear_one(self, fd: int) -> None:
        launch = self._by_descriptor[fd]
        try:
            told = launch.told.recv(16)
        except BlockingIOError:
            return
        except ConnectionError:  # it didn't take the byte
            told = b""
        del self._by_descriptor[fd]
        self._server.poll.unregister(fd)
        try:
            if launch.job:
                self._conclude(launch, told)
        except StageError as exc:
            self._server.abandon(launch.job)
            self._server.fail(launch.job, self._explain(launch, exc))
        finally:
            close([*launch.held, *(fd for fd in (launch.pidfd, launch.mounts) if fd >= 0)])
            # Children that were made meanwhile have it, too, and an init waits for its end.
            job = self._server.jobs.get(launch.job)
            with contextlib.suppress(OSError):
                launch.told.shutdown(socket.SHUT_WR if launch.apart and job else socket.SHUT_RDWR)
            if launch.apart and job:
                job.told = launch.told
            else:
                launch.told.close()

    def _conclude(self, launch: _Launch, told: bytes) -> None:
        """It has started, or not."""
        home = self._server.home
        if (failure := launch.script.failure()) is not None:
            raise failure
        if launch.hung:
            raise StageError("exec", errno.ETIMEDOUT, "others had to wait for it")
        if launch.command.mode == Mode.INIT:
            if not told:
                raise StageError("init", errno.ESRCH, "it was killed")
            init, launch.pidfd = launch.pidfd, Pid1.hear(told, launch.pid, home.own_proc)
            os.close(init)
            with stage("init"):
                launch.facts = identify(launch.pidfd, home.proc)
        fds, launch.pidfd, launch.held = [launch.pidfd, *launch.held], -1, []
        self._server.answer((Event.STARTED, launch.job, *launch.facts), fds)

    def _explain(self, launch: _Launch, failure: StageError) -> StageError:
        """Which program it is that couldn't be executed."""
        # The init is handed all of the command's arguments.
        if failure.stage != "exec" and (failure.stage, failure.number) != ("init", errno.E2BIG):
            return failure
        home, command, mounts = self._server.home, launch.command, launch.mounts
        try:
            enter(home, 0, [(CLONE_NEWNS, mounts)] if mounts >= 0 else [])
            program = resolve(command)
            number = failure.number
            if number in (errno.ENOENT, errno.ENOTDIR) and is_confined(command) and has_interpreter(program):
                number = errno.EACCES  # that of the last place where it might have been says nothing
            return StageError("exec", number, os.fsdecode(program))
        except StageError as exc:
            return exc
        finally:
            go_home(home, CLONE_NEWNS if mounts >= 0 else 0)


def _may_trace_init(request: Spawn, home: Namespaces) -> bool:
    """Whether a confined command could have the small init do what is forbidden to itself. The forked one's memory
    belongs to the user namespace above the worker's, or to the host's."""
    command = request.command
    if command is None or command.mode != Mode.INIT or not is_confined(command):
        return False
    capabilities = decode(command.confinement).capabilities
    bounding = -1 if capabilities is None else Capabilities(*capabilities).bounding
    return bool((home.rootless or request.unshare & CLONE_NEWUSER) and bounding & 1 << _CAP_SYS_PTRACE)


def _limits_memory(leaf: int) -> bool:
    try:
        return read("memory.max", leaf) != b"max\n"
    except OSError:  # without a controller
        return False
