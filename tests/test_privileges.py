"""What the processes of a worker may do: its own, and those that are started in it."""

from __future__ import annotations

import errno
import os
import pathlib
import platform
import pty
import re
import resource
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from rootfs_support import make_rootfs

import nsorch
from nsorch.topology.difference import difference
from nsorch.topology.presets import isolation_of
from nsorch.topology.privileges import CAPABILITIES, CAPABILITY_SETS

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)
ROOT = os.geteuid() == 0
SCORE = int(pathlib.Path("/proc/self/oom_score_adj").read_text())
OWN_USER = ["net", "mnt", "uts", "ipc", "pid", "user"]


def bits(names: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


async def inside(worker: nsorch.Worker) -> list[dict[str, str]]:
    """/proc/PID/status of the worker's own process, of what ``run`` starts, and of what ``popen`` starts."""
    assert worker.pid is not None
    found = [status(pathlib.Path(f"/proc/{worker.pid}/status").read_text())]
    found.append(status((await worker.run(["cat", "/proc/self/status"])).stdout.decode()))
    async with await worker.popen(["cat", "/proc/self/status"]) as process:
        assert process.stdout is not None
        found.append(status(b"".join([chunk async for chunk in process.stdout]).decode()))
    return found


def capability_sets(shown: dict[str, str]) -> dict[str, int]:
    keys = {"bounding": "CapBnd", "permitted": "CapPrm", "effective": "CapEff"}
    keys |= {"inheritable": "CapInh", "ambient": "CapAmb"}
    return {name: int(shown[key], 16) for name, key in keys.items()}


@pytest.mark.parametrize("init", [True, False])
async def test_capabilities(init: bool) -> None:
    chosen = ["NET_RAW", "CAP_CHOWN", "kill"]
    mask = bits(["NET_RAW", "CHOWN", "KILL"])
    async with nsorch.Supervisor(grace=0.1) as sup:  # as PID 1, a sleep ignores SIGTERM
        worker = await sup.start("w", ["sleep", "600"], capabilities=chosen, init=init)
        for shown in await inside(worker):
            assert set(capability_sets(shown).values()) == {mask}
        # Unless asked otherwise.
        free = await worker.run(["cat", "/proc/self/status"], confined=False)
        assert capability_sets(status(free.stdout.decode()))["effective"] & mask != 0
        assert capability_sets(status(free.stdout.decode()))["effective"] != mask


@pytest.mark.parametrize(
    "value", ["all", "ALL", ["all"], ["ALL"], ["CHOWN", "All"], {key: ["all"] for key in CAPABILITY_SETS}]
)
def test_all_capabilities(value: Any) -> None:
    assert nsorch.WorkerSpec(name="w", capabilities=value).capabilities == nsorch.Capabilities.only(*CAPABILITIES)


@pytest.mark.parametrize(
    ("value", "expected", "required"),
    [
        (["-all", "+NET_RAW"], {"NET_RAW"}, {"NET_RAW"}),  # as with other tools, in any order
        (["+NET_RAW", "-ALL"], {"NET_RAW"}, {"NET_RAW"}),
        (["-all"], set(), set()),
        (["+ALL", "-CHOWN"], {*CAPABILITIES} - {"CHOWN"}, set()),
        (["+all"], {*CAPABILITIES}, set()),
    ],
)
@pytest.mark.parametrize("preset", ["network", "sandbox"])
def test_changes_by_all_capabilities(value: list[str], expected: set[str], required: set[str], preset: str) -> None:
    isolation = isolation_of(nsorch.WorkerSpec(name="w", command=["true"], capabilities=value, isolation=preset))
    assert (isolation.capabilities, isolation.required) == (nsorch.Capabilities.only(*expected), required)


async def test_the_five_sets() -> None:
    sets = nsorch.Capabilities(
        bounding={"NET_RAW", "CHOWN", "KILL"},
        permitted={"NET_RAW", "CHOWN"},
        effective={"CHOWN"},
        inheritable={"NET_RAW"},
        ambient={"NET_RAW"},
    )
    async with nsorch.Supervisor() as sup:
        options = {"user": "1234:1234"} if ROOT else {"user": "1234:1234", "namespaces": OWN_USER}
        worker = await sup.start("w", ["sleep", "600"], capabilities=sets, **options)
        for shown in await inside(worker):
            # capabilities(7), for a uid other than 0: the ambient set is all that the exec leaves.
            assert capability_sets(shown) == {
                "bounding": bits(["NET_RAW", "CHOWN", "KILL"]),
                "permitted": bits(["NET_RAW"]),
                "effective": bits(["NET_RAW"]),
                "inheritable": bits(["NET_RAW"]),
                "ambient": bits(["NET_RAW"]),
            }


async def test_changes_of_a_preset(tmp_path: pathlib.Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w", ["sleep", "600"], isolation="container", rootfs=rootfs, capabilities=["+NET_RAW", "-CHOWN"]
        )
        effective = capability_sets((await inside(worker))[1])["effective"]
        assert effective & bits(["NET_RAW", "CHOWN", "SETUID"]) == bits(["NET_RAW", "SETUID"])


@pytest.mark.skipif(not ROOT, reason="the supervisor's user namespace has all of them")
async def test_a_capability_that_is_not_there() -> None:
    held = capability_sets(status(pathlib.Path("/proc/self/status").read_text()))["permitted"]
    missing = [name for number, name in enumerate(CAPABILITIES) if not held >> number & 1]
    if not missing:
        pytest.skip("root has them all here")
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.PermissionDeniedError, match=missing[0]):
            await sup.start("w", ["sleep", "600"], capabilities=missing)
        worker = await sup.start("w", ["sleep", "600"], capabilities="all")
        assert capability_sets((await inside(worker))[0])["effective"] == held


async def test_no_new_privs_rlimits_and_oom_score() -> None:
    own = resource.getrlimit(resource.RLIMIT_CORE)[1]
    core = 4096 if own == resource.RLIM_INFINITY else min(own, 4096)
    async with nsorch.Supervisor() as sup:
        for init in (True, False):
            worker = await sup.start(
                "w",
                ["sleep", "600"],
                init=init,
                no_new_privs=True,
                rlimits={"nofile": (64, 128), "RLIMIT_CORE": core, "cpu": "unlimited"},
                oom_score_adj=555,
            )
            for shown in await inside(worker):
                assert shown["NoNewPrivs"] == "1"
            limits = (await worker.run("ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj")).stdout.split()
            assert limits == [b"64", b"128", b"555"]
            assert pathlib.Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "555\n"
            assert re.search(r"Max open files +64 +128 ", pathlib.Path(f"/proc/{worker.pid}/limits").read_text())
            await worker.remove()
        # Of the helpers, and of others, none has it.
        other = await sup.start("other", ["sleep", "600"])
        assert (await other.run(["cat", "/proc/self/oom_score_adj"])).stdout != b"555\n"
        own_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if not ROOT and own_hard != resource.RLIM_INFINITY:
            with pytest.raises(nsorch.PermissionDeniedError, match="rlimits nofile"):
                await sup.start("w", ["true"], rlimits={"nofile": own_hard + 1})


@pytest.mark.parametrize("isolation", ["network", "sandbox"])
async def test_limits_are_the_commands_alone(isolation: str) -> None:
    async with nsorch.Supervisor() as sup:
        for name, limit in (("nofile", 3), ("as", 1 << 20)):
            worker = await sup.start(
                name,
                ["sleep", "600"],
                isolation=isolation,
                init=False,
                rlimits={name: limit},
                stderr=subprocess.DEVNULL,
            )
            with anyio.fail_after(10):
                ended = await worker.wait()
            # The dynamic loader's own words, or the kernel's while it loads: the command was executed.
            assert ended.code == 127 or ended.signal, ended
            assert (await worker.run(["true"], check=False)).returncode != 125


@pytest.mark.skipif(not ROOT, reason="needs root")
async def test_user_and_groups() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], user="1000:1001", groups=[1002, 1003])
        for shown in await inside(worker):
            assert shown["Uid"].split() == ["1000"] * 4
            assert shown["Gid"].split() == ["1001"] * 4
            assert shown["Groups"].split() == ["1002", "1003"]
        assert (await worker.run(["id", "-u"], user="7:8")).stdout == b"7\n"
        assert (await worker.run(["id", "-u"], confined=False)).stdout == b"0\n"


async def test_user_in_a_user_namespace() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=OWN_USER, user="1000:1001")
        for shown in (await inside(worker))[1:]:
            assert shown["Uid"].split() == ["1000"] * 4
            assert shown["Gid"].split() == ["1001"] * 4
        assert (await worker.run(["cat", "/proc/self/uid_map"])).stdout.split() == [b"1000", b"0", b"1"]
        with pytest.raises(nsorch.PermissionDeniedError, match="uid 7.*which has 1000"):
            await worker.run(["true"], user="7")


@pytest.mark.parametrize("isolation", ["network", "sandbox"])
async def test_unconfined_in_a_user_namespace(isolation: str) -> None:
    """All that the supervisor has there, also where its own user is not mapped."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], isolation=isolation, namespaces=OWN_USER)
        shown = status((await worker.run(["cat", "/proc/self/status"], confined=False)).stdout.decode())
        assert shown["Uid"].split() == ["0"] * 4
        assert capability_sets(shown)["effective"] & bits(CAPABILITIES) == capability_sets(shown)["bounding"]
        await worker.run("mount -t tmpfs none /mnt", confined=False)


@pytest.mark.parametrize("user", [None, "1000:1000"])
async def test_unconfined_where_nobody_is_uid_0(user: str | None) -> None:
    """An exec takes the capabilities from other uids: not here."""
    maps = {} if user else {"uid_map": [(1000, 0, 1)], "gid_map": [(1000, 0, 1)]}
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=OWN_USER, user=user, **maps)
        for confined in (True, False):
            shown = status((await worker.run(["cat", "/proc/self/status"], confined=confined)).stdout.decode())
            assert shown["Uid"].split() == ["1000"] * 4
            assert bool(capability_sets(shown)["effective"]) != confined
        await worker.run("mount -t tmpfs none /mnt", confined=False)


@pytest.mark.skipif(not ROOT, reason="needs more ids than the caller's")
@pytest.mark.parametrize(
    ("uids", "gids"),
    [
        ([(0, 100_000, 1000)], [(0, 100_000, 1000)]),
        ([(0, 100_000, 1000)], None),
        ([(1000, 100_000, 1)], [(1000, 100_000, 1)]),
        ([(0, 100_000, 1), (1000, 0, 1)], [(0, 100_000, 1)]),
    ],
)
@pytest.mark.parametrize("live", [True, False])
async def test_who_runs_with_ranges_of_ids(uids: list[Any], gids: list[Any] | None, live: bool) -> None:
    """The first of them, as in the worker's own process: not the supervisor's user, who is root to the host's files."""
    kinds = OWN_USER if live else [kind for kind in OWN_USER if kind != "pid"]
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"] if live else None, namespaces=kinds, uid_map=uids, gid_map=gids)
        for confined in (True, False):
            async with await worker.popen(["sleep", "600"], confined=confined) as process:
                for pid in (worker.pid or process.pid, process.pid):
                    shown = status(pathlib.Path(f"/proc/{pid}/status").read_text())
                    assert shown["Uid"].split() == ["100000"] * 4
                    assert shown["Gid"].split() == ["100000" if gids else "0"] * 4
                    assert not shown["Groups"].split()
            done = await worker.run("cat /etc/shadow", check=False, confined=confined)
            assert b"Permission denied" in done.stderr


@pytest.mark.skipif(ROOT, reason="root has all ids")
async def test_ids_that_nobody_gave() -> None:
    async with nsorch.Supervisor(subids=False) as sup:
        with pytest.raises(nsorch.PermissionDeniedError, match=r"map the gids 1 to 9 of outside.*namespace has 0:"):
            await sup.start("w", ["true"], namespaces=OWN_USER, gid_map=[(0, 0, 1), (1, 1, 9)])


@of_kernel
@pytest.mark.skipif(not ROOT, reason="needs more ids than the caller's")
async def test_ranges_of_ids() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w",
            ["sleep", "600"],
            namespaces=OWN_USER,
            uid_map=[(0, 100_000, 1000), (5000, 200_000, 10)],
            gid_map=[(0, 100_000, 1000)],
            user="10:20",
            groups=[30],
        )
        lines = (await worker.run(["cat", "/proc/self/uid_map"])).stdout.decode().splitlines()
        assert [list(map(int, line.split())) for line in lines] == [[0, 100_000, 1000], [5000, 200_000, 10]]
        assert os.stat(f"/proc/{worker.pid}").st_uid == 100_010
        assert (await worker.run(["id", "-G"])).stdout == b"20 30\n"
        assert (await worker.run(["id", "-u"], user="5009:0")).stdout == b"5009\n"


# -- seccomp


def refuse(number: int, error: int) -> bytes:
    """A program that lets the call *number* fail, whatever the architecture."""
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 1, number),  # jump if equal
            (0x06, 0, 0, 0x00050000 | error),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )


_CALLS = "import os, sys\ntry: os.mkdir(sys.argv[1])\nexcept OSError as e: print(e.errno)"
_MKDIR = {"x86_64": 83}.get(platform.machine(), 0)


@pytest.mark.skipif(not _MKDIR, reason="the number of mkdir isn't known here")
@pytest.mark.parametrize("source", ["bytes", "descriptor", "pipe", "path"])
@pytest.mark.parametrize("no_new_privs", [True, False])
async def test_seccomp_program(tmp_path: pathlib.Path, source: str, no_new_privs: bool) -> None:
    program = refuse(_MKDIR, errno.EXDEV)
    file = tmp_path / "program"
    file.write_bytes(program)
    with file.open("rb") as opened:
        ours, theirs = os.pipe()
        os.write(theirs, program)
        os.close(theirs)
        chosen = {"bytes": program, "descriptor": opened.fileno(), "pipe": ours, "path": file}[source]
        async with nsorch.Supervisor() as sup:
            worker = await sup.start("w", ["sleep", "600"], seccomp=chosen, no_new_privs=no_new_privs)
            done = await worker.run([sys.executable, "-c", _CALLS, str(tmp_path / "made")])
            assert done.stdout.split()[-1] == str(errno.EXDEV).encode()
            for shown in await inside(worker):
                assert shown["Seccomp"] == "2"
            await worker.run(["mkdir", str(tmp_path / "made")], confined=False)
            # A descriptor is the caller's again once the worker runs.
            os.close(ours)
            opened.close()
            await worker.restart()
            for shown in await inside(worker):
                assert shown["Seccomp"] == "2"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of calls of x86-64")
@pytest.mark.parametrize(("number", "stage"), [(157, "parent-death signal"), (14, "signals")])
@pytest.mark.parametrize("how", [{}, {"oom_score_adj": SCORE}, {"init": False}])
async def test_a_filter_that_forbids_what_comes_after_it(number: int, stage: str, how: dict[str, Any]) -> None:
    """Without no_new_privs it is there before prctl and rt_sigprocmask."""
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.PermissionDeniedError, match=stage) as failure:
            await sup.start("w", ["sleep", "600"], seccomp=refuse(number, errno.EPERM), **how)
        assert (failure.value.stage, failure.value.errno) == (stage, errno.EPERM)


_DENIED = """if True:
    import ctypes, errno, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *arguments):
        ctypes.set_errno(0)
        libc.syscall(number, *arguments)
        return errno.errorcode.get(ctypes.get_errno(), "ok")
    print("unshare", call(NUMBERS["unshare"], 0x10000000))
    print("mount", call(NUMBERS["mount"], b"none", b"/", b"tmpfs", 0, None))
    print("keyctl", call(NUMBERS["keyctl"], 0, -3, 0))
    print("bpf", call(NUMBERS["bpf"], 0, None, 0))
    print("clone", call(NUMBERS["clone"], 0x10000000 | 17, 0, 0, 0, 0))
    print("clone3", call(435, None, 0))
    print("io_uring", call(425, 1, None))
    print("ptrace", call(NUMBERS["ptrace"], 0, 0, 0, 0))
    print("tiocsti", call(NUMBERS["ioctl"], 0, 0x5412, b"x"))
    print("tiocsti-high", call(NUMBERS["ioctl"], 0, ctypes.c_ulong(1 << 32 | 0x5412), b"x"))
    print("fionread", call(NUMBERS["ioctl"], 0, 0x541B, ctypes.byref(ctypes.c_int())))
    for family in (socket.AF_UNIX, 38, 40):
        try: socket.socket(family, socket.SOCK_STREAM).close(); print("socket", family, "ok")
        except OSError as e: print("socket", family, errno.errorcode[e.errno])
    print("personality", call(NUMBERS["personality"], 0x0400000), call(NUMBERS["personality"], 0xffffffff))
    print("unknown", call(1023))
"""
_X86_64 = {
    "unshare": 272,
    "mount": 165,
    "keyctl": 250,
    "bpf": 321,
    "clone": 56,
    "ptrace": 101,
    "ioctl": 16,
    "personality": 135,
}


@of_kernel
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of calls of x86-64")
async def test_default_profile() -> None:
    program = f"NUMBERS = {_X86_64}\n" + _DENIED
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", seccomp="default", capabilities=[], no_new_privs=True)
        done = await worker.run([sys.executable, "-c", program])
        assert done.stdout.decode().splitlines() == [
            "unshare EPERM",
            "mount EPERM",
            "keyctl EPERM",
            "bpf EPERM",
            "clone EPERM",
            "clone3 ENOSYS",
            "io_uring EPERM",
            "ptrace ok",
            "tiocsti EPERM",
            "tiocsti-high EPERM",
            "fionread ENOTTY",
            "socket 1 ok",
            "socket 38 EPERM",
            "socket 40 EPERM",
            "personality EPERM ok",
            "unknown ENOSYS",
        ]
        # Threads, and ordinary programs.
        await worker.run([sys.executable, "-c", "import threading; threading.Thread(target=print).start()"])
        assert (await worker.run("echo $(echo a | cat) $(ls / | head -1)")).returncode == 0
        # With the capability, the calls that it is for.
        other = await sup.start("other", seccomp="default", no_new_privs=True)
        done = await other.run([sys.executable, "-c", program])
        assert b"unshare ok" in done.stdout
        assert b"tiocsti EPERM" in done.stdout


def test_no_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    from nsorch.core import seccomp

    def missing(name: str | None, **_: object) -> None:
        raise OSError(name)

    seccomp._library.cache_clear()
    seccomp.default_profile.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(nsorch.UnsupportedError, match="libseccomp2"):
        seccomp.default_profile(frozenset())


# -- other namespaces

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


# -- descriptions


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("capabilities", ["NET_ROW"], 'did you mean "NET_RAW"'),
        ("capabilities", ["+NET_RAW", "CHOWN"], "either all are changes"),
        ("capabilities", ["CAP_ALL"], 'there is no "CAP_ALL"'),
        ("capabilities", ["+all", "-ALL"], "added and dropped at once"),
        ("capabilities", {"ambient": ["CHOWN"]}, "must be permitted"),
        ("capabilities", {"other": []}, 'no set "other"'),
        ("groups", list(range(65537)), "groups: 65537 are more than the kernel takes"),
        ("rlimits", {"nofiles": 1}, 'there is no "nofiles"'),
        ("rlimits", {"nofile": (2, 1)}, "above the hard one"),
        ("rlimits", {"nofile": -5}, "rlimits.nofile"),
        ("oom_score_adj", 1001, "-1000 to 1000"),
        ("seccomp", b"1234", "no BPF program"),
        ("seccomp", "defualt", "neither default"),
        ("time_offsets", {"realtime": 1}, 'no clock "realtime"'),
        ("time_offsets", {"monotonic": "1h"}, "not a number of seconds"),
        ("uid_map", [(0, 0, 1)], "needs a user namespace"),
        ("uid_map", [(n, 4_000_000_000 + n, 1) for n in range(0, 600, 2)], "too many ranges"),
        ("isolation", "vm", '"vm" is none of network, container, sandbox'),
        ("isolation", "container", "rootfs: a worker with isolation"),
        ("mounts", [{"type": "bind", "src": "/x"}], r"mounts\[0\].dst: is missing"),
        ("mounts", [nsorch.tmpfs("/x"), {"type": "nfs"}], r"mounts\[1\].type"),
        ("mounts", [{"type": ["bind"]}], r"mounts\[0\].type"),
        ("mounts", [{"type": "tmpfs", "dst": "relative"}], "not an absolute path"),
        ("mounts", [{"type": "tmpfs", "dst": "/proc/x"}], "nothing can be mounted"),
        ("masked", ["relative"], r"masked\[0\]"),
        ("masked", ["/x", "//proc/."], r"masked\[1\].*can't be hidden"),
        ("masked", ["/"], "can't be hidden"),
        ("readonly_paths", ["/proc/../etc"], "can't be hidden"),
        ("rootfs", {"lower": [], "upper": "/x"}, "0 layers"),
        ("rootfs", {"lower": "/x", "work": "/y"}, "rootfs.work"),
        ("no_new_privs", "yes", "neither true nor false"),
        ("user", "a:b:c", 'user: "a:b:c"'),
        ("groups", "staff", "groups"),
    ],
)
def test_wrong_descriptions(field: str, value: object, problem: str) -> None:
    with pytest.raises(nsorch.TopologyError, match=problem) as caught:
        nsorch.Topology().worker("web", ["true"], **{field: value})
    plain = {"workers": {"web": {"command": ["true"], field: value}}}
    if field != "seccomp" and not (isinstance(value, list) and isinstance(value[0], nsorch.Tmpfs)):
        with pytest.raises(nsorch.TopologyError, match=problem) as caught:
            nsorch.Topology.from_dict(plain)
        assert caught.value.problems[0].startswith("workers.web.")


def test_namespaces_that_fields_contradict() -> None:
    for kind, fields in (("time", {"time_offsets": {"boottime": 1}}), ("cgroup", {"cgroup_namespace": True})):
        with pytest.raises(nsorch.TopologyError, match=rf"workers\.w\.{next(iter(fields))}: needs a {kind} namespace"):
            nsorch.Topology().worker("w", namespaces={"net": "new", kind: "host"}, **fields)
    for namespaces in (["net", "mnt", "cgroup"], {"mnt": True, "cgroup": "new"}):
        for preset in ("network", "sandbox"):
            with pytest.raises(
                nsorch.TopologyError, match=r"workers\.w\.cgroup_namespace: it is false, but namespaces"
            ):
                nsorch.Topology().worker("w", namespaces=namespaces, isolation=preset, cgroup_namespace=False)


def test_files(tmp_path: pathlib.Path) -> None:
    topology = nsorch.Topology()
    topology.worker(
        "all",
        ["true"],
        isolation="container",
        rootfs=nsorch.overlay("/a", "/b", upper="/c"),
        mounts=[nsorch.bind("/x", "/y", read_only=True), nsorch.tmpfs("/tmp", size="64m", mode=0o755)],
        user="1:2",
        groups=["staff", 3],
        capabilities=["+NET_RAW"],
        seccomp="/some/program",
        rlimits={"nofile": (1, "unlimited"), "core": 0},
        oom_score_adj=-5,
        time_offsets={"monotonic": 1.5},
        masked=[],
        readonly_paths=["/x"],
        readonly_root=True,
        no_new_privs=False,
        cgroup_namespace=False,
        domainname="x",
    )
    topology.worker("ids", namespaces=["user"], uid_map=[(0, 1, 2)], gid_map=[(0, 1, 2)], capabilities=["CHOWN"])
    topology.worker("sets", capabilities=nsorch.Capabilities(bounding="all"), rootfs="/a")
    topology.worker("every", capabilities="all")
    topology.worker("one", capabilities=["-all", "+NET_RAW"])
    topology.worker("unchanged", capabilities=nsorch.CapabilityChange(), isolation="sandbox")
    topology.worker("none", namespaces={})
    topology.worker("empty", env={}, capabilities=[], mounts=[], masked=[], namespaces=["user", "net", "mnt", "net"])
    for name in ("lab.toml", "lab.yaml", "lab.json"):
        topology.dump(tmp_path / name)
        loaded = nsorch.Topology.load(tmp_path / name)
        assert loaded.workers == topology.workers
    import jsonschema

    jsonschema.validate(topology.to_dict(), nsorch.Topology.json_schema())
    topology.worker("bytes", seccomp=refuse(1, 1))
    with pytest.raises(nsorch.TopologyError, match=r"workers.bytes.seccomp: .*can't be written to a file"):
        topology.to_dict()


def test_difference() -> None:
    old, new = nsorch.Topology(), nsorch.Topology()
    old.worker("web", ["sleep", "1"])
    new.worker("web", ["sleep", "1"], rlimits={"nofile": 5})
    assert [change.action for change in difference(old, new).changes] == ["restart"]
    other = nsorch.Topology()
    other.worker("web", ["sleep", "1"], rootfs="/x")
    assert [change.action for change in difference(old, other).changes] == ["replace"]


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ({"isolation": "sandbox"}, "replace"),
        ({"namespaces": OWN_USER}, "replace"),
        ({"namespaces": OWN_USER, "uid_map": [(0, 0, 9)], "gid_map": [(0, 0, 9)]}, "restart"),
        ({}, "restart"),
    ],
)
def test_difference_of_users(fields: dict[str, Any], action: str) -> None:
    """A user namespace that has the ids of one user can't have another."""
    old, new = nsorch.Topology(), nsorch.Topology()
    old.worker("web", ["sleep", "1"], **fields)
    new.worker("web", ["sleep", "1"], user="5:5", **fields)
    assert [change.action for change in difference(old, new).changes] == [action]


async def test_applied_to_a_lab() -> None:
    topology = nsorch.Topology()
    topology.worker("web", ["sleep", "600"])
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(topology)
        changed = nsorch.Topology()
        changed.worker("web", ["sleep", "600"], rlimits={"nofile": 77}, capabilities=["CHOWN"])
        await deployment.apply(changed)
        for shown in await inside(sup.workers["web"]):
            assert capability_sets(shown)["effective"] == bits(["CHOWN"])
        assert (await sup.workers["web"].run("ulimit -n")).stdout == b"77\n"
