"""Where the cgroups of labs are in these tests."""

from __future__ import annotations

import os
import pathlib

import pytest
from kernel_support import IN_VM

from nsorch.core.spawner import cgroups

HERE = cgroups.hierarchy()
PLACE = None if HERE is None else cgroups.best(cgroups.places(HERE))

needs_cgroups = pytest.mark.skipif(PLACE is None, reason="no cgroup v2 that this user may write to")
#: a limit of each kind can be kept
needs_controllers = pytest.mark.skipif(
    (PLACE is None or not PLACE.controllers >= set(cgroups.CONTROLLERS)) and not (IN_VM and os.geteuid() == 0),
    reason="no cgroup v2 controllers that this user may enable: make test-vm",
)


def subtrees(pid: int | None = None) -> list[pathlib.Path]:
    """What there is of the labs of a process, of this one if None."""
    if HERE is None:
        return []
    found: list[pathlib.Path] = []
    path = pathlib.Path(HERE.own)
    while True:
        found += path.glob(f"nsorch-{os.getpid() if pid is None else pid}-*")
        if str(path) == HERE.mount:
            return found
        path = path.parent


def processes(cgroup: str | None) -> set[int]:
    assert cgroup is not None
    return {int(word) for word in pathlib.Path(cgroup, "cgroup.procs").read_text().split()}
