"""What a topology gives by itself, addresses and names of interfaces: nothing that is planned before may take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.supervisor.turns import in_turns
from nsorch.topology.routing import connected

if TYPE_CHECKING:
    from collections.abc import Collection

    from nsorch.topology.model import Topology
    from nsorch.topology.specs import End, To


class Given:
    def __init__(self, addresses: dict[str, set[bytes]]) -> None:
        self._addresses = addresses  # by bridge; those that are linked to it share theirs
        self._names: set[tuple[str, str]] = set()

    def addresses_on(self, bridge: str) -> Collection[bytes]:
        return self._addresses.get(bridge, ())

    def has_name(self, worker: str, name: str) -> bool:
        return (worker, name) in self._names

    def note(self, worker: str, end: End | To, bridge: str | None) -> None:
        if end.name is not None:
            self._names.add((worker, end.name))
        if bridge is not None and end.address:
            self._addresses[bridge].update(address.packed for address in end.address)


async def given_in(topology: Topology) -> Given:
    segments: dict[str, set[bytes]] = {}
    for bridges in connected(topology.bridges, topology.trunks()):
        shared: set[bytes] = set()
        for bridge in bridges:
            segments[bridge] = shared
    given = Given(segments)
    async for name in in_turns(topology.workers):
        for to in topology.workers[name].links:
            given.note(name, to, to.bridge if to.bridge in segments else None)
    async for link in in_turns(topology.links):
        for end, other in ((link.a, link.b), (link.b, link.a)):
            given.note(end.worker, end, other.worker if other.worker in segments else None)
    return given
