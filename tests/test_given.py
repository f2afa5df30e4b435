"""What a topology gives is not taken by what comes before it, and what can't be is refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

import nsorch
from nsorch import Topology, TopologyError
from nsorch.net.addresses import PointToPointPool
from nsorch.topology.checks import POOLS

LAN = {"lan": {"subnet": "10.0.0.0/24"}}
LAN6 = {"lan": {"subnet": "fd00::/64"}}


def ends(*links: Any, **workers: Any) -> dict[str, Any]:
    return {"workers": {"a": {}, "b": {}, **workers}, "links": [{"ends": list(link)} for link in links]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {
                "bridges": LAN,
                "workers": {"a": {"links": ["lan"]}, "b": {"links": [{"to": "lan", "address": "10.0.0.1"}]}},
            },
            {"a": ["10.0.0.2/24"], "b": ["10.0.0.1/24"]},
        ),
        (
            {
                "bridges": {**LAN, "far": {}},
                **ends(("lan", "far"), ({"worker": "b", "address": "10.0.0.1"}, "far"), a={"links": ["lan"]}),
            },
            {"a": ["10.0.0.2/24"], "b": ["10.0.0.1/24"]},
        ),
        (
            {
                "workers": {"a": {}, "b": {}},
                "links": [{"ends": ["a", {"worker": "b", "address": "10.0.0.1"}], "subnet": "10.0.0.0/30"}],
            },
            {"a": ["10.0.0.2/30"], "b": ["10.0.0.1/30"]},
        ),
        (
            {"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", "b"], "mtu": 576}]},
            {"a": ["100.64.0.0/31"], "b": ["100.64.0.1/31"]},
        ),
    ],
)
async def test_given_addresses_stay_free(data: dict[str, Any], expected: dict[str, list[str]]) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.from_dict(data))
        assert {name: [str(address) for address in sup.workers[name].addresses] for name in expected} == expected
        assert (await sup.ping_all()).ok


@pytest.mark.anyio
async def test_given_names_stay_free() -> None:
    data = ends(("a", "b"), ("a:eth0", "b"))
    data["workers"]["a"]["nat"] = "eth1"
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.from_dict(data))
        assert set(sup.links) == {"a:eth1-b:eth0", "a:eth0-b:eth1"}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"bridges": LAN, "workers": {"a": {"links": [{"to": "lan", "address": "10.0.0.0"}]}}},
            "workers.a.links[0].address: 10.0.0.0 is no host's address in 10.0.0.0/24",
        ),
        (
            {"bridges": LAN, "workers": {"a": {"links": [{"to": "lan", "address": "10.0.0.255"}]}}},
            "workers.a.links[0].address: 10.0.0.255 is no host's address in 10.0.0.0/24",
        ),
        (
            {"bridges": {"l": {"subnet": "fd00::/126"}}, "workers": {name: {"links": ["l"]} for name in "abcd"}},
            "bridges.l.subnet: fd00::/126 has 3 addresses for 4 ends",
        ),
        (ends(("a:x", "b"), ("a:x", "b")), 'links[1].ends[0].name: "x" is the name of links[0].ends[0] already'),
        (
            {"bridges": LAN, **ends(("a:x", "b"), a={"links": [{"to": "lan", "name": "x"}]})},
            'links[0].ends[0].name: "x" is the name of workers.a.links[0] already',
        ),
        (ends(("a", "b"), a={"namespaces": ["uts"]}), "links[0].ends[0]: a has the host's network namespace"),
        (
            {"bridges": LAN, "workers": {"a": {"namespaces": {"net": False}, "links": ["lan"]}}},
            "workers.a.links: the worker has the host's network namespace",
        ),
        ({"bridges": {"l": {"subnet": "127.0.0.0/24"}}}, "bridges.l.subnet: 127.0.0.0/24 has addresses that mean"),
        ({"bridges": {"l": {"subnet": "::/64"}}}, "bridges.l.subnet: ::/64 has addresses that mean"),
        ({"bridges": {"l": {"subnet": "fd00::/64", "mtu": 1000}}}, "bridges.l.mtu: 1000 bytes are too few for IPv6"),
        (
            {"bridges": LAN6, "workers": {"a": {"links": [{"to": "lan", "mtu": 68}]}}},
            "workers.a.links[0].mtu: 68 bytes are too few for IPv6",
        ),
        (
            {"bridges": LAN6, "workers": {"a": {}}, "links": [{"ends": ["a", "lan"], "mtu": 68}]},
            "links[0].mtu: 68 bytes are too few for IPv6",
        ),
        (
            {
                "workers": {"a": {}, "b": {}},
                "links": [{"ends": ["a", {"worker": "b", "mtu": 68}], "subnet": "fd00::/64"}],
            },
            "links[0].ends[1].mtu: 68 bytes are too few for IPv6",
        ),
        (
            {"workers": {"a": {}, "b": {}}, "links": [{"ends": ["a", {"worker": "b", "address": "10.0.0.1/24"}]}]},
            "links[0].ends[1].address: 10.0.0.1 is of no subnet: the link has none",
        ),
        (
            {"workers": {"a": {"interfaces": [{"kind": "dummy", "name": "a%b"}]}}},
            'workers.a.interfaces[0].name: "a%b" can\'t be the name of an interface',
        ),
    ],
)
def test_refused_before_anything_is_made(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(TopologyError) as raised:
        Topology.from_dict(data)
    assert [found[: len(problem)] for found in raised.value.problems] == [problem]


def test_links_without_a_subnet_have_theirs_of_the_pools() -> None:
    for network, pool in zip(PointToPointPool().take("x").networks, POOLS, strict=True):
        assert network.network_address == pool.network_address


@pytest.mark.anyio
async def test_a_link_with_too_few_bytes_for_ipv6_is_refused() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "fd00::/64")
        with pytest.raises(TopologyError, match="mtu: 600 bytes are too few for IPv6"):
            await sup.start("a", links=[nsorch.To(lan, mtu=600)])
        worker = await sup.start("a", links=[lan])
        with pytest.raises(TopologyError, match="mtu: 600 bytes are too few for IPv6"):
            await sup.link(worker, lan, mtu=600)
        assert len(sup.links) == 1
