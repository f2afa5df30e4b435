"""Row 18: a worker with seven namespaces and a root file system, beside what else makes one."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from attrs import frozen

from . import jobs
from .figure import Figure, Limit
from .jobs import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .setting import Setting

ROW = 18
_BUSYBOX = "/bin/busybox"
_TURNS = 30
_MANY = 200


@frozen(kw_only=True)
class Peer:
    """Another program that runs ``/bin/true`` in seven namespaces (unshare: six), below *rootfs*, to its end.

    :ivar around: once, around all of its runs
    """

    name: str
    arguments: tuple[str, ...]
    around: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        return "" if shutil.which(self.arguments[0]) else "not installed"

    def run(self, times: int, bundle: str) -> list[float]:
        """Seconds of each.

        :raises subprocess.CalledProcessError: it failed
        """
        command = [*self.around, sys.executable, "-m", "bench.isolation", self.name, str(times), bundle]
        done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        found: list[float] = json.loads(done.stdout)
        return found

    def run_here(self, times: int, bundle: str) -> Iterator[float]:
        for turn in range(times):
            words = [word.format(bundle=bundle, rootfs=f"{bundle}/rootfs", turn=turn) for word in self.arguments]
            begin = time.perf_counter()
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            yield time.perf_counter() - begin


PEERS = (
    Peer(
        name="unshare -Urnmpiu --fork",
        arguments=("unshare", "-Urnmpiu", "--fork", "--mount-proc={rootfs}/proc", "chroot", "{rootfs}", "/bin/true"),
    ),
    Peer(
        name="bwrap --unshare-all",
        arguments=(
            "bwrap",
            "--unshare-all",
            "--bind",
            "{rootfs}",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "/bin/true",
        ),
    ),
    # It refuses a host with cgroups of both versions, so it gets a view of its own, of version 2 alone.
    Peer(
        name="crun run",
        arguments=("crun", "run", "-b", "{bundle}", "nsorch-bench-{turn}"),
        around=("unshare", "-m", "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup; exec "$@"', "sh"),
    ),
    Peer(name="runc run", arguments=("runc", "run", "-b", "{bundle}", "nsorch-bench-{turn}")),
)


def _make_bundle(folder: str) -> None:
    """An OCI bundle, whose ``rootfs`` is what all of them use."""
    os.makedirs(f"{folder}/rootfs/bin")
    for name in ("proc", "dev", "sys", "etc"):
        os.mkdir(f"{folder}/rootfs/{name}")
    shutil.copy(_BUSYBOX, f"{folder}/rootfs/bin/busybox")
    os.symlink("busybox", f"{folder}/rootfs/bin/true")
    kinds = ("user", "pid", "network", "ipc", "uts", "mount", "cgroup")
    own = {"containerID": 0, "size": 1}
    config = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "hostname": "w",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "uidMappings": [{**own, "hostID": os.geteuid()}],
            "gidMappings": [{**own, "hostID": os.getegid()}],
            "namespaces": [{"type": kind} for kind in kinds],
        },
    }
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)


def isolation_row(setting: Setting) -> Iterator[Figure]:
    """The median of single starts, and how many a second at once; each beside every peer that is installed."""
    if not os.path.exists(_BUSYBOX):
        yield Figure(row=ROW, what="isolated worker", skipped="no /bin/busybox (package busybox-static)")
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as bundle:
        _make_bundle(bundle)
        turns, many = _sizes(setting)
        setting.settle()
        ours = [measure(jobs.isolated, turns, f"{bundle}/rootfs") for _ in range(setting.pairs)]
        yield Figure(
            row=ROW,
            what="isolated worker, seven namespaces, busybox: until it runs, p50",
            unit="ms",
            measured=statistics.median(found["started"] for found in ours) * 1e3,
            kind=Limit.AT_MOST,
            limit=5,
        )
        setting.settle()
        together = statistics.median(
            measure(jobs.isolated_together, many, f"{bundle}/rootfs")["rate"] for _ in range(setting.pairs)
        )
        ended = statistics.median(found["ended"] for found in ours)
        for peer in PEERS:
            yield from _beside(peer, bundle, setting, ended, together)


def _sizes(setting: Setting) -> tuple[int, int]:
    """How many one after the other, and how many at once."""
    return min(_TURNS, setting.n), min(_MANY, setting.n)


def _beside(peer: Peer, bundle: str, setting: Setting, ended: float, together: float) -> Iterator[Figure]:
    turns, many = _sizes(setting)
    what = "isolated worker: until it has ended, p50"
    if peer.missing:
        yield Figure(row=ROW, what=what, skipped=f"{peer.name}: {peer.missing}")
        return
    setting.settle()
    try:
        single = statistics.median(peer.run(turns, bundle))
        yield Figure(
            row=ROW,
            what=what,
            unit="ms",
            measured=ended * 1e3,
            beside=single * 1e3,
            beside_what=peer.name,
            ratio=ended / single,
        )
        if not peer.name.startswith("crun"):
            return
        setting.settle()
        rate = many / sum(peer.run(many, bundle))
    except subprocess.CalledProcessError as exc:
        yield Figure(row=ROW, what=what, skipped=f"{peer.name}: ended with status {exc.returncode} here")
        return
    yield Figure(
        row=ROW,
        what=f"{many} isolated workers at once",
        unit="/s",
        measured=together,
        beside=rate,
        beside_what=f"crun {many} times",
        ratio=together / rate,
        kind=Limit.AT_LEAST,
        limit=5 * rate,
    )


if __name__ == "__main__":
    _, name, times, bundle = sys.argv
    print(json.dumps([*next(peer for peer in PEERS if peer.name == name).run_here(int(times), bundle)]))
