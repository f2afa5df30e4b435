"""Routed networks, up to all of the real ones, as the kernel has them."""

from __future__ import annotations

import pathlib
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsorch
from nsorch import Topology
from nsorch.core.spawner.syscalls import CLONE_NEWNET
from nsorch.net import messages
from nsorch.net.engine import Engine
from nsorch.net.netlink import NetnsHandle
from nsorch.net.plan import NextHop, RouteGroup

if TYPE_CHECKING:
    from collections.abc import Callable

TOPOLOGIES = pathlib.Path(__file__).parent.parent.parent / "shared" / "topologies"


@given(
    st.sampled_from([4, 6]).flatmap(
        lambda version: st.tuples(
            st.just(version),
            st.lists(st.ip_addresses(v=version), min_size=1, max_size=9),
            st.lists(st.tuples(st.ip_addresses(v=version), st.integers(1, 99)), min_size=1, max_size=3),
            st.none() | st.ip_addresses(v=version),
        )
    ),
    st.integers(1, 2**31 - 100),
)
def test_many_routes_are_packed_as_one_by_one(
    drawn: tuple[int, list[IPv4Address | IPv6Address], list[tuple[IPv4Address | IPv6Address, int]], IPv4Address | None],
    sequence: int,
) -> None:
    version, destinations, hops, source = drawn
    host = ip_network("0.0.0.0/32" if version == 4 else "::/128")
    template = messages.route(messages.RTM_NEWROUTE, host, hops, source=source, replace=True)
    packed = b"".join(address.packed for address in destinations)
    made = bytes(messages.copies(template, [messages.route_destinations(version, packed)], sequence))
    expected = b""
    for number, address in enumerate(destinations):
        one = bytearray(messages.route(messages.RTM_NEWROUTE, ip_network(address), hops, source=source, replace=True))
        one[8:12] = (sequence + number).to_bytes(4, "little")
        if number == len(destinations) - 1:
            one[6] |= messages.NLM_F_ACK
        expected += one
    assert made == expected


async def routes(worker: nsorch.Worker) -> str:
    return (await worker.run(["ip", "route"])).stdout.decode()


@pytest.mark.anyio
async def test_equal_paths_are_one_multipath_route_and_come_back_with_their_link() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.ring(4))
        other = str(sup.workers["n2"].addresses[0].ip)
        assert (await sup.ping_all()).ok
        try:
            shown = await routes(sup.workers["n0"])
        except nsorch.CommandNotFoundError:
            pytest.skip("there is no ip command")
        (block,) = [part for part in shown.split("\n1") if other.removeprefix("1") in part.split("proto")[0]]
        assert block.count("nexthop via") == 2
        link = next(link for link in sup.links.values() if {"n0:eth0", "n1:eth0"} == set(link.ends))
        await link.down()
        assert not (await sup.ping_all([("n0", "n1")], timeout=0.1, attempts=1)).ok
        await link.up()
        assert (await sup.ping_all()).ok
        assert sorted((await routes(sup.workers["n0"])).split()) == sorted(shown.split())


@pytest.mark.anyio
async def test_neighbours_of_routed_links_are_permanent() -> None:
    # They don't count against the 1,024 neighbours that all network namespaces share.
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.linear(3))
        table = (await sup.workers["n1"].run(["cat", "/proc/net/arp"])).stdout.decode().splitlines()[1:]
        assert len(table) == 2
        assert {line.split()[2] for line in table} == {"0x6"}  # complete and permanent


@pytest.mark.anyio
async def test_a_route_that_is_refused_is_named() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        worker = await sup.start("a", links=[lan])
        sock = await worker.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        with sock:
            handle = NetnsHandle(fd=worker._held[CLONE_NEWNET], sock=sock, name="a")
            engine = Engine(sock)
            packed = b"".join(ip_address(f"10.9.{n // 250}.{n % 250}").packed for n in range(300))
            good = RouteGroup(4, (NextHop(via=ip_address("10.0.0.9"), dev="eth0"),), None, packed)
            engine.add_groups(handle, [good])
            bad = RouteGroup(4, (NextHop(via=ip_address("192.168.7.7"), dev="eth0"),), None, packed)
            with pytest.raises(nsorch.NetlinkError, match="add route to 10.9.0.0") as raised:
                engine.add_groups(handle, [bad])
        assert raised.value.worker == "a"
        assert len((await worker.run(["cat", "/proc/net/route"])).stdout.splitlines()) == 302


@pytest.mark.anyio
async def test_the_least_delay_or_weight_or_hops_decide() -> None:
    def lab(metric: str) -> Topology:
        topology = Topology(routing="shortest-path", metric=metric)
        for name in ("a", "b", "c"):
            topology.worker(name, forward=True)
        topology.link("a", "b", weight=10)
        topology.link("a", "c")
        topology.link("c", "b")
        return topology

    for metric, expected in (("weight", "eth1"), ("hops", "eth0")):
        async with nsorch.Supervisor() as sup:
            await sup.deploy(lab(metric))
            packed = int.from_bytes(sup.workers["b"].addresses[0].ip.packed, "little")
            table = (await sup.workers["a"].run(["cat", "/proc/net/route"])).stdout.decode().splitlines()
            assert [line.split()[0] for line in table if line.split()[1] == f"{packed:08X}"] == [expected]
            assert (await sup.ping_all()).ok


@pytest.mark.anyio
async def test_families_have_paths_of_their_own() -> None:
    topology = Topology(routing="shortest-path")
    for name in ("a", "b", "c", "d"):
        topology.worker(name, forward=True)
    topology.bridge("lan", "10.0.0.0/24")
    topology.link("a", "lan")
    topology.link("b", "lan")
    topology.link("a", "c")
    topology.link("c", "d")
    topology.link("d", "b")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        for version in (4, 6):
            assert (await sup.ping_all(version=version)).ok
        gateways = {hop.via for worker in "cd" for hop in hops_between(sup, worker, "b")}
        assert {address.version for address in gateways if address is not None} == {4, 6}
        assert [hop.dev for hop in hops_between(sup, "a", "b")] == ["eth0", "eth1"], "IPv6 goes round"
        with pytest.raises(nsorch.UnsupportedError, match="no IPv6 address"):
            await sup.ping_all([("a", await sup.start("silent"))], version=6)


def hops_between(sup: nsorch.Supervisor, source: str, target: str) -> list[NextHop]:
    own = [address.ip.packed for address in sup.workers[target].addresses[:2]]
    groups = sup._wiring.routing.groups_of(source)
    return [hop for group in groups for hop in group.nexthops if any(key in group.destinations for key in own)]


@pytest.mark.anyio
async def test_the_way_into_a_bridge_costs_what_its_link_weighs() -> None:
    topology = Topology(routing="shortest-path")
    for name in ("a", "b", "c"):
        topology.worker(name, forward=True)
    topology.bridge("slow", ("10.0.0.0/24", "fd00::/64"))
    topology.bridge("fast", ("10.0.1.0/24", "fd00:0:0:1::/64"))
    for name in ("a", "b", "c"):
        topology.link(name, "slow", weight=3)
        topology.link(name, "fast", weight=0.5)
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        assert (await sup.ping_all()).ok
        assert {hop.dev for hop in hops_between(sup, "a", "b")} == {"eth1"}


@pytest.mark.anyio
async def test_packets_live_for_as_many_hops_as_there_are() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.linear(90))
        for version in (4, 6):
            assert (await sup.ping_all([("n0", "n89"), ("n89", "n0"), ("n10", "n80")], version=version)).ok


@pytest.mark.anyio
async def test_progress_of_pings() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.linear(4))
        seen: list[int] = []
        reachability = await sup.ping_all(progress=seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == len(reachability.pairs) == 12
        assert reachability.pairs["n0", "n3"].rtt is not None
        assert set(reachability.pairs) == {(f"n{a}", f"n{b}") for a in range(4) for b in range(4) if a != b}
        for missing in (("n0", "n0"), ("n0", "x")):
            with pytest.raises(KeyError):
                reachability.pairs[missing]


@pytest.mark.anyio
@pytest.mark.skipif(not TOPOLOGIES.is_dir(), reason="../shared/topologies is not here")
@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.graphml")), ids=lambda path: path.stem)
async def test_real_networks_answer_wherever_their_graph_connects(path: pathlib.Path) -> None:
    topology = Topology.load(path)
    graph = nx.Graph(nx.read_graphml(path, force_multigraph=True))
    names = dict(zip(graph.nodes, (f"n{number}" for number in range(len(graph))), strict=True))
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        linked = [name for name, worker in sup.workers.items() if worker.addresses]
        part = {names[node]: number for number, nodes in enumerate(nx.connected_components(graph)) for node in nodes}
        pairs = [(a, b) for number, a in enumerate(linked) for b in linked[number + 1 :] if part[a] == part[b]]
        for version in (4, 6):
            reachability = await sup.ping_all(pairs, version=version)
            assert reachability.ok, (version, reachability.failed[:3])
        separate = [(a, b) for a in linked for b in linked if part[a] != part[b]][:20]
        if separate:
            assert len((await sup.ping_all(separate, timeout=0.2, attempts=1)).failed) == len(separate)


def sizes() -> dict[str, Callable[[], Topology]]:
    return {"erdos": lambda: Topology.erdos_renyi(30, 0.1), "small world": lambda: Topology.watts_strogatz(30, 4, 0.3)}


@pytest.mark.anyio
@pytest.mark.parametrize("name", sizes())
async def test_random_networks_answer(name: str) -> None:
    topology = sizes()[name]()
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        pairs = [(a, b) for part in topology.components() for a in part for b in part if a < b]
        assert (await sup.ping_all(pairs)).ok


@pytest.mark.anyio
async def test_links_beside_the_topology_are_in_no_path() -> None:
    topology = Topology(routing="shortest-path")
    for name in "abc":
        topology.worker(name, forward=True)
    topology.link("a", "b")
    topology.link("b", "c")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        beside = await sup.link("a", "c")
        topology.worker("d")
        topology.link("c", "d")
        await deployment.apply(topology)
        assert (await sup.ping_all()).ok
        assert " via " + str(beside.interfaces[1].addresses[0].ip) not in await routes(sup.workers["a"])
        await beside.remove()
        assert (await sup.ping_all()).ok


@pytest.mark.anyio
async def test_who_shares_a_routers_network_namespace_is_reached_like_that() -> None:
    topology = Topology(routing="shortest-path")
    for name in ("a", "r", "b"):
        topology.worker(name, forward=name == "r")
    topology.worker("guest", namespaces={"net": "worker:r"})
    topology.link("a", "r")
    topology.link("r", "b")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        assert (await sup.ping_all()).ok
        assert (await sup.ping_all(version=6)).ok
        topology.worker("later", namespaces={"net": "worker:guest"})
        await deployment.apply(topology)
        assert (await sup.ping_all()).ok


@pytest.mark.anyio
async def test_routed_workers_without_links_have_a_name() -> None:
    topology = Topology(routing="shortest-path")
    for name in ("a", "b", "alone"):
        topology.worker(name)
    topology.link("a", "b")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        address = sup.workers["alone"].addresses[0].ip
        done = await sup.workers["alone"].run(["getent", "hosts", str(address)])
        assert done.stdout.split() == [str(address).encode(), b"alone"]
