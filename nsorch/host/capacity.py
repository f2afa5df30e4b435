"""How many workers the limits of this host allow."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from nsorch.core.spawner import cgroups
from nsorch.host.catalogue import sysctl
from nsorch.host.values import Capacity

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESERVE = 256  # descriptors and processes for all else
_DESCRIPTORS = 6  # of a worker: its namespaces, a pidfd, a socket while it is wired
_PROCESSES = 2  # an init and a command
# Measured on Linux 6.18: 320 KiB of the kernel's for a passive worker with one link, and twice that with an init and
# a command, beside their own.
_BYTES = 1 << 20
_NAMESPACES = ("net", "mnt", "uts", "ipc", "pid")


def capacities(rootless: bool) -> list[Capacity]:
    return [_descriptors(), _pids(), *_namespaces(), _users(rootless), _neighbours(), _memory(), _capture()]


def _descriptors() -> Capacity:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _number(sysctl("fs/nr_open")) if hard == resource.RLIM_INFINITY else hard
    return Capacity(
        name="open files",
        limit=limit,
        unit="descriptors of this process",
        source="RLIMIT_NOFILE (hard)",
        workers=None if limit is None else max(limit - _RESERVE, 0) // _DESCRIPTORS,
        detail=f"{_DESCRIPTORS} a worker",
        remedy="ulimit -Hn 1048576 as root, or LimitNOFILE=1048576 in the unit",
    )


def _pids() -> Capacity:
    limits = {
        "kernel.pid_max": _number(sysctl("kernel/pid_max")),
        "kernel.threads-max": _number(sysctl("kernel/threads-max")),
        "pids.max of the cgroup": _least("pids.max", "pids"),
    }
    if os.geteuid() != 0:  # root is exempt
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        limits["RLIMIT_NPROC (hard)"] = None if hard == resource.RLIM_INFINITY else hard
    known = {name: limit for name, limit in limits.items() if limit is not None}
    source = min(known, key=known.__getitem__, default="")
    limit = known.get(source)
    return Capacity(
        name="processes",
        limit=limit,
        unit="processes at a time",
        source=source,
        workers=None if limit is None else max(limit - _RESERVE - _running(), 0) // _PROCESSES,
        detail=f"{_PROCESSES} a worker that has a command; passive ones have none",
        remedy=f"sysctl -w {source}=4194304" if source.startswith("kernel.") else "",
    )


def _running() -> int:
    """Threads of the whole host: ``/proc/loadavg`` has running/all."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def _namespaces() -> Iterator[Capacity]:
    for kind in _NAMESPACES:
        name = f"user.max_{kind}_namespaces"
        limit = _number(sysctl(name.replace(".", "/", 1)))
        yield Capacity(
            name=f"{kind} namespaces",
            limit=limit,
            unit="namespaces of a user",
            source=name,
            workers=None if limit is None else max(limit - 2, 0),
            detail="one a worker, and those of the supervisor",
            remedy=f"sysctl -w {name}=100000",
        )


def _users(rootless: bool) -> Capacity:
    name = "user.max_user_namespaces"
    limit = _number(sysctl("user/max_user_namespaces"))
    return Capacity(
        name="user namespaces",
        limit=limit,
        unit="namespaces of a user",
        source=name,
        workers=0 if rootless and limit == 0 else None,
        detail="one a supervisor without root, and one a worker that asks for it",
        remedy=f"sysctl -w {name}=100000",
    )


def _neighbours() -> Capacity:
    """The table is one for all network namespaces, and its size is seen in the first alone."""
    name = "net.ipv4.neigh.default.gc_thresh3"
    limit = _number(sysctl("net/ipv4/neigh/default/gc_thresh3"))
    return Capacity(
        name="neighbours",
        limit=limit,
        unit="ARP entries of all network namespaces, but for permanent ones",
        source=name,
        workers=None if limit is None else limit // 2,
        advisory=True,
        detail="two for each worker that speaks with one other; those of gateways and large bridges are permanent",
        remedy=f"sysctl -w {name}=65536",
    )


def _memory() -> Capacity:
    available = None
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    source = "MemAvailable"
    allowed = _least("memory.max", "memory")
    if allowed is not None and (available is None or allowed < available):
        available, source = allowed, "memory.max of the cgroup"
    return Capacity(
        name="memory",
        limit=available,
        unit="bytes",
        source=source,
        workers=None if available is None else available // _BYTES,
        detail="1 MiB a worker with an init and a link, beside its command's own; a passive one takes a third",
    )


def _capture() -> Capacity:
    return Capacity(
        name="capture buffer",
        limit=_number(sysctl("net/core/rmem_max")),
        unit="bytes of a socket",
        source="net.core.rmem_max",
        detail="what packets of a capture may wait in",
        remedy="sysctl -w net.core.rmem_max=8388608",
    )


def _least(file: str, controller: str) -> int | None:
    """The tightest limit from this process's cgroup up, of either version."""
    where = cgroups.hierarchy()
    paths = [where.own] if where is not None else []
    stop = where.mount if where is not None else ""
    if where is None or not os.path.exists(f"{where.own}/{file}"):
        paths, stop, file = _first_version(controller, file)
    found = []
    while paths:
        path = paths.pop()
        try:
            with open(f"{path}/{file}") as opened:
                found.append(_number(opened.read().strip()))
        except OSError:
            pass
        if len(path) > len(stop):
            paths.append(os.path.dirname(path))
    return min((each for each in found if each is not None and each < 1 << 60), default=None)


def _first_version(controller: str, file: str) -> tuple[list[str], str, str]:
    try:
        with open("/proc/self/cgroup") as opened:
            rows = [line.rstrip("\n").split(":", 2) for line in opened]
    except OSError:
        rows = []
    own = next((row[2] for row in rows if controller in row[1].split(",")), None)
    mount = f"/sys/fs/cgroup/{controller}"
    if own is None or not os.path.isdir(mount):
        return [], "", file
    return [f"{mount}{own}".rstrip("/")], mount, {"memory.max": "memory.limit_in_bytes"}.get(file, file)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
