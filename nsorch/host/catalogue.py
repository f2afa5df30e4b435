"""The features that are tried, and what their errors mean: what forbids them, and what would change it."""

from __future__ import annotations

import errno
import functools
import gzip
import os
import platform

from attrs import frozen

from nsorch.core.failures import NOBODYS, is_nobody
from nsorch.core.launch import has_capability
from nsorch.values import Value


@frozen(eq=False, repr=False)
class Tried(Value):
    """:ivar config: the kernel's build option, :ivar module: its module, each ``""`` where it has none."""

    name: str
    group: str
    purpose: str
    config: str = ""
    module: str = ""
    package: str = ""
    needed: bool = False


TRIED = (
    Tried("clone3", "namespaces", "all processes of a lab", needed=True),
    Tried("user namespace", "namespaces", "labs without root", "CONFIG_USER_NS"),
    Tried("net namespace", "namespaces", "workers with a network", "CONFIG_NET_NS", needed=True),
    Tried("mnt namespace", "namespaces", "workers with mounts of their own", needed=True),
    Tried("uts namespace", "namespaces", "a hostname of their own", "CONFIG_UTS_NS", needed=True),
    Tried("ipc namespace", "namespaces", "SysV IPC and POSIX queues of their own", "CONFIG_IPC_NS", needed=True),
    Tried("pid namespace", "namespaces", "processes that end together", "CONFIG_PID_NS", needed=True),
    Tried("cgroup namespace", "namespaces", "cgroup_namespace", "CONFIG_CGROUPS"),
    Tried("time namespace", "namespaces", "time_offsets", "CONFIG_TIME_NS"),
    Tried("setns", "namespaces", "commands in workers", needed=True),
    Tried("fresh /proc", "mounts", "the /proc of a worker's pid namespace", needed=True),
    Tried("fresh /sys", "mounts", "the /sys of a worker's network namespace", "CONFIG_SYSFS"),
    Tried("POSIX queues", "mounts", "/dev/mqueue", "CONFIG_POSIX_MQUEUE"),
    Tried("overlay", "mounts", "overlay root file systems", "CONFIG_OVERLAY_FS", "overlay"),
    Tried("overlay without root", "mounts", "the same in a user namespace", "CONFIG_OVERLAY_FS", "overlay"),
    Tried("pivot_root", "mounts", "root file systems, sandboxes"),
    Tried("mount_setattr", "mounts", "recursive read-only binds"),
    Tried("openat2", "mounts", "targets that symbolic links can't lead outside"),
    Tried("seccomp", "confinement", "filters of system calls", "CONFIG_SECCOMP_FILTER"),
    Tried("libseccomp", "confinement", "the default profile of system calls", package="libseccomp2"),
    Tried("libpcap", "programs", "capture filters as expressions", package="libpcap0.8"),
    Tried("veth", "interfaces", "links", "CONFIG_VETH", "veth", needed=True),
    Tried("bridge", "interfaces", "bridges", "CONFIG_BRIDGE", "bridge", needed=True),
    Tried("dummy", "interfaces", "interfaces that lead nowhere", "CONFIG_DUMMY", "dummy"),
    Tried("bond", "interfaces", "bonded links", "CONFIG_BONDING", "bonding"),
    Tried("vrf", "interfaces", "several routing tables in a worker", "CONFIG_NET_VRF", "vrf"),
    Tried("vlan", "interfaces", "802.1Q tags", "CONFIG_VLAN_8021Q", "8021q"),
    Tried("vxlan", "interfaces", "tunnels between machines", "CONFIG_VXLAN", "vxlan"),
    Tried("macvlan", "interfaces", "several MAC addresses on one interface", "CONFIG_MACVLAN", "macvlan"),
    Tried("ipvlan", "interfaces", "several addresses on one MAC", "CONFIG_IPVLAN", "ipvlan"),
    Tried("wireguard", "interfaces", "encrypted tunnels", "CONFIG_WIREGUARD", "wireguard"),
    Tried("ifb", "interfaces", "shaping of what arrives", "CONFIG_IFB", "ifb"),
    Tried("tun", "interfaces", "tunnels of programs", "CONFIG_TUN", "tun"),
    Tried("netem", "queueing", "delay, jitter, loss, reordering", "CONFIG_NET_SCH_NETEM", "sch_netem"),
    Tried("tbf", "queueing", "rate", "CONFIG_NET_SCH_TBF", "sch_tbf"),
    Tried("htb", "queueing", "classes of traffic", "CONFIG_NET_SCH_HTB", "sch_htb"),
    Tried("nftables", "queueing", "packet filters and NAT", "CONFIG_NF_TABLES", "nf_tables"),
)

_MISSING = (errno.EOPNOTSUPP, errno.ENOENT, errno.ENODEV, errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EAFNOSUPPORT)
_OLDEST = (5, 15)
_CAP_SETFCAP = 31
_DENIED = (errno.EPERM, errno.EACCES)
#: settings that forbid user namespaces: path, the value that does, the command that ends it
_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with userns for this program",
    ),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
)


def explain(tried: Tried, number: int, where: str, *, rootless: bool) -> tuple[str, str]:
    """What forbids it, and what would change that."""
    if tried.package and number == errno.ENOENT:
        return f"the library {where} is not installed", f"apt-get install {tried.package}"
    if number == errno.ENOSPC and where.startswith("unshare"):
        return _limit_reached(where)
    if number in _DENIED:
        return _denied(tried, where, rootless)
    if tried.name == "tun" and number == errno.ENODEV:
        return where, "mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun"
    if number in _MISSING or (number == errno.EINVAL and where.startswith("unshare")):
        return _missing(tried)
    return f"{where}: {os.strerror(number)}".removeprefix(": "), ""


def _limit_reached(where: str) -> tuple[str, str]:
    """:param where: ``unshare``, and the kinds of the namespaces that were to be made"""
    names = [f"user/max_{kind.rstrip(',')}_namespaces" for kind in where.split()[1:]]
    tightest = min(names, key=lambda name: int(sysctl(name) or 0))
    name = tightest.replace("/", ".")
    return f"{name} = {sysctl(tightest)} is reached", f"sysctl -w {name}=15000"


def _denied(tried: Tried, where: str, rootless: bool) -> tuple[str, str]:
    if tried.name == "tun":
        return "/dev/net/tun is not open to this user", "chmod 666 /dev/net/tun"
    if rootless or tried.name in ("user namespace", "overlay without root"):
        for path, value, remedy in _SWITCHES:
            if sysctl(path) == value:
                return f"{path.replace('/', '.')} = {value}", remedy
        if "CONFIG_USER_NS" in _disabled():
            return "the kernel was built without CONFIG_USER_NS", "use another kernel"
        if is_nobody():
            return NOBODYS, "map it: write uid_map and gid_map from the namespace above (unshare --map-root-user does)"
    if where.startswith("uid map") and os.geteuid() == 0 and not has_capability(_CAP_SETFCAP):
        why = "uid 0 can be mapped by who has CAP_SETFCAP alone (user_namespaces(7)), which this process hasn't got"
        return why, "run it with that capability, or as another user"
    if where.startswith("mount"):
        why = "a container that masks parts of /proc or /sys, or a security module, forbids this mount"
        return why, "run outside of it, or with --security-opt systempaths=unconfined (docker, podman)"
    why = "a seccomp filter or a security module of this host or container forbids it"
    if where == "unshare user":
        why = "a seccomp filter or a security module of this host or container, or a chroot, forbids it"
    return f"{why} ({where})" if where else why, "run outside of it, or privileged"


def _missing(tried: Tried) -> tuple[str, str]:
    """Not there: never built, or a module that isn't installed or loaded."""
    release = platform.release()
    if tried.config and tried.config in _disabled():
        return f"the kernel was built without {tried.config}", "use another kernel, such as a distribution's"
    if tried.module and _is_installed(tried.module, release):
        return f"the module {tried.module} is not loaded, and can't be from here", f"modprobe {tried.module}"
    if tried.module and os.path.isdir(f"/lib/modules/{release}"):
        return (
            f"the module {tried.module} is not installed",
            f"apt-get install linux-modules-extra-{release}, and modprobe {tried.module}",
        )
    if tried.config:
        return f"the kernel has no {tried.module or tried.name} ({tried.config})", "use another kernel"
    if is_recent():
        return "a seccomp filter of this host or container hides it", "run outside of it, or privileged"
    return f"the kernel {release} is too old", "use Linux 5.15 or newer"


def is_recent() -> bool:
    """Whether the kernel is one that all of nsorch is for."""
    release = platform.release()
    return tuple(int(part) for part in release.split("-")[0].split(".")[:2]) >= _OLDEST


def _is_installed(module: str, release: str) -> bool:
    try:
        with open(f"/lib/modules/{release}/modules.dep") as file:
            names = {line.partition(":")[0].rpartition("/")[2].partition(".")[0] for line in file}
    except OSError:
        return False
    return module in names or module.replace("_", "-") in names


@functools.cache
def _disabled() -> frozenset[str]:
    """What the kernel's configuration leaves out; nothing where it can't be read."""
    for path in ("/proc/config.gz", f"/boot/config-{platform.release()}"):
        try:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
                lines = file.read().decode().splitlines()
        except OSError:
            continue
        return frozenset(line.split()[1] for line in lines if line.endswith(" is not set"))
    return frozenset()


def sysctl(path: str) -> str:
    """Its value, or ``""`` where there is none."""
    try:
        with open(f"/proc/sys/{path}") as file:
            return file.read().strip()
    except OSError:
        return ""
