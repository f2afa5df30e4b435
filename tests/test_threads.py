"""Threads: nsorch's own, which don't wait for the application's and can be done without; and loops of others."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import nsorch


@pytest.mark.anyio
async def test_calls_of_the_application_keep_nobody_waiting(tmp_path: Path) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    ended = threading.Event()
    ending = threading.Timer(10, ended.set)
    ending.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, ended.wait)
            await anyio.wait_all_tasks_blocked()
            async with nsorch.Supervisor() as sup:
                lan = await sup.bridge("lan", subnet="10.0.0.0/24")
                worker = await sup.start("w", ["sleep", "600"], links=[lan], stdout=tmp_path / "said", user=0)
                await worker.run(["true"], user=0)
                await worker.remove()
                await sup.start("v", links=[lan])
            assert not ended.is_set()
            ended.set()
    finally:
        ending.cancel()
        ended.set()


@pytest.mark.anyio
@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_another_threads_loop_is_told_so(other: str) -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", subnet="10.0.0.0/24")
        worker = await sup.start("w", ["sleep", "600"], links=[lan])
        deployment = await sup.deploy(nsorch.Topology())
        (link,) = sup.links.values()
        calls = [
            *(sup.wait, sup.stop, sup.ping_all, partial(sup.start, "v"), partial(sup.bridge, "b")),
            *(partial(worker.run, ["true"]), worker.wait, worker.stop, worker.restart, worker.remove),
            *(lan.remove, link.down, link.remove, deployment.remove),
        ]

        async def elsewhere() -> None:
            for call in calls:
                with anyio.fail_after(10), pytest.raises(nsorch.ClosedError, match="another thread's event loop"):
                    await call()

        await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, backend=other))
        # Nothing was broken by them.
        assert (await worker.run(["echo", "here"])).stdout == b"here\n"
        done = await anyio.to_thread.run_sync(anyio.from_thread.run, worker.run, ["echo", "there"])
        assert done.stdout == b"there\n"
    assert (await worker.wait()).expected


# Says what it can't do without one new thread, and does the rest.
PROGRAM = """if True:
    import sys, threading
    import anyio
    import nsorch

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def main():
        threading.Thread.start = refuse
        async with nsorch.Supervisor() as sup:
            lan = await sup.bridge("lan", subnet="10.0.0.0/24")
            worker = await sup.start("w", ["sleep", "600"], links=[lan])
            await sup.start("v", links=[lan])
            print((await sup.ping_all()).ok)
            try:
                await worker.run(["true"], user=0)
            except nsorch.SetupError as exc:
                print(exc.stage, exc.errno, exc.detail)
            try:
                await sup.start("u", ["true"], stdout="/dev/null")
            except nsorch.SetupError as exc:
                print(exc.stage, exc.errno, exc.detail)
            await worker.remove()
            print(*sup.workers)

    anyio.run(main, backend=sys.argv[1])
"""
REASON = "thread 11 a limit of processes is reached (RLIMIT_NPROC, kernel.pid_max, kernel.threads-max, pids.max)"


@pytest.mark.once
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_thread_can_be_started(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["True", REASON, REASON, "v"], done.stderr
    assert done.returncode == 0
