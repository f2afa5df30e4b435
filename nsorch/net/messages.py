"""The few hot rtnetlink messages, packed by hand: pyroute2 needs 260 µs for what ``struct`` does in 3.

Layouts are those of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h; numbers are in the machine's byte order. Each
function returns one whole message with sequence number 0, which :mod:`nsorch.net.netlink` fills in.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR = 1, 4, 0x300, 0x10
_CREATE_EXCLUSIVE = 0x400 | 0x200
NO_GROUP = 0  #: of interfaces: they begin in it
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
IFF_UP = 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR, _NDA_VLAN, _NUD_PERMANENT = 1, 2, 5, 0x80
_NEXTHOP = struct.Struct("=HBBi")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_GROUP = 27
_AF_BRIDGE, _RTM_SETLINK, _NUD_NOARP, _NTF_MASTER = 7, 19, 0x40, 0x04
_IFLA_PROTINFO, _BRPORT_PROXYARP_WIFI, _BRPORT_FLUSH = 12 | 0x8000, 12, 24
_IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 26, 28, 31, 32
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_BR_FORWARD_DELAY, _BR_AGEING_TIME, _BR_STP_STATE, _BR_VLAN_FILTERING = 1, 4, 5, 7
_BR_MCAST_SNOOPING, _BR_MCAST_QUERIER, _BR_VLAN_DEFAULT_PVID = 23, 25, 39
_USER_HZ = 100
_BRIDGE_VLAN_INFO, _VLAN_PVID, _VLAN_UNTAGGED, _VLAN_RANGE_BEGIN, _VLAN_RANGE_END = 2, 2, 4, 8, 16
_VLAN = struct.Struct("=HH")
_NTF_SELF = 0x02
_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, b"\x01"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _NODAD, _TENTATIVE = 1, 2, 4, 8, 0x02, 0x40
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH = 1, 4, 5, 6, 7, 9
_RTA_METRICS, _RTAX_HOPLIMIT, _RTA_TABLE, _TABLE_UNSPECIFIED = 8, 10, 15, 0
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST = 254, 4, 253, 1


class VethEnd(NamedTuple):
    """One end of a veth pair, as it is to be created.

    :ivar netns: descriptor of its network namespace, or None for that of the socket
    :ivar master: ifindex of a bridge, or None
    """

    ifname: str
    index: int = 0  # type: ignore[assignment]  # a tuple has a method of this name
    netns: int | None = None
    mac: bytes | None = None
    mtu: int | None = None
    master: int | None = None
    up: bool = False


def message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _name(kind: int, name: str) -> bytes:
    return attribute(kind, name.encode() + b"\0")


def _link_body(index: int, up: bool | None, attributes: bytes) -> bytes:
    flags = IFF_UP if up else 0
    return _LINK.pack(0, 0, index, flags, 0 if up is None else IFF_UP) + attributes


def _end(end: VethEnd) -> bytes:
    parts = [_name(_IFLA_IFNAME, end.ifname), _number(_IFLA_NUM_TX_QUEUES, 1), _number(_IFLA_NUM_RX_QUEUES, 1)]
    if end.netns is not None:
        parts.append(_number(_IFLA_NET_NS_FD, end.netns))
    if end.mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, end.mac))
    if end.mtu is not None:
        parts.append(_number(_IFLA_MTU, end.mtu))
    if end.master is not None:
        parts.append(_number(_IFLA_MASTER, end.master))
    return b"".join(parts)


def create_veth(first: VethEnd, second: VethEnd) -> bytes:
    """Both ends, each in its namespace, by one message. Only *first* can be created up (else ENOTCONN)."""
    peer = attribute(_VETH_PEER, _link_body(second.index, None, _end(second)))
    info = attribute(_IFLA_LINKINFO, _name(_INFO_KIND, "veth") + attribute(_INFO_DATA, peer))
    body = _link_body(first.index, True if first.up else None, _end(first) + info)
    return message(RTM_NEWLINK, _CREATE_EXCLUSIVE, body)


def create_bridge(
    ifname: str,
    *,
    index: int = 0,
    mtu: int | None = None,
    mac: bytes | None = None,
    vlan_aware: bool = False,
    forward_delay: float | None = None,
    ageing: float | None = None,
    multicast_snooping: bool = False,
) -> bytes:
    """A bridge that is down. Ports of a *vlan_aware* one are in no VLAN at first.

    :param forward_delay: seconds: with the spanning tree protocol
    :param ageing: seconds
    :param multicast_snooping: with a querier, without which the kernel floods multicast all the same
    """
    settings = [attribute(_BR_MCAST_SNOOPING, b"\1" if multicast_snooping else b"\0")]
    if multicast_snooping:
        settings.append(attribute(_BR_MCAST_QUERIER, b"\1"))
    if vlan_aware:
        settings += [attribute(_BR_VLAN_FILTERING, b"\1"), attribute(_BR_VLAN_DEFAULT_PVID, bytes(2))]
    if ageing is not None:
        settings.append(_number(_BR_AGEING_TIME, round(ageing * _USER_HZ)))
    if forward_delay is not None:
        settings += [_number(_BR_FORWARD_DELAY, round(forward_delay * _USER_HZ)), _number(_BR_STP_STATE, 1)]
    options = attribute(_INFO_DATA, b"".join(settings))
    parts = [_name(_IFLA_IFNAME, ifname)]
    if mtu is not None:
        parts.append(_number(_IFLA_MTU, mtu))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac))
    parts.append(attribute(_IFLA_LINKINFO, _name(_INFO_KIND, "bridge") + options))
    return message(RTM_NEWLINK, _CREATE_EXCLUSIVE, _link_body(index, None, b"".join(parts)))


def create_of_kind(ifname: str, kind: str) -> bytes:
    """An interface with nothing but a name: most kinds want more."""
    info = attribute(_IFLA_LINKINFO, _name(_INFO_KIND, kind))
    return message(RTM_NEWLINK, _CREATE_EXCLUSIVE, _link_body(0, None, _name(_IFLA_IFNAME, ifname) + info))


def set_link(
    index: int = 0,
    *,
    name: str | None = None,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    group: int | None = None,
    no_ipv6_addresses: bool = False,
) -> bytes:
    """Change the link of *index* or *name*; what is None stays. *no_ipv6_addresses*: the kernel generates none."""
    parts = []
    if name is not None:
        parts.append(_name(_IFLA_IFNAME, name))
    if mtu is not None:
        parts.append(_number(_IFLA_MTU, mtu))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, mac))
    if master is not None:
        parts.append(_number(_IFLA_MASTER, master))
    if group is not None:
        parts.append(_number(_IFLA_GROUP, group))
    if no_ipv6_addresses:
        mode = attribute(_ADDR_GEN_MODE, _ADDR_GEN_NONE)
        parts.append(attribute(_IFLA_AF_SPEC, attribute(socket.AF_INET6, mode)))
    return message(RTM_NEWLINK, 0, _link_body(index, up, b"".join(parts)))


def delete_link(index: int = 0, *, name: str | None = None) -> bytes:
    return message(RTM_DELLINK, 0, _link_body(index, None, b"" if name is None else _name(_IFLA_IFNAME, name)))


def delete_group(group: int) -> bytes:
    """Delete all links of a *group* at once: one by one, each waits for the readers of the kernel's own lists."""
    return message(RTM_DELLINK, 0, _link_body(0, None, _number(_IFLA_GROUP, group)))


def get_link(index: int = 0, *, name: str | None = None) -> bytes:
    return message(RTM_GETLINK, 0, _link_body(index, None, b"" if name is None else _name(_IFLA_IFNAME, name)))


def dump_links() -> bytes:
    return message(RTM_GETLINK, NLM_F_DUMP, _link_body(0, None, b""))


def dump_addresses() -> bytes:
    return message(RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(0, 0, 0, 0, 0))


def parse_tentative(data: bytes) -> tuple[int, bytes] | None:
    """The ifindex and the packed IPv6 address that the kernel still looks for twins of, for which it isn't used; or
    None. *data* is a message of RTM_NEWADDR without its header."""
    _, _, flags, _, index = _ADDRESS.unpack_from(data)
    return (index, attributes(data, _ADDRESS.size)[_IFA_ADDRESS]) if flags & _TENTATIVE else None


def dump_routes(version: int) -> bytes:
    return message(RTM_GETROUTE, NLM_F_DUMP, _ROUTE.pack(_family(version), 0, 0, 0, 0, 0, 0, 0, 0))


Hop = tuple[bytes, int]  # packed gateway, or b"" on the link; ifindex


def parse_host_route(data: bytes) -> tuple[bytes, tuple[Hop, ...]] | None:
    """The packed address of the host that a route of the main table leads to, and by what; None for other routes.
    *data* is a message of RTM_NEWROUTE without its header."""
    family, length, _, _, table, *_ = _ROUTE.unpack_from(data)
    found = attributes(data, _ROUTE.size)
    if table != _TABLE_MAIN or length != (32 if family == socket.AF_INET else 128) or _RTA_DST not in found:
        return None
    if _RTA_MULTIPATH not in found:
        index = _U32.unpack(found[_RTA_OIF])[0] if _RTA_OIF in found else 0
        return found[_RTA_DST], ((found.get(_RTA_GATEWAY, b""), index),)
    hops = []
    data, at = found[_RTA_MULTIPATH], 0
    while at + _NEXTHOP.size <= len(data):
        size, _, _, index = _NEXTHOP.unpack_from(data, at)
        own = attributes(data[at : at + size], _NEXTHOP.size)
        hops.append((own.get(_RTA_GATEWAY, b""), index))
        at += max((size + 3) & ~3, _NEXTHOP.size)
    return found[_RTA_DST], tuple(hops)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def address(kind: int, index: int, value: IPv4Interface | IPv6Interface) -> bytes:
    """Add or delete (*kind*) an address; an IPv6 one without duplicate address detection, so it is never tentative."""
    packed = value.ip.packed
    length = value.network.prefixlen
    parts = [attribute(_IFA_LOCAL, packed), attribute(_IFA_ADDRESS, packed)]
    flags = 0
    if value.version == 6:
        flags = _NODAD
    elif length < 31:
        parts.append(attribute(_IFA_BROADCAST, value.network.broadcast_address.packed))
    body = _ADDRESS.pack(_family(value.version), length, flags, 0, index) + b"".join(parts)
    return message(kind, _CREATE_EXCLUSIVE if kind == RTM_NEWADDR else 0, body)


class Field(NamedTuple):
    """What differs from copy to copy of a message: *size* bytes at *offset*, *values* one behind the other."""

    offset: int
    size: int
    values: bytes

    def part(self, start: int, end: int) -> Field:
        return Field(self.offset, self.size, self.values[start * self.size : end * self.size])


def copies(template: bytes, fields: Sequence[Field], sequence: int) -> bytearray:
    """A *template* message once for each of the values of *fields*, with ascending sequence numbers; the last one asks
    for an acknowledgement."""
    count = len(fields[0].values) // fields[0].size
    length = len(template)
    made = bytearray(template * count)
    numbers = Field(8, 4, struct.pack(f"={count}I", *range(sequence, sequence + count)))
    for field in (*fields, numbers):
        for byte in range(field.size):
            made[field.offset + byte :: length] = field.values[byte :: field.size]
    last = made[-length:]
    last[6:8] = (int.from_bytes(last[6:8], sys.byteorder) | NLM_F_ACK).to_bytes(2, sys.byteorder)
    made[-length:] = last
    return made


_ROUTE_DESTINATION = _HEADER.size + _ROUTE.size + 4  # RTA_DST comes first
_NEIGHBOUR_INDEX = _HEADER.size + 4
_NEIGHBOUR_FIRST = _HEADER.size + _NEIGHBOUR.size + 4


def route_destinations(version: int, packed: bytes) -> Field:
    """For copies of a :func:`route` to a host."""
    return Field(_ROUTE_DESTINATION, 4 if version == 4 else 16, packed)


def neighbours(version: int, packed: bytes, macs: bytes) -> tuple[Field, Field]:
    """For copies of :func:`neighbour`: addresses, and hardware addresses of 6 bytes."""
    size = 4 if version == 4 else 16
    return Field(_NEIGHBOUR_FIRST, size, packed), Field(_NEIGHBOUR_FIRST + size + 4, 6, macs)


def forwarding_entries(indices: bytes, macs: bytes, vlans: bytes = b"") -> tuple[Field, ...]:
    """For copies of :func:`forwarding`: ifindices of 4 bytes, hardware addresses, and VLANs of 2 bytes, if any."""
    fields = Field(_NEIGHBOUR_INDEX, 4, indices), Field(_NEIGHBOUR_FIRST, 6, macs)
    return (*fields, Field(_NEIGHBOUR_FIRST + 12, 2, vlans)) if vlans else fields


def forwarding(kind: int, port: int, mac: bytes, vlan: int | None = None) -> bytes:
    """Add or delete (*kind*) a static entry of a bridge: frames to *mac* leave by *port*. It replaces another.

    :param vlan: of a VLAN-aware bridge
    """
    flags = 0x400 | 0x100 if kind == RTM_NEWNEIGH else 0
    within = b"" if vlan is None else attribute(_NDA_VLAN, struct.pack("=H", vlan))
    body = _NEIGHBOUR.pack(_AF_BRIDGE, port, _NUD_NOARP, _NTF_MASTER, 0) + attribute(_NDA_LLADDR, mac)
    return message(kind, flags, body + within)


def port_vlans(kind: int, port: int, pvid: int | None, tagged: Sequence[int]) -> bytes:
    """Put a *port* into VLANs, or (*kind* is RTM_DELLINK) take it out of them.

    :param pvid: of frames without a tag
    :param tagged: in ascending order
    """
    parts = [] if pvid is None else [(pvid, _VLAN_PVID | _VLAN_UNTAGGED)]
    for first, last in _ranges(tagged):
        parts += [(first, 0)] if first == last else [(first, _VLAN_RANGE_BEGIN), (last, _VLAN_RANGE_END)]
    info = b"".join(attribute(_BRIDGE_VLAN_INFO, _VLAN.pack(flags, vlan)) for vlan, flags in parts)
    body = _LINK.pack(_AF_BRIDGE, 0, port, 0, 0) + attribute(_IFLA_AF_SPEC, info)
    return message(RTM_DELLINK if kind == RTM_DELLINK else _RTM_SETLINK, 0, body)


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of consecutive *numbers*."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def tunnel_end(kind: int, index: int, address: IPv4Address | IPv6Address, mac: bytes = bytes(6)) -> bytes:
    """Add or delete (*kind*) an end that VXLAN interface *index* sends to: frames to *mac*, or those of which it knows
    nothing better."""
    flags = 0x400 | 0x800 if kind == RTM_NEWNEIGH else 0
    body = _NEIGHBOUR.pack(_AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
    return message(kind, flags, body + attribute(_NDA_LLADDR, mac) + attribute(_NDA_DST, address.packed))


def dump_forwarding() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, _LINK.pack(_AF_BRIDGE, 0, 0, 0, 0))


def parse_forwarding(data: bytes) -> tuple[int, bytes, bytes]:
    """Of a message of RTM_NEWNEIGH without its header: the ifindex, the hardware address, and the packed address of the
    far end, if any."""
    found = attributes(data, _NEIGHBOUR.size)
    return _NEIGHBOUR.unpack_from(data)[1], found.get(_NDA_LLADDR, b""), found.get(_NDA_DST, b"")


def answer_arp(port: int) -> bytes:
    """Have the bridge answer who asks for a host behind *port*, as far as it knows: PROXYARP_WIFI."""
    body = _LINK.pack(_AF_BRIDGE, 0, port, 0, 0)
    return message(_RTM_SETLINK, 0, body + attribute(_IFLA_PROTINFO, attribute(_BRPORT_PROXYARP_WIFI, b"\1")))


def forget_learnt(port: int) -> bytes:
    """Have the bridge drop all that it has learnt to be behind *port*; static entries stay."""
    body = _LINK.pack(_AF_BRIDGE, 0, port, 0, 0)
    return message(_RTM_SETLINK, 0, body + attribute(_IFLA_PROTINFO, attribute(_BRPORT_FLUSH, b"")))


def neighbour(kind: int, index: int, ip: IPv4Address | IPv6Address, mac: bytes) -> bytes:
    """Tell the kernel for good (*kind*: or forget) that *ip* behind interface *index* has hardware address *mac*."""
    flags = 0x400 | 0x100 if kind == RTM_NEWNEIGH else 0
    body = _NEIGHBOUR.pack(_family(ip.version), index, _NUD_PERMANENT, 0, 0)
    return message(kind, flags, body + attribute(_NDA_DST, ip.packed) + attribute(_NDA_LLADDR, mac))


def delete_neighbour(index: int, ip: IPv4Address | IPv6Address) -> bytes:
    """Forget the hardware address of *ip* behind interface *index*."""
    body = _NEIGHBOUR.pack(_family(ip.version), index, 0, 0, 0) + attribute(_NDA_DST, ip.packed)
    return message(RTM_DELNEIGH, 0, body)


def dump_neighbours() -> bytes:
    return message(RTM_GETNEIGH, NLM_F_DUMP, _NEIGHBOUR.pack(0, 0, 0, 0, 0))


def parse_learnt(data: bytes) -> tuple[int, IPv4Address | IPv6Address] | None:
    """Of a message of RTM_NEWNEIGH without its header: the ifindex and the address of a neighbour that was asked for;
    None for others."""
    _, index, state, _, _ = _NEIGHBOUR.unpack_from(data)
    packed = attributes(data, _NEIGHBOUR.size).get(_NDA_DST, b"")
    return None if state & (_NUD_PERMANENT | _NUD_NOARP) or not packed else (index, ip_address(packed))


def route(
    kind: int,
    destination: IPv4Network | IPv6Network,
    nexthops: Sequence[tuple[IPv4Address | IPv6Address | None, int]],
    *,
    source: IPv4Address | IPv6Address | None = None,
    metric: int | None = None,
    hop_limit: int | None = None,
    table: int | None = None,
    replace: bool = False,
) -> bytes:
    """Add or delete (*kind*) a route over (gateway, ifindex) *nexthops*: several are equal.

    :param table: the main one if None
    """
    parts = []
    if destination.prefixlen:
        parts.append(attribute(_RTA_DST, destination.network_address.packed))
    if source is not None:
        parts.append(attribute(_RTA_PREFSRC, source.packed))
    if metric is not None:
        parts.append(_number(_RTA_PRIORITY, metric))
    if table is not None:
        parts.append(_number(_RTA_TABLE, table))
    if hop_limit is not None:
        parts.append(attribute(_RTA_METRICS, _number(_RTAX_HOPLIMIT, hop_limit)))
    if len(nexthops) == 1:
        gateway, index = nexthops[0]
        if gateway is not None:
            parts.append(attribute(_RTA_GATEWAY, gateway.packed))
        parts.append(_number(_RTA_OIF, index))
    elif nexthops:
        parts.append(attribute(_RTA_MULTIPATH, b"".join(_nexthop(gateway, index) for gateway, index in nexthops)))
    on_link = any(gateway is None for gateway, _ in nexthops)
    body = _ROUTE.pack(
        _family(destination.version),
        destination.prefixlen,
        0,
        0,
        _TABLE_MAIN if table is None else _TABLE_UNSPECIFIED,
        _PROTOCOL_STATIC,
        _SCOPE_LINK if on_link and destination.version == 4 else 0,
        _UNICAST,
        0,
    )
    flags = 0 if kind == RTM_DELROUTE else 0x400 | (0x100 if replace else 0x200)
    return message(kind, flags, body + b"".join(parts))


def _nexthop(gateway: IPv4Address | IPv6Address | None, index: int) -> bytes:
    via = b"" if gateway is None else attribute(_RTA_GATEWAY, gateway.packed)
    return _NEXTHOP.pack(_NEXTHOP.size + len(via), 0, 0, index) + via


def attributes(data: bytes, start: int) -> dict[int, bytes]:
    """The attributes of a message from the kernel, by number; of those that repeat the last."""
    found = {}
    while start + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


class LinkState(NamedTuple):
    """What the kernel says of an interface; *carrier*: IFF_LOWER_UP; *running*: IFF_RUNNING, carrier as
    the rest of the kernel knows it."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    name: str
    mac: bytes
    mtu: int
    up: bool
    carrier: bool
    running: bool
    master: int | None


def parse_link(data: bytes) -> LinkState:
    """*data* is a message of RTM_NEWLINK without its header."""
    _, _, index, flags, _ = _LINK.unpack_from(data)
    found = attributes(data, _LINK.size)
    master = found.get(_IFLA_MASTER)
    return LinkState(
        index=index,
        name=found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=_U32.unpack(found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & 0x10000),
        running=bool(flags & 0x40),
        master=None if master is None else _U32.unpack(master)[0],
    )


def is_vlan_aware(data: bytes) -> bool:
    """*data* is a message of RTM_NEWLINK, of a bridge, without its header."""
    info = attributes(attributes(data, _LINK.size).get(_IFLA_LINKINFO, b""), 0)
    return any(attributes(info.get(_INFO_DATA, b""), 0).get(_BR_VLAN_FILTERING, b""))
