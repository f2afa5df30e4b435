"""Changes of one lab by many tasks at a time."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import signal
import socket

import anyio
import pytest

import nsorch
from nsorch import AddressError, ClosedError, TopologyError
from nsorch.supervisor import turns

pytestmark = pytest.mark.anyio

BRIDGES = ("s0", "s1", "s2")


class Lab:
    """Random changes; those of somebody else's may have been faster."""

    def __init__(self, sup: nsorch.Supervisor, seed: int) -> None:
        self.sup = sup
        self.choose = random.Random(seed)
        self.count = 0

    async def start(self) -> None:
        self.count += 1
        await self.sup.start(f"w{self.count}", links=[self.choose.choice(BRIDGES)], namespaces=["net"])

    async def change(self) -> None:
        sup, choose = self.sup, self.choose
        what = choose.choice(
            ("start", "start", "remove", "link", "unlink", "move", "mac", "address", "down", "mtu", "by")
        )
        if what == "start" or not sup.links:
            await self.start()
            return
        link = choose.choice(list(sup.links.values()))
        name, _, interface = link.ends[0].partition(":")
        mac = bytes((2, *(choose.randrange(256) for _ in range(5)))).hex(":")
        if what == "remove":
            await sup.workers[name].remove()
        elif what == "link":
            await sup.link(name, choose.choice(BRIDGES))
        elif what == "unlink":
            await link.remove()
        elif what == "move":
            await link.set(bridge=choose.choice(BRIDGES))
        elif what == "mac":
            await link.set(mac=mac)
        elif what == "address":
            await link.set(address=str(sup.bridges[link.ends[1]].subnets[0][choose.randrange(100, 200)]))
        elif what == "down":
            await link.down()
            await link.up()
        elif what == "mtu":
            await link.set(mtu=choose.choice((1400, 1500, 2000)))
        else:
            by = choose.choice((f"address {mac}", "mtu 1300", "down"))
            await sup.workers[name].run(["ip", "link", "set", interface, *by.split()], check=False)


@pytest.mark.parametrize("arp", ["static", "dynamic"])
@pytest.mark.long
async def test_many_changes_at_a_time(arp: str) -> None:
    async with nsorch.Supervisor() as sup:
        lab = Lab(sup, 7)
        for number, name in enumerate(BRIDGES):
            await sup.bridge(name, (f"10.{number}.0.0/24", f"fd0{number}::/64"), arp=arp)
        for _ in range(10):
            await lab.start()

        async def change() -> None:
            for _ in range(12):
                # Somebody else has removed it, or has the address.
                with contextlib.suppress(ClosedError, TopologyError, AddressError, KeyError):
                    await lab.change()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(change)
        for link in list(sup.links.values()):
            await link.up()  # what was set down by others
        on: dict[str, list[str]] = collections.defaultdict(list)
        for link in sup.links.values():
            on[link.ends[1]].append(link.ends[0].partition(":")[0])
        pairs = [(a, b) for names in on.values() for a in names for b in names if a != b]
        assert pairs
        for version in (4, 6):
            reached = await sup.ping_all(pairs, version=version)
            assert not reached.failed
        for bridge in sup.bridges.values():
            assert len(bridge._ends) == len(on[bridge.name])
        for worker in list(sup.workers.values()):
            await worker.remove()
        assert not sup.links
        assert all(not bridge._ends and not bridge._segment._owners for bridge in sup.bridges.values())
        assert not sup._wiring.watcher._ends


async def test_linked_and_removed_while_it_starts() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        await sup.start("a", links=["lan"])
        async with sup.events() as events, anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(lambda name=f"w{number}": sup.start(name, ["sleep", "600"], links=["lan"]))  # type: ignore[misc]
            while not isinstance(event := await events.receive(), nsorch.WorkerRequested):
                pass
            name = str(event.worker)
            assert sup.workers[name].state is nsorch.State.STARTING
            link = await sup.link("a", name)  # waits for it
            assert link.is_up
        assert (await sup.ping_all()).ok
        async with sup.events() as events, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sup.start("x", ["sleep", "600"], links=["lan"]))
            while not isinstance(await events.receive(), nsorch.WorkerRequested):
                pass
            (planned,) = [link for link in sup.links.values() if link.ends[0].startswith("x:")]
            with pytest.raises(ClosedError, match="isn't made yet"):
                await planned.remove()
            await sup.workers["x"].remove()
            assert "x" not in sup.workers


async def test_links_of_one_worker_that_come_together_bring_all_their_routes() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", ("10.0.0.0/24", "fd00::/64"), gateway="gate")
        await sup.bridge("dmz", "10.1.0.0/24")
        worker = await sup.start("w", links=["dmz"], routes=[nsorch.Route("192.0.2.0/24", via="10.1.0.9")])
        await sup.start("other")
        await sup.links["w:eth0-dmz"].remove()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sup.link, "w", "lan")
            tasks.start_soon(sup.link, "w", "dmz")
            tasks.start_soon(lambda: sup.link("other", "w", subnet="10.2.0.0/30"))
        there = (await worker.run("ip route; ip -6 route")).stdout.decode().split()
        assert there.count("default") == 2
        assert "192.0.2.0/24" in there


async def test_removed_twice_and_the_name_is_taken_again() -> None:
    """Who removes a worker that somebody has removed, or removes, leaves the next of its name alone."""
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        worker = await sup.start("a", ["sleep", "600"], links=["lan"])
        for _ in range(5):
            async with anyio.create_task_group() as tasks, sup.events(kinds=["WorkerRemoved"]) as removed:
                for _ in range(3):
                    tasks.start_soon(worker.remove)
                await removed.receive()
                following = await sup.start("a", ["sleep", "600"], links=["lan"])
            await worker.remove()
            worker = following
            assert sup.workers["a"] is worker
            assert worker.state is nsorch.State.RUNNING
            assert list(sup.links) == ["a:eth0-lan"]
            await worker.run(["true"])


async def test_linked_workers_are_removed_by_two() -> None:
    async with nsorch.Supervisor() as sup:
        for number in range(40):
            pair = [await sup.start("a"), await sup.start("b")]
            await sup.link("a", "b")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pair[number % 2].remove)
                await anyio.sleep(number / 20_000)
                tasks.start_soon(pair[1 - number % 2].remove)
            assert not sup.workers
            assert not sup.links


@pytest.mark.parametrize("change", ["move", "link"])
async def test_the_default_route_is_the_last_change_s(change: str) -> None:
    """Two change which of its links is the first to a gateway."""
    async with nsorch.Supervisor() as sup:
        await sup.bridge("one", ("10.1.0.0/24", "fd01::/64"), gateway="of-one")
        await sup.bridge("two", ("10.2.0.0/24", "fd02::/64"), gateway="of-two")
        await sup.bridge("three", "10.3.0.0/24")
        for _ in range(10):
            worker = await sup.start("w", links=["one", "two"] if change == "move" else ["one"])
            remove = sup.links["w:eth0-one"].remove
            async with anyio.create_task_group() as tasks:
                if change == "move":
                    tasks.start_soon(lambda: sup.links["w:eth1-two"].set(bridge="three"))
                    tasks.start_soon(remove)
                else:
                    tasks.start_soon(remove)
                    tasks.start_soon(sup.link, "w", "two")
            routes = (await worker.run("ip route show default; ip -6 route show default")).stdout.decode()
            gateways = [line.split()[2] for line in routes.splitlines()]
            assert gateways == ([] if change == "move" else ["10.2.0.1", "fd02::1"])
            await worker.remove()


async def test_linked_is_who_has_the_name_when_the_link_is_made(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        os.mkfifo(tmp_path / name)  # a start waits for somebody to read it
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:

        async def start(name: str) -> None:
            await sup.start(name, ["sleep", "600"], stdout=tmp_path / name)

        async def link_what_was_removed(worker: nsorch.Worker) -> None:
            with pytest.raises(ClosedError, match='another worker "a"'):
                await sup.link(worker, "b")

        before = await sup.start("a")
        tasks.start_soon(start, "b")
        await sup.wait_event("WorkerRequested", worker="b", since=0)
        tasks.start_soon(sup.link, "a", "b")
        tasks.start_soon(link_what_was_removed, before)
        await anyio.wait_all_tasks_blocked()
        await before.remove()
        tasks.start_soon(start, "a")
        await sup.wait_event("WorkerRequested", worker="a", since=sup.snapshot().seq)
        for name in ("b", "a"):
            os.close(os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK))
            await sup.wait_event("WorkerStarted", worker=name, since=0)
    assert not tasks.cancel_scope.cancel_called


async def test_removed_while_it_is_linked() -> None:
    """Until the kernel has done its part nobody else gets the numbers of its descriptors."""
    async with nsorch.Supervisor() as sup:
        for links in ([], [await sup.bridge("lan", "10.0.0.0/24")]):
            worker = await sup.start("a", links=links)
            inode = worker.namespaces["net"]
            async with sup._wiring.kernel.handles([worker]) as handles:
                (handle,) = handles.values()
                await worker.remove()
                assert not worker.namespaces
                assert os.fstat(handle.fd).st_ino == inode
                assert handle.sock.getsockname()


async def test_removed_while_its_sockets_are_asked_for() -> None:
    """Requests that still wait for the helper, too."""
    async with nsorch.Supervisor() as sup:
        started = await sup.wait_event(nsorch.SupervisorStarted, since=0)
        with open(f"/proc/{started.pid}/task/{started.pid}/children") as file:
            spawner = int(file.read())
        worker = await sup.start("a")

        async def open_one() -> None:
            with contextlib.suppress(ClosedError):
                (await worker.open_socket(socket.AF_INET, socket.SOCK_DGRAM)).close()

        os.kill(spawner, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            for _ in range(500):
                tasks.start_soon(open_one)
            await anyio.wait_all_tasks_blocked()
            await worker.remove()
            os.kill(spawner, signal.SIGCONT)
        async with anyio.create_task_group() as tasks:  # nor do those that are given up matter
            worker = await sup.start("a")
            os.kill(spawner, signal.SIGSTOP)
            for _ in range(500):
                tasks.start_soon(open_one)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await worker.remove()
        os.kill(spawner, signal.SIGCONT)
        await sup.start("a", ["true"])


async def test_its_link_is_removed_by_another_and_the_name_is_taken_again() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        worker = await sup.start("a", links=["lan"])
        link = sup.links["a:eth0-lan"]

        async def again() -> None:
            await worker.remove()
            await sup.start("a", links=["lan"])

        async with anyio.create_task_group() as tasks:
            async with sup._wiring.watcher.own(link):  # which the removal waits for
                tasks.start_soon(link.remove)
                while not link._leaving:
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(again)
                with anyio.move_on_after(0.3):
                    await sup.wait_event("WorkerRemoved")
        assert link._state == "removed"
        assert sup.links["a:eth0-lan"].is_up
        (address,) = sup.workers["a"].addresses
        assert not sup.bridges["lan"]._segment.is_free(address.ip)


async def test_removed_before_the_start_has_found_out_why_it_ended() -> None:
    async def come() -> None:
        with pytest.raises(nsorch.WorkerExitedError, match="before it was ready"):
            await sup.start("w", ["sleep", "60"], ready=nsorch.exec_ready(["sleep", "60"]))

    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        tasks.start_soon(come)
        started = await sup.wait_event(nsorch.WorkerStarted, worker="w")
        worker = sup.workers["w"]
        with open(f"/proc/{started.pid}/fd/2", "wb"):  # the start waits for the end of the standard error
            with anyio.fail_after(5):
                await worker.remove()
                await sup.wait_event(nsorch.WorkerSetupFailed, worker="w", since=0)
        assert worker.state is nsorch.State.REMOVED


@pytest.mark.parametrize("how", ["remove", "start"])
async def test_a_worker_goes_while_the_one_does_whose_network_it_has(how: str) -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        for _ in range(3):
            owner = await sup.start("owner", namespaces=["net"])

            async def come() -> None:
                spec = {"links": [lan], "namespaces": {"net": "worker:owner", "pid": True}, "init": False}
                ready = nsorch.exec_ready(["false"]) if how == "start" else None
                await sup.start("guest", ["sleep", "60"], ready=ready, **spec)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(come)
                await sup.wait_event(nsorch.WorkerStarted, worker="guest")
                if how == "remove":
                    tasks.start_soon(sup.workers["guest"].remove)
                else:
                    tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    while "guest" in sup.workers and not sup.workers["guest"]._leaving:
                        await anyio.lowlevel.checkpoint()
                    await owner.remove()
            assert not sup.workers
            assert not sup.links


async def _names_there(worker: nsorch.Worker) -> set[str]:
    done = await worker.run(["cat", "/proc/net/dev"])
    return {line.partition(":")[0].strip() for line in done.stdout.decode().splitlines()[2:]} - {"lo"}


async def test_another_gets_the_name_of_one_by_which_a_network_was_joined() -> None:
    """Who shares a network namespace is linked there, whatever becomes of the worker that it named."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        await sup.start("owner", links=[lan])
        between = await sup.start("between", namespaces={"net": "worker:owner"})
        guest = await sup.start("guest", links=[lan], namespaces={"net": "worker:between"})
        await between.remove()
        await sup.link(guest, lan)
        other = await sup.start("between", links=[lan])
        await sup.link(guest, lan)
        assert set(guest.interfaces) == {"eth1", "eth2", "eth3"}
        assert await _names_there(guest) == {"eth0", "eth1", "eth2", "eth3"}
        assert await _names_there(other) == {"eth0"}


async def test_another_gets_the_name_of_one_whose_network_is_about_to_be_joined() -> None:
    """Nothing is linked in the network of another than is joined."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        specs = [nsorch.WorkerSpec(name=f"w{number}", links=[lan]) for number in range(60)]
        joins = {"net": "worker:owner", "uts": "worker:w59"}  # it comes after the others
        specs.append(nsorch.WorkerSpec(name="guest", namespaces=joins, links=[lan]))

        async def come() -> None:
            with pytest.raises(ExceptionGroup) as caught:
                await sup.start_all(specs)
            assert [str(error) for error in caught.value.exceptions] == [
                'guest: workers.guest.namespaces.net: the worker "owner" was removed meanwhile'
            ]

        owner = await sup.start("owner", links=[lan])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come)
            await sup.wait_event(nsorch.WorkerRequested, worker="guest")
            await owner.remove()
            owner = await sup.start("owner", links=[lan])
        assert await _names_there(owner) == {"eth0"}
        assert list(sup.links) == ["owner:eth0-lan"]


@pytest.mark.long
async def test_a_bridge_that_is_removed_while_workers_come() -> None:
    async with nsorch.Supervisor() as sup:
        for _ in range(10):
            lan = await sup.bridge("lan", "10.0.0.0/24")
            async with sup.events() as events:

                async def come(first_link: anyio.CancelScope) -> None:
                    specs = [nsorch.WorkerSpec(name=f"w{number}", links=["lan"]) for number in range(60)]
                    try:
                        await sup.start_all(specs)
                    except* (ClosedError, TopologyError, nsorch.NetlinkError):
                        first_link.cancel()  # no carrier in time, maybe: the machine is busy

                with anyio.fail_after(60):
                    async with anyio.create_task_group() as tasks:
                        with anyio.CancelScope() as first_link:
                            tasks.start_soon(come, first_link)
                            while not isinstance(await events.receive(), nsorch.LinkCreated):
                                pass
                        await lan.remove()
                for worker in list(sup.workers.values()):
                    await worker.remove()
                assert not sup.links
                assert not sup.bridges


async def test_a_bridge_that_is_removed_at_any_moment_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails, or all are linked: none waits for a link that is gone, or goes without."""
    monkeypatch.setattr(turns, "_TURN", 0.0)  # every step is a moment
    names = [f"w{number}" for number in range(4)]
    failed = 0

    async def come(number: int) -> None:
        nonlocal failed
        begin = sup.snapshot().seq
        try:
            await sup.start_all([nsorch.WorkerSpec(name=f"{name}-{number}", links=["lan"]) for name in names])
        except* (ClosedError, TopologyError, nsorch.NetlinkError):
            failed += 1
        else:
            async with sup.events(kinds=nsorch.LinkCreated, since=begin) as events:
                for _ in names:
                    events.receive_nowait()  # it is there

    async with nsorch.Supervisor() as sup:
        for number in range(40):
            lan = await sup.bridge("lan", "10.0.0.0/24")
            with anyio.fail_after(30):
                async with sup.events(kinds=nsorch.WorkerRequested) as events, anyio.create_task_group() as tasks:
                    tasks.start_soon(come, number)
                    for _ in names:
                        await events.receive()
                    for _ in range(number):
                        await anyio.lowlevel.checkpoint()
                    await lan.remove()
            for worker in list(sup.workers.values()):
                await worker.remove()
    assert failed
