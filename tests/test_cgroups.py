"""Cgroups of workers, as far as a bare v2 hierarchy has them: leaves, freezing, statistics, killing, and the end."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import Mock

import anyio
import pytest
from cgroups_support import PLACE, needs_cgroups, processes, subtrees
from conftest import running
from rootfs_support import make_rootfs

import nsorch
from nsorch.core import cgroups
from nsorch.core.spawner import subtree as spawner_subtree
from nsorch.core.usage import parse_io, parse_pressure

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)
BUSY = ["sh", "-c", "while :; do :; done"]
KINDS: dict[str, dict[str, object]] = {
    "init": {},
    "no init": {"init": False},
    "no pid namespace": {"namespaces": ["net", "mnt"]},
    "no pid namespace, no init": {"namespaces": ["net"], "init": False},
    "user namespace": {"namespaces": ["user", "net", "mnt", "pid"]},
    "host's pid namespace": {"namespaces": {"net": True, "pid": "host"}},
    "sandbox": {"isolation": "sandbox"},
}
ROOTLESS = [True] if os.geteuid() else [False, True]


async def descendants(worker: nsorch.Worker, count: int) -> set[int]:
    """Wait until so many processes are in its cgroup."""
    with anyio.fail_after(10):
        while len(found := processes(worker.cgroup)) != count:
            await anyio.sleep(0.005)
    return found


@needs_cgroups
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rootless", ROOTLESS)
async def test_a_worker_begins_in_its_leaf(kind: str, rootless: bool, anyio_backend: str) -> None:
    async with nsorch.Supervisor(cgroups=True, rootless=rootless, grace=0.1) as sup:
        worker = await sup.start("w", ["sleep", "60"], **KINDS[kind])
        assert worker.pid in processes(worker.cgroup)
        process = await worker.popen(["sleep", "60"])
        assert process.pid in processes(worker.cgroup)
        await process.aclose()
        await worker.restart()
        assert worker.pid in processes(worker.cgroup)
        where = worker.cgroup
        await worker.remove()
        assert not os.path.exists(where)
        assert worker.cgroup is None
    assert subtrees() == []


@needs_cgroups
async def test_a_worker_that_goes_while_its_leaf_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    make_leaf, going = cgroups.make_leaf, threading.Event()

    def make_late(subtree: cgroups.Subtree, worker: str, files: Mapping[str, str]) -> int:
        going.wait(10)
        return make_leaf(subtree, worker, files)

    monkeypatch.setattr(cgroups, "make_leaf", make_late)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"])

        async def ask() -> None:
            with contextlib.suppress(nsorch.ClosedError):
                await worker.stats()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not sup._cgroups._making or not sup._cgroups._making.locked():
                await anyio.sleep(0.001)
            tasks.start_soon(worker.remove)
            with anyio.move_on_after(0.3):
                await sup.wait_event("WorkerRemoved")
            going.set()
        assert not sup._cgroups._leaves
        await (await sup.start("w", ["sleep", "60"])).stats()
    assert subtrees() == []


@needs_cgroups
async def test_what_its_cgroup_tells_comes_before_the_failure_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that its memory is used up, see test_memory_that_is_used_up_before_the_exec."""
    async with nsorch.Supervisor(cgroups=True) as sup:
        seen: list[tuple[str, list[str]]] = []

        def told(worker: nsorch.Worker) -> None:
            seen.append((worker.name, [event.kind for event in sup._bus._ring if event.worker == worker.name]))

        monkeypatch.setattr(sup._cgroups, "told", told)
        for init in (True, False):
            with pytest.raises(nsorch.CommandNotFoundError):
                await sup.start(f"w{init}", ["no-such-command"], init=init)
        assert seen == [("wTrue", ["WorkerRequested"]), ("wFalse", ["WorkerRequested"])]


@needs_cgroups
async def test_a_cancelled_reading_leaves_no_descriptor() -> None:
    async with nsorch.Supervisor(cgroups=True) as sup:
        worker = await sup.start("w")
        before = len(os.listdir("/proc/self/fd"))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await worker.stats()
        assert len(os.listdir("/proc/self/fd")) == before


HANDLES = "trap 'exit 7' TERM; (setsid sh -c 'sleep 60 & wait' &); sleep 60 & echo up; wait"


@needs_cgroups
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rootless", ROOTLESS)
async def test_freezing_moves_what_runs_into_a_leaf(kind: str, rootless: bool, anyio_backend: str) -> None:
    async with nsorch.Supervisor(rootless=rootless, grace=0.1) as sup:
        worker = await sup.start("w", ["sh", "-c", HANDLES], stdout=subprocess.PIPE, **KINDS[kind])
        assert (worker.cgroup is None) == (kind != "sandbox")  # which has a cgroup namespace
        assert await worker.stdout.receive() == b"up\n"
        other = await sup.start("other", ["sleep", "60"])
        async with await worker.popen(["sleep", "60"]) as process:
            await worker.freeze()
            assert worker.frozen
            inside = processes(worker.cgroup)
            assert {worker.pid, process.pid} <= inside
            assert other.pid not in inside
            with pytest.raises(nsorch.SetupError, match="thaw it first"):
                await worker.run(["true"])
            worker.signal(signal.SIGTERM)
            used = (await worker.stats()).cpu.usage
        # Leaving that block has killed a command that couldn't do anything for it.
        assert process.pid not in processes(worker.cgroup)
        assert (await worker.stats()).cpu.usage < used + 0.01
        assert worker.pid is not None
        await worker.thaw()
        assert not worker.frozen
        if rootless and kind == "host's pid namespace":
            return
        with anyio.fail_after(10):
            assert (await worker.wait()).code == 7
        await worker.restart()
        assert worker.pid in processes(worker.cgroup)
    assert subtrees() == []


@needs_cgroups
async def test_frozen_workers_end(anyio_backend: str, marker: str) -> None:
    async with nsorch.Supervisor(grace=0.1) as sup:
        command = ["sh", "-c", f"sleep {marker} & exec sleep {marker}"]
        workers = [await sup.start(f"w{n}", command, **kind) for n, kind in enumerate(KINDS.values())]
        for worker in workers:
            await worker.freeze()
        workers[0].kill()
        assert (await workers[0].wait()).signal == signal.SIGKILL
        await workers[1].stop(grace=0.01)
        await workers[2].remove()
        await workers[3].freeze()  # twice is once
        await workers[4].restart()
        assert not workers[4].frozen
        done = await workers[4].run(["true"])
        assert done.returncode == 0
    assert running(marker) == []
    assert subtrees() == []


@needs_cgroups
async def test_a_restart_thaws_first(anyio_backend: str) -> None:
    """So that what runs hears that it is to end."""
    async with nsorch.Supervisor(grace=60) as sup:
        line = "trap 'exit 7' TERM; echo; while :; do sleep 0.01; done"
        worker = await sup.start("w", ["sh", "-c", line], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        await worker.stdout.receive()
        await worker.freeze()
        with anyio.fail_after(20):
            await worker.restart()
        ended = await sup.wait_event(nsorch.WorkerExited, worker="w", since=0)
        assert ended.exit.code == 7


@needs_cgroups
async def test_events_of_freezing(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"])
        passive = await sup.start("p")
        for each in (worker, passive):
            await each.freeze()
            await each.thaw()
            await each.thaw()
        assert (await passive.run(["true"])).returncode == 0
    async with sup.events(since=0, kinds=[nsorch.WorkerFrozen, nsorch.WorkerThawed]) as events:
        assert [(event.kind, event.worker) async for event in events] == [
            ("WorkerFrozen", "w"), ("WorkerThawed", "w"), ("WorkerFrozen", "p"), ("WorkerThawed", "p"),
        ]  # fmt: skip


@needs_cgroups
async def test_freezing_waits_for_commands_that_begin(anyio_backend: str) -> None:
    """Whatever is started at the same time runs, or is refused: nothing waits for ever, and nothing stays outside."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"])
        outcomes: list[str] = []

        async def run() -> None:
            try:
                await worker.run(["true"])
                outcomes.append("ran")
            except nsorch.SetupError:
                outcomes.append("refused")

        with anyio.fail_after(20):
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    for _ in range(8):
                        tasks.start_soon(run)
                    await anyio.lowlevel.checkpoint()
                    await worker.freeze()
                    await worker.thaw()
        assert len(outcomes) == 24
        await descendants(worker, 2)  # the init and the sleep


@needs_cgroups
async def test_cancelled_freezing(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"])
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await worker.freeze()
            assert not worker.frozen
            assert (await worker.run(["true"])).returncode == 0


@needs_cgroups
async def test_stats(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", BUSY)
        first = await worker.stats()
        assert first.processes == 2
        assert not first.frozen
        readings = []
        async with worker.watch_stats(0.02) as stream:
            async for stats in stream:
                readings.append(stats)
                if stats.cpu.usage > first.cpu.usage + 0.05:
                    break
        assert [each.mono for each in readings] == sorted(each.mono for each in readings)
        await worker.freeze()
        frozen = await worker.stats()
        assert frozen.frozen
        assert (await worker.stats()).cpu.usage == frozen.cpu.usage
        assert set(frozen.to_dict()) == {"mono", "processes", "frozen", "cpu", "memory", "pids", "io"}
        if not PLACE.controllers & {"memory"}:
            assert (frozen.memory, frozen.pids, frozen.io) == (None, None, None)
        passive = await sup.start("p")
        assert (await passive.stats()).processes == 0
        await passive.remove()
        with pytest.raises(nsorch.ClosedError):
            await passive.stats()
        assert [stats async for stats in passive.watch_stats()] == []
        with pytest.raises(ValueError, match="interval"):
            worker.watch_stats(0)


@of_kernel
@needs_cgroups
async def test_kill_reaches_what_left_the_worker(anyio_backend: str, marker: str) -> None:
    """Without pid namespace and init, a descendant that forked twice is nobody's but the cgroup's."""
    async with nsorch.Supervisor(cgroups=True) as sup:
        script = f"(setsid sh -c 'sleep {marker} &' &); exec sleep {marker}"
        for end in ("kill", "remove"):
            worker = await sup.start("w", ["sh", "-c", script], namespaces=["net"], init=False)
            await descendants(worker, 2)
            if end == "kill":
                worker.kill()
                await worker.wait()
                await descendants(worker, 0)
            await worker.remove()
            assert running(marker) == []


@needs_cgroups
async def test_cgroup_namespace_is_rooted_at_the_leaf(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"], cgroup_namespace=True)
        lines = (await worker.run(["cat", "/proc/self/cgroup"])).stdout.decode().splitlines()
        assert "0::/" in lines


@needs_cgroups
@pytest.mark.parametrize("preset", ["network", "container", pytest.param("sandbox", marks=of_kernel)])
@pytest.mark.parametrize("command", [None, ["sleep", "600"]], ids=["passive", "live"])
async def test_what_is_seen_of_cgroups(
    preset: str, command: list[str] | None, tmp_path: pathlib.Path, anyio_backend: str
) -> None:
    """At /sys/fs/cgroup: the own leaf, read-only, and nothing above it; once, however often it is entered."""
    rootfs = make_rootfs(tmp_path / "rootfs")
    fields = {"rootfs": rootfs, "isolation": preset, "cgroup_namespace": True}
    look = "grep -c cgroup2 /proc/self/mountinfo; grep cgroup2 /proc/self/mountinfo; cat /sys/fs/cgroup/cgroup.procs"
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", command, **fields)  # type: ignore[arg-type]
        for restarted in range(2):
            count, mount, *pids = (await worker.run(look)).stdout.decode().splitlines()
            assert count == "1"
            _, _, _, root, point, options, *_ = mount.split()
            assert (root, point, options.split(",")[0]) == ("/", "/sys/fs/cgroup", "ro")
            assert "1" in pids
            assert "0" not in pids  # nobody of outside
            done = await worker.run("mkdir /sys/fs/cgroup/x; echo 1 > /sys/fs/cgroup/cgroup.freeze", check=False)
            assert done.stderr.count(b"Read-only file system") == 2
            if command and not restarted:
                await worker.restart()
        # Where something else is asked for there, that is what there is.
        for name, other in (
            ("masked", {"masked": ["/sys/fs"]}),
            ("mounted", {"mounts": [nsorch.tmpfs("/sys/fs/cgroup")]}),
            ("shared", {"cgroup_namespace": False}),
        ):
            worker = await sup.start(name, command, **{**fields, **other})  # type: ignore[arg-type]
            assert b"cgroup2" not in (await worker.run(["cat", "/proc/self/mountinfo"])).stdout


@needs_cgroups
@pytest.mark.parametrize(
    ("command", "kinds"),
    [(None, ()), (["sleep", "600"], ()), (["sleep", "600"], ("pid",))],
    ids=["passive", "live", "live-pid"],
)
async def test_what_is_seen_of_cgroups_by_listed_namespaces(
    command: list[str] | None, kinds: tuple[str, ...], anyio_backend: str
) -> None:
    """The same where the kinds are listed, also without a pid namespace."""
    look = "grep cgroup2 /proc/self/mountinfo | grep -v /sys/fs/cgroup/; cat /sys/fs/cgroup/cgroup.procs"
    async with nsorch.Supervisor(grace=0.1) as sup:  # as PID 1, a sleep ignores SIGTERM
        worker = await sup.start("w", command, namespaces=["net", "mnt", "cgroup", *kinds])
        for restarted in range(3):
            mount, *pids = (await worker.run(look)).stdout.decode().splitlines()
            _, _, _, root, point, options, *_ = mount.split()
            assert (root, point, options.split(",")[0]) == ("/", "/sys/fs/cgroup", "ro")
            assert pids
            assert all(map(str.isdigit, pids))  # a second mount would be in the first
            if command and not restarted:
                await worker.restart()


async def test_limits_that_can_not_be_kept(anyio_backend: str) -> None:
    """Refused before the start, with the reason; and nothing of it is left."""
    limits = {"memory": "64MiB", "cpus": 0.5, "cpuset": "0", "pids": 10, "io": {"7:0": {"wbps": "1MiB"}}}
    controllers = {"cpus": "cpu"}
    async with nsorch.Supervisor() as sup:
        for key, value in limits.items():
            if PLACE is not None and controllers.get(key, key) in PLACE.controllers:
                continue
            with pytest.raises(nsorch.UnsupportedError) as caught:
                await sup.start("w", ["true"], limits={key: value})
            assert caught.value.worker == "w"
            assert f"limits.{key}" in str(caught.value)
            assert caught.value.detail
            if PLACE is not None:
                assert f"limits.{key}" in str(caught.value)
        assert not sup.workers
        if PLACE is None:
            worker = await sup.start("w", ["sleep", "60"])
            for call in (worker.freeze, worker.stats):
                with pytest.raises(nsorch.UnsupportedError) as caught:
                    await call()
                assert caught.value.worker == "w"
            with pytest.raises(nsorch.UnsupportedError, match=r"w: limits\.pids: "):
                await worker.set_limits(nsorch.Limits(pids=5))
            assert (await worker.run(["true"])).returncode == 0


PROGRAM = """
import sys, anyio, nsorch
marker, backend = sys.argv[1:]
async def main():
    async with nsorch.Supervisor(cgroups=True) as sup:
        started = await sup.wait_event(nsorch.SupervisorStarted, since=0)
        script = f"(setsid sleep {marker} &); exec sleep {marker}"
        workers = [await sup.start(f"w{n}", ["sh", "-c", script], init=bool(n % 2)) for n in range(4)]
        await workers[0].freeze()
        await sup.start("passive")
        print(started.pid, flush=True)
        await anyio.sleep_forever()
try:
    anyio.run(main, backend=backend)
except nsorch.SpawnerDiedError:
    print("SpawnerDiedError")
"""


@needs_cgroups
@pytest.mark.parametrize(
    "victims",
    [("app",), ("stub",), ("spawner",), ("stub", "spawner"), ("app", "spawner"), ("app", "stub"), ("app", "stub", "spawner")],
    ids="+".join,
)  # fmt: skip
def test_deaths(victims: tuple[str, ...], anyio_backend: str, marker: str) -> None:
    command = [sys.executable, "-c", PROGRAM, marker, anyio_backend]
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stub = int(app.stdout.readline())
    with open(f"/proc/{stub}/task/{stub}/children") as file:
        spawner = int(file.read().split()[0])
    pidfds = {name: os.pidfd_open(pid) for name, pid in (("app", app.pid), ("stub", stub), ("spawner", spawner))}
    mine = subtrees(app.pid)
    assert len(mine) == 1
    assert len(list(mine[0].glob("*/cgroup.procs"))) == 5
    for name in victims:
        signal.pidfd_send_signal(pidfds[name], signal.SIGKILL)
    for fd in pidfds.values():
        assert select.select([fd], [], [], 10)[0]
        os.close(fd)
    app.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while set(running(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(marker) == []
    if {"app", "stub"} <= set(victims):  # nobody is left to remove it: the next start does
        subprocess.run([sys.executable, "-c", NEXT], check=True)
    assert subtrees(app.pid) == []


NEXT = """
import anyio, nsorch
async def main():
    async with nsorch.Supervisor() as sup:
        await sup.start("w")
anyio.run(main)
"""


@needs_cgroups
async def test_the_next_start_leaves_living_labs_alone(anyio_backend: str) -> None:
    async with nsorch.Supervisor(cgroups=True) as sup:
        worker = await sup.start("w")  # an empty leaf
        await anyio.to_thread.run_sync(lambda: subprocess.run([sys.executable, "-c", NEXT], check=True))
        assert os.path.isdir(worker.cgroup)
        assert (await worker.stats()).processes == 0


def test_parsers() -> None:
    pressure = parse_pressure(
        "some avg10=0.50 avg60=1.25 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    assert pressure is not None
    assert (pressure.some.avg60, pressure.some.total, pressure.full.total) == (1.25, 2.5, 0)
    assert parse_pressure("some avg10=0.50 avg60=1.25 avg300=0.00 total=1\n").full is None
    assert parse_pressure("") is None
    devices = parse_io("254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n")
    assert list(devices) == ["254:0"]
    assert (devices["254:0"].read_bytes, devices["254:0"].writes) == (4096, 2)


@needs_cgroups
async def test_what_is_asked_while_a_leaf_is_made(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        for turn in range(10):
            async with anyio.create_task_group() as tasks:
                asked = sup.wait_event(nsorch.WorkerRequested, worker=f"w{turn}")
                tasks.start_soon(partial(sup.start, f"w{turn}", isolation="sandbox"))
                await asked
                await anyio.sleep(turn * 0.0003)
                worker = sup.workers[f"w{turn}"]
                for ask in (worker.freeze, worker.stats, worker.thaw):
                    tasks.start_soon(ask)
            assert worker.cgroup is not None


@needs_cgroups
async def test_no_descriptor_is_left_for_a_kill(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], isolation="sandbox")
        with monkeypatch.context() as patch:
            patch.setattr("nsorch.core.descriptors.duplicate", Mock(side_effect=OSError(errno.EMFILE, "")))
            worker.kill()
        assert (await worker.wait()).signal == signal.SIGKILL


@of_kernel
@needs_cgroups
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rootless", ROOTLESS)
async def test_a_cgroup_that_was_killed_is_used_again(kind: str, rootless: bool, anyio_backend: str) -> None:
    """Kernels of our days let nobody be born there."""
    async with nsorch.Supervisor(cgroups=True, rootless=rootless, grace=0.1) as sup:
        worker = await sup.start("w", ["sleep", "600"], **KINDS[kind])
        worker.kill()
        assert (await worker.wait()).signal == signal.SIGKILL
        assert (await worker.run(["cat", "/proc/self/cgroup"])).stdout
        for _ in range(2):
            await worker.restart()
            async with await worker.popen(["sleep", "600"]) as process:
                assert {worker.pid, process.pid} <= processes(worker.cgroup)
                process.kill()


@needs_cgroups
@pytest.mark.parametrize("kind", ["live", "passive"])
async def test_what_begins_after_a_kill_is_spared(
    anyio_backend: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cgroup is killed in a thread, which may take its time."""
    done = threading.Event()

    def slow(fd: int) -> None:
        time.sleep(0.3)
        spawner_subtree.kill(fd)
        done.set()

    monkeypatch.setattr("nsorch.supervisor.cgroups.kill", slow)
    async with nsorch.Supervisor(cgroups=True) as sup:
        worker = await sup.start("w", ["sleep", "600"] if kind == "live" else None)
        worker.kill()
        if kind == "live":
            await worker.wait()
            await worker.restart()
        async with await worker.popen(["sleep", "600"]) as process:
            assert await anyio.to_thread.run_sync(done.wait, 10)
            with anyio.move_on_after(0.1):
                await process.wait()
            assert process.returncode is None
            process.kill()
            assert worker.exit is None


def test_no_descriptor_is_left_for_a_leaf(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    opened = os.open

    def fail(path: str, *arguments: int, **options: int) -> int:
        if path in ("w", "cgroup.events"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    subtree = spawner_subtree.Subtree("/x", tmp_path.name, folder, folder, ())
    with pytest.raises(nsorch.SetupError, match=r"w: make the cgroup /x/w: .*EMFILE") as caught:
        cgroups.make_leaf(subtree, "w", {})
    assert caught.value.stage == "cgroup"
    os.mkdir(tmp_path / "other")
    cgroups.remove_leaves(subtree, ["other"])
    assert os.listdir(tmp_path) == []
    os.close(folder)


@needs_cgroups
async def test_one_subtree_for_all() -> None:
    """Also where it has no controllers, and while none has a leaf: others may be about to make theirs."""
    async with nsorch.Supervisor(cgroups=True) as sup:
        first = await sup.start("w0")
        (subtree,) = subtrees(os.getpid())
        await first.remove()
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(sup.start, f"w{number}")
        assert subtrees(os.getpid()) == [subtree]
        assert {pathlib.Path(w.cgroup or "").parent for w in sup.workers.values()} == {subtree}


def test_a_leaf_that_somebody_else_removes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        monkeypatch.setattr(os, "pread", Mock(side_effect=OSError(errno.ENODEV, "")))
        monkeypatch.setattr(spawner_subtree.select, "poll", Mock)
        spawner_subtree._wait_until_empty(folder)
    finally:
        os.close(folder)
