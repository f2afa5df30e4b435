"""Whether a worker is ready: the conditions that ``ready=`` takes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import anyio
from attrs import frozen

from nsorch.core.process import DEVNULL
from nsorch.errors import ClosedError, NotReadyError, NsorchError
from nsorch.supervisor.traffic import sockets
from nsorch.topology.conditions import Condition
from nsorch.topology.ready import ExecReady, TcpReady

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.core.jobs import Job
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Service

# Addresses of documentation, that any way to the outside leads to.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@frozen(eq=False, repr=False)
class ServiceReady(Condition):
    """What the worker's service itself calls ready."""

    timeout: float
    interval: float = 0.1


def ready_of(service: Service) -> ServiceReady:
    return ServiceReady(getattr(service, "timeout", 30.0))


@frozen(eq=False, repr=False)
class RouteReady(Condition):
    """When *target* has a route to the outside."""

    target: Any
    timeout: float = 20.0
    interval: float = 0.02


@frozen(eq=False, repr=False)
class LeaseReady(Condition):
    """When the worker, a DHCP client, has been given an address."""

    lease: Any
    timeout: float = 30.0
    interval: float = 0.01


Ready = TcpReady | ExecReady | ServiceReady | RouteReady | LeaseReady


async def wait_until_ready(worker: Worker, ready: Ready, job: Job) -> bool:
    """Wait until *ready* holds: True; or until the process ends first: False.

    :raises NotReadyError: neither within the condition's own deadline
    """
    holds = False
    failure: NsorchError | None = None
    with anyio.move_on_after(ready.timeout) as deadline:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await job.end()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            try:
                while not await _check(worker, ready):  # noqa: ASYNC110 - nobody tells when it comes true
                    await anyio.sleep(ready.interval)
                holds = True
            except NsorchError as exc:
                failure = exc  # raised outside of the task group, which would wrap it
            tasks.cancel_scope.cancel()
    if failure is not None and not job.ended:  # else it failed because of that
        raise failure
    if deadline.cancelled_caught and not holds and not job.ended:
        raise NotReadyError(f"not ready within {ready.timeout} s: {_describe(ready)}", worker=worker.name)
    return holds and not job.ended


async def _check(worker: Worker, ready: Ready) -> bool:
    if isinstance(ready, RouteReady):
        return await has_route(ready.target)
    if isinstance(ready, LeaseReady):
        return bool(ready.lease.holds(worker))
    if isinstance(ready, ServiceReady):
        return await worker._supervisor._wiring.services.is_ready(worker)
    if isinstance(ready, ExecReady):
        try:
            done = await worker.run(ready.command, stdout=DEVNULL, stderr=DEVNULL, check=False)
        except ClosedError:  # it was killed with the process, of whose end we hear next
            return False
        return done.returncode == 0
    if ready.host is None:
        hosts = [*sockets.LOCALHOST, *(address.ip for address in worker.addresses)]
    else:
        try:
            hosts = sockets.resolve(worker, ready.host, "ready.host")
        except socket.gaierror:  # nobody is called so yet
            return False
    for host in hosts:
        if await _accepts(worker, host, ready.port):
            return True
    return False


async def _accepts(worker: Worker, host: IPv4Address | IPv6Address, port: int) -> bool:
    """Whether a TCP connection is accepted, from inside the worker."""
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with await worker.open_socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(sockets.sockaddr(sock, worker, host, port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
        except OSError:
            return False
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


async def has_route(worker: Worker) -> bool:
    """Whether *worker* has a way to addresses that nobody has."""
    for family, address in _ELSEWHERE:
        with await worker._open_socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((address, 9))
            except OSError:
                continue
            return True
    return False


def _describe(ready: Ready) -> str:
    if isinstance(ready, RouteReady):
        return f"{ready.target.name} has no route to the outside"
    if isinstance(ready, LeaseReady):
        return str(ready.lease)
    if isinstance(ready, ServiceReady):
        return "its service isn't, or hasn't converged"
    if isinstance(ready, TcpReady):
        where = "" if ready.host is None else f" of {ready.host}"
        return f"nothing accepts connections to TCP port {ready.port}{where}"
    return f"{' '.join(map(str, ready.command))} doesn't succeed"
