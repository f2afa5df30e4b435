"""What a network namespace does to packets: address translation and a firewall, as plans, and the rules made of them.

Each of the two is a table of its own, replaced as a whole in one transaction: no packet sees half of one.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from nsorch.net import nftables as nft
from nsorch.net.netlink import Request
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
NatKind = Literal["masquerade", "full-cone", "address-restricted", "port-restricted", "symmetric"]
Policy = Literal["accept", "drop"]

_NAT, _FIREWALL = nft.Table("nsorch-nat"), nft.Table("nsorch-firewall")
_PREFIXES = nft.Table("mangle", nft.IPV6)  # the kernel's targets ask for this name
_DESTINATION_NAT, _MANGLE, _FILTER, _SOURCE_NAT, _AFTER_NAT = -100, -150, 0, 100, 150
_UNSPECIFIED = IPv6Network("::/0")
_PROTOCOLS = {"tcp": nft.TCP, "udp": nft.UDP, "icmp": nft.ICMP, "icmpv6": nft.ICMPV6}
R0, R1, R2 = nft.R0, nft.R0 + 1, nft.R0 + 2
# Of the sets of a cone: outside port to inside end, the other way, who was spoken to from an outside port, and the
# ports alone: kernels before 6.5 can't ask a map whether it has a key.
_INBOUND, _OUTBOUND, _PEERS, _PORTS = "inbound", "outbound", "peers", "ports"

Expressions = list[bytes]


@frozen(kw_only=True, eq=False, repr=False)
class ForwardPlan(Value):
    """New connections to the ports *first* to *last* of the outside go to *address*, and to *port* there if given."""

    protocol: Literal["tcp", "udp"]
    first: int
    last: int
    address: IPAddress
    port: int | None = None


@frozen(kw_only=True, eq=False, repr=False)
class PrefixPlan(Value):
    inside: IPv6Network
    outside: IPv6Network


@frozen(kw_only=True, eq=False, repr=False)
class NatPlan(Value):
    """:ivar outside: names of interfaces
    :ivar addresses: of these interfaces, as far as known
    :ivar ipv6: translate IPv6 addresses, too
    :ivar timeout: seconds that an unused mapping of UDP lives, where nsorch's rules keep it
    """

    outside: tuple[str, ...]
    addresses: tuple[IPAddress, ...] = ()
    kind: NatKind = "masquerade"
    forwards: tuple[ForwardPlan, ...] = ()
    ipv6: bool = False
    prefixes: tuple[PrefixPlan, ...] = ()
    timeout: float = 300.0


@frozen(kw_only=True, eq=False, repr=False)
class RulePlan(Value):
    """What is empty or None matches everything; of several networks one has to match."""

    action: Literal["accept", "drop", "reject"]
    chain: Literal["input", "forward", "output"]
    protocol: str | None = None
    ports: tuple[int, int] | None = None
    source: tuple[IPNetwork, ...] = ()
    destination: tuple[IPNetwork, ...] = ()
    incoming: str | None = None
    outgoing: str | None = None


@frozen(kw_only=True, eq=False, repr=False)
class FirewallPlan(Value):
    """:ivar input: what happens to packets to the namespace itself that no rule speaks of"""

    input: Policy = "accept"
    forward: Policy = "accept"
    output: Policy = "accept"
    rules: tuple[RulePlan, ...] = ()


# -- address translation


def nat_requests(plan: NatPlan | None, before: NatPlan | None = None) -> list[Request]:
    """One transaction that makes *plan* of what was there *before*."""
    requests = [*_anew(_NAT, "address translation", plan is not None)]
    if plan is not None:
        requests += _nat(plan)
    prefixes = () if plan is None else plan.prefixes
    if prefixes or (before is not None and before.prefixes):
        requests += _anew(_PREFIXES, "prefix translation", bool(prefixes))
    if plan is not None and prefixes:
        requests += _translate_prefixes(plan)
    return requests


def _anew(table: nft.Table, what: str, wanted: bool) -> Iterator[Request]:
    """Deleting what isn't there is an error, so it is added first."""
    yield Request(table.add(), "add", what)
    yield Request(table.delete(), "remove", what)
    if wanted:
        yield Request(table.add(), "add", what)


def _nat(plan: NatPlan) -> Iterator[Request]:
    cone = plan.kind in ("full-cone", "address-restricted", "port-restricted")
    if cone:
        for message in _cone_sets(plan):
            yield Request(message, "add", f"the mappings of {plan.kind} NAT")
    for name, hook, priority in (
        ("prerouting", nft.PREROUTING, _DESTINATION_NAT),
        ("postrouting", nft.POSTROUTING, _SOURCE_NAT),
    ):
        yield Request(_NAT.add_chain(name, kind="nat", hook=hook, priority=priority), "add", f"nat chain {name}")
    for forward in plan.forwards:
        for expressions in _forward(plan, forward):
            what = f"a port forward of {forward.protocol} {forward.first}"
            yield Request(_NAT.add_rule("prerouting", expressions), "add", what)
    rules: list[tuple[str, Expressions]] = []
    if cone:
        rules += [("prerouting", expressions) for name in plan.outside for expressions in _let_in(plan, name)]
    if plan.forwards and plan.addresses:
        rules.append(("postrouting", _hairpin(plan)))
    for name in plan.outside:
        rules += [("postrouting", expressions) for expressions in _translate(plan, name)]
    for chain, expressions in rules:
        yield Request(_NAT.add_rule(chain, expressions), "add", f"a rule of {plan.kind} NAT")
    if cone:
        mappings = _NAT.add_chain("mappings", kind="filter", hook=nft.POSTROUTING, priority=_AFTER_NAT)
        yield Request(mappings, "add", "chain mappings")
        for name in plan.outside:
            for expressions in _remember(plan, name):
                yield Request(_NAT.add_rule("mappings", expressions), "add", f"a rule of {plan.kind} NAT")


def _cone_sets(plan: NatPlan) -> Iterator[bytes]:
    inside, port = nft.ADDRESS + nft.SERVICE, nft.SERVICE
    yield _NAT.add_set(_INBOUND, number=1, key=port, value=inside, timeout=plan.timeout)
    yield _NAT.add_set(_OUTBOUND, number=2, key=inside, value=port, timeout=plan.timeout)
    yield _NAT.add_set(_PEERS, number=3, key=port + nft.ADDRESS, timeout=plan.timeout)
    yield _NAT.add_set(_PORTS, number=4, key=port, timeout=plan.timeout)


def _forward(plan: NatPlan, forward: ForwardPlan) -> Iterator[Expressions]:
    version = forward.address.version
    matched = [
        *nft.protocol(_PROTOCOLS[forward.protocol]),
        *nft.destination_ports(forward.first, forward.last),
        nft.load(forward.address.packed, R0),
    ]
    if forward.port is None:
        matched.append(nft.change_destination(version, R0))
    else:
        port = R0 + forward.address.max_prefixlen // 32
        matched += [nft.load(struct.pack(">H", forward.port), port), nft.change_destination(version, R0, port)]
    for name in plan.outside:
        yield [*nft.incoming(name), *nft.family(nft.IPV4 if version == 4 else nft.IPV6), *matched]
    # From the inside, by the outside address: RFC 4787, REQ-9.
    for address in plan.addresses:
        if address.version == version:
            elsewhere = [part for name in plan.outside for part in nft.incoming(name, nft.NOT_EQUAL)]
            yield [*elsewhere, *nft.destination(_host(address)), *matched]


def _host(address: IPAddress) -> IPNetwork:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _hairpin(plan: NatPlan) -> Expressions:
    """Who is sent back inside must see the router, or it would answer past it."""
    names = [part for name in plan.outside for part in nft.incoming(name, nft.NOT_EQUAL)]
    names += [part for name in plan.outside for part in nft.outgoing(name, nft.NOT_EQUAL)]
    return [*nft.connection_status(nft.DESTINATION_CHANGED), *names, nft.masquerade()]


def _udp4(match: Expressions) -> Expressions:
    return [*match, *nft.family(nft.IPV4), *nft.protocol(nft.UDP)]


def _let_in(plan: NatPlan, name: str) -> Iterator[Expressions]:
    """What comes to a port that is mapped goes inside, whoever sends it, or only from those spoken to."""
    rule = [*_udp4(nft.incoming(name)), nft.load_destination_port(R0)]
    mapped = [nft.look_up(_INBOUND, key=R0, value=R1), nft.change_destination(4, R1, R2)]
    if plan.kind == "full-cone":
        yield [*rule, *mapped]
        return
    if plan.kind == "address-restricted":
        yield [*rule, nft.load_source(4, R1), nft.look_up(_PEERS, key=R0), *mapped]
    # Were it let through to the router itself, it would be a connection, and its sender not to be had by the same port.
    yield [*rule, nft.look_up(_PORTS, key=R0), nft.verdict(nft.DROP)]


def _translate(plan: NatPlan, name: str) -> Iterator[Expressions]:
    out = nft.outgoing(name)
    ipv4 = [*out, *nft.family(nft.IPV4)]
    if plan.kind in ("full-cone", "address-restricted", "port-restricted"):
        udp = _udp4(out)
        # The port that this inside end has already; its own if that is free; else any.
        inside = [nft.load_source(4, R0), nft.load_source_port(R1)]
        yield [*udp, *inside, nft.look_up(_OUTBOUND, key=R0, value=R0), nft.masquerade(port=R0)]
        yield [*udp, nft.load_source_port(R0), nft.look_up(_PORTS, key=R0, absent=True), nft.masquerade()]
        yield [*udp, nft.masquerade(flags=nft.FULLY_RANDOM)]
    flags = nft.FULLY_RANDOM if plan.kind == "symmetric" else 0
    yield [*ipv4, nft.masquerade(flags=flags)]
    if plan.ipv6:
        yield [*out, *nft.family(nft.IPV6), nft.masquerade(flags=flags)]


def _remember(plan: NatPlan, name: str) -> Iterator[Expressions]:
    """Each packet that leaves, already translated, renews its mapping (RFC 4787, REQ-6)."""
    for direction in (nft.ORIGINAL, nft.REPLY):
        udp = [*_udp4(nft.outgoing(name)), *nft.direction(direction)]
        port = nft.load_source_port(R0)
        inside = [
            nft.load_connection_source(direction, R1),
            nft.load_connection_source_port(direction, R2),
        ]
        yield [*udp, port, *inside, nft.renew(_INBOUND, key=R0, value=R1)]
        yield [*udp, port, *inside, nft.renew(_OUTBOUND, key=R1, value=R0)]
        yield [*udp, port, nft.renew(_PORTS, key=R0)]
        if plan.kind == "address-restricted":
            yield [*udp, port, nft.load_destination(4, R1), nft.renew(_PEERS, key=R0)]


def _translate_prefixes(plan: NatPlan) -> Iterator[Request]:
    """RFC 6296, by the kernel's own stateless translation."""
    for name, hook in (("prerouting", nft.PREROUTING), ("postrouting", nft.POSTROUTING)):
        yield Request(_PREFIXES.add_chain(name, kind="filter", hook=hook, priority=_MANGLE), "add", f"chain {name}")
    for prefixes in plan.prefixes:
        for name in plan.outside:
            leaving = [*nft.outgoing(name), *nft.source(prefixes.inside)]
            coming = [*nft.incoming(name), *nft.destination(prefixes.outside)]
            for chain, match, target in (("postrouting", leaving, "SNPT"), ("prerouting", coming, "DNPT")):
                rule = [*match, nft.translate_prefix(target, prefixes.inside, prefixes.outside)]
                what = f"the translation of {prefixes.inside} to {prefixes.outside}"
                yield Request(_PREFIXES.add_rule(chain, rule), "add", what)


# -- firewall


def firewall_requests(plan: FirewallPlan | None) -> list[Request]:
    """One transaction that makes *plan* of whatever is there."""
    requests = [*_anew(_FIREWALL, "firewall", plan is not None)]
    if plan is not None:
        for name, hook in (("input", nft.INPUT), ("forward", nft.FORWARD), ("output", nft.OUTPUT)):
            requests += _chain(plan, name, hook)
    return requests


def _chain(plan: FirewallPlan, name: str, hook: int) -> Iterator[Request]:
    policy: Policy = getattr(plan, name)
    rules = [rule for rule in plan.rules if rule.chain == name]
    if policy == "accept" and not rules:
        return
    drop = nft.verdict(nft.DROP)
    accept = nft.verdict(nft.ACCEPT)
    code = nft.ACCEPT if policy == "accept" else nft.DROP
    yield Request(_FIREWALL.add_chain(name, kind="filter", hook=hook, priority=_FILTER, policy=code), "add", name)
    # Answers, and ICMP errors about what was sent; what belongs to no connection; and what IPv6 can't live without.
    always = [
        [*nft.connection_state(nft.ESTABLISHED | nft.RELATED), accept],
        [*nft.connection_state(nft.INVALID), drop],
    ]
    if name == "forward":
        always.append([*nft.connection_status(nft.DESTINATION_CHANGED), accept])
    else:
        always.append([*(nft.incoming("lo") if name == "input" else nft.outgoing("lo")), accept])
        always.insert(1, [*nft.protocol(nft.ICMPV6), *nft.icmp_types(133, 137), accept])
        always.insert(2, [*nft.protocol(nft.ICMPV6), *nft.icmp_types(143, 143), accept])
    for expressions in always:
        yield Request(_FIREWALL.add_rule(name, expressions), "add", f"a rule of the {name} chain")
    for number, rule in enumerate(rules):
        for expressions in _rule(rule):
            yield Request(_FIREWALL.add_rule(name, expressions), "add", f"rule {number} of the {name} chain")


def _rule(rule: RulePlan) -> Iterator[Expressions]:
    """One for each pair of networks; two where the kinds of refusal differ."""
    match: Expressions = []
    if rule.incoming is not None:
        match += nft.incoming(rule.incoming)
    if rule.outgoing is not None:
        match += nft.outgoing(rule.outgoing)
    if rule.protocol is not None:
        match += nft.protocol(_PROTOCOLS[rule.protocol])
    if rule.ports is not None:
        match += nft.destination_ports(*rule.ports)
    for networks in _pairs(rule.source, rule.destination):
        for action in _actions(rule):
            yield [*match, *networks, *action]


def _pairs(sources: Sequence[IPNetwork], destinations: Sequence[IPNetwork]) -> Iterable[Expressions]:
    for source in sources or (None,):
        for destination in destinations or (None,):
            if source is None or destination is None or source.version == destination.version:
                yield [
                    *([] if source is None else nft.source(source)),
                    *([] if destination is None else nft.destination(destination)),
                ]


def _actions(rule: RulePlan) -> Iterator[Expressions]:
    if rule.action != "reject":
        yield [nft.verdict(nft.ACCEPT if rule.action == "accept" else nft.DROP)]
        return
    if rule.protocol in (None, "tcp"):
        yield [*(nft.protocol(nft.TCP) if rule.protocol is None else ()), nft.refuse(tcp=True)]
    if rule.protocol != "tcp":
        yield [nft.refuse(tcp=False)]
