"""Limits that the kernel keeps, and what it tells of them; an ordinary user in a delegated cgroup."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import anyio
import pytest
from cgroups_support import HERE, needs_controllers, subtrees

import nsorch

pytestmark = [pytest.mark.anyio, pytest.mark.vm, needs_controllers]
EAT = "data = b''\nwhile True: data += bytes(1 << 20)"
FORK = "i=0; while [ $i -lt 20 ]; do sleep 30 & i=$((i+1)); done; wait"


def held(worker: nsorch.Worker, name: str) -> str:
    return pathlib.Path(worker.cgroup, name).read_text().strip()


async def test_a_limit_of_memory_waits_for_what_begins(anyio_backend: str, tmp_path: pathlib.Path) -> None:
    """Until its exec it may share the helper's memory, and who is killed for want of memory all that share it."""
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    for path in (program, tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        worker = await sup.start("w", ["sleep", "600"], init=False, limits=nsorch.Limits(cpu_weight=100))
        with open(program, "r+b") as leased:
            fcntl.fcntl(leased, fcntl.F_SETSIG, signal.SIGURG)  # of which nothing comes
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            tasks.start_soon(worker.restart, [str(program), "600"])
            with anyio.fail_after(30):
                await sup.wait_event(nsorch.WorkerExited, worker="w", since=0)
                while not held(worker, "cgroup.procs"):
                    await anyio.sleep(0.01)
                tasks.start_soon(worker.set_limits, nsorch.Limits(memory=4096))
                while held(worker, "memory.max") == "max":
                    await anyio.sleep(0.01)
        with anyio.fail_after(60):
            while held(worker, "memory.max") != "4096":
                await anyio.sleep(0.01)
        await sup.start("next", ["true"])


async def test_limits_are_kept(anyio_backend: str) -> None:
    limits = nsorch.Limits(memory="48MiB", swap=0, cpus=0.25, cpu_weight=50, cpuset="0", pids=9)
    before = pathlib.Path(HERE.mount, "cgroup.subtree_control").read_text()
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", "while :; do :; done"], limits=limits)
        assert {name: held(worker, name) for name in limits.files()} == limits.files()
        with anyio.fail_after(60):
            async for stats in worker.watch_stats(0.05):
                if stats.cpu.throttled_periods and stats.memory.current:
                    break
        assert (stats.memory.limit, stats.pids.limit, stats.pids.current) == (48 << 20, 9, 2)
        assert stats.io is not None
        assert os.sched_getaffinity(worker.pid) == {0}

        done = await worker.run([sys.executable, "-S", "-c", EAT], check=False)
        assert done.returncode == -signal.SIGKILL
        with anyio.fail_after(30):
            killed = await sup.wait_event(nsorch.WorkerOomKilled, worker="w", since=0)
        assert (killed.count, killed.total) == (1, 1)
        assert worker.pid is not None  # another process was larger
        assert (await worker.stats()).memory.oom_kills == 1
        hit = await sup.wait_event(nsorch.WorkerLimitHit, worker="w", since=0)
        assert (hit.limit, hit.count > 0) == ("memory", True)

        async with await worker.popen(["sh", "-c", FORK]):
            with anyio.fail_after(30):
                hit = await sup.wait_event(
                    nsorch.WorkerLimitHit, worker="w", since=0, predicate=lambda event: event.limit == "pids"
                )
            assert hit.total >= 1

        await worker.set_limits({"pids": 50})
        assert (held(worker, "pids.max"), held(worker, "memory.max"), held(worker, "cpu.max")) == (
            "50", "max", "max 100000",
        )  # fmt: skip
        assert held(worker, "cpu.weight") == "100"
        assert os.sched_getaffinity(worker.pid) == set(range(os.cpu_count()))
        with pytest.raises(nsorch.SetupError, match=r"cpuset\.cpus"):
            await worker.set_limits({"cpuset": "9000"})
        await worker.set_limits(None)
        assert held(worker, "pids.max") == "max"
        later = await sup.start("later", ["sleep", "60"])
        await later.set_limits({"memory": "64MiB"})
        assert held(later, "memory.max") == str(64 << 20)
    async with sup.events(since=0, kinds=nsorch.WorkerLimitHit) as events:
        assert len([event async for event in events]) < 40  # one that is hit all the time is told of once a second
    assert subtrees() == []
    assert pathlib.Path(HERE.mount, "cgroup.subtree_control").read_text() == before


async def test_a_main_process_that_eats_too_much(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        for init in (True, False):
            command = [sys.executable, "-S", "-c", EAT]
            worker = await sup.start("w", command, init=init, limits={"memory": "40MiB", "swap": 0})
            with anyio.fail_after(60):
                assert (await worker.wait()).signal == signal.SIGKILL
            await worker.remove()
    kinds = (nsorch.WorkerOomKilled, nsorch.WorkerExited)
    async with sup.events(since=0, kinds=kinds) as events:
        assert [event.kind async for event in events] == ["WorkerOomKilled", "WorkerExited"] * 2


@pytest.mark.parametrize("init", [True, False])
async def test_memory_that_is_used_up_before_the_exec(anyio_backend: str, init: bool) -> None:
    """The kernel kills all who share the memory of whom it kills, and that is nobody of the helpers."""
    said = []
    async with nsorch.Supervisor() as sup:
        other = await sup.start("other", ["sleep", "600"])
        for number, memory in enumerate(("8KiB", "32KiB", "64KiB", "128KiB", "256KiB", "512KiB")):
            with anyio.fail_after(60):
                try:
                    worker = await sup.start(f"w{number}", ["true"], init=init, limits={"memory": memory, "swap": 0})
                except nsorch.SetupError as exc:
                    said.append(str(exc))
                else:
                    await worker.wait()
        assert (await sup.start("later", ["sleep", "600"])).pid
        assert other.pid is not None
    async with sup.events(since=0, kinds=nsorch.WorkerOomKilled) as events:
        assert [event async for event in events]
    assert not init or "w0: it was killed before its command ran" in said[0]
    assert not init or "its memory is used up: raise limits.memory" in said[0]


async def test_io_and_a_topology(anyio_backend: str) -> None:
    topology = nsorch.Topology.from_dict(
        {"workers": {"w": {"command": ["sleep", "60"], "limits": {"memory": "64MiB"}}}}
    )
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        worker = deployment.workers["w"]
        assert held(worker, "memory.max") == str(64 << 20)
        pid = worker.pid
        changed = nsorch.Topology.from_dict({"workers": {"w": {"command": ["sleep", "60"], "limits": {"cpus": 2}}}})
        await deployment.apply(changed)
        assert (held(worker, "memory.max"), held(worker, "cpu.max")) == ("max", "200000 100000")
        assert worker.pid == pid
        with pytest.raises(nsorch.SetupError, match="is not a block device"):
            await sup.start("x", ["true"], limits={"io": {"/dev/null": {"wbps": 1}}})
        disks = [name for name in os.listdir("/sys/block") if os.path.exists(f"/dev/{name}")]
        for disk in disks[:1]:
            await worker.set_limits({"io": {f"/dev/{disk}": {"wbps": "1MiB", "riops": 100}}})
            assert "riops=100" in held(worker, "io.max")
            await worker.set_limits(None)
            assert held(worker, "io.max") == ""
    assert subtrees() == []


DELEGATED = """
import pathlib, sys, anyio, nsorch
async def main():
    async with nsorch.Supervisor() as sup:
        assert sup.rootless
        worker = await sup.start("w", ["sleep", "60"], limits={"memory": "48MiB", "pids": 20, "cpus": 1})
        stats = await worker.stats()
        assert stats.memory.limit == 48 << 20, stats
        await worker.freeze()
        await worker.thaw()
        assert pathlib.Path(worker.cgroup, "cgroup.procs").read_text().split()[-1] == str(worker.pid)
        print(worker.cgroup, flush=True)
        if sys.argv[2] == "kill":
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="only root delegates")
@pytest.mark.parametrize("inner", ["", "inner"], ids=["directly", "below"])
@pytest.mark.parametrize("end", ["leave", "kill"])
def test_an_ordinary_user(inner: str, end: str, anyio_backend: str) -> None:
    """In a cgroup that was given to it: which holds the program itself, or has it in a child."""
    control = pathlib.Path(HERE.mount, "cgroup.subtree_control")
    before = control.read_text()
    control.write_text("+memory +pids +cpu")
    given = pathlib.Path(HERE.mount, f"given-{os.getpid()}")
    own = given / inner
    try:
        own.mkdir(parents=True)
        for folder in {given, own}:
            for file in (folder, *(folder / f"cgroup.{name}" for name in ("procs", "subtree_control", "threads"))):
                os.chown(file, 65534, 65534)
        script = f'echo $$ > {own}/cgroup.procs && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-c", DELEGATED, anyio_backend, end],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
        )
        assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr
        assert done.stdout.startswith(f"{given}/nsorch-")
        wait_until_empty(given)
        assert not list(given.glob("nsorch-*"))
        enabled = (given / "cgroup.subtree_control").read_text().strip()
        assert enabled == ("cpu memory pids" if inner else "")  # another child may use them by now
    finally:
        if given.exists():  # a failure leaves what runs there, and the subtree
            (given / "cgroup.kill").write_text("1")
            wait_until_empty(given)
            for folder in sorted(given.rglob("nsorch-*/**/"), reverse=True):
                folder.rmdir()
        for folder in {own: None, given: None}:
            if folder.exists():
                folder.rmdir()
        for name in {"memory", "pids", "cpu"} - set(before.split()):
            control.write_text(f"-{name}")


def wait_until_empty(cgroup: pathlib.Path) -> None:
    import select

    with open(cgroup / "cgroup.events") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 1" in os.pread(events.fileno(), 4096, 0).decode():
            assert poll.poll(20_000), "a helper goes on"
