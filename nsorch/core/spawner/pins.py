"""Pins: symbolic links to namespaces that the application holds, by which other programs find them.

They are no mounts: a namespace lives no longer for them. The stub makes and removes them, because it outlives the
application: where that is killed, none stays. Where the stub is killed, the application removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os

from .stages import stage


class Pins:
    def __init__(self) -> None:
        self._targets: dict[bytes, bytes] = {}
        self._folders: list[bytes] = []  # that weren't there before

    def add(self, path: bytes, target: bytes) -> None:
        """Replaces one that leads nowhere: of a lab that was killed with its stub.

        :raises StageError: EEXIST where something else is there
        """
        with stage("pin", os.fsdecode(path)):
            try:
                self._link(path, target)
            except FileNotFoundError:  # another lab has just removed the folder that it had made
                self._link(path, target)
        self._targets[path] = target

    def _link(self, path: bytes, target: bytes) -> None:
        self._make_folder(os.path.dirname(path))
        if os.path.islink(path) and _is_stale(path):
            os.unlink(path)
        os.symlink(target, path)

    def _make_folder(self, folder: bytes) -> None:
        for each in missing_folders(folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(each, 0o755)
                self._folders.append(each)

    def remove(self, path: bytes) -> None:
        target = self._targets.pop(path, None)
        if target is not None:
            unlink(path, target)

    def remove_all(self) -> None:
        for path in list(self._targets):
            self.remove(path)
        remove_folders(self._folders)


def missing_folders(folder: bytes) -> list[bytes]:
    """*folder* and those above it that aren't there, the outermost first."""
    missing: list[bytes] = []
    while not os.path.lexists(folder):
        missing.insert(0, folder)
        folder = os.path.dirname(folder)
    return missing


def remove_folders(folders: list[bytes]) -> None:
    """The last first; not those in which somebody else has put something."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def unlink(path: bytes, target: bytes) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(path) == target:  # else another's, who replaced ours
            os.unlink(path)


def _is_stale(path: bytes) -> bool:
    """Whether a symbolic link leads nowhere; or, as ours do, to a process's descriptor, but to no namespace: another
    process has the number now."""
    try:
        there = os.stat(path)
    except OSError as exc:
        # Another user's descriptors can't be looked at.
        return exc.errno not in (errno.EACCES, errno.EPERM)
    return os.readlink(path).startswith(b"/proc/") and there.st_dev != os.stat("/proc/self/ns/net").st_dev
