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
from nsorch.images.streams import Counted, decompressed
from nsorch.images.tree import Tree
from nsorch.images.values import Unpacked

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
    source = os.path.abspath(os.fspath(image))
    target = os.path.realpath(os.fspath(directory))
    wanted = Platform.parse(platform)
    if not os.path.exists(source):
        raise ImageError(f"there is no {source}")
    layout: Layout | None = None
    found: Image | None = None
    if os.path.isdir(source):
        if not Layout.found(source):
            raise ImageError(f"{source} is no image: it has neither index.json nor manifest.json")
        layout = Layout(source)
        found = layout.image(tag, wanted, asked=platform is not None)
    elif tag is not None:
        raise ImageError(f'there is no tag "{tag}": {source} is a tarball')
    with _beside(target) as (root, commit):
        tree = Tree(root)
        applier = Applier(tree, squash=not _all_users() if squash is None else squash, max_size=max_size)
        try:
            if layout is not None and found is not None:
                for layer in found.layers:
                    algorithm = split_digest(layer.diff_id)[0] if layer.diff_id else "sha256"
                    with layout.blob(layer.digest, layer.size) as file, damage():
                        stream = Counted(decompressed(file), 2 * max_size, cancelled, whole=True, algorithm=algorithm)
                        applier.apply(stream)
                        stream.drain()
                    if layer.diff_id and stream.digest() != layer.diff_id:
                        raise ImageError(f"layer {layer.digest} is damaged: its contents are not {layer.diff_id}")
            else:
                _refuse_image(source)
                with open(source, "rb") as file, damage():
                    applier.apply(Counted(decompressed(file), 2 * max_size, cancelled))
                _refuse_archive(root, source)
            applier.finish()
        finally:
            tree.close()
        commit()
    return Unpacked(
        directory=target,
        layers=1 if found is None else len(found.layers),
        entries=applier.entries,
        size=applier.size,
        config=None if found is None else found.config,
        digest="" if found is None else found.digest,
        notes=applier.notes,
    )


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

    :raises OSError: *target* is there already, and not empty
    """
    if os.path.lexists(target) and os.listdir(target):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
    parent, name = os.path.split(target)
    room = tempfile.mkdtemp(prefix=f".{name}.", suffix=".unpacking", dir=parent)
    root = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def commit() -> None:
        os.rename(room, target)

    try:
        yield root, commit
    except BaseException:
        _discard(room)
        raise
    finally:
        os.close(root)


def _discard(room: str) -> None:
    os.chmod(room, 0o700)
    for _, names, _, fd in os.fwalk(room):
        for name in names:
            if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):  # else a link to one, which may lead outside
                os.chmod(name, 0o700, dir_fd=fd)
    shutil.rmtree(room)


def _refuse_archive(root: int, source: str) -> None:
    """A tarball of an image, not of a root file system."""
    names = set(os.listdir(root))
    if {"oci-layout", "index.json"} <= names or ("manifest.json" in names and names & {"repositories", "blobs"}):
        raise ImageError(f"{source} is an archive of an image: unpack the archive with tar, then the image it has")
