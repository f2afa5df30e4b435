"""Loopback addresses of routed workers, and their shortest paths to those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.net.addresses import LoopbackPool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

    from nsorch.net.plan import RouteGroup
    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.worker import Worker

    Loopbacks = tuple[IPv4Interface | IPv6Interface, ...]


class Routing:
    """By names of workers.

    :ivar pool: where loopback addresses come from
    """

    def __init__(self, kernel: Kernel) -> None:
        self.pool = LoopbackPool()
        self._kernel = kernel
        self._loopbacks: dict[str, Loopbacks] = {}
        self._groups: dict[str, tuple[RouteGroup, ...]] = {}
        self._unset: set[str] = set()  # those that the kernel hasn't got yet

    def __contains__(self, name: str) -> bool:
        return name in self._loopbacks

    def loopbacks_of(self, name: str) -> Loopbacks:
        return self._loopbacks.get(name, ())

    def groups_of(self, name: str) -> tuple[RouteGroup, ...]:
        return self._groups.get(name, ())

    def plan(self, name: str, loopbacks: Loopbacks, groups: tuple[RouteGroup, ...]) -> None:
        """What is set when the last link of this worker is made."""
        self._loopbacks[name] = loopbacks
        self._groups[name] = groups
        self._unset.add(name)

    def is_unset(self, name: str) -> bool:
        return name in self._unset

    def note_set(self, names: Iterable[str]) -> None:
        self._unset.difference_update(names)

    def drop(self, name: str) -> None:
        self._loopbacks.pop(name, None)
        self._groups.pop(name, None)
        self._unset.discard(name)

    async def reroute(self, worker: Worker, groups: tuple[RouteGroup, ...], *, anew: bool) -> None:
        """Give a routed *worker* other shortest paths; *anew*: the kernel may have dropped some that stay."""
        kernel = self._kernel
        before = self._groups[worker.name]
        if groups == before and not anew:
            return
        known = set() if anew else set(before)
        await kernel.in_netns(worker, kernel.engine.add_groups, [group for group in groups if group not in known])
        gone = _destinations(before) - _destinations(groups)
        if gone:
            await kernel.in_netns(worker, kernel.engine.remove_hosts, gone)
        self._groups[worker.name] = groups


def _destinations(groups: Iterable[RouteGroup]) -> set[bytes]:
    """Packed addresses."""
    found: set[bytes] = set()
    for group in groups:
        size = 4 if group.version == 4 else 16
        found.update(group.destinations[at : at + size] for at in range(0, len(group.destinations), size))
    return found
