"""Bridges, links, addresses and routes, as the kernel has them."""

from __future__ import annotations

import ipaddress
import json
import pathlib
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import nsorch
from nsorch.net.engine import Engine
from nsorch.net.messages import NLM_F_DUMP, message
from nsorch.net.netlink import Netlink, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsorch.net.netlink import NetnsHandle

pytestmark = pytest.mark.anyio
TOPOLOGIES = pathlib.Path(__file__).parent.parent.parent / "shared" / "topologies"
SHOW = """
import json, socket
routes = open("/proc/net/route").read().splitlines()[1:]
print(json.dumps({"interfaces": [name for _, name in socket.if_nameindex()], "routes": [r.split()[:3] for r in routes]}))
"""


async def look(worker: nsorch.Worker) -> dict[str, object]:
    return json.loads((await worker.run(["python3", "-c", SHOW])).stdout)


async def test_bridge_and_links() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"], gateway="r1", mtu=1400)
        a = await sup.start("a", links=[lan])
        b = await sup.start("b", links=[nsorch.To(lan, address="10.0.0.77", name="up0", mac="02:00:00:00:00:07")])
        r1 = await sup.start("r1", links=["lan"], forward=True)
        assert [str(x) for x in r1.addresses] == ["10.0.0.1/24", "fd00::1/64"]
        assert [str(x) for x in a.addresses] == ["10.0.0.2/24", "fd00::2/64"]
        assert [str(x) for x in b.addresses] == ["10.0.0.77/24", "fd00::3/64"]
        assert b.interfaces["up0"].mac == "02:00:00:00:00:07"
        seen = await look(a)
        assert set(seen["interfaces"]) == {"lo", "eth0"}  # type: ignore[call-overload]
        default = [route for route in seen["routes"] if route[1] == "00000000"]  # type: ignore[attr-defined]
        assert default == [["eth0", "00000000", "0100000A"]]
        assert (await sup.ping_all()).ok
        hosts = (await a.run(["cat", "/etc/hosts"])).stdout.decode()
        assert "10.0.0.77 b b.lan\n" in hosts
        resolved = await a.run(["python3", "-c", "import socket; print(socket.gethostbyname('b.lan'))"])
        assert resolved.stdout == b"10.0.0.77\n"
        await b.remove()
        assert "10.0.0.77" not in (await a.run(["cat", "/etc/hosts"])).stdout.decode()
        again = await sup.start("b", links=[nsorch.To("lan", address="10.0.0.77")])
        assert (await sup.ping_all([("a", "b"), (again, a)])).ok


async def test_everything_is_there_before_the_exec() -> None:
    bind = "import socket; socket.socket().bind(('10.0.0.1', 1))"
    script = f'cat /proc/net/route; python3 -c "{bind}" && echo bound'
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        async with sup.events() as events:
            worker = await sup.start("w", ["sh", "-c", script], links=[lan], stdout=subprocess.PIPE)
            said = b""
            assert worker.stdout is not None
            async for chunk in worker.stdout:
                said += chunk
            assert b"eth0" in said
            assert said.endswith(b"bound\n")
            order = []
            while not order or order[-1] != "WorkerStarted":
                order.append((await events.receive()).kind)
        assert order.index("LinkUp") < order.index("WorkerSpawned")


async def test_point_to_point() -> None:
    async with nsorch.Supervisor() as sup:
        a, b = await sup.start("a"), await sup.start("b")
        first = await sup.link("a", b)
        second = await sup.link(nsorch.End(a, name="x0", address="192.0.2.1"), "b:y0", subnet="192.0.2.0/30", mtu=1300)
        assert first.ends == ("a:eth0", "b:eth0")
        assert second.ends == ("a:x0", "b:y0")
        assert [x.network.prefixlen for x in a.addresses] == [31, 127, 30]
        assert b.interfaces["y0"].mtu == 1300
        for address in b.addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            with (
                await b.open_socket(family, socket.SOCK_DGRAM) as there,
                await a.open_socket(family, socket.SOCK_DGRAM) as here,
            ):
                there.bind((str(address.ip), 7))
                here.sendto(b"hello", (str(address.ip), 7))
                with anyio.fail_after(5):
                    await anyio.wait_readable(there)
                assert there.recv(10) == b"hello"
        await first.down()
        assert not first.is_up
        assert not (await sup.ping_all([("a", "b")], timeout=0.1, attempts=1)).ok
        await first.up()
        assert (await sup.ping_all([("a", "b")])).ok
        await first.set(mtu=1280)
        assert a.interfaces["eth0"].mtu == 1280
        await first.remove()
        await first.remove()
        assert set(a.interfaces) == {"x0"}
        assert set((await look(b))["interfaces"]) == {"lo", "y0"}  # type: ignore[call-overload]
        with pytest.raises(nsorch.ClosedError):
            await first.up()
        with pytest.raises(nsorch.NameInUseError):
            await sup.link("a:x0", "b")
        assert set(sup.links) == {"a:x0-b:y0"}


async def test_concurrent_links() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start_all([nsorch.WorkerSpec(name=f"w{n}") for n in range(12)])
        async with anyio.create_task_group() as tasks:
            for n in range(12):
                tasks.start_soon(sup.link, f"w{n}", f"w{(n + 1) % 12}")
        assert len(sup.links) == 12
        assert (await sup.ping_all([(f"w{n}", f"w{(n + 1) % 12}") for n in range(12)])).ok


async def test_given_routes_and_forwarding() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("left", "10.1.0.0/24")
        await sup.bridge("right", "10.2.0.0/24")
        await sup.start("r", links=["left", "right"], forward=True)
        await sup.start("a", links=["left"], routes=[nsorch.Route("10.2.0.0/24", via="10.1.0.1")])
        await sup.start("b", links=["right"], routes=[nsorch.Route("default", via="10.2.0.1")])
        assert (await sup.ping_all()).ok
        with pytest.raises(nsorch.TopologyError, match=r"routes\[0\]"):
            await sup.start("c", links=["left"], routes=[nsorch.Route("default", via="10.9.0.1")])
        await sup.start("d", links=["left"])
        assert not (await sup.ping_all([("d", "b")])).ok


async def test_failure_undoes() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        other = await sup.start("other")
        await other.run(["ip", "link", "add", "taken", "type", "bridge"])  # by another program
        with pytest.raises(nsorch.NetlinkError) as failed:
            await sup.start("x", links=[nsorch.To("lan", name="taken")], namespaces={"net": other})
        assert failed.value.errno
        assert "create link" in str(failed.value)
        assert "x" not in sup.workers
        assert dict(sup.links) == {}
        await sup.start("x", links=["lan"])
        assert [str(a) for a in sup.workers["x"].addresses] == ["10.0.0.1/24"]


@pytest.mark.parametrize("name", ["Abilene", "Padi", "Globenet"])
async def test_real_networks(name: str) -> None:
    path = TOPOLOGIES / f"{name}.graphml"
    if not path.exists():
        pytest.skip(f"{path} is not there: real networks are kept beside the checkout")
    topology = nsorch.Topology.load(path)
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        pairs = [(a, b) for part in topology.components() for a in part for b in part if a != b]
        reachable = await sup.ping_all(pairs)
        assert reachable.ok, reachable.failed[:3]
        assert len(reachable.pairs) == len(pairs)
        v6 = next(a for a in next(iter(deployment.workers.values())).addresses if a.version == 6)
        assert v6.network.prefixlen == 128
        await deployment.remove()
        await deployment.remove()
        assert dict(sup.workers) == dict(sup.links) == dict(sup.bridges) == {}
        await sup.deploy(topology)


@pytest.mark.parametrize("generator", ["star", "linear", "ring", "mesh"])
async def test_generators(generator: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.deploy(getattr(nsorch.Topology, generator)(5))
        assert (await sup.ping_all()).ok


async def test_trees() -> None:
    async with nsorch.Supervisor() as sup:
        first = await sup.deploy(nsorch.Topology.tree(2, 2))
        assert (await sup.ping_all()).ok
        await first.remove()
        await sup.deploy(nsorch.Topology.fat_tree(4))
        assert (await sup.ping_all()).ok


async def interfaces(worker: nsorch.Worker) -> list[str]:
    """Those of veth pairs; some kernels have others in each network namespace."""
    lines = (await worker.run(["cat", "/proc/net/dev"])).stdout.decode().splitlines()[2:]
    return sorted(name for line in lines if (name := line.split(":")[0].strip()).startswith("eth"))


async def test_removed_workers_take_their_links_along() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        hub = await sup.start("hub")
        others = [await sup.start(f"w{number}", links=["lan"]) for number in range(20)]
        for other in others:
            await sup.link(hub, other)
            await sup.link(hub, other)
        assert len(await interfaces(others[0])) == 3
        await hub.remove()
        assert [await interfaces(other) for other in (others[0], others[19])] == [["eth0"]] * 2
        assert len(sup.links) == 20
        async with anyio.create_task_group() as tasks:
            for other in others[1:]:
                tasks.start_soon(other.remove)
        assert list(sup.links) == ["w0:eth0-lan"]
        assert list(sup.workers) == ["w0"]


async def test_links_are_gone_from_a_network_namespace_that_somebody_shares() -> None:
    async with nsorch.Supervisor() as sup:
        topology = nsorch.Topology()
        for name in ("a", "b"):
            topology.worker(name)
        topology.link("a", "b")
        deployment = await sup.deploy(topology)
        guest = await sup.start("guest", namespaces={"net": "worker:a"})
        assert await interfaces(guest) == ["eth0"]
        await deployment.remove()
        assert await interfaces(guest) == []


async def test_deploy_refuses() -> None:
    topology = nsorch.Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("w", links=[nsorch.To("lan", delay="20ms")])
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.UnsupportedError, match=r"workers\.w\.links\[0\]"):
            await sup.deploy(topology)
        broken = nsorch.Topology()
        broken.worker("w", links=["nobody"])
        with pytest.raises(nsorch.TopologyError, match=r"workers\.w\.links\[0\].*nobody"):
            await sup.deploy(broken)
        assert dict(sup.workers) == dict(sup.bridges) == {}
        events = sup.snapshot()
        assert dict(events.workers) == {}


async def test_links_that_turn_out_to_be_too_many_leave_nothing() -> None:
    """Namespaces are made while the links of a topology are planned."""
    topology = nsorch.Topology()
    topology.bridge("lan", "100.64.0.0/10")  # with the addresses of links that give none
    for number in range(40):
        topology.worker(f"w{number}", links=["lan"])
    topology.link("w0", "w1")
    async with nsorch.Supervisor() as sup:
        for _ in range(2):
            with pytest.raises(nsorch.SubnetFullError, match="links.w0-w1"):
                await sup.deploy(topology)
            assert dict(sup.workers) == dict(sup.bridges) == dict(sup.links) == {}


async def test_a_command_that_is_not_there_ends_the_planning() -> None:
    topology = nsorch.Topology.mesh(12)
    topology.worker("wrong", ["no-such-command"])
    async with nsorch.Supervisor() as sup:
        with pytest.raises(ExceptionGroup) as caught:
            await sup.deploy(topology)
        assert caught.group_contains(nsorch.CommandNotFoundError, match="no-such-command")
        assert dict(sup.workers) == dict(sup.bridges) == dict(sup.links) == {}


@pytest.mark.vm(one_backend=True)
async def test_a_worker_with_more_links_than_the_first_bridges_number() -> None:
    """Linux 6.1 looks for the number of a pair's first end among the interfaces of who asks for it, the fabric's."""
    async with nsorch.Supervisor() as sup:
        for name in ("first", "second"):
            await sup.bridge(name, "10.0.0.0/24")
            await sup.start(f"on-{name}", links=[name])
        await sup.start("hub")
        await sup.start("other")
        for _ in range(20):
            await sup.link("hub", "other")
        assert len(sup.workers["hub"].interfaces) == 20
        assert (await sup.ping_all([("hub", "other")])).ok


async def test_ipv6_addresses_are_heard_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a hardware address asks a group; one who hasn't joined it yet is asked again after a second."""
    groups: dict[str, list[bytes]] = {}

    def look(handle: NetnsHandle) -> None:
        dump = message(58, NLM_F_DUMP, bytes([10, *bytes(7)]))  # RTM_GETMULTICAST, AF_INET6
        groups[handle.name] = Netlink(handle.sock).dump(Request(dump, "list", "groups"), 58)

    def then_look(name: str) -> None:
        real = getattr(Engine, name)

        def call(self: Engine, *args: Any, **options: Any) -> None:
            real(self, *args, **options)
            for handle in args[1].values() if name == "execute" else args[:1]:  # before the thread does anything else
                look(handle)

        monkeypatch.setattr(Engine, name, call)

    def missing(worker: str, addresses: Iterable[str]) -> list[str]:
        packed = {address: ipaddress.IPv6Address(address).packed for address in addresses}
        # ff02::1:ff00:0/104, and what follows of the message
        return [a for a, p in packed.items() if not any(b"\1\xff" + p[-3:] in body for body in groups[worker])]

    for name in ("execute", "restore_end", "change_addresses"):
        then_look(name)
    many = [f"fd00::a:{number:x}" for number in range(1, 200)]
    async with nsorch.Supervisor() as sup:
        await sup.start_all([nsorch.WorkerSpec(name=name) for name in "ab"])
        link = await sup.link(nsorch.End("a", address=many), nsorch.End("b", address="fd00::b"), subnet="fd00::/64")
        assert not missing("a", many)
        assert not missing("b", ["fd00::b"])
        await link.down()
        await link.up()
        assert not missing("a", many)
        for letter in "cdef":
            others = [address.replace("::a", f"::{letter}") for address in many]
            await link.set(address=others, end="a")
            assert not missing("a", others)
