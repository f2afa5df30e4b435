"""What has to be known of a root file system before a script can make it, and the part of the script that does."""

from __future__ import annotations

import functools
import marshal
import os
import stat
from typing import TYPE_CHECKING

from .calls import INSIDE
from .command import candidates, checked, find_all
from .confinement import confine, decode, restrict
from .mountapi import openat2
from .mounts import make_own
from .rootfs import Root, Sources, build, points
from .script import Script
from .writing import NoScriptError, Writer

if TYPE_CHECKING:
    from .confinement import User
    from .protocol import Command, Own


def find_programs(command: Command, root: bytes) -> list[bytes]:
    """Where the program is, in the file system that *root* will make.

    :raises StageError: nowhere
    :raises NoScriptError: it takes a look from inside
    """
    if not root:
        programs = find_all(command)
        return checked(programs) if command.guarded else programs
    wanted = Root(*marshal.loads(root))
    if wanted.overlay is not None:
        raise NoScriptError
    try:
        top = os.open(wanted.directory or b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise NoScriptError from None
    try:
        covered = _check_points(wanted, top)
        for program in candidates(command):
            try:
                fd = openat2(top, program, os.O_PATH, INSIDE)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if not _place(fd).startswith(covered) and _is_binary(fd):
                    return [program]
            finally:
                os.close(fd)
            break
    except OSError:
        pass
    finally:
        os.close(top)
    raise NoScriptError


def _is_binary(fd: int) -> bool:
    """Of anything else, the interpreter would have to be found, too. What not all may execute, the worker may not."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) or not mode & 0o001:
        return False
    # A lease that a worker has on it is not waited for.
    with open(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        return file.read(4) == b"\x7fELF"


def _place(fd: int) -> bytes:
    """Where it really lies, behind all links."""
    return os.readlink(b"/proc/self/fd/%d" % fd) + b"/"


def _check_points(root: Root, top: int) -> tuple[bytes, ...]:
    """See that all mount points are there, of their kind, and that none has to be made, lies in another, or is the
    same.

    :return: what they hide
    """
    found: list[bytes] = []
    files = {_file(top)}
    for name, is_folder in points(root):
        fd = openat2(top, name, os.O_PATH, INSIDE)
        try:
            file, fits, point = _file(fd), stat.S_ISDIR(os.fstat(fd).st_mode) == is_folder, _place(fd)
        finally:
            os.close(fd)
        if file in files or not fits or any(point.startswith(other) or other.startswith(point) for other in found):
            raise NoScriptError
        found.append(point)
        files.add(file)
    return tuple(found)


def _file(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def facts_of(root: bytes) -> tuple[bool, ...]:
    """What else the part depends on."""
    if not root:
        return ()
    return tuple(os.path.isdir(mount[1]) for mount in Root(*marshal.loads(root)).mounts if mount[0])


@functools.lru_cache(maxsize=16)
def file_system(root: bytes, own: Own, facts: tuple[bool, ...], mapped: tuple[int, int] | None) -> Script:  # noqa: ARG001
    """The part that makes the root, and what *own* asks for. Thousands of workers have the same.

    :param mapped: the first ids of a user namespace whose maps leave the caller's own out: whoever makes a file must be
        mapped
    """
    script = Script()
    do = Writer(script)
    sources = Sources(root, do) if root else None
    if mapped is not None:
        with do.stage("user", "uid {}, gid {}".format(*mapped)):
            do.set_ids(*mapped)
    make_own(own, do, build(sources) if sources is not None else {})
    return script


@functools.lru_cache(maxsize=16)
def confining(confinement: bytes, user: User | None, permitted: int) -> Script:
    """The part that confines a command, see :func:`.confinement.confine`."""
    script = Script()
    confine(decode(confinement), user, Writer(script, permitted))
    return script


@functools.lru_cache(maxsize=16)
def restricting(confinement: bytes) -> Script:
    """The last part of that, see :func:`.confinement.restrict`."""
    script = Script()
    if not decode(confinement).restricts_early:
        restrict(decode(confinement), Writer(script))
    return script
