"""VLANs, VRF, bond, WireGuard and what else needs a kernel that has them."""

from __future__ import annotations

import socket

import anyio
import pytest
from interface_support import answers
from kernel_support import needs_kernel

import nsorch
from nsorch import AddressError, Bond, Dummy, Ipvlan, Route, To, TopologyError, Vlan, Vrf, Vxlan, WireGuard
from nsorch.supervisor.wiring import segments

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vm,
    needs_kernel("8021q", "vrf", "bonding", "dummy", "ipvlan", "wireguard", "vxlan"),
]

MARK = b"\x88\xb5"  # an EtherType for experiments
QUICK = 0.7  # seconds after which there is no answer


class Ear:
    """Hears what arrives at a worker's interface."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    async def of(cls, worker: nsorch.Worker, interface: str = "eth0") -> Ear:
        sock = await worker.open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((interface, 0x88B5))
        return cls(sock)

    def cry(self, text: bytes) -> None:
        """A broadcast."""
        self._sock.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + MARK + text.ljust(46, b"\0"))

    async def hear(self) -> bytes:
        with anyio.fail_after(10):
            await anyio.wait_readable(self._sock)
        return self._sock.recv(2048)[14:].rstrip(b"\0")

    def close(self) -> None:
        self._sock.close()


async def test_vlans_of_a_switch() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("sw", "10.0.0.0/24", vlan_aware=True)
        specs = [("a", 10), ("b", 10), ("c", 20), ("d", 20), ("e", None), ("f", 1)]
        await sup.start_all([nsorch.WorkerSpec(name=name, links=[To("sw", vlan=vlan)]) for name, vlan in specs])
        t = await sup.start("t", links=[To("sw", tagged=[10, 20], vlan=1)])
        for vlan in (10, 20):
            await t.add_interface(Vlan(f"eth0.{vlan}", parent="eth0", id=vlan))
        ears = {name: await Ear.of(worker) for name, worker in sup.workers.items()}
        tags = {vlan: await Ear.of(t, f"eth0.{vlan}") for vlan in (10, 20)}
        try:
            # In this order: had somebody heard what isn't for them, it would come before what is.
            ears["a"].cry(b"to 10")
            ears["c"].cry(b"to 20")
            ears["e"].cry(b"to 1")
            assert [await ears[name].hear() for name in "bdf"] == [b"to 10", b"to 20", b"to 1"]
            assert [await tags[vlan].hear() for vlan in (10, 20)] == [b"to 10", b"to 20"]
            tags[20].cry(b"tagged")
            assert [await ears[name].hear() for name in "cd"] == [b"tagged"] * 2
            ears["b"].cry(b"again")
            assert await ears["a"].hear() == b"again"
            # Moved to another VLAN while everything runs.
            link = sup.links["b:eth0-sw"]
            await link.set(vlan=20)
            ears["a"].cry(b"10 only")
            ears["c"].cry(b"20 only")
            assert await ears["b"].hear() == b"20 only"
        finally:
            for ear in (*ears.values(), *tags.values()):
                ear.close()
        a, b, c = (sup.workers[name] for name in "abc")
        assert await answers(b, c, c.addresses[0].ip)
        assert not await answers(a, b, b.addresses[0].ip, timeout=QUICK)
        for options in ({"vlan": 5, "tagged": [5]}, {"bridge": "nowhere", "vlan": 3}):
            with pytest.raises(TopologyError):
                await link.set(**options)
        with pytest.raises(TopologyError, match="vlan: it isn't linked to a bridge that is vlan_aware"):
            await sup.link(nsorch.End("a", vlan=3), "c")
        late = await sup.start("late")
        extra = await sup.link("late", To("sw", vlan=20, name="up0"))
        assert list(late.interfaces) == ["up0"]
        assert await answers(c, late, extra.interfaces[0].addresses[0].ip)


async def test_a_router_between_vlans() -> None:
    topology = nsorch.Topology()
    vlans = {10: ("10.0.10.0/24", "fd10::/64"), 20: ("10.0.20.0/24", "fd20::/64")}
    topology.bridge("sw", vlan_aware=True, vlans=vlans, gateway="r")
    topology.worker(
        "r",
        links=[To("sw", tagged=[10, 20])],
        interfaces=[Vlan("v10", parent="eth0", id=10), Vlan("v20", parent="eth0", id=20)],
        forward=True,
    )
    for name, vlan in (("a", 10), ("b", 10), ("c", 20)):
        topology.worker(name, links=[To("sw", vlan=vlan)])
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        r, a, b, c = (sup.workers[name] for name in "rabc")
        assert r.interfaces["eth0"].addresses == ()
        assert [str(address) for address in r.addresses] == [
            *("10.0.10.1/24", "fd10::1/64"),
            *("10.0.20.1/24", "fd20::1/64"),
        ]
        for address in b.addresses:
            assert await answers(a, b, address)
        for address in c.addresses:
            assert await answers(a, c, address)
        assert (await sup.ping_all()).ok
        # A port that changes its VLAN gets an address there, and the default route with it.
        await sup.links["b:eth0-sw"].set(vlan=20)
        assert [str(address.ip) for address in b.addresses] == ["10.0.20.3", "fd20::3"]
        for address in b.addresses:
            assert await answers(a, b, address)
        await r.remove_interface("v20")
        assert not await answers(a, c, c.addresses[0], timeout=QUICK)
        with pytest.raises(AddressError, match=r"10\.0\.20\.2 of r:v20 is used by c:eth0"):
            await r.add_interface(Vlan("v20", parent="eth0", id=20, address="10.0.20.2"))
        other = await r.add_interface(Vlan("s20", parent="eth0", id=20, protocol="802.1ad"))
        assert other.addresses == ()  # its tags aren't those of the bridge
        await r.add_interface(Vlan("v20", parent="eth0", id=20))
        assert await answers(a, c, c.addresses[0])
        link = sup.links["r:eth0-sw"]
        await link.down()
        await link.up()
        for address in c.addresses:
            assert await answers(a, c, address)


async def test_a_large_segment_carries_all_vlans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_PORTS", 2)
    async with nsorch.Supervisor() as sup:
        await sup.bridge("sw", "10.0.0.0/24", vlan_aware=True, gateway="g")
        specs = [("g", 4000), ("a", 4000), ("b", 17), ("c", None), ("d", None), ("e", 17), ("f", 4000)]
        await sup.start_all([nsorch.WorkerSpec(name=name, links=[To("sw", vlan=vlan)]) for name, vlan in specs])
        assert len(sup.bridges["sw"]._parts.all) == 4
        pairs = [(a, b) for a, first in specs for b, second in specs if a != b and (first or 1) == (second or 1)]
        assert (await sup.ping_all(pairs)).ok
        assert len((await sup.ping_all([("a", "b"), ("c", "e"), ("f", "d")], timeout=0.2, attempts=2)).failed) == 3
        await sup.links["f:eth0-sw"].set(vlan=17)
        assert (await sup.ping_all([("f", "b"), ("e", "f")])).ok
        await sup.links["e:eth0-sw"].set(mac="02:00:00:00:00:05")
        await sup.workers["g"].remove()
        assert (await sup.ping_all([("f", "e"), ("b", "e")])).ok


async def test_shortest_paths_through_vlans() -> None:
    topology = nsorch.Topology(routing="shortest-path")
    topology.bridge("sw", ("10.0.0.0/24", "fd00::/64"), vlan_aware=True)
    for name, vlans in (("a", [10]), ("r", [10, 20]), ("b", [20])):
        topology.worker(name, links=[To("sw", vlan=vlan) for vlan in vlans], forward=True)
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        assert (await sup.ping_all()).ok
        assert (await sup.ping_all(version=6)).ok


@pytest.mark.parametrize("mode", ["l2", "l3s"])
async def test_ipvlan(mode: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        a = await sup.start("a", links=["lan"], interfaces=[Ipvlan("iv0", parent="eth0", mode=mode)])
        b = await sup.start("b", links=["lan"])
        assert a.interfaces["iv0"].mac == a.interfaces["eth0"].mac
        if mode == "l2":
            for address in a.interfaces["iv0"].addresses:
                assert await answers(b, a, address), (await dump(a), await dump(b))


async def dump(worker: nsorch.Worker) -> str:
    lines = [["ip", "-d", "address"], ["ip", "route"], ["ip", "-6", "route"], ["ip", "neigh"]]
    return "\n".join([(await worker.run(line)).stdout.decode() for line in lines])


async def test_dummy_and_routes_through_it() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start(
            "a",
            ["sh", "-c", "cat /proc/net/route; exec sleep 600"],
            stdout=-1,
            links=["lan"],
            interfaces=[Dummy("d0", address=["10.9.0.1/32", "fd09::1/128"])],
            routes=[Route("10.99.0.0/24", dev="d0")],
        )
        b = await sup.start("b", links=["lan"], routes=[Route("10.9.0.0/16", via="10.0.0.1")])
        assert a.stdout is not None
        assert b"d0\t0000630A" in await a.stdout.receive(), "before the command"
        assert await answers(b, a, "10.9.0.1")
        await a.set_routes([])
        assert b"d0\t" not in (await a.run(["cat", "/proc/net/route"])).stdout
        await a.set_routes([Route("10.99.0.0/24", dev="d0")])
        await a.remove_interface("d0")
        await a.set_routes([])


async def test_vrf() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("red", ("10.0.0.0/24", "fd00::/64"), gateway="g")
        await sup.bridge("blue", ("10.0.0.0/24", "fd00::/64"))
        g = await sup.start("g", links=["red"], interfaces=[Dummy("d0", address=["10.9.0.1/32", "fd09::1/128"])])
        await sup.start("x", links=["blue"])
        # Its two links have the same subnet, and the same address: only routing tables of their own keep them apart.
        r = await sup.start(
            "r",
            links=[To("red", address=["10.0.0.7", "fd00::7"]), To("blue", address=["10.0.0.7", "fd00::7"])],
            interfaces=[Vrf("vred", table=10, ports=["eth0"]), Vrf("vblue", table=20, ports="eth1")],
            routes=[Route("10.77.0.0/16", dev="eth1"), Route("fd77::/64", dev="eth1")],
        )

        async def reaches(vrf: bytes, address: str) -> bool:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = await r.open_socket(family, socket.SOCK_DGRAM)
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, vrf + b"\0")
                server = await g.create_udp_socket(local_host=address)
                async with server:
                    try:
                        sock.connect((address, server.extra(anyio.abc.SocketAttribute.local_port)))
                    except OSError:
                        return False
                    for _ in range(20):
                        with anyio.move_on_after(0.2):
                            sock.send(b"x")
                            await server.receive()
                            return True
            return False

        for address in ("10.9.0.1", "fd09::1"):  # by the default route of red
            assert await reaches(b"vred", address)
            assert not await reaches(b"vblue", address)
            assert not await reaches(b"lo", address)
        assert b"eth1\t00004D0A" not in (await r.run(["cat", "/proc/net/route"])).stdout, "not the main table"
        link = sup.links["r:eth0-red"]
        await link.down()
        await link.up()
        for address in ("10.9.0.1", "fd09::1"):
            assert await reaches(b"vred", address)
        # Without the VRF its routes are in the main table again.
        await r.remove_interface("vred")
        for address in ("10.9.0.1", "fd09::1"):
            assert await reaches(b"eth0", address)
        assert (await sup.ping_all([("r", "g"), ("g", "r")])).ok


async def test_bond() -> None:
    topology = nsorch.Topology()
    for name in ("a", "b"):
        topology.worker(name, interfaces=[Bond("bond0", mode="active-backup", ports=["eth0", "eth1"], miimon="20ms")])
    for _ in range(2):
        topology.link("a", "b")
    changed = nsorch.Topology()
    changed.worker("a")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        a, b = sup.workers["a"], sup.workers["b"]
        assert not a.addresses
        assert a.interfaces["eth0"].addresses == ()
        for worker, number in ((a, 1), (b, 2)):
            await worker.add_interface(
                Vlan("bond0.5", parent="bond0", id=5, address=[f"10.5.0.{number}/24", f"fd05::{number}/64"])
            )
        for address in ("10.5.0.2", "fd05::2"):
            assert await answers(a, b, address)
        assert a.interfaces["eth0"].mac == a.interfaces["eth1"].mac == a.interfaces["bond0"].mac
        await sup.links["a:eth0-b:eth0"].down()
        assert await answers(a, b, "10.5.0.2", timeout=10)
        await sup.links["a:eth0-b:eth0"].up()
        await sup.links["a:eth1-b:eth1"].down()
        assert await answers(a, b, "fd05::2", timeout=10)
        await a.remove_interface("bond0")
        assert list(a.interfaces) == ["eth0", "eth1"]
        await deployment.apply(changed)
        assert list(sup.workers) == ["a"]


async def test_a_bond_that_can_t_be_is_undone() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        a, b = await sup.start("a", links=["lan"]), await sup.start("b", links=["lan"])
        await a.add_interface(Vrf("red", table=5, ports=["eth0"]))
        with pytest.raises(TopologyError, match='"eth0" is a port of "red" already'):
            await a.add_interface(Bond("bond0", ports=["eth0"]))
        await a.remove_interface("red")
        await a.add_interface(WireGuard("wg0"))
        with pytest.raises(nsorch.NetlinkError, match="wg0"):
            await a.add_interface(Bond("bond0", ports=["eth0", "wg0"]))
        assert "bond0" not in a.interfaces
        for address in a.interfaces["eth0"].addresses:
            assert await answers(b, a, address)


async def test_wireguard() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        behind = nsorch.WireGuardPeer(worker="b", allowed_ips="10.9.0.0/24")
        a = await sup.start(
            "a",
            links=[lan],
            interfaces=[WireGuard("wg0", peers=[behind, "c"], address=["10.8.0.1/24", "fd08::1/64"])],
            routes=[Route("10.9.0.0/24", dev="wg0")],
        )
        assert a._devices["wg0"].known == {}
        b = await sup.start(
            "b",
            links=[lan],
            interfaces=[
                WireGuard("wg0", peers="a", address=["10.8.0.2/24", "fd08::2/64"], port=1234),
                Dummy("d0", address="10.9.0.1/32"),
            ],
        )
        key = b.interfaces["wg0"].public_key
        assert key
        assert key != a.interfaces["wg0"].public_key
        assert a.interfaces["wg0"].mtu == 1420
        for address in ("10.8.0.2", "fd08::2", "10.9.0.1"):
            assert await answers(a, b, address)
        async with sup.links["b:eth0-lan"].capture(filter=None) as packets:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answers, a, b, "10.8.0.2")
                with anyio.fail_after(10):
                    async for packet in packets:
                        if packet.data[12:14] == b"\x08\x00" and packet.data[36:38] == (1234).to_bytes(2, "big"):
                            break
                assert b"question" not in packet.data
                tasks.cancel_scope.cancel()
        # The endpoint follows the peer's address.
        await sup.links["b:eth0-lan"].set(address="10.0.0.99")
        await sup.links["a:eth0-lan"].set(address="10.0.0.98")
        assert await answers(a, b, "10.8.0.2", timeout=10)
        assert await answers(b, a, "10.8.0.1", timeout=10)
        c = await sup.start("c", links=[lan], interfaces=[WireGuard("wg0", peers=["a"], address="10.8.0.3/24")])
        assert await answers(c, a, "10.8.0.1")
        assert not await answers(c, b, "10.8.0.2", timeout=QUICK), "b isn't its peer"
        await b.remove()
        assert list(a._devices["wg0"].known) == [c.interfaces["wg0"].public_key]
        given = await c.add_interface(WireGuard("wg1", private_key="QH" + "A" * 41 + "=", port=99))
        assert given.public_key


async def test_a_mesh_of_wireguard() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        workers = await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "abc"])
        made = await sup.wireguard(*workers, subnet=("10.8.0.0/24", "fd08::/64"), keepalive=25)
        assert [interface.name for interface in made] == ["wg0"] * 3
        for source in workers:
            for target, interface in zip(workers, made, strict=True):
                if source is not target:
                    assert await answers(source, target, interface.addresses[0])
        second = await sup.wireguard("a", "b")
        assert [interface.name for interface in second] == ["wg1"] * 2
        assert await answers(workers[0], workers[1], second[1].addresses[1])
        over = await sup.vxlan("a", "b", id=3)
        assert await answers(workers[0], workers[1], over[1].addresses[0])
        assert isinstance(workers[0]._devices["vxlan3"].spec, Vxlan)
