"""What this host can do: probed by doing it, with what forbids the rest, and how many workers there is room for."""

from __future__ import annotations

from types import NoneType

from nsorch.core.threads import in_thread
from nsorch.host.values import Capacity, Feature, HostReport
from nsorch.topology.kinds import of_kind

__all__ = ["Capacity", "Feature", "HostReport", "probe"]


async def probe(*, rootless: bool | None = None) -> HostReport:
    """Find out what this host can do, by doing it in namespaces that end with the probe. It takes about 0.2 s in a
    thread and a process of its own, and a cancellation waits for its end.

    The host stays as it is, but that the kernel may load a module of its own where one is tried.

    :param rootless: as a supervisor below a user namespace can; None: as a :class:`nsorch.Supervisor` of this process
    :raises TopologyError: *rootless* is neither true nor false nor None
    :raises UnsupportedError: there is no /proc, or no null device
    :raises SetupError: the helper process can't be started
    """
    of_kind("rootless", rootless, "true or false", bool, NoneType)

    def examine() -> HostReport:
        from nsorch.host import probing  # 10 ms, which no other user of nsorch should pay

        return probing.examine(rootless)

    return await in_thread(examine)
