"""What a child does between its clone and the exec, as the script of a :class:`.launches.Launches`."""

from __future__ import annotations

import ctypes
import functools
import marshal
import os
import signal
import socket
from typing import TYPE_CHECKING

from .command import IGNORED
from .mountapi import OPENAT2, RESOLVE_NO_MAGICLINKS, OpenHow
from .mounts import PROC_FLAGS
from .protocol import Mode, Own
from .script import (
    ANY,
    AT_FDCWD,
    CHDIR,
    EXECVE,
    EXIT,
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
    array_of,
)
from .steps import LOOPBACK_UP, SIOCSIFFLAGS
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    NS_FILES,
    get_permitted,
)
from .written_roots import confining, facts_of, file_system, restricting

if TYPE_CHECKING:
    from .pid1 import Pid1
    from .protocol import Command, Spawn
    from .steps import Home, Joined

# What all scripts have addresses of.
_TEXTS = {text: ctypes.create_string_buffer(text) for text in (b"", b"/", b"/proc", b"/sys", b"proc", b"sysfs")}
_LOOPBACK_UP = ctypes.create_string_buffer(LOOPBACK_UP)
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
    if own.cgroup:
        script.call(("unshare", "cgroup"), UNSHARE, CLONE_NEWCGROUP)
    _prepare(script, request, home.own_proc)
    mapped = None
    if request.unshare & CLONE_NEWUSER and _first_ids(request, 1) != _own_ids():
        mapped = _first_ids(request, 0)
    if request.root or own.guarded or mapped:
        script.add(file_system(request.root, own, facts_of(request.root), mapped))
    else:
        _mount_proc(script, own.proc)
    _enter_directory(script, command)
    for number, fd in enumerate(streams):  # all are above 2: none is overwritten before it is duplicated
        script.duplicate(fd, number)
    for number in IGNORED:
        script.call(("signals", ""), SIGACTION, number, ctypes.addressof(_DEFAULT_ACTION), 0, 8)
    _await(script, told)
    confined = is_confined(command)
    variables = script.keep(_block(command.env))
    if command.guarded:  # see :func:`.command.check_program`
        for program in programs:
            script.call(("exec", os.fsdecode(program)), *_open_strictly(script, program, _PATH))
    if command.mode == Mode.INIT and not confined:
        pid1.add_to(script, command, programs, variables, request.job, told, apart=is_apart(request))
        return script
    if command.mode == Mode.INIT:
        fork = script.fork()
        pid1.adopt(script, request.job, told, gate[0], apart=is_apart(request))
        script.skip_zero(fork, len(script))
        _await(script, gate[1])
    if command.session:
        script.call(("session", ""), SETSID)
    if confined:
        script.add(confining(command.confinement, command.user, _permitted(request)))
    script.call(("signals", ""), SIGPROCMASK, signal.SIG_SETMASK, ctypes.addressof(_NO_SIGNALS), 0, 8)
    if confined:
        script.add(restricting(command.confinement))
    argv = script.texts(command.argv)
    for number, program in enumerate(programs, 1):
        failure = FATAL if number == len(programs) else OR_NEXT_PROGRAM
        script.call(("exec", ""), EXECVE, script.text(program), argv, variables, failure=failure)
    return script


def is_confined(command: Command) -> bool:
    return bool(command.confinement) or command.user is not None


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
