"""Becomes tayga: ``launch_tayga.py PROGRAM CONFIGURATION``. Standard library only.

tayga reads its configuration from a file; this one is in memory, and goes with the process.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    program, configuration = sys.argv[1:]
    fd = os.memfd_create("tayga.conf", 0)
    os.write(fd, configuration.encode())
    # -d also logs to standard output, not to the host's log; errors of workers say what is on standard error.
    os.dup2(2, 1)
    os.execv(program, [program, "-d", "--config", f"/proc/self/fd/{fd}"])


if __name__ == "__main__":
    main()
