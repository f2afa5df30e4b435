"""Starts through a child that does its own set-up, because a user namespace is entered for good."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from . import protocol
from .command import become, identify, resolve
from .confinement import decode, lent_oom_score, set_oom_score
from .idmaps import first_ids, has_helper, map_ids, own_maps
from .mounts import make_own
from .protocol import Event, Mode, Own
from .rootfs import Sources, make_work
from .stages import StageError, failure_of, stage
from .steps import (
    build_root,
    close,
    enter,
    go_home,
    kinds_of,
    names_of,
    open_netlink,
    own_namespaces,
    own_pid,
    prepare,
    set_clocks,
)
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_PARENT,
    NS_FILES,
    clone3,
    set_dumpable,
    setns,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .idmaps import IdMaps
    from .protocol import Spawn
    from .server import Server
    from .steps import Joined


class _Birth(NamedTuple):
    """A child that does its own set-up, while others are served."""

    told: socket.socket  #: by the child; its end of file is the exec, or the end of the set-up
    job: int
    pid: int
    facts: tuple[int, ...]  #: what STARTED says, where that is for us to say
    fds: list[int]  #: and hands out
    answered: bool  #: it has told of what it made, or its end will be reported as that of a command


class Births:
    """Those of *server* that are under way."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._by_descriptor: dict[int, _Birth] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_descriptor

    def has_to(self, request: Spawn) -> bool:
        return bool((request.unshare | kinds_of(request.join)) & CLONE_NEWUSER) or self._is_one_way(request)

    def _is_one_way(self, request: Spawn) -> bool:
        """Whether whoever enters its namespaces can't come back from them."""
        home, entered = self._server.home.namespaces, kinds_of(request.join)
        if not home or entered & CLONE_NEWUSER:
            return True
        makes_user = request.unshare & CLONE_NEWUSER  # then the clocks are set by the child
        return home.would_be_left(entered | (0 if makes_user else request.unshare & CLONE_NEWTIME))

    def spawn(self, request: Spawn, joined: Joined, streams: tuple[int, int, int]) -> None:
        """Make the child in one clone3, and let it do its own set-up, because a user namespace is entered for good.

        Where one has to be joined first, or there is no way home, a step between does the joining, and leaves the
        child behind as its sibling: its parent is who reaps it.
        """
        if request.unshare & CLONE_NEWUSER:
            make_work(request.root)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not self._is_one_way(request):
            with theirs:
                try:
                    enter(self._server.home, 0, joined)
                    child = self._clone(request, streams, ours, theirs)
                except BaseException:
                    ours.close()
                    raise
                finally:
                    go_home(self._server.home, kinds_of(request.join))
            self._await_birth(request, child, ours)
            return
        with theirs:
            between, _ = clone3(0)
            if between == 0:
                self._step_between(request, joined, streams, ours, theirs)
        try:
            child = _hear_of_child(ours)
        except BaseException:
            ours.close()
            raise
        finally:
            os.waitpid(between, 0)
        self._await_birth(request, child, ours)

    def start(self, request: Spawn, program: bytes, streams: tuple[int, int, int], held: list[int]) -> None:
        """Only a command, in the namespaces where the caller is; they are made already, and *held*."""
        command = request.command
        assert command is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                with stage("clone3"):
                    child, _ = clone3(0, self._server.leaf)
                if child == 0:
                    ours.close()
                    self._become(request, program, streams, theirs)
            except StageError:
                ours.close()
                raise
        self._await_birth(request, child, ours, held)

    def _await_birth(self, request: Spawn, child: int, told: socket.socket, held: Sequence[int] = ()) -> None:
        """Go on with other requests: what the child has to say is heard from the loop."""
        facts: tuple[int, ...] = ()
        fds: list[int] = []
        if request.command is not None:
            self._server.register(request, child)
        if request.command is not None and request.command.mode == Mode.EXEC:
            # Now, because it may have ended and be reaped when its exec is heard of.
            pidfd = os.pidfd_open(child)
            facts, fds = identify(pidfd, self._server.home.proc), [pidfd, *held]
        told.setblocking(False)
        self._by_descriptor[told.fileno()] = _Birth(told, request.job, child, facts, fds, request.command is not None)
        self._server.poll.register(told, select.POLLIN)

    def hear_one(self, fd: int) -> None:
        birth = self._by_descriptor[fd]
        answered = birth.answered
        while True:
            try:
                received = protocol.receive(birth.told)
            except BlockingIOError:
                self._by_descriptor[fd] = birth._replace(answered=answered)
                return
            if received is None:
                break
            (event, *values), fds = received
            answered = True
            if event == Event.FAILED:
                self._server.jobs.pop(birth.job, None)
                self._server.fail(birth.job, StageError(*values))
                close(birth.fds)
                birth = birth._replace(fds=[])
                break
            self._server.answer((event, birth.job), fds)
        del self._by_descriptor[fd]
        self._server.poll.unregister(fd)
        birth.told.close()
        if birth.fds:
            self._server.answer((Event.STARTED, birth.job, *birth.facts), birth.fds)
        elif not answered:
            self._server.fail(birth.job, StageError("start", errno.ESRCH, "it was killed"))

    def hear(self, pid: int = 0, job: int = 0) -> None:
        """What those of the child *pid*, or of *job*, had to say before something else is told of them."""
        for fd, birth in list(self._by_descriptor.items()):
            if birth.pid == pid or birth.job == job:
                self.hear_one(fd)

    def _clone(self, request: Spawn, streams: tuple[int, int, int], ours: socket.socket, theirs: socket.socket) -> int:
        mapped, map_done = os.pipe()
        try:
            kinds = request.unshare & ~(CLONE_NEWCGROUP | CLONE_NEWTIME)
            confinement = decode(request.command.confinement if request.command is not None else b"")
            with stage("clone3", names_of(kinds)), lent_oom_score(confinement, self._server.home.own_proc):
                pid, _ = clone3(kinds, self._server.leaf)
                if pid == 0:
                    ours.close()
                    os.close(map_done)
                    self._set_up(request, streams, theirs, mapped)
            if request.unshare & CLONE_NEWUSER:
                try:
                    with stage("uid map"):
                        map_ids(pid, request.id_maps, self._server.home.own_proc)
                except StageError as exc:
                    raise _told_failure(ours) or failure_of(pid, exc) from None
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
                set_oom_score(decode(request.command.confinement), self._server.home.own_proc)
            if CLONE_NEWPID in request.join and request.unshare & CLONE_NEWPID and clone3(CLONE_PARENT)[0]:
                # Only a process that is in a pid namespace itself can make one below it: the child, a sibling.
                os._exit(0)
            # Not by the clone3 that follows: CLONE_PARENT goes with neither NEWUSER nor NEWPID.
            kinds = request.unshare & ~(CLONE_NEWCGROUP | CLONE_NEWTIME)
            if kinds & CLONE_NEWUSER:
                self._unshare_mapped(kinds, request.id_maps)
            elif kinds:
                with stage("unshare", names_of(kinds)):
                    unshare(kinds)
            if request.unshare & CLONE_NEWTIME:
                # Here: who is not dumpable may not write to what /proc has of itself.
                with stage("unshare", "time"):
                    unshare(CLONE_NEWTIME)
                set_clocks(self._server.home, request.time_offsets)
                request = request._replace(unshare=request.unshare & ~CLONE_NEWTIME)
            if CLONE_NEWPID in request.join:
                set_dumpable(False)
            with stage("clone3"):
                pid, _ = clone3(CLONE_PARENT, self._server.leaf)
            if pid == 0:
                ours.close()
                protocol.send(theirs, ("child", own_pid(self._server.home.own_proc)))
                self._set_up(request, streams, theirs)
        except StageError as exc:
            protocol.send(theirs, (Event.FAILED, exc.stage, exc.number, exc.detail))
        finally:
            os._exit(0)

    def _unshare_mapped(self, kinds: int, id_maps: IdMaps) -> None:
        """Enter a new user namespace and have its maps written by a child that stays in the one above."""
        me = own_pid(self._server.home.own_proc)
        made, make = os.pipe()
        child, _ = clone3(0)
        if child == 0:
            os.close(make)
            os.read(made, 1)
            try:
                map_ids(me, id_maps, self._server.home.own_proc)
                os._exit(0)
            except OSError as exc:
                os._exit(exc.errno or errno.EIO)
        with stage("unshare", names_of(kinds)):
            unshare(kinds)
        os.close(made)
        os.close(make)
        failure = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        if failure:
            raise StageError("uid map", failure)

    def _be_mapped(self, request: Spawn) -> None:
        """Whoever makes a file in a user namespace must be somebody there."""
        if request.unshare & CLONE_NEWUSER:
            maps = request.id_maps
        elif CLONE_NEWUSER in request.join:
            maps = own_maps(self._server.home.own_proc)
            if has_helper(maps):
                return
        else:
            return
        with stage("user"):
            uid, gid = first_ids(maps)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)

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
            if request.unshare & CLONE_NEWTIME:
                with stage("unshare", "time"):
                    unshare(CLONE_NEWTIME)
            prepare(self._server.home, request)
            # Not before the clocks are set: who has become another is not dumpable.
            self._be_mapped(request)
            build_root(request, sources)
            fds = [*own_namespaces(request.hold, self._server.home.own_proc), *open_netlink(request.netlink)]
            protocol.send(told, (Event.DONE if command is None else Event.CREATED,), fds)
            if command is None:
                os._exit(0)
            close(fds)
            program = resolve(command)
            if command.mode != Mode.EXEC:
                told.close()
                self._server.supervise(request, program, streams)
            set_dumpable(False)
            self._become(request, program, streams, told)
        except StageError as exc:
            protocol.send(told, (Event.FAILED, exc.stage, exc.number, exc.detail))
        finally:
            os._exit(125)

    def _become(self, request: Spawn, program: bytes, streams: tuple[int, int, int], told: socket.socket) -> NoReturn:
        command = request.command
        assert command is not None
        try:
            make_own(Own(*request.own))
            become(command, program, streams, told.fileno())
        except StageError as exc:
            protocol.send(told, (Event.FAILED, exc.stage, exc.number, exc.detail))
        finally:
            os._exit(125)


def _told_failure(told: socket.socket) -> StageError | None:
    """Why a child has ended before its ids could be mapped, if it has."""
    told.setblocking(False)
    try:
        received = protocol.receive(told)
    except BlockingIOError:
        return None
    if received is None or received[0][0] != Event.FAILED:
        return None
    return StageError(*received[0][1:])


def _hear_of_child(told: socket.socket) -> int:
    """The pid of whom the step between leaves behind.

    :raises StageError: it came to nothing
    """
    received = protocol.receive(told)
    if received is None:
        raise StageError("setns", errno.ESRCH, "it was killed")
    (event, *values), _ = received
    if event == Event.FAILED:
        raise StageError(*values)
    return int(values[0])
