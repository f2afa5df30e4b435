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
from nsorch.supervisor.traffic.tun import TunDevice, attach
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.devices import Device
from nsorch.supervisor.wiring.far_ends import FarEnds
from nsorch.supervisor.wiring.planning import netns_key
from nsorch.supervisor.wiring.ports import Ports
from nsorch.supervisor.wiring.routes import device_routes
from nsorch.topology import Ipvlan, Macvlan, Tun, Vlan, WireGuard
from nsorch.topology.interface_files import to_interface

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from nsorch.net.addresses import Segment
    from nsorch.net.messages import LinkState
    from nsorch.net.netlink import NetnsHandle
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Interface
    from nsorch.supervisor.wiring.wiring import Wiring
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
        self._locks: dict[str, anyio.Lock] = {}  # of network namespaces, while something is made there
        self._ports = Ports(wiring, self)
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
        for number, spec in enumerate(worker.spec.all_interfaces):
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
        known = self._wiring.record.ifnames_of(device.netns)
        for needed in device.spec.needs:
            if needed not in known or needed == device.name:
                raise TopologyError(f'{where}: the worker has no interface "{needed}"')
        others = [d for worker in self._wiring.record.workers_in(device.netns) for d in worker._devices.values()]
        for other in others:
            for port in set(other.ports).intersection(device.ports) if other is not device else ():
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

    def _segment(self, device: Device) -> Segment | None:
        """That of the bridge that it is on, where that is known."""
        if not isinstance(device.spec, Vlan | Macvlan | Ipvlan):
            return None
        end = self._wiring.record.end_in(device.netns, device.spec.parent)
        bridge = None if end is None else end[2].bridge
        if isinstance(device.spec, Vlan):
            return None if bridge is None or not device.spec.is_of_bridges else bridge._vlans.get(device.spec.id)
        if end is not None:
            return None if bridge is None else end[1].segment
        below = self.find(device.netns, device.spec.parent)
        return None if below is None else below.segment

    def find(self, netns: str, name: str) -> Device | None:
        """Of those who share a network namespace."""
        there = (worker._devices.get(name) for worker in self._wiring.record.workers_in(netns))
        return next((device for device in there if device is not None), None)

    # -- making

    async def add(self, worker: Worker, spec: InterfaceSpec | Mapping[str, Any]) -> Interface:
        """See :meth:`Worker.add_interface`."""
        return (await self._add(worker, spec)).interface()

    async def add_open(self, worker: Worker, spec: Tun) -> TunDevice:
        """With a descriptor of it, that it lives as long as."""
        (opened,) = (await self._add(worker, spec, handed_out=True)).opened
        return opened

    async def _add(
        self, worker: Worker, spec: InterfaceSpec | Mapping[str, Any], *, handed_out: bool = False
    ) -> Device:
        self._supervisor._check_running()
        spec = to_interface(spec, "spec")
        if worker.state is events.State.REMOVED:
            raise ClosedError("the worker was removed", worker=worker.name)
        where = f"workers.{worker.name}.interfaces.{spec.name}"
        await self._require({spec.kind: where})
        device = self._reserve(worker, spec, where, described=False)
        device.handed_out = handed_out
        try:
            self._plan(device, where)
            await self._make_planned([device])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove([device])
            raise
        return device

    async def make_all(self, workers: Iterable[Worker]) -> None:
        """Those of *workers* that are planned."""
        await self._make_planned([device async for worker in in_turns(workers) for device in worker._devices.values()])

    async def _make_planned(self, devices: Iterable[Device]) -> None:
        """After the links: then the routes through them. Of one network namespace one after the other.

        :raises NetlinkError: the kernel refused one; it is undone, those before it stay
        """
        by_worker: dict[Worker, list[Device]] = {}
        for device in devices:
            by_worker.setdefault(device.worker, []).append(device)
        for worker, its in by_worker.items():
            with anyio.CancelScope(shield=True):
                async with self._locks.setdefault(its[0].netns, anyio.Lock()):
                    try:
                        async with self._wiring.kernel.handles([worker]) as handles:
                            for device in its:
                                await self._make(device, handles[netns_key(worker)])
                        await self._add_routes(worker, its)
                    except NetlinkError:
                        _check_there(its[0])  # what it stands on may be gone, too
                        raise
            await anyio.lowlevel.checkpoint()
        if by_worker:
            await self._wiring.settle([device for its in by_worker.values() for device in its])

    async def _make(self, device: Device, handle: NetnsHandle) -> None:
        kernel, worker = self._wiring.kernel, device.worker
        _check_there(device)
        async with self._ports.own(device):
            if isinstance(device.spec, Tun):
                state = await self._make_tun(device, handle)
            else:
                try:
                    state = await kernel.in_thread(net.make, handle, device.plan(*self.far_ends.underlay(device)))
                except NetlinkError as exc:
                    await self._ports.release(device, handle)
                    raise _explained(exc, device) from None
            _check_there(device)
            device.state, device.mac, device.mtu = "made", state.mac, state.mtu
            if isinstance(device.spec, WireGuard):
                await self._configure(device, device.spec)
            await self._ports.take(device, handle)
        _check_there(device)
        device.state = "up"
        self.far_ends.note(device)
        self._wiring.names.stale.add(worker.name)
        self._wiring.publish(events.InterfaceCreated(worker=worker.name, interface=device.name, type=device.spec.kind))

    async def _make_tun(self, device: Device, handle: NetnsHandle) -> LinkState:
        kernel = self._wiring.kernel
        fd = await attach(self._supervisor, device, index=device.index, persistent=not device.handed_out)
        if device.handed_out:
            TunDevice(device, fd, owner=True)
        else:
            await kernel.in_thread(descriptors.close, [fd])
        _check_there(device)
        device.state = "made"
        set_up = partial(net.set_up, carrier=device.handed_out, mac=device.wanted_mac(), mtu=device.spec.mtu)
        await kernel.in_thread(set_up, handle, device.name, device.addresses)
        return await kernel.in_thread(net.look_at, handle, device.name)  # type: ignore[no-any-return]

    async def _configure(self, device: Device, spec: WireGuard) -> None:
        key = spec.private_key or generate_key()
        device.public_key = await self.far_ends.with_wireguard(
            device, lambda sock: sock.configure(spec.name, key, spec.port)
        )

    async def _add_routes(self, worker: Worker, devices: Collection[Device]) -> None:
        routes = device_routes(worker, self._wiring.record.links_of.get(worker.name, ()), devices)
        if routes:
            await self._wiring.kernel.in_netns(worker, self._wiring.kernel.engine.add_routes, routes)

    # -- when what is below comes up again

    async def restore_above(self, netns: str, name: str) -> None:
        """The kernel has set down what is above *name*, too, and dropped routes and IPv6 addresses."""
        for device in self._above(netns, name):
            if device.state == "up":
                async with self._wiring.kernel.handles([device.worker]) as handles:
                    await self.restore(device, handles[netns_key(device.worker)])

    async def restore(self, device: Device, handle: NetnsHandle) -> None:
        """After it was down for a moment."""
        set_up = partial(net.set_up, carrier=device.has_carrier, link_local=device.has_link_local)
        try:
            await self._wiring.kernel.in_thread(set_up, handle, device.name, device.addresses)
        except NetlinkError as exc:
            if exc.errno != errno.ENODEV:
                raise
            for gone in reversed(self._with_above(device)):
                self._drop(gone)  # another program has removed it
            return
        await self._add_routes(device.worker, [device])
        await self.restore_above(device.netns, device.name)

    def _above(self, netns: str, name: str) -> list[Device]:
        workers = self._wiring.record.workers_in(netns)
        return [device for worker in workers for device in worker._devices.values() if device.parent == name]

    # -- changing and removing

    async def adapt(self, worker: Worker, described: Sequence[InterfaceSpec]) -> None:
        """Make what the description has of what it had: what is the same, and there, isn't touched."""
        wanted = {spec.name: spec for spec in described}
        gone = [d for d in worker._devices.values() if d.described and wanted.get(d.name) != d.spec]
        await self.remove(gone)
        for number, spec in enumerate(described):
            if spec.name not in worker._devices:
                where = f"workers.{worker.name}.interfaces[{number}]"
                worker._check_here()  # else the name would be taken for good
                device = self._reserve(worker, spec, where, described=True)
                try:
                    self._plan(device, where)
                except NsorchError:
                    self._drop(device)
                    raise
        await self._make_planned([d for d in worker._devices.values() if d.described and d.state == "planned"])

    async def remove(self, devices: Iterable[Device]) -> None:
        """With all that is above them. Shield it."""
        doomed: dict[Worker, list[Device]] = {}
        for device in devices:
            for each in self._with_above(device):
                if each.state != "removed" and each not in doomed.setdefault(each.worker, []):
                    doomed[each.worker].append(each)
        for worker, its in doomed.items():
            for device in its:
                await self._close(device)
            there = [device for device in its if device.state in ("made", "up")]
            if there and not self._supervisor._helper.died:
                async with self._wiring.kernel.handles([worker]) as handles:
                    for device in there:
                        await self._delete(device, handles[netns_key(worker)])
            for device in reversed(its):
                self._drop(device)
        if doomed:
            await self._wiring.settle()

    async def _delete(self, device: Device, handle: NetnsHandle) -> None:
        async with self._ports.own(device):
            await self._wiring.kernel.in_thread(net.delete, handle, [device.name])
            if device.ports:
                await self._ports.release(device, handle)

    async def _close(self, device: Device) -> None:
        for opened in list(device.opened):
            await opened._end()

    def _with_above(self, device: Device) -> list[Device]:
        found = [device]
        for other in self._above(device.netns, device.name):
            found += self._with_above(other)
        return found

    def above(self, netns: str, name: str) -> list[Device]:
        """All that is above *name*."""
        return [each for device in self._above(netns, name) for each in self._with_above(device)]

    def drop_above(self, netns: str, name: str) -> None:
        """The link with the end *name* is gone, and the kernel has removed what was above it."""
        for device in self._above(netns, name):
            for other in reversed(self._with_above(device)):
                self._drop(other)

    async def drop_worker(self, worker: Worker, *, dying: bool) -> None:
        """The worker is removed; *dying*: its network namespace ends, and all that is in it."""
        self._locks.pop(worker.name, None)
        devices = list(worker._devices.values())
        for device in devices:
            await self._close(device)
        if not dying:
            await self.remove(devices)
        for device in reversed(devices):
            self._drop(device)

    async def publish_removed(self, workers: Iterable[Worker]) -> None:
        """All ended with the supervisor. Shield it."""
        async for worker in in_turns(list(workers)):
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
        self.give_back(device)
        self.far_ends.forget(device)
        self._wiring.record.give_ifname_back(device.netns, device.name)
        if worker._devices.get(device.name) is device:
            del worker._devices[device.name]
        self._ports.forget(device)
        self._wiring.names.stale.add(worker.name)
        if was_up:
            kind = device.spec.kind
            self._wiring.publish(events.InterfaceRemoved(worker=worker.name, interface=device.name, type=kind))

    def give_back(self, device: Device) -> None:
        """Its addresses."""
        segment, device.segment = device.segment, None
        if segment is not None:
            segment.release(address for address in device.addresses if _is_of(segment, address))
        device.addresses = ()


def _check_there(device: Device) -> None:
    if device.state == "removed":
        raise ClosedError("the worker was removed", worker=device.worker.name)


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
