"""A network that falls apart, heals, and flaps."""

from __future__ import annotations

import errno
import socket

import anyio
import pytest

import nsorch

pytestmark = [pytest.mark.anyio, pytest.mark.vm(one_backend=True)]


async def reached(sup, *names):
    """Pairs that answer, among *names*."""
    pairs = [(a, b) for a in names for b in names if a != b]
    found = await sup.ping_all(pairs, timeout=0.4, attempts=1)
    return {pair for pair, result in found.pairs.items() if result.rtt is not None}


def both(*pairs):
    return {*pairs, *((b, a) for a, b in pairs)}


async def test_groups_on_a_bridge() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"])
        for name in "abcd":
            await sup.start(name, links=[lan])
        everyone = await reached(sup, *"abcd")
        assert len(everyone) == 12
        async with sup.events(kinds=[nsorch.NetworkPartitioned, nsorch.NetworkHealed]) as events:
            await sup.partition({"a", sup.workers["b"]}, {"c"})
            assert (await events.receive()).groups == (("a", "b"), ("c",))
            # d is in no group.
            assert everyone - await reached(sup, *"abcd") == both(("a", "c"), ("b", "c"))
            six = await sup.ping_all([("a", "c"), ("a", "b"), ("c", "d")], version=6, timeout=0.4, attempts=1)
            assert [result.rtt is None for result in six.pairs.values()] == [True, False, False]
            await sup.partition({"a"}, {"b", "d"}, {"c"})
            assert await reached(sup, *"abcd") == both(("b", "d"))
            await events.receive()
            await sup.heal()
            assert isinstance(await events.receive(), nsorch.NetworkHealed)
        assert await reached(sup, *"abcd") == everyone
        await sup.heal()


async def test_nothing_gets_through_whatever_its_source() -> None:
    """Also what claims to come from somewhere else, and broadcasts."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a, b, c = [await sup.start(name, links=[lan]) for name in "abc"]
        await sup.partition({a}, {b})
        with (
            await a.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
            await b.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as to_b,
            await c.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as to_c,
        ):
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for sock in (to_b, to_c):
                sock.bind(("", 9999))
            await a.run(["ip", "address", "add", "10.0.0.99/24", "dev", "eth0"])
            out.bind(("10.0.0.99", 0))
            out.sendto(b"from somewhere else", ("10.0.0.255", 9999))
            with anyio.fail_after(5):
                await anyio.wait_readable(to_c)
            with pytest.raises(BlockingIOError):  # it would have come in the same moment
                to_b.recv(100)


async def test_routers() -> None:
    """One of no group forwards, but not from group to group; one of a group is of no use to another."""
    topology = nsorch.Topology(routing="shortest-path")
    for name in ("a", "b", "c", "r"):
        topology.worker(name, forward=name == "r")
    for name in ("a", "b", "c"):
        topology.link(name, "r")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        await sup.partition({"a", "b"}, {"c"})
        assert await reached(sup, *"abcr") == both(("a", "b"), ("a", "r"), ("b", "r"), ("c", "r"))
        await sup.partition({"a", "r"}, {"c"})
        assert await reached(sup, *"abcr") == both(("a", "b"), ("a", "r"), ("b", "r"))
        await sup.heal()
        assert len(await reached(sup, *"abcr")) == 12


async def test_what_comes_later_is_cut_off_too() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", links=[lan])
        await sup.start("b")
        await sup.start("c")
        await sup.partition({"a"}, {"b"})
        await sup.link("b", lan)
        await sup.link("c", lan)
        direct = await sup.link("a", "b")
        assert await reached(sup, *"abc") == both(("a", "c"), ("b", "c"))
        await a.remove()
        a = await sup.start("a", links=[lan])  # of the same name: its group's again
        assert await reached(sup, *"abc") == both(("a", "c"), ("b", "c"))
        assert direct not in sup.links.values()
        await sup.heal()
        assert len(await reached(sup, *"abc")) == 6


async def test_wrong_groups() -> None:
    async with nsorch.Supervisor() as sup:
        for name in "ab":
            await sup.start(name)
        await sup.start("guest", namespaces={"net": "worker:a"})
        for groups, text in (
            ([{"a"}], "two groups"),
            ([{"a"}, set()], "two groups"),
            ([{"a", "b"}, {"b"}], "b is in groups 0 and 1"),
            ([{"a"}, {"guest"}], "guest is in groups 0 and 1"),
            ([{"a"}, {"x"}], "x"),
            (["a", "b"], '"a" is no group: give a set'),
            ([{"a"}, 3], "3 is no group"),
        ):
            with pytest.raises(nsorch.NsorchError, match=text):
                await sup.partition(*groups)


async def test_a_link_flaps() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("a")
        await sup.start("b")
        link = await sup.link("a", "b")
        async with sup.events(kinds=[nsorch.LinkUp, nsorch.LinkDown]) as events:
            await link.flap(down="20ms", up=0.01, times=2)
            assert [(await events.receive()).kind for _ in range(4)] == ["LinkDown", "LinkUp"] * 2
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.flap)
                assert isinstance(await events.receive(), nsorch.LinkDown)
                tasks.cancel_scope.cancel()
            assert isinstance(await events.receive(), nsorch.LinkUp)
        assert link.is_up
        assert len(await reached(sup, "a", "b")) == 2
        with pytest.raises(nsorch.TopologyError, match=r'flap\.down: "soon" is not a duration'):
            await link.flap(down="soon")


async def test_a_broken_region_detours_and_comes_back() -> None:
    """Packets take the long way round while the short one is broken, and the short one again afterwards."""
    topology = nsorch.Topology(routing="shortest-path")
    for name in ("west", "north", "east", "south"):
        topology.worker(name, forward=True)
    for a, b, weight in (("west", "north", 1), ("north", "east", 1), ("west", "south", 5), ("south", "east", 5)):
        topology.link(a, b, weight=weight)
    broken = topology.copy()
    broken.remove("north")

    async def path(worker, target):
        """Through whom, by the hop limit that runs out."""
        kind = socket.SOCK_DGRAM
        with await worker.open_socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            sock.connect((str(target.addresses[0].ip), 33434))
            sock.send(b"")
            with anyio.fail_after(5):
                while sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.EHOSTUNREACH:
                    await anyio.sleep(0.001)
            _, ancillary, _, _ = sock.recvmsg(100, 200, socket.MSG_ERRQUEUE)
            return socket.inet_ntoa(ancillary[0][2][20:24])

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        west, east = sup.workers["west"], sup.workers["east"]

        async def through(name):
            return await path(west, east) in [str(address.ip) for address in sup.workers[name].addresses]

        assert await through("north")
        await deployment.apply(broken)
        assert await through("south")
        assert (await sup.ping_all()).ok
        await deployment.apply(topology)
        assert await through("north")
        assert (await sup.ping_all()).ok
