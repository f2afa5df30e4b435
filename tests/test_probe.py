"""What the probe says of this host, against what is done here by other means."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import struct
import subprocess
import sys

import anyio
import pytest

import nsorch
from nsorch.core.failures import translate
from nsorch.core.spawner import cgroups, syscalls
from nsorch.host import capacity, catalogue, reading

pytestmark = pytest.mark.anyio
TRIED = {each.name: each for each in catalogue.TRIED}


async def test_probe(anyio_backend: str) -> None:
    host = await nsorch.probe()
    assert host.ready
    assert host.rootless == (os.geteuid() != 0)
    for name, feature in host.features.items():
        assert (feature.name, bool(feature.purpose)) == (name, True)
        assert feature.available == (not feature.forbidden_by), name
        assert not (feature.available and feature.remedy)
    for kind in ("net", "mnt", "uts", "ipc", "pid"):
        assert host.has(f"{kind} namespace")
    assert host.has("veth")
    assert host.has("bridge")
    with pytest.raises(KeyError):
        host.has("flux capacitor")


async def test_interfaces_as_ip_says(anyio_backend: str) -> None:
    """iproute2, in a worker of its own, makes exactly what the probe says can be made."""
    host = await nsorch.probe()
    if not host.has("ip"):
        pytest.skip("needs iproute2")
    commands = {
        "dummy": "ip link add x0 type dummy",
        "bond": "ip link add x0 type bond",
        "vrf": "ip link add x0 type vrf table 10",
        "vlan": "ip link add v type veth && ip link add link v name x0 type vlan id 5",
        "vxlan": "ip link add x0 type vxlan id 5 dstport 4789",
        "macvlan": "ip link add v type veth && ip link add link v name x0 type macvlan mode bridge",
        "ipvlan": "ip link add v type veth && ip link add link v name x0 type ipvlan",
        "wireguard": "ip link add x0 type wireguard",
        "ifb": "ip link add x0 type ifb",
        "tun": "ip tuntap add x0 mode tap",
        "netem": "tc qdisc add dev lo root netem delay 1ms",
        "tbf": "tc qdisc add dev lo root tbf rate 1mbit burst 5000 limit 10000",
        "htb": "tc qdisc add dev lo root htb default 1",
    }
    async with nsorch.Supervisor() as sup:
        for number, (name, command) in enumerate(commands.items()):
            worker = await sup.start(f"w{number}")
            done = await worker.run(command, check=False)
            assert (done.returncode == 0) == host.has(name), (name, done.stderr)


@pytest.mark.parametrize("program", ["pasta", "tayga"])
def test_a_program_without_the_device_it_opens(
    program: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / program).write_text("#!/bin/sh\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    there = nsorch.Feature(name="tun", group="interfaces", available=True)
    shut = nsorch.Feature(name="tun", group="interfaces", available=False, forbidden_by="it is shut", remedy="open it")
    seen = {}
    for tun in (there, shut):
        seen[tun.available] = next(each for each in reading.read_features({"tun": tun}) if each.name == program)
    assert (seen[True].available, seen[True].forbidden_by) == (True, "")
    assert (seen[False].available, seen[False].forbidden_by, seen[False].remedy) == (False, "it is shut", "open it")
    assert seen[False].detail == str(tmp_path / program)


async def test_the_loop_goes_on(anyio_backend: str) -> None:
    async with anyio.create_task_group() as tasks:
        ended = anyio.Event()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not ended.is_set():
                await anyio.sleep(0.001)
                turns += 1

        tasks.start_soon(count)
        await nsorch.probe()
        ended.set()
    assert turns > 10


async def test_capacity(anyio_backend: str) -> None:
    host = await nsorch.probe()
    counted = {name: each.workers for name, each in host.capacity.items() if each.workers is not None}
    assert host.workers == min(n for name, n in counted.items() if not host.capacity[name].advisory)
    assert {"open files", "processes", "net namespaces", "memory"} <= counted.keys()
    assert host.capacity["net namespaces"].limit == int(pathlib.Path("/proc/sys/user/max_net_namespaces").read_text())


LIMITED = """
import resource, anyio, nsorch
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
print(anyio.run(nsorch.probe).capacity["open files"].workers)
"""


def test_a_limit_of_this_process() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (1000 - 256) // 6


@pytest.mark.parametrize(
    ("above", "own", "workers"), [("max 900", "500 36", 200), ("1000 900", "500 36", 18), ("max 9", "60 36", 0)]
)
def test_a_cgroup_counts_its_own_processes(
    above: str, own: str, workers: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many the host has."""
    folder = tmp_path / "above/own"
    folder.mkdir(parents=True)
    for where, numbers in ((folder.parent, above), (folder, own)):
        for name, number in zip(("pids.max", "pids.current"), numbers.split(), strict=True):
            (where / name).write_text(f"{number}\n")
    monkeypatch.setattr(cgroups, "hierarchy", lambda: cgroups.Hierarchy(str(tmp_path), str(folder)))
    found = {each.name: each for each in capacity.capacities(rootless=False)}["processes"]
    assert (found.source, found.workers) == ("pids.max of the cgroup", workers)
    assert "TasksMax=" in found.remedy


FORBIDDEN = """
import sys, anyio, nsorch
for kind in sys.argv[1:]:
    with open(f"/proc/sys/user/max_{kind}_namespaces", "w") as file: file.write("0")
host = anyio.run(nsorch.probe)
print(host.rootless, host.ready, host.workers == 0)
for name in ("user namespace", "net namespace", "mnt namespace", "fresh /sys", "veth"):
    print(host.features[name].available, host.features[name].forbidden_by, "|", host.features[name].remedy)
"""


@pytest.mark.parametrize("kind", ["user", "net", "mnt", None])
def test_a_limit_of_namespaces(kind: str | None) -> None:
    """In a user namespace of its own, with one id, whose limits its root may set."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        uid, gid = os.geteuid(), os.getegid()
        assert libc.unshare(0x10000000) == 0
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w") as target:
                target.write(text)

    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *([kind] if kind else [])],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=enter,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == ("True True False" if kind is None else "True False True")
    forbidden = f"False user.max_{kind}_namespaces = 0 is reached | sysctl -w user.max_{kind}_namespaces=15000"
    concerned = {None: set(), "user": {0, 1, 2, 3, 4}, "net": {0, 1, 3, 4}, "mnt": {2, 3}}[kind]
    assert lines == [forbidden if number in concerned else "True  | " for number in range(5)]


@pytest.mark.parametrize(
    ("name", "number", "where", "rootless", "expected"),
    [
        ("tun", 13, "", True, "/dev/net/tun"),
        ("tun", 19, "there is no /dev/net/tun", False, "mknod"),
        ("libpcap", 2, "libpcap.so.1", False, "apt-get install libpcap0.8"),
        ("fresh /proc", 1, "mount /proc", True, "masks parts of /proc"),
        ("veth", 28, "unshare net", False, "sysctl -w user.max_net_namespaces"),
        ("fresh /sys", 28, "unshare user", True, "sysctl -w user.max_user_namespaces"),
        ("mount_setattr", 38, "", False, "a seccomp filter of this host or container hides it"),
    ],
)
def test_explanations(name: str, number: int, where: str, rootless: bool, expected: str) -> None:
    assert expected in " ".join(catalogue.explain(TRIED[name], number, where, rootless=rootless))


NOBODY = """
import anyio, nsorch

async def main():
    host = await nsorch.probe()
    print(host.ready, host.workers, "isn't mapped" in host.features["user namespace"].forbidden_by)
    try:
        await nsorch.Supervisor().__aenter__()
    except nsorch.PermissionDeniedError as exc:
        print("isn't mapped" in exc.detail)

anyio.run(main)
"""


def test_who_is_not_mapped() -> None:
    """No lab runs, and so there is room for no worker, whatever the limits."""
    libc = ctypes.CDLL(None, use_errno=True)

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=lambda: libc.unshare(0x10000000),
        ).stdout

    assert run("-c", NOBODY).splitlines() == ["False 0 True", "True"]
    document = json.loads(run("-m", "nsorch", "doctor", "--json"))
    assert (document["ready"], document["workers"]) == (False, 0)
    assert run("-m", "nsorch", "doctor").splitlines()[-1].split() == ["0", "workers", "in", "all:", "no", "lab", "runs"]


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.4.0-x")
    assert "5.4.0-x is too old" in catalogue.explain(TRIED["openat2"], 38, "", rootless=False)[0]


FILTERED = """
import anyio, nsorch

async def main():
    host = await nsorch.probe()
    print(host.ready, [name for name, each in host.features.items() if "seccomp filter" in each.forbidden_by])
    try:
        async with nsorch.Supervisor() as sup:
            print((await (await sup.start("w", ["sleep", "60"])).run("echo in")).stdout.decode().strip())
            await sup.start("sandbox", isolation="sandbox")
    except nsorch.NsorchError as exc:
        print(exc.stage)

anyio.run(main)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize(
    ("call", "number", "ready", "feature", "lab"),
    [
        (435, errno.ENOSYS, False, "clone3", ["clone3"]),
        (155, errno.EPERM, True, "pivot_root", ["in", "pivot_root"]),
        (442, errno.ENOSYS, True, "mount_setattr", ["in", "rootfs"]),
    ],
)
def test_a_filter_around_it_all(call: int, number: int, ready: bool, feature: str, lab: list[str]) -> None:
    """As containers have it: Docker's hides clone3."""
    load, jump, answer, allow = (0x20, 0, 0, 0), (0x15, 0, 1, call), (6, 0, 0, 0x50000 | number), (6, 0, 0, 0x7FFF0000)
    program = b"".join(struct.pack("=HBBI", *each) for each in (load, jump, answer, allow))

    def confine() -> None:
        syscalls.set_no_new_privs()
        syscalls.set_seccomp(program)

    done = subprocess.run(
        [sys.executable, "-c", FILTERED], capture_output=True, text=True, check=False, preexec_fn=confine
    )
    assert done.stdout.splitlines() == [f"{ready} {[feature]}", *lab], done.stderr


def test_what_the_kernel_lacks_is_told_as_that() -> None:
    found = translate("rootfs", errno.ENOSYS, "", "w")
    assert isinstance(found, nsorch.UnsupportedError)
    assert "too old" in str(found)
    assert "nsorch doctor" in str(found)


MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
41 31 0:38 / {here}/hybrid rw,relatime shared:9 - cgroup2 cgroup2 rw
42 31 0:38 /docker/abc {here}/with\\040space rw - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("0::/user.slice/a.scope\n", "hybrid/user.slice/a.scope"),
        ("1:name=systemd:/x\n0::/docker/abc/inner\n", "with space/inner"),
        ("0::/../elsewhere\n", None),
        ("1:cpu:/\n", None),
        ("0::/not/shown\n", None),
    ],
)
def test_hierarchy_is_found(own: str, expected: str | None, tmp_path: pathlib.Path) -> None:
    for folder in ("hybrid/user.slice/a.scope", "with space/inner"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cgroup.procs").touch()
    found = cgroups.parse_hierarchy(own, MOUNTS.format(here=tmp_path))
    assert (None if found is None else found.own) == (None if expected is None else f"{tmp_path}/{expected}")


def test_why_a_controller_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another cgroup would not help where cgroup v1 has it."""
    texts = {"/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t1\t1\npids\t0\t1\t1\n"}
    read = cgroups._read
    monkeypatch.setattr(cgroups, "_read", lambda path: texts.get(path) or read(path))
    monkeypatch.setattr(cgroups, "places", lambda where: [])
    why = {feature.name: feature.forbidden_by for feature in reading._cgroups()}
    assert "bound to cgroup v1" in why["cgroup memory"]
    assert why["cgroup pids"] == why["cgroup delegation"] != ""


def test_the_place_with_most_controllers_is_best() -> None:
    def place(path: str, *controllers: str, free: bool = True, marked: bool = False) -> cgroups.Place:
        return cgroups.Place(path, frozenset(controllers), free, marked)

    own, slice_, root = place("/a/b", "memory", free=False), place("/a", "memory"), place("/", "memory", "io")
    assert cgroups.best([own, slice_, root]) == root
    assert cgroups.best([own, slice_]) == slice_
    assert cgroups.best([own, place("/a")]) == own
    marked = place("/a", "memory", marked=True)
    assert cgroups.best([place("/a/b", "memory"), marked]) == marked
    assert cgroups.best([]) is None


@pytest.mark.parametrize(("point", "named"), [("/proc", "needs a /proc"), ("/dev", "needs the null device")])
async def test_what_nothing_works_without(point: str, named: str) -> None:
    """In a bare chroot, say: the supervisor and the doctor name it."""
    program = """if True:
        import anyio, nsorch
        async def tried(function):
            try:
                await function()
            except nsorch.UnsupportedError as exc:
                print(exc)
        async def main():
            await tried(lambda: nsorch.probe(rootless=True))
            await tried(lambda: nsorch.Supervisor(rootless=True).__aenter__())
            await tried(nsorch.probe)
        anyio.run(main)
    """
    line = f'mount -t tmpfs none {point} && exec "$0" -c "$1"'
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nsorch.__file__).parent.parent)}
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"])
        done = await worker.run(["sh", "-c", line, sys.executable, program], env=env, check=False)
    assert done.stderr.decode() == ""
    said = done.stdout.decode().splitlines()
    assert len(said) == 3
    assert all(named in each for each in said)
