"""Bridges and links of a lab: addresses are given out, plans are made of them, and one thread carries them out."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import socket
from functools import partial
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from attrs import define, field

from nsorch import events
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import ClosedError, NameInUseError, NsorchError, TopologyError, UnsupportedError
from nsorch.net.addresses import LoopbackPool, PointToPointPool, Segment
from nsorch.net.engine import Engine, NetnsHandle
from nsorch.net.hosts import HostsEntry
from nsorch.net.mac import derive_mac, parse_mac
from nsorch.net.messages import RTM_DELNEIGH, RTM_NEWNEIGH
from nsorch.net.plan import Batch, EndPlan, LinkPlan, NodePlan
from nsorch.supervisor.capture import Capture
from nsorch.supervisor.hosts import HostsFile
from nsorch.supervisor.network import Bridge, Counter, Link, Side
from nsorch.supervisor.routes import default_routes, given_routes
from nsorch.supervisor.segments import FABRIC, MANY, Parts, news
from nsorch.supervisor.turns import in_turns
from nsorch.topology import BridgeSpec, Emulation, End, LinkSpec, To
from nsorch.topology.checks import joined_names
from nsorch.topology.namespaces import NamespaceSet, New, OfWorker, Shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.core.helper import Facts
    from nsorch.net.plan import RouteGroup
    from nsorch.supervisor.segments import News, Part
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec

T = TypeVar("T")
U = TypeVar("U")

# With more ports that end with their workers, a bridge is deleted some seconds later.
_LEFT, _LATER = 50, 2.0
# So many ends are told of at a time.
_TOLD = 200


@define(eq=False, kw_only=True)
class _Order:
    """Something to be made that somebody waits for.

    :ivar bridges: those of the links, and others that are to exist
    :ivar rise: whether this is all for now, so that new bridges are set up
    """

    batch: Batch
    workers: Sequence[Worker] = ()
    links: Sequence[Link] = ()
    bridges: Sequence[Bridge] = ()
    rise: bool = True
    done: anyio.Event = field(factory=anyio.Event)
    failure: Exception | None = None


class Wiring:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.engine: Engine
        self._fabric: socket.socket | None = None
        self._thread: anyio.CapacityLimiter  # to one thread
        self._orders: list[_Order] = []
        self._draining = False
        self._doomed: list[int] = []  # interfaces of the fabric, by index
        self._deleting: anyio.Lock
        self._rewriting: anyio.Lock  # of the hosts file
        self._bridges: dict[str, Bridge] = {}
        self._links: dict[str, Link] = {}
        self._of: dict[str, list[Link]] = {}  # links of each worker
        self._loopbacks: dict[str, tuple[IPv4Interface | IPv6Interface, ...]] = {}
        self._groups: dict[str, tuple[RouteGroup, ...]] = {}  # routes of routed workers
        self._unrouted: set[str] = set()  # those that haven't got them yet
        self._ifnames: set[tuple[str, str]] = set()  # with the owner of their network namespace
        self._guests: dict[str, set[str]] = {}  # workers that share another's network namespace, by its owner
        self._pool = PointToPointPool()
        self.loopback_pool = LoopbackPool()
        self._indices = Counter(10)
        self._hosts = HostsFile()

    def open(self, facts: Facts) -> None:
        # The descriptors stay the helper's.
        self._fabric = socket.socket(fileno=os.dup(facts.descriptors["rtnetlink"]))
        self.engine = Engine(self._fabric)
        self._thread = anyio.CapacityLimiter(1)
        self._deleting = anyio.Lock()
        self._rewriting = anyio.Lock()
        self._hosts.open(facts.descriptors.get("hosts", -1))

    def close(self) -> None:
        if self._fabric is not None:
            self._fabric.close()

    def publish_removed(self) -> None:
        """All went with the fabric."""
        bus = self._supervisor._bus
        for link in self._links.values():
            if link._state != "planned":
                bus.publish(events.LinkRemoved(link=link.name, ends=link.ends))
            link._state = "removed"
        for name, bridge in self._bridges.items():
            bridge._removed = True
            bus.publish(events.BridgeRemoved(bridge=name))
        self._links.clear()
        self._bridges.clear()

    # -- the record

    @property
    def bridges(self) -> Mapping[str, Bridge]:
        return MappingProxyType(self._bridges)

    @property
    def links(self) -> Mapping[str, Link]:
        return MappingProxyType(self._links)

    @property
    def links_of(self) -> Mapping[str, Sequence[Link]]:
        """Of each worker, also those that are only planned."""
        return self._of

    def neighbour_of(self, source: Worker, address: IPv4Address | IPv6Address) -> Side | None:
        """The end of a link of *source* that has to ask for *address*, a neighbour on its bridge; or None."""
        for link in self._of.get(source.name, ()):
            for side, other in link._both():
                if (
                    side.worker is source
                    and other.bridge is not None
                    and other.bridge.gateway != source.name
                    and address not in (gateway.ip for gateway in other.bridge._gateway_addresses)
                    and any(address in a.network for a in side.addresses)
                ):
                    return side
        return None

    async def forget_neighbours(
        self, known: Mapping[Worker, Sequence[tuple[int | str, IPv4Address | IPv6Address]]]
    ) -> None:
        """Of interfaces, by index or name."""
        for worker, neighbours in known.items():
            sock = await worker.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            with sock:
                handle = NetnsHandle(fd=worker._held[CLONE_NEWNET], sock=sock, name=worker.name)
                await self.in_thread(self.engine.forget_neighbours, handle, neighbours)

    def is_routed(self, worker: Worker) -> bool:
        """Whether it has loopback addresses, to which the others have routes."""
        return worker.name in self._loopbacks

    def addresses_of(self, worker: Worker) -> tuple[IPv4Interface | IPv6Interface, ...]:
        own = tuple(address for link in self._of.get(worker.name, ()) for address in _addresses_in(link, worker))
        return (*self._loopbacks.get(worker.name, ()), *own)

    # -- bridges

    async def make_bridge(
        self, name: str, subnet: Any, *, gateway: Worker | str | None, mtu: int | None, arp: str, label: str | None
    ) -> Bridge:
        supervisor = self._supervisor
        supervisor._check_running()
        gateway_name = gateway if gateway is None or isinstance(gateway, str) else gateway.name
        spec = BridgeSpec(name=name, subnet=subnet, gateway=gateway_name, mtu=mtu, arp=arp, label=label)
        bridge = self.plan_bridge(spec)
        try:
            await self._carry_out(_Order(batch=Batch(), bridges=[bridge]))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove_bridges([bridge])
            raise
        self.announce_bridge(bridge)
        return bridge

    def plan_bridge(self, spec: BridgeSpec) -> Bridge:
        """Reserve its name and its gateway's address."""
        if spec.name in self._bridges:
            raise NameInUseError(f'there is a bridge "{spec.name}" already')
        if spec.name in self._supervisor._workers:
            raise NameInUseError(f'there is a worker "{spec.name}" already')
        segment = Segment(spec.subnet, spec.name)
        for network in spec.subnet:
            self._pool.exclude(network)
        bridge = self._bridges[spec.name] = Bridge(
            self,
            spec.name,
            segment=segment,
            gateway=spec.gateway,
            mtu=spec.mtu,
            arp=spec.arp,
            label=spec.label,
            parts=Parts(self._indices.take),
        )
        return bridge

    def announce_bridge(self, bridge: Bridge) -> None:
        bridge._announced = True
        self._supervisor._bus.publish(events.BridgeCreated(bridge=bridge.name))

    async def remove_bridges(self, bridges: Sequence[Bridge]) -> None:
        """With all their links. Cancelled, it is done all the same."""
        with anyio.CancelScope(shield=True):
            there = [bridge for bridge in bridges if self._bridges.get(bridge.name) is bridge]
            self.retire(there)
            await self.remove_links(
                [link for link in self._links.values() if any(side.bridge in there for side in link._sides)]
            )
            if there and not self._supervisor._helper.died:
                parts = [part for bridge in there for part in bridge._parts.all if part.made]
                doomed = [index for part in parts for index in part.interfaces]
                if sum(bridge._left for bridge in there) > _LEFT:
                    self._supervisor._start_soon(partial(self._delete_later, doomed))
                else:
                    await self._delete_in_fabric(doomed)
            for bridge in there:
                if self._bridges.pop(bridge.name, None) is None:
                    continue  # somebody else was faster
                bridge._removed = True
                if bridge._announced:
                    self._supervisor._bus.publish(events.BridgeRemoved(bridge=bridge.name))
        await anyio.lowlevel.checkpoint()

    async def _delete_later(self, indices: Sequence[int]) -> None:
        """When the kernel has removed most ports: it is faster at many than by the deletion of their bridge."""
        await anyio.sleep(_LATER)
        await self._delete_in_fabric(indices)

    @staticmethod
    def retire(bridges: Iterable[Bridge]) -> None:
        """They are removed next: what they know of workers needn't be kept right."""
        for bridge in bridges:
            bridge._retired = True

    def _bridge(self, name: str, where: str) -> Bridge:
        try:
            return self._bridges[name]
        except KeyError:
            raise TopologyError(f'{where}: there is no bridge "{name}"') from None

    # -- planning links: names and addresses are reserved, nothing is made

    def check(self, spec: WorkerSpec) -> None:
        """Refuse links that can't be made, before any worker is admitted.

        :raises TopologyError: a bridge that doesn't exist
        :raises UnsupportedError: link emulation
        """
        for number, to in enumerate(spec.links):
            where = f"workers.{spec.name}.links[{number}]"
            self._bridge(to.bridge, where)
            _refuse_emulation(to, where)

    def admit(self, worker: Worker) -> None:
        """Plan the links of *worker*'s description."""
        if joined_names(worker.spec):
            with contextlib.suppress(UnsupportedError):
                owner, _ = self._owner_of_netns(worker)
                if owner is not worker:
                    self._guests.setdefault(owner.name, set()).add(worker.name)
        for number, to in enumerate(worker.spec.links):
            where = f"workers.{worker.name}.links[{number}]"
            bridge = self._bridge(to.bridge, where)
            end = End(worker=worker.name, name=to.name, address=to.address or None, mac=to.mac, mtu=to.mtu)
            self._add(Link(self, self._side(end, bridge._segment, bridge.mtu, where), self._port(bridge)))

    def plan_link(self, spec: LinkSpec, *, routed: bool = False) -> Link:
        """Plan a link between workers, or a worker and a bridge. The ends of a *routed* one know each other's MAC."""
        where = "links." + "-".join((spec.a.worker, spec.b.worker))
        for emulation in (spec, spec.a, spec.b):
            _refuse_emulation(emulation, where)
        if spec.a.worker in self._bridges and spec.b.worker not in self._bridges:
            a, b = spec.b, spec.a
        else:
            a, b = spec.a, spec.b
        if b.worker in self._bridges:
            if spec.subnet:
                raise TopologyError(f'{where}.subnet: the bridge "{b.worker}" has its own')
            bridge = self._bridges[b.worker]
            mtu = spec.mtu if spec.mtu is not None else bridge.mtu
            return self._add(
                Link(self, self._side(a, bridge._segment, mtu, where), self._port(bridge, mtu), spec.label)
            )
        for network in spec.subnet:
            self._pool.exclude(network)
        segment = Segment(spec.subnet, where) if spec.subnet else self._pool.take(where)
        first = self._side(a, segment, spec.mtu, where)
        try:
            second = self._side(b, segment, spec.mtu, where)
        except BaseException:
            self._release(first)
            raise
        link = Link(self, first, second, spec.label)
        link._static = routed
        return self._add(link)

    def _side(self, end: End, segment: Segment, mtu: int | None, where: str) -> Side:
        worker = self._supervisor._workers.get(end.worker)
        if worker is None:
            raise TopologyError(f'{where}: there is no worker or bridge "{end.worker}"')
        owner, fresh = self._owner_of_netns(worker)
        if (owner.name, end.name) in self._ifnames:
            raise NameInUseError(f'{where}: the worker has an interface "{end.name}" already', worker=worker.name)
        ifname = end.name or next(
            name for number in itertools.count() if (owner.name, name := f"eth{number}") not in self._ifnames
        )
        mac = derive_mac(worker.name, ifname) if end.mac is None else parse_mac(end.mac)
        side = Side(
            worker=worker,
            bridge=None,
            ifname=ifname,
            # Known in advance where nobody else makes interfaces; the kernel chooses elsewhere.
            index=owner._interface_index() if fresh else None,
            mac=mac,
            mtu=end.mtu if end.mtu is not None else mtu,
        )
        side.segment = segment
        side.netns = owner.name
        self._ifnames.add((side.netns, ifname))
        try:
            for address in end.address:
                side.addresses += (segment.reserve(address, side.owner),)
            families = {address.version for address in side.addresses}
            side.addresses += segment.allocate(side.owner, gateway=worker.name, without=families)
        except BaseException:
            self._release(side)
            raise
        return side

    def _port(self, bridge: Bridge, mtu: int | None = None) -> Side:
        index = self._indices.take()
        port = Side(worker=None, bridge=bridge, ifname=f"p{index}", index=index, mac=None, mtu=mtu or bridge.mtu)
        port.part = bridge._parts.plug()
        return port

    def _owner_of_netns(self, worker: Worker) -> tuple[Worker, bool]:
        """Whose network namespace it is, and whether the supervisor has made it.

        :raises UnsupportedError: the host's, which nothing is done to
        """
        source = NamespaceSet.parse(worker.spec.namespaces, passive=worker.spec.command is None).net
        if isinstance(source, OfWorker):
            return self._owner_of_netns(self._supervisor._worker(source.name))
        if isinstance(source, New):
            return worker, True
        if isinstance(source, Shared):
            raise UnsupportedError(
                "it has the host's network namespace, where nothing is linked to", worker=worker.name, stage="link"
            )
        return worker, False

    def _add(self, link: Link) -> Link:
        if link.name in self._links:
            raise NameInUseError(f"there is a link {link.name} already")
        self._links[link.name] = link
        for side in link._sides:
            if side.worker is not None:
                self._of.setdefault(side.worker.name, []).append(link)
        return link

    # -- making them

    async def make_link(
        self, a: Any, b: Any, *, subnet: Any, mtu: int | None, label: str | None, emulation: Mapping[str, Any]
    ) -> Link:
        self._supervisor._check_running()
        spec = LinkSpec(a=_end(a), b=_end(b), subnet=subnet, mtu=mtu, label=label, **emulation)
        link = self.plan_link(spec)
        workers = [side.worker for side in link._sides if side.worker is not None]
        try:
            await self.connect(workers, [link])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.remove_links([link])
            raise
        return link

    async def connect(
        self, workers: Sequence[Worker], links: Sequence[Link] | None = None, bridges: Sequence[Bridge] = ()
    ) -> None:
        """Make what is planned of *workers*, or only *links*, with *bridges* that don't exist yet. All or nothing.

        :raises NetlinkError: the kernel refused; what was made is undone
        """
        if links is None:
            links = [link for worker in workers for link in self._of.get(worker.name, ()) if link._state == "planned"]
        links = list(dict.fromkeys(links))
        there = {side.worker: None for link in links for side in link._sides if side.worker is not None}
        await self.make(links, [*workers, *there], bridges)
        await self.rewrite_hosts()

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
        order = _Order(
            batch=Batch(
                links=tuple(await self._in_slices(self._link_plan, links)),
                nodes=tuple(await self._in_slices(partial(self._node_plan, links=new, complete=complete), workers)),
            ),
            workers=workers,
            links=links,
            bridges=list(dict.fromkeys((*bridges, *_bridges_of(links)))),
            rise=rise,
        )
        if links or order.bridges or any(node.loopback or node.routes for node in order.batch.nodes):
            await self._carry_out(order)
        self._unrouted.difference_update(worker.name for worker in complete)
        bus = self._supervisor._bus
        for bridge in bridges:
            self.announce_bridge(bridge)
        async for link in in_turns(links):
            self.note_interfaces(link)
            ends = link.ends
            bus.publish(events.LinkCreated(link=link.name, ends=ends))
            bus.publish(events.LinkUp(link=link.name, ends=ends))

    async def finish(self, workers: Iterable[Worker], bridges: Sequence[Bridge]) -> None:
        """After the last :meth:`make` without *rise*: set up the *bridges* of *workers*, and write down their names."""
        linked = dict.fromkeys(bridges)
        async for worker in in_turns(workers):
            linked.update(dict.fromkeys(_bridges_of(self._of.get(worker.name, ()))))
        order = _Order(batch=Batch(), bridges=list(linked))
        if order.bridges:
            await self._carry_out(order)
        for bridge in bridges:
            self.announce_bridge(bridge)
        await self.rewrite_hosts()

    def _link_plan(self, link: Link) -> LinkPlan:
        a, b = (_end_plan(side, self._neighbours(link, other)) for side, other in link._both())
        return LinkPlan(name=link.name, a=a, b=b)

    def _neighbours(self, link: Link, other: Side) -> tuple[tuple[IPv4Address | IPv6Address, bytes], ...]:
        """What the end of *link* that isn't *other* knows from the start: a routed link's other one, or the gateway."""
        side = next(side for side in link._sides if side is not other)
        bridge = other.bridge
        if bridge is None:
            return tuple(_as_neighbour(other, side)) if link._static else ()
        if side.worker is None or bridge.gateway in (None, side.worker.name):
            return ()
        for its in self._of.get(str(bridge.gateway), ()):
            for gateway, port in its._both():
                if port.bridge is bridge and gateway.worker is not None and gateway.worker.name == bridge.gateway:
                    side.gateway = gateway.mac
                    return tuple(_as_neighbour(gateway, side))
        return ()

    @staticmethod
    async def _in_slices(make: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """What *make* makes of *items*; the loop gets its turn between."""
        return [make(item) async for item in in_turns(items)]

    def _node_plan(
        self, worker: Worker, links: Collection[Link], complete: Container[Worker] | None = None
    ) -> NodePlan:
        routes = [
            *default_routes(worker, links, self._of.get(worker.name, ())),
            *given_routes(worker, links, self._of.get(worker.name, ())),
        ]
        routed = complete is not None and worker in complete and worker.name in self._unrouted
        return NodePlan(
            netns=_key(worker),
            name=worker.name,
            loopback=self._loopbacks[worker.name] if routed else (),
            routes=tuple(routes),
            groups=self._groups[worker.name] if routed else (),
        )

    def set_routing(
        self,
        name: str,
        loopbacks: tuple[IPv4Interface | IPv6Interface, ...],
        groups: tuple[RouteGroup, ...],
    ) -> None:
        """Loopback addresses and routes that the next :meth:`connect` of this worker sets."""
        self._loopbacks[name] = loopbacks
        self._groups[name] = groups
        self._unrouted.add(name)
        self._hosts.stale.add(name)

    def arrange(self, order: Sequence[Link]) -> None:
        """Have each worker's links, and so its addresses, in this *order*, and any others behind."""
        places = {link: number for number, link in enumerate(order)}
        for links in self._of.values():
            links.sort(key=lambda link: places.get(link, len(places)))

    def loopbacks_of(self, name: str) -> tuple[IPv4Interface | IPv6Interface, ...]:
        return self._loopbacks.get(name, ())

    async def reroute(self, worker: Worker, groups: tuple[RouteGroup, ...], *, anew: bool) -> None:
        """Give a routed *worker* other shortest paths; *anew*: the kernel may have dropped some that stay."""
        before = self._groups[worker.name]
        if groups == before and not anew:
            return
        known = set() if anew else set(before)
        await self.in_netns(worker, self.engine.add_groups, [group for group in groups if group not in known])
        gone = _destinations(before) - _destinations(groups)
        if gone:
            await self.in_netns(worker, self.engine.remove_hosts, gone)
        self._groups[worker.name] = groups

    async def _carry_out(self, order: _Order) -> None:
        """Have the thread do it, together with what others want at the same time."""
        self._orders.append(order)
        if not self._draining:
            self._draining = True
            self._supervisor._start_soon(self._drain)
        with anyio.CancelScope(shield=True):  # the kernel can't be told to stop half-way
            await order.done.wait()
        if order.failure is not None:
            raise order.failure
        await anyio.lowlevel.checkpoint()

    async def _drain(self) -> None:
        orders: list[_Order] = []
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
                    order.failure = ClosedError("the supervisor has ended")
                    order.done.set()

    async def _execute_singly(self, orders: Sequence[_Order]) -> None:
        """One of them failed and all are undone: find out whose fault it is."""
        for order in orders:
            try:
                await self._execute([order])
            except NsorchError as exc:
                order.failure = exc

    async def _execute(self, orders: Sequence[_Order]) -> None:
        bridges = dict.fromkeys(bridge for order in orders for bridge in order.bridges)
        missing = [(bridge, part) for bridge in bridges for part in bridge._parts.all if not part.made]
        rising = dict.fromkeys(bridge for order in orders if order.rise for bridge in order.bridges)
        lower = [part for bridge in rising for part in bridge._parts.all if not part.up]
        trunks = [trunk for bridge, part in missing if (trunk := part.plan_trunk(bridge.name, bridge.mtu))]
        batch = Batch(
            bridges=tuple(part.plan(bridge.name, bridge.mtu) for bridge, part in missing),
            links=(*trunks, *(item for order in orders for item in order.batch.links)),
            nodes=tuple(item for order in orders for item in order.batch.nodes),
            raised=tuple(index for part in lower for index in part.interfaces),
        )
        workers = dict.fromkeys(worker for order in orders for worker in order.workers)
        async with self._handles(workers) as handles:
            await self.in_thread(self.engine.execute, batch, handles)
        for _, part in missing:
            part.made = True
        for part in lower:
            part.up = True
        for link in (link for order in orders for link in order.links):
            link._state = "up"
            for side, other in link._both():
                if other.bridge is not None:
                    other.bridge._add_end(side, other)
        for bridge in rising:
            await self.tell(bridge)

    @contextlib.asynccontextmanager
    async def _handles(self, workers: Iterable[Worker]) -> AsyncIterator[dict[int, NetnsHandle]]:
        """By the keys of their network namespaces; what is opened for it is closed."""
        opened: list[socket.socket] = []
        try:
            handles: dict[int, NetnsHandle] = {}
            for worker in workers:
                sock = worker._netlink
                if sock is None:
                    sock = await worker.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                    opened.append(sock)
                handles[_key(worker)] = NetnsHandle(fd=worker._held[CLONE_NEWNET], sock=sock, name=worker.name)
            yield handles
        finally:
            for sock in opened:
                sock.close()

    # -- what bridges and gateways are told

    async def tell(self, bridge: Bridge) -> None:
        """Who is new, so that no question for it floods the segment."""
        ends = bridge._ends
        gateway = next((side for side in ends if side.worker is not None and side.worker.name == bridge.gateway), None)
        if not bridge._answers and bridge.arp == "auto" and len(ends) >= MANY:
            bridge._answers = True
            for part in bridge._parts.all:
                part.told.clear()
        if bridge._answers or gateway is not None:
            for part in bridge._parts.all:
                new = [(side, port) for side, port in ends.items() if side not in part.told]
                for start in range(0, len(new), _TOLD):
                    some = new[start : start + _TOLD]
                    await self.in_thread(self._announce, part, news(part, some, answers=bridge._answers))
                    part.told.update(side for side, _ in some)
        await self._correct(bridge, gateway)
        if gateway is not None:
            await self._introduce(bridge, gateway)

    async def _correct(self, bridge: Bridge, gateway: Side | None) -> None:
        """Have the others forget who had the addresses of new ends before."""
        new, bridge._new = bridge._new, []
        stale = [ip async for side in in_turns(new) if side is not gateway for ip in bridge._note_owner(side)]
        if stale:
            for side in [side for side in bridge._ends if side not in set(new)]:
                index = side.index or side.ifname
                await self.with_handle(side, self.engine.forget_neighbours, [(index, ip) for ip in stale])

    def _announce(self, part: Part, told: News) -> None:
        """In the thread."""
        self.engine.forward(RTM_NEWNEIGH, told.forwarding)
        self.engine.tell_neighbours(None, RTM_NEWNEIGH, part.index, told.neighbours)
        self.engine.answer_arp(told.answering)

    async def _introduce(self, bridge: Bridge, gateway: Side) -> None:
        """The gateway to the others, and these to it."""
        told = bridge._introduced.setdefault(gateway, set())
        new = [side for side in bridge._ends if side is not gateway and side not in told]
        index: int | str = gateway.index or gateway.ifname
        for start in range(0, len(new), _TOLD):
            some = new[start : start + _TOLD]
            known = [(address.ip, side.mac) for side in some if side.mac is not None for address in side.addresses]
            await self.with_handle(gateway, self.engine.tell_neighbours, RTM_NEWNEIGH, index, known)
            told.update(some)
        for side in bridge._ends:
            if side is not gateway and side.gateway != gateway.mac:
                side.gateway = gateway.mac
                known = list(_as_neighbour(gateway, side))
                index = side.index or side.ifname
                await self.with_handle(side, self.engine.tell_neighbours, RTM_NEWNEIGH, index, known)

    async def forget(
        self, bridge: Bridge, gone: Sequence[Side], dying: Collection[str] = (), *, stays: bool = False
    ) -> None:
        """The opposite of :meth:`tell`, when the ends are removed, or change but *stay*."""
        ends = [(side, bridge._ends.pop(side)) for side in gone if side in bridge._ends]
        if bridge._retired:
            return
        for part in bridge._parts.all:
            old = [end for end in ends if end[0] in part.told]
            part.told.difference_update(gone)
            if old:
                known = news(part, old, answers=bridge._answers)
                elsewhere = news(part, [end for end in old if stays or end[1].part is not part], answers=False)
                await self.in_thread(self.engine.forward, RTM_DELNEIGH, elsewhere.forwarding)
                await self.in_thread(self.engine.tell_neighbours, None, RTM_DELNEIGH, part.index, known.neighbours)
        for side in gone:
            bridge._introduced.pop(side, None)
        for gateway, told in bridge._introduced.items():
            old_ones = told.intersection(gone)
            told -= old_ones
            known_addresses = [(a.ip, side.mac) for side in old_ones if side.mac is not None for a in side.addresses]
            if known_addresses and gateway.netns not in dying:
                index = gateway.index or gateway.ifname
                await self.with_handle(gateway, self.engine.tell_neighbours, RTM_DELNEIGH, index, known_addresses)

    async def in_thread(self, func: Any, *args: Any) -> Any:
        """Call *func* in the one thread that waits for the kernel. Cancelled, it is waited for all the same."""
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(func, *args, limiter=self._thread)

    # -- changing and removing

    async def set_up(self, link: Link, *, up: bool) -> None:
        for side in link._sides:
            await self.with_handle(side, self.engine.set_link, side.ifname, up=up)
        if up:
            await self._restore_routes(link)
        link._state = "up" if up else "down"
        kind = events.LinkUp if up else events.LinkDown
        self._supervisor._bus.publish(kind(link=link.name, ends=link.ends))

    def capture(self, links: Sequence[Link], **options: Any) -> Capture:
        return Capture(self._supervisor, links, **options)

    async def set_mtu(self, link: Link, mtu: int) -> None:
        for side in link._sides:
            await self.with_handle(side, self.engine.set_link, side.ifname, mtu=mtu)
            side.mtu = mtu
        self.note_interfaces(link)
        self.publish(events.LinkChanged(link=link.name, changes=(("mtu", str(mtu)),)))

    def bridge_named(self, bridge: Bridge | str, where: str) -> Bridge:
        return self._bridge(bridge if isinstance(bridge, str) else bridge.name, where)

    def note_interfaces(self, link: Link) -> None:
        """Write down what its ends are."""
        for side in link._sides:
            if side.worker is not None:
                side.worker._interfaces[side.ifname] = link
                self._hosts.stale.add(side.worker.name)

    def publish(self, event: events.Event) -> None:
        self._supervisor._bus.publish(event)

    async def ensure(self, bridges: Sequence[Bridge]) -> None:
        """All their parts exist and are up."""
        await self._carry_out(_Order(batch=Batch(), bridges=bridges))

    def end_plan(self, link: Link, side: Side) -> EndPlan:
        other = next(other for other in link._sides if other is not side)
        return _end_plan(side, self._neighbours(link, other))

    async def in_netns(self, worker: Worker, func: Callable[..., Any], *args: Any) -> None:
        """Call *func* with a handle of *worker*'s network namespace."""
        async with self._handles([worker]) as handles:
            await self.in_thread(func, handles[_key(worker)], *args)

    def rename(self, link: Link) -> None:
        """After its ends: one of them is another now."""
        del self._links[link.name]
        link.name = "{}-{}".format(*link.ends)
        self._links[link.name] = link

    async def remove_link(self, link: Link) -> None:
        with anyio.CancelScope(shield=True):
            await self.remove_links([link])
        await anyio.lowlevel.checkpoint()

    async def remove_links(self, links: Sequence[Link], *, dying: Collection[str] = ()) -> None:
        """Those that exist and those that are planned. Shield it.

        :param dying: owners of network namespaces that end next. Links among them are left to the kernel, which takes
            down all of them at once; one by one, each costs tens of milliseconds
        """
        made = [link for link in links if link._state in ("up", "down")]
        if made and not self._supervisor._helper.died:
            await self._delete(made, dying)
        async for link in in_turns(links):
            if link._state == "removed":
                continue
            was_made, link._state = link._state != "planned", "removed"
            self._links.pop(link.name, None)
            for side in link._sides:
                self._release(side)
                if side.worker is not None:
                    side.worker._interfaces.pop(side.ifname, None)
                    self._hosts.stale.add(side.worker.name)
                    self._of.get(side.worker.name, [link]).remove(link)
            if was_made:
                self._supervisor._bus.publish(events.LinkRemoved(link=link.name, ends=link.ends))
        await self.rewrite_hosts()

    async def _delete(self, links: Sequence[Link], dying: Collection[str]) -> None:
        """From the fabric, or from as few network namespaces as may be: those in one go together."""
        on: dict[Bridge, list[tuple[Side, Side]]] = {}
        ports = []
        async for side, port in in_turns(pair for link in links for pair in link._both()):
            if port.bridge is not None:
                on.setdefault(port.bridge, []).append((side, port))
                if port.index and not port.bridge._leaves(side, dying):
                    ports.append(port.index)
        if ports:
            await self._delete_in_fabric(ports)
        for bridge, ends in on.items():
            await self.forget(bridge, [side for side, _ in ends], dying)
        living = [
            link._sides
            async for link in in_turns(links)
            if all(side.bridge is None for side in link._sides) and any(side.netns not in dying for side in link._sides)
        ]
        count = collections.Counter(side.netns for sides in living for side in sides)
        there: dict[str, list[Side]] = {}
        for sides in living:
            held = [side for side in sides if side.worker is not None and CLONE_NEWNET in side.worker._held]
            if held:
                side = max(held, key=lambda side: count[side.netns])
                there.setdefault(side.netns, []).append(side)
        for some in there.values():
            await self.with_handle(some[0], self.engine.delete_links, [side.ifname for side in some])

    async def _delete_in_fabric(self, indices: Sequence[int]) -> None:
        """Together with what others want deleted meanwhile."""
        self._doomed += indices
        async with self._deleting:
            if self._doomed:
                doomed, self._doomed = self._doomed, []
                await self.in_thread(self.engine.delete_links, None, doomed)

    async def disconnect(self, workers: Sequence[Worker]) -> None:
        """Remove all that concerns *workers*. Shield it."""
        links: dict[Link, None] = {}
        async for worker in in_turns(workers):
            links.update(dict.fromkeys(self._of.get(worker.name, ())))
        if links:
            await self.remove_links(list(links), dying=await self._owners_among(workers))
        async for worker in in_turns(workers):
            self._of.pop(worker.name, None)
            self._groups.pop(worker.name, None)
            self._unrouted.discard(worker.name)
            self._loopbacks.pop(worker.name, None)
            self._guests.pop(worker.name, None)
            if joined_names(worker.spec):
                for guests in self._guests.values():
                    guests.discard(worker.name)
            self._hosts.stale.add(worker.name)
        await self.rewrite_hosts()

    async def _owners_among(self, workers: Sequence[Worker]) -> set[str]:
        """Of network namespaces that no others than *workers* share."""
        going = {worker.name for worker in workers}
        found = set()
        async for worker in in_turns(workers):
            with contextlib.suppress(UnsupportedError):
                owner, fresh = self._owner_of_netns(worker)
                if owner is worker and fresh and self._guests.get(worker.name, set()) <= going:
                    found.add(worker.name)
        return found

    def _release(self, side: Side) -> None:
        if side.segment is not None:
            side.segment.release(side.addresses)
            side.segment = None
            self._ifnames.discard((side.netns, side.ifname))
        if side.part is not None:
            side.part.ports -= 1
            side.part = None

    async def _restore_routes(self, link: Link) -> None:
        """The kernel has dropped those through the link when it went down, and its IPv6 addresses."""
        for side, other in link._both():
            if side.worker is not None:
                await self.with_handle(side, self.engine.restore_end, _end_plan(side, self._neighbours(link, other)))
        for side in link._sides:
            if side.worker is None:
                continue
            plan = self._node_plan(side.worker, [link])
            if plan.routes:
                await self.with_handle(side, self.engine.add_routes, plan.routes)
            through = [
                group
                for group in self._groups.get(side.worker.name, ())
                if any(hop.dev == side.ifname for hop in group.nexthops)
            ]
            if through:
                await self.with_handle(side, self.engine.add_groups, through)

    async def with_handle(self, side: Side, func: Any, *args: Any, **options: Any) -> None:
        """Call *func* with where *side* is: a handle of the worker's network namespace, or None for the fabric."""
        with anyio.CancelScope(shield=True):
            if side.worker is None:
                await self.in_thread(lambda: func(None, *args, **options))
                return
            worker = side.worker
            sock = await worker.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            with sock:
                handle = NetnsHandle(fd=worker._held[CLONE_NEWNET], sock=sock, name=worker.name)
                await self.in_thread(lambda: func(handle, *args, **options))

    async def rewrite_hosts(self) -> None:
        """Once for all who want it meanwhile."""
        if not self._hosts.stale:
            return
        async with self._rewriting:
            if self._hosts.stale:
                with anyio.CancelScope(shield=True):
                    stale, self._hosts.stale = self._hosts.stale, set()
                    async for name in in_turns(stale):
                        self._hosts.note(name, self._host_entry(name))
                    await self.in_thread(self._hosts.write)

    def addresses_by_name(self, name: str) -> list[IPv4Address | IPv6Address]:
        """What the hosts file says of *name*: of a worker, or ``worker.segment``; none if it doesn't know it."""
        worker, _, segment = name.partition(".")
        if worker not in self._supervisor._workers:
            return []
        entry = self._host_entry(worker)
        if entry is None:
            return []
        found = entry.segments.get(segment, ())
        if not segment:
            found = (*entry.loopback, *(text for texts in entry.segments.values() for text in texts))
        return [ip_address(text) for text in found]

    def _host_entry(self, name: str) -> HostsEntry | None:
        """Of a worker that has addresses."""
        by_segment: dict[str, tuple[str, ...]] = {}
        for link in self._of.get(name, ()):
            for side, other in link._both():
                if side.worker is not None and side.worker.name == name and link._state != "planned":
                    segment = other.bridge.name if other.bridge is not None else other.worker.name  # type: ignore[union-attr]
                    addresses = tuple(str(address.ip) for address in side.addresses)
                    by_segment[segment] = (*by_segment.get(segment, ()), *addresses)
        loopback = tuple(str(address.ip) for address in self._loopbacks.get(name, ()))
        if not by_segment and not loopback:
            return None
        return HostsEntry(name=name, loopback=loopback, segments=by_segment)


def _destinations(groups: Iterable[RouteGroup]) -> set[bytes]:
    """Packed addresses."""
    found: set[bytes] = set()
    for group in groups:
        size = 4 if group.version == 4 else 16
        found.update(group.destinations[at : at + size] for at in range(0, len(group.destinations), size))
    return found


def _key(worker: Worker) -> int:
    return worker.order + 1


def _addresses_in(link: Link, worker: Worker) -> Iterable[IPv4Interface | IPv6Interface]:
    for side in link._sides:
        if side.worker is worker:
            yield from side.addresses


def _bridges_of(links: Iterable[Link]) -> Iterator[Bridge]:
    return (side.bridge for link in links for side in link._sides if side.bridge is not None)


def _end(value: Any) -> End:
    if isinstance(value, End):
        return value
    if isinstance(value, str):
        return End.parse(value)
    if isinstance(value, To):
        return End(worker=value.bridge)
    return End(worker=value.name)


def _refuse_emulation(emulation: Emulation, where: str) -> None:
    if emulation.active:
        raise UnsupportedError(f"{where}: link emulation is not in this version of nsorch", stage="link")


def _as_neighbour(side: Side, of: Side) -> Iterator[tuple[IPv4Address | IPv6Address, bytes]]:
    """What an end is to know of *side*, in the families that it has itself."""
    if side.mac is not None:
        for address in side.addresses:
            if any(own.version == address.version for own in of.addresses):
                yield address.ip, side.mac


def _end_plan(side: Side, neighbours: tuple[tuple[IPv4Address | IPv6Address, bytes], ...]) -> EndPlan:
    return EndPlan(
        netns=FABRIC if side.worker is None else _key(side.worker),
        ifname=side.ifname,
        index=side.index,
        mac=side.mac,
        mtu=side.mtu,
        addresses=side.addresses,
        master=None if side.part is None else side.part.index,
        ipv6=any(address.version == 6 for address in side.addresses),
        neighbours=neighbours,
    )
