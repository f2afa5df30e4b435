"""What other programs do to the links of workers, heard from the kernel: it becomes events, and the record follows.

Each namespace that is heard makes every notice of the kernel's a little dearer, also those of others. So in a large lab
only those workers are heard in which something can be: a process, or who comes by a pin or a netlink socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from nsorch import events
from nsorch.core import descriptors
from nsorch.core.spawner.protocol import Spawn
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError, NetlinkError, NsorchError, SpawnerDiedError
from nsorch.net.messages import parse_link
from nsorch.net.plan import KERNEL_MTU
from nsorch.net.watch import ADDRESS, LINK, NO_LINK, Enquiry, Listener, parse_address
from nsorch.supervisor.thread import Thread
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.changing import note_mac, record
from nsorch.supervisor.wiring.planning import netns_key
from nsorch.supervisor.wiring.removing import remove_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence

    from nsorch.net.messages import LinkState
    from nsorch.net.plan import IPInterface
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Link, Side
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

# So many namespaces are heard whoever is in them: 35 µs more for each notice of a namespace that isn't.
_HEARD_ANYWAY = 500
# So many ends are looked at in one call in the thread: about 2 ms.
_LOOKED_AT = 24
_TURN = 0.0005


class Watcher:
    def __init__(self, supervisor: Supervisor, wiring: Wiring) -> None:
        self._supervisor = supervisor
        self._wiring = wiring
        self._listener: Listener | None = None
        self._enquiry: Enquiry
        self._thread: Thread | None = None
        self._opening: anyio.Lock
        self._reading: anyio.Lock
        self._ids: dict[str, int] = {}  # of the namespaces that are heard, by the worker that owns them
        self._ends: dict[tuple[int, int], tuple[Link, Side]] = {}  # by namespace and ifindex
        self._entered: set[str] = set()  # workers in which something can be
        self._following = 0  # calls of follow that are under way
        self._overrun = False

    def open(self) -> None:
        self._thread = Thread(self._supervisor._check_running)
        self._opening, self._reading = anyio.Lock(), anyio.Lock()

    async def close(self) -> None:
        """Shield it."""
        if self._thread is not None:
            await self._thread.close()
        if self._listener is not None:
            descriptors.close([self._listener.sock.detach(), self._enquiry.sock.detach()])
            self._listener = None

    # -- whom to hear

    async def enter(self, worker: Worker) -> None:
        """Something comes into *worker* next that could change its links."""
        if worker.name not in self._entered:
            self._entered.add(worker.name)
            await self.hear([worker])

    def is_entered(self, worker: Worker) -> bool:
        """Whether something can be in it that changes its interfaces."""
        return worker.spec.command is not None or worker.name in self._entered

    async def hear(self, workers: Iterable[Worker]) -> None:
        """From now on, what others do to the links of these; in a large lab only where something can be."""
        owners: dict[Worker, None] = {}
        async for worker in in_turns(workers):
            if self.is_entered(worker) or len(self._ids) + len(owners) < _HEARD_ANYWAY:
                owner = self._wiring.record.owner_of_netns(worker)
                if owner is not None and any(self._wiring.record.links_in(owner)):
                    owners[owner] = None
        if not all(owner.name in self._ids for owner in owners):
            with anyio.CancelScope(shield=True):
                async with self._opening:
                    await self._number([owner for owner in owners if owner.name not in self._ids])

    async def _number(self, owners: Sequence[Worker]) -> None:
        if self._listener is None:
            await self._open()
        wanted = [
            (owner._held[CLONE_NEWNET], netns_key(owner), owner.name) for owner in owners if CLONE_NEWNET in owner._held
        ]
        others = await self._in_thread(self._enquiry.number, wanted)
        there = {owner.name for owner in owners if CLONE_NEWNET in owner._held}  # not removed meanwhile
        self._ids.update((name, others.get(key, key)) for _, key, name in wanted if name in there)
        await self.follow([link async for owner in in_turns(owners) for link in self._wiring.record.links_in(owner)])

    async def _open(self) -> None:
        """In a network namespace of its own, which the two sockets keep."""
        helper = self._supervisor._helper
        spawn = Spawn(0, CLONE_NEWNET, (), CLONE_NEWNET, None, (), False, False, (), None, None)
        (netns,) = await helper.spawn(lambda number: spawn._replace(job=number), [], worker=None).created()
        sockets: list[socket.socket] = []
        try:
            try:
                while len(sockets) < 2:
                    sockets.append(
                        await helper.open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                    )
            finally:
                await in_thread_or_here(descriptors.close, [netns])
            self._supervisor._check_running()  # else nobody would close them any more
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        with descriptors.registering:
            descriptors.own(sock.fileno() for sock in sockets)
        self._listener, self._enquiry = Listener(sockets[0]), Enquiry(sockets[1])
        self._supervisor._start_soon(self._follow_notices)

    async def follow(self, links: Iterable[Link]) -> None:
        """They exist now."""
        new = []
        async for link in in_turns(links):
            for side in link._sides:
                if side.netns in self._ids and link._state in ("up", "down") and not link._leaving:
                    side.heard = self._ids[side.netns]
                    new.append((link, side))
        if not new or self._listener is None:
            return
        self._following += 1
        try:
            self._listener.listen()
            await self._read()  # what the kernel has told of their making concerns nobody
            for (_, side), state, _ in await self._ask([end for end in new if end[1].index is None]):
                side.index = None if state is None else state.index
            async for link, side in in_turns(new):
                if side.heard is not None and side.index is not None and not link._leaving:
                    self._ends[side.heard, side.index] = link, side
        finally:
            self._following -= 1

    def leave(self, links: Iterable[Link]) -> None:
        """They are removed next."""
        for side in (side for link in links for side in link._sides):
            if side.heard is not None and side.index is not None:
                self._ends.pop((side.heard, side.index), None)
                side.heard = None
        if not self._ends and not self._following and self._listener is not None:
            self._listener.stop_listening()  # each notice of what goes would cost the kernel a walk over all ids

    def drop_worker(self, worker: Worker) -> None:
        self._entered.discard(worker.name)
        self._ids.pop(worker.name, None)

    @contextlib.asynccontextmanager
    async def own(self, link: Link) -> AsyncIterator[None]:
        """What happens to *link* meanwhile is nsorch's doing, one thing after the other. Cancelled, it is done all the
        same.

        :raises ClosedError: it was removed
        """
        if link._lock is None:
            link._lock = anyio.Lock()
        with anyio.CancelScope(shield=True):
            async with link._lock:
                link._check()  # it may be gone meanwhile
                link._busy += 1
                try:
                    yield
                finally:
                    if self._ends_of(link):
                        await self._read()
                    link._busy -= 1
                    await self._look(self._ends_of(link), own=True)
        await anyio.lowlevel.checkpoint()

    # -- what others do

    async def _follow_notices(self) -> None:
        while self._listener is not None:
            await anyio.wait_readable(self._listener.sock)
            await self._read()

    async def _read(self) -> None:
        """All that is there now; the loop gets its turn between."""
        async with self._reading:
            while True:
                end = time.perf_counter() + _TURN
                while self._take_next():
                    if time.perf_counter() > end:
                        await anyio.lowlevel.checkpoint()
                        end = time.perf_counter() + _TURN
                if not self._overrun:
                    break
                self._overrun = False
                self._supervisor._bus.publish_gap()
                await self._look(list(self._ends.values()))

    def _take_next(self) -> bool:
        """Whether there was one."""
        if self._listener is None:
            return False
        try:
            notice = self._listener.read()
        except OSError as exc:
            if exc.errno != errno.ENOBUFS:
                raise
            self._overrun = True
            return True
        if notice is None:
            return False
        netns, index, kind, body = notice
        found = self._ends.get((netns, index))
        # After an overrun all ends are looked at: what is older than that is nobody's concern.
        if found is not None and not found[0]._busy and not self._overrun:
            link, side = found
            if kind == LINK:
                self._note_state(link, side, parse_link(body))
            elif kind == NO_LINK:
                self._note_gone(link)
            elif (address := parse_address(body)) is not None:
                known = {*side.present, address} if kind == ADDRESS else {*side.present} - {address}
                self._note_addresses(link, side, known)
        return True

    async def _look(self, ends: Sequence[tuple[Link, Side]], *, own: bool = False) -> None:
        """Compare the record of *ends* with what the kernel says; *own*: after nsorch's own change."""
        for start in range(0, len(ends), _LOOKED_AT):
            some = [(link, side) for link, side in ends[start : start + _LOOKED_AT] if side.heard is not None]
            for (link, side), state, addresses in await self._ask(some):
                if side.heard is None or link._busy:
                    continue
                if state is None:
                    self._note_gone(link)
                else:
                    self._note_state(link, side, state)
                    self._note_addresses(link, side, addresses, own=own)

    async def _ask(
        self, ends: Sequence[tuple[Link, Side]]
    ) -> list[tuple[tuple[Link, Side], LinkState | None, set[IPInterface]]]:
        def ask() -> list[tuple[tuple[Link, Side], LinkState | None, set[IPInterface]]]:
            addresses: dict[int, dict[int, set[IPInterface]]] = {}
            found = []
            for (link, side), netns in places:
                if netns not in addresses:
                    addresses[netns] = self._enquiry.addresses(netns, side.netns)
                state = self._enquiry.link(netns, side.index, side.ifname)
                found.append(((link, side), state, addresses[netns].get(state.index, set()) if state else set()))
            return found

        places = [(end, end[1].heard) for end in ends if end[1].heard is not None]
        try:
            if places and self._listener is not None:
                return await self._in_thread(ask)  # type: ignore[no-any-return]
        except NetlinkError as exc:
            self._wiring.report(exc.operation, exc)
        return []

    def _begin(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        """What a notice asks for, in a task of its own."""

        async def run() -> None:
            try:
                await func(*args)
            except (ClosedError, SpawnerDiedError):
                pass  # the worker was removed meanwhile, or the lab ends
            except NsorchError as exc:
                self._wiring.report(getattr(exc, "operation", "watch"), exc)

        self._supervisor._start_soon(run)

    def _note_state(self, link: Link, side: Side, state: LinkState) -> None:
        changes: dict[str, str] = {}
        if state.mtu != (side.mtu or KERNEL_MTU):
            side.mtu = state.mtu
            changes["mtu"] = str(state.mtu)
        if state.name != side.ifname:
            changes |= {"name": state.name, "was": link.name}
            self._wiring.record.rename_end(link, side, state.name)
        if changes:
            record(self._wiring, link, by="kernel", **changes)
        if state.mac != side.mac:
            self._begin(self._correct, link, side, state.mac)
        is_up = state.up and state.carrier  # an end has carrier while the other one is up, too
        if is_up != link.is_up:
            link._state = "up" if is_up else "down"
            kind = events.LinkUp if is_up else events.LinkDown
            self._supervisor._bus.publish(kind(link=link.name, ends=link.ends, by="kernel"))
            if is_up:  # the kernel has dropped IPv6 addresses meanwhile
                self._begin(self._look, self._ends_of(link))

    def _note_addresses(self, link: Link, side: Side, known: Collection[IPInterface], *, own: bool = False) -> None:
        """*known* are all that it has. While it is down, the kernel keeps no IPv6 ones; nsorch's own change may have
        given it back what was missing."""
        # Every interface has a link-local one, which is in no description.
        known = [a for a in known if a.version == 4 or not a.is_link_local or a in side.addresses]
        if own:
            side.missing = frozenset(address for address in side.missing if address not in known)
        before = side.present
        side.missing = frozenset(
            address
            for address in side.addresses
            if address not in known and (link.is_up or address.version == 4 or address in side.missing)
        )
        side.foreign = tuple(sorted(set(known).difference(side.addresses), key=str))
        if side.present != before:
            record(self._wiring, link, by="kernel", address=", ".join(str(address.ip) for address in side.present))

    async def _correct(self, link: Link, side: Side, mac: bytes) -> None:
        """Others are to know its new hardware address."""
        if mac != side.mac and link._state in ("up", "down"):
            async with self.own(link):
                if mac == side.mac:
                    return
                await note_mac(self._wiring, link, side, mac)
                record(self._wiring, link, by="kernel", mac=mac.hex(":"))

    def _note_gone(self, link: Link) -> None:
        self.leave([link])
        self._begin(partial(remove_links, self._wiring, by="kernel"), [link])

    def _ends_of(self, link: Link) -> list[tuple[Link, Side]]:
        return [(link, side) for side in link._sides if side.heard is not None]

    async def _in_thread(self, func: Callable[..., Any], *args: Any) -> Any:
        assert self._thread is not None
        return await self._thread.call(func, *args)
