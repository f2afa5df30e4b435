"""Packed messages are what pyroute2 makes of the same; addresses are given out once."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

import nsorch
from nsorch.errors import AddressError, SubnetFullError
from nsorch.net import messages, netlink
from nsorch.net.addresses import PointToPointPool, Segment
from nsorch.net.hosts import HostsEntry, render_entry
from nsorch.net.mac import derive_mac, parse_mac
from nsorch.net.ping import Outcome, Probes, Results

pytestmark = pytest.mark.once

NAMES = st.text("abcxyz019-", min_size=1, max_size=15)
MACS = st.none() | st.binary(min_size=6, max_size=6)
INDICES = st.integers(1, 2**31 - 1)
IPS = st.ip_addresses()


def decode(kind: type, data: bytes) -> dict[str, object]:
    message = kind(data)
    message.decode()
    return message


def attributes(message: dict[str, object]) -> dict[str, object]:
    return dict(message["attrs"])  # type: ignore[attr-defined,misc]


@settings(deadline=None)
@given(NAMES, NAMES, INDICES, MACS, st.none() | st.integers(68, 65535), st.none() | INDICES, st.booleans())
def test_veth(
    name: str, peer: str, index: int, mac: bytes | None, mtu: int | None, master: int | None, up: bool
) -> None:
    first = messages.VethEnd(ifname=name, index=index, mac=mac, mtu=mtu, master=master, up=up)
    second = messages.VethEnd(ifname=peer, netns=7, mac=mac)
    message = decode(ifinfmsg, messages.create_veth(first, second))
    found = attributes(message)
    assert (message["index"], bool(message["flags"] & 1)) == (index, up)  # type: ignore[operator]
    assert found["IFLA_IFNAME"] == name
    assert found.get("IFLA_MTU") == mtu
    assert found.get("IFLA_MASTER") == master
    assert found.get("IFLA_ADDRESS") == (None if mac is None else mac.hex(":"))
    assert found["IFLA_NUM_TX_QUEUES"] == found["IFLA_NUM_RX_QUEUES"] == 1
    info = attributes(found["IFLA_LINKINFO"])  # type: ignore[arg-type]
    assert info["IFLA_INFO_KIND"] == "veth"
    other = attributes(attributes(info["IFLA_INFO_DATA"])["VETH_INFO_PEER"])  # type: ignore[arg-type]
    assert other["IFLA_IFNAME"] == peer
    assert other["IFLA_NET_NS_FD"] == 7


@settings(deadline=None)
@given(NAMES, INDICES, st.none() | st.integers(68, 65535))
def test_bridge(name: str, index: int, mtu: int | None) -> None:
    found = attributes(decode(ifinfmsg, messages.create_bridge(name, index=index, mtu=mtu)))
    info = attributes(found["IFLA_LINKINFO"])  # type: ignore[arg-type]
    assert info["IFLA_INFO_KIND"] == "bridge"
    assert attributes(info["IFLA_INFO_DATA"])["IFLA_BR_MCAST_SNOOPING"] == 0  # type: ignore[arg-type]
    assert found.get("IFLA_MTU") == mtu


@settings(deadline=None)
@given(IPS, st.data(), INDICES)
def test_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject, index: int) -> None:
    length = data.draw(st.integers(0, ip.max_prefixlen))
    interface = ipaddress.ip_interface(f"{ip}/{length}")
    message = decode(ifaddrmsg, messages.address(messages.RTM_NEWADDR, index, interface))
    found = attributes(message)
    assert (message["index"], message["prefixlen"]) == (index, length)
    assert message["family"] == (socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    assert ipaddress.ip_address(found["IFA_LOCAL"]) == ip  # type: ignore[arg-type]
    assert bool(message["flags"] & 2) == (ip.version == 6)  # type: ignore[operator]


@settings(deadline=None)
@given(IPS, st.data(), st.lists(st.tuples(st.booleans(), INDICES), min_size=1, max_size=4))
def test_route(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject, hops: list[tuple[bool, int]]
) -> None:
    length = data.draw(st.integers(0, ip.max_prefixlen))
    network = ipaddress.ip_network(f"{ip}/{length}", strict=False)
    nexthops = [(ip if gateway else None, index) for gateway, index in hops]
    message = decode(rtmsg, messages.route(messages.RTM_NEWROUTE, network, nexthops, source=ip, metric=7))
    found = attributes(message)
    assert message["dst_len"] == length
    assert found["RTA_PRIORITY"] == 7
    if length:
        assert ipaddress.ip_address(found["RTA_DST"]) == network.network_address  # type: ignore[arg-type]
    if len(hops) == 1:
        assert found["RTA_OIF"] == hops[0][1]
        assert ("RTA_GATEWAY" in found) == hops[0][0]
    else:
        assert [hop["oif"] for hop in found["RTA_MULTIPATH"]] == [index for _, index in hops]  # type: ignore[attr-defined]


def test_segment() -> None:
    segment = Segment([ipaddress.IPv4Network("10.0.0.0/29"), ipaddress.IPv6Network("fd00::/64")], "lan")
    first = segment.reserve_first("r1")
    assert [str(a) for a in first] == ["10.0.0.1/29", "fd00::1/64"]
    assert [str(a) for a in segment.allocate("a")] == ["10.0.0.2/29", "fd00::2/64"]
    assert str(segment.reserve("10.0.0.5", "b")) == "10.0.0.5/29"
    with pytest.raises(AddressError, match="used by b"):
        segment.reserve("10.0.0.5", "c")
    with pytest.raises(AddressError, match="outside"):
        segment.reserve("10.0.1.5", "c")
    for bad in ("10.0.0.0", "10.0.0.7"):
        with pytest.raises(AddressError, match="no host's"):
            segment.reserve(bad, "c")
    given = {name: segment.allocate(name) for name in "cde"}
    with pytest.raises(SubnetFullError, match=r"10\.0\.0\.0/29"):
        segment.allocate("f")
    assert tuple(segment.allocate("r1:eth0", gateway="r1")) == first
    segment.release(given["c"])
    assert str(segment.allocate("f")[0]) == "10.0.0.3/29"
    segment.release(first)
    assert tuple(segment.allocate("r1:eth1", gateway="r1")) == first


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=120))
def test_no_address_twice(actions: list[int]) -> None:
    segment = Segment([ipaddress.IPv4Network("10.0.0.0/27")], "lan")
    have: dict[str, ipaddress.IPv4Interface | ipaddress.IPv6Interface] = {}
    for action in actions:
        owner = str(action)
        if owner in have:
            segment.release([have.pop(owner)])
        elif len(have) < 30:
            (address,) = segment.allocate(owner)
            assert address not in have.values()
            have[owner] = address
        else:
            with pytest.raises(SubnetFullError):
                segment.allocate(owner)


def test_pool_avoids_what_the_user_has() -> None:
    pool = PointToPointPool(ipaddress.IPv4Network("10.0.0.0/29"), ipaddress.IPv6Network("fd00::/125"))
    pool.exclude(ipaddress.IPv4Network("10.0.0.2/31"))
    taken = [str(pool.take("x").networks[0]) for _ in range(3)]
    assert taken == ["10.0.0.0/31", "10.0.0.4/31", "10.0.0.6/31"]
    with pytest.raises(SubnetFullError):
        pool.take("y")


def test_a_pool_that_the_user_has_all_of_is_full_at_once() -> None:
    pool = PointToPointPool()
    pool.take("first")
    pool.exclude(ipaddress.IPv4Network("0.0.0.0/0"))
    with pytest.raises(nsorch.SubnetFullError, match="for second"):
        pool.take("second")
    pool = PointToPointPool()
    pool.exclude(ipaddress.IPv4Network("100.64.0.0/16"))
    assert pool.take("x").networks[0] == ipaddress.IPv4Network("100.65.0.0/31")


def test_given_lengths_are_the_subnet_s() -> None:
    segment = Segment([ipaddress.IPv4Network("10.0.0.0/24")], "lan")
    assert str(segment.reserve("10.0.0.7/24", "a")) == str(segment.reserve("10.0.0.8", "b")).replace("8", "7")
    with pytest.raises(nsorch.AddressError, match="another length"):
        segment.reserve("10.0.0.9/16", "c")
    topology = nsorch.Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("w", links=[nsorch.To("lan", address="10.0.0.9/16")])
    assert topology.problems() == ["workers.w.links[0].address: 10.0.0.9/16 has another length than its subnet"]
    with pytest.raises(nsorch.AddressError, match="multicast"):
        topology.bridge("groups", "224.0.0.0/24")


def test_macs_and_hosts() -> None:
    assert derive_mac("a", "eth0") == derive_mac("a", "eth0") != derive_mac("b", "eth0")
    assert derive_mac("a", "eth0")[0] == 2
    assert parse_mac("02:00:00:00:00:0A") == bytes((2, 0, 0, 0, 0, 10))
    for bad in ("nonsense", "01:00:00:00:00:00", "00:00:00:00:00:00"):
        with pytest.raises(AddressError):
            parse_mac(bad)
    text = render_entry(HostsEntry(name="a", loopback=("1.1.1.1",), segments={"lan": ("10.0.0.1",)}))
    assert text.splitlines() == ["1.1.1.1 a", "10.0.0.1 a a.lan"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=20))
def test_pairs_are_asked_with_their_opposites_and_told_as_given(pairs: list[tuple[str, str]]) -> None:
    probes, outcome = Probes(), Outcome(len(pairs))
    for source, target in pairs:
        probes.add(source, target, ipaddress.ip_address("10.0.0.1"))
    results = Results(probes, outcome)
    for number in range(len(pairs)):
        results._numbers[probes.key(number)] = number
    order = list(results.with_opposites())
    assert sorted(order) == list(range(len(pairs)))
    asked = [pairs[number] for number in order]
    for at, (source, target) in enumerate(asked):
        if (target, source) in asked[at + 1 :] and (target, source) not in asked[:at]:
            assert asked[at + 1] == (target, source)
    chunk = probes.select(order)
    assert [chunk.pair(at) for at in range(len(chunk))] == asked
    found = Outcome(len(order))
    for at, number in enumerate(order):
        found.rtts[at] = number
        if number % 3 == 0:
            found.errors[at] = str(number)
    outcome.place(order, found)
    assert list(outcome.rtts) == list(range(len(pairs)))
    assert outcome.errors == {number: str(number) for number in range(0, len(pairs), 3)}


def test_the_processor_is_given_up_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    yields: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("os.sched_yield", lambda: yields.append(now))
    turns = netlink.Turns()
    for _ in range(3):
        turns.end()
    now += 2 * netlink._TURN
    for _ in range(3):
        turns.end()
    assert yields == [100.0, now]
