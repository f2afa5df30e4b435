"""What users of other tools expect of a lab."""

from __future__ import annotations

import errno
import socket

import anyio
import pytest

import nsorch

pytestmark = pytest.mark.anyio

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_RECVTTL = 10, 2, 12


@pytest.mark.parametrize("count", [2, 5])
async def test_a_star_without_loss(count: int) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("s1", ("10.0.0.0/24", "fd00::/64"))
        await sup.start_all([nsorch.WorkerSpec(name=f"h{number}", links=["s1"]) for number in range(count)])
        for version in (4, 6):
            reached = await sup.ping_all(version=version)
            assert (len(reached.pairs), reached.loss) == (count * (count - 1), 0)


@pytest.mark.parametrize("routers", [0, 1, 3])
async def test_each_router_lowers_the_ttl_by_one(routers: int) -> None:
    topology = nsorch.Topology.linear(routers + 2)
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        names = list(sup.workers)
        first, last = sup.workers[names[0]], sup.workers[names[-1]]
        receiver = await last.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender = await first.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.bind(("", 7000))
            receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
            sender.sendto(b"x", (str(last.addresses[0].ip), 7000))
            with anyio.fail_after(5):
                await anyio.wait_readable(receiver)
            _, ancillary, _, _ = receiver.recvmsg(10, 100)
            assert int.from_bytes(ancillary[0][2][:1]) == 64 - routers


@pytest.mark.parametrize("on", ["bridge", "link"])
async def test_an_mtu_of_4500(on: str) -> None:
    async with nsorch.Supervisor() as sup:
        if on == "bridge":
            await sup.bridge("lan", "10.0.0.0/24", mtu=4500)
        links = ["lan"] if on == "bridge" else []
        a, b = await sup.start_all([nsorch.WorkerSpec(name=name, links=links) for name in "ab"])
        if on == "link":
            link = await sup.link(a, b, subnet="10.0.0.0/24")
            await link.set(mtu=4500)
        receiver = await b.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender = await a.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.bind(("", 7000))
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            for size in (4452, 4472):  # 28 bytes of headers
                sender.sendto(bytes(size), (str(b.addresses[0].ip), 7000))
                with anyio.fail_after(5):
                    await anyio.wait_readable(receiver)
                assert len(receiver.recv(9000)) == size
            for size in (4473, 4500):
                with pytest.raises(OSError) as caught:
                    sender.sendto(bytes(size), (str(b.addresses[0].ip), 7000))
                assert caught.value.errno == errno.EMSGSIZE
        assert a.interfaces["eth0"].mtu == 4500


async def test_a_worker_sees_its_own_routes_and_nothing_of_the_host() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24", gateway="r")
        await sup.start("r", links=["lan"])
        worker = await sup.start("w", links=["lan"], routes=[nsorch.Route("10.9.0.0/16", via="10.0.0.1")])
        for _ in range(2):  # passive, and with a process
            lines = (await worker.run(["cat", "/proc/net/route"])).stdout.decode().splitlines()[1:]
            fields = sorted(line.split()[:3] for line in lines)
            assert fields == [
                ["eth0", "00000000", "0100000A"],
                ["eth0", "0000000A", "00000000"],
                ["eth0", "0000090A", "0100000A"],
            ]
            devices = (await worker.run(["cat", "/proc/net/dev"])).stdout.decode().splitlines()[2:]
            assert {line.split(":")[0].strip() for line in devices} - {"sit0", "ip6tnl0", "tunl0"} == {"lo", "eth0"}
            worker = await worker.restart(["sleep", "600"])


async def test_a_link_that_is_down_fails_a_probe_and_up_heals_it() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "abc"])
        (link,) = [link for link in sup.links.values() if link.ends[0] == "b:eth0"]
        for _ in range(2):
            await link.down()
            for version in (4, 6):
                broken = await sup.ping_all(timeout=0.2, attempts=1, version=version)
                assert {frozenset((result.source, result.target)) for result in broken.failed} == {
                    frozenset("ab"),
                    frozenset("bc"),
                }
            await link.up()
            for version in (4, 6):
                assert (await sup.ping_all(version=version)).ok


async def test_a_chain_of_routers_and_bridges() -> None:
    """Two stars, each with a router, which are linked; hosts by their default routes."""
    async with nsorch.Supervisor() as sup:
        for number in (1, 2):
            await sup.bridge(f"s{number}", f"10.{number}.0.0/24", gateway=f"r{number}")
            other = 3 - number
            await sup.start(f"r{number}", links=[f"s{number}"], forward=True)
            for host in range(2):
                await sup.start(f"h{number}{host}", links=[f"s{number}"])
        await sup.link("r1", "r2", subnet="10.3.0.0/30")
        for number in (1, 2):
            other = 3 - number
            await sup.workers[f"r{number}"].set_routes([nsorch.Route(f"10.{other}.0.0/24", via=f"10.3.0.{other}")])
        hosts = [name for name in sup.workers if name.startswith("h")]
        pairs = [(a, b) for a in hosts for b in hosts if a != b]
        assert (await sup.ping_all(pairs)).loss == 0
