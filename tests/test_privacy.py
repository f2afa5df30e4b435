"""Who else is the supervisor's user looks into no child of the helpers' before its exec."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import nsorch
from nsorch.core.launch import has_capability
from nsorch.core.spawner import launches, script
from nsorch.core.spawner.launches import Launches
from nsorch.core.spawner.privacy import CAP_SYS_PTRACE, dumps_end_sharers

SIX = ("user", "net", "mnt", "uts", "ipc", "pid")
# In the helper's pid namespace, without capabilities: opens what is open to it of the memory of others, until it is told
# to end, and says what they run.
LOOK = """
import os, select
seen = set()
os.write(1, b"ready")
while not select.select([0], [], [], 0)[0]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = os.readlink(f"/proc/{pid}/exe")
            os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
            if os.readlink(f"/proc/{pid}/exe") == program and int(pid) != os.getpid():
                seen.add(program)
        except OSError:
            pass
print(*seen, sep="\\n")
"""


@pytest.mark.anyio
@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("how", [{"namespaces": SIX}, {"capabilities": []}])
async def test_children_are_hidden(how: dict[str, Any], forked: bool) -> None:
    """Who has given all capabilities up would have them again, because the user is the same."""
    if forked:
        how = how | {"oom_score_adj": 1000}
    async with nsorch.Supervisor() as sup:
        looking = await sup.start(
            "looking",
            [sys.executable, "-S", "-c", LOOK],
            namespaces=("net", "mnt", "uts", "ipc"),
            capabilities=[],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert looking.stdin is not None
        assert looking.stdout is not None
        assert await looking.stdout.receive() == b"ready"
        for number in range(30):
            worker = await sup.start(f"w{number}", ["sleep", "600"], **how)
            init = (await worker.run(["cat", "/proc/1/comm"], check=False)).stdout
            await worker.remove()
        await looking.stdin.aclose()
        seen = b"".join([chunk async for chunk in looking.stdout]).decode().splitlines()
        if os.geteuid() == 0 and has_capability(CAP_SYS_PTRACE):
            assert {os.path.basename(program) for program in seen} <= {"sleep", "cat", "memfd:nsorch-init (deleted)"}
        else:  # it can't be hidden, but has none of the helper's own memory
            assert init == b"nsorch\n"


@pytest.mark.anyio
@pytest.mark.skipif(script.assembled(os.uname().machine) is None, reason="no script is assembled")
async def test_where_nobody_sees_them_scripts_serve() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=SIX)
        assert (await worker.run(["cat", "/proc/1/comm"])).stdout == b"nsorch-init\n"


@pytest.mark.anyio
@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("how", [{"isolation": "sandbox"}, {"user": "65534:65534"}])
async def test_the_helper_stays_hidden_from_users_that_children_become(how: dict[str, Any]) -> None:
    async with nsorch.Supervisor() as sup:
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        (spawner,) = map(int, pathlib.Path(f"/proc/{stub}/task/{stub}/children").read_text().split())
        for number in range(3):
            worker = await sup.start(f"w{number}", ["sleep", "600"], **how)
            assert os.stat(f"/proc/{worker.pid}").st_uid == 65534
            for file in ("mem", "environ", "exe"):
                look = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"]
                done = subprocess.run([*look, f"/proc/{spawner}/{file}"], capture_output=True, text=True)
                assert "Permission denied" in done.stderr
            # They begin without a fork.
            assert (await worker.run(["cat", "/proc/1/comm"])).stdout == b"nsorch-init\n"


@pytest.mark.parametrize(
    ("release", "ends"),
    [("5.15.0-91-generic", True), ("5.16.1", False), ("6.1-rc1", False), ("6.18.44", False), ("odd", True)],
)
def test_on_which_kernels_dumps_end_all_who_share_memory(
    release: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", release, "", "x86_64")))
    dumps_end_sharers.cache_clear()
    assert dumps_end_sharers() == ends
    monkeypatch.undo()
    dumps_end_sharers.cache_clear()


@pytest.mark.parametrize(
    ("dumpable", "ends", "hides"),
    [
        ("0", True, True),
        ("2", True, False),
        ("1", True, False),
        ("0", False, True),
        ("2", False, True),
        ("1", False, False),
    ],
)
def test_who_becomes_another_user_in_our_memory(
    dumpable: str, ends: bool, hides: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/suid_dumpable").write_text(f"{dumpable}\n")
    monkeypatch.setattr(launches, "dumps_end_sharers", lambda: ends)
    proc = os.open(tmp_path, os.O_PATH)
    home = SimpleNamespace(hidden=True, own_proc=proc, namespaces=(), null=proc)
    try:
        assert Launches(SimpleNamespace(home=home))._hides_others() == hides  # type: ignore[arg-type]
    finally:
        os.close(proc)
