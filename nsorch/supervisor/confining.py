"""From a worker's isolation, as its description has it, to what the clone core does for it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from typing import TYPE_CHECKING

from nsorch.core.spawner import confinement as spawner_confinement
from nsorch.core.spawner import rootfs as spawner_rootfs
from nsorch.core.spawner.confinement import Confinement
from nsorch.core.spawner.protocol import Own
from nsorch.core.spawner.rootfs import Root, Sysfs
from nsorch.core.threads import in_thread
from nsorch.errors import PermissionDeniedError, SetupError, TopologyError
from nsorch.supervisor.confined import (
    OWN_ID,
    Confined,
    check_mapped,
    covers,
    first_of,
    has_own_proc,
    has_own_sys,
    shown,
    without_unmapped,
)
from nsorch.supervisor.opening import open_file
from nsorch.supervisor.users import User, find_user
from nsorch.topology.kinds import absolute
from nsorch.topology.mounts import Bind, Mount, Overlay
from nsorch.topology.namespaces import KINDS, New
from nsorch.topology.presets import NOBODY, Isolation, isolation_of
from nsorch.topology.privileges import CAPABILITIES, check_program

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.core.helper import Facts
    from nsorch.topology import WorkerSpec
    from nsorch.topology.privileges import Capabilities, IdRange

_RDONLY, _NOEXEC = 1, 8  # MOUNT_ATTR_*
_TTY_GROUP = 5  # of Debian, and of those who came after
EVERY_CAPABILITY = spawner_confinement.encode(Confinement(capabilities=((1 << len(CAPABILITIES)) - 1,) * 5))
_CGROUPS = "/sys/fs/cgroup"
_OF_PROCESSES = re.compile(r"/+(?:proc/+(?:self|thread-self|[0-9]+)|dev/+fd)/")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def confine(spec: WorkerSpec, facts: Facts, *, rootless: bool, made: bool) -> Confined:
    """See :func:`nsorch.supervisor.confined.confined_of`."""
    isolation = isolation_of(spec)
    user = None
    if spec.user is not None or spec.groups:
        user = await in_thread(find_user, spec.user, spec.groups, isolation.rootfs, spec.name)
    own_user = isinstance(isolation.namespaces.user, New)
    id_maps = _id_maps(isolation, user, facts.ids, rootless=rootless) if own_user else OWN_ID
    _check_outside(isolation, facts.ids, spec.name)
    mapped = id_maps if own_user else facts.ids
    if user is None and (isolation.drop_groups or isolation.uid_map or isolation.gid_map):
        user = first_of(mapped)  # in a user namespace the supervisor's user may be nobody, and root on the host
    if user is not None:
        if not spec.groups:
            user = without_unmapped(user, mapped)
        check_mapped(user, mapped, spec.name)
    if not own_user:
        _check_capabilities(isolation.required, facts.capabilities, spec.name)
    program = await _seccomp_program(isolation, spec.name)
    try:
        root = Root() if made else _root(isolation, rootless=rootless, own_user=own_user, passive=spec.command is None)
    except TopologyError as exc:
        raise TopologyError(f"workers.{spec.name}.{exc.problems[0]}") from None
    return Confined(
        namespaces=isolation.namespaces,
        confinement=spawner_confinement.encode(
            Confinement(
                capabilities=_bits(isolation.capabilities),
                no_new_privs=isolation.no_new_privs,
                rlimits=tuple((name.upper(), *limits) for name, limits in spec.rlimits.items()),
                oom_score_adj=spec.oom_score_adj,
                seccomp=program,
                keyring=isolation.keyring,
            )
        ),
        root=spawner_rootfs.encode(root),
        own=_own(isolation),
        user=user,
        mapped=mapped,
        id_maps=id_maps,
        env=_environment() if isolation.keyring else None,
        guarded=isolation.guarded,
        may_mount=isolation.capabilities is None or "SYS_ADMIN" in isolation.capabilities.bounding,
        sysfs=isolation.rootfs is None and has_own_sys(isolation.namespaces),
        rootless=rootless,
        rootfs=isolation.rootfs,
        seccomp=spec.seccomp,
        time_offsets=tuple((clock, *_split(offset)) for clock, offset in spec.time_offsets.items()),
        domainname=spec.domainname,
        work=await in_thread(_missing, root.overlay[2]) if root.overlay is not None and root.overlay[1] else b"",
    )


def _missing(path: bytes) -> bytes:
    return b"" if os.path.lexists(path) else path


def discard_work(paths: Iterable[bytes]) -> None:
    """Those working directories of overlays that came to nothing, with what the kernel has made in them. Blocks."""
    for path in paths:
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                os.rmdir(os.path.join(path, name))
            os.rmdir(path)


def _check_outside(isolation: Isolation, there: tuple[tuple[IdRange, ...], ...], worker: str) -> None:
    for kind, ranges, known in zip(("uid", "gid"), (isolation.uid_map, isolation.gid_map), there, strict=True):
        for _, outside, count in ranges:
            # The kernel wants each within one range of the namespace above (map_id_range_down() in user_namespace.c).
            if not covers(known, outside, count):
                raise PermissionDeniedError(
                    f"map the {kind}s {shown(((outside, outside, count),))} of outside",
                    worker=worker,
                    stage=f"{kind} map",
                    detail=f"the supervisor's user namespace has {shown(known)}: without root, more than the caller's "
                    "own id needs /etc/subuid, /etc/subgid and newuidmap",
                )


def _check_capabilities(required: frozenset[str], held: int, worker: str) -> None:
    if missing := sorted(name for name in required if not held >> CAPABILITIES.index(name) & 1):
        raise PermissionDeniedError(
            f"give the capabilities {', '.join(missing)}",
            worker=worker,
            stage="capabilities",
            detail="the supervisor hasn't got them itself",
        )


def _id_maps(
    isolation: Isolation, user: User | None, there: tuple[tuple[IdRange, ...], ...], *, rootless: bool
) -> tuple[tuple[IdRange, ...], ...]:
    """One id, unless ranges are given: that of the command inside; outside the supervisor's own, or nobody's where the
    supervisor is root, of a user namespace that has nobody, and the worker is not to be trusted."""
    nobody = isolation.drop_groups and not rootless and all(covers(ranges, NOBODY) for ranges in there)
    outside = NOBODY if nobody else 0
    uid, gid = (0, 0) if user is None else user[:2]
    return isolation.uid_map or ((uid, outside, 1),), isolation.gid_map or ((gid, outside, 1),)


def _bits(capabilities: Capabilities | None) -> tuple[int, ...] | None:
    if capabilities is None:
        return None
    sets = (
        capabilities.bounding,
        capabilities.permitted,
        capabilities.effective,
        capabilities.inheritable,
        capabilities.ambient,
    )
    return tuple(sum(1 << CAPABILITIES.index(name) for name in names) for names in sets)


async def _seccomp_program(isolation: Isolation, worker: str) -> bytes:
    chosen = isolation.seccomp
    if chosen is None or isinstance(chosen, bytes):
        return chosen or b""
    if chosen == "default":
        from nsorch.core.seccomp import default_profile

        capabilities = isolation.capabilities
        held = frozenset(CAPABILITIES) if capabilities is None else capabilities.bounding
        try:
            return await in_thread(default_profile, held)
        except OSError as exc:
            raise SetupError("build the default profile", worker=worker, stage="seccomp", errno=exc.errno) from None
    program = await _read(chosen, worker)
    try:
        check_program(program)
    except TopologyError as exc:
        raise TopologyError(f"workers.{worker}.{exc.problems[0]}") from None
    return program


async def _read(source: str | int, worker: str) -> bytes:
    """A whole file, from its start, whatever somebody has read of it; or what is in a pipe."""
    try:
        if isinstance(source, int):
            return await in_thread(_read_all, source)
        fd = await open_file(source, os.O_RDONLY)
        try:
            return await in_thread(_read_all, fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise SetupError(
            f"read the seccomp program {source}", worker=worker, stage="seccomp", errno=exc.errno
        ) from None


def _read_all(fd: int) -> bytes:
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with open(fd, "rb", closefd=False) as pipe:
            return pipe.read(1 << 20)
    return os.pread(fd, 1 << 20, 0)


def _split(offset: float) -> tuple[int, int]:
    seconds = math.floor(offset)
    whole, nanoseconds = divmod(round((offset - seconds) * 1e9), 1_000_000_000)
    return seconds + whole, nanoseconds


def _environment() -> dict[str, str]:
    """Nothing of the application's but its terminal's name: an environment may hold secrets."""
    env = {"PATH": _PATH, "HOME": "/"}
    if "TERM" in os.environ:
        env["TERM"] = os.environ["TERM"]
    return env


def _absolute(where: str, path: str) -> bytes:
    """As the helper has it, whose ``/proc`` is another, and ``/proc/self`` in any its own."""
    path = absolute(where, path)
    if _OF_PROCESSES.match(path):
        found = os.path.realpath(path)
        try:
            # What the link says of another process may be in other mounts; of a pipe it is no path.
            same = not found.startswith("/proc/") and os.path.samestat(os.stat(path), os.stat(found))
        except OSError:
            same = False
        if not same:
            raise TopologyError(f'{where}: "{path}" is what /proc has of a process, and no path elsewhere leads there')
        path = found
    return os.fsencode(path)


def _beside(upper: bytes) -> bytes:
    """The working directory of overlayfs's own, unless one is given."""
    path = upper.rstrip(b"/")
    named = os.path.basename(path) not in (b"", b".", b"..")
    return (path if named else os.path.realpath(upper)) + b".work"


def _below_proc(path: str) -> bool:
    return path.startswith("/proc/")


def _own(isolation: Isolation) -> Own:
    masked = tuple(os.fsencode(path) for path in isolation.masked if _below_proc(path))
    readonly = tuple(os.fsencode(path) for path in isolation.readonly_paths if _below_proc(path))
    guarded = isolation.guarded or bool(masked or readonly)
    kinds = isolation.namespaces
    cgroupfs = isinstance(kinds.cgroup, New) and isinstance(kinds.mnt, New) and not _covers_cgroups(isolation)
    return Own(guarded=guarded, masked=masked, readonly=readonly, cgroupfs=cgroupfs)


def _covers_cgroups(isolation: Isolation) -> bool:
    """Whether something else is asked for at ``/sys/fs/cgroup``, or around it: a mask, a bind of the host's."""
    asked = (*isolation.masked, *(mount.dst for mount in isolation.mounts))
    return any(f"{_CGROUPS}/".startswith(f"/{os.path.normpath(path).lstrip('/')}/") for path in asked)


def _root(isolation: Isolation, *, rootless: bool, own_user: bool, passive: bool) -> Root:
    namespaces = isolation.namespaces
    # That of another pid namespace is mounted by its first process, and then hidden.
    own_proc = has_own_proc(namespaces, rootless=rootless) and not passive
    masked, readonly = (
        tuple(os.fsencode(path) for path in paths if not (own_proc and _below_proc(path)))
        for paths in (isolation.masked, isolation.readonly_paths)
    )
    rootfs = isolation.rootfs
    mounts = tuple(_mount(f"mounts[{number}].src", mount) for number, mount in enumerate(isolation.mounts))
    root = Root(mounts=mounts, masked=masked, readonly=readonly)
    if rootfs is None:
        return root
    sysfs = Sysfs.READ_ONLY if isolation.readonly_sys else Sysfs.FRESH
    if not has_own_sys(namespaces):
        sysfs = Sysfs.HOST
    overlay, directory = None, b""
    hosts_own = False
    if isinstance(rootfs, Overlay):
        upper = b"" if rootfs.upper is None else _absolute("rootfs.upper", rootfs.upper)
        overlay = (
            tuple(_absolute("rootfs.lower", layer) for layer in rootfs.lower),
            upper,
            _absolute("rootfs.work", rootfs.work) if rootfs.work is not None else upper and _beside(upper),
            rootfs.size or 0,
            rootless or own_user,
        )
    else:
        directory = _absolute("rootfs", rootfs)
        hosts_own = os.path.realpath(directory) == b"/"
    return root._replace(
        directory=directory,
        overlay=overlay,
        create=not hosts_own,
        read_only=isolation.readonly_root,
        no_devices=isolation.no_devices,
        dev=isolation.private_dev,
        mqueue=isinstance(namespaces.ipc, New),
        # A user namespace may not have it, also another worker's that is joined.
        tty_group=-1 if rootless or own_user or any(map(namespaces.joins, KINDS)) else _TTY_GROUP,
        sysfs=sysfs,
        hosts=not hosts_own,
    )


def _mount(where: str, mount: Mount) -> tuple[object, ...]:
    if isinstance(mount, Bind):
        return (
            True,
            _absolute(where, mount.src),
            os.fsencode(mount.dst),
            mount.read_only,
            mount.recursive,
            mount.propagation == "shared",
        )
    options = [(b"mode", b"%o" % mount.mode)]
    if mount.size is not None:
        options.append((b"size", b"%d" % mount.size))
    attributes = (_RDONLY if mount.read_only else 0) | (0 if mount.exec else _NOEXEC)
    return False, os.fsencode(mount.dst), tuple(options), attributes
