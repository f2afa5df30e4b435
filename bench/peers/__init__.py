"""The same star by other tools, each where it can't touch the host's interfaces, mounts and processes.

``make bench-peers`` puts those that the system lacks into ``.peers``: nothing is installed into the system itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from attrs import frozen

_HERE = Path(__file__).parent
_ROOM = _HERE.parents[1] / ".peers"
_DEBIAN = _ROOM / "debian"
_SYSTEM_PYTHON = "/usr/bin/python3"
_APART = ("unshare", "--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


@frozen(kw_only=True)
class Peer:
    """
    :ivar processes: whether each of its nodes has a process, as Mininet's have a shell
    :ivar command: the program, which gets the number of nodes and prints seconds
    :ivar missing: what it needs and the machine lacks, or ``""``
    """

    name: str
    processes: bool
    command: tuple[str, ...]
    path: tuple[Path, ...] = ()
    modules: Path | None = None
    missing: str = ""

    def star(self, n: int) -> dict[str, float]:
        """Seconds to make a star of *n* nodes (``created``) and to remove it (``gone``).

        :raises subprocess.CalledProcessError: it failed; what it said is on standard error
        """
        environment = {**os.environ, "PATH": os.pathsep.join([*map(str, self.path), _paths()])}
        if self.modules is not None:
            environment["PYTHONPATH"] = str(self.modules)
        command = [*_APART, "sh", str(_HERE / "isolated.sh"), *self.command, str(n)]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            done.check_returncode()
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def _paths() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _missing(*needed: bool | str | None) -> str:
    if os.geteuid():
        return "needs root"
    return "" if all(needed) else "not installed: make bench-peers"


def _mininet() -> Peer:
    modules, path = None, []
    if (_DEBIAN / "usr/bin/mnexec").exists():
        modules = _DEBIAN / "usr/lib/python3/dist-packages"
        path = [_DEBIAN / part for part in ("usr/bin", "usr/sbin", "bin", "sbin")]
    found = [
        shutil.which(name, path=os.pathsep.join([*map(str, path), _paths()]))
        for name in ("mnexec", "brctl", "ifconfig")
    ]
    return Peer(
        name="Mininet",
        processes=True,
        command=(_SYSTEM_PYTHON, str(_HERE / "by_mininet.py")),
        path=tuple(path),
        modules=modules,
        missing=_missing(*found),
    )


def _munet() -> Peer:
    python = _ROOM / "venv/bin/python"
    return Peer(
        name="munet",
        processes=True,
        command=(str(python), str(_HERE / "by_munet.py")),
        path=(_HERE / "munet", python.parent),
        missing=_missing(python.exists(), shutil.which("pgrep")),
    )


def peers() -> list[Peer]:
    """All, also those that can't run here."""
    return [
        _mininet(),
        _munet(),
        Peer(
            name="iproute2 script",
            processes=False,
            command=("sh", str(_HERE / "iproute2.sh")),
            missing=_missing(shutil.which("ip", path=_paths())),
        ),
        Peer(
            name="pyroute2 script",
            processes=False,
            command=(sys.executable, str(_HERE / "by_pyroute2.py")),
            missing=_missing(True),
        ),
    ]
