"""The init of a worker: the small one, what it is made of, and the forked one where a command is confined."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import signal
import subprocess
from typing import Any

import anyio
import pytest

import nsorch
from nsorch.core.spawner import pid1
from nsorch.core.spawner.stages import StageError

SOURCE = pathlib.Path(pid1.__file__).with_suffix(".S")
SMALL = pid1.assembled(os.uname().machine) is not None


@pytest.fixture(params=["small", "adopting", "forked"])
def confined(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a worker whose command the small init starts, or finds, or which has the other one."""
    if request.param != "forked" and not SMALL:
        pytest.skip(f"none is assembled for {os.uname().machine}")
    score = int(pathlib.Path("/proc/self/oom_score_adj").read_text())
    return {"small": {}, "adopting": {"capabilities": []}, "forked": {"oom_score_adj": score}}[request.param]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="assembled for x86-64")
@pytest.mark.skipif(shutil.which("as") is None or shutil.which("objcopy") is None, reason="no binutils")
def test_it_is_its_source(tmp_path: pathlib.Path) -> None:
    made, code = tmp_path / "pid1.o", tmp_path / "pid1.bin"
    subprocess.run(["as", "-o", made, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True)
    program = pid1.assembled("x86_64")
    assert program is not None
    assert program[64 + 2 * 56 :] == code.read_bytes()


@pytest.mark.skipif(not SMALL, reason="none is assembled")
def test_the_trial_leaves_no_core_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    wait, kill = os.waitpid, os.kill

    def wait_and_note(pid: int, options: int) -> tuple[int, int]:
        found = wait(pid, options)
        ended.append(os.WTERMSIG(found[1]))
        return found

    def kill_late(pid: int, number: int) -> None:
        """Once it has come to wait for signals, or has crashed."""
        while "(nsorch-init) S" not in (stat := pathlib.Path(f"/proc/{pid}/stat").read_text()) and ") Z" not in stat:
            pass
        kill(pid, number)

    monkeypatch.setattr(os, "waitpid", wait_and_note)
    monkeypatch.setattr(os, "kill", kill_late)
    init = pid1.Pid1.prepare()
    assert init is not None
    assert ended == [signal.SIGKILL]
    for fd in (init._file, init._reports, init._report):
        os.close(fd)


@pytest.mark.anyio
async def test_which_one(confined: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], **confined)
        found = await worker.run(["sh", "-c", "cat /proc/1/comm; readlink /proc/1/exe || echo hidden; echo $PPID"])
        name, program, _ = found.stdout.decode().splitlines()
        assert (name == "nsorch-init") == ("oom_score_adj" not in confined)
        # Where a command is confined, its init is out of its reach.
        assert program.startswith("/memfd:nsorch-init") == (not confined)
        done = await worker.run(["sh", "-c", "echo >/proc/1/exe"], check=False)
        assert done.returncode


@pytest.mark.anyio
@pytest.mark.parametrize("own_user", [True, False])
@pytest.mark.parametrize("capabilities", [None, []])
async def test_it_is_out_of_reach_in_a_user_namespace(capabilities: list[str] | None, own_user: bool) -> None:
    """Of its own, or without root: or a command could have it do what is forbidden to itself."""
    async with nsorch.Supervisor(rootless=not own_user or None) as sup:
        kinds = ["net", "mnt", "uts", "ipc", "pid", *(["user"] if own_user else [])]
        how: dict[str, Any] = {"no_new_privs": True, "capabilities": capabilities, "namespaces": kinds}
        worker = await sup.start("w", ["sleep", "600"], **how)
        assert not (await worker.run(["readlink", "/proc/self/exe"], check=False)).returncode
        assert (await worker.run(["readlink", "/proc/1/exe"], check=False)).returncode


@pytest.mark.anyio
async def test_it_is_the_parent_of_process_2(confined: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup:
        line = "echo $$ $PPID $(ps -o sid= -p $$ 2>/dev/null || echo $$); exec 2>&1; ls -l /proc/1/fd | wc -l"
        worker = await sup.start("w", ["sh", "-c", line], stdout=subprocess.PIPE, **confined)
        assert worker.stdout is not None
        words = (await _all(worker.stdout)).split()
        assert words[:3] == [b"2", b"1", b"2"]
        assert (await worker.wait()).code == 0


def parent_of(pid: int | None) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


async def _all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("line", "code", "number"),
    [("exit 0", 0, None), ("exit 143", 143, None), ("kill -TERM $$", None, 15), ("kill -KILL $$", None, 9)],
)
async def test_exit(confined: dict[str, Any], line: str, code: int | None, number: int | None) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", line], **confined)
        how = await worker.wait()
        assert (how.code, how.signal, how.expected) == (code, number, False)


@pytest.mark.anyio
async def test_a_pid_is_known_however_soon_it_ends(confined: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup, sup.events(since=0) as events:
        await sup.start_all([nsorch.WorkerSpec(name=f"w{i}", command=["true"], **confined) for i in range(40)])
        await sup.stop()
        spawned = [event async for event in events if isinstance(event, nsorch.WorkerSpawned)]
    assert len(spawned) == 40
    assert all(event.pid > 0 and event.namespaces["pid"] for event in spawned)


def test_an_init_that_is_gone() -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        with pytest.raises(StageError) as caught:
            pid1.Pid1.hear(bytes(4), 1 << 30, proc)
    finally:
        os.close(proc)
    assert caught.value.number == errno.ESRCH


@pytest.mark.anyio
async def test_signals_reach_the_command(confined: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup:
        line = 'trap "echo heard; exit 7" USR1; sleep 600 & echo ready; wait'
        worker = await sup.start("w", ["sh", "-c", line], stdout=subprocess.PIPE, **confined)
        assert worker.stdout is not None
        assert await worker.stdout.receive() == b"ready\n"
        os.kill(parent_of(worker.pid), signal.SIGUSR1)
        assert await _all(worker.stdout) == b"heard\n"
        assert (await worker.wait()).code == 7


@pytest.mark.anyio
async def test_orphans_are_reaped_and_end_with_the_command(confined: dict[str, Any], marker: str) -> None:
    async with nsorch.Supervisor() as sup:
        line = f"(sleep {marker} & sleep {marker} & (true & true &)) & read x"
        worker = await sup.start("w", ["sh", "-c", line], stdin=subprocess.PIPE, **confined)
        states = "sleep sleep"
        with anyio.fail_after(5):
            while await _below(worker) != states.split():
                await anyio.sleep(0.01)
        assert worker.stdin is not None
        await worker.stdin.aclose()
        assert (await worker.wait()).code is not None
        assert not await _running(marker)


async def _below(worker: nsorch.Worker) -> list[str]:
    """Names of the children of PID 1 but the command's; those that nobody reaps are among them."""
    done = await worker.run(
        ["sh", "-c", "for i in $(cat /proc/1/task/1/children); do cat /proc/$i/comm; done"], check=False
    )
    return done.stdout.decode().split()[1:]


async def _running(marker: str) -> bool:
    found = await anyio.run_process(["ps", "ax", "-o", "args"])
    return f"sleep {marker}" in found.stdout.decode()


@pytest.mark.anyio
async def test_what_fails_is_told(confined: dict[str, Any], tmp_path: pathlib.Path) -> None:
    os.chmod(tmp_path, 0o755)
    bad = tmp_path / "bad"
    bad.write_bytes(b"\0no program")
    bad.chmod(0o755)
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.SetupError, match="not executable") as failure:
            await sup.start("w", [str(bad)], cwd="/", **confined)
        assert failure.value.worker == "w"
        assert not sup.workers
        worker = await sup.start("w", ["sleep", "600"], **confined)
        with pytest.raises(nsorch.SetupError, match="not executable"):
            await worker.restart([str(bad)])


@pytest.mark.anyio
async def test_restarts_have_a_proc_of_their_own(confined: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], **confined)
        for _ in range(3):
            await worker.restart()
            # The parent goes on from vfork a moment before the kernel gives the process its new name.
            await worker.run("until grep -q sleep /proc/2/comm; do :; done", timeout=5)
        assert worker.incarnation == 4
