"""What holds for a worker's commands once it is made: of most, the usual. What a stricter isolation asks of the clone
core is imported with the first that has one."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from nsorch.core.spawner.protocol import Own
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP
from nsorch.errors import PermissionDeniedError, TopologyError
from nsorch.topology.namespaces import Host, NamespaceSet, New, Shared
from nsorch.topology.plain import is_plain
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch import topology
    from nsorch.core.helper import Facts
    from nsorch.supervisor.users import User
    from nsorch.topology import IdRange, WorkerSpec

EVERY_ID = ((0, 0, (1 << 32) - 1),)
OWN_ID = (((0, 0, 1),), ((0, 0, 1),))
_NOTHING = Own()


@frozen(kw_only=True, eq=False, repr=False)
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
    :ivar work: the working directory of an overlay that its start will make
    """

    namespaces: NamespaceSet
    confinement: bytes = b""
    root: bytes = b""
    own: Own = _NOTHING
    user: User | None = None
    mapped: tuple[tuple[IdRange, ...], ...] = (EVERY_ID, EVERY_ID)
    id_maps: tuple[tuple[IdRange, ...], ...] = OWN_ID
    env: dict[str, str] | None = None
    guarded: bool = False
    may_mount: bool = True
    sysfs: bool = False
    rootless: bool = False
    rootfs: str | topology.Overlay | None = None
    seccomp: str | bytes | int | None = None
    time_offsets: tuple[tuple[str, int, int], ...] = ()
    domainname: str | None = None
    work: bytes = b""

    @property
    def unconfined_user(self) -> User | None:
        """Of commands that aren't confined: the supervisor's; where a user namespace of the worker's own hasn't got
        that, the first that it has."""
        if not isinstance(self.namespaces.user, New) or all(_inside(ranges) is not None for ranges in self.mapped):
            return None
        return first_of(self.mapped)

    @property
    def unconfined(self) -> bytes:
        """The confinement of these commands: none, but that an exec takes its capabilities from who isn't uid 0."""
        if not isinstance(self.namespaces.user, New):
            return b""
        user = self.unconfined_user
        uid = _inside(self.mapped[0]) if user is None else user[0]
        if uid == 0:
            return b""
        from nsorch.supervisor.confining import EVERY_CAPABILITY

        return EVERY_CAPABILITY

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
        sysfs=has_own_sys(namespaces),
        rootless=rootless,
    )


async def confined_of(spec: WorkerSpec, facts: Facts, *, rootless: bool, made: bool = False) -> Confined:
    """Look up users, and read or build a seccomp program, in a thread where it may take its time.

    :param made: its mounts are there, and what they came from may be gone
    :raises SetupError: there is no such user, or no such file
    :raises TopologyError: the file is no program
    :raises PermissionDeniedError: a capability that the supervisor hasn't, or a user who isn't mapped
    :raises UnsupportedError: the default seccomp profile is asked for, and libseccomp is missing
    """
    if is_plain(spec):
        namespaces = NamespaceSet.parse(spec.namespaces, passive=spec.command is None)
        if spec.user is None and not isinstance(namespaces.user, New) and not isinstance(namespaces.cgroup, New):
            return _plain(namespaces, facts.ids, rootless)
    from nsorch.supervisor.confining import confine

    return await confine(spec, facts, rootless=rootless, made=made)


async def reconfined(before: Confined, spec: WorkerSpec, facts: Facts) -> Confined:
    """For another incarnation, maybe of another description, in the namespaces that are there.

    :raises NsorchError: as :func:`confined_of`
    """
    asked = spec.seccomp
    if isinstance(asked, int) and asked == before.seccomp:
        # The descriptor may be closed since, or another one's, and a pipe has been read.
        from nsorch.core.spawner.confinement import decode

        spec = evolve(spec, seccomp=decode(before.confinement).seccomp)
    now = await confined_of(spec, facts, rootless=before.rootless, made=True)
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
    if rootfs is None or isinstance(rootfs, str) or rootfs.upper is None:
        return None
    return os.path.realpath(rootfs.upper)


def check_mapped(user: User, mapped: tuple[tuple[IdRange, ...], ...], worker: str) -> None:
    """
    :raises PermissionDeniedError: the uid or a gid doesn't exist in the worker's user namespace
    """
    uid, gid, groups = user
    for kind, ranges, ids in (("uid", mapped[0], (uid,)), ("gid", mapped[1], (gid, *groups))):
        for number in ids:
            if not covers(ranges, number):
                raise PermissionDeniedError(
                    f"become {kind} {number}",
                    worker=worker,
                    stage="user",
                    detail=f"it is not mapped in the user namespace, which has {shown(ranges)}: one of the worker's "
                    "own has what uid_map and gid_map say; without root, more than the caller's own id needs "
                    "/etc/subuid, /etc/subgid and newuidmap",
                )


def without_unmapped(user: User, mapped: tuple[tuple[IdRange, ...], ...]) -> User:
    """Without those groups of a group file that don't exist in the worker's user namespace: nobody asked for them."""
    uid, gid, groups = user
    return uid, gid, tuple(group for group in groups if group == gid or covers(mapped[1], group))


def first_of(mapped: tuple[tuple[IdRange, ...], ...]) -> User:
    uids, gids = mapped
    return uids[0][0], gids[0][0], ()


def _inside(ranges: tuple[IdRange, ...]) -> int | None:
    """What the supervisor's id, 0, is in a user namespace below its own."""
    return next((inside for inside, outside, _ in ranges if outside == 0), None)


def covers(ranges: tuple[IdRange, ...], number: int, count: int = 1) -> bool:
    return any(first <= number and number + count <= first + there for first, _, there in ranges)


def shown(ranges: tuple[IdRange, ...]) -> str:
    return ", ".join(str(first) if count == 1 else f"{first} to {first + count - 1}" for first, _, count in ranges)


def has_own_proc(namespaces: NamespaceSet, *, rootless: bool) -> bool:
    """Whether its process mounts a ``/proc``: the supervisor's is there already, and that of a pid namespace that
    belongs to a user namespace above its own can't be had."""
    if not isinstance(namespaces.mnt, New) or isinstance(namespaces.pid, Shared):
        return False
    if isinstance(namespaces.pid, New):
        return True
    return not isinstance(namespaces.user, New) and not (rootless and isinstance(namespaces.pid, Host))


def has_own_sys(namespaces: NamespaceSet) -> bool:
    """Whether it can mount a ``/sys``: in a mount namespace of its own, that of a network namespace that isn't the
    host's, nor of a user namespace above its own."""
    if not isinstance(namespaces.mnt, New) or isinstance(namespaces.net, Shared | Host):
        return False
    return isinstance(namespaces.net, New) or not isinstance(namespaces.user, New)
