"""What this host lets a process do, found out by doing it: in namespaces that end with the process that tried.

Run by itself, it prints the results as JSON: of each try the error number (0: it can be done) and where it failed.
Nothing on the host changes, but that the kernel may load a module on its own where one is asked for by its use.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import marshal
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

from . import tries_net
from .mounts import leave_chroot
from .stages import StageError, stage
from .syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    NS_FILES,
    clone3,
    machine,
    mount,
    pivot_root,
    set_parent_death_signal,
    setns,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Result = tuple[int, str]  # error number, where
    Report = Callable[[Any], None]

_NOBODY = 65534
# A mount of a network file system that hangs, a module that takes its time: no try may keep the others waiting.
_PATIENCE = 10.0
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "ppc64le": 358, "s390x": 348, "i686": 354}
_SYS_MOUNT_SETATTR, _SYS_OPENAT2 = 442, 437
_SECCOMP_GET_ACTION_AVAIL, _SECCOMP_RET_ERRNO = 2, 0x00050000
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    rootless = sys.argv[1] == "rootless"
    results: dict[str, Result] = {}
    results["clone3"] = _in_child(_clone)
    for kind, name in NS_FILES.items():
        if kind != CLONE_NEWUSER:
            results[f"{name} namespace"] = _in_child(lambda kind=kind: _make(kind, rootless))  # type: ignore[misc]
    results["user namespace"] = _in_child(_user_namespace)
    results["setns"] = _in_child(lambda: _enter_again(rootless))
    results["fresh /proc"] = _in_child(lambda: _fresh_proc(rootless))
    results["fresh /sys"] = _in_child(lambda: _mount_fresh("sysfs", CLONE_NEWNET, rootless))
    results["POSIX queues"] = _in_child(lambda: _mount_fresh("mqueue", CLONE_NEWIPC, rootless))
    results["overlay"] = _in_child(lambda: _overlay(rootless))
    results["overlay without root"] = _in_child(lambda: _overlay(True))
    results["pivot_root"] = _in_child(lambda: _pivot_root(rootless))
    results["seccomp"] = _in_child(_seccomp)
    results["mount_setattr"] = _in_child(lambda: _exists(_SYS_MOUNT_SETATTR))
    results["openat2"] = _in_child(lambda: _exists(_SYS_OPENAT2))
    for name, library in (("libpcap", ("libpcap.so.0.8", "libpcap.so.1")), ("libseccomp", ("libseccomp.so.2",))):
        results[name] = _in_child(lambda library=library: _load(library))  # type: ignore[misc]
    results |= _in_network(rootless)
    json.dump(results, sys.stdout)


def _in_child(act: Callable[[], None]) -> Result:
    found: list[Any] | None = _collect(lambda report: report(_outcome(act)))
    return found[0] if found else (errno.EIO, "it died" if found is not None else "it hangs")


def _in_network(rootless: bool) -> dict[str, Result]:
    """All that concerns interfaces, in one network namespace: making one costs more than most of these tries."""

    def act(report: Report) -> None:
        made = _outcome(lambda: _make(CLONE_NEWNET, rootless))
        for name, attempt in tries_net.attempts():
            report((name, made if made[0] else _outcome(attempt)))

    found = dict(_collect(act) or ())
    return {name: found.get(name, (errno.EIO, "it died")) for name, _ in tries_net.attempts()}


def _outcome(act: Callable[[], None]) -> Result:
    try:
        act()
    except StageError as exc:
        return exc.number, f"{exc.stage} {exc.detail}".strip()
    except OSError as exc:
        return exc.errno or errno.EIO, exc.strerror or ""
    return 0, ""


def _collect(act: Callable[[Report], None]) -> list[Any] | None:
    """What *act*, in a child of its own, reports; None where it takes too long."""
    ours, theirs = os.pipe()
    pid = os.fork()  # a filter may forbid clone3
    if pid == 0:
        try:
            set_parent_death_signal(signal.SIGKILL)
            act(lambda value: _write(theirs, value))
        finally:
            os._exit(0)
    os.close(theirs)
    data, patient = b"", True
    while patient and (patient := bool(select.select([ours], [], [], _PATIENCE)[0])):
        chunk = os.read(ours, 65536)
        if not chunk:
            break
        data += chunk
    os.close(ours)
    os.kill(pid, signal.SIGKILL)  # not reaped yet: the number is still its own
    os.waitpid(pid, 0)
    if not patient and not data:
        return None
    values = []
    while data:
        size = int.from_bytes(data[:4], "little")
        values.append(marshal.loads(data[4 : 4 + size]))
        data = data[4 + size :]
    return values


def _write(fd: int, value: Any) -> None:
    data = marshal.dumps(value)
    os.write(fd, len(data).to_bytes(4, "little") + data)


# -- the tries


def _make(kinds: int, rootless: bool) -> None:
    if rootless:
        _enter_user_namespace()
    with stage("unshare", ", ".join(name for kind, name in NS_FILES.items() if kinds & kind)):
        unshare(kinds)
    if kinds & CLONE_NEWNS:
        with stage("setns", "mnt"):
            leave_chroot()


def _clone() -> None:
    with stage("clone3"):
        pid, _ = clone3(0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _enter_again(rootless: bool) -> None:
    _make(CLONE_NEWUTS, rootless)
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    with stage("setns", "uts"):
        setns(fd, CLONE_NEWUTS)


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    with stage("unshare", "user"):
        unshare(CLONE_NEWUSER)
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with stage("uid map", file), open(f"/proc/self/{file}", "w") as target:
            target.write(text)


def _user_namespace() -> None:
    """As an ordinary user has it: with rights inside, which is what AppArmor takes."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # root of a user namespace that has nobody else
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        # A change of credentials gives /proc/self to root (PR_SET_DUMPABLE), and nobody may write its own maps.
        _libc.prctl(4, 1, 0, 0, 0)
    _enter_user_namespace()
    with stage("unshare", "net"):
        unshare(CLONE_NEWNET)


def _fresh_proc(rootless: bool) -> None:
    _make(CLONE_NEWPID | CLONE_NEWNS, rootless)

    def first(report: Report) -> None:
        report(_outcome(lambda: _mount("proc", "proc", "/proc")))

    found = _collect(first)
    if not found or found[0][0]:
        raise StageError("mount", found[0][0] if found else errno.EIO, "/proc")


def _mount_fresh(kind: str, owner: int, rootless: bool) -> None:
    _make(CLONE_NEWNS | owner, rootless)
    _mount(kind, kind, "/proc")


def _mount(source: str, kind: str, target: str, options: str = "") -> None:
    with stage("mount", kind):
        mount("", "/", "", MS_REC | MS_PRIVATE)
        mount(source, target, kind, 14, options)  # nosuid, nodev, noexec


def _overlay(rootless: bool) -> None:
    _make(CLONE_NEWNS, rootless)
    _mount("nsorch", "tmpfs", "/proc", "mode=755")  # over something that is surely there
    for folder in ("lower", "upper", "work", "merged"):
        os.mkdir(f"/proc/{folder}")
    options = "lowerdir=/proc/lower,upperdir=/proc/upper,workdir=/proc/work" + (",userxattr" if rootless else "")
    with stage("mount", "overlay"):
        mount("nsorch", "/proc/merged", "overlay", 0, options)
    with stage("write", "overlay"):
        os.mkdir("/proc/merged/folder")


def _pivot_root(rootless: bool) -> None:
    _make(CLONE_NEWNS, rootless)
    _mount("nsorch", "tmpfs", "/proc")
    os.chdir("/proc")
    with stage("pivot_root"):
        pivot_root(".", ".")


def _seccomp() -> None:
    number = _SYS_SECCOMP.get(machine())
    if number is None:
        raise OSError(errno.ENOSYS, "not known for this machine")
    action = ctypes.c_uint32(_SECCOMP_RET_ERRNO)
    if _libc.syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _exists(number: int) -> None:
    """A call with no valid argument fails in some way; only one that doesn't exist, or is filtered, in this one."""
    _libc.syscall(number, -1, None, 0, None, 0)
    if (failure := ctypes.get_errno()) in (errno.ENOSYS, errno.EPERM):
        raise OSError(failure, os.strerror(failure))


def _load(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            ctypes.CDLL(name)
            return
        except OSError:
            continue
    raise OSError(errno.ENOENT, names[0])
