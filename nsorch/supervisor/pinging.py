"""Who reaches whom, asked from inside the workers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import anyio

from nsorch.errors import UnsupportedError
from nsorch.net.ping import Probe, Reachability, ping_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker

_OPENING = 32


async def ping_all(
    supervisor: Supervisor,
    pairs: Iterable[tuple[Worker | str, Worker | str]] | None,
    *,
    timeout: float,
    attempts: int,
) -> Reachability:
    supervisor._check_running()
    probes = []
    if pairs is None:
        reachable = [worker for worker in supervisor.workers.values() if worker.addresses]
        chosen = [(source, target) for source in reachable for target in reachable if source is not target]
    else:
        chosen = [(supervisor._worker(source), supervisor._worker(target)) for source, target in pairs]
    for number, (source, target) in enumerate(chosen):
        probes.append(Probe(source.name, target.name, _address(supervisor, source, target)))
        if number % 100 == 99:
            await anyio.lowlevel.checkpoint()
    sockets: dict[tuple[str, int], socket.socket] = {}
    try:
        await _open_sockets(supervisor, probes, sockets)
        results = await ping_pairs(sockets, probes, timeout=timeout, attempts=attempts)
    finally:
        for sock in sockets.values():
            sock.close()
    return Reachability({(result.source, result.target): result for result in results})


def _address(supervisor: Supervisor, source: Worker, target: Worker) -> IPv4Address | IPv6Address:
    """The address that *target*'s name stands for first; without one, the one on a segment that both share."""
    wiring = supervisor._wiring
    if not wiring.is_routed(target):
        networks = {address.network for address in source.addresses}
        for address in target.addresses:
            if address.network in networks:
                return address.ip
    for address in target.addresses:
        return address.ip
    raise UnsupportedError("it has no address that could be pinged", worker=target.name)


async def _open_sockets(
    supervisor: Supervisor, probes: Iterable[Probe], sockets: dict[tuple[str, int], socket.socket]
) -> None:
    wanted = iter(dict.fromkeys((probe.source, probe.address.version) for probe in probes))
    failures: list[Exception] = []

    async def work() -> None:
        for name, version in wanted:
            family, protocol = socket.AF_INET, socket.IPPROTO_ICMP
            if version == 6:
                family, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6
            try:
                sock = await supervisor.workers[name].open_socket(family, socket.SOCK_RAW, protocol)
            except Exception as exc:
                failures.append(exc)
                return
            sockets[name, family] = sock

    async with anyio.create_task_group() as tasks:
        for _ in range(_OPENING):
            tasks.start_soon(work)
    if failures:
        raise failures[0]
