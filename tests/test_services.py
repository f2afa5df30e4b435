"""Services of workers: dnsmasq as a home router's DHCP, DNS and router advertisements; FRR, and what converged means."""

from __future__ import annotations

import shutil
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface

import anyio
import pytest
from kernel_support import needs_kernel, needs_program, needs_tun

import nsorch
from nsorch.events import InterfaceCreated, InterfaceRemoved
from nsorch.net.ping import Probes, hear_replies_only, ping_pairs
from nsorch.services import frr
from nsorch.services.dnsmasq import Served, arguments

SECONDS = 20
needs_dnsmasq = needs_program("dnsmasq", "dnsmasq-base")
needs_frr = needs_program("zebra", "frr")
needs_tayga = needs_program("tayga", "tayga")


def home_lab():
    topology = nsorch.Topology("lab")
    topology.bridge("home", ["192.168.7.0/24", "fd07::/64"], gateway="r")
    topology.bridge("internet", "203.0.113.0/24")
    topology.add(nsorch.home_router("r", inside="home", outside="internet", domain="home.test"))
    topology.worker("a", links=["home"])
    topology.worker("x", links=["internet"])
    return topology


async def ask(worker, server, name, kind=1):
    """The addresses that DNS has of *name*; ``["refused"]`` or ``["unknown"]``."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\0" + struct.pack(">HH", kind, 1)
    async with await worker.create_connected_udp_socket(server, 53) as sock:
        await sock.send(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + question)
        with anyio.fail_after(SECONDS):
            answer = await sock.receive()
    _, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", answer)
    if flags & 15:
        return ["unknown" if flags & 15 == 3 else "refused"]
    at, found = 12 + len(question), []
    for _ in range(count):
        kind, _, _, size = struct.unpack_from(">HHIH", answer, at + 2)
        found.append(str(ip_address(answer[at + 12 : at + 12 + size])))
        at += 12 + size
    return found


def dhcp(kind, transaction, mac, *options):
    fixed = struct.pack(">BBBBIHH", 1, 1, 6, 0, transaction, 0, 0x8000) + bytes(16) + mac.ljust(16, b"\0") + bytes(192)
    chosen = b"".join(bytes([number, len(data)]) + data for number, data in ((53, bytes([kind])), *options))
    return fixed + b"\x63\x82\x53\x63" + chosen + b"\xff"


def read_dhcp(data):
    """Address offered, and the options."""
    found, at = {}, 240
    while data[at] != 255:
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return IPv4Address(data[16:20]), found


async def lease(worker, mac):
    """What DHCP (RFC 2131) gives a client with *mac*: the address, and the options."""
    with await worker.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.bind(("0.0.0.0", 68))
        with anyio.fail_after(SECONDS):

            async def exchange(message, wanted):
                sock.sendto(message, ("255.255.255.255", 67))
                while True:
                    await anyio.wait_readable(sock)
                    address, options = read_dhcp(sock.recv(2048))
                    if options[53] == bytes([wanted]):
                        return address, options

            offered, options = await exchange(dhcp(1, 77, mac), 2)
            return await exchange(dhcp(3, 77, mac, (50, offered.packed), (54, options[54])), 5)


@pytest.mark.anyio
@pytest.mark.vm
@needs_kernel("nf_tables")
@needs_dnsmasq
async def test_home_router():
    """It gives out addresses, knows the lab's names, says that it routes IPv6, lets out, and lets nothing in."""
    async with nsorch.Supervisor() as sup:
        lab = await sup.deploy(home_lab())
        r, a, x = (lab.workers[name] for name in "rax")
        assert r.state is nsorch.State.RUNNING

        address, options = await lease(a, bytes.fromhex("020000000001"))
        assert IPv4Address("192.168.7.128") <= address <= IPv4Address("192.168.7.254")
        assert IPv4Address(options[1]) == IPv4Address("255.255.255.0")
        assert IPv4Address(options[3]) == IPv4Address(options[6]) == IPv4Address("192.168.7.1")  # router and DNS
        assert options[15] == b"home.test"
        other, _ = await lease(a, bytes.fromhex("020000000002"))
        assert other != address

        assert await ask(a, "192.168.7.1", "a") == ["192.168.7.2"]
        assert await ask(a, "192.168.7.1", "a.home.test") == ["192.168.7.2"]
        assert await ask(a, "fd07::1", "a", 28) == ["fd07::2"]
        assert await ask(a, "192.168.7.1", "nobody.home.test") == ["unknown"]
        await sup.start("late", links=["home"])
        with anyio.fail_after(SECONDS):
            while await ask(a, "192.168.7.1", "late.home.test") != ["192.168.7.3"]:
                await anyio.sleep(0.02)

        with await a.open_socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(
                socket.IPPROTO_IPV6,
                socket.IPV6_JOIN_GROUP,
                socket.inet_pton(socket.AF_INET6, "ff02::1") + struct.pack("@I", 2),
            )
            sock.sendto(struct.pack(">BBHI", 133, 0, 0, 0), ("ff02::2", 0, 0, 2))
            with anyio.fail_after(SECONDS):
                while True:
                    await anyio.wait_readable(sock)
                    data, source = sock.recvfrom(2048)
                    if data[0] == 134:
                        break
            assert source[0].startswith("fe80::")
            assert struct.unpack_from(">H", data, 6)[0] > 0  # a default router
            assert ip_address("fd07::").packed in data

        assert (await sup.ping_all([("a", "x")])).ok
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.4):
                await x.connect_tcp("203.0.113.1", 53)


@pytest.mark.anyio
@needs_dnsmasq
async def test_dnsmasq_restarts_with_other_options():
    async with nsorch.Supervisor() as sup:
        lab = await sup.deploy(home_lab())
        topology = lab.topology.copy()
        topology.remove("r")
        topology.add(nsorch.home_router("r", inside="home", outside="internet", domain="other.test"))
        found = await lab.apply(topology)
        assert [str(change) for change in found.changes] == ["restart worker r (service)"]
        assert await ask(lab.workers["a"], "192.168.7.1", "a.other.test") == ["192.168.7.2"]
        with pytest.raises(nsorch.TopologyError, match="its service gives it one"):
            await lab.workers["r"].restart(["sleep", "1"])


@pytest.mark.anyio
@needs_dnsmasq
async def test_dnsmasq_says_what_it_cannot_serve():
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ["10.0.0.0/24", "fd01::/80"])
        with pytest.raises(nsorch.TopologyError, match="workers.r.service.dnsmasq.ra: .*fd01::/80"):
            await sup.start("r", links=[lan], service=nsorch.Dnsmasq(lan))
        with pytest.raises(nsorch.TopologyError, match="workers.r.service.dnsmasq.range: "):
            await sup.start("r", links=[lan], service=nsorch.Dnsmasq(lan, ra=False, range="10.1.0.1-10.1.0.9"))
        with pytest.raises(nsorch.TopologyError, match="workers.r.service.dnsmasq.inside: "):
            await sup.start("r", links=[lan], service=nsorch.Dnsmasq("eth7"))
        assert not sup.workers
        r = await sup.start("r", links=[lan], service=nsorch.Dnsmasq(lan, ra=False, range="10.0.0.5-10.0.0.9"))
        client = await sup.start("client", links=[lan])
        assert (await lease(client, bytes.fromhex("020000000001")))[0] in map(
            IPv4Address, range(0x0A000005, 0x0A00000A)
        )
        await r.stop()


@pytest.mark.anyio
async def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    async with nsorch.Supervisor() as sup:
        for service, name in (
            (nsorch.Dnsmasq("eth0"), "dnsmasq-base"),
            (nsorch.Frr("ospf"), "frr"),
            (nsorch.Tayga("64:ff9b::/96"), "tayga"),
        ):
            with pytest.raises(nsorch.UnsupportedError, match=rf"isn't installed \(Debian: {name}\)"):
                await sup.start("w", service=service)
        assert not sup.workers


# -- FRR


@pytest.mark.anyio
@pytest.mark.vm
@needs_frr
@pytest.mark.parametrize("protocols", [["ospf"], ["bgp"]])
@pytest.mark.long
async def test_a_broken_link_detours_and_comes_back(protocols):
    topology = nsorch.Topology()
    topology.bridge("office", "10.9.0.0/24", gateway="b")
    for name in "abcd":
        links = ["office"] if name == "b" else []
        topology.worker(name, links=links, service=nsorch.Frr(protocols))
    topology.worker("host", links=["office"])
    for pair in ("ab", "bc", "cd", "da"):
        topology.link(*pair)
    async with nsorch.Supervisor() as sup:
        lab = await sup.deploy(topology)  # returns when all have converged
        await sup.wait_converged()
        assert (await sup.ping_all()).ok
        link = next(link for link in sup.links.values() if {"a", "b"} == {i.peer for i in link.interfaces})
        loopback = next(a.ip for a in lab.workers["b"].addresses if a.version == 4)

        async def first_hop():
            done = await lab.workers["a"].run(["cat", "/proc/net/route"])
            target = struct.unpack("=I", loopback.packed)[0]
            rows = [line.split() for line in done.stdout.decode().splitlines()[1:]]
            return {row[0] for row in rows if int(row[1], 16) == target}

        direct = {i.name for i in link.interfaces if i.peer == "b"}
        assert await first_hop() == direct
        await link.down()
        await sup.wait_converged()
        detour = await first_hop()
        assert detour
        assert not detour & direct
        assert (await sup.ping_all()).ok
        await link.up()
        await sup.wait_converged()
        with anyio.fail_after(SECONDS):
            while await first_hop() != direct:
                await anyio.sleep(0.05)
        assert (await sup.ping_all()).ok


@pytest.mark.anyio
@needs_frr
@pytest.mark.long
async def test_routers_that_come_later():
    """Alone, one has converged; links and routers that come later are told to those that run."""
    async with nsorch.Supervisor() as sup:
        a = await sup.start("a", service=nsorch.Frr(["ospf", "bgp"], asn=65001))
        b = await sup.start("b", service=nsorch.Frr("bgp", config="ip route 192.0.2.0/24 blackhole\n"))
        await sup.link(a, b)
        c = await sup.start("c", service={"frr": {"protocols": "ospf", "hello": 0.25}})
        with pytest.raises(TimeoutError):  # their hellos are not alike, so they don't get adjacent
            await sup.link(a, c)
            await sup.wait_converged(0.5)
        await c.remove()
        await sup.wait_converged()
        assert (await sup.ping_all()).ok
        shown = await b.run([*frr.VTYSH, "-c", "show running-config"])
        assert b"router bgp 420000000" in shown.stdout
        assert b"ip route 192.0.2.0/24 blackhole" in shown.stdout
        await a.restart()
        await sup.wait_converged()
        assert (await sup.ping_all()).ok
        await a.stop(grace=5)
        assert a.exit.code == 0


# -- tayga


def two_families(prefix="64:ff9b::/96", four="100.127.0.0/24", **options):
    topology = nsorch.Topology("two families")
    topology.bridge("six", "fd01::/64", gateway="r")
    topology.bridge("four", four)
    topology.worker("r", links=["six", "four"], service=nsorch.Tayga(prefix), **options)
    topology.worker("a", links=["six"])
    topology.worker("b", links=["four"])
    return topology


def behind(prefix, worker):
    """The IPv6 address of a worker with IPv4 alone."""
    (address,) = worker.addresses
    return IPv6Address(int(IPv6Network(prefix).network_address) + int(address.ip))


async def answers(worker, address, attempts=5):
    """Whether *address* answers a ping."""
    probes = Probes()
    probes.add(worker.name, "", address)
    with await worker.open_socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        hear_replies_only(sock)
        outcome = await ping_pairs({(worker.name, socket.AF_INET6): sock}, probes, timeout=0.3, attempts=attempts)
    return outcome.result(probes[0], 0).rtt is not None


async def download(client, address, server, size=200_000):
    """Have *server* send so many bytes to who connects; whom it saw."""
    seen = []

    async def send(stream):
        async with stream:
            seen.append(str(stream.extra(anyio.abc.SocketAttribute.remote_address)[0]))
            await stream.send(bytes(size))

    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve, send, 80)
        received = 0
        with anyio.fail_after(SECONDS):
            async with await client.connect_tcp(str(address), 80) as stream:
                async for data in stream:
                    received += len(data)
        tasks.cancel_scope.cancel()
    assert received == size
    return seen[0]


@pytest.mark.anyio
@pytest.mark.vm(one_backend=True)
@needs_kernel("nf_tables", "tun")
@needs_tayga
@needs_tun
async def test_ipv6_alone_reaches_ipv4_alone():
    """By an address of the pool, or by the router's own; also by another prefix, and after a restart."""
    async with nsorch.Supervisor() as sup, sup.events(kinds=[InterfaceCreated, InterfaceRemoved]) as heard:
        lab = await sup.deploy(two_families(nat="four"))
        r, a, b = (lab.workers[name] for name in "rab")
        target = behind("64:ff9b::/96", b)
        assert await answers(a, target)
        assert await download(a, target, b) == str(r.interfaces["eth1"].addresses[0].ip)

        await r.restart()
        assert await answers(a, target)
        found = await lab.apply(two_families("fd64::/96", nat="four"))
        assert [str(change) for change in found.changes] == ["restart worker r (service)"]
        assert await answers(a, behind("fd64::/96", b))
        assert not await answers(a, target, attempts=1)

        await r.stop(grace=5)
        assert r.exit.signal is None
        assert not await answers(a, behind("fd64::/96", b), attempts=1)
        await lab.remove()
        for kind in (InterfaceCreated, InterfaceRemoved):
            event = await anext(heard)
            assert isinstance(event, kind)
            assert (event.worker, event.interface, event.type) == ("r", "nat64", "tun")


@pytest.mark.anyio
@pytest.mark.vm(one_backend=True)
@needs_kernel("tun")
@needs_tayga
@needs_tun
async def test_addresses_of_the_pool():
    """Without address translation the worker has to be the router of those with IPv4."""
    topology = two_families("2001:db8:64::/96", "10.0.0.0/24")
    topology.remove("four")
    topology.bridge("four", "10.0.0.0/24", gateway="r")
    topology.link("r", "four")
    topology.link("b", "four")
    async with nsorch.Supervisor() as sup:
        workers = (await sup.deploy(topology)).workers
        seen = await download(workers["a"], behind("2001:db8:64::/96", workers["b"]), workers["b"])
        assert IPv4Address(seen) in IPv4Network("192.168.255.0/24")


@pytest.mark.anyio
@needs_tayga
@needs_tun
async def test_tayga_says_what_it_cannot_translate():
    async with nsorch.Supervisor() as sup:
        with pytest.raises(ExceptionGroup) as caught:
            await sup.deploy(two_families(four="10.0.0.0/24"))
        assert caught.group_contains(nsorch.TopologyError, match="workers.r.service.tayga.prefix: .*RFC 6052")
        with pytest.raises(ExceptionGroup) as caught:
            await sup.deploy(two_families(four="192.168.0.0/16"))
        assert caught.group_contains(nsorch.TopologyError, match="workers.r.service.tayga.pool: .*192.168.0.0/16")
        assert not sup.workers
        with pytest.raises(ExceptionGroup) as caught:
            await sup.deploy(two_families("ff05::/96"))  # multicast
        assert caught.group_contains(nsorch.WorkerExitedError)
        assert b"reserved address ff05::" in caught.value.exceptions[0].stderr
        assert not sup.workers
        # What comes later may lead anywhere.
        lan = await sup.bridge("lan", "10.0.0.0/24")
        await sup.start("r", links=[lan], nat="up0", service=nsorch.Tayga("64:ff9b::/96"))


# -- what needs no kernel


def test_files(tmp_path):
    topology = home_lab()
    topology.worker(
        "o", links=["internet"], service=nsorch.Frr(["ospf", "bgp"], asn=65001, area="0.0.0.7", hello="200ms")
    )
    topology.worker("p", links=["internet"], service={"frr": "bgp"})
    topology.worker(
        "q",
        links=["internet"],
        service=nsorch.Dnsmasq("eth0", range="203.0.113.5-203.0.113.9", servers=["9.9.9.9"], lease=600),
    )
    topology.worker("s", links=["internet"], service={"tayga": "64:ff9b::/96"})
    topology.worker("t", service=nsorch.Tayga("2001:db8:64::/64", pool="10.1.0.0/16"))
    for suffix in ("toml", "yaml", "json"):
        topology.dump(tmp_path / f"lab.{suffix}")
        again = nsorch.Topology.load(tmp_path / f"lab.{suffix}")
        assert again == topology
        assert again.workers == topology.workers
    import jsonschema

    jsonschema.validate(topology.to_dict(), nsorch.Topology.json_schema())
    assert topology.to_dict()["workers"]["p"] == {"links": ["internet"], "service": {"frr": "bgp"}}
    assert topology.to_dict()["workers"]["s"] == {"links": ["internet"], "service": {"tayga": "64:ff9b::/96"}}
    assert topology.workers["p"].forward
    assert topology.workers["s"].forward


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("dnsmasq", "workers.w.service: is "),
        ({"dnsmasq": {"inside": "eth0"}, "frr": "ospf"}, "workers.w.service: is "),
        ({"dnsmasq": {}}, "workers.w.service.dnsmasq.inside: is missing"),
        ({"dnsmasq": {"inside": "eth0", "lease": 1}}, "workers.w.service.dnsmasq.lease: "),
        ({"dnsmasq": {"inside": "eth0", "range": "10.0.0.9-10.0.0.1"}}, "workers.w.service.dnsmasq.range: "),
        ({"dnsmasq": {"inside": "eth0", "servers": "dns.test"}}, "workers.w.service.dnsmasq.servers: "),
        ({"dnsmasq": {"inside": "eth0", "domain": "a b"}}, "workers.w.service.dnsmasq.domain: "),
        ({"dnsmasq": {"inside": "eth0", "ra": "no"}}, "workers.w.service.dnsmasq.ra: "),
        ({"dnsmasq": "eth3"}, 'workers.w.service.dnsmasq.inside: it has no interface "eth3"'),
        ({"frr": "rip"}, 'workers.w.service.frr.protocols: "rip" is none of ospf, bgp'),
        ({"frr": []}, "workers.w.service.frr.protocols: none is given"),
        ({"frr": {"protocols": "bgp", "asn": 0}}, "workers.w.service.frr.asn: "),
        ({"frr": {"protocols": "ospf", "hello": 1.5}}, "workers.w.service.frr.hello: "),
        ({"frr": {"protocols": "ospf", "area": "x"}}, "workers.w.service.frr.area: "),
        ({"tayga": {}}, "workers.w.service.tayga.prefix: is missing"),
        ({"tayga": "64:ff9b::/95"}, "workers.w.service.tayga.prefix: 64:ff9b::/95 is none of /32, "),
        ({"tayga": "10.0.0.0/8"}, 'workers.w.service.tayga.prefix: "10.0.0.0/8" is not an IPv6 network'),
        ({"tayga": {"prefix": "fd64::/96", "pool": "10.0.0.0/31"}}, "workers.w.service.tayga.pool: "),
    ],
)
def test_wrong(service, message):
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"workers": {"w": {"service": service}}})
    (problem,) = caught.value.problems
    assert problem.startswith(message)


def test_wrong_together():
    with pytest.raises(nsorch.TopologyError, match="workers.w.ready: its service says when it is ready"):
        nsorch.WorkerSpec(name="w", ready=nsorch.tcp_ready(53), service=nsorch.Dnsmasq("eth0"))
    with pytest.raises(nsorch.TopologyError, match="workers.w.command: its service gives it one"):
        nsorch.WorkerSpec(name="w", command=["true"], service=nsorch.Frr("ospf"))
    with pytest.raises(
        nsorch.TopologyError, match="workers.w.service: only in network and mount namespaces of its own"
    ):
        nsorch.WorkerSpec(name="w", namespaces=["net"], service=nsorch.Frr("ospf"))
    nat64 = nsorch.Tayga("64:ff9b::/96")
    with pytest.raises(nsorch.TopologyError, match="workers.w.service: only in a network namespace of its own"):
        nsorch.WorkerSpec(name="w", namespaces=["mnt"], service=nat64)
    with pytest.raises(nsorch.TopologyError, match='workers.w.service: "nat64" is the name of its own interface'):
        nsorch.WorkerSpec(name="w", interfaces=[nsorch.Tun("nat64")], service=nat64)
    topology = nsorch.Topology(routing="shortest-path")
    topology.worker("w", service=nsorch.Frr("ospf"))
    assert topology.problems() == ['workers.w.service.frr: with routing "shortest-path" the routes are set already']


def test_ranges_that_are_given_out():
    def made(address):
        one = Served(ifname="eth1", addresses=(ip_interface(address),))
        found = arguments([one], dhcp=True, range_=None, lease=600, ra=True, domain=None, servers=())
        return [part.partition("=")[2] for part in found if part.startswith("--dhcp-range")]

    assert made("10.0.0.1/24") == ["set:eth1,10.0.0.128,10.0.0.254,255.255.255.0,600"]
    assert made("10.0.0.1/8") == ["set:eth1,10.255.255.1,10.255.255.254,255.0.0.0,600"]
    assert made("10.0.0.1/30") == ["set:eth1,10.0.0.2,10.0.0.2,255.255.255.252,600"]
    assert made("10.0.0.0/31") == []
    assert made("fd00::1/64") == ["fd00::,ra-only,64,600"]


@pytest.mark.anyio
@needs_dnsmasq
async def test_names_that_change_while_it_starts():
    """Reading them again mustn't end a dnsmasq that doesn't listen to signals yet."""
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        client = await sup.start("client", links=[lan])

        async def others():
            for number in range(20):
                await sup.start(f"w{number}", links=[lan])

        tasks.start_soon(others)
        r = await sup.start("r", links=[lan], service=nsorch.Dnsmasq(lan))
        assert r.state is nsorch.State.RUNNING
        server = str(r.addresses[0].ip)
        with anyio.fail_after(SECONDS):
            while (await ask(client, server, "w19")) in (["unknown"], ["refused"]):
                await anyio.sleep(0.02)
        assert r.exit is None
