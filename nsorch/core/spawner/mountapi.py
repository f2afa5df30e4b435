"""The mount calls that go by descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)), and openat2(2)."""

from __future__ import annotations

import ctypes
import os

from .syscalls import call

# One number on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442

_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def openat2(folder: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open *path* below *folder*; the caller owns the descriptor, which is close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return call(_SYS_OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how))


def clone_tree(fd: int, *, recursive: bool) -> int:
    """A copy of the mount at *fd*, attached nowhere; with all that is mounted below it, if *recursive*."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return call(_SYS_OPEN_TREE, fd, b"", flags)


def new_mount(kind: bytes, options: tuple[tuple[bytes, bytes], ...] = (), attributes: int = 0) -> int:
    """Mount a file system of *kind*, attached nowhere; an option without a value is a flag."""
    context = call(_SYS_FSOPEN, kind, _FSOPEN_CLOEXEC)
    try:
        for key, value in options:
            if value:
                call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)
            else:
                call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, key, None, 0)
        call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(mount: int, target: int) -> None:
    """Attach *mount* at what the descriptor *target* is of, wherever that has been moved to."""
    call(_SYS_MOVE_MOUNT, mount, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def set_attributes(mount: int, attributes: int = 0, *, propagation: int = 0, recursive: bool = False) -> None:
    """Of a mount, and with *recursive* of all that is mounted below it."""
    wanted = _MountAttributes(attributes, 0, propagation, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    call(_SYS_MOUNT_SETATTR, mount, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
