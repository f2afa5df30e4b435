"""A network namespace that doesn't hear others: packets from their addresses are dropped when they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.net import nftables as nft
from nsorch.net.netlink import Request
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

_TABLE = nft.Table("nsorch-partition")
_CHAIN = "prerouting"
# Before everything else: -300 is where the kernel's own "raw" begins.
_FIRST = -400
_AT_ONCE = 1000


@frozen(kw_only=True, eq=False, repr=False)
class PartitionPlan(Value):
    """Whom not to hear. Hardware addresses are those of neighbours, whatever they send or forward; the others come
    through routers, too."""

    addresses: frozenset[IPv4Address | IPv6Address] = frozenset()
    macs: frozenset[bytes] = frozenset()


def partition_requests(plan: PartitionPlan | None) -> list[Request]:
    """One transaction that makes *plan* of whatever is there."""
    requests = [Request(_TABLE.add(), "add", "partition"), Request(_TABLE.delete(), "remove", "partition")]
    if plan is not None:
        requests += _partition(plan)
    return requests


def _partition(plan: PartitionPlan) -> Iterator[Request]:
    yield Request(_TABLE.add(), "add", "partition")
    chain = _TABLE.add_chain(_CHAIN, kind="filter", hook=nft.PREROUTING, priority=_FIRST)
    yield Request(chain, "add", "chain prerouting")
    ipv4 = [address.packed for address in plan.addresses if address.version == 4]
    ipv6 = [address.packed for address in plan.addresses if address.version == 6]
    sets = (
        ("ipv4", nft.ADDRESS, [*nft.family(nft.IPV4), nft.load_source(4)], ipv4),
        ("ipv6", nft.ADDRESS6, [*nft.family(nft.IPV6), nft.load_source(6)], ipv6),
        ("ethernet", nft.HARDWARE, nft.load_hardware_source(), list(plan.macs)),
    )
    for number, (name, kind, match, members) in enumerate(sets):
        if not members:
            continue
        yield Request(_TABLE.add_set(name, number=number, key=kind), "add", f"the set {name}")
        ordered = sorted(members)
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            yield Request(_TABLE.add_members(name, number=number, members=some), "fill", f"the set {name}")
        rule = [*match, nft.look_up(name), nft.verdict(nft.DROP)]
        yield Request(_TABLE.add_rule(_CHAIN, rule), "add", f"the rule for {name}")
