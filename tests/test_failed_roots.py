"""A root file system that can't be made leaves nothing behind in the helper, which tries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from rootfs_support import make_rootfs

import nsorch
from nsorch.core.spawner.calls import NOW
from nsorch.core.spawner.devices import fill_dev
from nsorch.core.spawner.stages import StageError

if TYPE_CHECKING:
    import pathlib


def helpers_descriptors() -> int:
    """How many the youngest grandchild of this process has: the helper that makes namespaces."""
    pid = os.getpid()
    for _ in range(2):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            pid = int(file.read().split()[-1])
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.anyio
async def test_descriptors(tmp_path: pathlib.Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "data").mkdir()
    tmp_path.chmod(0o755)
    async with nsorch.Supervisor() as sup:
        counts = []
        for _ in range(4):
            with pytest.raises(nsorch.SetupError, match="data"):
                await sup.start("w", rootfs=rootfs, mounts=[nsorch.bind(rootfs / "etc/passwd", "/data")])
            counts.append(helpers_descriptors())
        assert counts[-1] == counts[0]


@pytest.mark.anyio
async def test_who_ends_before_its_ids_are_mapped_tells_why() -> None:
    async with nsorch.Supervisor() as sup:
        for _ in range(40):
            with pytest.raises(nsorch.SetupError, match=r"mount source /no/such: .*ENOENT"):
                await sup.start("w", isolation="sandbox", mounts=[nsorch.bind("/no/such", "/mnt")])


def test_umask(tmp_path: pathlib.Path) -> None:
    (tmp_path / "stdin").touch()
    folder = os.open(tmp_path, os.O_PATH)
    before = os.umask(0o027)
    try:
        with pytest.raises((OSError, StageError)):
            fill_dev(NOW, folder, mqueue=False, tty_group=-1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
        os.close(folder)
