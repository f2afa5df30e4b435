"""The record of a lab's network: its bridges and links, and the names and addresses that these have reserved. Nothing
here asks the kernel."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

from nsorch.errors import NameInUseError, TopologyError, UnsupportedError
from nsorch.net.addresses import PointToPointPool, Segment
from nsorch.net.mac import derive_mac, parse_mac
from nsorch.supervisor.network import Bridge, Counter, Link, Side
from nsorch.supervisor.segments import Parts
from nsorch.supervisor.turns import in_turns
from nsorch.topology import End
from nsorch.topology.checks import joined_names
from nsorch.topology.namespaces import NamespaceSet, New, OfWorker, Shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec, Emulation, LinkSpec, WorkerSpec


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
        self._pool = PointToPointPool()
        self._indices = Counter(10)

    def plan_bridge(self, spec: BridgeSpec) -> Bridge:
        """Reserve its name and its gateway's address."""
        if spec.name in self.bridges:
            raise NameInUseError(f'there is a bridge "{spec.name}" already')
        if spec.name in self._supervisor._workers:
            raise NameInUseError(f'there is a worker "{spec.name}" already')
        segment = Segment(spec.subnet, spec.name)
        for network in spec.subnet:
            self._pool.exclude(network)
        bridge = self.bridges[spec.name] = Bridge(
            self._wiring,
            spec.name,
            segment=segment,
            gateway=spec.gateway,
            mtu=spec.mtu,
            arp=spec.arp,
            label=spec.label,
            parts=Parts(self._indices.take),
        )
        return bridge

    def bridge(self, bridge: Bridge | str, where: str) -> Bridge:
        """:raises TopologyError: there is none of that name"""
        name = bridge if isinstance(bridge, str) else bridge.name
        try:
            return self.bridges[name]
        except KeyError:
            raise TopologyError(f'{where}: there is no bridge "{name}"') from None

    def check(self, spec: WorkerSpec) -> None:
        """Refuse links that can't be made, before any worker is admitted.

        :raises TopologyError: a bridge that doesn't exist
        :raises UnsupportedError: link emulation
        """
        for number, to in enumerate(spec.links):
            where = f"workers.{spec.name}.links[{number}]"
            self.bridge(to.bridge, where)
            _refuse_emulation(to, where)

    def admit(self, worker: Worker) -> None:
        """Plan the links of *worker*'s description."""
        if joined_names(worker.spec):
            owner = self.owner_of_netns(worker)
            if owner not in (None, worker):
                self._guests.setdefault(owner.name, set()).add(worker.name)
        for number, to in enumerate(worker.spec.links):
            where = f"workers.{worker.name}.links[{number}]"
            bridge = self.bridge(to.bridge, where)
            end = End(worker=worker.name, name=to.name, address=to.address or None, mac=to.mac, mtu=to.mtu)
            self._add(Link(self._wiring, self._side(end, bridge._segment, bridge.mtu, where), self._port(bridge)))

    def plan_link(self, spec: LinkSpec, *, routed: bool = False) -> Link:
        """Plan a link between workers, or a worker and a bridge. The ends of a *routed* one know each other's MAC."""
        where = "links." + "-".join((spec.a.worker, spec.b.worker))
        for emulation in (spec, spec.a, spec.b):
            _refuse_emulation(emulation, where)
        if spec.a.worker in self.bridges and spec.b.worker not in self.bridges:
            a, b = spec.b, spec.a
        else:
            a, b = spec.a, spec.b
        if b.worker in self.bridges:
            if spec.subnet:
                raise TopologyError(f'{where}.subnet: the bridge "{b.worker}" has its own')
            bridge = self.bridges[b.worker]
            mtu = spec.mtu if spec.mtu is not None else bridge.mtu
            return self._add(
                Link(self._wiring, self._side(a, bridge._segment, mtu, where), self._port(bridge, mtu), spec.label)
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
        link = Link(self._wiring, first, second, spec.label)
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

    def owner_of_netns(self, worker: Worker) -> Worker | None:
        """Whose network namespace *worker* has: its own, or that of a worker it has joined. None: the host's."""
        with contextlib.suppress(UnsupportedError):
            return self._owner_of_netns(worker)[0]
        return None

    def links_in(self, owner: Worker) -> Iterator[Link]:
        """Of all workers that have *owner*'s network namespace."""
        for name in (owner.name, *self._guests.get(owner.name, ())):
            yield from self.links_of.get(name, ())

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
        if link.name in self.links:
            raise NameInUseError(f"there is a link {link.name} already")
        self.links[link.name] = link
        for side in link._sides:
            if side.worker is not None:
                self.links_of.setdefault(side.worker.name, []).append(link)
        return link

    def neighbour_of(self, source: Worker, address: IPv4Address | IPv6Address) -> Side | None:
        """The end of a link of *source* that has to ask for *address*, a neighbour on its bridge; or None."""
        for link in self.links_of.get(source.name, ()):
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

    def arrange(self, order: Sequence[Link]) -> None:
        """Have each worker's links, and so its addresses, in this *order*, and any others behind."""
        places = {link: number for number, link in enumerate(order)}
        for links in self.links_of.values():
            links.sort(key=lambda link: places.get(link, len(places)))

    def rename(self, link: Link) -> None:
        """After its ends: one of them is another now."""
        del self.links[link.name]
        link.name = "{}-{}".format(*link.ends)
        self.links[link.name] = link

    def rename_end(self, link: Link, side: Side, ifname: str) -> None:
        """Its interface has another name now, and so has the link."""
        assert side.worker is not None
        side.worker._interfaces.pop(side.ifname, None)
        self._ifnames.discard((side.netns, side.ifname))
        self._ifnames.add((side.netns, ifname))
        if side.segment is not None:
            side.segment.release(side.addresses)
            side.ifname = ifname
            for address in side.addresses:
                side.segment.reserve(address.ip, side.owner)
        self.rename(link)

    def drop(self, link: Link) -> None:
        """It is gone: its names and addresses are free."""
        self.links.pop(link.name, None)
        for side in link._sides:
            self._release(side)
            if side.worker is not None:
                side.worker._interfaces.pop(side.ifname, None)
                self.links_of.get(side.worker.name, [link]).remove(link)

    def drop_worker(self, worker: Worker) -> None:
        """It is gone, with its links."""
        self.links_of.pop(worker.name, None)
        self._guests.pop(worker.name, None)
        if joined_names(worker.spec):
            for guests in self._guests.values():
                guests.discard(worker.name)

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
            with contextlib.suppress(UnsupportedError):
                owner, fresh = self._owner_of_netns(worker)
                if owner is worker and fresh and self._guests.get(worker.name, set()) <= going:
                    found.add(worker.name)
        return found


def _refuse_emulation(emulation: Emulation, where: str) -> None:
    if emulation.active:
        raise UnsupportedError(f"{where}: link emulation is not in this version of nsorch", stage="link")
