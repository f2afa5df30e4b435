"""What a worker's processes may do, as frozen values that have been checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import is_text, items, noted, shown
from nsorch.values import Value

#: in the order of their numbers (linux/capability.h)
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
CAPABILITY_SETS = ("bounding", "permitted", "effective", "inheritable", "ambient")
RLIMITS = (
    *("as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
UNLIMITED = -1
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MOST_GROUPS = 65536  # NGROUPS_MAX


def _is_all(value: Any) -> bool:
    """In any case: container tools write it in capitals."""
    return isinstance(value, str) and value.upper() == "ALL"


def _capability(value: Any) -> frozenset[str]:
    if _is_all(value):
        return frozenset(CAPABILITIES)
    name = value.upper().removeprefix("CAP_") if isinstance(value, str) else ""
    if name not in CAPABILITIES:
        import difflib

        close = difflib.get_close_matches(name, CAPABILITIES, 1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise TopologyError(f"capabilities: there is no {shown(value)}{hint}")
    return frozenset((name,))


def _names(key: str, value: Any) -> frozenset[str]:
    if _is_all(value):
        return frozenset(CAPABILITIES)
    return frozenset().union(*map(_capability, items(f"capabilities.{key}", value, 'names, nor "all"')))


def _to_bounding(value: Any) -> frozenset[str]:
    return _names("bounding", value)


def _to_permitted(value: Any) -> frozenset[str]:
    return _names("permitted", value)


def _to_effective(value: Any) -> frozenset[str]:
    return _names("effective", value)


def _to_inheritable(value: Any) -> frozenset[str]:
    return _names("inheritable", value)


def _to_ambient(value: Any) -> frozenset[str]:
    return _names("ambient", value)


def _to_add(value: Any) -> frozenset[str]:
    return _names("add", value)


def _to_drop(value: Any) -> frozenset[str]:
    return _names("drop", value)


@frozen(kw_only=True, eq=False, repr=False)
class Capabilities(Value):
    """The five sets of capabilities(7), by names such as ``"NET_ADMIN"``, or ``"all"``; as they are before the exec,
    whose rules then apply: a command of uid 0 gets its bounding set, another one its ambient set.

    ``nsorch.Capabilities.only("NET_RAW")`` is what a list in ``capabilities=`` means: just these, in all sets that a
    command of any uid needs to have them.
    """

    bounding: frozenset[str] = field(default=frozenset(), converter=_to_bounding)
    permitted: frozenset[str] = field(default=frozenset(), converter=_to_permitted)
    effective: frozenset[str] = field(default=frozenset(), converter=_to_effective)
    inheritable: frozenset[str] = field(default=frozenset(), converter=_to_inheritable)
    ambient: frozenset[str] = field(default=frozenset(), converter=_to_ambient)

    def __attrs_post_init__(self) -> None:
        for smaller, larger in (("effective", "permitted"), ("ambient", "permitted"), ("ambient", "inheritable")):
            if extra := getattr(self, smaller) - getattr(self, larger):
                raise TopologyError(f"capabilities.{smaller}: {', '.join(sorted(extra))} must be {larger}, too")
        if extra := self.inheritable - self.bounding:
            raise TopologyError(
                f"capabilities.inheritable: {', '.join(sorted(extra))} must be in the bounding set, too"
            )

    @classmethod
    def only(cls, *names: str) -> Capabilities:
        """Just these, for a command of any uid."""
        return cls(**dict.fromkeys(CAPABILITY_SETS, names))

    @property
    def named(self) -> frozenset[str]:
        return frozenset().union(*(getattr(self, name) for name in CAPABILITY_SETS))


@frozen(eq=False, repr=False)
class CapabilityChange(Value):
    """What a preset gives, and more or less of it: ``["+NET_RAW", "-CHOWN"]``, ``["-all", "+NET_RAW"]``."""

    add: frozenset[str] = field(default=frozenset(), converter=_to_add)
    drop: frozenset[str] = field(default=frozenset(), converter=_to_drop)

    def applied(self, base: frozenset[str]) -> frozenset[str]:
        return (base | self.add) - self.drop


def to_capabilities(value: Any) -> Capabilities | CapabilityChange | None:
    if value is None or value == CapabilityChange():  # which a file can't tell from no capabilities
        return None
    if isinstance(value, Capabilities | CapabilityChange):
        return value
    if _is_all(value):
        return Capabilities.only("all")
    if isinstance(value, Mapping):
        if unknown := set(value) - set(CAPABILITY_SETS):
            sets = ", ".join(CAPABILITY_SETS)
            raise TopologyError(f"capabilities: there is no set {shown(unknown.pop())}, only {sets}")
        return Capabilities(**value)
    names = items("capabilities", value, 'names, nor "all", nor a mapping of the five sets')
    signed = [isinstance(name, str) and name[:1] in ("+", "-") for name in names]
    if not any(signed):
        return Capabilities.only(*names)
    if not all(signed):
        raise TopologyError(f"capabilities: {names!r}: either all are changes (+NAME, -NAME) or none is")
    add, drop = ([name[1:] for name in names if name[0] == sign] for sign in "+-")
    if any(map(_is_all, add)) and any(map(_is_all, drop)):
        raise TopologyError(f"capabilities: {names!r}: all can't be added and dropped at once")
    # Of two that contradict each other the named one counts: all but that, or none but that.
    dropped = _names("drop", drop) - (_names("add", add) if any(map(_is_all, drop)) else frozenset())
    return CapabilityChange(add, dropped)


def _one_limit(name: str, value: Any) -> int:
    if value in ("unlimited", None) or value == UNLIMITED:
        return UNLIMITED
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise TopologyError(f'rlimits.{name}: {shown(value)} is neither a number from 0 nor "unlimited"')
    return value


#: what to_rlimits takes as a name, besides the plain ones
RLIMIT_NAMES = f"^(?:RLIMIT_)?(?:{'|'.join(RLIMITS).upper()})$"


def _rlimit(key: str) -> str | None:
    """The plain name: files and code may have the C library's."""
    return key if key in RLIMITS else key.removeprefix("RLIMIT_").lower() if re.fullmatch(RLIMIT_NAMES, key) else None


def to_rlimits(value: Any) -> Mapping[str, tuple[int, int]]:
    """(soft, hard) by name; -1 is no limit."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TopologyError(f"rlimits: {shown(value)} is not a mapping of names to limits")
    found: dict[str, tuple[int, int]] = {}
    problems: list[str] = []
    for key, limit in value.items():
        name = _rlimit(str(key))
        if name is None:
            problems.append(f'rlimits: there is no "{key}", only {", ".join(RLIMITS)}')
        elif name in found:
            problems.append(f"rlimits.{name}: is given twice, by either of its names")
        else:
            with noted(problems):
                found[name] = _soft_and_hard(key, limit)
    if problems:
        raise TopologyError(*problems)
    return found


def _soft_and_hard(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple):
        value = value, value
    elif len(value) != 2:
        raise TopologyError(f"rlimits.{name}: {shown(value)} is not a pair (soft, hard)")
    soft, hard = (_one_limit(name, part) for part in value)
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise TopologyError(f"rlimits.{name}: the soft limit is above the hard one")
    return soft, hard


def to_score(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise TopologyError(f"oom_score_adj: {shown(value)} is not a number from -1000 to 1000")
    return value


def _flag(name: str, value: Any) -> bool | None:
    """True, False, or None for what the preset says."""
    if value is None or isinstance(value, bool):
        return value
    raise TopologyError(f"{name}: {shown(value)} is neither true nor false")


def to_no_new_privs(value: Any) -> bool | None:
    return _flag("no_new_privs", value)


def to_cgroup_namespace(value: Any) -> bool | None:
    return _flag("cgroup_namespace", value)


def to_readonly_root(value: Any) -> bool | None:
    return _flag("readonly_root", value)


#: what stands for a program
SECCOMP = ("default", "unconfined")


def to_seccomp(value: Any) -> str | bytes | int | None:
    """``"default"``, ``"unconfined"``, the path of a file with a program, a descriptor of one, or its bytes."""
    if value is None or value in SECCOMP:
        return value  # type: ignore[no-any-return]
    if isinstance(value, bytes | bytearray | memoryview):
        check_program(bytes(value))
        return bytes(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if "/" not in value:
            raise TopologyError(
                f"seccomp: {shown(value)} is neither {', '.join(SECCOMP)} nor the path of a BPF program"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise TopologyError(f"seccomp: {shown(value)} is not {', '.join(SECCOMP)}, a path, a descriptor, or bytes")
    return value


def check_program(program: bytes) -> None:
    """
    :raises TopologyError: it can't be a BPF program: an array of ``struct sock_filter``
    """
    if not program or len(program) % 8 or len(program) // 8 > _MOST_INSTRUCTIONS:
        raise TopologyError(
            f"seccomp: {len(program)} bytes are no BPF program, which has 1 to {_MOST_INSTRUCTIONS} instructions of 8"
        )


def to_groups(value: Any) -> tuple[str | int, ...]:
    """Names or numbers of supplementary groups."""
    if value is None:
        return ()
    groups = items("groups", value, "names and numbers")
    for group in groups:
        known = is_text(group) if isinstance(group, str) else _is_id(group) and group <= _LAST_ID
        if not known or not str(group):
            raise TopologyError(f"groups: {shown(group)} is neither a name nor a number")
    if len(groups) > _MOST_GROUPS:
        raise TopologyError(f"groups: {len(groups)} are more than the kernel takes, {_MOST_GROUPS}")
    return tuple(groups)


def to_user(value: Any) -> str | int | None:
    if value is None:
        return None
    parts = value.split(":") if isinstance(value, str) and is_text(value) else []
    if isinstance(value, int) and not isinstance(value, bool):
        parts = [str(min(max(value, -1), _LAST_ID + 1))]
    if not 0 < len(parts) <= 2 or not all(parts):
        raise TopologyError(f"user: {shown(value)} is not a name, a uid, or such as 1000:1000")
    for part in parts:
        if part.lstrip("-").isdecimal() and not (len(part) < 20 and 0 <= int(part) <= _LAST_ID):
            raise TopologyError(f"user: {shown(value)} is not a number from 0 to {_LAST_ID}")
    return value  # type: ignore[no-any-return]


_LAST_ID = (1 << 32) - 2
#: first id inside, first id outside, how many
IdRange = tuple[int, int, int]
_MOST_RANGES = 340  # UID_GID_MAP_MAX_EXTENTS
_MOST_TEXT = 4096  # of the file, which is written at once: less than a page


def _id_map(name: str, value: Any) -> tuple[IdRange, ...]:
    if value is None:
        return ()
    ranges: list[IdRange] = []
    for number, item in enumerate(items(name, value, "(inside, outside, count)")):
        if not isinstance(item, list | tuple) or len(item) != 3 or not all(_is_id(part) for part in item):
            raise TopologyError(f"{name}[{number}]: {shown(item)} is not (first inside, first outside, count)")
        inside, outside, count = item
        if not count or max(inside, outside) + count > (1 << 32) - 1:
            raise TopologyError(f"{name}[{number}]: {count} ids from {inside} and {outside} aren't there")
        for before in ranges:
            for side in (0, 1):
                if item[side] < before[side] + before[2] and before[side] < item[side] + count:
                    raise TopologyError(f"{name}[{number}]: overlaps another range")
        ranges.append((inside, outside, count))
    if len(ranges) > _MOST_RANGES:
        raise TopologyError(f"{name}: more than {_MOST_RANGES} ranges")
    if (size := sum(len("{} {} {}\n".format(*ids)) for ids in ranges)) >= _MOST_TEXT:
        raise TopologyError(f"{name}: {size} bytes, and the kernel takes less than {_MOST_TEXT}: too many ranges")
    return tuple(ranges)


def to_uid_map(value: Any) -> tuple[IdRange, ...]:
    return _id_map("uid_map", value)


def to_gid_map(value: Any) -> tuple[IdRange, ...]:
    return _id_map("gid_map", value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


CLOCKS = ("monotonic", "boottime")


def to_time_offsets(value: Any) -> Mapping[str, float]:
    """Seconds by clock."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TopologyError(f"time_offsets: {shown(value)} is not a mapping of {' and '.join(CLOCKS)} to seconds")
    problems = []
    for clock, offset in value.items():
        if clock not in CLOCKS:
            problems.append(f'time_offsets: there is no clock "{clock}", only {" and ".join(CLOCKS)}')
        elif isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) < 1 << 62:
            problems.append(f"time_offsets.{clock}: {shown(offset)} is not a number of seconds")
    if problems:
        raise TopologyError(*problems)
    return dict(value)
