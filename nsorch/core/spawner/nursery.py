"""Where inits are forked: a process that does nothing else, and so keeps them small.

A forked child shares its parent's memory page by page until either writes to it. The spawner writes to more than 1 MiB
of its interpreter between two forks, which each child would then own; the nursery to a third of that. For the same
reason an init runs next to no code: its first child, which becomes the command, does all the set-up, and the pages it
writes to are gone with its exec.

The inits are children of the spawner, by CLONE_PARENT, which cannot go with CLONE_NEWPID: so that is unshared before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from typing import TYPE_CHECKING, NoReturn

from . import protocol
from .command import close_all_but
from .reaper import reap
from .syscalls import CLONE_NEWPID, CLONE_PARENT, clone3, set_parent_death_signal, setns, unshare

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGKILL = 9


class Nursery:
    """The spawner's end: :meth:`bear` has an init forked in a new pid namespace, whose first child takes one message.

    That child runs *become* with the message, its descriptors, the error number if there could be no pid namespace,
    and the write end of a pipe: it writes :func:`introduction` when it is set up, and its exec closes it.
    """

    def __init__(
        self, home_pid: int, become: Callable[[protocol.Received, int, int], NoReturn], signals: int, report: int
    ) -> None:
        # Children take messages as they come: which one gets which makes no difference.
        self._messages, messages = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders, orders = socket.socketpair()
        with messages, orders:
            self.pid, _ = clone3(0)
            if self.pid == 0:
                self._messages.close()
                self._orders.close()
                _serve(orders.fileno(), messages, home_pid, become, signals, report)

    def bear(self, message: tuple[object, ...], fds: list[int]) -> None:
        while True:
            try:
                protocol.send(self._messages, message, fds)
                break
            except OSError as exc:
                # Descriptors under way count against RLIMIT_NOFILE; the children take them in any case.
                if exc.errno != errno.ETOOMANYREFS:
                    raise
                time.sleep(0.001)
        self._orders.send(b"+")


def introduction(job: int, kinds: int) -> bytes:
    """What an init must know: the job that it reports about, and the CLONE_NEW* to follow its child into."""
    return job.to_bytes(8, "little") + kinds.to_bytes(8, "little")


def _serve(
    orders: int,
    messages: socket.socket,
    home_pid: int,
    become: Callable[[protocol.Received, int, int], NoReturn],
    signals: int,
    report: int,
) -> NoReturn:
    set_parent_death_signal(_SIGKILL)
    with contextlib.suppress(OSError):
        while os.read(orders, 1):
            failure = 0
            try:
                unshare(CLONE_NEWPID)
            except OSError as exc:
                failure = exc.errno or errno.EINVAL
            if clone3(CLONE_PARENT)[0] == 0:
                _init(messages, become, failure, signals, report)
            setns(home_pid, CLONE_NEWPID)
    os._exit(0)


def _init(
    messages: socket.socket,
    become: Callable[[protocol.Received, int, int], NoReturn],
    failure: int,
    signals: int,
    report: int,
) -> NoReturn:
    ours, theirs = os.pipe()
    main = clone3(0)[0]
    if main == 0:
        os.close(ours)
        received = protocol.receive(messages)
        if received is None:
            os._exit(125)
        become(received, failure, theirs)
    close_all_but(ours, signals, report)
    introduced = os.read(ours, 16)
    if not introduced:
        os._exit(125)  # the child has reported why
    with contextlib.suppress(OSError):  # it may have ended by now
        setns(os.pidfd_open(main), int.from_bytes(introduced[8:], "little"))
    os.read(ours, 1)  # the end of file: exec, or a failure that is reported
    os.closerange(0, min(signals, report))
    job = int.from_bytes(introduced[:8], "little")
    os.write(report, protocol.encode((protocol.Event.EXECUTED, job)))
    status = reap(main, signals)
    os.write(report, protocol.encode((protocol.Event.EXITED, job, status)))
    os._exit(status >> 8 if status & 0x7F == 0 else 128 + (status & 0x7F))
