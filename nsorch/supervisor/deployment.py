"""A whole topology at once."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio

from nsorch.errors import UnsupportedError
from nsorch.supervisor.routes import ShortestPaths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsorch.supervisor.network import Bridge, Link, Side
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import LinkSpec, To, Topology

# Links to be planned between two turns of the event loop.
_SLICE = 10


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
            self._supervisor._wiring.retire(self.bridges.values())
            await self._supervisor._starter.remove(list(self.workers.values()))
            await self._supervisor._wiring.remove_bridges(list(self.bridges.values()))
        await anyio.lowlevel.checkpoint()


async def deploy(supervisor: Supervisor, topology: Topology) -> Deployment:
    topology.validate()
    if emulated := topology.emulated():
        raise UnsupportedError(f"{', '.join(emulated)}: link emulation is not in this version of nsorch", stage="link")
    wiring = supervisor._wiring

    async def plan() -> None:
        routed = topology.routing == "shortest-path"
        specs: dict[Link, LinkSpec | To] = {}
        for worker in topology.workers.values():
            specs |= zip(wiring.links_of.get(worker.name, ()), worker.links, strict=False)
        for number, spec in enumerate(topology.links):
            specs[wiring.plan_link(spec, routed=routed)] = spec
            if number % _SLICE == _SLICE - 1:
                await anyio.lowlevel.checkpoint()
        if not routed:
            return
        loopbacks = {name: wiring.loopback_pool.take(name) for name in topology.workers}

        def cost(link: Link, side: Side) -> float:
            node = side.bridge if side.worker is None else side.worker
            assert node is not None
            return topology.cost(specs[link], node.name)

        await anyio.lowlevel.checkpoint()
        paths = ShortestPaths(topology, wiring.links_of, loopbacks, cost)
        for name in topology.workers:
            await anyio.lowlevel.checkpoint()
            wiring.set_routing(name, loopbacks[name], paths.routes_of(name))

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
