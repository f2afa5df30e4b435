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
from typing import TYPE_CHECKING, Any, NamedTuple

from . import mountapi, syscalls
from .calls import NOW
from .devices import fill_dev
from .hiding import hide
from .mountapi import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY
from .stages import StageError, stage
from .syscalls import MNT_DETACH, MS_SHARED, umount

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from .calls import Calls

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
    create: bool = False  #: missing mount points are made; in the host's own file system only on a tmpfs of these
    read_only: bool = False
    no_devices: bool = False  #: device nodes that lie in it are none
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

    def __init__(self, data: bytes, do: Calls = NOW) -> None:
        self.root = Root(*marshal.loads(data))
        self.do = do
        self.fds: list[int] = []
        self.layers: list[int] = []  #: of an overlay: the lower ones, then the upper and the working directory
        self.binds: dict[bytes, int] = {}
        root = self.root
        try:
            if root.directory:
                with do.stage("rootfs", os.fsdecode(root.directory)):
                    self.top = self._open_folder(root.directory)
                if root.create and do.at_once:
                    _make_points(root, self.top)
            elif root.overlay is not None:
                lower, upper, work, *_ = root.overlay
                for layer in (*lower, *((upper, work) if upper else ())):
                    with stage("rootfs", os.fsdecode(layer)):
                        if layer == work:
                            _make_folder(work)
                        self.layers.append(self._open_folder(layer))
                self.top = self.layers[0]
                if upper and os.fstat(self.layers[-1]).st_dev != os.fstat(self.layers[-2]).st_dev:
                    raise StageError("rootfs", errno.EXDEV, os.fsdecode(work))
            for is_bind, source, *_ in root.mounts:
                if is_bind:
                    with do.stage("mount source", os.fsdecode(source)):
                        self.binds[source] = self.add(do.open(source))
        except StageError:
            self.close()
            raise

    def _open_folder(self, path: bytes) -> int:
        return self.add(self.do.open(path, os.O_PATH | os.O_DIRECTORY))

    def add(self, fd: int) -> int:
        """Have *fd* closed with the others."""
        self.fds.append(fd)
        return fd

    def close(self) -> None:
        for fd in self.fds:
            self.do.close(fd)
        self.fds.clear()


def make_work(data: bytes) -> None:
    """Make the working directory of an overlay where it is missing, for who owns the upper one: that may be who has to
    write to it from a user namespace, in which nothing can be given to them.

    :raises StageError: naming the directory
    """
    overlay = Root(*marshal.loads(data)).overlay if data else None
    if overlay is None or not overlay[1]:
        return
    _, upper, work, *_ = overlay
    with stage("rootfs", os.fsdecode(upper)):
        owner = os.stat(upper)
    with stage("rootfs", os.fsdecode(work)):
        if _make_folder(work):
            with contextlib.suppress(OSError):  # an ordinary user's may be somebody else's
                os.chown(work, owner.st_uid, owner.st_gid)


def _make_folder(path: bytes) -> bool:
    """Whether it was missing."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    return True


def build(sources: Sources) -> dict[bytes, int]:
    """Make the root that is asked for the root of the mount namespace, of the caller's own, that it has just entered.

    What has to wait for the pid namespace is the placeholder at ``/proc``: the helper's own, by which the kernel sees
    that a new one shows nothing more (mount_too_revealing() in fs/namespace.c).

    :return: descriptors of what was mounted, by path: those of *sources*
    :raises StageError: naming the mount; the mount namespace is to be given up
    """
    root, do = sources.root, sources.do
    if not root.directory and root.overlay is None:
        return _fill(sources, sources.add(do.open(b"/", os.O_PATH | os.O_DIRECTORY)))
    top = _make_top(sources)
    own = _fill(sources, top)
    with do.stage("pivot_root"):
        do.fchdir(top)
        do.pivot_root(b".", b".")
        # The old root lies on the new one.
        do.umount(b".", MNT_DETACH)
        do.chdir(b"/")
    return own


def _make_top(sources: Sources) -> int:
    """Attach the new root where it lies in the old one, as pivot_root(2) wants it. Returns its descriptor."""
    root, do = sources.root, sources.do
    with do.stage("rootfs"):
        if root.overlay is None:
            top = sources.add(do.clone_tree(sources.top, recursive=True))
        else:
            top = sources.add(_make_overlay(sources))
            if root.read_only:
                _make_points(root, top)
        attributes = (ATTR_RDONLY if root.read_only else 0) | (ATTR_NODEV if root.no_devices else 0)
        if attributes:
            do.set_attributes(top, attributes, recursive=True)
        do.attach(top, sources.top)
    return top


def _make_overlay(sources: Sources) -> int:
    """By mount(2), because fsconfig(2) takes no more than 255 bytes of layers; from a directory in which they have
    short names, which don't tell the worker where they lie on the host."""
    assert sources.root.overlay is not None
    lower, upper, work, size, userxattr = sources.root.overlay
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
        if upper and not sources.root.read_only and os.fstatvfs(merged).f_flag & os.ST_RDONLY:
            # All that the kernel says of a working directory that it can't use: ovl_get_workdir() in overlayfs/super.c.
            raise StageError("overlay", errno.EACCES, os.fsdecode(work))
        return mountapi.clone_tree(merged, recursive=False)
    finally:
        os.close(merged)
        umount(".", MNT_DETACH)
        os.chdir("/")


def points(root: Root) -> Iterator[tuple[bytes, bool]]:
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
    for point, is_folder in points(root):
        if not any(point.startswith(other.rstrip(b"/") + b"/") for other in made):
            with stage(f"mount {os.fsdecode(point)}"), contextlib.suppress(OSError):
                os.close(_open_point(top, point, folder=is_folder, create=True))
        made.append(point)


def _fill(sources: Sources, top: int) -> dict[bytes, int]:
    root, do = sources.root, sources.do
    own: dict[bytes, int] = {}  # what is seen at them, wherever that is now
    empty: set[int] = set()  # device numbers of file systems that are nobody else's

    def put(mount: int, point: bytes, *, folder: bool = True, fresh: bool = False) -> None:
        with do.stage("mount point", os.fsdecode(point)):
            target = _open_point(top, point, folder=folder, create=root.create, within=empty, do=do)
        with do.stage(f"mount {os.fsdecode(point)}"), do.closing(target):
            do.require_kind(target, folder=folder)
            covered = [path for path, fd in own.items() if do.is_same(target, fd)]
            do.attach(mount, target)
            own.update(dict.fromkeys(covered, mount))
            if fresh and do.at_once:
                empty.add(os.fstat(mount).st_dev)

    if root.directory or root.overlay:
        own[b"/proc"] = sources.add(_clone(do, b"/proc", recursive=False))
        put(own[b"/proc"], b"/proc")
    if root.dev:
        with do.stage("mount /dev"):
            dev = do.new_mount(b"tmpfs", ((b"mode", b"755"), (b"size", b"64k")), ATTR_NOSUID)
        own[b"/dev"] = sources.add(dev)
        put(own[b"/dev"], b"/dev", fresh=True)
        fill_dev(do, own[b"/dev"], mqueue=root.mqueue, tty_group=root.tty_group)
    if root.sysfs:
        own[b"/sys"] = _make_sysfs(sources, root.sysfs)
        put(own[b"/sys"], b"/sys")
    if root.hosts and os.path.exists("/etc/hosts"):
        put(sources.add(_clone(do, b"/etc/hosts", recursive=False)), b"/etc/hosts", folder=False)
    for is_bind, *values in root.mounts:
        if is_bind:
            src, dst, read_only, recursive, shared = values
            with do.stage("bind", os.fsdecode(src)):
                mount = sources.add(do.clone_tree(sources.binds[src], recursive=recursive))
            with do.stage(f"mount {os.fsdecode(dst)}"):
                do.set_attributes(
                    mount,
                    ATTR_RDONLY if read_only else 0,
                    propagation=MS_SHARED if shared else 0,
                    recursive=recursive,
                )
            put(mount, dst, folder=do.is_folder(mount, src))
        else:
            dst, options, attributes = values
            with do.stage(f"mount {os.fsdecode(dst)}"):
                mount = do.new_mount(b"tmpfs", options, attributes | ATTR_NOSUID | ATTR_NODEV)
            put(sources.add(mount), dst, fresh=True)
    hide(do, root.masked, root.readonly, top, own)
    return own


def _clone(do: Calls, path: bytes, *, recursive: bool) -> int:
    with do.stage("mount source", os.fsdecode(path)), do.closing(do.open(path)) as fd:
        return do.clone_tree(fd, recursive=recursive)


def _make_sysfs(sources: Sources, how: int) -> int:
    do = sources.do
    if how == Sysfs.HOST:
        mount = sources.add(_clone(do, b"/sys", recursive=True))
        with do.stage("mount /sys"):
            do.set_attributes(mount, ATTR_RDONLY, recursive=True)
        return mount
    attributes = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | (ATTR_RDONLY if how == Sysfs.READ_ONLY else 0)
    with do.stage("mount /sys"):
        return sources.add(do.new_mount(b"sysfs", (), attributes))


def _open_point(
    top: int, path: bytes, *, folder: bool, create: bool, within: Container[int] = (), do: Calls = NOW
) -> int:
    """Open a mount point inside of *top*, with O_PATH; made where it is missing, and *create* allows it, or it lies on
    a device of *within*.

    A link that leads nowhere is followed inside of *top*, and what it leads to is made.
    """
    for _ in range(_MOST_LINKS):
        try:
            return do.open_inside(top, path)
        except FileNotFoundError:
            if not create and not within:
                raise
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        parent = _open_point(top, above or b"/", folder=True, create=create, within=within)
        try:
            if not create and os.fstat(parent).st_dev not in within:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
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
