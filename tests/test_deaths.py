"""Nothing survives, whoever is killed and whenever; and a supervisor starts whatever the state of its caller."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import running

import nsorch
from nsorch.core.failures import translate
from nsorch.core.spawner import protocol
from nsorch.core.spawner.births import Births
from nsorch.core.spawner.stages import StageError, failure_of

PROGRAM = """
import multiprocessing, os, signal, sys, time
import anyio, nsorch

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may have it ignored

marker, count, backend, fork = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "fork"
script = f"(setsid sleep {marker} &) ; setsid sleep {marker} & exec sleep {marker}"

async def main():
    async with nsorch.Supervisor() as sup:
        started = await sup.wait_event(nsorch.SupervisorStarted, since=0)
        lan = await sup.bridge("lan", "10.0.0.0/16")
        if fork:
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        print(started.pid, flush=True)
        specs = [
            nsorch.WorkerSpec(
                name=f"w{n}",
                command=["sh", "-c", script],
                links=[lan] if n % 3 == 0 else [],
                namespaces=None if n % 2 else ["net", "mnt"],
            )
            for n in range(count)
        ]
        await sup.start_all(specs)
        if fork:
            child.start()
        print(child.pid if fork else "started", flush=True)
        await anyio.sleep_forever()

try:
    anyio.run(main, backend=backend)
except nsorch.SpawnerDiedError:
    print("SpawnerDiedError")
"""


class Lab:
    """The program above, in a process of its own."""

    def __init__(self, marker: str, count: int, backend: str, fork: bool = False) -> None:
        arguments = [marker, str(count), backend, "fork" if fork else ""]
        self.marker = marker
        self.app = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
        self.stub = int(self.line())
        with open(f"/proc/{self.stub}/task/{self.stub}/children") as file:
            self.spawner = int(file.read().split()[0])
        self.pids = {"app": self.app.pid, "stub": self.stub, "spawner": self.spawner}
        self.pidfds = {name: os.pidfd_open(pid) for name, pid in self.pids.items()}

    def line(self) -> str:
        assert self.app.stdout is not None
        return self.app.stdout.readline().strip()

    def kill(self, *names: str) -> None:
        for name in names:
            signal.pidfd_send_signal(self.pidfds[name], signal.SIGKILL)

    def await_end(self, seconds: float) -> None:
        """All three processes are gone, and everything that ran."""
        deadline = time.monotonic() + seconds
        for fd in self.pidfds.values():
            assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], "a process was left"
        mine = {self.app.pid}
        while set(running(self.marker)) - mine and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not set(running(self.marker)) - mine

    def close(self) -> str:
        output = self.app.communicate(timeout=20)[0]
        for fd in self.pidfds.values():
            os.close(fd)
        return output


VICTIMS = [
    ("app",), ("stub",), ("spawner",), ("app", "stub"), ("app", "spawner"), ("stub", "spawner"), ("app", "stub", "spawner"),
]  # fmt: skip


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
@pytest.mark.parametrize("moment", ["started", 0.0, 0.1])
def test_killed(victims: tuple[str, ...], moment: str | float, anyio_backend: str, marker: str) -> None:
    lab = Lab(marker, 30 if moment == "started" else 500, anyio_backend)
    try:
        if isinstance(moment, str):
            assert lab.line() == moment
        else:
            time.sleep(moment)
        lab.kill(*victims)
        lab.await_end(10)
    finally:
        output = lab.close()
    if "app" not in victims:
        assert output.splitlines()[-1] == "SpawnerDiedError"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signalled(number: int, anyio_backend: str, marker: str) -> None:
    lab = Lab(marker, 20, anyio_backend)
    assert lab.line() == "started"
    lab.app.send_signal(number)
    lab.await_end(10)
    with contextlib.suppress(ValueError):
        lab.close()


def namespaces_held(pid: int) -> list[str]:
    """What of namespaces is open in process *pid*."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return [target for target in found if target.startswith(("net:", "mnt:", "uts:", "ipc:", "user:"))]


def test_forked_child_lives_on(anyio_backend: str, marker: str) -> None:
    lab = Lab(marker, 12, anyio_backend, fork=True)
    child = int(lab.line())
    try:
        lab.kill("app")
        for name in ("stub", "spawner"):
            assert select.select([lab.pidfds[name]], [], [], 10)[0]
        deadline = time.monotonic() + 10
        while (held := namespaces_held(child)) and time.monotonic() < deadline:  # it may not have had its turn yet
            time.sleep(0.01)
        assert not held
        while set(running(marker)) - {child} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(running(marker)) <= {child}
    finally:
        os.kill(child, signal.SIGKILL)
        lab.app.stdout.close()  # type: ignore[union-attr]
        lab.app.wait()
        for fd in lab.pidfds.values():
            os.close(fd)


SMALL = """
import anyio, nsorch, sys

def check(holds, what):  # assert does nothing under -O
    if not holds:
        sys.exit(f"{what!r}")

async def main():
    async with nsorch.Supervisor() as sup:
        for init in (True, False):
            worker = await sup.start("w", ["sh", "-c", "exit 3"], init=init)
            ended = await worker.wait()
            check(ended.code == 3, ended)
            done = await worker.run(["sh", "-c", "umask; cat /proc/self/status; ls /proc/self/fd | wc -l"])
            await worker.remove()
        lines = done.stdout.decode().splitlines()
        check(lines[0] == "0022", lines)
        check(lines[-1] == "4", lines)  # the standard streams, and that of ls on the folder
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        check(int(status["SigBlk"], 16) == int(status["SigIgn"], 16) == 0, status)
        idle = await sup.start("idle")
        done = await idle.run(["readlink", "/proc/self/fd/0"], stdin=None)
        check(b"pidfd" not in done.stdout, done)  # nothing of the helper's is taken for a closed stream
        await idle.remove()
        await sup.bridge("lan", "10.0.0.0/24")
        await sup.start_all([nsorch.WorkerSpec(name=f"w{n}", links=["lan"]) for n in range(3)])
        reachable = await sup.ping_all(attempts=15)
        check(reachable.ok, reachable)

anyio.run(main)
open(sys.argv[1], "w").write("fine")
"""
PREPARATIONS = {
    "plain": "",
    "threads": "import threading, time; [threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(20)]",
    "closed streams": "import os; os.close(0); os.close(1); os.close(2)",
    "inheritable descriptors": "import os; [os.set_inheritable(os.open('/dev/null', 0), True) for _ in range(50)]",
    "ignored signals": "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 13, 14, 15, 17, 20)]",
    "blocked signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "umask": "import os; os.umask(0o777)",
    "deleted directory": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "odd path": "import sys; sys.path[:0] = ['', '/nonexistent', 'relative']",
    "a machine of 32 bits": "import ctypes; ctypes.CDLL(None).personality(8)",  # PER_LINUX32
    "few descriptors": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "heap": "heap = bytearray(300_000_000)",
}


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_any_caller(preparation: str, tmp_path: pathlib.Path) -> None:
    """Also under -O; the two run at a time."""
    if preparation == "deleted directory" and sys.version_info[:3] == (3, 13, 0):
        pytest.skip("Python 3.13.0 can't import socket in a deleted directory")

    def call(number: int, *flags: str) -> None:
        # Written through a descriptor that is opened first: the umask and the streams may be gone.
        target = tmp_path / str(number)
        target.touch()
        program = PREPARATIONS[preparation] + "\n" + SMALL
        done = subprocess.run(
            [sys.executable, *flags, "-c", program, str(target)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (flags, done.stderr)
        assert target.read_text() == "fine", flags

    with ThreadPoolExecutor() as pool:
        for called in (pool.submit(call, 1), pool.submit(call, 2, "-O")):
            called.result()


def test_below_another_user_namespace(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "done"
    target.touch()
    done = subprocess.run(
        ["unshare", "--map-root-user", sys.executable, "-c", SMALL, str(target)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert target.read_text() == "fine"


CHROOT = """
set -e
cd "$1"
if [ "$2" = mounted ]; then mount --bind . . && cd "$1"; fi
for each in /*; do
    if [ -L "$each" ]; then cp -d "$each" .; elif [ -d "$each" ]; then mkdir ".$each" && mount --rbind "$each" ".$each"; fi
done
touch below
shift 2
exec chroot . "$@"
"""
BELOW = """
import anyio, nsorch, sys

async def main():
    async with nsorch.Supervisor() as sup:
        for fields in ({}, {"command": ["sleep", "600"]}, {"rootfs": "/", "isolation": "container"}, {"namespaces": ["net"]}):
            worker = await sup.start("w", **fields)
            await worker.run("test -e /below")
            await worker.remove()

anyio.run(main)
open(sys.argv[1], "w").write("fine")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="who isn't root can make no user namespace below a chroot")
@pytest.mark.parametrize("kind", ["plain", "mounted"])
def test_below_a_chroot(kind: str, tmp_path: pathlib.Path) -> None:
    """Workers see what the application does, also where that is no mount point, and nothing above it."""
    target, top = tmp_path / "done", tmp_path / "top"
    target.touch()
    top.mkdir()
    command = [sys.executable, "-c", BELOW, str(target)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", CHROOT, "sh", str(top), kind, *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert target.read_text() == "fine"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has none of them")
@pytest.mark.parametrize("capability", ["sys_admin", "sys_chroot", "net_admin"])
def test_root_that_lacks_a_capability_works_below_a_user_namespace(capability: str, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "done"
    target.touch()
    done = subprocess.run(
        ["setpriv", f"--bounding-set=-{capability}", sys.executable, "-c", SMALL, str(target)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert target.read_text() == "fine"


def test_another_pid_namespaces_proc_is_told_of(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        ["unshare", "--map-root-user", "--pid", "--fork", sys.executable, "-c", SMALL, str(tmp_path / "done")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "UnsupportedError: nsorch needs the /proc of this pid namespace" in done.stderr


LIMITED = """
import anyio, nsorch, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[1])))
async def main():
    async with nsorch.Supervisor() as sup:
        try:
            await sup.start_all([nsorch.WorkerSpec(name=f"w{n}") for n in range(60)])
        except ExceptionGroup as exc:
            print(exc.exceptions[0], len(sup.workers))
        else:
            print("started", len(sup.workers))
        await sup.start("one-more", ["sleep", "9"])
anyio.run(main)
"""


@pytest.mark.parametrize(("hard", "expected"), [("4000", "started 60"), ("100", "RLIMIT_NOFILE")])
def test_limit_of_descriptors(hard: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, hard], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


FEW = """
import anyio, nsorch, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
async def main():
    try:
        async with nsorch.Supervisor(rootless=True):
            await anyio.sleep_forever()
    except nsorch.SetupError as exc:
        print(exc)
anyio.run(main)
"""


@pytest.mark.parametrize("limit", [23, 24])
def test_too_few_descriptors_for_the_helper(limit: int) -> None:
    done = subprocess.run([sys.executable, "-c", FEW, str(limit)], capture_output=True, text=True, timeout=60)
    assert "RLIMIT_NOFILE" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("told", [False, True])
def test_who_makes_namespaces_and_is_killed_before_it_tells_of_them(told: bool) -> None:
    """Without a command nobody else reports it."""
    server = types.SimpleNamespace(jobs={}, poll=select.poll(), failed=[], answered=[])
    server.fail = lambda job, failure: server.failed.append((job, failure.number))
    server.answer = lambda message, fds: server.answered.append(message)
    births = Births(server)  # type: ignore[arg-type]
    request = types.SimpleNamespace(job=7, command=None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    births._await_birth(request, os.getpid(), ours)  # type: ignore[arg-type]
    fd = ours.fileno()
    if told:
        protocol.send(theirs, (protocol.Event.DONE,))
        births.hear_one(fd)
    theirs.close()
    births.hear_one(fd)
    assert server.failed == ([] if told else [(7, errno.ESRCH)])
    assert len(server.answered) == told


@pytest.mark.parametrize("ended", [True, False])
def test_a_child_that_had_ended_when_its_ids_were_to_be_mapped(ended: bool) -> None:
    """The kernel says that these aren't the caller's: what /proc has of who has ended belongs to root."""
    child = os.posix_spawn("/bin/sleep", ["sleep", "0" if ended else "600"], os.environ)
    if ended:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    failure = failure_of(child, StageError("uid map", errno.EPERM))
    os.waitpid(child, 0)
    error = translate(failure.stage, failure.number, failure.detail, "w")
    assert isinstance(error, nsorch.SetupError if ended else nsorch.PermissionDeniedError)
    assert ("w: it was killed before its command ran" in str(error)) == ended
