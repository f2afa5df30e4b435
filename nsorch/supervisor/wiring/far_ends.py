"""What tunnels know of their far ends in other workers, which come, change their addresses, and go."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING, Any

import anyio

from nsorch.errors import NsorchError
from nsorch.net import interfaces as net
from nsorch.net.wireguard import Peer, WireGuardSocket
from nsorch.supervisor.turns import in_turns
from nsorch.topology import Tun, Vxlan, WireGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from nsorch.net.addresses import Segment
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.devices import Device
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WireGuardPeer

    IPAddress = IPv4Address | IPv6Address

_NETLINK_GENERIC = 16  # linux/netlink.h


class FarEnds:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._tunnels: dict[Device, None] = {}
        self._settling: anyio.Lock | None = None  # made in the loop

    def note(self, device: Device) -> None:
        """It is there now."""
        if isinstance(device.spec, Vxlan | WireGuard):
            self._tunnels[device] = None

    def forget(self, device: Device) -> None:
        self._tunnels.pop(device, None)

    async def settle(self, new: Collection[Device]) -> None:
        """Have each tunnel know what is so now. Shield it.

        :raises NetlinkError: the kernel refused what one of the *new* ones needs; of others there is an event
        """
        if self._supervisor._helper.died or not self._tunnels:
            return
        if self._settling is None:
            self._settling = anyio.Lock()
        async with self._settling:
            async for device in in_turns(list(self._tunnels)):
                if device.state != "up":
                    continue  # it went meanwhile
                wanted = self._remotes(device) if isinstance(device.spec, Vxlan) else self._peers(device)
                if wanted != device.known:
                    before, device.known = device.known, wanted
                    try:
                        await self._tell(device, before)
                    except NsorchError as exc:
                        if device in new:
                            raise
                        self._wiring.report(f"set the far ends of {device.name}", exc, worker=device.worker)

    async def _tell(self, device: Device, before: dict[Any, Peer | None]) -> None:
        gone = [key for key in before if key not in device.known]
        new = [key for key, value in device.known.items() if key not in before or before[key] != value]
        kernel, name = self._wiring.kernel, device.name
        if isinstance(device.spec, Vxlan):
            await kernel.in_netns(device.worker, net.change_ends, name, add=new, remove=gone)
            return
        peers = [peer for key in new if (peer := device.known[key]) is not None]

        def change(sock: WireGuardSocket) -> None:
            sock.remove_peers(name, gone)
            sock.set_peers(name, peers)

        await self.with_wireguard(device, change)

    async def with_wireguard(self, device: Device, func: Callable[[WireGuardSocket], Any]) -> Any:
        """Call *func* in the kernel's thread, with a socket in the device's network namespace."""
        with anyio.CancelScope(shield=True):
            sock = await device.worker.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
            with sock:
                return await self._wiring.kernel.in_thread(lambda: func(WireGuardSocket(sock, device.worker.name)))

    # -- what is so

    def _remotes(self, device: Device) -> dict[Any, Peer | None]:
        assert isinstance(device.spec, Vxlan)
        found: dict[Any, Peer | None] = {}
        for item in device.spec.remote:
            address = item if not isinstance(item, str) else self._address(device, item, self.version(device))
            if address is not None:
                found[address] = None
        return found

    def _peers(self, device: Device) -> dict[Any, Peer | None]:
        assert isinstance(device.spec, WireGuard)
        found: dict[Any, Peer | None] = {}
        for peer in device.spec.peers:
            if peer.worker is None:
                assert peer.public_key is not None
                found[peer.public_key] = _peer(peer, peer.public_key, peer.endpoint, peer.allowed_ips)
            elif (other := self._other(device, peer)) is not None and other.public_key is not None:
                assert isinstance(other.spec, WireGuard)
                address = self._address(device, peer.worker, None)
                endpoint = peer.endpoint or (None if address is None else (address, other.spec.port))
                own = tuple(ip_network(address.ip) for address in other.addresses)
                found[other.public_key] = _peer(peer, other.public_key, endpoint, (*own, *peer.allowed_ips))
        return found

    def _other(self, device: Device, peer: WireGuardPeer) -> Device | None:
        """The WireGuard interface that is meant by *peer*."""
        worker = self._supervisor._workers.get(str(peer.worker))
        if worker is None:
            return None
        theirs = [
            other
            for other in worker._devices.values()
            if isinstance(other.spec, WireGuard) and other.state == "up" and peer.interface in (None, other.name)
        ]
        return min(
            theirs, key=lambda its: (device.worker.name not in its.far_workers, its.name != device.name), default=None
        )

    def _address(self, device: Device, name: str, version: int | None) -> IPAddress | None:
        """Of worker *name*, nearest to the worker of *device*: on a segment of its own, or the name's first."""
        worker = self._supervisor._workers.get(name)
        if worker is None:
            return None
        own = list(self._own(device.worker))
        here = {segment for segment, _ in own}
        versions = {address.version for _, address in own} if version is None else {version}
        found = [
            (segment is None or segment not in here, address)
            for segment, address in self._own(worker)
            if address.version in versions
        ]
        return min(found, key=lambda item: item[0])[1] if found else None

    def version(self, device: Device) -> int:
        """Which IP a VXLAN travels in: that of addresses in its description, or IPv4 where the worker has it."""
        if isinstance(device.spec, Vxlan) and device.spec.version is not None:
            return device.spec.version
        return 6 if {address.version for _, address in self._own(device.worker)} == {6} else 4

    def underlay(self, device: Device) -> tuple[int, int]:
        """The version of IP, and the MTU of the links that a tunnel of its worker travels over."""
        links = self._wiring.record.links_of.get(device.worker.name, ())
        own = [side.mtu for link in links for side in link._sides if side.worker is device.worker]
        return self.version(device), min((mtu for mtu in own if mtu is not None), default=1500)

    def _own(self, worker: Worker) -> Iterator[tuple[Segment | None, IPAddress]]:
        """Addresses that a tunnel can end at."""
        for address in self._wiring.routing.loopbacks_of(worker.name):
            yield None, address.ip
        for link in self._wiring.record.links_of.get(worker.name, ()):
            for side in link._sides:
                if side.worker is worker and link._state != "planned":
                    for address in side.addresses:
                        yield side.segment, address.ip
        for device in worker._devices.values():
            if device.state == "up" and not isinstance(device.spec, Vxlan | WireGuard | Tun):
                for address in device.addresses:
                    yield device.segment, address.ip


def _peer(
    spec: WireGuardPeer,
    public_key: str,
    endpoint: tuple[IPAddress, int] | None,
    allowed: tuple[Any, ...],
) -> Peer:
    return Peer(
        public_key=public_key,
        endpoint=endpoint,
        allowed_ips=tuple(dict.fromkeys(allowed)),
        preshared_key=spec.preshared_key,
        keepalive=spec.keepalive,
    )
