"""Pins: what lets other programs into a worker's network namespace."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import anyio
import pytest

import nsorch

pytestmark = pytest.mark.anyio


def inode(path: str | pathlib.Path) -> int:
    return os.stat(path).st_ino


async def test_a_pin_leads_into_the_worker_and_goes_with_it(tmp_path: pathlib.Path) -> None:
    async with nsorch.Supervisor() as sup:
        a, b = await sup.start("a"), await sup.start("b")
        path = await sup.pin(a, folder=str(tmp_path / "run" / "netns"))
        assert path == str(tmp_path / "run" / "netns" / "a")
        assert inode(path) == a.namespaces["net"]
        assert inode(await sup.pin("b", "other name", folder=str(tmp_path))) == b.namespaces["net"]
        with pytest.raises(nsorch.NameInUseError, match="other name"):
            await sup.pin(a, "other name", folder=str(tmp_path))
        await a.remove()
        assert not os.path.lexists(path)
        for name in ("", ".", "..", "x/y", "n\0l", "x" * 256):
            with pytest.raises(ValueError, match="not the name of a pin"):
                await sup.pin(b, name, folder=str(tmp_path))
        for folder in ("", "run/netns", "/n\0l"):
            with pytest.raises(nsorch.TopologyError, match="not an absolute path"):
                await sup.pin(b, folder=folder)
        kept = await sup.pin(b, folder=str(tmp_path / "kept" / "netns"))
        (tmp_path / "kept" / "others").touch()
        assert os.path.islink(kept)
    assert os.listdir(tmp_path) == ["kept"]  # of the folders that were made for pins, what isn't empty
    assert os.listdir(tmp_path / "kept") == ["others"]


async def test_one_that_leads_nowhere_is_replaced_and_a_file_is_not(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").symlink_to("/proc/4194304/fd/9")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "recycled").symlink_to("/proc/self/exe")
    async with nsorch.Supervisor() as sup:
        a = await sup.start("a")
        assert inode(await sup.pin(a, folder=str(tmp_path))) == a.namespaces["net"]
        for name in ("file", "link"):
            with pytest.raises(nsorch.NameInUseError):
                await sup.pin(a, name, folder=str(tmp_path))
        assert inode(await sup.pin(a, "recycled", folder=str(tmp_path))) == a.namespaces["net"]
        host = await sup.start("host", namespaces=["uts"])
        with pytest.raises(nsorch.UnsupportedError, match="no network namespace"):
            await sup.pin(host, folder=str(tmp_path))
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_none_stays_when_the_application_is_killed(tmp_path: pathlib.Path) -> None:
    program = f"""
        import anyio, nsorch
        async def main():
            async with nsorch.Supervisor() as sup:
                await sup.start("a")
                print(await sup.pin("a", folder={str(tmp_path)!r}), flush=True)
                await anyio.sleep_forever()
        anyio.run(main)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = process.stdout.readline().strip()
    assert os.path.islink(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 2
    while os.path.lexists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.lexists(path)


async def test_none_stays_when_the_stub_is_killed(tmp_path: pathlib.Path) -> None:
    """Nor folders that were made for them. But others' files that have their names meanwhile do."""
    with pytest.raises(nsorch.SpawnerDiedError):
        async with nsorch.Supervisor() as sup:
            stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
            for name in ("a", "b", "c"):
                await sup.pin(await sup.start(name), folder=str(tmp_path))
            for folder in ("made/netns", "made/other"):
                await sup.pin("a", folder=str(tmp_path / folder))
            await sup.pin("b", folder=str(tmp_path / "used"))
            (tmp_path / "used" / "file").touch()
            (tmp_path / "b").unlink()
            (tmp_path / "b").symlink_to("elsewhere")
            os.kill(stub, signal.SIGKILL)
            await sup.workers["c"].remove()
            await anyio.sleep_forever()
    assert sorted(os.listdir(tmp_path)) == ["b", "used"]
    assert os.listdir(tmp_path / "used") == ["file"]


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="ip netns exec needs root")
async def test_ip_netns_exec() -> None:
    name = f"nsorch-test-{os.getpid()}"
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.9.0.0/24")
        a = await sup.start("a", links=[lan])
        await sup.pin(a, name)
        try:
            done = subprocess.run(
                ["ip", "netns", "exec", name, "cat", "/proc/net/route"], capture_output=True, check=True
            )
        except FileNotFoundError:
            pytest.skip("there is no ip command")
        assert b"eth0" in done.stdout
    assert not os.path.lexists(f"/run/netns/{name}")
