"""The process between the spawner and a command: an init (PID 1 of its pid namespace), or a subreaper.

It is a forked copy of the spawner, and does as little as it can: each page it touches is memory of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING

from . import protocol
from .command import close_all_but, identify, resolve, start
from .mountapi import new_mount
from .mounts import make_own
from .protocol import Command, Event, Mode, Own, Session
from .stages import StageError
from .syscalls import become_subreaper, set_parent_death_signal

if TYPE_CHECKING:
    import socket


# Plain numbers: an enum's members would be touched, and so copied, in each process.
_SIGCHLD, _SIGTERM = int(signal.SIGCHLD), int(signal.SIGTERM)


def supervise(
    job: int,
    command: Command,
    program: bytes | None,
    streams: tuple[int, int, int],
    own: Own,
    signals: int,
    report: socket.socket,
    host_proc: int,
) -> int:
    """Run *command*, reap until it ends, and return the status to exit with. Never raises: failures are reported."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        close_all_but(report.fileno(), signals, host_proc, *streams)
        if command.mode != Mode.INIT:
            become_subreaper()
            if command.session == Session.GROUP:
                os.setpgid(0, 0)  # else it would pass on what the caller's job is sent: SIGCONT too early
        make_own(own)
        if program is None:
            program = resolve(command)
        main = start(command, program, streams)
        pidfd = os.pidfd_open(main)
        # Here, because nobody else can tell once it has ended and is reaped.
        protocol.send(report, (Event.STARTED, job, *identify(pidfd, host_proc)), [pidfd])
        close_all_but(report.fileno(), signals, *(() if command.mode == Mode.INIT else (host_proc,)))
        # The working directory would keep a mount busy.
        os.chdir("/")
        status = reap(main, signals, host_proc, 0 if command.mode == Mode.INIT else _SIGTERM)
        if command.mode == Mode.KEEPER:
            _kill_descendants(main, host_proc)
        protocol.send(report, (Event.EXITED, job, status))
    except StageError as exc:
        protocol.send(report, (Event.FAILED, job, exc.stage, exc.number, exc.detail))
        return 125
    except (OSError, ValueError, OverflowError) as exc:
        protocol.send(report, (Event.FAILED, job, "init", getattr(exc, "errno", None) or errno.EINVAL, str(exc)))
        return 125
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def reap(main: int, signals: int, host_proc: int, kill_on: int = 0) -> int:
    """Reap all children, pass signals on to *main*, and return its wait status; *kill_on* ends all descendants."""
    status = None
    while status is None:
        number = os.read(signals, 128)[0]
        if number == _SIGCHLD:
            status = _reap_ended(main)
        elif number == kill_on:
            status = _kill_descendants(main, host_proc)
        else:
            # Not reaped yet, so the number is still main's.
            os.kill(main, number)
    return status


def _reap_ended(main: int) -> int | None:
    """Reap all that have ended; the wait status of *main*, if it is one of them."""
    status = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == main:
                status = ended[1]
    except ChildProcessError:
        pass
    return status


def _kill_descendants(main: int, host_proc: int) -> int:
    """Kill until no child is left: the children of what dies become children of this subreaper."""
    status = 9
    numbers = _children
    try:
        folder = new_mount(b"proc")
    except OSError:  # we have no rights in the pid namespace, or none to mount
        folder, numbers = os.dup(host_proc), _children_from_above
    try:
        while True:
            for pid in numbers(folder):
                # Ours, and only we reap it: the number can't be another's.
                os.kill(pid, signal.SIGKILL)
            pid, ended = os.waitpid(-1, 0)
            if pid == main:
                status = ended
    except ChildProcessError:
        return status
    finally:
        os.close(folder)


def _children(folder: int) -> list[int]:
    try:
        with open(os.open("thread-self/children", os.O_RDONLY, dir_fd=folder)) as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return _children_by_parent(folder)


def _children_from_above(folder: int) -> list[int]:
    """Where *folder* is the /proc of a pid namespace above ours, in which they have other numbers, too."""
    level = len(_numbers(folder, "thread-self"))
    return [_numbers(folder, str(pid))[level - 1] for pid in _children(folder)]


def _numbers(folder: int, name: str) -> list[int]:
    """Those that a process has in the pid namespace of *folder*, in the next one below, and so on."""
    with open(os.open(f"{name}/status", os.O_RDONLY, dir_fd=folder)) as file:
        return [int(word) for word in file.read().partition("\nNSpid:")[2].partition("\n")[0].split()]


def _children_by_parent(folder: int) -> list[int]:
    found = []
    parent = int(os.readlink("self", dir_fd=folder))
    for name in os.listdir(folder):
        if name.isdigit():
            with contextlib.suppress(OSError), open(os.open(f"{name}/stat", os.O_RDONLY, dir_fd=folder)) as file:
                # pid (comm) state ppid …, and comm may hold anything
                if int(file.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found
