"""Links and workers that go: out of the kernel, out of what others know of them, and out of the record."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Literal

import anyio

from nsorch import events
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.errors import ClosedError
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.changing import follow_default, part
from nsorch.supervisor.wiring.telling import forget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

    LetGo = Callable[[Collection[str]], Awaitable[None]]


async def remove_links(
    wiring: Wiring,
    links: Sequence[Link],
    *,
    dying: Collection[str] = (),
    by: Literal["nsorch", "kernel"] = "nsorch",
    let_go: LetGo | None = None,
) -> None:
    """Those that exist and those that are planned; for those that somebody else removes it waits. Shield it.

    :param dying: owners of network namespaces that end next. Links among them are left to the kernel, which takes
        down all of them at once; one by one, each costs tens of milliseconds
    :param by: ``"kernel"``: they are gone already, or an end of each is
    :param let_go: called with *dying* when nothing is to be done there any more: the kernel takes these down while
        the record is put right
    """
    while True:
        leaving = [link._leaving for link in links if link._leaving is not None]
        others = [link for link in links if link._leaving is not None]
        own = [link for link in links if link._leaving is None]
        with _leaving(own):
            await _remove_own(wiring, own, dying, by, let_go)
        for over in leaving:
            await over.wait()
        links = [link for link in others if link._leaving is None]
        if not links:
            break


@contextlib.contextmanager
def _leaving(links: Sequence[Link]) -> Iterator[None]:
    """Others wait meanwhile."""
    over = anyio.Event()
    for link in links:
        link._leaving = over
    try:
        yield
    finally:
        for link in links:
            if link._state != "removed":
                link._leaving = None
        over.set()


async def _remove_own(
    wiring: Wiring,
    links: Sequence[Link],
    dying: Collection[str],
    by: Literal["nsorch", "kernel"],
    let_go: LetGo | None,
) -> None:
    for link in links:
        if link._lock is not None:
            async with link._lock:  # changes that are under way are ended first
                pass
    wiring.watcher.leave(links)
    staying = dict.fromkeys(
        side.worker
        for link in links
        for side in link._sides
        if side.worker is not None and side.netns not in dying and not side.worker._leaving
    )
    parted = [
        (side, side.segment, port.bridge)
        async for side, port in in_turns(pair for link in links for pair in link._both())
        if side.worker in staying and port.bridge is not None and not port.bridge._retired
    ]
    made = [link for link in links if link._state in ("up", "down")]
    if made and not wiring._supervisor._helper.died:
        await (_delete(wiring, made, dying) if by == "nsorch" else _delete_rest(wiring, made))
        await _forget(wiring, made, dying)
    if let_go is not None:
        await let_go(dying)
    async for link in in_turns(links):
        if link._state == "removed":
            continue
        link._state = "removed"
        wiring.record.drop(link)
        for tell in link._on_removal:
            tell()
        for side in link._sides:
            if side.worker is not None and wiring._interfaces is not None:
                wiring._interfaces.drop_above(side.netns, side.ifname)
        wiring.names.stale.update(side.worker.name for side in link._sides if side.worker is not None)
        if link._announced:
            wiring._supervisor._bus.publish(events.LinkRemoved(link=link.name, ends=link.ends, by=by))
    async for side, segment, bridge in in_turns([] if wiring._supervisor._helper.died else parted):
        await part(wiring, side, segment, bridge)
    async for worker in in_turns(staying):
        await follow_default(wiring, worker)
    await wiring.settle()


async def _delete(wiring: Wiring, links: Sequence[Link], dying: Collection[str]) -> None:
    """From the fabric, or from as few network namespaces as may be: those in one go together."""
    ports = [
        port.index
        async for side, port in in_turns(pair for link in links for pair in link._both())
        if port.bridge is not None and port.index and not port.bridge._leaves(side, dying)
    ]
    if ports:
        await wiring.kernel.delete_in_fabric(ports)
    living = [
        link._sides
        async for link in in_turns(links)
        if all(side.bridge is None for side in link._sides) and any(side.netns not in dying for side in link._sides)
    ]
    refused: set[Side] = set()
    while living:
        count = collections.Counter(side.netns for sides in living for side in sides)
        there: dict[str, list[Side]] = {}
        for sides in living:
            held = [side for side in sides if side.worker is not None and CLONE_NEWNET in side.worker._held]
            if asked := [side for side in held if side not in refused]:
                side = max(asked, key=lambda side: count[side.netns])
                there.setdefault(side.netns, []).append(side)
        left: list[tuple[Side, Side]] = []
        for some in there.values():
            try:
                await wiring.kernel.with_handle(
                    some[0], wiring.kernel.engine.delete_links, [side.ifname for side in some]
                )
            except ClosedError:  # that worker is removed meanwhile: from the others, or by the kernel
                wiring._supervisor._check_running()
                refused.update(some)
                left += [sides for sides in living if not set(sides).isdisjoint(some)]
        living = left


async def _delete_rest(wiring: Wiring, links: Sequence[Link]) -> None:
    """Of links of which another program has removed an end, or moved it to another network namespace. By their numbers:
    their names may be another's."""
    ports = [side.index for link in links for side in link._sides if side.bridge is not None and side.index is not None]
    if ports:
        await wiring.kernel.delete_in_fabric(ports)
    for side in (side for link in links for side in link._sides if all(end.bridge is None for end in link._sides)):
        if side.index is not None:
            with contextlib.suppress(ClosedError):  # its worker is removed, too
                await wiring.kernel.with_handle(side, wiring.kernel.engine.delete_links, [side.index])


async def _forget(wiring: Wiring, links: Sequence[Link], dying: Collection[str]) -> None:
    """What bridges and gateways know of their ends."""
    on: dict[Bridge, list[Side]] = {}
    async for side, port in in_turns(pair for link in links for pair in link._both()):
        if port.bridge is not None:
            on.setdefault(port.bridge, []).append(side)
    for bridge, sides in on.items():
        await forget(wiring.kernel, bridge, sides, dying)


async def disconnect(wiring: Wiring, workers: Sequence[Worker], let_go: LetGo) -> None:
    """Remove all that concerns *workers*. Shield it.

    :param let_go: see :func:`remove_links`
    """
    links: dict[Link, None] = {}
    async for worker in in_turns(workers):
        wiring.filters.drop(worker)
        if wiring._services is not None:
            wiring._services.drop(worker)
        if wiring._partitions is not None:
            wiring._partitions.drop(worker)
        links.update(dict.fromkeys(wiring.record.links_of.get(worker.name, ())))
    with_devices = [worker async for worker in in_turns(workers) if worker._devices]
    dying = await wiring.record.owners_among(workers) if links or with_devices else set()
    for worker in with_devices:
        await wiring.interfaces.drop_worker(worker, dying=worker.name in dying)
    if links:
        await remove_links(wiring, list(links), dying=dying, let_go=let_go)
    heirs: list[Worker] = []
    async for worker in in_turns(workers):
        heirs += wiring.record.drop_worker(worker)
        wiring.routing.drop(worker.name)
        wiring.watcher.drop_worker(worker)
        wiring.names.stale.add(worker.name)
    await wiring.watcher.hear(heirs)
    await wiring.settle()
