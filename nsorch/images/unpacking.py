"""From an image to a directory: beside it first, and under its name when all is done. Blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING

from nsorch.errors import ImageError
from nsorch.images.archive import damage
from nsorch.images.layers import Applier
from nsorch.images.layout import Image, Layout, split_digest
from nsorch.images.platforms import Platform
from nsorch.images.saved import Saved, find, find_packed
from nsorch.images.streams import Counted, decompressed
from nsorch.images.tree import Tree
from nsorch.images.values import Unpacked
from nsorch.topology.kinds import absolute

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

_FULL_MAP = 4294967295  # the ids of the first user namespace, /proc/self/uid_map


def unpack_blocking(
    image: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    tag: str | None,
    platform: str | None,
    squash: bool | None,
    max_size: int,
    cancelled: threading.Event,
) -> Unpacked:
    """See :func:`nsorch.unpack`; stops soon after *cancelled* is set."""
    source = absolute("image", os.fspath(image))
    target = os.path.realpath(os.fspath(directory))
    wanted = Platform.parse(platform)
    if not os.path.exists(source):
        raise ImageError(f"there is no {source}")
    squash = not _all_users() if squash is None else squash

    def unpack_image(folder: Layout | Saved) -> Unpacked:
        found = folder.image(tag, wanted, asked=platform is not None)
        with _beside(target) as (root, commit), _applying(root, squash=squash, max_size=max_size) as applier:
            for layer in found.layers:
                algorithm = split_digest(layer.diff_id)[0] if layer.diff_id else "sha256"
                with folder.layer(layer) as file, damage():
                    stream = Counted(decompressed(file), 2 * max_size, cancelled, whole=True, algorithm=algorithm)
                    applier.apply(stream)
                    stream.drain()
                if layer.diff_id and stream.digest() != layer.diff_id:
                    raise ImageError(
                        f"layer {layer.digest or layer.path} is damaged: its contents are not {layer.diff_id}"
                    )
            applier.finish()
            commit()
        return _done(target, applier, found)

    if os.path.isdir(source):
        folder = find(source)
        if folder is None:
            raise ImageError(f"{source} is no image: it has neither index.json nor manifest.json")
        return unpack_image(folder)
    _refuse_image(source)
    with _beside(target) as (root, commit), _applying(root, squash=squash, max_size=max_size) as applier:
        with open(source, "rb") as file, damage():
            applier.apply(Counted(decompressed(file), 2 * max_size, cancelled))
        packed = find_packed(f"/proc/self/fd/{root}")
        if packed is not None:
            return unpack_image(packed)
        if tag is not None:
            raise ImageError(f'there is no tag "{tag}": {source} is a tarball')
        applier.finish()
        commit()
    return _done(target, applier, None)


def _done(target: str, applier: Applier, image: Image | None) -> Unpacked:
    return Unpacked(
        directory=target,
        layers=1 if image is None else len(image.layers),
        entries=applier.entries,
        size=applier.size,
        config=None if image is None else image.config,
        digest="" if image is None else image.digest,
        notes=applier.notes,
    )


@contextlib.contextmanager
def _applying(root: int, *, squash: bool, max_size: int) -> Iterator[Applier]:
    tree = Tree(root)
    try:
        yield Applier(tree, squash=squash, max_size=max_size)
    finally:
        tree.close()


def _refuse_image(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ImageError(f"{path} is neither a directory nor a file")


def _all_users() -> bool:
    """Whether the caller may give files to anybody: root, and not of a user namespace with a few ids."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map") as file:
        return int(file.read().split()[2]) == _FULL_MAP


@contextlib.contextmanager
def _beside(target: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """An empty directory beside *target*, and what puts it there; without that, nothing is left of it.

    :raises OSError: *target* is there already, and not empty, or a mount point
    """
    parent, name = os.path.split(target)
    if os.path.lexists(target):
        if os.listdir(target):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        if _mount_of(target) != _mount_of(parent):
            raise OSError(errno.EBUSY, "It is a mount point, which can't be replaced; take a directory in it", target)
    try:
        room = tempfile.mkdtemp(prefix=f".{name[:50]}.", suffix=".unpacking", dir=parent)  # a name has up to 255 bytes
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, parent) from None
    root = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    committed = False

    def commit() -> None:
        nonlocal committed
        os.rename(room, target)
        committed = True

    try:
        yield root, commit
    finally:
        os.close(root)
        if not committed:
            _discard(room)


def _mount_of(path: str) -> str:
    """Its number: a bind mount has the device of what it is of."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            return next(line for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def _discard(room: str) -> None:
    os.chmod(room, 0o700)
    for _, names, _, fd in os.fwalk(room):
        for name in names:
            if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):  # else a link to one, which may lead outside
                os.chmod(name, 0o700, dir_fd=fd)
    shutil.rmtree(room)
