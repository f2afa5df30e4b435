"""What is to be made, together with what others want made at the same time."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, field

from nsorch.errors import ClosedError, NsorchError
from nsorch.net.plan import Batch
from nsorch.supervisor.wiring.planning import port_plan
from nsorch.supervisor.wiring.telling import tell
from nsorch.values import Shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.worker import Worker

#: stage of the error where somebody has removed a link while it was made
LINKING = "link"

# So many ports are looked at before a bridge is said to be ready.
_LATEST = 32


@define(eq=False, kw_only=True, repr=False)
class Order(Shown):
    """Something to be made that somebody waits for.

    :ivar bridges: those of the links, and others that are to exist
    :ivar rise: whether this is all for now, so that new bridges are set up
    """

    batch: Batch
    workers: Sequence[Worker] = ()
    links: Sequence[Link] = ()
    bridges: Sequence[Bridge] = ()
    rise: bool = True
    done: anyio.Event = field(factory=lambda: anyio.Event())  # anyio imports it when it is asked for
    failure: Exception | None = None


class Orders:
    """:param start_soon: runs a small task until the supervisor ends"""

    def __init__(self, kernel: Kernel, start_soon: Callable[[Callable[[], Awaitable[Any]]], None]) -> None:
        self._kernel = kernel
        self._start_soon = start_soon
        self._orders: list[Order] = []
        self._draining = False

    async def carry_out(self, order: Order) -> None:
        """Have the thread do it, together with what others want at the same time."""
        self._orders.append(order)
        if not self._draining:
            self._draining = True
            self._start_soon(self._drain)
        with anyio.CancelScope(shield=True):  # the kernel can't be told to stop half-way
            await order.done.wait()
        if order.failure is not None:
            raise order.failure
        await anyio.lowlevel.checkpoint()

    async def _drain(self) -> None:
        orders: list[Order] = []
        try:
            while self._orders:
                orders, self._orders = self._orders, []
                try:
                    await self._execute(orders)
                except NsorchError as exc:
                    if len(orders) == 1:
                        orders[0].failure = exc
                    else:
                        await self._execute_singly(orders)
                for order in orders:
                    order.done.set()
        finally:
            self._draining = False
            for order in (*orders, *self._orders):
                if not order.done.is_set():
                    order.failure = self._kernel.ended()
                    order.done.set()

    async def _execute_singly(self, orders: Sequence[Order]) -> None:
        """One of them failed and all are undone: find out whose fault it is."""
        for order in orders:
            try:
                await self._execute([order])
            except NsorchError as exc:
                order.failure = exc

    async def _execute(self, orders: Sequence[Order]) -> None:
        bridges = dict.fromkeys(bridge for order in orders for bridge in order.bridges)
        missing = [(bridge, part) for bridge in bridges for part in bridge._parts.all if not part.made]
        rising = dict.fromkeys(bridge for order in orders if order.rise for bridge in order.bridges)
        lower = [part for bridge in rising for part in bridge._parts.all if not part.up]
        trunks = [trunk for bridge, part in missing if (trunk := part.plan_trunk(bridge.spec))]
        # Of links between bridges: the kernel makes only one end up.
        ends = (link._sides[1] for order in orders for link in order.links if link._sides[0].worker is None)
        far = [side.index for side in ends if side.index is not None]
        links = [link for order in orders for link in order.links]
        late = _late(links)
        joining = {bridge: bridge._joining | late.get(bridge, {}) for bridge in rising}
        batch = Batch(
            bridges=tuple(part.plan(bridge.spec) for bridge, part in missing),
            links=(*trunks, *(item for order in orders for item in order.batch.links)),
            nodes=tuple(item for order in orders for item in order.batch.nodes),
            joining=tuple(port_plan(port) for ends in joining.values() for port in ends.values()),
            raised=(*far, *(index for part in lower for index in part.interfaces)),
        )
        workers = dict.fromkeys(worker for order in orders for worker in order.workers)
        async with self._kernel.handles(workers) as handles:
            await self._kernel.in_thread(self._kernel.engine.execute, batch, handles)
        for _, part in missing:
            part.made = True
        # Somebody has removed them before they were there.
        doomed = [index for bridge, part in missing if bridge._leaving or bridge._removed for index in part.interfaces]
        if doomed:
            await self._kernel.delete_in_fabric(doomed)
        for part in lower:
            part.up = True
        gone = [link for link in links if link._leaving]  # somebody has removed them meanwhile
        for link in [link for link in links if not link._leaving]:
            link._state = "up"
            for side, port in link._both():
                if port.bridge is None:
                    continue
                if side in late.get(port.bridge, ()):
                    port.bridge._joining[side] = port
                elif side.worker is not None:
                    port.bridge._add_end(side, port)
        for bridge, ports in joining.items():
            bridge._have_joined(ports)
        for link in gone:
            side = next((side for side in link._sides if side.worker is None), link._sides[0])
            with contextlib.suppress(ClosedError):  # the worker was removed, too
                await self._kernel.with_handle(side, self._kernel.engine.delete_links, [side.ifname])
        for bridge in rising:
            await self._kernel.in_thread(self._kernel.engine.await_ports, _last_ports(bridge))
            await tell(self._kernel, bridge)


def _late(links: Sequence[Link]) -> dict[Bridge, dict[Side, Side]]:
    """The ends of *links* whose ports join bridges that are up, with these."""
    found: dict[Bridge, dict[Side, Side]] = {}
    for side, port in (both for link in links for both in link._both()):
        if port.bridge is not None and port.part is not None and port.part.up:
            found.setdefault(port.bridge, {})[side] = port
    return found


def _last_ports(bridge: Bridge) -> list[int]:
    """The kernel takes notice of one after the other: where the last ones are ready, all are."""
    latest = itertools.islice(reversed(bridge._ends.values()), _LATEST)
    return [port.index for port in latest if port.index is not None]
