"""IPC, clocks, names, cgroups and keys that are a worker's own, and its terminal."""

from __future__ import annotations

import os
import platform
import pty
import subprocess
import sys

import pytest

import nsorch

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)
OWN_USER = ["net", "mnt", "uts", "ipc", "pid", "user"]


# With "make" also a shared memory segment, a queue of messages and a semaphore, else only whether they are there.
_SYSV = """if True:
    import ctypes, sys
    libc = ctypes.CDLL(None, use_errno=True)
    key, flags = 0x6E736F, 0o3600 if sys.argv[1] == "make" else 0  # IPC_CREAT, IPC_EXCL, rw
    found = libc.shmget(key, 4096, flags), libc.msgget(key, flags), libc.semget(key, 1, flags)
    print(*(number >= 0 for number in found))
"""


@pytest.mark.parametrize("preset", ["network", "container", "sandbox"])
async def test_sysv_ipc(preset: str) -> None:
    """ipcs of one worker shows nothing of another's, nor of the host's, and the host nothing of theirs."""
    python = "/usr/bin/python3"
    fields = {"isolation": preset, **({"rootfs": "/"} if preset == "container" else {})}

    async def seen_by(worker: nsorch.Worker, what: str = "see") -> bytes:
        return (await worker.run([python, "-c", _SYSV, what])).stdout

    async with nsorch.Supervisor() as sup:
        live = await sup.start("live", ["sleep", "600"], **fields)  # type: ignore[arg-type]
        passive = await sup.start("passive", **fields)  # type: ignore[arg-type]
        assert await seen_by(live, "make") == b"True True True\n"
        assert await seen_by(live) == b"True True True\n"
        assert await seen_by(passive) == b"False False False\n"
        assert subprocess.run([python, "-c", _SYSV, "see"], capture_output=True, check=True).stdout == (
            b"False False False\n"
        )
        for table in ("shm", "msg", "sem"):
            assert (await passive.run(f"wc -l < /proc/sysvipc/{table}")).stdout.strip() == b"1"
            assert (await live.run(f"wc -l < /proc/sysvipc/{table}")).stdout.strip() == b"2"
        # A shared one is one.
        friend = await sup.start("friend", namespaces={"ipc": "worker:live"})
        assert await seen_by(friend) == b"True True True\n"


async def test_time_offsets() -> None:
    clocks = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME))"
    import time

    for command, init in ((None, True), (["sleep", "600"], True), (["sleep", "600"], False)):
        for kinds in (None, OWN_USER if command else [kind for kind in OWN_USER if kind != "pid"]):
            async with nsorch.Supervisor(grace=0.1) as sup:  # as PID 1, a sleep ignores SIGTERM
                offsets = {"monotonic": 86_400, "boottime": 172_800.5}
                worker = await sup.start("w", command, init=init, time_offsets=offsets, namespaces=kinds)
                before = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
                seen = [float(word) for word in (await worker.run([sys.executable, "-c", clocks])).stdout.split()]
                assert 86_400 <= seen[0] - before[0] < 86_460
                assert 172_800.5 <= seen[1] - before[1] < 172_860
                assert "time" in worker.namespaces
                if command:
                    own = os.readlink(f"/proc/{worker.pid}/ns/time")
                    assert own == f"time:[{worker.namespaces['time']}]"
                # The helpers are back home.
                other = await sup.start("other", ["sleep", "600"])
                assert os.readlink(f"/proc/{other.pid}/ns/time") != f"time:[{worker.namespaces['time']}]"


async def test_time_offsets_to_the_nanosecond() -> None:
    async with nsorch.Supervisor() as sup:
        for number, (offset, written) in enumerate(
            {4.35: "4 350000000", -0.65: "-1 350000000", 2e-9: "0 2", -1e-10: "0 0", 3: "3 0"}.items()
        ):
            worker = await sup.start(f"w{number}", time_offsets={"monotonic": offset})
            said = (await worker.run(["cat", "/proc/self/timens_offsets"])).stdout.decode()
            assert " ".join(said.splitlines()[0].split()) == f"monotonic {written}"


@of_kernel
async def test_time_offsets_of_another_user() -> None:
    """In a user namespace whose only id is not the supervisor's: root's sandbox, and one with ranges."""
    import time

    outside = (0, 0, 1) if os.geteuid() else (0, 100_000, 1000)
    ranges = {"namespaces": ["user", "mnt", "pid"], "uid_map": [outside], "gid_map": [outside]}
    clock = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME))"
    async with nsorch.Supervisor(grace=0.1) as sup:
        for name, fields in (("sandbox", {"isolation": "sandbox"}), ("ranges", ranges)):
            worker = await sup.start(name, ["sleep", "600"], time_offsets={"boottime": 172_800.5}, **fields)  # type: ignore[arg-type]
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            seen = float((await worker.run(["/usr/bin/python3", "-c", clock])).stdout)
            assert 172_800.5 <= seen - before < 172_860, name


@of_kernel
@pytest.mark.parametrize("init", [True, False])
async def test_a_user_namespace_beside_joined_ones(init: bool) -> None:
    """Those of the user namespace above are entered before it, and its own after it."""
    async with nsorch.Supervisor() as sup:
        first = await sup.start("first", ["sleep", "600"], hostname="shared")
        kinds = {**dict.fromkeys(("net", "uts", "pid"), "worker:first"), **dict.fromkeys(("user", "mnt", "ipc"), "new")}
        worker = await sup.start("w", ["sleep", "600"], namespaces=kinds, init=init)
        third = await sup.start("third", namespaces={"ipc": "worker:w", "net": "worker:first", "mnt": "new"})
        names = [f"/proc/self/ns/{kind}" for kind in ("net", "uts", "pid", "ipc", "user")]

        async def seen_by(other: nsorch.Worker) -> list[bytes]:
            return (await other.run(["readlink", *names])).stdout.split()

        net, uts, pid, ipc, user = await seen_by(first)
        for _ in range(2):
            own = await seen_by(worker)
            assert own[:3] == [net, uts, pid]
            assert not {ipc, user} & set(own)
            assert own == [os.readlink(name.replace("self", str(worker.pid))).encode() for name in names]
            await worker.stop()
            await worker.restart()
        seen = await seen_by(third)
        assert (seen[0], *seen[3:]) == (net, *own[3:])


async def test_cgroup_namespace() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], cgroup_namespace=True)
        lines = (await worker.run(["cat", "/proc/self/cgroup"])).stdout.decode().splitlines()
        assert lines
        assert all(line.endswith(":/") for line in lines)
        link = (await worker.run(["readlink", "/proc/self/ns/cgroup"])).stdout.decode().strip()
        assert link == os.readlink(f"/proc/{worker.pid}/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")
        assert link == f"cgroup:[{worker.namespaces['cgroup']}]"
        passive = await sup.start("passive", cgroup_namespace=True)
        lines = (await passive.run(["cat", "/proc/self/cgroup"])).stdout.decode().splitlines()
        assert all(line.endswith(":/") for line in lines)


async def test_domainname_and_hostname() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", hostname="host", domainname="lab.example")
        text = (await worker.run(["cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"])).stdout
        assert text == b"host\nlab.example\n"
        with pytest.raises(nsorch.TopologyError, match="domainname"):
            await sup.start("other", domainname="x", namespaces=["net"])


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not os.path.exists("/proc/keys"), reason="no keyrings, or no number"
)
async def test_session_keyring() -> None:
    """Of a sandbox, its own; keyctl itself is what the default profile denies."""
    program = "import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 0))"
    own = subprocess.run(["/usr/bin/python3", "-c", program], capture_output=True, check=True).stdout
    shown = [own]
    async with nsorch.Supervisor() as sup:
        for name in ("a", "b"):
            worker = await sup.start(name, ["sleep", "600"], isolation="sandbox", seccomp="unconfined")
            shown.append((await worker.run(["/usr/bin/python3", "-c", program])).stdout)
    assert len(set(shown)) == 3
    assert all(int(number) > 0 for number in shown[1:])


@pytest.mark.parametrize("preset", ["network", "sandbox"])
async def test_no_keystroke_for_the_callers_terminal(preset: str) -> None:
    """TIOCSTI on a terminal that the command has as its standard input, but not as its controlling terminal."""
    program = "import fcntl, sys; fcntl.ioctl(0, 0x5412, b'x')"
    ours, theirs = pty.openpty()
    try:
        async with nsorch.Supervisor() as sup:
            options = {"capabilities": []} if preset == "network" else {}
            worker = await sup.start("w", isolation=preset, **options)
            done = await worker.run(["/usr/bin/python3", "-c", program], stdin=theirs, check=False)
            assert done.returncode != 0
            assert b"Error" in done.stderr
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(ours)
        os.close(theirs)
