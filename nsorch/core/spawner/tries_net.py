"""Tries of interfaces, queueing disciplines and nftables, in the network namespace of the caller."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RTM_NEWLINK, _RTM_NEWQDISC = 16, 36
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO, _INFO_KIND, _INFO_DATA = 3, 5, 18, 1, 2
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TC_H_ROOT = 0xFFFFFFFF
_NLMSG_ERROR = 2
_NETLINK_NETFILTER = 12
_NFT_BEGIN, _NFT_END, _NFT_NEWTABLE = 0x10, 0x11, 0x0A00
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LOWER = "lower"


def attempts() -> Iterator[tuple[str, Callable[[], None]]]:
    """In this order: what stands on a veth comes after it."""
    yield "veth", lambda: _link("veth", _LOWER)
    yield "bridge", lambda: _link("bridge")
    yield "dummy", lambda: _link("dummy")
    yield "bond", lambda: _link("bond")
    yield "vrf", lambda: _link("vrf", data=_attribute(1, struct.pack("=I", 10)))  # IFLA_VRF_TABLE
    yield "vlan", lambda: _link("vlan", data=_attribute(1, struct.pack("=H", 5)), lower=True)  # IFLA_VLAN_ID
    yield "vxlan", lambda: _link("vxlan", data=_attribute(1, struct.pack("=I", 5)))  # IFLA_VXLAN_ID
    yield "macvlan", lambda: _link("macvlan", data=_attribute(1, struct.pack("=I", 4)), lower=True)  # mode bridge
    yield "ipvlan", lambda: _link("ipvlan", data=_attribute(1, struct.pack("=H", 0)), lower=True)  # mode L2
    yield "wireguard", lambda: _link("wireguard")
    yield "ifb", lambda: _link("ifb")
    yield "tun", _tun
    # latency, limit, loss, gap, duplicate, jitter (struct tc_netem_qopt)
    yield "netem", lambda: _qdisc("netem", 1, struct.pack("=6I", 0, 1000, 0, 0, 0, 0))
    yield "tbf", lambda: _qdisc("tbf", 2, _TBF)
    yield "htb", lambda: _qdisc("htb", 3, _attribute(2, struct.pack("=5I", 3, 10, 1, 0, 0)))  # TCA_HTB_INIT
    yield "nftables", _nftables


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


_RATE = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, 1_000_000)  # struct tc_ratespec, of Ethernet
# TCA_TBF_PARMS (struct tc_tbf_qopt: rate, peak rate, limit, buffer, MTU) and TCA_TBF_BURST in bytes
_TBF = _attribute(1, _RATE + bytes(12) + struct.pack("=3I", 10_000, 0, 0)) + _attribute(6, struct.pack("=I", 5000))


def _message(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | flags, 1, 0) + payload


def _ask(protocol: int, data: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.settimeout(5)
        sock.send(data)
        answer = sock.recv(65536)
    (kind,) = struct.unpack_from("=H", answer, 4)
    (number,) = struct.unpack_from("=i", answer, 16) if kind == _NLMSG_ERROR else (0,)
    if number:
        raise OSError(-number, os.strerror(-number))


def _link(kind: str, name: str = "", *, data: bytes = b"", lower: bool = False) -> None:
    info = _attribute(_INFO_KIND, kind.encode()) + (_attribute(_INFO_DATA, data) if data else b"")
    attributes = _attribute(_IFLA_IFNAME, (name or f"t-{kind}").encode() + b"\0")
    if lower:
        attributes += _attribute(_IFLA_LINK, struct.pack("=I", socket.if_nametoindex(_LOWER)))
    attributes += _attribute(_IFLA_LINKINFO, info)
    flags = _ACK | _CREATE
    _ask(socket.NETLINK_ROUTE, _message(_RTM_NEWLINK, flags, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attributes))


def _qdisc(kind: str, number: int, options: bytes) -> None:
    header = struct.pack("=BxxxiIII", 0, socket.if_nametoindex(_LOWER), number << 16, _TC_H_ROOT, 0)
    body = header + _attribute(_TCA_KIND, kind.encode() + b"\0") + _attribute(_TCA_OPTIONS, options)
    # Another number than the one before, which is of another kind: replaced, not changed.
    _ask(socket.NETLINK_ROUTE, _message(_RTM_NEWQDISC, _ACK | _CREATE | _REPLACE, body))


def _nftables() -> None:
    def of(subsystem: int, family: int = socket.AF_INET) -> bytes:
        return struct.pack("=BB", family, 0) + struct.pack(">H", subsystem)

    table = _message(_NFT_NEWTABLE, _ACK | _CREATE, of(0) + _attribute(1, b"nsorch\0"))
    _ask(_NETLINK_NETFILTER, _message(_NFT_BEGIN, 0, of(10)) + table + _message(_NFT_END, 0, of(10)))


def _tun() -> None:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ENODEV, "there is no /dev/net/tun") from None
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"t-tap", _IFF_TAP | _IFF_NO_PI))
    finally:
        os.close(fd)
