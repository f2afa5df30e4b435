"""The file that the helper runs, put where what runs in a worker can't write to it.

A command may turn out to be a link to ``/proc/self/exe``, which the kernel follows in the exec: to the program that the
process still runs, the helper's. Whoever runs that, and may write to the file, has the host's interpreter
(CVE-2019-5736). So the helper runs the same file by another way: with rights over mounts by one of its own, which the
stub then makes read-only, and forbids to execute from; else, where the caller may write to the interpreter, as a sealed
copy in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from . import descriptors
from .spawner import mountapi
from .spawner.sealed import sealed

if TYPE_CHECKING:
    from collections.abc import Iterator


class Program(NamedTuple):
    """:ivar mount: descriptor of the mount that *path* leads to, which the stub is to close off; or -1"""

    path: str
    mount: int = -1


@contextlib.contextmanager
def guarded(interpreter: str) -> Iterator[Program]:
    """What to execute instead of *interpreter* as long as the block lasts; itself, where there is no need or no way."""
    fd, mounted = -1, True
    if _may_lie_elsewhere(interpreter):
        with descriptors.registering:
            fd = _on_own_mount(interpreter)
            if fd < 0 and os.access(interpreter, os.W_OK, effective_ids=True):
                fd, mounted = _in_memory(interpreter), False
            if fd >= 0:
                descriptors.own([fd])
    if fd < 0:
        yield Program(interpreter)
        return
    try:
        yield Program(f"/proc/self/fd/{fd}", fd if mounted else -1)
    finally:
        descriptors.close([fd])


@functools.cache
def _may_lie_elsewhere(interpreter: str) -> bool:
    """Not a script, nor a program whose libraries are found by where it lies (ld.so(8))."""
    try:
        with open(interpreter, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return content[:4] == b"\x7fELF" and content.find(b"$ORIGIN") < 0
    except (OSError, ValueError):
        return False


def _on_own_mount(interpreter: str) -> int:
    """-1 for who has no rights over mounts here."""
    try:
        file = os.open(interpreter, os.O_PATH | os.O_CLOEXEC)
        try:
            mounted = _out_of_the_way(mountapi.clone_tree(file, recursive=False))
        finally:
            os.close(file)
        try:
            mountapi.set_attributes(mounted)  # which a filter may forbid
        except OSError:
            os.close(mounted)
            raise
    except OSError:
        return -1
    return mounted


def _in_memory(interpreter: str) -> int:
    """-1 where vm.memfd_noexec forbids it."""
    try:
        with open(interpreter, "rb") as file:
            return _out_of_the_way(sealed("python", file.read()))
    except OSError:
        return -1


def _out_of_the_way(fd: int) -> int:
    """*fd* under a number that the helper gets nothing else at."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)
