"""What programs that nsorch knows are to do in a worker, as frozen values that have been checked: they give it its
command, and say when it is ready."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Literal, get_args

from attrs import field, fields_dict, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import flag, shown
from nsorch.topology.names import name_problem
from nsorch.topology.namespaces import New
from nsorch.topology.units import duration
from nsorch.topology.values import below, interfaces, many, read
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsorch.topology.interfaces import Tun
    from nsorch.topology.namespaces import NamespaceSet
    from nsorch.topology.specs import WorkerSpec

RoutingProtocol = Literal["ospf", "bgp"]
ROUTING_PROTOCOLS = get_args(RoutingProtocol)
LEAST_LEASE = 120.0  # dnsmasq's own
_PREFIX_LENGTHS = (32, 40, 48, 56, 64, 96)  # RFC 6052, 2.2
#: tayga's, in its worker
TAYGA_INTERFACE = "nat64"


def _inside(value: Any) -> tuple[str, ...]:
    return below("inside", interfaces, value)


def _range(value: Any) -> tuple[IPv4Address, IPv4Address] | None:
    """From ``"10.0.0.100-10.0.0.200"``."""
    if value is None:
        return None
    try:
        parts = value if isinstance(value, tuple | list) else str(value).split("-")
        first, last = (IPv4Address(str(part).strip()) for part in parts)
    except ValueError:
        raise TopologyError(f"range: {shown(value)} is not such as 10.0.0.100-10.0.0.200") from None
    if first > last:
        raise TopologyError(f"range: {first} is behind {last}")
    return first, last


def _seconds(key: str, value: Any) -> float:
    try:
        return duration(value)
    except ValueError as exc:
        raise TopologyError(f"{key}: {exc}") from None


def _lease(value: Any) -> float:
    seconds = _seconds("lease", value)
    if seconds < LEAST_LEASE:
        raise TopologyError(f"lease: {shown(value)} is below two minutes, the shortest that dnsmasq gives")
    return seconds


def _domain(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or any(name_problem(part) for part in value.split("."))):
        raise TopologyError(f"domain: {shown(value)} is not the name of a domain")
    return value


def _servers(value: Any) -> tuple[IPv4Address | IPv6Address, ...]:
    try:
        return tuple(ip_address(str(item)) for item in many(value))
    except ValueError as exc:
        raise TopologyError(f"servers: {exc}") from None


@frozen(eq=False, repr=False)
class Dnsmasq(Value):
    """DHCP, DNS and router advertisements by dnsmasq (Debian: dnsmasq-base): ``service=nsorch.Dnsmasq("home")``.

    DNS answers with the lab's names, also those of workers that come later. The worker is ready when it answers.

    :ivar inside: interfaces of the worker to serve on: their names, or the names of what their links lead to
    :ivar dhcp: give out IPv4 addresses, with the worker as router and DNS server
    :ivar range: of the addresses given out; the upper half of each interface's subnet, at most 254 of it, if None
    :ivar lease: seconds, at least two minutes
    :ivar ra: advertise the IPv6 prefixes of the interfaces, for addresses that hosts make themselves (SLAAC)
    :ivar domain: of the lab's names, besides the names alone
    :ivar servers: DNS servers to ask for all other names; without, these don't exist
    """

    inside: tuple[str, ...] = field(converter=_inside)
    dhcp: bool = field(default=True, kw_only=True, validator=flag)
    range: tuple[IPv4Address, IPv4Address] | None = field(default=None, kw_only=True, converter=_range)
    lease: float = field(default=3600.0, kw_only=True, converter=_lease)
    ra: bool = field(default=True, kw_only=True, validator=flag)
    domain: str | None = field(default=None, kw_only=True, converter=_domain)
    servers: tuple[IPv4Address | IPv6Address, ...] = field(default=(), kw_only=True, converter=_servers)

    def __attrs_post_init__(self) -> None:
        if not self.inside:
            raise TopologyError("inside: the interface to serve on is missing")


def _protocols(value: Any) -> tuple[RoutingProtocol, ...]:
    found = tuple(many(value))
    for name in found:
        if name not in ROUTING_PROTOCOLS:
            raise TopologyError(f"protocols: {shown(name)} is none of {', '.join(ROUTING_PROTOCOLS)}")
    return tuple(dict.fromkeys(found))


def _asn(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**32 - 1):
        raise TopologyError(f"asn: {shown(value)} is not the number of an autonomous system")
    return value


def _area(value: Any) -> str:
    try:
        area = str(value)
        IPv4Address(int(area) if area.isdecimal() else area)
    except ValueError:
        raise TopologyError(f"area: {shown(value)} is neither a number nor such as 0.0.0.1") from None
    return area


def _hello(value: Any) -> float:
    seconds = _seconds("hello", value)
    if not (0.1 <= seconds < 1 or (1 <= seconds <= 65535 and seconds == int(seconds))):
        raise TopologyError(f"hello: {shown(value)} is neither whole seconds nor from 0.1 s to 1 s")
    return seconds


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TopologyError(f"config: {shown(value)} is not a text")
    return value


def _timeout(value: Any) -> float:
    return _seconds("timeout", value)


@frozen(eq=False, repr=False)
class Frr(Value):
    """Dynamic routing by FRR (Debian: frr): ``service=nsorch.Frr("ospf")``. It implies ``forward``.

    The worker gets loopback addresses, and a configuration made of its links. It is ready when it has converged: all
    neighbours that run the same protocol are adjacent, and there are routes to the loopback addresses of all that can
    be reached through these.

    :ivar protocols: ``"ospf"`` (OSPFv2: IPv4) and ``"bgp"`` (one autonomous system a worker; IPv4 and IPv6)
    :ivar asn: the number of its autonomous system; one of its own, of those for private use (RFC 6996), if None
    :ivar area: of OSPF, of all its links
    :ivar hello: seconds between two of OSPF's hellos, a whole number, or a part of one down to 0.1; after four without
        any a neighbour is gone
    :ivar config: more lines of configuration, as ``vtysh`` takes them
    :ivar timeout: seconds until it has to have converged
    """

    protocols: tuple[RoutingProtocol, ...] = field(converter=_protocols)
    asn: int | None = field(default=None, kw_only=True, converter=_asn)
    area: str = field(default="0", kw_only=True, converter=_area)
    hello: float = field(default=1.0, kw_only=True, converter=_hello)
    config: str = field(default="", kw_only=True, converter=_text)
    timeout: float = field(default=60.0, kw_only=True, converter=_timeout)

    def __attrs_post_init__(self) -> None:
        if not self.protocols:
            raise TopologyError("protocols: none is given")


def _translated(value: Any) -> IPv6Network:
    try:
        network = IPv6Network(str(value))
    except ValueError as exc:
        raise TopologyError(f"prefix: {shown(value)} is not an IPv6 network: {exc}") from None
    if network.prefixlen not in _PREFIX_LENGTHS:
        lengths = ", ".join(f"/{length}" for length in _PREFIX_LENGTHS)
        raise TopologyError(f"prefix: {network} is none of {lengths} (RFC 6052)")
    return network


def _pool(value: Any) -> IPv4Network:
    try:
        network = IPv4Network(str(value))
    except ValueError as exc:
        raise TopologyError(f"pool: {shown(value)} is not an IPv4 network: {exc}") from None
    if network.prefixlen > 30:
        raise TopologyError(f"pool: {network} has no room for tayga's own address and another")
    return network


@frozen(eq=False, repr=False)
class Tayga(Value):
    """NAT64 by tayga (Debian: tayga): ``service=nsorch.Tayga("64:ff9b::/96")``. It implies ``forward``.

    Who has IPv6 alone reaches who has IPv4 alone by *prefix*, with the IPv4 address behind it. Each is seen with an
    address of *pool*; with the worker's ``nat``, as any packet to its outside, by that of the worker. The worker has an
    interface ``nat64``, and is ready when tayga has opened it.

    :ivar prefix: of 32, 40, 48, 56, 64 or 96 bits (RFC 6052). Behind 64:ff9b::/96 tayga translates no private IPv4
        addresses and none of documentation, as that RFC demands; behind any other it does
    :ivar pool: IPv4 addresses of those with IPv6, for two hours after their last packet; the first is tayga's
    """

    prefix: IPv6Network = field(converter=_translated)
    pool: IPv4Network = field(default=IPv4Network("192.168.255.0/24"), kw_only=True, converter=_pool)


Service = Dnsmasq | Frr | Tayga


SERVICES: dict[str, type[Service]] = {"dnsmasq": Dnsmasq, "frr": Frr, "tayga": Tayga}
#: program and Debian package of each
PROGRAMS = {Dnsmasq: ("dnsmasq", "dnsmasq-base"), Frr: ("/usr/lib/frr/zebra", "frr"), Tayga: ("tayga", "tayga")}


def to_service(value: Any) -> Service | None:
    """From one of them, or ``{"dnsmasq": {…}}``."""
    if value is None or isinstance(value, Service):
        return value
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in SERVICES:
        raise TopologyError(f"service: is {' or '.join(f'{{ {name} = … }}' for name in SERVICES)}")
    ((name, options),) = value.items()
    kind = SERVICES[name]
    made: Service = read(f"service.{name}", kind, options, next(iter(fields_dict(kind))))
    return made


def service_to_plain(value: Service | None) -> Any:
    """As a file has it: plain types, defaults left out."""
    if value is None:
        return None
    plain = {
        key: _plain(key, item)
        for key, attribute in fields_dict(type(value)).items()
        if (item := getattr(value, key)) != attribute.default
    }
    first = next(iter(fields_dict(type(value))))
    name = next(name for name, kind in SERVICES.items() if isinstance(value, kind))
    return {name: plain[first] if plain.keys() == {first} else plain}


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, IPv4Network | IPv6Network):
        return str(value)
    if key == "range":
        return f"{value[0]}-{value[1]}"
    if isinstance(value, tuple):
        texts = [str(item) for item in value]
        return texts[0] if len(texts) == 1 else texts
    return value


def check_worker(spec: WorkerSpec, service: Service, namespaces: NamespaceSet) -> None:
    """
    :raises TopologyError: the service can't run in it
    """
    if isinstance(service, Frr) and not (isinstance(namespaces.net, New) and isinstance(namespaces.mnt, New)):
        raise TopologyError("service: only in network and mount namespaces of its own")
    if isinstance(service, Tayga) and not isinstance(namespaces.net, New):
        raise TopologyError("service: only in a network namespace of its own")
    if forwards(service) and spec.rootfs is not None:  # Python launches it
        _, package = PROGRAMS[type(service)]
        raise TopologyError(f"service: {package} is the host's, which the worker's rootfs hides")


def own_routes(service: Service) -> tuple[tuple[IPv4Network | IPv6Network, str], ...]:
    """Networks that are behind its own interface, with the name of that."""
    if not isinstance(service, Tayga):
        return ()
    return (service.prefix, TAYGA_INTERFACE), (service.pool, TAYGA_INTERFACE)


def own_interfaces(service: Service | None) -> tuple[Tun, ...]:
    """That a worker has for its service, besides those of its description."""
    if not isinstance(service, Tayga):
        return ()
    from nsorch.topology.interfaces import Tun

    return (Tun(TAYGA_INTERFACE),)


def forwards(service: Service | None) -> bool:
    """Whether it is about what is forwarded."""
    return isinstance(service, Frr | Tayga)


def served_interfaces(service: Service | None) -> Iterator[tuple[str, str]]:
    """(path, name) of the interfaces that it names, or of what these lead to."""
    if isinstance(service, Dnsmasq):
        yield from (("service.dnsmasq.inside", name) for name in service.inside)
