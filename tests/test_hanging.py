"""Starts that hang in their exec keep nobody else waiting. Whoever has a lease on a file keeps others from opening it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from conftest import running

import nsorch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio
OPTIONS = {
    "init": {},
    "no init": {"init": False},
    "no pid namespace": {"namespaces": ["net"]},
    "guarded": {"no_new_privs": True},
    "guarded, no init": {"no_new_privs": True, "init": False},
    "guarded, no pid namespace": {"no_new_privs": True, "init": False, "namespaces": ["net"]},
    "plain": {"namespaces": ["net"], "init": False},
    "another's user namespace": {"namespaces": {"user": "worker:owner", "net": "worker:owner"}, "init": False},
    "user namespace": {"namespaces": ["user", "net", "pid", "mnt"]},
}


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A program, and the descriptor that is to be closed before it can be executed."""
    program = shutil.copy("/bin/sleep", tmp_path)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel asks for the lease back
    file = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield program, file
    finally:
        if os.path.exists(f"/proc/self/fd/{file}"):
            os.close(file)
        signal.signal(signal.SIGIO, before)


async def others_go_on(sup: nsorch.Supervisor, brief: nsorch.Worker) -> None:
    with anyio.fail_after(10):
        brief.signal(signal.SIGTERM)
        await brief.wait()
        for number, options in enumerate(({}, {"init": False}, {"namespaces": ["net"], "init": False})):
            worker = await sup.start(f"other{number}", ["sleep", "600"], **options)
            await worker.run(["true"])
            await worker.remove()
        await sup.start("passive")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_start_that_hangs(options: dict[str, object], leased: tuple[str, int], marker: str) -> None:
    program, lease = leased
    started: list[nsorch.Worker] = []

    async def start(name: str) -> None:
        started.append(await sup.start(name, [program, marker], **options))  # type: ignore[arg-type]

    async with nsorch.Supervisor() as sup:
        brief = await sup.start("brief", ["sleep", "600"])
        await sup.start("owner", namespaces=["user", "net"])
        async with anyio.create_task_group() as tasks:
            cancelled = anyio.CancelScope()

            async def start_in_vain() -> None:
                with cancelled:
                    await start("hung")

            tasks.start_soon(start_in_vain)
            tasks.start_soon(start, "late")
            await anyio.sleep(0.05)
            await others_go_on(sup, brief)
            cancelled.cancel()
            with anyio.fail_after(10):
                while "hung" in sup.workers:
                    await anyio.sleep(0.01)
            assert not started
            os.close(lease)
            with anyio.fail_after(10):
                while not started:
                    await anyio.sleep(0.01)
        assert [worker.name for worker in started] == ["late"]
        assert len(running(marker)) == 1


async def test_a_command_that_hangs(leased: tuple[str, int]) -> None:
    program, lease = leased
    async with nsorch.Supervisor() as sup:
        brief = await sup.start("brief", ["sleep", "600"])
        places = [await sup.start("live", ["sleep", "600"]), await sup.start("idle")]
        async with anyio.create_task_group() as tasks:
            for worker in places:
                tasks.start_soon(worker.run, [program, "0"])
            await anyio.sleep(0.05)
            await others_go_on(sup, brief)
            os.close(lease)


@pytest.mark.parametrize("init", [True, False])
async def test_what_concerns_all_who_share_memory_waits_a_while(leased: tuple[str, int], init: bool) -> None:
    program, lease = leased
    score = int(Path("/proc/self/oom_score_adj").read_text())
    async with nsorch.Supervisor() as sup:
        failed = anyio.Event()

        async def start_in_vain() -> None:
            with pytest.raises(nsorch.SetupError, match="ETIMEDOUT"):
                await sup.start("hung", [program, "600"], init=init)
            failed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_in_vain)
            await anyio.sleep(0.05)
            with anyio.fail_after(20):
                await sup.start("scored", ["sleep", "600"], oom_score_adj=score)
                await failed.wait()
        assert list(sup.workers) == ["scored"]
        os.close(lease)
