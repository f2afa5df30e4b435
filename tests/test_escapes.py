"""Known ways out of containers, tried here: each is named by its CVE where it has one."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import anyio
import pytest
from rootfs_support import make_rootfs

import nsorch
import nsorch.core.interpreter

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)
PYTHON = "/usr/bin/python3"  # one that every user can run


@pytest.fixture
def rootfs(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_rootfs(tmp_path / "rootfs")


# Looks at every process of its pid namespace, for as long as it still is a helper that will become a command. Who may
# open its mem may trace it (PTRACE_MODE_ATTACH); really tracing it would stop the command that it becomes.
_WATCH = """if True:
    import os, sys
    def is_helper(pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return file.read().rstrip(b"\\0") == b"nsorch"
        except OSError:
            return False
    def reach(pid):
        for what in ("exe", "root", "cwd"):
            try:
                os.stat(f"/proc/{pid}/{what}")
                yield what
            except OSError:
                pass
        for what, flags in (("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY)):
            try:
                with open(os.open(f"/proc/{pid}/{what}", flags)) as file:
                    yield what
            except OSError:
                pass
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):  # the numbers tell nothing
                os.stat(f"/proc/{pid}/fd/{fd}")
                yield "fd"
        except OSError:
            pass
    seen, reached = set(), set()
    print("ready", flush=True)
    while not os.path.exists("/dev/shm/stop"):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and is_helper(int(name)):
                seen.add(int(name))
                for what in reach(int(name)):
                    if is_helper(int(name)):
                        reached.add(what)
    print(len(seen), *sorted(reached), flush=True)
"""


@of_kernel
async def test_nobody_looks_into_what_enters(tmp_path: pathlib.Path) -> None:
    """CVE-2016-9962: a process of the worker traces, or reads the descriptors of, what ``run`` brings in."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", [PYTHON, "-c", _WATCH], isolation="container", rootfs="/", stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert await worker.stdout.receive() == b"ready\n"
        for _ in range(15):
            await worker.run(["true"])
        await worker.run(["touch", "/dev/shm/stop"], check=False)  # the worker may end before that does
        with anyio.fail_after(20):
            said = await worker.stdout.receive()
        count, *reached = said.decode().split()
        assert int(count) >= 2  # the init, and at least one that came in
        assert not reached


@of_kernel
@pytest.mark.parametrize("live", [True, False])
async def test_the_helpers_program_is_not_executed(rootfs: pathlib.Path, live: bool) -> None:
    """CVE-2019-5736: the command is a link to ``/proc/self/exe``, or a script that has it as its interpreter."""
    (rootfs / "bin/link").symlink_to("/proc/self/exe")
    for name, interpreter in (("script", "/proc/self/exe"), ("far", "/bin/script"), ("linked", "/bin/link")):
        (rootfs / "bin" / name).write_text(f"#!{interpreter}\nprint('reached')\n")
        (rootfs / "bin" / name).chmod(0o755)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"] if live else None, isolation="container", rootfs=rootfs)
        for name in ("link", "script", "far", "linked"):
            with pytest.raises(nsorch.NsorchError) as caught:
                await worker.run([name, "--version"])
            assert caught.value.errno in (errno.ELOOP, errno.EACCES), name  # as root no process may execute it
        with pytest.raises(nsorch.NsorchError):
            await worker.run(["/proc/1/exe", "--version"])
        with pytest.raises(nsorch.NsorchError):
            await sup.start("other", ["script"], isolation="container", rootfs=rootfs, init=False)
        (rootfs / "bin/fine").write_text("#!/bin/sh\necho fine $1\n")
        (rootfs / "bin/fine").chmod(0o755)
        assert (await worker.run(["fine", "x"])).stdout == b"fine x\n"


@of_kernel
async def test_the_helpers_program_is_closed_off() -> None:
    """CVE-2019-5736, where the link was swapped after the look: a worker that is trusted isn't looked at."""
    if os.geteuid():
        pytest.skip("a mount of its own takes root")
    async with nsorch.Supervisor() as sup:
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        with pytest.raises(PermissionError):
            subprocess.run([f"/proc/{stub}/exe", "--version"], check=True)
        with pytest.raises(OSError, match="Text file busy|Read-only"):
            os.open(f"/proc/{stub}/exe", os.O_WRONLY)
        for command in (None, ["sleep", "600"]):
            for user in (None, "1000:1000"):
                worker = await sup.start(f"w{command is None:d}{user is None:d}", command, user=user)
                with pytest.raises(nsorch.NsorchError) as caught:
                    await worker.run(["/proc/self/exe", "--version"])
                assert caught.value.errno == errno.EACCES


async def test_helpers_tell_nothing_of_the_host() -> None:
    """What anybody may read of a process: its name and its arguments."""
    async with nsorch.Supervisor() as sup:
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        for folder in (f"/proc/{stub}/", f"/proc/{stub}/task/{stub}/"):
            assert pathlib.Path(folder, "comm").read_text() == "nsorch\n"
            assert pathlib.Path(folder, "cmdline").read_bytes().rstrip(b"\0") == b"nsorch"
        worker = await sup.start("w", ["sleep", "600"], isolation="sandbox")
        assert (await worker.run("tr -d '\\0' < /proc/1/cmdline")).stdout in (b"nsorch", b"nsorch-init")


@of_kernel
async def test_the_callers_own_interpreter(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for an interpreter that its user may write to, without rights over mounts."""
    (tmp_path / "bin").mkdir()
    shutil.copy(PYTHON, tmp_path / "bin/python3")
    (tmp_path / "pyvenv.cfg").write_text(f"home = {os.path.dirname(PYTHON)}\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python3"))
    monkeypatch.setattr(nsorch.core.interpreter, "_on_own_mount", lambda interpreter: -1)
    async with nsorch.Supervisor(rootless=True) as sup:
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        assert os.readlink(f"/proc/{stub}/exe").startswith("/memfd:python")
        worker = await sup.start("w", ["sleep", "600"])
        script = "import os\nos.open('/proc/self/exe', os.O_WRONLY)"
        done = await worker.run(["/proc/self/exe", "-c", script], check=False)
        assert b"Text file busy" in done.stderr or b"not permitted" in done.stderr
        # When nobody runs it any more, it still can't be changed.
        with open(f"/proc/{stub}/exe", "rb") as file:
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        assert seals & fcntl.F_SEAL_SEAL
        assert (await worker.run(["echo", "fine"])).stdout == b"fine\n"


def test_an_interpreter_that_must_stay_where_it_is(tmp_path: pathlib.Path) -> None:
    for name, content in (("script", b"#!/bin/sh\nexec python3 $@\n"), ("elf", b"\x7fELF" + b"\0$ORIGIN/../lib\0")):
        (tmp_path / name).write_bytes(content)
        with nsorch.core.interpreter.guarded(str(tmp_path / name)) as program:
            assert program == (str(tmp_path / name), -1)


@pytest.mark.parametrize("live", [True, False])
async def test_no_descriptor_of_the_host(rootfs: pathlib.Path, live: bool) -> None:
    """CVE-2024-21626: the working directory is a descriptor of the helper's, that leads out."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"] if live else None, isolation="container", rootfs=rootfs)
        for number in range(3, 24):
            (rootfs / "out").unlink(missing_ok=True)
            (rootfs / "out").symlink_to(f"/proc/self/fd/{number}")
            for cwd in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../..", "/out", "/proc/1/cwd"):
                with pytest.raises(nsorch.NsorchError):
                    await worker.run(["cat", "etc/shadow"], cwd=cwd)
        shown = (await worker.run("ls -l /proc/self/fd")).stdout.decode()
        fds = {line.split()[-3]: line.split()[-1] for line in shown.splitlines() if " -> " in line}
        assert set(fds) <= {"0", "1", "2", "3"}  # ls has the folder open itself
        assert fds.get("3", "/proc/").startswith("/proc/")
        for number in range(24):  # nor a program
            with pytest.raises(nsorch.NsorchError):
                await worker.run([f"/proc/self/fd/{number}/bin/sh", "-c", "true"])


@pytest.mark.parametrize("live", [True, False])
async def test_who_joins_the_mounts_of_another(rootfs: pathlib.Path, live: bool) -> None:
    """The same for a worker whose files are a container's."""
    kinds = {"mnt": "worker:w", "net": True}
    async with nsorch.Supervisor() as sup:
        await sup.start("w", ["sleep", "600"], isolation="container", rootfs=rootfs)
        other = await sup.start("other", ["sleep", "600"] if live else None, namespaces=kinds, capabilities=["CHOWN"])
        plain = await sup.start("plain", ["sleep", "600"] if live else None, namespaces=kinds)
        for worker in (other, plain):
            for number in range(3, 24):
                (rootfs / "out").unlink(missing_ok=True)
                (rootfs / "out").symlink_to(f"/proc/self/fd/{number}")
                for cwd in (f"/proc/self/fd/{number}", "/out"):
                    with pytest.raises(nsorch.NsorchError):
                        await worker.run(["ls"], cwd=cwd)
            assert (await worker.run(["ls"], cwd="/etc")).stdout == b"group\nhosts\npasswd\n"


async def test_a_mask_shows_nothing_else(rootfs: pathlib.Path) -> None:
    """CVE-2025-31133: ``/dev/null`` is replaced, and what lies there now would be bound over what is to be masked."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", isolation="container", rootfs=rootfs)
        assert (await worker.run("cat /proc/keys /proc/timer_list")).stdout == b""
        done = await worker.run("rm /dev/null && ln -s /proc/sys/kernel/core_pattern /dev/null", check=False)
        if done.returncode:  # it is a mount there, and can't be replaced at all
            assert os.geteuid()
            return
        with pytest.raises(nsorch.SetupError, match="not the null device"):
            await worker.run(["true"])
        other = await sup.start("other", isolation="container", rootfs=rootfs)
        await other.run("rm /dev/null && touch /dev/null")
        with pytest.raises(nsorch.SetupError, match="not the null device"):
            await other.run(["true"])


async def test_no_console_to_be_replaced(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """CVE-2025-52565: nothing is bound at ``/dev/console``, nor made through ``/dev/pts``."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "dev").symlink_to(outside)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], isolation="container", rootfs=rootfs)
        assert "console" not in (await worker.run(["ls", "/dev/"])).stdout.decode()
        assert (await worker.run(["ls", "/dev/pts"])).stdout == b"ptmx\n"
    assert not list(outside.iterdir())


async def test_a_replaced_proc(rootfs: pathlib.Path) -> None:
    """A worker that may mount puts something else at ``/proc``: what enters it goes by the helper's own."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, oom_score_adj=321, no_new_privs=True)
        await worker.run("mount -t tmpfs none /proc && mkdir -p /proc/self && echo 7 > /proc/self/oom_score_adj")
        pid = (await worker.run("echo $$")).stdout
        assert int(pid) > 1
        async with await worker.popen(["sleep", "600"]) as process:
            assert pathlib.Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "321\n"
            assert "NoNewPrivs:\t1" in pathlib.Path(f"/proc/{process.pid}/status").read_text()


async def test_the_way_out_of_a_chroot(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The root is one by pivot_root: above it there is nothing."""
    (tmp_path / "secret").write_text("secret")
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs)
        await worker.run("mkdir -p /jail/bin")
        done = await worker.run("cd / && ls ../../../../.. && ls /proc/1/root/ && cat ../../secret", check=False)
        names = set(done.stdout.decode().split())
        assert "bin" in names
        assert "tmp" not in names
        assert b"secret" not in done.stdout


async def test_set_user_id_programs_give_nothing(rootfs: pathlib.Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a set-user-id program of another's")
    (rootfs / "bin/id").chmod(0o4755)
    async with nsorch.Supervisor() as sup:
        plain = await sup.start("plain", ["sleep", "600"], rootfs=rootfs, user="1000:1000")
        assert b"euid=0" in (await plain.run(["id"])).stdout
        worker = await sup.start("w", ["sleep", "600"], isolation="container", rootfs=rootfs, user="1000:1000")
        assert b"euid=0" not in (await worker.run(["id"])).stdout


async def test_devices_cannot_be_made(rootfs: pathlib.Path) -> None:
    """No block device of the host: neither by mknod, nor in a file system that the worker brought."""
    async with nsorch.Supervisor() as sup:
        for preset in ("container", "sandbox"):
            worker = await sup.start(preset, ["sleep", "600"], isolation=preset, rootfs=rootfs)
            done = await worker.run("mknod /dev/shm/disk b 8 0", check=False)
            assert done.returncode != 0


async def test_devices_of_an_image_are_none(rootfs: pathlib.Path) -> None:
    """A node that lies in the root file system could be the host's disk."""
    if os.geteuid():
        pytest.skip("only root can make one")
    os.mknod(rootfs / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (rootfs / "zero").chmod(0o666)
    async with nsorch.Supervisor() as sup:
        for preset in ("container", "sandbox"):
            for root in (rootfs, nsorch.overlay(rootfs)):
                worker = await sup.start("w", ["sleep", "600"], isolation=preset, rootfs=root)
                done = await worker.run("dd if=/zero of=/dev/null count=1", check=False)
                assert b"Permission denied" in done.stderr
                await worker.run("dd if=/dev/zero of=/dev/null count=1")
                await worker.remove()


async def test_interpreter_is_whole() -> None:
    """After all of these, of course."""
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True).stdout == b"1\n"
