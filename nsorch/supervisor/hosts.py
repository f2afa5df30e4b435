"""The lab's hosts file, which every worker sees as /etc/hosts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsorch.net.hosts import HEAD, render_entry

if TYPE_CHECKING:
    from nsorch.net.hosts import HostsEntry


class HostsFile:
    """Written in place: a rename would not be seen through the bind mounts.

    :ivar stale: names of workers of which it may tell something else now
    """

    def __init__(self) -> None:
        self.stale: set[str] = set()
        self._fd = -1
        self._texts: dict[str, str] = {}

    def open(self, fd: int) -> None:
        """*fd* stays its owner's; -1 where the host has no /etc/hosts to be replaced."""
        self._fd = fd

    def note(self, name: str, entry: HostsEntry | None) -> None:
        if entry is None:
            self._texts.pop(name, None)
        else:
            self._texts[name] = render_entry(entry)

    def write(self) -> None:
        """Let nobody :meth:`note` anything meanwhile."""
        if self._fd >= 0:
            text = (HEAD + "".join(self._texts.values())).encode()
            # One write, and the end last: who reads meanwhile finds whole lines.
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
