"""Pins: symbolic links to namespaces that the application holds, by which other programs find them.

They are no mounts: a namespace lives no longer for them. The stub makes and removes them, because it outlives the
application: where that is killed, none stays.
"""

from __future__ import annotations

import contextlib
import errno
import os

from .stages import stage


class Pins:
    def __init__(self) -> None:
        self._targets: dict[bytes, bytes] = {}

    def add(self, path: bytes, target: bytes) -> None:
        """Replaces one that leads nowhere: of a lab that was killed with its stub.

        :raises StageError: EEXIST where something else is there
        """
        with stage("pin", os.fsdecode(path)):
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            if os.path.islink(path) and not _leads_to_namespace(path):
                os.unlink(path)
            os.symlink(target, path)
        self._targets[path] = target

    def remove(self, path: bytes) -> None:
        target = self._targets.pop(path, None)
        with contextlib.suppress(OSError):
            if target is not None and os.readlink(path) == target:  # else another's, who replaced ours
                os.unlink(path)

    def remove_all(self) -> None:
        for path in list(self._targets):
            self.remove(path)


def _leads_to_namespace(path: bytes) -> bool:
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError as exc:
        # Another user's descriptors can't be looked at.
        return exc.errno in (errno.EACCES, errno.EPERM)
