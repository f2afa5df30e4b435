"""Applying a layer: entries replace what is there, whiteouts remove it.

See https://github.com/opencontainers/image-spec/blob/main/layer.md: a whiteout ``.wh.name`` hides *name* of the layers
below, ``.wh..wh..opq`` all that these have in its directory; neither what the layer itself brings.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import math
import os
import stat
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from nsorch.errors import ImageError, printable
from nsorch.images.archive import entries, extents
from nsorch.images.tree import split

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable

    from nsorch.images.tree import Parts, Tree

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_AUFS = ".wh..wh."  # what is aufs's own begins so, such as the folder .wh..wh.plnk of files that have several names
_CHUNK = 1 << 18
_XATTR = "SCHILY.xattr."  # of pax(1) headers, as star, GNU tar and Go write them
_ENCODED_XATTR = "LIBARCHIVE.xattr."  # as bsdtar does, beside the other: see archive_write_set_format_pax.c
# The kernel's, of an overlay: in a lower directory they would hide or redirect files.
_OVERLAYS = ("trusted.overlay.", "user.overlay.")
_LATEST = 1 << 33  # seconds: what any file system here can store
_NOBODY = (1 << 32) - 1


class Applier:
    """Applies one layer after the other to a tree; :meth:`finish` sets what had to wait."""

    def __init__(self, tree: Tree, *, squash: bool, max_size: int) -> None:
        self._tree = tree
        self._squash = squash
        self._max_size = max_size
        self._folders: dict[Parts, tarfile.TarInfo | None] = {}  # metadata that is set when nothing is made below
        self._left_out: dict[str, list[str]] = {}
        self._omitted: set[Parts] = set()  # device nodes that were left out
        self._fresh: set[Parts] = set()  # what this layer has made, with all that it is in
        self.entries = 0
        self.size = 0

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in self._left_out.items()
        )

    def _note(self, what: str, name: str) -> None:
        self._left_out.setdefault(printable(what), []).append(printable(name))

    def apply(self, stream: Any) -> None:
        """
        :raises ImageError: an entry leads outside, or the archive is damaged
        :raises OSError: the file system refuses
        """
        self._fresh = set()
        for info, contents in entries(stream):
            self.entries += 1
            parts = split(info.name)
            try:
                self._take(info, parts, contents)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE):
                    raise
                raise ImageError(f"entry {info.name!r}", entry=info.name, detail=exc.strerror or str(exc)) from None
            except (ValueError, OverflowError) as exc:
                if isinstance(exc, ImageError):
                    raise
                raise ImageError(f"entry {info.name!r}", entry=info.name, detail=str(exc)) from None
        self._remove_aufs()

    def _remove_aufs(self) -> None:
        """What is aufs's own is no part of the image; hard links to files in there are."""
        self._fresh = set()
        for name in os.listdir(self._tree.root):
            if name.startswith(_AUFS):
                self._tree.close()
                self._forget((name,), itself=True)
                self._tree.clear(self._tree.root, name)

    def _take(self, info: tarfile.TarInfo, parts: Parts, contents: IO[bytes] | None) -> None:
        if not parts:
            if not info.isdir():
                raise ImageError(f"entry {info.name!r} stands for the root, and is no directory", entry=info.name)
            self._folders[()] = info
            return
        name = parts[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(info.name, parts)
            return
        folder, above = self._tree.folder(parts[:-1], info.name, make=True)
        where = (*above, name)
        if info.isdir():
            self._make_folder(info, folder, name, where)
        elif info.islnk():
            if not self._link(info, parts, where):
                self._omitted.add(where)
                return
        else:
            self._tree.clear(folder, name)
            if contents is not None:
                self._write(info, folder, name, contents)
            elif info.issym():
                os.symlink(info.linkname, name, dir_fd=folder)
            elif info.isfifo() or info.isdev():
                if not self._make_node(info, folder, name):
                    self._omitted.add(where)
                    return
            else:
                raise ImageError(f"entry {info.name!r} is of the unknown type {info.type!r}", entry=info.name)
            self._finish_entry(info, folder, name)
        self._touch(where)

    def _touch(self, where: Parts) -> None:
        self._omitted.discard(where)
        while where and where not in self._fresh:
            self._fresh.add(where)
            where = where[:-1]

    def _whiteout(self, entry: str, parts: Parts) -> None:
        hidden = parts[-1].removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise ImageError(f"entry {entry!r} is a whiteout of no file", entry=entry)
        try:
            folder, above = self._tree.folder(parts[:-1], entry, make=False)
        except FileNotFoundError:
            return  # of a directory that no layer below has
        if parts[-1] == _OPAQUE:
            self._forget(above, itself=False)
            self._tree.purge_below(folder, above, self._fresh)
        elif not parts[-1].startswith(_AUFS):
            self._forget((*above, hidden), itself=True)
            self._tree.purge(folder, hidden, (*above, hidden), self._fresh)

    def _forget(self, where: Parts, *, itself: bool) -> None:
        """What the layers below said of directories that are hidden from here on."""
        for parts in [parts for parts in self._folders if parts[: len(where)] == where and parts not in self._fresh]:
            if itself or parts != where:
                del self._folders[parts]

    def _make_folder(self, info: tarfile.TarInfo, folder: int, name: str, where: Parts) -> None:
        try:
            there = stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
        except FileNotFoundError:
            there = False
        if not there:
            self._tree.clear(folder, name)
            os.mkdir(name, 0o700, dir_fd=folder)
        # A later layer may write into one that is read-only: all have their modes at the end.
        self._folders[where] = info

    def _link(self, info: tarfile.TarInfo, parts: Parts, where: Parts) -> bool:
        """False if it is one to a device node that was left out."""
        target = split(info.linkname, info.name)
        if not target:
            raise ImageError(f"entry {info.name!r} is a hard link to the root", entry=info.name)
        try:
            source, above = self._tree.folder(target[:-1], info.name, make=False)
        except FileNotFoundError:
            source, above = -1, ()
        itself = (*above, target[-1]) == where
        source = os.dup(source) if source >= 0 else -1
        try:
            folder, _ = self._tree.folder(parts[:-1], info.name, make=True)
            if source >= 0 and (*above, target[-1]) in self._omitted:
                self._tree.clear(folder, parts[-1])
                self._note("device nodes left out", info.name)
                return False
            if source < 0 or not _is_file(source, target[-1]):
                raise ImageError(
                    f"entry {info.name!r} is a hard link to {info.linkname!r}, which isn't there", entry=info.name
                )
            if not itself:
                self._tree.clear(folder, parts[-1])
                os.link(target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            return True
        finally:
            if source >= 0:
                os.close(source)

    def _write(self, info: tarfile.TarInfo, folder: int, name: str, contents: IO[bytes]) -> None:
        parts = extents(info)
        size = sum(length for _, length in parts)  # holes take no room
        if self.size + size > self._max_size:
            raise ImageError(f"entry {info.name!r}: the image is larger than {self._max_size} bytes", entry=info.name)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(fd, "wb", buffering=0) as file:
            for offset, length in parts:
                file.seek(offset)
                if not _copy(contents, file, length):
                    raise ImageError(f"entry {info.name!r} is cut off", entry=info.name)
            file.truncate(info.size)
        self.size += size

    def _make_node(self, info: tarfile.TarInfo, folder: int, name: str) -> bool:
        if info.isfifo():
            os.mkfifo(name, 0o600, dir_fd=folder)
            return True
        if self._squash:
            self._note("device nodes left out", info.name)
            return False
        kind = stat.S_IFCHR if info.ischr() else stat.S_IFBLK
        try:
            os.mknod(name, kind | 0o600, os.makedev(info.devmajor, info.devminor), dir_fd=folder)
        except PermissionError:
            self._note("device nodes left out, which the kernel forbids", info.name)
            return False
        return True

    def _finish_entry(self, info: tarfile.TarInfo, folder: int, name: str) -> None:
        """Owner, attributes, mode, time: a change of owner takes the bits and the capabilities of a file away, and its
        mode may forbid to open it."""
        if not self._squash:
            os.chown(name, *_owner(info), dir_fd=folder, follow_symlinks=False)
        if not info.issym():
            self._set_attributes(info, folder, name)
            # Made by us in a directory that nobody else knows: no symbolic link, whatever chmod would do with one.
            os.chmod(name, self._mode(info), dir_fd=folder)
        with contextlib.suppress(OverflowError):
            os.utime(name, ns=_times(info), dir_fd=folder, follow_symlinks=False)

    def _mode(self, info: tarfile.TarInfo) -> int:
        mode = info.mode & 0o7777
        if self._squash and mode & 0o6000 and not info.isdir():
            # They would let others of this host become the caller.
            self._note("set-user-id and set-group-id bits left out", info.name)
            mode &= 0o1777
        return mode

    def _set_attributes(self, info: tarfile.TarInfo, folder: int, name: str) -> None:
        for attribute, value in _attributes(info).items():
            if attribute.startswith(_OVERLAYS):
                continue
            if self._squash and not attribute.startswith("user."):
                self._note(f"attributes {attribute} left out", info.name)
                continue
            if not (info.isreg() or info.isdir()):
                continue
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.setxattr(fd, attribute, value)
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._note(f"attributes {attribute} left out ({exc.strerror})", info.name)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """The metadata of all directories, those furthest down first: their modes may forbid to go on."""
        for parts, info in sorted(_with_implied(self._folders, self._tree.implied), key=lambda item: -len(item[0])):
            try:
                folder, above = self._tree.folder(parts[:-1], "/".join(parts), make=False)
                if above != parts[:-1] or not stat.S_ISDIR(
                    os.lstat(parts[-1] if parts else ".", dir_fd=folder).st_mode
                ):
                    continue  # replaced since by something else
            except (FileNotFoundError, ImageError):
                continue
            name = parts[-1] if parts else "."
            if info is None:
                os.chmod(name, 0o755, dir_fd=folder)  # noqa: S103 - as a root file system has them
                continue
            try:
                if not self._squash:
                    os.chown(name, *_owner(info), dir_fd=folder, follow_symlinks=False)
                self._set_attributes(info, folder, name)
                os.chmod(name, self._mode(info), dir_fd=folder)
                with contextlib.suppress(OverflowError):
                    os.utime(name, ns=_times(info), dir_fd=folder, follow_symlinks=False)
            except OSError as exc:
                raise ImageError(f"entry {info.name!r}", entry=info.name, detail=exc.strerror or str(exc)) from None


def _with_implied(
    folders: dict[Parts, tarfile.TarInfo | None], implied: Iterable[Parts]
) -> Iterable[tuple[Parts, tarfile.TarInfo | None]]:
    return {**dict.fromkeys((*implied, ())), **folders}.items()


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> bool:
    """Whether there was so much."""
    while length and (chunk := source.read(min(_CHUNK, length))):
        target.write(chunk)
        length -= len(chunk)
    return not length


def _is_file(folder: int, name: str) -> bool:
    try:
        return not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False


def _attributes(info: tarfile.TarInfo) -> dict[str, bytes]:
    """Extended ones. The two forms of one attribute say the same."""
    found = {}
    for key, value in info.pax_headers.items():
        if key.startswith(_XATTR):
            name, contents = key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape")
        elif key.startswith(_ENCODED_XATTR):
            name = os.fsdecode(unquote_to_bytes(key.removeprefix(_ENCODED_XATTR)))
            digits = value.rstrip("=")  # which libarchive leaves out, and others needn't
            try:
                contents = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
            except ValueError:
                raise ImageError(f"entry {info.name!r}: attribute {name!r} is not Base64", entry=info.name) from None
        else:
            continue
        if "\0" in name:
            raise ImageError(f"entry {info.name!r}: null character in attribute {name!r}", entry=info.name)
        found[name] = contents
    return found


def _owner(info: tarfile.TarInfo) -> tuple[int, int]:
    if not (0 <= info.uid < _NOBODY and 0 <= info.gid < _NOBODY):
        raise ImageError(f"entry {info.name!r} has the impossible owner {info.uid}:{info.gid}", entry=info.name)
    return info.uid, info.gid


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    seconds = float(info.mtime)
    seconds = min(max(seconds, 0.0), float(_LATEST)) if math.isfinite(seconds) else 0.0
    nanoseconds = int(seconds) * 10**9 + int(seconds % 1 * 10**9)
    return nanoseconds, nanoseconds
