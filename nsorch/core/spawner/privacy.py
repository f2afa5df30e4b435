"""Who may look into the helpers, and trace them."""

from __future__ import annotations

import functools
import os
import re

from .syscalls import get_permitted, set_dumpable

CAP_SYS_PTRACE = 19


@functools.cache
def dumps_end_sharers() -> bool:
    """Whether who dies with a core dump, as by a seccomp filter at its exec, takes all along who share its memory:
    before Linux 5.16 (zap_threads() in fs/coredump.c)."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return release is None or tuple(map(int, release.groups())) < (5, 16)


def hide(proc: int) -> bool:
    """Keep this process and its forks from being traced by any but the host's root, where they can do with that.

    A child of ours has our memory, or a copy of it, and the host's files, until its exec. Over one that has given up
    capabilities, whoever is the same user has rights, and has no more than it; and over one in a new user namespace
    who has none at all, because it belongs to that user (cap_capable() in security/commoncap.c).

    :param proc: descriptor of a /proc that knows the caller
    """
    if not get_permitted() >> CAP_SYS_PTRACE & 1:  # without it we couldn't look at our children either
        return False
    set_dumpable(False)
    # What /proc has of us is now root's, and so are the files that maps of ids are written to.
    if os.stat("self/uid_map", dir_fd=proc).st_uid == os.geteuid():
        return True
    set_dumpable(True)
    return False
