"""Mounts of the helpers and of the processes between them and a command."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

from .calls import NOW
from .hiding import mount_cgroups, mount_own_proc
from .mountapi import attach, clone_tree
from .stages import stage
from .syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    mount,
    pivot_root,
    setns,
    umount,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .calls import Calls
    from .protocol import Own

# Of what shows the kernel's state.
_PROC_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC
_HOSTS = "/etc/hosts"


def make_own(own: Own, do: Calls = NOW, mounted: Mapping[bytes, int] = MappingProxyType({})) -> None:
    """The first steps of a child, in its cgroup and its pid namespace.

    :param mounted: descriptors of what was just mounted, by path
    """
    if own.cgroup:
        with do.stage("unshare", "cgroup"):
            do.unshare(CLONE_NEWCGROUP)
    if own.proc >= 3:
        with do.stage("mount /proc"):
            _part(do, own.proc)
    if own.cgroupfs:  # without a /proc, instead of the one that an earlier process has left in this mount namespace
        mount_cgroups(do, replace=own.proc in (0, 2))
    if own.proc and own.guarded:
        mount_own_proc(do, own.masked, own.readonly, mounted, replace=own.proc < 3)
    elif own.proc:
        _mount_proc(do, replace=own.proc == 2)


def _mount_proc(do: Calls, *, replace: bool) -> None:
    with do.stage("mount /proc"):
        if replace:
            # The one of the pid namespace that is gone. In a nested user namespace it may be locked: mount above it.
            with do.optional():
                do.umount(b"/proc", MNT_DETACH)
        do.mount("proc", "/proc", "proc", _PROC_FLAGS)


def _part(do: Calls, how: int) -> None:
    """Leave a passive worker's mount namespace for one in which ``/proc`` may be another."""
    if how == 3:
        # A passive worker keeps its mounts: what a command mounts must reach them, its /proc must not. So both mount
        # namespaces are peers, but for /proc.
        do.mount("", "/", "", MS_REC | MS_SHARED)
    do.unshare(CLONE_NEWNS)
    do.mount("", "/proc", "", MS_PRIVATE)


def mount_sys(do: Calls) -> None:
    """On the host's ``/sys``, that of the network namespace. A container that masks parts of its own forbids that, as
    the kernel sees it in a user namespace: then the host's stays."""
    with do.optional():
        do.mount("sysfs", "/sys", "sysfs", _PROC_FLAGS)


def leave_chroot() -> None:
    """Where the caller, in a mount namespace of its own, is below a chroot(2): make what it sees the root of that
    namespace, to which setns(2) returns."""
    facts = os.open("/proc/self/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    seen = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    setns(own, CLONE_NEWNS)
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not os.path.samestat(os.fstat(seen), os.fstat(top)) or _mount_of(seen, facts) != _mount_of(top, facts):
        mount("", "/", "", MS_REC | MS_PRIVATE)
        tree = clone_tree(seen, recursive=True)
        attach(tree, seen)
        os.fchdir(tree)
        pivot_root(".", ".")
        umount(".", MNT_DETACH)
        os.chdir("/")
        os.close(tree)
    for fd in (facts, own, seen, top):
        os.close(fd)


def _mount_of(fd: int, facts: int) -> bytes:
    """Its number: one file may be seen by several mounts.

    :param facts: descriptor of ``/proc/self/fdinfo``
    """
    with open(os.open(str(fd), os.O_RDONLY | os.O_CLOEXEC, dir_fd=facts), "rb") as file:
        return next(line for line in file if line.startswith(b"mnt_id:"))


def mount_home() -> int:
    """Give the spawner its own view: nothing propagates, /proc is its pid namespace's, the hosts file is the lab's.

    The hosts file lies on a tmpfs that is mounted nowhere but at /etc/hosts, read-only, where all workers' mount
    namespaces have it from. Returns a descriptor to write it through, or -1 on a host without /etc/hosts.
    """
    with stage("mount propagation"):
        leave_chroot()
        mount("", "/", "", MS_REC | MS_PRIVATE)
    hosts = -1
    if os.path.exists(_HOSTS):
        with stage("hosts file"):
            mount("nsorch", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
            hosts = os.open("/proc/hosts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            mount("/proc/hosts", _HOSTS, "", MS_BIND)
            mount("", _HOSTS, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
            umount("/proc", MNT_DETACH)
    _mount_proc(NOW, replace=False)
    return hosts
