"""Becomes udhcpc, which asks for an address: ``launch_udhcpc.py PROGRAM INTERFACE HOSTNAME``. Standard library only.

What udhcpc obtains it gives to a script, which usually sets the address and overwrites /etc/resolv.conf: here it is
only told, a line each, on standard output. The script lies on a file system of its own, in this process's mount
namespace: nothing is written on the host.
"""

from __future__ import annotations

import ctypes
import os
import sys

_FOLDER = "/var/tmp"  # noqa: S108 - covered
_SCRIPT = """#!/bin/sh
echo "$1|$ip|$mask|$router"
"""


def main() -> None:
    program, interface, hostname = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(_FOLDER), b"tmpfs", 0, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), _FOLDER)
    script = f"{_FOLDER}/told"
    with open(os.open(script, os.O_WRONLY | os.O_CREAT, 0o755), "w") as file:
        file.write(_SCRIPT)
    # It asks each second, for as long as nobody answers.
    options = ["-f", "-i", interface, "-s", script, "-T", "1", "-A", "1", "-x", f"hostname:{hostname}"]
    os.execv(program, ["udhcpc", *options])


if __name__ == "__main__":
    main()
