"""What a cgroup has used, read from its files (Documentation/admin-guide/cgroup-v2.rst, accounting/psi.rst)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen

from nsorch.core.cgroups import pairs
from nsorch.core.spawner.subtree import read
from nsorch.values import Value


@frozen(kw_only=True, eq=False, repr=False)
class PressureShare(Value):
    """How much of the time somebody waited.

    :ivar avg10: percent of the last 10 s; *avg60* and *avg300* the same
    :ivar total: seconds in all
    """

    avg10: float
    avg60: float
    avg300: float
    total: float


@frozen(kw_only=True, eq=False, repr=False)
class Pressure(Value):
    """Waiting for a resource (PSI).

    :ivar some: at least one waited
    :ivar full: all waited, and nothing was done; None where the kernel doesn't tell
    """

    some: PressureShare
    full: PressureShare | None = None


@frozen(kw_only=True, eq=False, repr=False)
class CpuStats(Value):
    """
    :ivar usage: seconds of CPU, of which *user* in user mode and *system* in the kernel
    :ivar periods: of 100 ms in which it ran; *throttled_periods* of them it used up its ``cpus``
    :ivar throttled: seconds that it had to wait then
    """

    usage: float
    user: float
    system: float
    periods: int = 0
    throttled_periods: int = 0
    throttled: float = 0.0
    pressure: Pressure | None = None


@frozen(kw_only=True, eq=False, repr=False)
class MemoryStats(Value):
    """Bytes.

    :ivar current: all, also of caches; *peak* the most that it was, or None before Linux 5.19
    :ivar swap: in swap space
    :ivar anonymous: of processes; *file* of the page cache; *kernel* of the kernel's own
    :ivar limit: what ``memory`` allows, or None
    :ivar oom_kills: processes that were killed because there was no more
    """

    current: int
    peak: int | None = None
    swap: int | None = None
    anonymous: int = 0
    file: int = 0
    kernel: int = 0
    limit: int | None = None
    oom_kills: int = 0
    pressure: Pressure | None = None


@frozen(kw_only=True, eq=False, repr=False)
class PidsStats(Value):
    """
    :ivar current: processes and threads; *peak* the most there were, or None before Linux 6.1
    :ivar limit: what ``pids`` allows, or None
    :ivar refused: how many forks were
    """

    current: int
    peak: int | None = None
    limit: int | None = None
    refused: int = 0


@frozen(kw_only=True, eq=False, repr=False)
class DeviceStats(Value):
    """Of one block device: bytes and operations, read, written and discarded."""

    read_bytes: int = 0
    written_bytes: int = 0
    discarded_bytes: int = 0
    reads: int = 0
    writes: int = 0
    discards: int = 0


@frozen(kw_only=True, eq=False, repr=False)
class IoStats(Value):
    """:ivar devices: by ``major:minor``."""

    devices: Mapping[str, DeviceStats]
    pressure: Pressure | None = None


@frozen(kw_only=True, eq=False, repr=False)
class WorkerStats(Value):
    """What all processes of a worker have used, since its cgroup exists. A part without its controller is None.

    :ivar mono: when it was read: monotonic clock, nanoseconds
    :ivar processes: how many there are
    :ivar frozen: whether they are
    """

    mono: int
    processes: int
    frozen: bool
    cpu: CpuStats
    memory: MemoryStats | None = None
    pids: PidsStats | None = None
    io: IoStats | None = None

    def to_dict(self) -> dict[str, Any]:
        """In types that :mod:`json` writes."""
        return asdict(self)


def read_stats(leaf: int) -> WorkerStats:
    """Of the cgroup of descriptor *leaf*. Blocks for some tenths of a millisecond: the kernel adds up what the
    processors have counted.

    :raises OSError: it was removed
    """
    cpu = pairs(read(leaf, "cpu.stat"))
    if not cpu:
        raise FileNotFoundError("the cgroup was removed")
    return WorkerStats(
        mono=time.monotonic_ns(),
        processes=read(leaf, "cgroup.procs").count("\n"),
        frozen=pairs(read(leaf, "cgroup.events")).get("frozen") == 1,
        cpu=CpuStats(
            usage=cpu.get("usage_usec", 0) / 1e6,
            user=cpu.get("user_usec", 0) / 1e6,
            system=cpu.get("system_usec", 0) / 1e6,
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled=cpu.get("throttled_usec", 0) / 1e6,
            pressure=parse_pressure(read(leaf, "cpu.pressure")),
        ),
        memory=_memory(leaf),
        pids=_pids(leaf),
        io=_io(leaf),
    )


def _memory(leaf: int) -> MemoryStats | None:
    current = _number(leaf, "memory.current")
    if current is None:
        return None
    stat = pairs(read(leaf, "memory.stat"))
    return MemoryStats(
        current=current,
        peak=_number(leaf, "memory.peak"),
        swap=_number(leaf, "memory.swap.current"),
        anonymous=stat.get("anon", 0),
        file=stat.get("file", 0),
        kernel=stat.get("kernel", stat.get("slab", 0) + stat.get("kernel_stack", 0)),
        limit=_number(leaf, "memory.max"),
        oom_kills=pairs(read(leaf, "memory.events")).get("oom_kill", 0),
        pressure=parse_pressure(read(leaf, "memory.pressure")),
    )


def _pids(leaf: int) -> PidsStats | None:
    current = _number(leaf, "pids.current")
    if current is None:
        return None
    return PidsStats(
        current=current,
        peak=_number(leaf, "pids.peak"),
        limit=_number(leaf, "pids.max"),
        refused=pairs(read(leaf, "pids.events")).get("max", 0),
    )


def _io(leaf: int) -> IoStats | None:
    text = read(leaf, "io.stat")
    pressure = parse_pressure(read(leaf, "io.pressure"))
    # The file is there with the controller, and empty until something was read.
    if not text and not read(leaf, "io.max") and "io" not in read(leaf, "cgroup.controllers").split():
        return None
    return IoStats(devices=parse_io(text), pressure=pressure)


def parse_io(text: str) -> dict[str, DeviceStats]:
    """From lines such as ``254:0 rbytes=0 wbytes=4096 rios=0 wios=1 dbytes=0 dios=0``."""
    found = {}
    for line in text.splitlines():
        device, *words = line.split()
        numbers = {key: int(n) for key, _, n in (word.partition("=") for word in words) if n.isdigit()}
        if numbers:
            found[device] = DeviceStats(
                read_bytes=numbers.get("rbytes", 0),
                written_bytes=numbers.get("wbytes", 0),
                discarded_bytes=numbers.get("dbytes", 0),
                reads=numbers.get("rios", 0),
                writes=numbers.get("wios", 0),
                discards=numbers.get("dios", 0),
            )
    return found


def parse_pressure(text: str) -> Pressure | None:
    """From lines such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``; None where there are none."""
    shares = {}
    for line in text.splitlines():
        kind, *words = line.split()
        numbers = dict(word.partition("=")[::2] for word in words)
        shares[kind] = PressureShare(
            avg10=float(numbers["avg10"]),
            avg60=float(numbers["avg60"]),
            avg300=float(numbers["avg300"]),
            total=int(numbers["total"]) / 1e6,
        )
    return Pressure(some=shares["some"], full=shares.get("full")) if "some" in shares else None


def _number(leaf: int, name: str) -> int | None:
    text = read(leaf, name).strip()
    return int(text) if text.isdigit() else None
