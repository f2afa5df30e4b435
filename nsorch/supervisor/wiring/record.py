"""The record of a lab's network: its bridges and links, and the names and addresses that these have reserved. Nothing
here asks the kernel."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import ClosedError, NameInUseError, TopologyError, UnsupportedError
from nsorch.events import State
from nsorch.net.addresses import PointToPointPool, Segment
from nsorch.net.mac import derive_mac, parse_mac
from nsorch.net.plan import EVERY_VLAN, PortVlans
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.network import Bridge, Link, Side
from nsorch.supervisor.wiring.segments import MANY, Parts
from nsorch.topology.emulation import NO_EMULATION, directions
from nsorch.topology.joins import joined_names
from nsorch.topology.kinds import name_of
from nsorch.topology.layer2 import LEAST_MTU6, port_problems, trunk_problem, vlan_problem
from nsorch.topology.namespaces import Host, NamespaceSet, New, OfWorker, Shared

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.given import Given
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec, Emulation, End, LinkSpec, To, WorkerSpec

# The numbers of the fabric's interfaces begin beyond those that any worker gets to: a request for a pair of workers' is
# sent from there, and Linux 6.1 takes the first end's number for that of an interface there (rtnl_newlink).
_FABRIC = 1 << 24


class Record:
    """
    :ivar links_of: of each worker, also those that are only planned
    """

    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring  # that bridges and links change themselves by
        self.bridges: dict[str, Bridge] = {}
        self.links: dict[str, Link] = {}
        self.links_of: dict[str, list[Link]] = {}
        self._ifnames: set[tuple[str, str]] = set()  # with the owner of their network namespace
        self._guests: dict[str, set[str]] = {}  # workers that share another's network namespace, by its owner
        # Who owns it, by guest, and whether all in it is nsorch's. Others may have the name by now that a guest joined.
        self._owners: dict[str, tuple[Worker, bool]] = {}
        self._pool = PointToPointPool()
        # Never given out twice, so that what the kernel frees late is in nobody's way.
        self._indices = itertools.count(_FABRIC)
        self.has_dhcp = False  #: whether there was ever an end with an address by DHCP
        self.given: list[Given] = []  #: of the topologies that are being deployed

    def plan_bridge(self, spec: BridgeSpec) -> Bridge:
        """Reserve its name and its gateway's address."""
        if spec.name in self.bridges:
            raise NameInUseError(f'there is a bridge "{spec.name}" already')
        if spec.name in self._supervisor._workers:
            raise NameInUseError(f'there is a worker "{spec.name}" already')
        segment = Segment(spec.subnet, spec.name)
        vlans = {number: Segment(subnet, f"{spec.name} VLAN {number}") for number, subnet in spec.vlans.items()}
        for network in itertools.chain(spec.subnet, *spec.vlans.values()):
            self._pool.exclude(network)
        bridge = self.bridges[spec.name] = Bridge(
            self._wiring, spec, segment=segment, vlans=vlans, parts=Parts(self._indices)
        )
        return bridge

    def bridge(self, bridge: Bridge | str, where: str) -> Bridge:
        """:raises TopologyError: there is none of that name"""
        name = name_of(f"{where}.bridge", bridge, "a bridge")
        found = self.bridges.get(name)
        if found is None or found._leaving:
            raise TopologyError(f'{where}: there is no bridge "{name}"')
        return found

    def check(self, spec: WorkerSpec) -> None:
        """Refuse links that can't be made, before any worker is admitted.

        :raises TopologyError: a bridge that doesn't exist, or an emulation that contradicts itself
        """
        for number, to in enumerate(spec.links):
            where = f"workers.{spec.name}.links[{number}]"
            _check_vlans(where, to, self.bridge(to.bridge, where))
            _directions(where, to)

    def take_ifname(self, worker: Worker, name: str, where: str) -> tuple[str, int | None]:
        """Reserve it in the worker's network namespace. Returns whose that is, and its future ifindex, if known.

        :raises NameInUseError: there is such an interface
        """
        owner, fresh = self._owner_of_netns(worker)
        if (owner.name, name) in self._ifnames:
            raise NameInUseError(f'{where}: the worker has an interface "{name}" already', worker=worker.name)
        self._ifnames.add((owner.name, name))
        return owner.name, self._next_index(owner, fresh=fresh)

    def _next_index(self, owner: Worker, *, fresh: bool) -> int | None:
        """Known in advance where nobody else makes interfaces; the kernel chooses elsewhere."""
        inside = map(self._wiring.watcher.is_entered, self.workers_in(owner.name))
        alone = owner.state is State.STARTING or not any(inside)
        return owner._interface_index() if fresh and alone else None

    def give_ifname_back(self, netns: str, name: str) -> None:
        self._ifnames.discard((netns, name))

    def ifnames_in(self, worker: Worker) -> set[str]:
        """Of all interfaces that are planned or there."""
        return self.ifnames_of(self._owner_of_netns(worker)[0].name)

    def tunnel_segment(self, subnet: Sequence[IPv4Network | IPv6Network], where: str, count: int) -> Segment:
        """Where the addresses of a tunnel with *count* ends come from: *subnet*, or for two the pool of links."""
        for network in subnet:
            self._pool.exclude(network)
        if not subnet and count == 2:
            return self._pool.take(where)
        if not subnet:
            raise TopologyError("subnet: is needed for more than two workers")
        return Segment(subnet, where)

    def workers_in(self, netns: str) -> Iterator[Worker]:
        """Those who share a network namespace, by the name of its owner."""
        for name in (netns, *self._guests.get(netns, ())):
            if (worker := self._supervisor._workers.get(name)) is not None:
                yield worker

    def end_in(self, netns: str, name: str) -> tuple[Link, Side, Side] | None:
        """The link with an end of that name there, this end, and the other."""
        for worker in self.workers_in(netns):
            for link in self.links_of.get(worker.name, ()):
                for side, other in link._both():
                    if side.worker is worker and side.ifname == name:
                        return link, side, other
        return None

    def ifnames_of(self, netns: str) -> set[str]:
        """Of all interfaces that are planned or there."""
        return {name for owner, name in self._ifnames if owner == netns}

    def admit(self, worker: Worker) -> None:
        """Plan the links of *worker*'s description."""
        if joined_names(worker.spec, "net"):
            with contextlib.suppress(UnsupportedError):
                owned = self._owners[worker.name] = self._owner_of_netns(worker)
                self._guests.setdefault(owned[0].name, set()).add(worker.name)
        for number, to in enumerate(worker.spec.links):
            where = f"workers.{worker.name}.links[{number}]"
            bridge = self.bridge(to.bridge, where)
            link = Link(self._wiring, self._on_bridge(worker.name, to, bridge, where), self._port(bridge, to))
            link._emulate(_directions(where, to))
            self._add(link)

    def plan_link(self, spec: LinkSpec, *, routed: bool = False) -> Link:
        """Plan a link between workers, or a worker and a bridge. The ends of a *routed* one know each other's MAC, as
        those of any in a large lab: the kernel's room for neighbours that had to be asked for is small."""
        where = "links." + "-".join((spec.a.worker, spec.b.worker))
        a, b = self._worker_first(spec)
        ways = self.ways_of(spec)
        if b.worker in self.bridges:
            if spec.subnet:
                raise TopologyError(f'{where}.subnet: the bridge "{b.worker}" has its own')
            bridge = self.bridge(b.worker, where)
            _check_vlans(where, b, None)
            for end in (a, b) if a.worker in self.bridges else (b,):
                if problems := list(port_problems(f"{where}.{end.worker}", end)):
                    raise TopologyError(*problems)
            if a.worker in self.bridges:
                _check_vlans(where, a, None)
                return self._plan_trunk(self.bridge(a.worker, where), bridge, spec, where)
            _check_vlans(where, a, bridge)
            side, port = self._on_bridge(a.worker, a, bridge, where, spec.mtu), self._port(bridge, a, b.mtu or spec.mtu)
            link = Link(self._wiring, side, port, spec.label)
            link._emulate(ways)
            return self._add(link)
        for end in (a, b):
            _check_vlans(where, end, None)
        for network in spec.subnet:
            self._pool.exclude(network)
        segment = Segment(spec.subnet, where) if spec.subnet else self._pool.take(where)
        # Of the pool's no IPv6 where the kernel has none: RFC 8200, section 5.
        short = not spec.subnet and any(mtu is not None and mtu < LEAST_MTU6 for mtu in (spec.mtu, a.mtu, b.mtu))
        without = {6} if short else set[int]()
        avoid = {address.packed for address in b.address}
        first = self._side(a.worker, a, segment, spec.mtu, where, avoid=avoid, without=without)
        try:
            second = self._side(b.worker, b, segment, spec.mtu, where, without=without)
        except BaseException:
            self._release(first)
            raise
        link = Link(self._wiring, first, second, spec.label)
        link._static = routed or len(self._supervisor._workers) >= MANY
        link._emulate(ways)
        return self._add(link)

    def _worker_first(self, spec: LinkSpec) -> tuple[End, End]:
        if spec.a.worker in self.bridges and spec.b.worker not in self.bridges:
            return spec.b, spec.a
        return spec.a, spec.b

    def ways_of(self, spec: LinkSpec) -> tuple[Emulation, Emulation]:
        """What its ends send goes through, in the order of the link's sides."""
        return _directions("links." + "-".join((spec.a.worker, spec.b.worker)), *self._worker_first(spec), spec)

    def mtus_of(self, spec: LinkSpec) -> tuple[int | None, int | None]:
        """Of its ends, in the order of the link's sides."""
        a, b = self._worker_first(spec)
        bridges = [self.bridges.get(end.worker) for end in (a, b)]
        on = next((bridge.mtu for bridge in reversed(bridges) if bridge is not None), None)
        first, second = (
            end.mtu or spec.mtu or (on if bridge is None else bridge.mtu)
            for end, bridge in zip((a, b), bridges, strict=True)
        )
        return first, second

    def _plan_trunk(self, a: Bridge, b: Bridge, spec: LinkSpec, where: str) -> Link:
        """A link between bridges, which carries all VLANs."""
        near = a._joined()
        both = near if b in near else [*near, *b._joined()]
        if problem := trunk_problem([bridge.spec for bridge in both], loop=b in near):
            raise TopologyError(f"{where}: {a.name} and {b.name} {problem}")
        self._loosen(a, b, where)
        self._loosen(b, a, where)
        self.merge(a, b)
        first, second = self.mtus_of(spec)
        link = Link(self._wiring, self._port(a, None, first), self._port(b, None, second), spec.label)
        link._emulate(self.ways_of(spec))
        self._add(link)
        for side, other in link._both():
            assert side.bridge is not None
            assert other.bridge is not None
            side.bridge._trunks[side] = other.bridge
        return link

    def _loosen(self, bridge: Bridge, other: Bridge, where: str) -> None:
        """Before it is linked to *other*: what *bridge* has of another one that it was linked to isn't its own.

        :raises TopologyError: but addresses of workers are
        """
        island, segment, theirs = bridge._joined(), bridge._segment, other._segment.networks
        if (
            segment is other._segment
            or not segment.networks
            or any(near.spec.subnet or near.spec.vlans for near in island)
        ):
            return
        if any(port.bridge in island for link in self.links.values() for side, port in link._both() if side.worker):
            if theirs and theirs != segment.networks:
                own, others = (", ".join(map(str, networks)) for networks in (segment.networks, theirs))
                raise TopologyError(f"{where}: workers on {bridge.name} have addresses of {own}, not of {others}")
            return
        fresh = Segment((), bridge.name)
        owners: dict[bytes, bytes] = {}
        gateways: dict[Segment, tuple[IPv4Interface | IPv6Interface, ...]] = {fresh: ()}
        for near in island:
            near._segment, near._vlans, near._gateways, near._owners, near.gateway = fresh, {}, gateways, owners, None

    def merge(self, a: Bridge, b: Bridge) -> None:
        """Bridges that are to be linked are one segment: they have one subnet, one gateway, and each address once.

        :raises AddressError: an address is used on both
        """
        if a._segment is b._segment:
            return
        both = [bridge for bridge in self.bridges.values() if bridge._segment in (a._segment, b._segment)]
        new = {a._segment: b._segment} if not a._segment.networks else {b._segment: a._segment}
        vlans = {**b._vlans, **a._vlans}
        new |= {b._vlans[number]: a._vlans[number] for number in b._vlans.keys() & a._vlans.keys()}
        for old, segment in new.items():
            segment.absorb(old)
        gateways = {new.get(of, of): found for bridge in both for of, found in bridge._gateways.items() if found}
        gateway = next((bridge.gateway for bridge in both if bridge.gateway is not None), None)
        owners = {packed: mac for bridge in both for packed, mac in bridge._owners.items()}
        for bridge in both:
            bridge._segment = new.get(bridge._segment, bridge._segment)
            bridge._vlans, bridge._gateways, bridge._owners, bridge.gateway = vlans, gateways, owners, gateway
        for side in (side for link in self.links.values() for side in link._sides):
            if side.segment is not None:
                side.segment = new.get(side.segment, side.segment)

    def _on_bridge(self, of: str, end: End | To, bridge: Bridge, where: str, mtu: int | None = None) -> Side:
        """Of a link to *bridge*, the end of the worker *of*."""
        pvid = end.pvid if bridge.spec.vlan_aware else None
        tagged_only = bridge.spec.vlan_aware and pvid is None
        mtu = mtu if mtu is not None else bridge.mtu
        lists = [given.addresses_on(bridge.name) for given in self.given]
        avoid = lists[0] if len(lists) == 1 else frozenset().union(*lists)
        segment = bridge._segment_of(pvid)
        side = self._side(
            of, end, segment, mtu, where, free_addresses=not tagged_only, avoid=avoid, gateway=bridge.gateway
        )
        if of == bridge.gateway:
            bridge._misled |= bridge._note_gateway(side) or side.netns != of  # who is there is led nowhere
        return side

    def _side(
        self,
        of: str,
        end: End | To,
        segment: Segment,
        mtu: int | None,
        where: str,
        *,
        free_addresses: bool = True,
        avoid: Collection[bytes] = (),
        without: AbstractSet[int] = frozenset(),
        gateway: str | None = None,
    ) -> Side:
        """The end of the worker *of*.

        :param free_addresses: of families of which none is given, the next free ones
        :param avoid: packed addresses that others are going to have
        :param without: IP versions of which it has none
        :param gateway: who has none of what is kept for it, where a topology gives that to another
        """
        worker = self._supervisor._workers.get(of)
        if worker is None or worker._leaving:
            raise TopologyError(f'{where}: there is no worker or bridge "{of}"')
        owner, fresh = self._owner_of_netns(worker)
        if (owner.name, end.name) in self._ifnames:
            raise NameInUseError(f'{where}: the worker has an interface "{end.name}" already', worker=worker.name)
        ifname = end.name or next(
            name
            for number in itertools.count()
            if (owner.name, name := f"eth{number}") not in self._ifnames
            and not any(given.has_name(worker.name, name) for given in self.given)
        )
        mac = derive_mac(worker.name, ifname) if end.mac is None else parse_mac(end.mac)
        side = Side(
            worker=worker,
            bridge=None,
            ifname=ifname,
            index=self._next_index(owner, fresh=fresh),
            mac=mac,
            mtu=end.mtu if end.mtu is not None else mtu,
        )
        side.segment = segment
        side.dhcp = end.dhcp
        self.has_dhcp |= end.dhcp
        side.netns = owner.name
        self._ifnames.add((side.netns, ifname))
        try:
            for address in end.address:
                keeper = gateway if address.packed in avoid else worker.name
                side.addresses += (segment.reserve(address, side.owner, gateway=keeper),)
            families = {address.version for address in side.addresses} | without | ({4} if end.dhcp else set())
            if free_addresses:
                side.addresses += segment.allocate(side.owner, gateway=worker.name, without=families, avoid=avoid)
            if side.mtu is not None and side.mtu < LEAST_MTU6 and any(own.version == 6 for own in side.addresses):
                raise TopologyError(f"{where}.mtu: {side.mtu} bytes are too few for IPv6, which needs {LEAST_MTU6}")
        except BaseException:
            self._release(side)
            raise
        return side

    def _port(self, bridge: Bridge, plug: End | To | None, mtu: int | None = None) -> Side:
        """:param plug: says which VLANs it is in; None: all"""
        index = next(self._indices)
        port = Side(worker=None, bridge=bridge, ifname=f"p{index}", index=index, mac=None, mtu=mtu or bridge.mtu)
        port.part = bridge._parts.plug()
        if bridge.spec.vlan_aware:
            port.vlans = EVERY_VLAN if plug is None else PortVlans(plug.pvid, plug.tagged)
        return port

    def owner_of_netns(self, worker: Worker) -> Worker | None:
        """Whose network namespace *worker* has: its own, or that of a worker it has joined. None: the host's."""
        with contextlib.suppress(UnsupportedError):
            return self._owner_of_netns(worker)[0]
        return None

    def netns_of(self, worker: str) -> str:
        """The name of who owns its network namespace."""
        owned = self._owners.get(worker)
        return worker if owned is None else owned[0].name

    def links_in(self, owner: Worker) -> Iterator[Link]:
        """Of all workers that have *owner*'s network namespace."""
        for name in (owner.name, *self._guests.get(owner.name, ())):
            yield from self.links_of.get(name, ())

    def _owner_of_netns(self, worker: Worker) -> tuple[Worker, bool]:
        """Whose network namespace it is, and whether the supervisor has made it.

        :raises UnsupportedError: the host's, which nothing is done to
        """
        if worker.name in self._owners:
            return self._owners[worker.name]
        source = NamespaceSet.parse(worker.spec.namespaces, passive=worker.spec.command is None).net
        if isinstance(source, OfWorker):
            return self._owner_of_netns(self._supervisor._worker(source.name))
        if isinstance(source, New):
            return worker, True
        if isinstance(source, Shared | Host):
            raise UnsupportedError(
                "it has the host's network namespace, where nothing is linked to", worker=worker.name, stage="link"
            )
        return worker, False

    def _add(self, link: Link) -> Link:
        if link.name in self.links:
            raise NameInUseError(f"there is a link {link.name} already")
        self.links[link.name] = link
        for side in link._sides:
            if side.worker is not None:
                self.links_of.setdefault(side.worker.name, []).append(link)
        return link

    def ends_of(self, worker: Worker) -> Iterator[tuple[Side, Side]]:
        """The ends of *worker*'s links, also of those that are only planned, and the others."""
        for link in self.links_of.get(worker.name, ()):
            for side, other in link._both():
                if side.worker is worker:
                    yield side, other

    def neighbours_of(self, side: Side, other: Side) -> list[Side]:
        """The ends in workers on the segment of *side*, also of links that are only planned: *other*, or all that its
        bridge connects, in the same VLAN, also over other bridges."""
        if other.worker is not None:
            return [other]
        ends = (end for link in self.links.values() for end in link._sides if end.worker is not None)
        return [end for end in ends if end is not side and end.segment is side.segment]

    def neighbour_of(self, source: Worker, address: IPv4Address | IPv6Address) -> Side | None:
        """The end of a link of *source* that has to ask for *address*, a neighbour on its bridge; or None."""
        for link in self.links_of.get(source.name, ()):
            for side, other in link._both():
                if (
                    side.worker is source
                    and other.bridge is not None
                    and other.bridge.gateway != source.name
                    and address not in (gateway.ip for gateway in other.bridge._gateways.get(other.bridge._segment, ()))
                    and any(address in a.network for a in side.addresses)
                ):
                    return side
        return None

    def end_with(self, segment: Segment | None, address: IPv4Address | IPv6Address) -> Side | None:
        """The end of a link that has *address* on *segment*."""
        owner = "" if segment is None else segment.owner_of(address)
        for link in self.links_of.get(owner.partition(":")[0], ()):
            for side in link._sides:
                if side.owner == owner and side.segment is segment:
                    return side
        return None

    def bridge_of(self, side: Side) -> Bridge | None:
        """That the link of *side* leads to."""
        assert side.worker is not None
        return next((other.bridge for own, other in self.ends_of(side.worker) if own is side), None)

    def arrange(self, order: Sequence[Link]) -> None:
        """Have each worker's links, and so its addresses, in this *order*, and any others behind."""
        places = {link: number for number, link in enumerate(order)}
        for links in self.links_of.values():
            links.sort(key=lambda link: places.get(link, len(places)))

    def rename(self, link: Link) -> None:
        """After its ends: one of them is another now."""
        # Of several that are renamed at once, another may have its name, or it that of another, for a moment.
        if self.links.get(link.name) is link:
            del self.links[link.name]
        link.name = "{}-{}".format(*link.ends)
        self.links[link.name] = link

    def rename_end(self, link: Link, side: Side, ifname: str) -> None:
        """Its interface has another name now, and so has the link."""
        assert side.worker is not None
        if side.worker._interfaces.get(side.ifname) is link:
            del side.worker._interfaces[side.ifname]
        before, side.ifname = side.ifname, ifname
        self._ifnames.add((side.netns, ifname))
        if self.end_in(side.netns, before) is None:
            self._ifnames.discard((side.netns, before))
        for device in (device for worker in self.workers_in(side.netns) for device in worker._devices.values()):
            if device.parent == before:
                device.below = ifname
        if side.segment is not None:
            side.segment.retake(side.addresses, side.owner)
        self.rename(link)

    def drop(self, link: Link) -> None:
        """It is gone: its names and addresses are free."""
        self.links.pop(link.name, None)
        for side in link._sides:
            self._release(side)
            if side.bridge is not None:
                side.bridge._trunks.pop(side, None)
            if side.worker is not None:
                side.worker._interfaces.pop(side.ifname, None)
                self.links_of.get(side.worker.name, [link]).remove(link)

    def drop_worker(self, worker: Worker) -> list[Worker]:
        """It is gone, with its links. Returns who owns its network namespace now, if others have joined that."""
        self.links_of.pop(worker.name, None)
        if self._owners.pop(worker.name, None) is not None:
            for names in self._guests.values():
                names.discard(worker.name)
            self._mislead(worker)
        workers = self._supervisor._workers
        guests = [workers[name] for name in self._guests.pop(worker.name, ()) if not workers[name]._leaving]
        if not guests:
            return []
        self._mislead(worker)
        # One that only begins doesn't hold it yet.
        heir = min(guests, key=lambda guest: (CLONE_NEWNET not in guest._held, guest.order))
        self._guests[heir.name] = {guest.name for guest in guests if guest is not heir}
        for guest in guests:
            self._owners[guest.name] = heir, False
            for link in self.links_of.get(guest.name, ()):
                for side in link._sides:
                    side.netns = heir.name if side.netns == worker.name else side.netns
            for device in guest._devices.values():
                device.netns = heir.name
        self._ifnames = {(heir.name if owner == worker.name else owner, name) for owner, name in self._ifnames}
        return [heir]

    def _mislead(self, worker: Worker) -> None:
        """Those with whom it shared its network namespace, if it was a gateway: it may come again in another."""
        for bridge in self.bridges.values():
            bridge._misled |= bridge.gateway == worker.name

    def _release(self, side: Side) -> None:
        if side.segment is not None:
            side.segment.release(side.addresses)
            side.segment = None
            self._ifnames.discard((side.netns, side.ifname))
        if side.part is not None:
            side.part.ports -= 1
            side.part = None

    async def owners_among(self, workers: Sequence[Worker]) -> set[str]:
        """Of network namespaces that no others than *workers* share."""
        going = {worker.name for worker in workers}
        found = set()
        async for worker in in_turns(workers):
            with contextlib.suppress(UnsupportedError, ClosedError):  # the worker that it has joined is gone before it
                owner, fresh = self._owner_of_netns(worker)
                if owner is worker and fresh and self._guests.get(worker.name, set()) <= going:
                    found.add(worker.name)
        return found


def _check_vlans(where: str, end: End | To, bridge: Bridge | None) -> None:
    if problem := vlan_problem(where, end, bridge is not None and bridge.spec.vlan_aware):
        raise TopologyError(problem)


def _directions(
    where: str, a: Emulation, b: Emulation = NO_EMULATION, both: Emulation = NO_EMULATION
) -> tuple[Emulation, Emulation]:
    try:
        return directions(a, b, both)
    except TopologyError as exc:
        own = b is NO_EMULATION and both is NO_EMULATION  # of a worker's own links, there is one end to speak of
        problems = (problem.removeprefix("ends[0].") if own else problem for problem in exc.problems)
        raise TopologyError(*(f"{where}.{problem}" for problem in problems)) from None
