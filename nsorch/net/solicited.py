"""Who asks for the hardware address of an IPv6 address asks a group that its owner has joined: RFC 4861, section 7.2.

The kernel answers a request for an address, and joins the group afterwards, in a worker (net/ipv6/addrconf.c,
addrconf_dad_work). A question that comes before is lost, and asked again after a second.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

from nsorch.net import messages
from nsorch.net.netlink import Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.net.netlink import Netlink
    from nsorch.net.plan import IPInterface

_RTM_GETMULTICAST, _IFA_MULTICAST = 58, 7
_ADDRESS = struct.Struct("=BBBBI")
_PREFIX = bytes.fromhex("ff0200000000000000000001ff")
_PATIENCE, _PAUSE = 1.0, 0.0002


def await_joined(netlink: Netlink, addresses: Iterable[tuple[int, IPInterface]]) -> None:
    """Wait until the groups of all IPv6 ones of (ifindex, address) are joined; asks nothing if there are none.

    After a second without it goes on: another program may have removed an address meanwhile.
    """
    wanted = {(index, _PREFIX + address.packed[-3:]) for index, address in addresses if address.version == 6}
    if not wanted:
        return
    data = messages.message(_RTM_GETMULTICAST, messages.NLM_F_DUMP, _ADDRESS.pack(socket.AF_INET6, 0, 0, 0, 0))
    request = Request(data, "list", "multicast groups")
    deadline = time.monotonic() + _PATIENCE
    while not wanted <= {_group(body) for body in netlink.dump(request, _RTM_GETMULTICAST)}:
        if time.monotonic() > deadline:
            return
        time.sleep(_PAUSE)


def _group(body: bytes) -> tuple[int, bytes]:
    *_, index = _ADDRESS.unpack_from(body)
    return index, messages.attributes(body, _ADDRESS.size).get(_IFA_MULTICAST, b"")
