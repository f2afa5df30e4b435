"""dnsmasq's arguments: each of its configuration's lines can be one, so that it needs no file. dnsmasq(8)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv6Address

_MOST = 254


@frozen(kw_only=True, eq=False, repr=False)
class Served(Value):
    """An interface to serve on."""

    ifname: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


def arguments(
    interfaces: Sequence[Served],
    *,
    dhcp: bool,
    range_: tuple[IPv4Address, IPv4Address] | None,
    lease: float,
    ra: bool,
    domain: str | None,
    servers: Sequence[IPv4Address | IPv6Address],
) -> list[str]:
    # --no-daemon also keeps the user, which it can't change below a user namespace, and logs to standard error.
    # Else it would wait three seconds for an answer from each address before it gives it to somebody.
    made = ["--no-ping", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--bind-dynamic", "--leasefile-ro"]
    made += [f"--interface={served.ifname}" for served in interfaces]
    made += [f"--server={server}" for server in servers]
    if domain is not None:
        made += [f"--domain={domain}", f"--local=/{domain}/", "--expand-hosts"]
    if dhcp or ra:
        made.append("--dhcp-authoritative")
    for served in interfaces:
        for address in served.addresses:
            if isinstance(address, IPv4Interface):
                made += _leases(served.ifname, address, range_, lease) if dhcp else ()
            elif ra:
                prefix = address.network
                made.append(f"--dhcp-range={prefix.network_address},ra-only,{prefix.prefixlen},{int(lease)}")
    if ra and any(isinstance(address, IPv6Interface) for served in interfaces for address in served.addresses):
        made.append("--enable-ra")
    return made


def _leases(
    ifname: str, address: IPv4Interface, range_: tuple[IPv4Address, IPv4Address] | None, lease: float
) -> Iterator[str]:
    network = address.network
    if range_ is not None and range_[0] in network:
        first, last = range_
    elif range_ is None and network.num_addresses > 3:
        # nsorch gives out from the lower end.
        last = network.broadcast_address - 1
        first = max(network.network_address + network.num_addresses // 2, last - (_MOST - 1))
    else:
        return
    yield f"--dhcp-range=set:{ifname},{first},{last},{network.netmask},{int(lease)}"
