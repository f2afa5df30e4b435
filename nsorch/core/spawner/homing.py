"""The namespaces that a helper returns to after each request."""

from __future__ import annotations

import os

from .stages import stage
from .syscalls import CLONE_NEWCGROUP, CLONE_NEWTIME, NS_FILES, setns, unshare


class Namespaces(dict[int, int]):
    """Descriptor by CLONE_NEW*. Those of a cgroup and a time namespace are there from their first use: few need them.

    :param proc: descriptor of a /proc that knows the caller
    :param rootless: from below a user namespace there is no way back to the host's, so it gets its own
    """

    def __init__(self, home: dict[int, int], proc: int = -1, *, rootless: bool = False) -> None:
        super().__init__(home)
        self._proc = proc
        self.rootless = rootless

    def would_be_left(self, kinds: int) -> bool:
        """Whether entering *kinds* takes the caller out of namespaces of the host's, which all who are made later would
        miss."""
        return self.rootless and bool(kinds & (CLONE_NEWTIME | CLONE_NEWCGROUP))

    def prepare(self, kinds: int) -> None:
        """Be able to return from *kinds*.

        :raises StageError: this kernel has none of them
        """
        for kind in (CLONE_NEWTIME, CLONE_NEWCGROUP):
            if kinds & kind and kind not in self and self._proc >= 0:
                self[kind] = self._settle(kind)

    def _settle(self, kind: int) -> int:
        name = NS_FILES[kind]
        if self.rootless:
            with stage("unshare", name):
                unshare(kind)
        file = "time_for_children" if kind == CLONE_NEWTIME else name
        with stage("unshare", name):
            fd = os.open(f"self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            if self.rootless:
                setns(fd, kind)
        return fd
