"""Commands in workers: what they give back, and that a cancelled one leaves nothing."""

from __future__ import annotations

import array
import os
import pathlib
import subprocess

import anyio
import pytest
from conftest import running, shown

import nsorch
from nsorch.core import descriptors
from nsorch.core.streams import PipeReceiveStream, Tail, make_pipe

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["live", "passive", "no-pid-namespace", "no-pid-namespace-but-user", "no-init"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def start(sup: nsorch.Supervisor, kind: str) -> nsorch.Worker:
    if kind == "passive":
        return await sup.start("w")
    namespaces = {"no-pid-namespace": ["net", "mnt"], "no-pid-namespace-but-user": ["net", "user"]}.get(kind)
    return await sup.start("w", ["sleep", "600"], namespaces=namespaces, init=kind != "no-init")


def supervisor() -> nsorch.Supervisor:
    return nsorch.Supervisor(grace=0.1)  # as PID 1, a sleep ignores SIGTERM


async def test_run(kind: str) -> None:
    async with supervisor() as sup:
        worker = await start(sup, kind)
        done = await worker.run(["sh", "-c", "cat; echo err >&2"], input=b"hello")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello", b"err\n")
        assert (await worker.run("echo $((1 + 1))")).stdout == b"2\n"
        with pytest.raises(subprocess.CalledProcessError) as failed:
            await worker.run(["sh", "-c", "echo out; exit 7"])
        assert (failed.value.returncode, failed.value.output) == (7, b"out\n")
        assert (await worker.run(["sh", "-c", "kill -9 $$"], check=False)).returncode == -9
        with pytest.raises(nsorch.CommandNotFoundError, match="no-such-command"):
            await worker.run(["no-such-command"])
        with pytest.raises(nsorch.SetupError, match="not executable"):
            await worker.run(["/etc/passwd"])
        assert (await worker.run(["true"], stdout=subprocess.DEVNULL, stderr=None)).stdout is None


async def test_cancelled_run_leaves_no_descendant(kind: str, marker: str) -> None:
    script = f"""
        setsid sh -c '(setsid sleep {marker} &)' &
        sh -c '(sleep {marker} &) ; sleep {marker} & sleep {marker}' &
        echo started; exec sleep {marker}
    """
    async with supervisor() as sup:
        worker = await start(sup, kind)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, ["sh", "-c", script])
            with anyio.fail_after(10):
                while len(running(marker)) < 5:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert running(marker) == []
        assert (await worker.run(["echo", "alive"])).stdout == b"alive\n"


async def test_timeout(kind: str, marker: str) -> None:
    async with supervisor() as sup:
        worker = await start(sup, kind)
        with pytest.raises(TimeoutError, match="longer than"):
            await worker.run(["sleep", marker], timeout=0.1)
        assert running(marker) == []


async def test_popen(kind: str) -> None:
    async with supervisor() as sup:
        worker = await start(sup, kind)
        async with await worker.popen(["cat"]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.returncode is None
            await process.stdin.send(b"ping")
            assert await process.stdout.receive() == b"ping"
            process.terminate()
            assert await process.wait() == -15
        async with await worker.popen(["sleep", "600"]) as process:
            assert b"sleep" in await shown(process.pid, "cmdline")
        assert process.returncode == -9


async def test_many_at_once() -> None:
    async with nsorch.Supervisor() as sup:
        workers = [await sup.start("a", ["sleep", "600"]), await sup.start("b")]
        results: list[bytes] = []

        async def one(worker: nsorch.Worker, number: int) -> None:
            results.append((await worker.run(["echo", str(number)])).stdout)

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, workers[number % 2], number)
        assert sorted(int(text) for text in results) == list(range(60))


async def test_bad_arguments() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        for command in ([], [""], ["a\0b"]):
            with pytest.raises(ValueError, match=r"program|null"):
                await worker.run(command)
        with pytest.raises(nsorch.TopologyError, match="stdout"):
            await worker.run(["true"], stdout=object())
        for name, value in (("env", {"a=b": "x"}), ("env.a", {"a": "\0"}), ("input", 5), ("timeout", "x"), ("cwd", "")):
            with pytest.raises(nsorch.TopologyError, match=f"^{name}: "):
                await worker.run(["true"], **{name.partition(".")[0]: value})  # type: ignore[arg-type]
        assert (await worker.run(["cat"], input=bytearray(b"x"), timeout=float("inf"))).stdout == b"x"
        words = array.array("I", range(100_000))
        for view in (memoryview(words), memoryview(words.tobytes())[::2]):
            assert (await worker.run(["cat"], input=view)).stdout == view.tobytes()  # type: ignore[arg-type]
        assert (await worker.run(iter(["echo", "x"]))).stdout == b"x\n"  # type: ignore[arg-type]


async def test_timeout_of_the_start(tmp_path: pathlib.Path) -> None:
    """Nobody reads the fifo, so that the command can't begin."""
    os.mkfifo(tmp_path / "out")
    async with supervisor() as sup:
        worker = await sup.start("w")
        with anyio.fail_after(5), pytest.raises(TimeoutError, match="took longer than 0.1 s"):
            await worker.run(["true"], stdout=tmp_path / "out", timeout=0.1)
        assert (await worker.run(["echo", "fine"])).stdout == b"fine\n"


async def test_the_end_of_a_stream_that_is_closed() -> None:
    """As that of a worker that is removed or restarted, which may be read for the error that it doesn't come to."""
    ours, theirs = make_pipe()
    stream = PipeReceiveStream(ours)
    tail = Tail(stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tail.collect)
        os.write(theirs, b"last words")
        await anyio.wait_all_tasks_blocked()
        stream.close()
        await tail.ended.wait()
    assert tail.data == b"last words"
    descriptors.close([theirs])
