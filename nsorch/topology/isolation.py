"""The keys of a worker's table in a file that are about its isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import fields

from nsorch.errors import TopologyError
from nsorch.topology.limits import limits_to_dict
from nsorch.topology.mounts import Bind, Overlay
from nsorch.topology.privileges import CAPABILITIES, CAPABILITY_SETS, UNLIMITED, Capabilities, CapabilityChange

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nsorch.topology.mounts import Mount
    from nsorch.topology.specs import WorkerSpec

#: texts
TEXT_KEYS = ("isolation", "domainname")
#: each of which can be checked for itself
OWN_KEYS = (
    "groups",
    "rootfs",
    "mounts",
    "readonly_root",
    "masked",
    "readonly_paths",
    "capabilities",
    "no_new_privs",
    "seccomp",
    "rlimits",
    "oom_score_adj",
    "limits",
    "cgroup_namespace",
    "time_offsets",
)
#: which mean something beside others
OTHER_KEYS = ("uid_map", "gid_map")
ISOLATION_KEYS = (*TEXT_KEYS, *OWN_KEYS, *OTHER_KEYS)


def isolation_to_dict(spec: WorkerSpec, path: str) -> dict[str, Any]:
    """As a file has it; what is None is left out.

    :raises TopologyError: a seccomp program by bytes or descriptor
    """
    if isinstance(spec.seccomp, bytes | int):
        raise TopologyError(f"{path}.seccomp: a program by bytes or descriptor can't be written to a file")
    return {
        "isolation": None if spec.isolation == "network" else spec.isolation,
        "rootfs": _overlay(spec.rootfs) if isinstance(spec.rootfs, Overlay) else spec.rootfs,
        "mounts": [_mount(mount) for mount in spec.mounts] or None,
        "readonly_root": spec.readonly_root,
        "masked": None if spec.masked is None else list(spec.masked),
        "readonly_paths": None if spec.readonly_paths is None else list(spec.readonly_paths),
        "groups": list(spec.groups) or None,
        "capabilities": _capabilities(spec.capabilities),
        "no_new_privs": spec.no_new_privs,
        "seccomp": spec.seccomp,
        "rlimits": {name: _limit(*limits) for name, limits in spec.rlimits.items()} or None,
        "oom_score_adj": spec.oom_score_adj,
        "limits": limits_to_dict(spec.limits) or None,
        "cgroup_namespace": spec.cgroup_namespace,
        "time_offsets": dict(spec.time_offsets) or None,
        "uid_map": [list(ids) for ids in spec.uid_map] or None,
        "gid_map": [list(ids) for ids in spec.gid_map] or None,
        "domainname": spec.domainname,
    }


def _overlay(overlay: Overlay) -> dict[str, Any]:
    lower = overlay.lower[0] if len(overlay.lower) == 1 else list(overlay.lower)
    table = {"lower": lower, "upper": overlay.upper, "work": overlay.work, "size": overlay.size}
    return {key: value for key, value in table.items() if value is not None}


def _mount(mount: Mount) -> dict[str, Any]:
    table: dict[str, Any] = {"type": "bind" if isinstance(mount, Bind) else "tmpfs"}
    for attribute in fields(type(mount)):
        value = getattr(mount, attribute.name)
        if value != attribute.default:
            table[attribute.name] = f"{value:o}" if attribute.name == "mode" else value
    return table


def _capabilities(value: Capabilities | CapabilityChange | None) -> Any:
    if value is None:
        return None
    if isinstance(value, CapabilityChange):
        return [*(f"+{name}" for name in _ordered(value.add)), *(f"-{name}" for name in _ordered(value.drop))]
    sets = {name: _ordered(getattr(value, name)) for name in CAPABILITY_SETS}
    if value == Capabilities.only(*value.bounding):
        return "all" if len(value.bounding) == len(CAPABILITIES) else sets["bounding"]
    return {name: names for name, names in sets.items() if names}


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=CAPABILITIES.index)


def _limit(soft: int, hard: int) -> Any:
    def shown(limit: int) -> int | str:
        return "unlimited" if limit == UNLIMITED else limit

    return shown(soft) if soft == hard else [shown(soft), shown(hard)]


def check_tables(table: Mapping[str, Any], path: str) -> list[str]:
    """Problems of the types that only a file can have wrong."""
    if isinstance(seccomp := table.get("seccomp"), int) and not isinstance(seccomp, bool):
        return [f"{path}.seccomp: {seccomp} is not a string"]
    return []
