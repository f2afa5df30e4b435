"""Hardware addresses: the same for the same names, in every run."""

from __future__ import annotations

import re
from _blake2 import blake2b  # hashlib's; with that comes OpenSSL, which takes 10 ms
from ipaddress import IPv6Interface

from nsorch.errors import AddressError

_MAC = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"


def derive_mac(worker: str, interface: str) -> bytes:
    """A locally administered unicast address (02:…), by a hash of the names: 40 bits, so that no two of a lab meet."""
    digest = blake2b(f"{worker}/{interface}".encode(), digest_size=5).digest()
    return b"\x02" + digest


def parse_mac(text: str) -> bytes:
    """:raises AddressError: not six bytes, or a multicast address"""
    if not re.fullmatch(_MAC, text):
        raise AddressError(f'"{text}" is not a MAC address such as 02:00:00:00:00:01')
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise AddressError(f"\"{text}\" can't be the MAC address of one interface: it is a group's, or zero")
    return mac


def link_local(mac: bytes) -> IPv6Interface:
    """fe80::/64 and the modified EUI-64 of *mac*: RFC 4291, appendix A."""
    identifier = bytes((mac[0] ^ 2, mac[1], mac[2], 0xFF, 0xFE, mac[3], mac[4], mac[5]))
    return IPv6Interface((bytes.fromhex("fe80000000000000") + identifier, 64))
