"""From a worker's isolation, as its description has it, to what the clone core does for it."""

from __future__ import annotations

import functools
import math
import os
import stat
from typing import TYPE_CHECKING, Any

import anyio
from attrs import evolve, frozen

from nsorch.core.spawner import confinement as spawner_confinement
from nsorch.core.spawner import rootfs as spawner_rootfs
from nsorch.core.spawner.confinement import Confinement
from nsorch.core.spawner.protocol import Own
from nsorch.core.spawner.rootfs import Root, Sysfs
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP
from nsorch.errors import PermissionDeniedError, SetupError, TopologyError
from nsorch.supervisor.opening import open_file
from nsorch.supervisor.users import User, find_user
from nsorch.topology.mounts import Bind, Mount, Overlay
from nsorch.topology.namespaces import KINDS, Host, NamespaceSet, New, Shared
from nsorch.topology.presets import NOBODY, Isolation, is_plain, isolation_of
from nsorch.topology.privileges import CAPABILITIES, check_program
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.core.helper import Facts
    from nsorch.topology import WorkerSpec
    from nsorch.topology.privileges import Capabilities, IdRange

_RDONLY, _NOEXEC = 1, 8  # MOUNT_ATTR_*
_TTY_GROUP = 5  # of Debian, and of those who came after
_EVERY_ID = ((0, 0, (1 << 32) - 1),)
_OWN_ID = (((0, 0, 1),), ((0, 0, 1),))
_NOTHING = Own()
_EVERY_CAPABILITY = spawner_confinement.encode(Confinement(capabilities=((1 << len(CAPABILITIES)) - 1,) * 5))
_CGROUPS = "/sys/fs/cgroup"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen(kw_only=True, repr=False)
class Confined(Value):
    """What holds for a worker, and for every command in it.

    :ivar confinement: see :mod:`nsorch.core.spawner.confinement`; empty where nothing is taken away
    :ivar root: see :mod:`nsorch.core.spawner.rootfs`; empty where the host's files are left as they are
    :ivar own: what each process with a pid namespace of its own makes there, but for the mode of its ``/proc``
    :ivar user: of its commands, unless they say otherwise
    :ivar mapped: ranges of the uids and gids that exist in it
    :ivar id_maps: of a user namespace of its own
    :ivar env: of its commands, where none is given; None for the application's
    :ivar guarded: what runs in it may be hostile
    :ivar may_mount: its commands may mount something
    :ivar sysfs: it sees the host's files, but for the ``/sys`` of its network namespace
    :ivar seccomp: as the description has it
    """

    namespaces: NamespaceSet
    confinement: bytes = b""
    root: bytes = b""
    own: Own = _NOTHING
    user: User | None = None
    mapped: tuple[tuple[IdRange, ...], ...] = (_EVERY_ID, _EVERY_ID)
    id_maps: tuple[tuple[IdRange, ...], ...] = _OWN_ID
    env: dict[str, str] | None = None
    guarded: bool = False
    may_mount: bool = True
    sysfs: bool = False
    rootless: bool = False
    rootfs: str | Overlay | None = None
    seccomp: str | bytes | int | None = None
    time_offsets: tuple[tuple[str, int, int], ...] = ()
    domainname: str | None = None

    @property
    def unconfined_user(self) -> User | None:
        """Of commands that aren't confined: the supervisor's; where a user namespace of the worker's own hasn't got
        that, the first that it has."""
        if not isinstance(self.namespaces.user, New) or all(_inside(ranges) is not None for ranges in self.mapped):
            return None
        return _first(self.mapped)

    @property
    def unconfined(self) -> bytes:
        """The confinement of these commands: none, but that an exec takes its capabilities from who isn't uid 0."""
        if not isinstance(self.namespaces.user, New):
            return b""
        user = self.unconfined_user
        uid = _inside(self.mapped[0]) if user is None else user[0]
        return b"" if uid == 0 else _EVERY_CAPABILITY

    def own_of(self, make: int, proc: int, leaf: int) -> tuple[Any, ...]:
        """What a process makes that gets the namespaces *make*.

        :param proc: the mode of its ``/proc``
        :param leaf: descriptor of the cgroup that it begins in; without one its namespace would show the application's
        """
        cgroup = bool(make & CLONE_NEWCGROUP)
        cgroupfs = self.own.cgroupfs and cgroup and leaf >= 0
        return tuple(self.own._replace(proc=proc, cgroup=cgroup, cgroupfs=cgroupfs))


@functools.lru_cache(maxsize=64)
def _plain(namespaces: NamespaceSet, ids: tuple[tuple[IdRange, ...], ...], rootless: bool) -> Confined:
    """One for all alike."""
    guarded = namespaces.joins("mnt")
    return Confined(
        namespaces=namespaces,
        own=Own(guarded=guarded),
        mapped=ids,
        guarded=guarded,
        sysfs=_has_own_sys(namespaces),
        rootless=rootless,
    )


async def confined_of(spec: WorkerSpec, facts: Facts, *, rootless: bool) -> Confined:
    """Look up users, and read or build a seccomp program, in a thread where it may take its time.

    :raises SetupError: there is no such user, or no such file
    :raises TopologyError: the file is no program
    :raises PermissionDeniedError: a capability that the supervisor hasn't, or a user who isn't mapped
    :raises UnsupportedError: the default seccomp profile is asked for, and libseccomp is missing
    """
    if is_plain(spec):
        namespaces = NamespaceSet.parse(spec.namespaces, passive=spec.command is None)
        if spec.user is None and not isinstance(namespaces.user, New) and not isinstance(namespaces.cgroup, New):
            return _plain(namespaces, facts.ids, rootless)
    isolation = isolation_of(spec)
    user = None
    if spec.user is not None or spec.groups:
        user = await anyio.to_thread.run_sync(find_user, spec.user, spec.groups, isolation.rootfs, spec.name)
    own_user = isinstance(isolation.namespaces.user, New)
    id_maps = _id_maps(isolation, user, facts.ids, rootless=rootless) if own_user else _OWN_ID
    _check_outside(isolation, facts.ids, spec.name)
    mapped = id_maps if own_user else facts.ids
    if user is None and (isolation.drop_groups or isolation.uid_map or isolation.gid_map):
        user = _first(mapped)  # in a user namespace the supervisor's user may be nobody, and root on the host
    if user is not None:
        if own_user and not (spec.groups or isolation.gid_map):
            user = (*user[:2], tuple(gid for gid in user[2] if gid == user[1]))  # nobody asked for the others
        check_mapped(user, mapped, spec.name)
    if not own_user:
        _check_capabilities(isolation.required, facts.capabilities, spec.name)
    program = await _seccomp_program(isolation, spec.name)
    root = _root(isolation, rootless=rootless, own_user=own_user, passive=spec.command is None)
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
        sysfs=isolation.rootfs is None and _has_own_sys(isolation.namespaces),
        rootless=rootless,
        rootfs=isolation.rootfs,
        seccomp=spec.seccomp,
        time_offsets=tuple((clock, *_split(offset)) for clock, offset in spec.time_offsets.items()),
        domainname=spec.domainname,
    )


async def reconfined(before: Confined, spec: WorkerSpec, facts: Facts) -> Confined:
    """For another incarnation, maybe of another description, in the namespaces that are there.

    :raises NsorchError: as :func:`confined_of`
    """
    asked = spec.seccomp
    if isinstance(asked, int) and asked == before.seccomp:
        # The descriptor may be closed since, or another one's, and a pipe has been read.
        spec = evolve(spec, seccomp=spawner_confinement.decode(before.confinement).seccomp)
    now = await confined_of(spec, facts, rootless=before.rootless)
    if now.user is not None:
        check_mapped(now.user, before.mapped, spec.name)
    return evolve(
        before,
        confinement=now.confinement,
        may_mount=now.may_mount,
        user=now.user,
        env=now.env,
        seccomp=asked,
    )


def check_uppers(specs: Iterable[WorkerSpec], others: Iterable[WorkerSpec]) -> None:
    """
    :raises TopologyError: two would write to one upper directory, and the kernel promises neither what they see then
    """
    wanted = [(spec.name, upper) for spec in specs if (upper := _upper_of(spec))]
    if not wanted:
        return
    taken = {upper: spec.name for spec in others if (upper := _upper_of(spec))}
    for name, upper in wanted:
        if upper in taken:
            raise TopologyError(f'workers.{name}.rootfs.upper: "{upper}" is that of "{taken[upper]}" already')
        taken[upper] = name


def _upper_of(spec: WorkerSpec) -> str | None:
    rootfs = spec.rootfs
    return os.path.realpath(rootfs.upper) if isinstance(rootfs, Overlay) and rootfs.upper is not None else None


def check_mapped(user: User, mapped: tuple[tuple[IdRange, ...], ...], worker: str) -> None:
    """
    :raises PermissionDeniedError: the uid or a gid doesn't exist in the worker's user namespace
    """
    uid, gid, groups = user
    for kind, ranges, ids in (("uid", mapped[0], (uid,)), ("gid", mapped[1], (gid, *groups))):
        for number in ids:
            if not _covers(ranges, number):
                raise PermissionDeniedError(
                    f"become {kind} {number}",
                    worker=worker,
                    stage="user",
                    detail=f"it is not mapped in the user namespace, which has {_shown(ranges)}: one of the worker's "
                    "own has what uid_map and gid_map say; without root, more than the caller's own id needs "
                    "/etc/subuid, /etc/subgid and newuidmap",
                )


def _check_outside(isolation: Isolation, there: tuple[tuple[IdRange, ...], ...], worker: str) -> None:
    for kind, ranges, known in zip(("uid", "gid"), (isolation.uid_map, isolation.gid_map), there, strict=True):
        for _, outside, count in ranges:
            # The kernel wants each within one range of the namespace above (map_id_range_down() in user_namespace.c).
            if not _covers(known, outside, count):
                raise PermissionDeniedError(
                    f"map the {kind}s {_shown(((outside, outside, count),))} of outside",
                    worker=worker,
                    stage=f"{kind} map",
                    detail=f"the supervisor's user namespace has {_shown(known)}: without root, more than the caller's "
                    "own id needs /etc/subuid, /etc/subgid and newuidmap",
                )


def _first(mapped: tuple[tuple[IdRange, ...], ...]) -> User:
    uids, gids = mapped
    return uids[0][0], gids[0][0], ()


def _inside(ranges: tuple[IdRange, ...]) -> int | None:
    """What the supervisor's id, 0, is in a user namespace below its own."""
    return next((inside for inside, outside, _ in ranges if outside == 0), None)


def _covers(ranges: tuple[IdRange, ...], number: int, count: int = 1) -> bool:
    return any(first <= number and number + count <= first + there for first, _, there in ranges)


def _shown(ranges: tuple[IdRange, ...]) -> str:
    return ", ".join(str(first) if count == 1 else f"{first} to {first + count - 1}" for first, _, count in ranges)


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
    nobody = isolation.drop_groups and not rootless and all(_covers(ranges, NOBODY) for ranges in there)
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
        return await anyio.to_thread.run_sync(default_profile, held)
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
            return await anyio.to_thread.run_sync(_read_all, source)
        fd = await open_file(source, os.O_RDONLY)
        try:
            return await anyio.to_thread.run_sync(_read_all, fd)
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
    root = Root(mounts=tuple(map(_mount, isolation.mounts)), masked=masked, readonly=readonly)
    if rootfs is None:
        return root
    sysfs = Sysfs.READ_ONLY if isolation.readonly_sys else Sysfs.FRESH
    if not _has_own_sys(namespaces):
        sysfs = Sysfs.HOST
    overlay = None
    hosts_own = False
    if isinstance(rootfs, Overlay):
        upper = "" if rootfs.upper is None else os.path.abspath(rootfs.upper)
        overlay = (
            tuple(os.fsencode(os.path.abspath(layer)) for layer in rootfs.lower),
            os.fsencode(upper),
            os.fsencode(os.path.abspath(rootfs.work) if rootfs.work is not None else upper and f"{upper}.work"),
            rootfs.size or 0,
            rootless or own_user,
        )
    else:
        hosts_own = os.path.realpath(rootfs) == "/"
    return root._replace(
        directory=b"" if isinstance(rootfs, Overlay) else os.fsencode(os.path.abspath(rootfs)),
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


def has_own_proc(namespaces: NamespaceSet, *, rootless: bool) -> bool:
    """Whether its process mounts a ``/proc``: the supervisor's is there already, and that of a pid namespace that
    belongs to a user namespace above its own can't be had."""
    if not isinstance(namespaces.mnt, New) or isinstance(namespaces.pid, Shared):
        return False
    if isinstance(namespaces.pid, New):
        return True
    return not isinstance(namespaces.user, New) and not (rootless and isinstance(namespaces.pid, Host))


def _has_own_sys(namespaces: NamespaceSet) -> bool:
    """Whether it can mount a ``/sys``: in a mount namespace of its own, that of a network namespace that isn't the
    host's, nor of a user namespace above its own."""
    if not isinstance(namespaces.mnt, New) or isinstance(namespaces.net, Shared | Host):
        return False
    return isinstance(namespaces.net, New) or not isinstance(namespaces.user, New)


def _mount(mount: Mount) -> tuple[object, ...]:
    if isinstance(mount, Bind):
        return (
            True,
            os.fsencode(os.path.abspath(mount.src)),
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
