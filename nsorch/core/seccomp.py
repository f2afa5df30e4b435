"""The default seccomp profile: what container runtimes deny is denied, built by libseccomp where that is installed.

Calls that libseccomp doesn't know, because they are newer than it, fail as on a kernel that hasn't got them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from typing import TYPE_CHECKING

from nsorch.core.spawner.syscalls import machine
from nsorch.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALLOW = 0x7FFF0000


def _fail(number: int) -> int:
    return 0x00050000 | number


_MASKED_EQ = 7  # enum scmp_compare
_ACT_BADARCH, _OPTIMIZE = 2, 8  # enum scmp_filter_attr
_NATIVE = 0
#: architectures that an x86-64 kernel runs as well
_ARCH_X86 = 0x40000003
_MOST_CALLS = 1024

#: never, whatever the capabilities: keys aren't namespaced, and the others are old doors
_DENIED = frozenset(
    (
        *("add_key", "keyctl", "request_key"),
        *("io_uring_setup", "io_uring_enter", "io_uring_register"),
        *("create_module", "get_kernel_syms", "query_module", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl"),
        *("vm86", "vm86old", "userfaultfd", "kexec_load", "kexec_file_load"),
    )
)
#: only with one of these capabilities, besides what the kernel itself asks for
_PRIVILEGED = {
    **dict.fromkeys(
        (
            *("mount", "umount", "umount2", "pivot_root", "mount_setattr", "open_tree", "move_mount"),
            *("fsopen", "fsconfig", "fsmount", "fspick", "setns", "unshare", "sethostname", "setdomainname"),
            *("open_tree_attr", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"),
            *("swapon", "swapoff", "quotactl", "quotactl_fd", "fanotify_init", "lookup_dcookie", "clone3"),
        ),
        ("SYS_ADMIN",),
    ),
    "bpf": ("SYS_ADMIN", "BPF"),
    "perf_event_open": ("SYS_ADMIN", "PERFMON"),
    "syslog": ("SYS_ADMIN", "SYSLOG"),
    "open_by_handle_at": ("DAC_READ_SEARCH",),
    "name_to_handle_at": ("DAC_READ_SEARCH",),
    **dict.fromkeys(("init_module", "finit_module", "delete_module"), ("SYS_MODULE",)),
    "reboot": ("SYS_BOOT",),
    **dict.fromkeys(("iopl", "ioperm"), ("SYS_RAWIO",)),
    **dict.fromkeys(
        ("settimeofday", "stime", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64"),
        ("SYS_TIME",),
    ),
    "acct": ("SYS_PACCT",),
    "vhangup": ("SYS_TTY_CONFIG",),
    **dict.fromkeys(
        ("process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"), ("SYS_PTRACE",)
    ),
    **dict.fromkeys(
        ("mbind", "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "move_pages", "migrate_pages"),
        ("SYS_NICE",),
    ),
    "chroot": ("SYS_CHROOT",),
}
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW*, as clone(2) knows them
#: of personality(2): Linux, 32 bits, and no address space randomisation for either; the last asks
_PERSONALITIES = (0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_ALG, _AF_VSOCK = 38, 40


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise UnsupportedError(
            "the default seccomp profile needs libseccomp (package libseccomp2): install it, or choose "
            'another, such as seccomp="unconfined"',
            stage="seccomp",
        ) from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    for name in ("release", "arch_add", "attr_set", "rule_add_array", "export_bpf"):
        getattr(library, f"seccomp_{name}").argtypes = None
    return library


def available() -> bool:
    """Whether libseccomp is there. Blocks for a moment."""
    try:
        _library()
    except UnsupportedError:
        return False
    return True


@functools.lru_cache(maxsize=32)
def default_profile(capabilities: frozenset[str]) -> bytes:
    """The program for a command that may have *capabilities*. Takes some milliseconds, once: call it in a thread.

    :raises UnsupportedError: libseccomp is missing
    """
    library = _library()
    calls = list(_calls(library))
    allowed = [
        name
        for name, _ in calls
        if name not in _DENIED
        and (name not in _PRIVILEGED or capabilities.intersection(_PRIVILEGED[name]))
        and name not in ("clone", "personality", "ioctl", "socket")
    ]
    with _filter(library) as rules:
        rules.add(_ALLOW, *allowed)
        if "clone3" not in allowed:
            # C libraries fall back to clone, whose flags can be looked into.
            rules.add(_fail(errno.ENOSYS), "clone3")
        if "SYS_ADMIN" in capabilities:
            rules.add(_ALLOW, "clone")
        else:
            # On s390 the flags are the second argument.
            flags = 1 if machine().startswith("s390") else 0
            rules.add(_ALLOW, "clone", (flags, _MASKED_EQ, _NEW_NAMESPACES, 0))
        for value in _PERSONALITIES:
            rules.add(_ALLOW, "personality", (0, _MASKED_EQ, 0xFFFFFFFF, value))
        for comparison in _other_than(1, _TIOCSTI, _TIOCLINUX):
            rules.add(_ALLOW, "ioctl", comparison)
        for comparison in _other_than(0, _AF_ALG, _AF_VSOCK):
            rules.add(_ALLOW, "socket", comparison)
        return _prelude(max(number for _, number in calls)) + rules.export()


def _prelude(last: int) -> bytes:
    """Instructions before the program, whose jumps are relative: a call above *last* isn't there."""
    instructions = (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x25, 0, 1, last),  # unless it is greater, go on
        (0x06, 0, 0, _fail(errno.ENOSYS)),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _other_than(argument: int, first: int, second: int) -> Iterator[tuple[int, int, int, int]]:
    """Comparisons of which one holds, unless the low half of *argument* is *first* or *second*: of the kernel's int,
    the high half isn't there, so it must not count here (CVE-2019-10063)."""
    differing = first ^ second
    for bit in range(32):
        if not differing >> bit & 1:
            yield argument, _MASKED_EQ, 1 << bit, ~first & 1 << bit
    bits = [bit for bit in range(32) if differing >> bit & 1]
    for chosen in range(1 << len(bits)) if bits else ():
        pattern = sum(1 << bit for place, bit in enumerate(bits) if chosen >> place & 1)
        if pattern not in (first & differing, second & differing):
            yield argument, _MASKED_EQ, differing, pattern


def _calls(library: ctypes.CDLL) -> Iterator[tuple[str, int]]:
    """Name and number of all that libseccomp knows on this machine."""
    libc = ctypes.CDLL(None)
    libc.free.argtypes = (ctypes.c_void_p,)
    seen = set()
    for arch in _architectures():
        for number in range(_MOST_CALLS):
            name = library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(arch), ctypes.c_int(number))
            if name:
                text = ctypes.string_at(name).decode()
                libc.free(name)
                if text not in seen:
                    seen.add(text)
                    yield text, number


def _architectures() -> tuple[int, ...]:
    return (_NATIVE, _ARCH_X86) if machine() == "x86_64" else (_NATIVE,)


class _Rules:
    def __init__(self, library: ctypes.CDLL, context: int) -> None:
        self._library = library
        self._context = ctypes.c_void_p(context)

    def add(self, action: int, *parts: str | tuple[int, int, int, int]) -> None:
        """*action* for each of the named calls, where all of the comparisons hold."""
        comparisons = [_Comparison(*part) for part in parts if isinstance(part, tuple)]
        array = (_Comparison * len(comparisons))(*comparisons)
        for name in parts:
            if isinstance(name, str):
                number = self._library.seccomp_syscall_resolve_name(name.encode())
                if number == -1:  # __NR_SCMP_ERROR: this libseccomp doesn't know it
                    continue
                _check(
                    self._library.seccomp_rule_add_array(
                        self._context, ctypes.c_uint32(action), number, len(comparisons), array
                    )
                )

    def export(self) -> bytes:
        file = os.memfd_create("nsorch-seccomp")
        try:
            _check(self._library.seccomp_export_bpf(self._context, file))
            return os.pread(file, 1 << 20, 0)
        finally:
            os.close(file)


@contextlib.contextmanager
def _filter(library: ctypes.CDLL) -> Iterator[_Rules]:
    context = library.seccomp_init(ctypes.c_uint32(_fail(errno.EPERM)))
    if not context:
        raise MemoryError("seccomp_init")
    try:
        pointer = ctypes.c_void_p(context)
        for arch in _architectures():
            if arch != _NATIVE:
                _check(library.seccomp_arch_add(pointer, ctypes.c_uint32(arch)))
        _check(library.seccomp_attr_set(pointer, _ACT_BADARCH, ctypes.c_uint32(_fail(errno.ENOSYS))))
        # A binary tree: unknown to libseccomp before 2.5.
        library.seccomp_attr_set(pointer, _OPTIMIZE, ctypes.c_uint32(2))
        yield _Rules(library, context)
    finally:
        library.seccomp_release(ctypes.c_void_p(context))


def _check(result: int) -> None:
    if result < 0:
        raise UnsupportedError("build the default seccomp profile", stage="seccomp", errno=-result)
