"""Questions for IPv6 neighbours and routers that go to who is asked alone, not to all on a segment.

The kernel's bridges answer such a question only where the asker's port and the other's differ in a flag
(br_do_suppress_nd() in net/bridge/br_arp_nd_proxy.c), which can't be so for all pairs. But nf_tables sees frames before
a bridge decides where they go: those whose target it knows get the hardware address of that instead of the group's.
The same is done with questions for routers, which all hosts ask when they come up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nsorch.net import nftables as nft
from nsorch.net.netlink import Netlink, Request

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

_TABLE = nft.Table("nsorch-neighbours", nft.BRIDGE)
_CHAIN, _MAP, _ROUTERS = "prerouting", "known", "routers"
_NONE = bytes(6)  # in the place of a router's hardware address
_BEFORE_BRIDGES = -300  # NF_BR_PRI_NAT_DST_BRIDGED
_AT_ONCE = 1000


class Redirector:
    """Segments are told apart by the group of the interface that a question comes by.

    :param sock: a NETLINK_NETFILTER socket where the bridges are; it stays its owner's
    :raises NetlinkError: the kernel lacks a part of it
    """

    def __init__(self, sock: socket.socket) -> None:
        self._netlink = Netlink(sock)
        self._known: dict[bytes, bytes] = {}  # hardware addresses, by group and address
        self._routers: dict[bytes, bytes] = {}  # the same, by group
        neighbours = _TABLE.add_set(_MAP, number=0, key=nft.GROUP + nft.ADDRESS6, value=nft.HARDWARE)
        routers = _TABLE.add_set(_ROUTERS, number=1, key=nft.GROUP, value=nft.HARDWARE)
        chain = _TABLE.add_chain(_CHAIN, kind="filter", hook=nft.PREROUTING, priority=_BEFORE_BRIDGES)
        self._netlink.commit(
            [
                Request(_TABLE.add(), "add", "neighbours"),
                Request(neighbours, "add", "the map of neighbours"),
                Request(routers, "add", "the map of routers"),
                Request(chain, "add", "chain prerouting"),
                *(Request(_TABLE.add_rule(_CHAIN, rule), "add", "a rule for neighbours") for rule in _rules()),
            ]
        )

    def add(self, group: int, known: Iterable[tuple[IPv4Address | IPv6Address, bytes]]) -> None:
        """Send questions for the addresses in *known* to their hardware addresses."""
        wanted = {_key(group, ip): mac for ip, mac in known}
        new = {key: mac for key, mac in wanted.items() if self._known.get(key) != mac}
        self._change([key for key in new if key in self._known], new)

    def remove(self, group: int, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
        """Those that aren't known are no error."""
        keys = dict.fromkeys(_key(group, ip) for ip in addresses)
        self._change([key for key in keys if key in self._known], {})

    def remove_all(self, groups: Sequence[int]) -> None:
        prefixes = tuple(struct.pack("=I", group) for group in groups)
        self._change([key for key in self._known if key.startswith(prefixes)], {})
        for group in groups:
            self.lead_to_router(group, None)

    def lead_to_router(self, group: int, mac: bytes | None) -> None:
        """Send questions for routers to *mac*; to nobody if it is empty, to all if it is None."""
        key = struct.pack("=I", group)
        value = None if mac is None else mac or _NONE
        if self._routers.get(key) == value:
            return
        if key in self._routers:
            self._netlink.commit([Request(_TABLE.delete_entries(_ROUTERS, [key]), "forget", "a router")])
            del self._routers[key]
        if value is not None:
            self._netlink.commit([Request(_TABLE.add_entries(_ROUTERS, [(key, value)]), "tell of", "a router")])
            self._routers[key] = value

    def _change(self, old: list[bytes], new: dict[bytes, bytes]) -> None:
        for start in range(0, len(old), _AT_ONCE):
            some = old[start : start + _AT_ONCE]
            self._netlink.commit([Request(_TABLE.delete_entries(_MAP, some), "forget", "neighbours")])
            for key in some:
                del self._known[key]
        entries = list(new.items())
        for start in range(0, len(entries), _AT_ONCE):
            few = entries[start : start + _AT_ONCE]
            self._netlink.commit([Request(_TABLE.add_entries(_MAP, few), "tell of", "neighbours")])
            self._known.update(few)


def _rules() -> tuple[list[bytes], ...]:
    group, target, mac = nft.R0, nft.R0 + 1, nft.R0 + 5
    led = nft.set_hardware_destination(mac)
    router = [*nft.router_solicitation(), nft.load_group(group), nft.look_up(_ROUTERS, key=group, value=mac)]
    return (
        [*nft.solicitation(target), nft.load_group(group), nft.look_up(_MAP, key=group, value=mac), led],
        [*router, nft.compare(_NONE, register=mac), nft.verdict(nft.DROP)],
        [*router, led],
    )


def _key(group: int, ip: IPv4Address | IPv6Address) -> bytes:
    return struct.pack("=I", group) + ip.packed
