"""The lab's hosts file, which every worker sees as /etc/hosts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsorch.net.hosts import HostsEntry, render_hosts

if TYPE_CHECKING:
    from collections.abc import Iterable


class HostsFile:
    """Written in place: a rename would not be seen through the bind mounts."""

    def __init__(self) -> None:
        self._fd = -1

    def open(self, fd: int) -> None:
        """*fd* stays its owner's; -1 where the host has no /etc/hosts to be replaced."""
        self._fd = fd

    @property
    def writable(self) -> bool:
        return self._fd >= 0

    def write(self, entries: Iterable[HostsEntry]) -> None:
        text = render_hosts(entries).encode()
        # One write, and the end last: who reads meanwhile finds whole lines.
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))
