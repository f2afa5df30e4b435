"""A whole topology at once."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio

from nsorch.errors import UnsupportedError
from nsorch.supervisor.routes import shortest_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsorch.supervisor.network import Bridge, Link
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import Topology


class Deployment:
    """What :meth:`nsorch.Supervisor.deploy` has brought up."""

    def __init__(
        self,
        supervisor: Supervisor,
        topology: Topology,
        workers: Mapping[str, Worker],
        bridges: Mapping[str, Bridge],
        links: Mapping[str, Link],
    ) -> None:
        self.topology = topology
        self.workers = MappingProxyType(dict(workers))
        self.bridges = MappingProxyType(dict(bridges))
        self.links = MappingProxyType(dict(links))
        self._supervisor = supervisor

    def __repr__(self) -> str:
        return f"<Deployment of {self.topology!r}>"

    async def remove(self) -> None:
        """Take all of it down. Doing it twice is once; cancelled, it is done all the same."""
        with anyio.CancelScope(shield=True):
            await self._supervisor._starter.remove(list(self.workers.values()))
            for bridge in self.bridges.values():
                await bridge.remove()
        await anyio.lowlevel.checkpoint()


async def deploy(supervisor: Supervisor, topology: Topology) -> Deployment:
    topology.validate()
    if emulated := topology.emulated():
        raise UnsupportedError(f"{', '.join(emulated)}: link emulation is not in this version of nsorch", stage="link")
    wiring = supervisor._wiring
    planned: list[Link] = []

    def plan() -> None:
        weights: dict[str, float] = {}
        for spec in topology.links:
            link = wiring.plan_link(spec)
            planned.append(link)
            weights[link.name] = spec.weight
        if topology.routing == "shortest-path":
            loopbacks = {name: wiring.loopback_pool.take(name) for name in topology.workers}
            wiring.set_routing(loopbacks, shortest_paths(topology, wiring.links_of, loopbacks, weights))

    workers, bridges = await supervisor._starter.deploy(
        list(topology.workers.values()), list(topology.bridges.values()), plan
    )
    return Deployment(
        supervisor,
        topology,
        {worker.name: worker for worker in workers},
        {bridge.name: bridge for bridge in bridges},
        {link.name: link for worker in workers for link in wiring.links_of.get(worker.name, ())},
    )
