"""``nsorch run --in WORKER`` on a terminal, as the command and as the shell that has begun it see it."""

from __future__ import annotations

import os
import pathlib
import pty
import select
import shlex
import signal
import sys
import time
from collections.abc import Iterator

import pytest

import nsorch

LAB = "[workers.passive]\n[workers.live]\ncommand = ['sleep', '600']\n"


class Terminal:
    """What somebody does who sits before it."""

    def __init__(self, *command: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**os.environ, "PS1": "", "ENV": "", "TERM": "dumb"})
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def read_until(self, text: bytes) -> None:
        """It comes on a line that begins with it, not as the echo of what is typed."""
        deadline = time.monotonic() + 30
        while b"\n" + text not in self.shown:
            assert select.select([self._fd], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self._fd, 4096)
        self.shown = self.shown.partition(b"\n" + text)[2]

    def wait(self) -> int:
        while True:
            try:
                self.shown += os.read(self._fd, 4096)
            except OSError:  # all have closed it
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        os.close(self._fd)
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.fixture
def command(tmp_path: pathlib.Path) -> list[str]:
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    return [sys.executable, "-m", "nsorch", "run", str(path), "--in"]


@pytest.fixture
def shell() -> Iterator[Terminal]:
    terminal = Terminal("sh", "-i")
    yield terminal
    terminal.close()


@pytest.mark.parametrize("worker", ["passive", "live"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_shell_inside_has_its_job_control(worker: str, backend: str, command: list[str]) -> None:
    terminal = Terminal(*command, worker, "--backend", backend, "--", "sh", "-i")
    try:
        terminal.type(b"echo; echo begun\n")
        terminal.read_until(b"begun")
        terminal.type(b"echo; sh -c 'echo sleeps; exec sleep 600'\n")
        terminal.read_until(b"sleeps")
        terminal.type(b"\x1a")
        terminal.type(b"echo; jobs %1 && echo has stopped\n")
        terminal.read_until(b"has stopped")
        terminal.type(b"exit 3\nexit 3\n")  # it warns once of the stopped job
        assert terminal.wait() == 3
        assert b"Cannot set" not in terminal.shown
    finally:
        terminal.close()


@pytest.mark.parametrize("worker", ["passive", "live"])
def test_a_command_is_a_job_of_the_shell_that_has_begun_nsorch(
    worker: str, command: list[str], shell: Terminal
) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGCONT, lambda *_: print('\\ngoes on', flush=True));"
        "time.sleep(0.1); print('\\nruns', flush=True); time.sleep(600)"
    )
    shell.type(f"{' '.join(command)} {worker} -- {sys.executable} -Sc {shlex.quote(program)}\n".encode())
    shell.read_until(b"runs")
    for _ in range(2):
        shell.type(b"\x1a")
        shell.type(b"echo; echo outside again\n")
        shell.read_until(b"outside again")
        shell.type(b"fg\n")
        shell.read_until(b"goes on")
    shell.type(b"\x03")
    shell.type(b"status=$?; echo; echo status $status\n")
    shell.read_until(b"status 130")


def test_the_terminal_stays_with_the_shell_that_has_nsorch_in_the_background(
    command: list[str], shell: Terminal
) -> None:
    shell.type(f"{' '.join(command)} passive -- true & wait; echo; echo ended\n".encode())
    shell.read_until(b"ended")
    shell.type(b"echo; echo typed\n")
    shell.read_until(b"typed")


def test_a_script_hears_of_ctrl_c_too(command: list[str], shell: Terminal) -> None:
    line = f"{' '.join(command)} passive -- sh -c 'echo; echo runs; exec sleep 600'; echo; echo not reached"
    shell.type(f'sh -c "{line}"\n'.encode())
    shell.read_until(b"runs")
    shell.type(b"\x03")
    shell.type(b"echo; echo ended\n")
    shell.read_until(b"ended")
    assert b"not reached" not in shell.shown


@pytest.mark.anyio
async def test_process_group_is_none_or_0() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        with pytest.raises(nsorch.TopologyError, match="process_group: 1 is neither 0 nor None"):
            await worker.popen(["true"], process_group=1)
