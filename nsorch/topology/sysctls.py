"""Which sysctls belong to a namespace, so that setting them in a worker changes nothing else. See namespaces(7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nsorch.topology.kinds import shown
from nsorch.topology.namespaces import New

if TYPE_CHECKING:
    from nsorch.topology.namespaces import NamespaceSet

_FOLDERS = {"net/": "net", "fs/mqueue/": "ipc", "user/": "user"}
_IPC = "auto_msgmni msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced"
_NAMES = {f"kernel/{name}": "ipc" for name in _IPC.split()} | {"kernel/hostname": "uts", "kernel/domainname": "uts"}


def sysctl_path(name: str) -> str:
    """Below ``/proc/sys``. A name with a slash may have dots in its parts: ``net/ipv4/conf/eth0.5/forwarding``."""
    return (name if "/" in name else name.replace(".", "/")).lstrip("/")


def sysctl_problems(sysctls: Any, namespaces: NamespaceSet) -> list[str]:
    """What can't be set in a worker that has these *namespaces*, each with its path."""
    if not isinstance(sysctls, Mapping):
        return [f"sysctls: {shown(sysctls)} is not a mapping of names to values"]
    return [f"sysctls.{name}: {text}" for name, value in sysctls.items() if (text := _problem(name, value, namespaces))]


def _problem(name: Any, value: Any, namespaces: NamespaceSet) -> str:
    if not isinstance(name, str) or not name.strip("./") or "\0" in name or ".." in sysctl_path(name).split("/"):
        return "is not the name of a sysctl"
    if isinstance(value, bool) or not isinstance(value, str | int):
        return f"{shown(value)} is neither a string nor a number"
    if isinstance(value, int) and value.bit_length() > 64:
        return "is too large a number"
    path = sysctl_path(name)
    owner = _NAMES.get(path) or next((kind for folder, kind in _FOLDERS.items() if path.startswith(folder)), None)
    if owner is None:
        return "belongs to no namespace: it would be set for the whole host"
    if not isinstance(getattr(namespaces, owner), New):
        return f"would be set outside: the worker has no {owner} namespace of its own"
    return ""
