"""Descriptions of labs: data, no kernel objects."""

from __future__ import annotations

from nsorch.topology.difference import Change, Difference
from nsorch.topology.filters import Firewall, Forward, Nat, Rule
from nsorch.topology.model import Topology
from nsorch.topology.namespaces import NamespaceSet, Pid
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
    "BridgeSpec",
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
    "Pid",
    "Route",
    "Rule",
    "TcpReady",
    "To",
    "Topology",
    "WorkerSpec",
    "exec_ready",
    "tcp_ready",
]
