"""The probe itself: tries in a process of its own, and what is read from /proc and /sys. Blocks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

from nsorch.core import spawner
from nsorch.core.launch import check_files, may_administer
from nsorch.errors import SetupError
from nsorch.host.capacity import capacities
from nsorch.host.catalogue import TRIED, explain
from nsorch.host.reading import kernel, read_features
from nsorch.host.values import Feature, HostReport

_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from spawner.tries import main; main()"


def examine(rootless: bool | None) -> HostReport:
    """See :func:`nsorch.probe`."""
    check_files()
    below = not may_administer() if rootless is None else rootless
    tried = _try(below)
    features = [kernel()]
    for each in TRIED:
        number, where = tried[each.name]
        forbidden, remedy = explain(each, number, where, rootless=below) if number else ("", "")
        features.append(
            Feature(
                name=each.name,
                group=each.group,
                available=not number,
                purpose=each.purpose,
                needed=each.needed or (below and each.name == "user namespace"),
                detail=_seen(number, where),
                forbidden_by=forbidden,
                remedy=remedy,
            )
        )
    features += read_features({feature.name: feature for feature in features})
    return HostReport(
        kernel=platform.release(),
        rootless=below,
        features={feature.name: feature for feature in features},
        capacity={each.name: each for each in capacities(below)},
    )


def _seen(number: int, where: str) -> str:
    if not number:
        return "tried"
    text = os.strerror(number)
    return text if where in ("", text) else f"{where}: {text}"


def _try(rootless: bool) -> dict[str, tuple[int, str]]:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(spawner.__file__)))
    how = "rootless" if rootless else "root"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", _BOOT, folder, how],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as exc:
        raise SetupError("start the probe", stage="probe", errno=exc.errno, detail=sys.executable) from exc
    if done.returncode:
        raise SetupError(f"the probe ended with status {done.returncode}", stage="probe", detail=done.stderr.decode())
    return {name: (number, where) for name, (number, where) in json.loads(done.stdout).items()}
