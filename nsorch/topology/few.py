"""Converters of what few workers have: what checks it is imported with the first that has it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsorch import topology

T = TypeVar("T")


def _converted(converter: str, value: Any, nothing: T) -> Any | T:
    """By a function of another module here, unless it is nothing."""
    if value is None or (type(value) is type(nothing) and not value):
        return nothing
    module, name = converter.split(".")
    return getattr(import_module(f"nsorch.topology.{module}"), name)(value)


def to_user(value: Any) -> str | int | None:
    return _converted("privileges.to_user", value, None)


def to_groups(value: Any) -> tuple[str | int, ...]:
    return _converted("privileges.to_groups", value, ())


def to_rootfs(value: Any) -> str | topology.Overlay | None:
    return _converted("mounts.to_rootfs", value, None)


def to_mounts(value: Any) -> tuple[topology.Mount, ...]:
    return _converted("mounts.to_mounts", value, ())


def to_readonly_root(value: Any) -> bool | None:
    return _converted("privileges.to_readonly_root", value, None)


def to_masked(value: Any) -> tuple[str, ...] | None:
    return _converted("mounts.to_masked", value, None)


def to_readonly_paths(value: Any) -> tuple[str, ...] | None:
    return _converted("mounts.to_readonly_paths", value, None)


def to_capabilities(value: Any) -> topology.Capabilities | topology.CapabilityChange | None:
    return _converted("privileges.to_capabilities", value, None)


def to_no_new_privs(value: Any) -> bool | None:
    return _converted("privileges.to_no_new_privs", value, None)


def to_seccomp(value: Any) -> str | bytes | int | None:
    return _converted("privileges.to_seccomp", value, None)


def to_rlimits(value: Any) -> Mapping[str, tuple[int, int]]:
    return _converted("privileges.to_rlimits", value, {})


def to_score(value: Any) -> int | None:
    return _converted("privileges.to_score", value, None)


def to_limits(value: Any) -> topology.Limits | None:
    return _converted("limits.to_limits", value, None)


def to_cgroup_namespace(value: Any) -> bool | None:
    return _converted("privileges.to_cgroup_namespace", value, None)


def to_time_offsets(value: Any) -> Mapping[str, float]:
    return _converted("privileges.to_time_offsets", value, {})


def to_uid_map(value: Any) -> tuple[topology.IdRange, ...]:
    return _converted("privileges.to_uid_map", value, ())


def to_gid_map(value: Any) -> tuple[topology.IdRange, ...]:
    return _converted("privileges.to_gid_map", value, ())


def to_nat(value: Any) -> topology.Nat | None:
    return _converted("filters.to_nat", value, None)


def to_firewall(value: Any) -> topology.Firewall | None:
    return _converted("filters.to_firewall", value, None)


def to_interfaces(value: Any) -> tuple[topology.InterfaceSpec, ...]:
    return _converted("interface_files.to_interfaces", value, ())


def to_service(value: Any) -> topology.Service | None:
    return _converted("services.to_service", value, None)


def to_uplink(value: Any) -> topology.UplinkSpec | None:
    return _converted("uplinks.to_uplink", value, None)
