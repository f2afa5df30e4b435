"""Root file systems that a script makes are those that a forked child makes."""

from __future__ import annotations

import fcntl
import marshal
import os
import pathlib
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from rootfs_support import make_rootfs

import nsorch
from nsorch.core.spawner import devices, script
from nsorch.core.spawner.protocol import Command, Mode, Own, Stream
from nsorch.core.spawner.rootfs import Root, encode
from nsorch.core.spawner.stages import StageError
from nsorch.core.spawner.writing import NoScriptError
from nsorch.core.spawner.written_roots import file_system, find_programs

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(
    script.assembled(os.uname().machine) is None, reason=f"no script is assembled for {os.uname().machine}"
)
SEVEN = ("user", "net", "mnt", "uts", "ipc", "pid", "cgroup")
# What a script can't do yet: the child is forked.
FORKED = {"oom_score_adj": int(pathlib.Path("/proc/self/oom_score_adj").read_text())}
LOOK = """
cat /proc/self/mountinfo; ls -la /dev /dev/shm /proc/sys/kernel; ls / /sys /sys/fs/cgroup; cat /etc/hosts; pwd
cat /proc/self/limits; grep -E "^(.id|Groups|Sig[BCI]|Cap|NoNew|Seccomp)" /proc/self/status
umask; env; mount -t tmpfs none /work; mknod /work/x c 1 3; id
"""


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = make_rootfs(tmp_path_factory.mktemp("written") / "rootfs")
    for folder in ("proc", "sys", "dev", "mnt", "data", "work"):
        (made / folder).mkdir()
    for file in ("etc/hosts", "file"):
        (made / file).touch()
    return made


def binds(rootfs: pathlib.Path) -> list[nsorch.Mount]:
    of_folder = nsorch.bind(str(rootfs / "etc"), "/data", read_only=True)
    return [of_folder, nsorch.tmpfs("/mnt", size="1M"), nsorch.bind(str(rootfs / "etc/passwd"), "/file")]


ALLOW = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")  # BPF_RET, SECCOMP_RET_ALLOW
HIDDEN = {
    "masked": ["/proc/kcore", "/proc/sys/kernel", "/sys/firmware", "/proc/nowhere"],
    "readonly_paths": ["/proc/sys", "/bin", "/nowhere"],
}
# What can be written, by the root file system.
KINDS: dict[str, Callable[[pathlib.Path], dict[str, Any]]] = {
    "directory": lambda _: {},
    "seven namespaces": lambda _: {"namespaces": SEVEN},
    "read-only": lambda _: {"readonly_root": True, "namespaces": SEVEN},
    "mounts": lambda rootfs: {"mounts": binds(rootfs)},
    "hidden": lambda _: HIDDEN,
    "hidden in seven": lambda _: {"namespaces": SEVEN, **HIDDEN},
    "container": lambda _: {"isolation": "container"},
    "container and more": lambda _: {"isolation": "container", "capabilities": ["+NET_ADMIN"], "user": "0:0"},
    "sandbox": lambda _: {"isolation": "sandbox"},
    "capabilities": lambda _: {"capabilities": ["NET_RAW", "CHOWN"], "rlimits": {"nofile": (64, 128), "core": 0}},
    "no new privileges": lambda _: {"no_new_privs": True, "namespaces": SEVEN, "seccomp": ALLOW},
    "filtered early": lambda _: {"seccomp": ALLOW, "rlimits": {"nofile": 64}},
    "elsewhere": lambda _: {"cwd": "/work", "namespaces": SEVEN, "hostname": "other", "domainname": "test"},
}


async def look(sup: nsorch.Supervisor, name: str, init: bool, **how: Any) -> str:
    worker = await sup.start(name, ["/bin/sh", "-c", LOOK], init=init, stdout=subprocess.PIPE, **how)
    assert worker.stdout is not None
    shown = b"".join([chunk async for chunk in worker.stdout]).decode(errors="replace")
    await worker.wait()
    await worker.remove()
    # Numbers of mounts, of devices and of peers, and when something was made.
    shown = re.sub(r"^\d+ \d+ \d+:\d+ ", "", shown, flags=re.MULTILINE)
    shown = re.sub(r"(shared|master):\d+ ?", "", shown)
    return re.sub(r"[A-Z][a-z]{2} +\d+ +\d\d:\d\d|nsorch-[\w.-]+", "", shown)


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_either_way_it_is_the_same(rootfs: pathlib.Path, kind: str, init: bool) -> None:
    how = {"rootfs": rootfs, **KINDS[kind](rootfs)}
    async with nsorch.Supervisor() as sup:
        written = await look(sup, "w", init, **how)
        assert written.count("\n") > 40
        assert written == await look(sup, "w", init, **how, **FORKED)


@pytest.mark.anyio
@pytest.mark.parametrize("hostile", [True, False])
async def test_who_has_rights_over_its_init_tells_nothing_of_others(rootfs: pathlib.Path, hostile: bool) -> None:
    how: dict[str, Any] = {"rootfs": rootfs, "namespaces": SEVEN} if hostile else {}
    forged = "for number in 1 2 3 4 5 6 7; do printf 0000000$number'\\003\\0\\0\\0'; done; printf zzzzzzzzzzzz; echo"
    line = f"for fd in /proc/1/fd/*; do ({forged}) >$fd; done; kill -TERM $$"
    async with nsorch.Supervisor() as sup:
        other = await sup.start("other", ["sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE)
        worker = await sup.start("w", ["/bin/sh", "-c", line], stderr=subprocess.DEVNULL, **how)
        end = await worker.wait()
        assert other.stdin is not None
        await other.stdin.aclose()
        if hostile:
            assert end.signal == 15
            assert (await other.wait()).code == 7
        await sup.start("next", ["true"])


@pytest.mark.anyio
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("how", [{}, FORKED])
async def test_programs_that_are_not_for_the_worker(rootfs: pathlib.Path, how: dict[str, Any], init: bool) -> None:
    for folder, mode in (("first", 0o700), ("second", 0o755)):
        (rootfs / folder).mkdir(exist_ok=True)
        shutil.copy(rootfs / "bin/true", rootfs / folder / "program")
        (rootfs / folder / "program").chmod(mode)
    if os.geteuid() == 0:
        os.chown(rootfs / "first/program", 1234, 1234)
    path = {"PATH": "/first:/second"}
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["program"], rootfs=rootfs, namespaces=SEVEN, env=path, init=init, **how)
        assert (await worker.wait()).code == 0
        with pytest.raises(nsorch.SetupError, match="exec /bin/true: Argument list too long"):
            await sup.start("long", ["/bin/true", "x" * 200_000], rootfs=rootfs, init=init, **how)


# -- what is written


def command(*argv: str, path: str = "/bin", guarded: bool = True) -> Command:
    env = marshal.dumps({b"PATH": path.encode()})
    streams = (Stream.NULL,) * 3
    words = tuple(word.encode() for word in argv)
    return Command(words, env, b"/", True, streams, Mode.EXEC, True, None, b"", guarded)


def test_programs_are_found_in_the_root(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    root = Root(directory=os.fsencode(rootfs), create=True, dev=True, sysfs=1, hosts=True)
    assert find_programs(command("sh"), encode(root)) == [b"/bin/sh"]
    assert find_programs(command("sh", path="/nowhere:/file/x:/bin"), encode(root)) == [b"/bin/sh"]
    assert find_programs(command("/bin/sh"), encode(root)) == [b"/bin/sh"]
    (rootfs / "alias").symlink_to("dev")
    (rootfs / "programs").symlink_to("bin")
    (rootfs / "dev/sub").mkdir()
    for unsuitable in (
        root._replace(overlay=((b"/",), b"", b"", 0, False)),
        root._replace(directory=os.fsencode(tmp_path / "gone")),
        root._replace(directory=os.fsencode(tmp_path)),  # no mount points
        root._replace(mounts=((False, b"/missing", (), 0),)),
        root._replace(mounts=((False, b"/dev/sub", (), 0),)),  # what it lies in is mounted before
        root._replace(mounts=((False, b"/bin", (), 0),)),  # hides the program
        root._replace(mounts=((False, b"/dev", (), 0),)),
        root._replace(mounts=((False, b"/alias", (), 0),)),
        root._replace(mounts=((False, b"/programs", (), 0),)),
        root._replace(mounts=((True, b"/etc/passwd", b"/bin/sh", True, False, False),)),
        root._replace(dev=False, mounts=((False, b"/dev", (), 0), (False, b"/alias/sub", (), 0))),
        root._replace(mounts=((False, b"/", (), 0),)),
    ):
        with pytest.raises(NoScriptError):
            find_programs(command("sh"), encode(unsuitable))


def test_who_has_a_lease_on_a_program_keeps_nobody_waiting(rootfs: pathlib.Path) -> None:
    program = rootfs / "work" / "leased"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    with open(program, "r+b") as file, pytest.raises(NoScriptError):
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # of which nothing comes
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        find_programs(command("/work/leased"), encode(Root(directory=os.fsencode(rootfs))))


def test_devices_that_the_host_hasnt(rootfs: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may make them needs none of the host's."""
    monkeypatch.setitem(devices.DEVICES, b"nowhere", 0)
    with pytest.raises(NoScriptError):
        file_system(encode(Root(directory=os.fsencode(rootfs), dev=True)), Own(), (), None)


def test_only_binaries_are_run_by_scripts(rootfs: pathlib.Path) -> None:
    root = encode(Root(directory=os.fsencode(rootfs)))
    for name, text, mode in (
        ("text", b"#!/bin/sh\n", 0o755),
        ("plain", b"\x7fELF", 0o644),
        ("empty", b"", 0o755),
        ("ours", b"\x7fELF", 0o750),
    ):
        (rootfs / "work" / name).write_bytes(text)
        (rootfs / "work" / name).chmod(mode)
        with pytest.raises(NoScriptError):
            find_programs(command(f"/work/{name}"), root)
    (rootfs / "work/link").symlink_to("/proc/self/exe")
    for word in ("/work/link", "/work", "nowhere"):
        with pytest.raises(NoScriptError):
            find_programs(command(word), root)


def test_programs_of_the_host() -> None:
    found = find_programs(command("sh", path="/nowhere:/bin"), b"")
    assert found == [b"/bin/sh"]
    with pytest.raises(StageError) as failure:
        find_programs(command("/proc/self/exe"), b"")
    assert failure.value.stage == "exec"


@pytest.mark.parametrize(
    ("root", "own"),
    [
        (Root(directory=b"/x", masked=(b"/etc/shadow",)), Own()),  # is it a directory?
        (Root(directory=b"/x", masked=(b"/proc/kcore",), dev=False), Own()),  # is /dev/null one?
    ],
)
def test_what_depends_on_the_kernels_answer_is_not_written(root: Root, own: Own) -> None:
    with pytest.raises(NoScriptError):
        file_system(encode(root), own, (), None)
