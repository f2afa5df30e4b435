"""Namespaces without a process: most of what the kernel does for one goes on on several processors at a time, so that a
maker, a process beside the spawner, makes thousands of them sooner."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NoReturn

from . import protocol
from .command import resolve
from .protocol import Command, Event
from .stages import StageError, stage
from .steps import build_root, close, enter, go_home, kinds_of, open_netlink, own_namespaces, prepare
from .syscalls import CLONE_NEWCGROUP
from .turns import Turns

if TYPE_CHECKING:
    import socket

    from .protocol import Spawn
    from .steps import Home, Joined


def make(home: Home, request: Spawn, joined: Joined) -> list[int]:
    """Make or enter what *request* says, and be at home again: the descriptors that answer it.

    :raises StageError: a step that the kernel refused; nothing is left
    """
    made = request.unshare & ~CLONE_NEWCGROUP
    try:
        enter(home, made, joined)
        prepare(home, request)
        build_root(request)
        held = own_namespaces(request.hold, home.own_proc)
        try:
            return [*held, *open_netlink(request.netlink)]
        except StageError:
            close(held)
            raise
    finally:
        go_home(home, made | kinds_of(request.join))


def serve(home: Home, requests: socket.socket) -> NoReturn:
    """In the process of a maker: serve requests for new namespaces, that need no child of its own for them, until the
    application closes its end."""
    turns = Turns()
    with requests, contextlib.suppress(ConnectionError):  # its end, too, where answers are left that nobody has read
        _answer(requests, (Event.READY,), [])
        while (received := protocol.receive(requests)) is not None:
            (operation, *values), fds = received
            close(fds)
            if operation == "spawn":  # else a kill of what is answered already, or next
                _answer(requests, *_serve_one(home, protocol.Spawn(*values)))
                turns.give()
    os._exit(0)


def _serve_one(home: Home, request: Spawn) -> tuple[tuple[object, ...], list[int]]:
    try:
        with stage("spawn"):
            if request.check is not None:
                resolve(Command(*request.check))
            return (Event.DONE, request.job), make(home, request, [])
    except StageError as exc:
        return (Event.FAILED, request.job, exc.stage, exc.number, exc.detail), []


def _answer(requests: socket.socket, message: tuple[object, ...], fds: list[int]) -> None:
    protocol.send_in_time(requests, message, fds)
    close(fds)
