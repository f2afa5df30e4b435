"""Files that exist in memory alone, and that nobody can change."""

from __future__ import annotations

import errno
import fcntl
import os

_MFD_EXEC = 0x10  # linux/memfd.h, since 6.3
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed(name: str, content: bytes) -> int:
    """A program of *content*: its descriptor, which is close-on-exec.

    :raises OSError: with EACCES where vm.memfd_noexec forbids it
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        file = os.memfd_create(name, flags | _MFD_EXEC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a kernel that knows no such flag, and needs none
            raise
        file = os.memfd_create(name, flags)
    try:
        with open(file, "wb", closefd=False) as opened:
            opened.write(content)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file
