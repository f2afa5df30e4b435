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
    """Why *name* can't be an interface's, or None: the kernel's dev_valid_name()."""
    if not isinstance(name, str) or not 0 < len(name.encode(errors="surrogatepass")) <= 15:
        return f"{shown(name)} is not an interface name: 1 to 15 bytes"
    # With a percent sign it would be a pattern, of which the kernel makes a name.
    if name in (".", "..", "lo", "all", "default") or re.search(r"[/:%\s\0\ud800-\udfff]", name):
        return f"{shown(name)} can't be the name of an interface"
    return None
