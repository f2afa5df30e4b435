"""The block: how it ends, what it raises, and what the events tell of it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import anyio
import pytest
from conftest import running

import nsorch
import nsorch.core.launch
from nsorch import State

pytestmark = pytest.mark.anyio


async def collect(sup: nsorch.Supervisor) -> list[nsorch.Event]:
    async with sup.events(since=0, buffer=1 << 20) as events:
        return [event async for event in events]


def kinds(events: list[nsorch.Event], worker: str) -> list[str]:
    return [event.kind for event in events if event.worker == worker]


async def test_events_of_a_life() -> None:
    sup = nsorch.Supervisor("lab")
    async with sup:
        worker = await sup.start("w", ["sh", "-c", "exit 3"])
        await worker.wait()
        await sup.start("p")
    events = await collect(sup)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert kinds(events, "w") == [
        "WorkerRequested", "WorkerSpawned", "WorkerStarted", "WorkerReady", "WorkerExited", "WorkerRemoved",
    ]  # fmt: skip
    assert kinds(events, "p") == ["WorkerRequested", "WorkerReady", "WorkerRemoved"]
    assert events[0].kind == "SupervisorStarted"
    assert [event.kind for event in events[-4:]] == [
        "SupervisorStopping", "WorkerRemoved", "WorkerRemoved", "SupervisorStopped",
    ]  # fmt: skip
    spawned = next(event for event in events if isinstance(event, nsorch.WorkerSpawned))
    assert spawned.pid > 0
    assert set(spawned.namespaces) == {"net", "mnt", "uts", "ipc", "pid"}


async def test_orderly_end_is_in_reverse_and_has_one_deadline(marker: str) -> None:
    sup = nsorch.Supervisor(grace=0.3)
    with anyio.fail_after(5):
        async with sup:
            for number in range(8):
                # PID 1 ignores SIGTERM: all are killed, at one time.
                await sup.start(f"w{number}", ["sleep", marker], init=False)
    events = await collect(sup)
    stopping = [event.worker for event in events if isinstance(event, nsorch.WorkerStopping)]
    assert stopping == [f"w{number}" for number in reversed(range(8))]
    exits = [event.exit for event in events if isinstance(event, nsorch.WorkerExited)]
    assert [(e.signal, e.expected) for e in exits] == [(9, True)] * 8
    assert running(marker) == []


async def test_exception_leaves_as_it_is(marker: str) -> None:
    class Own(Exception):
        pass

    with pytest.raises(Own):
        async with nsorch.Supervisor(grace=60) as sup:
            await sup.start("w", ["sh", "-c", f"trap '' TERM; sleep {marker}"])
            raise Own
    assert running(marker) == []


async def test_cancellation(marker: str) -> None:
    with anyio.move_on_after(0.5) as scope:
        async with nsorch.Supervisor(grace=60) as sup:
            await sup.start("w", ["sh", "-c", f"trap '' TERM; sleep {marker}"])
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert running(marker) == []


@pytest.mark.parametrize("how", ["exception", "cancellation", "critical", "spawner"])
async def test_what_ends_with_the_block_is_expected(how: str, marker: str) -> None:
    sup = nsorch.Supervisor()
    with anyio.CancelScope() as scope, contextlib.suppress(nsorch.NsorchError, ZeroDivisionError):
        async with sup:
            worker = await sup.start("w", ["sleep", marker])
            match how:
                case "exception":
                    raise ZeroDivisionError
                case "cancellation":
                    scope.cancel()
                case "critical":
                    await sup.start("c", ["false"], critical=True)
                case "spawner":
                    os.kill(sup._facts.pid, signal.SIGKILL)
            await anyio.sleep_forever()
    exits = {event.worker: event.exit for event in await collect(sup) if isinstance(event, nsorch.WorkerExited)}
    assert exits["w"] == worker.exit
    assert (exits["w"].signal, exits["w"].expected) == (9, how != "spawner")
    assert "c" not in exits or (exits["c"].code, exits["c"].expected) == (1, False)


async def test_cancelled_in_the_middle_of_a_big_start(marker: str) -> None:
    sup = nsorch.Supervisor()
    async with sup:
        lan = await sup.bridge("lan", "10.0.0.0/16")
        for seconds in (0.0, 0.01, 0.05, 0.1):  # all of them take longer
            specs = [
                nsorch.WorkerSpec(name=f"w{n}", command=["sleep", marker], links=[lan] if n % 2 else [])
                for n in range(150)
            ]
            with anyio.move_on_after(seconds):
                await sup.start_all(specs)
                pytest.fail("not cancelled")
            assert dict(sup.workers) == {}
            assert dict(sup.links) == {}
            assert running(marker) == []
        await sup.start("w1", ["sleep", marker], links=[lan])


async def test_critical(marker: str) -> None:
    with pytest.raises(nsorch.WorkerExitedError, match="critical") as raised:
        async with nsorch.Supervisor() as sup:
            await sup.start("other", ["sleep", marker])
            await sup.start("w", ["sh", "-c", "sleep 0.05; exit 4"], critical=True)
            await anyio.sleep_forever()
    assert (raised.value.worker, raised.value.code) == ("w", 4)
    assert running(marker) == []
    async with nsorch.Supervisor() as sup:  # an expected exit is no failure
        worker = await sup.start("w", ["sleep", marker], critical=True)
        await worker.stop()


async def test_critical_before_it_is_ready(tmp_path: pathlib.Path) -> None:
    """Whoever starts or restarts it hears of it, and the block goes on."""
    up = tmp_path / "up"
    fails, ready = ["sh", "-c", "echo boom >&2; exit 4"], nsorch.exec_ready(["test", "-e", str(up)])
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.WorkerExitedError, match="boom"):
            await sup.start("w", fails, ready=ready, critical=True)
        up.touch()
        worker = await sup.start("w", ["sleep", "600"], ready=ready, critical=True)
        up.unlink()
        with pytest.raises(nsorch.WorkerExitedError, match="boom"):
            await worker.restart(fails)
        await worker.run(["true"])


async def test_critical_with_a_command_in_it() -> None:
    """The kernel kills the command first, and the block hears of it first."""
    for _ in range(5):
        with pytest.raises(nsorch.WorkerExitedError, match="critical"):
            async with nsorch.Supervisor() as sup:
                worker = await sup.start("w", ["sleep", "0.05"], critical=True)
                await worker.run(["sleep", "600"])


async def test_wait_during_a_restart() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        worker = await sup.start("w", ["sleep", "600"])
        tasks.start_soon(worker.restart, ["sh", "-c", "exit 3"])
        await sup.wait_event("WorkerExited", since=0)
        assert worker.pid is None
        await sup.wait()
        assert (worker.incarnation, worker.state) == (2, State.EXITED)


async def test_stop_of_what_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sup = nsorch.Supervisor()
    with pytest.raises(nsorch.ClosedError, match="isn't running yet"):
        await sup.stop()
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(nsorch.UnsupportedError):
        async with sup:
            pass
    with anyio.fail_after(5):
        await sup.stop()
    monkeypatch.undo()
    sup, asked = nsorch.Supervisor(), anyio.Event()

    async def ask() -> None:  # while it is being entered
        with pytest.raises(nsorch.ClosedError, match="isn't running yet"):
            await sup.stop()
        asked.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        async with sup:
            assert asked.is_set()


async def test_no_history() -> None:
    """Who comes late learns the state."""
    async with nsorch.Supervisor(history=0) as sup:
        await sup.start("w")
        async with sup.events(since=0) as events:
            gap, snapshot = await events.receive(), await events.receive()
            await sup.workers["w"].remove()
            assert (await events.receive()).kind == "WorkerRemoved"
    assert isinstance(gap, nsorch.Gap)
    assert (gap.first, gap.last) == (1, 3)
    assert isinstance(snapshot, nsorch.Snapshot)
    assert snapshot.workers["w"].state is State.IDLE


async def test_stop_ends_everything(marker: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", marker])
        await sup.stop()
        assert worker.state is State.REMOVED
        assert running(marker) == []
        for call in (sup.start("x"), sup.bridge("b"), worker.run(["true"]), sup.ping_all()):
            with pytest.raises(nsorch.ClosedError):
                await call
        await sup.stop()


async def test_used_once() -> None:
    sup = nsorch.Supervisor()
    with pytest.raises(nsorch.ClosedError, match="isn't running yet"):
        await sup.start("w")
    async with sup:
        pass
    with pytest.raises(nsorch.ClosedError, match="once"):
        async with sup:
            pass


async def test_wait() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("passive")
        for number in range(3):
            await sup.start(f"w{number}", ["sleep", "0.1"])
        await sup.wait()
        assert all(worker.pid is None for worker in sup.workers.values())
        worker = sup.workers["w0"]
        results = []

        async def waiter() -> None:
            results.append(await worker.wait())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(waiter)
        assert [r.code for r in results] == [0] * 5


async def test_start_all_undoes_the_rest(marker: str) -> None:
    async with nsorch.Supervisor() as sup:
        specs = [
            nsorch.WorkerSpec(name=f"w{n}", command=["sleep", marker] if n != 7 else ["no-such-command"])
            for n in range(20)
        ]
        with pytest.raises(ExceptionGroup) as raised:
            await sup.start_all(specs)
        assert [(type(e), e.worker) for e in raised.value.exceptions] == [(nsorch.CommandNotFoundError, "w7")]  # type: ignore[attr-defined]
        assert dict(sup.workers) == {}
        assert running(marker) == []
        await sup.start_all([nsorch.WorkerSpec(name=f"w{n}") for n in range(3)])


async def test_start_all_is_given_wrong_names() -> None:
    """One error, as of start: nothing was made that could have failed."""
    async with nsorch.Supervisor() as sup:
        await sup.start("there")
        await sup.bridge("lan")
        before = sup.snapshot().seq
        for names, text in ((["a", "there"], "already"), (["a", "lan"], "already"), (["a", "b", "a"], 'two .* "a"')):
            with pytest.raises(nsorch.NameInUseError, match=text) as raised:
                await sup.start_all([nsorch.WorkerSpec(name=name) for name in names])
            assert raised.value.worker == names[-1]
        assert sup.snapshot().seq == before
        assert await sup.start_all([]) == []
    with pytest.raises(nsorch.ClosedError):
        await sup.start_all([])


@pytest.mark.parametrize("command", [["no-such-command"], ["/"], None])
async def test_a_start_that_fails_has_the_state_that_is_told(command: list[str] | None) -> None:
    """Whoever waits for it meanwhile goes on when it is undone."""
    states, waiting = [], anyio.Event()

    async def look() -> None:
        async with sup.events(kinds=nsorch.WorkerSetupFailed) as events:
            waiting.set()
            await events.receive()
            worker = sup.workers["w"]
            states.extend((worker.state, sup.snapshot().workers["w"].state))
            with pytest.raises(nsorch.ClosedError):
                await worker.run(["true"])
            states.append(worker.state)

    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        sysctls = {} if command else {"net.ipv4.no_such_sysctl": 1}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await waiting.wait()
            with pytest.raises(nsorch.NsorchError):
                await sup.start("w", command, links=["lan"], sysctls=sysctls)
    assert states == [State.FAILED, State.FAILED, State.REMOVED]


async def test_ready(marker: str) -> None:
    server = "import socket, time; s = socket.create_server(('127.0.0.1', 80)); print('up'); time.sleep(600)"
    async with nsorch.Supervisor() as sup:
        await sup.start("w", ["python3", "-c", server], ready=nsorch.tcp_ready(80), stdout=subprocess.DEVNULL)
        await sup.start("e", ["sleep", marker], ready=nsorch.exec_ready(["true"]))
        with pytest.raises(nsorch.NotReadyError, match="port 81") as late:
            await sup.start("x", ["sleep", marker], ready=nsorch.tcp_ready(81, timeout=0.1))
        assert isinstance(late.value, TimeoutError)
        with pytest.raises(nsorch.WorkerExitedError, match="boom") as early:
            await sup.start("x", ["sh", "-c", "echo boom >&2; exit 3"], ready=nsorch.tcp_ready(81))
        assert (early.value.code, early.value.stderr, early.value.worker) == (3, b"boom\n", "x")
        with pytest.raises(nsorch.WorkerExitedError, match="piped"):
            line = "echo piped >&2; exit 3"
            await sup.start("x", ["sh", "-c", line], ready=nsorch.tcp_ready(81), stderr=subprocess.PIPE)
        with pytest.raises(nsorch.CommandNotFoundError):
            await sup.start("x", ["sleep", marker], ready=nsorch.exec_ready(["no-such-command"]))
        with anyio.move_on_after(0.2):
            await sup.start("x", ["sleep", marker], ready=nsorch.tcp_ready(81))
            pytest.fail("not cancelled")
        assert set(sup.workers) == {"w", "e"}
        assert len(running(marker)) == 1


async def test_bad_input() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("w")
        await sup.bridge("b", "10.0.0.0/30")
        cases: list[tuple[type[Exception], str, dict[str, object]]] = [
            (nsorch.NameInUseError, "already", {"name": "w"}),
            (nsorch.NameInUseError, "already", {"name": "b"}),
            (nsorch.TopologyError, "not a name", {"name": "9w"}),
            (nsorch.TopologyError, "not a name", {"name": "a" * 64}),
            (nsorch.TopologyError, "list of strings", {"name": "x", "command": "sleep 1"}),
            (nsorch.TopologyError, "list of strings", {"name": "x", "command": []}),
            (nsorch.TopologyError, 'there is no "nett"', {"name": "x", "namespaces": ["nett"]}),
            (nsorch.TopologyError, "without a process", {"name": "x", "namespaces": ["pid"]}),
            (nsorch.TopologyError, "no bridge", {"name": "x", "links": ["nobody"]}),
            (nsorch.TopologyError, "no worker", {"name": "x", "namespaces": {"net": "worker:nobody"}}),
            (nsorch.AddressError, "outside", {"name": "x", "links": [nsorch.To("b", address="10.9.0.1")]}),
            (nsorch.TopologyError, "never ready", {"name": "x", "ready": nsorch.tcp_ready(80)}),
            (nsorch.UnsupportedError, "emulation", {"name": "x", "links": [nsorch.To("b", delay="20ms")]}),
            (nsorch.UnsupportedError, "host's network", {"name": "x", "namespaces": ["uts"], "links": ["b"]}),
            (nsorch.CommandNotFoundError, "no command", {"name": "x", "command": ["no-such-command"], "links": ["b"]}),
        ]
        for error, text, options in cases:
            with pytest.raises(error, match=text):
                await sup.start(**options)  # type: ignore[arg-type]
        await sup.start("first", links=["b"])
        with pytest.raises(nsorch.AddressError, match="used by first"):
            await sup.start("x", links=[nsorch.To("b", address="10.0.0.1")])
        await sup.start("second", links=["b"])
        with pytest.raises(nsorch.SubnetFullError, match=r"10\.0\.0\.0/30"):
            await sup.start("x", links=["b"])
        assert set(sup.workers) == {"w", "first", "second"}
        loop = [
            nsorch.WorkerSpec(name="a", namespaces={"net": "worker:c"}),
            nsorch.WorkerSpec(name="c", namespaces={"net": "worker:a"}),
        ]
        with pytest.raises(nsorch.TopologyError, match="loop"):
            await sup.start_all(loop)
        for bad in ("10.0.0.1/24", "nonsense"):
            with pytest.raises(nsorch.AddressError, match="not a network"):
                await sup.bridge("c", bad)
        with pytest.raises(nsorch.TopologyError, match="nobody"):
            await sup.link("w", "nobody")
        with pytest.raises(nsorch.TopologyError, match="itself"):
            await sup.link("w", "w")
        with pytest.raises(nsorch.TopologyError, match="parsecs"):
            await sup.link("w", "first", delay="20 parsecs")
        with pytest.raises(nsorch.UnsupportedError, match="emulation"):
            await sup.link("w", "first", delay="20ms")


async def test_many_starts_from_many_tasks() -> None:
    async with nsorch.Supervisor() as sup:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(sup.start, f"w{number}")
        assert len(sup.workers) == 100


async def test_snapshot_and_wait_event() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("w", ["sh", "-c", "exit 3"])
        event = await sup.wait_event(nsorch.WorkerExited, worker="w", since=0)
        assert event.exit.code == 3
        status = sup.snapshot().workers["w"]
        assert status.exit is not None
        assert (status.state, status.exit.code) == (State.EXITED, 3)


async def test_structlog_gets_every_event() -> None:
    import structlog.testing

    try:
        with structlog.testing.capture_logs() as lines:
            async with nsorch.Supervisor() as sup:
                await sup.start("w")
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in lines] == [
        "SupervisorStarted", "WorkerRequested", "WorkerReady", "SupervisorStopping", "WorkerRemoved", "SupervisorStopped",
    ]  # fmt: skip


async def test_root_is_wanted_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also root of a user namespace isn't enough, whose network namespace is another's: nobody returns to that."""
    if os.geteuid() == 0:
        monkeypatch.setattr(nsorch.core.launch, "_is_own", lambda kind: kind != "net")
    with pytest.raises(nsorch.PermissionDeniedError, match=r"rootless=False.*CAP_SYS_ADMIN"):
        async with nsorch.Supervisor(rootless=False):
            pass


FULL = """
import anyio, errno, nsorch, os, resource, sys

async def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (11, 12, 13, 14):
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            async with nsorch.Supervisor():
                raise AssertionError
        except nsorch.SetupError as exc:
            assert exc.errno == errno.EMFILE, exc
            assert "RLIMIT_NOFILE" in str(exc), exc
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert os.listdir("/proc/self/fd") == before
    async with nsorch.Supervisor() as sup:
        await sup.start("w")

import nsorch.core.launch
anyio.run(main, backend=sys.argv[1])
"""


def test_hardly_a_descriptor_is_left(anyio_backend_name: str) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, anyio_backend_name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SMALL_FILES = """
import anyio, nsorch, resource, sys

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
    try:
        async with nsorch.Supervisor():
            raise AssertionError
    except nsorch.SetupError as exc:
        assert "RLIMIT_FSIZE" in str(exc), exc
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        try:
            await sup.start_all([nsorch.WorkerSpec(name="w%d" % n, links=["lan"]) for n in range(100)])
        except* nsorch.SetupError as exc:
            assert "RLIMIT_FSIZE" in str(exc.exceptions[0]), exc
        await sup.start("w", links=["lan"])

anyio.run(main, backend=sys.argv[1])
"""


def test_files_may_not_be_large(anyio_backend_name: str) -> None:
    command = [sys.executable, "-c", SMALL_FILES, anyio_backend_name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


ALMOST_FULL = """
import anyio, errno, nsorch, os, resource, sys

async def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", ["sleep", "600"], links=[lan])
        await sup.start("b", links=[lan])
        assert (await sup.ping_all()).ok
        await (await sup.start("sandbox", isolation="sandbox")).remove()  # all is imported now
        calls = [lambda: a.run("true"), lambda: sup.ping_all([("a", "b")]), lambda: sup.start("c", isolation="sandbox")]
        try:
            await a.freeze()
            await a.thaw()
            calls += [a.freeze, a.stats]
        except nsorch.UnsupportedError:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        filled = []
        try:
            while True:
                filled.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for call in calls:
            try:
                await call()
            except nsorch.NsorchError as exc:
                assert exc.errno == errno.EMFILE, exc
            else:
                raise AssertionError
        for fd in filled:
            os.close(fd)
        assert (await a.run("echo ok")).stdout == b"ok\\n"

anyio.run(main, backend=sys.argv[1])
"""


def test_the_table_of_open_files_is_full(anyio_backend_name: str) -> None:
    command = [sys.executable, "-c", ALMOST_FULL, anyio_backend_name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
