"""Many namespaces without a process: a second helper process makes its part of them."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import signal
import socket
import sys

import anyio
import pytest

import nsorch
from nsorch.core.helper import Helper
from nsorch.core.jobs import Job
from nsorch.supervisor import starting

pytestmark = pytest.mark.anyio

COUNT = starting._MANY + 20


def specs(count: int = COUNT, **options: object) -> list[nsorch.WorkerSpec]:
    return [nsorch.WorkerSpec(name=f"w{number}", **options) for number in range(count)]


def helpers(sup: nsorch.Supervisor) -> list[int]:
    """The spawner, and its children that are no commands."""
    stub = sup._facts.pid
    (spawner,) = map(int, pathlib.Path(f"/proc/{stub}/task/{stub}/children").read_text().split())
    children = pathlib.Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    return [spawner, *map(int, children)]


def made_by(sup: nsorch.Supervisor, monkeypatch: pytest.MonkeyPatch) -> dict[str | None, bool]:
    """Whether it was the maker who answered, by the worker."""
    found: dict[str | None, bool] = {}
    hold = Job.hold

    def note(self: Job, fds: list[int]) -> None:
        found[self.worker] = self._channel is sup._helper._maker
        hold(self, fds)

    monkeypatch.setattr(Job, "hold", note)
    return found


async def test_both_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("before")
        before = helpers(sup)
        found = made_by(sup, monkeypatch)
        workers = await sup.start_all(specs(sysctls={"net.ipv4.ip_default_ttl": 33}))
        assert len(helpers(sup)) == len(before) + 1
        makers = [worker for worker in workers if found[worker.name]]
        others = [worker for worker in workers if not found[worker.name]]
        assert len(makers) >= COUNT // 10, "the second helper did next to nothing"
        assert len(others) >= COUNT // 10, "the spawner did next to nothing"
        inodes = {inode for worker in workers for inode in worker.namespaces.values()}
        assert len(inodes) == 4 * COUNT  # net, mnt, uts, ipc: none is anybody else's
        for worker in (makers[0], makers[-1], others[0], others[-1]):
            shown = await worker.run("hostname; cat /proc/sys/net/ipv4/ip_default_ttl; ls /sys/class/net")
            assert shown.stdout.split() == [worker.name.encode(), b"33", b"lo"]
            with await worker.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(("127.0.0.1", 9))  # the loopback is up
        await sup.start_all([nsorch.WorkerSpec(name=f"x{number}") for number in range(COUNT)])
        assert len(helpers(sup)) == len(before) + 1  # one is enough


async def test_few_need_none() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start_all(specs(starting._MANY - 1))
        assert sup._helper._maker is None


async def test_many_tasks_that_each_start_one() -> None:
    async with nsorch.Supervisor() as sup:
        async with anyio.create_task_group() as tasks:
            for spec in specs(2 * COUNT):
                tasks.start_soon(sup.start, spec.name)
        assert len(sup.workers) == 2 * COUNT
        assert sup._helper._maker is not None


async def test_not_what_takes_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        found = made_by(sup, monkeypatch)
        alone, first = specs(namespaces=["net", "user"]), nsorch.WorkerSpec(name="first")
        joining = [nsorch.WorkerSpec(name=f"j{number}", namespaces={"net": "worker:first"}) for number in range(COUNT)]
        await sup.start_all([*alone, first, *joining])
        assert not any(found[spec.name] for spec in alone)
        assert len({worker.namespaces["user"] for name, worker in sup.workers.items() if name[0] == "w"}) == COUNT


async def test_failures_are_named() -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start_all(specs())  # so that there is one from the start
        wrong = [
            nsorch.WorkerSpec(name=f"x{number}", sysctls={"net.ipv4.no_such_thing": 1} if number % 2 else {})
            for number in range(COUNT)
        ]
        with pytest.raises(ExceptionGroup) as info:
            await sup.start_all(wrong)
        for error in info.value.exceptions:
            assert isinstance(error, nsorch.NsorchError)
            assert error.stage == "sysctl"
            assert error.worker is not None
            assert int(error.worker[1:]) % 2
        assert len(sup.workers) == COUNT
        await sup.start_all([nsorch.WorkerSpec(name=spec.name) for spec in wrong])


@pytest.mark.skipif(os.geteuid() != 0, reason="sets the limits of its helpers")
@pytest.mark.parametrize("which", ["spawner", "maker"])
async def test_failures_leave_nothing(which: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("before")
        spawner, *before = helpers(sup)
        await sup.start_all(specs())
        (maker,) = set(helpers(sup)) - {spawner, *before}
        while sup._helper._maker is None:
            await anyio.sleep(0.001)
        pid, other = (spawner, sup._helper._maker) if which == "spawner" else (maker, sup._helper._spawner)
        assert other is not None
        other.under_way += COUNT  # so that it is asked for nothing
        with pytest.raises(nsorch.SetupError):
            await sup.start("first", sysctls={"net.ipv4.no_such_thing": 1})  # what it made before is closed then
        taken = os.listdir(f"/proc/{pid}/fd")
        free = (number for number in range(1000) if str(number) not in taken)
        *_, socket_number = (next(free) for _ in range(5))  # behind net, mnt, uts and ipc
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (socket_number, hard))
        for _ in range(3):
            with pytest.raises(nsorch.SetupError) as info:
                await sup.start("second")
            assert (info.value.stage, info.value.errno) == ("socket", errno.EMFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert os.listdir(f"/proc/{pid}/fd") == taken


@pytest.mark.parametrize("seconds", [0.005, 0.02, 0.05])
async def test_cancelled(seconds: float) -> None:
    async with nsorch.Supervisor() as sup:
        for _ in range(2):
            with anyio.move_on_after(seconds):
                await sup.start_all(specs(400))
            for worker in list(sup.workers.values()):
                await worker.remove()
        await sup.start_all(specs())


async def test_its_death_is_the_end_of_all() -> None:
    with pytest.raises(nsorch.SpawnerDiedError):
        async with nsorch.Supervisor() as sup:
            worker = await sup.start("main", ["sleep", "60"])
            before = helpers(sup)
            await sup.start_all(specs())
            (maker,) = set(helpers(sup)) - set(before)
            os.kill(maker, signal.SIGKILL)
            assert (await worker.wait()).signal == signal.SIGKILL
            await sup.start("later")


async def test_none_begins_while_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0

    async def begin(self: Helper, serving: anyio.CancelScope) -> None:
        nonlocal begun
        begun += 1

    monkeypatch.setattr(Helper, "_serve_maker", begin)
    with pytest.raises(nsorch.SpawnerDiedError):
        async with nsorch.Supervisor() as sup:
            tasks = sup._helper._tasks
            assert tasks is not None
            os.kill(sup._facts.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                while not sup._helper.died:
                    if tasks.cancel_scope.cancel_called:
                        sup._helper.add_maker()
                    await anyio.lowlevel.checkpoint()
    assert not begun


@pytest.mark.once
async def test_the_application_s_death_is_no_failure_of_its() -> None:
    program = """if True:
        import os, anyio, nsorch
        async def main():
            async with nsorch.Supervisor() as sup:
                sup._helper.add_maker()
                while sup._helper._maker is None:
                    await anyio.sleep(0.001)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(sup.start_all, [nsorch.WorkerSpec(name=f"w{n}") for n in range(400)])
                    await anyio.sleep(0.05)
                    os.kill(os.getpid(), 9)
        anyio.run(main)
    """
    for _ in range(5):
        done = await anyio.run_process([sys.executable, "-c", program], check=False)
        assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


async def test_without_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end_at_once(self: Helper, operation: str, *arguments: int, fds: tuple[int, ...] = ()) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        return ours.detach()

    monkeypatch.setattr(Helper, "_open", end_at_once)
    async with nsorch.Supervisor() as sup:
        await sup.start_all(specs())
        assert sup._helper._maker is None
        assert all(worker.state is nsorch.State.IDLE for worker in sup.workers.values())
