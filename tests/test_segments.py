"""Segments of many ports, and what their bridges and gateways are told."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import anyio
import pytest
from conftest import needs_descriptors
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg

import nsorch
from nsorch.net import messages
from nsorch.net.engine import Engine
from nsorch.net.mac import link_local
from nsorch.supervisor.traffic import pinging
from nsorch.supervisor.wiring import acquainting, connecting
from nsorch.supervisor.wiring.segments import Parts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address

    from nsorch.net.engine import NetnsHandle
    from nsorch.net.plan import Batch

pytestmark = pytest.mark.anyio

ARP, IPV6 = b"\x08\x06", b"\x86\xdd"
ICMPV6, SOLICITATION = 58, 135
# Ends with 0 if its argument answers an echo request.
PING = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
for _ in range(3):
    sock.sendto(bytes((128, 0, 0, 0, 1, 2, 0, 1)), socket.getaddrinfo(sys.argv[1], 0)[0][4])
    deadline = time.monotonic() + 0.3
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if sock.recv(100)[0] == 129:
                sys.exit()
        except TimeoutError:
            pass
sys.exit(1)
"""


def is_question(frame: bytes) -> bool:
    """Whether it is ARP, or a neighbour solicitation."""
    return frame[12:14] == ARP or (frame[12:14] == IPV6 and (frame[20], frame[54]) == (ICMPV6, SOLICITATION))


async def questions(sup: nsorch.Supervisor, bystander: str, ask: list[tuple[str, str]]) -> int:
    """Questions for neighbours that a third worker gets to see while *ask* ping one another."""
    (link,) = [link for link in sup.links.values() if bystander in str(link.ends)]
    seen = 0
    async with link.capture(direction="in") as packets:
        for version in (4, 6):
            assert (await sup.ping_all(ask, version=version, attempts=10)).ok  # the machine may be busy
        with anyio.move_on_after(0.2):
            async for packet in packets:
                seen += is_question(packet.data)
    return seen


async def start(sup: nsorch.Supervisor, names: str, **options: object) -> None:
    await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), **options)  # type: ignore[arg-type]
    await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in names])


async def test_a_bridge_answers_for_its_workers() -> None:
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="dynamic")
        assert await questions(sup, "c", [("a", "b")]) > 0
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="static")
        assert await questions(sup, "c", [("a", "b"), ("b", "a")]) == 0
        await sup.start("d", links=["lan"])
        assert await questions(sup, "c", [("a", "d"), ("d", "b")]) == 0


async def test_nobody_asks_for_the_gateway() -> None:
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", gateway="a", arp="dynamic")
        assert await questions(sup, "c", [("a", "b"), ("b", "a")]) == 0
        await sup.start("d", links=["lan"])
        assert await questions(sup, "c", [("a", "d"), ("d", "a")]) == 0


async def test_a_gateway_that_comes_later_or_again_is_known() -> None:
    async with nsorch.Supervisor() as sup:
        await start(sup, "bc", gateway="a")
        first = await sup.start("a", links=[nsorch.To("lan", mac="02:00:00:00:00:01")])
        assert await questions(sup, "c", [("a", "b"), ("b", "a")]) == 0
        await first.remove()
        assert not (await sup.ping_all([("b", "c")])).failed
        await sup.start("a", links=[nsorch.To("lan", mac="02:00:00:00:00:02")])
        assert (await sup.ping_all()).ok


async def test_a_gateway_whose_link_was_down_asks_for_nobody() -> None:
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", gateway="a", arp="dynamic")
        await sup.links["a:eth0-lan"].down()
        await sup.links["a:eth0-lan"].up()
        assert await questions(sup, "c", [("a", "b"), ("b", "a")]) == 0


async def neighbours(worker: nsorch.Worker) -> set[str]:
    """Those that *worker* knows for good."""
    lines = (await worker.run("ip neigh show nud permanent")).stdout.decode().splitlines()
    return {line.split()[0] for line in lines}


@pytest.mark.parametrize("version", [4, 6])
async def test_who_was_asked_for_is_forgotten_where_more_are_asked(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinging, "_NEIGHBOURS", 4)
    async with nsorch.Supervisor() as sup:
        await start(sup, "abcdef")
        assert (await sup.ping_all(version=version)).ok
        known = [(await w.run(f"ip -{version} neigh show nud reachable")).stdout for w in sup.workers.values()]
        # Of 30 there are those of the last ones alone.
        assert sum(text.count(b"\n") for text in known) <= 4


async def test_many_who_connect_to_each_other_are_introduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquainting, "_ASKING", 1)
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        await start(sup, "abcd")
        a, b, c, d = sup.workers.values()
        for worker in (a, b):
            await tasks.start(worker.serve, anyio.aclose_forcefully, 80)

        async def connect(source: nsorch.Worker, target: nsorch.Worker) -> None:
            for address in target.addresses:
                async with await source.connect_tcp(address.ip, 80):
                    pass

        def own(*workers: nsorch.Worker) -> set[str]:
            return {str(address.ip) for worker in workers for address in worker.addresses}

        await connect(c, a)  # the first may ask
        assert await neighbours(a) == await neighbours(c) == set()
        async with anyio.create_task_group() as connections:
            for source in (b, c, d):
                for target in (a, b):
                    connections.start_soon(connect, source, target)
        assert await neighbours(a) == own(b, d)
        assert await neighbours(b) == own(a, c, d)
        assert await neighbours(d) == own(a, b)
        # Others change, and it does itself.
        await sup.links["b:eth0-lan"].set(mac="02:00:00:00:00:0b")
        assert await neighbours(b) == set()
        assert await neighbours(d) == own(a)
        await connect(d, b)
        assert await neighbours(d) == own(a, b)
        await sup.links["d:eth0-lan"].set(address="10.0.0.77")
        assert await neighbours(a) == await neighbours(d) == set()
        await connect(d, b)
        await sup.links["d:eth0-lan"].down()
        await sup.links["d:eth0-lan"].up()
        await connect(d, b)
        assert await neighbours(d) == own(b)
        await b.remove()
        assert await neighbours(d) == set()
        with pytest.raises(socket.gaierror):
            await d.connect_tcp("b", 80)
        tasks.cancel_scope.cancel()


async def test_an_address_that_moves_to_another_worker_is_answered_for_rightly() -> None:
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="static")
        assert (await sup.ping_all()).ok
        address = str(sup.workers["c"].addresses[0].ip)
        await sup.workers["c"].remove()
        fresh = await sup.start("g", links=[nsorch.To("lan", address="10.0.0.200")])
        await fresh.run("ip ntable change name arp_cache dev eth0 retrans 100")  # ms from question to question
        with anyio.fail_after(5), pytest.raises(OSError, match="unreachable|No route"):  # nobody answers for it
            await fresh.connect_tcp(address, 80)
        await sup.start("e", links=[nsorch.To("lan", address=address)])
        await sup.start("f", links=["lan"])
        assert (await sup.ping_all([("f", "e"), ("e", "f"), ("a", "e"), ("b", "e")])).ok


async def test_questions_of_ipv6_go_to_who_has_the_address_now() -> None:
    async def answers(name: str, address: str) -> bool:
        done = await sup.workers[name].run([sys.executable, "-c", PING, address], check=False)
        return done.returncode == 0

    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="static")
        await sup.bridge("other", ("10.0.0.0/24", "fd00::/64"), arp="dynamic")
        local = link_local(bytes.fromhex(sup.workers["b"].interfaces["eth0"].mac.replace(":", ""))).ip
        assert await answers("a", f"{local}%eth0")
        link = sup.links["b:eth0-lan"]
        await link.set(address=["10.0.0.77", "fd00::77"])
        assert await answers("a", "fd00::77")
        await link.set(mac="02:00:00:00:00:77")
        assert await answers("c", "fd00::77")
        assert not await answers("c", f"{local}%eth0")
        # Whom it was told of on the bridge before says nothing of who has the address on the next.
        await sup.start("d", links=[nsorch.To("other", address=["10.0.0.77", "fd00::77"])])
        await sup.links["a:eth0-lan"].set(bridge="other")
        await sup.workers["a"].run("ip -6 neigh flush dev eth0")
        assert await answers("a", "fd00::77")
        await sup.bridges["other"].remove()
        redirector = await sup._wiring.kernel.redirector()
        assert redirector is not None
        assert len(redirector._known) == 4  # of b and c: one more address each, of the link


async def test_questions_for_routers_go_to_the_router() -> None:
    """A large segment's, if it has one; to all if it has several."""

    async def heard(*names: str) -> list[bool]:
        """Who of these sees a question of a's; what a sends to all afterwards comes after it."""
        links = [link for name in names for link in sup.links.values() if f"{name}:" in link.name]
        question, mark = bytes((133, 0, 0, 0, *os.urandom(4))), bytes((200, 0, 0, 0, *os.urandom(4)))
        found = []
        async with contextlib.AsyncExitStack() as stack:
            captures = [await stack.enter_async_context(sup.capture([link])) for link in links]
            with await sup.workers["a"].open_socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
                sock.sendto(question, ("ff02::2", 0, 0, 2))
                sock.sendto(mark, ("ff02::1", 0, 0, 2))
            for packets in captures:
                seen = []
                with anyio.fail_after(10):
                    while mark[4:] not in seen:
                        seen.append((await packets.receive()).data[58:62])
                found.append(question[4:] in seen)
        return found

    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="static")
        far = await sup.bridge("far", arp="dynamic")
        assert await heard("b", "c") == [False, False]
        await sup.start("r", links=["lan"], forward=True)
        assert await heard("b", "r") == [False, True]
        await sup.links["r:eth0-lan"].set(mac="02:00:00:00:00:99")
        assert await heard("b", "r") == [False, True]
        await sup.link("lan", far)
        await sup.start("s", links=[far], sysctls={"net/ipv6/conf/all/forwarding": 1})
        assert await heard("b", "r", "s") == [True, True, True]
        await sup.workers["r"].remove()
        assert await heard("s") == [True]
        await far.remove()
        assert await heard("b") == [False]


@pytest.mark.parametrize(("gateway", "arp"), [("r", "dynamic"), (None, "static")])
async def test_who_asks_for_routers_is_no_neighbour_more(gateway: str | None, arp: str) -> None:
    """Each question would be one in the table of 1,024 that all network namespaces share, at whoever forwards."""
    async with nsorch.Supervisor() as sup:
        await start(sup, "bc", gateway=gateway, arp=arp)
        router = await sup.start("r", links=["lan"], forward=True)

        async def expect(*names: str) -> None:
            shown = await router.run(["ip", "-6", "neigh", "show", "nud", "permanent"])
            found = {line.split()[0] for line in shown.stdout.decode().splitlines() if line.startswith("fe80::")}
            macs = [str(sup.workers[name].interfaces["eth0"].mac) for name in names]
            assert found == {str(link_local(bytes.fromhex(mac.replace(":", ""))).ip) for mac in macs}

        await expect("b", "c")
        await sup.links["b:eth0-lan"].set(mac="02:00:00:00:00:01")
        await expect("b", "c")
        await sup.links["r:eth0-lan"].down()
        await sup.links["r:eth0-lan"].up()
        await expect("b", "c")
        await sup.workers["c"].remove()
        await sup.start("d", links=["lan"])
        await expect("b", "d")
        assert (await sup.ping_all(version=6)).ok


async def test_without_nf_tables_for_bridges_all_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise nsorch.NetlinkError("add", "neighbours", errno=errno.EOPNOTSUPP)

    monkeypatch.setattr("nsorch.net.redirecting.Redirector.__init__", refuse)
    async with nsorch.Supervisor() as sup:
        await start(sup, "abc", arp="static")
        assert await questions(sup, "c", [("a", "b")]) > 0
        await sup.workers["b"].remove()
        assert (await sup.ping_all([("a", "c")], version=6)).ok


@pytest.mark.once
@needs_descriptors(6000)
@pytest.mark.long
async def test_more_workers_than_a_kernel_bridge_has_ports() -> None:
    count = 1100
    topology = nsorch.Topology()
    topology.bridge("lan", ("10.0.0.0/16", "fd00::/64"), gateway="w0")
    for number in range(count):
        topology.worker(f"w{number}", links=["lan"], namespaces=["net"])
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        assert len(sup.bridges["lan"]._parts.all) == 2
        far = [(f"w{number}", f"w{count - 1 - number}") for number in range(0, count, 50)]
        assert await questions(sup, "w7:", [*far, ("w3", "w0"), ("w0", "w1099")]) == 0
        # Room that becomes free is used again.
        await sup.workers["w5"].remove()
        await sup.start("x", links=["lan"], namespaces=["net"])
        assert len(sup.bridges["lan"]._parts.all) == 2
        assert (await sup.ping_all([("x", "w1099"), ("w1098", "x"), ("x", "w0")])).ok
        await sup.workers["x"].remove()
        # Moves and hardware addresses, on either of the two and across.
        await sup.bridge("other", ("10.0.0.0/16", "fd00::/64"))
        for name, mac in (("w9", "02:00:00:00:00:09"), ("w1090", "02:00:00:00:10:90")):
            await sup.links[f"{name}:eth0-lan"].set(mac=mac)
            others = [(name, "w1"), ("w1", name), (name, "w1095"), ("w1095", name), ("w0", name)]
            assert await questions(sup, "w7:", others) == 0
            await sup.links[f"{name}:eth0-lan"].set(bridge="other")
            gone = await sup.ping_all([("w1", name), ("w1095", name)], timeout=0.2, attempts=1)
            assert len(gone.failed) == 2
            await sup.links[f"{name}:eth0-other"].set(bridge="lan")
            assert await questions(sup, "w7:", [(b, a) for a, b in others]) == 0
        await deployment.remove()
        assert not sup.links


async def test_ports_join_a_bridge_that_is_up_when_all_ends_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Batch] = []
    original = Engine.execute

    def execute(self: Engine, batch: Batch, namespaces: Mapping[int, NetnsHandle]) -> None:
        batches.append(batch)
        original(self, batch, namespaces)

    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        await sup.start("first", links=[lan])
        monkeypatch.setattr(Engine, "execute", execute)
        monkeypatch.setattr(connecting, "_AT_ONCE", 3)
        names = [f"w{number}" for number in range(7)]
        await sup.start_all([nsorch.WorkerSpec(name=name, links=[lan]) for name in names])
        assert not [link for batch in batches for link in batch.links if link.a.master or link.b.master]
        assert [len(batch.joining) for batch in batches if batch.joining] == [len(names)]
        assert not batches[-1].links
        assert (await sup.ping_all([("first", name) for name in names])).ok


@pytest.mark.parametrize("arp", ["static", "dynamic"])
async def test_links_change_before_their_ports_join(arp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_AT_ONCE", 1)
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), arp=arp)
        await sup.bridge("far", ("10.1.0.0/24", "fd01::/64"), arp=arp)
        await sup.start_all([nsorch.WorkerSpec(name="a", links=[lan]), nsorch.WorkerSpec(name="b", links=["far"])])
        specs = [nsorch.WorkerSpec(name=f"w{number}", links=[lan]) for number in range(30)]
        async with sup.events(kinds=nsorch.LinkCreated) as events, anyio.create_task_group() as tasks:
            tasks.start_soon(sup.start_all, specs)
            changes: list[dict[str, str]] = [
                {},
                {"mac": "02:00:00:00:00:01"},
                {"bridge": "far"},
                {"address": "fd00::99"},
            ]
            for change in changes:
                link = sup.links[(await events.receive()).link]
                await (link.set(**change) if change else link.remove())
        assert len(sup.links) == 31
        for name in "ab":
            near = [worker for worker in sup.workers.values() if _shares(worker, sup.workers[name])]
            assert (await sup.ping_all([(name, worker) for worker in near])).ok
            assert (await sup.ping_all([(worker, name) for worker in near], version=6)).ok


def _shares(worker: nsorch.Worker, other: nsorch.Worker) -> bool:
    """A bridge."""
    bridges = [{interface.bridge for interface in each.interfaces.values()} for each in (worker, other)]
    return worker is not other and bool(bridges[0] & bridges[1])


def test_parts_are_a_tree_in_which_each_knows_the_way() -> None:
    numbers = iter(range(1, 10**6))
    parts = Parts(numbers)
    for _ in range(45_000):
        parts.plug()
    assert len(parts.all) == 45
    children: dict[object, int] = {}
    for part in parts.all[1:]:
        children[part.parent] = children.get(part.parent, 0) + 1
    assert max(children.values()) <= 22
    for part in parts.all:
        assert part.ports <= 1000
        for other in parts.all:
            at, steps = part, 0
            while at is not other:  # follow the trunks
                port = at.towards(other)
                nearer = [p for p in parts.all if p.trunk[0] == port] or [at.parent]
                assert nearer[0] is not None
                at, steps = nearer[0], steps + 1
                assert steps < 5


@pytest.mark.once
@given(
    st.sampled_from([4, 6]).flatmap(
        lambda version: st.lists(
            st.tuples(st.ip_addresses(v=version), st.binary(min_size=6, max_size=6)), min_size=1, max_size=5
        )
    ),
    st.integers(1, 9999),
)
def test_neighbours_are_packed_as_pyroute2_packs_them(
    known: list[tuple[IPv4Address | IPv6Address, bytes]], index: int
) -> None:
    version = known[0][0].version
    template = messages.neighbour(messages.RTM_NEWNEIGH, index, ip_address(0 if version == 4 else 2**127), bytes(6))
    fields = messages.neighbours(version, b"".join(ip.packed for ip, _ in known), b"".join(mac for _, mac in known))
    made = bytes(messages.copies(template, fields, 1))
    length = len(made) // len(known)
    for number, (ip, mac) in enumerate(known):
        message = ndmsg(made[number * length :])
        message.decode()
        assert message["header"]["type"] == messages.RTM_NEWNEIGH
        assert (message["ifindex"], message["state"]) == (index, 0x80)
        assert ip_address(message.get_attr("NDA_DST")) == ip
        assert message.get_attr("NDA_LLADDR") == mac.hex(":")


@given(st.lists(st.tuples(st.integers(1, 2**31 - 1), st.binary(min_size=6, max_size=6)), min_size=1, max_size=5))
def test_forwarding_entries_are_packed_as_pyroute2_packs_them(entries: list[tuple[int, bytes]]) -> None:
    indices = struct.pack(f"={len(entries)}I", *(index for index, _ in entries))
    fields = messages.forwarding_entries(indices, b"".join(mac for _, mac in entries))
    made = bytes(messages.copies(messages.forwarding(messages.RTM_NEWNEIGH, 0, bytes(6)), fields, 7))
    length = len(made) // len(entries)
    for number, (index, mac) in enumerate(entries):
        message = ndmsg(made[number * length :])
        message.decode()
        assert (message["family"], message["ifindex"], message["state"], message["flags"]) == (7, index, 0x40, 4)
        assert message.get_attr("NDA_LLADDR") == mac.hex(":")
        assert message["header"]["sequence_number"] == 7 + number
