"""What other programs do to the links of workers."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from kernel_support import renames_live

import nsorch
from nsorch.supervisor.wiring import watching

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

LINK_EVENTS = ["LinkCreated", "LinkUp", "LinkDown", "LinkChanged", "LinkRemoved"]


async def lab(sup: nsorch.Supervisor, names: str = "ab") -> None:
    await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
    for name in names:
        await sup.start(name, links=["lan"])


async def take(events: nsorch.EventStream, count: int) -> list[nsorch.Event]:
    with anyio.fail_after(5):
        return [await events.receive() for _ in range(count)]


def told(events: Sequence[nsorch.Event]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for event in events:
        assert getattr(event, "by", "kernel") == "kernel", event
        found.append((event.kind, *(value for _, value in getattr(event, "changes", ()))))
    return found


async def quiet(sup: nsorch.Supervisor, events: nsorch.EventStream) -> None:
    """Nothing else was told: what the kernel had to tell before comes before a mark of ours."""
    link = next(iter(sup.links.values()))
    other = "b" if link.ends[0].startswith("a") else "a"
    (mark,) = [link for link in sup.links.values() if link.ends[0].startswith(other)]
    await mark.set(mtu=1432)
    (event,) = await take(events, 1)
    assert event.changes == (("mtu", "1432"),), event
    assert event.by == "nsorch"


async def test_down_and_up() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup)
        link = sup.links["a:eth0-lan"]
        async with sup.events(kinds=LINK_EVENTS) as events:
            await sup.workers["a"].run(["ip", "link", "set", "eth0", "down"])
            assert told(await take(events, 1)) == [("LinkDown",)]
            assert not link.is_up
            await sup.workers["a"].run(["ip", "link", "set", "eth0", "up"])
            # IPv6 addresses don't survive that; the record says so.
            assert told(await take(events, 2)) == [("LinkUp",), ("LinkChanged", "10.0.0.1")]
            assert link.is_up
            assert [str(a.ip) for a in sup.workers["a"].interfaces["eth0"].addresses] == ["10.0.0.1"]
            await link.down()
            await link.up()
            assert [(event.kind, event.by) for event in await take(events, 2)] == [
                ("LinkDown", "nsorch"),
                ("LinkUp", "nsorch"),
            ]
            assert [str(a.ip) for a in sup.workers["a"].interfaces["eth0"].addresses] == ["10.0.0.1", "fd00::1"]
            assert (await sup.ping_all(version=6)).ok
            await quiet(sup, events)


async def test_what_is_changed_at_an_interface() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup)
        a = sup.workers["a"]
        async with sup.events(kinds=LINK_EVENTS) as events:
            await a.run(["ip", "link", "set", "eth0", "mtu", "1400"])
            assert told(await take(events, 1)) == [("LinkChanged", "1400")]
            assert a.interfaces["eth0"].mtu == 1400
            await a.run(["ip", "addr", "add", "10.0.0.77/24", "dev", "eth0"])
            assert told(await take(events, 1)) == [("LinkChanged", "10.0.0.1, fd00::1, 10.0.0.77")]
            await a.run(["ip", "addr", "del", "10.0.0.1/24", "dev", "eth0"])  # and with it its secondary
            assert told(await take(events, 2))[1] == ("LinkChanged", "fd00::1")
            assert [str(x.ip) for x in a.interfaces["eth0"].addresses] == ["fd00::1"]
            assert [str(x.ip) for x in a.addresses] == ["10.0.0.1", "fd00::1"], "what nsorch gave it"
            await sup.links["a:eth0-lan"].set(address="10.0.0.9")
            (event,) = await take(events, 1)
            assert event.by == "nsorch"
            assert [str(x.ip) for x in a.interfaces["eth0"].addresses] == ["10.0.0.9", "fd00::1"]
            assert (await sup.ping_all(version=4)).ok
            await a.run("ip link set eth0 down; ip link set eth0 name wan; ip link set wan up")
            assert [item[0] for item in told(await take(events, 4))] == [
                "LinkDown",
                "LinkChanged",
                "LinkUp",
                "LinkChanged",
            ]
            assert set(a.interfaces) == {"wan"}
            link = sup.links["a:wan-lan"]
            assert link.ends == ("a:wan", "lan")
            await link.down()
            await link.up()
            await take(events, 2)
            assert (await sup.ping_all(version=6)).ok
            await sup.link("a", "lan", subnet=None)  # eth0 is free again
            await take(events, 2)
            assert set(a.interfaces) == {"wan", "eth0"}


@pytest.mark.parametrize("arp", ["static", "dynamic"])
async def test_another_hardware_address_is_made_known(arp: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24", arp=arp, gateway="a")
        await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "abc"])
        assert (await sup.ping_all()).ok
        async with sup.events(kinds=nsorch.LinkChanged) as events:
            for name in "ab":
                await sup.workers[name].run(["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"])
                assert told(await take(events, 1)) == [("LinkChanged", "02:00:00:00:00:99")]
                assert sup.workers[name].interfaces["eth0"].mac == "02:00:00:00:00:99"
                fresh = await sup.start(f"{name}2", links=["lan"])
                assert (await sup.ping_all([(fresh, name), (name, fresh), ("c", name), (name, "c")])).ok
                await sup.links[f"{name}:eth0-lan"].set(mac=f"02:00:00:00:01:0{ord(name) - 96}")
                await take(events, 1)


async def test_removed() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup)
        b = sup.workers["b"]
        between = await sup.link("a", "b")
        async with sup.events(kinds=nsorch.LinkRemoved) as events:
            await b.run(["ip", "link", "del", "eth0"])
            (event,) = await take(events, 1)
            assert (event.link, event.by) == ("b:eth0-lan", "kernel")
            await b.run(["ip", "link", "del", "eth1"])
            (event,) = await take(events, 1)
            assert (event.link, event.by) == (between.name, "kernel")
            assert set(sup.links) == {"a:eth0-lan"}
            assert not b.interfaces
            assert set(sup.workers["a"].interfaces) == {"eth0"}
            with pytest.raises(nsorch.ClosedError):
                await between.up()
            await between.remove()
            again = await sup.link("b", "lan")
            assert [str(a.ip) for a in b.interfaces["eth0"].addresses] == ["10.0.0.2", "fd00::2"]
            assert (await sup.ping_all()).ok
            await again.remove()
            (event,) = await take(events, 1)
            assert (event.link, event.by) == (again.name, "nsorch")


async def test_moved_to_another_network_namespace() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        a = await sup.start("a", ["sleep", "600"], links=["lan"])
        b = await sup.start("b", links=["lan"])
        await sup.link("a", "b")
        async with await a.popen(["unshare", "-n", "sh", "-c", "echo $$; exec sleep 600"]) as elsewhere:
            assert elsewhere.stdout is not None
            pid = (await elsewhere.stdout.receive()).decode().strip()
            async with sup.events(kinds=nsorch.LinkRemoved) as events:
                for name in ("eth0", "eth1"):
                    await a.run(["ip", "link", "set", name, "netns", pid])
                assert {event.link for event in await take(events, 2)} == {"a:eth0-lan", "a:eth1-b:eth1"}
            there = await a.run(["nsenter", "-t", pid, "-n", "ls", "/sys/class/net"], check=False)
            assert b"eth" not in there.stdout
            assert b"eth1" not in (await b.run(["ls", "/sys/class/net"])).stdout
            for other in ("lan", "b"):
                await sup.link("a", other)
            assert (await sup.ping_all()).ok
            elsewhere.kill()


async def test_the_other_end_of_a_link_between_workers() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("a", ["sleep", "600"])
        await sup.start("b")
        link = await sup.link("a", "b")
        async with sup.events(kinds=LINK_EVENTS) as events:
            for name in "ab":
                await sup.workers[name].run("ip link set eth0 down; ip link set eth0 mtu 1300; ip link set eth0 up")
                assert told(await take(events, 4)) == [
                    ("LinkDown",),
                    ("LinkChanged", "1300"),
                    ("LinkUp",),
                    ("LinkChanged", str(sup.workers[name].interfaces["eth0"].addresses[0].ip)),
                ]
            assert link.is_up
            # Down at one end by another program, up by nsorch.
            await sup.workers["a"].run(["ip", "link", "set", "eth0", "down"])
            await take(events, 1)
            await link.up()
            assert link.is_up
            assert (await sup.ping_all(version=6)).ok
            (event,) = await take(events, 1)
            assert (event.kind, event.by) == ("LinkUp", "nsorch")


async def test_what_nsorch_does_is_told_once() -> None:
    async with nsorch.Supervisor() as sup, sup.events(kinds=LINK_EVENTS, since=0) as events:
        topology = nsorch.Topology()
        topology.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        for number in range(20):
            topology.worker(f"w{number}", ["sleep", "600"] if number % 2 else None, links=["lan"])
        for number in range(5):
            topology.link(f"w{number}", f"w{number + 1}")
        deployment = await sup.deploy(topology)
        count = len(sup.links)
        for link in list(sup.links.values())[::3]:
            for _ in range(2):  # the second time it is so already
                await link.down()
            for _ in range(2):
                await link.up()
            await link.set(mtu=1400)
        await sup.links["w0:eth0-lan"].set(mac="02:00:00:00:00:01")
        await sup.links["w1:eth0-lan"].set(address="10.0.0.200")
        await sup.bridge("other", "10.1.0.0/24")
        await sup.links["w2:eth0-lan"].set(bridge="other")
        await sup.workers["w3"].remove()
        await deployment.remove()
        assert not sup.links
        await sup.bridge("new", "10.2.0.0/24")
        await sup.start("last", links=["new"])
        seen = []
        while not (seen and getattr(seen[-1], "link", "").startswith("last") and seen[-1].kind == "LinkUp"):
            seen += await take(events, 1)
        assert {getattr(event, "by", "nsorch") for event in seen} == {"nsorch"}, seen
        kinds = [event.kind for event in seen]
        assert kinds.count("LinkRemoved") == count
        assert kinds.count("LinkDown") == len(range(0, count, 3))
        assert kinds.count("LinkUp") == count + 1 + kinds.count("LinkDown")


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_an_overrun_makes_a_gap_and_the_record_is_right_afterwards() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup, "abc")
        listener = sup._wiring.watcher._listener
        assert listener is not None
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with (
            sup.events(kinds=LINK_EVENTS) as events,
            sup.events() as everything,
            sup.events(kinds=nsorch.WorkerRemoved) as others,
            await sup.workers["a"].popen("read x; ip link set eth0 mtu 1300") as first,
            await sup.workers["b"].popen(
                "read x; for i in 1 2 3 4 5 6 7 8 9; do ip link set eth0 mtu 14$i$i; done; ip link set eth0 down"
            ) as second,
        ):
            for process in (second, first):
                assert process.stdin is not None
                await process.stdin.send(b"\n")
                while runs(process.pid):
                    time.sleep(0.001)
                with anyio.fail_after(5):
                    await process.wait()
            found = []
            with anyio.fail_after(5):
                while sup.links["b:eth0-lan"].is_up or sup.workers["a"].interfaces["eth0"].mtu != 1300:
                    found += await take(events, 1)
            await sup._wiring.watcher._read()  # the rest of what there is to be heard
            while True:
                try:
                    found.append(events.receive_nowait())
                except anyio.WouldBlock:
                    break
            gaps = [event for event in found if isinstance(event, nsorch.Gap)]
            assert gaps
            assert sup.workers["b"].interfaces["eth0"].mtu == 1499
            seqs = []
            for event in found:
                everything_has = await take(everything, 1)
                assert everything_has[0] is event
                seqs.append(event.seq)
                if isinstance(event, nsorch.Gap):
                    assert event.first == event.last == event.seq
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
            with pytest.raises(anyio.WouldBlock):
                others.receive_nowait()
            # It listens as before.
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            await sup.workers["c"].run(["ip", "link", "set", "eth0", "down"])
            assert told(await take(events, 1)) == [("LinkDown",)]
        async with sup.events(since=gaps[0].seq, kinds=LINK_EVENTS) as again:
            (gap,) = await take(again, 1)
            assert gap is gaps[0]


async def test_in_a_large_lab_those_are_heard_in_whom_something_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_HEARD_ANYWAY", 1)
    async with nsorch.Supervisor() as sup:
        await lab(sup, "ab")
        await sup.start("c", ["sleep", "600"], links=["lan"])
        assert set(sup._wiring.watcher._ids) == {"a", "c"}
        async with sup.events(kinds=LINK_EVENTS) as events:
            await sup.workers["b"].run(["ip", "link", "set", "eth0", "down"])
            assert told(await take(events, 1)) == [("LinkDown",)]
        assert set(sup._wiring.watcher._ids) == {"a", "b", "c"}


async def test_a_network_namespace_that_several_share() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup, "ab")
        await sup.start("guest", namespaces={"net": "worker:a"})
        await sup.link("guest", "lan")
        async with sup.events(kinds=LINK_EVENTS) as events:
            await sup.workers["guest"].run(["ip", "link", "set", "eth0", "down"])
            await sup.workers["a"].run(["ip", "link", "set", "eth1", "down"])
            assert [event.link for event in await take(events, 2)] == ["a:eth0-lan", "guest:eth1-lan"]
            await sup.workers["a"].remove()
            await take(events, 1)
            await sup.workers["guest"].run(["ip", "link", "set", "eth1", "up"])
            assert [event.kind for event in await take(events, 1)] == ["LinkUp"]


async def test_numbers_that_the_kernel_gives_by_itself_are_in_nobodys_way() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"))
        a = await sup.start("a", links=["lan"])
        late = await sup.start("late")
        await sup.start("b")
        await a.run(["true"])
        await sup.link("a", "b")  # asked about, b has a number
        await sup.links["a:eth0-lan"].set(mtu=1400)  # and the fabric that of late
        link = await sup.link("late", "lan")
        await link.set(mtu=1300)
        await late.run(["ip", "link", "set", "eth0", "mtu", "1310"])
        await sup.wait_event(nsorch.LinkChanged, since=0, predicate=lambda event: event.changes == (("mtu", "1310"),))
        assert late.interfaces["eth0"].mtu == 1310
        assert link.name in sup.links


async def test_given_link_local_addresses_are_not_taken_for_gone() -> None:
    async with nsorch.Supervisor() as sup:
        a, _ = await sup.start("a"), await sup.start("b")
        link = await sup.link("a", "b", subnet=["fe80::/64", "10.0.0.0/24"])
        async with sup.events(kinds=LINK_EVENTS) as events:
            await link.set(mtu=1400)
            await a.run(["ip", "addr", "add", "fe80::77/64", "dev", "eth0", "nodad"])  # which nobody asked for
            await a.run(["ip", "addr", "del", "fe80::1/64", "dev", "eth0"])
            assert [event.changes for event in await take(events, 2)] == [
                (("mtu", "1400"),),
                (("address", "10.0.0.1"),),
            ]
        assert [str(address.ip) for address in a.interfaces["eth0"].addresses] == ["10.0.0.1"]
        await link.set(address="fe80::5", end="a")
        assert [str(address.ip) for address in a.interfaces["eth0"].addresses] == ["fe80::5", "10.0.0.1"]


@pytest.mark.parametrize(
    "command", ["echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", "ip link set eth0 mtu 600"], ids=["sysctl", "mtu"]
)
async def test_where_another_program_turns_ipv6_off_the_rest_goes_on(command: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), gateway="r")
        worker = await sup.start("w", links=["lan"])
        await worker.run(command)
        await sup.wait_event(
            nsorch.LinkChanged, since=0, predicate=lambda event: ("address", "10.0.0.2") in event.changes
        )
        await sup.start("r", links=["lan"])
        link = sup.links["w:eth0-lan"]
        await link.down()
        await link.up()
        await link.set(mac="02:00:00:00:00:01")
        await link.set(address="10.0.0.77")
        assert link.is_up
        assert [str(address.ip) for address in worker.interfaces["eth0"].addresses] == ["10.0.0.77"]
        assert "default via 10.0.0.1" in (await worker.run(["ip", "route"])).stdout.decode()
        assert (await sup.ping_all(version=4)).ok
        await sup.workers["r"].remove()
        await sup.start("r", links=["lan"])
        assert (await sup.ping_all(version=4)).ok


async def test_up_where_another_program_removed_the_address() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), gateway="gate")
        await sup.start("gate", links=[lan])
        worker = await sup.start("w", links=[lan], routes=[nsorch.Route("10.9.0.0/16", via="10.0.0.1")])
        link = sup.links["w:eth0-lan"]
        await worker.run(["ip", "-4", "addr", "flush", "dev", "eth0"])
        await sup.wait_event(nsorch.LinkChanged, since=0)
        await link.down()
        await link.up()
        assert link.is_up
        assert b"default via fd00::1" in (await worker.run(["ip", "-6", "route"])).stdout
        await link.set(address="10.0.0.9")
        assert b"default via 10.0.0.1" in (await worker.run(["ip", "route"])).stdout


@renames_live
async def test_any_interface_may_be_renamed_and_several_swap_their_names() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), gateway="a")
        for name in "ab":
            await sup.start(name, links=["lan", "lan"])
        a, b = sup.workers["a"], sup.workers["b"]
        async with sup.events(kinds=LINK_EVENTS) as events:
            await a.run(["ip", "link", "set", "eth0", "name", "up0"])  # its address is kept for the gateway
            (event,) = await take(events, 1)
            assert event.changes == (("name", "up0"), ("was", "a:eth0-lan"))
        addresses = {name: b.interfaces[name].addresses for name in ("eth0", "eth1")}
        watcher = sup._wiring.watcher
        assert watcher._listener is not None
        watcher._listener.stop_listening()
        await b.run("ip link set eth0 name x; ip link set eth1 name eth0; ip link set x name eth1")
        watcher._listener.listen()
        watcher._overrun = True  # it learns of both at once
        await watcher._read()
        assert set(sup.links) == {"a:up0-lan", "a:eth1-lan", "b:eth0-lan", "b:eth1-lan"}
        assert b.interfaces["eth0"].addresses == addresses["eth1"]
        assert b.interfaces["eth1"].addresses == addresses["eth0"]
        assert (await sup.ping_all()).ok
        for link in list(sup.links.values()):
            await link.set(mtu=1400)
            await link.remove()
        for worker in (a, b):
            assert dict(worker.interfaces) == {}
            assert b"eth" not in (await worker.run("ip link")).stdout
        assert not sup._wiring.record._ifnames
        assert sup.workers["a"].addresses == ()
        await sup.link("a", "lan")
        assert str(a.interfaces["eth0"].addresses[0]) == "10.0.0.1/24"


async def test_a_port_of_a_bridge_of_the_workers_own() -> None:
    async with nsorch.Supervisor() as sup:
        await lab(sup)
        async with sup.events(kinds=LINK_EVENTS) as events:
            await sup.workers["a"].run(
                "ip link add br0 type bridge && ip link set eth0 master br0 && ip link set eth0 nomaster"
            )
            await quiet(sup, events)
        assert (await sup.ping_all()).ok
