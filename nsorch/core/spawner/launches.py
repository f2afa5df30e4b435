"""Starts that need nothing but system calls between the clone and the exec, see :mod:`.script`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import marshal
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from .command import IGNORED, candidates, identify, resolve
from .idmaps import map_ids
from .mountapi import OPENAT2, RESOLVE_NO_MAGICLINKS, OpenHow
from .mounts import PROC_FLAGS
from .pid1 import Pid1
from .protocol import Event, Mode, Own
from .script import (
    ANY,
    AT_FDCWD,
    CHDIR,
    EXECVE,
    FATAL,
    FCHDIR,
    IOCTL,
    MOUNT,
    OPENAT,
    OPTIONAL,
    OR_NEXT_PROGRAM,
    READ,
    SETDOMAINNAME,
    SETHOSTNAME,
    SETNS,
    SETSID,
    SIGACTION,
    SIGPROCMASK,
    SOCKET,
    UMOUNT,
    UNSHARE,
    WRITE,
    Failure,
    Script,
    Scripts,
    array_of,
)
from .stages import StageError, stage
from .steps import LOOPBACK_UP, SIOCSIFFLAGS, close, enter, go_home, kinds_of, names_of, namespaces_of
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    MNT_DETACH,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    NS_FILES,
)
from .writing import NoScriptError
from .written_roots import facts_of, file_system, find_programs

if TYPE_CHECKING:
    from .protocol import Command, Spawn
    from .server import Server
    from .steps import Joined

# What all scripts have addresses of.
_TEXTS = {text: ctypes.create_string_buffer(text) for text in (b"", b"/", b"/proc", b"/sys", b"proc", b"sysfs")}
_LOOPBACK_UP = ctypes.create_string_buffer(LOOPBACK_UP)
_NO_SIGNALS, _BYTE = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
_DEFAULT_ACTION = ctypes.create_string_buffer(32)  # struct sigaction: SIG_DFL


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
        self.apart = False  #: *told* will be told of the end, too, see :meth:`.pid1.Pid1.add_to`


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
        # 3 and 4 are an init's own: nothing that comes along with a request may have them.
        while (low := fcntl.fcntl(server.home.null, fcntl.F_DUPFD_CLOEXEC, 3)) <= 4:
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
            # From a new user namespace no others can be entered.
            and not (request.unshare & CLONE_NEWUSER and request.join)
            # Another user than it has been would make all who share the memory untraceable.
            and not (request.unshare & CLONE_NEWUSER and _first_ids(request) != (os.geteuid(), os.getegid()))
            # What leads to the file of the process itself is refused by an interpreter.
            and not command.argv[0].startswith(b"/proc/")
            and command.user is None
            and not command.confinement
            # Its interpreter would have to be found, too, see :func:`.command.check_program`.
            and not (command.guarded and CLONE_NEWNS in request.join)
            and (own.guarded or not own.cgroupfs)
            # Where a cgroup's memory is used up, all who share the child's would be killed.
            and not (request.cgroup and _limits_memory(self._server.leaf))
        )

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
        with theirs:
            try:
                script = self._compose(self._programs.pid1, request, joined, streams, programs, theirs.fileno())
                with stage("clone3", names_of(kinds)):
                    pid, pidfd = self._programs.scripts.begin(script, kinds, self._server.leaf)
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
            os.kill(pid, signal.SIGKILL)
            raise script.failure() or exc from None
        launch.job, launch.apart = request.job, command.mode == Mode.INIT and _is_apart(request)
        self._server.register(request, pid)

    def settle(self) -> None:
        """Wait until none shares the spawner's memory any more, as before what concerns all who do: who changes a time
        namespace must be alone, and an oom_score_adj is everybody's."""
        for launch in self._by_descriptor.values():
            waiting = select.poll()
            waiting.register(launch.told, select.POLLIN)
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
        if failure.stage != "exec":
            return failure
        home, command, mounts = self._server.home, launch.command, launch.mounts
        try:
            enter(home, 0, [(CLONE_NEWNS, mounts)] if mounts >= 0 else [])
            return StageError("exec", failure.number, os.fsdecode(resolve(command)))
        except StageError as exc:
            return exc
        finally:
            go_home(home, CLONE_NEWNS if mounts >= 0 else 0)

    # -- what the child does

    def _compose(
        self,
        pid1: Pid1,
        request: Spawn,
        joined: Joined,
        streams: tuple[int, int, int],
        programs: list[bytes],
        told: int,
    ) -> Script:
        script, own, command = Script(), Own(*request.own), request.command
        assert command is not None
        if request.unshare & CLONE_NEWUSER:  # until its ids are mapped
            script.call(("start", ""), READ, told, ctypes.addressof(_BYTE), 1)
        for kind, fd in joined:
            script.call(("setns", NS_FILES[kind]), SETNS, fd, kind)
        if own.cgroup:
            script.call(("unshare", "cgroup"), UNSHARE, CLONE_NEWCGROUP)
        _prepare(script, request, self._server.home.own_proc)
        if request.root or own.guarded:
            script.add(file_system(request.root, own, facts_of(request.root)))
        else:
            _mount_proc(script, own.proc)
        _enter_directory(script, command)
        for number, fd in enumerate(streams):  # all are above 2: none is overwritten before it is duplicated
            script.duplicate(fd, number)
        for number in IGNORED:
            script.call(("signals", ""), SIGACTION, number, ctypes.addressof(_DEFAULT_ACTION), 0, 8)
        script.call(("start", ""), READ, told, ctypes.addressof(_BYTE), 1)
        variables = script.keep(_block(command.env))
        if command.guarded:  # see :func:`.command.check_program`
            for program in programs:
                script.call(("exec", os.fsdecode(program)), *_open_strictly(script, program, _PATH))
        if command.mode == Mode.INIT:
            pid1.add_to(script, command, programs, variables, request.job, told, apart=_is_apart(request))
            return script
        if command.session:
            script.call(("session", ""), SETSID)
        script.call(("signals", ""), SIGPROCMASK, signal.SIG_SETMASK, ctypes.addressof(_NO_SIGNALS), 0, 8)
        argv = script.texts(command.argv)
        for number, program in enumerate(programs, 1):
            failure = FATAL if number == len(programs) else OR_NEXT_PROGRAM
            script.call(("exec", ""), EXECVE, script.text(program), argv, variables, failure=failure)
        return script


def _is_apart(request: Spawn) -> bool:
    """Whether the command may be hostile to others than itself, and yet have all rights over its init."""
    assert request.command is not None
    return request.command.guarded or bool(request.unshare & CLONE_NEWUSER)


def _first_ids(request: Spawn) -> tuple[int, ...]:
    """What a new user namespace has its first ids from."""
    return tuple(ranges[0][1] for ranges in request.id_maps)


def _limits_memory(leaf: int) -> bool:
    try:
        limit = os.open("memory.max", os.O_RDONLY | os.O_CLOEXEC, dir_fd=leaf)
    except OSError:  # without a controller
        return False
    with open(limit, "rb") as file:
        return file.read() != b"max\n"


_PATH, _DIRECTORY = (OpenHow(os.O_CLOEXEC | os.O_PATH | more, 0, RESOLVE_NO_MAGICLINKS) for more in (0, os.O_DIRECTORY))


def _open_strictly(script: Script, path: bytes, how: OpenHow) -> tuple[int, ...]:
    return OPENAT2, AT_FDCWD, script.text(path), ctypes.addressof(how), ctypes.sizeof(how)


def _enter_directory(script: Script, command: Command) -> None:
    """As :func:`.command.enter_directory`, by a child."""
    here, path = ("cwd", os.fsdecode(command.cwd)), command.cwd
    first = len(script)
    if command.guarded:
        script.call(here, FCHDIR, script.call(here, *_open_strictly(script, path, _DIRECTORY)))
    else:
        script.call(here, CHDIR, script.text(path))
    if not command.cwd_required:
        last = len(script)
        script.call(("cwd", "/"), CHDIR, _text(b"/"))
        script.skip_failed(range(first, last), ANY, last)
        script.skip_done(last - 1, len(script))


def _prepare(script: Script, request: Spawn, proc: int) -> None:
    """As :func:`.steps.prepare`, by a child."""
    if request.loopback:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        opened = script.call(("loopback", ""), SOCKET, socket.AF_INET, kind, 0)
        script.call(("loopback", ""), IOCTL, opened, SIOCSIFFLAGS, ctypes.addressof(_LOOPBACK_UP))
    if request.hostname is not None:
        name = request.hostname.encode()
        script.call(("hostname", ""), SETHOSTNAME, script.text(name), len(name))
    if request.sysfs:
        _mount(script, "/sys", b"sysfs", b"/sys", b"sysfs", PROC_FLAGS, failure=OPTIONAL)
    if request.domainname is not None:
        name = request.domainname.encode()
        script.call(("domainname", ""), SETDOMAINNAME, script.text(name), len(name))
    for path, value in request.sysctls:
        at, written = ("sysctl", path), value.encode()
        opened = script.call(at, OPENAT, proc, script.text(path.encode()), os.O_WRONLY | os.O_CLOEXEC)
        script.call(at, WRITE, opened, script.text(written), len(written))


def _mount_proc(script: Script, how: int) -> None:
    """As :func:`.mounts.make_own`, by a child."""
    if not how:
        return
    if how == 2:
        script.call(("mount /proc", ""), UMOUNT, _text(b"/proc"), MNT_DETACH, failure=OPTIONAL)
    if how == 3:
        _mount(script, "/proc", b"", b"/", b"", MS_REC | MS_SHARED)
    if how >= 3:
        script.call(("mount /proc", ""), UNSHARE, CLONE_NEWNS)
    if how == 3:
        _mount(script, "/proc", b"", b"/proc", b"", MS_PRIVATE)
    _mount(script, "/proc", b"proc", b"/proc", b"proc", PROC_FLAGS)


def _mount(
    script: Script, what: str, source: bytes, target: bytes, kind: bytes, flags: int, *, failure: Failure = FATAL
) -> None:
    names = (_text(name) for name in (source, target, kind))
    script.call((f"mount {what}", ""), MOUNT, *names, flags, 0, failure=failure)


def _text(text: bytes) -> int:
    return ctypes.addressof(_TEXTS[text])


@functools.lru_cache(maxsize=4)
def _block(env: bytes) -> ctypes.Array[ctypes.c_char_p]:
    """An environment as execve takes it: thousands of commands have the same."""
    return array_of(b"%s=%s" % variable for variable in marshal.loads(env).items())
