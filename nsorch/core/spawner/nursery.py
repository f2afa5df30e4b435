"""Where those inits are forked that :mod:`.pid1` can't replace: by a process that does nothing else but begin
:mod:`makers <.maker>`.

A forked child shares its parent's memory page by page until either writes to it. The spawner writes to more than 1 MiB
of its interpreter between two forks, which each child would then own besides its own; the nursery to little. So it does
no set-up either: the spawner has made the namespaces, and only the pid namespace is left to be made.

The inits are children of the spawner, by CLONE_PARENT, which cannot go with CLONE_NEWPID: so that is unshared before.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import socket
from typing import TYPE_CHECKING, NoReturn

from . import protocol
from .stages import StageError, stage
from .syscalls import (
    CLONE_NEWPID,
    CLONE_PARENT,
    NO_CGROUP,
    NS_FILES,
    Cgroup,
    clone3,
    set_parent_death_signal,
    setns,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .homing import Namespaces

_SIGKILL = 9


class Nursery:
    """The spawner's end. In each init, *begin* is called with the message, the descriptors that are left, and never
    returns; nor does *make*, in each maker, with the descriptor of its socket.

    :param home: descriptors of the namespaces to return to, by CLONE_NEW*
    :param report: where births and failures go
    """

    def __init__(
        self,
        home: Namespaces,
        report: socket.socket,
        begin: Callable[[bytes, list[int]], NoReturn],
        make: Callable[[int], NoReturn],
    ) -> None:
        self._orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with orders:
            self.pid, _ = clone3(0)
            if self.pid == 0:
                self._orders.close()
                _serve(orders, home, report, begin, make)

    def bear(self, job: int, namespaces: Mapping[int, int], message: bytes, fds: tuple[int, ...], leaf: Cgroup) -> None:
        """Have an init forked in a new pid namespace, and in *namespaces*: descriptors by CLONE_NEW*."""
        order = (job, tuple(namespaces), message, leaf.fd >= 0, leaf.moves)
        last = (leaf.fd,) if leaf.fd >= 0 else ()
        protocol.send_in_time(self._orders, order, (*namespaces.values(), *fds, *last))

    def add_maker(self, requests: int) -> None:
        """Have one begin that serves what comes to the socket of this descriptor."""
        protocol.send_in_time(self._orders, (), (requests,))


def _serve(
    orders: socket.socket,
    home: Namespaces,
    report: socket.socket,
    begin: Callable[[bytes, list[int]], NoReturn],
    make: Callable[[int], NoReturn],
) -> NoReturn:
    set_parent_death_signal(_SIGKILL)
    with contextlib.suppress(OSError):
        while (received := protocol.receive(orders)) is not None:
            order, fds = received
            if not order:
                with contextlib.suppress(OSError):  # who asked hears the end of file
                    if clone3(CLONE_PARENT)[0] == 0:
                        orders.close()
                        make(*fds)
                os.close(fds[0])
                continue
            job, kinds, message, has_leaf, moves = order
            home.prepare(functools.reduce(operator.or_, kinds, 0))
            try:
                for kind, fd in zip(kinds, fds, strict=False):
                    with stage("setns", NS_FILES[kind]):
                        setns(fd, kind)
                with stage("unshare", "pid"):
                    unshare(CLONE_NEWPID)
                pid, _ = clone3(CLONE_PARENT, Cgroup(fds[-1], moves) if has_leaf else NO_CGROUP)
                if pid == 0:
                    begin(message, fds[len(kinds) :])
                # Not by itself: where the memory of its cgroup is used up, it is killed before it can say anything.
                protocol.send(report, (protocol.Event.BORNE, job, pid))
            except StageError as exc:
                protocol.send(report, (protocol.Event.FAILED, job, exc.stage, exc.number, exc.detail))
            for kind in (*kinds, CLONE_NEWPID):
                setns(home[kind], kind)
            for fd in fds:
                os.close(fd)
    os._exit(0)
