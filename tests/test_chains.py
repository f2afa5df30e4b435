"""Bridges that are linked: one segment."""

from __future__ import annotations

import random

import anyio
import pytest
from conftest import needs_descriptors
from kernel_support import needs_kernel

import nsorch
from nsorch import TopologyError

pytestmark = pytest.mark.anyio

BOTH = ("10.0.0.0/24", "fd00::/64")


def chain(length: int, **options: object) -> nsorch.Topology:
    topology = nsorch.Topology("chain", **options)  # type: ignore[arg-type]
    for number in range(length):
        topology.bridge(f"s{number}", BOTH if number == 2 else None)
        topology.worker(f"h{number}", links=[f"s{number}"])
        if number:
            topology.link(f"s{number - 1}", f"s{number}")
    return topology


async def reach(sup: nsorch.Supervisor, pairs: list[tuple[str, str]] | None = None) -> bool:
    return all([(await sup.ping_all(pairs, version=version)).ok for version in (4, 6)])


async def test_five_chained_bridges_without_loss() -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(chain(5))
        reached = await sup.ping_all()
        assert reached.ok
        assert len(reached.pairs) == 20
        assert reached.loss == 0
        assert await reach(sup)
        assert len({address.ip for worker in sup.workers.values() for address in worker.addresses}) == 10
        assert {str(network) for bridge in sup.bridges.values() for network in bridge.subnets} == set(BOTH)
        link = sup.links["s1-s2"]
        assert link.ends == ("s1", "s2")
        assert not link.interfaces
        assert (await sup.workers["h0"].run(["cat", "/etc/hosts"])).stdout.decode().count("h4.s4")
        await link.down()
        with anyio.fail_after(30):
            broken = await sup.ping_all(timeout=0.2, attempts=1)
        assert {(result.source, result.target) for result in broken.failed} == {
            pair for pair in broken.pairs if (pair[0] in ("h0", "h1")) != (pair[1] in ("h0", "h1"))
        }
        await link.up()
        assert await reach(sup)
        await link.set(mtu=1400)
        async with link.capture() as packets:
            assert (await sup.ping_all([("h0", "h4")])).ok
            assert {(await packets.receive()).end for _ in range(2)} == {"s1 (s2)", "s2 (s1)"}
        with pytest.raises(TopologyError, match="none of its ends is in a worker"):
            await link.set(mac="02:00:00:00:00:01")
        await deployment.remove()
        assert not sup.links


async def test_made_one_after_the_other() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("one", "10.0.0.0/24", gateway="a")
        await sup.bridge("two")
        early = await sup.start("early", links=["two"])
        assert not early.addresses, "a bridge without subnet"
        await sup.start("a", links=["one"], forward=True)
        link = await sup.link("one", "two")
        late = await sup.start("late", links=["two"])
        assert [str(address) for address in late.addresses] == ["10.0.0.2/24"]
        assert (await sup.ping_all()).ok
        assert "0100000A" in (await late.run(["cat", "/proc/net/route"])).stdout.decode(), "the gateway of the segment"
        await sup.links["early:eth0-two"].set(address="10.0.0.77")
        assert (await sup.ping_all()).ok
        assert "0100000A" in (await early.run(["cat", "/proc/net/route"])).stdout.decode()
        await sup.bridge("three", "10.0.0.0/24")
        await sup.start("c", links=[nsorch.To("three", address="10.0.0.9")])
        await sup.link("two", "three")
        assert (await sup.ping_all()).ok
        assert "0100000A" in (await sup.workers["c"].run(["cat", "/proc/net/route"])).stdout.decode()
        for a, b in (("three", "one"), ("two", "one"), ("one", "one")):
            with pytest.raises(TopologyError):
                await sup.link(a, b)
        await sup.bridge("other", "10.9.0.0/24")
        with pytest.raises(TopologyError, match=r"different subnets: 10\.0\.0\.0/24 and 10\.9\.0\.0/24"):
            await sup.link("one", "other")
        await sup.bridge("led", "10.0.0.0/24", gateway="x")
        with pytest.raises(TopologyError, match="two gateways: a and x"):
            await sup.link("one", "led")
        await sup.bridge("taken", "10.0.0.0/24")
        await sup.start("t", links=[nsorch.To("taken", address="10.0.0.9")])
        with pytest.raises(nsorch.AddressError, match=r"10\.0\.0\.9 is used by c:eth0 and t:eth0"):
            await sup.link("one", "taken")
        with pytest.raises(TopologyError, match="has its own"):
            await sup.link("one", "taken", subnet="10.8.0.0/30")
        await link.remove()
        assert not (await sup.ping_all([("a", "late")], timeout=0.2, attempts=1)).ok
        await sup.link("two", "one")
        assert (await sup.ping_all([("a", "late"), ("c", "a"), ("early", "c")])).ok


@pytest.mark.parametrize("arp", ["static", "dynamic"])
async def test_a_host_that_moves_across_chained_bridges_stays_reachable(arp: str) -> None:
    async with nsorch.Supervisor() as sup:
        for number in range(3):
            await sup.bridge(f"s{number}", BOTH, arp=arp)
            if number:
                await sup.link(f"s{number - 1}", f"s{number}")
        for number in range(3):
            await sup.start(f"h{number}", links=[f"s{number}"])
        mobile = await sup.start("m", links=["s0"])
        (link,) = [link for link in sup.links.values() if link.ends[0] == "m:eth0"]
        before = mobile.addresses
        for number in (1, 2, 0, 2, 1, 0):
            assert await reach(sup)
            await link.set(bridge=f"s{number}")
            assert mobile.addresses == before
            # Others speak first: nobody has heard of it at its new place.
            assert await reach(sup, [(f"h{other}", "m") for other in range(3)])
        await link.set(mac="02:00:00:00:00:07")
        assert await reach(sup, [(f"h{other}", "m") for other in range(3)])
        await mobile.remove()
        await sup.start("m", links=["s2"])
        assert await reach(sup, [(f"h{other}", "m") for other in range(3)])


async def test_files_and_changes() -> None:
    text = chain(3).to_dict()
    again = nsorch.Topology.from_dict(text)
    assert again == chain(3)
    again.link("s0", "s2")
    assert again.problems() == [
        "links[2].ends: s0 and s2 are linked already: without stp, frames would go round for ever"
    ]
    wrong = chain(2)
    wrong.bridge("a", "10.1.0.0/24", gateway="h0")
    wrong.bridge("b", "10.2.0.0/24")
    wrong.link("a", "b", subnet="10.3.0.0/24")
    assert [problem.split(":")[0] for problem in wrong.problems()] == [
        "links[1].ends",
        "bridges.a.gateway",
        "links[1].subnet",
    ]
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(chain(4))
        inode = sup.workers["h0"].namespaces["net"]
        longer = chain(6)
        found = await deployment.apply(longer, dry_run=True)
        assert {str(change) for change in found.changes} == {
            "add bridge s4",
            "add bridge s5",
            "add worker h4",
            "add worker h5",
            "add link h4-s4",
            "add link h5-s5",
            "add link s3-s4",
            "add link s4-s5",
        }
        await deployment.apply(longer)
        assert await reach(sup)
        await deployment.apply(chain(4))
        assert await reach(sup)
        assert sup.workers["h0"].namespaces["net"] == inode
        assert set(sup.bridges) == {"s0", "s1", "s2", "s3"}


async def test_shortest_paths_take_a_chain_as_one_segment() -> None:
    topology = chain(4, routing="shortest-path")
    topology.bridge("far", ("10.7.0.0/24", "fd07::/64"))
    topology.worker("r", forward=True, links=["s3", "far"])
    topology.worker("x", links=["far"])
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        assert await reach(sup)
        traced = (await sup.workers["h0"].run(["ip", "route", "get", str(sup.workers["h3"].addresses[0].ip)])).stdout
        near = {str(address.ip) for address in sup.workers["h3"].addresses}
        assert traced.decode().split("via ")[1].split()[0] in near, "directly, not through r"


@pytest.mark.once
@needs_descriptors(6000)
@pytest.mark.long
async def test_a_tree_of_1024_hosts() -> None:
    topology = nsorch.Topology("tree")
    topology.bridge("root", "10.0.0.0/16")
    for number in range(32):
        topology.bridge(f"s{number}")
        topology.link("root", f"s{number}")
        for host in range(32):
            topology.worker(f"h{32 * number + host}", links=[f"s{number}"], namespaces=["net"])
    choose = random.Random(1)
    pairs = [tuple(choose.sample([f"h{number}" for number in range(1024)], 2)) for _ in range(1024)]
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        reached = await sup.ping_all(pairs)
        assert reached.loss == 0
        await deployment.remove()


@pytest.mark.vm
@needs_kernel("8021q")
async def test_vlans_go_from_bridge_to_bridge() -> None:
    topology = nsorch.Topology()
    topology.bridge("one", vlan_aware=True, vlans={10: "10.10.0.0/24"})
    topology.bridge("two", vlan_aware=True, vlans={20: "10.20.0.0/24"})
    topology.link("one", "two")
    for bridge in ("one", "two"):
        for vlan in (10, 20):
            topology.worker(f"{bridge}{vlan}", links=[nsorch.To(bridge, vlan=vlan)])
    assert sorted(map(sorted, topology.components())) == [["one10", "two10"], ["one20", "two20"]]
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        assert [str(worker.addresses[0]) for worker in sup.workers.values()] == [
            "10.10.0.1/24",
            "10.20.0.1/24",
            "10.10.0.2/24",
            "10.20.0.2/24",
        ]
        pairs = [("one10", "two10"), ("two20", "one20")]
        assert (await sup.ping_all([*pairs, *(pair[::-1] for pair in pairs)])).ok
        await sup.bridge("plain")
        with pytest.raises(TopologyError, match="not all of its bridges are vlan_aware"):
            await sup.link("two", "plain")
