"""What the processes of a worker may do: its own, and those that are started in it."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from confinement_support import inside, refuse, status
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
OWN_USER = ["net", "mnt", "uts", "ipc", "pid", "user"]


def bits(names: Iterable[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


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


@pytest.mark.parametrize("isolation", ["network", "container", "sandbox"])
async def test_changes_of_a_preset_for_another_user(isolation: str, tmp_path: pathlib.Path) -> None:
    """Who isn't root has nothing of a preset: what is added is all, and less of nothing is nothing."""
    options: dict[str, Any] = {"isolation": isolation, "rootfs": make_rootfs(tmp_path / "rootfs")}
    if not ROOT and isolation != "sandbox":
        options["namespaces"] = OWN_USER
    async with nsorch.Supervisor() as sup:
        for number, (change, left) in enumerate([(["+NET_RAW", "-CHOWN"], ["NET_RAW"]), (["-CHOWN"], [])]):
            worker = await sup.start(f"w{number}", ["sleep", "600"], user="1234:1234", capabilities=change, **options)
            for shown in await inside(worker):
                sets = capability_sets(shown)
                assert not sets.pop("bounding") & bits(["CHOWN"])
                assert set(sets.values()) == {bits(left)}


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


@pytest.mark.skipif(os.geteuid() != 0, reason="the user must be another than the caller's")
@pytest.mark.parametrize("command", [None, ["sleep", "600"]])
@pytest.mark.parametrize(
    "fields",
    [{}, {"init": False}, {"namespaces": ["net"]}, {"rootfs": "/"}, {"rootfs": "/", "isolation": "container"}],
    ids=str,
)
async def test_programs_that_the_user_may_not_execute(
    fields: dict[str, Any], command: list[str] | None, tmp_path: pathlib.Path
) -> None:
    """PATH is gone through as its user: what only root reaches isn't it, though root looks it up. Whoever loses its
    capabilities by the exec doesn't find a program by them."""
    folders = [tmp_path / name for name in ("shut", "open")]
    for folder in folders:
        folder.mkdir()
        for name in ("both", "only")[: 2 if folder.name == "shut" else 1]:
            (folder / name).write_text(f"#!/bin/sh\necho {folder.name}; exec sleep ${{1:-0}}\n")
            (folder / name).chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    folders[0].chmod(0o700)
    fields = {**fields, "user": "1234:1234", "env": {"PATH": f"{folders[0]}:{folders[1]}:/usr/bin:/bin"}}
    async with nsorch.Supervisor() as sup:
        if command is not None:
            worker = await sup.start("both", ["both", "600"], stdout=subprocess.PIPE, **fields)
            assert worker.stdout is not None
            assert await worker.stdout.receive() == b"open\n"
            with pytest.raises(nsorch.SetupError, match=r"shut/only. is not executable"):
                await sup.start("only", ["only"], **fields)
        worker = await sup.start("w", command, **fields)
        assert (await worker.run(["both"])).stdout == b"open\n"
        with pytest.raises(nsorch.SetupError, match=r"shut/only. is not executable"):
            await worker.run(["only"])
        with pytest.raises(nsorch.CommandNotFoundError, match=r"no command .neither"):
            await worker.run(["neither"])


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
        ("rlimits", {"nofile": 5, "RLIMIT_NOFILE": 6}, "rlimits.nofile: is given twice"),
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


def test_all_that_is_wrong_at_once() -> None:
    worker = {
        "isolation": "vm",
        "mounts": [{"type": "tmpfs", "dst": "x"}, {"type": "tmpfs", "dst": "/x"}, {"type": "bind"}],
        "rlimits": {"files": 1, "core": "x", "nofile": [2, 1]},
        "masked": ["x", "/x", "/"],
    }
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"workers": {"w": worker}})
    told = [problem.partition(" ")[0].removeprefix("workers.w.") for problem in caught.value.problems]
    assert sorted(told) == [
        "isolation:",
        *("masked[0]:", "masked[2]:", "mounts[0].dst:", "mounts[2].dst:", "mounts[2].src:"),
        *("rlimits.core:", "rlimits.nofile:", "rlimits:"),
    ]


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
