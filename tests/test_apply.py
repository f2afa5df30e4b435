"""A deployment becomes another topology by doing only the difference."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import nsorch
from nsorch import Route, To, Topology, TopologyError, UnsupportedError
from nsorch.cli import watch as watching
from nsorch.net.messages import get_link, parse_link
from nsorch.net.netlink import Request
from nsorch.supervisor import turns
from nsorch.supervisor.wiring.wiring import Wiring
from nsorch.topology.difference import difference

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nsorch.supervisor.wiring.orders import Order

SLEEP = ["sleep", "600"]


def office(**changes: object) -> Topology:
    topology = Topology("office")
    topology.bridge("lan", "10.0.0.0/24", gateway="r")
    topology.bridge("far", "10.9.0.0/24", gateway="r")
    topology.worker("r", links=["lan", "far"], forward=True)
    topology.worker("web", changes.get("web", SLEEP), links=["lan"])  # type: ignore[arg-type]
    topology.worker("pc", SLEEP, links=[changes.get("pc_on", "lan")])
    topology.worker("x")
    topology.link("pc", "x", mtu=changes.get("mtu"))  # type: ignore[arg-type]
    return topology


def told(found: nsorch.Difference) -> set[str]:
    return {str(change) for change in found.changes}


def test_difference() -> None:
    old = office()
    assert not difference(old, office())
    assert told(difference(old, office(web=["sleep", "601"]))) == {"restart worker web (command)"}
    assert told(difference(old, office(mtu=1400))) == {"set link pc-x (mtu)"}
    assert told(difference(old, office(mtu=1000))) == {"replace link pc-x (mtu)"}  # it has no IPv6 then
    assert told(difference(old, office(pc_on="far"))) == {"remove link pc-lan", "add link pc-far"}
    new = office()
    new.worker("y", links=["lan"])
    assert told(difference(old, new)) == {"add worker y", "add link y-lan"}
    assert told(difference(new, old)) == {"remove worker y", "remove link y-lan"}


def plugged(*links: object, more: tuple[str, ...] = ()) -> Topology:
    topology = Topology()
    for number, name in enumerate(("lan", "far", "wan")):
        topology.bridge(name, f"10.{number}.0.0/24")
    topology.worker("w", SLEEP, links=list(links))
    topology.worker("v", SLEEP, links=["lan"])
    for name in more:
        topology.link("w", name)
    return topology


def test_an_order_that_names_interfaces_is_a_difference() -> None:
    old = plugged("lan", "far")
    assert told(difference(old, plugged("far", "lan"))) == {
        "replace link w-lan (order)",
        "replace link w-far (order)",
    }
    # What has a name, comes or goes renames no other.
    named = nsorch.To("far", name="x")
    assert not difference(plugged("lan", named), plugged(named, "lan"))
    assert told(difference(old, plugged("wan", "lan", "far"))) == {"add link w-wan"}
    assert told(difference(plugged("wan", "lan", "far"), old)) == {"remove link w-wan"}
    # Of workers the order names nothing, nor of their links on the bridge.
    again = Topology()
    for name in ("wan", "far", "lan"):
        again.add(old.bridges[name])
    for name in ("v", "w"):
        again.add(old.workers[name])
    assert not difference(old, again)
    old, new = plugged(more=("lan", "v", "far")), plugged(more=("v", "lan", "far"))
    assert told(difference(old, new)) == {f"replace link w-{name} (order)" for name in ("lan", "v", "far")}


@pytest.mark.anyio
async def test_interfaces_are_named_by_the_order_that_is_applied() -> None:
    def seen(sup: nsorch.Supervisor) -> dict[str, str | None]:
        return {name: each.bridge or each.peer for name, each in sup.workers["w"].interfaces.items()}

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(plugged("lan", "far", more=("v",)))
        pid = sup.workers["w"].pid
        assert seen(sup) == {"eth0": "lan", "eth1": "far", "eth2": "v"}
        await deployment.apply(plugged("far", "lan", more=("v",)))
        assert seen(sup) == {"eth0": "far", "eth1": "lan", "eth2": "v"}
        assert not await deployment.apply(plugged("far", "lan", more=("v",)))
        assert sup.workers["w"].pid == pid
        assert (await sup.ping_all()).ok
        await deployment.apply(plugged("wan", "far", "lan", more=("v",)))
        assert seen(sup) == {"eth0": "far", "eth1": "lan", "eth2": "v", "eth3": "wan"}


@pytest.mark.anyio
async def test_a_link_that_is_removed_while_apply_makes_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(plugged("lan"))
        orders, removed = sup._wiring._orders, list[str]()
        carry_out = orders.carry_out

        async def carry_out_and_lose_one(order: Order) -> None:
            await carry_out(order)
            if order.links and not removed:
                removed.append(order.links[0].name)
                await order.links[0].remove()

        monkeypatch.setattr(orders, "carry_out", carry_out_and_lose_one)
        await deployment.apply(plugged("lan", "far"))
        assert removed
        assert deployment.links.keys() == sup.links.keys() == {"v:eth0-lan", "w:eth0-lan", "w:eth1-far"}


def nodes(draw: st.DrawFn) -> Topology:
    topology = Topology()
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1))
    lans = draw(st.lists(st.sampled_from(["l1", "l2"]), unique=True))
    for number, lan in enumerate(lans):
        topology.bridge(lan, f"10.{10 * draw(st.integers(1, 2)) + number}.0.0/24")
    for name in names:
        own = draw(st.lists(st.sampled_from(lans), max_size=2)) if lans else []
        topology.worker(
            name, ["sleep", draw(st.sampled_from(["600", "601"]))] if draw(st.booleans()) else None, links=own
        )
    for _ in range(draw(st.integers(0, 4)) if len(names) > 1 else 0):
        a, b = draw(st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True))
        topology.link(a, b, mtu=draw(st.sampled_from([None, 1400])))
    return topology


topologies = st.composite(nodes)()


@given(topologies, topologies)
def test_difference_is_empty_for_the_same_and_names_what_differs(old: Topology, new: Topology) -> None:
    assert not difference(old, old)
    found = difference(old, new)
    assert bool(found) == (old.to_dict() != new.to_dict() or list(old.workers) != list(new.workers)) or not found
    assert set(found.of("worker", "add")) == set(new.workers) - set(old.workers)
    assert set(found.of("worker", "remove")) == set(old.workers) - set(new.workers)
    if not found:
        assert {k: evolve(v, links=()) for k, v in old.workers.items()} == {
            k: evolve(v, links=()) for k, v in new.workers.items()
        }


def picture(sup: nsorch.Supervisor) -> dict[str, object]:
    return {
        "workers": {name: (worker.state, worker.spec.command) for name, worker in sup.workers.items()},
        "bridges": {name: bridge.subnets for name, bridge in sup.bridges.items()},
        "links": sorted(
            (sorted(end.partition(":")[0] for end in link.ends), [i.mtu or 1500 for i in link.interfaces])
            for link in sup.links.values()
        ),
    }


@pytest.mark.once
@settings(max_examples=12, deadline=None)
@given(st.lists(topologies, min_size=2, max_size=4))
def test_any_sequence_leads_where_a_fresh_deployment_does(sequence: list[Topology]) -> None:
    async def main() -> None:
        async with nsorch.Supervisor() as sup:
            deployment = await sup.deploy(sequence[0])
            for topology in sequence[1:]:
                await deployment.apply(topology)
                assert not await deployment.apply(topology)
            applied = picture(sup)
            assert set(deployment.workers) == set(sup.workers)
            assert set(deployment.links) == set(sup.links)
            for part in sequence[-1].components():
                near = [pair for link in sup.links.values() if len(pair := _workers(link)) == 2 and pair[0] in part]
                assert (await sup.ping_all(near)).ok
        async with nsorch.Supervisor() as sup:
            await sup.deploy(sequence[-1])
            assert applied == picture(sup)

    anyio.run(main)


def _workers(link: nsorch.Link) -> tuple[str, ...]:
    return tuple(end.partition(":")[0] for end in link.ends if ":" in end)


@pytest.mark.anyio
async def test_what_is_alike_is_not_touched() -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(office())
        pids = {name: worker.pid for name, worker in sup.workers.items()}
        async with sup.events() as events:
            dry = await deployment.apply(office(web=["sleep", "601"], pc_on="far", mtu=1400), dry_run=True)
            assert dict(sup.workers) == dict(deployment.workers)
            assert pids == {name: worker.pid for name, worker in sup.workers.items()}
            done = await deployment.apply(office(web=["sleep", "601"], pc_on="far", mtu=1400))
            assert dry == done
            seen = []
            with contextlib.suppress(anyio.WouldBlock):
                while event := events.receive_nowait():
                    seen.append((event.kind, event.worker))
        assert {worker for _, worker in seen} <= {None, "web"}
        assert sum(kind == "LinkRemoved" for kind, _ in seen) == 1
        assert sup.workers["web"].incarnation == 2
        assert sup.workers["pc"].pid == pids["pc"]
        assert str(sup.workers["pc"].interfaces["eth0"].bridge) == "far"
        assert (await sup.ping_all([("pc", "web"), ("web", "pc"), ("pc", "x")])).ok
        await deployment.apply(Topology("office"))
        assert dict(sup.workers) == dict(sup.links) == dict(sup.bridges) == {}


@pytest.mark.anyio
async def test_addresses_stay_where_links_are_made_anew() -> None:
    def lab(names: str, *, mtu: int | None = None, gateway: str | None = None, hostname: str | None = None) -> Topology:
        topology = Topology()
        topology.bridge("lan", ("10.0.0.0/24", "fd00::/64"), mtu=mtu, gateway=gateway)
        for name in names:
            topology.worker(name, links=[To("lan")], hostname=hostname if name == "c" else None)
        topology.bridge("far", "10.1.0.0/24")
        topology.link(names[-1], "far")
        return topology

    def addresses() -> dict[str, list[str]]:
        return {name: [str(address.ip) for address in worker.addresses] for name, worker in sup.workers.items()}

    first, second, third = (["10.0.0.1", "fd00::1"], ["10.0.0.2", "fd00::2"], ["10.0.0.3", "fd00::3", "10.1.0.1"])
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab("abc"))
        await deployment.apply(lab("ac"))
        assert addresses() == {"a": first, "c": third}
        await deployment.apply(lab("xac", mtu=1400))
        assert addresses() == {"x": second, "a": first, "c": third}
        await deployment.apply(lab("xac", mtu=1400, hostname="other"))
        assert addresses() == {"x": second, "a": first, "c": third}
        assert not sup.workers["a"].spec.links[0].address
        assert not await deployment.apply(lab("xac", mtu=1400, hostname="other"))
        await deployment.apply(lab("xac", gateway="c"))
        assert addresses()["c"][:2] == first, "the gateway's"
        await deployment.apply(lab("xac"))
        assert addresses()["c"][:2] == first
        await sup.links["a:eth0-lan"].set(bridge="far")
        await deployment.apply(lab("xac", mtu=1400))
        assert addresses()["a"] == ["10.0.0.3", "fd00::3"], "the next that is free"
        given = lab("xac")
        given.worker("y", links=[To("lan", address=["10.0.0.50", "fd00::50"])])
        await deployment.apply(given)
        free = lab("xac")
        free.worker("y", links=["lan"])
        await deployment.apply(free)
        assert addresses()["y"] == ["10.0.0.4", "fd00::4"], "it isn't given any more"
        assert (await sup.ping_all(version=4)).ok
        assert (await sup.ping_all(version=6)).ok


@pytest.mark.anyio
async def test_routes_follow() -> None:
    async with nsorch.Supervisor() as sup:
        ring = Topology.ring(5)
        deployment = await sup.deploy(ring)
        line = Topology.linear(5)
        await deployment.apply(line)
        for version in (4, 6):
            assert (await sup.ping_all(version=version)).ok
        longer = Topology.linear(7)
        found = await deployment.apply(longer)
        assert set(found.of("worker", "add")) == {"n5", "n6"}
        assert (await sup.ping_all()).ok
        gone = str(sup.workers["n6"].addresses[0].ip)
        await deployment.apply(Topology.linear(3))
        assert (await sup.ping_all()).ok
        with pytest.raises(OSError, match="unreachable"):
            await sup.workers["n0"].connect_tcp(gone, 80)
        with pytest.raises(UnsupportedError, match="routing"):
            await deployment.apply(Topology("other"))


@pytest.mark.anyio
async def test_failures_leave_what_was_there() -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(office())
        before = picture(sup)
        wrong = office()
        wrong.link("pc", "nobody")
        with pytest.raises(TopologyError, match="nobody"):
            await deployment.apply(wrong)
        missing = office()
        missing.worker("new", ["/nowhere/at/all"], links=["lan"])
        missing.worker("fine", links=["lan"])
        missing.link("x", "web")
        with pytest.raises(ExceptionGroup) as failed:
            await deployment.apply(missing)
        assert isinstance(failed.value.exceptions[0], nsorch.CommandNotFoundError)
        assert picture(sup) == before
        assert await deployment.apply(office(), dry_run=True) == nsorch.Difference()
        fewer = office()
        fewer.worker("new", links=["lan"])
        assert told(await deployment.apply(fewer)) == {"add worker new", "add link new-lan"}


@pytest.mark.anyio
async def test_a_route_moves_with_the_link_that_it_goes_through() -> None:
    def lab(subnet: int, *further: int) -> Topology:
        topology = Topology("lab")
        for number in range(3):
            topology.bridge(f"b{number}", f"10.{number}.0.0/24")
        routes = [Route(f"172.16.{number}.0/24", via=f"10.{number}.0.250") for number in (subnet, *further)]
        topology.worker("w", links=["b2", To(f"b{subnet}", name="x")], routes=routes)
        return topology

    async def routes(worker: nsorch.Worker) -> list[str]:
        return (await worker.run("ip route show proto static")).stdout.decode().splitlines()

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab(0, 2))
        worker = sup.workers["w"]
        namespaces = dict(worker.namespaces)
        await deployment.apply(lab(1))
        assert await routes(worker) == ["172.16.1.0/24 via 10.1.0.250 dev x "]
        wrong = lab(0)
        wrong.worker("bad", ["no-such-command"])
        with pytest.raises(ExceptionGroup):
            await deployment.apply(wrong)
        assert await routes(worker) == []  # its link had gone before
        await deployment.apply(lab(1, 2))
        assert await routes(worker) == ["172.16.1.0/24 via 10.1.0.250 dev x ", "172.16.2.0/24 via 10.2.0.250 dev eth0 "]
        assert dict(worker.namespaces) == namespaces


@pytest.mark.once
def test_watch(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "lab.toml"

    def write(text: str) -> None:
        part = tmp_path / "part"
        part.write_text(text)
        part.replace(file)

    b = f"watched-{os.getpid()}"
    pin = pathlib.Path("/run/netns", b)
    lab = '[bridges.lan]\nsubnet = "10.0.0.0/24"\n[workers.a]\nlinks = ["lan"]\n'
    write(lab)
    command = [sys.executable, "-m", "nsorch", "run", "--watch", "--events", "--json", str(file)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stderr is not None
    watchdog = threading.Timer(60, run.kill)
    watchdog.start()
    try:
        assert "up in" in run.stderr.readline()
        write(f'{lab}[workers.{b}]\nlinks = ["lan"]\n')
        assert [run.stderr.readline() for _ in range(2)] == [f"nsorch: add worker {b}\n", f"nsorch: add link {b}-lan\n"]
        write("[workers.b\n")
        assert "lab.toml" in run.stderr.readline()
        assert os.path.lexists(pin) is (os.geteuid() == 0)
        write(lab)
        assert run.stderr.readline() == f"nsorch: remove worker {b}\n"
        assert run.stderr.readline() == f"nsorch: remove link {b}-lan\n"
        times = file.stat()
        file.write_text(lab.replace("workers.a", "workers.c"))  # as rsync --inplace --times does
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert [run.stderr.readline() for _ in range(2)] == ["nsorch: remove worker a\n", "nsorch: add worker c\n"]
        assert [run.stderr.readline() for _ in range(2)] == ["nsorch: remove link a-lan\n", "nsorch: add link c-lan\n"]
        lab = lab.replace("workers.a", "workers.c")
        for _ in range(6):  # an editor that writes in place: the file is empty for a while
            file.write_text("")
            time.sleep(0.1)
            file.write_text(lab)
            time.sleep(0.17)
        time.sleep(0.6)
    finally:
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=20)
        watchdog.cancel()
    assert run.returncode == 143
    kinds = [(event["kind"], event.get("worker")) for event in map(json.loads, output.splitlines())]
    assert ("WorkerReady", b) in kinds
    assert ("WorkerRemoved", b) in kinds
    assert kinds.index(("WorkerRemoved", "a")) > kinds.index(("WorkerRemoved", b))
    assert kinds.index(("WorkerRemoved", "c")) > kinds.index(("SupervisorStopping", None))
    assert not os.path.exists(tmp_path / "part")


@pytest.mark.anyio
@pytest.mark.once
async def test_watch_tells_why_a_file_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PERIOD", 0.02)
    file, aside = tmp_path / "lab.toml", tmp_path / "aside"
    file.write_text("[workers.a]\n")
    send, receive = anyio.create_memory_object_stream[str]()
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        watched = watching.Watched(str(file), lambda: nsorch.Topology.load(file), watching.state_of(str(file)))
        deployment = await sup.deploy(nsorch.Topology.load(file))
        tasks.start_soon(watching.watch, deployment, watched, anyio.lowlevel.checkpoint, send.send)

        async def told(text: str) -> None:
            with anyio.fail_after(10):
                assert await receive.receive() == f"{file}: {text}"
            assert set(sup.workers) == {"a"}

        file.rename(aside)
        await told("can't be read: No such file or directory")
        file.mkdir()
        await told("can't be read: Is a directory")
        file.rmdir()
        aside.rename(file)
        await told("nothing is different")
        if os.geteuid() != 0:
            file.chmod(0)
            await told("can't be read: Permission denied")
            file.chmod(0o600)
            await told("nothing is different")
        file.write_text("")
        await told("is empty")
        file.write_text("[workers.b]\n")
        with anyio.fail_after(10):
            assert [await receive.receive() for _ in range(2)] == ["remove worker a", "add worker b"]
        tasks.cancel_scope.cancel()
    send.close()
    receive.close()


@pytest.mark.anyio
async def test_what_was_removed_meanwhile_comes_again() -> None:
    topology = nsorch.Topology("lab")
    topology.bridge("lan", "10.0.0.0/24", gateway="r")
    for name in ("r", "a", "b"):
        topology.worker(name, links=["lan"])
    for _ in range(2):
        topology.link("a", "b")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        await sup.workers["r"].remove()
        await sup.links["a:eth1-b:eth1"].remove()
        await sup.workers["b"].run(["ip", "link", "delete", "eth0"])
        await sup.wait_event(nsorch.LinkRemoved, since=0, predicate=lambda event: event.by == "kernel")
        found = await deployment.apply(topology, dry_run=True)
        assert [str(change) for change in found.changes] == [
            "add worker r",
            "add link r-lan",
            "add link b-lan",
            "add link a-b",
        ]
        assert "r" not in deployment.workers
        assert await deployment.apply(topology) == found
        assert not await deployment.apply(topology)
        assert len(sup.links) == 5
        assert (await sup.ping_all()).ok
        await deployment.remove()
        assert not sup.workers
        await deployment.apply(topology)
        assert (await sup.ping_all()).ok
        worker = sup.workers["a"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.remove)
            while worker._leaving is None:
                await anyio.lowlevel.checkpoint()
            await deployment.apply(topology)  # waits for that
        assert sup.workers["a"] is not worker
        assert (await sup.ping_all()).ok


@pytest.mark.anyio
async def test_a_link_that_was_moved_to_what_is_removed_comes_again() -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(office())
        await sup.links["pc:eth0-lan"].set(bridge="far")
        without = office()
        without.remove("far")
        done = await deployment.apply(without)
        assert told(done) == {"remove bridge far", "remove link r-far", "add link pc-lan"}
        assert "pc:eth0-lan" in sup.links
        assert (await sup.ping_all([("pc", "web")])).ok
        assert not await deployment.apply(without)


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["worker", "bridge"])
async def test_what_somebody_removes_while_it_is_applied_comes_again(what: str) -> None:
    def lab(*more: str) -> Topology:
        topology = Topology("lab")
        topology.bridge("lan", "10.0.0.0/24")
        for name in ("a", "b", *more):
            topology.worker(name, links=["lan"])
        for name in more:
            topology.link(name, "a")
        return topology

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab())
        removed = sup.workers["a"] if what == "worker" else sup.bridges["lan"]

        async def interfere() -> None:
            await sup.wait_event(nsorch.WorkerRequested, worker="x", since=0)
            await removed.remove()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(interfere)
            found = await deployment.apply(lab("x", "y"))
        assert {f"add {what} {removed.name}", "add worker x", "add link x-a"} <= told(found)
        assert not await deployment.apply(lab("x", "y"))
        assert (await sup.ping_all()).ok


async def mtus(sup: nsorch.Supervisor) -> dict[str, list[int]]:
    """Of each link's ends in workers, as the kernel has them and as the record says."""
    found = {}
    for link in sup.links.values():
        both = []
        for end in link.interfaces:
            worker = next(w for w in sup.workers.values() if w.interfaces.get(end.name) == end)
            there = (await worker.run(["cat", "/proc/net/dev"])).stdout
            assert end.name.encode() in there
            sock = await worker.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                answer = fcntl.ioctl(sock, 0x8921, struct.pack("16si", end.name.encode(), 0))  # SIOCGIFMTU
            both += [struct.unpack("16xi", answer)[0], end.mtu]
        found[link.name] = both
    return found


@pytest.mark.anyio
async def test_the_mtu_of_a_link_follows_that_of_its_ends_and_its_bridge() -> None:
    def lab(first: int | None, second: int | None) -> Topology:
        topology = Topology()
        topology.bridge("lan", "10.0.0.0/24", mtu=9000)
        topology.worker("a")
        topology.worker("b")
        topology.link(nsorch.End("a", mtu=1300), "b", mtu=first)
        topology.link("a", "lan", mtu=second)
        return topology

    async with nsorch.Supervisor() as sup, nsorch.Supervisor() as other:
        deployment = await sup.deploy(lab(1400, 1400))
        link = sup.links["a:eth0-b:eth0"]
        await deployment.apply(lab(1450, None))
        assert sup.links["a:eth0-b:eth0"] is link
        await other.deploy(lab(1450, None))
        expected = {"a:eth0-b:eth0": [1300, 1300, 1450, 1450], "a:eth1-lan": [9000, 9000]}
        assert await mtus(sup) == await mtus(other) == expected
        await deployment.apply(lab(None, 1400))
        assert await mtus(sup) == {"a:eth0-b:eth0": [1300, 1300, 1500, None], "a:eth1-lan": [1400, 1400]}
        with pytest.raises(TopologyError, match="a bridge has no address"):
            await sup.link("a", nsorch.End("lan", address="10.0.0.9"))
        with pytest.raises(TopologyError, match=r"links.a-lan.lan.name: .* none to be given"):
            await sup.link("a", "lan:eth0")
        port = (await sup.link("a", nsorch.End("lan", mtu=1350)))._sides[1]
        state = await sup._wiring.kernel.in_thread(
            lambda: parse_link(sup._wiring.kernel.engine.fabric.ask(Request(get_link(port.index), "look at", "it")))
        )
        assert port.mtu == state.mtu == 1350


def hosting(hostname: str, command: str = "600", *, pid: bool = False) -> Topology:
    topology = Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("host", ["sleep", command], links=["lan"], hostname=hostname)
    topology.worker("guest", namespaces={"net": "worker:host"})
    more = {"pid": "worker:host"} if pid else {}
    topology.worker("of-guest", SLEEP, namespaces={"net": "worker:guest", **more})
    topology.worker("alone", SLEEP)
    return topology


@pytest.mark.anyio
async def test_who_has_joined_namespaces_follows_them() -> None:
    async def seen() -> set[bytes]:
        names = ("host", "guest", "of-guest")
        return {(await sup.workers[name].run(["readlink", "/proc/self/ns/net"])).stdout for name in names}

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(hosting("one", pid=True))
        found = await deployment.apply(hosting("one", "601", pid=True))
        assert told(found) == {"restart worker host (command)", "replace worker of-guest (namespaces)"}
        await sup.workers["host"].restart()
        await sup.workers["of-guest"].restart()  # it joins the process that there is now
        inside = {w.name: os.stat(f"/proc/{w.pid}/ns/pid").st_ino for w in sup.workers.values() if w.pid}
        assert inside["of-guest"] == inside["host"] != inside["alone"]
        await deployment.remove()
        deployment = await sup.deploy(hosting("one"))
        pid = sup.workers["alone"].pid
        found = await deployment.apply(hosting("two"))
        assert set(found.of("worker", "replace")) == {"host", "guest", "of-guest"}
        assert len(await seen()) == 1
        assert told(await deployment.apply(hosting("two", "601"))) == {"restart worker host (command)"}
        # One that was removed comes again, and those that had joined it join it anew.
        await sup.workers["host"].remove()
        await deployment.apply(hosting("two", "601"))
        assert len(await seen()) == 1
        assert not await deployment.apply(hosting("two", "601"))
        assert sup.workers["alone"].pid == pid


@pytest.mark.anyio
async def test_bridges_that_are_linked_or_are_not_any_more() -> None:
    def lab(*, linked: bool, mtu: int | None = None, gateway: str | None = None) -> Topology:
        topology = Topology()
        topology.bridge("near", "10.0.0.0/24", mtu=mtu, gateway=gateway)
        topology.bridge("far")
        topology.worker("a", links=["near"])
        topology.worker("b", links=["far"])
        if linked:
            topology.link("near", "far")
        return topology

    async def routes(name: str) -> bytes:
        return (await sup.workers[name].run("ip route show default")).stdout

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab(linked=False))
        near = sup.links["a:eth0-near"]
        assert sup.workers["b"].addresses == ()
        found = await deployment.apply(lab(linked=True))
        assert told(found) == {"replace bridge far (subnet)", "replace link b-far", "add link near-far"}
        assert (await sup.ping_all([("a", "b"), ("b", "a")])).ok
        await deployment.apply(lab(linked=True, gateway="a"))
        assert (await routes("b")).startswith(b"default via 10.0.0.1 dev eth0")
        found = await deployment.apply(lab(linked=True, gateway="a", mtu=1300))
        assert found.of("bridge", "replace") == ["near"]
        assert (await routes("b")).startswith(b"default via 10.0.0.1 dev eth0")
        await deployment.apply(lab(linked=True))
        assert await routes("b") == b""
        await deployment.apply(lab(linked=True, mtu=1400))
        assert (await sup.ping_all([("a", "b"), ("b", "a")])).ok
        near = sup.links["a:eth0-near"]
        await deployment.apply(lab(linked=False, mtu=1400))
        assert sup.workers["b"].addresses == ()
        assert sup.bridges["far"].subnets == ()
        assert sup.links["a:eth0-near"] is near


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_left_of_what_asyncio_cancels_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    obtain = Wiring.obtain

    async def be_cancelled(self: Wiring, links: Sequence[nsorch.Link]) -> None:
        await obtain(self, links)
        deploying.cancel()

    monkeypatch.setattr(Wiring, "obtain", be_cancelled)
    monkeypatch.setattr(turns, "_TURN", -1.0)
    async with nsorch.Supervisor() as sup:
        deploying = asyncio.create_task(sup.deploy(office()))
        with pytest.raises(asyncio.CancelledError):
            await deploying
        assert not sup.workers
        assert not sup.bridges


async def cancelled_at(sup: nsorch.Supervisor, count: int, change: Callable[[], Awaitable[object]]) -> bool:
    """Whether so many events came before *change* was done."""
    async with sup.events() as events:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    for _ in range(count):
                        await events.receive()
                    scope.cancel()

                tasks.start_soon(watch)
                await change()
                tasks.cancel_scope.cancel()
    return scope.cancelled_caught


@pytest.mark.anyio
async def test_what_a_failed_change_left_undone_is_done_by_the_next() -> None:
    def lab(command: str, mtu: int, *routes: Route, first: str = "600") -> Topology:
        topology = Topology()
        topology.bridge("lan", "10.0.0.0/24")
        topology.worker("a", ["sleep", first], links=["lan"])
        topology.worker("b", [command, "600"], links=["lan"], routes=routes)
        topology.worker("c", ["sleep", first], links=["lan"])
        topology.link("a", "b", mtu=mtu)
        return topology

    async def pids() -> list[int | None]:
        return [sup.workers[name].pid for name in "abc"]

    way = Route("172.16.0.0/16", via="10.0.0.9")
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab("sleep", 1400))
        wrong = lab("no-such-command", 1300, way, first="601")
        with pytest.raises(nsorch.CommandNotFoundError):
            await deployment.apply(wrong)
        assert told(await deployment.apply(wrong, dry_run=True)) >= {"restart worker b (command, routes)"}
        right = lab("sleep", 1300, way, first="601")
        assert "restart worker b (command, routes)" in told(await deployment.apply(right))
        assert all(worker.state is nsorch.State.RUNNING for worker in sup.workers.values())
        assert [sup.workers[name].spec.command for name in "ac"] == [("sleep", "601")] * 2
        before = await pids()
        assert not await deployment.apply(right)

        # Cancelled at its first event, at its second, and so on.
        labs = itertools.cycle((lab("sleep", 1400), right))
        for count in itertools.count(1):
            aim, back = next(labs), next(labs)
            if not await cancelled_at(sup, count, partial(deployment.apply, aim)):
                break
            left = await deployment.apply(back, dry_run=True)
            assert left == await deployment.apply(back)
            assert [i.mtu for i in sup.links["a:eth1-b:eth1"].interfaces] == [1300, 1300]
            routes = (await sup.workers["b"].run("ip route show proto static")).stdout
            assert routes == b"172.16.0.0/16 via 10.0.0.9 dev eth0 \n"
            assert [w.spec.command for w in sup.workers.values()] == [w.command for w in back.workers.values()]
            for worker in sup.workers.values():
                while not (arguments := pathlib.Path(f"/proc/{worker.pid}/cmdline").read_bytes()):
                    await anyio.lowlevel.checkpoint()  # an exec is confirmed before the kernel has its arguments there
                assert arguments.split(b"\0")[:-1] == list(map(str.encode, worker.spec.command or ()))
        assert count > 3
        assert before != await pids()
