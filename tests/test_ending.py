"""Whatever a program has under way when a lab ends: nothing hangs, each call says why, and the events are whole."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import nsorch
from nsorch.core.helper import Helper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio


def calls(sup: nsorch.Supervisor) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Which take their time."""
    of = sup.workers
    many = [nsorch.WorkerSpec(name=f"many{n}", command=["sleep", "600"]) for n in range(200)]
    return {
        "run": lambda: of["w0"].run(["sleep", "600"]),
        "run in passive": lambda: of["p"].run(["sleep", "600"]),
        "wait": lambda: of["w1"].wait(),
        "stop": lambda: of["w2"].stop(grace=60),
        "restart": lambda: of["w3"].restart(grace=60),
        "wait for all": sup.wait,
        "start": lambda: sup.start("tcp", ["sleep", "600"], ready=nsorch.tcp_ready(80)),
        "start with exec": lambda: sup.start("exec", ["sleep", "600"], ready=nsorch.exec_ready(["sleep", "600"])),
        "start_all": lambda: sup.start_all(many),
        "deploy": lambda: sup.deploy(nsorch.Topology.ring(60)),
        "ping": lambda: sup.ping_all([("w0", "w1")] * 1000, timeout=60),
        "wait_event": lambda: sup.wait_event(nsorch.WorkerExited, worker="w4"),
    }


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def spawner_of(stub: int) -> int:
    with open(f"/proc/{stub}/task/{stub}/children") as file:
        return int(file.read().split()[0])


@pytest.mark.parametrize("how", ["spawner", "stub", "stop", "leave", "exception"])
async def test_calls_under_way(how: str) -> None:
    error = nsorch.SpawnerDiedError if how in ("spawner", "stub") else nsorch.ClosedError
    outcomes: dict[str, object] = {}
    seen: list[nsorch.Event] = []
    sup = nsorch.Supervisor(grace=0.1)

    async def attempt(name: str, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            outcomes[name] = await call()
        except (Exception, ExceptionGroup) as exc:
            outcomes[name] = exc

    async def listen(events: Any) -> None:
        async for event in events:
            seen.append(event)

    expected = contextlib.nullcontext() if how in ("stop", "leave") else pytest.raises((error, ZeroDivisionError))
    with anyio.fail_after(20):
        async with sup.events(since=0, buffer=1 << 20) as events, anyio.create_task_group() as tasks:
            tasks.start_soon(listen, events)
            with expected:
                async with sup:
                    lan = await sup.bridge("lan", "10.0.0.0/8")
                    # PID 1 hears no SIGTERM that it has no handler for.
                    specs = [
                        nsorch.WorkerSpec(name=f"w{n}", command=["sleep", "600"], links=[lan], init=False)
                        for n in range(5)
                    ]
                    await sup.start_all(specs)
                    passive = await sup.start("p", links=[lan])
                    link = await sup.link("w0", "p")
                    under_way = calls(sup)
                    for name, call in under_way.items():
                        tasks.start_soon(attempt, name, call)
                    await sup.wait_event(nsorch.LinkCreated, predicate=lambda event: event.link.startswith("n"))
                    stub = sup._facts.pid
                    if how in ("spawner", "stub"):
                        kill(stub if how == "stub" else spawner_of(stub))
                        await anyio.sleep_forever()
                    elif how == "stop":
                        await sup.stop()
                    elif how == "exception":
                        raise ZeroDivisionError

    assert outcomes.keys() == under_way.keys()
    killed = outcomes.pop("wait"), outcomes.pop("stop")
    assert all(isinstance(ended, nsorch.Exit) and ended.signal == signal.SIGKILL for ended in killed)
    assert isinstance(outcomes.pop("wait_event"), nsorch.WorkerExited)
    assert outcomes.pop("wait for all") is None
    outcomes.pop("ping")  # it may have been faster
    assert isinstance(outcomes.pop("deploy"), error | nsorch.Deployment)  # as these
    assert isinstance(outcomes.pop("start_all"), error | list)
    for name in ("run", "run in passive"):
        outcome = outcomes.pop(name)
        if how in ("spawner", "stub"):
            assert isinstance(outcome, error), (name, outcome)
    assert {name: type(outcome) for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, error)

    for later in (passive.remove, link.remove, lan.remove, sup.stop, sup.wait):
        await later()
    for call in (passive.run, sup.start, sup.bridge):
        with pytest.raises(error):
            await call("x")  # type: ignore[operator]

    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].kind == "SupervisorStopped"
    count = collections.Counter((type(event), event.worker, event.incarnation) for event in seen)
    spawned = {key[1:] for key in count if key[0] is nsorch.WorkerSpawned}
    assert {key[1:]: n for key, n in count.items() if key[0] is nsorch.WorkerExited} == dict.fromkeys(spawned, 1)
    asked = {key[1] for key in count if key[0] is nsorch.WorkerRequested}
    assert {key[1]: n for key, n in count.items() if key[0] is nsorch.WorkerRemoved} == dict.fromkeys(asked, 1)
    assert len(json.dumps([event.to_dict() for event in seen])) > 0


async def test_a_cancelled_entry_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for delay in (0, 0.001, 0.01, 0.02, 0.03, 0.04):
        with anyio.move_on_after(delay):
            async with nsorch.Supervisor():
                await anyio.sleep(delay)
    assert capfd.readouterr().err == ""


async def test_a_block_that_ends_while_its_first_link_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []
    second = anyio.Event()

    async def open_late(helper: Helper, *arguments: int) -> socket.socket:
        """The second, for the watcher of links, comes when all is over."""
        opened.append(await open_socket(helper, *arguments))
        if len(opened) == 2:
            second.set()
            while helper._launched is not None:
                await anyio.sleep(0.001)
        return opened[-1]

    open_socket = Helper.open_socket
    monkeypatch.setattr(Helper, "open_socket", open_late)
    sup = nsorch.Supervisor(grace=0.1)

    async def start() -> None:
        with pytest.raises(nsorch.ClosedError, match="the supervisor has ended"):
            await sup.start("w", links=["lan"])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with sup:
                await sup.bridge("lan", subnet="10.0.0.0/24")
                tasks.start_soon(start)
                await second.wait()
    assert [sock.fileno() for sock in opened] == [-1, -1]


async def test_a_ping_that_nobody_answers_ends_with_the_block() -> None:
    sup = nsorch.Supervisor(grace=0.1)

    async def ping() -> None:
        with pytest.raises(nsorch.ClosedError, match="the supervisor has ended"):
            await sup.ping_all([("a", "b")], timeout=60, progress=lambda _: None)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with sup:
                for name in "ab":
                    await sup.start(name)
                link = await sup.link("a", "b")
                await sup.partition(["a"], ["b"])
                tasks.start_soon(ping)
                async with link.capture(direction="out") as packets:
                    await packets.receive()  # the first is under way


async def test_readings_end_with_the_block() -> None:
    sup = nsorch.Supervisor(grace=0.1)
    begun = anyio.Event()

    async def read(worker: nsorch.Worker) -> None:
        with contextlib.suppress(nsorch.UnsupportedError):  # where there is no cgroup
            async for _ in worker.watch_stats(60):
                begun.set()
        begun.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, sup:
            tasks.start_soon(read, await sup.start("w", ["sleep", "600"]))
            await begun.wait()


@pytest.mark.parametrize("how", ["leave", "remove"])
@pytest.mark.parametrize("call", ["flap", "follow"])
async def test_what_a_link_does_over_time_ends_with_it(call: str, how: str) -> None:
    sup = nsorch.Supervisor(grace=0.1)
    begun = anyio.Event()

    async def take_time(link: nsorch.Link) -> None:
        begun.set()
        with pytest.raises(nsorch.ClosedError, match="removed" if how == "remove" else "the supervisor has ended"):
            await (link.flap(down=60) if call == "flap" else link.follow([(0, {}), (60, {})]))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with sup:
                await sup.start("a")
                await sup.start("b")
                link = await sup.link("a", "b")
                tasks.start_soon(take_time, link)
                await begun.wait()
                if call == "flap":
                    await sup.wait_event(nsorch.LinkDown, since=0)
                if how == "remove":
                    await link.remove()


@pytest.mark.parametrize("main", [True, False], ids=["main", "run"])
@pytest.mark.parametrize("fields", [{}, {"isolation": "sandbox"}, {"namespaces": ["net"]}], ids=str)
async def test_who_stops_the_process_that_is_to_kill_it(fields: dict[str, Any], main: bool) -> None:
    """A command may be of the same user as that, and be no friend."""
    reader, writer = os.pipe()
    line = "read go; (setsid sleep 600 &); kill -STOP $PPID; echo stopped; sleep 600"
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": writer}
    async with nsorch.Supervisor() as sup:
        with anyio.fail_after(30):
            if main:
                worker = await sup.start("w", ["sh", "-c", line], **options, **fields)
                assert worker.stdin is not None
                await worker.stdin.send(b"\n")
                await anyio.wait_readable(reader)
                await worker.remove()
            else:
                worker = await sup.start("w", ["sleep", "600"], **fields)
                async with await worker.popen(["sh", "-c", line], **options) as process:
                    assert process.stdin is not None
                    await process.stdin.send(b"\n")
                    await anyio.wait_readable(reader)
            os.close(writer)
            assert os.read(reader, 64) == b"stopped\n"
            await anyio.wait_readable(reader)
            assert os.read(reader, 64) == b""  # nobody is left
    os.close(reader)
