"""Runs FRR's daemons in a worker: ``launch_frr.py FOLDER DAEMON,… CONFIGURATION…``. Standard library only.

Their files lie on a file system of their own, in the worker's mount namespace: nothing is written on the host. They run
as the worker's root and stay it, since below a user namespace there is no other user; for FRR that has to be a member
of its group, so the worker sees another /etc/group.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

_PROGRAMS = "/usr/lib/frr"
_MS_BIND = 4096
_DEADLINE = 30.0


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fields = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc.mount(*fields, flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _make_room(folder: str) -> None:
    above = os.path.dirname(folder)
    if not os.path.exists(f"{folder}/group"):  # else of a former incarnation
        _mount("tmpfs", above, "tmpfs", 0)
        os.mkdir(folder)
        os.mkdir(f"{folder}/etc")
        with open(f"{folder}/group", "w") as file:
            file.write("root:x:0:\nfrr:x:0:root\nfrrvty:x:0:root\n")
        _mount(f"{folder}/group", "/etc/group", None, _MS_BIND)
        for inside, outside in (("etc", "/etc/frr"), ("", "/run/frr")):
            if os.path.isdir(outside):
                _mount(f"{folder}/{inside}", outside, None, _MS_BIND)
        with open(f"{folder}/etc/vtysh.conf", "w"):
            pass
    for name in os.listdir(folder):
        if name.endswith((".vty", ".api")) or name == "configured":
            os.unlink(f"{folder}/{name}")


def _start(name: str, folder: str) -> subprocess.Popen[bytes]:
    options = ["-u", "root", "-g", "root", "-f", "/dev/null", "-i", f"{folder}/{name}.pid", "-z", f"{folder}/zserv.api"]
    options += ["--vty_socket", folder, "-P", "0", "--log", f"file:{folder}/log", "--log-level", "warnings"]
    if name == "bgpd":
        options += ["-p", "179"]
    return subprocess.Popen([f"{_PROGRAMS}/{name}", *options], stdin=subprocess.DEVNULL)


def _await(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{path} doesn't come up")
        time.sleep(0.01)


def main() -> None:
    folder, others, *configuration = sys.argv[1:]
    processes: list[subprocess.Popen[bytes]] = []
    names = ["zebra", *others.split(",")]

    def end(*_: object) -> None:
        for some in (processes[1:], processes[:1]):  # zebra last: it removes the others' routes
            for process in some:
                process.terminate()
            for process in some:
                process.wait()
        sys.exit(0)

    _make_room(folder)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    for name in names:
        processes.append(_start(name, folder))
        _await(f"{folder}/{name}.vty", processes[-1])
    with open(f"{folder}/frr.conf", "w") as file:
        file.write("".join(configuration))
    subprocess.run(
        ["/usr/bin/vtysh", "--vty_socket", folder, "-f", f"{folder}/frr.conf"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with open(f"{folder}/configured", "w"):
        pass
    pid, status = os.wait()
    ended = next((name for name, process in zip(names, processes, strict=True) if process.pid == pid), "?")
    sys.exit(f"{ended} ended: status {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
