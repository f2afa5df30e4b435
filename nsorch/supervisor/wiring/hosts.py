"""The names of a lab, and its hosts file, which every worker sees as /etc/hosts."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import anyio

from nsorch.core.failures import translate
from nsorch.net.hosts import HEAD, HostsEntry, render_entry
from nsorch.supervisor.turns import in_turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.record import Record
    from nsorch.supervisor.wiring.routing import Routing
    from nsorch.supervisor.worker import Worker


class HostsFile:
    """Written in place: a rename would not be seen through the bind mounts."""

    def __init__(self) -> None:
        self._fd = -1
        self._texts: dict[str, str] = {}

    def open(self, fd: int) -> None:
        """*fd* stays its owner's; -1 where the host has no /etc/hosts to be replaced."""
        self._fd = fd
        self.write()  # whoever has no link yet knows localhost

    def note(self, name: str, entry: HostsEntry | None) -> None:
        if entry is None:
            self._texts.pop(name, None)
        else:
            self._texts[name] = render_entry(entry)

    def write(self) -> None:
        """Let nobody :meth:`note` anything meanwhile.

        :raises SetupError: there is no room for it
        """
        if self._fd >= 0:
            text = (HEAD + "".join(self._texts.values())).encode()
            try:
                # One write, and the end last: who reads meanwhile finds whole lines.
                written = os.pwrite(self._fd, text, 0)
                os.ftruncate(self._fd, len(text))
                if written < len(text):  # another one gives the reason
                    os.pwrite(self._fd, text[written:], written)
            except OSError as exc:
                raise translate("hosts file", exc.errno or errno.EIO, "", None) from None


class Names:
    """Which addresses each name of the lab has.

    :ivar stale: names of workers of which the hosts file tells something else now
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        record: Record,
        routing: Routing,
        kernel: Kernel,
        changed: Callable[[AbstractSet[str]], Awaitable[None]],
    ) -> None:
        """:param changed: is told the names of workers whose addresses are others now"""
        self.stale: set[str] = set()
        self._file = HostsFile()
        self._workers = workers
        self._record = record
        self._routing = routing
        self._kernel = kernel
        self._changed = changed
        self._rewriting: anyio.Lock

    def open(self, fd: int) -> None:
        """*fd*: of the hosts file; it stays its owner's. -1 where the host has none to be replaced."""
        self._file.open(fd)
        self._rewriting = anyio.Lock()

    async def rewrite(self) -> None:
        """Once for all who want it meanwhile."""
        if not self.stale:
            return
        async with self._rewriting:
            if self.stale:
                with anyio.CancelScope(shield=True):
                    stale, self.stale = self.stale, set()
                    async for name in in_turns(stale):
                        self._file.note(name, self._entry(name))
                    await self._kernel.in_thread(self._file.write)
                    await self._changed(stale)

    def addresses(self, name: str) -> list[IPv4Address | IPv6Address]:
        """What the hosts file says of *name*: of a worker, or ``worker.segment``; none if it doesn't know it. In any
        case, as for resolvers: the hosts of URLs are in lower case."""
        worker, _, segment = name.partition(".")
        worker = _spelt(worker, self._workers)
        if worker not in self._workers:
            return []
        found = list(self._by_segment(worker))
        if segment:
            segment = _spelt(segment, dict(found))
            return [address.ip for each, address in found if each == segment]
        loopback = self._routing.loopbacks_of(worker)
        return [*(address.ip for address in loopback), *(address.ip for _, address in found)]

    def _entry(self, name: str) -> HostsEntry | None:
        """Of a worker that has addresses."""
        by_segment: dict[str, list[str]] = {}
        for segment, address in self._by_segment(name):
            by_segment.setdefault(segment, []).append(str(address.ip))
        loopback = tuple(str(address.ip) for address in self._routing.loopbacks_of(name))
        if not by_segment and not loopback:
            return None
        return HostsEntry(name=name, loopback=loopback, segments={of: tuple(its) for of, its in by_segment.items()})

    def _by_segment(self, name: str) -> Iterator[tuple[str, IPv4Interface | IPv6Interface]]:
        """What a worker has on each segment, which is another worker, a bridge, or an interface of its own."""
        for link in self._record.links_of.get(name, ()):
            for side, other in link._both() if link._state != "planned" else ():
                if side.worker is not None and side.worker.name == name:
                    segment = other.bridge.name if other.bridge is not None else other.worker.name  # type: ignore[union-attr]
                    for address in side.addresses:
                        yield segment, address
        worker = self._workers.get(name)
        for device in () if worker is None else worker._devices.values():
            if device.state == "up":
                for address in device.addresses:
                    yield device.name, address


def _spelt(name: str, known: Collection[str]) -> str:
    """As one of *known* is spelt that is the same but for upper and lower case."""
    return name if name in known else next((one for one in known if one.lower() == name.lower()), name)
