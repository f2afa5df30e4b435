"""How the virtual machine of make test-vm is started and ended; a program stands in for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import running

pytestmark = pytest.mark.once
TIER = Path(__file__).parent / "vm"


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["set-up", "run"])
def test_a_signal_ends_what_was_started(tmp_path: Path, marker: str, number: signal.Signals, when: str) -> None:
    lasting = f"echo begun; sleep {marker}"  # in a child of its own
    tier = tmp_path / "tests" / "vm"
    program(tier / "setup.sh", lasting if when == "set-up" else "true")
    shutil.copy(TIER / "run.sh", tier)
    machine = tmp_path / ".vm"
    program(machine / "venv" / "bin" / "virtme-run", f"(echo begun; sleep {marker}) >>{machine}/out-6.1/log")
    (machine / "6.1" / "boot").mkdir(parents=True)
    for name in ("complete", "boot/vmlinuz-6.1"):
        (machine / "6.1" / name).touch()
    environment = os.environ | {"VM_KERNELS": "6.1", "VM_TESTS": "none"}
    with subprocess.Popen(
        ["bash", tier / "run.sh"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        while "begun" not in (line := run.stdout.readline()):
            assert line, "it ended before"
        run.send_signal(number)
        assert run.wait(10) == 128 + number
        assert not run.stdout.read()
    assert not running(marker)
