"""The presets of isolation, and what a worker's own fields change of them: the table of docs/isolation.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.errors import TopologyError
from nsorch.topology.mounts import Mount, Overlay, Tmpfs
from nsorch.topology.namespaces import NamespaceSet, New, Shared
from nsorch.topology.privileges import CAPABILITIES, Capabilities, CapabilityChange, IdRange
from nsorch.values import Value

if TYPE_CHECKING:
    from nsorch.topology.specs import WorkerSpec

#: of a container's root: enough for package managers and servers, nothing of the host's
CONTAINER_CAPABILITIES = frozenset(
    (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE"),
        *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)
#: that of container runtimes: what tells of the host or reaches it
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
#: instead of the host's sockets and temporary files
_PRIVATE = (Tmpfs(dst="/tmp"), Tmpfs(dst="/run", mode=0o755))  # noqa: S108 - inside
NOBODY = 65534


@frozen(kw_only=True, eq=False, repr=False)
class Isolation(Value):
    """What holds for a worker once its preset and its own fields are put together.

    :ivar capabilities: None leaves the supervisor's
    :ivar required: of the capabilities, those that the description names
    :ivar seccomp: ``"default"``, a program, its path or descriptor, or None
    :ivar private_dev: a minimal ``/dev`` instead of the host's
    :ivar no_devices: device nodes in the root file system are none: an image may bring the host's disk
    :ivar readonly_sys: ``/sys`` can't be written to
    :ivar drop_groups: the application's supplementary groups are left even without ``user``
    :ivar guarded: what runs in the worker is not trusted
    """

    namespaces: NamespaceSet
    rootfs: str | Overlay | None
    mounts: tuple[Mount, ...]
    readonly_root: bool
    masked: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    private_dev: bool
    no_devices: bool
    readonly_sys: bool
    capabilities: Capabilities | None
    required: frozenset[str]
    no_new_privs: bool
    seccomp: str | bytes | int | None
    keyring: bool
    drop_groups: bool
    uid_map: tuple[IdRange, ...]
    gid_map: tuple[IdRange, ...]
    guarded: bool


def isolation_of(spec: WorkerSpec) -> Isolation:
    """
    :raises TopologyError: the fields contradict one another; the path begins below the worker's
    """
    strict = spec.isolation != "network"
    sandbox = spec.isolation == "sandbox"
    rootfs = spec.rootfs
    mounts = spec.mounts
    if spec.isolation == "container" and rootfs is None:
        raise TopologyError('rootfs: a worker with isolation "container" needs one')
    if sandbox and rootfs is None:
        # The host's files, of which nothing can be changed; its sockets can't be reached.
        rootfs = "/"
        given = {mount.dst.rstrip("/") for mount in mounts}
        mounts = (*(mount for mount in _PRIVATE if mount.dst not in given), *mounts)
    masked = spec.masked if spec.masked is not None else MASKED if strict else ()
    readonly_paths = spec.readonly_paths if spec.readonly_paths is not None else READONLY if strict else ()
    readonly_root = sandbox if spec.readonly_root is None else spec.readonly_root
    if readonly_root and rootfs is None:
        rootfs = "/"
    namespaces = _namespaces(spec)
    if not isinstance(namespaces.mnt, New):
        for name in ("rootfs", "mounts", "readonly_root", "masked", "readonly_paths"):
            if getattr(spec, name):
                raise TopologyError(f"{name}: needs a mount namespace of the worker's own")
        if strict:
            raise TopologyError(f'namespaces: isolation "{spec.isolation}" needs a mnt namespace of the worker\'s own')
    own_user = isinstance(namespaces.user, New)
    for name in ("uid_map", "gid_map"):
        if getattr(spec, name) and not own_user:
            raise TopologyError(f"{name}: needs a user namespace of the worker's own")
    if spec.domainname is not None and not isinstance(namespaces.uts, New):
        raise TopologyError("domainname: needs a uts namespace of the worker's own")
    capabilities, required = _capabilities(spec)
    return Isolation(
        namespaces=namespaces,
        rootfs=rootfs,
        mounts=mounts,
        readonly_root=readonly_root,
        masked=masked,
        readonly_paths=readonly_paths,
        private_dev=rootfs is not None,
        no_devices=strict,
        readonly_sys=strict,
        capabilities=capabilities,
        required=required,
        no_new_privs=strict if spec.no_new_privs is None else spec.no_new_privs,
        seccomp=_seccomp(spec),
        keyring=strict,
        drop_groups=strict,
        uid_map=spec.uid_map,
        gid_map=spec.gid_map,
        guarded=strict or rootfs is not None or namespaces.joins("mnt"),
    )


def _seccomp(spec: WorkerSpec) -> str | bytes | int | None:
    chosen = spec.seccomp
    if chosen is None and spec.isolation != "network":
        return "default"
    return None if chosen == "unconfined" else chosen


def _capabilities(spec: WorkerSpec) -> tuple[Capabilities | None, frozenset[str]]:
    chosen = spec.capabilities
    if isinstance(chosen, Capabilities):
        return chosen, _required(chosen.named)
    base = {"container": CONTAINER_CAPABILITIES, "sandbox": frozenset[str]()}.get(spec.isolation)
    if isinstance(chosen, CapabilityChange):
        names = chosen.applied(frozenset(CAPABILITIES) if base is None else base)
        return _of_root(names, chosen.add & names), _required(chosen.add) - chosen.drop
    if base is None:
        return None, frozenset()
    return _of_root(base), frozenset()


def _of_root(names: frozenset[str], others: frozenset[str] = frozenset()) -> Capabilities:
    """A command of another uid than 0 has none of them but *others*, as with other container runtimes."""
    return Capabilities(bounding=names, permitted=names, effective=names, inheritable=others, ambient=others)


def _required(named: frozenset[str]) -> frozenset[str]:
    """Who asks for all means all that there are."""
    return frozenset() if named == frozenset(CAPABILITIES) else named


def _namespaces(spec: WorkerSpec) -> NamespaceSet:
    passive = spec.command is None
    found = NamespaceSet.parse(spec.namespaces, passive=passive)
    changes: dict[str, New] = {}
    if spec.isolation == "sandbox" and isinstance(found.user, Shared) and not _mentions(spec, "user"):
        changes["user"] = New()
    strict = spec.isolation != "network"
    if spec.cgroup_namespace or (spec.cgroup_namespace is None and strict and not _mentions(spec, "cgroup")):
        changes["cgroup"] = New()
    if spec.cgroup_namespace is False and isinstance(found.cgroup, New):
        raise TopologyError("cgroup_namespace: it is false, but namespaces has a cgroup namespace of the worker's own")
    if spec.time_offsets:
        changes["time"] = New()
    for kind, name in (("cgroup", "cgroup_namespace"), ("time", "time_offsets")):
        if kind in changes and _mentions(spec, kind) and not isinstance(getattr(found, kind), New):
            raise TopologyError(f"{name}: needs a {kind} namespace of the worker's own")
    return found.evolve(**changes) if changes else found


def _mentions(spec: WorkerSpec, kind: str) -> bool:
    return isinstance(spec.namespaces, Mapping) and kind in spec.namespaces
