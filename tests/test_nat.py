"""Address translation by workers, seen from sockets on both sides (RFC 4787's words)."""

from __future__ import annotations

import itertools
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address

import anyio
import pytest
from kernel_support import needs_kernel

import nsorch

pytestmark = [pytest.mark.anyio, needs_kernel("nf_tables")]

SECONDS = 30
OUTSIDE = "203.0.113.1"  # of the router


@asynccontextmanager
async def home(nat="internet", **router):
    """Hosts a and b behind router r, x and y outside; x and y have no way to the inside."""
    topology = nsorch.Topology()
    topology.bridge("home", ["10.0.0.0/24", "fd01::/64"], gateway="r")
    topology.bridge("internet", ["203.0.113.0/24", "2001:db8:1::/64"])
    topology.worker("r", links=["internet", "home"], nat=nat, forward=True, **router)
    for name in ("a", "b"):
        topology.worker(name, links=["home"])
    for name in ("x", "y"):
        topology.worker(name, links=["internet"])
    async with nsorch.Supervisor() as sup:
        yield sup, await sup.deploy(topology)


def address(worker, version=4):
    return next(str(a.ip) for a in worker.addresses if a.version == version)


async def udp(worker, port=0):
    return await worker.create_udp_socket(local_host=address(worker), local_port=port)


NUMBERS = itertools.count()


async def hears(receiver, sender, to, *, sure=None):
    """(address, port) that what *sender* sends *to* somewhere comes from.

    :param sure: (socket, where to) that *receiver* certainly hears: None where it hears that one alone
    """
    text, last = b"%d" % next(NUMBERS), b"%d" % next(NUMBERS)
    await sender.sendto(text, *to)
    if sure is not None:
        await sure[0].sendto(last, *sure[1])
    with anyio.fail_after(SECONDS):
        while True:
            data, source = await receiver.receive()
            if data == text:
                return source
            if data == last:
                return None


def local(sock):
    return sock.extra(anyio.abc.SocketAttribute.local_address)


async def mapped(inside, outside):
    """Where *outside* sees *inside*."""
    return await hears(outside, inside, local(outside))


@pytest.mark.vm
async def test_lets_out_and_not_in():
    async with home() as (sup, lab):
        a, x = lab.workers["a"], lab.workers["x"]
        async with await x.create_tcp_listener(local_port=80) as listener, anyio.create_task_group() as tasks:

            async def tell(stream):
                async with stream:
                    await stream.send(str(stream.extra(anyio.abc.SocketAttribute.remote_address)[0]).encode())

            tasks.start_soon(listener.serve, tell)
            with anyio.fail_after(SECONDS):
                async with await a.connect_tcp(address(x), 80) as stream:
                    assert await stream.receive() == OUTSIDE.encode()
            tasks.cancel_scope.cancel()
        assert (await sup.ping_all([("a", "x")])).ok
        # The router itself answers, but nobody leads inside.
        with pytest.raises(OSError):
            with anyio.fail_after(SECONDS):
                await x.connect_tcp(address(a), 80)
        with pytest.raises(OSError):
            with anyio.fail_after(SECONDS):
                await x.connect_tcp(OUTSIDE, 80)


@pytest.mark.vm
async def test_port_forwards_and_hairpin():
    forwards = [nsorch.Forward(8080, to="a:80"), nsorch.Forward("7000-7001", to="10.0.0.3", protocol="udp")]
    async with home(nsorch.Nat("internet", forwards=forwards)) as (_, lab):
        a, b, x = (lab.workers[name] for name in "abx")
        assert address(b) == "10.0.0.3"
        listener = await a.create_tcp_listener(local_port=80)

        async def tell(stream):
            async with stream:
                await stream.send(str(stream.extra(anyio.abc.SocketAttribute.remote_address)[0]).encode())

        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, tell)
            with anyio.fail_after(SECONDS):
                async with await x.connect_tcp(OUTSIDE, 8080) as stream:
                    assert await stream.receive() == address(x).encode()  # who came is seen
                async with await b.connect_tcp(OUTSIDE, 8080) as stream:  # from the inside, too
                    assert await stream.receive() == b"10.0.0.1"
                async with await a.connect_tcp(OUTSIDE, 8080) as stream:
                    assert await stream.receive() == b"10.0.0.1"
            tasks.cancel_scope.cancel()
        async with await udp(b, 7001) as inside, await udp(x) as outside:
            assert await hears(inside, outside, (OUTSIDE, 7001)) == local(outside)


@pytest.mark.vm
@pytest.mark.parametrize(
    ("kind", "same_port", "same_host", "anybody"),
    [
        ("full-cone", True, True, True),
        ("address-restricted", True, True, False),
        ("port-restricted", True, False, False),
        ("masquerade", True, False, False),
        ("symmetric", False, False, False),
    ],
)
async def test_mapping_and_filtering(kind, same_port, same_host, anybody):
    """:param same_port: an inside end has one outside port, whomever it speaks to
    :param same_host: other ports of a host that was spoken to may answer
    """
    async with home(nsorch.Nat("internet", kind=kind)) as (_, lab):
        a, b, x, y = (lab.workers[name] for name in "abxy")
        async with (
            await udp(a, 5000) as inside,
            await udp(b, 5000) as second,
            await udp(x, 1000) as first,
            await udp(x, 1001) as other_port,
            await udp(y, 1000) as other_host,
            await udp(y, 1001) as another,
        ):
            where = await mapped(inside, first)
            assert where[0] == OUTSIDE
            assert await hears(inside, first, where) == local(first)  # the answer
            sure = first, where
            assert (await hears(inside, other_port, where, sure=sure) is not None) == same_host
            assert (await hears(inside, other_host, where, sure=sure) is not None) == anybody
            assert (await mapped(inside, another) == where) == same_port
            if kind != "masquerade":  # there, what came before has taken the port for itself, see the guide
                assert (await mapped(inside, other_host) == where) == same_port
                assert (await mapped(inside, other_port) == where) == same_port
            # Spoken to now, it may answer.
            assert await hears(inside, other_host, await mapped(inside, other_host)) == local(other_host)
            # Another host with the same port shares none with it.
            assert await mapped(second, first) != where
            assert await hears(second, first, await mapped(second, first)) == local(first)
            if "cone" in kind or "restricted" in kind:
                its = await mapped(second, other_host)
                assert its == await mapped(second, first) != where


@pytest.mark.long
async def test_a_mapping_is_forgotten():
    nat = nsorch.Nat("internet", kind="full-cone", timeout="1.5s")
    async with home(nat) as (_, lab):
        a, x, y = (lab.workers[name] for name in "axy")
        async with await udp(a, 5000) as inside, await udp(x) as first:
            where = await mapped(inside, first)
            sure = first, where  # a flow that goes on
            heard = []
            with anyio.fail_after(SECONDS):
                while not heard or heard[-1]:
                    async with await udp(y) as stranger:  # each of them is new
                        heard.append(await hears(inside, stranger, where, sure=sure) is not None)
                    await anyio.sleep(0.1)
            assert heard[0]
            await mapped(inside, first)  # renews it
            async with await udp(y) as stranger:
                assert await hears(inside, stranger, where) == local(stranger)


async def test_at_run_time():
    async with home() as (_sup, lab):
        r, a, x, y = (lab.workers[name] for name in "raxy")
        async with await udp(a, 5000) as inside, await udp(x) as first, await udp(y) as other:
            where = await mapped(inside, first)
            assert await hears(inside, other, where, sure=(first, where)) is None
            await r.set_nat(nsorch.Nat("internet", kind="full-cone"))
            assert r.spec.nat.kind == "full-cone"
            await r.flush_connections()
            where = await mapped(inside, first)
            assert await hears(inside, other, where) == local(other)
            async with anyio.create_task_group() as tasks:  # neither undoes the other
                tasks.start_soon(r.set_nat, None)
                tasks.start_soon(r.set_firewall, "closed")
            assert (r.spec.nat, r.spec.firewall) == (None, nsorch.Firewall("closed"))
            await r.set_firewall(None)
            await r.flush_connections()
            assert await hears(first, inside, local(first)) == local(inside)
        # Others than the description asks for.
        with pytest.raises(nsorch.TopologyError, match=r'nat.forwards\[0\].to: there is no worker "zz"'):
            await r.set_nat({"outside": "internet", "forwards": [{"port": 80, "to": "zz"}]})
        with pytest.raises(nsorch.UnsupportedError, match="forward=True"):
            await a.set_nat("home")
        with pytest.raises(nsorch.TopologyError, match="kind"):
            await r.set_nat({"outside": "internet", "kind": "conical"})
        assert r.spec.nat is None
        await r.remove()
        with pytest.raises(nsorch.ClosedError):
            await r.set_nat("internet")


async def test_forwards_follow_their_worker():
    """Its address changes; it goes, and comes back."""
    async with home({"outside": "eth0", "forwards": [{"port": 80, "to": "a", "protocol": "udp"}]}) as (sup, lab):
        a, x = lab.workers["a"], lab.workers["x"]
        async with await udp(x) as outside:
            async with await udp(a, 80) as inside:
                assert await hears(inside, outside, (OUTSIDE, 80)) is not None
            link = sup.links["a:eth0-home"]
            await link.set(address="10.0.0.77")
            await lab.workers["r"].flush_connections()
            async with await udp(a, 80) as inside:
                assert local(inside)[0] == "10.0.0.77"
                assert await hears(inside, outside, (OUTSIDE, 80)) is not None
            await a.remove()
            a = await sup.start("a", links=[nsorch.To("home", address="10.0.0.99")])
            await lab.workers["r"].flush_connections()
            async with await udp(a, 80) as inside:
                assert await hears(inside, outside, (OUTSIDE, 80)) is not None


async def test_apply_changes_it_in_place():
    async with home() as (_, lab):
        r = lab.workers["r"]
        topology = lab.topology.copy()
        topology.remove("r")
        topology.worker("r", links=["internet", "home"], nat={"outside": "eth0", "kind": "symmetric"})
        found = await lab.apply(topology)
        assert [str(change) for change in found.changes] == ["set worker r (nat)"]
        assert lab.workers["r"] is r
        a, x, y = (lab.workers[name] for name in "axy")
        async with await udp(a, 5000) as inside, await udp(x) as first, await udp(y) as other:
            assert await mapped(inside, first) != await mapped(inside, other)


@pytest.mark.vm
async def test_ipv6():
    """Without more it is only routed; or translated as IPv4 is; or by prefix, and so reachable from outside."""
    async with home() as (_, lab):
        r, a, x = (lab.workers[name] for name in "rax")
        await x.set_routes(
            [nsorch.Route("fd01::/64", via=address(r, 6)), nsorch.Route("2001:db8:99::/64", via=address(r, 6))]
        )
        target = await x.create_udp_socket(local_host=address(x, 6), local_port=1000)
        source = await a.create_udp_socket(local_host=address(a, 6), local_port=5000)
        async with target, source:
            assert await mapped(source, target) == (address(a, 6), 5000)
            await r.set_nat(nsorch.Nat("internet", ipv6=True))
            await r.flush_connections()
            assert (await mapped(source, target))[0] == address(r, 6)
            try:
                await r.set_nat(nsorch.Nat("internet", prefixes={"fd01::/64": "2001:db8:99::/64"}))
            except nsorch.UnsupportedError as exc:
                assert "ip6t_NPT" in str(exc)
                return
            await r.flush_connections()
            where = await mapped(source, target)
            assert ip_address(where[0]) in nsorch.Route("2001:db8:99::/64", via="::").to
            assert await hears(source, target, where) is not None


async def test_a_worker_by_itself():
    """Started alone, its link comes later; the rules go by the interface's name."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24", gateway="r")
        r = await sup.start("r", links=[lan], nat="up0")
        a = await sup.start("a", links=[lan])
        x = await sup.start("x")
        await sup.link(
            nsorch.End(r, name="up0", address="192.0.2.1"), nsorch.End(x, address="192.0.2.2"), subnet="192.0.2.0/24"
        )
        async with await udp(a) as inside, await udp(x) as outside:
            assert (await mapped(inside, outside))[0] == "192.0.2.1"
        with pytest.raises(nsorch.TopologyError, match=r'workers.q.nat.forwards\[0\].to: there is no worker "nobody"'):
            await sup.start("q", links=[lan], nat={"outside": "up0", "forwards": [{"port": 80, "to": "nobody"}]})
        assert set(sup.workers) == {"r", "a", "x"}
        empty = await sup.start("empty")
        with pytest.raises(nsorch.TopologyError, match='"empty" has no IPv4 address'):
            await sup.start("q", links=[lan], nat={"outside": "up0", "forwards": [{"port": 80, "to": "empty"}]})
        assert empty.name in sup.workers
        assert "q" not in sup.workers


async def test_own_rules_stay():
    """What a worker's own programs have set is its own business."""
    async with home() as (_, lab):
        r = lab.workers["r"]
        sock = await r.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        with sock:
            from nsorch.net import nftables
            from nsorch.net.netlink import Netlink, Request

            table = nftables.Table("mine")
            await anyio.to_thread.run_sync(lambda: Netlink(sock).commit([Request(table.add(), "add", "mine")]))
            await r.set_nat(None)
            # Deleting it is no error: it is still there.
            await anyio.to_thread.run_sync(lambda: Netlink(sock).commit([Request(table.delete(), "delete", "mine")]))
            with pytest.raises(nsorch.NetlinkError) as caught:
                await anyio.to_thread.run_sync(
                    lambda: Netlink(sock).commit([Request(table.delete(), "delete", "mine")])
                )
            assert caught.value.operation == "delete"
