"""A directory that is filled by somebody who isn't trusted: every name is resolved inside of it, by descriptors.

Symbolic links on the way are followed as a process would that has the directory as its root; one that climbs above it
is refused. Nobody else knows the directory while it is filled, so what was looked at is still there when it is used.
"""

from __future__ import annotations

import collections
import os
import shutil
import stat
from typing import TYPE_CHECKING

from nsorch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Collection

Parts = tuple[str, ...]

_FOLDER = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel has it, path_resolution(7)
_DEEPEST = 255
_LONGEST = 4096


def split(name: str, entry: str | None = None) -> Parts:
    """The components of a name in an archive; none for the root.

    :param entry: whose target *name* is, where it isn't an entry's own
    :raises ImageError: it is absolute, climbs, or can't be a name
    """
    what = f"entry {name[:200]!r}" if entry is None else f"entry {entry[:200]!r}: its target {name[:200]!r}"
    entry = name if entry is None else entry
    if name.startswith("/"):
        raise ImageError(f"{what} is absolute", entry=entry)
    if "\0" in name or len(os.fsencode(name)) > _LONGEST:
        raise ImageError(f"{what} can't be the name of a file", entry=entry)
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ImageError(f'{what} leads outside: it has ".."', entry=entry)
    return parts


class Tree:
    def __init__(self, root: int) -> None:
        self.root = root
        self.implied: list[Parts] = []  #: directories that were made because something is in them
        self._latest: tuple[Parts, int, Parts] | None = None

    def close(self) -> None:
        if self._latest is not None:
            os.close(self._latest[1])
            self._latest = None

    def folder(self, parts: Parts, entry: str, *, make: bool) -> tuple[int, Parts]:
        """A descriptor of the directory *parts*, good until the next call, and where that really is.

        :param make: make it, and those above it, where missing; never where a symbolic link leads
        :raises ImageError: *entry* leads outside, in a circle, or through something that is no directory
        :raises FileNotFoundError: it isn't there
        """
        # Entries come sorted by directory. What is done to one with its descriptor concerns what is below it alone.
        if self._latest is None or self._latest[0] != parts:
            self.close()
            self._latest = (parts, *self._walk(parts, entry, make))
        return self._latest[1:]

    def _walk(self, parts: Parts, entry: str, make: bool) -> tuple[int, Parts]:
        here: list[str] = []
        pending = collections.deque((part, False) for part in parts)
        links = 0
        fd = os.open(".", _FOLDER, dir_fd=self.root)
        try:
            while pending:
                name, linked = pending.popleft()
                if name in ("", "."):
                    continue
                if name == "..":
                    if not here:
                        raise ImageError(f"entry {entry!r} leads outside, through a symbolic link", entry=entry)
                    pending.extendleft((part, True) for part in reversed(here[:-1]))
                    here.clear()
                    fd = self._step(fd, ".", again=True)
                    continue
                try:
                    fd = self._step(fd, name)
                except FileNotFoundError:
                    if linked:
                        raise ImageError(
                            f"entry {entry!r} leads through a symbolic link to where nothing is", entry=entry
                        ) from None
                    if not make:
                        raise
                    os.mkdir(name, 0o755, dir_fd=fd)
                    self.implied.append((*here, name))
                    fd = self._step(fd, name)
                except NotADirectoryError:
                    links += 1
                    try:
                        target = os.readlink(name, dir_fd=fd)
                    except OSError:
                        where = "/".join((*here, name))
                        raise ImageError(f"entry {entry!r}: {where!r} is not a directory", entry=entry) from None
                    if links > _MOST_LINKS:
                        raise ImageError(
                            f"entry {entry!r} leads through too many symbolic links", entry=entry
                        ) from None
                    if target.startswith("/"):
                        here.clear()
                        fd = self._step(fd, ".", again=True)
                    pending.extendleft((part, True) for part in reversed(target.split("/")))
                    continue
                here.append(name)
                if len(here) > _DEEPEST:
                    raise ImageError(f"entry {entry!r} is nested too deeply", entry=entry)
            return fd, tuple(here)
        except BaseException:
            os.close(fd)
            raise

    def _step(self, fd: int, name: str, *, again: bool = False) -> int:
        """A descriptor of *name* below *fd*, or below the root, in place of *fd*."""
        found = os.open(name, _FOLDER, dir_fd=self.root if again else fd)
        os.close(fd)
        return found

    def clear(self, folder: int, name: str) -> None:
        """Remove what is there, with all below; nothing may be."""
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return

    def purge(self, folder: int, name: str, where: Parts, keep: Collection[Parts]) -> None:
        """As :meth:`clear`, but for those of *keep*, which has all that they are in."""
        if where not in keep:
            self.clear(folder, name)
            return
        try:
            below = os.open(name, _FOLDER, dir_fd=folder)
        except NotADirectoryError:
            return
        try:
            self.purge_below(below, where, keep)
        finally:
            os.close(below)

    def purge_below(self, folder: int, where: Parts, keep: Collection[Parts]) -> None:
        """The same for all that is in *folder*."""
        listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            for name in os.listdir(listed):
                self.purge(listed, name, (*where, name), keep)
        finally:
            os.close(listed)
