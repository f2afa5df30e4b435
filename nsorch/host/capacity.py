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
_OWN = 64  # processes and threads of the program and its helpers
_DESCRIPTORS = 6  # of a worker: its namespaces, a pidfd, a socket while it is wired
_PROCESSES = 2  # an init and a command
# Measured on Linux 6.18: 320 KiB of the kernel's for a passive worker with one link, and twice that with an init and
# a command, beside their own.
_BYTES = 1 << 20
_PROCESSES_RAISED = {
    "pids.max of the cgroup": "TasksMax=infinity in the unit, or --pids-limit -1 (docker, podman)",
    "RLIMIT_NPROC (hard)": "ulimit -Hu unlimited as root, or LimitNPROC=infinity in the unit",
    **{name: f"sysctl -w {name}=4194304" for name in ("kernel.pid_max", "kernel.threads-max")},
}
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
    others = _running() + _RESERVE
    most, used = _least("pids.max", "pids", used="pids.current")
    limits = [
        ("kernel.pid_max", _number(sysctl("kernel/pid_max")), others),
        ("kernel.threads-max", _number(sysctl("kernel/threads-max")), others),
        ("pids.max of the cgroup", most, used + _OWN),  # which counts its own alone
    ]
    if os.geteuid() != 0:  # root is exempt
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        limits.append(("RLIMIT_NPROC (hard)", None if hard == resource.RLIM_INFINITY else hard, others))
    rooms = [(limit - taken, limit, source) for source, limit, taken in limits if limit is not None]
    room, limit, source = min(rooms, default=(0, None, ""))
    return Capacity(
        name="processes",
        limit=limit,
        unit="processes at a time",
        source=source,
        workers=None if limit is None else max(room, 0) // _PROCESSES,
        detail=f"{_PROCESSES} a worker that has a command; passive ones have none",
        remedy=_PROCESSES_RAISED.get(source, ""),
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
    allowed, _ = _least("memory.max", "memory")
    if allowed is not None and (available is None or allowed < available):
        available, source = allowed, "memory.max of the cgroup"
    return Capacity(
        name="memory",
        limit=available,
        unit="bytes",
        source=source,
        workers=None if available is None else available // _BYTES,
        detail="1 MiB a worker with an init and a link, beside its command's own; a passive one takes a third",
        remedy=""
        if source == "MemAvailable"
        else "MemoryMax=infinity in the unit, or a larger --memory (docker, podman)",
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


def _least(file: str, controller: str, used: str = "") -> tuple[int | None, int]:
    """The limit that leaves least, from this process's cgroup up, of either version, and what of it is in use.

    :param used: the file that tells, if it matters
    """
    where = cgroups.hierarchy()
    paths = [where.own] if where is not None else []
    stop = where.mount if where is not None else ""
    if where is None or not os.path.exists(f"{where.own}/{file}"):
        paths, stop, file = _first_version(controller, file)
    found = []
    while paths:
        path = paths.pop()
        limit = _read(f"{path}/{file}")
        if limit is not None and limit < 1 << 60:
            found.append((limit, _read(f"{path}/{used}") or 0 if used else 0))
        if len(path) > len(stop):
            paths.append(os.path.dirname(path))
    return min(found, key=lambda each: each[0] - each[1], default=(None, 0))


def _read(path: str) -> int | None:
    try:
        with open(path) as opened:
            return _number(opened.read().strip())
    except OSError:
        return None


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
