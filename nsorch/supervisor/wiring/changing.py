"""Changes of links and routes that exist, each without touching anything else. Shield them: the kernel can't be told to
stop half-way."""

from __future__ import annotations

import contextlib
import errno
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from attrs import evolve

from nsorch import events
from nsorch.errors import ClosedError, NetlinkError, NsorchError, SpawnerDiedError, TopologyError, UnsupportedError
from nsorch.net.mac import parse_mac
from nsorch.net.plan import PortVlans
from nsorch.supervisor.wiring.planning import end_plan
from nsorch.supervisor.wiring.routes import check_routes, default_routes, device_routes, given_routes
from nsorch.supervisor.wiring.telling import forget, forget_gateway, know_anew, tell
from nsorch.topology import To
from nsorch.topology.kinds import name_of
from nsorch.topology.layer2 import is_short, vlan_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from nsorch.net.addresses import Segment
    from nsorch.net.plan import NextHop, RoutePlan
    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.wiring.segments import Part
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec

    Interfaces = tuple[IPv4Interface | IPv6Interface, ...]


def end_of(link: Link, end: Worker | Bridge | str | None) -> tuple[Side, Side]:
    """The end of *link* that is meant, and the other one.

    :param end: a worker, or ``"worker:interface"``; needed only where both are in workers
    :raises TopologyError: neither, or either, could be meant
    """
    both = [(side, other) for side, other in link._both() if side.worker is not None]
    if end is not None:
        wanted = end_name(link, end)
        both = [pair for pair in both if wanted in (pair[0].owner, pair[0].owner.partition(":")[0])]
        if not both:
            raise TopologyError(f'links.{link.name}: it has no end "{wanted}"')
    if not both:
        raise TopologyError(f"links.{link.name}: none of its ends is in a worker")
    if len(both) > 1:
        raise TopologyError(f"links.{link.name}: end= must say which of {link.ends[0]} and {link.ends[1]} is meant")
    return both[0]


def end_name(link: Link, end: Worker | Bridge | str) -> str:
    """:raises TopologyError: it can't be an end"""
    return name_of(f"links.{link.name}.end", end, "a worker, a bridge")


async def set_mac(wiring: Wiring, link: Link, side: Side, other: Side, mac: str) -> None:
    """:raises AddressError: it is no hardware address"""
    new = parse_mac(mac)
    if new == side.mac:
        return
    await _leave(wiring, side, other)
    await wiring.kernel.with_handle(
        side, wiring.kernel.engine.change_mac, end_plan(link, side, wiring.record.links_of), new
    )
    await note_mac(wiring, link, side, new)
    record(wiring, link, mac=new.hex(":"))


async def note_mac(wiring: Wiring, link: Link, side: Side, mac: bytes) -> None:
    """An end has another hardware address: others are to know it."""
    other = next(other for other in link._sides if other is not side)
    await _leave(wiring, side, other)
    side.mac = mac
    side.gateway = None  # the kernel has dropped what the interface knew of others
    await _come(wiring, side, other)
    if side.worker is not None and other.bridge is not None:
        await part(wiring, side, side.segment, other.bridge)
    if other.bridge is None:
        for end in (side, other):
            await wiring.kernel.with_handle(
                end, wiring.kernel.engine.restore_end, end_plan(link, end, wiring.record.links_of)
            )


async def set_addresses(
    wiring: Wiring, link: Link, side: Side, other: Side, addresses: Sequence[IPv4Interface | IPv6Interface | str]
) -> None:
    """Those of families of which none is given stay.

    :raises AddressError: outside of the subnet, or taken
    :raises UnsupportedError: others have routes by the old ones
    """
    worker = side.worker
    assert worker is not None
    assert side.segment is not None
    if any(end.worker is not None and end.worker.name in wiring.routing for end in (side, other)):
        raise UnsupportedError("the shortest paths of others go by its addresses", worker=worker.name, stage="link")
    new = _reserve(side.segment, side, addresses, keep=side.addresses)
    before = _given_over(wiring, worker, link)
    try:
        await _leave(wiring, side, other)
        await _readdress(wiring, side, side.segment, new)
    except BaseException:
        _give_back(side.segment, side, new)
        with contextlib.suppress(NsorchError):
            await _come(wiring, side, other)
            await _change_routes(wiring, worker, [], before)
            await follow_default(wiring, worker, anew=True)
        raise
    await _come(wiring, side, other)
    await _reroute(wiring, worker, link, before)
    record(wiring, link, address=", ".join(str(address.ip) for address in new))
    await wiring.settle()


async def move(
    wiring: Wiring,
    link: Link,
    bridge: Bridge | None,
    plug: To | None,
    addresses: Sequence[IPv4Interface | IPv6Interface | str],
    mtu: int | None,
) -> None:
    """To another *bridge*, or other VLANs. Ends that have the MTU of their bridge have that of the other one, then.

    :param mtu: of both ends instead
    :raises TopologyError: the link is between two workers, or the bridge isn't VLAN-aware; or IPv6 needs a larger MTU
    :raises AddressError: an address is outside of the subnet, or taken
    """
    if all(end.bridge is None for end in link._sides):
        raise TopologyError(f"links.{link.name}: it is on no bridge that it could be moved from")
    side, port = end_of(link, None)
    worker = side.worker
    assert worker is not None
    assert side.segment is not None
    assert port.bridge is not None
    if worker.name in wiring.routing:
        raise UnsupportedError("the shortest paths of others go by its addresses", worker=worker.name, stage="link")
    assert port.part is not None
    bridge = bridge or port.bridge
    plug = plug or To(bridge.name)
    if problem := vlan_problem(f"links.{link.name}", plug, bridge.spec.vlan_aware):
        raise TopologyError(problem)
    vlans = PortVlans(plug.pvid, plug.tagged) if bridge.spec.vlan_aware else None
    if port.bridge is bridge and port.vlans == vlans:
        if addresses:
            await set_addresses(wiring, link, side, port, addresses)
        if mtu is not None:
            await wiring.set_mtus(link, (mtu, mtu))
        return
    segment = bridge._segment_of(vlans.pvid if vlans else None)
    useless = vlans is not None and vlans.pvid is None and not addresses  # all its frames have tags
    old_mtus = _mtus(link)
    mtus = _mtus(link, port.bridge, bridge) if mtu is None else (mtu, mtu)
    wiring.refuse_short(link, mtus, moves=(side, () if useless else segment.networks))
    grows = is_short(old_mtus) and not is_short(mtus)  # which IPv6 addresses of there need
    new = () if useless else _reserve(segment, side, addresses, keep=side.addresses)
    before = _given_over(wiring, worker, link)
    left, into = side.segment, port.part
    if port.bridge is not bridge:
        into = bridge._parts.plug()
        try:
            await wiring.ensure([bridge])
        except BaseException:
            into.ports -= 1
            _give_back(segment, side, new)
            raise
    was = port.bridge, port.part, port.vlans
    gone = TopologyError(f'links.{link.name}: there is no bridge "{bridge.name}"')
    try:
        if grows:
            await wiring.set_mtus(link, mtus)
        await _leave(wiring, side, port)
        await forget_gateway(wiring.kernel, port.bridge, side)
        await _replug(wiring, side, port, bridge, into, vlans)
        if bridge._leaving:  # whose links were looked for before this was one
            raise gone
        had_ipv6 = any(own.version == 6 for own in side.addresses)
        await _readdress(wiring, side, segment, new)
        if not had_ipv6 and link.is_up:  # else it has no link-local address, or one that the kernel still probes
            own = end_plan(link, side, wiring.record.links_of)
            await wiring.kernel.with_handle(side, wiring.kernel.engine.restore_end, own)
    except BaseException as exc:
        _give_back(segment, side, new)
        if into is not was[1]:
            into.ports -= 1
        with contextlib.suppress(NsorchError):
            await _replug(wiring, side, port, *was)
            if grows:
                await wiring.set_mtus(link, old_mtus)
            await _come(wiring, side, port)
            await _change_routes(wiring, worker, [], before)
            await follow_default(wiring, worker, anew=True)
        if bridge._leaving and isinstance(exc, NetlinkError):
            raise gone from exc
        raise
    if into is not was[1]:
        was[1].ports -= 1
    await part(wiring, side, left, was[0])
    await _come(wiring, side, port)
    old_name = link.name
    wiring.record.rename(link)
    await _reroute(wiring, worker, link, before)
    changes = {"bridge": bridge.name, "address": ", ".join(str(a.ip) for a in new), "was": old_name}
    if vlans is not None:
        changes |= {"vlan": str(vlans.pvid or ""), "tagged": ", ".join(map(str, vlans.tagged))}
    record(wiring, link, **changes)
    if mtus != _mtus(link):
        await wiring.set_mtus(link, mtus)
    await wiring.settle()
    if side.dhcp:
        wiring.leases.renew(side)


def _mtus(link: Link, before: Bridge | None = None, after: Bridge | None = None) -> tuple[int | None, int | None]:
    """Of its ends; of those that have that of the bridge *before*, that of the one *after*."""
    first, second = (
        after.mtu if before is not None and after is not None and side.mtu == before.mtu else side.mtu
        for side in link._sides
    )
    return first, second


async def _replug(wiring: Wiring, side: Side, port: Side, bridge: Bridge, part: Part, vlans: PortVlans | None) -> None:
    engine = wiring.kernel.engine
    moves = part is not port.part
    if moves:
        port.part = None  # the kernel takes it from its bridge, also where it refuses the next
        await wiring.kernel.with_handle(port, engine.set_link, port.ifname, master=part.index)
    if vlans is not None and port.index is not None:
        await wiring.kernel.in_thread(engine.set_vlans, port.index, None if moves else port.vlans, vlans)
    port.bridge, port.part, port.vlans = bridge, part, vlans
    await wiring.kernel.with_handle(side, engine.forget_asked, side.ifname)  # others may have their addresses there


def take_routes(wiring: Wiring, worker: Worker, described: WorkerSpec) -> list[RoutePlan]:
    """Have *worker* described with those of another description, and of its service. Returns those that it has."""
    before = _given(wiring, worker)
    worker._spec = evolve(worker._spec, routes=described.routes, service=described.service)
    return before


async def set_routes(wiring: Wiring, worker: Worker, before: Sequence[RoutePlan]) -> None:
    """Those of its description, instead of those *before*.

    :raises TopologyError: a gateway is on none of its links
    :raises NetlinkError: the kernel refused; those before are there again
    """
    check_routes(worker, wiring.record.links_of.get(worker.name, ()))
    await follow_default(wiring, worker)  # one may be given now, or none any more
    after = _given(wiring, worker)
    try:
        await _change_routes(wiring, worker, before, after)
    except NetlinkError:
        nothing: Sequence[RoutePlan] = ()
        for change in ((after, nothing), (nothing, before)):
            with contextlib.suppress(NsorchError):
                await _change_routes(wiring, worker, *change)
        raise
    await follow_default(wiring, worker, anew=True)


def _given(wiring: Wiring, worker: Worker) -> list[RoutePlan]:
    links = wiring.record.links_of.get(worker.name, ())
    return [*given_routes(worker, links, links), *device_routes(worker, links, worker._devices.values())]


def _reserve(
    segment: Segment, side: Side, addresses: Sequence[Any], *, keep: Iterable[IPv4Interface | IPv6Interface]
) -> Interfaces:
    """Those given; else those it has, if they fit; else the next free ones. Nothing is taken if one can't be had. Those
    that it has stay its own until :func:`_readdress`."""
    assert side.worker is not None
    had = side.addresses if side.segment is segment else ()
    segment.release(had)
    found: list[IPv4Interface | IPv6Interface] = []
    try:
        for address in addresses:
            # What is reserved counts after an error.
            found.append(segment.reserve(address, side.owner, gateway=side.worker.name))  # noqa: PERF401
        dynamic = {4} if side.dhcp else set()
        for address in keep:
            if (
                address.version not in dynamic
                and address.version not in {own.version for own in found}
                and segment.is_free(address.ip)
            ):
                found.append(segment.reserve(address.ip, side.owner))
        families = {address.version for address in found} | dynamic
        return (*found, *segment.allocate(side.owner, gateway=side.worker.name, without=families))
    except BaseException:
        segment.release(found)
        raise
    finally:
        segment.retake(had, side.owner)


def _give_back(segment: Segment, side: Side, new: Interfaces) -> None:
    """What was reserved, and isn't had."""
    segment.release(address for address in new if segment is not side.segment or address not in side.addresses)


async def _leave(wiring: Wiring, side: Side, other: Side) -> None:
    if other.bridge is not None:
        if side in other.bridge._joining:
            await wiring.ensure([other.bridge])
        await forget(wiring.kernel, other.bridge, [side], stays=True)


async def _come(wiring: Wiring, side: Side, other: Side) -> None:
    if other.bridge is not None:
        other.bridge._add_end(side, other)
        await tell(wiring.kernel, other.bridge)
        if side.worker is not None and side.worker.name == other.bridge.gateway and other.bridge._note_gateway(side):
            await wiring.follow_gateway([other.bridge])


async def part(wiring: Wiring, gone: Side, segment: Segment | None, bridge: Bridge) -> None:
    """A worker's end on a *segment*, that of *bridge*, is gone, down, or another for others. Others that it has there
    are known by their own hardware addresses from here on, and stand for the gateway, if it is that."""
    worker = gone.worker
    assert worker is not None
    twins: dict[Bridge, list[Side]] = {}
    for side, other in wiring.record.ends_of(worker):
        if side is not gone and other.bridge is not None and side.segment is segment and side in other.bridge._ends:
            twins.setdefault(other.bridge, []).append(side)
    for near, sides in twins.items():
        await know_anew(wiring.kernel, near, sides)
    noted = [bridge._note_gateway(side) for sides in twins.values() for side in sides if worker.name == bridge.gateway]
    if any(noted):
        await wiring.follow_gateway([bridge])


async def _readdress(wiring: Wiring, side: Side, segment: Segment, new: Interfaces) -> None:
    """It has the *new* ones of *segment* instead of its own, or those still."""
    had = [address for address in side.addresses if address not in side.missing]
    remove = [address for address in had if address not in new]
    # Also one that stays, or that another program has added: with an IPv4 address the kernel removes later ones of its
    # subnet.
    dropping = {address.version for address in remove} & {4}
    add = [address for address in new if address not in had or address.version in dropping]
    lost = [address for address in add if address.version == 6 and address in side.missing]
    change = partial(wiring.kernel.with_handle, side, wiring.kernel.engine.change_addresses, side.ifname)
    try:
        await change(add=[address for address in add if address not in lost], remove=remove)
    except NetlinkError:
        with contextlib.suppress(NetlinkError):
            await change(add=had, remove=[address for address in new if address not in had])
        raise
    if side.segment is not None:  # else it was removed meanwhile
        side.segment.release(own for own in side.addresses if segment is not side.segment or own not in new)
    side.segment, side.addresses, side.missing = segment, new, frozenset(lost)
    if lost:
        with contextlib.suppress(NetlinkError):  # IPv6 may be off there
            await change(add=lost)
            side.missing = frozenset()


async def follow_default(wiring: Wiring, worker: Worker, *, anew: bool = False) -> None:
    """Another of its links may be the first to a gateway now, or that has other addresses. Of several that change
    these at one time the last one sees what all have done.

    :param anew: the kernel may have dropped those that stay
    """
    if not anew and not wiring.defaults.locked() and _default_of(wiring, worker)[0] == worker._defaults:
        return
    async with wiring.defaults:
        before, (after, leading) = worker._defaults, _default_of(wiring, worker)
        if not anew and after == before:
            return
        worker._defaults = after
        stay = {*after, *_given(wiring, worker)}
        try:
            with anyio.CancelScope(shield=True):
                await _change_routes(wiring, worker, [route for route in before if route not in stay], leading)
        except (ClosedError, SpawnerDiedError):
            pass  # it is removed meanwhile, or the lab ends
        except NetlinkError as exc:
            if exc.errno != errno.ENODEV:  # another program removes the link, whose removal is followed next
                wiring.report(exc.operation, exc, worker=worker)


def _default_of(wiring: Wiring, worker: Worker) -> tuple[tuple[RoutePlan, ...], Sequence[RoutePlan]]:
    """Its default routes, and those of them whose gateway can be reached now."""
    own = wiring.record.links_of.get(worker.name, ())
    links = [link for link in own if link._state in ("up", "down") and not link._leaving]
    routes = tuple(default_routes(worker, links, links))
    up = {side.ifname: side for link in links if link._state == "up" for side in link._sides if side.worker is worker}
    return routes, [route for route in routes if any(leads(up, hop) for hop in route.nexthops)]


def leads(ends: Mapping[str, Side], hop: NextHop) -> bool:
    """Whether there is a way to its gateway through one of *ends*, by their names: there is none by addresses that
    another program has removed."""
    side = ends.get(hop.dev)
    if side is None or hop.via is None:
        return side is not None
    lost = {own.network for own in side.missing} - {own.network for own in side.present}
    return not any(hop.via in network for network in lost)


def _given_over(wiring: Wiring, worker: Worker, link: Link) -> list[RoutePlan]:
    return given_routes(worker, [link], wiring.record.links_of.get(worker.name, ()))


async def _reroute(wiring: Wiring, worker: Worker, link: Link, before: list[RoutePlan]) -> None:
    """The kernel has dropped some with the addresses, and kept others that lead nowhere now."""
    after = _given_over(wiring, worker, link)
    await _change_routes(wiring, worker, [route for route in before if route not in after], after)
    await follow_default(wiring, worker, anew=True)


async def _change_routes(
    wiring: Wiring, worker: Worker, before: Sequence[RoutePlan], after: Sequence[RoutePlan]
) -> None:
    destinations = {route.destination for route in after}
    gone = [route for route in before if route.destination not in destinations]
    for route in gone:
        try:
            await wiring.kernel.in_netns(worker, wiring.kernel.engine.remove_routes, [route])
        except NetlinkError as exc:
            if exc.errno not in (errno.ESRCH, errno.ENOENT, errno.ENODEV):  # the kernel was faster
                raise
    if after:
        await wiring.kernel.in_netns(worker, wiring.kernel.engine.add_routes, after)


def record(wiring: Wiring, link: Link, *, by: str = "nsorch", **changes: str) -> None:
    """Something of it is another now."""
    wiring.note_interfaces(link)
    wiring.publish(events.LinkChanged(link=link.name, changes=tuple(changes.items()), by=by))
