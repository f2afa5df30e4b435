"""Programs of the host."""

from __future__ import annotations

import os

# Of an ordinary user it often isn't.
_ALSO_IN_PATH = ":/usr/local/sbin:/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """The path of an installed program."""
    import shutil

    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + _ALSO_IN_PATH)
