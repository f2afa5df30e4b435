"""Root file systems and mounts of workers."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import stat
import threading
from typing import Any

import pytest
from rootfs_support import make_rootfs

import nsorch

pytestmark = pytest.mark.anyio
of_kernel = pytest.mark.vm(one_backend=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_rootfs(tmp_path_factory.mktemp("base") / "rootfs")


@pytest.fixture
def rootfs(base: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """One to be changed."""
    return make_rootfs(tmp_path / "rootfs")


async def say(worker: nsorch.Worker, line: str) -> str:
    done = await worker.run(line, check=False)
    return (done.stdout + done.stderr).decode()


def mounted(text: str) -> dict[str, tuple[str, list[str]]]:
    """(type, options) by mount point, of /proc/mounts."""
    return {line.split()[1]: (line.split()[2], line.split()[3].split(",")) for line in text.splitlines()}


@pytest.mark.parametrize("command", [None, ["sleep", "600"]], ids=["passive", "live"])
@pytest.mark.parametrize("init", [True, False])
async def test_directory(rootfs: pathlib.Path, command: list[str] | None, init: bool) -> None:
    async with nsorch.Supervisor(grace=0.1) as sup:  # as PID 1, a sleep ignores SIGTERM
        lan = await sup.bridge("lan", subnet="10.0.0.0/24")
        worker = await sup.start("web", command, rootfs=rootfs, links=[lan], init=init)
        assert set((await say(worker, "ls /")).split()) >= {"bin", "dev", "etc", "proc", "sys"}
        assert "No such file" in await say(worker, f"ls {rootfs}")
        table = mounted(await say(worker, "cat /proc/mounts"))
        assert table["/proc"][0] == "proc"
        assert table["/sys"][0] == "sysfs"
        assert {path: table[path][0] for path in ("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")} == {
            "/dev": "tmpfs",
            "/dev/pts": "devpts",
            "/dev/shm": "tmpfs",
            "/dev/mqueue": "mqueue",
        }
        # Its own pid namespace, its own interfaces, the lab's names.
        assert (await say(worker, "readlink /proc/self")).strip().isdigit()
        assert sorted((await say(worker, "ls /sys/class/net")).split()) == ["eth0", "lo"]
        assert "web.lan" in await say(worker, "cat /etc/hosts")
        assert "Read-only" in await say(worker, "echo x > /etc/hosts")
        await worker.run("touch /made")
        assert (rootfs / "made").exists()
    assert {entry.name for entry in rootfs.iterdir()} >= {"proc", "sys", "dev"}  # the mount points


@of_kernel
async def test_devices(rootfs: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs)
        names = {"null", "zero", "full", "random", "urandom", "tty"}
        links = {"fd", "stdin", "stdout", "stderr", "ptmx"}
        assert set((await say(worker, "ls /dev")).split()) == names | links | {"pts", "shm", "mqueue"}
        for name in names:
            inside = (await say(worker, f"stat -c '%t %T %a' /dev/{name}")).split()
            host = os.stat(f"/dev/{name}")
            assert stat.S_ISCHR(host.st_mode)
            assert inside == [f"{os.major(host.st_rdev):x}", f"{os.minor(host.st_rdev):x}", "666"], name
        await worker.run("echo x > /dev/null && echo x > /dev/shm/x && dd if=/dev/urandom of=/dev/shm/y count=1")
        assert "error" in await say(worker, "echo x > /dev/full")
        assert (await say(worker, "ls /dev/pts")).split() == ["ptmx"]
        assert (await say(worker, "stat -c %a /dev/pts/ptmx")).strip() == "666"
        assert not pathlib.Path("/dev/shm/x").exists()


async def test_private_mqueue_and_shm(rootfs: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        first = await sup.start("first", rootfs=rootfs)
        second = await sup.start("second", rootfs=rootfs)
        await first.run("touch /dev/mqueue/queue /dev/shm/memory")
        assert "queue" in await say(first, "ls /dev/mqueue")
        assert await say(second, "ls /dev/mqueue /dev/shm") == "/dev/mqueue:\n\n/dev/shm:\n"


@of_kernel
async def test_read_only_root(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w",
            ["sleep", "600"],
            rootfs=rootfs,
            readonly_root=True,
            mounts=[nsorch.bind(tmp_path / "data", "/data"), nsorch.tmpfs("/scratch/deep", size="1m", mode=0o700)],
        )
        assert "Read-only" in await say(worker, "touch /x")
        assert "Read-only" in await say(worker, "touch /etc/passwd")
        await worker.run("touch /data/x /scratch/deep/x /dev/shm/x")
        assert (tmp_path / "data/x").exists()
        assert mounted(await say(worker, "cat /proc/mounts"))["/scratch/deep"][1].count("size=1024k") == 1
        assert (await say(worker, "stat -c %a /scratch/deep")).strip() == "700"


async def test_host_root_read_only(tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], readonly_root=True)
        assert "Read-only" in await say(worker, f"touch {tmp_path}/x")
        assert await say(worker, f"ls {tmp_path.parent}") == "".join(
            f"{name}\n" for name in sorted(os.listdir(tmp_path.parent)) if not name.startswith(".")
        )
        await worker.run("touch /dev/shm/x")
    assert not list(tmp_path.iterdir())


async def test_binds(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A read-only bind is that with all that is mounted below its source; a file goes onto a file."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_text("of the host\n")
    async with nsorch.Supervisor() as sup:
        # What is mounted below: in another worker, whose mount namespace is joined.
        worker = await sup.start(
            "w",
            ["sleep", "600"],
            rootfs=rootfs,
            mounts=[
                nsorch.bind(source, "/rw"),
                nsorch.bind(source, "/ro", read_only=True),
                nsorch.bind(source / "file", "/etc/one-file", read_only=True),
                nsorch.tmpfs("/tmp", exec=False),
            ],
        )
        await worker.run("touch /rw/x && touch /rw/below/x")
        assert "Read-only" in await say(worker, "touch /ro/y")
        assert "Read-only" in await say(worker, "echo > /etc/one-file")
        assert await say(worker, "cat /etc/one-file") == "of the host\n"
        table = mounted(await say(worker, "cat /proc/mounts"))
        assert "noexec" in table["/tmp"][1]
        assert "ro" in table["/ro"][1]
        assert "rw" in table["/rw"][1]
    assert (source / "below/x").exists()


async def test_what_lies_above_where_a_link_leads(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As the kernel reads a path: LINK/.. is not where the link is."""
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    rootfs.rename(tmp_path / "real/root")
    for place, name in (("decoy", "src"), ("real", "src"), ("real", "upper")):
        (tmp_path / place / name).mkdir(parents=True)
        (tmp_path / place / name / "of").write_text(f"{place} {name}\n")
    for decoy in ("src", "upper"):
        (tmp_path / decoy).symlink_to("decoy/src")
    above = f"{tmp_path}/link/.."
    source = nsorch.bind(f"{above}/src")
    assert source.dst == f"{tmp_path}/real/src"
    async with nsorch.Supervisor() as sup:
        for root in (f"{above}/root", nsorch.overlay(f"{above}/root", upper=f"{above}/upper/.")):
            worker = await sup.start(
                f"w{len(sup.workers)}", rootfs=root, mounts=[source, nsorch.bind(f"{above}/src", "/src")]
            )
            assert await say(worker, f"cat /src/of {source.dst}/of") == "real src\n" * 2
        assert await say(worker, "cat /of") == "real upper\n"
    assert (tmp_path / "real/upper.work").is_dir()


async def test_no_working_directory(
    rootfs: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    async with nsorch.Supervisor() as sup:
        await sup.start("w", rootfs=rootfs, mounts=[nsorch.bind(tmp_path, "/x")])
        below = {"rootfs": "x"}, {"rootfs": nsorch.overlay("x")}, {"mounts": [nsorch.bind("x", "/x")]}
        for fields in below:
            with pytest.raises(
                nsorch.TopologyError, match=r'workers.other.[^ ]+: "x" is in the working directory, which'
            ):
                await sup.start("other", **fields)
    with pytest.raises(nsorch.TopologyError, match='src: "x" is in the working directory'):
        nsorch.bind("x")
    with pytest.raises(nsorch.TopologyError, match=r'rootfs.upper: "x" is in the working directory'):
        nsorch.overlay("/", upper="x", work="/work")


@of_kernel
async def test_recursive_read_only(tmp_path: pathlib.Path) -> None:
    """``/dev`` of the host has mounts below it: none of them is writable in a read-only bind."""
    async with nsorch.Supervisor() as sup:
        (tmp_path / "at").mkdir()
        worker = await sup.start("w", ["sleep", "600"], mounts=[nsorch.bind("/dev", tmp_path / "at", read_only=True)])
        table = mounted(await say(worker, "cat /proc/mounts"))
        below = [path for path in table if path.startswith(f"{tmp_path}/at/")]
        assert below
        assert all("ro" in table[path][1] for path in below)
        assert "Read-only" in await say(worker, f"touch {tmp_path}/at/shm/x")


async def test_private_tmp_without_rootfs(tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], mounts=[nsorch.tmpfs("/tmp")])
        await worker.run("touch /tmp/mine")
        assert await say(worker, "ls /tmp") == "mine\n"
        with pytest.raises(nsorch.SetupError, match=r"mount point /nowhere: .*none is made in the host's own files"):
            await sup.start("other", mounts=[nsorch.tmpfs("/nowhere")])
    assert not pathlib.Path("/tmp/mine").exists()
    assert not pathlib.Path("/nowhere").exists()


@pytest.mark.parametrize("command", [None, ["sleep", "600"]])
@pytest.mark.parametrize(
    "fields", [{"isolation": "sandbox"}, {"mounts": [nsorch.tmpfs("/tmp")]}], ids=["sandbox", "own tmpfs"]
)
async def test_mount_points_on_what_is_its_own(
    fields: dict[str, Any], command: list[str] | None, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("of the host\n")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    mounts = [*fields.get("mounts", ()), nsorch.bind(tmp_path, "/tmp/nsorch/deep"), nsorch.tmpfs("/tmp/nsorch/more")]
    mounts.append(nsorch.bind(tmp_path / "file", tmp_path / "other"))
    if "isolation" in fields:
        mounts.append(nsorch.bind("/dev/null", "/dev/nsorch"))
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", command, **{**fields, "mounts": mounts})
        assert await say(worker, f"cat /tmp/nsorch/deep/file {tmp_path}/other") == "of the host\n" * 2
        assert {mount.dst for mount in mounts} <= mounted(await say(worker, "cat /proc/mounts")).keys()
        with pytest.raises(nsorch.SetupError, match=r"mount point /nowhere/x: .*none is made in the host's own files"):
            await sup.start("other", **{**fields, "mounts": [nsorch.tmpfs("/tmp"), nsorch.tmpfs("/nowhere/x")]})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not os.path.exists("/tmp/nsorch")


@pytest.mark.skipif(not os.path.islink("/bin"), reason="/usr is no root file system here")
@pytest.mark.parametrize("given", [False, True], ids=["ephemeral", "given"])
@pytest.mark.parametrize("isolation", ["container", "sandbox"])
async def test_mount_points_missing_in_the_layers_of_others(
    isolation: str, given: bool, tmp_path: pathlib.Path
) -> None:
    """An image's files are root's, and neither an ordinary user nor a sandbox may make anything among them."""
    mounts = [nsorch.tmpfs("/lib/nsorch/deep"), nsorch.bind("/etc/passwd", "/bin/nsorch")]
    upper = tmp_path / "upper" if given else None
    if upper is not None:
        upper.mkdir()
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w", ["/bin/sleep", "600"], isolation=isolation, rootfs=nsorch.overlay("/usr", upper=upper), mounts=mounts
        )
        table = mounted(await say(worker, "cat /proc/mounts"))
        assert {"/etc/hosts", "/dev", "/proc", "/sys", "/lib/nsorch/deep", "/bin/nsorch"} <= table.keys()
        assert await say(worker, "stat -c %a /lib") == f"{os.stat('/usr/lib').st_mode & 0o7777:o}\n"
    assert not os.path.exists("/usr/lib/nsorch")
    assert not os.path.exists("/usr/bin/nsorch")


@of_kernel
@pytest.mark.parametrize("given", [False, True], ids=["ephemeral", "given"])
async def test_overlay(base: pathlib.Path, tmp_path: pathlib.Path, given: bool) -> None:
    top, upper = tmp_path / "top:layer", tmp_path / "upper"
    for folder in (top, upper):
        folder.mkdir()
    (top / "from-top").write_text("top\n")
    before = sorted(str(path) for path in base.rglob("*"))
    async with nsorch.Supervisor() as sup:
        layers = nsorch.overlay(top, base, upper=upper) if given else nsorch.overlay([top, base], size="16m")
        worker = await sup.start("w", ["sleep", "600"], rootfs=layers)
        assert await say(worker, "cat /from-top") == "top\n"
        await worker.run("touch /made && rm /etc/passwd && rm -r /from-top && mkdir /etc/deep && touch /etc/deep/x")
        assert "No such file" in await say(worker, "cat /etc/passwd /from-top")
        # What a worker sees doesn't tell where its layers lie.
        assert str(tmp_path) not in await say(worker, "cat /proc/mounts")
        other = await sup.start("other", rootfs=nsorch.overlay(base))
        assert "No such file" in await say(other, "ls /made")
    assert sorted(str(path) for path in base.rglob("*")) == before
    assert (upper / "made").exists() == given
    assert (top / "from-top").exists()


async def test_upper_directories(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One is one worker's, and its working directory beside it."""
    (tmp_path / "upper").mkdir()
    (tmp_path / "link").symlink_to("upper")
    first, same = (nsorch.overlay(base, upper=tmp_path / name) for name in ("upper", "link"))
    async with nsorch.Supervisor() as sup:
        for specs in ([("a", first), ("b", same)], [("c", same)]):
            with pytest.raises(nsorch.TopologyError, match=r'rootfs.upper: ".*upper" is that of "a" already'):
                await sup.start_all([nsorch.WorkerSpec(name=name, rootfs=rootfs) for name, rootfs in specs])
            if not sup.workers:
                await sup.start("a", rootfs=first)
        await sup.workers["a"].remove()
        await sup.start("c", rootfs=same)
        elsewhere = nsorch.overlay(base, upper=tmp_path, work="/dev/shm")
        with pytest.raises(nsorch.SetupError, match=r"rootfs /dev/shm: .*another file system than the upper"):
            await sup.start("d", rootfs=elsewhere)
    for work in ("upper", "upper/work", "."):
        with pytest.raises(nsorch.TopologyError, match=r"rootfs.work: is the upper directory, or"):
            nsorch.overlay(base, upper=tmp_path / "upper", work=tmp_path / work)
    layer = tmp_path / "layer"
    (layer / "sub").mkdir(parents=True)
    for lower, folders in (
        ("layer", {"upper": "link", "work": "layer"}),
        ("layer/sub", {"upper": "link", "work": "layer"}),
        ("layer", {"upper": "layer/../layer"}),
        ("link/../layer/sub", {"upper": "layer"}),
    ):
        wrong = list(folders)[-1]
        with pytest.raises(
            nsorch.TopologyError, match=rf'rootfs.{wrong}: the layer ".*{lower}" is the same directory, or'
        ):
            nsorch.overlay(base, tmp_path / lower, **{name: tmp_path / path for name, path in folders.items()})
    nsorch.overlay("/", upper=tmp_path / "upper", work=tmp_path / "layer")


@pytest.mark.parametrize("kinds", [None, ["user", "mnt", "pid", "net"]])
async def test_a_failed_start_leaves_no_working_directory(
    kinds: list[str] | None, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    upper, work = tmp_path / "upper", tmp_path / "upper.work"
    upper.mkdir()
    root = nsorch.overlay(base, upper=upper)
    async with nsorch.Supervisor() as sup:
        for fields in ({"mounts": [nsorch.bind("/nowhere", "/x")]}, {"command": ["/not/there"]}, {"command": ["/bin"]}):
            with pytest.raises(nsorch.NsorchError):
                await sup.start("w", rootfs=root, namespaces=kinds, **fields)
            assert not work.exists(), fields
        await (await sup.start("w", ["sleep", "600"], rootfs=root, namespaces=kinds)).remove()
        assert work.exists()
        with pytest.raises(nsorch.NsorchError):
            await sup.start("w", ["/not/there"], rootfs=root, namespaces=kinds)
        assert work.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
async def test_upper_directories_of_others(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Who is the first user of a user namespace owns both; else the kernel would make the overlay read-only, and say
    nothing."""
    kinds = ["net", "mnt", "uts", "ipc", "pid", "user"]
    ranges = [(0, 100_000, 1000)]
    upper = tmp_path / "upper"
    upper.mkdir()
    async with nsorch.Supervisor() as sup:
        for owner, fields in (
            (100_000, {"namespaces": kinds, "uid_map": ranges, "gid_map": ranges}),
            (65534, {"isolation": "sandbox", "readonly_root": False}),
        ):
            os.chown(upper, 0, 0)
            with pytest.raises(nsorch.PermissionDeniedError, match=r"overlay .*upper\.work: .* can't write to"):
                await sup.start("w", ["sleep", "600"], rootfs=nsorch.overlay(base, upper=upper), **fields)
            assert not (tmp_path / "upper.work").exists()
            os.chown(upper, owner, owner)
            worker = await sup.start("w", ["sleep", "600"], rootfs=nsorch.overlay(base, upper=upper), **fields)
            assert await say(worker, f"touch /of-{owner}") == ""
            await worker.remove()
            assert (upper / f"of-{owner}").stat().st_uid == owner
            shutil.rmtree(tmp_path / "upper.work")


@of_kernel
async def test_overlay_of_many_layers(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    layers = [tmp_path / str(number) for number in range(100)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"from-{number}").touch()
        (layer / "all").write_text(f"{number}\n")
    (tmp_path / "upper").mkdir()
    async with nsorch.Supervisor() as sup:
        for isolation, upper in (("network", None), ("network", tmp_path / "upper"), ("sandbox", None)):
            rootfs = nsorch.overlay([*layers, base], upper=upper)
            worker = await sup.start("w", rootfs=rootfs, isolation=isolation)
            assert await say(worker, "cat /all; ls /from-0 /from-99") == "0\n/from-0\n/from-99\n"
            await worker.remove()


async def test_hidden_paths(rootfs: pathlib.Path) -> None:
    (rootfs / "secret").write_text("secret\n")
    (rootfs / "folder").mkdir()
    (rootfs / "folder/inside").write_text("secret\n")
    (rootfs / "fixed").mkdir()
    for command in (None, ["sleep", "600"]):
        async with nsorch.Supervisor() as sup:
            worker = await sup.start(
                "w",
                command,
                rootfs=rootfs,
                masked=["/secret", "/folder", "//proc/./version", "/proc/tty/", "/not/there"],
                readonly_paths=["/fixed", "/proc/sys"],
            )
            assert await say(worker, "cat /secret /proc/version") == ""
            assert "inside" not in await say(worker, "ls /folder")
            assert "drivers" not in await say(worker, "ls /proc/tty")
            assert "Read-only" in await say(worker, "touch /fixed/x")
            assert "Read-only" in await say(worker, "echo 1 > /proc/sys/net/ipv4/ip_forward")


async def test_hidden_in_what_is_mounted_over_it(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Masks are of what the worker sees: also where something else is mounted at ``/sys`` or ``/dev``."""
    (rootfs / "alias").symlink_to("dev")
    for name in ("sys", "dev"):
        (tmp_path / name / "firmware").mkdir(parents=True)
        (tmp_path / name / "firmware/inside").touch()
        (tmp_path / name / "fixed").mkdir()
    mounts = [nsorch.bind(tmp_path / "sys", "/sys"), nsorch.tmpfs("/dev"), nsorch.bind(tmp_path / "dev", "/alias/")]
    async with nsorch.Supervisor() as sup:
        worker = await sup.start(
            "w",
            rootfs=rootfs,
            mounts=mounts,
            masked=["/sys/firmware", "/dev/firmware"],
            readonly_paths=["/sys/fixed", "/dev/fixed"],
        )
        for name in ("sys", "dev"):
            assert "inside" not in await say(worker, f"ls /{name}/firmware")
            assert "Read-only" in await say(worker, f"touch /{name}/fixed/x")
            await worker.run(f"touch /{name}/free")


async def test_masked_without_rootfs() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], masked=["/proc/version", "/etc/passwd"])
        assert await say(worker, "cat /proc/version /etc/passwd") == ""
        # What files are masked by goes last.
        worker = await sup.start("other", masked=["/dev", "/etc/passwd"])
        assert await say(worker, "cat /etc/passwd; ls -A /dev 2>&-") == ""
    assert pathlib.Path("/etc/passwd").stat().st_size


@pytest.mark.parametrize("isolation", ["network", "container", "sandbox"])
@pytest.mark.parametrize("command", [None, ["sleep", "600"]])
@pytest.mark.parametrize("hidden", ["mask", "mount"])
async def test_masks_without_a_null_device(
    isolation: str, command: list[str] | None, hidden: str, rootfs: pathlib.Path
) -> None:
    """Something else is mounted at ``/dev``, or it is masked itself."""
    masked = ["/proc/version", *(["/dev"] if hidden == "mask" else [])]
    mounts = [nsorch.tmpfs("/dev")] if hidden == "mount" else []
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", command, isolation=isolation, rootfs=rootfs, masked=masked, mounts=mounts)
        for _ in range(2):
            assert await say(worker, "cat /proc/version; echo . && ls /dev 2>&1 | grep null") == ".\n"
            assert "Read-only file system" in await say(worker, "echo x > /proc/version")
        shown = await say(worker, "cat /proc/mounts")
        assert mounted(shown)["/proc/version"][0] == "tmpfs"
        assert shown.count(" /proc tmpfs ") == 0


async def test_restart_keeps_it(rootfs: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, masked=["/proc/version"])
        await worker.run("echo kept > /dev/shm/kept")
        await worker.restart()
        assert await say(worker, "cat /dev/shm/kept /proc/version") == "kept\n"
        assert (await say(worker, "readlink /proc/self")).strip().isdigit()


@pytest.mark.parametrize("pid", ["worker:first", "host"])
@pytest.mark.parametrize("isolation", ["network", "container"])
async def test_proc_is_that_of_its_processes(pid: str, isolation: str, rootfs: pathlib.Path) -> None:
    """Also where the pid namespace is another worker's, or the host's."""
    if pid == "host" and os.geteuid():
        pytest.skip("without root, nobody mounts the host's")
    fields = {"rootfs": rootfs} if isolation == "container" else {}
    look = "read pid rest < /proc/self/stat; echo $pid $$; grep -c proc /proc/mounts; grep -c . /proc/interrupts"
    async with nsorch.Supervisor() as sup:
        await sup.start("first", ["sleep", "600"])
        kinds = {"net": True, "mnt": True, "pid": pid}
        worker = await sup.start("w", ["sleep", "600"], isolation=isolation, namespaces=kinds, **fields)
        for _ in range(2):
            seen, own, mounts, lines = (await say(worker, look)).split()
            assert seen == own
            assert (lines == "0") == (isolation == "container")  # it is masked
            await worker.restart()
        assert (await say(worker, look)).split()[2] == mounts


@pytest.mark.parametrize("isolation", ["network", "container", "sandbox"])
async def test_what_is_mounted_stays_so(isolation: str, rootfs: pathlib.Path) -> None:
    """However often something was run while there was no process; and nobody else is shared with who can't mount."""
    async with nsorch.Supervisor(grace=0.1) as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, isolation=isolation, cgroup_namespace=True)

        async def table() -> list[list[str]]:
            return [line.split()[1:3] for line in (await say(worker, "cat /proc/mounts")).splitlines()]

        before = await table()
        for _ in range(2):
            await worker.stop()
            for _ in range(2):
                without = await say(worker, "cat /proc/self/mountinfo")
            await worker.restart()
            assert await table() == before
        assert ("shared:" in without) == (isolation == "network")
        await worker.stop()
        await worker.run("mkdir -p /dev/shm/x && mount -t tmpfs none /dev/shm/x", confined=False)
        assert "/dev/shm/x" in await say(worker, "cat /proc/mounts")


async def test_users_of_the_rootfs(rootfs: pathlib.Path) -> None:
    async with nsorch.Supervisor(subids=False) as sup:
        kinds = ["net", "mnt", "uts", "ipc", "pid", "user"]
        # Of one id, it hasn't got the groups that a name brings with it.
        alone = await sup.start("alone", ["sleep", "600"], rootfs=rootfs, namespaces=kinds, user="alice")
        assert (await say(alone, "id -u && id -g")).split() == ["1234", "1235"]
        if os.geteuid():
            # Nor has root, of an image whose root is in more groups than there are.
            (rootfs / "etc/group").write_text("root:x:0:root\nadm:x:4:root\n")
            plain = await sup.start("plain", ["sleep", "600"], rootfs=rootfs, user="root")
            assert (await plain.run("id -u && id -g", user="root")).stdout == b"0\n0\n"
            with pytest.raises(nsorch.PermissionDeniedError, match="become gid 4: it is not mapped"):
                await sup.start("w", rootfs=rootfs, user="root", groups=["adm"])
            worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, namespaces=kinds, user="1234:1235")
            assert (await say(worker, "id -u && id -g")).split() == ["1234", "1235"]
            return
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, user="alice")
        assert await say(worker, "id") == "uid=1234(alice) gid=1235(alice) groups=1235(alice),50(staff)\n"
        assert (await worker.run("id -G", user="0:staff")).stdout == b"50\n"
        with pytest.raises(nsorch.SetupError, match='no user "bob" in its rootfs'):
            await sup.start("other", rootfs=rootfs, user="bob")


async def test_clear_errors(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.SetupError, match=r"rootfs .*missing.*ENOENT"):
            await sup.start("w", rootfs=tmp_path / "missing")
        with pytest.raises(nsorch.SetupError, match=r"mount source .*missing"):
            await sup.start("w", rootfs=rootfs, mounts=[nsorch.bind(tmp_path / "missing", "/x")])
        with pytest.raises(nsorch.CommandNotFoundError, match="no-such-command"):
            await sup.start("w", ["no-such-command"], rootfs=rootfs)
        # The host's programs are not the worker's.
        with pytest.raises(nsorch.CommandNotFoundError, match="python3"):
            await sup.start("w", ["python3"], rootfs=rootfs)
        (tmp_path / "file").touch()
        for command in (None, ["sleep", "600"]):
            with pytest.raises(nsorch.SetupError, match=r"mount /bin.*EISDIR"):
                await sup.start("w", command, rootfs=rootfs, mounts=[nsorch.bind(tmp_path / "file", "/bin")])
            with pytest.raises(nsorch.SetupError, match=r"mount /etc/passwd.*ENOTDIR"):
                await sup.start("w", command, rootfs=rootfs, mounts=[nsorch.tmpfs("/etc/passwd")])
        with pytest.raises(nsorch.SetupError, match=r"bind /dev: .*recursive=False"):
            await sup.start(
                "w", isolation="sandbox", rootfs=rootfs, mounts=[nsorch.bind("/dev", "/x", recursive=False)]
            )
        bound = nsorch.bind(tmp_path, "/sys/missing")
        with pytest.raises(nsorch.PermissionDeniedError, match=r"mount point /sys/missing: .*can't be made"):
            await sup.start("w", rootfs=rootfs, mounts=[bound])
        under = (nsorch.tmpfs("/top", read_only=True), nsorch.tmpfs("/top/under"))
        with pytest.raises(nsorch.SetupError, match=r"mount point /top/under: .*is read-only"):
            await sup.start("w", rootfs=rootfs, mounts=under)
        with pytest.raises(nsorch.SetupError, match=r"rootfs: .*lie within one another"):
            await sup.start("w", rootfs=nsorch.overlay(rootfs, rootfs))
        with pytest.raises(nsorch.SetupError, match=r"time offsets: .*less than 0"):
            await sup.start("w", time_offsets={"monotonic": -1e9})
        assert not sup.workers


# -- a hostile root file system


async def test_links_lead_nowhere_else(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """CVE-2021-30465 and its like: mount points that are links to the outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("proc", "sys", "dev"):
        (outside / name).mkdir()
        (rootfs / name).symlink_to(outside / name)
    (rootfs / "etc/hosts").symlink_to(outside / "hosts")
    (rootfs / "data").symlink_to("../" * 20 + str(outside))
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, mounts=[nsorch.tmpfs("/data/sub")])
        table = mounted(await say(worker, "cat /proc/mounts"))
        assert table[f"{outside}/proc"][0] == "proc"  # of the same name inside
        assert f"{outside}/sub" in table
        assert [path.name for path in outside.iterdir()]
        assert not list((outside / "dev").iterdir())
    assert sorted(path.name for path in outside.iterdir()) == ["dev", "proc", "sys"]
    assert not any(list((outside / name).iterdir()) for name in ("proc", "sys", "dev"))


@of_kernel
async def test_swapped_while_it_is_set_up(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "a").mkdir()
    (rootfs / "link").symlink_to(outside)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for first, second in (("a", "aside"), ("link", "a"), ("a", "link"), ("aside", "a")):
                try:
                    os.rename(rootfs / first, rootfs / second)
                except OSError:
                    continue

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        async with nsorch.Supervisor() as sup:
            for number in range(20):
                try:
                    worker = await sup.start("w", rootfs=rootfs, mounts=[nsorch.tmpfs("/a/deep/mount")])
                except nsorch.SetupError:
                    continue
                if number % 4 == 0:
                    paths = (await say(worker, "cat /proc/mounts")).splitlines()
                    assert not any(line.startswith(f"{tmp_path} ") for line in paths)
                await worker.remove()
    finally:
        ended.set()
        swapper.join()
    assert not list(outside.iterdir())


async def test_users_that_are_none(rootfs: pathlib.Path) -> None:
    """What a hostile passwd or group file says is no number, or no id, isn't taken for one."""
    users = {"a": "\u00b2:0", "b": "1:x", "c": "99999999999:1", "d": "4294967295:1", "e": "1:\u00b2", "f": "-1:0"}
    lines = [f"{name}:x:{ids}::/:/bin/sh\n" for name, ids in users.items()]
    (rootfs / "etc/passwd").write_text("".join(lines))
    (rootfs / "etc/group").write_text("a:x:\u00b2:b\nb:x:x:\nc:x:99999999999:\n")
    async with nsorch.Supervisor() as sup:
        for name in users:
            with pytest.raises(nsorch.SetupError, match=f'no user "{name}"'):
                await sup.start("w", rootfs=rootfs, user=name)
        for name in "abc":
            with pytest.raises(nsorch.SetupError, match=f'no group "{name}"'):
                await sup.start("w", rootfs=rootfs, user=f"0:{name}")


async def test_an_overlay_of_what_has_mounts_below_it() -> None:
    """Of the host's root, say: the kernel lets nobody in a user namespace make one."""
    async with nsorch.Supervisor() as sup:
        with pytest.raises(
            nsorch.SetupError, match="nothing may be mounted below a layer .* give it a directory without"
        ):
            await sup.start("w", ["true"], isolation="sandbox", rootfs=nsorch.overlay("/"))
        assert "w" not in sup.workers


async def test_users_are_read_from_files_alone(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """What else an image has in their place isn't opened: a device would be the host's. It hides those below, as the
    whiteouts of an overlay do."""
    lower = tmp_path / "lower"
    (lower / "etc").mkdir(parents=True)
    (lower / "etc/passwd").write_text("mallory:x:0:0::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    fifo = os.open(rootfs / "etc/passwd", os.O_RDWR)
    try:
        os.write(fifo, b"mallory:x:0:0::/:/bin/sh\n")
        async with nsorch.Supervisor() as sup:
            for root in (rootfs, nsorch.overlay(rootfs, lower)):
                with pytest.raises(nsorch.SetupError, match='no user "mallory"'):
                    await sup.start("w", rootfs=root, user="mallory")
    finally:
        os.close(fifo)


async def test_opaque_directories_hide_users(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    attribute = "user.overlay.opaque" if os.geteuid() else "trusted.overlay.opaque"
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    root = nsorch.overlay(rootfs, upper=upper)
    async with nsorch.Supervisor() as sup:
        await (await sup.start("w", rootfs=root, user="root")).remove()
        try:
            os.setxattr(upper / "etc", attribute, b"y")
        except OSError as exc:
            pytest.skip(f"{attribute}: {exc.strerror}")
        for user in ("alice", "0:staff"):
            with pytest.raises(nsorch.SetupError, match='no (user|group) "(alice|staff)" in its rootfs'):
                await sup.start("w", rootfs=root, user=user)
        (upper / "etc/passwd").write_text("alice:x:0:0::/:/bin/sh\n")
        worker = await sup.start("w", rootfs=root, user="alice")
        assert await say(worker, "cat /etc/passwd") == "alice:x:0:0::/:/bin/sh\n"
        assert "No such file" in await say(worker, "cat /etc/group")


async def test_paths_through_the_own_proc(rootfs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Are the application's, not the helper's, who has other descriptors and another /proc."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "mine").touch()
    fd, top = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (given, rootfs))
    ends = os.pipe()
    try:
        async with nsorch.Supervisor() as sup:
            for folder in (f"/proc/self/fd/{fd}", f"/dev/fd/{fd}", f"//proc/{os.getpid()}/fd/{fd}/."):
                for command in (None, ["sleep", "600"]):
                    root = nsorch.overlay(f"/proc/self/fd/{top}") if command else f"/proc/thread-self/fd/{top}"
                    worker = await sup.start("w", command, rootfs=root, mounts=[nsorch.bind(folder, "/m")])
                    assert await say(worker, "ls /m") == "mine\n"
                    if command is None:
                        await worker.remove()
                        continue
                    for wrong in (f"/proc/self/fd/{ends[0]}", "/proc/self/nothing", f"/proc/{worker.pid}/root/m"):
                        with pytest.raises(nsorch.TopologyError, match=r"workers.x.mounts\[0\].src: .* of a process"):
                            await sup.start("x", rootfs=rootfs, mounts=[nsorch.bind(wrong, "/m")])
                    await worker.remove()
            again = os.dup(fd)
            mounts = [nsorch.bind(f"/dev/fd/{again}", "/m")]
            worker = await sup.start("w", ["sleep", "600"], rootfs=rootfs, mounts=mounts)
            os.close(again)
            await worker.restart()
            assert await say(worker, "ls /m") == "mine\n"
    finally:
        for each in (fd, top, *ends):
            os.close(each)


async def test_socket_is_no_mount_point(rootfs: pathlib.Path) -> None:
    """A file where a directory is wanted is refused, and named."""
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(rootfs)
        sock.bind("proc")
        os.chdir("/")
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.SetupError, match="mount /proc"):
            await sup.start("w", rootfs=rootfs)
