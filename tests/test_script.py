"""Children that make a list of system calls: what the list means, and what they are in a supervisor."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import nsorch
from nsorch.core.spawner import script

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = pathlib.Path(script.__file__).with_suffix(".S")

pytestmark = pytest.mark.skipif(
    script.assembled(os.uname().machine) is None, reason=f"none is assembled for {os.uname().machine}"
)


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("objcopy") is None, reason="no binutils")
def test_it_is_its_source(tmp_path: pathlib.Path) -> None:
    made, code = tmp_path / "script.o", tmp_path / "script.bin"
    subprocess.run(["as", "-o", made, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True)
    assert script.assembled("x86_64") == code.read_bytes()


# -- the list; in an interpreter of its own, which blocks all signals and has one thread


def calls(lines: str) -> list[str]:
    """What a child writes that makes the calls which *lines* add, and ends by exit 7; then its status, and failure."""
    program = f"""
import os, signal, sys
from nsorch.core.spawner.script import *

def say(word, **how):
    line = word.encode() + b"\\n"
    s.call(("say", word), WRITE, 1, s.text(line), len(line), **how)

signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
s = Script()
{textwrap.dedent(lines)}
s.call(("exit", ""), 231, 7)
scripts = Scripts.prepare()  # the child runs in its memory
pid, pidfd = scripts.begin(s, 0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *(s.failure() or RuntimeError("none")).args)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.splitlines()


def test_one_after_the_other() -> None:
    assert calls("say('a'); say('b')") == ["a", "b", "7 none"]


def test_the_first_failure_ends_it_and_is_known() -> None:
    lines = "say('a'); s.call(('cwd', '/nowhere'), CHDIR, s.text(b'/nowhere')); say('b')"
    assert calls(lines) == ["a", "125 cwd 2 /nowhere"]


def test_what_may_fail() -> None:
    lines = "s.call(('cwd', ''), CHDIR, s.text(b'/nowhere'), failure=OPTIONAL); say('a')"
    assert calls(lines) == ["a", "7 none"]


@pytest.mark.parametrize(("where", "said"), [("/nowhere", ["a", "b"]), ("/", ["b"])])
def test_what_is_done_instead(where: str, said: list[str]) -> None:
    lines = f"s.call(('cwd', ''), CHDIR, s.text(b'{where}'), failure=OR_NEXT); say('a'); say('b')"
    assert calls(lines) == [*said, "7 none"]


def test_a_result_is_an_argument_of_later_ones() -> None:
    lines = """
    opened = s.call(('open', ''), OPENAT, -100, s.text(b'/proc/self/comm'), os.O_WRONLY)
    s.call(('write', ''), WRITE, opened, s.text(b'named'), 5)
    s.call(('write', ''), WRITE, opened, s.text(b'renamed'), 7)
    s.call(('streams', ''), DUP2, s.call(('streams', ''), DUP2, opened, opened), 9)
    s.call(('exec', ''), EXECVE, s.text(b'/bin/sh'), s.texts([b'sh', b'-c', b'echo ran; read x <&9']), s.texts([]))
    """
    assert calls(lines) == ["ran", "1 none"]  # 9 can't be read from
    assert calls(
        lines.replace("/bin/sh", "/bin/cat").replace(
            "b'sh', b'-c', b'echo ran; read x <&9'", "b'cat', b'/proc/self/comm'"
        )
    ) == ["cat", "0 none"]
    assert calls(lines.replace("O_WRONLY", "O_RDONLY")) == ["125 write 9 "]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("fails(ENOENT); say('a'); to_here(); say('b')", ["b", "7 none"]),
        ("say('a'); fails(ENOENT); say('b'); to_here(); say('c')", ["a", "c", "7 none"]),
        ("fails(EACCES); say('a'); to_here(); say('b')", ["125 fails 2 "]),
        ("say('a'); say('b'); to_here(); say('c')", ["a", "b", "c", "7 none"]),
    ],
)
def test_a_failure_leads_on_to_another_call(lines: str, said: list[str]) -> None:
    prepared = """
    from errno import EACCES, ENOENT
    tolerated = [ENOENT]
    def fails(*numbers):
        tolerated[:] = numbers
        s.call(("fails", ""), CHDIR, s.text(b"/nowhere"))
    def to_here():
        s.skip_failed(range(len(s)), errnos(*tolerated), len(s))
    """
    assert calls(textwrap.dedent(prepared) + lines) == said


def test_what_is_done_leads_on_to_another_call() -> None:
    assert calls("say('a'); say('b'); s.skip_done(0, len(s)); say('c')") == ["a", "c", "7 none"]


def test_parts_are_relative_to_themselves() -> None:
    part = """
    part = Script()
    opened = part.call(("open", ""), OPENAT, -100, part.text(b"/proc/self/comm"), os.O_WRONLY)
    part.call(("write", ""), WRITE, opened, part.text(b"renamed"), 7)
    part.call(("fails", ""), CHDIR, part.text(b"/nowhere"))
    part.call(("left out", ""), 231, 9)
    part.skip_failed(range(2, 3), ANY, 4)
    """
    lines = f"{textwrap.dedent(part)}\nsay('a'); s.add(part); say('b'); s.add(part); say('c')"
    assert calls(lines) == ["a", "b", "c", "7 none"]
    failing = lines + "; s.call(('last', 'x'), CHDIR, s.text(b'/nowhere'))"
    assert calls(failing) == ["a", "b", "c", "125 last 2 x"]


def test_programs_are_tried_as_execvp_does(tmp_path: pathlib.Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")

    def tried(*programs: object) -> list[str]:
        lines = "".join(
            f"s.call(('exec', '{n}'), EXECVE, s.text(b'{p}'), s.texts([b'sh', b'-c', b'echo ran']), s.texts([]),"
            f"failure=OR_NEXT_PROGRAM)\n"
            for n, p in enumerate(programs)
        )
        return calls(lines)

    plain.chmod(0o644)
    assert tried("/nowhere/sh", f"{plain}/sh", plain, tmp_path, "/bin/sh") == ["ran", "0 none"]
    assert tried("/nowhere/sh") == ["7 none"]
    plain.chmod(0o755)
    assert tried(plain, "/bin/sh") == ["125 exec 8 0"]  # ENOEXEC: that is it, and nothing else is


# -- in a supervisor


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
async def test_programs_are_those_of_the_workers_mounts(init: bool, tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], init=init)
        put = f"mount -t tmpfs none {tmp_path} && cp $(command -v sleep) {tmp_path}/mine && echo >{tmp_path}/bad"
        await worker.run(put)
        await worker.restart(["mine", "600"], env={"PATH": f"/nowhere:{tmp_path}"})
        assert worker.state is nsorch.State.RUNNING
        # An exec has happened a little before the name is another. Without the init, nobody has mounted its /proc.
        line = "until grep -q mine /proc/2/comm; do sleep 0.01; done"
        assert not init or (await worker.run(line, env=os.environ, timeout=5)).returncode == 0
        with pytest.raises(nsorch.CommandNotFoundError) as failure:
            await worker.restart(["theirs"], env={"PATH": str(tmp_path)})
        assert failure.value.worker == "w"
        with pytest.raises(nsorch.SetupError, match="not executable"):
            await worker.restart(["bad"], env={"PATH": str(tmp_path)})
        assert worker.state is nsorch.State.FAILED


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
async def test_a_directory_that_is_gone(init: bool, tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.SetupError, match="cwd"):
            await sup.start("w", ["sleep", "600"], init=init, cwd=tmp_path / "gone")
        assert not sup.workers


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
async def test_commands_have_no_signals_blocked_or_ignored(init: bool) -> None:
    async with nsorch.Supervisor() as sup:
        line = ["grep", "-E", "^Sig(Blk|Ign)|^ShdPnd", "/proc/self/status"]
        worker = await sup.start("w", line, init=init, stdout=subprocess.PIPE)
        assert worker.stdout is not None
        said = b"".join([chunk async for chunk in worker.stdout])
        states = dict(line.split(b":\t") for line in said.splitlines())
        # Neither SIGPIPE and SIGXFSZ, which Python ignores, nor 32 and 33, which glibc's posix_spawn does.
        assert int(states[b"SigIgn"], 16) == int(states[b"SigBlk"], 16) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("namespaces", [None, [], ["net"], ["user"]])
async def test_commands_that_need_no_script_have_none_either(namespaces: list[str] | None) -> None:
    """Those that run in a worker's namespaces, or in the helper's pid namespace."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=namespaces)
        said = (await worker.run(["cat", "/proc/self/status"])).stdout.decode()
        for text in (said, pathlib.Path(f"/proc/{worker.pid}/status").read_text()):
            states = dict(line.split(":\t") for line in text.splitlines() if line.startswith("Sig"))
            assert int(states["SigIgn"], 16) == int(states["SigBlk"], 16) == 0, states


async def start_beside(mixed: Sequence[dict[str, Any]], each: int = 15) -> list[nsorch.Worker]:
    """Workers that sleep, of each of the options, *each* times one after the other, all options at one time."""
    sup = nsorch.Supervisor()
    workers: list[nsorch.Worker] = []

    async def start(number: int, options: dict[str, Any]) -> None:
        for turn in range(each):
            workers.append(await sup.start(f"w{number}-{turn}", ["sleep", "600"], **options))

    async with sup:
        async with anyio.create_task_group() as tasks:
            for number, options in enumerate(mixed):
                tasks.start_soon(start, number, options)
        for worker in workers:
            expected = mixed[int(worker.name[1:].partition("-")[0])].get("oom_score_adj", own_oom_score())
            assert pathlib.Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == f"{expected}\n"
    return workers


def own_oom_score() -> int:
    return int(pathlib.Path("/proc/self/oom_score_adj").read_text())


@pytest.mark.anyio
async def test_beside_clocks_of_others() -> None:
    """Who enters a time namespace must share its memory with nobody."""
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("a kernel without time namespaces")
    shifted = {"time_offsets": {"boottime": 100.0}}
    assert await start_beside([{"init": False}, shifted, {"init": False}, {}, shifted | {"init": False}])


@pytest.mark.anyio
async def test_beside_scores_of_others() -> None:
    """A score is everybody's who shares the memory."""
    scored = {"oom_score_adj": own_oom_score() + 100, "init": False}
    assert await start_beside([{"init": False}, scored, {"init": False}, {}, scored])


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
async def test_signals_that_come_during_starts(init: bool) -> None:
    """No handler of the helper's runs in a child, whose memory is the helper's."""
    async with nsorch.Supervisor() as sup:
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        (spawner,) = map(int, pathlib.Path(f"/proc/{stub}/task/{stub}/children").read_text().split())

        def interrupt() -> None:
            children = pathlib.Path(f"/proc/{spawner}/task/{spawner}/children")
            while not ended:
                for pid in (spawner, *map(int, children.read_text().split())):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)

        ended: list[bool] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, interrupt)
            for number in range(40):
                await sup.start(f"w{number}", ["sleep", "600"], init=init)
            ended.append(True)
        assert len(sup.workers) == 40
