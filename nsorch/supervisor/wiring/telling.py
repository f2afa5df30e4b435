"""What bridges and gateways are told of the workers on a segment, so that nobody's question floods it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from nsorch.errors import ClosedError, NetlinkError
from nsorch.net.mac import link_local
from nsorch.net.messages import NO_GROUP, RTM_DELNEIGH, RTM_NEWNEIGH
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.planning import as_neighbour
from nsorch.supervisor.wiring.segments import MANY, news

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.net.engine import Engine
    from nsorch.net.redirecting import Redirector
    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.network import Bridge, Side
    from nsorch.supervisor.wiring.segments import News

# So many ends are told of at a time.
_TOLD = 200
# So many routers on one segment know everybody there.
_FEW = 8


async def tell(kernel: Kernel, bridge: Bridge) -> None:
    """Who is new, so that no question for it floods the segment."""
    # One after the other: what is told of an end isn't true any more when that is forgotten.
    async with bridge._telling:
        await _tell(kernel, bridge)


async def _tell(kernel: Kernel, bridge: Bridge) -> None:
    ends = bridge._ends
    gateway = next((side for side in ends if side.worker is not None and side.worker.name == bridge.gateway), None)
    # Within VLANs the kernel's bridges don't answer ARP.
    if not bridge._answers and bridge.arp == "auto" and not bridge.spec.vlan_aware and len(ends) >= MANY:
        bridge._answers = True
        for part in bridge._parts.all:
            part.told.clear()
    if bridge._answers or gateway is not None:
        for part in bridge._parts.all:
            new = [(side, port) for side, port in ends.items() if side not in part.told]
            for start in range(0, len(new), _TOLD):
                some = new[start : start + _TOLD]
                told = news(part, some, answers=bridge._answers)
                redirector = await kernel.redirector() if told.asked else None
                await kernel.in_thread(_announce, kernel.engine, redirector, bridge._parts.group, told)
                part.told.update(side for side, _ in some)
    routers = await _lead_to_router(kernel, bridge)
    await _correct(kernel, bridge)
    if gateway is not None:
        await _introduce(kernel, bridge, gateway)
        await _lead_to(kernel, bridge, gateway)
    for router in routers if len(routers) <= _FEW and bridge._answers else ():
        if router is not gateway and bridge._serves(router):
            await _introduce(kernel, bridge, router)


async def _lead_to_router(kernel: Kernel, bridge: Bridge) -> Sequence[Side]:
    """Questions for routers, which all on the segment ask: to the one that there may be, or to nobody. Returns who may
    get them."""
    answering = [near for near in bridge._joined() if near._answers]
    routers: list[Side] = []
    if answering and any(subnet.version == 6 for subnet in bridge.subnets):
        routers = [side for near in bridge._joined() for side in near._ends if _may_route(side, bridge)]
        mac = None if len(routers) > 1 else routers[0].mac if routers else b""
        for near in answering:
            if near._router != mac and (redirector := await kernel.redirector()) is not None:
                near._router = mac
                await kernel.in_thread(redirector.lead_to_router, near._parts.group, mac)
    return routers


def _may_route(side: Side, bridge: Bridge) -> bool:
    """By its description: whoever else advertises is heard, but not asked."""
    if side.worker is None:
        return False
    spec = side.worker.spec
    return bool(
        spec.forward
        or spec.service is not None
        or spec.name == bridge.gateway
        or any(name.endswith("forwarding") for name in spec.sysctls)
    )


async def _correct(kernel: Kernel, bridge: Bridge) -> None:
    """Have the others forget who had the addresses of new ends before."""
    new, bridge._new = bridge._new, []
    stale = [ip async for side in in_turns(new) for ip in bridge._note_owner(side)]
    if stale:
        known = [side for near in bridge._joined() for side in near._ends]
        fresh = set(new)
        for side in [side for side in known if side not in fresh]:
            await at(kernel, side, kernel.engine.forget_neighbours, [(side.index or side.ifname, ip) for ip in stale])
            if side.gateway is not None:
                side.gateway = None, side.gateway[1]  # one of these may have been the gateway's


async def know_anew(kernel: Kernel, bridge: Bridge, ends: Sequence[Side]) -> None:
    """Others may know the *ends* by the hardware address of another one of the same worker, which isn't there any more:
    any of them answers for the addresses of all."""
    async with bridge._telling:
        for side in ends:
            for told in (told for near in bridge._joined() for told in near._introduced.values()):
                told.discard(side)
            bridge._owners.update((address.packed, b"") for address in side.addresses)
        bridge._new += ends
        await _tell(kernel, bridge)


async def at(kernel: Kernel, side: Side, func: Callable[..., None], *args: Any) -> None:
    """Call *func* where *side* is, unless it is gone meanwhile, with its worker or without."""
    try:
        await kernel.with_handle(side, func, *args)
    except ClosedError:
        pass
    except NetlinkError as exc:
        if exc.errno != errno.ENODEV:
            raise


def _announce(engine: Engine, redirector: Redirector | None, group: int, told: News) -> None:
    """In the thread."""
    engine.forward(RTM_NEWNEIGH, told.forwarding)
    engine.tell_neighbours(None, RTM_NEWNEIGH, told.part.index, told.neighbours)
    engine.answer_arp(told.answering)
    if redirector is not None:
        engine.join_group(told.asking, group)
        redirector.add(group, told.asked)


async def _introduce(kernel: Kernel, bridge: Bridge, knower: Side) -> None:
    """The others to the gateway, or to a router, for whom each question of theirs would be a neighbour more."""
    told = bridge._introduced.setdefault(knower, set())
    new = [side for side in bridge._ends if side is not knower and side not in told and bridge._serves(side)]
    index: int | str = knower.index or knower.ifname
    for start in range(0, len(new), _TOLD):
        some = new[start : start + _TOLD]
        known = [each for side in some for each in _known(side)]
        await at(kernel, knower, kernel.engine.tell_neighbours, RTM_NEWNEIGH, index, known)
        told.update(some)


def _known(side: Side) -> list[tuple[IPv4Address | IPv6Address, bytes]]:
    """Its addresses; the link-local one, too, from which it asks for routers."""
    if side.mac is None:
        return []
    own = [address.ip for address in side.addresses]
    if any(ip.version == 6 for ip in own):
        own.append(link_local(side.mac).ip)
    return [(ip, side.mac) for ip in own]


async def _lead_to(kernel: Kernel, bridge: Bridge, gateway: Side) -> None:
    """The gateway to the others."""
    now = gateway.mac, gateway.addresses
    for side in list(bridge._ends):
        if side is not gateway and side.gateway != now and bridge._serves(side):
            before = side.gateway[1] if side.gateway is not None else ()
            side.gateway = now
            link = side.index or side.ifname
            if old := [(link, address.ip) for address in before if address not in gateway.addresses]:
                await at(kernel, side, kernel.engine.forget_neighbours, old)
            known = list(as_neighbour(gateway, side))
            await at(kernel, side, kernel.engine.tell_neighbours, RTM_NEWNEIGH, link, known)


async def forget_gateway(kernel: Kernel, bridge: Bridge, side: Side) -> None:
    """*side* leaves *bridge*; elsewhere somebody else may have the gateway's addresses."""
    if side.gateway is not None:
        ends = (end for near in bridge._joined() for end in near._ends)
        own = [a for end in ends if end.worker is not None and end.worker.name == bridge.gateway for a in end.addresses]
        known = dict.fromkeys(address.ip for address in (*own, *bridge._gateway_of(side)))
        await at(kernel, side, kernel.engine.forget_neighbours, [(side.index or side.ifname, ip) for ip in known])
        side.gateway = None


async def remind(kernel: Kernel, bridge: Bridge, side: Side) -> None:
    """*side* was down: the kernel has dropped whom it was introduced to."""
    async with bridge._telling:
        for near in bridge._joined():
            near._introduced.pop(side, None)
        if _may_route(side, bridge):
            await _tell(kernel, bridge)


async def forget(
    kernel: Kernel, bridge: Bridge, gone: Sequence[Side], dying: Collection[str] = (), *, stays: bool = False
) -> None:
    """The opposite of :meth:`tell`, when the ends are removed, or change but *stay*."""
    async with bridge._telling:
        await _forget(kernel, bridge, gone, dying, stays=stays)


async def _forget(kernel: Kernel, bridge: Bridge, gone: Sequence[Side], dying: Collection[str], *, stays: bool) -> None:
    ends = [(side, bridge._ends.pop(side)) for side in gone if side in bridge._ends]
    for side in gone:
        bridge._joining.pop(side, None)
    if bridge._retired:
        return
    for part in bridge._parts.all:
        old = [end for end in ends if end[0] in part.told]
        part.told.difference_update(gone)
        if old:
            known = news(part, old, answers=bridge._answers)
            elsewhere = news(part, [end for end in old if stays or end[1].part is not part], answers=False)
            await kernel.in_thread(kernel.engine.forward, RTM_DELNEIGH, elsewhere.forwarding)
            await kernel.in_thread(kernel.engine.tell_neighbours, None, RTM_DELNEIGH, part.index, known.neighbours)
            if known.asked and (redirector := await kernel.redirector()) is not None:
                await kernel.in_thread(redirector.remove, bridge._parts.group, [ip for ip, _ in known.asked])
                if stays:
                    await kernel.in_thread(kernel.engine.join_group, known.asking, NO_GROUP)
    await _lead_to_router(kernel, bridge)
    trunks = [port.index for near in bridge._joined() for port in near._trunks if port.index is not None]
    if trunks:  # who was learnt to be behind them may come again elsewhere
        await kernel.in_thread(kernel.engine.forget_learnt, trunks)
    joined, going = bridge._joined(), set(gone)
    for side in gone:
        for near in joined:
            others = near._introduced.pop(side, ())
            if stays and others and side.worker is not None and side.worker.name != bridge.gateway:
                theirs = [each for other in others for each in _known(other)]
                index = side.index or side.ifname
                await at(kernel, side, kernel.engine.tell_neighbours, RTM_DELNEIGH, index, theirs)
    for knower, told in list(bridge._introduced.items()):
        old_ones = told & going
        told -= old_ones
        known_addresses = [each for side in old_ones for each in _known(side)]
        if known_addresses and knower.netns not in dying:
            index = knower.index or knower.ifname
            await at(kernel, knower, kernel.engine.tell_neighbours, RTM_DELNEIGH, index, known_addresses)
