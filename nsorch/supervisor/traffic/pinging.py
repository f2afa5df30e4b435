"""Who reaches whom, asked from inside the workers."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio

from nsorch.core.failures import translate
from nsorch.errors import NsorchError, TopologyError, UnsupportedError
from nsorch.net.ping import (
    Outcome,
    Probes,
    Reachability,
    Results,
    forget_neighbours,
    hear_replies_only,
    ping_pairs,
)
from nsorch.supervisor.turns import for_each, in_turns
from nsorch.supervisor.wiring.kernel import OPENING
from nsorch.supervisor.wiring.planning import netns_key
from nsorch.topology.kinds import check_seconds, of_kind, shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.net.engine import Engine
    from nsorch.net.netlink import NetnsHandle
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Side
    from nsorch.supervisor.worker import Worker

_NEIGHBOURS = 800
# So many workers forget theirs at a time: what is open for it takes the loop 10 µs each.
_TOGETHER = 100


async def ping_all(
    supervisor: Supervisor,
    pairs: Iterable[tuple[Worker | str, Worker | str]] | None,
    *,
    timeout: float,
    attempts: int,
    version: int | None,
    progress: Callable[[int], None] | None,
) -> Reachability:
    supervisor._check_running()
    check_seconds("timeout", timeout)
    of_kind("attempts", attempts, "a number of attempts", int)
    if attempts < 1:
        raise TopologyError(f"attempts: {shown(attempts)} is not a positive number of attempts")
    if version not in (None, 4, 6):
        raise TopologyError(f"version: {shown(version)} is neither 4 nor 6")
    if progress is not None and not callable(progress):
        raise TopologyError(f"progress: {shown(progress)} is not a function")
    probes = Probes()
    if pairs is not None:
        pairs = _to_pairs(pairs)
    else:
        everyone = list(supervisor.workers.values())
        reachable = [worker async for worker in in_turns(everyone) if _has(worker, version)]
        pairs = ((source, target) for source in reachable for target in reachable if source is not target)
    own: dict[str, IPv4Address | IPv6Address] = {}  # of those whose address is one for all
    async for first, second in in_turns(pairs):
        source, target = supervisor._worker(first), supervisor._worker(second)
        address = own.get(target.name)
        if address is None:
            address = _address(supervisor, source, target, version)
            if target.name in supervisor._wiring.routing:
                own[target.name] = address
        probes.add(source.name, target.name, address)
    sockets: dict[tuple[str, int], socket.socket] = {}
    outcome = Outcome(len(probes))
    results = Results(probes, outcome)
    await results.number(anyio.lowlevel.checkpoint)
    before = 0

    def report(done: int) -> None:
        if progress is not None:
            progress(before + done)

    try:
        await _open_sockets(supervisor, {(p.source, p.address.version): None async for p in in_turns(probes)}, sockets)
        async with contextlib.aclosing(_chunks(supervisor, probes, results)) as chunks:
            async for numbers, known in chunks:
                chunk = probes.select(numbers)
                done = await ping_pairs(sockets, chunk, timeout=timeout, attempts=attempts, report=report)
                outcome.place(numbers, done)
                before += len(chunk)
                if len(chunk) < len(probes):
                    await _forget(supervisor, known, sockets)
    except OSError as exc:
        if isinstance(exc, NsorchError):
            raise
        raise translate("ping", exc.errno or errno.EIO, "", None) from None
    finally:
        with anyio.CancelScope(shield=True):
            async for sock in in_turns(sockets.values()):
                sock.close()
    return Reachability(results)


def _to_pairs(pairs: Iterable[tuple[Worker | str, Worker | str]]) -> Iterator[tuple[Worker | str, Worker | str]]:
    """
    :raises TopologyError: one of them is no pair
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TopologyError(f"pairs: {shown(pairs)} is not a list of (source, target) pairs")
    return (_to_pair(number, pair) for number, pair in enumerate(pairs))


def _to_pair(number: int, pair: Any) -> tuple[Worker | str, Worker | str]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TopologyError(f"pairs[{number}]: {shown(pair)} is not a (source, target) pair")
    return pair[0], pair[1]


def _has(worker: Worker, version: int | None) -> bool:
    return any(version in (None, address.version) for address in worker.addresses)


def _address(supervisor: Supervisor, source: Worker, target: Worker, version: int | None) -> IPv4Address | IPv6Address:
    """The address that *target*'s name stands for first; without one, the one on a segment that both share."""
    addresses = [address for address in target.addresses if version in (None, address.version)]
    if target.name not in supervisor._wiring.routing:
        networks = {address.network for address in source.addresses}
        addresses.sort(key=lambda address: address.network not in networks)
    if not addresses:
        family = "" if version is None else f"IPv{version} "
        raise UnsupportedError(f"it has no {family}address that could be pinged", worker=target.name)
    return addresses[0].ip


# By worker: interfaces, and who they have asked for.
Neighbours = dict["Worker", dict[tuple["Side", "IPv4Address | IPv6Address"], None]]


async def _chunks(
    supervisor: Supervisor, probes: Probes, results: Results
) -> AsyncGenerator[tuple[Sequence[int], Neighbours], None]:
    """Numbers of *probes* that fill the neighbour tables by so much, and what they fill them with. A pair is asked
    together with its opposite: who is asked for its address knows the asker's then.

    The kernel holds ``gc_thresh3`` neighbours of all network namespaces together, 1,024 by default, and drops none
    that is younger than 5 s; a pair on a bridge needs one at either end.
    """
    if not supervisor.bridges:
        yield range(len(probes)), {}
        return
    known: Neighbours = {}
    numbers: list[int] = []
    count = 0
    async for number in in_turns(results.with_opposites()):
        numbers.append(number)
        probe = probes[number]
        source, target = supervisor._worker(probe.source), supervisor._worker(probe.target)
        side = supervisor._wiring.record.neighbour_of(source, probe.address)
        if side is not None:
            count += _note(known, source, side, probe.address)
            for address in source.addresses:
                back = supervisor._wiring.record.neighbour_of(target, address.ip)
                if back is not None and address.version == probe.address.version:
                    count += _note(known, target, back, address.ip)
            if count >= _NEIGHBOURS:
                yield numbers, known
                numbers, known, count = [], {}, 0
    if numbers:
        yield numbers, known


def _note(known: Neighbours, worker: Worker, side: Side, address: IPv4Address | IPv6Address) -> bool:
    """Whether it is new."""
    those = known.setdefault(worker, {})
    before = len(those)
    those[side, address] = None
    return len(those) > before


async def _forget(supervisor: Supervisor, known: Neighbours, sockets: dict[tuple[str, int], socket.socket]) -> None:
    """Make room in the neighbour tables, which all network namespaces share."""
    kernel = supervisor._wiring.kernel
    by_ioctl: list[tuple[str, str, IPv4Address]] = []  # it takes any socket of the worker's
    others: dict[Worker, list[tuple[int | str, IPv6Address]]] = {}
    async for worker, neighbours in in_turns(known.items()):
        for side, address in neighbours:
            if address.version == 4:
                by_ioctl.append((worker.name, side.ifname, address))
            else:
                others.setdefault(worker, []).append((side.index or side.ifname, address))
    await _open_sockets(supervisor, {(name, 4): None for name, _, _ in by_ioctl}, sockets)
    entries = [(sockets[name, socket.AF_INET], ifname, address) for name, ifname, address in by_ioctl]
    await kernel.in_thread(forget_neighbours, entries)
    workers = list(others)
    for start in range(0, len(workers), _TOGETHER):
        some = workers[start : start + _TOGETHER]
        async with kernel.handles(some) as handles:
            known_of = [(handles[netns_key(worker)], others[worker]) for worker in some]
            await kernel.in_thread(_forget_by_netlink, kernel.engine, known_of)


def _forget_by_netlink(
    engine: Engine, known: Iterable[tuple[NetnsHandle, Iterable[tuple[int | str, IPv6Address]]]]
) -> None:
    for handle, neighbours in known:
        engine.forget_neighbours(handle, neighbours)


async def _open_sockets(
    supervisor: Supervisor, found: Collection[tuple[str, int]], sockets: dict[tuple[str, int], socket.socket]
) -> None:
    """Those by worker and IP version that aren't among *sockets*."""

    async def open_one(wanted: tuple[str, int]) -> None:
        name, version = wanted
        family, protocol = socket.AF_INET, socket.IPPROTO_ICMP
        if version == 6:
            family, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6
        if (name, family) not in sockets:
            sock = await supervisor._worker(name).open_socket(family, socket.SOCK_RAW, protocol)
            sockets[name, family] = sock
            hear_replies_only(sock)

    await for_each(found, open_one, OPENING)
