"""What a worker's processes may ask of the kernel."""

from __future__ import annotations

import errno
import os
import pathlib
import platform
import sys
from typing import Any

import pytest
from confinement_support import inside, refuse

import nsorch
from nsorch.core import seccomp

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)
SCORE = int(pathlib.Path("/proc/self/oom_score_adj").read_text())


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

    def missing(name: str | None, **_: object) -> None:
        raise OSError(name)

    seccomp._library.cache_clear()
    seccomp.default_profile.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(nsorch.UnsupportedError, match="libseccomp2"):
        seccomp.default_profile(frozenset())


@pytest.mark.anyio
async def test_a_profile_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    seccomp.default_profile.cache_clear()
    monkeypatch.setattr(os, "memfd_create", refuse)
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.SetupError, match=r"w: build the default profile.*EMFILE") as caught:
            await sup.start("w", seccomp="default", no_new_privs=True)
        assert (caught.value.stage, caught.value.errno) == ("seccomp", errno.EMFILE)
        monkeypatch.undo()
        await sup.start("w", seccomp="default", no_new_privs=True)
