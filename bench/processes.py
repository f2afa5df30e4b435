"""What /proc says of processes and of the kernel's namespaces."""

from __future__ import annotations

import os
import time

# The kernel frees network namespaces in its own time, on a processor that the next measurement needs, and after the
# last of them has gone goes on with what they had in /proc and /sys.
_SETTLED_FOR = 0.3
_DEADLINE = 30.0
# Who has other work than ours is not waited for longer, nor what takes less of one processor.
_IDLE_DEADLINE, _IDLE = 5.0, 0.1


def descendants(root: int) -> list[int]:
    """All processes below *root*."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := parent_of(int(name))):
            children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def parent_of(pid: int) -> int:
    """Its parent's pid, or 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def proportional_size(pid: int) -> int:
    """PSS in bytes: each page counts in equal parts for all processes that have it mapped."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def settle() -> None:
    """Wait until the kernel has freed what the last run left, as far as this host tells."""
    _await_namespaces()
    deadline = time.monotonic() + _IDLE_DEADLINE
    busy = True
    while busy and time.monotonic() < deadline:
        since, before = time.monotonic(), _busy_seconds()
        time.sleep(_SETTLED_FOR)
        busy = _busy_seconds() - before > _IDLE * (time.monotonic() - since)


def _busy_seconds() -> float:
    """Of all processors together, until now."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, late_interrupts = map(int, file.readline().split()[1:8])
    return (user + nice + system + interrupts + late_interrupts) / os.sysconf("SC_CLK_TCK")


def _await_namespaces() -> None:
    deadline = time.monotonic() + _DEADLINE
    since, count = time.monotonic(), _network_namespaces()
    while count is not None and time.monotonic() < deadline:
        time.sleep(0.05)
        before, count = count, _network_namespaces()
        if count != before:
            since = time.monotonic()
        elif time.monotonic() - since >= _SETTLED_FOR:
            return


def _network_namespaces() -> int | None:
    try:
        with open("/proc/slabinfo") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("net_namespace ")), None)
    except OSError:
        return None
