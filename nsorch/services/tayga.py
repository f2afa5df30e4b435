"""tayga's configuration. tayga.conf(5)"""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

WELL_KNOWN = IPv6Network("64:ff9b::/96")
# Those that have no address behind the well-known prefix (RFC 6052, 3.1): tayga's addrmap.c, is_private_ip4_addr.
_LOCAL = [
    IPv4Network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"),
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    )
]
# Where tayga has an IPv6 address, which errors come from: it may be in no prefix that it translates.
_OWN = int(IPv6Address("fd6e:736f:7265::"))


def is_local(network: IPv4Network) -> bool:
    """Whether tayga refuses to translate it behind the well-known prefix."""
    return any(network.subnet_of(local) for local in _LOCAL)


def command(program: str, *, interface: str, prefix: IPv6Network, pool: IPv4Network) -> list[str]:
    """The launcher, and what it needs to know."""
    from nsorch.services import launch_tayga

    text = configuration(interface=interface, prefix=prefix, pool=pool)
    return [sys.executable, "-I", "-S", os.path.abspath(launch_tayga.__file__), program, text]


def configuration(*, interface: str, prefix: IPv6Network, pool: IPv4Network) -> str:
    own = IPv4Address(int(pool.network_address) + 1)
    lines = [
        f"tun-device {interface}",
        f"ipv4-addr {own}",
        f"ipv6-addr {IPv6Address(_OWN + int(own))}",
        f"prefix {prefix}",
        f"dynamic-pool {pool}",
    ]
    return "\n".join(lines) + "\n"
