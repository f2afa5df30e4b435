"""Features that no try is needed for: read from /proc, /sys and /etc."""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import shutil
from typing import TYPE_CHECKING

from attrs import evolve

from nsorch.core.programs import find
from nsorch.core.spawner import cgroups
from nsorch.core.subids import ranges_in
from nsorch.host.catalogue import is_recent
from nsorch.host.values import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Each with its package, what it is for, and the feature that it can't do without.
_PROGRAMS = (
    ("ip", "iproute2", "ip netns exec, for pins", ""),
    ("dot", "graphviz", "nsorch graph -f svg", ""),
    ("dnsmasq", "dnsmasq-base", "DHCP, DNS and router advertisements of workers", ""),
    ("/usr/lib/frr/zebra", "frr", "OSPF and BGP between workers", ""),
    ("tayga", "tayga", "NAT64", "tun"),
    ("udhcpc", "udhcpc", "links with addresses by DHCP", ""),
    ("pasta", "passt", "uplinks to the outside without root", "tun"),
)


def kernel() -> Feature:
    release, recent = platform.release(), is_recent()
    return Feature(
        name="kernel",
        group="host",
        available=recent,
        purpose="all of nsorch",
        needed=True,
        detail=release,
        forbidden_by="" if recent else f"Linux {release} is older than 5.15",
        remedy="" if recent else "use Linux 5.15 or newer",
    )


def read_features(tried: Mapping[str, Feature]) -> Iterator[Feature]:
    """What no try is needed for, but those that some of them need."""
    yield _ipv6()
    yield from _cgroups()
    for resource in ("cpu", "memory", "io"):
        yield _pressure(resource)
    yield from _id_maps()
    for program, package, purpose, needed in _PROGRAMS:
        found = _program(os.path.basename(program), find(program) or "", purpose, f"apt-get install {package}")
        if found.available and needed and not tried[needed].available:
            missing = tried[needed]
            found = evolve(found, available=False, forbidden_by=missing.forbidden_by, remedy=missing.remedy)
        yield found
    for module, extra, purpose in (("httpx", "http", "worker.http_client()"),):
        there = importlib.util.find_spec(module) is not None
        yield _program(module, "installed" if there else "", purpose, f"pip install 'nsorch[{extra}]'")


def _ipv6() -> Feature:
    there = os.path.isdir("/proc/sys/net/ipv6")
    return Feature(
        name="IPv6",
        group="host",
        available=there,
        purpose="addresses of that family",
        detail="/proc/sys/net/ipv6" if there else "there is no /proc/sys/net/ipv6",
        forbidden_by="" if there else "ipv6.disable=1 at boot, or a kernel without CONFIG_IPV6",
        remedy="" if there else "boot without ipv6.disable=1",
    )


def _program(name: str, found: str, purpose: str, remedy: str) -> Feature:
    return Feature(
        name=name,
        group="programs",
        available=bool(found),
        purpose=purpose,
        detail=found,
        forbidden_by="" if found else "it is not installed",
        remedy="" if found else remedy,
    )


def _pressure(resource: str) -> Feature:
    path = f"/proc/pressure/{resource}"
    try:
        with open(path) as file:  # with psi=0 the files are there, and can't be opened
            file.read()
        forbidden, remedy = "", ""
    except FileNotFoundError:
        forbidden, remedy = "the kernel was built without CONFIG_PSI", "use another kernel"
    except OSError:
        forbidden, remedy = "pressure is not accounted (CONFIG_PSI_DEFAULT_DISABLED)", "boot with psi=1"
    return Feature(
        name=f"{resource} pressure",
        group="cgroups",
        available=not forbidden,
        purpose="pressure in worker.stats()",
        detail=path,
        forbidden_by=forbidden,
        remedy=remedy,
    )


def _cgroups() -> Iterator[Feature]:
    where = cgroups.hierarchy()
    place = None if where is None else cgroups.best(cgroups.places(where))
    missing = ("", "") if where is not None else cgroups.why_no_hierarchy()
    yield Feature(
        name="cgroup v2",
        group="cgroups",
        available=where is not None,
        purpose="everything about cgroups",
        detail="" if where is None else f"mounted at {where.mount}",
        forbidden_by=missing[0],
        remedy=missing[1],
    )
    if where is not None and place is None:
        missing = cgroups.why_no_place(where)
    yield Feature(
        name="cgroup delegation",
        group="cgroups",
        available=place is not None,
        purpose="freeze, thaw, kill, statistics",
        detail="" if place is None else f"subtrees of supervisors go below {place.path}",
        forbidden_by=missing[0],
        remedy=missing[1],
    )
    for controller in cgroups.CONTROLLERS:
        there = place is not None and controller in place.controllers
        why = ("", "")
        if not there:
            why = cgroups.why_not_v2(controller) or (missing if missing[0] else cgroups.why_without(controller, where))
        yield Feature(
            name=f"cgroup {controller}",
            group="cgroups",
            available=there,
            purpose=_LIMITS[controller],
            detail="" if place is None else f"{'can' if there else 'can not'} be enabled below {place.path}",
            forbidden_by=why[0],
            remedy=why[1],
        )


_LIMITS = {
    "cpu": "limits: cpus, cpu_weight",
    "cpuset": "limits: cpuset",
    "io": "limits: io",
    "memory": "limits: memory, memory_high, swap; out-of-memory events",
    "pids": "limits: pids",
}


def _id_maps() -> Iterator[Feature]:
    for kind in ("uid", "gid"):
        program = shutil.which(f"new{kind}map")
        privileged = program is not None and _is_privileged(program)
        ranges = ranges_in(f"/etc/sub{kind}", os.geteuid())
        if program is None:
            why, remedy = f"new{kind}map is not installed", "apt-get install uidmap"
        elif not privileged:
            why, remedy = f"{program} is neither set-user-id nor has the capability", f"chmod u+s {program}"
        elif _has_no_new_privs():
            why, remedy = "no_new_privs is set for this process: set-user-id programs give it nothing", _NO_NEW_PRIVS
        elif not ranges:
            user = _user_name()
            why = f"/etc/sub{kind} has no range for {user}"
            remedy = f"usermod --add-sub{kind}s 100000-165535 {user}"
        else:
            why = remedy = ""
        yield Feature(
            name=f"new{kind}map",
            group="users",
            available=not why,
            purpose=f"more than one {kind} in a worker without root",
            detail=", ".join(f"{first}+{count}" for first, count in ranges),
            forbidden_by=why,
            remedy=remedy,
        )


_NO_NEW_PRIVS = "start it without, such as with NoNewPrivileges=no in the unit"


def _has_no_new_privs() -> bool:
    with open("/proc/self/status") as file:
        return "NoNewPrivs:\t1" in file.read()


def _is_privileged(path: str) -> bool:
    if os.stat(path).st_mode & 0o4000:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
