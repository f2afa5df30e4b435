"""The mount calls that go by descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)), and openat2(2)."""

from __future__ import annotations

import ctypes
import os

from .syscalls import call

# One number on every architecture.
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 428, 429, 430, 431, 432
OPENAT2, MOUNT_SETATTR = 437, 442

AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE = 1
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
#: of both descriptors
MOVE_EMPTY_PATHS = 0x04 | 0x40

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10


class OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def openat2(folder: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open *path* below *folder*; the caller owns the descriptor, which is close-on-exec."""
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return call(OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how))


def clone_tree(fd: int, *, recursive: bool) -> int:
    """A copy of the mount at *fd*, attached nowhere; with all that is mounted below it, if *recursive*."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return call(OPEN_TREE, fd, b"", flags)


def new_mount(kind: bytes, options: tuple[tuple[bytes, bytes], ...] = (), attributes: int = 0) -> int:
    """Mount a file system of *kind*, attached nowhere; an option without a value is a flag."""
    context = call(FSOPEN, kind, FSOPEN_CLOEXEC)
    try:
        for key, value in options:
            if value:
                call(FSCONFIG, context, FSCONFIG_SET_STRING, key, value, 0)
            else:
                call(FSCONFIG, context, FSCONFIG_SET_FLAG, key, None, 0)
        call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call(FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(mount: int, target: int) -> None:
    """Attach *mount* at what the descriptor *target* is of, wherever that has been moved to."""
    call(MOVE_MOUNT, mount, b"", target, b"", MOVE_EMPTY_PATHS)


def set_attributes(mount: int, attributes: int = 0, *, propagation: int = 0, recursive: bool = False) -> None:
    """Of a mount, and with *recursive* of all that is mounted below it."""
    wanted = MountAttributes(attributes, 0, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call(MOUNT_SETATTR, mount, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
