"""The order in which the events of one worker or link come, whatever happens to it, and when."""

from __future__ import annotations

import contextlib
import random
import re
from subprocess import DEVNULL

import anyio
import pytest

import nsorch

pytestmark = pytest.mark.anyio

LETTERS = {
    "WorkerRequested": "q", "WorkerSpawned": "s", "WorkerStarted": "t", "WorkerReady": "r", "WorkerStopping": "p",
    "WorkerExited": "x", "WorkerSetupFailed": "f", "WorkerRemoved": "z",
    "LinkCreated": "c", "LinkUp": "u", "LinkDown": "d", "LinkRemoved": "z",
}  # fmt: skip
WORKER = re.compile("(q(str?p?x|f)*z)*")
LINK = re.compile("(c[ud]*z)*")


async def told(sup: nsorch.Supervisor) -> dict[str, str]:
    """Of each worker and link a letter for each of its events."""
    texts: dict[str, str] = {}
    async with sup.events(since=0, buffer=1 << 20) as events:
        async for event in events:
            if letter := LETTERS.get(event.kind):
                key = getattr(event, "link", event.worker)
                texts[key] = texts.get(key, "") + letter
    return texts


async def live(sup: nsorch.Supervisor, name: str, choose: random.Random) -> None:
    """One life of a worker, with others that stop, restart, kill and remove it meanwhile."""

    async def start() -> None:
        ready = choose.choice([None, nsorch.exec_ready(["true"]), nsorch.exec_ready(["false"], timeout=0.02)])
        command = choose.choice([["true"], ["sleep", "0.01"], ["sleep", "9"]])
        links = ["lan"] if choose.random() < 0.3 else []
        with contextlib.suppress(nsorch.NsorchError), anyio.move_on_after(choose.choice([9, 9, 0.01])):
            await sup.start(name, command, links=links, ready=ready, stdout=DEVNULL, init=choose.random() < 0.5)

    async def meddle() -> None:
        for _ in range(choose.randrange(4)):
            await anyio.sleep(choose.random() * 0.01)
            if (worker := sup.workers.get(name)) is None:
                continue
            with contextlib.suppress(nsorch.NsorchError), anyio.move_on_after(choose.choice([9, 0.01])):
                match choose.choice(["stop", "restart", "remove", "kill"]):
                    case "stop":
                        await worker.stop(grace=0.01)
                    case "restart":
                        await worker.restart(grace=0.01)
                    case "remove":
                        await worker.remove()
                    case "kill":
                        worker.kill()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        tasks.start_soon(meddle)
        tasks.start_soon(meddle)
    if worker := sup.workers.get(name):
        with contextlib.suppress(nsorch.ClosedError):
            await worker.remove()


@pytest.mark.parametrize("orderly", [True, False])
async def test_lives_of_workers_and_links(orderly: bool) -> None:
    async def live_on(number: int) -> None:
        choose = random.Random(number)
        for _ in range(4):
            await live(sup, f"w{number}", choose)

    sup = nsorch.Supervisor(grace=0.05)
    async with anyio.create_task_group() as tasks:
        async with sup:
            await sup.bridge("lan", subnet="10.0.0.0/24")
            async with anyio.create_task_group() as lives:
                for number in range(5):
                    (lives if orderly else tasks).start_soon(live_on, number)
            if not orderly:
                await sup.wait_event(nsorch.WorkerRemoved, since=0)
    texts = await told(sup)
    for key, text in texts.items():
        assert (LINK if ":" in key else WORKER).fullmatch(text), f"{key}: {text}"
    assert sum(map(len, texts.values())) > 20


async def test_ready_comes_before_the_exit_of_many_that_end_at_once() -> None:
    sup = nsorch.Supervisor()
    async with sup:
        await sup.start_all([nsorch.WorkerSpec(name=f"w{number}", command=["true"]) for number in range(20)])
        await sup.wait()
    assert set((await told(sup)).values()) == {"qstrxz"}


async def test_who_is_stopped_before_it_is_ready_is_never_ready() -> None:
    sup = nsorch.Supervisor(grace=0.1)
    async with sup:

        async def stop() -> None:
            await sup.wait_event(nsorch.WorkerStarted, worker="w", since=0)
            with contextlib.suppress(nsorch.ClosedError):
                await sup.workers["w"].stop()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            ready = nsorch.exec_ready(["sh", "-c", "kill -0 1; sleep 0.02"])
            with pytest.raises(nsorch.WorkerExitedError):
                await sup.start("w", ["sleep", "600"], ready=ready)
    assert (await told(sup))["w"] == "qstpxfz"
