"""Interfaces of workers besides the ends of their links: planned, made, kept right and removed."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from nsorch import events
from nsorch.core import descriptors
from nsorch.errors import ClosedError, NameInUseError, NetlinkError, NsorchError, TopologyError, UnsupportedError
from nsorch.net import interfaces as net
from nsorch.net.wireguard import generate_key
from nsorch.supervisor.devices import Device
from nsorch.supervisor.far_ends import FarEnds
from nsorch.supervisor.planning import netns_key
from nsorch.supervisor.routes import device_routes
from nsorch.supervisor.telling import forget
from nsorch.supervisor.tun import TunDevice, attach
from nsorch.supervisor.turns import in_turns
from nsorch.topology import Bond, Ipvlan, Macvlan, Tun, Vlan, Vrf, WireGuard

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from nsorch.net.addresses import Segment
    from nsorch.net.engine import NetnsHandle
    from nsorch.supervisor.network import Interface, Link, Side
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec, InterfaceSpec, WorkerSpec

#: of each kind, the module and the option that the kernel is built with
_MODULES = {
    "vlan": ("8021q", "CONFIG_VLAN_8021Q"),
    "macvlan": ("macvlan", "CONFIG_MACVLAN"),
    "ipvlan": ("ipvlan", "CONFIG_IPVLAN"),
    "dummy": ("dummy", "CONFIG_DUMMY"),
    "vxlan": ("vxlan", "CONFIG_VXLAN"),
    "vrf": ("vrf", "CONFIG_NET_VRF"),
    "bond": ("bonding", "CONFIG_BONDING"),
    "wireguard": ("wireguard", "CONFIG_WIREGUARD"),
}


class Interfaces:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._supported: dict[str, bool] = {}
        self.far_ends = FarEnds(supervisor, wiring)

    # -- before anything is made

    async def require(self, workers: Iterable[WorkerSpec], bridges: Iterable[BridgeSpec]) -> None:
        """:raises UnsupportedError: the kernel lacks what they need; names the module"""
        first: dict[str, str] = {}  # path of the first of each kind
        async for worker in in_turns(workers):
            for number, interface in enumerate(worker.interfaces):
                first.setdefault(interface.kind, f"workers.{worker.name}.interfaces[{number}]")
        for bridge in bridges:
            if bridge.vlan_aware:
                first.setdefault(net.VLAN_FILTERING, f"bridges.{bridge.name}.vlan_aware")
        await self._require(first)

    async def _require(self, first: dict[str, str]) -> None:
        first.pop(Tun.kind, None)  # of a file, not of netlink
        kernel = self._wiring.kernel
        for kind in first.keys() - self._supported.keys():
            self._supported[kind] = await kernel.in_thread(net.supports, kernel.engine.fabric, kind)
        missing = [_missing(path, kind) for kind, path in first.items() if not self._supported[kind]]
        if missing:
            raise UnsupportedError("; ".join(missing), stage="interface")

    def reserve(self, worker: Worker) -> None:
        """The names of its description's interfaces, before links without a name choose theirs."""
        for number, spec in enumerate(worker.spec.interfaces):
            self._reserve(worker, spec, f"workers.{worker.name}.interfaces[{number}]", described=True)

    def _reserve(self, worker: Worker, spec: InterfaceSpec, where: str, *, described: bool) -> Device:
        netns, index = self._wiring.record.take_ifname(worker, spec.name, where)
        device = worker._devices[spec.name] = Device(worker, spec, netns, index, described)
        return device

    async def plan(self, workers: Iterable[Worker]) -> None:
        """When all their links are planned: what interfaces stand on, and their addresses."""
        async for worker in in_turns(workers):
            for number, device in enumerate(worker._devices.values()):
                self._plan(device, f"workers.{worker.name}.interfaces[{number}]")

    def _plan(self, device: Device, where: str) -> None:
        known = self._names_in(device.netns)
        for needed in device.spec.needs:
            if needed not in known or needed == device.name:
                raise TopologyError(f'{where}: the worker has no interface "{needed}"')
        for port in device.ports:
            for other in device.worker._devices.values():
                if other is not device and port in other.ports:
                    raise TopologyError(f'{where}.ports: "{port}" is a port of "{other.name}" already')
        segment = device.segment = self._segment(device)
        given = device.spec.address
        if segment is None:
            device.addresses = given
            return
        reserved: list[Any] = []
        try:
            for address in given:
                inside = any(address.ip in network for network in segment.networks)
                reserved.append(segment.reserve(address, device.owner) if inside else address)
            if not given:
                reserved += segment.allocate(device.owner, gateway=device.worker.name)
        except NsorchError:
            segment.release(address for address in reserved if _is_of(segment, address))
            device.segment = None
            raise
        device.addresses = tuple(reserved)

    def _names_in(self, netns: str) -> set[str]:
        """All interfaces that are planned or there, of those who share a network namespace."""
        return self._wiring.record.ifnames_of(netns)

    def _segment(self, device: Device) -> Segment | None:
        """The layer-2 segment that it is on, where that is known."""
        if not isinstance(device.spec, Vlan | Macvlan | Ipvlan):
            return None
        end = self._end(device.worker, device.spec.parent)
        if isinstance(device.spec, Vlan):
            bridge = None if end is None else end[2].bridge
            return None if bridge is None else bridge._vlans.get(device.spec.id)
        if end is not None:
            return end[1].segment
        below = device.worker._devices.get(device.spec.parent)
        return None if below is None else below.segment

    def _end(self, worker: Worker, name: str) -> tuple[Link, Side, Side] | None:
        """The link of *worker* with an end of that name, this end, and the other."""
        for link in self._wiring.record.links_of.get(worker.name, ()):
            for side, other in link._both():
                if side.worker is worker and side.ifname == name:
                    return link, side, other
        return None

    # -- making

    async def add(self, worker: Worker, spec: InterfaceSpec) -> Interface:
        """See :meth:`Worker.add_interface`."""
        return (await self._add(worker, spec)).interface()

    async def add_open(self, worker: Worker, spec: Tun) -> TunDevice:
        """With a descriptor of it, that it lives as long as."""
        (opened,) = (await self._add(worker, spec, handed_out=True)).opened
        return opened

    async def _add(self, worker: Worker, spec: InterfaceSpec, *, handed_out: bool = False) -> Device:
        self._supervisor._check_running()
        if worker.state is events.State.REMOVED:
            raise ClosedError("the worker was removed", worker=worker.name)
        where = f"workers.{worker.name}.interfaces.{spec.name}"
        await self._require({spec.kind: where})
        device = self._reserve(worker, spec, where, described=False)
        device.handed_out = handed_out
        try:
            self._plan(device, where)
            with anyio.CancelScope(shield=True):
                await self.make([worker])
            await anyio.lowlevel.checkpoint()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove([device])
            raise
        return device

    async def make(self, workers: Iterable[Worker]) -> None:
        """Those that are planned, after the links: then the routes through them. Shield it.

        :raises NetlinkError: the kernel refused one; it is undone, those before it stay
        """
        made = False
        async for worker in in_turns(workers):
            planned = [device for device in worker._devices.values() if device.state == "planned"]
            if planned:
                made = True
                async with self._wiring.kernel.handles([worker]) as handles:
                    for device in planned:
                        await self._make(device, handles[netns_key(worker)])
                await self._add_routes(worker, planned)
        if made:
            await self._wiring.settle()

    async def _make(self, device: Device, handle: NetnsHandle) -> None:
        kernel, worker = self._wiring.kernel, device.worker
        if isinstance(device.spec, Tun):
            fd = await attach(self._supervisor, device, index=device.index, persistent=not device.handed_out)
            if device.handed_out:
                TunDevice(device, fd, owner=True)
            else:
                await kernel.in_thread(descriptors.close, [fd])
            set_up = partial(net.set_up, carrier=device.handed_out, mac=device.wanted_mac(), mtu=device.spec.mtu)
            await kernel.in_thread(set_up, handle, device.name, device.addresses)
            state = await kernel.in_thread(net.look_at, handle, device.name)
        else:
            try:
                state = await kernel.in_thread(net.make, handle, device.plan(*self.far_ends.underlay(device)))
            except NetlinkError as exc:
                await self._release_ports(device, handle)
                raise _explained(exc, device) from None
        device.state, device.mac, device.mtu = "up", state.mac, state.mtu
        if isinstance(device.spec, WireGuard):
            await self._configure(device, device.spec)
        if isinstance(device.spec, Vrf):
            worker._tables.update(dict.fromkeys(device.ports, device.spec.table))
            await self._restore_ports(device, handle)
        elif isinstance(device.spec, Bond):
            await self._strip_ports(device, handle)
        self._wiring.names.stale.add(worker.name)
        self._wiring.publish(events.InterfaceCreated(worker=worker.name, interface=device.name, type=device.spec.kind))

    async def _configure(self, device: Device, spec: WireGuard) -> None:
        key = spec.private_key or generate_key()
        device.public_key = await self.far_ends.with_wireguard(
            device, lambda sock: sock.configure(spec.name, key, spec.port)
        )

    async def _add_routes(self, worker: Worker, devices: Collection[Device]) -> None:
        routes = device_routes(worker, self._wiring.record.links_of.get(worker.name, ()), devices)
        if routes:
            await self._wiring.kernel.in_netns(worker, self._wiring.kernel.engine.add_routes, routes)

    # -- ports

    async def _strip_ports(self, bond: Device, handle: NetnsHandle) -> None:
        """What is sent to their addresses would find the bond instead."""
        for port in bond.ports:
            end, below = self._end(bond.worker, port), bond.worker._devices.get(port)
            had = end[1].addresses if end is not None else below.addresses if below is not None else ()
            if end is not None:
                _, side, other = end
                if other.bridge is not None:
                    await forget(self._wiring.kernel, other.bridge, [side], stays=True)
                if side.segment is not None:
                    side.segment.release(side.addresses)
                side.addresses = ()
            elif below is not None:
                self._give_back(below)
            await self._wiring.kernel.in_thread(net.strip, handle, port, had)

    async def _restore_ports(self, device: Device, handle: NetnsHandle) -> None:
        """The kernel sets ports down and up again, and drops their routes, neighbours and IPv6 addresses."""
        for port in device.ports:
            end, below = self._end(device.worker, port), device.worker._devices.get(port)
            if end is not None:
                await self._wiring.restore_end(end[0], end[1])
            elif below is not None:
                await self._restore(below, handle)

    async def _release_ports(self, device: Device, handle: NetnsHandle) -> None:
        """It is gone; the kernel has left its ports down, or without their routes."""
        for port in device.ports:
            device.worker._tables.pop(port, None)
            if port in self._names_in(device.netns):
                await self._wiring.kernel.in_thread(partial(net.set_up, handle, port, (), carrier=False))
        await self._restore_ports(device, handle)

    # -- when what is below comes up again

    async def restore_above(self, worker: Worker, name: str) -> None:
        """The kernel has set down what is above *name*, too, and dropped routes and IPv6 addresses."""
        above = [d for d in worker._devices.values() if d.parent == name and d.state == "up"]
        if above:
            async with self._wiring.kernel.handles([worker]) as handles:
                for device in above:
                    await self._restore(device, handles[netns_key(worker)])

    async def _restore(self, device: Device, handle: NetnsHandle) -> None:
        carrier = not isinstance(device.spec, Tun)
        await self._wiring.kernel.in_thread(partial(net.set_up, handle, device.name, device.addresses, carrier=carrier))
        await self._add_routes(device.worker, [device])
        await self.restore_above(device.worker, device.name)

    # -- changing and removing

    async def adapt(self, worker: Worker, described: Sequence[InterfaceSpec]) -> None:
        """Make what the description has of what it had: what is the same, and there, isn't touched."""
        wanted = {spec.name: spec for spec in described}
        gone = [d for d in worker._devices.values() if d.described and wanted.get(d.name) != d.spec]
        await self.remove(gone)
        for number, spec in enumerate(described):
            if spec.name not in worker._devices:
                where = f"workers.{worker.name}.interfaces[{number}]"
                device = self._reserve(worker, spec, where, described=True)
                try:
                    self._plan(device, where)
                except NsorchError:
                    self._drop(device)
                    raise
        await self.make([worker])

    async def remove(self, devices: Iterable[Device]) -> None:
        """With all that is above them. Shield it."""
        by_worker: dict[Worker, list[Device]] = {}
        for device in devices:
            doomed = by_worker.setdefault(device.worker, [])
            doomed += [d for d in self._with_above(device) if d not in doomed and d.state != "removed"]
        for worker, doomed in by_worker.items():
            for device in doomed:
                await self._close(device)
            there = [device for device in doomed if device.state == "up"]
            if there and not self._supervisor._helper.died:
                async with self._wiring.kernel.handles([worker]) as handles:
                    handle = handles[netns_key(worker)]
                    await self._wiring.kernel.in_thread(net.delete, handle, [device.name for device in there])
                    for device in there:
                        if device.ports:
                            await self._release_ports(device, handle)
            for device in reversed(doomed):
                self._drop(device)
        if by_worker:
            await self._wiring.settle()

    async def _close(self, device: Device) -> None:
        for opened in list(device.opened):
            await opened._end()

    def _with_above(self, device: Device) -> list[Device]:
        found = [device]
        for other in device.worker._devices.values():
            if other.parent == device.name:
                found += self._with_above(other)
        return found

    def drop_above(self, worker: Worker, name: str) -> None:
        """The link with the end *name* is gone, and the kernel has removed what was above it."""
        for device in [device for device in worker._devices.values() if device.parent == name]:
            for other in reversed(self._with_above(device)):
                self._drop(other)

    async def drop_worker(self, worker: Worker, *, dying: bool) -> None:
        """The worker is removed; *dying*: its network namespace ends, and all that is in it."""
        devices = list(worker._devices.values())
        for device in devices:
            await self._close(device)
        if not dying:
            await self.remove([device for device in devices if device.state == "up"])
        for device in reversed(devices):
            self._drop(device)

    def publish_removed(self, workers: Iterable[Worker]) -> None:
        """All ended with the supervisor."""
        for worker in workers:
            for device in reversed(list(worker._devices.values())):
                for opened in list(device.opened):
                    opened._end_now()
                self._drop(device)

    def _drop(self, device: Device) -> None:
        """From the record."""
        if device.state == "removed":
            return
        was_up, device.state = device.state == "up", "removed"
        worker = device.worker
        self._give_back(device)
        self._wiring.record.give_ifname_back(device.netns, device.name)
        if worker._devices.get(device.name) is device:
            del worker._devices[device.name]
        for port in device.ports:
            worker._tables.pop(port, None)
        self._wiring.names.stale.add(worker.name)
        if was_up:
            kind = device.spec.kind
            self._wiring.publish(events.InterfaceRemoved(worker=worker.name, interface=device.name, type=kind))

    def _give_back(self, device: Device) -> None:
        """Its addresses."""
        segment, device.segment = device.segment, None
        if segment is not None:
            segment.release(address for address in device.addresses if _is_of(segment, address))
        device.addresses = ()


def _is_of(segment: Segment, address: Any) -> bool:
    return any(address.ip in network for network in segment.networks)


def _missing(path: str, kind: str) -> str:
    if kind == net.VLAN_FILTERING:
        return f"{path}: this kernel's bridges know no VLANs: it was built without CONFIG_BRIDGE_VLAN_FILTERING"
    module, option = _MODULES[kind]
    return f'{path}: this kernel has no "{kind}" interfaces: the module {module} ({option}) is missing'


def _explained(exc: NetlinkError, device: Device) -> NsorchError:
    if exc.errno == errno.EOPNOTSUPP and exc.operation == "create interface":
        return UnsupportedError(_missing(device.name, device.spec.kind), worker=device.worker.name, stage="interface")
    if exc.errno == errno.EEXIST and exc.operation == "create interface":
        return NameInUseError(f'there is an interface "{device.name}" already', worker=device.worker.name)
    return exc
