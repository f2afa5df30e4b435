"""What /proc says of processes and of the kernel's namespaces."""

from __future__ import annotations

import os
import time

# The kernel frees network namespaces in its own time, on a CPU that the next measurement needs.
_SETTLED_FOR = 0.3
_DEADLINE = 30.0


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
    """Wait until the kernel has freed the network namespaces of the last run, as far as this host tells."""
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
