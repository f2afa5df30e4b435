"""Links and routes that change while everything else goes on."""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from typing import Any

import anyio
import pytest

import nsorch
from nsorch import AddressError, TopologyError, UnsupportedError
from nsorch.net.messages import get_link
from nsorch.net.netlink import Request
from nsorch.supervisor.wiring import changing, wiring

pytestmark = pytest.mark.anyio

BOTH = ("10.0.0.0/24", "fd00::/64")
FAR = ("10.9.0.0/24", "fd09::/64")


async def lab(sup: nsorch.Supervisor, names: str = "abc", **options: object) -> dict[str, nsorch.Worker]:
    await sup.bridge("lan", BOTH, **options)  # type: ignore[arg-type]
    await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in names])
    return dict(sup.workers)


def link_of(sup: nsorch.Supervisor, worker: str) -> nsorch.Link:
    (link,) = [link for link in sup.links.values() if link.ends[0].startswith(f"{worker}:")]
    return link


async def reach(sup: nsorch.Supervisor, pairs: list[tuple[str, str]] | None = None) -> bool:
    return all([(await sup.ping_all(pairs, version=version)).ok for version in (4, 6)])


@pytest.mark.parametrize("arp", ["static", "dynamic"])
@pytest.mark.parametrize("gateway", [None, "a"])
async def test_mac(arp: str, gateway: str | None) -> None:
    async with nsorch.Supervisor() as sup:
        workers = await lab(sup, arp=arp, gateway=gateway)
        for number, name in enumerate("bac"):
            mac = f"02:00:00:00:00:0{number}"
            await link_of(sup, name).set(mac=mac)
            assert workers[name].interfaces["eth0"].mac == mac
            others = [other for other in "abc" if other != name]
            assert await reach(sup, [(name, other) for other in others])
            fresh = await sup.start(f"new{number}", links=["lan"])  # who has asked before keeps the old one for a while
            assert await reach(sup, [(fresh.name, name), (name, fresh.name)])
            assert mac in (await fresh.run(["cat", "/proc/net/arp"])).stdout.decode()
        with pytest.raises(AddressError):
            await link_of(sup, "b").set(mac="03:00:00:00:00:01")


async def test_mac_of_a_routed_link() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(nsorch.Topology.linear(3))
        link = next(iter(sup.links.values()))
        with pytest.raises(TopologyError, match="end= must say which"):
            await link.set(mac="02:00:00:00:00:01")
        with pytest.raises(TopologyError, match='no end "n9"'):
            await link.set(mac="02:00:00:00:00:01", end="n9")
        await link.set(mac="02:00:00:00:00:01", end="n0")
        await link.set(mac="02:00:00:00:00:02", end=link.ends[1])
        assert await reach(sup)
        with pytest.raises(UnsupportedError, match="shortest paths"):
            await link.set(address="100.64.0.9", end="n0")


async def test_addresses() -> None:
    async with nsorch.Supervisor() as sup:
        workers = await lab(sup, gateway="a")
        link = link_of(sup, "b")
        await link.set(address="10.0.0.77")
        assert [str(a.ip) for a in workers["b"].addresses] == ["10.0.0.77", "fd00::2"]
        await link.set(address=["fd00::77"])
        assert [str(a.ip) for a in workers["b"].addresses] == ["fd00::77", "10.0.0.77"]
        assert await reach(sup)
        route = (await workers["b"].run(["cat", "/proc/net/route"])).stdout.decode()
        assert "0100000A" in route, "the default route is there again"
        for wrong in ("10.1.0.1", "10.0.0.1", "10.0.0.255"):
            with pytest.raises(AddressError):
                await link.set(address=wrong)
        assert [str(a.ip) for a in workers["b"].addresses] == ["fd00::77", "10.0.0.77"]
        assert await reach(sup)
        new = await sup.start("d", links=["lan"])
        assert str(new.addresses[0].ip) == "10.0.0.2", "what it had is free"


async def test_an_address_stays_whose_subnet_loses_an_earlier_one() -> None:
    async with nsorch.Supervisor() as sup:
        workers = await lab(sup)
        link = link_of(sup, "b")
        await link.set(address=["10.0.0.2", "10.0.0.9"])
        await link.set(address="10.0.0.9")
        shown = (await workers["b"].run(["ip", "-4", "-o", "addr", "show", "eth0"])).stdout.decode()
        assert [line.split()[3] for line in shown.splitlines()] == ["10.0.0.9/24"]
        assert [str(a.ip) for a in workers["b"].interfaces["eth0"].addresses] == ["10.0.0.9", "fd00::2"]
        assert await reach(sup)


async def default_route(worker: nsorch.Worker, version: int) -> str:
    shown = await worker.run(["ip", f"-{version}", "route", "show", "default"])
    return shown.stdout.decode().split()[2]


@pytest.mark.parametrize("arp", ["static", "dynamic"])
async def test_a_gateway_is_asked_for_at_the_addresses_that_it_has(arp: str) -> None:
    topology = nsorch.Topology()
    topology.bridge("lan", BOTH, gateway="r", arp=arp)
    topology.bridge("near")
    topology.link("lan", "near")
    topology.worker("first", links=[nsorch.To("lan", address=["10.0.0.1", "fd00::1"])])
    topology.worker("r", links=[nsorch.To("lan", address=["10.0.0.254", "fd00::fe"]), "up"], forward=True)
    topology.worker("a", links=["near"])
    topology.bridge("up", FAR)
    routes = [{"to": network, "via": hop} for network, hop in zip(BOTH, ("10.9.0.1", "fd09::1"), strict=True)]
    topology.worker("x", links=["up"], routes=routes)
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)

        async def check(ipv4: str, ipv6: str) -> None:
            for worker in (sup.workers["first"], sup.workers["a"]):
                assert (await default_route(worker, 4), await default_route(worker, 6)) == (ipv4, ipv6)
            assert await reach(sup)

        await check("10.0.0.254", "fd00::fe")
        await sup.links["r:eth0-lan"].set(address="10.0.0.77")
        await check("10.0.0.77", "fd00::fe")
        await sup.links["first:eth0-lan"].set(address=["10.0.0.254", "fd00::99"])
        await sup.links["r:eth0-lan"].set(address=["10.0.0.1", "fd00::1"], mac="02:00:00:00:00:01")
        await check("10.0.0.1", "fd00::1")
        await sup.workers["r"].remove()
        await sup.start("r", links=[nsorch.To("lan", address="10.0.0.9"), "up"], forward=True)
        await check("10.0.0.9", "fd00::1")


async def test_what_the_kernel_refuses_changes_nothing() -> None:
    async with nsorch.Supervisor() as sup:
        workers = await lab(sup, gateway="b")
        far = await sup.bridge("far", ("10.9.0.0/24", "fd09::/64"))
        link, b, ipv6 = link_of(sup, "b"), workers["b"], "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"
        owned = dict(sup.bridges["lan"]._segment._owners)
        own = b.addresses
        await b.run(f"echo 1 > {ipv6}")  # from here on the kernel refuses it such addresses
        while len(b.interfaces["eth0"].addresses) == 2:
            await anyio.sleep(0.01)
        for change in ({"address": ["10.0.0.77", "fd00::77"]}, {"bridge": "far"}):
            for _ in range(2):
                with pytest.raises(nsorch.NetlinkError, match="add"):
                    await link.set(**change)  # type: ignore[arg-type]
                assert b.interfaces["eth0"].addresses == own[:1]
                assert b.interfaces["eth0"].bridge == "lan"
                assert sup.bridges["lan"]._segment._owners == owned
                assert not far._segment._owners
                assert (await sup.ping_all([("a", "b"), ("b", "c")], version=4)).ok
        await b.run(f"echo 0 > {ipv6}")
        await link.set(address=["10.0.0.77", "fd00::77"])
        assert [str(a.ip) for a in b.addresses] == ["10.0.0.77", "fd00::77"]
        assert await reach(sup)
        await link.set(address="10.0.0.1")  # kept for it
        await link.set(bridge="far")
        assert set(sup.bridges["lan"]._segment._owners.values()) == {"a:eth0", "c:eth0", "b"}
        await link.remove()
        assert not far._segment._owners


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"address": "10.9.9.9"}, "outside of the subnet"),
        ({"address": "10.0.0.2"}, "used by b:eth0"),
        ({"bridge": "far", "address": "10.0.0.9"}, "outside of the subnet"),
        ({"vlan": 5}, "vlan_aware"),
    ],
)
async def test_what_is_refused_changes_nothing(change: dict[str, Any], problem: str) -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup)
        await sup.bridge("far", FAR)
        link = link_of(sup, "a")
        (before,) = link.interfaces
        async with sup.events(kinds=nsorch.LinkChanged) as events:
            with pytest.raises((AddressError, TopologyError), match=problem):
                await link.set(mtu=1400, mac="02:00:00:00:00:01", **change)
            await link.set(mtu=1300)
            assert (await events.receive()).changes == (("mtu", "1300"),)
        assert link.interfaces[0].mac == before.mac
        between = await sup.link("a", "b")
        with pytest.raises(TopologyError, match="it is on no bridge that it could be moved from"):
            await between.set(mtu=1400, bridge="far", end="a")
        assert between.interfaces[0].mtu is None


async def test_moves_across_three_bridges() -> None:
    async with nsorch.Supervisor() as sup:
        for number in range(3):
            await sup.bridge(f"lan{number}", (f"10.{number}.0.0/24", f"fd0{number}::/64"), gateway=f"r{number}")
        for number in range(3):
            await sup.start(f"r{number}", links=[f"lan{number}"])
            await sup.start(f"h{number}", links=[f"lan{number}"])
        mobile = await sup.start("m", ["sleep", "600"], links=["lan0"])
        async with sup.events() as events:
            for number in (1, 2, 0):
                link = link_of(sup, "m")
                await link.set(bridge=f"lan{number}")
                assert link.name == f"m:eth0-lan{number}" == mobile.interfaces["eth0"].link
                assert sup.links[link.name] is link
                assert mobile.interfaces["eth0"].bridge == f"lan{number}"
                assert all(str(a.ip).startswith((f"10.{number}.", f"fd0{number}:")) for a in mobile.addresses)
                near = [("m", f"h{number}"), (f"h{number}", "m"), ("m", f"r{number}"), (f"r{number}", "m")]
                assert await reach(sup, near)
                shown = (await mobile.run(["cat", "/proc/net/route"])).stdout.decode()
                assert f"0100{number:02X}0A" in shown
                assert shown.count("\t00000000\t") == 3, "one default route"
            kinds = [(await events.receive()).kind for _ in range(3)]
        assert kinds == ["LinkChanged"] * 3
        assert mobile.incarnation == 1
        with pytest.raises(TopologyError, match='no bridge "nowhere"'):
            await link_of(sup, "m").set(bridge="nowhere")
        with pytest.raises(AddressError):
            await link_of(sup, "m").set(bridge="lan1", address="10.9.9.9")
        assert await reach(sup, [("m", "h0"), ("h0", "m")])


@pytest.mark.parametrize("gateway", [None, "a"])
async def test_after_a_move_others_have_the_addresses_of_who_was_known(gateway: str | None) -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup, "ab", gateway=gateway)
        await sup.bridge("alike", BOTH)
        await sup.start_all([nsorch.WorkerSpec(name=name, links=["alike"]) for name in "xy"])
        await sup.start("m", links=["lan"])
        assert sup.workers["a"].addresses == sup.workers["x"].addresses
        assert await reach(sup, [("m", "a"), ("b", "m")])
        link = link_of(sup, "m")
        await link.set(bridge="alike")
        assert await reach(sup, [("m", "x"), ("y", "m")])
        await link.set(bridge="lan")
        assert await reach(sup, [("m", "a"), ("b", "m")])


async def test_keeps_its_address_where_it_fits() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("one", BOTH)
        await sup.bridge("two", BOTH)
        mobile = await sup.start("m", links=[nsorch.To("one", address="10.0.0.9")])
        await sup.start("h", links=["two"])
        await link_of(sup, "m").set(bridge="two", address="10.0.0.9")
        assert str(mobile.addresses[0].ip) == "10.0.0.9"
        assert await reach(sup)


async def test_an_end_that_moves_has_the_mtu_of_its_bridge() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("one", "10.0.0.0/24")
        await sup.bridge("small", "10.1.0.0/24", mtu=576)
        await sup.bridge("big", ("10.2.0.0/24", "fd02::/64"), mtu=9000)
        mobile = await sup.start("m", links=["one"])
        own = await sup.start("o", links=[nsorch.To("one", mtu=1000)])
        await sup.start("h", links=["small", "big"])
        link = link_of(sup, "m")

        async def expect(size: str) -> None:
            shown = (await mobile.run(["ip", "-o", "link", "show", "eth0"])).stdout.decode()
            assert f" mtu {size} " in shown

        for bridge, size in (("small", "576"), ("big", "9000"), ("small", "576"), ("one", "1500"), ("big", "9000")):
            await link.set(bridge=bridge)
            await expect(size)
            assert bridge == "one" or (await sup.ping_all([("m", "h")])).ok
        assert mobile.interfaces["eth0"].mtu == 9000
        await link.set(bridge="small", mtu=500)
        await link.set(bridge="one")
        await expect("500")
        with pytest.raises(TopologyError, match="500 bytes are too few for IPv6"):
            await link.set(bridge="big")
        await link.set(bridge="big", mtu=1400)
        await expect("1400")
        await link_of(sup, "o").set(bridge="small")
        assert own.interfaces["eth0"].mtu == 1000


async def test_an_end_that_moves_to_ipv6_has_a_link_local_address() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("four", "10.0.0.0/24")
        await sup.bridge("small", "10.1.0.0/24", mtu=576)
        await sup.bridge("both", BOTH)
        for name, bridge in (("a", "four"), ("b", "small"), ("c", "both")):
            await sup.start(name, links=[bridge])
        for name in "ab":
            await link_of(sup, name).set(bridge="both")
            shown = await sup.workers[name].run(["ip", "-6", "-o", "addr", "show", "eth0", "scope", "link"])
            assert "fe80::" in shown.stdout.decode()
            assert "tentative" not in shown.stdout.decode()
        assert await reach(sup)


async def test_traffic_goes_on_while_others_change() -> None:
    async with nsorch.Supervisor() as sup:
        workers = await lab(sup, "abcd")
        server = await workers["a"].create_udp_socket(local_port=7000)
        client = await workers["b"].create_connected_udp_socket(workers["a"].addresses[0].ip, 7000)
        async with server, client:

            async def talk() -> None:
                for number in range(150):
                    await client.send(b"%d" % number)
                    with anyio.fail_after(20):  # none is lost
                        assert (await server.receive())[0] == b"%d" % number
                    await anyio.sleep(0.002)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(talk)
                await sup.bridge("other", FAR)
                await link_of(sup, "c").set(bridge="other")
                await link_of(sup, "d").set(mac="02:00:00:00:00:0d", mtu=1400)
                await sup.start("e", links=["lan"])
                await workers["d"].remove()


async def test_routes() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        await sup.bridge("far", "10.9.0.0/24", gateway="r")
        await sup.start("r", links=["lan", "far"], forward=True)
        await sup.start("h", links=["far"])
        worker = await sup.start("a", links=["lan"])
        assert (await sup.ping_all([("a", "h")], timeout=0.1, attempts=1)).failed
        await worker.set_routes([{"to": "10.9.0.0/24", "via": str(sup.workers["r"].addresses[0].ip)}])
        assert (await sup.ping_all([("a", "h")])).ok
        with pytest.raises(TopologyError, match=r"10\.5\.0\.1 is on none of its links"):
            await worker.set_routes([nsorch.Route("10.9.0.0/24", via="10.5.0.1")])
        assert (await sup.ping_all([("a", "h")])).ok
        await worker.set_routes([])
        with socket.socket(), pytest.raises(OSError, match="unreachable"):
            await worker.connect_tcp(str(sup.workers["h"].addresses[0].ip), 80)


async def test_no_mtu_that_ipv6_cannot_live_with() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup, "ab")
        link = sup.links["b:eth0-lan"]
        too_few = r"links\.b:eth0-lan\.mtu: 1279 bytes are too few for IPv6, which needs 1280: b:eth0 has fd00::2"
        with pytest.raises(TopologyError, match=too_few):
            await link.set(mtu=1279, mac="02:00:00:00:00:01")
        assert sup.workers["b"].interfaces["eth0"].mtu is None
        assert sup.workers["b"].interfaces["eth0"].mac != "02:00:00:00:00:01"
        assert await reach(sup)
        four = await sup.link("a", "b", subnet="10.1.0.0/31")
        await four.set(mtu=1279)
        await four.set(mtu=1500)


async def test_ipv6_comes_back_with_an_mtu_that_it_can_live_with() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), gateway="a")
        await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "ab"])
        link = sup.links["b:eth0-lan"]
        await sup.workers["b"].run(["ip", "link", "set", "eth0", "mtu", "1000"])
        await sup.wait_event("LinkChanged", since=0)
        assert (await sup.ping_all([("a", "b")], version=4)).ok
        await link.set(mtu=1500)
        assert (await sup.ping_all([("a", "b"), ("b", "a")], version=6)).ok
        assert b"default via fd00::1" in (await sup.workers["b"].run(["ip", "-6", "route"])).stdout
        shown = (await sup.workers["b"].run(["ip", "-6", "address", "show", "eth0"])).stdout
        assert b"inet6 fe80::" in shown
        assert b"tentative" not in shown
        await link.down()
        await link.up()
        assert b"tentative" not in (await sup.workers["b"].run(["ip", "-6", "address"])).stdout


async def test_routes_whose_way_is_gone_are_in_nobodys_way() -> None:
    async def routes() -> list[str]:
        return (await worker.run("ip route show proto static")).stdout.decode().splitlines()

    async with nsorch.Supervisor() as sup:
        for number in range(3):
            await sup.bridge(f"b{number}", f"10.{number}.0.0/24")
        given = [nsorch.Route(f"172.16.{number}.0/24", via=f"10.{number}.0.250") for number in range(2)]
        worker = await sup.start("w", links=["b0", "b1"], routes=given)
        link = sup.links["w:eth1-b1"]
        await sup.links["w:eth0-b0"].remove()
        other = "172.16.1.0/24 via 10.1.0.250 dev eth1 "
        await link.down()
        await link.up()
        assert await routes() == [other]
        await link.set(address="10.1.0.77")
        assert await routes() == [other]
        await sup.link("w", "b2")
        assert await routes() == [other]
        await sup.link(nsorch.End("w", name="again"), "b0")
        assert await routes() == ["172.16.0.0/24 via 10.0.0.250 dev again ", other]
        with pytest.raises(TopologyError, match=r"workers.w.routes\[0\]: 10.9.0.1 is on none of its links"):
            await worker.set_routes([{"to": "172.16.0.0/24", "via": "10.9.0.1"}])
        assert len(await routes()) == 2
        await worker.set_routes([])
        assert await routes() == []


async def test_the_default_route_is_that_of_the_first_link_to_a_gateway() -> None:
    def lab(*names: str) -> nsorch.Topology:
        topology = nsorch.Topology()
        topology.bridge("one", "10.1.0.0/24", gateway="a")
        topology.bridge("two", ["10.2.0.0/24", "fd02::/64"], gateway="b")
        topology.bridge("other", "10.3.0.0/24")
        topology.worker("a", links=["one"])
        topology.worker("b", links=["two"])
        topology.worker("c", links=[nsorch.To(name, name=name) for name in names])
        return topology

    async def has(*expected: str) -> None:
        command = "ip route show default; ip -6 route show default"
        lines = (await sup.workers["c"].run(command)).stdout.decode().splitlines()
        assert [" ".join(line.split()[2:5:2]) for line in lines] == list(expected)

    one, two, both = ["10.1.0.1 one"], ["10.2.0.1 two", "fd02::1 two"], ["10.1.0.1 one", "fd02::1 two"]
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab("one", "two"))
        await has(*both)
        for names, expected in (
            (["two"], two),
            (["one", "two"], both),
            (["two", "one"], two),
            (["other", "one", "two"], both),
            (["other"], []),
            (["two", "one"], two),
        ):
            await deployment.apply(lab(*names))
            await has(*expected)
        await sup.links["c:two-two"].set(bridge="other")
        await has("10.1.0.1 one")
        await sup.links["c:two-other"].set(bridge="two")
        await has(*two)
        await sup.links["c:one-one"].down()
        await sup.links["c:two-two"].remove()
        await has()
        await sup.links["c:one-one"].up()
        await has(*one)


async def test_each_family_has_the_default_route_of_its_first_gateway() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("four", "10.0.0.0/24", gateway="r4")
        await sup.bridge("six", "fd00::/64", gateway="r6")
        await sup.bridge("both", FAR, gateway="r")
        worker = await sup.start("w", links=["four", "six", "both"])
        assert (await default_route(worker, 4), await default_route(worker, 6)) == ("10.0.0.1", "fd00::1")
        await sup.links["w:eth0-four"].remove()
        assert (await default_route(worker, 4), await default_route(worker, 6)) == ("10.9.0.1", "fd00::1")
        await sup.links["w:eth1-six"].remove()
        assert (await default_route(worker, 4), await default_route(worker, 6)) == ("10.9.0.1", "fd09::1")


async def test_a_gateway_doesnt_lead_those_in_its_own_network_namespace() -> None:
    """The kernel refuses that in IPv6, and in IPv4 packets would lead to itself."""
    led = ["10.0.0.1", "fd00::1"]

    async def defaults(worker: nsorch.Worker) -> list[str]:
        shown = await worker.run("ip -4 route show default; ip -6 route show default")
        return [line.split()[2] for line in shown.stdout.decode().splitlines()]

    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        router = await sup.start("r", links=["lan"])
        guest = await sup.start("guest", links=["lan"], namespaces={"net": "worker:r"})
        a = await sup.start("a", links=["lan"])
        assert await defaults(guest) == []
        assert await defaults(a) == led
        await router.remove()
        router = await sup.start("r", links=["lan"])
        assert await defaults(guest) == led
        await router.remove()
        router = await sup.start("r", links=["lan"], namespaces={"net": "worker:guest"})
        assert await defaults(guest) == []
        await router.remove()
        await sup.start("r", links=["lan"])
        assert await defaults(guest) == led
        assert await reach(sup)


async def test_of_a_gateway_with_two_links_the_other_stays() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        await sup.bridge("far", FAR)
        await sup.start("r", links=["lan", "lan"])
        a = await sup.start("a", links=["lan"])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.1", "fd00::1")
        await sup.links["r:eth0-lan"].remove()
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.2", "fd00::2")
        assert await reach(sup)
        await sup.link("r", "lan")
        await sup.links["r:eth1-lan"].set(bridge="far")
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.1", "fd00::1")
        assert await reach(sup, [("a", "r")])


async def test_a_gateway_that_is_cancelled_while_others_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        a = await sup.start("a", links=["lan"])
        given = nsorch.To("lan", address=["10.0.0.9", "fd00::9"])
        with monkeypatch.context() as patch, anyio.CancelScope() as scope:

            async def follow(*_: object) -> None:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

            patch.setattr(wiring.Wiring, "follow_gateway", follow)
            await sup.start("r", links=[given])
        assert scope.cancelled_caught
        await sup.start("r", links=[given])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.9", "fd00::9")


async def test_a_gateway_gets_another_address_while_a_worker_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        await sup.start("r", links=["lan"])
        finish = wiring.Wiring.finish

        async def finish_later(of: wiring.Wiring, *args: Any) -> None:
            await sup.links["r:eth0-lan"].set(address=["10.0.0.9", "fd00::9"])
            await finish(of, *args)

        monkeypatch.setattr(wiring.Wiring, "finish", finish_later)
        a = await sup.start("a", links=["lan"])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.9", "fd00::9")
        assert await reach(sup)


async def test_the_address_that_a_gateway_had_is_somebody_elses() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        given = nsorch.To("lan", address=["10.0.0.9", "fd00::9"])
        await (await sup.start("r", links=[given])).remove()
        a = await sup.start("a", links=[given])
        assert not (await a.run("ip route show default; ip -6 route show default")).stdout
        await sup.start("r", links=["lan"])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.1", "fd00::1")
        assert await reach(sup)


async def test_a_default_route_that_is_given_stays() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        a = await sup.start("a", links=["lan"], routes=[nsorch.Route("default", via="10.0.0.99")])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.99", "fd00::1")
        await sup.start("r", links=[nsorch.To("lan", address=["10.0.0.9", "fd00::9"])])
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.99", "fd00::9")
        await sup.links["a:eth0-lan"].set(address="10.0.0.5")
        assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.99", "fd00::9")
        # Without it the gateway's is there again, also where both are the same.
        for via in ("10.0.0.99", "10.0.0.9"):
            await a.set_routes([nsorch.Route("default", via=via)])
            assert await default_route(a, 4) == via
            with pytest.raises(nsorch.NetlinkError):
                await a.set_routes([nsorch.Route("fd77::/64", via=a.addresses[1].ip)])  # its own
            assert await default_route(a, 4) == via
            await a.set_routes([])
            assert (await default_route(a, 4), await default_route(a, 6)) == ("10.0.0.9", "fd00::9")


@pytest.mark.parametrize("end", ["remove", "move", "down", "mac"])
async def test_of_two_links_to_one_bridge_the_other_is_known_by_its_own_hardware_address(end: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24", arp="dynamic")
        await sup.bridge("other", "10.9.0.0/24")
        a, b = [await sup.start(name, links=links) for name, links in (("a", ["lan", "lan"]), ("b", ["lan"]))]
        macs = [interface.mac for interface in a.interfaces.values()]
        # As from an answer of the other interface's: the kernel answers at any of them.
        await b.run(["ip", "neigh", "replace", "10.0.0.1", "lladdr", macs[1], "dev", "eth0", "nud", "reachable"])
        link = sup.links["a:eth1-lan"]
        changes = {"remove": link.remove, "down": link.down, "move": lambda: link.set(bridge="other")}
        await changes.get(end, lambda: link.set(mac="02:00:00:00:00:01"))()
        assert (await sup.ping_all([("b", "a")])).ok


async def test_an_address_that_another_program_has_added_becomes_its_own() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        a, b = await sup.start("a", links=["lan"]), await sup.start("b", links=["lan"])
        await a.run(["ip", "addr", "add", "10.0.0.50/24", "dev", "eth0"])
        await sup.wait_event(nsorch.LinkChanged, since=0)
        await sup.links["a:eth0-lan"].set(address="10.0.0.50")  # the kernel removes it with the first of the subnet
        assert [str(each) for each in a.interfaces["eth0"].addresses] == ["10.0.0.50/24"]
        assert (await sup.ping_all([("b", "a")])).ok
        assert b.addresses


@pytest.mark.parametrize("command", [None, ["sleep", "600"]], ids=["passive", "live"])
async def test_links_come_to_workers_in_which_others_make_interfaces(command: list[str] | None) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", command, links=["lan"])
        await sup.start("b", links=["lan"])
        for number in range(2):
            await a.run(["ip", "link", "add", f"br{number}", "type", "bridge"])  # it takes the next number
            await sup.link("a", "b")
            await sup.link("a", "lan")
        topology = nsorch.Topology()  # with new workers, whose interfaces' numbers are known
        for name in ("x", "y"):
            topology.worker(name)
        topology.link("x", "y")
        deployment = await sup.deploy(topology)
        for _ in range(2):
            await sup.link("a", "x")
            await sup.link("y", "a")
            await sup.link("x", "y")
        assert (await sup.ping_all([("a", "x"), ("y", "a"), ("x", "y"), ("a", "b")])).ok
        await deployment.remove()
        await a.run(["ip", "link", "set", "eth4", "down"])
        await sup.wait_event(nsorch.LinkDown, since=0)
        assert [name for name, link in sup.links.items() if not link.is_up] == ["a:eth4-lan"]


async def test_a_link_moves_to_a_bridge_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it was."""
    original = changing._replug
    removing = anyio.Event()

    async def replug(wiring: Any, side: Any, port: Any, bridge: nsorch.Bridge, *more: Any) -> None:
        if bridge.name == "far" and not removing.is_set():
            removing.set()
            tasks.start_soon(bridge.remove)
            while not bridge._leaving:
                await anyio.lowlevel.checkpoint()
        await original(wiring, side, port, bridge, *more)

    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        await sup.bridge("far", "10.1.0.0/24")
        a, b = await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "ab"])
        monkeypatch.setattr(changing, "_replug", replug)
        async with anyio.create_task_group() as tasks:
            with pytest.raises(nsorch.TopologyError, match='no bridge "far"'):
                await sup.links["a:eth0-lan"].set(bridge="far")
        assert set(sup.bridges) == {"lan"}
        assert set(sup.links) == {"a:eth0-lan", "b:eth0-lan"}
        assert (await sup.ping_all([(a, b), (b, a)])).ok


async def test_a_bridge_is_linked_to_one_after_the_other() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, gateway="r")
        await sup.bridge("far", FAR, gateway="x")
        near = await sup.bridge("near")
        await sup.start("a", links=["lan"])
        await sup.start("b", links=["far"])
        link = await sup.link("lan", "near")
        assert near.subnets == sup.bridges["lan"].subnets
        await link.remove()
        link = await sup.link("near", "far")
        assert near.subnets == sup.bridges["far"].subnets
        assert sup.bridges["lan"].subnets != near.subnets
        c = await sup.start("c", links=["near"])
        d = await sup.start("d", links=["lan"])
        assert [str(address) for address in d.addresses] == ["10.0.0.3/24", "fd00::3/64"]
        assert await reach(sup, [("b", "c"), ("a", "d")])
        assert (await default_route(c, 4), await default_route(d, 4)) == ("10.9.0.1", "10.0.0.1")
        await link.remove()
        with pytest.raises(TopologyError, match="workers on near have addresses of 10.9.0.0/24, fd09::/64, not of"):
            await sup.link("near", "lan")
        await sup.link("near", "far")
        assert await reach(sup, [("b", "c"), ("a", "d")])


async def test_a_bridge_that_is_removed_while_it_is_made_is_in_no_kernel() -> None:
    async def make() -> None:
        with pytest.raises(nsorch.ClosedError, match="the bridge lan was removed while it was made"):
            await sup.bridge("lan")

    async with nsorch.Supervisor() as sup:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make)
            while "lan" not in sup.bridges:
                await anyio.lowlevel.checkpoint()
            bridge = sup.bridges["lan"]
            await bridge.remove()
        with pytest.raises(nsorch.NetlinkError, match="ENODEV"):
            sup._wiring.kernel.engine.fabric.ask(Request(get_link(bridge._parts.all[0].index), "look at", "it"))
    async with sup.events(kinds=nsorch.BridgeCreated, since=0) as told:
        assert [event async for event in told] == []


async def test_a_link_whose_bridge_is_removed_while_both_are_made_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says EINVAL of a bridge that isn't there."""
    making, leaving = anyio.Event(), anyio.Event()

    async def refused(call: Awaitable[Any], what: str) -> None:
        with pytest.raises(nsorch.ClosedError, match=f"the {what} was removed while it was made"):
            await call

    async with nsorch.Supervisor() as sup:
        await sup.start("a", namespaces=["net"])
        original = sup._wiring._orders._execute

        async def execute(orders: Any) -> None:
            making.set()
            await leaving.wait()
            await original(orders)

        monkeypatch.setattr(sup._wiring._orders, "_execute", execute)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused, sup.bridge("lan", "10.0.0.0/24"), "bridge lan")
            await making.wait()
            tasks.start_soon(refused, sup.link("a", "lan"), "link a:eth0-lan")
            while not sup._wiring._orders._orders:  # it waits for its turn
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(sup.bridges["lan"].remove)
            while sup.links:
                await anyio.lowlevel.checkpoint()
            leaving.set()


async def test_a_late_removal_of_a_bridge_leaves_another_of_its_name() -> None:
    async with nsorch.Supervisor() as sup:
        old = await sup.bridge("lan", "10.0.0.0/24")
        await old.remove()
        new = await sup.bridge("lan", "10.0.0.0/24")
        await sup._wiring._remove_bridges([old])  # of somebody who has begun before
        assert sup.bridges["lan"] is new
        await new.remove()
        assert not sup.bridges
