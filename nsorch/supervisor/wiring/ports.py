"""Interfaces that become ports of a VRF or a bond, and what the kernel drops of them then."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from nsorch.errors import NetlinkError
from nsorch.net import interfaces as net
from nsorch.supervisor.wiring.telling import forget
from nsorch.topology import Bond, Vrf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nsorch.net.netlink import NetnsHandle
    from nsorch.supervisor.wiring.devices import Device
    from nsorch.supervisor.wiring.interfaces import Interfaces
    from nsorch.supervisor.wiring.network import Link, Side
    from nsorch.supervisor.wiring.wiring import Wiring


class Ports:
    def __init__(self, wiring: Wiring, interfaces: Interfaces) -> None:
        self._wiring = wiring
        self._interfaces = interfaces

    @contextlib.asynccontextmanager
    async def own(self, device: Device) -> AsyncIterator[None]:
        """What happens to the ports of *device* meanwhile is nsorch's doing."""
        async with contextlib.AsyncExitStack() as stack:
            for link, _, _ in self._ends(device):
                await stack.enter_async_context(self._wiring.watcher.own(link))
            yield

    async def take(self, device: Device, handle: NetnsHandle) -> None:
        """They are ports of *device* now. The kernel has set those of a VRF down and up again and dropped their routes,
        neighbours and IPv6 addresses; those of a bond have its hardware address, and lose their own addresses: what is
        sent to these would find the bond instead."""
        if isinstance(device.spec, Vrf):
            for end in self._ends(device):
                if end[1].worker is not None:
                    end[1].worker._tables[end[1].ifname] = device.spec.table
            for below in self._devices(device):
                below.worker._tables[below.name] = device.spec.table
            await self._restore(device, handle)
        elif isinstance(device.spec, Bond):
            await self._strip(device, handle)

    async def release(self, device: Device, handle: NetnsHandle) -> None:
        """*device* is gone; the kernel has left its ports down, or without their routes."""
        names = [side.ifname for _, side, _ in self._ends(device)]
        for name in (*names, *(below.name for below in self._devices(device))):
            with contextlib.suppress(NetlinkError):  # another program may have removed it
                await self._wiring.kernel.in_thread(partial(net.set_up, handle, name, (), carrier=False))
        self.forget(device)
        await self._restore(device, handle)

    def forget(self, device: Device) -> None:
        """Its ports have the main routing table again."""
        for _, side, _ in self._ends(device):
            if side.worker is not None:
                side.worker._tables.pop(side.ifname, None)
        for below in self._devices(device):
            below.worker._tables.pop(below.name, None)

    async def _strip(self, bond: Device, handle: NetnsHandle) -> None:
        for _, side, other in self._ends(bond):
            if other.bridge is not None:
                await forget(self._wiring.kernel, other.bridge, [side], stays=True)
            await self._wiring.kernel.in_thread(net.strip, handle, side.ifname, side.addresses)
            if side.segment is not None:
                side.segment.release(side.addresses)
            side.addresses = ()
            side.mac = (await self._wiring.kernel.in_thread(net.look_at, handle, side.ifname)).mac
            if side.worker is not None:
                self._wiring.names.stale.add(side.worker.name)
        for below in self._devices(bond):
            await self._wiring.kernel.in_thread(net.strip, handle, below.name, below.addresses)
            self._interfaces.give_back(below)
            below.mac = (await self._wiring.kernel.in_thread(net.look_at, handle, below.name)).mac

    async def _restore(self, device: Device, handle: NetnsHandle) -> None:
        for link, side, _ in self._ends(device):
            await self._wiring.restore_end(link, side)
        for below in self._devices(device):
            await self._interfaces.restore(below, handle)

    def _ends(self, device: Device) -> Iterator[tuple[Link, Side, Side]]:
        """Those of its ports that are ends of links."""
        for port in device.ports:
            end = self._wiring.record.end_in(device.netns, port)
            if end is not None and end[0]._state in ("up", "down"):
                yield end

    def _devices(self, device: Device) -> Iterator[Device]:
        """Its other ports."""
        for port in device.ports:
            below = self._interfaces.find(device.netns, port)
            if below is not None and below.state == "up":
                yield below
