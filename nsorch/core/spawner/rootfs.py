"""The file systems of a worker: its root, what is mounted in it, and what of it is hidden.

Everything goes by descriptors. A mount is made attached nowhere, its target is opened inside the new root by openat2
with RESOLVE_IN_ROOT, and what that descriptor is of is where it goes: a symbolic link in a hostile root file system
leads nowhere else, also one that is put there meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from . import mountapi, syscalls
from .devices import fill_dev
from .hiding import hide
from .mountapi import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from .stages import StageError, stage
from .syscalls import MNT_DETACH, MS_SHARED, pivot_root, umount

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_MOST_LINKS = 40


class Sysfs:
    """What ``/sys`` is."""

    NONE = 0  #: what is there
    FRESH = 1  #: that of the worker's network namespace
    READ_ONLY = 2  #: the same, not to be written to
    HOST = 3  #: the host's, not to be written to: the network namespace is its


class Root(NamedTuple):
    """Travels as bytes, see :func:`encode`.

    Binds are ``(True, src, dst, read_only, recursive, shared)``, tmpfs mounts ``(False, dst, options, attributes)``.
    """

    directory: bytes = b""  #: the new root, if any
    overlay: tuple[tuple[bytes, ...], bytes, bytes, int, bool] | None = None  #: lower, upper, work, size, userxattr
    create: bool = False  #: missing mount points are made; never in the host's own file system
    read_only: bool = False
    mounts: tuple[tuple[Any, ...], ...] = ()
    dev: bool = False
    mqueue: bool = False
    tty_group: int = -1
    sysfs: int = Sysfs.NONE
    hosts: bool = False
    masked: tuple[bytes, ...] = ()  #: without those below a /proc that is not there yet
    readonly: tuple[bytes, ...] = ()


def encode(root: Root) -> bytes:
    return b"" if root == Root() else marshal.dumps(tuple(root))


class Sources:
    """What the mounts of a worker come from, opened while the caller is still who it was: in a user namespace it may
    become somebody who can't reach them. Close it.

    :raises StageError: naming what can't be opened
    """

    def __init__(self, data: bytes) -> None:
        self.root = Root(*marshal.loads(data))
        self.fds: list[int] = []
        self.layers: list[int] = []  #: of an overlay: the lower ones, then the upper and the working directory
        self.binds: dict[bytes, int] = {}
        root = self.root
        try:
            if root.directory:
                with stage("rootfs", os.fsdecode(root.directory)):
                    self.top = self._open_folder(root.directory)
                if root.create:
                    _make_points(root, self.top)
            elif root.overlay is not None:
                lower, upper, work, *_ = root.overlay
                for layer in (*lower, *((upper, work) if upper else ())):
                    with stage("rootfs", os.fsdecode(layer)):
                        if layer == work:
                            _make_folder(work)
                        self.layers.append(self._open_folder(layer))
                self.top = self.layers[0]
            for is_bind, source, *_ in root.mounts:
                if is_bind:
                    with stage("mount source", os.fsdecode(source)):
                        self.binds[source] = self.add(os.open(source, os.O_PATH | os.O_CLOEXEC))
        except StageError:
            self.close()
            raise

    def _open_folder(self, path: bytes) -> int:
        return self.add(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def add(self, fd: int) -> int:
        """Have *fd* closed with the others."""
        self.fds.append(fd)
        return fd

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def _make_folder(path: bytes) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)


def build(sources: Sources) -> None:
    """Make the root that is asked for the root of the mount namespace, of the caller's own, that it has just entered.

    What has to wait for the pid namespace is the placeholder at ``/proc``: the helper's own, by which the kernel sees
    that a new one shows nothing more (mount_too_revealing() in fs/namespace.c).

    :raises StageError: naming the mount; the mount namespace is to be given up
    """
    root = sources.root
    if not root.directory and root.overlay is None:
        _fill(sources, sources.add(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
        return
    top = _make_top(sources)
    _fill(sources, top)
    with stage("pivot_root"):
        os.fchdir(top)
        pivot_root(".", ".")
        # The old root lies on the new one.
        umount(".", MNT_DETACH)
        os.chdir("/")


def _make_top(sources: Sources) -> int:
    """Attach the new root where it lies in the old one, as pivot_root(2) wants it. Returns its descriptor."""
    root = sources.root
    with stage("rootfs"):
        if root.overlay is None:
            top = sources.add(mountapi.clone_tree(sources.top, recursive=True))
        else:
            top = sources.add(_make_overlay(sources))
            if root.read_only:
                _make_points(root, top)
        if root.read_only:
            mountapi.set_attributes(top, ATTR_RDONLY, recursive=True)
        mountapi.attach(top, sources.top)
    return top


def _make_overlay(sources: Sources) -> int:
    """By mount(2), because fsconfig(2) takes no more than 255 bytes of layers; from a directory in which they have
    short names, which don't tell the worker where they lie on the host."""
    assert sources.root.overlay is not None
    lower, upper, _, size, userxattr = sources.root.overlay
    options = ((b"mode", b"755"), *(((b"size", b"%d" % size),) if size else ()))
    folder = sources.add(mountapi.new_mount(b"tmpfs", options))
    # overlayfs wants attached mounts. On "/" it hides nothing from those whose root lies below it.
    mountapi.attach(folder, sources.add(os.open("/", os.O_PATH | os.O_CLOEXEC)))
    os.fchdir(folder)
    below = [str(number) for number in range(len(lower))]
    for name, fd in zip((*below, "upper", "work"), sources.layers, strict=False):
        os.symlink(f"/proc/self/fd/{fd}", name)
    for name in ("merged", "points") if upper else ("merged", "points", "upper", "work"):
        os.mkdir(name, 0o755)
    if userxattr:
        # The caller may be nobody in the layers' directories: what is missing there comes from below them.
        _make_points(sources.root, sources.add(os.open("points", os.O_PATH | os.O_CLOEXEC)))
        below.append("points")
    # In a user namespace trusted.* attributes can't be had.
    last = ",userxattr" if userxattr else ""
    syscalls.mount("none", "merged", "overlay", 0, f"lowerdir={':'.join(below)},upperdir=upper,workdir=work{last}")
    merged = os.open("merged", os.O_PATH | os.O_CLOEXEC)
    try:
        return mountapi.clone_tree(merged, recursive=False)
    finally:
        os.close(merged)
        umount(".", MNT_DETACH)
        os.chdir("/")


def _points(root: Root) -> Iterator[tuple[bytes, bool]]:
    """Where something is mounted, and whether that is a directory."""
    yield b"/proc", True
    if root.dev:
        yield b"/dev", True
    if root.sysfs:
        yield b"/sys", True
    if root.hosts:
        yield b"/etc/hosts", False
    for mount in root.mounts:
        yield (mount[2], os.path.isdir(mount[1])) if mount[0] else (mount[1], True)


def _make_points(root: Root, top: int) -> None:
    """Those in the root file system itself, before it is read-only or the caller somebody else."""
    made: list[bytes] = []
    for point, is_folder in _points(root):
        if not any(point.startswith(other.rstrip(b"/") + b"/") for other in made):
            with stage(f"mount {os.fsdecode(point)}"), contextlib.suppress(OSError):
                os.close(_open_point(top, point, folder=is_folder, create=True))
        made.append(point)


def _fill(sources: Sources, top: int) -> None:
    root = sources.root
    own: dict[bytes, int] = {}  # what is seen at them, wherever that is now

    def put(mount: int, point: bytes, *, folder: bool = True) -> None:
        with stage("mount point", os.fsdecode(point)):
            target = _open_point(top, point, folder=folder, create=root.create)
        with stage(f"mount {os.fsdecode(point)}"):
            try:
                there = os.fstat(target)
                if stat.S_ISDIR(there.st_mode) != folder:
                    number = errno.ENOTDIR if folder else errno.EISDIR
                    raise OSError(number, os.strerror(number))
                covered = [path for path, fd in own.items() if os.path.samestat(there, os.fstat(fd))]
                mountapi.attach(mount, target)
                own.update(dict.fromkeys(covered, mount))
            finally:
                os.close(target)

    if root.directory or root.overlay:
        own[b"/proc"] = sources.add(_clone("/proc", recursive=False))
        put(own[b"/proc"], b"/proc")
    if root.dev:
        with stage("mount /dev"):
            dev = mountapi.new_mount(b"tmpfs", ((b"mode", b"755"), (b"size", b"64k")), ATTR_NOSUID)
        own[b"/dev"] = sources.add(dev)
        put(own[b"/dev"], b"/dev")
        fill_dev(own[b"/dev"], mqueue=root.mqueue, tty_group=root.tty_group)
    if root.sysfs:
        own[b"/sys"] = sources.add(_make_sysfs(root.sysfs))
        put(own[b"/sys"], b"/sys")
    if root.hosts and os.path.exists("/etc/hosts"):
        put(sources.add(_clone("/etc/hosts", recursive=False)), b"/etc/hosts", folder=False)
    for is_bind, *values in root.mounts:
        if is_bind:
            src, dst, read_only, recursive, shared = values
            with stage(f"mount {os.fsdecode(dst)}"):
                mount = sources.add(mountapi.clone_tree(sources.binds[src], recursive=recursive))
                mountapi.set_attributes(
                    mount,
                    ATTR_RDONLY if read_only else 0,
                    propagation=MS_SHARED if shared else 0,
                    recursive=recursive,
                )
            put(mount, dst, folder=stat.S_ISDIR(os.fstat(mount).st_mode))
        else:
            dst, options, attributes = values
            with stage(f"mount {os.fsdecode(dst)}"):
                mount = mountapi.new_mount(b"tmpfs", options, attributes | ATTR_NOSUID | ATTR_NODEV)
            put(sources.add(mount), dst)
    hide(root.masked, root.readonly, top, own)


def _clone(path: str, *, recursive: bool) -> int:
    with stage("mount source", path):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return mountapi.clone_tree(fd, recursive=recursive)
        finally:
            os.close(fd)


def _make_sysfs(how: int) -> int:
    if how == Sysfs.HOST:
        mount = _clone("/sys", recursive=True)
        with stage("mount /sys"):
            mountapi.set_attributes(mount, ATTR_RDONLY, recursive=True)
        return mount
    attributes = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | (ATTR_RDONLY if how == Sysfs.READ_ONLY else 0)
    with stage("mount /sys"):
        return mountapi.new_mount(b"sysfs", (), attributes)


def _open_point(top: int, path: bytes, *, folder: bool, create: bool) -> int:
    """Open a mount point inside of *top*, with O_PATH; made where it is missing, and *create* allows it.

    A link that leads nowhere is followed inside of *top*, and what it leads to is made.
    """
    for _ in range(_MOST_LINKS):
        try:
            return mountapi.openat2(top, path, os.O_PATH, _INSIDE)
        except FileNotFoundError:
            if not create:
                raise
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        parent = _open_point(top, above or b"/", folder=True, create=True)
        try:
            if folder:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
        except FileExistsError:
            with contextlib.suppress(OSError):  # somebody made it meanwhile
                path = os.path.join(above or b"/", os.readlink(name, dir_fd=parent))
        finally:
            os.close(parent)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
