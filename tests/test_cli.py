"""The command line, as a user calls it."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import running

TOP = pathlib.Path(__file__).parent.parent
LAB = "[bridges.lan]\nsubnet = '10.0.0.0/24'\n[workers.a]\nlinks = ['lan']\n[workers.b]\nlinks = ['lan']\n"


def nsorch(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nsorch", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def lab(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    return str(path)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_check(lab: str, backend: str) -> None:
    done = nsorch("run", lab, "--check", "--backend", backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 pairs answered" in done.stdout
    result = json.loads(nsorch("run", lab, "--check", "--json").stdout)
    assert result["ok"]
    assert len(result["pairs"]) == 2


def test_shipped_example() -> None:
    done = nsorch("run", str(TOP / "examples" / "office.toml"), "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    # Connected by the graph, but r doesn't forward and nobody has a route.
    name = "a long [name] " * 10
    path.write_text(
        f"name = '{name}'\n{LAB}"
        "[bridges.far]\nsubnet='10.9.0.0/24'\n[workers.r]\nlinks=['lan','far']\n[workers.c]\nlinks=['far']\n"
    )
    done = nsorch("run", str(path), "--check")
    assert done.returncode == 1
    assert "a → c" in done.stdout
    # However narrow, for who looks for it in a pipe.
    assert re.search(
        rf"^{re.escape(name)}: 4 workers, 2 bridges, 5 links, .* asked in [0-9.]+ s$", done.stdout, re.MULTILINE
    )


def test_a_narrow_terminal_has_the_whole_table(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    names = [f"{letter * 60}" for letter in "abc"]
    path.write_text(
        "[bridges.lan]\nsubnet = '10.0.0.0/24'\n"
        + "".join(f"[workers.{name}]\nlinks = [{{ to = 'lan', name = 'x' }}]\n" for name in names)
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 20, 0, 0))
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as terminal:
        done = subprocess.run(
            [sys.executable, "-m", "nsorch", "run", str(path), "--check"],
            stdout=terminal,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
            env=os.environ | {"TERM": "dumb"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        lines = os.read(ours, 1 << 16).decode().splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert rows[0] == names
    assert [row[0] for row in rows[1:]] == names
    assert all(re.fullmatch(r"·|[0-9]+\.[0-9]{2}", cell) for row in rows[1:] for cell in row[1:])
    assert lines[-1] == "6 of 6 pairs answered"


def test_separate_parts_are_no_failure(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(
        LAB + "[bridges.far]\nsubnet='10.9.0.0/24'\n[workers.c]\nlinks=['far']\n[workers.d]\nlinks=['far']\n"
    )
    done = nsorch("run", str(path), "--check")
    assert done.returncode == 0
    assert "separate by design" in done.stdout


@pytest.mark.once
def test_statuses(lab: str, tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(LAB + "delay = 1\n")
    inside = ["run", lab, "--in", "a"]
    expected = [
        (["run", lab, "--", "sh", "-c", "exit 3"], 3),
        ([*inside, "--", "sh", "-c", "hostname; exit 4"], 4),
        ([*inside, "--", "sh", "-c", "kill -9 $$"], 137),
        *(([*begin, "--", "no-such-command"], 127) for begin in (["run", lab], inside)),
        *(([*begin, "--", ""], 127) for begin in (["run", lab], inside)),
        *(([*begin, "--", path], 126) for begin in (["run", lab], inside) for path in ("/etc/passwd", "/etc")),
        *((["run", *rest], 125) for rest in (["missing.toml"], [str(bad)], [lab, "--in", "nobody", "--", "true"])),
        (["run"], 2),
        (inside, 2),
        (["--version"], 0),
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda arguments: nsorch(*arguments), [arguments for arguments, _ in expected]))
    for (arguments, status), done in zip(expected, found, strict=True):
        assert done.returncode == status, (arguments, done.stderr)
        if status == 125:
            assert done.stderr.startswith("nsorch: ")
            assert "Traceback" not in done.stderr
    assert found[1].stdout == "a\n"


@pytest.mark.once
def test_options_of_a_command_come_after_dashes(lab: str) -> None:
    done = nsorch("run", lab, "--in", "a", "sh", "-c", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: nsorch run [OPTIONS] FILE [-- COMMAND...]\n")
    assert "Those of a COMMAND come after --." in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--check"], ["--events", "--check"], ["--events", "--json", "--", "sleep", "9"]]
)
def test_who_reads_no_further_ends_it_as_other_programs(arguments: list[str], lab: str) -> None:
    command = [sys.executable, "-m", "nsorch", "run", lab, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.wait(20), process.stderr.read()) == (128 + signal.SIGPIPE, b"")


@pytest.mark.once
def test_no_room_for_what_it_says(lab: str) -> None:
    for stream, arguments in ((1, ["--help"]), (1, ["run", lab, "--check"]), (2, ["run", lab]), (2, ["run", "none.x"])):
        line = f'exec "$@" {stream}>/dev/full'
        command = ["sh", "-c", line, "sh", sys.executable, "-m", "nsorch", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        said = "nsorch: [Errno 28] No space left on device\n" if stream == 1 else ""
        assert (done.returncode, done.stdout, done.stderr) == (125, "", said), arguments


@pytest.mark.parametrize("arguments", [["--check"], ["--in", "a", "--", "true"], ["--", "true"]])
def test_closed_streams(arguments: list[str], lab: str) -> None:
    line = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, "sh", sys.executable, "-m", "nsorch", "run", lab, *arguments], timeout=60)
    assert done.returncode == 0


def test_any_encoding(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(f"name = 'büro'\n{LAB}", encoding="utf-8")
    done = nsorch("run", str(path), "--check", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "b\\xfcro" in done.stdout


def test_events(lab: str) -> None:
    lines = [json.loads(line) for line in nsorch("run", lab, "--check", "--events", "--json").stdout.splitlines()]
    seqs = [line["seq"] for line in lines if "seq" in line]
    assert seqs == list(range(1, len(seqs) + 1))
    assert lines[-1]["kind"] == "SupervisorStopped"
    assert any(line["kind"] == "CheckResult" and line["ok"] for line in lines)
    assert "LinkUp" in nsorch("run", lab, "--events", "--", "true").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inside", [True, False])
def test_signals(number: signal.Signals, inside: bool, tmp_path: pathlib.Path, marker: str) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(f"{LAB}[workers.c]\ncommand = ['sh', '-c', '(setsid sleep {marker} &); sleep {marker}']\n")
    extra = ["--in", "a", "--", "sh", "-c", f"echo up >&2; sleep {marker}"] if inside else []
    process = subprocess.Popen(
        [sys.executable, "-m", "nsorch", "run", str(path), *extra],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    assert "up" in process.stderr.readline()
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    process.stderr.close()
    assert running(marker) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_a_command_on_the_host_has_started_ends_with_it(backend: str, lab: str, marker: str) -> None:
    line = f"(trap '' TERM; sleep {marker}; sleep {marker}) & sh -c 'sleep {marker} & setsid -w sleep {marker}' & echo; wait"
    command = [sys.executable, "-m", "nsorch", "run", lab, "--backend", backend, "--", "sh", "-c", line]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        deadline = time.monotonic() + 20
        while len(running(marker)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert running(marker) == []


def test_terminal_of_a_worker_with_an_environment(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("[workers.a]\nenv = { A = '1' }\ncwd = '/usr'\n[workers.b]\nenv = { TERM = 'own' }\n")
    command = [sys.executable, "-m", "nsorch", "run", str(path), "--in"]
    host, terminal = pty.openpty()
    try:
        for worker, expected in (("a", "1 vt100 /usr"), ("b", " own")):
            done = subprocess.run(
                [*command, worker, "--", "sh", "-c", 'echo "$A $TERM $(pwd)"'],
                stdin=terminal,
                stdout=subprocess.PIPE,
                env={**os.environ, "TERM": "vt100"},
                check=True,
                text=True,
            )
            assert done.stdout.startswith(expected)
    finally:
        os.close(host)
        os.close(terminal)


@pytest.mark.parametrize("where", [["--in", "a"], []])
def test_modes_of_the_terminal_are_set_back_for_who_could_not(where: list[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("[workers.a]\n")
    command = [sys.executable, "-m", "nsorch", "run", str(path), *where, "--", "sh", "-c"]
    host, terminal = pty.openpty()
    modes = termios.tcgetattr(terminal)
    try:
        assert subprocess.run([*command, "stty raw -echo; kill -9 $$"], stdin=terminal).returncode == 137
        assert termios.tcgetattr(terminal) == modes
        with subprocess.Popen(
            [*command, "stty raw -echo; echo; exec sleep 600"], stdin=terminal, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            assert termios.tcgetattr(terminal) != modes
            process.terminate()
            assert process.wait(20) == 143
        assert termios.tcgetattr(terminal) == modes
        subprocess.run([*command, "stty -echo"], stdin=terminal, check=True)  # what it is there for
        assert termios.tcgetattr(terminal) != modes
    finally:
        os.close(host)
        os.close(terminal)


@pytest.mark.parametrize("arguments", [[], ["--events"]])
def test_many_signals(arguments: list[str], lab: str) -> None:
    command = [sys.executable, "-m", "nsorch", "run", lab, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"up" in process.stderr.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)
        assert (process.returncode, process.stderr.read()) == (128 + signal.SIGINT, b"")


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["--events"], signal.SIGINT),
        (["--events", "--", "sleep", "0"], signal.SIGTERM),
        (["--check", "--json"], signal.SIGINT),
    ],
)
def test_signals_end_it_whose_reader_has_stopped(
    arguments: list[str], number: signal.Signals, tmp_path: pathlib.Path, marker: str
) -> None:
    path = tmp_path / "lab.toml"
    more = "".join(f"[workers.w{n}]\nlinks = ['lan']\n" for n in range(30))
    path.write_text(f"{LAB}{more}[workers.c]\ncommand = ['sleep', '{marker}']\n")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "nsorch", "run", str(path), *arguments]
    with subprocess.Popen(command, stdout=writer, stderr=writer) as process:
        os.close(writer)
        try:
            deadline = time.monotonic() + 20
            threads = pathlib.Path(f"/proc/{process.pid}/task")
            while not any("pipe_w" in thread.read_text() for thread in threads.glob("*/wchan")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(5) == 128 + number
        finally:
            process.kill()
    os.close(reader)
    assert running(marker) == []


def test_interrupted_while_it_is_imported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "nsorch", "doctor"]
    path = os.pathsep.join(map(str, (tmp_path, TOP)))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.stderr.read()) == (128 + signal.SIGINT, b"")


def test_interrupted_while_the_file_is_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    os.mkfifo(path)
    with subprocess.Popen([sys.executable, "-m", "nsorch", "run", str(path), "--check"]) as process:
        descriptor = os.open(path, os.O_WRONLY)  # waits until it is opened for reading
        try:
            process.send_signal(signal.SIGINT)  # also just before the reading
            assert process.wait(20) == 128 + signal.SIGINT
        finally:
            os.close(descriptor)
            process.kill()


LOSES = """
import os, signal, nsorch
from nsorch.cli import main
class Dying:
    def __del__(self):  # no exception leaves it
        os.kill(os.getpid(), signal.SIGINT)
class Topology(nsorch.Topology):
    @classmethod
    def load(cls, *args, **kwargs):
        Dying()
        return super().load(*args, **kwargs)
nsorch.Topology = Topology
main()
"""


def test_an_interrupt_is_not_lost_while_the_file_is_read(lab: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOSES, "run", lab, "--check"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")


def test_doctor() -> None:
    done = nsorch("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    labs = {lab["name"]: lab["works"] for lab in document["labs"]}
    assert labs["a lab without root"] is True
    assert (labs["a lab as root"] is None) == (os.geteuid() != 0)
    features = {feature["name"]: feature for feature in document["features"]}
    text = nsorch("doctor").stdout
    for name, feature in features.items():
        mark = "ok" if feature["available"] else "NO" if feature["needed"] else "no"
        assert f"\n{mark}  {name}, for" in text
        assert feature["remedy"] in text
    assert f"{document['workers']:7} workers in all" in text
