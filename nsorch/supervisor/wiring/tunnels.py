"""Tunnels between several workers, each with all others."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio

from nsorch.errors import TopologyError
from nsorch.topology import Vxlan, WireGuard, WireGuardPeer
from nsorch.topology.converters import networks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Interface
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import InterfaceSpec

    Addresses = tuple[IPv4Interface | IPv6Interface, ...]
    Others = dict[str, str]  # the names of their interfaces, by worker
    Make = Callable[[Worker, str, Addresses, Others], InterfaceSpec]


async def wireguard(
    supervisor: Supervisor,
    workers: Sequence[Worker | str],
    *,
    subnet: Any,
    name: str | None,
    port: int | None,
    mtu: int | None,
    keepalive: int | None,
) -> list[Interface]:
    """See :meth:`Supervisor.wireguard`."""

    def make(worker: Worker, ifname: str, address: Addresses, others: Others) -> InterfaceSpec:
        peers = [WireGuardPeer(worker=other, interface=its, keepalive=keepalive) for other, its in others.items()]
        return WireGuard(ifname, address=address, peers=peers, port=port or _free_port(worker), mtu=mtu)

    return await _mesh(supervisor, workers, subnet, name or "wg", make, numbered=name is None)


async def vxlan(
    supervisor: Supervisor,
    workers: Sequence[Worker | str],
    *,
    id: int,  # noqa: A002 - the field's word
    subnet: Any,
    name: str | None,
    port: int,
    mtu: int | None,
) -> list[Interface]:
    """See :meth:`Supervisor.vxlan`."""

    def make(worker: Worker, ifname: str, address: Addresses, others: Others) -> InterfaceSpec:  # noqa: ARG001
        return Vxlan(ifname, id=id, address=address, remote=list(others), port=port, mtu=mtu)

    return await _mesh(supervisor, workers, subnet, name or f"vxlan{id}", make, numbered=False)


def _free_port(worker: Worker) -> int:
    taken = {device.spec.port for device in worker._devices.values() if isinstance(device.spec, WireGuard)}
    return next(port for port in itertools.count(51820) if port not in taken)


async def _mesh(
    supervisor: Supervisor, workers: Sequence[Worker | str], subnet: Any, name: str, make: Make, *, numbered: bool
) -> list[Interface]:
    supervisor._check_running()
    chosen = [supervisor._worker(worker) for worker in workers]
    if len({worker.name for worker in chosen}) < max(len(workers), 2):
        raise TopologyError("workers: a tunnel has two ends or more, in different workers")
    record = supervisor._wiring.record
    segment = record.tunnel_segment(networks(subnet), name, len(chosen))
    made: list[Interface] = []

    def choose(worker: Worker) -> str:
        there = record.ifnames_in(worker)
        free = (choice for number in itertools.count() if (choice := f"{name}{number}") not in there)
        return next(free) if numbered else name

    names = {worker.name: choose(worker) for worker in chosen}
    try:
        for worker in chosen:
            others = {other: its for other, its in names.items() if other != worker.name}
            spec = make(worker, names[worker.name], segment.allocate(worker.name), others)
            made.append(await worker.add_interface(spec))
    except BaseException:
        with anyio.CancelScope(shield=True):
            for worker, interface in zip(chosen, made, strict=False):
                await worker.remove_interface(interface)
        raise
    return made
