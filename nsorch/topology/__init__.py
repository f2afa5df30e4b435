"""Descriptions of labs: data, no kernel objects. What few labs have is imported with the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.later import later
from nsorch.topology.emulation import Emulation
from nsorch.topology.namespaces import NamespaceSet, Pid
from nsorch.topology.specs import BridgeSpec, End, LinkSpec, Route, To, WorkerSpec

if TYPE_CHECKING:
    from nsorch.topology.bursts import GilbertElliott
    from nsorch.topology.difference import Change, Difference
    from nsorch.topology.filters import Firewall, Nat
    from nsorch.topology.interfaces import Bond, Dummy, InterfaceSpec, Ipvlan, Macvlan, Tun, Vlan, Vrf
    from nsorch.topology.limits import IoLimits, Limits
    from nsorch.topology.model import Topology
    from nsorch.topology.mounts import Bind, Mount, Overlay, Tmpfs, bind, overlay, tmpfs
    from nsorch.topology.privileges import Capabilities, CapabilityChange, IdRange
    from nsorch.topology.profiles import PROFILES, Profile
    from nsorch.topology.ready import ExecReady, TcpReady, exec_ready, tcp_ready
    from nsorch.topology.services import Dnsmasq, Frr, Service, Tayga
    from nsorch.topology.traces import Step, Trace
    from nsorch.topology.tunnels import Vxlan, WireGuard, WireGuardPeer
    from nsorch.topology.uplinks import UplinkMethod, UplinkSpec

LATER = {
    "GilbertElliott": "nsorch.topology.bursts",
    "Change": "nsorch.topology.difference",
    "Difference": "nsorch.topology.difference",
    "Firewall": "nsorch.topology.filters",
    "Nat": "nsorch.topology.filters",
    "Bond": "nsorch.topology.interfaces",
    "Dummy": "nsorch.topology.interfaces",
    "InterfaceSpec": "nsorch.topology.interfaces",
    "Ipvlan": "nsorch.topology.interfaces",
    "Macvlan": "nsorch.topology.interfaces",
    "Tun": "nsorch.topology.interfaces",
    "Vlan": "nsorch.topology.interfaces",
    "Vrf": "nsorch.topology.interfaces",
    "IoLimits": "nsorch.topology.limits",
    "Limits": "nsorch.topology.limits",
    "Topology": "nsorch.topology.model",
    "Bind": "nsorch.topology.mounts",
    "Mount": "nsorch.topology.mounts",
    "Overlay": "nsorch.topology.mounts",
    "Tmpfs": "nsorch.topology.mounts",
    "bind": "nsorch.topology.mounts",
    "overlay": "nsorch.topology.mounts",
    "tmpfs": "nsorch.topology.mounts",
    "Capabilities": "nsorch.topology.privileges",
    "CapabilityChange": "nsorch.topology.privileges",
    "IdRange": "nsorch.topology.privileges",
    "PROFILES": "nsorch.topology.profiles",
    "Profile": "nsorch.topology.profiles",
    "ExecReady": "nsorch.topology.ready",
    "TcpReady": "nsorch.topology.ready",
    "exec_ready": "nsorch.topology.ready",
    "tcp_ready": "nsorch.topology.ready",
    "Dnsmasq": "nsorch.topology.services",
    "Frr": "nsorch.topology.services",
    "Service": "nsorch.topology.services",
    "Tayga": "nsorch.topology.services",
    "Step": "nsorch.topology.traces",
    "Trace": "nsorch.topology.traces",
    "Vxlan": "nsorch.topology.tunnels",
    "WireGuard": "nsorch.topology.tunnels",
    "WireGuardPeer": "nsorch.topology.tunnels",
    "UplinkMethod": "nsorch.topology.uplinks",
    "UplinkSpec": "nsorch.topology.uplinks",
}

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
    "Firewall",
    "Frr",
    "GilbertElliott",
    "IdRange",
    "InterfaceSpec",
    "IoLimits",
    "Ipvlan",
    "Limits",
    "LinkSpec",
    "Macvlan",
    "Mount",
    "NamespaceSet",
    "Nat",
    "Overlay",
    "Pid",
    "Profile",
    "Route",
    "Service",
    "Step",
    "Tayga",
    "TcpReady",
    "Tmpfs",
    "To",
    "Topology",
    "Trace",
    "Tun",
    "UplinkMethod",
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

if not TYPE_CHECKING:  # type checkers would take any name for one that exists
    __getattr__, __dir__ = later(globals(), LATER)
