"""Where a supervisor may have cgroups of its own: found in the v2 hierarchy, never assumed.

A process moves from one cgroup to another only with write permission on the common ancestor's ``cgroup.procs``
(Documentation/admin-guide/cgroup-v2.rst, "Delegation Containment"). So only the caller's own cgroup and those above it
are looked at. In one that holds processes no controller can be enabled for its children ("No Internal Process
Constraint"), unless it is the root of all.
"""

from __future__ import annotations

import os
from typing import NamedTuple

#: what limits and statistics need
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
#: systemd marks what it has delegated; the second is of versions before 251
_MARKS = ("user.delegate", "trusted.delegate")


class Hierarchy(NamedTuple):
    """The v2 hierarchy as this process sees it."""

    mount: str  #: where it is mounted
    own: str  #: the cgroup of this process, as a path


class Place(NamedTuple):
    """A cgroup in which this process may make others, and move itself between them.

    *free*: its children can have the controllers without anybody being moved.
    """

    path: str
    controllers: frozenset[str]  #: that its children can have
    free: bool
    marked: bool  #: by systemd, as delegated


def hierarchy() -> Hierarchy | None:
    """None where no v2 hierarchy is mounted that shows the cgroup of this process."""
    return parse_hierarchy(_read("/proc/self/cgroup"), _read("/proc/self/mountinfo"))


def parse_hierarchy(cgroup: str, mountinfo: str) -> Hierarchy | None:
    own = next((line[3:] for line in cgroup.splitlines() if line.startswith("0::")), None)
    if own is None or own.startswith("/.."):  # outside of what the cgroup namespace shows
        return None
    found = None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if not rest.startswith("cgroup2 "):
            continue
        root, mount = (_unescape(field) for field in fields.split()[3:5])
        prefix = root.rstrip("/")
        if own == root or own.startswith(f"{prefix}/"):
            path = f"{mount}{own[len(prefix) :]}".rstrip("/")
            # A later mount at the same place hides the earlier; of several places any will do.
            if os.path.exists(f"{path}/cgroup.procs"):
                found = Hierarchy(mount, path)
    return found


def _unescape(field: str) -> str:
    """Of mountinfo, where a space is ``\\040``."""
    return field.encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")


def places(where: Hierarchy) -> list[Place]:
    """Those that may serve, the nearest first."""
    found = []
    path = where.own
    while True:
        if _may_write(path):
            found.append(_look_at(path))
        if path == where.mount or len(path) <= len(where.mount):
            return found
        path = os.path.dirname(path)


def best(found: list[Place]) -> Place | None:
    """The nearest of those with most of our controllers; one where nobody has to be moved for it comes first."""

    def worth(place: Place) -> tuple[int, bool, bool]:
        return len(place.controllers & set(CONTROLLERS)), place.free, place.marked

    return max(found, key=worth, default=None)


def _may_write(path: str) -> bool:
    """Also that it is no threaded one, below which processes can't be spread."""
    files = (path, f"{path}/cgroup.procs", f"{path}/cgroup.subtree_control")
    if not all(os.access(file, os.W_OK, effective_ids=True) for file in files):
        return False
    kind = _read(f"{path}/cgroup.type").strip()
    return kind in ("", "domain")


def _look_at(path: str) -> Place:
    own = frozenset(_read(f"{path}/cgroup.controllers").split())
    root = not os.path.exists(f"{path}/cgroup.type")  # only the root of all has none
    free = root or not _read(f"{path}/cgroup.procs").strip()
    return Place(path, own, free, any(_is_marked(path, mark) for mark in _MARKS))


def _is_marked(path: str, mark: str) -> bool:
    try:
        return os.getxattr(path, mark) == b"1"
    except OSError:
        return False


def why_not_v2(controller: str) -> tuple[str, str] | None:
    """Why the whole host has no *controller* in cgroup v2, and the command that would change it; None if it has."""
    rows = [line.split() for line in _read("/proc/cgroups").splitlines() if not line.startswith("#")]
    name = "blkio" if controller == "io" else controller
    row = next((row for row in rows if row[0] == name), None)
    boot = "add {} to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub; update-grub) and reboot"
    if row is not None and row[1] != "0":
        return f"the {controller} controller is bound to cgroup v1 here", boot.format(
            "systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
        )
    if row is not None and row[3] == "0":
        return f"the {controller} controller was disabled at boot", boot.format(f"cgroup_enable={controller}")
    return None


def why_without(controller: str, where: Hierarchy | None) -> tuple[str, str]:
    """Why no cgroup of ours can have *controller*, and the command that would change it."""
    if (why := why_not_v2(controller)) is not None:
        return why
    if where is None:
        return why_no_hierarchy()
    known = _read(f"{where.mount}/cgroup.controllers").split()
    if controller in known:
        return f"the {controller} controller is not delegated to {os.path.basename(where.own) or where.own}", (
            f"systemd-run --scope -p Delegate=yes{'' if os.geteuid() == 0 else ' --user'} COMMAND, or Delegate="
            "cpu cpuset io memory pids in /etc/systemd/system/user@.service.d/delegate.conf"
        )
    return f"the kernel, or the container, has no {controller} controller in {where.mount}", ""


def why_no_hierarchy() -> tuple[str, str]:
    return "no cgroup v2 hierarchy is mounted that has this process in it", (
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
    )


def why_no_place(where: Hierarchy) -> tuple[str, str]:
    none = f"{where.own} can't be written to"
    if where.own != where.mount:
        none = f"no cgroup from {where.own} up to {where.mount} can be written to"
    return f"{none}: no cgroup is delegated to this user", (
        "systemd-run --user --scope -p Delegate=yes COMMAND; without systemd: mkdir and chown a cgroup with its "
        "cgroup.procs and cgroup.subtree_control, and start the program in it"
    )


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
