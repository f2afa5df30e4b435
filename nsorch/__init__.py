"""Asynchronous orchestration of Linux namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch import events, topology
from nsorch.core.process import Process
from nsorch.errors import (
    AddressError,
    ClosedError,
    CommandNotFoundError,
    ImageError,
    NameInUseError,
    NetlinkError,
    NotReadyError,
    NsorchError,
    PermissionDeniedError,
    SetupError,
    SpawnerDiedError,
    SubnetFullError,
    TopologyError,
    UnsupportedError,
    WorkerExitedError,
)
from nsorch.events import (
    BridgeCreated,
    BridgeRemoved,
    Event,
    Exit,
    Gap,
    LinkChanged,
    LinkCreated,
    LinkDown,
    LinkRemoved,
    LinkUp,
    Snapshot,
    State,
    SupervisorStarted,
    SupervisorStopped,
    SupervisorStopping,
    Usage,
    WorkerExited,
    WorkerFailed,
    WorkerReady,
    WorkerRemoved,
    WorkerRequested,
    WorkerSetupFailed,
    WorkerSpawned,
    WorkerStarted,
    WorkerStatus,
    WorkerStopping,
)
from nsorch.later import later
from nsorch.supervisor.supervisor import Supervisor
from nsorch.supervisor.wiring.network import Bridge, Interface, Link
from nsorch.supervisor.worker import Worker
from nsorch.topology import (
    BridgeSpec,
    Emulation,
    End,
    LinkSpec,
    Pid,
    Route,
    To,
    WorkerSpec,
)

if TYPE_CHECKING:
    from nsorch.core.usage import (
        CpuStats,
        DeviceStats,
        IoStats,
        MemoryStats,
        PidsStats,
        Pressure,
        PressureShare,
        WorkerStats,
    )
    from nsorch.events.rare import (
        InterfaceCreated,
        InterfaceRemoved,
        NetError,
        NetworkHealed,
        NetworkPartitioned,
        WorkerBackoff,
        WorkerFrozen,
        WorkerHealthy,
        WorkerLimitHit,
        WorkerOomKilled,
        WorkerThawed,
        WorkerUnhealthy,
    )
    from nsorch.host import Capacity, Feature, HostReport, probe
    from nsorch.images import ImageConfig, Unpacked, unpack
    from nsorch.net.packets import Packet
    from nsorch.net.ping import ProbeResult, Reachability
    from nsorch.supervisor.deployment import Deployment
    from nsorch.supervisor.traffic.capture import Capture
    from nsorch.supervisor.traffic.tun import TunDevice
    from nsorch.supervisor.wiring.uplinks import Uplink
    from nsorch.topology.bursts import GilbertElliott
    from nsorch.topology.difference import Change, Difference
    from nsorch.topology.filters import Firewall, Forward, Nat, Rule
    from nsorch.topology.home import home_router
    from nsorch.topology.interfaces import Bond, Dummy, InterfaceSpec, Ipvlan, Macvlan, Tun, Vlan, Vrf
    from nsorch.topology.limits import IoLimits, Limits
    from nsorch.topology.model import Topology
    from nsorch.topology.mounts import Bind, Overlay, Tmpfs, bind, overlay, tmpfs
    from nsorch.topology.privileges import Capabilities, CapabilityChange
    from nsorch.topology.profiles import PROFILES, Profile
    from nsorch.topology.ready import ExecReady, TcpReady, exec_ready, tcp_ready
    from nsorch.topology.services import Dnsmasq, Frr, Tayga
    from nsorch.topology.traces import Trace
    from nsorch.topology.tunnels import Vxlan, WireGuard, WireGuardPeer
    from nsorch.topology.uplinks import UplinkSpec

__version__ = "0.1.0"

__all__ = [
    "PROFILES",
    "AddressError",
    "Bind",
    "Bond",
    "Bridge",
    "BridgeCreated",
    "BridgeRemoved",
    "BridgeSpec",
    "Capabilities",
    "CapabilityChange",
    "Capacity",
    "Capture",
    "Change",
    "ClosedError",
    "CommandNotFoundError",
    "CpuStats",
    "Deployment",
    "DeviceStats",
    "Difference",
    "Dnsmasq",
    "Dummy",
    "Emulation",
    "End",
    "Event",
    "ExecReady",
    "Exit",
    "Feature",
    "Firewall",
    "Forward",
    "Frr",
    "Gap",
    "GilbertElliott",
    "HostReport",
    "ImageConfig",
    "ImageError",
    "Interface",
    "InterfaceCreated",
    "InterfaceRemoved",
    "InterfaceSpec",
    "IoLimits",
    "IoStats",
    "Ipvlan",
    "Limits",
    "Link",
    "LinkChanged",
    "LinkCreated",
    "LinkDown",
    "LinkRemoved",
    "LinkSpec",
    "LinkUp",
    "Macvlan",
    "MemoryStats",
    "NameInUseError",
    "Nat",
    "NetError",
    "NetlinkError",
    "NetworkHealed",
    "NetworkPartitioned",
    "NotReadyError",
    "NsorchError",
    "Overlay",
    "Packet",
    "PermissionDeniedError",
    "Pid",
    "PidsStats",
    "Pressure",
    "PressureShare",
    "ProbeResult",
    "Process",
    "Profile",
    "Reachability",
    "Route",
    "Rule",
    "SetupError",
    "Snapshot",
    "SpawnerDiedError",
    "State",
    "SubnetFullError",
    "Supervisor",
    "SupervisorStarted",
    "SupervisorStopped",
    "SupervisorStopping",
    "Tayga",
    "TcpReady",
    "Tmpfs",
    "To",
    "Topology",
    "TopologyError",
    "Trace",
    "Tun",
    "TunDevice",
    "Unpacked",
    "UnsupportedError",
    "Uplink",
    "UplinkSpec",
    "Usage",
    "Vlan",
    "Vrf",
    "Vxlan",
    "WireGuard",
    "WireGuardPeer",
    "Worker",
    "WorkerBackoff",
    "WorkerExited",
    "WorkerExitedError",
    "WorkerFailed",
    "WorkerFrozen",
    "WorkerHealthy",
    "WorkerLimitHit",
    "WorkerOomKilled",
    "WorkerReady",
    "WorkerRemoved",
    "WorkerRequested",
    "WorkerSetupFailed",
    "WorkerSpawned",
    "WorkerSpec",
    "WorkerStarted",
    "WorkerStats",
    "WorkerStatus",
    "WorkerStopping",
    "WorkerThawed",
    "WorkerUnhealthy",
    "bind",
    "exec_ready",
    "home_router",
    "overlay",
    "probe",
    "tcp_ready",
    "tmpfs",
    "unpack",
]

# Imported when first used: a program that doesn't shouldn't wait for them.
LATER = {
    "CpuStats": "nsorch.core.usage",
    "DeviceStats": "nsorch.core.usage",
    "IoStats": "nsorch.core.usage",
    "MemoryStats": "nsorch.core.usage",
    "PidsStats": "nsorch.core.usage",
    "Pressure": "nsorch.core.usage",
    "PressureShare": "nsorch.core.usage",
    "WorkerStats": "nsorch.core.usage",
    "Capacity": "nsorch.host",
    "Feature": "nsorch.host",
    "HostReport": "nsorch.host",
    "probe": "nsorch.host",
    "ImageConfig": "nsorch.images",
    "Unpacked": "nsorch.images",
    "unpack": "nsorch.images",
    "Packet": "nsorch.net.packets",
    "ProbeResult": "nsorch.net.ping",
    "Reachability": "nsorch.net.ping",
    "Deployment": "nsorch.supervisor.deployment",
    "Capture": "nsorch.supervisor.traffic.capture",
    "TunDevice": "nsorch.supervisor.traffic.tun",
    "Uplink": "nsorch.supervisor.wiring.uplinks",
    "Forward": "nsorch.topology.filters",
    "Rule": "nsorch.topology.filters",
    "home_router": "nsorch.topology.home",
    **{name: module for name, module in {**events.LATER, **topology.LATER}.items() if name in __all__},
}

if not TYPE_CHECKING:  # type checkers would take any name for one that exists
    __getattr__, __dir__ = later(globals(), LATER)
