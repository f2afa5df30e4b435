"""Root file systems for tests, of the host's own programs and their libraries."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
import subprocess

TOOLS = ("sh", "cat", "ls", "id", "mount", "umount", "touch", "readlink", "sleep", "true", "mkdir", "ln", "stat", "env")
TOOLS += ("rm", "echo", "hostname", "grep", "chroot", "dd", "mknod")


@functools.cache
def _installed() -> tuple[list[str], set[str]]:
    """The paths of those *TOOLS* that there are, and of the libraries that they need."""
    found = (shutil.which(tool, path="/usr/bin:/bin:/usr/sbin:/sbin") for tool in TOOLS)
    tools = [path for path in found if path is not None]
    shown = subprocess.run(["ldd", *tools], capture_output=True, text=True).stdout
    return tools, set(re.findall(r"(/\S+) \(0x", shown))


def make_rootfs(folder: pathlib.Path) -> pathlib.Path:
    """A directory with *TOOLS* in ``/bin``, whatever they need to be run, and nothing else."""
    (folder / "bin").mkdir(parents=True)
    tools, needed = _installed()
    for path in tools:
        shutil.copy(path, folder / "bin" / os.path.basename(path))
    for library in needed:
        target = folder / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nalice:x:1234:1235::/:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nalice:x:1235:\nstaff:x:50:alice\n")
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    return folder
