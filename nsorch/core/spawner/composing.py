"""What a child does between its clone and the exec, as the script of a :class:`.launches.Launches`."""

from __future__ import annotations

import ctypes
import functools
import marshal
import os
import signal
from typing import TYPE_CHECKING

from .command import IGNORED, is_confined
from .mountapi import OPENAT2, RESOLVE_NO_MAGICLINKS, OpenHow
from .protocol import Mode, Own, Session
from .script import (
    ANY,
    AT_FDCWD,
    CHDIR,
    EXECVE,
    EXIT,
    FATAL,
    FCHDIR,
    OR_NEXT_PROGRAM,
    READ,
    SETNS,
    SETPGID,
    SETSID,
    SIGACTION,
    SIGPROCMASK,
    Script,
)
from .steps import prepare
from .syscalls import CLONE_NEWUSER, NS_FILES, array_of, get_permitted
from .writing import Writer
from .written_roots import confining, facts_of, file_system, restricting

if TYPE_CHECKING:
    from .confinement import User
    from .pid1 import Pid1
    from .protocol import Command, Spawn
    from .steps import Home, Joined

# What all scripts have addresses of.
_NO_SIGNALS, _BYTE = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
_DEFAULT_ACTION = ctypes.create_string_buffer(32)  # struct sigaction: SIG_DFL


def compose(
    home: Home,
    pid1: Pid1,
    request: Spawn,
    joined: Joined,
    streams: tuple[int, int, int],
    programs: list[bytes],
    told: int,
    gate: tuple[int, int],
) -> Script:
    """
    :param programs: to be tried, as execvp does
    :param told: a socket that gives a byte when the ids are mapped, if they are to be, and one when the exec may be; an
        init speaks through it
    :param gate: the ends of another, by which an init lets a confined command go, see :meth:`.pid1.Pid1.adopt`
    """
    script, own, command = Script(), Own(*request.own), request.command
    assert command is not None
    if request.unshare & CLONE_NEWUSER:  # until its ids are mapped
        _await(script, told)
    for kind, fd in joined:
        script.call(("setns", NS_FILES[kind]), SETNS, fd, kind)
    prepare(home, request, Writer(script))
    mapped = None
    if request.unshare & CLONE_NEWUSER and _first_ids(request, 1) != _own_ids():
        mapped = _first_ids(request, 0)
    script.add(file_system(request.root, own, facts_of(request.root), mapped))
    _enter_directory(script, command)
    for number, fd in enumerate(streams):  # all are above 2: none is overwritten before it is duplicated
        script.duplicate(fd, number)
    script.add(_without_handlers())
    _await(script, told)
    confined = is_confined(command)
    if command.guarded:  # see :func:`.command.check_program`
        for program in programs:
            script.call(("exec", os.fsdecode(program)), *_open_strictly(script, program, _PATH))
    if command.mode == Mode.INIT and not confined:
        variables = script.keep(_block(command.env))
        pid1.add_to(script, command, programs, variables, request.job, told, apart=is_apart(request))
        return script
    if command.mode == Mode.INIT:
        fork = script.fork()
        pid1.adopt(script, request.job, told, gate[0], apart=is_apart(request))
        script.skip_zero(fork, len(script))
        _await(script, gate[1])
    permitted = _permitted(request) if confined else 0
    script.add(
        _ending(
            command.argv,
            command.env,
            tuple(programs),
            command.confinement,
            command.user,
            permitted,
            session=command.session,
        )
    )
    return script


@functools.cache
def _without_handlers() -> Script:
    script = Script()
    for number in IGNORED:
        script.call(("signals", ""), SIGACTION, number, ctypes.addressof(_DEFAULT_ACTION), 0, 8)
    return script


@functools.lru_cache(maxsize=16)
def _ending(
    argv: tuple[bytes, ...],
    env: bytes,
    programs: tuple[bytes, ...],
    confinement: bytes,
    user: User | None,
    permitted: int,
    *,
    session: int,
) -> Script:
    """The part that becomes the command. Thousands of workers have the same."""
    script = Script()
    confined = bool(confinement) or user is not None
    if session == Session.NEW:
        script.call(("session", ""), SETSID)
    elif session == Session.GROUP:
        script.call(("session", ""), SETPGID, 0, 0)
    if confined:
        script.add(confining(confinement, user, permitted))
    script.call(("signals", ""), SIGPROCMASK, signal.SIG_SETMASK, ctypes.addressof(_NO_SIGNALS), 0, 8)
    if confined:
        script.add(restricting(confinement))
    arguments, variables = script.texts(argv), script.keep(_block(env))
    for number, program in enumerate(programs, 1):
        failure = FATAL if number == len(programs) else OR_NEXT_PROGRAM
        script.call(("exec", ""), EXECVE, script.text(program), arguments, variables, failure=failure)
    return script


def _own_ids() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


def stays_the_same_user(request: Spawn) -> bool:
    """Whether the ids of the command are the caller's own."""
    assert request.command is not None
    user = request.command.user
    if not request.unshare & CLONE_NEWUSER:
        return user is None or user[:2] == _own_ids()
    return _first_ids(request, 1) == _own_ids() and (user is None or user[:2] == _first_ids(request, 0))


def _first_ids(request: Spawn, side: int) -> tuple[int, int]:
    """The first uid and gid of a new user namespace.

    :param side: 0 for those inside, 1 outside
    """
    uids, gids = request.id_maps
    return uids[0][side], gids[0][side]


def is_apart(request: Spawn) -> bool:
    """Whether the command may be hostile to others than itself, and yet have all rights over its init."""
    assert request.command is not None
    return request.command.guarded or bool(request.unshare & CLONE_NEWUSER)


def _await(script: Script, fd: int) -> None:
    """Wait for a byte; the end of file is the end."""
    script.call(("start", ""), READ, fd, ctypes.addressof(_BYTE), 1)
    waited = len(script) - 1
    script.call(("start", ""), EXIT, 125)
    script.skip_done(waited, waited + 2)
    script.skip_zero(waited, waited + 1)


def _permitted(request: Spawn) -> int:
    """Capabilities of the child; all in a user namespace of its own."""
    return -1 if request.unshare & CLONE_NEWUSER else get_permitted()


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
        script.call(("cwd", "/"), CHDIR, script.text(b"/"))
        script.skip_failed(range(first, last), ANY, last)
        script.skip_done(last - 1, len(script))


@functools.lru_cache(maxsize=4)
def _block(env: bytes) -> ctypes.Array[ctypes.c_char_p]:
    """An environment as execve takes it: thousands of commands have the same."""
    return array_of(b"%s=%s" % variable for variable in marshal.loads(env).items())
