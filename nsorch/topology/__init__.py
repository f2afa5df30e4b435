"""Descriptions of labs: data, no kernel objects. What few labs have is imported from its own module."""

from __future__ import annotations

from nsorch.topology.difference import Change, Difference
from nsorch.topology.emulation import Emulation, GilbertElliott
from nsorch.topology.interfaces import Bond, Dummy, InterfaceSpec, Ipvlan, Macvlan, Tun, Vlan, Vrf
from nsorch.topology.limits import IoLimits, Limits
from nsorch.topology.model import Topology
from nsorch.topology.mounts import Bind, Overlay, Tmpfs, bind, overlay, tmpfs
from nsorch.topology.namespaces import NamespaceSet, Pid
from nsorch.topology.privileges import Capabilities, CapabilityChange
from nsorch.topology.profiles import PROFILES, Profile
from nsorch.topology.ready import ExecReady, TcpReady, exec_ready, tcp_ready
from nsorch.topology.services import Dnsmasq, Frr, Tayga
from nsorch.topology.specs import BridgeSpec, End, LinkSpec, Route, To, WorkerSpec
from nsorch.topology.traces import Step, Trace
from nsorch.topology.tunnels import Vxlan, WireGuard, WireGuardPeer
from nsorch.topology.uplinks import UplinkSpec

__all__ = [
    "PROFILES",
    "Bind",
    "Bond",
    "BridgeSpec",
    "Capabilities",
    "CapabilityChange",
    "Change",
    "Difference",
    "Dnsmasq",
    "Dummy",
    "Emulation",
    "End",
    "ExecReady",
    "Frr",
    "GilbertElliott",
    "InterfaceSpec",
    "IoLimits",
    "Ipvlan",
    "Limits",
    "LinkSpec",
    "Macvlan",
    "NamespaceSet",
    "Overlay",
    "Pid",
    "Profile",
    "Route",
    "Step",
    "Tayga",
    "TcpReady",
    "Tmpfs",
    "To",
    "Topology",
    "Trace",
    "Tun",
    "UplinkSpec",
    "Vlan",
    "Vrf",
    "Vxlan",
    "WireGuard",
    "WireGuardPeer",
    "WorkerSpec",
    "bind",
    "exec_ready",
    "overlay",
    "tcp_ready",
    "tmpfs",
]
