"""What a router does to packets: address translation and a firewall, as frozen values that have been checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal, get_args

from attrs import field, fields_dict, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import flag, shown
from nsorch.topology.names import name_problem
from nsorch.topology.units import duration
from nsorch.topology.values import below, interface, interfaces, many, one_of, read, read_many
from nsorch.values import Value

NatKind = Literal["masquerade", "full-cone", "address-restricted", "port-restricted", "symmetric"]
Preset = Literal["home", "web-only", "closed"]
Action = Literal["accept", "drop", "reject"]
Chain = Literal["input", "forward", "output"]
Policy = Literal["accept", "drop"]
Protocol = Literal["tcp", "udp", "icmp", "icmpv6"]
Transport = Literal["tcp", "udp"]

NAT_KINDS, FIREWALL_PRESETS, ACTIONS, CHAINS, POLICIES, PROTOCOLS, TRANSPORTS = map(
    get_args, (NatKind, Preset, Action, Chain, Policy, Protocol, Transport)
)


def _outside(value: Any) -> tuple[str, ...]:
    return below("outside", interfaces, value)


def _ports(value: Any) -> tuple[int, int]:
    """From 80, or ``"8000-8010"``."""
    try:
        parts = value if isinstance(value, tuple) else str(value).split("-")
        first, last = int(parts[0]), int(parts[-1])
        fine = not isinstance(value, bool) and len(parts) <= 2 and 1 <= first <= last <= 65535
    except (ValueError, IndexError):
        fine = False
    if not fine:
        raise TopologyError(f"port: {shown(value)} is neither a port from 1 to 65535 nor a range such as 8000-8010")
    return first, last


def _to(value: Any) -> str:
    name = value if isinstance(value, str | IPv4Address | IPv6Address) else getattr(value, "name", None)
    if name is None:
        raise TopologyError(f"to: {shown(value)} is neither an address nor the name of a worker")
    return str(name)


def _split_target(text: str) -> tuple[str, int | None]:
    """``host``, ``host:80``, an address, ``10.0.0.1:80`` or ``[fd00::1]:80``."""
    try:
        return str(ip_address(text)), None
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, ""
    elif not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise TopologyError(f'to: "{port}" is not a port from 1 to 65535')
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        host = str(ip_address(host))
    except ValueError:
        if name_problem(host):
            raise TopologyError(f'to: "{host}" is neither an address nor the name of a worker') from None
    return host, int(port) if port else None


@frozen(eq=False, repr=False)
class Forward(Value):
    """New connections to a port of the outside go inside: ``nsorch.Forward(80, to="web:8080")``.

    :ivar port: of the outside, or a range such as ``"8000-8010"``
    :ivar to: a worker or an address, with another port where that differs (a range keeps its ports)
    """

    port: tuple[int, int] = field(converter=_ports)
    to: str = field(converter=_to)
    protocol: Transport = field(default="tcp", validator=one_of(TRANSPORTS))

    def __attrs_post_init__(self) -> None:
        _, port = _split_target(self.to)
        if port is not None and self.port[0] != self.port[1]:
            raise TopologyError(f'to: "{self.to}" has a port, but a range of ports keeps its own')

    def overlaps(self, other: Forward) -> bool:
        """Whether both are about some port, for the same family."""
        return (
            self.protocol == other.protocol
            and self._version == other._version
            and self.port[0] <= other.port[1]
            and other.port[0] <= self.port[1]
        )

    @property
    def _version(self) -> int:
        """A worker has an IPv4 address, as NATs are for these."""
        return 4 if name_problem(self.host) is None else ip_address(self.host).version

    @property
    def host(self) -> str:
        """Name of a worker, or an address."""
        return _split_target(self.to)[0]

    @property
    def to_port(self) -> int | None:
        """Another port than that of the outside."""
        return _split_target(self.to)[1]


def _prefixes(value: Any) -> tuple[tuple[IPv6Network, IPv6Network], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Iterable) or isinstance(pairs, str | bytes | list):
        raise TopologyError(f"prefixes: {shown(value)} is not a table of prefixes")
    pairs = list(pairs)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise TopologyError(f"prefixes: {shown(value)} is not a table of prefixes")
    return tuple((_prefix(inside), _prefix(outside)) for inside, outside in pairs)


def _prefix(value: Any) -> IPv6Network:
    try:
        network = IPv6Network(str(value))  # a number would be an address
    except ValueError as exc:
        raise TopologyError(f"prefixes: {shown(value)} is not an IPv6 network: {exc}") from None
    if network.prefixlen > 64:
        raise TopologyError(f"prefixes: {network} is longer than 64 bits, which the kernel's NPTv6 doesn't translate")
    return network


def _forwards(value: Any) -> tuple[Forward, ...]:
    return read_many("forwards", Forward, value)


def _timeout(value: Any) -> float:
    try:
        seconds = duration(value)
    except ValueError as exc:
        raise TopologyError(f"timeout: {exc}") from None
    if not 0.001 <= seconds <= 86400:
        raise TopologyError(f"timeout: {shown(value)} is not from 1 ms to a day")
    return seconds


@frozen(eq=False, repr=False)
class Nat(Value):
    """Address translation by a worker: ``nsorch.Nat("up0", kind="full-cone", forwards=[nsorch.Forward(80, to="a")])``.

    :ivar outside: its interfaces to the outside: their names, or the names of what their links lead to
    :ivar kind: how outside ports are given out and who may answer (RFC 4787): ``"masquerade"`` as Linux does it,
        ``"full-cone"``, ``"address-restricted"``, ``"port-restricted"``, ``"symmetric"``
    :ivar forwards: ports of the outside that lead inside
    :ivar ipv6: translate IPv6 addresses in the same way; else they are only routed
    :ivar prefixes: IPv6 prefixes of the inside and what they are outside (NPTv6, RFC 6296)
    :ivar timeout: seconds that an unused UDP mapping of a cone lives
    """

    outside: tuple[str, ...] = field(converter=_outside)
    kind: NatKind = field(default="masquerade", kw_only=True, validator=one_of(NAT_KINDS))
    forwards: tuple[Forward, ...] = field(default=(), kw_only=True, converter=_forwards)
    ipv6: bool = field(default=False, kw_only=True, validator=flag)
    prefixes: tuple[tuple[IPv6Network, IPv6Network], ...] = field(default=(), kw_only=True, converter=_prefixes)
    timeout: float = field(default=300.0, kw_only=True, converter=_timeout)

    def __attrs_post_init__(self) -> None:
        if not self.outside:
            raise TopologyError("outside: the interface to the outside is missing")
        for number, forward in enumerate(self.forwards):
            for before, other in enumerate(self.forwards[:number]):
                if forward.overlaps(other):
                    raise TopologyError(f"forwards[{number}].port: forwards[{before}] has a port of it already")
        for inside, outside in self.prefixes:
            if inside.prefixlen != outside.prefixlen:
                raise TopologyError(f"prefixes: {inside} and {outside} are not of one length")


def _ends(value: Any) -> tuple[str, ...]:
    """Networks as their text, and names."""
    return tuple(_end(item) for item in many(value))


def _end(value: Any) -> str:
    name = value if isinstance(value, str | IPv4Network | IPv6Network) else getattr(value, "name", value)
    try:
        return str(ip_network(str(name)))
    except ValueError:
        if name_problem(name):
            raise TopologyError(f"{shown(name)} is neither a network nor a worker or bridge") from None
    return str(name)


def _source(value: Any) -> tuple[str, ...]:
    return below("source", _ends, value)


def _destination(value: Any) -> tuple[str, ...]:
    return below("destination", _ends, value)


def _incoming(value: Any) -> str | None:
    return None if value is None else below("incoming", interface, value)


def _outgoing(value: Any) -> str | None:
    return None if value is None else below("outgoing", interface, value)


def _optional_ports(value: Any) -> tuple[int, int] | None:
    return None if value is None else _ports(value)


@frozen(eq=False, repr=False)
class Rule(Value):
    """What happens to packets that all of it matches: ``nsorch.Rule("accept", protocol="tcp", port=22)``.

    :ivar action: ``"accept"``, ``"drop"``, or ``"reject"`` with an answer
    :ivar chain: packets to the worker itself (``"input"``), through it (``"forward"``) or from it (``"output"``)
    :ivar port: of the destination, or a range such as ``"8000-8010"``, of *protocol* tcp or udp
    :ivar source: networks, workers or bridges, of which one has to match
    :ivar incoming: interface that they came by, or what its link leads to
    """

    action: Action = field(validator=one_of(ACTIONS))
    chain: Chain = field(default="input", kw_only=True, validator=one_of(CHAINS))
    protocol: Protocol | None = field(default=None, kw_only=True, validator=one_of(PROTOCOLS, empty=True))
    port: tuple[int, int] | None = field(default=None, kw_only=True, converter=_optional_ports)
    source: tuple[str, ...] = field(default=(), kw_only=True, converter=_source)
    destination: tuple[str, ...] = field(default=(), kw_only=True, converter=_destination)
    incoming: str | None = field(default=None, kw_only=True, converter=_incoming)
    outgoing: str | None = field(default=None, kw_only=True, converter=_outgoing)

    def __attrs_post_init__(self) -> None:
        if self.port is not None and self.protocol not in TRANSPORTS:
            raise TopologyError("port: only tcp and udp have ports: say which protocol")
        if self.chain == "output" and self.incoming is not None:
            raise TopologyError("incoming: what the worker sends has come by no interface")
        if self.chain == "input" and self.outgoing is not None:
            raise TopologyError("outgoing: what the worker receives leaves by no interface")


def _rules(value: Any) -> tuple[Rule, ...]:
    return read_many("rules", Rule, value)


@frozen(eq=False, repr=False)
class Firewall(Value):
    """Which packets a worker lets pass: ``nsorch.Firewall("home", outside="up0", rules=[…])``.

    It keeps account of connections: what belongs to one that was let pass, passes; IPv6's neighbour discovery, too.

    :ivar preset: ``"home"`` lets nothing in from the outside that wasn't asked for, or forwarded by the NAT;
        ``"web-only"`` besides lets out only HTTP, HTTPS, DNS and NTP; ``"closed"`` lets nothing in and nothing through
    :ivar outside: interfaces that the preset is about; the NAT's if empty
    :ivar input: what happens to packets that no rule speaks of, ``"accept"`` or ``"drop"``; the preset's if None
    :ivar rules: the first that matches decides; those of the preset come behind
    """

    preset: Preset | None = field(default=None, validator=one_of(FIREWALL_PRESETS, empty=True))
    outside: tuple[str, ...] = field(default=(), kw_only=True, converter=_outside)
    input: Policy | None = field(default=None, kw_only=True, validator=one_of(POLICIES, empty=True))
    forward: Policy | None = field(default=None, kw_only=True, validator=one_of(POLICIES, empty=True))
    output: Policy | None = field(default=None, kw_only=True, validator=one_of(POLICIES, empty=True))
    rules: tuple[Rule, ...] = field(default=(), kw_only=True, converter=_rules)

    @property
    def needs_outside(self) -> bool:
        return self.preset in ("home", "web-only")

    def policy(self, chain: Chain) -> Policy:
        given: Policy | None = getattr(self, chain)
        return given or ("drop" if self.preset == "closed" and chain != "output" else "accept")

    def rules_for(self, outside: Sequence[str]) -> Iterator[Rule]:
        """All of them, the preset's for interfaces *outside*."""
        yield from self.rules
        if self.preset == "web-only":
            for name in outside:
                for port in (80, 443, 53):
                    yield Rule("accept", chain="forward", protocol="tcp", port=port, outgoing=name)
                for port in (443, 53, 123):
                    yield Rule("accept", chain="forward", protocol="udp", port=port, outgoing=name)
                yield Rule("reject", chain="forward", outgoing=name)
        if self.needs_outside:
            for name in outside:
                # Answers to a DHCPv6 client come from another address than it asked (RFC 8415).
                yield Rule("accept", protocol="udp", port=546, source="fe80::/10", incoming=name)
                yield Rule("drop", incoming=name)
                yield Rule("drop", chain="forward", incoming=name)


# -- from plain mappings


def to_nat(value: Any) -> Nat | None:
    return None if value is None else read("nat", Nat, value, "outside")


def to_firewall(value: Any) -> Firewall | None:
    return None if value is None else read("firewall", Firewall, value, "preset")


def to_plain(value: Forward | Nat | Rule | Firewall | None) -> Any:
    """As a file has it: plain types, defaults left out; the first key alone as its value."""
    if value is None:
        return None
    plain = {
        name: _plain(name, item)
        for name, attribute in fields_dict(type(value)).items()
        if (item := getattr(value, name)) != attribute.default
    }
    first = next(iter(fields_dict(type(value))))
    return plain[first] if plain.keys() == {first} and isinstance(value, Nat | Firewall) else plain


def _plain(name: str, value: Any) -> Any:
    if name == "port":
        return value[0] if value[0] == value[1] else f"{value[0]}-{value[1]}"
    if name == "prefixes":
        return {str(inside): str(outside) for inside, outside in value}
    if name in ("outside", "source", "destination"):
        return value[0] if len(value) == 1 else list(value)
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


# -- what they refer to


def filter_names(nat: Nat | None, firewall: Firewall | None) -> Iterator[tuple[str, str]]:
    """(path, name) of all workers and bridges whose addresses the rules go by."""
    for number, forward in enumerate(() if nat is None else nat.forwards):
        if not name_problem(forward.host):
            yield f"nat.forwards[{number}].to", forward.host
    for number, rule in enumerate(() if firewall is None else firewall.rules):
        for key in ("source", "destination"):
            for name in getattr(rule, key):
                if not name_problem(name):
                    yield f"firewall.rules[{number}].{key}", name


def interface_names(nat: Nat | None, firewall: Firewall | None) -> Iterator[tuple[str, str]]:
    """(path, name) of all interfaces, or of what these lead to."""
    for part, names in (
        ("nat", () if nat is None else nat.outside),
        ("firewall", firewall.outside if firewall else ()),
    ):
        yield from ((f"{part}.outside", name) for name in names)
    for number, rule in enumerate(() if firewall is None else firewall.rules):
        for key in ("incoming", "outgoing"):
            if (name := getattr(rule, key)) is not None:
                yield f"firewall.rules[{number}].{key}", name


def outside_problem(nat: Nat | None, firewall: Firewall | None) -> str | None:
    """Why a firewall doesn't know its outside, or None."""
    if firewall is not None and firewall.needs_outside and not firewall.outside and nat is None:
        return f'firewall.outside: the preset "{firewall.preset}" has to know the interface to the outside'
    return None
