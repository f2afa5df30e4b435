"""udhcpc, the DHCP client of busybox: how it is started, and what it tells."""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen(kw_only=True, eq=False, repr=False)
class Told(Value):
    """:ivar address: None where it has none, or none any more"""

    address: IPv4Interface | None = None
    router: IPv4Address | None = None


def command(program: str, interface: str, hostname: str) -> list[str]:
    """The launcher, and what it needs to know."""
    from nsorch.services import launch_udhcpc

    return [sys.executable, "-I", "-S", os.path.abspath(launch_udhcpc.__file__), program, interface, hostname]


def parse(line: str) -> Told | None:
    """What a line of the launcher's script says; None where nothing changes.

    :raises ValueError: the server gave what is no address
    """
    fields: Sequence[str] = line.split("|")
    if len(fields) != 4:
        return None
    event, ip, mask, routers = fields
    if event == "deconfig":
        return Told()
    if event not in ("bound", "renew"):
        return None
    router = next(iter(routers.split()), None)
    return Told(address=IPv4Interface(f"{ip}/{mask or 32}"), router=None if router is None else IPv4Address(router))
