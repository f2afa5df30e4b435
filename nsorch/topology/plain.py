"""Workers as most are: isolated by a preset that takes nothing of the host away, and no more than that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsorch.topology.specs import WorkerSpec

PRESETS = ("network", "container", "sandbox")


def is_plain(spec: WorkerSpec) -> bool:
    """Whether none of the fields asks for more than the usual namespaces: thousands of workers are like that."""
    return (
        spec.isolation == "network"
        and spec.rootfs is None
        and not spec.mounts
        and spec.capabilities is None
        and spec.seccomp is None
        and not spec.rlimits
        and spec.oom_score_adj is None
        and not spec.time_offsets
        and not spec.masked
        and not spec.readonly_paths
        and not spec.readonly_root
        and not spec.no_new_privs
        and spec.cgroup_namespace is None
        and spec.domainname is None
        and not spec.uid_map
        and not spec.gid_map
        and not spec.groups
    )
