"""Each row of the table in docs/isolation.md, looked at from inside and from outside of the worker."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import sys
from typing import Any

import pytest
from rootfs_support import make_rootfs

import nsorch
from nsorch.topology.presets import CONTAINER_CAPABILITIES, MASKED, READONLY
from nsorch.topology.privileges import CAPABILITIES

pytestmark = pytest.mark.anyio
MARKED = ["network", "container", pytest.param("sandbox", marks=pytest.mark.vm(one_backend=True))]
ROOT = os.geteuid() == 0
PRESETS = ("network", "container", "sandbox")
# What a process of the worker sees, and what it is refused.
_LOOK = """if True:
    import errno, json, os, re
    def tried(function, *arguments):
        try:
            return function(*arguments) or "ok"
        except OSError as exc:
            return errno.errorcode[exc.errno]
    def write(path, text="1"):
        with open(path, "w") as file:
            file.write(text)
    def read(path):
        with open(path, "rb") as file:
            return len(file.read(64))
    with open("/proc/self/status") as file:
        status = dict(line.split(":\\t", 1) for line in file if ":\\t" in line)
    with open("/proc/self/mounts") as file:
        mounts = {line.split()[1]: line.split()[2:4] for line in file}
    print(json.dumps({
        "status": {key: value.strip() for key, value in status.items()},
        "mounts": mounts,
        "ns": {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")},
        "root": tried(lambda: os.mkdir("/nsorch-made") or os.rmdir("/nsorch-made")),
        "dev": sorted(os.listdir("/dev")),
        "net": sorted(os.listdir("/sys/class/net")),
        "env": dict(os.environ),
        "uid_map": open("/proc/self/uid_map").read().split(),
        "masked": {path: tried(lambda: len(os.listdir(path)) if os.path.isdir(path) else read(path))
                   for path in MASKED if os.path.exists(path)},
        "readonly": {path: tried(write, path) for path in READONLY if os.path.exists(path)},
        "pids": [name for name in os.listdir("/proc") if name.isdigit()],
        "tmp": os.listdir("/tmp"),
        "run": os.listdir("/run"),
        "sysctl": tried(write, "/proc/sys/net/ipv4/ip_forward"),
    }))
"""
_WRITTEN = ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity")
_LOOK = f"MASKED = {MASKED}\nREADONLY = {_WRITTEN}\n{_LOOK}"


def bits(names: frozenset[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


async def look(sup: nsorch.Supervisor, preset: str, **options: Any) -> tuple[nsorch.Worker, list[dict[str, Any]]]:
    """What ``run`` sees in a live worker of the preset, and in a passive one."""
    rootfs = {"rootfs": "/"} if preset == "container" else {}
    live = await sup.start("live", ["sleep", "600"], isolation=preset, **rootfs, **options)
    passive = await sup.start("passive", isolation=preset, **rootfs, **options)
    seen = []
    for worker in (live, passive):
        done = await worker.run(["/usr/bin/python3", "-c", _LOOK])
        seen.append(json.loads(done.stdout))
    return live, seen


def of_host(pid: int) -> dict[str, str]:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSORCH_TEST_SECRET", "secret")


@pytest.mark.parametrize("preset", PRESETS)
async def test_privileges(preset: str) -> None:
    async with nsorch.Supervisor() as sup:
        live, seen = await look(sup, preset)
        everything = int(of_host(os.getpid())["CapEff"], 16) if ROOT else (1 << 64) - 1
        strict = preset != "network"
        outside = of_host(live.pid or 0)
        for status in (outside, *(one["status"] for one in seen)):
            sets = {key: int(status[key], 16) for key in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")}
            if preset == "network":
                assert sets["CapEff"] & everything == sets["CapPrm"]
                assert sets["CapEff"] & 1 << CAPABILITIES.index("SYS_ADMIN")
            else:
                wanted = bits(CONTAINER_CAPABILITIES) if preset == "container" else 0
                assert sets == {"CapBnd": wanted, "CapPrm": wanted, "CapEff": wanted, "CapInh": 0, "CapAmb": 0}
            assert status["NoNewPrivs"].strip() == str(int(strict))
            assert status["Seccomp"].strip() == ("2" if strict else "0")
        if ROOT and strict:
            assert not outside["Groups"].split()
        own = {"network": str(os.geteuid()), "container": str(os.geteuid()), "sandbox": "65534" if ROOT else None}
        assert outside["Uid"].split()[0] == (own[preset] or str(os.geteuid()))
        for one in seen:
            assert one["status"]["Uid"].split() == ["0"] * 4


@pytest.mark.parametrize("preset", PRESETS)
async def test_namespaces(preset: str) -> None:
    async with nsorch.Supervisor() as sup:
        live, seen = await look(sup, preset)
        host = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
        own = {"net", "mnt", "uts", "ipc", "pid"}
        own |= {"network": set(), "container": {"cgroup"}, "sandbox": {"cgroup", "user"}}[preset]
        if not ROOT:
            own.add("user")  # the supervisor's
        for one in seen:
            differing = {name for name in host if "_for_" not in name and one["ns"][name] != host[name]}
            assert differing == own
            assert set(one["net"]) - {"bonding_masters"} == {"lo"}  # that is a file
            assert len(one["pids"]) <= 4
        outside = {name: os.readlink(f"/proc/{live.pid}/ns/{name}") for name in own}
        assert {name: seen[0]["ns"][name] for name in own} == outside
        if preset == "sandbox":
            assert seen[0]["uid_map"] == ["0", "65534" if ROOT else "0", "1"]
            supervisors = {one["ns"]["user"] for one in (await look_at_user(sup))}
            assert seen[0]["ns"]["user"] not in supervisors


async def look_at_user(sup: nsorch.Supervisor) -> list[dict[str, Any]]:
    plain = await sup.start("plain")
    done = await plain.run(["readlink", "/proc/self/ns/user"])
    return [{"ns": {"user": done.stdout.decode().strip()}}]


@pytest.mark.parametrize("preset", MARKED)
async def test_files(preset: str) -> None:
    async with nsorch.Supervisor() as sup:
        _, seen = await look(sup, preset)
        for one in seen:
            mounts = one["mounts"]
            assert mounts["/proc"][0] == "proc"
            assert mounts["/sys"][0] == "sysfs"
            assert mounts["/etc/hosts"][1].split(",")[0] == "ro"
            if preset == "network":
                assert one["env"]["NSORCH_TEST_SECRET"] == "secret"
                assert "console" in one["dev"] or len(one["dev"]) > 14
                assert one["sysctl"] == "ok"
                continue
            assert set(one["env"]) <= {"PATH", "HOME", "TERM", "LC_CTYPE"}
            assert mounts["/sys"][1].split(",")[0] == "ro"
            nodes = {"null", "zero", "full", "random", "urandom", "tty"}
            assert set(one["dev"]) == nodes | {"fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"}
            assert one["masked"]
            assert set(one["masked"].values()) <= {"ok", "EACCES"}, one["masked"]  # empty, or not to be opened
            assert one["readonly"]
            assert set(one["readonly"].values()) <= {"EROFS", "EACCES", "EPERM"}
            assert one["readonly"]["/proc/sys/kernel/hostname"] == "EROFS"
            assert one["sysctl"] == "EROFS"
            assert [path for path in READONLY if path in mounts]
            if preset == "sandbox":
                assert one["root"] == "EROFS"
                assert one["tmp"] == one["run"] == []
                assert mounts["/"][1].split(",")[0] == "ro"
            elif ROOT:
                assert one["root"] == "ok"
    assert not pathlib.Path("/nsorch-made").exists()


async def test_sandbox_reaches_only_what_it_is_linked_to() -> None:
    connect = "import socket, sys; socket.create_connection((sys.argv[1], 80), 0.2)"
    async with nsorch.Supervisor() as sup:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            lone = await sup.start("lone", isolation="sandbox")
            port = listener.getsockname()[1]
            line = f"import socket; socket.create_connection(('127.0.0.1', {port}), 0.2)"
            assert (await lone.run(["/usr/bin/python3", "-c", line], check=False)).returncode
        lan = await sup.bridge("lan", subnet="10.0.0.0/24")
        linked = await sup.start("linked", isolation="sandbox", links=[lan])
        server = await sup.start("server", links=[lan])
        listener = await server.create_tcp_listener(local_port=80)
        await linked.run(["/usr/bin/python3", "-c", connect, "server"])
        assert (await lone.run(["/usr/bin/python3", "-c", connect, "server"], check=False)).returncode
        await listener.aclose()


async def test_seccomp_denies_what_could_widen_it() -> None:
    program = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.unshare(0x10000000), ctypes.get_errno())"
    async with nsorch.Supervisor() as sup:
        for preset in PRESETS:
            rootfs = {"rootfs": "/"} if preset == "container" else {}
            worker = await sup.start(preset, isolation=preset, **rootfs)
            done = await worker.run(["/usr/bin/python3", "-c", program])
            assert done.stdout == (b"0 0\n" if preset == "network" else b"-1 1\n")


def test_the_table_names_them_all() -> None:
    """The page is what the tests above go by."""
    page = (pathlib.Path(__file__).parent.parent / "docs/isolation.md").read_text()
    for name in sorted(CONTAINER_CAPABILITIES):
        assert re.search(rf"\b{name}\b", page), name
    for path in (*MASKED, *READONLY):
        assert f"`{path}`" in page, path


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
async def test_who_joins_a_sandbox(preset: str, live: bool, tmp_path: pathlib.Path) -> None:
    """It is somebody there, who can have files, and not the supervisor's user."""
    rootfs = make_rootfs(tmp_path / "rootfs")
    kinds = {"net": "worker:first", "mnt": True, "uts": True, "ipc": True} | ({"pid": True} if live else {})
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", subnet="10.0.0.0/24")
        await sup.start("first", ["sleep", "600"], isolation="sandbox", links=[lan])
        command = ["sleep", "600"] if live else None
        worker = await sup.start("w", command, isolation=preset, namespaces=kinds, rootfs=rootfs)
        async with await worker.popen(["sleep", "600"]) as process:
            for pid in (worker.pid or process.pid, process.pid):
                assert of_host(pid)["Uid"].split() == ["65534" if ROOT else str(os.geteuid())] * 4
        line = "id -u; grep -c eth0 /proc/net/dev; grep CapEff /proc/self/status; touch /dev/shm/x"
        uid, interfaces, _, effective = (await worker.run(line)).stdout.decode().split()
        assert (uid, interfaces) == ("0", "1")
        wanted = {"container": bits(CONTAINER_CAPABILITIES), "sandbox": 0}.get(preset)
        assert wanted in (None, int(effective, 16))
        with pytest.raises(nsorch.NsorchError, match="uid 7"):
            await worker.run(["true"], user="7:7")


@pytest.mark.parametrize("fields", [{"time_offsets": {"monotonic": 5}}, {"cgroup_namespace": True}])
async def test_others_keep_the_hosts(fields: dict[str, Any]) -> None:
    """Where one worker has a time or cgroup namespace, the others have the host's all the same, before and after."""
    names = ("cgroup", "time")
    host = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    line = "readlink /proc/self/ns/cgroup /proc/self/ns/time"
    async with nsorch.Supervisor() as sup:
        workers = [await sup.start("before", ["sleep", "600"])]
        special = await sup.start("special", ["sleep", "600"], **fields)
        await special.run(["true"])
        await special.restart()
        own = [os.readlink(f"/proc/{special.pid}/ns/{name}") for name in names]
        assert (await special.run(line)).stdout.decode().split() == own != host
        workers += [await sup.start("after", ["sleep", "600"]), await sup.start("passive")]
        for worker in workers:
            assert (await worker.run(line)).stdout.decode().split() == host
            if worker.pid:
                assert [os.readlink(f"/proc/{worker.pid}/ns/{name}") for name in names] == host


_BELOW = """if True:
    import anyio, nsorch, sys
    async def main():
        async with nsorch.Supervisor() as sup:
            worker = await sup.start("w", ["sleep", "600"], isolation="sandbox")
            print((await worker.run("id -u; cat /proc/self/uid_map")).stdout.decode().split())
    anyio.run(main, backend=sys.argv[1])
"""


async def test_a_sandbox_below_root_of_one_id(anyio_backend: str) -> None:
    """Who is root of a user namespace may have no nobody to give."""
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], namespaces=["net", "mnt", "uts", "ipc", "pid", "user"])
        env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nsorch.__file__).parent.parent)}
        done = await worker.run([sys.executable, "-c", _BELOW, anyio_backend], env=env, check=False)
        assert done.stdout.decode().strip() == "['0', '0', '0', '1']", done.stderr.decode()
