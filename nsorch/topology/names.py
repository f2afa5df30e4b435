"""What things may be called."""

from __future__ import annotations

import re

from nsorch.topology.kinds import shown

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}")


def name_problem(name: object) -> str | None:
    """Why *name* can't be a worker's or bridge's, or None."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f'{shown(name)} is not a name: a letter, then letters, digits and "-", at most 63 in all'
    return None


def interface_problem(name: object) -> str | None:
    """Why *name* can't be an interface's, or None: the kernel's dev_valid_name(), to which the byte A0 is a space, and
    dev_alloc_name(), which makes another one of what has a "%"."""
    encoded = name.encode(errors="surrogatepass") if isinstance(name, str) else b""
    if not isinstance(name, str) or not 0 < len(encoded) <= 15:
        return f"{shown(name)} is not an interface name: 1 to 15 bytes"
    forbidden = re.search(r"[/:%\s\0\ud800-\udfff]", name) or b"\xa0" in encoded
    if forbidden or name in (".", "..", "lo", "all", "default"):
        return f"{shown(name)} can't be the name of an interface"
    return None
