"""Sockets of a worker in the caller's own event loop: ordinary anyio streams, opened inside its network namespace."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ConnectedUDPSocket, SocketListener, SocketStream, UDPSocket
from anyio.streams.stapled import MultiListener

from nsorch.core.threads import in_thread
from nsorch.errors import ClosedError, SetupError, TopologyError
from nsorch.topology.kinds import check_port, check_seconds, name_of, of_kind, shown

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from anyio.streams.tls import TLSStream

    from nsorch.supervisor.worker import Worker

IPAddress = IPv4Address | IPv6Address
LOCALHOST = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_ANY = (IPv4Address(0), IPv6Address(0))
_SIOCGIFINDEX, _IFREQ = 0x8933, struct.Struct("=16si20x")  # netdevice(7)
_BACKLOG = 65536  # as anyio has it
_TRIES = 10  # to find a port that is free at all addresses
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def resolve(worker: Worker, host: Worker | str | IPAddress, where: str) -> list[IPAddress]:
    """The addresses of a literal, a worker or a name of the lab, families in turn, IPv6 first. Asks no DNS.

    :param where: the name of the argument, for errors
    :raises socket.gaierror: the lab has no such name
    :raises TopologyError: it is none of these
    :raises ClosedError: a worker that isn't the one of its name
    """
    if isinstance(host, IPv4Address | IPv6Address):
        return [host]
    worker._supervisor._check_own(host)
    name = name_of(where, host, "an address, a worker")
    try:
        return [ip_address(name)]
    except ValueError:
        pass
    bare = name.removesuffix(".")
    found: Sequence[IPAddress] = worker._supervisor._wiring.names.addresses(bare)
    if not found and bare.lower() in ("localhost", worker.name.lower()):
        found = LOCALHOST
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, f'the lab has no name "{name}" with an address')
    by_family = [[address for address in found if address.version == version] for version in (6, 4)]
    in_turn = []
    for number in range(len(found)):
        in_turn += [addresses[number] for addresses in by_family if number < len(addresses)]
    return in_turn


async def connect_tcp(
    worker: Worker,
    host: Worker | str | IPAddress,
    port: int,
    *,
    local_host: Worker | str | IPAddress | None,
    happy_eyeballs_delay: float,
) -> SocketStream:
    """See :meth:`Worker.connect_tcp`."""
    check_port("connect_tcp.port", port)
    check_seconds("connect_tcp.happy_eyeballs_delay", happy_eyeballs_delay)
    addresses = _reachable(worker, host, local_host, "connect_tcp")
    connected: list[socket.socket] = []
    errors: list[Exception] = []

    async def attempt(address: IPAddress, local: IPAddress | None, over: anyio.Event) -> None:
        try:
            sock = await _connect(worker, socket.SOCK_STREAM, address, port, local)
        except Exception as exc:
            errors.append(exc)
            over.set()
            return
        connected.append(sock)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for address, local in addresses:
                over = anyio.Event()
                tasks.start_soon(attempt, address, local, over)
                with anyio.move_on_after(happy_eyeballs_delay):
                    await over.wait()
        if not connected:
            raise errors[0] if len(errors) == 1 else _all_failed(worker, host, port, errors)
    except BaseException:
        for sock in connected:
            sock.close()
        raise
    first, *late = connected
    for sock in late:
        sock.close()
    try:
        first.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await SocketStream.from_socket(first)
    except BaseException as exc:
        first.close()
        if isinstance(exc, ValueError | OSError):  # it wants to see the peer's address
            text = f"{os.strerror(errno.ECONNRESET)}: {worker.name} to {called(host)} port {port}"
            raise ConnectionResetError(errno.ECONNRESET, text) from exc
        raise


def _all_failed(worker: Worker, host: object, port: int, errors: Sequence[Exception]) -> Exception:
    for exc in errors:
        if not isinstance(exc, OSError | SetupError):
            return exc
    text = f"no address of {called(host)} answers on port {port}, asked by {worker.name}"
    failure = OSError(getattr(errors[0], "errno", None), text)
    failure.__cause__ = ExceptionGroup("all attempts failed", errors)
    return failure


async def wrap_tls(stream: SocketStream, host: str, context: ssl.SSLContext | None, *, compatible: bool) -> TLSStream:
    from anyio.streams.tls import TLSStream

    try:
        context = context or await in_thread(_usual_context)
        return await TLSStream.wrap(
            stream, server_side=False, hostname=certified(host), ssl_context=context, standard_compatible=compatible
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def _usual_context() -> ssl.SSLContext:
    """As anyio makes it, which would take the loop 30 ms: it reads the certificates of all authorities."""
    import ssl

    context = ssl.create_default_context()
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def certified(host: str) -> str:
    """As certificates have it: without the dot that ends a name (RFC 6066), or an interface."""
    return host.partition("%")[0].removesuffix(".")


class _Listener(MultiListener[SocketStream]):
    def __init__(self, worker: Worker, listeners: Sequence[SocketListener]) -> None:
        super().__init__(listeners)
        self._worker = worker

    async def serve(
        self, handler: Callable[[SocketStream], Any], task_group: anyio.abc.TaskGroup | None = None
    ) -> None:
        """Runs until cancelled.

        :raises ClosedError: the worker was removed; connections that are there are served to their end
        """
        self._worker._check_here()
        async with contextlib.AsyncExitStack() as stack:
            connections = task_group or await stack.enter_async_context(anyio.create_task_group())
            with _until_removed(self._worker) as scope:
                await super().serve(handler, connections)
        if scope.cancelled_caught:
            raise ClosedError("the worker was removed", worker=self._worker.name)

    async def aclose(self) -> None:
        """Close all also when cancelled: anyio's own stops after the first."""
        with anyio.CancelScope(shield=True):
            await super().aclose()
        await anyio.lowlevel.checkpoint()


async def create_tcp_listener(
    worker: Worker, local_host: Worker | str | IPAddress | None, local_port: int, *, backlog: int, reuse_port: bool
) -> MultiListener[SocketStream]:
    """See :meth:`Worker.create_tcp_listener`."""
    check_port("create_tcp_listener.local_port", local_port, least=0)
    of_kind("create_tcp_listener.backlog", backlog, "a number of connections", int)
    if backlog < 0:
        raise TopologyError(f"create_tcp_listener.backlog: {shown(backlog)} is negative")
    of_kind("create_tcp_listener.reuse_port", reuse_port, "true or false", bool)
    hosts = _ANY if local_host is None else resolve(worker, local_host, "create_tcp_listener.local_host")
    return await _listen(worker, hosts, local_port, backlog=min(backlog, _BACKLOG), reuse_port=reuse_port)


async def _listen(
    worker: Worker, hosts: Sequence[IPAddress], local_port: int, *, backlog: int, reuse_port: bool = False
) -> MultiListener[SocketStream]:
    tries = 1 if local_port else _TRIES
    while True:
        tries -= 1
        try:
            return await _listen_at(worker, hosts, local_port, backlog=backlog, reuse_port=reuse_port)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not tries:
                raise
        # A port that is free at the first address is taken at another one, which chooses next.
        hosts = [*hosts[1:], hosts[0]]


async def _listen_at(
    worker: Worker, hosts: Sequence[IPAddress], local_port: int, *, backlog: int, reuse_port: bool
) -> MultiListener[SocketStream]:
    sockets: list[socket.socket] = []
    failure: OSError | SetupError | None = None
    try:
        for host in hosts:
            try:
                sock = await _bound(worker, socket.SOCK_STREAM, host, local_port, reuse_port=reuse_port)
            except (OSError, SetupError) as exc:
                if exc.errno not in _NO_IPV6:
                    raise
                failure = failure or exc
                continue
            sockets.append(sock)
            sock.listen(backlog)
            local_port = sock.getsockname()[1]
        if failure is not None and not sockets:
            raise failure
        return _Listener(worker, [await SocketListener.from_socket(sock) for sock in sockets])
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


async def create_udp_socket(
    worker: Worker,
    local_host: Worker | str | IPAddress | None,
    local_port: int,
    *,
    family: int | None,
    reuse_port: bool,
) -> UDPSocket:
    """See :meth:`Worker.create_udp_socket`."""
    check_port("create_udp_socket.local_port", local_port, least=0)
    of_kind("create_udp_socket.reuse_port", reuse_port, "true or false", bool)
    if family not in (None, socket.AF_INET, socket.AF_INET6):
        raise TopologyError(f"create_udp_socket.family: {shown(family)} is neither AF_INET nor AF_INET6")
    if local_host is None:
        host = _ANY[family == socket.AF_INET6]
    else:
        hosts = resolve(worker, local_host, "create_udp_socket.local_host")
        if not (hosts := [host for host in hosts if family in (None, _family(host))]):
            text = f"{called(local_host)} of {worker.name} has no address of the family {family}"
            raise OSError(errno.EAFNOSUPPORT, text)
        host = hosts[0]
    return await UDPSocket.from_socket(await _bound(worker, socket.SOCK_DGRAM, host, local_port, reuse_port=reuse_port))


async def create_connected_udp_socket(
    worker: Worker, host: Worker | str | IPAddress, port: int, *, local_host: Worker | str | IPAddress | None
) -> ConnectedUDPSocket:
    """See :meth:`Worker.create_connected_udp_socket`."""
    check_port("create_connected_udp_socket.port", port)
    failure: OSError | SetupError | None = None
    for address, local in _reachable(worker, host, local_host, "create_connected_udp_socket"):
        try:
            return await ConnectedUDPSocket.from_socket(await _connect(worker, socket.SOCK_DGRAM, address, port, local))
        except (OSError, SetupError) as exc:
            failure = failure or exc
    assert failure is not None
    raise failure


async def serve(
    worker: Worker,
    handler: Callable[[Any], Awaitable[Any]],
    port: int,
    *,
    local_host: Worker | str | IPAddress | None,
    task_status: anyio.abc.TaskStatus[MultiListener[SocketStream]],
) -> None:
    """See :meth:`Worker.serve`."""
    check_port("serve.port", port, least=0)
    if not callable(handler):
        raise TopologyError(f"serve.handler: {shown(handler)} is not a function")
    hosts = _ANY if local_host is None else resolve(worker, local_host, "serve.local_host")
    listener = await _listen(worker, hosts, port, backlog=socket.SOMAXCONN)
    async with listener, anyio.create_task_group() as connections:
        task_status.started(listener)
        with contextlib.suppress(ClosedError):  # the worker is removed
            await listener.serve(handler, connections)
        await listener.aclose()


# -- plain sockets


def called(host: object) -> str:
    """A worker by its name, all else as it is."""
    return str(getattr(host, "name", host))


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _reachable(
    worker: Worker, host: Worker | str | IPAddress, local_host: Worker | str | IPAddress | None, call: str
) -> list[tuple[IPAddress, IPAddress | None]]:
    """The addresses of *host*, each with the one of *local_host* that it is to be reached from."""
    addresses = resolve(worker, host, f"{call}.host")
    if local_host is None:
        return [(address, None) for address in addresses]
    own = {local.version: local for local in reversed(resolve(worker, local_host, f"{call}.local_host"))}
    found: list[tuple[IPAddress, IPAddress | None]] = [(a, own[a.version]) for a in addresses if a.version in own]
    if not found:
        text = f"no address of {called(host)} can be reached from {called(local_host)} of {worker.name}"
        raise OSError(errno.EAFNOSUPPORT, text)
    return found


def sockaddr(sock: socket.socket, worker: Worker, address: IPAddress, port: int) -> tuple[Any, ...]:
    """What *sock* calls it. The kernel is asked for the interface of a scope where the socket is, not where we are.

    :raises OSError: there is no such interface, or none was given where one is needed
    """
    if address.version == 4:
        return str(address), port
    scope = address.scope_id
    if scope is None or scope.isdecimal():
        if scope is None and address.is_link_local:
            raise OSError(errno.EINVAL, f"{address} is link-local: {address}%eth0 says by which interface")
        return str(IPv6Address(int(address))), port, 0, int(scope or 0)
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(os.fsencode(scope), 0))
    except OSError as exc:
        raise OSError(exc.errno, f'{exc.strerror}: {worker.name} has no interface "{scope}"') from None
    return str(IPv6Address(int(address))), port, 0, _IFREQ.unpack(answer)[1]


def _bind(sock: socket.socket, worker: Worker, address: IPAddress, port: int) -> None:
    where = sockaddr(sock, worker, address, port)
    try:
        sock.bind(where)
    except OSError as exc:
        text = f"{exc.strerror}: {address}{f' port {port}' if port else ''} in {worker.name}"
        raise OSError(exc.errno, text) from None


async def _connect(worker: Worker, kind: int, address: IPAddress, port: int, local: IPAddress | None) -> socket.socket:
    """A connected socket; the caller owns it. Cancelled, none is left open.

    :raises OSError: nothing listens, or there is no way
    """
    sock = await worker.open_socket(_family(address), kind)
    try:
        if local is not None:
            _bind(sock, worker, local, 0)
        await worker._supervisor._wiring.acquaintances.make(worker, address)
        failure = sock.connect_ex(sockaddr(sock, worker, address, port))
        if failure == errno.EINPROGRESS:
            await _wait_connected(worker, sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, f"{os.strerror(failure)}: {worker.name} to {address} port {port}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _wait_connected(worker: Worker, sock: socket.socket) -> None:
    """:raises ClosedError: the worker was removed meanwhile: the kernel would go on trying for two minutes"""
    with _until_removed(worker) as scope:
        await anyio.wait_writable(sock)
    if scope.cancelled_caught:
        raise ClosedError("the worker was removed", worker=worker.name)


@contextlib.contextmanager
def _until_removed(worker: Worker) -> Iterator[anyio.CancelScope]:
    """What is in the block is cancelled when the worker is removed.

    :raises ClosedError: it is already
    """
    worker._check_here()
    if worker._waiting is None:
        worker._waiting = set()
    with anyio.CancelScope() as scope:
        worker._waiting.add(scope)
        try:
            yield scope
        finally:
            worker._waiting.discard(scope)


async def _bound(worker: Worker, kind: int, host: IPAddress, port: int, *, reuse_port: bool) -> socket.socket:
    sock = await worker.open_socket(_family(host), kind)
    try:
        if host.version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(sock, worker, host, port)
    except BaseException:
        sock.close()
        raise
    return sock
