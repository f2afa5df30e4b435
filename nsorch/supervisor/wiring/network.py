"""What a lab's network is made of, as the user holds it: bridges, links, interfaces."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import NoneType
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, frozen

from nsorch import supervisor, topology  # noqa: TC001 - for typing.get_type_hints
from nsorch.errors import ClosedError, TopologyError
from nsorch.supervisor.wiring.changing import end_name, end_of, move, set_addresses, set_mac
from nsorch.supervisor.wiring.emulating import UNSET, Unset, apply_ways, needs_netem, plan_emulation, require_netem
from nsorch.topology import Emulation, End, To
from nsorch.topology.emulation import NO_EMULATION, directions, given
from nsorch.topology.kinds import at, of_kind
from nsorch.topology.units import duration
from nsorch.values import Shown, Value

if TYPE_CHECKING:
    from nsorch.net.addresses import Segment
    from nsorch.net.plan import PortVlans
    from nsorch.supervisor.wiring.segments import Part, Parts
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import BridgeSpec


@frozen(kw_only=True, eq=False, repr=False)
class Interface(Value):
    """A worker's end of a link, or another interface of it.

    :ivar kind: ``"veth"`` of a link's; else that of its description, such as ``"vlan"``
    :ivar link: name of the link that it is an end of, or None
    :ivar bridge: name of the bridge on the other side, or None
    :ivar peer: name of the worker on the other side, or None
    :ivar parent: name of the interface that it is above, or None
    :ivar mac: such as ``02:…``, or ``""``
    :ivar mtu: in bytes, or None for the kernel's 1500
    :ivar public_key: of WireGuard, in Base64
    """

    name: str
    kind: str = "veth"
    link: str | None
    bridge: str | None
    peer: str | None
    parent: str | None = None
    mac: str
    mtu: int | None
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    public_key: str | None = None


@define(eq=False, repr=False)
class Side(Shown):
    """One end of a link: in a worker, or in the fabric as the port of a bridge."""

    worker: Worker | None
    bridge: Bridge | None
    ifname: str
    index: int | None
    mac: bytes | None
    mtu: int | None
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    segment: Segment | None = None  #: that the addresses are from
    netns: str = ""  #: the worker whose network namespace it is in
    part: Part | None = None  #: of the bridge, that it is a port of
    vlans: PortVlans | None = None  #: that it is in, as a port of a VLAN-aware bridge
    emulation: Emulation = NO_EMULATION  #: of what it sends
    gateway: tuple[bytes | None, tuple[IPv4Interface | IPv6Interface, ...]] | None = None  #: that it knows for good
    dhcp: bool = False  #: its IPv4 address comes from a server
    router: IPv4Address | None = None  #: that the server named
    heard: int | None = None  #: id of its network namespace, where the watcher hears what becomes of it
    missing: frozenset[IPv4Interface | IPv6Interface] = frozenset()  #: of the addresses, that another program removed
    foreign: tuple[IPv4Interface | IPv6Interface, ...] = ()  #: addresses that another program added

    @property
    def present(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The addresses that it has in fact."""
        return (*(address for address in self.addresses if address not in self.missing), *self.foreign)

    @property
    def owner(self) -> str:
        """Of the addresses, in their segment."""
        return "" if self.worker is None else f"{self.worker.name}:{self.ifname}"

    def __str__(self) -> str:
        if self.worker is not None:
            return self.owner
        assert self.bridge is not None
        return self.bridge.name


class Bridge:
    """A layer-2 segment in the fabric. Made by :meth:`nsorch.Supervisor.bridge`."""

    def __init__(
        self,
        wiring: Wiring,
        spec: BridgeSpec,
        *,
        segment: Segment,
        vlans: Mapping[int, Segment],
        parts: Parts,
    ) -> None:
        self.spec = spec  #: the description that it was made from
        self.name = spec.name
        self.label = spec.label
        self.gateway = spec.gateway  #: name of the worker that is the others' default route
        self.mtu = spec.mtu  #: bytes
        #: who answers ARP: ``"static"`` the bridge, ``"dynamic"`` the workers, ``"auto"`` by their number
        self.arp = spec.arp
        self._wiring = wiring
        self._segment = segment
        self._vlans = vlans  # that have a subnet of their own
        self._parts = parts
        self._ends: dict[Side, Side] = {}  # of links that exist: the worker's, and the port
        self._new: list[Side] = []  # of these, which others may know otherwise
        self._joining: dict[Side, Side] = {}  # of links that exist, but whose ports aren't its own yet
        self._owners: dict[bytes, bytes] = {}  # hardware addresses as they were last, by packed address
        self._answers = spec.arp == "static"
        self._router: bytes | None = None  # hardware address of who is asked for routes; b"": nobody, None: all
        self._introduced: dict[Side, set[Side]] = {}  # by whom they were introduced to: the gateway, and others
        self._telling = anyio.Lock()
        self._trunks: dict[Side, Bridge] = {}  # ports of links to other bridges
        self._misled = False  # the default routes of those who are there go by what the gateway hasn't got any more
        self._retired = False
        self._leaving: anyio.Event | None = None  # it is removed next; set once that is over
        self._left = 0  # ports that the kernel removes with their workers' network namespaces
        self._removed = False
        self._announced = False
        # Of the gateway, as they were last, also before it is there: on the bridge's subnet, and on those of VLANs.
        self._gateways: dict[Segment, tuple[IPv4Interface | IPv6Interface, ...]] = {
            of: () if spec.gateway is None else of.reserve_first(spec.gateway) for of in (segment, *vlans.values())
        }

    def __repr__(self) -> str:
        return f"<Bridge {self.name} {', '.join(map(str, self.subnets))}>"

    def _joined(self) -> list[Bridge]:
        """All bridges of its segment: it, and those that links between bridges connect to it."""
        found = {self: None}
        todo = [self]
        while todo:
            for other in todo.pop()._trunks.values():
                if other not in found:
                    found[other] = None
                    todo.append(other)
        return list(found)

    def _add_end(self, side: Side, port: Side) -> None:
        self._ends[side] = port
        self._new.append(side)

    def _have_joined(self, ports: Mapping[Side, Side]) -> None:
        """The *ports*, of these ends, are its own now, but for those that are gone meanwhile."""
        for side, port in ports.items():
            if self._joining.pop(side, None) is not None and side.worker is not None:
                self._add_end(side, port)

    def _segment_of(self, pvid: int | None) -> Segment:
        """Where the addresses of an end come from."""
        return self._segment if pvid is None else self._vlans.get(pvid, self._segment)

    def _gateway_of(self, side: Side) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The gateway's addresses on the subnet of *side*; while it isn't there, those that are nobody else's. None
        where both are in one network namespace: the way to oneself leads nowhere."""
        if self.gateway is None or side.netns == self._wiring.record.netns_of(self.gateway):
            return ()
        known = () if side.segment is None else self._gateways.get(side.segment, ())
        return tuple(its for its in known if side.segment is not None and self._is_gateways(side.segment, its))

    def _is_gateways(self, segment: Segment, address: IPv4Interface | IPv6Interface) -> bool:
        return segment.owner_of(address.ip).partition(":")[0] in ("", self.gateway)

    def _note_gateway(self, side: Side) -> bool:
        """Whether the gateway's addresses are others, now that its end *side* has its own; of several ends on a segment
        the first counts."""
        segment = side.segment
        if segment is None or segment not in self._gateways:
            return False
        before = self._gateways[segment]
        own = {address.version: address for address in reversed(side.addresses)}
        elsewhere = tuple(
            owner.startswith(f"{self.gateway}:") and owner != side.owner
            for owner in (segment.owner_of(known.ip) for known in before)
        )
        self._gateways[segment] = tuple(
            known if kept else own.get(known.version, known) for known, kept in zip(before, elsewhere, strict=True)
        )
        return self._gateways[segment] != before

    def _serves(self, side: Side) -> bool:
        """Whether the gateway is on the subnet of *side*, with its own end."""
        return side.segment is self._segment

    def _note_owner(self, side: Side) -> list[IPv4Address | IPv6Address]:
        """The addresses of *side* that belonged to others before."""
        changed = []
        if side.mac is not None:
            for address in side.addresses:
                if self._owners.get(address.packed, side.mac) != side.mac:
                    changed.append(address.ip)
                self._owners[address.packed] = side.mac
        return changed

    def _leaves(self, side: Side, dying: Collection[str]) -> bool:
        """Whether the link of *side* is left to the kernel, which ends it with the worker and the bridge."""
        leaves = self._retired and side.netns in dying
        self._left += leaves
        return leaves

    @property
    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return self._segment.networks

    async def remove(self) -> None:
        """Remove it with all its links. Doing it twice is once; cancelled, it is done all the same."""
        self._wiring._supervisor._check_thread()
        await self._wiring.remove_bridges([self])


class Link:
    """A veth pair between two workers, or a worker and a bridge. Made by :meth:`nsorch.Supervisor.link`."""

    def __init__(self, wiring: Wiring, a: Side, b: Side, label: str | None = None) -> None:
        self.name = f"{a}-{b}"
        self.label = label
        self._wiring = wiring
        self._sides = (a, b)
        self._state = "planned"
        self._announced = False  # by LinkCreated
        self._static = False  # its ends know each other's hardware address
        self._busy = 0  # changes of nsorch's own that are under way
        self._lock: anyio.Lock | None = None  # of these
        self._leaving: anyio.Event | None = None  # it is removed next; set once that is over
        self._on_removal: list[Callable[[], None]] = []  # of those who use it

    def __repr__(self) -> str:
        return f"<Link {self.name} {self._state}>"

    @property
    def ends(self) -> tuple[str, str]:
        """``worker:interface`` or the bridge, of either side."""
        return str(self._sides[0]), str(self._sides[1])

    @property
    def is_up(self) -> bool:
        return self._state == "up"

    @property
    def interfaces(self) -> Sequence[Interface]:
        """Its ends in workers."""
        return [self._interface(side, other) for side, other in self._both() if side.worker is not None]

    def _interface_named(self, worker: Worker, name: str) -> Interface:
        return next(self._interface(s, o) for s, o in self._both() if s.worker is worker and s.ifname == name)

    def _both(self) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
        a, b = self._sides
        return (a, b), (b, a)

    def _interface(self, side: Side, other: Side) -> Interface:
        return Interface(
            name=side.ifname,
            link=self.name,
            bridge=None if other.bridge is None else other.bridge.name,
            peer=None if other.worker is None else other.worker.name,
            mac="" if side.mac is None else side.mac.hex(":"),
            mtu=side.mtu,
            addresses=side.present,
        )

    @property
    def emulation(self) -> tuple[Emulation, Emulation]:
        """What packets go through that either of the :attr:`ends` sends."""
        a, b = self._sides
        return a.emulation, b.emulation

    def _emulate(self, ways: tuple[Emulation, Emulation]) -> None:
        for side, way in zip(self._sides, ways, strict=True):
            side.emulation = way

    def _check(self) -> None:
        self._wiring._supervisor._check_thread()
        if self._leaving or not self._announced or self._state == "removed":
            why = "was removed" if self._leaving or self._state == "removed" else "isn't made yet"
            raise ClosedError(f"the link {self.name} {why}")

    async def up(self) -> None:
        """Set it up, and wait for carrier. Cancelled, it is done all the same.

        :raises ClosedError: it was removed
        :raises NetlinkError: the kernel refused
        """
        self._check()
        async with self._wiring.watcher.own(self):
            await self._wiring.set_up(self, up=True)

    async def down(self) -> None:
        """Set it down: both ends lose their carrier. Addresses stay; the kernel drops routes, :meth:`up` adds them.

        Cancelled, it is done all the same.

        :raises ClosedError: it was removed
        """
        self._check()
        async with self._wiring.watcher.own(self):
            await self._wiring.set_up(self, up=False)

    async def set(
        self,
        *,
        mtu: int | None = None,
        mac: str | None = None,
        address: Any = None,
        bridge: Bridge | str | None = None,
        vlan: int | None = None,
        tagged: Any = None,
        end: supervisor.Worker | Bridge | str | None = None,
        emulation: Emulation | Unset | None = UNSET,
        profile: str | Unset | None = UNSET,
        delay: Any = UNSET,
        jitter: Any = UNSET,
        delay_correlation: Any = UNSET,
        distribution: str | Unset | None = UNSET,
        loss: Any = UNSET,
        loss_correlation: Any = UNSET,
        gilbert_elliott: Any = UNSET,
        duplicate: Any = UNSET,
        corrupt: Any = UNSET,
        reorder: Any = UNSET,
        rate: Any = UNSET,
        limit: int | Unset | None = UNSET,
    ) -> None:
        """Change it; nothing else is touched. Cancelled, it is done all the same.

        Emulation, from *profile* to *limit*, changes in place, and packets that are under way stay so; what isn't
        given stays, and None takes a part away. The last is taken away when the packets it holds are through, for
        which up to 2 s are waited.

        :param mtu: bytes, of both ends; IPv6, where an end has such an address, needs 1280
        :param mac: of a worker's end, such as ``"02:00:00:00:00:01"``
        :param address: one, or several, of a worker's end; those of a family of which none is given stay
        :param bridge: another one that the worker's end moves to, with *address*, the address it has, or a free one.
            The link's name changes with it, and the MTU, unless it has one of its own
        :param vlan: of the untagged frames of its port, on a VLAN-aware bridge; as *bridge* for its addresses
        :param tagged: VLANs that its port hears and sends with a tag. With *vlan* alone there are none any more
        :param end: the worker, or ``"worker:interface"``, whose end is meant, where both ends are in workers; of
            emulation, the one end (also a bridge) whose sending changes, instead of both
        :param emulation: all of it anew: what it doesn't say is taken away, and with None everything
        :param profile: anew as well; see :class:`nsorch.Emulation` for it and what follows
        :raises ClosedError: it was removed
        :raises AddressError: an address that is outside of the subnet, or taken, or none
        :raises TopologyError: no such end, no such bridge, or a wrong value; nothing was changed
        :raises UnsupportedError: shortest paths go by the end's addresses; or the kernel has no netem
        :raises NetlinkError: the kernel refused
        """
        self._check()
        where = f"links.{self.name}"
        with at(where):
            asked = End("x", mac=mac, address=address, mtu=mtu, vlan=vlan, tagged=tagged)
        addresses = asked.address
        self._wiring._supervisor._check_own(bridge, end)
        end = None if end is None else end_name(self, end)
        to = None if bridge is None else self._wiring.record.bridge(bridge, where)
        plug = None if vlan is None and tagged is None else To("x", vlan=asked.vlan, tagged=asked.tagged)
        ends = end_of(self, end) if mac is not None or addresses else None
        values = {
            "profile": profile,
            "delay": delay,
            "jitter": jitter,
            "delay_correlation": delay_correlation,
            "distribution": distribution,
            "loss": loss,
            "loss_correlation": loss_correlation,
            "gilbert_elliott": gilbert_elliott,
            "duplicate": duplicate,
            "corrupt": corrupt,
            "reorder": reorder,
            "rate": rate,
            "limit": limit,
        }
        changes = {key: value for key, value in values.items() if value is not UNSET}
        plan_emulation(self, emulation, changes, end)  # what is wrong is said before anything is done
        async with self._wiring.watcher.own(self):
            shape = plan_emulation(self, emulation, changes, end)  # another call may have changed it meanwhile
            if shape is not None and needs_netem(*shape):
                await require_netem(self._wiring.kernel, [where])
            # First what may be refused, before it does anything.
            if to is not None or plug is not None:
                await move(self._wiring, self, to, plug, addresses, asked.mtu)
            else:
                if asked.mtu is not None:
                    self._wiring.refuse_short(self, (asked.mtu, asked.mtu))
                if addresses and ends is not None:
                    await set_addresses(self._wiring, self, *ends, addresses)
                if asked.mtu is not None:
                    await self._wiring.set_mtus(self, (asked.mtu, asked.mtu))
            if asked.mac is not None and ends is not None:
                await set_mac(self._wiring, self, *ends, asked.mac)
            if shape is not None:
                await apply_ways(self._wiring, self, shape)

    async def follow(
        self,
        trace: topology.Trace | Iterable[Any],
        *,
        end: supervisor.Worker | Bridge | str | None = None,
        repeat: bool = False,
    ) -> None:
        """Have its emulation go the way of *trace*; returns at the trace's end. What the trace doesn't speak of stays.

        Cancelled, the link keeps the values of the last step.

        :param trace: or the (time, values) of its steps
        :param end: only what this end sends, as of :meth:`set`
        :param repeat: begin again at the trace's end, until cancelled
        :raises ClosedError: it was removed
        :raises TopologyError: it is no trace; or a step has a wrong value
        :raises UnsupportedError: the kernel has no netem, which a step needs; nothing was changed
        """
        from nsorch.topology.traces import Trace

        trace = trace if isinstance(trace, Trace) else Trace(trace)
        if any(needs_netem(*directions(NO_EMULATION, NO_EMULATION, step.emulation)) for step in trace):
            await require_netem(self._wiring.kernel, [f"links.{self.name}"])
        if repeat and not trace.length:
            raise TopologyError(f"links.{self.name}.follow: a trace of no length can't be repeated")
        start = anyio.current_time()
        with self._while_there():
            while True:
                for step in trace:
                    await anyio.sleep_until(start + step.time)
                    await self.set(**given(step.emulation), end=end)
                start += trace.length
                await anyio.sleep_until(start)
                if not repeat:
                    return

    async def flap(self, *, down: Any = 1.0, up: Any = 1.0, times: int | None = None) -> None:
        """Down, and up again, over and over. Cancelled, it is up.

        :param down: seconds, or such as ``"200ms"``, as *up*
        :param times: how often; until cancelled if None
        :raises ClosedError: it was removed
        """
        of_kind(f"links.{self.name}.flap.times", times, "a whole number", int, NoneType)
        spans = []
        for name, value in (("down", down), ("up", up)):
            try:
                spans.append(duration(value))
            except ValueError as exc:
                raise TopologyError(f"links.{self.name}.flap.{name}: {exc}") from None
        with self._while_there():
            for _ in itertools.count() if times is None else range(times):
                try:
                    await self.down()
                    await anyio.sleep(spans[0])
                finally:
                    with anyio.CancelScope(shield=True):
                        if self._state == "down":
                            await self.up()
                await anyio.sleep(spans[1])

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """What takes its time in the block is cut short where the link is removed, or the supervisor ends.

        :raises ClosedError: it was; SpawnerDiedError: because of that
        """
        with self._wiring.until_end(), anyio.CancelScope() as scope:
            self._on_removal.append(scope.cancel)
            try:
                yield
            finally:
                self._on_removal.remove(scope.cancel)
        if scope.cancelled_caught:
            self._check()

    def capture(
        self,
        *,
        filter: str | supervisor.Instructions | None = None,  # noqa: A002 - the field's word
        file: str | os.PathLike[str] | None = None,
        direction: supervisor.Direction = "in",
        snaplen: int = 65_535,
        buffer: int = 4096,
    ) -> supervisor.Capture:
        """The packets that pass this link: ``async with link.capture() as packets`` gives a stream of
        :class:`nsorch.Packet`. See :meth:`nsorch.Supervisor.capture`.
        """
        return self._wiring.capture(
            [self], filter=filter, file=file, direction=direction, snaplen=snaplen, buffer=buffer
        )

    async def remove(self) -> None:
        """Remove it. Doing it twice is once; cancelled, it is done all the same.

        :raises ClosedError: it is being made with its workers
        """
        self._wiring._supervisor._check_thread()
        if self._state == "planned":
            self._check()
        await self._wiring.remove_link(self)
