"""FRR's configuration, as vtysh reads it. docs.frrouting.org"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

#: of sockets and files of FRR, on a file system that only the worker sees
FOLDER = "/var/tmp/frr"  # noqa: S108 - see launch_frr
#: there once the launcher has done its part
CONFIGURED = f"{FOLDER}/configured"
VTYSH = ("/usr/bin/vtysh", "--vty_socket", FOLDER)
#: programs of the protocols
DAEMONS = {"ospf": "ospfd", "bgp": "bgpd"}
_PRIVATE_NUMBERS = 4_200_000_000  # the first of RFC 6996
# What Linux takes for one argument is less than 128 KiB.
_PIECE = 64_000


@frozen(kw_only=True, eq=False, repr=False)
class Port(Value):
    """An interface of a router.

    :ivar point_to_point: whether there can be one neighbour at most
    :ivar peers: addresses of BGP's neighbours
    """

    ifname: str
    point_to_point: bool
    peers: tuple[IPv4Address | IPv6Address, ...] = ()


@frozen(kw_only=True, eq=False, repr=False)
class Router(Value):
    """:ivar number: of its autonomous system, or None for one made of *place*, which no two of a lab share"""

    name: str
    place: int
    loopbacks: tuple[IPv4Interface | IPv6Interface, ...]
    ports: tuple[Port, ...]
    protocols: tuple[str, ...]
    number: int | None
    area: str
    hello: float
    config: str

    @property
    def router_id(self) -> str:
        return next(str(address.ip) for address in self.loopbacks if address.version == 4)


def command(router: Router) -> list[str]:
    """The launcher, and what it needs to know."""
    from nsorch.services import launch_frr

    text = configuration(router)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    daemons = [DAEMONS[protocol] for protocol in router.protocols]
    if router.config:
        daemons.append("staticd")  # of "ip route", which it may have
    return [sys.executable, "-I", "-S", os.path.abspath(launch_frr.__file__), FOLDER, ",".join(daemons), *pieces]


def configuration(router: Router) -> str:
    """May be given again when there are more links: it only adds."""
    lines = [f"hostname {router.name}"]
    if "ospf" in router.protocols:
        lines += _ospf(router)
    if "bgp" in router.protocols:
        lines += _bgp(router)
    return "\n".join(lines) + "\n" + router.config + ("" if router.config.endswith("\n") else "\n")


def _ospf(router: Router) -> Iterator[str]:
    yield "router ospf"
    yield f" ospf router-id {router.router_id}"
    # Nobody's processor is at risk here, and the defaults make each change take some seconds (RFC 2328, B).
    yield " timers throttle spf 10 50 1000"
    yield " timers throttle lsa all 50"
    yield " timers lsa min-arrival 0"
    yield " maximum-paths 16"
    yield "exit"
    yield "interface lo"
    yield f" ip ospf area {router.area}"
    yield " ip ospf passive"
    yield "exit"
    for port in router.ports:
        yield f"interface {port.ifname}"
        if port.point_to_point:  # nobody has to be elected
            yield " ip ospf network point-to-point"
        yield " ip ospf retransmit-interval 1"
        if router.hello < 1:
            yield f" ip ospf dead-interval minimal hello-multiplier {round(1 / router.hello)}"
        else:
            yield f" ip ospf hello-interval {int(router.hello)}"
            yield f" ip ospf dead-interval {4 * int(router.hello)}"
        yield f" ip ospf area {router.area}"  # last: it begins with this, and waits for a hello of the usual 10 s
        yield "exit"


def _bgp(router: Router) -> Iterator[str]:
    number = _PRIVATE_NUMBERS + router.place if router.number is None else router.number
    peers = [peer for port in router.ports for peer in port.peers]
    yield f"router bgp {number}"
    yield f" bgp router-id {router.router_id}"
    yield " no bgp ebgp-requires-policy"
    yield " no bgp default ipv4-unicast"
    yield " bgp bestpath as-path multipath-relax"
    for peer in peers:
        yield f" neighbor {peer} remote-as external"
        yield f" neighbor {peer} timers 3 9"
        yield f" neighbor {peer} timers connect 1"
        yield f" neighbor {peer} advertisement-interval 0"
    for version, family in ((4, "ipv4"), (6, "ipv6")):
        yield f" address-family {family} unicast"
        yield "  redistribute connected"
        yield "  maximum-paths 16"
        yield from (f"  neighbor {peer} activate" for peer in peers if peer.version == version)
        yield " exit-address-family"
    yield "exit"


def adjacent_neighbours(output: bytes) -> set[str]:
    """Addresses of OSPF's neighbours with which all is exchanged, by ``show ip ospf neighbor json``."""
    neighbours = json.loads(output).get("neighbors", {})
    return {
        entry["ifaceAddress"] for entries in neighbours.values() for entry in entries if entry["converged"] == "Full"
    }


def established_peers(output: bytes) -> set[str]:
    """Addresses of BGP's neighbours whose session is up, by ``show bgp neighbors json``."""
    peers = json.loads(output)
    return {name for name, entry in peers.items() if isinstance(entry, dict) and entry["bgpState"] == "Established"}
