"""Workers: their namespaces, their processes, and how these end."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import running, shown

import nsorch
from nsorch import State

pytestmark = pytest.mark.anyio
KINDS = ("net", "mnt", "uts", "ipc", "pid", "user")
SHOW = "cd /proc/self/ns; for n in net mnt uts ipc pid user; do readlink $n; done"


def inode(kind: str) -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


async def namespaces_in(worker: nsorch.Worker) -> dict[str, int]:
    done = await worker.run(["sh", "-c", SHOW])
    pairs = (line.split(":[") for line in done.stdout.decode().split())
    return {kind: int(number.rstrip("]")) for kind, number in pairs}


async def test_defaults() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("web", ["sleep", "600"])
        assert worker.state is State.RUNNING
        assert set(worker.namespaces) == {"net", "mnt", "uts", "ipc", "pid"}
        seen = await namespaces_in(worker)
        for kind in worker.namespaces:
            assert seen[kind] == worker.namespaces[kind] != inode(kind)
        assert worker.pid is not None
        assert await shown(worker.pid, "cmdline") == b"sleep\x00600\x00"
        assert (await worker.run(["hostname"])).stdout == b"web\n"
        pids = (await worker.run("ls /proc")).stdout.split()
        assert b"1" in pids
        assert len([p for p in pids if p.isdigit()]) <= 5


@pytest.mark.skipif(not os.path.exists("/etc/hosts"), reason="a host without /etc/hosts")
async def test_localhost_is_known_without_links() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"])
        assert (await worker.run(["cat", "/etc/hosts"])).stdout.startswith(b"127.0.0.1 localhost\n::1 localhost ")


@pytest.mark.parametrize("capabilities", [None, ["NET_RAW"]])
async def test_commands_of_a_stopped_worker_leave_no_mounts(capabilities: list[str] | None) -> None:
    async with nsorch.Supervisor(grace=0.1) as sup:
        worker = await sup.start("w", ["sleep", "600"], capabilities=capabilities)
        before = (await worker.run(["cat", "/proc/mounts"])).stdout
        await worker.stop()
        for confined in (False, True, True):  # the first shares the worker's mounts
            await worker.run(["true"], confined=confined)
        await worker.restart()
        assert (await worker.run(["cat", "/proc/mounts"])).stdout == before


async def test_commands_that_begin_while_their_worker_is_removed() -> None:
    async def run(worker: nsorch.Worker) -> None:
        with contextlib.suppress(nsorch.ClosedError):
            await worker.run(["true"], check=False)

    async with nsorch.Supervisor(grace=0.1) as sup, anyio.create_task_group() as tasks:
        for turn in range(60):
            worker = await sup.start(f"w{turn}")
            for _ in range(3):
                tasks.start_soon(run, worker)
            await anyio.sleep(turn * 0.0001)
            await worker.remove()


@pytest.mark.parametrize("init", [True, False])
async def test_commands_that_begin_while_the_process_ends(init: bool) -> None:
    """Each is killed with the pid namespace, or has a fresh one."""
    codes = []

    async def run(worker: nsorch.Worker) -> None:
        codes.append((await worker.run(["true"], check=False)).returncode)

    async with nsorch.Supervisor(grace=0.1) as sup:
        for turn in range(8):
            worker = await sup.start(f"w{turn}", ["sleep", "600"], init=init)
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(run, worker)
                await anyio.sleep(turn * 0.0001)
                worker.kill()
    assert set(codes) <= {0, -signal.SIGKILL}
    assert 0 in codes


async def test_passive() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("client")
        assert worker.state is State.IDLE
        assert worker.pid is None
        assert set(worker.namespaces) == {"net", "mnt", "uts", "ipc"}
        # Each command has a pid namespace of its own, with an init.
        done = await worker.run(["sh", "-c", "echo $$ $PPID; ls -d /proc/[0-9]*"])
        assert done.stdout == b"2 1\n/proc/1\n/proc/2\n"
        # Its mounts stay.
        await worker.run("mount -t tmpfs none /mnt && touch /mnt/here")
        assert (await worker.run(["ls", "/mnt"])).stdout == b"here\n"
        with pytest.raises(nsorch.ClosedError, match="passive"):
            await worker.wait()


@pytest.mark.parametrize(
    "chosen",
    [(), ("net",), ("uts", "ipc"), ("pid",), ("mnt", "pid"), ("user",), ("user", "net"), KINDS],
    ids="+".join,
)
async def test_any_subset(chosen: tuple[str, ...]) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=chosen)
        assert set(worker.namespaces) == set(chosen)
        seen = await namespaces_in(worker)
        for kind in ("net", "uts", "ipc"):
            assert (seen[kind] == inode(kind)) == (kind not in chosen), kind
        for kind in chosen:
            assert seen[kind] == worker.namespaces[kind]
        await worker.remove()
        passive = await sup.start("w", namespaces=set(chosen) - {"pid"})
        seen = await namespaces_in(passive)
        for kind in ("net", "uts", "ipc"):
            assert (seen[kind] == inode(kind)) == (kind not in chosen), kind


async def test_join() -> None:
    async with nsorch.Supervisor() as sup:
        first = await sup.start("first", ["sleep", "600"])
        specs = [
            nsorch.WorkerSpec(name="second", command=["sleep", "600"], namespaces={"net": "worker:third", "uts": True}),
            nsorch.WorkerSpec(name="third", namespaces=["net"]),
        ]
        second, third = await sup.start_all(specs)
        assert (await namespaces_in(second))["net"] == third.namespaces["net"]
        same_pids = await sup.start("pids", ["sleep", "600"], namespaces={"pid": first, "mnt": first})
        assert (await namespaces_in(same_pids))["pid"] == first.namespaces["pid"]
        by_pid = await sup.start("by-pid", namespaces={"net": nsorch.Pid(first.pid or 0)})
        assert (await namespaces_in(by_pid))["net"] == first.namespaces["net"]
        by_path = await sup.start("by-path", namespaces={"net": f"/proc/{first.pid}/ns/net"})
        assert (await namespaces_in(by_path))["net"] == first.namespaces["net"]
        fd = os.open(f"/proc/{first.pid}/ns/net", os.O_RDONLY)
        try:
            by_fd = await sup.start("by-fd", namespaces={"net": fd})
        finally:
            os.close(fd)
        assert (await namespaces_in(by_fd))["net"] == first.namespaces["net"]
        with pytest.raises(nsorch.SetupError, match="is a net namespace, not a uts one"):
            await sup.start("wrong", namespaces={"uts": f"/proc/{first.pid}/ns/net"})


@pytest.mark.parametrize("init", [True, False])
async def test_exit(init: bool) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", "exit 3"], init=init)
        ended = await worker.wait()
        assert (ended.code, ended.signal, ended.expected, ended.status) == (3, None, False, 3)
        assert ended.usage is not None
        assert ended.usage.max_rss > 0
        assert worker.state is State.EXITED
        assert worker.pid is None
        killed = await sup.start("k", ["sleep", "600"], init=init)
        killed.signal(signal.SIGKILL)
        ended = await killed.wait()
        assert (ended.code, ended.signal, ended.status) == (None, 9, 137)
        # Its namespaces stay.
        assert (await worker.run(["echo", "here"])).stdout == b"here\n"


async def test_init_is_first() -> None:
    script = "echo $$ $PPID; trap 'echo term; exit 5' TERM; sleep 600 & echo ready; wait"
    async with nsorch.Supervisor() as sup:
        with_init = await sup.start("a", ["sh", "-c", script], stdout=subprocess.PIPE)
        assert with_init.stdout is not None
        said = b""
        while b"ready" not in said:
            said += await with_init.stdout.receive()
        assert said == b"2 1\nready\n"
        # The init passes signals on.
        async with await with_init.popen(["sh", "-c", "read x; kill -TERM 1"], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            await process.stdin.send(b"now\n")
            await process.wait()
        assert (await with_init.wait()).code == 5
        without = await sup.start("b", ["sh", "-c", "echo $$ $PPID"], init=False, stdout=subprocess.PIPE)
        assert without.stdout is not None
        assert await without.stdout.receive() == b"1 0\n"


async def test_a_command_that_is_pid_1_has_a_proc_of_its_own() -> None:
    processes = "cd /proc; echo [0-9]*"
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", subnet="10.0.0.0/24")
        for name, links in (("alone", []), ("linked", [lan])):
            options = {"init": False, "stdout": subprocess.PIPE}
            worker = await sup.start(name, ["sh", "-c", f"{processes}; exec sleep 600"], links=links, **options)
            assert worker.stdout is not None
            assert await worker.stdout.receive() == b"1\n"
            await worker.restart()
            assert worker.stdout is not None
            assert await worker.stdout.receive() == b"1\n"
            assert (await worker.run("tr '\\0' ' ' </proc/1/cmdline")).stdout == b"sleep 600 "


async def test_orphans_are_reaped() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", "(sh -c 'sleep 0.05 &') ; sleep 600"])
        for _ in range(200):
            states = (await worker.run("cat /proc/[0-9]*/stat 2>/dev/null | cut -d' ' -f3 | sort -u")).stdout
            orphans = (await worker.run("cat /proc/[0-9]*/cmdline 2>/dev/null", check=False)).stdout
            if b"sleep\x000.05" not in orphans and b"Z" not in states:
                break
            await anyio.sleep(0.01)
        assert b"Z" not in states
        assert b"sleep\x000.05" not in orphans


async def test_nothing_begins_in_a_worker_that_goes() -> None:
    async with nsorch.Supervisor() as sup:
        workers = [await sup.start(name, command) for name, command in (("w", ["sleep", "600"]), ("p", None))]
        for worker in workers:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.remove)
                while not worker._leaving:
                    await checkpoint()
                assert worker.state is not State.REMOVED
                for call in (
                    partial(worker.run, ["true"]),
                    partial(worker.restart, ["true"]),
                    partial(worker.open_socket, socket.AF_INET, socket.SOCK_STREAM),
                ):
                    with pytest.raises(nsorch.ClosedError, match=worker.name):
                        await call()


async def test_a_command_is_asked_for_while_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"])

        async def enter(worker: nsorch.Worker) -> None:
            worker.kill()
            await worker.wait()

        monkeypatch.setattr(sup._wiring.watcher, "enter", enter)
        assert (await worker.run(["echo", "$$"])).stdout == b"$$\n"


async def test_remove_ends_what_popen_started(marker: str) -> None:
    async with nsorch.Supervisor() as sup:
        for command in (None, ["sleep", "600"]):
            worker = await sup.start("w", command, namespaces=["net"])
            async with await worker.popen(["sleep", marker]) as process:
                await worker.remove()
                assert not running(marker)
                with anyio.fail_after(5):
                    assert await process.wait() == -signal.SIGKILL


async def test_network_namespace_outlives_who_made_it() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        made = await sup.start("w", links=[lan])
        await sup.start("other", links=[lan])
        guests = [await sup.start(name, namespaces={"net": made}) for name in ("g1", "g2")]
        link = await sup.link("g1", "other", subnet="10.1.0.0/24")
        await made.remove()
        again = await sup.start("w", links=[lan])
        assert "eth0" in again.interfaces
        for guest in guests:
            assert b"eth1" in (await guest.run(["ip", "link"])).stdout
        await sup.link("g2", lan)
        assert list(guests[1].interfaces) == ["eth0"]
        assert not (await sup.ping_all([("g1", "other"), ("g2", "w"), ("w", "g2")])).loss
        await guests[0].run(["ip", "link", "set", "eth1", "down"])
        await sup.wait_event(nsorch.LinkDown, since=0, predicate=lambda event: event.link == link.name)
        await guests[0].remove()
        await guests[1].remove()


async def test_stop_restart_remove() -> None:
    async with nsorch.Supervisor() as sup:
        line = "trap 'exit 9' TERM; echo trapped; sleep 600 & wait"
        worker = await sup.start("w", ["sh", "-c", line], stdout=subprocess.PIPE)
        net, pid_namespace = worker.namespaces["net"], worker.namespaces["pid"]
        assert worker.stdout is not None
        assert await worker.stdout.receive() == b"trapped\n"
        ended = await worker.stop(grace=5)
        assert ended is not None
        assert (ended.code, ended.expected) == (9, True)
        await worker.restart(command=["sleep", "600"], env={"A": "b", "PATH": os.environ["PATH"]})
        assert worker.state is State.RUNNING
        assert worker.incarnation == 2
        assert worker.namespaces["net"] == net
        assert worker.namespaces["pid"] != pid_namespace
        assert b"A=b" in await shown(worker.pid, "environ")
        assert b"2\n" in (await worker.run("ls /proc")).stdout  # its own /proc again
        await worker.remove()
        assert worker.state is State.REMOVED
        assert "w" not in sup.workers
        await worker.remove()
        with pytest.raises(nsorch.ClosedError):
            await worker.run(["true"])
        await sup.start("w")


async def test_restarts_at_one_time(marker: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", marker])
        exits: list[nsorch.Exit] = []

        async def follow() -> None:
            exits.append(await worker.wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await checkpoint()
            async with anyio.create_task_group() as restarts:
                for _ in range(3):
                    restarts.start_soon(worker.restart)
            assert worker.incarnation == 4
            await shown(worker.pid, "cmdline")
            assert running(marker) == [worker.pid]
            assert not exits  # a restart has followed
            worker.kill()
        assert exits == [worker.exit]


@pytest.mark.parametrize("namespaces", [None, ["net"]])
async def test_stop_during_a_restart(namespaces: list[str] | None) -> None:
    outcomes = set()

    async def restart() -> None:
        try:
            await worker.restart()
        except nsorch.ClosedError as exc:
            assert "stopped while it was being restarted" in str(exc)
            outcomes.add("overtaken")
        else:
            outcomes.add("begun")

    async with nsorch.Supervisor() as sup, sup.events() as stream:
        worker = await sup.start("w", ["sleep", "600"], namespaces=namespaces)
        for turns in range(1, 100, 2):
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(restart)
                    for _ in range(turns):
                        await checkpoint()
                    await worker.stop(grace=30)
            assert (worker.pid, worker.state) == (None, State.EXITED)
        assert outcomes == {"overtaken", "begun"}
        await worker.remove()
        ends = []
        while not isinstance(event := await stream.receive(), nsorch.WorkerRemoved):
            assert not isinstance(event, nsorch.WorkerSetupFailed)
            ends += [event.exit] if isinstance(event, nsorch.WorkerExited) else []
        assert {(end.signal, end.expected) for end in ends} == {(signal.SIGTERM, True)}


async def test_what_is_asked_of_a_worker_that_is_being_started() -> None:
    """It waits for that, and is told so where nothing came of it."""
    async with nsorch.Supervisor() as sup:
        for command, asked in (
            (["sleep", "600"], lambda worker: worker.run(["readlink", "/proc/self/ns/net"])),
            (["/nonexistent"], lambda worker: worker.run(["true"])),
            (["/nonexistent"], lambda worker: worker.restart(["true"])),
        ):
            for turns in (1, 3, 6, 12):
                outcomes: list[object] = []

                async def ask(turns: int = turns, asked: Any = asked, outcomes: list[object] = outcomes) -> None:
                    for _ in range(turns):
                        await checkpoint()
                    if "w" in sup.workers:
                        try:
                            outcomes.append(await asked(sup.workers["w"]))
                        except nsorch.NsorchError as exc:
                            outcomes.append(exc)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask)
                    try:
                        worker = await sup.start("w", command)
                    except nsorch.CommandNotFoundError:
                        worker = None
                for outcome in outcomes:
                    if worker is None:
                        assert isinstance(outcome, nsorch.ClosedError), outcome
                    else:
                        assert isinstance(outcome, subprocess.CompletedProcess), outcome
                        assert outcome.stdout.decode() == f"net:[{worker.namespaces['net']}]\n"
                if worker is not None:
                    await worker.remove()


async def test_a_restart_overtakes_a_start_that_waits() -> None:
    async with nsorch.Supervisor() as sup:

        async def restart() -> None:
            await sup.wait_event(nsorch.WorkerStarted, worker="w", since=0)
            with contextlib.suppress(nsorch.NsorchError):  # the start undoes it
                await sup.workers["w"].restart(grace=1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(restart)
            with pytest.raises(nsorch.WorkerExitedError, match="signal"):
                await sup.start("w", ["sleep", "600"], ready=nsorch.tcp_ready(9))
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("as_file", [False, True])
async def test_a_restart_gets_no_other_file_by_an_old_number(tmp_path: pathlib.Path, as_file: bool) -> None:
    """A descriptor that was given and closed: what has its number now isn't for the worker."""
    log = open(tmp_path / "log", "wb", buffering=0)  # noqa: SIM115
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", "echo said"], stdout=log if as_file else log.fileno())
        await worker.wait()
        await worker.restart()
        await worker.wait()
        number = log.fileno()
        log.close()
        other = os.open(tmp_path / "secret", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        if other != number:
            os.dup2(other, number)
            os.close(other)
        try:
            with pytest.raises(nsorch.SetupError, match="stdout: the descriptor given at its start was closed"):
                await worker.restart()
        finally:
            os.close(number)
        with pytest.raises(nsorch.SetupError, match="stdout: the descriptor"):
            await worker.restart()
    assert (tmp_path / "log").read_text() == "said\n" * 2
    assert (tmp_path / "secret").read_text() == ""


async def test_restart_that_fails() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sh", "-c", "exit 3"])
        ended = await worker.wait()
        with pytest.raises(nsorch.CommandNotFoundError):
            await worker.restart(["/nonexistent"])
        assert worker.state is sup.snapshot().workers["w"].state is State.FAILED
        assert await worker.wait() == ended  # the latest process that there was
        passive = await sup.start("p")
        with pytest.raises(nsorch.CommandNotFoundError):
            await passive.restart(["/nonexistent"])
        with pytest.raises(nsorch.ClosedError, match="ever started"):
            await passive.wait()


async def test_stop_escalates() -> None:
    async with nsorch.Supervisor() as sup:
        line = "trap '' TERM; echo trapped; while :; do sleep 0.01; done"
        worker = await sup.start("w", ["sh", "-c", line], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert await worker.stdout.receive() == b"trapped\n"
        ended = await worker.stop(grace=0.05)
        assert ended is not None
        assert (ended.signal, ended.expected) == (9, True)


async def test_streams(tmp_path: os.PathLike[str]) -> None:
    target = os.path.join(tmp_path, "output")
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w",
            ["sh", "-c", "cat; echo err >&2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=target,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        stdin = worker.stdin

        async def feed() -> None:
            async with stdin:
                await stdin.send(b"x" * 1_000_000)

        size = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            async for chunk in worker.stdout:
                size += len(chunk)
        assert size == 1_000_000
        await worker.wait()
        with open(target) as file:
            assert file.read() == "err\n"


async def test_user() -> None:
    async with nsorch.Supervisor() as sup:
        if sup.rootless:
            with pytest.raises(nsorch.PermissionDeniedError, match="user namespace"):
                await sup.start("w", ["id"], user="nobody")
            return
        worker = await sup.start("w", ["sleep", "600"], user="65534:65534")
        await shown(worker.pid, "cmdline")
        assert os.stat(f"/proc/{worker.pid}").st_uid == 65534
        done = await worker.run(["id", "-u"], user="nobody")
        assert done.stdout == b"65534\n"
        for init in (True, False):
            other = await sup.start("o", ["sleep", "600"], user=65534, init=init)
            await shown(other.pid, "cmdline")  # until the exec is over the kernel shows root
            assert os.stat(f"/proc/{other.pid}").st_uid == 65534
            await other.remove()
        with pytest.raises(nsorch.SetupError, match="there is no user"):
            await sup.start("x", ["id"], user="nobody-has-this-name")


async def test_open_socket() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        with await worker.open_socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            assert sock.getblocking() is False
            sock.bind(("127.0.0.1", 80))  # nobody else's port 80
            assert sock.getsockname() == ("127.0.0.1", 80)


async def test_sysctls() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", sysctls={"net.ipv4.ip_default_ttl": 33}, forward=True)
        done = await worker.run("cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/net/ipv4/ip_forward")
        assert done.stdout == b"33\n1\n"
        with pytest.raises(nsorch.SetupError, match="net/no/such"):
            await sup.start("x", sysctls={"net.no.such": 1})
        assert "x" not in sup.workers


async def test_working_directory(tmp_path: os.PathLike[str]) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"])
        assert (await worker.run(["pwd"], cwd="/usr")).stdout == b"/usr\n"
        with pytest.raises(nsorch.SetupError, match="cwd"):
            await worker.run(["pwd"], cwd="/no/such/folder")


async def test_relative_working_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with subprocess it counts from the application's; in a root file system of the worker's own, from the root."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], cwd="sub")
        assert os.readlink(f"/proc/{worker.pid}/cwd") == str(tmp_path / "sub")
        assert (await worker.run(["pwd"])).stdout == f"{tmp_path}/sub\n".encode()
        assert (await worker.run(["pwd"], cwd=".")).stdout == f"{tmp_path}\n".encode()
        sandbox = await sup.start("sandbox", isolation="sandbox", cwd="usr")
        assert (await sandbox.run(["pwd"])).stdout == b"/usr\n"


@pytest.mark.parametrize("command", [None, ["sh", "-c", 'echo "$(pwd) $A ${HOME-none}"; exec sleep 600']])
async def test_commands_have_the_environment_and_the_directory_of_their_worker(command: list[str] | None) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", command, env={"A": "1"}, cwd="/usr", stdout=subprocess.PIPE)
        shown = 'echo "$(pwd) $A ${HOME-none}"'
        assert (await worker.run(shown)).stdout == b"/usr 1 none\n"
        if command is not None:
            assert worker.stdout is not None
            assert await worker.stdout.receive() == b"/usr 1 none\n"
            await worker.restart(env={"A": "2"})
            assert (await worker.run(shown)).stdout == b"/usr 2 none\n"
        assert (await worker.run(shown, env={"HOME": "/"}, cwd="/etc")).stdout == b"/etc  /\n"
        bare = await sup.start("bare", command and ["env"], env={}, stdout=subprocess.PIPE)
        assert (await bare.run(["env"])).stdout == b""
        if bare.stdout is not None:
            with pytest.raises(anyio.EndOfStream):
                await bare.stdout.receive()


@pytest.mark.parametrize("field", ["stdin", "stdout", "seccomp"])
async def test_a_fifo_that_nobody_opens_is_waited_for_until_a_cancellation(field: str, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with nsorch.Supervisor() as sup:
        before = len(os.listdir("/proc/self/fd"))
        with anyio.fail_after(5):
            with anyio.move_on_after(0.05) as scope:
                await sup.start("w", ["cat"], **{field: tmp_path / "fifo"})
            assert scope.cancelled_caught
        assert "w" not in sup.workers
        assert len(os.listdir("/proc/self/fd")) == before


async def test_fifos(tmp_path: pathlib.Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(sup.start, "w", ["cat"], stdin=tmp_path / "in", stdout=tmp_path / "out"))
        await anyio.Path(tmp_path / "in").write_text("through")
        assert await anyio.Path(tmp_path / "out").read_text() == "through"
        with pytest.raises(nsorch.SetupError, match="out is no namespace") as caught:
            await sup.start("x", namespaces={"net": tmp_path / "out"})
        assert (caught.value.stage, caught.value.errno) == ("setns", errno.EINVAL)


async def test_environment_and_large_arguments() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        done = await worker.run(["env"], env={"ONLY": "this", "PATH": "/usr/bin:/bin"})
        assert set(done.stdout.split()) >= {b"ONLY=this"}
        assert b"HOME=" not in done.stdout
        large = "x" * 120_000
        done = await worker.run([sys.executable, "-c", "import sys; print(sum(map(len, sys.argv[1:])))", large, large])
        assert done.stdout == b"240000\n"


async def test_host_pid_namespace() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces={"net": True, "pid": "host", "mnt": "host"})
        seen = await namespaces_in(worker)
        assert seen["pid"] == inode("pid")
        assert seen["mnt"] == inode("mnt")
        assert seen["net"] == worker.namespaces["net"] != inode("net")


async def test_what_a_command_leaves_in_the_host_pid_namespace(marker: str) -> None:
    """Nothing can be mounted there to look for it, where the supervisor has no rights in it."""
    async with nsorch.Supervisor() as sup:
        line = f"sleep {marker} & sleep {marker} & exit 3"
        worker = await sup.start("w", ["sh", "-c", line], namespaces={"net": True, "pid": "host"})
        with anyio.fail_after(10):
            assert (await worker.wait()).code == 3
        assert not running(marker)


async def test_what_a_command_leaves_in_the_pid_namespace_of_others(marker: str) -> None:
    """Whoever has another user namespace can mount nothing to look for it, and has other numbers there than outside."""
    line = f"sleep {marker} & sleep {marker} & exit 3"
    async with nsorch.Supervisor() as sup, nsorch.Supervisor() as other:
        await other.start("elsewhere", ["sleep", marker])  # which nothing here may kill
        host = await sup.start("host", ["sleep", "600"])
        walled = await sup.start("walled", ["sleep", "600"], namespaces=["user", "pid"])
        for namespaces in (["user"], {"pid": host, "user": True}, {"pid": walled}):
            worker = await sup.start("w", ["sh", "-c", line], namespaces=namespaces)
            with anyio.fail_after(10):
                assert (await worker.wait()).code == 3
            with pytest.raises(TimeoutError):
                await worker.run(["sh", "-c", f"setsid sleep {marker} & sleep {marker}"], timeout=0.1)
            await worker.restart(["sh", "-c", f"setsid sleep {marker} & sleep {marker}"])
            worker.kill()
            await worker.wait()
            assert len(running(marker)) == 1
            await worker.remove()


async def test_inherited_streams_are_those_of_the_call(tmp_path: pathlib.Path) -> None:
    """The application may have others since the helper was started."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        before = os.dup(1)
        try:
            with open(tmp_path / "out", "wb") as file:
                os.dup2(file.fileno(), 1)
            await (await sup.start("x", ["echo", "started"])).wait()
            await worker.run(["echo", "run"], stdout=None)
        finally:
            os.dup2(before, 1)
            os.close(before)
        assert (tmp_path / "out").read_bytes() == b"started\nrun\n"


async def test_wait_while_it_is_being_started() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        tasks.start_soon(partial(sup.start, "w", ["sh", "-c", "exit 3"], links=[lan]))
        await sup.wait_event("WorkerRequested", since=0)
        assert (await sup.workers["w"].wait()).code == 3


async def test_ready_at_a_name_of_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("the caller's resolver, for which its loop stands still")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    listen = "import socket, sys, time; s = socket.create_server((sys.argv[1], 80)); time.sleep(600)"
    async with nsorch.Supervisor(grace=0.1) as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        ready = nsorch.tcp_ready(80, host="web.lan")
        await sup.start("web", [sys.executable, "-c", listen, "10.0.0.1"], links=["lan"], ready=ready)
        with pytest.raises(nsorch.NotReadyError, match="TCP port 80 of nobody"):
            await sup.start("w", ["sleep", "600"], ready=nsorch.tcp_ready(80, host="nobody", timeout=0.1))
