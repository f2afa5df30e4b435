"""The one thread that waits for the kernel, and the network namespaces that it works in."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import anyio

from nsorch.core.lending import lent
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import ClosedError, NetlinkError, NsorchError, SetupError
from nsorch.net.engine import Engine
from nsorch.net.netlink import NETLINK_NETFILTER, NetnsHandle
from nsorch.supervisor.thread import Thread
from nsorch.supervisor.turns import for_each
from nsorch.supervisor.wiring.planning import netns_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from nsorch.net.redirecting import Redirector
    from nsorch.supervisor.wiring.network import Side
    from nsorch.supervisor.worker import Worker

#: what the kernel says of a protocol, a family, a chain or an expression that it doesn't have
MISSING = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
#: so many sockets are asked for at a time
OPENING = 32


class Kernel:
    """Carries out what is planned, one thing after the other.

    :param check_running: raises, once the supervisor has ended
    :param open_socket: opens a socket in the fabric, of a family, type and protocol
    """

    def __init__(
        self, check_running: Callable[[], None], open_socket: Callable[[int, int, int], Awaitable[socket.socket]]
    ) -> None:
        self.engine: Engine
        self._check_running = check_running
        self._open_socket = open_socket
        self._fabric: socket.socket | None = None
        self._thread: Thread | None = None
        self._doomed: list[int] = []  # interfaces of the fabric, by index
        self._deleting: anyio.Lock
        self._opening: anyio.Lock
        self._netfilter: socket.socket | None = None  # of the fabric, from its first use on
        self._redirector: Redirector | None = None

    def open(self, rtnetlink: int) -> None:
        """*rtnetlink*: a socket of the fabric's, which stays its owner's."""
        self._fabric = socket.socket(fileno=os.dup(rtnetlink))
        self.engine = Engine(self._fabric)
        self._thread = Thread(self._check_running)
        self._deleting = anyio.Lock()
        self._opening = anyio.Lock()

    async def close(self) -> None:
        """After what is under way. Shield it."""
        if self._thread is not None:
            await self._thread.close()
        for sock in (self._fabric, self._netfilter):
            if sock is not None:
                sock.close()

    async def in_thread(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call *func* in the one thread that waits for the kernel. Cancelled, it is waited for all the same.

        :raises ClosedError: the supervisor ends; SpawnerDiedError: because of that
        """
        assert self._thread is not None
        return await self._thread.call(func, *args)

    async def redirector(self) -> Redirector | None:
        """For the thread; None where the kernel lacks a part of it."""
        async with self._opening:
            if self._netfilter is None:
                with anyio.CancelScope(shield=True):
                    try:
                        self._netfilter = await self._open_socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
                        self._redirector = await self.in_thread(_redirector, self._netfilter)
                    except (NetlinkError, SetupError) as exc:
                        if exc.errno not in MISSING:
                            raise
            return self._redirector

    async def forget_groups(self, groups: Sequence[int]) -> None:
        """What the redirector knows of segments that are gone."""
        if self._redirector is not None:
            await self.in_thread(self._redirector.remove_all, groups)

    def ended(self) -> NsorchError:
        """Why nothing is done any more."""
        try:
            self._check_running()
        except NsorchError as exc:
            return exc
        return ClosedError("the supervisor has ended")

    async def with_handle(self, side: Side, func: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Call *func* with where *side* is: a handle of the worker's network namespace, or None for the fabric."""
        if side.worker is not None:
            await self.in_netns(side.worker, func, *args, **options)
        else:
            await self.in_thread(lambda: func(None, *args, **options))

    async def in_netns(self, worker: Worker, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call *func* with a handle of *worker*'s network namespace."""
        with anyio.CancelScope(shield=True):
            sock = await worker._open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            with sock, lent(netns_of(worker), "netlink", worker.name) as netns:
                handle = NetnsHandle(fd=netns, sock=sock, name=worker.name)
                return await self.in_thread(lambda: func(handle, *args, **options))

    @contextlib.asynccontextmanager
    async def handles(self, workers: Iterable[Worker]) -> AsyncIterator[dict[int, NetnsHandle]]:
        """By the keys of their network namespaces; what is opened for it is closed."""
        workers = list(workers)
        handles: dict[int, NetnsHandle] = {}
        sockets: dict[Worker, socket.socket] = {}
        with contextlib.ExitStack() as opened:

            async def open_netlink(worker: Worker) -> None:
                sock = await worker._open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                sockets[worker] = opened.enter_context(sock)

            for worker in workers:
                if worker._netlink is not None:
                    sockets[worker] = opened.enter_context(_copied(worker._netlink))
            if others := [worker for worker in workers if worker not in sockets]:
                await for_each(others, open_netlink, OPENING)
            for worker in workers:
                netns = opened.enter_context(lent(netns_of(worker), "netlink", worker.name))
                handles[netns_key(worker)] = NetnsHandle(fd=netns, sock=sockets[worker], name=worker.name)
            yield handles

    async def delete_in_fabric(self, indices: Sequence[int]) -> None:
        """Together with what others want deleted meanwhile."""
        self._doomed += indices
        async with self._deleting:
            if self._doomed:
                doomed, self._doomed = self._doomed, []
                await self.in_thread(self.engine.delete_links, None, doomed)


def _redirector(sock: socket.socket) -> Redirector:
    """In the thread, also for the import."""
    from nsorch.net.redirecting import Redirector

    return Redirector(sock)


def netns_of(worker: Worker) -> int:
    """The descriptor of its network namespace.

    :raises ClosedError: it was removed meanwhile
    """
    try:
        return worker._held[CLONE_NEWNET]
    except KeyError:
        raise ClosedError("the worker was removed", worker=worker.name) from None


@contextlib.contextmanager
def _copied(sock: socket.socket) -> Iterator[socket.socket]:
    """The same, whoever closes *sock* meanwhile."""
    with lent(sock.fileno(), "netlink") as fd:
        copy = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
        try:
            yield copy
        finally:
            copy.detach()
