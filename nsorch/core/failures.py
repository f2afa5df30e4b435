"""Where a failed step of a helper becomes an error of nsorch's family: the one boundary."""

from __future__ import annotations

import errno
import os

from nsorch.errors import (
    CommandNotFoundError,
    NameInUseError,
    NsorchError,
    PermissionDeniedError,
    SetupError,
    UnsupportedError,
)

_LIMITS = {
    "user": "max_user_namespaces",
    "net": "max_net_namespaces",
    "mnt": "max_mnt_namespaces",
    "uts": "max_uts_namespaces",
    "ipc": "max_ipc_namespaces",
    "pid": "max_pid_namespaces",
    "cgroup": "max_cgroup_namespaces",
    "time": "max_time_namespaces",
}
_FORBIDDING = (
    ("kernel/unprivileged_userns_clone", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ("user/max_user_namespaces", "0"),
)


def translate(stage: str, number: int, detail: str, worker: str | None) -> NsorchError:
    """Name what failed in *stage* with errno *number*, and the setting that forbids it, where one does."""
    if stage == "command" and number == errno.ENOENT:
        return CommandNotFoundError(f'there is no command "{detail}"', worker=worker, stage=stage, errno=number)
    if stage == "exec" and number == errno.ENOENT:
        return CommandNotFoundError(
            f'"{detail}" can\'t be executed: its interpreter is missing', worker=worker, stage=stage, errno=number
        )
    if stage in ("command", "exec") and number in (errno.EACCES, errno.ENOEXEC):
        return SetupError(f'"{detail}" is not executable', worker=worker, stage=stage, errno=number)
    if stage in ("start", "init") and number == errno.ESRCH:
        return SetupError("it was killed before its command ran", worker=worker, stage=stage, errno=number)
    if stage == "pin" and number == errno.EEXIST:
        return NameInUseError(f"there is a {detail} already", worker=worker)
    if number in (errno.EMFILE, errno.ENFILE):
        hint = "the limit of open files (RLIMIT_NOFILE, fs.file-max) is too low"
        return SetupError(stage, worker=worker, stage=stage, errno=number, detail=hint)
    if stage in ("unshare", "clone3"):
        return _namespaces(stage, number, detail, worker)
    if number == errno.ENOSYS:
        hint = "the kernel is too old for it, or a seccomp filter of this container or host hides it: see nsorch doctor"
        return UnsupportedError(f"{stage} {detail}".strip(), worker=worker, stage=stage, errno=number, detail=hint)
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(
            f"{stage} {detail}".strip(), worker=worker, stage=stage, errno=number, detail=_permission_hint(stage)
        )
    return SetupError(
        f"{stage} {detail}".strip(), worker=worker, stage=stage, errno=number, detail=_REASONS.get((stage, number), "")
    )


def _namespaces(stage: str, number: int, kinds: str, worker: str | None) -> NsorchError:
    names = kinds.split(", ") if kinds else []
    what = f"make namespaces ({kinds})" if kinds else "start a process"
    if number == errno.ENOSPC:
        settings = ", ".join(
            f"user.{_LIMITS[name]} = {_sysctl('user/' + _LIMITS[name])}" for name in names if name in _LIMITS
        )
        hint = f"a limit of this user namespace is reached: {settings}"
    elif number in (errno.EPERM, errno.EACCES):
        found = [f"{path.replace('/', '.')} = {value}" for path, value in _FORBIDDING if _sysctl(path) == value] or [
            "a seccomp filter or a security module of this container or host, a chroot, or user.max_user_namespaces"
        ]
        hint = f"forbidden by {', '.join(found)}"
        if "user" in names and is_nobody():
            hint = NOBODYS
    elif number == errno.EAGAIN:
        return SetupError(what, worker=worker, stage=stage, errno=number, detail=PROCESSES)
    elif number in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):
        missing = [name for name in names if not os.path.exists(f"/proc/self/ns/{name}")]
        hint = f"this kernel has no {', '.join(missing)} namespaces" if missing else "this kernel refuses them"
        if number == errno.ENOSYS:
            hint = f"a seccomp filter of this container or host hides {stage}, or the kernel is older than 5.3"
        return UnsupportedError(what, worker=worker, stage=stage, errno=number, detail=hint)
    else:
        return SetupError(what, worker=worker, stage=stage, errno=number)
    return PermissionDeniedError(what, worker=worker, stage=stage, errno=number, detail=hint)


#: why there is no other process or thread
PROCESSES = "a limit of processes is reached (RLIMIT_NPROC, kernel.pid_max, kernel.threads-max, pids.max)"
#: why there is no user namespace for whom :func:`is_nobody` tells of
NOBODYS = "the user or the group of this process isn't mapped in its user namespace (user_namespaces(7))"


def is_nobody() -> bool:
    """Whether the caller is who doesn't exist in its user namespace."""
    for kind, number in (("uid", os.geteuid()), ("gid", os.getegid())):
        with open(f"/proc/self/{kind}_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
        if not any(first <= number < first + count for first, _, count in ranges):
            return True
    return False


_HINTS = {
    "user": "without root only the caller's own user is mapped, as uid 0, and what /etc/subuid and /etc/subgid give",
    "uid map": "the ids aren't the caller's; uid 0 needs CAP_SETFCAP in the namespace above (user_namespaces(7))",
    "setns": "the namespace belongs to a user namespace in which the caller has no rights, or it is that of another "
    "user's process, which takes CAP_SYS_PTRACE",
    "rlimits": "a hard limit can't be raised without CAP_SYS_RESOURCE of the host; that of open files never above "
    "fs.nr_open",
    "oom_score_adj": "it can't be lowered without CAP_SYS_RESOURCE of the host",
    "seccomp": "a filter needs no_new_privs, or CAP_SYS_ADMIN",
    "capabilities": "the supervisor hasn't got them itself",
    "mount source": "it, or a directory above it, can't be reached by the supervisor's user",
    "rootfs": "it, or a directory above it, can't be reached or written to by the supervisor's user",
    "overlay": "who is the first user of the worker can't write to the working directory, without which an overlay is "
    "read-only",
    "mount point": "it is missing, and can't be made, or can't be reached",
    "sysctl": "it is read-only, or it can't be written to from a user namespace, as most can't but those of net; for "
    "kernel.hostname and kernel.domainname there are hostname and domainname",
}
# Of other errors, where what the kernel says doesn't tell enough.
_REASONS = {
    **dict.fromkeys([("thread", errno.EAGAIN), ("spawn", errno.EAGAIN), ("exec", errno.EAGAIN)], PROCESSES),
    ("hosts file", errno.EFBIG): "the limit of the size of files (RLIMIT_FSIZE) is too low",
    ("bind", errno.EINVAL): "in a user namespace, what is mounted below it can't be left out (recursive=False)",
    ("mount point", errno.ENOENT): "none is made in the host's own files",
    ("mount point", errno.EROFS): "it is missing, and what it would be in is read-only",
    ("rootfs", errno.EINVAL): "in a user namespace, nothing may be mounted below a layer of an overlay, as it is below "
    '/: give it a directory without such mounts, or rootfs="/" itself; and not every file system may have its upper '
    "directory, such as another overlay",
    ("rootfs", errno.EXDEV): "the working directory is on another file system than the upper directory",
    ("rootfs", errno.ELOOP): "the layers of an overlay lie within one another",
    ("seccomp", errno.EINVAL): "the kernel takes it for no program",
    ("setns", errno.EINVAL): "a pid namespace has to lie below the supervisor's, a user namespace be another",
    ("user", errno.EINVAL): "the user namespace, which is another worker's, hasn't got these ids",
    ("time offsets", errno.ERANGE): "a clock would show less than 0, or more than 146 years",
}


def _permission_hint(stage: str) -> str:
    if stage in _HINTS:
        return _HINTS[stage]
    if stage.startswith(("mount", "hosts")):
        return "a container that masks parts of /proc, or a security module, forbids this mount"
    return ""


def _sysctl(path: str) -> str:
    try:
        with open(f"/proc/sys/{path}") as file:
            return file.read().strip()
    except OSError:
        return "?"
