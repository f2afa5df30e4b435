"""Ends on one segment that connect to each other are introduced for good, once there are many of them: of neighbours
that had to be asked for, the kernel keeps 1,024 (``gc_thresh3``) of all network namespaces together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from nsorch.net.messages import RTM_NEWNEIGH
from nsorch.supervisor.wiring.planning import as_neighbour
from nsorch.supervisor.wiring.telling import at

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.network import Bridge, Side
    from nsorch.supervisor.wiring.record import Record
    from nsorch.supervisor.worker import Worker

# So many pairs may ask: each takes two places in the kernel's table.
_ASKING = 200


class Acquaintances:
    """Pairs, by whom they are and where."""

    def __init__(self, kernel: Kernel, record: Record) -> None:
        self._kernel = kernel
        self._record = record
        self._asking: set[tuple[str, str]] = set()
        # By the bridge of those who are to be known: by those who are to know them.
        self._pending: dict[Bridge, dict[Side, dict[Side, None]]] = {}

    async def make(self, source: Worker, address: IPv4Address | IPv6Address) -> None:
        """*source* is about to send to *address*."""
        side = self._record.neighbour_of(source, address)
        other = None if side is None else self._record.end_with(side.segment, address)
        if side is None or other is None or other is side:
            return
        pair = (side.owner, other.owner)
        if len(self._asking) < _ASKING:
            self._asking.add(pair)
        if pair not in self._asking:
            await self._introduce(side, other)
            await self._introduce(other, side)

    async def _introduce(self, whom: Side, to: Side) -> None:
        """Together with what others want introduced meanwhile."""
        bridge = self._record.bridge_of(whom)
        if bridge is None or whom in bridge._introduced.get(to, ()):
            return
        self._pending.setdefault(bridge, {}).setdefault(to, {})[whom] = None
        with anyio.CancelScope(shield=True):
            async with bridge._telling:
                for knower, known in self._pending.pop(bridge, {}).items():
                    there = [side for side in known if side in bridge._ends]
                    neighbours = [each for side in there for each in as_neighbour(side, knower)]
                    index = knower.index or knower.ifname
                    bridge._introduced.setdefault(knower, set()).update(there)
                    await at(self._kernel, knower, self._kernel.engine.tell_neighbours, RTM_NEWNEIGH, index, neighbours)
