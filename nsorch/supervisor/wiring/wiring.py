"""Bridges and links of a lab: addresses are given out, plans are made of them, and one thread carries them out."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anyio
from attrs import evolve

from nsorch import events
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError, NetlinkError, TopologyError
from nsorch.net.plan import KERNEL_MTU, Batch, NodePlan
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.acquainting import Acquaintances
from nsorch.supervisor.wiring.changing import follow_default, leads, part
from nsorch.supervisor.wiring.emulating import needs_netem, require_netem
from nsorch.supervisor.wiring.filtering import Filters
from nsorch.supervisor.wiring.hosts import Names
from nsorch.supervisor.wiring.kernel import Kernel
from nsorch.supervisor.wiring.orders import LINKING, Order, Orders
from nsorch.supervisor.wiring.planning import addresses_in, bridges_of, end_plan, link_plan, netns_key
from nsorch.supervisor.wiring.record import Record
from nsorch.supervisor.wiring.removing import remove_links
from nsorch.supervisor.wiring.routes import check_routes, default_routes, given_routes
from nsorch.supervisor.wiring.routing import Routing
from nsorch.supervisor.wiring.telling import remind
from nsorch.supervisor.wiring.watching import Watcher
from nsorch.topology import End, LinkSpec, To
from nsorch.topology.layer2 import LEAST_MTU6, is_short
from nsorch.topology.specs import as_link, to_end

if TYPE_CHECKING:
    import contextlib
    import os
    from collections.abc import Collection, Container, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Interface, IPv6Interface
    from socket import socket

    from nsorch.core.helper import Facts
    from nsorch.errors import NsorchError
    from nsorch.net.plan import IPNetwork, RoutePlan
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.traffic.capture import Capture
    from nsorch.supervisor.wiring.devices import Device
    from nsorch.supervisor.wiring.interfaces import Interfaces
    from nsorch.supervisor.wiring.leases import Leases
    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.wiring.partitions import Partitions
    from nsorch.supervisor.wiring.services import Services
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec, WorkerSpec

# With more ports that end with their workers, a bridge is deleted some seconds later.
_LEFT, _LATER = 50, 2.0


class Wiring:
    """
    :ivar kernel: where things are done
    :ivar record: what is there, and what is planned
    :ivar routing: shortest paths
    :ivar names: and their addresses
    :ivar watcher: of what other programs do to links
    :ivar filters: NAT and firewalls
    :ivar services: that workers run
    :ivar partitions: who doesn't hear whom
    :ivar acquaintances: who needn't ask for whom
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.kernel = Kernel(supervisor._check_running, self.open_in_fabric)
        self.record = Record(supervisor, self)
        self.routing = Routing(self.kernel)
        self.watcher = Watcher(supervisor, self)
        self.filters = Filters(supervisor, self, self.kernel)
        self.acquaintances = Acquaintances(self.kernel, self.record)
        self.names = Names(supervisor._workers, self.record, self.routing, self.kernel, self._names_changed)
        # Of what few workers have: None until one has it.
        self._leases: Leases | None = None
        self._interfaces: Interfaces | None = None
        self._services: Services | None = None
        self._partitions: Partitions | None = None
        self._led = 0  # times that a gateway had other addresses
        self.defaults: anyio.Lock  # of changes of default routes, one after the other
        self._orders = Orders(self.kernel, supervisor._start_soon)

    def open(self, facts: Facts) -> None:
        # The descriptors stay the helper's.
        self.kernel.open(facts.descriptors["rtnetlink"])
        self.names.open(facts.descriptors.get("hosts", -1))
        self.defaults = anyio.Lock()
        self.watcher.open()

    async def open_in_fabric(self, family: int, kind: int, protocol: int) -> socket:
        """A non-blocking socket there, which the caller owns. Cancelled, none is left open."""
        fabric = self._supervisor._home.descriptors[CLONE_NEWNET]
        return await self._supervisor._helper.open_socket(fabric, family, kind, protocol)

    async def close(self) -> None:
        """After what is under way in threads. Shield it."""
        await self.watcher.close()
        await self.kernel.close()

    def until_end(self) -> contextlib.AbstractContextManager[None]:
        """See :meth:`nsorch.Supervisor._until_end`."""
        return self._supervisor._until_end()

    async def _names_changed(self, names: AbstractSet[str]) -> None:
        await self.filters.refresh(names)
        if self._partitions is not None:
            await self._partitions.refresh(names)
        if self._services is not None:
            self._services.refresh()

    async def publish_removed(self) -> None:
        """All went with the fabric. Shield it."""
        bus = self._supervisor._bus
        if self._interfaces is not None:
            await self._interfaces.publish_removed(self._supervisor._workers.values())
        async for link in in_turns(list(self.record.links.values())):
            if link._announced:
                bus.publish(events.LinkRemoved(link=link.name, ends=link.ends))
            link._state = "removed"
            for tell in link._on_removal:
                tell()
        async for name, bridge in in_turns(list(self.record.bridges.items())):
            bridge._removed = True
            if bridge._announced:
                bus.publish(events.BridgeRemoved(bridge=name))
        self.record.links.clear()
        self.record.bridges.clear()

    @property
    def leases(self) -> Leases:
        if self._leases is None:
            from nsorch.supervisor.wiring.leases import Leases

            self._leases = Leases(self._supervisor, self)
        return self._leases

    @property
    def interfaces(self) -> Interfaces:
        if self._interfaces is None:
            from nsorch.supervisor.wiring.interfaces import Interfaces

            self._interfaces = Interfaces(self._supervisor, self)
        return self._interfaces

    @property
    def has_interfaces(self) -> bool:
        """Whether any worker has, or had, one that is no end of a link."""
        return self._interfaces is not None

    async def require(self, workers: Iterable[WorkerSpec], bridges: Iterable[BridgeSpec]) -> None:
        """:raises UnsupportedError: the kernel lacks the interfaces that they need; names the module"""
        special = [worker async for worker in in_turns(workers) if worker.interfaces]
        aware = [bridge for bridge in bridges if bridge.vlan_aware]
        if special or aware:
            if not self.has_interfaces:
                # In a thread: it takes some milliseconds, for which the loop doesn't wait.
                await in_thread_or_here(import_module, "nsorch.supervisor.wiring.interfaces")
            await self.interfaces.require(special, aware)

    @property
    def services(self) -> Services:
        if self._services is None:
            from nsorch.supervisor.wiring.services import Services

            self._services = Services(self._supervisor, self)
        return self._services

    @property
    def partitions(self) -> Partitions:
        if self._partitions is None:
            from nsorch.supervisor.wiring.partitions import Partitions

            self._partitions = Partitions(self._supervisor, self)
        return self._partitions

    def command_of(self, worker: Worker) -> Sequence[str | bytes | os.PathLike[str]]:
        """Of its main process, as its links are now.

        :raises TopologyError: its service can't serve what it is to
        """
        if worker.spec.service is not None:
            return self.services.command(worker)
        assert worker.spec.command is not None
        return worker.spec.command

    def helpers_of(self, workers: Collection[Worker]) -> list[Worker]:
        """Processes that end with *workers*."""
        return [] if self._leases is None else self._leases.helpers_of(workers)

    async def obtain(self, links: Iterable[Link]) -> None:
        """Addresses by DHCP, for those of their ends that want one."""
        wanted = [link for link in links if any(side.dhcp for side in link._sides)]
        if wanted:
            await self.leases.obtain(wanted)

    # -- the record

    @property
    def bridges(self) -> Mapping[str, Bridge]:
        return MappingProxyType(self.record.bridges)

    @property
    def links(self) -> Mapping[str, Link]:
        return MappingProxyType(self.record.links)

    def addresses_of(self, worker: Worker) -> tuple[IPv4Interface | IPv6Interface, ...]:
        own = tuple(
            address for link in self.record.links_of.get(worker.name, ()) for address in addresses_in(link, worker)
        )
        devices = tuple(address for device in worker._devices.values() for address in device.addresses)
        return (*self.routing.loopbacks_of(worker.name), *own, *devices)

    def addresses_by_interface(self, worker: Worker) -> dict[str, tuple[IPv4Interface | IPv6Interface, ...]]:
        """Of its links, also of those that are only planned, and of its other interfaces."""
        found = {side.ifname: side.addresses for side, _ in self.record.ends_of(worker)}
        return found | {name: device.addresses for name, device in worker._devices.items()}

    # -- bridges

    async def make_bridge(self, spec: BridgeSpec) -> Bridge:
        self._supervisor._check_running()
        await self.require((), [spec])
        bridge = self.record.plan_bridge(spec)
        try:
            await self._orders.carry_out(Order(batch=Batch(), bridges=[bridge]))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove_bridges([bridge])
            raise
        self.announce_bridge(bridge)
        return bridge

    def announce_bridge(self, bridge: Bridge) -> None:
        if bridge._leaving or bridge._removed:
            self._supervisor._check_running()
            raise _removed_meanwhile("bridge", bridge.name)
        bridge._announced = True
        self._supervisor._bus.publish(events.BridgeCreated(bridge=bridge.name))

    async def remove_bridges(self, bridges: Sequence[Bridge]) -> None:
        """With all their links. Cancelled, it is done all the same."""
        with anyio.CancelScope(shield=True):
            there = [bridge for bridge in bridges if self.record.bridges.get(bridge.name) is bridge]
            over = anyio.Event()
            for bridge in there:
                bridge._leaving = over
            try:
                await self._remove_bridges(there)
            finally:
                for bridge in there:
                    bridge._leaving = over if bridge._removed else None
                over.set()
        await anyio.lowlevel.checkpoint()

    async def _remove_bridges(self, bridges: Sequence[Bridge]) -> None:
        self.retire(bridges)
        await remove_links(
            self, [link for link in self.record.links.values() if any(side.bridge in bridges for side in link._sides)]
        )
        if bridges and not self._supervisor._helper.died:
            parts = [part for bridge in bridges for part in bridge._parts.all if part.made]
            doomed = [index for part in parts for index in part.interfaces]
            if sum(bridge._left for bridge in bridges) > _LEFT:
                self._supervisor._start_soon(partial(self._delete_later, doomed))
            else:
                await self.kernel.delete_in_fabric(doomed)
            await self.kernel.forget_groups([bridge._parts.group for bridge in bridges])
        for bridge in bridges:
            if self.record.bridges.get(bridge.name) is not bridge:
                continue  # somebody else was faster, and another may have its name by now
            del self.record.bridges[bridge.name]
            bridge._removed = True
            if bridge._announced:
                self._supervisor._bus.publish(events.BridgeRemoved(bridge=bridge.name))

    async def _delete_later(self, indices: Sequence[int]) -> None:
        """When the kernel has removed most ports: it is faster at many than by the deletion of their bridge."""
        await anyio.sleep(_LATER)
        await self.kernel.delete_in_fabric(indices)

    @staticmethod
    def retire(bridges: Iterable[Bridge]) -> None:
        """They are removed next: what they know of workers needn't be kept right."""
        for bridge in bridges:
            bridge._retired = True

    # -- making links

    async def make_link(
        self, a: Any, b: Any, *, subnet: Any, mtu: int | None, label: str | None, emulation: Mapping[str, Any]
    ) -> Link:
        self._supervisor._check_running()
        first, second = _ends(a, b)
        spec = LinkSpec(a=first, b=second, subnet=subnet, mtu=mtu, label=label, **emulation)
        await self._settled(spec)
        for end in (spec.a, spec.b):
            if end.dhcp:
                self.leases.check(end.worker)
        if needs_netem(*self.record.ways_of(spec)):
            await require_netem(self.kernel, [f"links.{spec.a.worker}-{spec.b.worker}"])
            await self._settled(spec)
        self._supervisor._check_running()
        self._supervisor._check_own(a, b)  # they may have been removed meanwhile
        led = {bridge for bridge in self.record.bridges.values() if bridge.gateway is not None}
        link = self.record.plan_link(spec)
        workers = [side.worker for side in link._sides if side.worker is not None]
        try:
            await self.connect(workers, [link])
            await self.follow_gateway(bridge for bridge in bridges_of([link]) if bridge not in led)
            await self.obtain([link])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await remove_links(self, [link])
            raise
        return link

    async def _settled(self, spec: LinkSpec) -> None:
        """Wait while one of its ends is being started, also one that has taken the name of another meanwhile."""
        workers = self._supervisor._workers
        while starting := [w for end in (spec.a, spec.b) if (w := workers.get(end.worker)) and w._is_starting]:
            await starting[0]._settled()

    async def follow_gateway(self, bridges: Iterable[Bridge]) -> None:
        """Workers on *bridges*, whose segment has a gateway now, or one with other addresses, get it as their default
        route."""
        self._led += 1
        for bridge in (near for first in bridges if first.gateway is not None for near in first._joined()):
            for side in [*bridge._ends, *bridge._joining]:
                if side.worker is not None and side.worker.name != bridge.gateway:
                    await follow_default(self, side.worker)

    async def connect(
        self, workers: Sequence[Worker], links: Sequence[Link] | None = None, bridges: Sequence[Bridge] = ()
    ) -> None:
        """Make what is planned of *workers*, or only *links*, with *bridges* that don't exist yet. All or nothing.

        :raises NetlinkError: the kernel refused; what was made is undone
        """
        if links is None:
            there_are = (link for worker in workers for link in self.record.links_of.get(worker.name, ()))
            links = [link for link in there_are if link._state == "planned"]
        links = list(dict.fromkeys(links))
        there = {side.worker: None for link in links for side in link._sides if side.worker is not None}
        await self.make(links, [*workers, *there], bridges)
        await self.settle()

    async def make(
        self,
        links: Sequence[Link],
        complete: Iterable[Worker] = (),
        bridges: Iterable[Bridge] = (),
        *,
        rise: bool = True,
    ) -> None:
        """Make planned *links*, and configure their ends; all or nothing.

        :param complete: workers of which no planned link is missing then: they get their loopbacks and routes to others
        :param bridges: to exist, too
        :param rise: set up bridges that are new; ports join fastest while they are down
        """
        complete = dict.fromkeys(worker for worker in complete if CLONE_NEWNET in worker._held)
        there = [side.worker for link in links for side in link._sides if side.worker is not None]
        workers = list(dict.fromkeys((*complete, *there)))
        new = set(links)
        led = self._led
        # Of workers that are there, what else changes meanwhile counts, too.
        default = {} if rise else {w: default_routes(w, new, self._links_of(w)) async for w in in_turns(workers)}
        order = Order(
            batch=Batch(
                links=tuple([link_plan(link, self.record.links_of) async for link in in_turns(links)]),
                nodes=tuple([self._node_plan(w, new, complete, default.get(w, ())) async for w in in_turns(workers)]),
            ),
            workers=workers,
            links=links,
            bridges=list(dict.fromkeys((*bridges, *bridges_of(links)))),
            rise=rise,
        )
        if links or order.bridges or any(node.loopback or node.routes for node in order.batch.nodes):
            try:
                await self._orders.carry_out(order)
            except NetlinkError:
                for link in links:
                    if link._leaving or link._state == "removed":  # its bridge may have gone first
                        raise _removed_meanwhile("link", link.name) from None
                raise
        for worker, routes in default.items():
            worker._defaults = worker._defaults or tuple(routes)
        if self._led != led:
            async for worker in in_turns(default):
                await follow_default(self, worker)
        self.routing.note_set(worker.name for worker in complete)
        self.names.stale.update(worker.name for worker in complete if worker.name in self.routing)
        bus = self._supervisor._bus
        for bridge in bridges:
            self.announce_bridge(bridge)
        async for link in in_turns(links):
            if link._state != "up":
                raise _removed_meanwhile("link", link.name)
            self.note_interfaces(link)
            link._announced, ends = True, link.ends
            bus.publish(events.LinkCreated(link=link.name, ends=ends))
            bus.publish(events.LinkUp(link=link.name, ends=ends))
        await self.watcher.follow(links)
        if misled := [bridge for bridge in order.bridges if bridge._misled]:
            for bridge in misled:
                bridge._misled = False
            try:
                await self.follow_gateway(misled)
            except BaseException:
                for bridge in misled:  # the next one does it
                    bridge._misled = True
                raise
        if rise:
            async for worker in in_turns(workers):
                await follow_default(self, worker)
            await self.watcher.hear(workers)

    async def finish(self, workers: Iterable[Worker], bridges: Sequence[Bridge]) -> None:
        """After the last :meth:`make` without *rise*: set up the *bridges* of *workers*, and write down their names."""
        linked = dict.fromkeys(bridges)
        async for worker in in_turns(workers):
            linked.update(dict.fromkeys(bridges_of(self.record.links_of.get(worker.name, ()))))
        order = Order(batch=Batch(), bridges=list(linked))
        if order.bridges:
            await self._orders.carry_out(order)
        for bridge in bridges:
            self.announce_bridge(bridge)
        await self.watcher.hear(workers)
        await self.settle()

    async def settle(self, new: Collection[Device] = ()) -> None:
        """Addresses have changed: have the hosts file, and tunnels between workers, tell of them.

        :raises NetlinkError: the kernel refused what *new* tunnels need; of others there is an event
        """
        await self.names.rewrite()
        if self._interfaces is not None:
            with anyio.CancelScope(shield=True):
                await self._interfaces.far_ends.settle(new)

    def _links_of(self, worker: Worker) -> Sequence[Link]:
        return self.record.links_of.get(worker.name, ())

    def _node_plan(
        self, worker: Worker, links: Collection[Link], complete: Container[Worker], default: Iterable[RoutePlan]
    ) -> NodePlan:
        own = self._links_of(worker)
        if worker.state is events.State.STARTING:
            check_routes(worker, own)
        routes = [*default, *given_routes(worker, links, own)]
        routed = worker in complete and self.routing.is_unset(worker.name)
        return NodePlan(
            netns=netns_key(worker),
            name=worker.name,
            loopback=self.routing.loopbacks_of(worker.name) if routed else (),
            routes=tuple(routes),
            groups=self.routing.groups_of(worker.name) if routed else (),
        )

    # -- changing and removing

    async def set_up(self, link: Link, *, up: bool) -> None:
        for side in link._sides:
            await self.kernel.with_handle(side, self.kernel.engine.set_link, side.ifname, up=up)
        if up:
            await self._restore(link)
        was_up, link._state = link.is_up, "up" if up else "down"
        if up:
            await self._restore_default(link)
        for side, other in link._both() if not up else ():
            if side.worker is not None and other.bridge is not None:
                await part(self, side, side.segment, other.bridge)
        if up != was_up:
            kind = events.LinkUp if up else events.LinkDown
            self._supervisor._bus.publish(kind(link=link.name, ends=link.ends))

    def capture(self, links: Sequence[Link], **options: Any) -> Capture:
        from nsorch.supervisor.traffic.capture import Capture

        return Capture(self._supervisor, links, **options)

    async def set_mtus(self, link: Link, mtus: tuple[int | None, int | None]) -> None:
        """Of each of its ends; None is the kernel's own."""
        self.refuse_short(link, mtus)
        # Another program may have lowered it, and the kernel dropped the addresses.
        was_short = is_short(side.mtu for side in link._sides)
        changes = {}
        for side, mtu in zip(link._sides, mtus, strict=True):
            whole = KERNEL_MTU if mtu is None else mtu
            await self.kernel.with_handle(side, self.kernel.engine.set_link, side.ifname, mtu=whole)
            side.mtu = mtu
            changes[f"{side}.mtu"] = str(whole)
        if was_short and not is_short(mtus) and link._state == "up":
            await self._restore(link)
            await self._restore_default(link)
        if len(set(changes.values())) == 1:
            changes = {"mtu": next(iter(changes.values()))}
        self.note_interfaces(link)
        self.publish(events.LinkChanged(link=link.name, changes=tuple(changes.items())))

    def refuse_short(
        self, link: Link, mtus: tuple[int | None, int | None], *, moves: tuple[Side, Sequence[IPNetwork]] | None = None
    ) -> None:
        """
        :param moves: an end that has addresses of these networks, then
        :raises TopologyError: an end has an IPv6 address, which needs more
        """
        if not is_short(mtus):
            return
        mtu = min(mtu for mtu in mtus if mtu is not None)
        for side in link._sides:
            own = moves[1] if moves is not None and moves[0] is side else [address.ip for address in side.present]
            its = [(side.owner, own), *((d.owner, [address.ip for address in d.addresses]) for d in self._above(side))]
            six = [f"{owner} has {address}" for owner, own in its for address in own if address.version == 6]
            if six:
                too_few = f"{mtu} bytes are too few for IPv6, which needs {LEAST_MTU6}"
                raise TopologyError(f"links.{link.name}.mtu: {too_few}: {six[0]}")

    def _above(self, side: Side) -> Sequence[Device]:
        """Interfaces that stand on it."""
        if side.worker is None or self._interfaces is None:
            return ()
        return self._interfaces.above(side.netns, side.ifname)

    def note_interfaces(self, link: Link) -> None:
        """Write down what its ends are."""
        for side in link._sides:
            if side.worker is not None:
                side.worker._interfaces[side.ifname] = link
                self.names.stale.add(side.worker.name)

    def publish(self, event: events.Event) -> None:
        self._supervisor._bus.publish(event)

    def report(self, operation: str, exc: NsorchError, *, worker: Worker | None = None) -> None:
        """Publish the failure of what nobody waits for."""
        name = None if worker is None else worker.name
        self.publish(events.NetError(worker=name, operation=operation, errno=exc.errno or 0, detail=str(exc)))

    async def ensure(self, bridges: Sequence[Bridge]) -> None:
        """All their parts exist and are up."""
        await self._orders.carry_out(Order(batch=Batch(), bridges=bridges))

    async def remove_link(self, link: Link) -> None:
        with anyio.CancelScope(shield=True):
            await remove_links(self, [link])
        await anyio.lowlevel.checkpoint()

    async def _restore(self, link: Link) -> None:
        """The kernel has dropped the routes through the link when it went down, and its IPv6 addresses."""
        kernel = self.kernel
        for side in link._sides:
            await self._restore_addresses(link, side)
        for side in link._sides:
            if side.worker is not None:
                await self._restore_routes(link, side, side.worker)
                if self._interfaces is not None:
                    await self._interfaces.restore_above(side.netns, side.ifname)
        for side, other in link._both():
            if other.bridge is not None:
                await remind(kernel, other.bridge, side)

    async def restore_end(self, link: Link, side: Side) -> None:
        """One of a link that is up was down for a moment."""
        if side.worker is not None:
            await self._restore_addresses(link, side)
            await self._restore_routes(link, side, side.worker)
            await follow_default(self, side.worker, anew=True)

    async def _restore_addresses(self, link: Link, side: Side) -> None:
        if side.worker is not None:
            kernel = self.kernel
            await kernel.with_handle(side, kernel.engine.restore_end, end_plan(link, side, self.record.links_of))
            side.missing = frozenset(address for address in side.missing if address.version == 4)

    async def _restore_routes(self, link: Link, side: Side, worker: Worker) -> None:
        kernel = self.kernel
        given = given_routes(worker, [link], self._links_of(worker))
        if lead := [route for route in given if any(leads({side.ifname: side}, hop) for hop in route.nexthops)]:
            await kernel.with_handle(side, kernel.engine.add_routes, lead)
        groups = self.routing.groups_of(worker.name)
        through = [group for group in groups if any(hop.dev == side.ifname for hop in group.nexthops)]
        if through:
            await kernel.with_handle(side, kernel.engine.add_groups, through)

    async def _restore_default(self, link: Link) -> None:
        """Of workers at its ends, now that it is up."""
        for side in link._sides:
            if side.worker is not None:
                await follow_default(self, side.worker, anew=True)


def _removed_meanwhile(kind: str, name: str) -> ClosedError:
    return ClosedError(f"the {kind} {name} was removed while it was made", stage=LINKING)


def _ends(a: Any, b: Any) -> tuple[End, End]:
    """Of a link; what :class:`To` says is about the worker's end."""
    keys = ("a", "b")
    if isinstance(a, To):
        a, b, keys = b, a, ("b", "a")
    first = to_end(keys[0], a)
    if not isinstance(b, To):
        return first, to_end(keys[1], b)
    if first != End(first.worker, name=first.name):
        raise TopologyError(f"links.{first.worker}-{b.bridge}: its options stand in End or in To, not in both")
    spec = as_link((first.worker, first.name, b.bridge, None, 0), b)
    return evolve(spec.a, name=b.name or first.name), spec.b
