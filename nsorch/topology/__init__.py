"""Descriptions of labs: data, no kernel objects."""

from __future__ import annotations

from nsorch.topology.difference import Change, Difference
from nsorch.topology.filters import Firewall, Forward, Nat, Rule
from nsorch.topology.model import Topology
from nsorch.topology.mounts import Bind, Overlay, Tmpfs, bind, overlay, tmpfs
from nsorch.topology.namespaces import NamespaceSet, Pid
from nsorch.topology.privileges import Capabilities, CapabilityChange
from nsorch.topology.specs import (
    BridgeSpec,
    Emulation,
    End,
    ExecReady,
    LinkSpec,
    Route,
    TcpReady,
    To,
    WorkerSpec,
    exec_ready,
    tcp_ready,
)

__all__ = [
    "Bind",
    "BridgeSpec",
    "Capabilities",
    "CapabilityChange",
    "Change",
    "Difference",
    "Emulation",
    "End",
    "ExecReady",
    "Firewall",
    "Forward",
    "LinkSpec",
    "NamespaceSet",
    "Nat",
    "Overlay",
    "Pid",
    "Route",
    "Rule",
    "TcpReady",
    "Tmpfs",
    "To",
    "Topology",
    "WorkerSpec",
    "bind",
    "exec_ready",
    "overlay",
    "tcp_ready",
    "tmpfs",
]
