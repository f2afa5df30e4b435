"""What a worker may use, and how the kernel's files say it (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import noted, shown
from nsorch.topology.units import size
from nsorch.topology.values import made
from nsorch.values import Value

_PERIOD = 100_000  # µs, of cpu.max: the kernel's own default
_LEAST_CPUS = 0.01  # 1 ms of it is the shortest that the kernel takes
IO_KEYS = ("rbps", "wbps", "riops", "wiops")
_DEVICE = re.compile(r"[0-9]+:[0-9]+|/.+")


def _refuse(key: str, value: object, what: str) -> TopologyError:
    return TopologyError(f"limits.{key}: {shown(value)} is not {what}")


def _bytes(key: str, value: Any, least: int = 0) -> int | None:
    if value is None:
        return None
    try:
        number = size(value)
    except ValueError as exc:
        raise TopologyError(f"limits.{key}: {exc}") from None
    if number < least:
        raise _refuse(key, value, f"{least} bytes or more")
    return number


def _to_memory(value: Any) -> int | None:
    return _bytes("memory", value, 4096)


def _to_memory_high(value: Any) -> int | None:
    return _bytes("memory_high", value, 4096)


def _to_swap(value: Any) -> int | None:
    return _bytes("swap", value)


def _to_cpus(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST_CPUS <= value <= 100_000:
        raise _refuse("cpus", value, f"a number of CPUs from {_LEAST_CPUS}")
    return float(value)


def _whole(key: str, value: Any, least: int, most: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
        raise _refuse(key, value, f"a whole number from {least} to {most}")
    return value


def _operations(key: str, value: Any) -> int | None:
    return _whole(key, value, 1, 1 << 40)


def _to_cpu_weight(value: Any) -> int | None:
    return _whole("cpu_weight", value, 1, 10_000)


def _to_pids(value: Any) -> int | None:
    return _whole("pids", value, 1, 1 << 22)


def _to_cpuset(value: Any) -> str | None:
    if value is None:
        return None
    parts = value.replace(" ", "").split(",") if isinstance(value, str) else []
    ranges = [re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part) for part in parts]
    if not ranges or not all(match and int(match[1]) <= int(match[2] or match[1]) for match in ranges):
        raise _refuse("cpuset", value, 'a list of CPUs such as "0-1,4"')
    return ",".join(parts)


def _to_rbps(value: Any) -> int | None:
    return _bytes("io.rbps", value, 1)


def _to_wbps(value: Any) -> int | None:
    return _bytes("io.wbps", value, 1)


def _to_riops(value: Any) -> int | None:
    return _operations("io.riops", value)


def _to_wiops(value: Any) -> int | None:
    return _operations("io.wiops", value)


@frozen(kw_only=True, eq=False, repr=False)
class IoLimits(Value):
    """Of one block device.

    :ivar rbps: bytes per second to be read; *wbps* written
    :ivar riops: operations per second; *wiops* the same
    """

    rbps: int | None = field(default=None, converter=_to_rbps)
    wbps: int | None = field(default=None, converter=_to_wbps)
    riops: int | None = field(default=None, converter=_to_riops)
    wiops: int | None = field(default=None, converter=_to_wiops)

    def to_dict(self) -> dict[str, int]:
        return {key: number for key in IO_KEYS if (number := getattr(self, key)) is not None}

    def line(self) -> str:
        """As ``io.max`` has it, without the device."""
        return " ".join(f"{key}={'max' if (n := getattr(self, key)) is None else n}" for key in IO_KEYS)


def _to_io(value: Any) -> Mapping[str, IoLimits]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _refuse("io", value, 'a mapping of devices, such as {"/dev/vda": {"wbps": "10MiB"}}')
    found: dict[str, IoLimits] = {}
    problems: list[str] = []
    for device, limits in value.items():
        with noted(problems):
            name = _device(device)
            found[name] = _io_limits(f"io.{device}", limits)
    if problems:
        raise TopologyError(*problems)
    return found


def _device(value: Any) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise _refuse("io", value, "the path of a block device, or its numbers such as 254:0")
    return value


def _io_limits(path: str, value: Any) -> IoLimits:
    if isinstance(value, IoLimits):
        return value
    if not isinstance(value, Mapping) or not value:
        raise _refuse(path, value, f"a table of {', '.join(IO_KEYS)}")
    found: dict[str, int | None] = {}
    problems: list[str] = []
    for key, item in value.items():
        where = f"{path}.{key}"
        if key not in IO_KEYS:
            problems.append(f"limits.{where}: unknown key; there are {', '.join(IO_KEYS)}")
            continue
        with noted(problems):
            found[key] = _bytes(where, item, 1) if key.endswith("bps") else _operations(where, item)
    if problems:
        raise TopologyError(*problems)
    return IoLimits(**found)


@frozen(kw_only=True, eq=False, repr=False)
class Limits(Value):
    """What all processes of a worker may use together: ``nsorch.Limits(memory="512MiB", cpus=1.5)``.

    :ivar memory: bytes, beyond which something is killed (``memory.max``)
    :ivar memory_high: bytes, beyond which all are slowed down and their memory is reclaimed
    :ivar swap: bytes of swap space
    :ivar cpus: how many CPUs, such as 1.5 (``cpu.max``)
    :ivar cpu_weight: share of the CPUs where there are too few, from 1 to 10,000; others have 100
    :ivar cpuset: CPUs that they may run on, such as ``"0-1,4"``
    :ivar pids: processes and threads, with the worker's init
    :ivar io: by block device, a path or ``"major:minor"``: ``{"/dev/vda": {"rbps": "10MiB", "wiops": 100}}``
    """

    memory: int | None = field(default=None, converter=_to_memory)
    memory_high: int | None = field(default=None, converter=_to_memory_high)
    swap: int | None = field(default=None, converter=_to_swap)
    cpus: float | None = field(default=None, converter=_to_cpus)
    cpu_weight: int | None = field(default=None, converter=_to_cpu_weight)
    cpuset: str | None = field(default=None, converter=_to_cpuset)
    pids: int | None = field(default=None, converter=_to_pids)
    io: Mapping[str, IoLimits] = field(factory=dict, converter=_to_io)

    def __bool__(self) -> bool:
        return self != NO_LIMITS

    def controllers(self) -> dict[str, str]:
        """The controllers that keep these limits, each with the name of one limit that needs it."""
        given = [key for key in LIMIT_KEYS if getattr(self, key) not in (None, {})]
        return {CONTROLLERS[key]: key for key in given}

    def files(self) -> dict[str, str]:
        """What the cgroup's files are to hold, but for ``io.max``, which needs the devices' numbers."""
        texts = {
            "memory.max": self.memory,
            "memory.high": self.memory_high,
            "memory.swap.max": self.swap,
            "cpu.max": None if self.cpus is None else f"{round(self.cpus * _PERIOD)} {_PERIOD}",
            "cpu.weight": self.cpu_weight,
            "cpuset.cpus": self.cpuset,
            "pids.max": self.pids,
        }
        return {name: str(value) for name, value in texts.items() if value is not None}


#: of each limit
CONTROLLERS = {
    "memory": "memory",
    "memory_high": "memory",
    "swap": "memory",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "cpuset": "cpuset",
    "pids": "pids",
    "io": "io",
}
#: what the files hold where nothing is limited
UNLIMITED = {
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "cpu.max": f"max {_PERIOD}",
    "cpu.weight": "100",
    "cpuset.cpus": "",  # all
    "pids.max": "max",
}
LIMIT_KEYS = tuple(CONTROLLERS)
NO_LIMITS = Limits()


def to_limits(value: Any) -> Limits | None:
    """A converter: from a mapping, such as a file has.

    :raises TopologyError: naming the key
    """
    if value is None or isinstance(value, Limits):
        return value or None
    if not isinstance(value, Mapping):
        raise TopologyError(f"limits: {shown(value)} is not nsorch.Limits(…)")
    unknown = [key for key in value if key not in LIMIT_KEYS]
    problems = [f"limits.{key}: unknown key; there are {', '.join(LIMIT_KEYS)}" for key in unknown]
    with noted(problems):
        limits = made(Limits, {key: item for key, item in value.items() if key not in unknown})
    if problems:
        raise TopologyError(*problems)
    return limits or None


def limits_to_dict(limits: Limits | None) -> dict[str, Any]:
    """As a file has it."""
    if limits is None:
        return {}
    plain: dict[str, Any] = {key: getattr(limits, key) for key in LIMIT_KEYS if key != "io"}
    plain["io"] = {device: each.to_dict() for device, each in limits.io.items()}
    return {key: value for key, value in plain.items() if value not in (None, {})}
