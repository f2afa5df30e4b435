"""Interfaces of workers that every kernel has: macvlan, VXLAN, TUN and TAP; what all kinds have in common is tested by
these. The others are in test_layer2.py."""

from __future__ import annotations

import os
import struct

import anyio
import pytest
from interface_support import answers, udp_packet
from kernel_support import missing_in_kernel, needs_kernel, needs_tun

import nsorch
from nsorch import (
    AddressError,
    ClosedError,
    Dummy,
    InterfaceCreated,
    InterfaceRemoved,
    Macvlan,
    NameInUseError,
    NetlinkError,
    PermissionDeniedError,
    TopologyError,
    Tun,
    UnsupportedError,
    Vxlan,
)
from nsorch.net.messages import get_link
from nsorch.net.netlink import Request

pytestmark = [pytest.mark.anyio, pytest.mark.vm(one_backend=True)]

BOTH = ("10.0.0.0/24", "fd00::/64")
_may_tun = os.access("/dev/net/tun", os.R_OK | os.W_OK)


async def told(events: object, count: int) -> list[tuple[str, str, str]]:
    found = []
    while len(found) < count:
        event = await events.receive()  # type: ignore[attr-defined]
        found.append((type(event).__name__, event.worker, event.interface))
    return found


@needs_kernel("macvlan")
async def test_a_link_keeps_an_mtu_that_what_is_above_can_live_with() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        link = await sup.link("a", await sup.start("b"), subnet="10.1.0.0/31")
        await worker.add_interface(Macvlan("low", parent="eth0"))
        await worker.add_interface(Macvlan("high", parent="low", address="fd01::1/64"))
        with pytest.raises(TopologyError, match="a:high has fd01::1"):
            await link.set(mtu=1279)
        await worker.remove_interface("high")
        await link.set(mtu=1279)


@needs_kernel("macvlan")
async def test_what_another_program_renames_is_still_what_others_stand_on() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        link = await sup.link("a", await sup.start("b"), subnet="10.1.0.0/31")
        await worker.add_interface(Macvlan("above", parent="eth0"))
        await link.down()  # before Linux 6.2 nothing else may be renamed
        await worker.run(["ip", "link", "set", "eth0", "name", "up0"])
        await sup.wait_event(nsorch.LinkChanged, since=0)
        assert worker.interfaces["above"].parent == "up0"
        await link.up()
        assert b"state UP" in (await worker.run(["ip", "link", "show", "above"])).stdout
        await link.remove()
        assert dict(worker.interfaces) == {}


async def test_an_interface_for_a_worker_that_was_removed_keeps_no_name() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        await worker.remove()
        with pytest.raises(ClosedError):
            await sup._wiring.interfaces.adapt(worker, [Vxlan("v0", id=1)])
        assert not sup._wiring.record._ifnames


@needs_kernel("macvlan")
async def test_macvlan_is_there_before_the_command() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH)
        command = ["sh", "-c", "cat /sys/class/net/mv0/operstate /proc/net/fib_trie; exec sleep 600"]
        worker = await sup.start(
            "a",
            command,
            links=["lan"],
            interfaces=[Macvlan("mv0", parent="eth0")],
            stdout=-1,
            namespaces=["net", "mnt"],
        )
        other = await sup.start("b", links=["lan"])
        interface = worker.interfaces["mv0"]
        assert (interface.kind, interface.parent, interface.link, interface.mtu) == ("macvlan", "eth0", None, 1500)
        assert [str(address) for address in interface.addresses] == ["10.0.0.2/24", "fd00::2/64"]
        assert interface.addresses[0] in worker.addresses
        assert worker.stdout is not None
        seen = b""
        while b"10.0.0.2" not in seen:
            seen += await worker.stdout.receive()
        for address in ("10.0.0.2", "fd00::2"):
            assert await answers(other, worker, address)
        assert "10.0.0.2 a a.mv0\n" in await hosts(other)
        await worker.remove_interface("mv0")
        assert list(worker.interfaces) == ["eth0"]
        assert "a.mv0" not in await hosts(other)
        assert str((await sup.start("c", links=["lan"])).addresses[0].ip) == "10.0.0.2", "its address is free"


async def hosts(worker: nsorch.Worker) -> str:
    return (await worker.run(["cat", "/etc/hosts"])).stdout.decode()


@needs_kernel("macvlan")
async def test_events_and_removal_of_what_is_below() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH)
        worker = await sup.start("a", links=["lan"])
        async with sup.events(kinds=[InterfaceCreated, InterfaceRemoved]) as events:
            await worker.add_interface(Macvlan("low", parent="eth0", address="10.7.0.1/24", mac="02:00:00:00:00:07"))
            made = await worker.add_interface(Macvlan("high", parent="low", mtu=1400))
            assert (made.mac[:3], made.mtu, worker.interfaces["low"].mac) == ("02:", 1400, "02:00:00:00:00:07")
            assert await told(events, 2) == [("InterfaceCreated", "a", "low"), ("InterfaceCreated", "a", "high")]
            await worker.remove_interface("low")
            assert await told(events, 2) == [("InterfaceRemoved", "a", "high"), ("InterfaceRemoved", "a", "low")]
            assert b"high" not in (await worker.run(["cat", "/proc/net/dev"])).stdout
            await worker.add_interface(Macvlan("low", parent="eth0"))
            await sup.links["a:eth0-lan"].remove()
            assert (await told(events, 2))[1] == ("InterfaceRemoved", "a", "low")
            assert not worker.interfaces
            await sup.link(worker, "lan")
            await worker.add_interface(Macvlan("low", parent="eth0"))
            await worker.remove()
            assert (await told(events, 2))[1] == ("InterfaceRemoved", "a", "low")


@needs_kernel("macvlan")
async def test_a_link_that_was_down_brings_back_what_is_above_it() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH)
        route = nsorch.Route("fd99::/64", dev="mv0")
        worker = await sup.start(
            "a",
            links=["lan"],
            interfaces=[Macvlan("mv0", parent="eth0", address=["fd07::1/64", "10.7.0.1/24"])],
            routes=[route],
        )
        other = await sup.start("b", links=["lan"], interfaces=[Macvlan("mv0", parent="eth0", address="fd07::2/64")])
        routes = (await worker.run(["cat", "/proc/net/ipv6_route"])).stdout
        assert routes.startswith(b"fd")
        assert routes.count(b"fd990000") == 1
        link = sup.links["a:eth0-lan"]
        await link.down()
        await link.up()
        assert await answers(other, worker, "fd07::1")
        assert (await worker.run(["cat", "/proc/net/ipv6_route"])).stdout.count(b"fd990000") == 1


async def test_what_can_t_be_is_refused_before_anything_is_made() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH)
        worker = await sup.start("a", links=["lan"])
        with pytest.raises(TopologyError, match=r'workers\.a\.interfaces\.m: the worker has no interface "eth7"'):
            await worker.add_interface(Macvlan("m", parent="eth7"))
        with pytest.raises(NameInUseError, match='an interface "eth0" already'):
            await worker.add_interface(Macvlan("eth0", parent="eth0"))
        with pytest.raises(AddressError, match=r"10\.0\.0\.1 of a:m is used by a:eth0"):
            await worker.add_interface(Macvlan("m", parent="eth0", address="10.0.0.1"))
        with pytest.raises(NetlinkError, match="create interface m"):
            await worker.add_interface(Macvlan("m", parent="eth0", mtu=9000))
        with pytest.raises(ClosedError, match="it is an end of a link"):
            await worker.remove_interface("eth0")
        with pytest.raises(ClosedError, match='no interface "x"'):
            await worker.remove_interface("x")
        assert list(worker.interfaces) == ["eth0"]
        with pytest.raises(TopologyError, match='no interface "eth1"'):
            await sup.start("b", links=["lan"], interfaces=[Macvlan("m", parent="eth1")])
        with pytest.raises(UnsupportedError, match="host's network namespace"):
            await sup.start("b", interfaces=[Tun("t")], namespaces={"net": "host"})
        with pytest.raises(NetlinkError, match="create interface m"):
            await sup.start("b", links=["lan"], interfaces=[Macvlan("m", parent="eth0", mtu=9000)])
        assert list(sup.workers) == ["a"]
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await worker.add_interface(Macvlan("m", parent="eth0"))
        await worker.add_interface(Macvlan("m", parent="eth0"))
        assert str(worker.interfaces["m"].addresses[0].ip) == "10.0.0.2"
        # A link without a name takes the next free one.
        third = await sup.start("c", links=["lan", "lan"], interfaces=[Macvlan("eth0", parent="eth1")])
        assert list(third.interfaces) == ["eth1", "eth2", "eth0"]


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        ("8021q", nsorch.Vlan("i", parent="eth0", id=5)),
        ("dummy", Dummy("i")),
        ("ipvlan", nsorch.Ipvlan("i", parent="eth0")),
        ("vrf", nsorch.Vrf("i", table=5)),
        ("bonding", nsorch.Bond("i")),
        ("wireguard", nsorch.WireGuard("i")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_missing_module_is_named(module: str, spec: nsorch.InterfaceSpec) -> None:
    if module not in missing_in_kernel(module):
        pytest.skip(f"this kernel has {module}")
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", BOTH)
        worker = await sup.start("a", links=[lan])
        with pytest.raises(UnsupportedError, match=rf"workers\.a\.interfaces\.i: .* module {module} \(CONFIG_"):
            await worker.add_interface(spec)
        with pytest.raises(UnsupportedError, match=rf"workers\.b\.interfaces\[0\]: .* module {module} "):
            await sup.start("b", links=[lan], interfaces=[spec])
        topology = nsorch.Topology()
        topology.bridge("net")
        topology.worker("w", links=["net"], interfaces=[spec])
        with pytest.raises(UnsupportedError, match=module):
            await sup.deploy(topology)
        assert list(sup.workers) == ["a"]
        assert list(sup.bridges) == ["lan"]


async def test_bridges_that_know_no_vlans_are_named() -> None:
    async with nsorch.Supervisor() as sup:
        try:
            await sup.bridge("sw", vlan_aware=True)
            pytest.skip("this kernel's bridges know VLANs")
        except UnsupportedError as exc:
            assert str(exc).startswith("bridges.sw.vlan_aware: ")
            assert "CONFIG_BRIDGE_VLAN_FILTERING" in str(exc)
        assert not sup.bridges


@needs_kernel("vxlan")
async def test_vxlan_knows_those_who_come_and_go() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", BOTH)

        async def start(name: str) -> nsorch.Worker:
            number = " abc".index(name)
            remote = [other for other in "abc" if other != name]
            return await sup.start(
                name, links=[lan], interfaces=[Vxlan("vx0", id=7, remote=remote, address=f"10.7.0.{number}/24")]
            )

        a, b = await start("a"), await start("b")
        assert await answers(a, b, "10.7.0.2")
        c = await start("c")
        assert await answers(c, a, "10.7.0.1")
        assert await answers(b, c, "10.7.0.3")
        assert a.interfaces["vx0"].mtu == 1450
        await sup.links["c:eth0-lan"].set(address="10.0.0.99")  # the others send there, then
        assert await answers(a, c, "10.7.0.3")
        await b.remove()
        assert await answers(a, c, "10.7.0.3")
        b = await start("b")
        assert await answers(b, c, "10.7.0.3")


@needs_kernel("vxlan")
async def test_vxlan_for_several_at_once() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "fd00::/64")
        workers = await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "abc"])
        made = await sup.vxlan(*workers, id=9, subnet=("10.9.0.0/24", "fd09::/64"))
        assert [str(interface.addresses[0]) for interface in made] == [f"10.9.0.{number}/24" for number in (1, 2, 3)]
        for source, target, address in (("a", "b", "10.9.0.2"), ("c", "a", "fd09::1"), ("b", "c", "fd09::3")):
            assert await answers(sup.workers[source], sup.workers[target], address), "over IPv6"
        with pytest.raises(NameInUseError):
            await sup.vxlan("a", "b", id=9)
        with pytest.raises(TopologyError, match="subnet"):
            await sup.vxlan(*workers, id=10)
        with pytest.raises(TopologyError, match="two ends"):
            await sup.vxlan("a", "a", id=10)
        pair = await sup.vxlan("a", "b", id=11)
        assert await answers(workers[0], workers[1], pair[1].addresses[0])


@needs_kernel("vxlan", "macvlan")
async def test_apply_makes_only_the_difference() -> None:
    def topology(*interfaces: nsorch.InterfaceSpec, mtu: int | None = None) -> nsorch.Topology:
        made = nsorch.Topology()
        made.bridge("lan", BOTH, mtu=mtu)
        made.worker("a", links=["lan"], interfaces=interfaces)
        made.worker("b", links=["lan"], interfaces=[Vxlan("vx0", id=7, remote="a", address="10.7.0.2/24")])
        return made

    stays = Vxlan("vx0", id=7, remote=["b"], address="10.7.0.1/24")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology(stays, Macvlan("mv0", parent="eth0"), Macvlan("mv1", parent="eth0")))
        a, b = sup.workers["a"], sup.workers["b"]
        await a.add_interface(Macvlan("mine", parent="eth0"))
        async with sup.events(kinds=[InterfaceCreated, InterfaceRemoved]) as events:
            wanted = topology(stays, Macvlan("mv1", parent="eth0", mode="vepa"), Macvlan("mv2", parent="eth0"))
            found = await deployment.apply(wanted, dry_run=True)
            assert [str(change) for change in found.changes] == ["set worker a (interfaces)"]
            await deployment.apply(wanted)
            seen = await told(events, 5 - 1)
            assert sorted(seen) == [
                ("InterfaceCreated", "a", "mv1"),
                ("InterfaceCreated", "a", "mv2"),
                ("InterfaceRemoved", "a", "mv0"),
                ("InterfaceRemoved", "a", "mv1"),
            ]
        assert sorted(a.interfaces) == ["eth0", "mine", "mv1", "mv2", "vx0"]
        assert await answers(b, a, "10.7.0.1")
        assert not await deployment.apply(wanted)
        # Another link takes what is above it along: it is made again.
        again = topology(stays, Macvlan("mv2", parent="eth0"), mtu=1400)
        await deployment.apply(again)
        assert {"eth0", "mv2", "vx0"} == a.interfaces.keys()
        assert await answers(b, a, "10.7.0.1")
        assert await answers(b, a, a.interfaces["mv2"].addresses[0])


@needs_kernel("macvlan")
async def test_several_at_a_time() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH)
        worker = await sup.start("a", links=["lan"])
        failed = []

        async def add(name: str, parent: str, mtu: int | None = None) -> None:
            try:
                await worker.add_interface(Macvlan(name, parent=parent, mtu=mtu))
            except (NetlinkError, ClosedError) as exc:
                failed.append((name, type(exc)))

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(add, f"m{number}", "eth0")
            tasks.start_soon(add, "wide", "eth0", 9000)
        assert failed == [("wide", NetlinkError)]
        assert worker.interfaces.keys() == {"eth0", "m0", "m1", "m2", "m3"}
        assert len({address for interface in worker.interfaces.values() for address in interface.addresses}) == 10
        async with anyio.create_task_group() as tasks:
            for number in range(4, 8):
                tasks.start_soon(add, f"m{number}", "eth0")
            await anyio.lowlevel.checkpoint()
            await worker.remove()
        assert not worker.interfaces
        assert all(kind is ClosedError for _, kind in failed[1:])
        assert (await sup.start("b", links=["lan"])).addresses[0].ip.packed[-1] == 1, "all addresses are free"


@needs_kernel("macvlan")
async def test_routes_follow_interfaces_that_are_made_again() -> None:
    def topology(name: str, mtu: int | None, *routes: nsorch.Route) -> nsorch.Topology:
        made = nsorch.Topology()
        made.bridge("lan", BOTH, mtu=mtu)
        interface = Macvlan(name, parent="eth0", address=["10.7.0.1/24", "fd07::1/64"])
        made.worker("a", links=["lan"], interfaces=[interface], routes=routes)
        return made

    async with nsorch.Supervisor() as sup:
        by = nsorch.Route("10.99.0.0/16", via="10.7.0.9")
        deployment = await sup.deploy(topology("mv0", None, by))
        worker = sup.workers["a"]

        async def ways() -> list[str]:
            lines = (await worker.run(["cat", "/proc/net/route"])).stdout.decode().splitlines()
            return [line.split()[0] for line in lines if line.split()[1] == "0000630A"]

        assert await ways() == ["mv0"]
        await deployment.apply(topology("mv0", 1400, by))
        assert await ways() == ["mv0"]
        await deployment.apply(topology("mv1", 1400, nsorch.Route("10.99.0.0/16", dev="mv1")))
        assert await ways() == ["mv1"]
        with pytest.raises(TopologyError, match="on none of its links"):
            await worker.set_routes([by, nsorch.Route("10.98.0.0/16", via="10.5.5.5")])
        assert await ways() == ["mv1"]


@needs_kernel("macvlan", "nf_tables")
async def test_nat_by_an_interface() -> None:
    topology = nsorch.Topology()
    topology.bridge("home", "10.0.0.0/24", gateway="r")
    topology.bridge("internet", "203.0.113.0/24")
    topology.worker(
        "r",
        links=["internet", "home"],
        interfaces=[Macvlan("up0", parent="eth0", address="203.0.113.77")],
        nat=nsorch.Nat(["eth0", "up0"], forwards=[nsorch.Forward(80, to="a", protocol="udp")]),
    )
    for name in "ab":
        topology.worker(name, links=["home"])
    topology.worker("x", links=["internet"])
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        a = sup.workers["a"]
        async with await a.create_udp_socket(local_host=a.addresses[0].ip, local_port=80) as server:
            for name in "xb":  # from outside, and from inside by the outside address
                async with await sup.workers[name].create_connected_udp_socket("203.0.113.77", 80) as client:
                    await client.send(b"in")
                    with anyio.fail_after(10):
                        data, who = await server.receive()
                        await server.sendto(data + b" and out", *who)
                        assert await client.receive() == b"in and out"


# -- TUN and TAP


@needs_tun
async def test_packets_of_a_tun_device() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        async with sup.events(kinds=[InterfaceCreated, InterfaceRemoved]) as events:
            async with await worker.open_tun("tun0", address="10.8.0.1/24", mtu=1300) as tun:
                assert worker.interfaces["tun0"].mtu == 1300
                assert not os.get_blocking(tun.fileno())
                async with await worker.create_udp_socket(local_host="10.8.0.1", local_port=99) as sock:
                    await tun.send(udp_packet("10.8.0.2", "10.8.0.1", (5, 99), b"in"))
                    assert await sock.receive() == (b"in", ("10.8.0.2", 5))
                    await sock.sendto(b"out", "10.8.0.2", 5)
                    assert (await tun.receive())[-3:] == b"out"
                with pytest.raises(OSError, match="Invalid argument"):
                    await tun.send(b"\0 is no version of IP")
                with pytest.raises(NameInUseError):
                    await worker.open_tun("tun0")
            assert await told(events, 2) == [("InterfaceCreated", "a", "tun0"), ("InterfaceRemoved", "a", "tun0")]
        assert not worker.interfaces
        with pytest.raises(anyio.ClosedResourceError):
            await tun.receive()
        await tun.aclose()


@needs_tun
async def test_a_tun_device_ends_with_its_worker() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        tun = await worker.open_tun("tun0")
        raised: list[type[BaseException]] = []

        async def receive() -> None:
            try:
                await tun.receive()
            except Exception as exc:
                raised.append(type(exc))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await worker.remove()
        assert raised == [anyio.EndOfStream]
        with pytest.raises(anyio.BrokenResourceError):
            await tun.send(b"")
        other = await sup.start("b")
        last = await other.open_tun("tap0", "tap", address="10.8.0.1/24", mac="02:00:00:00:00:08")
        assert other.interfaces["tap0"].mac == "02:00:00:00:00:08"
    assert last.fileno() == -1


@needs_tun
async def test_a_described_tun_device_can_be_opened_again_and_again() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a", interfaces=[Tun("tap0", mode="tap", address=["10.8.0.1/24", "fd08::1/64"])])
        assert worker.interfaces["tap0"].mac.startswith("02:")
        for host in (b"\2", b"\3"):
            async with await worker.open_tun("tap0") as tap, await worker.create_udp_socket() as sock:
                assert tap.mode == "tap"
                await sock.sendto(b"x", f"10.8.0.{host[0]}", 5)
                while (frame := await tap.receive())[12:14] != b"\x08\x06":
                    pass
                assert frame.rstrip(b"\0")[-4:] == b"\x0a\x08\0" + host, "an ARP request"
            assert "tap0" in worker.interfaces
        with pytest.raises(TopologyError, match="is there already, with its own options"):
            await worker.open_tun("tap0", "tun")
        fd = (await worker.open_tun("tap0")).detach()
        os.close(fd)


@pytest.mark.skipif(_may_tun, reason="/dev/net/tun can be opened")
async def test_a_device_that_can_t_be_opened_is_named() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        with pytest.raises((PermissionDeniedError, UnsupportedError), match="/dev/net/tun"):
            await worker.open_tun("tun0")
        assert not worker.interfaces


@needs_tun
async def test_cancelled_opening_leaves_nothing() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        for number in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await worker.open_tun(f"tun{number}")
        assert not worker.interfaces
        assert (await worker.run(["cat", "/proc/net/dev"])).stdout.count(b":") == 1


# -- bridges


def options_of(sup: nsorch.Supervisor, bridge: str) -> dict[str, int]:
    """What the kernel says of a bridge."""
    ifinfmsg = pytest.importorskip("pyroute2.netlink.rtnl.ifinfmsg").ifinfmsg
    (part,) = sup.bridges[bridge]._parts.all
    body = sup._wiring.kernel.engine.fabric.ask(Request(get_link(part.index), "look at", bridge))
    message = ifinfmsg(struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body)
    message.decode()
    return dict(message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")["attrs"])


async def test_options_of_bridges() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("plain")
        await sup.bridge("tree", stp=True, forward_delay="3s", ageing=7.5)
        await sup.bridge("quick", stp=True, multicast_snooping=True)
        plain, tree, quick = (options_of(sup, name) for name in ("plain", "tree", "quick"))
        assert [made["IFLA_BR_STP_STATE"] for made in (plain, tree, quick)] == [0, 1, 1]
        assert [made["IFLA_BR_FORWARD_DELAY"] for made in (tree, quick)] == [300, 200]
        assert [made["IFLA_BR_AGEING_TIME"] for made in (plain, tree)] == [30000, 750]
        assert [made["IFLA_BR_MCAST_SNOOPING"] for made in (plain, tree, quick)] == [0, 0, 1]
        assert quick["IFLA_BR_MCAST_QUERIER"] == 1


@pytest.mark.long
async def test_a_port_forwards_once_the_spanning_tree_is_known() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", BOTH, stp=True)
        a, b = await sup.start("a", links=["lan"]), await sup.start("b", links=["lan"])
        assert await answers(a, b, b.addresses[0], timeout=15)


@needs_kernel("macvlan")
async def test_workers_that_share_a_network_namespace() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", BOTH)
        host = await sup.start("host", links=[lan])
        guest = await sup.start("guest", namespaces={"net": host})
        other = await sup.start("other", links=[lan])
        made = await guest.add_interface({"kind": "macvlan", "name": "m", "parent": "eth0"})
        for address in made.addresses:
            assert await answers(other, guest, address)
        with pytest.raises(NameInUseError):
            await host.add_interface(Macvlan("m", parent="eth0"))
        link = sup.links["host:eth0-lan"]
        await link.down()
        await link.up()
        for address in made.addresses:
            assert await answers(other, guest, address)
        await guest.remove()
        assert b"m:" not in (await host.run(["cat", "/proc/net/dev"])).stdout
        again = await host.add_interface(Macvlan("m", parent="eth0"))
        assert again.addresses == made.addresses
        pair = await sup.link(host, other)
        end = pair.interfaces[0].name
        assert (await host.add_interface(Macvlan("m2", parent=end))).addresses == (), "a pair has no address to spare"


@needs_tun
async def test_two_taps_and_a_program_are_a_wire() -> None:
    async with nsorch.Supervisor() as sup:
        a, b = await sup.start_all([nsorch.WorkerSpec(name=name) for name in "ab"])
        async with (
            await a.open_tun("tap0", "tap", address=["10.3.0.1/24", "fd03::1/64"]) as near,
            await b.open_tun("tap0", "tap", address=["10.3.0.2/24", "fd03::2/64"]) as far,
            anyio.create_task_group() as tasks,
        ):

            async def carry(source: nsorch.TunDevice, target: nsorch.TunDevice) -> None:
                async for frame in source:
                    await target.send(frame)

            tasks.start_soon(carry, near, far)
            tasks.start_soon(carry, far, near)
            for address in ("10.3.0.2", "fd03::2"):
                assert await answers(a, b, address)
            tasks.cancel_scope.cancel()
