"""More ids than the caller's own, by newuidmap and newgidmap."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

import pytest

import nsorch
from nsorch.core import subids

pytestmark = pytest.mark.anyio
needs_programs = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("newuidmap") is None,
    reason="as root, who may put files in the place of /etc/subuid and /etc/subgid; and newuidmap",
)
_PROGRAM = """if True:
    import anyio, nsorch, sys
    async def main():
        async with nsorch.Supervisor(rootless=True, subids=eval(sys.argv[1])) as sup:
            for user in ("0", "1000:1001"):
                worker = await sup.start("w", ["sleep", "600"], user=user, groups=[5])
                print((await worker.run("id -u; id -G; cat /proc/self/uid_map")).stdout.decode().split())
                await worker.remove()
            ranges = await sup.start("w", namespaces=["user"], uid_map=[(0, 1, 100)], gid_map=[(0, 1, 100)], user="7")
            print((await ranges.run("id -u; cat /proc/self/uid_map")).stdout.decode().split())
    anyio.run(main)
"""


@needs_programs
async def test_ranges_without_root(tmp_path: pathlib.Path) -> None:
    """In a worker that has other files at ``/etc/subuid`` and ``/etc/subgid``."""
    for name in ("subuid", "subgid"):
        # Twice the same range, as an administrator may leave it; and a line of another that isn't even text.
        (tmp_path / name).write_bytes(b"some\xffbody:1:1\nroot:100000:500\n0:100000:500\n0:300000:1000\n")
    mounts = [nsorch.bind(tmp_path / name, f"/etc/{name}") for name in ("subuid", "subgid")]
    for name in ("subuid", "subgid"):
        if not os.path.exists(f"/etc/{name}"):
            pytest.skip(f"there is no /etc/{name} to be replaced")
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nsorch.__file__).parent.parent)}
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], mounts=mounts)
        done = await worker.run([sys.executable, "-c", _PROGRAM, "True"], env=env, check=False)
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode().splitlines()
        whole = ["0", "0", "1", "1", "100000", "500", "501", "300000", "1000"]
        assert eval(lines[0]) == ["0", "0", "5", *whole]
        assert eval(lines[1]) == ["1000", "1001", "5", *whole]
        assert eval(lines[2]) == ["7", "0", "1", "100"]
        # Without: the caller alone.
        done = await worker.run([sys.executable, "-c", _PROGRAM, "False"], env=env, check=False)
        assert b"is not mapped" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root:100:10\nroot:105:10\n", [(1, 100, 10), (11, 110, 5)]),
        ("root:105:10\n0:100:20\n", [(1, 105, 10), (11, 100, 5), (16, 115, 5)]),
        ("root:0:10\n", [(1, 1, 9)]),
        ("root:4294967290:100\n", [(1, 4294967290, 5)]),
        ("root:100:many\nroot:100\nroot:100:0\nroot:100:10:1\nroot:100:10 \nroots:5:5\n:5:5\n", []),
    ],
)
def test_ranges_that_no_kernel_takes_as_they_are(
    text: str, expected: list[tuple[int, int, int]], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "subuid").write_text(text)
    found = subids.ranges_in(str(tmp_path / "subuid"), 0)
    assert subids._map(0, found) == ((0, 0, 1), *expected)


@needs_programs
@pytest.mark.once
async def test_what_newuidmap_says(tmp_path: pathlib.Path) -> None:
    """Who gains nothing by set-user-id programs: insisting tells it, nothing is written between the caller's lines, and
    the doctor knows."""
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("root:100000:500\n")
        if not os.path.exists(f"/etc/{name}"):
            pytest.skip(f"there is no /etc/{name} to be replaced")
    mounts = [nsorch.bind(tmp_path / name, f"/etc/{name}") for name in ("subuid", "subgid")]
    program = """if True:
        import anyio, nsorch
        async def main():
            async with nsorch.Supervisor(rootless=True) as sup:
                worker = await sup.start("w", ["sleep", "600"])
                print((await worker.run("cat /proc/self/uid_map")).stdout.decode().split())
            try:
                async with nsorch.Supervisor(rootless=True, subids=True):
                    pass
            except nsorch.NsorchError as exc:
                print(exc)
            print((await nsorch.probe()).features["newuidmap"].forbidden_by)
        anyio.run(main)
    """
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nsorch.__file__).parent.parent)}
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "600"], mounts=mounts, no_new_privs=True, capabilities=["SETFCAP"])
        done = await worker.run([sys.executable, "-c", program], env=env, check=False)
    assert done.stderr.decode() == ""
    own, insisted, doctors = done.stdout.decode().splitlines()
    assert own == "['0', '0', '1']"
    assert "newuidmap refuses" in insisted
    assert "Operation not permitted" in insisted
    assert doctors.startswith("no_new_privs is set")


def test_what_is_missing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("somebody:1:1\n")
    monkeypatch.setattr(subids, "_FILES", (str(tmp_path / "subuid"), str(tmp_path / "missing")))
    monkeypatch.setattr(subids, "_PROGRAMS", ("newuidmap-of-nobody", "newgidmap-of-nobody"))
    assert subids.find_subids(None).id_maps == (((0, own, 1),), ((0, os.getegid(), 1),))
    with pytest.raises(nsorch.UnsupportedError) as caught:
        subids.find_subids(True)
    for part in ("newuidmap-of-nobody", "subuid", str(tmp_path / "missing")):
        assert part in str(caught.value)


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="as root, who is in no such file here")
async def test_insisting_fails_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subids, "_FILES", ("/nowhere", "/nowhere"))
    with pytest.raises(nsorch.UnsupportedError, match="a line for the caller in /nowhere"):
        async with nsorch.Supervisor(rootless=True, subids=True):
            pass
