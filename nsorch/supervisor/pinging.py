"""Who reaches whom, asked from inside the workers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import anyio

from nsorch.errors import UnsupportedError
from nsorch.net.ping import Probe, Reachability, ping_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker

_OPENING = 32
_NEIGHBOURS = 400


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
        results = []
        chunks = list(_chunks(supervisor, probes))
        for chunk, known in chunks:
            results += await ping_pairs(sockets, chunk, timeout=timeout, attempts=attempts)
            if len(chunks) > 1:
                await supervisor._wiring.forget_neighbours(known)
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


Neighbours = dict["Worker", list[tuple[int, "IPv4Address | IPv6Address"]]]


def _chunks(supervisor: Supervisor, probes: Sequence[Probe]) -> Iterator[tuple[list[Probe], Neighbours]]:
    """Parts of *probes* that fill the neighbour tables by so much, and what they fill it with.

    The kernel holds ``gc_thresh3`` neighbours of all network namespaces together, 1,024 by default, and drops none
    that is younger than 5 s; a pair on a bridge needs one at either end.
    """
    chunk: list[Probe] = []
    known: Neighbours = {}
    count = 0
    for probe in probes:
        chunk.append(probe)
        source, target = supervisor.workers[probe.source], supervisor.workers[probe.target]
        index = supervisor._wiring.neighbour_of(source, probe.address)
        if index is not None:
            known.setdefault(source, []).append((index, probe.address))
            for address in source.addresses:
                back = supervisor._wiring.neighbour_of(target, address.ip)
                if back is not None and address.version == probe.address.version:
                    known.setdefault(target, []).append((back, address.ip))
            count += 1
            if count == _NEIGHBOURS:
                yield chunk, known
                chunk, known, count = [], {}, 0
    if chunk:
        yield chunk, known


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
